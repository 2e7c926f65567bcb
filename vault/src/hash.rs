//! SHA-256 of pieces that lie in memory, two at once where the processor can.
//!
//! A processor's SHA-256 instructions wait for each other within one message; a second message, side by side with it in one thread, is hashed
//! in that time. Together they take two thirds of their time (`docs/decisions/0052-two-chunks-are-hashed-at-once.md`).
//!
//! Invariants:
//! - The hashes are those of [`Id::of`], on every processor.
//! - Which processor it is decides about the time only. ARM's and older ones hash one after the other.

use std::cmp::Reverse;

use crate::id::Id;

#[cfg(target_arch = "x86_64")]
mod x86_64;

/// The ids of the pieces, in their order. Two of them are on their way at any time, the longest first, so that little is left to be hashed
/// alone.
pub(crate) fn each(pieces: &[&[u8]]) -> Vec<Id> {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|number| Reverse(pieces[*number].len()));
    let ordered: Vec<&[u8]> = order.iter().map(|number| pieces[*number]).collect();
    let mut ids = vec![Id::from_bytes([0; 32]); pieces.len()];
    hash(&ordered, |place, id| ids[order[place]] = id);
    ids
}

/// Hands out the id of each piece with its number, in no order.
fn hash(pieces: &[&[u8]], mut done: impl FnMut(usize, Id)) {
    // One alone is the library's, whose code for one is a little quicker.
    #[cfg(target_arch = "x86_64")]
    if pieces.len() > 1 && x86_64::each(pieces, |number, hash| done(number, Id::from_bytes(hash))) {
        return;
    }
    for (number, piece) in pieces.iter().enumerate() {
        done(number, Id::of(piece));
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn random(random: &mut rand::rngs::StdRng, length: usize) -> Vec<u8> {
        (0..length).map(|_| random.random()).collect()
    }

    fn pair(a: &[u8], b: &[u8]) -> [Id; 2] {
        each(&[a, b]).try_into().expect("two")
    }

    /// The library's, which [`pair`] must equal.
    fn library(a: &[u8], b: &[u8]) -> [Id; 2] {
        [Id::of(a), Id::of(b)]
    }

    #[test]
    fn the_standards_examples_have_the_standards_hashes() {
        let million = "a".repeat(1_000_000);
        // FIPS 180-4's examples, and those of NIST's "SHA-2 additional".
        let examples = [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
                "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
            ),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        for (a, a_hash) in examples {
            for (b, b_hash) in examples {
                let hashes = pair(a.as_bytes(), b.as_bytes()).map(|id| id.to_string());
                assert_eq!(hashes, [a_hash, b_hash]);
            }
        }
    }

    #[test]
    fn all_short_lengths_beside_each_other_are_hashed_as_the_library_does() {
        let seed = rand::random();
        eprintln!("seed {seed}"); // shown when the test fails
        let bytes = random(&mut rand::rngs::StdRng::seed_from_u64(seed), 2 * 301 + 300);
        for a_length in 0..=300 {
            for b_length in 0..=300 {
                // At odd places: nothing is aligned.
                let (a, b) = (&bytes[a_length..2 * a_length], &bytes[301 + b_length..301 + 2 * b_length]);
                assert_eq!(pair(a, b), library(a, b), "{a_length} beside {b_length}");
            }
        }
    }

    #[test]
    fn random_pieces_of_some_mib_are_hashed_as_the_library_does() {
        let seed = rand::random();
        eprintln!("seed {seed}"); // shown when the test fails
        let mut source = rand::rngs::StdRng::seed_from_u64(seed);
        let bytes = random(&mut source, 3 << 20);
        let mut piece = || {
            let from = source.random_range(0..bytes.len());
            &bytes[from..source.random_range(from..=bytes.len())]
        };
        for _ in 0..12 {
            let (a, b) = (piece(), piece());
            assert_eq!(pair(a, b), library(a, b), "{} beside {}", a.len(), b.len());
        }
        for count in 0..8 {
            let pieces: Vec<&[u8]> = (0..count).map(|_| piece()).collect();
            let expected: Vec<Id> = pieces.iter().map(|piece| Id::of(piece)).collect();
            assert_eq!(each(&pieces), expected, "{:?}", pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_flipped_bit_changes_the_hash_of_its_own_piece_only() {
        let seed = rand::random();
        eprintln!("seed {seed}"); // shown when the test fails
        let mut source = rand::rngs::StdRng::seed_from_u64(seed);
        // The second ends within the first: bits lie in what is hashed together, in the rest, and in both ends.
        let mut pieces = [random(&mut source, 1000), random(&mut source, 333)];
        let right = pair(&pieces[0], &pieces[1]);
        for which in [0, 1] {
            for at in 0..pieces[which].len() {
                let bit = 1 << source.random_range(0..8);
                pieces[which][at] ^= bit;
                let hashes = pair(&pieces[0], &pieces[1]);
                assert_ne!(hashes[which], right[which], "bit {bit} of byte {at} of piece {which}");
                assert_eq!(hashes[1 - which], right[1 - which], "bit {bit} of byte {at} of piece {which}");
                pieces[which][at] ^= bit;
            }
        }
    }
}
