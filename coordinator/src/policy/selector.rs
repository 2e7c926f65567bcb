//! Days by name: what `on` of a schedule or of a rule says.
//!
//! Invariants:
//! - A selector names at least one day of each month (a day above the month's last is the last), so no month is left without a backup
//!   and [`super::Document::next_slot`] always finds a slot.
//! - The text of a selector parses to the selector.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Weekday};

const DAYS: [(&str, Weekday); 7] = [
    ("Sun", Weekday::Sunday),
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Days of a calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DaySelector {
    /// Each one: `Sun`.
    Weekday(Weekday),
    /// 1 to 31; in a month without that day, its last: `31`.
    MonthDay(i8),
    /// The month's last: `last`.
    LastDay,
    /// One of the month: `first-Sun`, `last-Sun`.
    NthWeekday(Nth, Weekday),
}

/// Which of a month's Sundays (Mondays, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // they say it
pub enum Nth {
    First,
    Second,
    Third,
    Fourth,
    Last,
}

/// Every [`Nth`] by its name.
pub(super) const NTHS: [(&str, Nth); 5] = [
    ("first", Nth::First),
    ("second", Nth::Second),
    ("third", Nth::Third),
    ("fourth", Nth::Fourth),
    ("last", Nth::Last),
];

impl DaySelector {
    /// True when it names this day.
    pub fn matches(&self, date: Date) -> bool {
        match *self {
            Self::Weekday(weekday) => date.weekday() == weekday,
            Self::MonthDay(day) => date.day() == day.min(date.days_in_month()),
            Self::LastDay => date.day() == date.days_in_month(),
            Self::NthWeekday(Nth::Last, weekday) => date.weekday() == weekday && date.day() > date.days_in_month() - 7,
            Self::NthWeekday(nth, weekday) => date.weekday() == weekday && (date.day() - 1) / 7 == nth as i8,
        }
    }
}

impl fmt::Display for DaySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Weekday(weekday) => f.write_str(weekday_name(weekday)),
            Self::MonthDay(day) => write!(f, "{day}"),
            Self::LastDay => f.write_str("last"),
            Self::NthWeekday(nth, weekday) => {
                let name = NTHS.iter().find(|(_, other)| *other == nth).map_or("", |(name, _)| name);
                write!(f, "{name}-{}", weekday_name(weekday))
            }
        }
    }
}

impl FromStr for DaySelector {
    type Err = ();

    /// `Sun`, `1` to `31`, `last`, `first-Sun` … `fourth-Sun`, `last-Sun`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "last" {
            return Ok(Self::LastDay);
        }
        if let Some(weekday) = weekday(text) {
            return Ok(Self::Weekday(weekday));
        }
        if let Some((nth, day)) = text.split_once('-') {
            let nth = NTHS.iter().find(|(name, _)| *name == nth).ok_or(())?.1;
            return Ok(Self::NthWeekday(nth, weekday(day).ok_or(())?));
        }
        match text.parse() {
            Ok(day @ 1..=31) if !text.starts_with(['0', '+']) => Ok(Self::MonthDay(day)),
            _ => Err(()),
        }
    }
}

/// `Sun`, …
pub(super) fn weekday_name(weekday: Weekday) -> &'static str {
    DAYS[usize::from(weekday.to_sunday_zero_offset().unsigned_abs())].0
}

/// The weekday of that short name.
pub(super) fn weekday(name: &str) -> Option<Weekday> {
    DAYS.iter().find(|(short, _)| *short == name).map(|(_, day)| *day)
}

/// `Jan` for 1, …
pub(super) fn month_name(month: i8) -> &'static str {
    MONTHS.get(usize::from(month.unsigned_abs()).wrapping_sub(1)).copied().unwrap_or_default()
}

/// 1 for `Jan`, …
pub(super) fn month(name: &str) -> Option<i8> {
    MONTHS.iter().zip(1..).find(|(short, _)| **short == name).map(|(_, month)| month)
}
