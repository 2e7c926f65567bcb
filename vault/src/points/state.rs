//! What is known of a point: its log folded, beside the snapshot files that are there.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::error::Error;
use crate::id::Id;
use crate::records::{self, PointCreated, PointEvent, PointEventKind};
use crate::repository::FileKind;
use crate::store::{self, Entry, Key, Store};

/// What is known of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointState {
    /// The name of its snapshot file.
    pub id: Id,
    /// When it was staged.
    pub time: jiff::Timestamp,
    /// What it was born with.
    pub created: PointCreated,
    /// Its snapshot file is in the hot store.
    pub in_vault: bool,
    /// Its snapshot file is in the archive store.
    pub in_archive: bool,
    /// It is soft-deleted, and can be brought back until then.
    pub soft_deleted: Option<jiff::Timestamp>,
    /// It must not be deleted, and why.
    pub held: Option<String>,
    /// When every byte of it was last read back and right.
    pub proven: Option<jiff::Timestamp>,
    /// It is gone for good.
    pub purged: bool,
    /// Its commit was given up for good.
    pub abandoned: bool,
    /// A copy in the archive was completed once, and counts when the point is undeleted.
    pub archived: bool,
    /// When that was, at the last.
    pub archived_at: Option<jiff::Timestamp>,
    /// The archive's copy is the point now; the hot store has no part of it.
    pub removed_from_vault: bool,
    /// Until then its snapshot file cannot be deleted. `None` where the store protects nothing.
    pub immutable_until: Option<jiff::Timestamp>,
    /// A snapshot file of it is on legal hold in the storage: the point is held, or a release was interrupted.
    pub legal_hold: bool,
    /// The number of its last event.
    pub events: u64,
    /// The bytes of its snapshot file (base64), when the log has them.
    sealed: String,
    /// What the log wants the files to be.
    pub(super) wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Only the commit decides.
    AsItIs,
    Absent,
    Present,
}

impl PointState {
    /// True when people see it: a snapshot file of it is there.
    pub fn is_listed(&self) -> bool {
        self.in_vault || self.in_archive
    }

    /// The bytes of its snapshot file as the log has them; `None` for a point of an early version that was never deleted.
    pub fn sealed_snapshot(&self) -> Result<Option<Bytes>, Error> {
        if self.sealed.is_empty() {
            return Ok(None);
        }
        let damaged = |detail: &str| Error::damaged(format!("the log of point {}", self.id), detail);
        let bytes = STANDARD.decode(&self.sealed).map_err(|_| damaged("its snapshot is not base64"))?;
        if Id::of(&bytes) != self.id {
            return Err(damaged("the bytes of its snapshot are not those that its name stands for"));
        }
        Ok(Some(bytes.into()))
    }

