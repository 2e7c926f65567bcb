//! Small helpers for work that must not hold up async threads, and for waits that end when nobody wants them any more.

use std::cell::RefCell;
use std::io::Read as _;

use tokio_util::sync::CancellationToken;
use zstd::bulk::Decompressor;

use crate::error::Error;

thread_local! {
    /// A decompressor keeps some hundred KiB of tables, and making them costs more than most of what is decompressed. The threads of the
    /// blocking pool are few and stay for a while; each keeps its own.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Runs a CPU-bound closure on the blocking pool. Dropping the future lets the closure end by itself, its result unused.
///
/// On a thread that simulates a world it runs here, once whoever else is ready has had a turn: the clock of that world stands still anyway
/// while something runs, and there are more pieces of work of some microseconds in a year than threads can be woken for.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    #[cfg(feature = "simulate")]
    if crate::simulate::is_on() {
        tokio::task::yield_now().await;
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(error)),
    }
}

/// Waits for the future, or for the token, whichever is first; the future is dropped then.
pub(crate) async fn with_cancel<T, E>(
    cancel: &CancellationToken,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Error>
where
    Error: From<E>,
{
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled),
        result = future => result.map_err(Error::from),
    }
}

/// Gives the work this thread's decompressor.
pub(crate) fn with_decompressor<T>(
    work: impl FnOnce(&mut Decompressor<'static>) -> std::io::Result<T>,
) -> std::io::Result<T> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new()?);
        }
        work(slot.as_mut().expect("set just above"))
    })
}

/// What is as large at the most is decompressed in one piece when it says so. More is read piece by piece: a size that is only claimed must
/// not cost memory.
const ONE_PIECE: usize = 16 << 20;

/// Decompresses frames; fails above `limit` bytes. Those that tell their size, as all do that we write, are found to be too large before
/// anything is done for them. A writer that did not tell it costs a decoder of its own.
pub(crate) fn decompress(compressed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    let too_large = || std::io::Error::other("it is larger than it may be");
    match Decompressor::upper_bound(compressed) {
        Some(size) if size > limit => Err(too_large()),
        Some(size) if size <= ONE_PIECE => with_decompressor(|decompressor| decompressor.decompress(compressed, size)),
        _ => {
            let mut plain = Vec::new();
            zstd::stream::read::Decoder::new(compressed)?.take(limit as u64 + 1).read_to_end(&mut plain)?;
            if plain.len() > limit { Err(too_large()) } else { Ok(plain) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_with_and_without_their_size_are_decompressed_up_to_the_limit() {
        let plain = b"a backup, and again a backup, and again a backup".repeat(100);
        let told = zstd::bulk::compress(&plain, 3).expect("compresses");
        let untold = zstd::stream::encode_all(&plain[..], 3).expect("compresses");
        assert_eq!(Decompressor::upper_bound(&told), Some(plain.len()));
        assert_eq!(Decompressor::upper_bound(&untold), None, "the test needs a frame that does not tell its size");
        let two = [&told[..], &told[..]].concat();
        let mixed = [&told[..], &untold[..]].concat();
        for (compressed, expected) in
            [(&told, plain.clone()), (&untold, plain.clone()), (&two, plain.repeat(2)), (&mixed, plain.repeat(2))]
        {
            // Twice: nothing of the first time is left in the thread's decompressor.
            for _ in 0..2 {
                assert_eq!(decompress(compressed, expected.len()).expect("fits"), expected);
                let error = decompress(compressed, expected.len() - 1).expect_err("too large").to_string();
                assert_eq!(error, "it is larger than it may be");
            }
        }
        decompress(&told[..told.len() - 3], plain.len()).expect_err("it is cut off");
        decompress(&untold[..untold.len() - 3], plain.len()).expect_err("it is cut off");
        decompress(b"no frame at all", 1000).expect_err("it is no frame");
        assert_eq!(decompress(&told, plain.len()).expect("after all that"), plain);
    }

    #[cfg(feature = "simulate")]
    #[tokio::test(start_paused = true)]
    async fn a_simulation_works_on_its_own_thread_and_lets_others_go_first() {
        crate::simulate::set_now(jiff::Timestamp::UNIX_EPOCH);
        let here = std::thread::current().id();
        let begun = tokio::time::Instant::now();
        let other = tokio::spawn(async {});
        let there = run(|| Ok(std::thread::current().id())).await.expect("it ran");
        assert_eq!(there, here);
        assert!(other.is_finished(), "who was ready had a turn");
        assert_eq!(begun.elapsed(), std::time::Duration::ZERO, "and no time has passed");
    }
}
