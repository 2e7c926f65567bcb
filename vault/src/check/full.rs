//! What only the key can tell: indexes against the headers of packs, trees against indexes, and which points a damage touches. Of the hot
//! store and of the archive store, one after the other; of packs in the Archive tier their sizes only. Indexes, snapshots and trees belong
//! online: one that lies there is told, for its points cannot be restored.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};

use super::files::{Files, State};
use super::{AffectedPoint, Finding, FindingKind as Kind, Report, rules};
use crate::archive;
use crate::error::Error;
use crate::id::Id;
use crate::reader::ranges::raw_length;
use crate::reader::streams;
use crate::records::{self, DamageRecord};
use crate::repository::index::{Index, IndexPack};
use crate::repository::pack::{self, PackedBlob};
use crate::repository::tree::{Node, Tree};
use crate::repository::{FileKind, Repository, pack_key};
use crate::store::{self, Tier};

/// Headers that are read at once: hides the store's latency; a header is some KiB.
const READS: usize = 16;
/// Directories in directories: ours have three levels.
const MAX_DEPTH: usize = 8;

pub(super) async fn check(repository: &Arc<Repository>, state: &State, report: &mut Report) -> Result<(), Error> {
    let archive = Arc::new(archive::open(repository)?);
    let (mut findings, mut facts) = (Vec::new(), Vec::new());
    for (repository, files) in [(repository, &state.hot), (&archive, &state.archive)] {
        let bad = known_bad(repository, files, report).await?;
        let mut check = Check { repository, state, files, findings: Vec::new(), bad };
        let index = check.indexes(report).await?;
        facts.push(check.points(&index).await?);
        findings.append(&mut check.findings);
    }
    findings.into_iter().for_each(|finding| report.add(finding));
    name_points(state, &facts, report);
    Ok(())
}

/// True for what lies in these files' repository.
fn is_in(files: &Files, finding: &Finding) -> bool {
    finding.file.starts_with(records::ARCHIVE) != files.base.is_empty()
}

/// Packs that are not as they should be, as far as the files have shown, now or in an earlier check.
async fn known_bad(repository: &Repository, files: &Files, report: &Report) -> Result<HashSet<Id>, Error> {
    let here = report.findings.iter().filter(|finding| is_in(files, finding));
    let wrong = here.filter(|finding| matches!(finding.kind, Kind::Altered | Kind::Missing | Kind::WrongSize));
    let mut bad: HashSet<Id> = wrong.filter_map(Finding::pack).collect();
    if !files.base.is_empty() {
        // Of the archive nothing is written down.
        return Ok(bad);
    }
    let store = &**repository.store();
    for number in records::numbers(store, records::DAMAGED).await? {
        // One that cannot be read is a finding of its own.
        if let Ok(record) = records::get::<DamageRecord>(store, &records::numbered(records::DAMAGED, number)).await {
            bad.extend(record.packs);
        }
    }
    Ok(bad)
}

/// What is wrong with a tree and all that is below it.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Bad packs that hold something of it that no other pack holds.
    packs: BTreeSet<Id>,
    /// Blobs that no index names, the first of them, and how many there are.
    lost: Option<(Id, u64)>,
    /// Something else, in words.
    wrong: Option<String>,
}

impl Facts {
    fn join(&mut self, other: &Self) {
        self.packs.extend(&other.packs);
        self.lost = match (self.lost, other.lost) {
            (Some((first, a)), Some((_, b))) => Some((first, a + b)),
            (a, b) => a.or(b),
        };
        self.wrong = self.wrong.take().or_else(|| other.wrong.clone());
    }

    fn lose(&mut self, id: Id) {
        self.join(&Self { lost: Some((id, 1)), ..Self::default() });
    }
}

struct Check<'a> {
    repository: &'a Arc<Repository>,
    state: &'a State,
    /// The repository's.
    files: &'a Files,
    findings: Vec<Finding>,
    bad: HashSet<Id>,
}

