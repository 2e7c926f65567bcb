//! The catalog, made anew from the vault alone: policies with all versions, instances and servers with their logins, points with rules and
//! dates.
//!
//! ```text
//! catalog.sqlite.rebuilding    made whole, in one file
//! catalog.sqlite            -> catalog-before-<time>.sqlite     a second name of the same file, its journal folded in
//! catalog.sqlite.rebuilding -> catalog.sqlite                   THE change, at one instant
//! ```
//! Invariants:
//! - Killed anywhere, `catalog.sqlite` is the old catalog or the new one, whole.
//! - What cannot be read is told and passed over; a store that does not answer ends the rebuild, and nothing is changed.
//! - Jobs are not in the vault: their history begins anew, or goes on from a copy of a catalog ([`history`]). A backup that was staged and
//!   not committed is not committed any more.
//! - The schedule goes on after each instance's newest point: one run makes up for the slots since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::records::{self, PointEvent, PointEventKind, Protection};
use vaultferry_vault::repository::FileKind;
use vaultferry_vault::store::{self, Key};
use vaultferry_vault::{Error, Id, admin};

use crate::Config;
use crate::catalog::link::LinkRecords as _;
use crate::catalog::sqlite::{Sqlite, single_file};
use crate::catalog::{Catalog as _, Point, Standing};
use crate::job::standing;
use crate::{offline, recorded};

mod history;

/// Events that are read at once: hides the store's latency; an event is some KiB.
const READS_AT_ONCE: usize = 16;

/// What came of a rebuild.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Policies' versions.
    pub policies: u64,
    /// Instances.
    pub instances: u64,
    /// Listed points.
    pub points: u64,
    /// Jobs that have ended, from a copy of a catalog.
    pub jobs: u64,
    /// What could not be read and is not in the catalog, for people.
    pub problems: Vec<String>,
    /// Where the catalog that was there is kept.
    pub kept: Option<PathBuf>,
}

/// Makes the catalog anew and puts it in place. The caller holds the lock of the state folder.
pub(crate) async fn rebuild(
    config: &Config,
    with_history: bool,
    cancel: &CancellationToken,
) -> Result<Rebuilt, Problem> {
    let path = offline::catalog_path(&config.state_dir);
    let unfinished = with_ending(&path, ".rebuilding");
    remove_all(&unfinished)?;
    let catalog = Sqlite::open(&unfinished)?;
    let mut rebuilt = fill(&catalog, config, cancel).await?;
    if with_history {
        rebuilt.jobs = history::take(&catalog, config, &mut rebuilt.problems, cancel).await?;
    }
    catalog.into_single_file().await?;
    sync(&unfinished)?;
    rebuilt.kept = keep_aside(&path)?;
    std::fs::rename(&unfinished, &path).map_err(|error| cannot(&path, &error))?;
    sync(&config.state_dir)?;
    Ok(rebuilt)
}

/// Fills an empty catalog from the vault.
pub(crate) async fn fill(catalog: &Sqlite, config: &Config, cancel: &CancellationToken) -> Result<Rebuilt, Problem> {
    let mut rebuilt = Rebuilt::default();
    let root = config.vault.open_root()?;
    let (policies, unreadable) = admin::policies(&root, cancel).await?;
    rebuilt.problems.extend(unreadable.iter().map(ToString::to_string));
    let mut ids = BTreeMap::new();
    for policy in policies {
        let mut policy = recorded::policy_of(policy);
        // Versions of one policy have one id, also when early ones were recorded without.
        policy.id = ids.entry(policy.name.clone()).or_insert(policy.id).clone();
        catalog.insert_policy(policy).await?;
        rebuilt.policies += 1;
    }
    let (servers, unreadable) = admin::servers(&root, cancel).await?;
    rebuilt.problems.extend(unreadable.iter().map(ToString::to_string));
    for server in servers.into_iter().filter_map(recorded::server_of) {
        catalog.save_server(server).await?;
    }
    let (instances, unreadable) = admin::instances(&config.vault, cancel).await?;
    rebuilt.problems.extend(unreadable.iter().map(ToString::to_string));
    for record in instances {
        let instance = recorded::instance_of(record);
        if matches!(instance.protection, Protection::Purged { .. }) {
            continue;
        }
        if let Err(error) = catalog.insert_instances(vec![instance.clone()]).await {
            match error {
                crate::catalog::Error::Taken(what) => {
                    rebuilt.problems.push(format!("the instance {} is left out: {what} is taken", instance.id));
                    continue;
                }
                other => return Err(other.into()),
            }
        }
        rebuilt.instances += 1;
        let store = config.vault.open_instance(&instance.id)?;
        let points = points(&store, &instance.id, &mut rebuilt.problems, cancel).await?;
        rebuilt.points += points.len() as u64;
        let newest = points.iter().map(|point| point.time).max();
        if config.service.is_some() {
            // Which of them the service has heard of was in the old catalog only.
            let commits = points.iter().map(|point| Point { standing: Standing::default(), ..point.clone() });
            catalog.queue_commits(commits.collect()).await?;
        }
        catalog.insert_points(points).await?;
        if let Some(newest) = newest {
            catalog.set_last_slot(&instance.id, newest).await?;
        }
    }
    Ok(rebuilt)
}

