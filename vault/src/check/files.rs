//! What is there, and what the records say: one listing of the store, every record read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Finding, FindingKind, Report, rules};
use crate::error::Error;
use crate::id::Id;
use crate::manifest;
use crate::records::{
    self, DamageRecord, InstanceRecord, ListedPack, PasswordRecord, PointEvent, PointEventKind, PruneMark,
};
use crate::store::{self, Entry, Key, Store, Tier};

/// Records that are read at once: hides the store's latency; a record is some KiB.
const READS: usize = 16;

/// A file of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct File {
    pub(super) size: u64,
    pub(super) tier: Tier,
}

/// A pack in the lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) size: u64,
    /// The first list that names it.
    pub(super) list: u64,
}

/// A repository's files, hot or archive.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Before every key: empty, or the archive's prefix.
    pub(super) base: &'static str,
    pub(super) config: bool,
    pub(super) key_files: BTreeMap<Id, File>,
    pub(super) indexes: BTreeMap<Id, File>,
    pub(super) snapshots: BTreeMap<Id, File>,
    pub(super) packs: BTreeMap<Id, File>,
    pub(super) lists: BTreeMap<u64, (Id, ListView)>,
    pub(super) listed: HashMap<Id, Listed>,
}

impl Files {
    pub(super) fn key(&self, below: &str, name: &Id) -> String {
        let name = name.to_string();
        match below {
            "repo/data/" => format!("{}{below}{}/{name}", self.base, &name[..2]),
            _ => format!("{}{below}{name}", self.base),
        }
    }
}

/// What a check needs of a pack list.
#[derive(Debug, Deserialize)]
pub(super) struct ListView {
    #[serde(default)]
    pub(super) previous: Option<Id>,
    pub(super) snapshot_id: Id,
    #[serde(default)]
    pub(super) packs: Vec<ListedPack>,
    /// It repeats what the lists before it name, and belongs to no commit.
    #[serde(default)]
    pub(super) checkpoint: Option<IgnoredAny>,
}

/// What the events of a point say.
#[derive(Debug, Default)]
pub(super) struct PointLog {
    pub(super) time: Option<jiff::Timestamp>,
    pub(super) created: bool,
    pub(super) abandoned: bool,
    pub(super) soft_deleted: bool,
    pub(super) purged: bool,
    pub(super) archived: bool,
    pub(super) removed_from_vault: bool,
}

impl PointLog {
    fn apply(&mut self, event: &PointEvent) {
        match &event.event {
            PointEventKind::Created(_) => (self.created, self.time) = (true, Some(event.time)),
            PointEventKind::Abandoned => self.abandoned = true,
            PointEventKind::SoftDeleted { .. } => self.soft_deleted = true,
            PointEventKind::Undeleted => self.soft_deleted = false,
            PointEventKind::Purged => self.purged = true,
            PointEventKind::Archived { .. } => self.archived = true,
            PointEventKind::RemovedFromVault => self.removed_from_vault = true,
            PointEventKind::Proven { .. } | PointEventKind::Held { .. } | PointEventKind::Released => {}
        }
    }

    /// The log says that people see the point.
    pub(super) fn is_listed(&self) -> bool {
        self.created && !(self.abandoned || self.soft_deleted || self.purged)
    }
}

/// A record that was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) size: u64,
    pub(super) hash: Id,
}

/// Everything that is known after the listing and the records.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) hot: Files,
    pub(super) archive: Files,
    pub(super) points: BTreeMap<Id, PointLog>,
    /// Numbers below each prefix of numbered records.
    pub(super) numbers: BTreeMap<String, BTreeSet<u64>>,
    /// Packs that a prune has marked once.
    pub(super) marked: HashSet<Id>,
    /// Records, configs and key files by their key.
    pub(super) read: HashMap<String, Read>,
    pub(super) manifests: manifest::Listed,
}

