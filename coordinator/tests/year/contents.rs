//! What must hold of an instance's points, files and rows. Files never change and are named by their hash, so what was read once is looked at
//! again only when something that it may need has gone; a full pass reads everything.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use vaultferry_vault::check::{self, Depth};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::store::{self, Key, Shared};
use vaultferry_vault::{Id, admin, archive, records};

use super::agent::Year;
use super::check::{never, text};
use super::store::Peek;
use crate::catalog::sqlite::Sqlite;
use crate::catalog::{Catalog as _, Instance, Job, Point, Status};
use crate::rebuild;

/// While this is the same, nothing of the instance has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    written: u64,
    points: u64,
    instance: Instance,
}

/// An instance as the vault knows it.
#[derive(Debug)]
pub struct Seen {
    pub instance: Instance,
    pub states: Vec<PointState>,
    mark: Mark,
    store: Shared,
}

impl Year {
    fn store_of(&self, instance_id: &str) -> Shared {
        Arc::new(Peek(self.world.memory(instance_id)))
    }

    /// The instances that something has happened to since they were last marked, or that a job was about; or all of them.
    pub(super) async fn look(&self, jobs: &[Job], everything: bool) -> Result<Vec<Seen>, String> {
        let mut seen = Vec::new();
        for instance in self.catalog.instances().await.map_err(text)? {
            let mark = Mark {
                written: self.world.changes(&instance.id),
                points: self.catalog.point_changes(&instance.id).await.map_err(text)?,
                instance: instance.clone(),
            };
            let is_same = self.book.marks.get(&instance.id) == Some(&mark);
            if is_same && !everything && !jobs.iter().any(|job| job.instance_id == instance.id) {
                continue;
            }
            let store = self.store_of(&instance.id);
            let states = points::read_all(&*store, &never()).await.map_err(text)?;
            seen.push(Seen { instance, states, mark, store });
        }
        Ok(seen)
    }

    /// It was found to be right.
    pub(super) fn mark(&mut self, seen: Seen) {
        self.book.marks.insert(seen.instance.id, seen.mark);
    }

    /// What of the catalog is not what the vault says; a point's row is compared with what a rebuild makes of its log.
    pub(super) async fn out_of_line(&self, all: &[Seen]) -> Result<Option<String>, String> {
        for seen in all {
            let ours = rows(&self.catalog, &seen.instance).await?;
            let points = seen.states.iter().filter_map(|state| rebuild::known_point(&seen.instance.id, state.clone()));
            let theirs: BTreeMap<Id, Point> = points.map(|point| (point.id, point)).collect();
            if let Some(what) = difference(&ours, &theirs) {
                return Ok(Some(what));
            }
        }
        Ok(None)
    }

