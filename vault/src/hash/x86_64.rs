//! SHA-256 by the processor's own instructions, for one message or for several at once. All unsafe code of [`super`] is here: the one call
//! of functions that are compiled for these instructions.
//!
//! Two of the 64 rounds are one `sha256rnds2`, which waits for the one before it; a second message's rounds take place in that time.
//! The instructions keep the eight words of the state as `abef` and `cdgh`, the first letter in the highest place.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

/// What SHA-256 works on at once.
const BLOCK: usize = 64;
type Block = [u8; BLOCK];

/// The first 32 bits of the fractional parts of the square roots of the first eight primes (FIPS 180-4, 5.3.3).
const FIRST: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2), four rounds to a line.
const ROUNDS: [[u32; 4]; 16] = [
    [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5],
    [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
    [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3],
    [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
    [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc],
    [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
    [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7],
    [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
    [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13],
    [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
    [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3],
    [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
    [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5],
    [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
    [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208],
    [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
];

/// Hashes the pieces and hands out each hash with the number of its piece, in no order. `false`, and nothing done, where the processor has no
/// such instructions.
pub(super) fn each(pieces: &[&[u8]], done: impl FnMut(usize, [u8; 32])) -> bool {
    // The standard library asks the processor once and keeps the answer.
    let has_them = is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("sse2")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    if has_them {
        // SAFETY: the processor has all that `hash_each` is compiled for, as was asked just above. That is all it needs: it takes slices.
        unsafe { hash_each(pieces, done) };
    }
    has_them
}

/// Two pieces are on their way at any time. When the shorter has no whole block left, the next piece takes its place.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn hash_each(pieces: &[&[u8]], mut done: impl FnMut(usize, [u8; 32])) {
    let mut waiting = pieces.iter().enumerate().map(|(number, piece)| Lane::new(number, piece));
    let Some(mut a) = waiting.next() else { return };
    for mut b in waiting {
        let common = a.blocks.len().min(b.blocks.len());
        let mut states = [a.state, b.state];
        compress(&mut states, [&a.blocks[..common], &b.blocks[..common]]);
        [a.state, b.state] = states;
        (a.blocks, b.blocks) = (&a.blocks[common..], &b.blocks[common..]);
        if a.blocks.is_empty() {
            std::mem::swap(&mut a, &mut b);
        }
        done(b.number, b.finish());
    }
    done(a.number, a.finish());
}

/// A piece on its way.
struct Lane<'a> {
    number: usize,
    state: State,
    /// The whole blocks that are not in the state yet.
    blocks: &'a [Block],
    /// What is behind them and fills none.
    end: &'a [u8],
    /// Of the whole piece, in bytes.
    length: u64,
}

impl<'a> Lane<'a> {
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn new(number: usize, piece: &'a [u8]) -> Self {
        let (blocks, end) = piece.as_chunks();
        Self { number, state: State::first(), blocks, end, length: piece.len() as u64 }
    }

    /// Hashes what is left, and the padding: the bit behind the message, and its length in bits in the last eight bytes of a block.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn finish(&self) -> [u8; 32] {
        let mut padded = [0_u8; 2 * BLOCK];
        padded[..self.end.len()].copy_from_slice(self.end);
        padded[self.end.len()] = 0x80;
        let padded_length = if self.end.len() + 1 + 8 <= BLOCK { BLOCK } else { 2 * BLOCK };
        padded[padded_length - 8..padded_length].copy_from_slice(&(self.length << 3).to_be_bytes());
        let mut states = [self.state];
        compress(&mut states, [self.blocks]);
        compress(&mut states, [padded[..padded_length].as_chunks().0]);
        states[0].digest()
    }
}

#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

impl State {
    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn first() -> Self {
        let [a, b, c, d, e, f, g, h] = FIRST.map(u32::cast_signed);
        Self { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
    }

    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn digest(self) -> [u8; 32] {
        let (abef, cdgh) = (self.abef, self.cdgh);
        let words = [
            _mm_extract_epi32::<3>(abef),
            _mm_extract_epi32::<2>(abef),
            _mm_extract_epi32::<3>(cdgh),
            _mm_extract_epi32::<2>(cdgh),
            _mm_extract_epi32::<1>(abef),
            _mm_extract_epi32::<0>(abef),
            _mm_extract_epi32::<1>(cdgh),
            _mm_extract_epi32::<0>(cdgh),
        ];
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

/// Takes each message's blocks into its state, side by side. All have as many blocks; what one has more than another is left out.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress<const N: usize>(states: &mut [State; N], blocks: [&[Block]; N]) {
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    let blocks = blocks.map(|blocks| &blocks[..count]);
    let mut now = *states;
    for at in 0..count {
        let before = now;
        // The 16 words of the schedule that the next ones are made of, four in each.
        let mut words = blocks.map(|blocks| load(&blocks[at]));
        for i in 0..4 {
            for n in 0..N {
                four_rounds(&mut now[n], words[n][i], ROUNDS[i]);
            }
        }
        for sixteen in 1..4 {
            for i in 0..4 {
                for n in 0..N {
                    let next =
                        schedule(words[n][i], words[n][(i + 1) % 4], words[n][(i + 2) % 4], words[n][(i + 3) % 4]);
                    words[n][i] = next;
                    four_rounds(&mut now[n], next, ROUNDS[4 * sixteen + i]);
                }
            }
        }
        for (now, before) in now.iter_mut().zip(before) {
            now.abef = _mm_add_epi32(now.abef, before.abef);
            now.cdgh = _mm_add_epi32(now.cdgh, before.cdgh);
        }
    }
    *states = now;
}

/// The block's words, which it has with the highest byte first.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn load(block: &Block) -> [__m128i; 4] {
    let turned = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let (halves, _) = block.as_chunks::<8>();
    let half = |i: usize| i64::from_le_bytes(halves[i]);
    [0, 1, 2, 3].map(|i| _mm_shuffle_epi8(_mm_set_epi64x(half(2 * i + 1), half(2 * i)), turned))
}

/// The next four words of the schedule, from the last sixteen.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn schedule(w0: __m128i, w4: __m128i, w8: __m128i, w12: __m128i) -> __m128i {
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w4), _mm_alignr_epi8::<4>(w12, w8));
    _mm_sha256msg2_epu32(sum, w12)
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn four_rounds(state: &mut State, words: __m128i, constants: [u32; 4]) {
    let [k0, k1, k2, k3] = constants.map(u32::cast_signed);
    let sum = _mm_add_epi32(words, _mm_set_epi32(k3, k2, k1, k0));
    // After two rounds what was `abef` is `cdgh`: each takes the other's place, and after two more its own again.
    state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, sum);
    state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32::<0x0e>(sum));
}
