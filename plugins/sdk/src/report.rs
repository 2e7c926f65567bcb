//! What a job tells while it runs: its phase, byte counts and warnings.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use vaultferry_vault::meter::Meter;

/// How many warnings may wait for the coordinator to read them; a job with more waits.
const WARNINGS_WAITING: usize = 64;

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
    phase: Mutex<&'static str>,
    note: Mutex<String>,
    checked: Mutex<String>,
    total: AtomicU64,
    snapshot_held_ms: AtomicU64,
    meter: Arc<Meter>,
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
        let state = State {
            phase: Mutex::new("starting"),
            note: Mutex::default(),
            checked: Mutex::default(),
            total: AtomicU64::new(0),
            snapshot_held_ms: AtomicU64::new(0),
            meter: Arc::default(),
        };
        (Self { state: Arc::new(state), warnings }, receiver)
    }

    /// Begins a phase.
    pub fn phase(&self, phase: &'static str) {
        tracing::info!(phase, "phase");
        *self.state.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.note(String::new());
    }

    /// Says more of the phase, until the next one begins.
    pub fn note(&self, note: String) {
        *self.state.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
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
        Progress {
            phase: *self.state.phase.lock().unwrap_or_else(PoisonError::into_inner),
            note: self.state.note.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            bytes_read: self.state.meter.read(),
            bytes_stored: self.state.meter.stored(),
            bytes_total: self.state.total.load(Ordering::Relaxed),
        }
    }
}
