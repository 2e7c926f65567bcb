//! Drawing a part of the packs, and what such a draw can find.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::index;

/// A draw of packs without putting back.
///
/// The probabilities assume that each pack is as likely to be damaged as any other, whatever its size and age, and that reading a damaged
/// pack finds the damage (the SHA-256 of its bytes is its name).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Subset {
    /// Of the draw.
    pub seed: u64,
    /// What was asked for.
    pub percent: f64,
    /// Packs that were drawn.
    pub drawn: u64,
    /// Packs that could be drawn.
    pub packs: u64,
}

impl Subset {
    /// Draws `percent` of so many packs, at least one of them. The numbers are ascending.
    pub(super) fn draw(packs: usize, percent: f64, seed: u64) -> (Self, Vec<usize>) {
        let share = (packs as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as usize;
        let drawn = share.clamp(usize::from(packs > 0), packs);
        let mut numbers = index::sample(&mut StdRng::seed_from_u64(seed), packs, drawn).into_vec();
        numbers.sort_unstable();
        (Self { seed, percent, drawn: drawn as u64, packs: packs as u64 }, numbers)
    }

    /// The probability (0 to 1) that at least one of `damaged` packs is among those drawn: 1 - C(packs - damaged, drawn) / C(packs, drawn).
    pub fn detection_probability(&self, damaged: u64) -> f64 {
        let damaged = damaged.min(self.packs);
        let missed = (0..damaged).map(|n| {
            let undrawn = self.packs - self.drawn;
            if n >= undrawn { 0.0 } else { (undrawn - n) as f64 / (self.packs - n) as f64 }
        });
        1.0 - missed.product::<f64>()
    }

    /// One percent of the packs, at least one.
    pub fn one_percent(&self) -> u64 {
        self.packs.div_ceil(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_repeatable_and_their_probabilities_are_right() {
        let (subset, drawn) = Subset::draw(1000, 5.0, 7);
        assert_eq!((subset.drawn, drawn.len()), (50, 50));
        assert_eq!(Subset::draw(1000, 5.0, 7).1, drawn);
        assert_ne!(Subset::draw(1000, 5.0, 8).1, drawn);
        assert!((subset.detection_probability(1) - 0.05).abs() < 1e-12);
        assert_eq!(subset.detection_probability(0), 0.0);
        assert_eq!(Subset::draw(3, 100.0, 1).0.detection_probability(1), 1.0);
        assert_eq!(Subset::draw(0, 5.0, 1).1.len(), 0);
        assert_eq!(Subset::draw(10, 0.01, 1).0.drawn, 1);
        // Against drawing it many times.
        let hits = (0..4000).filter(|seed| Subset::draw(100, 10.0, *seed).1.iter().any(|n| *n < 5)).count();
        let expected = Subset::draw(100, 10.0, 0).0.detection_probability(5);
        assert!((hits as f64 / 4000.0 - expected).abs() < 0.03, "{hits} of 4000, expected {expected}");
    }
}
