//! What must hold between the files of an instance's store, and which points a broken rule touches as far as that is known without a key.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::files::{Files, Listed, State};
use super::{AffectedPoint, Finding, FindingKind as Kind, Report, Severity};
use crate::id::Id;
use crate::manifest;
use crate::records::{self, PointEvent, PointEventKind};

/// Below the base of a repository's store.
const SNAPSHOTS: &str = "repo/snapshots/";
pub(super) const NOT_ITS_NAME: &str = "its bytes are not those that its name stands for";

/// The snapshot's bytes in an event are those of the point.
pub(super) fn check_sealed(point: &Id, event: &PointEvent) -> Result<(), (Kind, String)> {
    let sealed = match &event.event {
        PointEventKind::Created(created) => &created.sealed_snapshot,
        PointEventKind::SoftDeleted { sealed_snapshot, .. } => sealed_snapshot,
        _ => return Ok(()),
    };
    if sealed.is_empty() || STANDARD.decode(sealed).is_ok_and(|bytes| Id::of(&bytes) == *point) {
        return Ok(());
    }
    Err((Kind::Altered, "the snapshot that it holds is not the point's".to_owned()))
}

/// Every rule. Fills in which packs are listed.
pub(super) fn check(state: &mut State, findings: &mut Vec<Finding>) {
    check_numbers(&state.numbers, findings);
    for files in [&mut state.hot, &mut state.archive] {
        check_chain(files, findings);
        collect_listed(files, findings);
    }
    let read = |key: &str| state.read.get(key).map(|read| (read.size, read.hash));
    check_listed(&state.manifests, read, findings);
    check_packs(&state.hot, state, findings);
    check_packs(&state.archive, state, findings);
    check_points(state, findings);
    check_parts(state, findings);
}

/// Gaps in the numbers of the records below each prefix.
pub(super) fn check_numbers(numbers: &BTreeMap<String, BTreeSet<u64>>, findings: &mut Vec<Finding>) {
    for (prefix, numbers) in numbers {
        let last = numbers.last().copied().unwrap_or(0);
        // One finding for a run of lost numbers: a number with ten digits could claim billions. Rotations delete the first keys: what
        // an older record opens, the newest opens too.
        let keys = prefix == records::PASSWORDS || prefix == records::VAULT_KEYS;
        let mut expected = if keys { numbers.first().copied().unwrap_or(1) } else { 1 };
        for number in numbers {
            if *number > expected {
                let file = records::numbered(prefix, expected);
                let detail = match number - expected {
                    1 => format!("{last} is there, {expected} is not"),
                    _ => format!("{last} is there, {expected} to {} are not", number - 1),
                };
                findings.push(Finding::new(Kind::Missing, file.as_str(), detail));
            }
            expected = number + 1;
        }
    }
}

/// Each list names the hash of the one before.
fn check_chain(files: &Files, findings: &mut Vec<Finding>) {
    let place = |number| records::numbered(&format!("{}{}", files.base, records::PACK_LISTS), number).to_string();
    for (number, (_, list)) in &files.lists {
        let before = files.lists.get(&number.saturating_sub(1)).map(|(hash, _)| *hash);
        // A gap is told as a gap.
        if list.previous != before && (before.is_some() || *number == 1) {
            let detail = format!("it does not follow list {}: one of both was altered", number.saturating_sub(1));
            findings.push(Finding::new(Kind::BrokenChain, place(*number), detail));
        }
    }
}

fn collect_listed(files: &mut Files, findings: &mut Vec<Finding>) {
    for (number, (_, list)) in &files.lists {
        for pack in &list.packs {
            let first = *files.listed.entry(pack.id).or_insert(Listed { size: pack.size, list: *number });
            if first.size != pack.size {
                let file = records::numbered(&format!("{}{}", files.base, records::PACK_LISTS), *number);
                let detail = format!(
                    "it says that pack {} has {} bytes, list {} says {}",
                    pack.id, pack.size, first.list, first.size
                );
                findings.push(Finding::new(Kind::Inconsistent, file.as_str(), detail));
            }
        }
    }
}

