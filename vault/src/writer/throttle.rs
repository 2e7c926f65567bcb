//! A limit of bytes per second: a bucket that holds one piece. Uploads pass it file by file, and what a source gives, read by read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets bytes pass at a mean rate. A piece (a file, what was read at once) passes as a whole: in any time span, the rate's worth of bytes
/// passes and one piece more.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_s: u64,
    /// When the next piece may pass.
    free: Mutex<Instant>,
}

impl Throttle {
    /// `bytes_per_s`: 0 counts as 1.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass. Those who wait pass in the order in which they came; one that is dropped keeps its place, empty.
    pub async fn pass(&self, bytes: u64) {
        tokio::time::sleep_until(self.turn(bytes)).await;
    }

    /// When `bytes` may pass, for those who wait in a way of their own; whoever comes behind passes after them. 0 bytes: when the next ones
    /// may, and nobody is held up by it. Never waits; needs no runtime.
    pub fn turn(&self, bytes: u64) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*free).max(Instant::now());
        *free = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        turn
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
