//! The answer to "is it ready?": the disks are there, somebody can take their snapshot, and what can be frozen is told.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{Finding, Source, Validated};
use vaultferry_proto::{Problem, Reason};

use crate::backup::disks_of;
use crate::instant::{self, Plan};
use crate::scripts::Scripts;
use crate::settings::Settings;
use crate::uri::{self, Uri};
use crate::{provider, usage};

/// Changes nothing.
pub(crate) async fn validate(
    source: &Source,
    settings_json: &str,
    cancel: &CancellationToken,
) -> Result<Validated, Problem> {
    let settings = Settings::parse(settings_json)?;
    let uri: Uri = source.uri.parse()?;
    if source.credential.is_some() {
        return Err(Problem::new(Reason::InvalidSource, "disks of this machine are read without a login")
            .with_fix("Leave --passfile, --password-env and --identity out."));
    }
    let mut paths = Vec::new();
    for disk in &uri.disks {
        paths.push(resolved(disk)?);
    }
    let validated =
        |findings| Validated { source_identity: uri::identity(&paths), suggested_name: uri.suggested_name(), findings };
    let disks = disks_of(&uri);
    let provider = match provider::choose(&disks, settings.provider.as_deref()) {
        Ok(provider) => provider,
        Err(problem) => return Ok(validated(vec![problem.into()])),
    };
    let mut findings = Vec::new();
    if let Some(folder) = &settings.scripts
        && let Err(problem) = Scripts::load(folder)
    {
        findings.push(problem.into());
    }
    // Whoever writes now may not when the backup runs, and the other way round: what falls short is told, and does not stand in the way.
    let plan = instant::plan(&disks, &*provider, &settings).await?;
    if settings.scripts.is_none()
        && let Some(problem) = instant::apart(&disks, &*provider, &plan).await
    {
        findings.push(Finding { blocking: false, ..Finding::from(problem) });
    }
    if let Plan::CannotFreeze(problem) = plan {
        findings.push(Finding { blocking: false, ..Finding::from(problem) });
    }
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    tracing::info!(provider = provider.name(), disks = disks.len(), "the disks were looked at");
    Ok(validated(findings))
}

/// The disk's own path. It must be an image or a block device that can be read.
fn resolved(disk: &Path) -> Result<PathBuf, Problem> {
    let problem = |detail: String| {
        Problem::new(Reason::DiskUnreadable, format!("{} cannot be backed up: {detail}", disk.display()))
    };
    let path = disk.canonicalize().map_err(|error| problem(error.to_string()))?;
    let metadata = path.metadata().map_err(|error| problem(error.to_string()))?;
    let is_device = usage::device(&path).map_err(|error| problem(error.to_string()))?.is_some();
    if !metadata.is_file() && !is_device {
        return Err(problem("it is neither a file nor a block device".to_owned()));
    }
    std::fs::File::open(&path).map_err(|error| problem(error.to_string()))?;
    Ok(path)
}
