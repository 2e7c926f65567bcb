//! What a job tells while it runs: its phase, byte counts and warnings.
//!
//! Counts are looked at from time to time, but each change of the phase is told with the counts of its moment, in order: so that what was
//! moved in a phase is counted in it, however short it was.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::records::Capture;

/// How many warnings may wait for the coordinator to read them; a job with more waits.
const WARNINGS_WAITING: usize = 64;

/// How many changes of the phase may wait to be told; what comes when there are more is seen at the next look.
const CHANGES_WAITING: usize = 64;

/// Something that the user should know, though the job goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A stable name.
    pub reason: String,
    /// What was seen.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// A job's handle to tell how it fares. Cheap to clone; nothing here waits but [`Reporter::warn`].
#[derive(Debug, Clone)]
pub struct Reporter {
    state: Arc<State>,
    warnings: mpsc::Sender<Warning>,
}

#[derive(Debug)]
struct State {
    told: Mutex<Told>,
    changed: Notify,
    checked: Mutex<String>,
    capture: Mutex<Option<Capture>>,
    total: AtomicU64,
    snapshot_held_ms: AtomicU64,
    snapshot_transactions: AtomicU64,
    meter: Arc<Meter>,
}

/// What was said last, and changes of the phase that nobody has been told yet.
#[derive(Debug)]
struct Told {
    phase: &'static str,
    note: String,
    changes: VecDeque<Progress>,
}

/// What a backup cost its source. Zero: nothing, or nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceCost {
    /// For how long a snapshot was held there.
    pub snapshot_held: Duration,
    /// How many transactions began there meanwhile, as far as that was seen: what they replaced or deleted had to be kept.
    pub transactions: u64,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for people.
    pub phase: &'static str,
    /// More of the phase, for people; mostly empty.
    pub note: String,
    /// Bytes that came from the source, or went to the target.
    pub bytes_read: u64,
    /// Bytes added to the vault.
    pub bytes_stored: u64,
    /// An estimate of `bytes_read` at the end; 0 when unknown.
    pub bytes_total: u64,
}

impl Reporter {
    /// A reporter, and where its warnings come out. When the other end is dropped, warnings go to the log only.
    pub fn new() -> (Self, mpsc::Receiver<Warning>) {
        let (warnings, receiver) = mpsc::channel(WARNINGS_WAITING);
        let told = Told { phase: "starting", note: String::new(), changes: VecDeque::new() };
        let state = State {
            told: Mutex::new(told),
            changed: Notify::new(),
            checked: Mutex::default(),
            capture: Mutex::default(),
            total: AtomicU64::new(0),
            snapshot_held_ms: AtomicU64::new(0),
            snapshot_transactions: AtomicU64::new(0),
            meter: Arc::default(),
        };
        (Self { state: Arc::new(state), warnings }, receiver)
    }

    /// Begins a phase: what was counted until now belongs to the one before.
    pub fn phase(&self, phase: &'static str) {
        tracing::info!(phase, "phase");
        let mut told = self.told();
        told.phase = phase;
        told.note.clear();
        if told.changes.len() < CHANGES_WAITING {
            let change = self.progress_of(&told);
            told.changes.push_back(change);
        }
        drop(told);
        self.state.changed.notify_one();
    }

