//! Prune: takes away what no point needs, beside running backups, killed anywhere, fenced by epochs and not by clocks.
//!
//! ```text
//! run n                                                 backup                              commit
//!  1 purge what is due, mend what was interrupted        a read the newest epoch s           d pack list and record
//!  2 read the newest two marks, M(n-1) and M(n-2)          and its mark M(s)                 e read the newest epoch
//!  3 list snapshots, then read the points' logs          b read the index; packs of M(s)     f publish, when the epoch is s,
//!  4 read the index, then list the packs                   are taken for not there             or s+1 and M(s+1) has none
//!  5 U = packs that are no needed blob's holder          c upload packs, then indexes          of its packs; else abandon
//!  6 create prune/<n>: M(n), and candidates C(n)
//!  7 D = M(n-1) ∩ M(n) ∩ U: indexes without them, then delete them
//! ```
//! `M(n)` has the packs of `U` that a finished commit has listed, that are in `M(n-1)`, or that are in `C(n-1)`; the other packs of `U` are
//! the candidates `C(n)`: they may have just been stored by a running backup. A pack that is in two marks in a row is *doomed*, and stays
//! marked until it is gone, whatever happens.
//!
//! Invariants, and why they hold:
//! - **A pack that a published point needs is in no two marks in a row.** Take a commit that step e let pass, with a pack X. By b, X is not
//!   in M(s); by e, it is not in M(s+1) if that was there. Let M(j-1) and M(j) be the first later pair with X. M(j-1) was created after
//!   step e, so after the record (d); run j read M(j-1) (2) before it read the records (3), so it saw the record, and kept a holder for each
//!   of its blobs.
//! - **So a prune, however late it wakes up, deletes nothing that such a point needs**: it deletes from two marks in a row only. X of an
//!   earlier pair would be doomed, and so in M(s), if it was still there.
//! - **A holder is kept.** A blob may lie in several packs. The holder that run j chooses is not in M(j), and, as long as there is another,
//!   was not in M(j-1); so no run up to j+1 deletes it, and run j+1 chooses again.
//! - A commit never sees less than it must: it writes its record before it reads the epoch, and a prune creates its epoch before the next
//!   one reads the records. One of the two always sees the other.
//! - Soft-deleted points count until `Purged`, which is final in their log; an undelete after it is refused, one before it is seen.
//! - A backup during which one prune runs is not disturbed by it, but when that marks an old pack that it reuses. After two it is refused.
//!
//! The model of `tests/prune_model.rs` walks every interleaving; `tests/prune.rs` drives this code through seeded ones.
//!
//! Limits: memory is some 30 bytes for each chunk and 200 for each pack. A pack's name is never created again after it was deleted (it
//! hashes random nonces). When a tree or a point's log cannot be read the prune ends before it marks. When blobs are missing or index files
//! are damaged, packs without an index are not taken for leftovers. Nothing is repaired here.

use std::collections::HashSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::lease::{self, Lease};
use crate::meter::Meter;
use crate::points::{self, PointState};
use crate::records::{self, PRUNE, PruneMark};
use crate::repository::{Repository, pack_key};
use crate::store::{self, Put};

mod census;
mod checkpoint;
mod marks;
mod merge;
mod need;
#[cfg(test)]
mod tests;

use census::{Census, Need};
use marks::{Marks, Next};

pub use marks::deletable;
pub use merge::Merged;

/// Deletions at once: hides the store's latency.
const DELETIONS: usize = 16;

/// How a prune is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Index files are merged when so many of them are small.
    pub merge_from: usize,
    /// How long the lease lasts when this prune is killed.
    pub lease_term: Duration,
    /// Points are purged whose purge time is not after this, nor after what the machine's clock says; `None`: that clock alone. Whoever
    /// deletes by a clock of his own purges by it, too: a clock that jumped ahead then takes nothing that could still be brought back.
    pub purge_until: Option<jiff::Timestamp>,
}

impl Options {
    /// The time by which points are purged.
    fn purge_time(&self, now: jiff::Timestamp) -> jiff::Timestamp {
        self.purge_until.map_or(now, |until| until.min(now))
    }
}

