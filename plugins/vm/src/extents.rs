//! Where an image has data, and where two clones of one may differ: asked of the file system, no data is read.
//!
//! Invariants:
//! - Ranges are of bytes, sorted, disjoint, not empty, and neighbours are merged ([`union`], [`subtract`], [`align`] and [`coarsen`] keep that).
//! - [`allocated`] may name too much, never too little: what it leaves out reads as zeros.
//! - [`changed`] may name too much, never too little. Two places are the same when both read as zeros (a hole, or space that was reserved and
//!   never written), or when both are the same plain place of the file system: what lies at one address at one moment is one thing. Whatever
//!   is told about an extent beside that (compressed, inline, encrypted, not yet written, a flag of tomorrow) makes it changed.
//!
//! What it does not do: it does not know whether a clone is still what it was when it was taken; `provider/base.rs` does.

use std::fs::File;
use std::io;
use std::ops::Range;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::provider::kernel;

#[cfg(test)]
mod tests;

/// Of one file: 32 bytes each, so 64 MiB at most. More of them is an image that is torn into pieces of a few KiB; reading it whole is
/// no worse than that.
pub const MOST_EXTENTS: usize = 2 << 20;

/// Of one answer, see [`coarsen`].
pub const MOST_RANGES: usize = 1 << 20;

/// The last extent of the file.
pub const LAST: u32 = 0x1;
/// Reserved, and reads as zeros.
pub const UNWRITTEN: u32 = 0x800;
/// Put together by the file system for this answer.
pub const MERGED: u32 = 0x1000;
/// Other files have it too.
pub const SHARED: u32 = 0x2000;

/// A piece of a file, as FIEMAP tells it (`linux/fiemap.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiemapExtent {
    /// Where it begins in the file, in bytes.
    pub logical: u64,
    /// Where it begins in the file system, in bytes; of btrfs, in its own address space over all devices.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// `FIEMAP_EXTENT_…`.
    pub flags: u32,
}

/// All extents of a file, in order; what is between them are holes. What was written is brought to the disk first. Errors: a file
/// system that has no extents to tell, more than [`MOST_EXTENTS`], or an answer that makes no sense.
pub fn fiemap(file: &File) -> io::Result<Vec<FiemapExtent>> {
    let mut page = kernel::ExtentPage::default();
    let mut found: Vec<FiemapExtent> = Vec::new();
    let mut start = 0;
    loop {
        let count = kernel::fiemap(file, start, &mut page)?;
        for index in 0..count {
            let extent = page.extent(index);
            let end = extent.logical.checked_add(extent.length).filter(|_| extent.length > 0);
            let in_order = found.last().is_none_or(|last| last.logical + last.length <= extent.logical);
            let Some(end) = end.filter(|_| in_order) else {
                return Err(io::Error::other("the file system's list of extents is not in order"));
            };
            if found.len() == MOST_EXTENTS {
                return Err(io::Error::other(format!("it has more than {MOST_EXTENTS} extents")));
            }
            found.push(extent);
            start = end;
        }
        if count == 0 || found.last().is_some_and(|last| last.flags & LAST != 0) {
            return Ok(found);
        }
    }
}

/// Where the first `size` bytes of a file may be other than zeros, by `SEEK_DATA` and `SEEK_HOLE`; all of it where the file system
/// knows no holes, and of a device. The file must not change meanwhile. Its position is moved, and is at the beginning afterwards.
pub fn allocated(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut position = 0;
    while position < size {
        let data = match seek(file, position, Whence::SeekData) {
            // Devices, and some file systems, refuse the question itself.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                push(&mut found, position..size);
                break;
            }
            data => data?,
        };
        let Some(data) = data else { break };
        // The end of the file is a hole.
        let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(size).min(size);
        if data >= size {
            break;
        }
        if hole <= data {
            return Err(io::Error::other("the file changes while its holes are asked for"));
        }
        push(&mut found, data..hole);
        if found.len() > MOST_RANGES {
            found = coarsen(found, MOST_RANGES / 2);
        }
        position = hole;
    }
    lseek(file, 0, Whence::SeekSet)?;
    Ok(found)
}