/// What the manifests name is there and has their hash. `read` gives the size and the hash of a file that was read.
pub(super) fn check_listed(
    manifests: &manifest::Listed,
    read: impl Fn(&str) -> Option<(u64, Id)>,
    findings: &mut Vec<Finding>,
) {
    for problem in &manifests.problems {
        let (kind, detail) = match problem.altered {
            true => (Kind::Altered, NOT_ITS_NAME),
            false => (Kind::Missing, "a later manifest follows it"),
        };
        findings.push(Finding::new(kind, problem.key.as_str(), detail));
    }
    // Snapshot files come and go with deletions; the points' logs say whether one has to be there.
    for (key, listed) in manifests.files.iter().filter(|(key, _)| !key.contains(SNAPSHOTS)) {
        match read(key) {
            None => findings.push(Finding::new(Kind::Missing, key.as_str(), "a manifest names it")),
            Some(read) if read != (listed.size, listed.sha256) => {
                let detail = "its bytes are not those that a manifest names";
                findings.push(Finding::new(Kind::Altered, key.as_str(), detail));
            }
            Some(_) => {}
        }
    }
}

/// Packs against the lists.
fn check_packs(files: &Files, state: &State, findings: &mut Vec<Finding>) {
    let mut listed: Vec<(&Id, &Listed)> = files.listed.iter().collect();
    listed.sort_unstable_by_key(|(id, _)| **id);
    for (id, listed) in listed {
        let key = || files.key("repo/data/", id);
        match files.packs.get(id) {
            // What a prune marked may be gone. When a point still needs it, the check with the key says so.
            None if state.marked.contains(id) => {}
            None => findings.push(Finding::new(Kind::Missing, key(), format!("pack list {} names it", listed.list))),
            Some(file) if file.size != listed.size => {
                let detail = format!("it has {} bytes, pack list {} says {}", file.size, listed.list, listed.size);
                findings.push(Finding::new(Kind::WrongSize, key(), detail));
            }
            Some(_) => {}
        }
    }
    for id in files.packs.keys().filter(|id| !files.listed.contains_key(id)) {
        let detail = "no pack list names it: a backup that runs, or that did not end well, has left it; the next prune takes it away";
        findings.push(Finding::new(Kind::Unexpected, files.key("repo/data/", id), detail));
    }
}

/// Snapshot files against the logs of points and against the pack lists.
fn check_points(state: &State, findings: &mut Vec<Finding>) {
    let by_list = |files: &Files| -> BTreeMap<Id, u64> {
        let commits = files.lists.iter().filter(|(_, (_, list))| list.checkpoint.is_none());
        commits.map(|(number, (_, list))| (list.snapshot_id, *number)).collect()
    };
    let lists = by_list(&state.hot);
    for (id, log) in &state.points {
        let first = records::numbered(&records::point_events(id), 1);
        if !log.created && state.read.contains_key(first.as_str()) {
            findings.push(Finding::new(
                Kind::Inconsistent,
                first.as_str(),
                "the first event is not the point's creation",
            ));
        }
        if !log.is_listed() {
            continue;
        }
        let gone = "the log says that the point is there: the file was removed, or the commit was not ended";
        if !log.removed_from_vault && !state.hot.snapshots.contains_key(id) {
            let mut finding = Finding::new(Kind::Missing, state.hot.key(SNAPSHOTS, id), gone);
            if is_unfinished(state, id, &finding.file) {
                finding.severity = Severity::Note;
                finding.detail = "its commit has not come to its end, or was interrupted".to_owned();
            }
            findings.push(finding);
        }
        if log.archived && !state.archive.snapshots.contains_key(id) {
            findings.push(Finding::new(Kind::Missing, state.archive.key(SNAPSHOTS, id), gone));
        }
        if log.archived && by_list(&state.archive).is_empty() {
            let file = records::numbered(&format!("{}{}", records::ARCHIVE, records::PACK_LISTS), 1);
            findings.push(Finding::new(
                Kind::Missing,
                file.as_str(),
                "points are archived, and no list names their packs",
            ));
        }
    }
    for id in state.hot.snapshots.keys().chain(state.archive.snapshots.keys()).collect::<BTreeSet<_>>() {
        let first = records::numbered(&records::point_events(id), 1);
        if !state.read.contains_key(first.as_str()) {
            findings.push(Finding::new(
                Kind::Missing,
                first.as_str(),
                "the point is there, its creation is not in its log",
            ));
        }
        if state.hot.snapshots.contains_key(id) && !lists.contains_key(id) {
            let next = state.hot.lists.last_key_value().map_or(0, |(number, _)| *number) + 1;
            let file = records::numbered(records::PACK_LISTS, next);
            let detail = format!("no pack list belongs to point {id}: the list of its commit was removed");
            findings.push(Finding::new(Kind::Missing, file.as_str(), detail));
        }
    }
    for (id, number) in &lists {
        if !state.points.contains_key(id) && !state.hot.snapshots.contains_key(id) {
            let detail = format!(
                "pack list {number} was written for it: it was removed with its log, or the commit was not ended"
            );
            let mut finding = Finding::new(Kind::Missing, state.hot.key(SNAPSHOTS, id), detail);
            if is_unfinished(state, id, &finding.file) {
                finding.severity = Severity::Note;
            }
            findings.push(finding);
        }
    }
}

