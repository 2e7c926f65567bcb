//! Immutability of points: which files a point stands on, and asking the store to keep them until a date. Legal holds: `holds.rs`.
//!
//! Invariants:
//! - A date is only ever moved further away. A point is immutable until the earliest date of all its files; one file without a date means
//!   none ([`of_files`], [`of_point`]).
//! - What a point stands on: its packs, the repository's config and keys, the wrapped password, the event that created it, and its
//!   snapshot file. Index files, pack lists and later events get dates too, and are not counted: they come and go beside a point, and it
//!   can be restored without them (indexes are made again from the packs).
//! - A commit extends what is there between verify and publish ([`before_publish`]), and snapshot, events and pack lists right after it
//!   ([`after_publish`]). Both may be repeated; a kill in between leaves a point whose own date is told as none until they are.
//!
//! A folder can do none of it ([`store::Error::Unsupported`]). What Azure does was tried on a fake service only; see `store/azure.rs`.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::archive::blobs::{self, Needs};
use crate::blocking::with_cancel;
use crate::commit::Record;
use crate::error::Error;
use crate::id::Id;
use crate::records;
use crate::repository::{FileKind, Repository, config_key, pack_key};
use crate::store::{self, Entry, Key, Store};

/// Requests at once.
pub(crate) const CONCURRENT: usize = 16;
/// What every point of an instance stands on, beside its own files and the config.
const COMMON: [&str; 2] = ["repo/keys/", "keys/"];
/// What helps every point.
const HELPFUL: [&str; 2] = ["repo/index/", records::PACK_LISTS];

/// Forbids the deletion of the files before `until`; one whose date is that or later is left as it is. `locked` can never be undone.
/// 16 at once. After an error some files have the date and some have not: repeat it.
pub async fn extend(
    store: &dyn Store,
    files: &[Key],
    until: jiff::Timestamp,
    locked: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    with_cancel(cancel, for_each(files, |key| store.protect(key, until, locked))).await
}

/// For the commit, between verify and publish: everything there that the staged point stands on gets the date. No key is needed.
pub async fn before_publish(
    store: &dyn Store,
    record: &Record,
    until: jiff::Timestamp,
    locked: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let mut files = with_cancel(cancel, common_files(store)).await?;
    for prefix in HELPFUL {
        files.extend(with_cancel(cancel, keys(store, prefix)).await?);
    }
    files.extend(record.packs.iter().map(|(id, _)| pack_key(id)));
    extend(store, &files, until, locked, cancel).await
}

/// For the commit, after publish: the point's snapshot file and events, and the pack lists, get the date.
pub async fn after_publish(
    store: &dyn Store,
    snapshot_id: &Id,
    until: jiff::Timestamp,
    locked: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let mut files = vec![FileKind::Snapshot.key(snapshot_id)];
    for prefix in [&records::point_events(snapshot_id), records::PACK_LISTS] {
        files.extend(with_cancel(cancel, keys(store, prefix)).await?);
    }
    extend(store, &files, until, locked, cancel).await
}

/// Every file that the point stands on, each once. Reads the point's trees; memory as for one index and 64 bytes a blob. Works on the
/// archive too ([`crate::archive::open`]): the keys are those of the repository's store.
pub async fn files_of_point(
    repository: &Repository,
    snapshot_id: &Id,
    cancel: &CancellationToken,
) -> Result<Vec<Key>, Error> {
    let files = async {
        let store = &**repository.store();
        let mut files = common_files(store).await?;
        files.push(FileKind::Snapshot.key(snapshot_id));
        let created = records::numbered(&records::point_events(snapshot_id), 1);
        // The archive has no log of its own.
        files.extend(store.head(&created).await?.map(|entry| entry.key));
        let index = repository.load_index(cancel).await?;
        let mut needs = Needs::default();
        needs.add(repository, &index, repository.snapshot(snapshot_id, cancel).await?.tree).await?;
        let packs: BTreeSet<Id> =
            blobs::packs_of(&index, &needs.data)?.into_iter().chain(blobs::packs_of(&index, &needs.trees)?).collect();
        files.extend(packs.iter().map(pack_key));
        Ok(files)
    };
    with_cancel::<_, Error>(cancel, files).await
}

/// The earliest date of the files, and none when one of them has none or is not there.
pub async fn of_files(
    store: &dyn Store,
    files: &[Key],
    cancel: &CancellationToken,
) -> Result<Option<jiff::Timestamp>, Error> {
    let dates = async {
        let looks: Vec<_> = files.iter().map(|key| store.head(key)).collect();
        let entries: Vec<Option<Entry>> = stream::iter(looks).buffer_unordered(CONCURRENT).try_collect().await?;
        // No date sorts before every date.
        let dates = entries.into_iter().map(|entry| entry.and_then(|entry| entry.protection.immutable_until));
        Ok::<_, store::Error>(dates.min().flatten())
    };
    with_cancel(cancel, dates).await
}

/// Until when nothing of the point can be deleted; `None`: something can.
pub async fn of_point(
    repository: &Repository,
    snapshot_id: &Id,
    cancel: &CancellationToken,
) -> Result<Option<jiff::Timestamp>, Error> {
    let files = files_of_point(repository, snapshot_id, cancel).await?;
    of_files(&**repository.store(), &files, cancel).await
}

/// True when the store can make files immutable; `file` is any file in it, and is left as it is.
pub async fn is_supported(store: &dyn Store, file: &Key, cancel: &CancellationToken) -> Result<bool, Error> {
    let protection = with_cancel(cancel, store.head(file)).await?.map(|entry| entry.protection).unwrap_or_default();
    match with_cancel(cancel, store.set_legal_hold(file, protection.legal_hold)).await {
        Ok(()) => Ok(true),
        Err(Error::Store(store::Error::Unsupported { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) async fn common_files(store: &dyn Store) -> Result<Vec<Key>, store::Error> {
    let mut files = vec![config_key()];
    for prefix in COMMON {
        files.extend(keys(store, prefix).await?);
    }
    Ok(files)
}

pub(crate) async fn keys(store: &dyn Store, prefix: &str) -> Result<Vec<Key>, store::Error> {
    store::list(store, prefix).map_ok(|entry| entry.key).try_collect().await
}

async fn for_each<'a, F>(files: &'a [Key], work: impl Fn(&'a Key) -> F) -> Result<(), store::Error>
where
    F: Future<Output = Result<(), store::Error>>,
{
    let all: Vec<F> = files.iter().map(work).collect();
    stream::iter(all).buffer_unordered(CONCURRENT).try_collect().await
}