/// `None`: there is none from here on.
fn seek(file: &File, position: u64, whence: Whence) -> io::Result<Option<u64>> {
    let position = i64::try_from(position).map_err(io::Error::other)?;
    match lseek(file, position, whence) {
        Ok(found) => u64::try_from(found).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a piece of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Zeros,
    /// The address of the piece's first byte.
    At(u64),
    /// Equal to nothing, not even to itself.
    Doubtful,
}

impl Content {
    fn of(extent: &FiemapExtent) -> Self {
        match extent.flags & !(LAST | MERGED | SHARED) {
            0 => Content::At(extent.physical),
            UNWRITTEN => Content::Zeros,
            _ => Content::Doubtful,
        }
    }

    /// So many bytes further on.
    fn after(self, bytes: u64) -> Self {
        match self {
            Content::At(address) => address.checked_add(bytes).map_or(Content::Doubtful, Content::At),
            other => other,
        }
    }
}

/// The whole of `0..size`, in order and without gaps.
fn pieces(extents: &[FiemapExtent], size: u64) -> Vec<(Range<u64>, Content)> {
    let mut pieces = Vec::with_capacity(extents.len() + 1);
    let mut position = 0;
    for extent in extents {
        let begin = extent.logical.min(size);
        let end = extent.logical.saturating_add(extent.length).min(size);
        if begin > position {
            pieces.push((position..begin, Content::Zeros));
            position = begin;
        }
        if end > position {
            // Two extents for one place: nobody knows which one holds. `fiemap` refuses such a list.
            let content = if begin < position { Content::Doubtful } else { Content::of(extent) };
            pieces.push((position..end, content));
            position = end;
        }
    }
    if position < size {
        pieces.push((position..size, Content::Zeros));
    }
    pieces
}

/// Where the first `size` bytes of two files on one file system may differ, by their extents at one moment.
pub fn changed(base: &[FiemapExtent], new: &[FiemapExtent], size: u64) -> Vec<Range<u64>> {
    let (base, new) = (pieces(base, size), pieces(new, size));
    let (mut left, mut right) = (base.iter().peekable(), new.iter().peekable());
    let mut found = Vec::new();
    let mut position = 0;
    // Both cover the same bytes, so both end at once.
    while let (Some((a, in_base)), Some((b, in_new))) = (left.peek(), right.peek()) {
        let end = a.end.min(b.end);
        let same = match (in_base.after(position - a.start), in_new.after(position - b.start)) {
            (Content::Zeros, Content::Zeros) => true,
            (Content::At(one), Content::At(other)) => one == other,
            _ => false,
        };
        if !same {
            push(&mut found, position..end);
        }
        let (a_ends, b_ends) = (a.end == end, b.end == end);
        position = end;
        if a_ends {
            left.next();
        }
        if b_ends {
            right.next();
        }
    }
    found
}

/// The same extents, told in one way only: whom else they belong to, and how they were cut into pieces for that, changes without anything
/// being moved or written.
pub fn places(extents: &[FiemapExtent]) -> Vec<FiemapExtent> {
    let mut found: Vec<FiemapExtent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let next = FiemapExtent { flags: extent.flags & !(LAST | MERGED | SHARED), ..*extent };
        match found.last_mut() {
            // Of compressed extents and the like each piece begins at the same address.
            Some(last)
                if next.flags == last.flags
                    && next.flags & !UNWRITTEN == 0
                    && last.logical.checked_add(last.length) == Some(next.logical)
                    && last.physical.checked_add(last.length) == Some(next.physical) =>
            {
                last.length = last.length.saturating_add(next.length);
            }
            _ => found.push(next),
        }
    }
    found
}

/// Adds a range that begins where the last one ends, or later.
fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= next.start => last.end = last.end.max(next.end),
        _ if next.start < next.end => ranges.push(next),
        _ => {}
    }
}

/// What is in one of them, or in both.
pub fn union(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = one.iter().chain(other).filter(|range| range.start < range.end).cloned().collect();
    all.sort_by_key(|range| range.start);
    let mut found = Vec::with_capacity(all.len());
    for range in all {
        push(&mut found, range);
    }
    found
}

/// What is in `from`, and not in `away`. Both as the module says.
pub fn subtract(from: &[Range<u64>], away: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut first = 0;
    for range in from {
        let mut position = range.start;
        // What ends before this range is of no use for the next ones either.
        while away.get(first).is_some_and(|hole| hole.end <= range.start) {
            first += 1;
        }
        for hole in away[first..].iter().take_while(|hole| hole.start < range.end) {
            if hole.start > position {
                push(&mut found, position..hole.start);
            }
            position = position.max(hole.end);
        }
        if position < range.end {
            push(&mut found, position..range.end);
        }
    }
    found
}

/// Widened outwards to multiples of `grain` (at least 1), but not over `size`.
pub fn align(ranges: &[Range<u64>], grain: u64, size: u64) -> Vec<Range<u64>> {
    let grain = grain.max(1);
    let mut found = Vec::with_capacity(ranges.len());
    for range in ranges {
        let begin = range.start / grain * grain;
        let end = range.end.div_ceil(grain).saturating_mul(grain).min(size);
        if begin < end {
            push(&mut found, begin..end);
        }
    }
    found
}

/// At most so many ranges (at least one), in which all of these are: the smallest gaps are given up.
pub fn coarsen(ranges: Vec<Range<u64>>, most: usize) -> Vec<Range<u64>> {
    let most = most.max(1);
    if ranges.len() <= most {
        return ranges;
    }
    let mut gaps: Vec<u64> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    let excess = ranges.len() - most;
    // The largest gap that has to go; smaller ones, and others of its size, go too.
    let (_, limit, _) = gaps.select_nth_unstable(excess - 1);
    let limit = *limit;
    let mut found: Vec<Range<u64>> = Vec::with_capacity(most);
    for range in ranges {
        match found.last_mut() {
            Some(last) if range.start - last.end <= limit => last.end = range.end,
            _ => found.push(range),
        }
    }
    found
}
