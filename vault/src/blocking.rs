//! Small helpers for work that must not hold up async threads, and for waits that end when nobody wants them any more.

use std::io::Read as _;

use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Runs a CPU-bound closure on the blocking pool. Dropping the future lets the closure end by itself, its result unused.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
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

/// Decompresses a zstd frame whose writer did not tell the size; fails above `limit` bytes.
pub(crate) fn decompress(compressed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(compressed)?.take(limit as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > limit {
        return Err(std::io::Error::other("it is larger than it may be"));
    }
    Ok(plain)
}