impl State {
    pub(super) fn repositories(&self) -> [&Files; 2] {
        [&self.hot, &self.archive]
    }

    /// When the point was made, as far as its log says.
    pub(super) fn time(&self, id: &Id) -> Option<jiff::Timestamp> {
        self.points.get(id).and_then(|log| log.time)
    }

    /// Points that people see: a snapshot file of theirs is there.
    pub(super) fn listed_points(&self) -> super::PointTimes {
        let ids = self.hot.snapshots.keys().chain(self.archive.snapshots.keys());
        ids.map(|id| (*id, self.time(id))).collect()
    }
}

/// Compares what is there with what the records say. What looks wrong is told when it looks wrong a second time too: a commit, a prune or
/// a deletion may have been at work between the listing and the reading.
pub(super) async fn compare(store: &dyn Store, report: &mut Report) -> Result<State, Error> {
    let (mut state, mut findings) = look(store).await?;
    if findings.iter().any(|finding| finding.severity == super::Severity::Damage) {
        let first: HashSet<(FindingKind, String)> =
            findings.into_iter().map(|finding| (finding.kind, finding.file)).collect();
        (state, findings) = look(store).await?;
        findings.retain(|finding| first.contains(&(finding.kind, finding.file.clone())));
    }
    report.points = state.listed_points().len() as u64;
    for files in state.repositories() {
        report.packs += files.packs.len() as u64;
        report.pack_bytes += files.packs.values().map(|file| file.size).sum::<u64>();
    }
    findings.into_iter().for_each(|finding| report.add(finding));
    Ok(state)
}

async fn look(store: &dyn Store) -> Result<(State, Vec<Finding>), Error> {
    let mut state = State::default();
    state.archive.base = records::ARCHIVE;
    let (mut findings, mut to_read) = (Vec::new(), Vec::new());
    let mut entries = store::list(store, "");
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        match sort(&mut state, &entry) {
            Some(Sorted::Known) => {}
            Some(Sorted::Read(what)) => to_read.push((entry.key, what)),
            None => findings.push(Finding::new(
                FindingKind::Unexpected,
                entry.key.as_str(),
                "no file of a vault has this name; nothing of ours reads it",
            )),
        }
    }
    drop(entries);
    let files: Vec<(Key, What, Option<Bytes>)> = stream::iter(to_read)
        .map(|(key, what)| async move {
            match store.get(&key, None).await {
                Ok(bytes) => Ok((key, what, Some(bytes))),
                // Gone since the listing: the second look tells.
                Err(store::Error::NotFound { .. } | store::Error::Archived { .. }) => Ok((key, what, None)),
                Err(error) => Err(error),
            }
        })
        .buffered(READS)
        .try_collect()
        .await?;
    for (key, what, bytes) in files {
        let Some(bytes) = bytes else {
            findings.push(Finding::new(FindingKind::Missing, key.as_str(), "it was listed, and cannot be read"));
            continue;
        };
        let hash = Id::of(&bytes);
        if let Err((kind, detail)) = take_in(&mut state, &key, what, &bytes, hash) {
            findings.push(Finding::new(kind, key.as_str(), detail));
        }
        state.read.insert(key.to_string(), Read { size: bytes.len() as u64, hash });
    }
    state.manifests = manifest::read(store).await?;
    rules::check(&mut state, &mut findings);
    Ok((state, findings))
}

/// What a file is that is read at once.
#[derive(Debug, Clone, Copy)]
enum What {
    Instance,
    Password,
    Event(Id),
    List { archive: bool, number: u64 },
    Mark(u64),
    Damage,
    Config,
    KeyFile(Id),
}

enum Sorted {
    Known,
    Read(What),
}

