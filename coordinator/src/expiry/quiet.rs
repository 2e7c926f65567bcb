//! Instances of which nothing is due for a while: a run passes them over, so that it costs what there is to do, not what there is.
//!
//! Invariants:
//! - An instance is passed over only while everything is as it was when its plan said so: the instance, its policy and its points, which the
//!   catalog counts the changes of; and the clock has not gone back.
//! - Nobody is passed over for longer than [`LONGEST`], whatever the plan said, nor beyond the time of a prune that waits for its day.
//! - What is noted here is a matter of time saved: forgetting it, as every start does, changes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::policy::{Plan, Step, Why};

/// An instance is looked at once a day at least.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

/// What the catalog counts: equal numbers mean that nothing of the instance has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// [`crate::catalog::Catalog::generation`].
    pub(super) generation: u64,
    /// [`crate::catalog::Catalog::point_changes`].
    pub(super) points: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    instances: Mutex<HashMap<String, Noted>>,
}

#[derive(Debug)]
struct Noted {
    state: State,
    from: Timestamp,
    until: Timestamp,
}

impl Quiet {
    /// True when nothing of the instance is due now.
    pub(super) fn holds(&self, instance_id: &str, state: State, now: Timestamp) -> bool {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = instances.get(instance_id);
        noted.is_some_and(|noted| noted.state == state && (noted.from..noted.until).contains(&now))
    }

    /// Nothing of the instance is due from `from` until then, if nothing of that state changes; `None`: something may be.
    pub(super) fn note(&self, instance_id: &str, state: State, from: Timestamp, until: Option<Timestamp>) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        match until {
            Some(until) => instances.insert(instance_id.to_owned(), Noted { state, from, until }),
            None => instances.remove(instance_id),
        };
    }

    /// Forgets the instances that are gone.
    pub(super) fn keep_only(&self, instance_ids: &HashSet<&str>) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.retain(|id, _| instance_ids.contains(id.as_str()));
    }
}

/// Until when a plan that was made at `now` does nothing; `None`: it does something, or the next one may.
pub(super) fn until(plan: &Plan, now: Timestamp) -> Option<Timestamp> {
    // A clock that is not trusted so far goes on with every run.
    if plan.clock < now {
        return None;
    }
    let mut until = now.saturating_add(LONGEST).unwrap_or(Timestamp::MAX);
    for action in &plan.actions {
        let Step::Keep { until: changes, .. } = &action.step else { return None };
        if matches!(action.why, Why::RunLimit | Why::Clock) {
            return None;
        }
        // What has no such time, a held point or the last good one, changes only when something of the instance does.
        until = changes.map_or(until, |changes| changes.min(until));
    }
    Some(until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, Store};

    fn time(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).expect("a time")
    }

    fn keep(until: Option<i64>, why: Why) -> Action {
        Action { point: "p".to_owned(), step: Step::Keep { until: until.map(time), stores: vec![Store::Vault] }, why }
    }

    fn of(actions: Vec<Action>, clock: i64) -> Option<Timestamp> {
        until(&Plan { clock: time(clock), actions, warnings: Vec::new() }, time(100))
    }

    #[test]
    fn a_plan_that_does_nothing_holds_until_the_first_point_changes_and_a_day_at_most() {
        assert_eq!(of(vec![], 100), Some(time(124)));
        let kept = vec![keep(Some(110), Why::KeepUntil), keep(None, Why::LastGood), keep(Some(105), Why::SoftDeleted)];
        assert_eq!(of(kept.clone(), 100), Some(time(105)));
        assert_eq!(of(vec![keep(Some(9000), Why::KeepUntil), keep(None, Why::Held)], 100), Some(time(124)));
        // The clock of deletion is behind, a limit holds something back, or something is to be done.
        assert_eq!(of(kept, 99), None);
        assert_eq!(of(vec![keep(None, Why::RunLimit)], 100), None);
        assert_eq!(of(vec![keep(Some(90), Why::Clock)], 100), None);
        let expire = Action { point: "p".to_owned(), step: Step::Expire, why: Why::KeepUntil };
        assert_eq!(of(vec![keep(Some(110), Why::KeepUntil), expire], 100), None);
    }

    #[test]
    fn an_instance_is_passed_over_while_nothing_of_it_changes() {
        let quiet = Quiet::default();
        let state = State { generation: 1, points: 2 };
        assert!(!quiet.holds("a", state, time(100)));
        quiet.note("a", state, time(100), Some(time(110)));
        for (at, expected) in [(99, false), (100, true), (109, true), (110, false)] {
            assert_eq!(quiet.holds("a", state, time(at)), expected, "{at}");
        }
        assert!(!quiet.holds("a", State { generation: 2, ..state }, time(105)), "an instance or a policy was changed");
        assert!(!quiet.holds("a", State { points: 3, ..state }, time(105)), "a point was");
        assert!(!quiet.holds("b", state, time(105)));
        quiet.keep_only(&HashSet::from(["b"]));
        assert!(!quiet.holds("a", state, time(105)), "it is gone");
        quiet.note("b", state, time(100), Some(time(110)));
        quiet.note("b", state, time(101), None);
        assert!(!quiet.holds("b", state, time(105)));
    }
}
