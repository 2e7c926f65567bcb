//! From sealed ranges of packs to plain bytes: read, open in place, decompress, hash.
//!
//! The blobs of a range are hashed when all of them are open, two at a time ([`hash::each`]). Each is still judged for itself, and nothing
//! is handed out before all are.
//!
//! Memory: the plain bytes of a range lie in one buffer, which comes back to the [`Pool`] when the last reader has dropped its piece, so
//! that gigabytes pass through a few buffers instead of as many fresh pages. A small range that finds none there takes no more than it needs.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;

use super::ranges::{RAW_MAX, Range, Wanted, raw_length};
use crate::blocking;
use crate::error::Error;
use crate::hash;
use crate::id::Id;
use crate::repository::Repository;
use crate::repository::crypto::{OVERHEAD, SealKey};
use crate::repository::pack::PackedBlob;

/// The largest chunk that restic's format knows of in practice; a claim of more is damage, and would cost memory.
const MAX_BLOB: usize = 64 << 20;
/// Idle buffers of [`RAW_MAX`] bytes that are kept for the next range.
const IDLE_BUFFERS: usize = 3;
/// What takes less gets a buffer of its own size: most trees have some KiB, and a check reads thousands of them, each with a pool of its own.
const SMALL: usize = 256 << 10;

/// Buffers of [`RAW_MAX`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    fn take(self: &Arc<Self>, length: usize) -> Pooled {
        let reused = if length <= RAW_MAX { self.idle().pop() } else { None };
        let fresh = if length < SMALL { length } else { length.max(RAW_MAX) };
        let bytes = reused.unwrap_or_else(|| vec![0; fresh]);
        Pooled { bytes, pool: Arc::clone(self) }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its pool.
struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut idle = self.pool.idle();
        if self.bytes.len() == RAW_MAX && idle.len() < IDLE_BUFFERS {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// The sealed bytes of a range. A pack that is missing or too short is [`Error::Damaged`], one that is archived is
/// [`crate::store::Error::Archived`].
pub(crate) async fn fetch(repository: &Repository, range: &Range) -> Result<Bytes, Error> {
    repository.pack_range(&range.pack, range.start.into()..range.end.into()).await
}

/// Reads a range and hands out its plain bytes in order, in as few pieces as can be. `workers` limits how many ranges are decoded at
/// once.
pub(crate) async fn read(
    repository: Arc<Repository>,
    range: Range,
    pool: Arc<Pool>,
    workers: Arc<Semaphore>,
) -> Result<Vec<Bytes>, Error> {
    let sealed = fetch(&repository, &range).await?;
    let permit = workers.acquire_owned().await.map_err(Error::internal)?;
    let key = repository.key().clone();
    blocking::run(move || {
        let _permit = permit;
        decode(&key, sealed, &range, &pool)
    })
    .await
}

fn decode(key: &SealKey, sealed: Bytes, range: &Range, pool: &Arc<Pool>) -> Result<Vec<Bytes>, Error> {
    let blobs = sealed_blobs(range);
    // Bytes that nobody else holds are opened where they are.
    let mut sealed = sealed.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let mut plain = pool.take(blobs.iter().map(Sealed::room).sum());
    let wrong = decode_blobs(key, &mut sealed, &blobs, &mut plain.bytes);
    if let Some((id, detail)) = wrong.into_iter().next() {
        return Err(Error::damaged(format!("pack {}", range.pack), format!("blob {id}: {detail}")));
    }
    let (mut at, mut cuts) = (0, Vec::new());
    for (blob, wanted) in blobs.iter().zip(&range.blobs) {
        let end = at + blob.room();
        if wanted.times > 1 {
            cuts.push((at, end, wanted.times));
        }
        at = end;
    }
    Ok(pieces(Bytes::from_owner(plain), at, &cuts))
}

/// `bytes[..end]`, with the blobs that are wanted several times repeated.
fn pieces(bytes: Bytes, end: usize, cuts: &[(usize, usize, u32)]) -> Vec<Bytes> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    for (from, to, times) in cuts {
        if at < *from {
            pieces.push(bytes.slice(at..*from));
        }
        let repeated = bytes.slice(*from..*to);
        pieces.extend((0..*times).map(|_| repeated.clone()));
        at = *to;
    }
    if at < end {
        pieces.push(bytes.slice(at..end));
    }
    pieces
}

