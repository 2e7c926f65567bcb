//! When the scheduler looks at which instance next.
//!
//! Invariants:
//! - Every instance that has a schedule is noted once, at one time or at none (its schedule has no further slot).
//! - Finding what is due, and noting a new time, cost the logarithm of the number of instances.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::catalog::Instance;
use crate::policy::Document;

/// What the scheduler knows of an instance.
#[derive(Debug, Clone)]
pub(super) struct Scheduled {
    pub(super) instance: Instance,
    /// Shared by all instances of the policy's version: another version is another document.
    pub(super) policy: Arc<Document>,
    /// Slots up to this one are dealt with.
    pub(super) done: Timestamp,
}

impl Scheduled {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policy, &other.policy) && self.done == other.done && self.instance == other.instance
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// By the instance's id, with its time.
    instances: HashMap<String, (Scheduled, Option<Timestamp>)>,
    /// The same, in the order of times.
    times: BTreeSet<(Timestamp, String)>,
}

impl Agenda {
    /// Takes over what the catalog has. Who has not changed keeps its time; the others are due at once.
    pub(super) fn replace(&mut self, now: Timestamp, all: Vec<Scheduled>) {
        let mut before = std::mem::take(self);
        for scheduled in all {
            let time = match before.instances.remove(&scheduled.instance.id) {
                Some((old, time)) if old.is_same(&scheduled) => time,
                _ => Some(now),
            };
            if let Some(time) = time {
                self.times.insert((time, scheduled.instance.id.clone()));
            }
            self.instances.insert(scheduled.instance.id.clone(), (scheduled, time));
        }
    }

    /// Everybody is due: the clock is not what it was.
    pub(super) fn look_at_all(&mut self, now: Timestamp) {
        self.times = self.instances.keys().map(|id| (now, id.clone())).collect();
        self.instances.values_mut().for_each(|(_, time)| *time = Some(now));
    }

    /// One whose time has come, the earliest first.
    pub(super) fn due(&self, now: Timestamp) -> Option<&Scheduled> {
        let (_, id) = self.times.first().filter(|(time, _)| *time <= now)?;
        self.instances.get(id).map(|(scheduled, _)| scheduled)
    }

    /// Notes how far the instance is, and when it is looked at again. One that is not there is not noted.
    pub(super) fn note(&mut self, instance_id: &str, done: Timestamp, next: Option<Timestamp>) {
        let Some((scheduled, time)) = self.instances.get_mut(instance_id) else { return };
        scheduled.done = done;
        if let Some(time) = *time {
            self.times.remove(&(time, instance_id.to_owned()));
        }
        *time = next;
        if let Some(next) = next {
            self.times.insert((next, instance_id.to_owned()));
        }
    }

    /// How far the instance is.
    pub(super) fn done(&self, instance_id: &str) -> Option<Timestamp> {
        self.instances.get(instance_id).map(|(scheduled, _)| scheduled.done)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.times.first().map(|(time, _)| *time)
    }
}
