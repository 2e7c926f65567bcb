//! An upload limit: a bucket that holds one file.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets bytes pass at a mean rate. A file passes as a whole: in any time span, the rate's worth of bytes passes and one file more.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_s: u64,
    /// When the next file may pass.
    free: Mutex<Instant>,
}

impl Throttle {
    /// `bytes_per_s` is at least 1.
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass. Those who wait pass in the order in which they came; one that is dropped keeps its place, empty.
    pub(super) async fn pass(&self, bytes: u64) {
        let turn = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free).max(Instant::now());
            *free = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_whoever_asks() {
        let throttle = Throttle::new(1000);
        let start = Instant::now();
        let pass = async |bytes: u64| {
            throttle.pass(bytes).await;
            start.elapsed().as_millis()
        };
        let times = futures::join!(pass(500), pass(2000), pass(100), pass(1));
        assert_eq!(times, (0, 500, 2500, 2600));
        // What was not used is lost: there is no burst after a pause but one file.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = start.elapsed().as_millis();
        assert_eq!((pass(1000).await - start, pass(1).await - start), (0, 1000));
    }
}
