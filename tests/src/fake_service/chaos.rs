//! Which faults come, by a seed.

use std::time::Duration;

use vaultferry_proto::service::v1::Assignments;

/// Small numbers from a seed: the same world again when a test fails.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The seed decides all.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed);
        // Seeds that are near each other begin with the same numbers.
        for _ in 0..4 {
            dice.below(2);
        }
        dice
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator; the upper bits are the better ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What happens to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// It does not arrive.
    Refused,
    /// It arrives, and its answer does not.
    LostAnswer,
    Slow(Duration),
    Twice,
    /// It arrives some time later, and the agent hears nothing of that.
    Late,
    /// It arrives, and some time later once more.
    Echo,
}

#[derive(Debug)]
pub(super) struct Chaos {
    pub(super) dice: Dice,
}

impl Chaos {
    pub(super) fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed) }
    }

    pub(super) fn fault(&mut self) -> Fault {
        match self.dice.below(10) {
            0 => Fault::Refused,
            1 => Fault::LostAnswer,
            2 => Fault::Slow(Duration::from_millis(50 + self.dice.below(800))),
            3 => Fault::Twice,
            4 => Fault::Late,
            5 | 6 => Fault::Echo,
            _ => Fault::None,
        }
    }

    /// Up to four versions, old and new, in any order, perhaps twice.
    pub(super) fn some_of(&mut self, sets: &[Assignments]) -> Vec<Assignments> {
        if sets.is_empty() {
            return Vec::new();
        }
        let count = self.dice.below(5);
        (0..count).map(|_| sets[self.dice.below(sets.len() as u64) as usize].clone()).collect()
    }
}
