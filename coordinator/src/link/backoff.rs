//! How long to wait before something is tried again.

use std::time::Duration;

/// The first wait is half to all of it: 1 s at least.
const FIRST: Duration = Duration::from_secs(2);
/// A service that was away for a day is found again within a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits that double from try to try, each with a jitter of half, so that a fleet does not come back in one second.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The wait before the next try.
    pub(super) fn wait(&mut self) -> Duration {
        // The random bits of an id are as good as any.
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        self.wait_by(f64::from(random) / f64::from(u32::MAX))
    }

    /// The same by a number from 0 to 1.
    fn wait_by(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_a_second_to_a_minute() {
        let (mut least, mut most) = (Backoff::new(), Backoff::new());
        let least: Vec<u64> = (0..8).map(|_| least.wait_by(0.0).as_secs()).collect();
        let most: Vec<u64> = (0..8).map(|_| most.wait_by(1.0).as_secs()).collect();
        assert_eq!(least, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(most, [2, 4, 8, 16, 32, 60, 60, 60]);
        let waits: std::collections::BTreeSet<Duration> = (0..20).map(|_| Backoff::new().wait()).collect();
        assert!(waits.len() > 10, "no two agents wait for the same time: {waits:?}");
        assert!(waits.iter().all(|wait| (1.0..=2.0).contains(&wait.as_secs_f64())), "{waits:?}");
    }
}