    /// True when its commit has come to an end, well or not: nothing waits for it any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_listed() || self.wanted != Wanted::AsItIs || self.purged || self.abandoned || self.removed_from_vault
    }

    /// Folds a log, whose first event is `created`.
    pub(super) fn from_events(id: Id, events: Vec<PointEvent>, files: &Files) -> Result<Self, Error> {
        let damaged = |detail: &str| Error::damaged(format!("the log of point {id}"), detail);
        let count = events.len() as u64;
        let mut events = events.into_iter();
        let first = events.next().ok_or_else(|| damaged("it is empty"))?;
        let PointEventKind::Created(mut created) = first.event else {
            return Err(damaged("it does not begin with the point's creation"));
        };
        let mut state = Self {
            id,
            time: first.time,
            sealed: std::mem::take(&mut created.sealed_snapshot),
            created,
            in_vault: files.hot.contains_key(&id),
            in_archive: files.archive.contains_key(&id),
            soft_deleted: None,
            held: None,
            proven: None,
            purged: false,
            abandoned: false,
            archived: false,
            archived_at: None,
            removed_from_vault: false,
            immutable_until: files.immutable_until(&id),
            legal_hold: files.on_legal_hold(&id),
            events: count,
            wanted: Wanted::AsItIs,
        };
        for event in events {
            state.apply(event);
        }
        Ok(state)
    }

    fn apply(&mut self, event: PointEvent) {
        match event.event {
            // A second creation is not written by anything; the first one counts.
            PointEventKind::Created(_) => {}
            PointEventKind::Abandoned => self.abandoned = true,
            PointEventKind::Proven { .. } => self.proven = Some(event.time),
            PointEventKind::Held { note } => self.held = Some(note),
            PointEventKind::Released => self.held = None,
            PointEventKind::SoftDeleted { purge_time, sealed_snapshot } => {
                (self.soft_deleted, self.wanted) = (Some(purge_time), Wanted::Absent);
                self.sealed = sealed_snapshot;
            }
            PointEventKind::Undeleted => (self.soft_deleted, self.wanted) = (None, Wanted::Present),
            PointEventKind::Purged => (self.purged, self.wanted) = (true, Wanted::Absent),
            PointEventKind::Archived { .. } => (self.archived, self.archived_at) = (true, Some(event.time)),
            PointEventKind::RemovedFromVault => self.removed_from_vault = true,
        }
    }

    /// Refuses what a hold or an immutability date forbids.
    pub(super) fn check_deletable(&self, now: jiff::Timestamp) -> Result<(), Error> {
        if let Some(note) = &self.held {
            return Err(Error::PointProtected { id: self.id, detail: format!("it is held: {note}") });
        }
        self.check_no_legal_hold()?;
        match self.immutable_until {
            Some(until) if until > now => {
                Err(Error::PointProtected { id: self.id, detail: format!("it is immutable until {until}") })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what the storage would refuse half-way: the event would be written, and the snapshot file would stay.
    pub(super) fn check_no_legal_hold(&self) -> Result<(), Error> {
        if self.legal_hold {
            let detail = "its snapshot file is on legal hold in the storage".to_owned();
            return Err(Error::PointProtected { id: self.id, detail });
        }
        Ok(())
    }
}

/// The snapshot files that are there.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) hot: HashMap<Id, Entry>,
    pub(super) archive: HashMap<Id, Entry>,
}

impl Files {
    pub(super) async fn list(store: &dyn Store) -> Result<Self, store::Error> {
        Ok(Self { hot: list_ids(store, Place::Hot).await?, archive: list_ids(store, Place::Archive).await? })
    }

    pub(super) async fn of(store: &dyn Store, id: &Id) -> Result<Self, store::Error> {
        let mut files = Self::default();
        if let Some(entry) = store.head(&Place::Hot.key(id)).await? {
            files.hot.insert(*id, entry);
        }
        if let Some(entry) = store.head(&Place::Archive.key(id)).await? {
            files.archive.insert(*id, entry);
        }
        Ok(files)
    }

    fn of_point(&self, id: &Id) -> impl Iterator<Item = &Entry> {
        [self.hot.get(id), self.archive.get(id)].into_iter().flatten()
    }

    fn immutable_until(&self, id: &Id) -> Option<jiff::Timestamp> {
        self.of_point(id).filter_map(|entry| entry.protection.immutable_until).max()
    }

    fn on_legal_hold(&self, id: &Id) -> bool {
        self.of_point(id).any(|entry| entry.protection.legal_hold)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Hot,
    Archive,
}

impl Place {
    fn prefix(self) -> String {
        let below = match self {
            Self::Hot => "",
            Self::Archive => records::ARCHIVE,
        };
        format!("{below}{}", FileKind::Snapshot.prefix())
    }

    pub(super) fn key(self, id: &Id) -> Key {
        Key::new(format!("{}{id}", self.prefix())).expect("constants and an id make a valid key")
    }
}

async fn list_ids(store: &dyn Store, place: Place) -> Result<HashMap<Id, Entry>, store::Error> {
    let prefix = place.prefix();
    let mut ids = HashMap::new();
    let mut entries = store::list(store, &prefix);
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if let Ok(id) = entry.key.name().parse() {
            ids.insert(id, entry);
        }
    }
    Ok(ids)
}

/// A file that is not as the log wants it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Misplaced {
    Delete(Place),
    Write(Place),
}

impl PointState {
    pub(super) fn misplaced(&self) -> Vec<Misplaced> {
        let mut misplaced = Vec::new();
        match self.wanted {
            Wanted::AsItIs => {}
            Wanted::Absent => {
                for (there, place) in [(self.in_vault, Place::Hot), (self.in_archive, Place::Archive)] {
                    if there {
                        misplaced.push(Misplaced::Delete(place));
                    }
                }
                return misplaced;
            }
            Wanted::Present => {
                if !self.in_archive && self.archived {
                    misplaced.push(Misplaced::Write(Place::Archive));
                }
                if !self.in_vault && !self.removed_from_vault {
                    misplaced.push(Misplaced::Write(Place::Hot));
                }
            }
        }
        if self.removed_from_vault && self.in_vault && self.in_archive {
            misplaced.push(Misplaced::Delete(Place::Hot));
        }
        misplaced
    }
}
