//! Reading files to their end: the hash of every one, and with the key the blobs of every pack.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::sync::Semaphore;

use super::files::{File, Files, State};
use super::rules::NOT_ITS_NAME;
use super::{BYTES_IN_FLIGHT, Depth, Finding, FindingKind as Kind, Report, Subset};
use crate::blocking;
use crate::error::Error;
use crate::id::{Hasher, Id};
use crate::meter::Meter;
use crate::reader::decode::{self, Pool};
use crate::repository::crypto::SealKey;
use crate::repository::pack;
use crate::store::{self, Key, Store, Tier};

/// Files that are read at once; small ones wait for the network, large ones are held up by [`BYTES_IN_FLIGHT`].
const READS: usize = 16;
/// A larger file is hashed piece by piece and its blobs are not looked at: no pack of ours is that large.
const WHOLE_MAX: u64 = 256 << 20;
/// Such a piece.
const PIECE: u64 = 8 << 20;
const KIB: u64 = 1 << 10;

/// A file that is to be read.
struct Task {
    key: Key,
    id: Id,
    file: File,
    pack: bool,
}

/// What reading a file has shown.
struct Outcome {
    bytes: u64,
    blobs: u64,
    findings: Vec<Finding>,
    not_readable: bool,
}

/// Reads what the depth asks for.
pub(super) async fn read_files(
    store: &dyn Store,
    state: &State,
    depth: Depth,
    key: Option<&Arc<SealKey>>,
    meter: &Meter,
    report: &mut Report,
) -> Result<(), Error> {
    let (mut tasks, mut packs) = (Vec::new(), Vec::new());
    for files in state.repositories() {
        plan(files, &mut tasks, &mut packs, report)?;
    }
    match depth {
        Depth::Structure => return Ok(()),
        Depth::ReadData => tasks.append(&mut packs),
        Depth::ReadSubset { percent, seed } => {
            let (subset, drawn) = Subset::draw(packs.len(), percent, seed);
            report.subset = Some(subset);
            let mut drawn = drawn.into_iter().peekable();
            let picked = packs.into_iter().enumerate().filter(|(number, _)| drawn.next_if_eq(number).is_some());
            tasks.extend(picked.map(|(_, task)| task));
        }
    }
    let budget = Arc::new(Semaphore::new(BYTES_IN_FLIGHT / KIB as usize));
    let pool = Arc::new(Pool::default());
    let mut outcomes = stream::iter(tasks)
        .map(|task| {
            let (budget, pool) = (budget.clone(), pool.clone());
            async move {
                let most = (BYTES_IN_FLIGHT as u64 / KIB) as u32;
                let share = u32::try_from(task.file.size.min(WHOLE_MAX).div_ceil(KIB)).unwrap_or(most).min(most);
                let _permit = budget.acquire_many(share).await.map_err(Error::internal)?;
                read_file(store, task, key, &pool).await
            }
        })
        .buffer_unordered(READS);
    while let Some(outcome) = outcomes.next().await {
        let outcome = outcome?;
        meter.add_read(outcome.bytes);
        report.files_read += u64::from(!outcome.not_readable);
        report.bytes_read += outcome.bytes;
        report.blobs_read += outcome.blobs;
        report.not_readable += u64::from(outcome.not_readable);
        outcome.findings.into_iter().for_each(|finding| report.add(finding));
    }
    Ok(())
}

/// Everything that can be read now; the rest is counted. Config and key files were read with the records.
fn plan(files: &Files, tasks: &mut Vec<Task>, packs: &mut Vec<Task>, report: &mut Report) -> Result<(), Error> {
    for (prefix, kind, pack) in [
        ("repo/index/", &files.indexes, false),
        ("repo/snapshots/", &files.snapshots, false),
        ("repo/data/", &files.packs, true),
    ] {
        for (id, file) in kind {
            if file.tier == Tier::Archive {
                report.not_readable += 1;
                continue;
            }
            let key = Key::new(files.key(prefix, id)).map_err(Error::internal)?;
            let task = Task { key, id: *id, file: *file, pack };
            if pack { packs.push(task) } else { tasks.push(task) }
        }
    }
    Ok(())
}

async fn read_file(
    store: &dyn Store,
    task: Task,
    key: Option<&Arc<SealKey>>,
    pool: &Arc<Pool>,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome { bytes: 0, blobs: 0, findings: Vec::new(), not_readable: false };
    let read = if task.file.size > WHOLE_MAX {
        hash_in_pieces(store, &task).await.map(|hash| (hash, None))
    } else {
        match store.get(&task.key, None).await {
            Ok(bytes) => hash(bytes).await.map(|(hash, bytes)| (hash, Some(bytes))),
            Err(error) => Err(error.into()),
        }
    };
    let (hash, bytes) = match read {
        Ok(read) => read,
        Err(Error::Store(store::Error::Archived { .. })) => {
            outcome.not_readable = true;
            return Ok(outcome);
        }
        // Pruned, merged or deleted since the listing, or else the next check misses it by the lists.
        Err(Error::Store(store::Error::NotFound { .. })) => return Ok(outcome),
        Err(error) => return Err(error),
    };
    outcome.bytes = task.file.size;
    if hash != task.id {
        outcome.findings.push(Finding::new(Kind::Altered, task.key.as_str(), NOT_ITS_NAME));
    }
    if let (true, Some(bytes), Some(key)) = (task.pack, bytes, key) {
        let (key, pool, name) = (Arc::clone(key), Arc::clone(pool), task.id);
        let checked = blocking::run(move || Ok(check_blobs(&key, &name, bytes, &pool))).await?;
        match checked {
            Ok((blobs, wrong)) => {
                outcome.blobs = blobs;
                // The hash says it already when the file was altered.
                if hash == task.id {
                    outcome.findings.extend(wrong.map(|detail| Finding::new(Kind::Altered, task.key.as_str(), detail)));
                }
            }
            Err(detail) if hash == task.id => {
                outcome.findings.push(Finding::new(Kind::Altered, task.key.as_str(), detail));
            }
            Err(_) => {}
        }
    }
    Ok(outcome)
}

async fn hash(bytes: Bytes) -> Result<(Id, Bytes), Error> {
    blocking::run(move || Ok((Id::of(&bytes), bytes))).await
}

async fn hash_in_pieces(store: &dyn Store, task: &Task) -> Result<Id, Error> {
    let (mut hasher, mut at) = (Hasher::new(), 0);
    while at < task.file.size {
        let end = (at + PIECE).min(task.file.size);
        let piece = store.get(&task.key, Some(at..end)).await?;
        hasher = blocking::run(move || {
            hasher.update(&piece);
            Ok(hasher)
        })
        .await?;
        at = end;
    }
    Ok(hasher.finish())
}

/// How many blobs there are, and what is wrong with them, if anything. The error is what is wrong with the header.
fn check_blobs(key: &SealKey, name: &Id, bytes: Bytes, pool: &Arc<Pool>) -> Result<(u64, Option<String>), String> {
    let blobs = pack::parse(name, &bytes, key).map_err(|error| error.to_string())?;
    let wrong = decode::verify_pack(key, bytes, &blobs, pool);
    let detail = wrong.first().map(|(id, detail)| match wrong.len() {
        1 => format!("blob {id}: {detail}"),
        more => format!("blob {id}: {detail}; {more} blobs of it are not right"),
    });
    Ok((blobs.len() as u64, detail))
}