/// A blob in sealed bytes.
struct Sealed {
    id: Id,
    /// Where it lies in them.
    from: usize,
    length: usize,
    compressed: bool,
    /// Bytes of its plaintext, as the index or the pack's header claims.
    raw_length: usize,
}

impl Sealed {
    /// Bytes that its plaintext takes in memory: a claim that is too large takes none.
    fn room(&self) -> usize {
        if self.raw_length > MAX_BLOB { 0 } else { self.raw_length }
    }

    /// Opens and decompresses the blob into `output`, which has [`Sealed::room`] bytes. Its part of `sealed` is spoiled.
    fn open(&self, key: &SealKey, sealed: &mut [u8], output: &mut [u8]) -> Result<(), String> {
        if self.raw_length > MAX_BLOB {
            return Err("it is too large".to_owned());
        }
        let sealed = sealed.get_mut(self.from..self.from.saturating_add(self.length));
        let sealed = sealed.ok_or_else(|| "it reaches past the pack's end".to_owned())?;
        let opened = key.open_in_place(sealed).map_err(|error| error.to_string())?;
        if self.compressed {
            let length =
                blocking::with_decompressor(|decompressor| decompressor.decompress_to_buffer(opened, &mut *output))
                    .map_err(|error| error.to_string())?;
            if length != output.len() {
                return Err(format!("it has {length} bytes instead of {}", output.len()));
            }
        } else if opened.len() == output.len() {
            output.copy_from_slice(opened);
        } else {
            return Err("its length is not what the index says".to_owned());
        }
        Ok(())
    }
}

/// The range's blobs, as they lie in its sealed bytes.
fn sealed_blobs(range: &Range) -> Vec<Sealed> {
    let blob = |Wanted { id, place, .. }: &Wanted| Sealed {
        id: *id,
        from: (place.offset - range.start) as usize,
        length: place.length as usize,
        compressed: place.raw_length().is_some(),
        raw_length: raw_length(place),
    };
    range.blobs.iter().map(blob).collect()
}

/// Opens and decompresses the blobs one behind the other into `output`, hashes them, and gives back what is wrong with which, in their
/// order. `sealed` is spoiled.
fn decode_blobs(key: &SealKey, sealed: &mut [u8], blobs: &[Sealed], output: &mut [u8]) -> Vec<(Id, String)> {
    let (mut wrong, mut opened, mut rest) = (vec![None; blobs.len()], Vec::with_capacity(blobs.len()), output);
    for (number, blob) in blobs.iter().enumerate() {
        let (plain, behind) = rest.split_at_mut(blob.room());
        rest = behind;
        match blob.open(key, sealed, plain) {
            Ok(()) => opened.push((number, &*plain)),
            Err(detail) => wrong[number] = Some(detail),
        }
    }
    let plain: Vec<&[u8]> = opened.iter().map(|(_, plain)| *plain).collect();
    for ((number, _), id) in opened.iter().zip(hash::each(&plain)) {
        if id != blobs[*number].id {
            wrong[*number] = Some("its bytes are not those that its id stands for".to_owned());
        }
    }
    blobs.iter().zip(wrong).filter_map(|(blob, wrong)| Some((blob.id, wrong?))).collect()
}

/// Checks every blob of the range and gives back what is wrong with which. Nothing is handed out.
pub(crate) fn verify(key: &SealKey, sealed: Bytes, range: &Range, pool: &Arc<Pool>) -> Vec<(Id, String)> {
    verify_blobs(key, sealed, &sealed_blobs(range), pool)
}

/// Checks every blob of a whole pack, as its header tells them.
pub(crate) fn verify_pack(key: &SealKey, pack: Bytes, blobs: &[PackedBlob], pool: &Arc<Pool>) -> Vec<(Id, String)> {
    let blob = |blob: &PackedBlob| Sealed {
        id: blob.id,
        from: blob.offset as usize,
        length: blob.length as usize,
        compressed: blob.raw_length.is_some(),
        raw_length: blob.raw_length.unwrap_or(blob.length.saturating_sub(OVERHEAD as u32)) as usize,
    };
    verify_blobs(key, pack, &blobs.iter().map(blob).collect::<Vec<_>>(), pool)
}

