//! Checks: is everything in the vault that should be, and is it what it was when it was written?
//!
//! ```text
//!            Structure                        ReadSubset n %                  ReadData
//! keyless    records, lists, names, sizes     + small files, n % of packs     + every file hashed
//! full       + indexes, headers of packs,     + blobs of n % of packs opened, + every blob
//!            trees of every point               unpacked, hashed
//! point      one point: every blob of it
//! ```
//! Invariants:
//! - A check changes nothing. [`record_damage`] is a separate call of whoever decides.
//! - What is wrong is a [`Finding`] that names the file; only a store that does not answer, or a cancellation, is an error.
//! - Backups and prunes may run beside: what looks wrong by the lists is looked at a second time before it is told, a pack that a prune
//!   mark names may be gone, and an index that is gone has been merged.
//! - Files in [`Tier::Archive`](crate::store::Tier::Archive) cannot be read: their lists and sizes are checked, and they are counted as
//!   not readable now. With the key it is damage when an index, a snapshot or a tree lies there: a restore begins with them.
//! - Memory: some 100 bytes for each pack and each record, [`BYTES_IN_FLIGHT`] of files that are read, and with a key the index.
//!
//! Limits of a check without a key (`tests/mutation.rs` has each of them as a case): a removed index file is not missed while others are
//! there (only sealed bytes tell which replaced which; the full check finds it, and nothing is lost with it). A record that no
//! [`manifest`](crate::manifest) names yet is checked by its form. Whoever removes all files of a time from the end on turns the vault back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::meter::Meter;
use crate::records::{self, DamageRecord};
use crate::repository::Repository;
use crate::store::{Put, Store};

mod files;
mod full;
mod point;
mod read;
mod rules;
mod subset;
mod vault;

pub use point::PointReport;
pub use subset::Subset;

/// Bytes of files that are in memory at once, unless one file alone is larger.
pub const BYTES_IN_FLIGHT: usize = 64 << 20;
/// Findings that are kept; more are counted.
const MAX_FINDINGS: usize = 10_000;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Depth {
    /// Records, lists and sizes; with the key also indexes, headers and trees.
    Structure,
    /// Every byte.
    ReadData,
    /// Every small file, and this part of the packs, drawn by the seed. The same seed draws the same packs of the same vault.
    ReadSubset {
        /// More than 0, at most 100.
        percent: f64,
        /// Of the draw. Reports print it.
        seed: u64,
    },
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing that is needed is touched: leftovers of interrupted work, files of other programs.
    Note,
    /// Something is not as it was written, or is gone.
    Damage,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// The bytes are not those that were written.
    Altered,
    /// Something names it, and it is not there.
    Missing,
    /// It has another size than a list says.
    WrongSize,
    /// Nothing names it.
    Unexpected,
    /// A record whose form is unknown, or an index or snapshot file in the Archive tier.
    Unreadable,
    /// It does not follow what should stand before it.
    BrokenChain,
    /// Two files say different things.
    Inconsistent,
}

impl FindingKind {
    /// Its name in reports: a promise, programs compare it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Missing => "missing",
            Self::WrongSize => "wrong-size",
            Self::Unexpected => "unexpected",
            Self::Unreadable => "unreadable",
            Self::BrokenChain => "broken-chain",
            Self::Inconsistent => "inconsistent",
        }
    }
}

/// A point that a finding touches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffectedPoint {
    /// The name of its snapshot.
    pub id: Id,
    /// When it was made; `None` when nothing readable says it.
    pub time: Option<jiff::Timestamp>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// How bad.
    pub severity: Severity,
    /// The file's place in the store.
    pub file: String,
    /// In words.
    pub detail: String,
    /// Points that cannot be read, or not whole, or whose log is not right. Empty when no listed point needs the file.
    pub points: Vec<AffectedPoint>,
    /// False: without the key it is only known that no other points can be touched.
    pub points_certain: bool,
}

impl Finding {
    fn new(kind: FindingKind, file: impl Into<String>, detail: impl Into<String>) -> Self {
        let severity = if kind == FindingKind::Unexpected { Severity::Note } else { Severity::Damage };
        Self { kind, severity, file: file.into(), detail: detail.into(), points: Vec::new(), points_certain: true }
    }

    /// The pack that the finding is about.
    pub fn pack(&self) -> Option<Id> {
        let (dir, name) = self.file.rsplit_once('/')?;
        dir.contains("repo/data").then(|| name.parse().ok())?
    }
}

