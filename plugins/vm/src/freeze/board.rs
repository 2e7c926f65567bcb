//! What the processes of one freeze know of it together: a page of shared memory with nothing but atomic numbers.
//!
//! Invariants:
//! - Whoever freezes marks a file system [`State::Begun`] before the call and [`State::Frozen`] after it. What is neither was not frozen by us.
//! - Nobody thaws what is [`State::Thawed`]: it may be frozen again by somebody else.
//! - [`Board::end`] is called when everything is thawed and nothing will be frozen any more: by the helper as its last deed, by others
//!   when the helper is dead.
//! - A number that was never written is zero, and no reading allocates or can fail.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// File systems of one freeze. More than any machine of sense has, few enough for one message with their open files.
pub(super) const MOUNTS_MAX: usize = 64;

/// The helper thaws at the deadline, and the guardians when it has not done so a moment later.
const GUARDIAN_MARGIN: Duration = Duration::from_millis(100);

/// Of one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not frozen by us.
    Idle,
    /// Being frozen, or frozen by a helper that did not come to say so.
    Begun,
    /// Frozen.
    Frozen,
    /// Thawed, by whomever.
    Thawed,
}

/// Why a freeze was given up before its owner thawed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The deadline passed.
    Deadline,
    /// Freezing took too long, or stopped in the middle.
    Stalled,
    /// The process that asked for it has ended, or does not want it any more.
    CallerEnded,
    /// The process that freezes has ended.
    HelperEnded,
    /// A guardian has ended.
    GuardianEnded,
}

impl Cause {
    const ALL: [Self; 5] = [Self::Deadline, Self::Stalled, Self::CallerEnded, Self::HelperEnded, Self::GuardianEnded];

    fn number(self) -> u32 {
        match self {
            Self::Deadline => 1,
            Self::Stalled => 2,
            Self::CallerEnded => 3,
            Self::HelperEnded => 4,
            Self::GuardianEnded => 5,
        }
    }

    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Deadline => "the deadline passed",
            Self::Stalled => "freezing took too long, or one of its processes was stopped",
            Self::CallerEnded => "whoever asked for it went away",
            Self::HelperEnded => "the process that froze has ended",
            Self::GuardianEnded => "a guardian has ended",
        }
    }
}

/// See the module. Times are [`super::sys::now_ns`], zero: not yet.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Board {
    deadline_ns: AtomicU64,
    stall_ns: AtomicU64,
    /// Before the first call that freezes.
    begun_ns: AtomicU64,
    /// After that call.
    first_ns: AtomicU64,
    /// After the last call that freezes.
    frozen_ns: AtomicU64,
    /// After the last call that thaws.
    thawed_ns: AtomicU64,
    synced_ns: AtomicU64,
    count: AtomicU32,
    cause: AtomicU32,
    ended: AtomicU32,
    lost: AtomicU32,
    refused_index: AtomicU32,
    refused_errno: AtomicI32,
    states: [AtomicU32; MOUNTS_MAX],
}

