//! Policies: when backups run and how long they are kept. Pure functions of a document and of times; no I/O.
//!
//! Invariants:
//! - A [`Document`] is valid: it can only be made by [`parse`], which tells every fault at once.
//! - Slots are exact in the policy's time zone. A wall-clock time that daylight saving skips becomes the same time after the gap, one that
//!   comes twice counts once (its first). So each slot is one instant, and instants of one policy are distinct.
//! - Durations are calendar durations (D7): three months after 30 November is the last day of February.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _};
use vaultferry_proto::{Problem, Reason};

mod document;

pub use document::parse;

/// Shortest and longest duration of the vault store (P51).
const VAULT_MIN_DAYS: i64 = 7;
const VAULT_MAX_YEARS: i64 = 10;
/// The rule that every policy has (P50).
pub const DEFAULT_RULE: &str = "Default";

/// A valid policy.
#[derive(Debug, Clone)]
pub struct Document {
    /// Unique in the vault; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// `postgres`, `vm` or `apim`.
    pub source_type: String,
    /// Its IANA name.
    pub time_zone_name: String,
    /// The zone itself.
    pub time_zone: TimeZone,
    /// As the plugin protocol says it: a zstd level, -1 for none, 0 for what is the default.
    pub compression: i32,
    /// When backups run.
    pub schedule: Schedule,
    /// At least the Default rule.
    pub rules: Vec<Rule>,
}

/// When backups run: at these times on these days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// `None`: every day.
    pub days: Option<Vec<Weekday>>,
    /// Ascending, distinct.
    pub at: Vec<Time>,
}

/// How long a point is kept.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique in the policy.
    pub name: String,
    /// As its author wrote it.
    pub vault_text: String,
    /// In the vault store.
    pub vault: Span,
}

