//! The life of an instance after it was made: paused, stopped, deleted, brought back, renamed, moved, linked to another policy.
//!
//! ```text
//!            pause                       stop, data retained                stop, data deleted
//!   Active ────────► Paused      Active, Paused ────────► Stopped      all three ────────► Deleted ──► Purged
//!     ▲  resume        │            ▲  resume                │             │   its time is over, its points are gone
//!     └────────────────┘            └────────────────────────┘             └─ undelete: what it was before
//! ```
//! One change, step by step, and what a kill there leaves:
//!
//! | step | killed behind it |
//! |---|---|
//! | no job begins from here on ([`Change::begin`]) | nothing happened |
//! | the catalog's row says that a change is under way ([`Instance::unsettled`]) | the vault has the old record: taken back |
//! | the vault has the new record | completed |
//! | the catalog has it too, and the mark is gone | completed |
//!
//! Invariants:
//! - The vault's newest record of an instance counts. The next start, the next change and the hourly run of retention read it when the
//!   catalog's row is marked.
//! - A backup begins only while the instance allows it: jobs begin and instances change one after the other ([`crate::job::Jobs::hold_starts`]).
//! - A deleted instance is `Deleted` before its first point is, and brought back after its last point is. What a kill leaves of its points
//!   is deleted by the next run of retention ([`go_on_deleting`]).

use jiff::Timestamp;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::Protection;

use crate::catalog::{Instance, Work};
use crate::policy::PointFacts;

mod change;
mod end;
mod unmade;

pub(crate) use change::{Change, settle_all};
pub(crate) use end::{go_on_deleting, is_deletable};
pub(crate) use unmade::{give_up_all, give_up_at_start};

/// What pausing makes of the instance's protection.
pub(crate) fn paused(instance: &Instance, now: Timestamp) -> Result<Protection, Problem> {
    match &instance.protection {
        Protection::Active => Ok(Protection::Paused { since: now }),
        Protection::Paused { .. } => Ok(instance.protection.clone()),
        Protection::Stopped { .. } | Protection::Deleted { .. } | Protection::Purged { .. } => Err(refusal(instance)),
    }
}

/// What resuming makes of it.
pub(crate) fn resumed(instance: &Instance) -> Result<Protection, Problem> {
    match &instance.protection {
        Protection::Active | Protection::Paused { .. } | Protection::Stopped { .. } => Ok(Protection::Active),
        Protection::Deleted { .. } | Protection::Purged { .. } => Err(refusal(instance)),
    }
}

/// What stopping makes of it, when the data is retained.
pub(crate) fn stopped(instance: &Instance, now: Timestamp) -> Result<Protection, Problem> {
    match &instance.protection {
        Protection::Active | Protection::Paused { .. } => Ok(Protection::Stopped { since: now }),
        Protection::Stopped { .. } => Ok(instance.protection.clone()),
        Protection::Deleted { .. } | Protection::Purged { .. } => Err(refusal(instance)),
    }
}

/// What stopping makes of it, when the data is deleted. An instance that is deleted keeps its own times.
pub(crate) fn deleted(instance: &Instance, now: Timestamp, purge_time: Timestamp) -> Result<Protection, Problem> {
    match &instance.protection {
        Protection::Active | Protection::Paused { .. } | Protection::Stopped { .. } => {
            Ok(Protection::Deleted { since: now, purge_time, before: Box::new(instance.protection.clone()) })
        }
        Protection::Deleted { .. } => Ok(instance.protection.clone()),
        Protection::Purged { .. } => Err(refusal(instance)),
    }
}

/// What bringing back makes of it, and which purge time the points have that come back with it; `None`: it is not deleted.
pub(crate) fn undeleted(instance: &Instance, now: Timestamp) -> Result<Option<(Protection, Timestamp)>, Problem> {
    match &instance.protection {
        Protection::Active | Protection::Paused { .. } | Protection::Stopped { .. } => Ok(None),
        Protection::Deleted { purge_time, before, .. } if now < *purge_time => {
            Ok(Some(((**before).clone(), *purge_time)))
        }
        Protection::Deleted { purge_time, .. } => {
            let message = format!("{} could be brought back until {purge_time}, which is over", instance.name);
            Err(Problem::new(Reason::InstanceDeleted, message).with_fix(
                "Protect the source anew when the instance is gone from the list: vaultferry instance list --deleted.",
            ))
        }
        Protection::Purged { .. } => Err(refusal(instance)),
    }
}

/// Refuses what the instance's state does not allow: backups, bringing single points back, and what retention (`scheduled`) has decided
/// by an earlier state.
pub(crate) fn check_allows(instance: &Instance, work: &Work, scheduled: bool) -> Result<(), Problem> {
    let allowed = match (work, &instance.protection) {
        (Work::Backup { .. }, Protection::Active) => true,
        (Work::Backup { slot, .. }, Protection::Paused { .. }) => slot.is_none(),
        (Work::Backup { .. }, _) => false,
        // It would be deleted again, because its instance is.
        (Work::UndeletePoint { .. }, protection) => !protection.is_deleted(),
        // What is kept for ever does not expire any more, and a deleted instance's points have one purge time.
        (Work::DeletePoint { .. } | Work::Tier { .. }, Protection::Active | Protection::Paused { .. }) => true,
        (Work::DeletePoint { .. } | Work::Tier { .. }, _) => !scheduled,
        _ => true,
    };
    if allowed { Ok(()) } else { Err(refusal(instance)) }
}

/// True for refusals that only say what the instance's state is.
pub(crate) fn is_refusal(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::ProtectionStopped | Reason::InstanceDeleted)
}

/// Why something cannot be done with an instance that is not active.
pub(crate) fn refusal(instance: &Instance) -> Problem {
    let name = &instance.name;
    match &instance.protection {
        Protection::Active => Problem::new(Reason::InvalidRequest, format!("{name} is protected")),
        Protection::Paused { since } => {
            Problem::new(Reason::ProtectionStopped, format!("the schedule of {name} is paused since {since}"))
        }
        Protection::Stopped { since } => Problem::new(
            Reason::ProtectionStopped,
            format!("the protection of {name} was stopped at {since}; its points are retained"),
        ),
        Protection::Deleted { purge_time, .. } => Problem::new(
            Reason::InstanceDeleted,
            format!("{name} was stopped and its data deleted; it can be brought back until {purge_time}"),
        ),
        Protection::Purged { .. } => Problem::new(Reason::InstanceNotFound, format!("{name} is gone for good")),
    }
}

/// Keeps retention's hands off the listed points of an instance that was stopped: retained ones stay for ever, and those of a deleted
/// instance are deleted together ([`go_on_deleting`]). What is deleted already is purged when its time comes.
pub(crate) fn keep_listed(instance: &Instance, points: &mut [PointFacts]) {
    if matches!(instance.protection, Protection::Active | Protection::Paused { .. }) {
        return;
    }
    for point in points.iter_mut().filter(|point| point.purge_time.is_none()) {
        point.held = true;
    }
}

/// When the points of the instance expire is not for its policy to say any more.
pub(crate) fn keeps_for_ever(instance: &Instance) -> bool {
    matches!(instance.protection, Protection::Stopped { .. })
}

#[cfg(test)]
pub(crate) mod tests;
