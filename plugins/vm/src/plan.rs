//! Which pieces of a disk are read, which are holes, and which are taken over from an earlier point.
//!
//! A chunk is taken over if and only if all of it is unchanged, the earlier image had a chunk of the same place and length, and the vault
//! still has that chunk for sure. Of every other chunk the allocated parts are read.

use std::ops::Range;

use vaultferry_vault::writer::IMAGE_CHUNK;

const CHUNK: u64 = IMAGE_CHUNK as u64;

/// A piece of a disk. Pieces follow each other without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes to read.
    Data(Range<u64>),
    /// So many zeros.
    Hole(u64),
    /// Chunks of the earlier point, by their numbers.
    Same(Range<u64>),
}

/// What an earlier point has of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Earlier<'a> {
    /// Bytes of its image.
    pub size: u64,
    /// What may differ from it.
    pub changes: &'a [Range<u64>],
}

/// The pieces of a disk of `size` bytes. `allocated` tells what is no hole; `is_known` whether the vault has the earlier image's chunk of
/// that number, whole. Without `earlier` everything that is allocated is read.
pub fn pieces(
    size: u64,
    allocated: &[Range<u64>],
    earlier: Option<Earlier<'_>>,
    mut is_known: impl FnMut(u64) -> bool,
) -> Vec<Piece> {
    let allocated = normal(allocated, size);
    let Some(earlier) = earlier else {
        let mut pieces = Vec::new();
        read(0..size, &mut allocated.as_slice(), &mut pieces);
        return pieces;
    };
    let changes = normal(earlier.changes, size);
    let (mut allocated, mut changes) = (allocated.as_slice(), changes.as_slice());
    let (mut pieces, mut same, mut read_from) = (Vec::new(), None::<Range<u64>>, 0);
    for number in 0..size.div_ceil(CHUNK) {
        let (start, end) = (number * CHUNK, size.min((number + 1) * CHUNK));
        while changes.first().is_some_and(|change| change.end <= start) {
            changes = &changes[1..];
        }
        let is_changed = changes.first().is_some_and(|change| change.start < end);
        // The last chunk of an image is as long as what is left.
        let is_there = end <= earlier.size && (end - start == CHUNK || size == earlier.size);
        if is_changed || !is_there || !is_known(number) {
            pieces.extend(same.take().map(Piece::Same));
            continue;
        }
        match &mut same {
            Some(chunks) => chunks.end += 1,
            None => {
                read(read_from..start, &mut allocated, &mut pieces);
                same = Some(number..number + 1);
            }
        }
        read_from = end;
    }
    pieces.extend(same.map(Piece::Same));
    read(read_from..size, &mut allocated, &mut pieces);
    pieces
}

/// The pieces of `range`, all of which is read or a hole. `allocated` loses what lies before the range's end.
fn read(range: Range<u64>, allocated: &mut &[Range<u64>], pieces: &mut Vec<Piece>) {
    let mut at = range.start;
    while at < range.end {
        while allocated.first().is_some_and(|extent| extent.end <= at) {
            *allocated = &allocated[1..];
        }
        let (start, end) = match allocated.first() {
            Some(extent) => (extent.start.clamp(at, range.end), extent.end.clamp(at, range.end)),
            None => (range.end, range.end),
        };
        if at < start {
            pieces.push(Piece::Hole(start - at));
        }
        if start < end {
            pieces.push(Piece::Data(start..end));
        }
        at = end.max(start);
    }
}

/// Sorted, disjoint, joined where they touch, and within `size` bytes.
pub fn normal(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.iter().map(|range| range.start.min(size)..range.end.min(size)).collect();
    sorted.retain(|range| range.start < range.end);
    sorted.sort_by_key(|range| range.start);
    let mut normal: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match normal.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => normal.push(range),
        }
    }
    normal
}