/// As many blobs at a time as have room in one buffer of the pool, or one that has not.
fn verify_blobs(key: &SealKey, sealed: Bytes, mut blobs: &[Sealed], pool: &Arc<Pool>) -> Vec<(Id, String)> {
    let mut sealed = sealed.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let mut wrong = Vec::new();
    while !blobs.is_empty() {
        let (mut count, mut room) = (1, blobs[0].room());
        while let Some(next) = blobs.get(count)
            && room + next.room() <= RAW_MAX
        {
            count += 1;
            room += next.room();
        }
        let (now, later) = blobs.split_at(count);
        let mut plain = pool.take(room);
        wrong.extend(decode_blobs(key, &mut sealed, now, &mut plain.bytes));
        blobs = later;
    }
    wrong
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::reader::ranges::Ranges;
    use crate::repository::index::Index;
    use crate::repository::pack::BlobKind;

    const NOT_ITS_BYTES: &str = "its bytes are not those that its id stands for";

    fn key() -> SealKey {
        SealKey::generate().expect("random")
    }

    /// A blob that is stored compressed when `compressed`. What is sealed is `stored`, whatever the id stands for.
    fn add(pack: &mut Vec<u8>, key: &SealKey, id: Id, stored: &[u8], compressed: bool) -> PackedBlob {
        let content = if compressed { zstd::bulk::compress(stored, 1).expect("compresses") } else { stored.to_vec() };
        let sealed = key.seal(&content).expect("sealed");
        let (offset, length) = (pack.len() as u32, sealed.len() as u32);
        pack.extend(sealed);
        let raw_length = compressed.then_some(stored.len() as u32);
        PackedBlob { id, kind: BlobKind::Data, offset, length, raw_length }
    }

    /// The range that all the blobs make.
    fn range(blobs: &[PackedBlob]) -> Range {
        let mut index = Index::default();
        index.add_pack(Id::of(b"pack"), blobs).expect("added");
        let mut ranges = Ranges::new(&index, blobs.iter().map(|blob| blob.id));
        let range = ranges.next().expect("one").expect("known");
        assert!(ranges.next().is_none(), "the test needs them in one range");
        range
    }

    /// What the three ways of reading say of the pack: of all blobs twice, and of the first wrong one.
    /// What is wrong with each blob, and what all of them are together.
    type Judged = (Vec<(Id, String)>, Result<Vec<u8>, String>);

    fn judge(key: &SealKey, pack: &[u8], blobs: &[PackedBlob]) -> Judged {
        let (pool, bytes, range) = (Arc::default(), || Bytes::copy_from_slice(pack), range(blobs));
        let wrong = verify_pack(key, bytes(), blobs, &pool);
        assert_eq!(verify(key, bytes(), &range, &pool), wrong);
        let read = decode(key, bytes(), &range, &pool).map(|pieces| pieces.concat());
        let read = read.map_err(|error| match error {
            Error::Damaged { detail, .. } => detail,
            other => panic!("{other:?}"),
        });
        (wrong, read)
    }

    #[test]
    fn small_ranges_take_little_and_large_ones_share_buffers() {
        let pool = Arc::<Pool>::default();
        let taken = |length: usize| pool.take(length).bytes.len();
        assert_eq!([0, 7000, SMALL - 1].map(taken), [0, 7000, SMALL - 1]);
        assert!(pool.idle().is_empty(), "what is small is not kept");
        assert_eq!((taken(RAW_MAX + 1), pool.idle().len()), (RAW_MAX + 1, 0));
        assert_eq!((taken(SMALL), pool.idle().len()), (RAW_MAX, 1));
        assert_eq!((taken(7000), pool.idle().len()), (RAW_MAX, 1), "one that is there anyway is taken");
    }

    #[test]
    fn exactly_the_blobs_that_are_wrong_are_named() {
        let seed = rand::random();
        eprintln!("seed {seed}"); // shown when the test fails
        let (mut random, key) = (rand::rngs::StdRng::seed_from_u64(seed), key());
        for count in 1..=5_usize {
            let plain: Vec<Vec<u8>> =
                (0..count).map(|_| (0..random.random_range(100..50_000)).map(|_| random.random()).collect()).collect();
            // Every set of blobs whose bytes differ by a bit from what their ids stand for, under a seal that is right.
            for set in 0..1_u32 << count {
                let (mut pack, mut blobs, mut expected) = (Vec::new(), Vec::new(), Vec::new());
                for (number, plain) in plain.iter().enumerate() {
                    let (id, mut stored) = (Id::of(plain), plain.clone());
                    if (set >> number) & 1 == 1 {
                        stored[random.random_range(0..plain.len())] ^= 1 << random.random_range(0..8);
                        expected.push((id, NOT_ITS_BYTES.to_owned()));
                    }
                    blobs.push(add(&mut pack, &key, id, &stored, random.random()));
                }
                let (wrong, read) = judge(&key, &pack, &blobs);
                assert_eq!(wrong, expected, "set {set:b} of {count}");
                let expected = match expected.first() {
                    Some((id, detail)) => Err(format!("blob {id}: {detail}")),
                    None => Ok(plain.concat()),
                };
                assert!(read == expected, "set {set:b} of {count}: {:?}", read.err());
            }
        }
    }

    #[test]
    fn the_first_of_several_kinds_of_damage_is_told_and_the_good_blobs_are_not() {
        let (key, mut pack) = (key(), Vec::new());
        let plain: Vec<Vec<u8>> = (0..5_u8).map(|number| vec![number; 1000 + usize::from(number)]).collect();
        let ids: Vec<Id> = plain.iter().map(|plain| Id::of(plain)).collect();
        let mut blobs = vec![add(&mut pack, &key, ids[0], &plain[0], true)];
        // Not its own bytes, a broken seal, and a length that is not the claimed one, with a good blob before and behind.
        blobs.push(add(&mut pack, &key, ids[1], &[9; 1001], true));
        blobs.push(add(&mut pack, &key, ids[2], &plain[2], false));
        pack[blobs[2].offset as usize + 20] ^= 1;
        blobs.push(add(&mut pack, &key, ids[3], &plain[3], true));
        blobs[3].raw_length = Some(2000);
        blobs.push(add(&mut pack, &key, ids[4], &plain[4], false));
        let (wrong, read) = judge(&key, &pack, &blobs);
        assert_eq!(wrong.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[1..4]);
        assert_eq!(wrong[0].1, NOT_ITS_BYTES);
        assert_eq!(wrong[2].1, "it has 1003 bytes instead of 2000");
        assert_eq!(read, Err(format!("blob {}: {NOT_ITS_BYTES}", ids[1])));
    }

    #[test]
    fn blobs_that_fill_more_than_a_buffer_are_checked_one_buffer_after_the_other() {
        let (key, mut pack, pool) = (key(), Vec::new(), Arc::default());
        // A buffer and a byte; exactly a buffer; more than a buffer alone; a claim that is too large; and a last one.
        let lengths = [RAW_MAX - 10, 11, RAW_MAX - 11, RAW_MAX + 1, 5, 6];
        let plain: Vec<Vec<u8>> = lengths.iter().map(|length| vec![*length as u8; *length]).collect();
        let mut blobs: Vec<PackedBlob> =
            plain.iter().map(|plain| add(&mut pack, &key, Id::of(plain), plain, true)).collect();
        assert!(verify_pack(&key, pack.clone().into(), &blobs, &pool).is_empty(), "all are right");
        blobs[4].raw_length = Some(u32::MAX);
        // The last byte of a full buffer, and the blob behind the claim.
        for number in [2, 5] {
            blobs[number].id = Id::of(b"another");
        }
        let expected = [(2, NOT_ITS_BYTES), (4, "it is too large"), (5, NOT_ITS_BYTES)];
        let expected = expected.map(|(number, detail): (usize, &str)| (blobs[number].id, detail.to_owned()));
        assert_eq!(verify_pack(&key, pack.clone().into(), &blobs, &pool), expected);
        let cut = pack.len() - 1;
        let wrong = verify_pack(&key, pack[..cut].to_vec().into(), &blobs[5..], &pool);
        assert_eq!(wrong, [(blobs[5].id, "it reaches past the pack's end".to_owned())]);
    }
}
