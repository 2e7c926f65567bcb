//! What a job did, and how long each part took: its phases, as its progress tells them.
//!
//! Invariants:
//! - Steps follow each other without a gap and do not overlap; a clock that goes back makes a step of no length.
//! - [`MOST`] at most: what comes behind belongs to the last one.

use jiff::Timestamp;

use super::Progress;
use crate::catalog::JobStep;

/// A job has about ten; one that does a thing to thousands of points must not grow with them.
const MOST: usize = 50;

/// The steps of a job that runs.
#[derive(Debug, Default)]
pub(super) struct Steps {
    ended: Vec<JobStep>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    name: String,
    start: Timestamp,
    /// Bytes read and stored when it began, and as last told.
    from: (u64, u64),
    last: (u64, u64),
}

impl Open {
    fn ended(&self, now: Timestamp) -> JobStep {
        JobStep {
            name: self.name.clone(),
            start: self.start,
            end: now.max(self.start),
            bytes_read: self.last.0.saturating_sub(self.from.0),
            bytes_stored: self.last.1.saturating_sub(self.from.1),
        }
    }
}

impl Steps {
    /// Behind those of an earlier life.
    pub(super) fn after(ended: Vec<JobStep>) -> Self {
        Self { ended, open: None }
    }

    /// The progress is this now.
    pub(super) fn note(&mut self, progress: &Progress, now: Timestamp) {
        let bytes = (progress.bytes_read, progress.bytes_stored);
        if let Some(open) = &mut self.open {
            // A phase's last counts come with the next one's name; counts that begin anew are not this one's.
            open.last = (open.last.0.max(bytes.0), open.last.1.max(bytes.1));
            if open.name == progress.phase || self.ended.len() + 1 >= MOST {
                return;
            }
            self.ended.push(open.ended(now));
        }
        let start = self.ended.last().map_or(now, |last| last.end.max(now));
        self.open = Some(Open { name: progress.phase.clone(), start, from: bytes, last: bytes });
    }

    /// All of them; the last one, if it is going on, up to now.
    pub(super) fn until(&self, now: Timestamp) -> Vec<JobStep> {
        self.ended.iter().cloned().chain(self.open.iter().map(|open| open.ended(now))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn progress(phase: &str, bytes_read: u64, bytes_stored: u64) -> Progress {
        Progress { phase: phase.to_owned(), bytes_read, bytes_stored, ..Progress::default() }
    }

    fn step(name: &str, start: i64, end: i64, bytes_read: u64, bytes_stored: u64) -> JobStep {
        JobStep { name: name.to_owned(), start: time(start), end: time(end), bytes_read, bytes_stored }
    }

    #[test]
    fn phases_become_steps_with_their_own_bytes() {
        let mut steps = Steps::default();
        for (now, told) in [
            (0, progress("starting", 0, 0)),
            (1, progress("starting", 0, 0)),
            (3, progress("dumping", 0, 0)),
            (5, progress("dumping", 100, 40)),
            (9, progress("verifying", 150, 60)),
            // A prune overtook it: the dump begins again, and counts from nothing.
            (10, progress("dumping", 0, 0)),
            (12, progress("dumping", 20, 0)),
            // The clock went back.
            (11, progress("committing", 20, 5)),
        ] {
            steps.note(&told, time(now));
        }
        let expected = [
            step("starting", 0, 3, 0, 0),
            step("dumping", 3, 9, 150, 60),
            step("verifying", 9, 10, 0, 0),
            step("dumping", 10, 11, 20, 5),
            step("committing", 11, 20, 0, 0),
        ];
        assert_eq!(steps.until(time(20)), expected);
        // A restart goes on behind them.
        let mut steps = Steps::after(expected.to_vec());
        steps.note(&progress("verifying", 0, 0), time(15));
        steps.note(&progress("verifying", 7, 0), time(16));
        assert_eq!(steps.until(time(30))[5..], [step("verifying", 20, 30, 7, 0)]);
    }

    #[test]
    fn there_is_an_end_of_them() {
        let mut steps = Steps::default();
        for turn in 0..1000 {
            let phase = if turn % 2 == 0 { "opening the vault" } else { "deleting" };
            steps.note(&progress(phase, u64::try_from(turn).expect("fits"), 0), time(turn));
        }
        let all = steps.until(time(1000));
        assert_eq!(all.len(), MOST);
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!((all[MOST - 1].end, all.iter().map(|step| step.bytes_read).sum::<u64>()), (time(1000), 999));
    }
}
