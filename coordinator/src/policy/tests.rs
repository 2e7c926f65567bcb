//! Tests of the policies' logic, and what they share.

use jiff::Timestamp;

use super::{Document, parse};

mod azure;
mod calendar;
mod change;
mod documents;
mod keep_until;
mod plan;
mod retention;
mod retry;
mod simulation;
mod start;
mod transitions;

/// A time, written as RFC 3339.
fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// A policy in that zone with that schedule and rules (TOML).
fn policy_of(source_type: &str, zone: &str, schedule: &str, rules: &str) -> Document {
    let text = format!(
        "name = \"p\"\nsource_type = \"{source_type}\"\ntime_zone = \"{zone}\"\n[schedule]\n{schedule}\n{rules}\n"
    );
    parse(&text).unwrap_or_else(|problem| panic!("{}\n{text}", problem.message))
}

/// A policy for PostgreSQL with the Default rule of three months only.
fn policy(zone: &str, schedule: &str) -> Document {
    policy_of("postgres", zone, schedule, "[[rule]]\nname = \"Default\"\nvault = \"P3M\"")
}

/// Every rule by its name, as `name;first_of or on;vault;archive;tiering`, empty where left out.
fn rules(lines: &[&str]) -> String {
    let rule = |line: &&str| {
        let parts: Vec<&str> = line.split(';').chain(std::iter::repeat("")).take(5).collect();
        let mut text = format!("[[rule]]\nname = \"{}\"\nvault = \"{}\"\n", parts[0], parts[2]);
        if !parts[1].is_empty() {
            text += parts[1];
            text += "\n";
        }
        if !parts[3].is_empty() {
            text += &format!("archive = \"{}\"\n", parts[3]);
        }
        if !parts[4].is_empty() {
            text += &format!("tiering = \"{}\"\n", parts[4]);
        }
        text
    };
    lines.iter().map(rule).collect()
}

/// Random numbers that are the same for the same seed (SplitMix64). Tests print the seed of what fails.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not with, `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).expect("fits")).expect("fits")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// Seeds of a random test: some by default, `VAULTFERRY_TEST_SEED` for one, many with `VAULTFERRY_TEST_ALL=1`.
fn seeds(few: u64, many: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("VAULTFERRY_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..if heavy() { many } else { few },
    }
}

/// True when heavy tests are wanted.
fn heavy() -> bool {
    std::env::var_os("VAULTFERRY_TEST_ALL").is_some_and(|value| value == "1")
}
