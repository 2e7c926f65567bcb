//! The keyless check without a coordinator: for a vault whose agent is gone, or for somebody who may read the storage and nothing else.

use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1::CheckReport;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::{Error, admin, check};

use crate::task::check::{depth, done};
use crate::task::{Done, Finding, Report};

/// What was found in one store.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Empty: the vault's own records.
    pub instance_id: String,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Findings that were too many to keep.
    pub omitted: u64,
    /// The figures.
    pub report: CheckReport,
}

impl Checked {
    fn new(instance_id: String, done: Done) -> Self {
        let report = match done.report {
            Some(Report::Check(report)) => report,
            _ => CheckReport::default(),
        };
        Self { instance_id, findings: done.findings, omitted: done.omitted, report }
    }

    /// Findings that concern data.
    pub fn damage_count(&self) -> u64 {
        self.findings.iter().filter(|finding| finding.damage).count() as u64 + self.omitted
    }
}

/// Checks the vault's own records, and the named instances (or all). Changes nothing; damage is not written down either.
///
/// Errors: there is no vault, the store does not answer, or a named instance is not in it.
pub async fn check_offline(
    access: &Access,
    instance_ids: &[String],
    read_data_percent: f64,
    cancel: &CancellationToken,
) -> Result<Vec<Checked>, Problem> {
    let depth = depth(read_data_percent);
    let root = access.open_root().map_err(Error::from)?;
    // A folder that is no vault has nothing wrong with it; that must not pass for a good vault.
    match admin::open(&root, cancel).await {
        Ok(_) | Err(Error::Unreadable { .. } | Error::Damaged { .. }) => {}
        Err(error) => return Err(error.into_problem_of_existing_vault()),
    }
    let there = instances(access, instance_ids)?;
    if let Some(id) = instance_ids.iter().find(|id| !there.contains(id)) {
        let message = format!("the vault at {} has no instance {id}", access.location);
        return Err(Problem::new(Reason::InstanceNotFound, message)
            .with_fix("Without an agent instances are named by their ids: those of their folders or containers."));
    }
    let mut checked = vec![Checked::new(String::new(), done(check::vault(&*root, cancel).await?))];
    for id in if instance_ids.is_empty() { &there[..] } else { instance_ids } {
        let store = access.open_instance(id).map_err(Error::from)?;
        let report = check::keyless(&*store, depth, &Meter::default(), cancel).await?;
        checked.push(Checked::new(id.clone(), done(report)));
    }
    Ok(checked)
}

/// The ids of the vault's instances. A folder tells them; of containers a credential for one of them may not be allowed to list the others,
/// so they are named.
fn instances(access: &Access, named: &[String]) -> Result<Vec<String>, Problem> {
    let Location::Folder(folder) = &access.location else {
        if named.is_empty() {
            let message = format!("the instances of {} must be named", access.location);
            return Err(Problem::new(Reason::InvalidRequest, message)
                .with_fix("Name the ids of the instances: the last 32 digits of their containers' names."));
        }
        return Ok(named.to_vec());
    };
    let entries = match std::fs::read_dir(folder.join("instances")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let message = format!("the folder {} cannot be read: {error}", folder.display());
            return Err(Problem::new(Reason::VaultAccessDenied, message));
        }
    };
    let mut ids: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // What else somebody laid there is no instance.
    ids.retain(|id| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn access(folder: &std::path::Path) -> Access {
        let location = Location::Folder(folder.to_path_buf());
        Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(1) }
    }

    #[tokio::test]
    async fn a_folder_that_is_no_vault_is_no_good_vault() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let problem = check_offline(&access(dir.path()), &[], 0.0, &cancel).await.expect_err("no vault");
        assert_eq!(problem.reason, Reason::VaultNotFound);
        assert_eq!(problem.message, format!("there is no vault at {}", dir.path().display()));
        assert!(problem.fix.starts_with("Check the vault's path or address"), "{}", problem.fix);
        assert!(!problem.fix.contains("vault init"), "{}", problem.fix);
        std::fs::write(dir.path().join("vault.json"), "{}").unwrap();
        let checked = check_offline(&access(dir.path()), &[], 0.0, &cancel).await.unwrap();
        assert!(checked[0].damage_count() > 0, "{checked:?}");
        let unknown = "0123456789abcdef0123456789abcdef".to_owned();
        let problem = check_offline(&access(dir.path()), &[unknown], 0.0, &cancel).await.expect_err("no instance");
        assert_eq!(problem.reason, Reason::InstanceNotFound);
    }
}