/// Bytes of pieces that are read, and of those that are taken over, of a disk of `size` bytes.
pub fn figures(pieces: &[Piece], size: u64) -> (u64, u64) {
    let (mut read, mut same) = (0, 0);
    for piece in pieces {
        match piece {
            Piece::Data(range) => read += range.end - range.start,
            Piece::Hole(_) => {}
            Piece::Same(chunks) => same += size.min(chunks.end * CHUNK) - chunks.start * CHUNK,
        }
    }
    (read, same)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each 64 KiB of the disk is: the same words as a plan, found the slow way.
    const BLOCK: u64 = 64 << 10;

    fn blocks(ranges: &[Range<u64>], size: u64) -> Vec<bool> {
        let within = |block: u64| {
            let (start, end) = (block * BLOCK, ((block + 1) * BLOCK).min(size));
            ranges.iter().any(|range| range.start < end && start < range.end)
        };
        (0..size.div_ceil(BLOCK)).map(within).collect()
    }

    fn ranges(count: usize, size: u64) -> impl Strategy<Value = Vec<Range<u64>>> {
        let blocks = size.div_ceil(BLOCK);
        let one = (0..blocks, 1..40_u64).prop_map(|(from, length)| from * BLOCK..(from + length) * BLOCK);
        prop::collection::vec(one, 0..count)
    }

    /// Sizes of the disk and of the earlier image, what is allocated, what has changed, and which chunks are known.
    type Case = (u64, u64, Vec<Range<u64>>, Vec<Range<u64>>, Vec<bool>);

    fn cases() -> impl Strategy<Value = Case> {
        let sizes = (1..6 * CHUNK, prop_oneof![Just(0_i64), -(CHUNK as i64)..CHUNK as i64]);
        sizes.prop_flat_map(|(size, difference)| {
            let earlier = size.saturating_add_signed(difference).max(1);
            let known = prop::collection::vec(prop::bool::weighted(0.8), 6);
            (Just(size), Just(earlier), ranges(8, size), ranges(4, size), known)
        })
    }

    proptest! {
        #[test]
        fn pieces_cover_the_disk_once_and_take_over_only_what_is_sure((size, earlier, allocated, changes, known) in cases()) {
            let before = Earlier { size: earlier, changes: &changes };
            let planned = pieces(size, &allocated, Some(before), |number| known[number as usize]);
            let (data, changed) = (blocks(&allocated, size), blocks(&changes, size));
            let (mut at, mut same_chunks) = (0, 0);
            for piece in &planned {
                let range = match piece {
                    Piece::Data(range) => {
                        prop_assert_eq!(range.start, at);
                        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                            prop_assert!(data[block as usize], "block {} is a hole and read", block);
                        }
                        range.clone()
                    }
                    Piece::Hole(length) => {
                        let range = at..at + length;
                        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                            prop_assert!(!data[block as usize], "block {} is data and left out", block);
                        }
                        range
                    }
                    Piece::Same(chunks) => {
                        prop_assert_eq!(chunks.start * CHUNK, at);
                        same_chunks += chunks.end - chunks.start;
                        let range = at..size.min(chunks.end * CHUNK);
                        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                            prop_assert!(!changed[block as usize], "block {} has changed", block);
                        }
                        for number in chunks.clone() {
                            prop_assert!(known[number as usize], "chunk {} is not known", number);
                            let end = (number + 1) * CHUNK;
                            prop_assert!(end <= earlier.min(size) || (earlier == size), "chunk {} has another length", number);
                        }
                        range
                    }
                };
                prop_assert!(!range.is_empty());
                at = range.end;
            }
            prop_assert_eq!(at, size);
            // And everything that is sure is taken over.
            let sure = (0..size.div_ceil(CHUNK)).filter(|number| {
                let (start, end) = (number * CHUNK, size.min((number + 1) * CHUNK));
                let unchanged = (start / BLOCK..end.div_ceil(BLOCK)).all(|block| !changed[block as usize]);
                unchanged && known[*number as usize] && end <= earlier && (end - start == CHUNK || size == earlier)
            });
            prop_assert_eq!(same_chunks, sure.count() as u64);
            let (read, same) = figures(&planned, size);
            prop_assert!(read + same <= size);
        }

        #[test]
        fn without_an_earlier_point_all_that_is_allocated_is_read((size, _, allocated, _, _) in cases()) {
            let planned = pieces(size, &allocated, None, |_| true);
            let bytes: u64 = normal(&allocated, size).iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(figures(&planned, size), (bytes, 0));
        }
    }

    #[test]
    fn one_changed_byte_reads_one_chunk() {
        let size = 10 * CHUNK + 5;
        let (all, change) = (0..size, 3 * CHUNK + 7..3 * CHUNK + 8);
        let earlier = Earlier { size, changes: std::slice::from_ref(&change) };
        let planned = pieces(size, std::slice::from_ref(&all), Some(earlier), |_| true);
        assert_eq!(planned, [Piece::Same(0..3), Piece::Data(3 * CHUNK..4 * CHUNK), Piece::Same(4..11)]);
        assert_eq!(figures(&planned, size), (CHUNK, size - CHUNK));
        assert_eq!(pieces(0, &[], None, |_| true), []);
    }
}
