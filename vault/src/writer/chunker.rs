//! Cuts a stream into content-defined chunks, after a short first one ([`HEAD`]).
//!
//! FastCDC (version 2020 of the `fastcdc` crate, normalisation level 1), seeded by the repository's polynomial. The borders are part
//! of the stored format's economy, not of its readability: other borders would only store everything once more. They are pinned by the
//! exact version of the crate and by a golden test.

use std::borrow::Cow;

use fastcdc::v2020::{Normalization, cut_gear, get_gear_with_seed, select_masks};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The first chunk of a stream that is longer than this: 4 KiB. Formats tell the time of their making in their first bytes (pg_dump's
/// archive does), which would otherwise make the whole first chunk a new one in every backup.
pub const HEAD: usize = 4 << 10;
/// Smallest chunk but the first and the last one: 512 KiB, restic's own minimum.
pub const MIN: usize = 512 << 10;
/// What the borders aim at: 1 MiB, as in restic. Smaller ones would find more duplicates and cost more index.
pub const AVERAGE: usize = 1 << 20;
/// Largest chunk: 8 MiB, as in restic.
pub const MAX: usize = 8 << 20;

/// How much is asked of the input at once at most.
const READ: usize = 1 << 20;

/// Bytes of the buffer. Twice the largest chunk, so that what is left over is moved to the front once per 8 MiB, not at every chunk.
const CAPACITY: usize = 2 * MAX;

/// Reads an input and cuts it. Memory: 16 MiB, reserved at the first read.
pub struct Chunker<R> {
    input: R,
    buffer: Vec<u8>,
    start: usize,
    begun: bool,
    ended: bool,
    gear: (Cow<'static, [u64]>, Cow<'static, [u64]>),
    masks: (u64, u64),
}

impl<R: AsyncRead + Unpin> Chunker<R> {
    /// A chunker with the borders of this seed.
    pub fn new(input: R, seed: u64) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            start: 0,
            begun: false,
            ended: false,
            gear: get_gear_with_seed(seed),
            masks: select_masks(AVERAGE, Normalization::Level1),
        }
    }

    /// The next chunk, or `None` at the end of the input. Dropping the future loses nothing: the next call goes on where it was.
    pub async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        while !self.ended && self.buffer.len() - self.start < MAX {
            if self.buffer.len() == CAPACITY {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            self.buffer.reserve_exact(CAPACITY - self.buffer.len());
            let room = READ.min(CAPACITY - self.buffer.len());
            let mut window = (&mut self.input).take(room as u64);
            if window.read_buf(&mut self.buffer).await? == 0 {
                self.ended = true;
            }
        }
        let rest = &self.buffer[self.start..];
        if rest.is_empty() {
            return Ok(None);
        }
        let (small, large) = self.masks;
        let (gear, gear_shifted) = &self.gear;
        let (_, length) = cut_gear(rest, MIN, AVERAGE, MAX, small, large, small << 1, large << 1, gear, gear_shifted);
        let length = if self.begun { length } else { length.min(HEAD) };
        self.begun = true;
        let chunk = rest[..length].to_vec();
        self.start += length;
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Bytes that anybody can make again: SHA-256 of a counter, chained.
    fn sample(len: usize) -> Vec<u8> {
        (0_u64..).flat_map(|i| Sha256::digest(i.to_le_bytes())).take(len).collect()
    }

    /// Gives its bytes in pieces of the sizes given, over and over.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: Vec<usize>,
        turn: usize,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            out: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let size = self.sizes[self.turn % self.sizes.len()].min(self.bytes.len()).min(out.remaining());
            let (now, later) = self.bytes.split_at(size);
            out.put_slice(now);
            self.bytes = later;
            self.turn += 1;
            std::task::Poll::Ready(Ok(()))
        }
    }

    fn lengths(bytes: &[u8], sizes: Vec<usize>, seed: u64) -> Vec<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let mut chunker = Chunker::new(Pieces { bytes, sizes, turn: 0 }, seed);
            let mut lengths = Vec::new();
            let mut position = 0;
            while let Some(chunk) = chunker.next().await.expect("no input error") {
                assert_eq!(chunk, bytes[position..position + chunk.len()]);
                position += chunk.len();
                lengths.push(chunk.len());
            }
            assert_eq!(position, bytes.len());
            lengths
        })
    }

    #[test]
    fn borders_are_pinned() {
        let bytes = sample(20 << 20);
        let golden = include_str!("../../tests/golden/chunk_borders.txt");
        let now =
            |seed| lengths(&bytes, vec![READ], seed).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let text = format!("0: {}\n3da3358b4dc173: {}\n", now(0), now(0x3DA3358B4DC173));
        assert_eq!(text, golden);
    }

    #[test]
    fn borders_do_not_depend_on_how_the_input_arrives() {
        let bytes = sample(9 << 20);
        let expected = lengths(&bytes, vec![READ], 7);
        let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
        let sizes = proptest::collection::vec(1_usize..300_000, 1..5);
        runner
            .run(&(sizes, 0_usize..=9 << 20), |(sizes, cut)| {
                prop_assert_eq!(&lengths(&bytes, sizes.clone(), 7), &expected);
                let shorter = lengths(&bytes[..cut], sizes, 7);
                // Cutting the end off changes the last chunk only.
                let same = shorter.len().saturating_sub(1).min(expected.len());
                prop_assert_eq!(&shorter[..same], &expected[..same]);
                Ok(())
            })
            .expect("holds");
    }

    #[test]
    fn chunks_keep_their_limits() {
        for lengths in [lengths(&sample(30 << 20), vec![READ], 1), lengths(&vec![0; 30 << 20], vec![READ], 1)] {
            assert!(lengths.iter().all(|length| *length <= MAX));
            assert_eq!(lengths[0], HEAD);
            assert!(lengths[1..lengths.len() - 1].iter().all(|length| *length >= MIN));
        }
        assert!(lengths(b"", vec![1], 1).is_empty());
        assert_eq!(lengths(&[0; HEAD], vec![1], 1), [HEAD]);
    }
}
