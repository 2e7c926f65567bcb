//! A change of an instance: vault first, then the catalog, with a mark around both.

use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::records::Protection;
use vaultferry_vault::{Error, admin};

use crate::catalog::Instance;
use crate::job::{Jobs, Shared, pause_at};
use crate::recorded;

/// A change that is being made. As long as it lives no job begins and no other instance changes.
#[derive(Debug)]
pub(crate) struct Change {
    shared: Arc<Shared>,
    instance: Instance,
    _no_starts: OwnedRwLockWriteGuard<()>,
}

impl Change {
    /// Waits for the jobs that are just beginning, and reads the instance; from the vault when an earlier change of it came to no end.
    /// Dropping it changes nothing.
    pub(crate) async fn begin(jobs: &Jobs, instance_id: &str, cancel: &CancellationToken) -> Result<Self, Problem> {
        let _no_starts = jobs.hold_starts().await;
        let shared = jobs.shared().clone();
        let gone = || Problem::new(Reason::InstanceNotFound, "the instance is gone");
        let mut instance = shared.catalog.instance(instance_id).await?.ok_or_else(gone)?;
        if instance.unsettled {
            instance = settle(&shared, instance_id, cancel).await?.ok_or_else(gone)?;
        }
        Ok(Self { shared, instance, _no_starts })
    }

    /// What the instance is now.
    pub(crate) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Makes it what is wanted, in the vault and then in the catalog; the vault must be this agent's. After an error the instance is what
    /// it was; when not even that can be known, the vault is asked again before the next change.
    pub(crate) async fn write(self, wanted: Instance, cancel: &CancellationToken) -> Result<Instance, Problem> {
        let Self { shared, instance: before, _no_starts } = self;
        if wanted == before {
            return Ok(wanted);
        }
        crate::owner::check(&shared.vault, &shared.agent_id, cancel).await?;
        let store = shared.vault.open_instance(&before.id)?;
        // The record of an early version may lack what the catalog knows; it may be what is left in the end.
        admin::put_instance(&store, &recorded::instance_record(&before), cancel).await?;
        shared.catalog.save_instance(Instance { unsettled: true, ..before.clone() }).await?;
        pause_at(&shared.state_dir, "instance-marked").await;
        if let Err(error) = admin::put_instance(&store, &recorded::instance_record(&wanted), cancel).await {
            // A lost answer may have been a yes.
            return match settle(&shared, &before.id, cancel).await {
                Ok(Some(settled)) if settled == wanted => Ok(wanted),
                Ok(_) => Err(error.into()),
                Err(problem) => {
                    tracing::warn!(
                        instance = before.name,
                        "whether it was changed is asked again: {}",
                        problem.message
                    );
                    Err(error.into())
                }
            };
        }
        pause_at(&shared.state_dir, "instance-recorded").await;
        save(&shared, &wanted).await?;
        if let Err(error) = manifest::append(&*store, Scope::Instance, &[], cancel).await {
            // The record counts without it; the next commit or maintenance job names it.
            tracing::info!(instance = wanted.name, "the new record is not covered by a manifest yet: {error}");
        }
        Ok(wanted)
    }
}

async fn save(shared: &Shared, instance: &Instance) -> Result<(), Problem> {
    match instance.protection {
        Protection::Purged { .. } => shared.catalog.remove_instance(&instance.id).await?,
        _ => shared.catalog.save_instance(instance.clone()).await?,
    }
    Ok(())
}

/// Makes the catalog's row what the vault's newest record says. `None`: the instance is gone for good.
async fn settle(shared: &Shared, instance_id: &str, cancel: &CancellationToken) -> Result<Option<Instance>, Problem> {
    let store = shared.vault.open_instance(instance_id)?;
    let Some((_, record)) = admin::newest_instance(&store, cancel).await? else {
        let what = format!("the instance {instance_id} in {}", store.location());
        return Err(Error::Unreadable { what, detail: "it has no record".to_owned() }.into());
    };
    let instance = recorded::instance_of(record);
    save(shared, &instance).await?;
    tracing::info!(instance = instance.name, "a change that had come to no end is settled by the vault's record");
    Ok((!matches!(instance.protection, Protection::Purged { .. })).then_some(instance))
}

/// Ends the changes that have come to no end. What the vault does not answer is left marked, for the next time.
pub(crate) async fn settle_all(jobs: &Jobs, cancel: &CancellationToken) {
    let instances = match jobs.shared().catalog.instances().await {
        Ok(instances) => instances,
        Err(error) => return tracing::error!("unsettled instances are looked for again later: {error}"),
    };
    for instance in instances.into_iter().filter(|instance| instance.unsettled) {
        match Change::begin(jobs, &instance.id, cancel).await {
            Ok(_) => {}
            Err(problem) if problem.reason == Reason::InstanceNotFound => {}
            Err(problem) => {
                tracing::warn!(
                    instance = instance.name,
                    "what it was changed to is asked again later: {}",
                    problem.message
                );
            }
        }
    }
}
