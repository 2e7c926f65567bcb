//! Copies and moves points to the archive store when their policies say so (P48, P49).
//!
//! | step of the plan | job |
//! |---|---|
//! | `CopyToArchive` | Tier: copy, verify, list in the archive |
//! | `MoveToArchive` | Tier: the same, then remove from the vault store |
//! | `RemoveFromVault` | the same: finds the copy, verifies it, removes |
//!
//! What a kill between these leaves, and why a point is in no store at no instant, is in `vault/src/archive/moving.rs`. The next run plans
//! again from what the vault's records say, and so goes on where the killed one was.
//!
//! Invariants:
//! - One job at a time for an instance, and for all of them together: the rest of the agent's jobs stay with backups and restores.
//! - What is due is asked again right before each job: hours may lie between two, in which people hold, delete and change policies.
//! - A point whose job has failed is left alone for [`REST`], or until the agent starts again; the others go on.
//! - Late is safe: a move that is late makes a point live longer.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use vaultferry_proto::Problem;
use vaultferry_vault::Id;

use super::{Expiry, closed};
use crate::catalog::{Instance, Work};
use crate::policy::{self, Action, Step};

/// A copy reads all of a point: one that fails for good is not repeated every hour.
const REST: Duration = Duration::from_secs(24 * 3600);

/// Which of the steps that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Only those that leave the point in the vault store.
    Copies,
}

impl Expiry {
    /// Copies and moves what is due by `clock`, one point after the other. True when something has left the vault store.
    pub(super) async fn tier(&self, instance: &Instance, clock: Timestamp, which: Which) -> Result<bool, Problem> {
        let mut tried = HashSet::new();
        let mut removed = false;
        while self.next(instance, clock, which, &tried).await?.is_some() {
            let _turn = self.copies.acquire().await.map_err(closed)?;
            let Some((point_id, remove_from_vault)) = self.next(instance, clock, which, &tried).await? else { break };
            tracing::info!(instance = instance.name, point = %point_id, remove_from_vault, "the point is due in the archive store");
            let completed = self.finish(instance, Work::Tier { point_id, remove_from_vault }).await?;
            removed |= completed && remove_from_vault;
            self.note(point_id, completed);
            tried.insert(point_id);
        }
        Ok(removed)
    }

    /// The next point that is due, of those that were not tried in this run, and whether it leaves the vault store.
    async fn next(
        &self,
        instance: &Instance,
        clock: Timestamp,
        which: Which,
        tried: &HashSet<Id>,
    ) -> Result<Option<(Id, bool)>, Problem> {
        // Another policy may be linked by now.
        let Some(instance) = self.shared.catalog.instance(&instance.id).await? else { return Ok(None) };
        let Some(policy) = self.shared.catalog.policy(&instance.policy).await? else { return Ok(None) };
        // Of most policies nothing ever moves.
        if policy::parsed(&policy.document)?.rules.iter().all(|rule| rule.archive.is_none()) {
            return Ok(None);
        }
        let Some(plan) = self.plan(&instance, clock, Some(clock)).await? else { return Ok(None) };
        let mut due =
            plan.actions.iter().filter_map(between_stores).filter(|(_, removes)| which == Which::All || !removes);
        Ok(due.find(|(point, _)| !tried.contains(point) && !self.rests(point)))
    }

    fn rests(&self, point: &Id) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(point).is_some_and(|since| since.elapsed() < REST)
    }

    fn note(&self, point: Id, completed: bool) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, since| since.elapsed() < REST);
        if !completed {
            failed.insert(point, Instant::now());
        }
    }
}

/// The point of a step between the stores, and whether it leaves the vault store.
fn between_stores(action: &Action) -> Option<(Id, bool)> {
    let remove_from_vault = match action.step {
        Step::CopyToArchive => false,
        Step::MoveToArchive | Step::RemoveFromVault => true,
        Step::Keep { .. } | Step::Expire | Step::Purge => return None,
    };
    // The plan names points by the ids that the catalog gave it.
    Some((action.point.parse().ok()?, remove_from_vault))
}
