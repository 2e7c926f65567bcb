//! Where a stream is cut into chunks: content-defined borders, after a short first chunk ([`HEAD`]).
//!
//! FastCDC (the borders of version 2020 of the `fastcdc` crate, normalisation level 1), seeded by the repository's polynomial. The crate
//! wants a whole largest chunk before it looks for a border; [`Cutter`] looks at each piece as it comes, while the processor still has
//! it in its cache. The borders are part of the stored format's economy, not of its readability: other borders would only store
//! everything once more. They are pinned by a golden test and compared with the crate's.

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};

/// The first chunk of a stream that is longer than this: 4 KiB. Formats tell the time of their making in their first bytes (pg_dump's
/// archive does), which would otherwise make the whole first chunk a new one in every backup.
pub const HEAD: usize = 4 << 10;
/// Smallest chunk but the first and the last one of a stream or a part: 512 KiB, restic's own minimum.
pub const MIN: usize = 512 << 10;
/// What the borders aim at: 1 MiB, as in restic. Smaller ones would find more duplicates and cost more index.
pub const AVERAGE: usize = 1 << 20;
/// Largest chunk: 8 MiB, as in restic.
pub const MAX: usize = 8 << 20;

type Gear = Box<[u64; 256]>;

/// Finds the end of a chunk that comes in pieces, then of the next one.
pub struct Cutter {
    gear: Gear,
    gear_shifted: Gear,
    small: u64,
    large: u64,
    hash: u64,
    /// Bytes of the chunk that need no second look.
    seen: usize,
}

impl Cutter {
    /// A cutter with the borders of this seed.
    pub fn new(seed: u64) -> Self {
        let (gear, gear_shifted) = get_gear_with_seed(seed);
        let table = |gear: &[u64]| {
            let mut table = Box::new([0; 256]);
            table.copy_from_slice(gear);
            table
        };
        let (small, large) = select_masks(AVERAGE, Normalization::Level1);
        let (gear, gear_shifted) = (table(&gear), table(&gear_shifted));
        Self { gear, gear_shifted, small, large, hash: 0, seen: MIN }
    }

    /// Where the chunk ends that begins with these bytes, or `None` when more of it must be seen. Each call gives all bytes that came so
    /// far. After a border was found the next call is about the next chunk.
    pub fn find(&mut self, chunk: &[u8]) -> Option<usize> {
        let found = self
            .scan(chunk, AVERAGE, self.small)
            .or_else(|| self.scan(chunk, MAX, self.large))
            .or_else(|| (chunk.len() >= MAX).then_some(MAX));
        if found.is_some() {
            self.restart();
        }
        found
    }

    /// The next call is about another chunk.
    pub fn restart(&mut self) {
        (self.hash, self.seen) = (0, MIN);
    }

    /// Looks at pairs of bytes, as the crate does, up to `limit`.
    fn scan(&mut self, chunk: &[u8], limit: usize, mask: u64) -> Option<usize> {
        let (gear, gear_shifted, mask_shifted) = (&*self.gear, &*self.gear_shifted, mask << 1);
        let rest = chunk.get(self.seen..chunk.len().min(limit))?;
        let mut hash = self.hash;
        for (pair, at) in rest.chunks_exact(2).zip((self.seen..).step_by(2)) {
            hash = (hash << 2).wrapping_add(gear_shifted[usize::from(pair[0])]);
            if hash & mask_shifted == 0 {
                return Some(at);
            }
            hash = hash.wrapping_add(gear[usize::from(pair[1])]);
            if hash & mask == 0 {
                return Some(at + 1);
            }
        }
        self.hash = hash;
        self.seen += rest.len() & !1;
        None
    }
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::cut_gear;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Bytes that anybody can make again: SHA-256 of a counter, chained.
    fn sample(len: usize) -> Vec<u8> {
        (0_u64..).flat_map(|i| Sha256::digest(i.to_le_bytes())).take(len).collect()
    }

    /// The lengths of chunks of bytes that arrive in pieces of these sizes, over and over. The first chunk is cut by its length alone.
    fn lengths(bytes: &[u8], sizes: &[usize], seed: u64) -> Vec<usize> {
        let mut cutter = Cutter::new(seed);
        let (mut lengths, mut start, mut arrived) = (Vec::new(), 0, 0);
        if bytes.len() > HEAD {
            (start, arrived) = (HEAD, HEAD);
            lengths.push(HEAD);
        }
        for size in sizes.iter().cycle() {
            while let Some(length) = cutter.find(&bytes[start..arrived]) {
                lengths.push(length);
                start += length;
            }
            if arrived == bytes.len() {
                break;
            }
            arrived = (arrived + size).min(bytes.len());
        }
        if start < bytes.len() {
            lengths.push(bytes.len() - start);
        }
        lengths
    }

    /// The same by the crate.
    fn lengths_of_the_crate(bytes: &[u8], seed: u64) -> Vec<usize> {
        let (gear, shifted) = get_gear_with_seed(seed);
        let (small, large) = select_masks(AVERAGE, Normalization::Level1);
        let (mut lengths, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let length = match lengths.len() {
                0 => rest.len().min(HEAD),
                _ => cut_gear(rest, MIN, AVERAGE, MAX, small, large, small << 1, large << 1, &gear, &shifted).1,
            };
            lengths.push(length);
            rest = &rest[length..];
        }
        lengths
    }

    #[test]
    fn borders_are_pinned() {
        let bytes = sample(20 << 20);
        let golden = include_str!("../../tests/golden/chunk_borders.txt");
        let now =
            |seed| lengths(&bytes, &[1 << 20], seed).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let text = format!("0: {}\n3da3358b4dc173: {}\n", now(0), now(0x3DA3358B4DC173));
        assert_eq!(text, golden);
    }

    #[test]
    fn borders_are_those_of_the_crate_however_the_bytes_arrive() {
        let bytes = sample(9 << 20);
        let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
        let sizes = proptest::collection::vec(1_usize..300_000, 1..5);
        runner
            .run(&(sizes, 0_usize..=9 << 20, any::<u64>()), |(sizes, cut, seed)| {
                prop_assert_eq!(lengths(&bytes[..cut], &sizes, seed), lengths_of_the_crate(&bytes[..cut], seed));
                Ok(())
            })
            .expect("holds");
        let zeros = vec![0; 20 << 20];
        assert_eq!(lengths(&zeros, &[70_001], 1), lengths_of_the_crate(&zeros, 1));
    }

    #[test]
    fn chunks_keep_their_limits() {
        for lengths in [lengths(&sample(30 << 20), &[1 << 20], 1), lengths(&vec![0; 30 << 20], &[1 << 20], 1)] {
            assert!(lengths.iter().all(|length| *length <= MAX));
            assert_eq!(lengths[0], HEAD);
            assert!(lengths[1..lengths.len() - 1].iter().all(|length| *length >= MIN));
        }
        assert!(lengths(b"", &[1], 1).is_empty());
        assert_eq!(lengths(&[0; HEAD], &[1], 1), [HEAD]);
    }
}