/// Notes the file where it belongs. `None` when it belongs nowhere.
fn sort(state: &mut State, entry: &Entry) -> Option<Sorted> {
    let key = entry.key.as_str();
    let (archive, below) = match key.strip_prefix(records::ARCHIVE) {
        Some(below) => (true, below),
        None => (false, key),
    };
    let file = File { size: entry.size, tier: entry.tier };
    let files = if archive { &mut state.archive } else { &mut state.hot };
    let (dir, name) = below.rsplit_once('/')?;
    let number = || name.strip_suffix(".json").filter(|digits| digits.len() == 10)?.parse::<u64>().ok();
    let id = || name.parse::<Id>().ok();
    match (dir, archive) {
        ("repo", _) if name == "config" => {
            files.config = true;
            return Some(Sorted::Read(What::Config));
        }
        ("repo/keys", _) => {
            files.key_files.insert(id()?, file);
            return Some(Sorted::Read(What::KeyFile(id()?)));
        }
        ("repo/index", _) => files.indexes.insert(id()?, file),
        ("repo/snapshots", _) => files.snapshots.insert(id()?, file),
        ("packs", _) => {
            state.numbers.entry(format!("{}packs/", files.base)).or_default().insert(number()?);
            return Some(Sorted::Read(What::List { archive, number: number()? }));
        }
        (dir, _) if dir.strip_prefix("repo/data/").is_some_and(|two| name.starts_with(two) && two.len() == 2) => {
            files.packs.insert(id()?, file)
        }
        (dir, true) if dir == "rehydrated" || dir.starts_with("rehydrated/") => return Some(Sorted::Known),
        ("prune", true) => {
            state.numbers.entry(format!("{}prune/", files.base)).or_default().insert(number()?);
            return Some(Sorted::Read(What::Mark(number()?)));
        }
        ("manifest" | "lease", false) => return Some(Sorted::Known),
        (dir, false) => {
            let what = match dir.split_once('/') {
                Some(("points", point)) => What::Event(point.parse().ok()?),
                None if dir == "instance" => What::Instance,
                None if dir == "keys" => What::Password,
                None if dir == "prune" => What::Mark(number()?),
                None if dir == "damaged" => What::Damage,
                _ => return None,
            };
            state.numbers.entry(format!("{dir}/")).or_default().insert(number()?);
            return Some(Sorted::Read(what));
        }
        _ => return None,
    };
    Some(Sorted::Known)
}

/// Reads a record's bytes into the state.
fn take_in(state: &mut State, key: &Key, what: What, bytes: &[u8], hash: Id) -> Result<(), (FindingKind, String)> {
    let unreadable = |error: Error| (FindingKind::Unreadable, error.to_string());
    let name = key.as_str();
    match what {
        What::Config => Ok(()),
        What::KeyFile(id) if id == hash => Ok(()),
        What::KeyFile(_) => Err((FindingKind::Altered, rules::NOT_ITS_NAME.to_owned())),
        What::Instance => records::from_bytes::<InstanceRecord>(name, bytes).map(drop).map_err(unreadable),
        What::Password => records::from_bytes::<PasswordRecord>(name, bytes).map(drop).map_err(unreadable),
        What::Damage => records::from_bytes::<DamageRecord>(name, bytes).map(drop).map_err(unreadable),
        What::Mark(number) => {
            let mark: PruneMark = records::from_bytes(name, bytes).map_err(unreadable)?;
            state.marked.extend(mark.marked);
            if mark.epoch == number {
                return Ok(());
            }
            Err((FindingKind::Inconsistent, format!("it says that it is epoch {}", mark.epoch)))
        }
        What::List { archive, number } => {
            let list: ListView = records::from_bytes(name, bytes).map_err(unreadable)?;
            let files = if archive { &mut state.archive } else { &mut state.hot };
            files.lists.insert(number, (hash, list));
            Ok(())
        }
        What::Event(point) => {
            let event: PointEvent = records::from_bytes(name, bytes).map_err(unreadable)?;
            // Files come in the order of their names, so the events of a point do too.
            state.points.entry(point).or_default().apply(&event);
            rules::check_sealed(&point, &event)
        }
    }
}
