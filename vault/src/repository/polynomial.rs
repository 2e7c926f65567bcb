//! The `chunker_polynomial` of a repository's config. restic refuses a repository whose polynomial is reducible, although we cut
//! chunks with FastCDC; its value also seeds our gear table, so that chunk sizes alone do not tell what a chunk holds.

use crate::error::Error;
use crate::repository::crypto::fill_random;

/// The degree that restic uses.
const DEGREE: u32 = 53;

/// A random irreducible polynomial of degree 53 over GF(2). About one in 27 candidates is one.
pub fn generate() -> Result<u64, Error> {
    loop {
        let mut bytes = [0; 8];
        fill_random(&mut bytes)?;
        let candidate = (u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1)) | (1 << DEGREE) | 1;
        if is_irreducible(candidate) {
            return Ok(candidate);
        }
    }
}

/// Ben-Or's test: irreducible if and only if gcd(f, x^(2^i) - x) is 1 for each i up to half of the degree.
pub fn is_irreducible(f: u64) -> bool {
    if f < 2 {
        return false;
    }
    let half = degree(f) / 2;
    let mut power = 2; // x^(2^i)
    for _ in 0..half {
        power = square_mod(power, f);
        if gcd(f, power ^ 2) != 1 {
            return false;
        }
    }
    true
}

fn degree(f: u64) -> u32 {
    63 - f.leading_zeros()
}

fn remainder(mut a: u64, b: u64) -> u64 {
    while a != 0 && degree(a) >= degree(b) {
        a ^= b << (degree(a) - degree(b));
    }
    a
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, remainder(a, b));
    }
    a
}

/// a² mod f, for a of a lower degree than f.
fn square_mod(a: u64, f: u64) -> u64 {
    let top = 1_u64 << degree(f);
    let mut result = 0;
    for bit in (0..64).rev() {
        result <<= 1;
        if result & top != 0 {
            result ^= f;
        }
        if a >> bit & 1 == 1 {
            result ^= a;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_irreducible_polynomials() {
        // x, x+1, x²+x+1, x³+x+1, AES's polynomial, and the one in the documentation of restic's chunker.
        for f in [0b10, 0b11, 0b111, 0b1011, 0x11b, 0x3DA3358B4DC173] {
            assert!(is_irreducible(f), "{f:#x}");
        }
        // x², x²+1 = (x+1)², x⁴+x²+1 = (x²+x+1)², a product of two of degree 3.
        for f in [0b100, 0b101, 0b10101, 0b1011 ^ (0b1011 << 2) ^ (0b1011 << 3), 0x3DA3358B4DC172] {
            assert!(!is_irreducible(f), "{f:#x}");
        }
    }

    #[test]
    fn counts_as_many_as_there_are() {
        // The number of irreducible polynomials over GF(2) of degree 10 is 99.
        assert_eq!((1 << 10..1 << 11).filter(|f| is_irreducible(*f)).count(), 99);
    }

    #[test]
    fn generates_what_restic_accepts() {
        let f = generate().expect("random");
        assert!(is_irreducible(f));
        assert_eq!(degree(f), DEGREE);
    }
}