impl Document {
    /// The first slot after `after`. `None` only at the end of representable time.
    pub fn next_slot(&self, after: Timestamp) -> Option<Timestamp> {
        // A day early: a slot of yesterday's date may lie after `after`, when a gap moved it past midnight.
        let mut date = after.to_zoned(self.time_zone.clone()).date().yesterday().ok()?;
        // A week holds a day of every schedule; two more for the day before and a gap.
        for _ in 0..10 {
            let slot = self.slots_of(date).into_iter().filter(|slot| *slot > after).min();
            if slot.is_some() {
                return slot;
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last slot at or before `now` that is after `after`.
    pub fn last_slot(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let mut date = now.to_zoned(self.time_zone.clone()).date().tomorrow().ok()?;
        for _ in 0..10 {
            let slot = self.slots_of(date).into_iter().filter(|slot| *slot > after && *slot <= now).max();
            if slot.is_some() {
                return slot;
            }
            date = date.yesterday().ok()?;
        }
        None
    }

    fn slots_of(&self, date: Date) -> Vec<Timestamp> {
        if self.schedule.days.as_ref().is_some_and(|days| !days.contains(&date.weekday())) {
            return Vec::new();
        }
        let slot = |time: &Time| self.time_zone.to_ambiguous_timestamp(date.to_datetime(*time)).compatible().ok();
        self.schedule.at.iter().filter_map(slot).collect()
    }

    /// The rule of that name.
    pub fn rule(&self, name: &str) -> Result<&Rule, Problem> {
        self.rules.iter().find(|rule| rule.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.rules.iter().map(|rule| rule.name.as_str()).collect();
            let message = format!("the policy {} has no rule {name:?}; it has {}", self.name, names.join(", "));
            Problem::new(Reason::RuleNotFound, message)
        })
    }

    /// When a point of that time expires, by the rule that it carries, or by Default when this policy has no such rule (D5, D18).
    pub fn expiry(&self, rule: &str, time: Timestamp) -> Option<Timestamp> {
        let find = |name: &str| self.rules.iter().find(|candidate| candidate.name == name);
        let rule = find(rule).or_else(|| find(DEFAULT_RULE))?;
        time.to_zoned(self.time_zone.clone()).checked_add(rule.vault).ok().map(|end| end.timestamp())
    }
}

/// Reads an ISO 8601 duration of calendar units, and checks P51's limits.
fn vault_duration(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|_| format!("{text:?} is not an ISO 8601 duration such as P3M"))?;
    let days = (span.get_years(), span.get_months(), span.get_weeks(), span.get_days());
    if !text.starts_with('P') || text.contains('T') || days == (0, 0, 0, 0) || span.is_negative() {
        return Err(format!("{text:?} must be made of years, months, weeks or days, such as P3M"));
    }
    // The limits are compared on a calendar, from a date without leap days nearby.
    let start = Date::constant(2001, 1, 1);
    let end = start.checked_add(span).map_err(|_| format!("{text:?} is too long; at most 10 years"))?;
    let limit = |span: Span| start.checked_add(span).expect("limits are short");
    if end < limit(VAULT_MIN_DAYS.days()) || end > limit(VAULT_MAX_YEARS.years()) {
        return Err(format!("{text:?} must be between 7 days and 10 years in the vault store"));
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(zone: &str, schedule: &str) -> Document {
        let text = format!(
            "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"{zone}\"\n[schedule]\n{schedule}\n[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n"
        );
        parse(&text).expect("valid")
    }

    fn slots(policy: &Document, from: &str, count: usize) -> Vec<String> {
        let mut time: Timestamp = from.parse().expect("a time");
        (0..count)
            .map(|_| {
                let next = policy.next_slot(time).expect("a slot");
                assert_eq!(policy.last_slot(time, next), Some(next), "both directions agree");
                time = next;
                next.to_zoned(policy.time_zone.clone()).strftime("%F %H:%M %z").to_string()
            })
            .collect()
    }

    #[test]
    fn a_weekly_schedule_runs_on_its_days() {
        let policy = policy("Asia/Seoul", "every = \"week\"\non = [\"Sun\", \"Wed\"]\nat = [\"02:00\"]");
        let expected = ["2026-11-22 02:00 +0900", "2026-11-25 02:00 +0900", "2026-11-29 02:00 +0900"];
        assert_eq!(slots(&policy, "2026-11-21T00:00:00Z", 3), expected);
    }

    #[test]
    fn a_gap_moves_a_slot_and_an_overlap_does_not_double_it() {
        let policy = policy("America/New_York", "every = \"day\"\nat = [\"02:30\"]");
        // 14 March 2027 has no 02:30, 7 November 2027 has one; its 01:30 comes twice.
        let spring = ["2027-03-13 02:30 -0500", "2027-03-14 03:30 -0400", "2027-03-15 02:30 -0400"];
        assert_eq!(slots(&policy, "2027-03-13T00:00:00Z", 3), spring);
        let policy = super::tests::policy("America/New_York", "every = \"day\"\nat = [\"01:30\"]");
        let autumn = ["2027-11-06 01:30 -0400", "2027-11-07 01:30 -0400", "2027-11-08 01:30 -0500"];
        assert_eq!(slots(&policy, "2027-11-06T00:00:00Z", 3), autumn);
    }

    #[test]
    fn two_times_that_a_gap_makes_one_run_once() {
        let policy = policy("America/New_York", "every = \"day\"\nat = [\"02:30\", \"03:30\"]");
        let expected = ["2027-03-14 03:30 -0400", "2027-03-15 02:30 -0400", "2027-03-15 03:30 -0400"];
        assert_eq!(slots(&policy, "2027-03-14T05:00:00Z", 3), expected);
    }

    #[test]
    fn a_missed_slot_is_the_last_one_before_now() {
        let policy = policy("UTC", "every = \"day\"\nat = [\"02:00\", \"14:00\"]");
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let last = policy.last_slot(time("2026-11-01T00:00:00Z"), time("2026-11-21T12:00:00Z"));
        assert_eq!(last, Some(time("2026-11-21T02:00:00Z")));
        assert_eq!(policy.last_slot(time("2026-11-21T02:00:00Z"), time("2026-11-21T12:00:00Z")), None);
    }

    #[test]
    fn expiry_is_calendar_arithmetic() {
        let policy = policy("UTC", "every = \"day\"\nat = [\"02:00\"]");
        let time: Timestamp = "2026-11-30T02:00:00Z".parse().expect("a time");
        assert_eq!(policy.expiry("Default", time).expect("an expiry").to_string(), "2027-02-28T02:00:00Z");
        assert_eq!(policy.expiry("Gone", time), policy.expiry("Default", time));
    }

    #[test]
    fn durations_have_limits() {
        for good in ["P7D", "P1W", "P10Y", "P3M", "P1Y6M", "P120M", "P3650D"] {
            assert!(vault_duration(good).is_ok(), "{good}");
        }
        for bad in ["P6D", "P10Y1D", "P11Y", "PT200H", "3M", "", "P", "-P3M", "P3MT1H", "P0D", "3 months"] {
            assert!(vault_duration(bad).is_err(), "{bad}");
        }
    }
}