/// True when nothing says that the point was ever there: its log is its creation alone, and no manifest has seen its snapshot. Where there
/// are no manifests at all (a vault of an early version) nobody can know, and the worse is assumed.
fn is_unfinished(state: &State, id: &Id, snapshot: &str) -> bool {
    let events = records::point_events(id);
    let is_young = state.numbers.get(&events).is_none_or(|numbers| numbers.len() == 1);
    is_young && !state.manifests.files.is_empty() && !state.manifests.files.contains_key(snapshot)
}

/// What every instance has, and every repository with packs in it.
fn check_parts(state: &State, findings: &mut Vec<Finding>) {
    for prefix in ["instance/", "keys/"] {
        if !state.numbers.contains_key(prefix) {
            let file = records::numbered(prefix, 1);
            findings.push(Finding::new(Kind::Missing, file.as_str(), "every instance has it"));
        }
    }
    for files in state.repositories() {
        let used = !files.snapshots.is_empty() || !files.packs.is_empty() || !files.listed.is_empty();
        if !used && !files.base.is_empty() {
            continue;
        }
        // A prune takes what it marks out of the indexes, and deletes it later.
        let is_in_use = |id: &Id| files.packs.contains_key(id) && !state.marked.contains(id);
        let holds_listed = files.listed.keys().any(is_in_use);
        let parts = [
            (files.config, "repo/config", "every repository has it"),
            (!files.key_files.is_empty(), "repo/keys/", "no key file is there, so nothing can be opened"),
            (!holds_listed || !files.indexes.is_empty(), "repo/index/", "no index is there"),
        ];
        for (_, part, detail) in parts.into_iter().filter(|(there, ..)| !there) {
            findings.push(Finding::new(Kind::Missing, format!("{}{part}", files.base), detail));
        }
    }
    check_same(state, findings);
}

/// The archive's config and key files are copies of the hot ones.
fn check_same(state: &State, findings: &mut Vec<Finding>) {
    for (key, read) in &state.read {
        let Some(original) = key.strip_prefix(records::ARCHIVE).filter(|below| below.starts_with("repo/")) else {
            continue;
        };
        if let Some(hot) = state.read.get(original)
            && hot.hash != read.hash
        {
            let detail = format!("it is not a copy of {original}: one of both was altered");
            findings.push(Finding::new(Kind::Inconsistent, key.as_str(), detail));
        }
    }
}

/// Names the points that a finding can touch, from the lists: a pack is needed by the point whose commit brought it in, or by later ones.
pub(super) fn name_points(state: &State, report: &mut Report) {
    let all = state.listed_points();
    for finding in &mut report.findings {
        let (base, files) = match finding.file.strip_prefix(records::ARCHIVE) {
            Some(below) => (below, &state.archive),
            None => (finding.file.as_str(), &state.hot),
        };
        let since = match finding.pack() {
            Some(pack) => match files.listed.get(&pack) {
                Some(listed) => Some(listed.list),
                None => continue,
            },
            None if base.starts_with("repo/index/") || base.starts_with("repo/keys/") || base == "repo/config" => None,
            None => {
                finding.points = own_point(base, state);
                continue;
            }
        };
        let lists = files.lists.iter().map(|(number, (_, list))| (list.snapshot_id, *number));
        let lists: BTreeMap<Id, u64> = lists.collect();
        let touched = all.iter().filter(|(id, _)| match (since, lists.get(*id)) {
            (Some(since), Some(number)) => *number >= since,
            _ => true,
        });
        finding.points = touched.map(|(id, time)| AffectedPoint { id: *id, time: *time }).collect();
        finding.points_certain = false;
    }
}

/// The point of a snapshot file or of an event.
pub(super) fn own_point(below: &str, state: &State) -> Vec<AffectedPoint> {
    let name = below.strip_prefix("repo/snapshots/").or_else(|| below.strip_prefix("points/")?.split('/').next());
    let id = name.and_then(|name| name.parse::<Id>().ok());
    id.map(|id| AffectedPoint { id, time: state.time(&id) }).into_iter().collect()
}