impl Default for Options {
    fn default() -> Self {
        // A daily backup leaves one or two index files: merged once a week or so.
        Self { merge_from: 8, lease_term: lease::TERM, purge_until: None }
    }
}

/// A number of packs, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub packs: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What a prune would do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The epoch that the prune would begin.
    pub epoch: u64,
    /// Points whose data it would give up: soft-deleted, and their time has come.
    pub purge: Vec<Id>,
    /// Packs that it would delete.
    pub delete: Amount,
    /// Packs that it would mark, and that the next prune would delete: nothing needs them any more.
    pub mark: Amount,
    /// Packs that it would only note: nothing has ever needed them. The next prune would mark them, the one after it delete them.
    pub note: Amount,
    /// Packs that could go, but that the store protects (an immutability date, a legal hold).
    pub protected: Amount,
    /// Kept for points that are listed.
    pub kept_listed: Amount,
    /// Kept for soft-deleted points only.
    pub kept_soft_deleted: Amount,
    /// Kept for commits that have not come to their end only.
    pub kept_unpublished: Amount,
    /// Kept though a later mark would delete them, because nothing else holds what a point needs; or no index names them, and the index is
    /// damaged.
    pub kept_doubtful: Amount,
    /// Bytes in kept packs that nothing needs there.
    pub unused_bytes: u64,
    /// Index files, and how many of them would be replaced.
    pub index_files: u64,
    /// See `index_files`.
    pub index_files_replaced: u64,
    /// What is wrong with the repository: needed blobs that are nowhere, index files that cannot be read. A check tells more.
    pub damage: Vec<String>,
}

/// What a prune has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What it set out to do. Its `purge` is empty: see `purged`.
    pub plan: Plan,
    /// Points that were purged.
    pub purged: Vec<Id>,
    /// Deletions and undeletions that had been interrupted and were ended.
    pub mended: u64,
    /// Packs that were deleted.
    pub deleted: Amount,
    /// Packs that the store did not let go, though its listing did not say so.
    pub refused: Amount,
    /// What became of the index.
    pub index: Merged,
}

/// Everything that was read, and what follows from it.
#[derive(Debug)]
struct Survey {
    marks: Marks,
    states: Vec<PointState>,
    census: Census,
    next: Next,
}

/// What [`run`] would do now. Changes nothing, takes no lease.
pub async fn plan(repository: &Repository, options: &Options, cancel: &CancellationToken) -> Result<Plan, Error> {
    let now = crate::clock::now();
    let due = options.purge_time(now);
    let survey = with_cancel(cancel, survey(repository, now, due, Vec::new(), &Meter::default(), cancel)).await?;
    let due = survey.states.iter().filter(|state| points::is_due(state, due)).map(|state| state.id);
    Ok(Plan { purge: due.collect(), ..survey.plan(options) })
}

/// Prunes. The meter counts bytes of trees that were read, and bytes of index files that were written.
///
/// Dropped, cancelled or killed at any instant it leaves a repository in which every point is whole, and the next prune goes on.
/// [`Error::MaintenanceBusy`] when another maintenance is at work.
pub async fn run(
    repository: &Repository,
    options: &Options,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Report, Error> {
    let lease = Lease::acquire(repository.store(), "prune", options.lease_term, cancel).await?;
    let lost = lease.lost().clone();
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled),
        () = lost.cancelled() => Err(Error::MaintenanceBusy {
            store: repository.store().location().to_owned(),
            detail: "the lease of this prune was not renewed in time".to_owned(),
        }),
        result = run_now(repository, options, meter, cancel) => result,
    };
    lease.release().await;
    result
}