    /// In any weather, whatever is going on: a point that is listed can be read.
    pub(super) async fn glance(&mut self) -> Result<(), String> {
        for instance in self.catalog.instances().await.map_err(text)? {
            let store = self.store_of(&instance.id);
            let hot = listed(&store, FileKind::Snapshot.prefix()).await?;
            let archived = listed(&store, &format!("{}{}", records::ARCHIVE, FileKind::Snapshot.prefix())).await?;
            let new = |id: &Id, in_vault: bool| !self.book.read.contains(&(*id, in_vault));
            let mut wanted: Vec<(Id, bool)> = hot.iter().filter(|id| new(id, true)).map(|id| (*id, true)).collect();
            let elsewhere = archived.iter().filter(|id| !hot.contains(*id) && new(id, false));
            wanted.extend(elsewhere.map(|id| (*id, false)));
            for (id, in_vault) in wanted {
                let Err(what) = self.compare(&instance, &store, id, in_vault).await else { continue };
                // It may have been taken off the list, or moved, at this very moment.
                let state = points::read(&*store, &id, &never()).await.map_err(text)?;
                if state.is_listed() && state.in_vault == in_vault {
                    return Err(format!("the listed point {id} of {}: {what}", instance.name));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn check_points(&mut self, seen: &Seen, last: bool) -> Result<(), String> {
        let name = &seen.instance.name;
        let listed: Vec<&PointState> = seen.states.iter().filter(|state| state.is_listed()).collect();
        let mut slots = HashSet::new();
        for state in &listed {
            let id = state.id;
            if let Some(slot) = state.created.slot
                && !slots.insert(slot)
            {
                return Err(format!("two points of {name} are of the slot {slot}"));
            }
            // Who made a point, and how that job has ended, does not change any more.
            if last || self.book.known.insert(id) {
                self.check_maker(name, state).await?;
            }
            self.compare(&seen.instance, &seen.store, id, state.in_vault)
                .await
                .map_err(|what| format!("the point {id} of {name}: {what}"))?;
        }
        if !listed.is_empty() {
            self.book.had_point.insert(seen.instance.id.clone());
        } else if self.book.had_point.contains(&seen.instance.id) && !seen.instance.protection.is_deleted() {
            return Err(format!("{name} has no point any more"));
        }
        let of_instance = seen.states.iter().filter(|state| self.book.held.contains(&state.id));
        match of_instance.into_iter().find(|state| !state.is_listed() || state.held.is_none()) {
            Some(state) => Err(format!("a held point of {name} is gone, or its hold: {state:?}")),
            None => Ok(()),
        }
    }

    async fn check_maker(&self, name: &str, state: &PointState) -> Result<(), String> {
        let (id, job_id) = (state.id, &state.created.job_id);
        let maker = self.world.state().made.get(&id).map(|made| made.job_id.clone());
        if maker.as_ref() != Some(job_id) {
            return Err(format!("the point {id} of {name} says that it is of the job {job_id}, and is of {maker:?}"));
        }
        let job = self.catalog.job(job_id).await.map_err(text)?;
        match job.is_some_and(|job| matches!(job.status, Status::Completed { .. })) {
            true => Ok(()),
            false => Err(format!("the point {id} of {name} is listed, and its job {job_id} is not completed")),
        }
    }

    /// Every byte of a listed point is what the plugin has read. Each is read once in the vault store, and once in the archive store.
    async fn compare(&mut self, instance: &Instance, store: &Shared, id: Id, in_vault: bool) -> Result<(), String> {
        if self.book.read.contains(&(id, in_vault)) {
            return Ok(());
        }
        let made = self.world.state().made.get(&id).map(|made| made.streams.clone());
        let streams = made.ok_or("nobody has made it")?;
        let mut repository = self.repository(instance, store).await?;
        if !in_vault {
            repository = Arc::new(archive::open(&repository).map_err(text)?);
        }
        let point = PointReader::open(repository, id, &never()).await.map_err(text)?;
        let names: BTreeSet<&str> = point.streams().iter().map(|stream| stream.name.as_str()).collect();
        let wanted: BTreeSet<&str> = streams.iter().map(|(name, _)| name.as_str()).collect();
        if names != wanted {
            return Err(format!("it has the streams {names:?}"));
        }
        for (name, bytes) in &streams {
            let cancel = never();
            let pieces: Vec<bytes::Bytes> =
                point.chunks(name, &cancel).map_err(text)?.try_collect().await.map_err(text)?;
            if pieces.concat() != *bytes {
                return Err(format!("the bytes of {name} are others than the source's"));
            }
        }
        self.book.read.insert((id, in_vault));
        self.totals.points_read += 1;
        Ok(())
    }

    async fn repository(&mut self, instance: &Instance, store: &Shared) -> Result<Arc<Repository>, String> {
        let id = &instance.id;
        if let Some(repository) = self.book.repositories.get(id) {
            return Ok(repository.clone());
        }
        let config = self.config();
        let root = self.store_of("");
        let key = config.vault_key.load(&root, &never()).await.map_err(text)?;
        let password = admin::password_of(store, &key, id, &never()).await.map_err(text)?;
        let repository = Arc::new(Repository::open(store.clone(), &password, &never()).await.map_err(text)?);
        self.book.repositories.insert(id.clone(), repository.clone());
        Ok(repository)
    }

    /// Nothing of the vault is missing or altered.
    pub(super) async fn check_files(&mut self, seen: &Seen, full: bool) -> Result<(), String> {
        let mut there = BTreeSet::new();
        for prefix in ["repo/".to_owned(), format!("{}repo/", records::ARCHIVE)] {
            let entries: Vec<store::Entry> = store::list(&*seen.store, &prefix).try_collect().await.map_err(text)?;
            there.extend(entries.into_iter().map(|entry| entry.key));
        }
        let known: BTreeSet<Key> = self.book.files.remove(&seen.instance.id).unwrap_or_default();
        for key in there.difference(&known) {
            let Ok(name) = key.name().parse::<Id>() else { continue };
            if Id::of(&seen.store.get(key, None).await.map_err(text)?) != name {
                return Err(format!("{key} of {} is not what its name says", seen.instance.name));
            }
        }
        // A point that is taken off the list takes nothing along that another one needs.
        let is_snapshot = |key: &Key| key.as_str().contains(FileKind::Snapshot.prefix());
        let has_lost = known.difference(&there).any(|key| !is_snapshot(key));
        self.book.files.insert(seen.instance.id.clone(), there);
        let depth = match (full, has_lost) {
            (true, _) => Depth::ReadData,
            (false, true) => Depth::Structure,
            (false, false) => return Ok(()),
        };
        let repository = self.repository(&seen.instance, &seen.store).await?;
        let report = check::full(&repository, depth, &Meter::default(), &never()).await.map_err(text)?;
        match report.is_clean() {
            true => Ok(()),
            false => Err(format!("the vault of {} is damaged: {:?}", seen.instance.name, report.findings)),
        }
    }

    /// The catalog is what a rebuild from the vault gives.
    pub(super) async fn check_catalog(&self, instances: &[Instance]) -> Result<(), String> {
        let step = Arc::new(|| -> BoxFuture<'static, ()> { Box::pin(std::future::ready(())) });
        let rebuilt = Sqlite::in_memory(step).map_err(text)?;
        let told = rebuild::fill(&rebuilt, &self.config(), &never()).await.map_err(text)?;
        if !told.problems.is_empty() {
            return Err(format!("a rebuild tells of problems: {:?}", told.problems));
        }
        let others = rebuilt.instances().await.map_err(text)?;
        if others != instances {
            return Err(format!("a rebuild gives other instances: {others:?} and {instances:?}"));
        }
        let policies = (self.catalog.all_policies().await.map_err(text)?, rebuilt.all_policies().await.map_err(text)?);
        if policies.0 != policies.1 {
            return Err(format!("a rebuild gives other policies: {policies:?}"));
        }
        for instance in instances {
            let (ours, others) = (rows(&self.catalog, instance).await?, rows(&rebuilt, instance).await?);
            if let Some(what) = difference(&ours, &others) {
                return Err(what);
            }
        }
        Ok(())
    }
}

async fn listed(store: &Shared, prefix: &str) -> Result<BTreeSet<Id>, String> {
    let entries: Vec<store::Entry> = store::list(&**store, prefix).try_collect().await.map_err(text)?;
    Ok(entries.iter().filter_map(|entry| entry.key.name().parse().ok()).collect())
}

fn difference(ours: &BTreeMap<Id, Point>, theirs: &BTreeMap<Id, Point>) -> Option<String> {
    for (id, point) in ours {
        if theirs.get(id) != Some(point) {
            return Some(format!("the catalog has {point:?}, a rebuild gives {:?}", theirs.get(id)));
        }
    }
    let other = theirs.iter().find(|(id, _)| !ours.contains_key(id));
    other.map(|(_, point)| format!("a rebuild gives a point that the catalog has not: {point:?}"))
}

/// All points of the instance, listed and deleted.
async fn rows(catalog: &Sqlite, instance: &Instance) -> Result<BTreeMap<Id, Point>, String> {
    let mut points = catalog.points(&instance.id, None, u32::MAX).await.map_err(text)?;
    points.extend(catalog.deleted_points(&instance.id, None, u32::MAX).await.map_err(text)?);
    Ok(points.into_iter().map(|point| (point.id, point)).collect())
}
