//! The schedule as instants.
//!
//! How the clock's changes are met (D14; beyond V58), for each wall-clock time of the schedule:
//!
//! ```text
//!   02:30 skipped (01:59 → 03:00)    the same time after the gap: 03:30, once; two slots that meet there are one
//!   01:30 comes twice                the first; an hourly schedule counts both, as they are two hours
//!   a whole day skipped (Apia 2011)  its slots fall on the next day's, and are one with them
//! ```
//! Limits: the calendar's own, years up to 9999.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::AmbiguousOffset;

use super::{Document, Every};

/// More days than lie between any two slots: monthly schedules have one in each month.
const LONGEST_WAIT_DAYS: usize = 70;

/// The slots of a schedule, in order. Made by [`Document::slots`].
#[derive(Debug)]
pub struct Slots<'a> {
    document: &'a Document,
    after: Timestamp,
    /// The next date to look at; `None`: there are no more.
    date: Option<Date>,
    /// Slots of the dates before, that were not given out yet.
    found: BTreeSet<Timestamp>,
}

impl Iterator for Slots<'_> {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        while let Some(date) = self.date {
            // One date further than the slot's: around midnight, a change of the clock can put that date's first slot before this one.
            let seen = |slot: &Timestamp| self.document.date(*slot).tomorrow().is_ok_and(|tomorrow| tomorrow < date);
            if self.found.first().is_some_and(seen) {
                break;
            }
            self.found.extend(self.document.slots_of(date).filter(|slot| *slot > self.after));
            self.date = date.tomorrow().ok();
        }
        self.found.pop_first()
    }
}

impl Document {
    /// The first slot after `after`. `None` only at the end of representable time.
    pub fn next_slot(&self, after: Timestamp) -> Option<Timestamp> {
        self.slots(after).next()
    }

    /// All slots after `after`, in order; cheaper than asking for one after the other.
    pub fn slots(&self, after: Timestamp) -> Slots<'_> {
        // A day early: a slot of yesterday's date may lie after `after`, when a gap moved it past midnight.
        let begin = self.date(after);
        let date = begin.yesterday().unwrap_or(begin);
        Slots { document: self, after, date: Some(date), found: BTreeSet::new() }
    }

    /// The last slot at or before `now` that is after `after`.
    pub fn last_slot(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if after >= now {
            return None;
        }
        let mut date = self.date(now).tomorrow().ok()?;
        let begin = self.date(after).yesterday().unwrap_or(Date::MIN);
        let mut best: Option<Timestamp> = None;
        for _ in 0..LONGEST_WAIT_DAYS {
            best = self.slots_of(date).filter(|slot| *slot > after && *slot <= now).chain(best).max();
            // Earlier dates' slots lie at most one date further on.
            let done = best.is_some_and(|slot| self.date(slot).yesterday().is_ok_and(|yesterday| date < yesterday));
            if done || date < begin {
                break;
            }
            let Ok(yesterday) = date.yesterday() else { break };
            date = yesterday;
        }
        best
    }

    /// The date on the policy's calendar.
    pub(super) fn date(&self, time: Timestamp) -> Date {
        self.time_zone.to_datetime(time).date()
    }

    /// The slots of a date, in no order. A gap may have moved them to the next date.
    fn slots_of(&self, date: Date) -> impl Iterator<Item = Timestamp> {
        let on = match &self.schedule.every {
            Every::Hour | Every::Day => true,
            Every::Week(days) => days.contains(&date.weekday()),
            Every::Month(days) => days.iter().any(|day| day.matches(date)),
        };
        let hourly = self.schedule.every == Every::Hour;
        let hours = if hourly { 0..24 } else { 0..1 };
        let times = hours.flat_map(|hour| self.schedule.at.iter().map(move |at| (hour, *at)));
        times.filter(move |_| on).flat_map(move |(hour, at)| {
            // An hourly schedule's times have hour 0.
            let clock = date.at(at.hour() + hour, at.minute(), 0, 0);
            let instants = self.time_zone.to_ambiguous_timestamp(clock);
            let second = match instants.offset() {
                AmbiguousOffset::Fold { .. } if hourly => instants.later().ok(),
                _ => None,
            };
            [instants.compatible().ok(), second].into_iter().flatten()
        })
    }
}
