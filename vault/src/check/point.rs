//! One point: every blob of it is read, opened, unpacked and hashed. Packs are read in order, each range once, whatever the streams' order.
//!
//! A point that only the archive store has is read there. What lies in the Archive tier cannot be read now, and is counted; that its packs are
//! there in the sizes that the index says is known all the same, because the index is read that way, and the snapshot and the trees are
//! online. Copies that a restore has rehydrated are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use tokio::sync::Semaphore;

use super::{AffectedPoint, Finding, FindingKind as Kind};
use crate::archive;
use crate::blocking;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::reader::decode::{self, Pool};
use crate::reader::ranges::{Range, Ranges, raw_length};
use crate::reader::{self, streams};
use crate::records;
use crate::repository::index::Index;
use crate::repository::{FileKind, Repository, pack_key};
use crate::store;

/// Ranges of some MiB that are read at once.
const READS: usize = 6;

/// What reading a point has shown.
#[derive(Debug, Clone, PartialEq)]
pub struct PointReport {
    /// The name of its snapshot.
    pub id: Id,
    /// Streams of it.
    pub streams: u64,
    /// Bytes of the streams.
    pub bytes: u64,
    /// Different chunks of it that were read and were right.
    pub blobs: u64,
    /// It was looked for in the archive store, because the vault store does not have it.
    pub in_archive: bool,
    /// Chunks in the Archive tier, which cannot be read now.
    pub not_readable: u64,
    /// The packs that they lie in.
    pub packs_not_readable: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl PointReport {
    /// True when every byte of it was read and was right.
    pub fn is_proven(&self) -> bool {
        self.findings.is_empty() && self.not_readable == 0
    }

    /// Packs whose bytes are not those that were written: for [`super::record_damage`].
    pub fn altered_packs(&self) -> BTreeSet<Id> {
        let altered = self.findings.iter().filter(|finding| finding.kind == Kind::Altered);
        altered.filter(|finding| !finding.file.starts_with(records::ARCHIVE)).filter_map(Finding::pack).collect()
    }
}

pub(super) async fn check(repository: &Arc<Repository>, id: Id, meter: &Meter) -> Result<PointReport, Error> {
    let archived = archived_only(repository, &id).await?;
    let mut report = PointReport {
        id,
        streams: 0,
        bytes: 0,
        blobs: 0,
        in_archive: archived.is_some(),
        not_readable: 0,
        packs_not_readable: 0,
        findings: Vec::new(),
    };
    let mut time = None;
    match check_now(archived.as_ref().unwrap_or(repository), id, meter, &mut report, &mut time).await {
        // A snapshot or tree that cannot be read.
        Err(Error::Damaged { what, detail }) => {
            let detail = format!("{what} is damaged: {detail}");
            report.findings.push(Finding::new(Kind::Altered, FileKind::Snapshot.key(&id).as_str(), detail));
        }
        other => other?,
    }
    for finding in &mut report.findings {
        finding.points = vec![AffectedPoint { id, time }];
        if report.in_archive {
            finding.file.insert_str(0, records::ARCHIVE);
        }
    }
    Ok(report)
}

/// The archive's repository, when it has the point and the hot one does not.
async fn archived_only(repository: &Arc<Repository>, id: &Id) -> Result<Option<Arc<Repository>>, Error> {
    let place = FileKind::Snapshot.key(id);
    if repository.store().head(&place).await?.is_some() {
        return Ok(None);
    }
    let archive = Arc::new(archive::open(repository)?);
    Ok(archive.store().head(&place).await?.is_some().then_some(archive))
}

async fn check_now(
    repository: &Arc<Repository>,
    id: Id,
    meter: &Meter,
    report: &mut PointReport,
    time: &mut Option<jiff::Timestamp>,
) -> Result<(), Error> {
    let cancel = tokio_util::sync::CancellationToken::new();
    let snapshot = repository.snapshot(&id, &cancel).await?;
    *time = snapshot.time.parse().ok();
    let index = repository.load_index(&cancel).await?;
    let streams = streams::read(repository, &index, &snapshot.tree).await?;
    let wanted = wanted(&index, &id, &streams, report);
    let pool = Arc::new(Pool::default());
    let workers = Arc::new(Semaphore::new(reader::workers()));
    let ranges = Ranges::new(&index, wanted.into_iter());
    let mut checked = stream::iter(ranges)
        .map(|range| {
            let (pool, workers) = (pool.clone(), workers.clone());
            async move { check_range(repository, range?, pool, workers).await }
        })
        .buffer_unordered(READS);
    let (mut wrong, mut offline): (BTreeMap<Id, (Kind, String)>, BTreeSet<Id>) = Default::default();
    while let Some(checked) = checked.next().await {
        let checked = checked?;
        meter.add_read(checked.raw);
        report.blobs += checked.right;
        report.not_readable += checked.not_readable;
        if checked.not_readable > 0 {
            offline.insert(checked.pack);
        }
        for (kind, detail) in checked.wrong {
            wrong.entry(checked.pack).or_insert((kind, detail));
        }
    }
    report.packs_not_readable = offline.len() as u64;
    for (pack, (kind, detail)) in wrong {
        report.findings.push(Finding::new(kind, pack_key(&pack).as_str(), detail));
    }
    Ok(())
}

/// The point's different blobs, in the order in which they lie in packs. Notes what is lost, and streams of a wrong size.
fn wanted(index: &Index, id: &Id, streams: &[streams::Stream], report: &mut PointReport) -> Vec<Id> {
    let file = FileKind::Snapshot.key(id);
    let (mut places, mut lost) = (Vec::new(), BTreeSet::new());
    for stream in streams {
        let mut size = 0;
        for id in stream.blobs() {
            match index.get(&id) {
                Some(place) => {
                    size += raw_length(&place) as u64;
                    places.push((place.pack, place.offset, id));
                }
                None => {
                    lost.insert(id);
                }
            }
        }
        if size != stream.info.size && lost.is_empty() {
            let detail =
                format!("the chunks of {} have {size} bytes, its size says {}", stream.info.name, stream.info.size);
            report.findings.push(Finding::new(Kind::Inconsistent, file.as_str(), detail));
        }
        report.streams += 1;
        report.bytes += stream.info.size;
    }
    if let Some(first) = lost.first() {
        let detail = match index.damaged().first() {
            Some(why) => format!("{} of its blobs are lost, blob {first} is the first; {why}", lost.len()),
            None => format!("{} of its blobs are lost, blob {first} is the first: no index names them", lost.len()),
        };
        report.findings.push(Finding::new(Kind::Missing, file.as_str(), detail));
    }
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(|(_, _, id)| id).collect()
}

struct Checked {
    pack: Id,
    raw: u64,
    right: u64,
    not_readable: u64,
    wrong: Vec<(Kind, String)>,
}

async fn check_range(
    repository: &Arc<Repository>,
    range: Range,
    pool: Arc<Pool>,
    workers: Arc<Semaphore>,
) -> Result<Checked, Error> {
    let (pack, raw, blobs) = (range.pack, range.raw as u64, range.blobs.len() as u64);
    let mut checked = Checked { pack, raw, right: 0, not_readable: 0, wrong: Vec::new() };
    let sealed = match decode::fetch(repository, &range).await {
        Ok(sealed) => sealed,
        Err(Error::Damaged { detail, .. }) => {
            checked.wrong.push((Kind::Missing, detail));
            return Ok(checked);
        }
        Err(Error::Store(store::Error::Archived { .. })) => {
            // Nothing of it was read.
            (checked.not_readable, checked.raw) = (blobs, 0);
            return Ok(checked);
        }
        Err(error) => return Err(error),
    };
    let permit = workers.acquire_owned().await.map_err(Error::internal)?;
    let key = repository.key().clone();
    let wrong = blocking::run(move || {
        let _permit = permit;
        Ok(decode::verify(&key, sealed, &range, &pool))
    })
    .await?;
    checked.right = blobs - wrong.len() as u64;
    checked.wrong = wrong.into_iter().map(|(id, detail)| (Kind::Altered, format!("blob {id}: {detail}"))).collect();
    Ok(checked)
}