impl Board {
    /// An empty one, for a model without other processes.
    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            deadline_ns: AtomicU64::new(0),
            stall_ns: AtomicU64::new(0),
            begun_ns: AtomicU64::new(0),
            first_ns: AtomicU64::new(0),
            frozen_ns: AtomicU64::new(0),
            thawed_ns: AtomicU64::new(0),
            synced_ns: AtomicU64::new(0),
            count: AtomicU32::new(0),
            cause: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            refused_index: AtomicU32::new(0),
            refused_errno: AtomicI32::new(0),
            states: [const { AtomicU32::new(0) }; MOUNTS_MAX],
        }
    }

    /// Before anybody else reads it. `count` is at most [`MOUNTS_MAX`]; freezing may take no longer than being frozen.
    pub(super) fn set_up(&self, count: usize, deadline: Duration, stall: Duration) {
        self.deadline_ns.store(nanoseconds(deadline), SeqCst);
        self.stall_ns.store(nanoseconds(stall.min(deadline)), SeqCst);
        self.count.store(u32::try_from(count.min(MOUNTS_MAX)).unwrap_or(0), SeqCst);
    }

    /// How many file systems there are.
    pub(super) fn count(&self) -> usize {
        (self.count.load(SeqCst) as usize).min(MOUNTS_MAX)
    }

    /// Of the file system with this number in the order of freezing.
    pub(super) fn state(&self, index: usize) -> State {
        match self.states.get(index).map_or(0, |state| state.load(SeqCst)) {
            0 => State::Idle,
            1 => State::Begun,
            2 => State::Frozen,
            _ => State::Thawed,
        }
    }

    fn set_state(&self, index: usize, state: State) {
        let number = match state {
            State::Idle => 0,
            State::Begun => 1,
            State::Frozen => 2,
            State::Thawed => 3,
        };
        if let Some(place) = self.states.get(index) {
            place.store(number, SeqCst);
        }
    }

    /// All file systems were synced, in so many nanoseconds.
    pub(super) fn synced(&self, ns: u64) {
        self.synced_ns.store(ns, SeqCst);
    }

    /// The call that freezes it comes next.
    pub(super) fn begin(&self, index: usize, now: u64) {
        let _ = self.begun_ns.compare_exchange(0, now.max(1), SeqCst, SeqCst);
        self.set_state(index, State::Begun);
    }

    /// The call has returned well.
    pub(super) fn freeze(&self, index: usize, now: u64) {
        self.set_state(index, State::Frozen);
        let _ = self.first_ns.compare_exchange(0, now.max(1), SeqCst, SeqCst);
    }

    /// The call has returned an error: it is not frozen, or not by us.
    pub(super) fn refuse(&self, index: usize, errno: i32) {
        self.set_state(index, State::Idle);
        self.refused_index.store(u32::try_from(index).unwrap_or(0), SeqCst);
        self.refused_errno.store(errno, SeqCst);
    }

    /// Which one could not be frozen, and the error's number.
    pub(super) fn refused(&self) -> Option<(usize, i32)> {
        let errno = self.refused_errno.load(SeqCst);
        (errno != 0).then(|| (self.refused_index.load(SeqCst) as usize, errno))
    }

    /// All are frozen.
    pub(super) fn complete(&self, now: u64) {
        self.frozen_ns.store(now.max(1), SeqCst);
    }

    /// It is not frozen any more.
    pub(super) fn thaw(&self, index: usize, now: u64) {
        self.set_state(index, State::Thawed);
        self.thawed_ns.fetch_max(now, SeqCst);
    }

    /// Somebody who is none of us has thawed one.
    pub(super) fn lose(&self) {
        self.lost.store(1, SeqCst);
    }

    /// Nothing of it is frozen by us.
    pub(super) fn is_thawed(&self) -> bool {
        (0..self.count()).all(|index| matches!(self.state(index), State::Idle | State::Thawed))
    }

    /// What must be thawed now. With `begun` also what may be frozen; only the helper's death makes sure that it is, or will not be.
    pub(super) fn is_to_thaw(&self, index: usize, begun: bool) -> bool {
        match self.state(index) {
            State::Frozen => true,
            State::Begun => begun,
            State::Idle | State::Thawed => false,
        }
    }

    /// See the module's invariants.
    pub(super) fn end(&self) {
        self.ended.store(1, SeqCst);
    }

    /// Whether it is over.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(SeqCst) != 0
    }

    /// The first cause stays.
    pub(super) fn give_up(&self, cause: Cause) {
        let _ = self.cause.compare_exchange(0, cause.number(), SeqCst, SeqCst);
    }

    /// Why it was given up.
    pub(super) fn given_up(&self) -> Option<Cause> {
        let number = self.cause.load(SeqCst);
        Cause::ALL.into_iter().find(|cause| cause.number() == number)
    }

    /// True when all were frozen together from [`Board::complete`] until their owner thawed them.
    pub(super) fn was_held(&self) -> bool {
        self.frozen_ns.load(SeqCst) != 0 && self.given_up().is_none() && self.lost.load(SeqCst) == 0
    }

    /// For the helper: the deadline has passed.
    pub(super) fn is_past_deadline(&self, now: u64) -> bool {
        let first = self.first_ns.load(SeqCst);
        first != 0 && now >= first.saturating_add(self.deadline_ns.load(SeqCst))
    }

    /// For whoever watches the helper: it should have thawed by now, or should have frozen everything.
    pub(super) fn lateness(&self, now: u64) -> Option<Cause> {
        let margin = nanoseconds(GUARDIAN_MARGIN);
        if self.is_past_deadline(now.saturating_sub(margin)) {
            return Some(Cause::Deadline);
        }
        let begun = self.begun_ns.load(SeqCst);
        let is_freezing = begun != 0 && self.frozen_ns.load(SeqCst) == 0;
        let limit = begun.saturating_add(self.stall_ns.load(SeqCst)).saturating_add(margin);
        (is_freezing && now >= limit).then_some(Cause::Stalled)
    }

    /// How long the calls that freeze took together; until now while they run.
    pub(super) fn freezing(&self, now: u64) -> Duration {
        match (self.begun_ns.load(SeqCst), self.frozen_ns.load(SeqCst)) {
            (0, _) => Duration::ZERO,
            (begun, 0) => Duration::from_nanos(now.saturating_sub(begun)),
            (begun, frozen) => Duration::from_nanos(frozen.saturating_sub(begun)),
        }
    }

    /// How long syncing took.
    pub(super) fn synced_for(&self) -> Duration {
        Duration::from_nanos(self.synced_ns.load(SeqCst))
    }

    /// From the first call's return that froze to the last one's that thawed.
    pub(super) fn frozen_for(&self) -> Duration {
        match self.first_ns.load(SeqCst) {
            0 => Duration::ZERO,
            first => Duration::from_nanos(self.thawed_ns.load(SeqCst).saturating_sub(first)),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn board(count: usize) -> Board {
        let board = Board::empty();
        board.set_up(count, Duration::from_secs(10), Duration::from_secs(60));
        board
    }

    #[test]
    fn the_deadline_counts_from_the_first_calls_return() {
        let board = board(2);
        board.begin(0, 5 * SECOND);
        board.freeze(0, 7 * SECOND);
        board.begin(1, 7 * SECOND);
        board.freeze(1, 8 * SECOND);
        board.complete(8 * SECOND);
        assert!(!board.is_past_deadline(17 * SECOND - 1));
        assert!(board.is_past_deadline(17 * SECOND));
        assert_eq!(board.lateness(17 * SECOND), None, "the helper comes first");
        assert_eq!(board.lateness(17 * SECOND + SECOND / 10), Some(Cause::Deadline));
        assert_eq!(board.freezing(100 * SECOND), Duration::from_secs(3));
    }

    #[test]
    fn a_helper_that_stops_while_it_freezes_is_late_a_deadline_after_its_begin() {
        let board = board(2);
        assert_eq!(board.lateness(u64::MAX), None, "nothing has begun");
        board.begin(0, 5 * SECOND);
        assert_eq!(board.lateness(15 * SECOND), None);
        assert_eq!(board.lateness(15 * SECOND + SECOND / 10), Some(Cause::Stalled), "no longer than the deadline");
        // The second one is not frozen in time, though the first one's deadline has not come.
        board.freeze(0, 6 * SECOND);
        board.begin(1, 6 * SECOND);
        assert_eq!(board.lateness(15 * SECOND + SECOND / 10), Some(Cause::Stalled));
    }

    #[test]
    fn only_what_was_begun_is_thawed_and_never_twice() {
        let board = board(4);
        board.begin(0, 1);
        board.freeze(0, 2);
        board.begin(1, 3);
        board.begin(2, 4);
        board.refuse(2, 16);
        let due = |begun| (0..4).filter(|index| board.is_to_thaw(*index, begun)).collect::<Vec<_>>();
        assert_eq!(due(false), [0]);
        assert_eq!(due(true), [0, 1], "what another one froze, and what nobody froze, is left alone");
        assert_eq!(board.refused(), Some((2, 16)));
        assert!(!board.is_thawed());
        board.thaw(0, 5);
        board.thaw(1, 6);
        assert_eq!(due(true), [] as [usize; 0]);
        assert!(board.is_thawed());
        assert_eq!(board.frozen_for(), Duration::from_nanos(4));
    }

    #[test]
    fn a_freeze_that_was_given_up_was_not_held() {
        let held = || {
            let board = board(1);
            board.begin(0, 1);
            board.freeze(0, 2);
            board.complete(3);
            board
        };
        assert!(held().was_held());
        let board = held();
        board.give_up(Cause::HelperEnded);
        board.give_up(Cause::Deadline);
        assert_eq!(board.given_up(), Some(Cause::HelperEnded), "the first cause stays");
        assert!(!board.was_held());
        let board = held();
        board.lose();
        assert!(!board.was_held());
        assert!(!self::board(1).was_held(), "it was never frozen");
    }

    #[test]
    fn the_board_fits_into_a_page() {
        assert!(size_of::<Board>() <= 4096);
    }
}
