//! When a scheduled backup that has failed is tried again. Which failures another attempt can mend is `job/retry.rs`'s to say.

use jiff::SignedDuration;

use super::start::spread;

/// `[retry]` of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at one slot's backup, the first one among them: 1 to 10; 1 means that nothing is tried again.
    pub attempts: u32,
    /// The pause before the second attempt; each later one is twice as long. Above zero.
    pub wait: SignedDuration,
    /// No pause is longer, but for its ±20 %. Not shorter than `wait`.
    pub longest_wait: SignedDuration,
}

impl Default for Retry {
    /// 3 attempts: at once, 5 minutes later, 10 minutes later. A server that restarts is back by then.
    fn default() -> Self {
        Self { attempts: 3, wait: SignedDuration::from_mins(5), longest_wait: SignedDuration::from_hours(1) }
    }
}

impl Retry {
    /// The pause before that attempt (2, 3, …): `wait`, doubled with each, at most `longest_wait`, then moved by up to 20 % either way, so
    /// that backups that one outage has failed do not all come back in one second. The same for the same `key`.
    pub fn pause(&self, attempt: u32, key: &str) -> SignedDuration {
        // 2^32 times a pause is longer than any limit.
        let doublings = attempt.saturating_sub(2).min(32);
        let whole_ms = (self.wait.as_millis() << doublings).min(self.longest_wait.as_millis());
        let per_mille = i128::from(spread(key, &attempt.to_string()) % 401) + 800;
        SignedDuration::from_millis(i64::try_from(whole_ms * per_mille / 1000).unwrap_or(i64::MAX))
    }
}