async fn run_now(
    repository: &Repository,
    options: &Options,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Report, Error> {
    let store = &**repository.store();
    let now = crate::clock::now();
    let due = options.purge_time(now);
    let (mended, purged, before) = points::finish_and_purge(store, due, cancel).await?;
    let survey = survey(repository, now, due, before, meter, cancel).await?;
    let mut report = Report { plan: survey.plan(options), purged, mended, ..Report::default() };
    let epoch = survey.marks.epoch + 1;
    let mark = PruneMark {
        version: records::VERSION,
        epoch,
        create_time: now,
        marked: survey.next.mark.clone(),
        candidates: survey.next.candidates.clone(),
    };
    if records::put(store, &records::numbered(PRUNE, epoch), &mark).await? == Put::Existed {
        let detail = format!("it has begun epoch {epoch}");
        return Err(Error::MaintenanceBusy { store: store.location().to_owned(), detail });
    }
    tracing::info!(store = store.location(), epoch, marked = mark.marked.len(), "prune epoch begins");
    let gone: HashSet<Id> = survey.next.delete.iter().copied().collect();
    report.index = merge::merge(repository, &survey.census, &gone, options.merge_from, meter).await?;
    let mut deletions = stream::iter(survey.next.delete.clone())
        .map(|id| async move { (id, store.delete(&pack_key(&id)).await) })
        .buffer_unordered(DELETIONS);
    while let Some((id, deleted)) = deletions.next().await {
        let bytes = survey.census.present[&id].size;
        match deleted {
            Ok(()) => report.deleted.add(bytes),
            Err(store::Error::Protected { .. }) => report.refused.add(bytes),
            Err(error) => return Err(error.into()),
        }
    }
    checkpoint::write(store, &survey.states).await?;
    Ok(report)
}

/// Steps 2 to 5 of the module's table. `due`: points whose purge time is not after it do not count any more. `before`: states that were read
/// a moment ago, if any were.
async fn survey(
    repository: &Repository,
    now: jiff::Timestamp,
    due: jiff::Timestamp,
    before: Vec<PointState>,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Survey, Error> {
    let store = &**repository.store();
    let marks = Marks::read(store).await?;
    let (roots, states) = need::roots(repository, due, before, cancel).await?;
    let mut census = Census::take(repository, now).await?;
    need::walk(repository, &mut census, roots, meter).await?;
    census.choose_holders(&marks.shunned(store).await?);
    let listed = checkpoint::finished_packs(store, &states).await?;
    let next = Next::of(&marks, &census, &listed);
    Ok(Survey { marks, states, census, next })
}

impl Survey {
    fn plan(&self, options: &Options) -> Plan {
        let mut plan = Plan { epoch: self.marks.epoch + 1, ..Plan::default() };
        let size = |id: &Id| self.census.present.get(id).map_or(0, |present| present.size);
        let amount = |ids: &[Id]| Amount { packs: ids.len() as u64, bytes: ids.iter().map(size).sum() };
        let (delete, protected) = (amount(&self.next.delete), amount(&self.next.protected));
        let (mark, spared) = (amount(&self.next.mark), amount(&self.next.spared));
        plan.mark = Amount {
            packs: mark.packs - delete.packs - protected.packs - spared.packs,
            bytes: mark.bytes - delete.bytes - protected.bytes - spared.bytes,
        };
        (plan.delete, plan.protected, plan.kept_doubtful) = (delete, protected, spared);
        plan.note = amount(&self.next.candidates);
        for pack in &self.census.packs {
            let kept = match pack.need {
                Some(Need::Listed) => &mut plan.kept_listed,
                Some(Need::SoftDeleted) => &mut plan.kept_soft_deleted,
                Some(Need::Unpublished) => &mut plan.kept_unpublished,
                None => continue,
            };
            kept.add(size(&pack.id));
            plan.unused_bytes += pack.blob_bytes - pack.held_bytes;
        }
        if !self.census.is_complete() {
            let without_index = self.census.present.iter().filter(|(id, _)| !self.census.is_indexed(id));
            without_index.for_each(|(_, present)| plan.kept_doubtful.add(present.size));
        }
        let gone = self.next.delete.iter().copied().collect();
        plan.index_files = self.census.files.len() as u64;
        plan.index_files_replaced = merge::to_replace(&self.census, &gone, options.merge_from).len() as u64;
        plan.damage.clone_from(&self.census.damaged_files);
        if self.census.lost > 0 {
            let names: Vec<String> = self.census.lost_names.iter().map(Id::to_string).collect();
            plan.damage.push(format!("{} needed chunks are missing or unsound {}", self.census.lost, names.join(" ")));
        }
        plan
    }
}