impl Check<'_> {
    /// Reads every index file, and compares it with the packs. Bad packs are in the returned index too, but only for what no other has.
    async fn indexes(&mut self, report: &Report) -> Result<Index, Error> {
        let (mut index, mut aside, mut seen) = (Index::default(), Vec::new(), HashSet::new());
        for id in self.files.indexes.keys() {
            let file = self.files.key("repo/index/", id);
            let packs = match self.repository.index_file(id).await {
                Ok(Some(index)) => index.packs,
                // Merged into another one since the listing.
                Ok(None) => continue,
                Err(Error::Damaged { detail, .. }) => {
                    if !report.findings.iter().any(|finding| finding.file == file) {
                        self.findings.push(Finding::new(Kind::Altered, file, detail));
                    }
                    continue;
                }
                Err(Error::Store(store::Error::Archived { .. })) => {
                    let detail =
                        "it lies in the Archive tier: nothing that it names can be restored until it is online";
                    self.findings.push(Finding::new(Kind::Unreadable, file, detail));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut to_compare = Vec::new();
            for pack in packs {
                if !seen.insert(pack.id) {
                    continue;
                }
                match pack.packed_blobs() {
                    Ok(blobs) if self.is_good(&pack, &blobs) => to_compare.push((pack.id, blobs)),
                    Ok(blobs) => aside.push((pack.id, blobs)),
                    Err(detail) => self.findings.push(Finding::new(Kind::Inconsistent, file.as_str(), detail)),
                }
            }
            let (this, name) = (&*self, file.as_str());
            let mut compared = stream::iter(to_compare)
                .map(|(id, blobs)| async move {
                    let problem = this.compare_header(name, &id, &blobs).await?;
                    Ok::<_, Error>((id, blobs, problem))
                })
                .buffered(READS);
            let mut problems = Vec::new();
            while let Some(compared) = compared.next().await {
                let (id, blobs, problem) = compared?;
                problems.extend(problem);
                index.add_pack(id, &blobs)?;
            }
            drop(compared);
            self.findings.extend(problems);
        }
        for (id, blobs) in aside {
            index.add_pack(id, &blobs)?;
        }
        self.unindexed(&seen);
        Ok(index)
    }

    /// True when the pack is there and has the right size. What is wrong and not told yet is told.
    fn is_good(&mut self, indexed: &IndexPack, blobs: &[PackedBlob]) -> bool {
        let (id, size) = (indexed.id, pack::file_size(blobs.iter()));
        if self.bad.contains(&id) {
            return false;
        }
        let key = || self.files.key("repo/data/", &id);
        let finding = match self.files.packs.get(&id) {
            Some(file) if file.size == size => return true,
            Some(file) => {
                Finding::new(Kind::WrongSize, key(), format!("it has {} bytes, the index says {size}", file.size))
            }
            None => {
                self.bad.insert(id);
                if self.state.marked.contains(&id) {
                    // Pruned. When a point needs it, that is told then.
                    return false;
                }
                Finding::new(Kind::Missing, key(), "an index names it")
            }
        };
        self.bad.insert(id);
        self.findings.push(finding);
        false
    }

    /// What the header of the pack says against what the index says.
    async fn compare_header(&self, index: &str, id: &Id, blobs: &[PackedBlob]) -> Result<Option<Finding>, Error> {
        let Some(file) = self.files.packs.get(id).filter(|file| file.tier != Tier::Archive) else {
            return Ok(None);
        };
        let start = file.size.saturating_sub(pack::tail_len(blobs.iter()));
        let tail = match self.repository.store().get(&pack_key(id), Some(start..file.size)).await {
            // Pruned since the listing, or moved to the archive.
            Err(store::Error::NotFound { .. } | store::Error::Archived { .. }) => return Ok(None),
            tail => tail?,
        };
        let key = || self.files.key("repo/data/", id);
        Ok(match pack::parse_tail(id, file.size, &tail, self.repository.key()) {
            Ok(header) if header == blobs => None,
            Ok(_) => {
                let detail = format!("it does not say of pack {id} what the pack's header says");
                Some(Finding::new(Kind::Inconsistent, index, detail))
            }
            Err(error) => Some(Finding::new(Kind::Altered, key(), error.to_string())),
        })
    }

    /// Packs of commits that no index names.
    fn unindexed(&mut self, indexed: &HashSet<Id>) {
        let there = self.files.packs.keys().filter(|id| self.files.listed.contains_key(*id));
        for id in there.filter(|id| !indexed.contains(*id) && !self.state.marked.contains(*id)) {
            let detail = "no index names it: an index file was removed or altered";
            self.findings.push(Finding::new(Kind::Inconsistent, self.files.key("repo/data/", id), detail));
        }
    }

    /// Walks through the trees of every point in the repository.
    async fn points(&mut self, index: &Index) -> Result<BTreeMap<Id, Facts>, Error> {
        let (mut known, mut points) = (HashMap::new(), BTreeMap::new());
        for id in self.files.snapshots.keys() {
            let file = self.files.key("repo/snapshots/", id);
            let snapshot = match self.repository.snapshot_file(id).await {
                Ok(Some(snapshot)) => snapshot,
                // Deleted since the listing.
                Ok(None) => continue,
                Err(Error::Damaged { detail, .. }) => {
                    self.findings.push(Finding::new(Kind::Altered, file, detail));
                    continue;
                }
                Err(Error::Store(store::Error::Archived { .. })) => {
                    let detail = "it lies in the Archive tier: the point cannot be restored until it is online";
                    self.findings.push(Finding::new(Kind::Unreadable, file, detail));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let facts = self.tree(index, snapshot.tree, 0, &mut known).await?;
            if let Some((first, count)) = facts.lost {
                let detail = format!("{count} of its blobs are lost, blob {first} is the first: no index names them");
                self.findings.push(Finding::new(Kind::Missing, file.as_str(), detail));
            }
            if let Some(wrong) = &facts.wrong {
                self.findings.push(Finding::new(Kind::Inconsistent, file.as_str(), wrong.as_str()));
            }
            points.insert(*id, facts);
        }
        self.needed_and_pruned(&points);
        Ok(points)
    }

    /// Packs that a prune took away though a point needs them.
    fn needed_and_pruned(&mut self, points: &BTreeMap<Id, Facts>) {
        let needed: BTreeSet<Id> = points.values().flat_map(|facts| facts.packs.iter().copied()).collect();
        for id in needed.iter().filter(|id| self.state.marked.contains(*id) && !self.files.packs.contains_key(*id)) {
            let detail = "a prune took it away, and a point needs it";
            self.findings.push(Finding::new(Kind::Missing, self.files.key("repo/data/", id), detail));
        }
    }

    fn tree<'b>(
        &'b self,
        index: &'b Index,
        id: Id,
        depth: usize,
        known: &'b mut HashMap<Id, Facts>,
    ) -> BoxFuture<'b, Result<Facts, Error>> {
        async move {
            if let Some(facts) = known.get(&id) {
                return Ok(facts.clone());
            }
            let mut facts = Facts::default();
            self.look_up(index, &id, &mut facts);
            match streams::read_tree(self.repository, index, &id).await {
                _ if depth > MAX_DEPTH => facts.wrong = Some(format!("tree {id} is one directory too deep")),
                Ok(tree) => self.nodes(index, tree, depth, known, &mut facts).await?,
                // Lost, or in a bad pack: known already.
                Err(Error::Damaged { .. }) if facts.lost.is_some() || !facts.packs.is_empty() => {}
                Err(Error::Damaged { what, detail }) => facts.wrong = Some(format!("{what} is damaged: {detail}")),
                // Trees are kept online, for a rehydration reads them first; somebody has moved this one's pack.
                Err(Error::Store(store::Error::Archived { .. })) => {
                    let what = format!("tree {id} lies in the Archive tier, where no restore reads it");
                    facts.wrong = Some(format!("{what}: bring its pack online"));
                }
                Err(error) => return Err(error),
            }
            known.insert(id, facts.clone());
            Ok(facts)
        }
        .boxed()
    }

    async fn nodes(
        &self,
        index: &Index,
        tree: Tree,
        depth: usize,
        known: &mut HashMap<Id, Facts>,
        facts: &mut Facts,
    ) -> Result<(), Error> {
        for node in tree.nodes {
            match node.subtree {
                Some(subtree) if node.kind == "dir" => {
                    facts.join(&self.tree(index, subtree, depth + 1, known).await?);
                }
                _ => self.file(index, &node, facts),
            }
        }
        Ok(())
    }

    fn file(&self, index: &Index, node: &Node, facts: &mut Facts) {
        let mut size = Some(0_u64);
        for id in node.content.iter().flatten() {
            let length = self.look_up(index, id, facts);
            size = size.zip(length).map(|(size, length)| size.saturating_add(length));
        }
        if let Some(size) = size.filter(|size| *size != node.size) {
            let detail = format!("the chunks of {} have {size} bytes, its size says {}", node.name, node.size);
            facts.wrong.get_or_insert(detail);
        }
    }

    /// Notes when the blob is lost, or only in a bad pack. Returns the length of its plaintext.
    fn look_up(&self, index: &Index, id: &Id, facts: &mut Facts) -> Option<u64> {
        let Some(place) = index.get(id) else {
            facts.lose(*id);
            return None;
        };
        // Blobs lie side by side in their pack, whose size was compared: none reaches past its end.
        let pack = index.pack_id(place.pack);
        if self.bad.contains(&pack) {
            facts.packs.insert(pack);
        }
        Some(raw_length(&place) as u64)
    }
}

/// Which points each finding touches. `facts` are those of the hot store's points, then those of the archive's.
fn name_points(state: &State, facts: &[BTreeMap<Id, Facts>], report: &mut Report) {
    let affected = |id: &Id| AffectedPoint { id: *id, time: state.time(id) };
    let those = |archived: bool, wanted: &dyn Fn(&Facts) -> bool| -> Vec<AffectedPoint> {
        let facts = facts.get(usize::from(archived)).into_iter().flatten();
        facts.filter(|(_, facts)| wanted(facts)).map(|(id, _)| affected(id)).collect()
    };
    for finding in &mut report.findings {
        let (archived, below) = match finding.file.strip_prefix(records::ARCHIVE) {
            Some(below) => (true, below),
            None => (false, finding.file.as_str()),
        };
        finding.points = match finding.pack() {
            Some(pack) => those(archived, &|facts| facts.packs.contains(&pack)),
            None if below.starts_with(FileKind::Index.prefix()) => {
                finding.points_certain = false;
                those(archived, &|facts| facts.lost.is_some())
            }
            None => rules::own_point(below, state),
        };
    }
}
