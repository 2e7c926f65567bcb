//! A disk's pieces as the vault's writer takes them.
//!
//! A thread reads, at most [`AHEAD`] pieces ahead of whoever writes them. Its buffers are used again and again. It ends at the first error,
//! at the disk's end, or soon after the stream was dropped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, mpsc as buffers};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use vaultferry_vault::Id;
use vaultferry_vault::writer::{Extent, IMAGE_CHUNK, Throttle};

use crate::plan::Piece;

/// Pieces of a chunk's size that wait for the writer.
const AHEAD: usize = 4;
/// Chunks that are named at once.
const NAMED: usize = 4096;

/// Reads the pieces of `file`. `chunks` are the earlier image's, for those that are taken over.
pub(crate) fn extents(
    file: File,
    pieces: Vec<Piece>,
    chunks: Arc<[Id]>,
    throttle: Option<Arc<Throttle>>,
) -> BoxStream<'static, io::Result<Extent>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read(&file, &pieces, &chunks, &sender) {
            // An error means that nobody wants the rest.
            let _ = sender.blocking_send(Err(error));
        }
    });
    stream::unfold((receiver, throttle), |(mut receiver, throttle)| async move {
        let extent = receiver.recv().await?;
        if let (Ok(Extent::Data(bytes)), Some(throttle)) = (&extent, &throttle) {
            throttle.pass(bytes.len() as u64).await;
        }
        Some((extent, (receiver, throttle)))
    })
    .boxed()
}

fn read(file: &File, pieces: &[Piece], chunks: &[Id], sender: &mpsc::Sender<io::Result<Extent>>) -> io::Result<()> {
    let pool = Pool::new();
    for piece in pieces {
        match piece {
            Piece::Hole(length) => {
                if sender.blocking_send(Ok(Extent::Hole(*length))).is_err() {
                    return Ok(());
                }
            }
            Piece::Same(numbers) => {
                for named in of_numbers(chunks, numbers)?.chunks(NAMED) {
                    if sender.blocking_send(Ok(Extent::Same(named.to_vec()))).is_err() {
                        return Ok(());
                    }
                }
            }
            Piece::Data(range) => {
                let mut at = range.start;
                while at < range.end {
                    // Up to the next border of a chunk, so that a piece goes into one chunk.
                    let border = (at / IMAGE_CHUNK as u64 + 1) * IMAGE_CHUNK as u64;
                    let end = border.min(range.end);
                    let bytes = pool.filled((end - at) as usize, |buffer| file.read_exact_at(buffer, at))?;
                    if sender.blocking_send(Ok(Extent::Data(bytes))).is_err() {
                        return Ok(());
                    }
                    at = end;
                }
            }
        }
    }
    Ok(())
}

fn of_numbers<'a>(chunks: &'a [Id], numbers: &Range<u64>) -> io::Result<&'a [Id]> {
    let range = numbers.start as usize..numbers.end as usize;
    chunks.get(range).ok_or_else(|| io::Error::other("the earlier point has fewer chunks than were planned with"))
}

/// Buffers of a chunk's size that come back when their last reader has dropped them.
struct Pool {
    back: buffers::SyncSender<Vec<u8>>,
    waiting: buffers::Receiver<Vec<u8>>,
}

impl Pool {
    fn new() -> Self {
        let (back, waiting) = buffers::sync_channel(AHEAD + 2);
        Self { back, waiting }
    }

    fn filled(&self, length: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        let mut buffer = self.waiting.try_recv().unwrap_or_else(|_| vec![0; IMAGE_CHUNK]);
        fill(&mut buffer[..length])?;
        Ok(Bytes::from_owner(Lent { buffer, length, back: self.back.clone() }))
    }
}

/// A buffer on its way.
struct Lent {
    buffer: Vec<u8>,
    length: usize,
    back: buffers::SyncSender<Vec<u8>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One more than is kept, or one that the thread does not wait for any more, is given back to the system.
        let _ = self.back.try_send(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn pieces_are_read_in_order_and_cut_at_chunks() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..3 * IMAGE_CHUNK + 100).map(|byte| (byte % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let ids: Arc<[Id]> = (0..4_u8).map(|number| Id::of(&[number])).collect();
        let chunk = IMAGE_CHUNK as u64;
        let pieces = vec![
            Piece::Data(0..5),
            Piece::Hole(chunk - 5),
            Piece::Same(1..2),
            Piece::Data(2 * chunk..content.len() as u64),
        ];
        let throttle = Some(Arc::new(Throttle::new(1 << 40)));
        let read: Vec<io::Result<Extent>> = extents(file, pieces, ids.clone(), throttle).collect().await;
        let read: Vec<Extent> = read.into_iter().map(|extent| extent.unwrap()).collect();
        let data = |range: Range<usize>| Extent::Data(Bytes::copy_from_slice(&content[range]));
        let expected = [
            data(0..5),
            Extent::Hole(chunk - 5),
            Extent::Same(vec![ids[1]]),
            data(2 * IMAGE_CHUNK..3 * IMAGE_CHUNK),
            data(3 * IMAGE_CHUNK..content.len()),
        ];
        assert!(read == expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_is_shorter_than_it_was_is_an_error_and_no_zeros() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let read: Vec<io::Result<Extent>> =
            extents(file, vec![Piece::Data(0..101)], Arc::new([]), None).collect().await;
        assert!(read.last().unwrap().is_err());
    }
}
