//! What years differ in beside their events. It hangs on the seed alone, so that a hundred seeds in a row are every number of sources with every
//! schedule, with and without a backup service, more than twice.

/// Seeds whose years are as they have always been: each of them has found something.
const OLD: u64 = 3;
/// More years than a hundred are for whoever has the time: every fifth of them is as full as can be.
const ORDINARY: u64 = 100;

/// What new sources are protected by in a full year: one of these.
const FULL: &[&str] = &["daily", "daily-skip", "twice-a-week", "twice-a-week", "weekly", "weekly", "monthly"];
/// The same in others, whose point is not how many jobs there are.
const SOME: &[&str] = &["twice-a-week", "weekly", "weekly", "monthly"];
/// The same where there are many sources.
const FEW: &[&str] = &["weekly", "monthly", "monthly"];

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Sources on the first day.
    pub first: usize,
    /// When there are so many, nobody protects another one.
    pub most: usize,
    /// What the first source of all is protected by; `None`: one of `policies`, as the others.
    pub opening: Option<&'static str>,
    /// What sources are protected by.
    pub policies: &'static [&'static str],
    /// Any policy may be linked at any time; in other years that is rare.
    pub dense: bool,
    /// There is a backup service.
    pub service: bool,
}

impl Shape {
    pub fn of(seed: u64) -> Self {
        let service = seed % 2 == 1;
        if !(OLD..ORDINARY).contains(&seed) {
            return match seed.is_multiple_of(5) {
                true => Self { first: 2, most: 4, opening: None, policies: FULL, dense: true, service },
                false => Self { first: 2, most: 3, opening: None, policies: SOME, dense: false, service },
            };
        }
        let first = 1 + usize::try_from(seed % 5).expect("small");
        let (opening, policies) = match (seed / 10) % 4 {
            // Two days of it, and then no longer.
            0 => (Some("hourly"), SOME),
            1 if seed.is_multiple_of(4) => (Some("daily-skip"), FEW),
            1 => (Some("daily"), FEW),
            2 => (None, SOME),
            _ => (None, FEW),
        };
        let policies = if first > 3 { FEW } else { policies };
        Self { first, most: first + 1, opening, policies, dense: false, service }
    }
}