/// What a check has seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// In the order in which they were found.
    pub findings: Vec<Finding>,
    /// Findings that were not kept because there were too many.
    pub omitted: u64,
    /// Listed points.
    pub points: u64,
    /// Packs that are there.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Files that were read to their end, records not counted.
    pub files_read: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// Blobs that were opened and hashed (with a key).
    pub blobs_read: u64,
    /// Files in the Archive tier, which cannot be read now.
    pub not_readable: u64,
    /// For [`Depth::ReadSubset`]: what the draw can find.
    pub subset: Option<Subset>,
}

impl Report {
    /// True when nothing is damaged. Notes do not count.
    pub fn is_clean(&self) -> bool {
        self.omitted == 0 && self.findings.iter().all(|finding| finding.severity == Severity::Note)
    }

    /// Packs whose bytes are not those that were written: for [`record_damage`].
    pub fn altered_packs(&self) -> BTreeSet<Id> {
        let altered = self.findings.iter().filter(|finding| finding.kind == FindingKind::Altered);
        altered.filter(|finding| !finding.file.starts_with(records::ARCHIVE)).filter_map(Finding::pack).collect()
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}

/// Checks an instance's store, its archive store with it, without a key. The meter counts bytes that are read.
pub async fn keyless(
    store: &dyn Store,
    depth: Depth,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Report, Error> {
    let check = async {
        let mut report = Report::default();
        let state = files::compare(store, &mut report).await?;
        read::read_files(store, &state, depth, None, meter, &mut report).await?;
        rules::name_points(&state, &mut report);
        Ok(report)
    };
    with_cancel::<_, Error>(cancel, check).await
}

/// Everything that [`keyless`] checks and, with the key, that indexes, headers, trees and blobs agree, and which points a damage touches.
/// The repository is the hot one, and the archive's is checked with it, as far as it is online.
pub async fn full(
    repository: &Arc<Repository>,
    depth: Depth,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Report, Error> {
    let check = async {
        let store = &**repository.store();
        let mut report = Report::default();
        let state = files::compare(store, &mut report).await?;
        read::read_files(store, &state, depth, Some(repository.key()), meter, &mut report).await?;
        full::check(repository, &state, &mut report).await?;
        Ok(report)
    };
    with_cancel::<_, Error>(cancel, check).await
}

/// Reads every blob of one point, of the vault store's or else of the archive store's. When [`PointReport::is_proven`], the caller may note
/// that the point is proven.
pub async fn point(
    repository: &Arc<Repository>,
    snapshot_id: Id,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<PointReport, Error> {
    with_cancel(cancel, point::check(repository, snapshot_id, meter)).await
}

/// Checks the records in the vault's own store: `vault.json`, recovery keys, policies, owners, settings.
pub async fn vault(root: &dyn Store, cancel: &CancellationToken) -> Result<Report, Error> {
    with_cancel(cancel, vault::check(root)).await
}

/// Writes down that the packs are altered: the next backup stores their chunks again, and readers take them from elsewhere when they can.
/// Packs that are named already are left out; with none left nothing is written. Returns how many are new. May be repeated.
pub async fn record_damage(
    store: &dyn Store,
    packs: &BTreeSet<Id>,
    now: jiff::Timestamp,
    cancel: &CancellationToken,
) -> Result<usize, Error> {
    let write = async {
        loop {
            let numbers = records::numbers(store, records::DAMAGED).await?;
            let mut new = packs.clone();
            for number in &numbers {
                let place = records::numbered(records::DAMAGED, *number);
                for known in records::get::<DamageRecord>(store, &place).await?.packs {
                    new.remove(&known);
                }
            }
            if new.is_empty() {
                return Ok(0);
            }
            let count = new.len();
            let record = DamageRecord { version: records::VERSION, create_time: now, packs: new.into_iter().collect() };
            let next = numbers.last().copied().unwrap_or(0) + 1;
            let place = records::numbered(records::DAMAGED, next);
            if records::put(store, &place, &record).await? == Put::Created {
                return Ok(count);
            }
            // Another check took the number: read what it wrote.
        }
    };
    with_cancel::<_, Error>(cancel, write).await
}

/// A listed point and when it was made.
type PointTimes = BTreeMap<Id, Option<jiff::Timestamp>>;