    /// Says more of the phase, until the next one begins.
    pub fn note(&self, note: String) {
        self.told().note = note;
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.state.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how many bytes are expected.
    pub fn expect_bytes(&self, total: u64) {
        self.state.total.store(total, Ordering::Relaxed);
    }

    /// Tells for how long a snapshot was held at the source.
    pub fn set_snapshot_held(&self, held: Duration) {
        self.state.snapshot_held_ms.store(u64::try_from(held.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What [`Reporter::set_snapshot_held`] was told last; zero before.
    pub fn snapshot_held(&self) -> Duration {
        Duration::from_millis(self.state.snapshot_held_ms.load(Ordering::Relaxed))
    }

    /// Tells how many transactions have begun at the source since the snapshot was taken.
    pub fn set_snapshot_transactions(&self, transactions: u64) {
        self.state.snapshot_transactions.store(transactions, Ordering::Relaxed);
    }

    /// What the backup cost its source, as told last.
    pub fn source_cost(&self) -> SourceCost {
        let transactions = self.state.snapshot_transactions.load(Ordering::Relaxed);
        SourceCost { snapshot_held: self.snapshot_held(), transactions }
    }

    /// Says how the source was caught, for the point that becomes of the backup.
    pub fn set_capture(&self, capture: Capture) {
        *self.state.capture.lock().unwrap_or_else(PoisonError::into_inner) = Some(capture);
    }

    /// What [`Reporter::set_capture`] was told last; `None` before.
    pub fn capture(&self) -> Option<Capture> {
        self.state.capture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what of a restore's result was compared with its point, for its job's end.
    pub fn set_checked(&self, checked: String) {
        *self.state.checked.lock().unwrap_or_else(PoisonError::into_inner) = checked;
    }

    /// What [`Reporter::set_checked`] was told last; empty before.
    pub fn checked(&self) -> String {
        self.state.checked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters that the data path moves.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.state.meter
    }

    /// Tells the user something. Waits while too many warnings are unread; cancelling the job ends that.
    pub async fn warn(&self, warning: Warning) {
        tracing::warn!(reason = warning.reason, "{}", warning.message);
        // An error means that the caller is gone; then the job is being cancelled, and the log has the warning.
        let _ = self.warnings.send(warning).await;
    }

    /// How far the job is now.
    pub fn progress(&self) -> Progress {
        self.progress_of(&self.told())
    }

    /// The oldest change of the phase that was not told yet; waits for one. A call that is dropped loses none.
    pub(crate) async fn change(&self) -> Progress {
        loop {
            match self.waiting() {
                Some(change) => return change,
                None => self.state.changed.notified().await,
            }
        }
    }

    /// The oldest change of the phase that was not told yet, when there is one.
    pub(crate) fn waiting(&self) -> Option<Progress> {
        self.told().changes.pop_front()
    }

    /// The oldest change of the phase that was not told yet, or else how far the job is now: so that nothing is told out of order.
    pub(crate) fn upcoming(&self) -> Progress {
        let mut told = self.told();
        told.changes.pop_front().unwrap_or_else(|| self.progress_of(&told))
    }

    fn progress_of(&self, told: &Told) -> Progress {
        Progress {
            phase: told.phase,
            note: told.note.clone(),
            bytes_read: self.state.meter.read(),
            bytes_stored: self.state.meter.stored(),
            bytes_total: self.state.total.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_are_told_in_order_with_the_counts_of_their_beginning() {
        let (reporter, _warnings) = Reporter::new();
        reporter.phase("one");
        reporter.note("a note".to_owned());
        reporter.meter().add_read(5);
        reporter.phase("two");
        reporter.meter().add_read(7);
        assert_eq!(
            (reporter.progress().phase, reporter.progress().bytes_read),
            ("two", 12),
            "a look takes nothing away"
        );
        let one = reporter.change().await;
        assert_eq!((one.phase, one.note.as_str(), one.bytes_read), ("one", "", 0));
        let two = reporter.upcoming();
        assert_eq!((two.phase, two.bytes_read), ("two", 5), "before what is now");
        assert_eq!((reporter.upcoming().phase, reporter.upcoming().bytes_read), ("two", 12));
        // Who waits is woken.
        let (change, ()) = tokio::join!(reporter.change(), async { reporter.phase("three") });
        assert_eq!((change.phase, change.bytes_read), ("three", 12));
    }

    #[tokio::test]
    async fn changes_that_nobody_reads_have_a_limit() {
        let (reporter, _warnings) = Reporter::new();
        (0..10 * CHANGES_WAITING).for_each(|_| reporter.phase("again"));
        assert_eq!(reporter.told().changes.len(), CHANGES_WAITING);
        reporter.phase("last");
        assert_eq!(reporter.progress().phase, "last");
    }
}
