//! Seeded random numbers (xoshiro256++). Written out here, so that the generated database stays the same whatever version of a crate
//! is used: results of different days compare.

use std::f64::consts::TAU;

/// A generator; the same seed gives the same numbers for ever.
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// A generator of its own for each seed.
    pub fn new(seed: u64) -> Self {
        // SplitMix64 spreads the seed over the state, as the authors of xoshiro advise.
        let mut next = seed;
        let state = [(); 4].map(|()| {
            next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = next;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        Self { state }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// Between 0 and 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `limit`, which is not 0. The bias is below 2^-32 for the small limits used here.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// A whole number whose logarithm is normally distributed, kept within the bounds.
    pub fn log_normal(&mut self, mean: f64, deviation: f64, least: u64, most: u64) -> u64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (TAU * self.unit()).cos();
        ((mean + deviation * normal).exp() as u64).clamp(least, most)
    }

    /// Events of a Poisson process with this mean (a small one: the time grows with it).
    pub fn poisson(&mut self, mean: f64) -> u64 {
        let limit = (-mean).exp();
        let (mut count, mut product) = (0, self.unit());
        while product > limit {
            count += 1;
            product *= self.unit();
        }
        count
    }

    /// Random bytes, appended.
    pub fn fill(&mut self, bytes: &mut Vec<u8>, count: usize) {
        let end = bytes.len() + count;
        while bytes.len() < end {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(end);
    }
}

/// Draws ranks by weight, in constant time.
#[derive(Debug)]
pub struct Weighted {
    /// Each rank, as often as its weight says.
    table: Vec<u16>,
}

impl Weighted {
    /// Rank `i` of `count` is drawn with the weight `weight(i)`.
    pub fn new(count: u16, weight: impl Fn(f64) -> f64) -> Self {
        const SIZE: usize = 1 << 20;
        let total: f64 = (0..count).map(|rank| weight(f64::from(rank))).sum();
        let mut table = Vec::with_capacity(SIZE);
        let mut sum = 0.0;
        for rank in 0..count {
            sum += weight(f64::from(rank));
            let end = (sum / total * SIZE as f64).round() as usize;
            table.resize(end.min(SIZE).max(table.len()), rank);
        }
        table.resize(SIZE, count - 1);
        Self { table }
    }

    /// One rank.
    pub fn draw(&self, random: &mut Random) -> usize {
        usize::from(self.table[(random.bits() >> 44) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut random = Random::new(20_240_601);
        let first: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        let mut again = Random::new(20_240_601);
        assert_eq!(first, (0..3).map(|_| again.bits()).collect::<Vec<_>>());
        // xoshiro256++ from the state 1, 2, 3, 4: the first numbers of the reference implementation.
        let mut reference = Random { state: [1, 2, 3, 4] };
        assert_eq!(
            [reference.bits(), reference.bits(), reference.bits()],
            [41_943_041, 58_720_359, 3_588_806_011_781_223]
        );
    }

    #[test]
    fn distributions_are_where_they_should_be() {
        let mut random = Random::new(1);
        let mean = (0..20_000).map(|_| random.poisson(3.0)).sum::<u64>() as f64 / 20_000.0;
        assert!((2.9..3.1).contains(&mean), "{mean}");
        let mut sizes: Vec<u64> = (0..20_001).map(|_| random.log_normal(4.6, 0.9, 12, 3500)).collect();
        sizes.sort_unstable();
        assert!((94..106).contains(&sizes[10_000]), "the median is {}", sizes[10_000]);
        let weighted = Weighted::new(20_000, |rank| (rank + 2.7).powf(-1.25));
        let zeros = (0..100_000).filter(|_| weighted.draw(&mut random) == 0).count();
        let expected = 2.7f64.powf(-1.25) / (0..20_000).map(|rank| (f64::from(rank) + 2.7).powf(-1.25)).sum::<f64>();
        assert!((zeros as f64 / 100_000.0 - expected).abs() < 0.01, "{zeros} of 100000, expected {expected}");
        let mut bytes = vec![7];
        random.fill(&mut bytes, 13);
        assert_eq!(bytes.len(), 14);
    }
}
