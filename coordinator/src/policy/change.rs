//! A change of policy (another version, or another policy): what it does to the points of the instances that it concerns, and whether a
//! person's word is needed.
//!
//! Invariants:
//! - Nothing is kept shorter than before without somebody's word (D18), and who is asked has seen the figures.
//! - A change begins now: what only the new schedule had before now is not missed, and is not caught up. A slot of the old schedule that
//!   still waits is the new schedule's to catch up.

use std::fmt;

use jiff::Timestamp;
use vaultferry_proto::{Problem, Reason};

use super::{Document, Effect, Preview};

/// Instances that a message names; the rest is counted.
const NAMED: usize = 5;

/// How many points a change of policy does what to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// They are kept as long as before.
    pub same: u64,
    /// Longer.
    pub longer: u64,
    /// As long or longer, but they are due in the archive store at once.
    pub moved: u64,
    /// Shorter.
    pub shorter: u64,
    /// Their time is over at once.
    pub expiring: u64,
}

impl Figures {
    /// All points that were looked at.
    pub fn points(&self) -> u64 {
        self.same + self.longer + self.moved + self.shortened()
    }

    /// Those that are kept shorter, or not any more.
    pub fn shortened(&self) -> u64 {
        self.shorter + self.expiring
    }
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.same += other.same;
        self.longer += other.longer;
        self.moved += other.moved;
        self.shorter += other.shorter;
        self.expiring += other.expiring;
    }
}

/// What is kept shorter, for people: "12 of 30 points are kept shorter, and the time of 3 of them is over at once".
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} points are kept shorter", self.shortened(), self.points())?;
        match self.expiring {
            0 => Ok(()),
            expiring => write!(f, ", and the time of {expiring} of them is over at once"),
        }
    }
}

impl Preview {
    /// The points, counted by what happens to them.
    pub fn figures(&self) -> Figures {
        let count = |effect: Effect| self.count(effect) as u64;
        Figures {
            same: count(Effect::Same),
            longer: count(Effect::Longer),
            moved: count(Effect::Moved),
            shorter: count(Effect::Shorter),
            expiring: count(Effect::Deleted),
        }
    }
}

/// Refuses a change that keeps points shorter and that nobody has confirmed (D18): `RetentionShortened`, with the figures. `what` begins the
/// message ("version 2 of the policy nightly"); the instances are given by name, with what the change does to their points.
pub fn check_confirmed<'a>(
    what: &str,
    instances: impl IntoIterator<Item = (&'a str, &'a Preview)>,
    confirmed: bool,
) -> Result<(), Problem> {
    let (mut all, mut shortened) = (Figures::default(), Vec::new());
    for (name, preview) in instances {
        let figures = preview.figures();
        all += figures;
        if preview.needs_confirmation() {
            shortened.push(format!("{name} {}", figures.shortened()));
        }
    }
    if confirmed || shortened.is_empty() {
        return Ok(());
    }
    let more = shortened.len().saturating_sub(NAMED);
    shortened.truncate(NAMED);
    let more = if more == 0 { String::new() } else { format!(", and {more} more instances") };
    let message = format!("with {what}, {all} ({}{more})", shortened.join(", "));
    Err(Problem::new(Reason::RetentionShortened, message))
}

/// Up to where the slots of the new schedule are taken as dealt with when a policy changes at `now`. `done`: up to there they were under the
/// old one (the last slot that was dealt with, or the instance's creation). `None`: it stays so, because a slot of the old schedule waits for
/// its backup.
pub fn slots_settled(old: &Document, done: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (done < now && old.last_slot(done, now).is_none()).then_some(now)
}
