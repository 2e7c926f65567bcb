//! Is a source ready for backups (P36)? Its plugin is asked; nothing is changed there.
//!
//! Invariant: what "ready" means is said in one place, [`refuse_blocking`]: no finding is blocking.

use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::plugin::v1 as plugin_wire;
use vaultferry_proto::{Problem, Reason};

use super::Api;
use super::discover::PluginClient;
use crate::catalog::{Credential, Instance, Job, ReportFigures, Status};
use crate::job::source;

/// Older backups say little of what the next one takes. A monthly one is within it.
const FORMER: jiff::SignedDuration = jiff::SignedDuration::from_hours(35 * 24);
/// So many of its last backups are looked at: an instance of which all these failed is told of by that.
const FORMER_JOBS: u32 = 64;

impl Api {
    /// The plugin's word on a source that must be ready: its identity and a name for it. Its first blocking finding is the problem.
    pub(super) async fn ask_readiness(
        &self,
        uri: &str,
        source_type: &str,
        credential: &Credential,
    ) -> Result<plugin_wire::ValidateResponse, Problem> {
        let answer = self.look_at_source(uri, source_type, credential, None).await?;
        refuse_blocking(&answer.findings)?;
        Ok(answer)
    }

    /// All that the plugin finds; `former` is what the source's last backup took. A problem only when the source cannot be looked at at all.
    pub(super) async fn look_at_source(
        &self,
        uri: &str,
        source_type: &str,
        credential: &Credential,
        former: Option<plugin_wire::FormerBackup>,
    ) -> Result<plugin_wire::ValidateResponse, Problem> {
        let source = source(uri, credential);
        let call = |mut plugin: PluginClient, settings_json| async move {
            plugin.validate(plugin_wire::ValidateRequest { source: Some(source), settings_json, former }).await
        };
        let answer = self.ask_plugin(source_type, credential, "validate", call).await?;
        for finding in &answer.findings {
            let (reason, blocking) = (&finding.reason, finding.blocking);
            tracing::info!(source = answer.source_identity, reason, blocking, "{}", finding.message);
        }
        Ok(answer)
    }

    /// What the instance's last good backup took, of those that were asked for within [`FORMER`].
    pub(super) async fn former_backup(
        &self,
        instance: &Instance,
    ) -> Result<Option<plugin_wire::FormerBackup>, Problem> {
        let from = vaultferry_vault::clock::now() - FORMER;
        let jobs = self.catalog.jobs_of(&instance.id, &["backup"], from, FORMER_JOBS).await?;
        Ok(jobs.iter().find_map(former))
    }
}

fn former(job: &Job) -> Option<plugin_wire::FormerBackup> {
    let Status::Completed { bytes_read, .. } = job.status else { return None };
    match job.report.as_ref()?.figures {
        Some(ReportFigures::Backup { snapshot_held_ms, .. }) => {
            Some(plugin_wire::FormerBackup { source_bytes: bytes_read, snapshot_held_ms })
        }
        _ => None,
    }
}

/// The first blocking finding, as the problem that it is.
pub(super) fn refuse_blocking(findings: &[plugin_wire::ReadinessFinding]) -> Result<(), Problem> {
    let blocking = findings.iter().filter(|finding| finding.blocking).count();
    let Some(first) = findings.iter().find(|finding| finding.blocking) else { return Ok(()) };
    let Ok(reason) = first.reason.parse::<Reason>() else {
        let message = format!("the plugin gave a reason that nobody knows: {:?}: {}", first.reason, first.message);
        return Err(Problem::new(Reason::PluginProtocol, message));
    };
    let more = if blocking > 1 { format!(" (the first of {blocking} faults)") } else { String::new() };
    Err(Problem::new(reason, format!("{}{more}", first.message)).with_fix(&first.fix))
}

/// As the control interface tells it.
pub(super) fn to_wire_finding(finding: plugin_wire::ReadinessFinding) -> wire::ReadinessFinding {
    let plugin_wire::ReadinessFinding { reason, message, fix, objects, object_count, blocking } = finding;
    wire::ReadinessFinding { reason, message, fix, objects, object_count, blocking }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lifecycle::tests::world_with;
    use crate::plugin::hanging;

    /// Whoever asks: a new source, an instance that is validated, one that is moved.
    #[tokio::test]
    async fn a_plugin_that_hangs_over_a_source_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("folder");
        let jobs = world_with(dir.path(), BTreeMap::from([("postgres".to_owned(), hanging::command())])).await;
        let (shared, cancel) = (jobs.shared().clone(), tokio_util::sync::CancellationToken::new());
        let root = shared.vault.open_root().expect("root");
        let vault = vaultferry_vault::admin::open(&root, &cancel).await.expect("a vault");
        let api = Api::new(shared.catalog.clone(), shared, jobs, vault, Default::default());
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let asked = api.ask_readiness("postgres://u@h/shop", "postgres", &Credential::None).await;
        assert_eq!(asked.expect_err("nobody answers").reason, Reason::PluginTimeout);
        assert_eq!(begun.elapsed().as_secs(), 120);
    }

    fn finding(reason: &str, blocking: bool) -> plugin_wire::ReadinessFinding {
        plugin_wire::ReadinessFinding {
            reason: reason.to_owned(),
            message: format!("{reason} was seen"),
            fix: "mend it".to_owned(),
            blocking,
            ..plugin_wire::ReadinessFinding::default()
        }
    }

    #[test]
    fn a_source_is_ready_when_no_finding_is_blocking() {
        let warning = finding("SizeAboveRecommended", false);
        assert_eq!(refuse_blocking(&[]), Ok(()));
        assert_eq!(refuse_blocking(std::slice::from_ref(&warning)), Ok(()));
        let (first, second) = (finding("RowSecurityHidesRows", true), finding("ClientTooOld", true));
        let problem = refuse_blocking(&[warning, first, second]).expect_err("not ready");
        assert_eq!(problem.reason, Reason::RowSecurityHidesRows);
        assert_eq!(problem.message, "RowSecurityHidesRows was seen (the first of 2 faults)");
        assert_eq!(problem.fix, "mend it");
        let unknown = refuse_blocking(&[finding("NoSuchReason", true)]).expect_err("not ready");
        assert_eq!(unknown.reason, Reason::PluginProtocol);
    }
}
