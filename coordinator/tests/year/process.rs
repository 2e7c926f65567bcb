//! Processes that are killed at one of their steps: a call to a store or a transaction of the catalog, before or behind its effect.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio_util::sync::CancellationToken;

/// A process. From its death on, whatever it waits for never comes.
#[derive(Debug)]
pub struct Process {
    left: AtomicI64,
    /// At its last step it does not die: it hangs.
    hangs: AtomicBool,
    stopped: AtomicBool,
    dead: CancellationToken,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
            hangs: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            dead: CancellationToken::new(),
        }
    }
}

impl Process {
    /// It is killed at one of its next steps.
    pub fn kill_after(&self, steps: i64) {
        self.left.store(steps, Ordering::Relaxed);
    }

    /// It hangs from one of its next steps on, without dying.
    pub fn hang_after(&self, steps: i64) {
        self.hangs.store(true, Ordering::Relaxed);
        self.kill_after(steps);
    }

    /// What was to happen to it does not happen any more.
    pub fn spare(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
    }

    /// Killed now.
    pub fn kill(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.dead.cancel();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Fires when it is dead.
    pub fn dead(&self) -> &CancellationToken {
        &self.dead
    }

    /// One step: for ever, when it was the last one.
    pub async fn step(&self) {
        if !self.is_stopped() && self.left.load(Ordering::Relaxed) != i64::MAX {
            let left = self.left.fetch_sub(1, Ordering::Relaxed);
            if left <= 0 {
                self.stopped.store(true, Ordering::Relaxed);
                if !self.hangs.load(Ordering::Relaxed) {
                    self.dead.cancel();
                }
            }
        }
        if self.is_stopped() {
            std::future::pending::<()>().await;
        }
    }
}
