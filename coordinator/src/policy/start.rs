//! When a slot's backup starts: spread over the jitter, inside the allowed windows, caught up or skipped.
//!
//! ```text
//!    slot      start                         start + start_within
//!     │  jitter  │           in time                  │      missed: catch_up
//!  ───┴──────────┴────────────────────────────────────┴──────────────────────► now
//! ```
//! Invariants:
//! - A start is a function of slot, policy and instance id: a restart of the agent does not move it.
//! - No backup starts outside the allowed windows; of slots that wait for the same opening, only the last runs.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Time, Weekday};
use jiff::{SignedDuration, Timestamp};

use super::{CatchUp, Document, selector};

/// Days to look ahead for an opening: windows are weekly, and the last one may be a day's.
const LONGEST_CLOSED_DAYS: usize = 10;

/// Times at which backups may start, each week: from the minute `from`, up to but not with `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins; empty: every day.
    pub days: Vec<Weekday>,
    /// Its beginning.
    pub from: Time,
    /// Its end; at or before `from`: on the next day.
    pub to: Time,
}

/// What a scheduler does with an instance now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then. The time may pass unused: ask again.
    Wait(Timestamp),
    /// Start a backup for this slot, and take it as done. Earlier slots that were not done are done with it.
    Start {
        /// The slot.
        slot: Timestamp,
        /// True when it was missed and is caught up.
        late: bool,
    },
    /// This slot and the ones before it were missed and the policy skips them: take it as done, and say so.
    Skip(Timestamp),
    /// Nothing, ever: the calendar ends.
    Never,
}

impl Document {
    /// When that slot's backup of that instance should start: the slot, or the next opening of an allowed window, plus this instance's
    /// part of the jitter, which is cut to what is left of the window.
    pub fn start_time(&self, slot: Timestamp, instance_id: &str) -> Timestamp {
        let (begin, end) = self.opening(slot);
        let mut room = self.schedule.jitter;
        if let Some(end) = end {
            room = room.min(end.duration_since(begin) - SignedDuration::from_secs(1));
        }
        let seconds = u64::try_from(room.as_secs()).unwrap_or(0);
        let part = spread(instance_id, &self.name) % (seconds + 1);
        begin + SignedDuration::from_secs(i64::try_from(part).unwrap_or(0))
    }

    /// What to do now with an instance whose slots up to `done` are done (run, or skipped); at first `done` is its creation.
    pub fn due(&self, done: Timestamp, now: Timestamp, instance_id: &str) -> Due {
        let mut wait = self.next_slot(now.max(done)).map(|slot| self.start_time(slot, instance_id));
        let mut slot = self.last_slot(done, now);
        // The last slot whose start has come. Those after it wait for their jitter or for a window.
        while let Some(candidate) = slot {
            let start = self.start_time(candidate, instance_id);
            if start <= now {
                break;
            }
            wait = Some(wait.map_or(start, |wait| wait.min(start)));
            slot = self.last_slot(done, candidate - SignedDuration::from_nanos(1));
        }
        let Some(slot) = slot else { return wait.map_or(Due::Never, Due::Wait) };
        let late = now > self.start_time(slot, instance_id) + self.schedule.start_within;
        if late && self.schedule.catch_up == CatchUp::Skip {
            return Due::Skip(slot);
        }
        let (opening, _) = self.opening(now);
        if opening > now { Due::Wait(opening) } else { Due::Start { slot, late } }
    }

    /// The first moment at or after `time` at which a backup may start.
    pub fn opens(&self, time: Timestamp) -> Timestamp {
        self.opening(time).0
    }

    /// The first moment at or after `time` in an allowed window, and the end of that window; no end where there are no windows.
    fn opening(&self, time: Timestamp) -> (Timestamp, Option<Timestamp>) {
        let mut best: Option<(Timestamp, Timestamp)> = None;
        let mut date = self.date(time).yesterday().unwrap_or(Date::MIN);
        for _ in 0..LONGEST_CLOSED_DAYS {
            for (from, to) in self.windows_of(date).filter(|(from, to)| *to > time && *to > *from) {
                let begin = from.max(time);
                best = match best {
                    // Of windows that are open at that moment, the one that ends last.
                    Some((other, end)) if other < begin || (other == begin && end >= to) => Some((other, end)),
                    _ => Some((begin, to)),
                };
            }
            let Ok(tomorrow) = date.tomorrow() else { break };
            date = tomorrow;
        }
        best.map_or((time, None), |(begin, end)| (begin, Some(end)))
    }

    fn windows_of(&self, date: Date) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let windows = self.schedule.allowed.iter();
        let windows = windows.filter(move |window| window.days.is_empty() || window.days.contains(&date.weekday()));
        windows.filter_map(move |window| {
            let end = if window.to <= window.from { date.tomorrow().ok()? } else { date };
            let instant = |date: Date, time: Time| {
                self.time_zone.to_ambiguous_timestamp(date.to_datetime(time)).compatible().ok()
            };
            Some((instant(date, window.from)?, instant(end, window.to)?))
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<&str> = self.days.iter().map(|day| selector::weekday_name(*day)).collect();
        if !days.is_empty() {
            write!(f, "{} ", days.join(","))?;
        }
        let to = if self.to == Time::midnight() { "24:00".to_owned() } else { self.to.strftime("%H:%M").to_string() };
        write!(f, "{}-{to}", self.from.strftime("%H:%M"))
    }
}

impl FromStr for Window {
    type Err = ();

    /// `22:00-06:00`, `Sat 00:00-24:00`, `Mon-Fri 20:00-06:00`, `Mon,Wed 20:00-22:00`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (days, times) = text.rsplit_once(' ').unwrap_or(("", text));
        let (from, to) = times.split_once('-').ok_or(())?;
        let to = if to == "24:00" { Time::midnight() } else { time(to).ok_or(())? };
        let mut window = Self { days: Vec::new(), from: time(from).ok_or(())?, to };
        for part in days.split(',').filter(|_| !days.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (mut day, last) = (selector::weekday(first).ok_or(())?, selector::weekday(last).ok_or(())?);
            window.days.push(day);
            while day != last {
                day = day.next();
                window.days.push(day);
            }
        }
        Ok(window)
    }
}

/// `HH:MM`.
pub(super) fn time(text: &str) -> Option<Time> {
    Time::strptime("%H:%M", text).ok().filter(|_| text.len() == 5)
}

/// A number that is the same for an instance and a policy in every version of the program, and spread over all numbers: FNV-1a with the
/// finisher of SplitMix64, as FNV alone leaves ids that differ in their last digit close together.
pub(super) fn spread(instance_id: &str, policy: &str) -> u64 {
    let bytes = instance_id.bytes().chain([0]).chain(policy.bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