/// The listed points of an instance: those whose snapshot file is in the hot store or in the archive.
async fn points(
    store: &store::Shared,
    instance_id: &str,
    problems: &mut Vec<String>,
    cancel: &CancellationToken,
) -> Result<Vec<Point>, Problem> {
    // What happened to points since, and deleted ones that can be brought back, are in their logs.
    match points::read_all(&**store, cancel).await {
        Ok(states) => return Ok(states.into_iter().filter_map(|state| known_point(instance_id, state)).collect()),
        // One log that cannot be read must not take the others along: then every listed point comes back as it was made, the broken one is
        // told below, and the next check of the instance brings in what happened to the others.
        Err(Error::Unreadable { .. } | Error::Damaged { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut listed = BTreeSet::new();
    for prefix in
        [FileKind::Snapshot.prefix().to_owned(), format!("{}{}", records::ARCHIVE, FileKind::Snapshot.prefix())]
    {
        listed.extend(names(store, &prefix, cancel).await?);
    }
    let first = |id: Id| async move {
        let key = records::numbered(&records::point_events(&id), 1);
        (id, records::get::<PointEvent>(&**store, &key).await)
    };
    let mut events = stream::iter(listed).map(first).buffer_unordered(READS_AT_ONCE);
    let mut points = Vec::new();
    while let Some((id, event)) = next(&mut events, cancel).await? {
        match event {
            Ok(PointEvent { time, event: PointEventKind::Created(created), .. }) => {
                points.push(recorded::point_of(instance_id, id, time, created));
            }
            Ok(_) => problems
                .push(format!("the point {id} of {instance_id} is left out: its log does not begin with `created`")),
            Err(error @ (Error::Unreadable { .. } | Error::Store(store::Error::NotFound { .. }))) => {
                problems.push(format!("the point {id} of {instance_id} is left out: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(points)
}

/// A point that people know: listed, or deleted and not gone yet.
pub(crate) fn known_point(instance_id: &str, state: PointState) -> Option<Point> {
    if !state.is_listed() && state.soft_deleted.is_none() {
        return None;
    }
    let standing = standing(&state)?;
    let point = recorded::point_of(instance_id, state.id, state.time, state.created);
    Some(Point { standing, ..point })
}

async fn names(store: &store::Shared, prefix: &str, cancel: &CancellationToken) -> Result<Vec<Id>, Problem> {
    let mut names = Vec::new();
    let mut entries = store::list(&**store, prefix);
    while let Some(entry) = next(&mut entries, cancel).await? {
        let key: Key = entry?.key;
        names.extend(key.name().parse::<Id>());
    }
    Ok(names)
}

async fn next<T>(
    items: &mut (impl stream::Stream<Item = T> + Unpin),
    cancel: &CancellationToken,
) -> Result<Option<T>, Problem> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled.into()),
        item = items.next() => Ok(item),
    }
}

/// Gives the catalog that is there a second name, after folding its journal into it. One that cannot be opened is moved aside with its
/// journal, which must not be taken for the new one's.
fn keep_aside(path: &Path) -> Result<Option<PathBuf>, Problem> {
    if !path.exists() {
        // Without its catalog a journal is of no use, and would be taken for the new catalog's.
        remove_all(path)?;
        return Ok(None);
    }
    let time = vaultferry_vault::clock::now().strftime("%Y%m%dT%H%M%S%3fZ");
    let kept = path.with_file_name(format!("catalog-before-{time}.sqlite"));
    let folded = single_file(path);
    if let Err(error) = &folded {
        tracing::warn!("the catalog that is there cannot be read: {error}");
    }
    for ending in ["-wal", "-shm"] {
        let (from, to) = (with_ending(path, ending), with_ending(&kept, ending));
        match std::fs::rename(&from, to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot(&from, &error)),
            _ => {}
        }
    }
    // Not every file system has second names; a copy is as good.
    if std::fs::hard_link(path, &kept).is_err() {
        std::fs::copy(path, &kept).map_err(|error| cannot(&kept, &error))?;
        sync(&kept)?;
    }
    Ok(Some(kept))
}

fn remove_all(path: &Path) -> Result<(), Problem> {
    for path in [path.to_owned(), with_ending(path, "-wal"), with_ending(path, "-shm"), with_ending(path, "-journal")] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot(&path, &error)),
            _ => {}
        }
    }
    Ok(())
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Makes a file, or a folder's names, durable.
fn sync(path: &Path) -> Result<(), Problem> {
    if cfg!(not(unix)) && path.is_dir() {
        return Ok(());
    }
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| cannot(path, &error))
}

fn cannot(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Reason::InvalidConfiguration, format!("{}: {error}", path.display()))
        .with_fix("Give this user the right to write in the state folder, and see that it has space.")
}

#[cfg(test)]
mod tests;
