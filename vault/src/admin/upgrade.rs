//! Brings an older vault up to what this program writes, by adding records; nothing that is there is changed.
//!
//! Format 1 is the newest there is: [`super::open`] refuses a newer one, and no older one was ever written. What early versions of format 1
//! did not record, and what a rebuilt catalog needs, is taken from the agent's catalog while it is still there.
//!
//! Invariants:
//! - Each step looks at what is there before it writes, so a step that was killed is gone on with, and a second upgrade writes nothing.
//! - Steps are done in order; each leaves a vault that every program of format 1 reads.

use super::*;
use crate::records::{PolicyRecord, SourceLogin};

/// What the agent's catalog knows and an early vault may lack.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Every version of every policy.
    pub policies: Vec<PolicyRecord>,
    /// Every instance.
    pub instances: Vec<InstanceRecord>,
}

/// A step, and what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is for.
    pub name: &'static str,
    /// Records that it wrote; 0: there was nothing to do.
    pub written: u64,
    /// What it could not do, for people.
    pub remarks: Vec<String>,
}

/// Does what is missing. May be repeated after an error or a kill.
pub async fn run(stores: &dyn Stores, known: &Known, cancel: &CancellationToken) -> Result<Vec<Step>, Error> {
    open(&stores.root()?, cancel).await?;
    Ok(vec![keep_policies(stores, known, cancel).await?, complete_instances(stores, known, cancel).await?])
}

/// Early versions kept a policy in the vault when an instance was linked to it, not before.
async fn keep_policies(stores: &dyn Stores, known: &Known, cancel: &CancellationToken) -> Result<Step, Error> {
    let mut step = Step { name: "keep every policy in the vault", written: 0, remarks: Vec::new() };
    let root = stores.root()?;
    let (there, _) = policies(&root, cancel).await?;
    for policy in &known.policies {
        let same = |other: &&PolicyRecord| (&other.name, other.policy_version) == (&policy.name, policy.policy_version);
        match there.iter().find(same) {
            Some(other) if other.document == policy.document => {}
            None if put_policy(&root, policy, cancel).await? => step.written += 1,
            _ => step.remarks.push(format!(
                "version {} of the policy {} is another one in the vault, and is left so",
                policy.policy_version, policy.name
            )),
        }
    }
    Ok(step)
}

/// Early versions did not record how the agent logs in at a source, nor the source's identity.
async fn complete_instances(stores: &dyn Stores, known: &Known, cancel: &CancellationToken) -> Result<Step, Error> {
    let mut step = Step { name: "record logins and identities of instances", written: 0, remarks: Vec::new() };
    let (there, unreadable) = instances(stores, cancel).await?;
    step.remarks.extend(unreadable.iter().map(ToString::to_string));
    for record in there {
        let Some(known) = known.instances.iter().find(|known| known.id == record.id) else {
            if record.source_identity.is_empty() {
                step.remarks
                    .push(format!("the instance {} is not in the catalog; its login is not known", record.name));
            }
            continue;
        };
        let mut complete = record.clone();
        if complete.source_identity.is_empty() {
            complete.source_identity.clone_from(&known.source_identity);
        }
        if complete.login == SourceLogin::Default {
            complete.login.clone_from(&known.login);
        }
        if complete != record && put_instance(&stores.instance(&record.id)?, &complete, cancel).await? {
            step.written += 1;
        }
    }
    Ok(step)
}
