//! Which ranges of which packs hold the wanted blobs: neighbours are read in one request, small gaps with them.

use crate::error::Error;
use crate::id::Id;
use crate::repository::crypto::OVERHEAD;
use crate::repository::index::{Index, Place};

/// Sealed bytes that are read in one piece, unless one blob is larger.
pub const RANGE_MAX: u32 = 4 << 20;
/// Plain bytes that one piece holds, unless one blob is larger: the largest chunk that our writer makes.
pub const RAW_MAX: usize = 8 << 20;
/// Bytes between two wanted blobs that are read and thrown away rather than asked for a second time: a request to a store on the
/// network costs 10 ms and more, in which that many bytes arrive.
const GAP_MAX: u32 = 256 << 10;

/// A blob that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) id: Id,
    pub(crate) place: Place,
    /// How often it is wanted in a row: a hole in a disk image is one chunk of zeros, many times.
    pub(crate) times: u32,
}

/// Blobs of one pack, in ascending order of their offsets.
#[derive(Debug)]
pub(crate) struct Range {
    pub(crate) pack: Id,
    /// The pack's number in the index.
    number: u32,
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) blobs: Vec<Wanted>,
    /// Plain bytes of all blobs, each counted once.
    pub(crate) raw: usize,
}

impl Range {
    /// A range of one blob.
    pub(crate) fn new(index: &Index, id: Id, place: Place) -> Self {
        let (start, end) = (place.offset, place.offset.saturating_add(place.length));
        let blobs = vec![Wanted { id, place, times: 1 }];
        Self { pack: index.pack_id(place.pack), number: place.pack, start, end, blobs, raw: raw_length(&place) }
    }

    /// Memory that the range takes while it is read and decoded.
    pub(crate) fn cost(&self) -> usize {
        (self.end - self.start) as usize + self.raw
    }

    /// Takes the blob in, if it lies near behind the last one and the range does not become too long.
    fn extend(&mut self, id: Id, place: Place) -> bool {
        if let Some(last) = self.blobs.last_mut()
            && last.id == id
            && let Some(times) = last.times.checked_add(1)
        {
            last.times = times;
            return true;
        }
        let end = place.offset.saturating_add(place.length);
        let fits = place.pack == self.number
            && place.offset.checked_sub(self.end).is_some_and(|gap| gap <= GAP_MAX)
            && end - self.start <= RANGE_MAX
            && self.raw + raw_length(&place) <= RAW_MAX;
        if fits {
            self.end = end;
            self.raw += raw_length(&place);
            self.blobs.push(Wanted { id, place, times: 1 });
        }
        fits
    }
}

/// Bytes of the blob's plaintext.
pub(crate) fn raw_length(place: &Place) -> usize {
    match place.raw_length() {
        Some(raw_length) => raw_length as usize,
        None => (place.length as usize).saturating_sub(OVERHEAD),
    }
}

/// Groups blobs, in the order in which they are wanted, into ranges.
pub(crate) struct Ranges<'a, I> {
    index: &'a Index,
    wanted: I,
    waiting: Option<Range>,
}

impl<'a, I: Iterator<Item = Id>> Ranges<'a, I> {
    pub(crate) fn new(index: &'a Index, wanted: I) -> Self {
        Self { index, wanted, waiting: None }
    }
}

impl<I: Iterator<Item = Id>> Iterator for Ranges<'_, I> {
    type Item = Result<Range, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        for id in self.wanted.by_ref() {
            let place = match self.index.find(&id) {
                Ok(place) => place,
                Err(error) => return Some(Err(error)),
            };
            let taken = self.waiting.as_mut().is_some_and(|range| range.extend(id, place));
            if !taken && let Some(range) = self.waiting.replace(Range::new(self.index, id, place)) {
                return Some(Ok(range));
            }
        }
        self.waiting.take().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::pack::{BlobKind, PackedBlob};

    fn index(blobs: &[(u8, u32, u32)]) -> Index {
        let blob = |id, offset, length| PackedBlob { id, kind: BlobKind::Data, offset, length, raw_length: None };
        let (mut packed, mut end) = (Vec::new(), 0);
        for (name, offset, length) in blobs {
            // A gap is a blob that nobody asks for: blobs lie side by side.
            if *offset > end {
                packed.push(blob(Id::of(&[*name, b'g']), end, offset - end));
            }
            packed.push(blob(Id::of(&[*name]), *offset, *length));
            end = offset + length;
        }
        let mut index = Index::default();
        index.add_pack(Id::of(b"pack"), &packed).expect("added");
        index
    }

    fn ranges(index: &Index, wanted: &[u8]) -> Vec<(u32, u32, Vec<u32>)> {
        let wanted = wanted.iter().map(|name| Id::of(&[*name]));
        let times = |range: &Range| range.blobs.iter().map(|blob| blob.times).collect();
        Ranges::new(index, wanted)
            .map(|range| range.expect("known"))
            .map(|range| (range.start, range.end, times(&range)))
            .collect()
    }

    #[test]
    fn neighbours_and_small_gaps_are_one_range() {
        let (small, large) = (GAP_MAX, GAP_MAX + 1);
        let index = index(&[(0, 0, 100), (1, 100, 100), (2, 200 + small, 100), (3, 300 + small + large, 100)]);
        assert_eq!(ranges(&index, &[0, 1]), [(0, 200, vec![1, 1])]);
        assert_eq!(ranges(&index, &[0, 1, 2]), [(0, 300 + small, vec![1, 1, 1])], "a small gap");
        assert_eq!(ranges(&index, &[2, 3]).len(), 2, "a large gap");
        assert_eq!(ranges(&index, &[1, 0]).len(), 2, "backwards");
        assert_eq!(ranges(&index, &[1, 1, 1, 0]), [(100, 200, vec![3]), (0, 100, vec![1])], "repeated");
    }

    #[test]
    fn ranges_are_bounded_and_unknown_blobs_are_errors() {
        let index = index(&[(0, 0, 3 << 20), (1, 3 << 20, 3 << 20), (2, 6 << 20, 20 << 20)]);
        assert_eq!(ranges(&index, &[0, 1, 2]).len(), 3);
        let mut unknown = Ranges::new(&index, [Id::of(&[0]), Id::of(b"none")].into_iter());
        assert!(unknown.next().is_some_and(|first| first.is_err()));
    }
}
