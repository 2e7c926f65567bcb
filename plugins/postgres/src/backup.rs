//! A backup: a look at the database (D12), pg_dump's output into the vault, and what must be known of it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{BackupJob, Finding, Reporter, Warning};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::repository::Repository;
use vaultferry_vault::writer::{Backup, SnapshotMeta, Staged, WriteError};

use crate::client::Program;
use crate::connection::Server;
use crate::dump::Dump;
use crate::facts::Facts;
use crate::settings::Settings;
use crate::{FACTS_STREAM, readiness};

/// See [`vaultferry_plugin_sdk::Workload::backup`].
pub(crate) async fn backup(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    // Whatever stopped first when the job was cancelled, the job was cancelled.
    let result = run(job, reporter, cancel).await;
    result.map_err(|problem| if cancel.is_cancelled() { cancelled() } else { problem })
}

async fn run(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    let settings = Settings::parse(&job.settings_json)?.limited(job.read_bytes_per_s);
    let server = Server::new(&job.source, None)?.for_job(&job.job_id);
    reporter.phase("looking at the database");
    let (program, facts) = look(&server, &settings, reporter, cancel).await?;
    reporter.expect_bytes(facts.size_bytes);
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let dump = Dump { server: &server, program: &program, settings: &settings, reporter };
    let (mut backup, time) = match read(&job, &repository, &dump, cancel).await {
        Err(problem) if problem.reason == Reason::ReplicaConflict && !cancel.is_cancelled() => {
            reporter.warn(began_again(&problem)).await;
            // Once: a second conflict says that the standby's settings are wrong for it.
            read(&job, &repository, &dump, cancel).await?
        }
        other => other?,
    };
    reporter.phase("finishing");
    reporter.note(format!("the source's snapshot was held for {} s", reporter.snapshot_held().as_secs()));
    let json = facts.to_json()?;
    backup.write_stream(FACTS_STREAM, json.as_slice(), cancel).await.map_err(|error| match error {
        WriteError::Vault(error) => Problem::from(error),
        WriteError::Input(error) => Problem::new(Reason::Internal, error.to_string()),
    })?;
    let meta = SnapshotMeta { time, hostname: vaultferry_plugin_sdk::hostname(), tags: job.tags };
    Ok(backup.stage(meta, cancel).await?)
}

/// What must be known before the dump: that everything can be read, with which program, and what is in the database.
async fn look(
    server: &Server,
    settings: &Settings,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<(Program, Facts), Problem> {
    let session = server.connect(cancel).await?;
    let (program, findings) = readiness::look(server, &session, settings, cancel).await?.ready()?;
    for finding in &findings {
        if is_worth_a_warning(finding) {
            reporter.warn(finding.to_warning()).await;
        } else {
            tracing::info!(reason = %finding.reason, "{}", finding.message);
        }
    }
    let facts = session.run(Facts::gather(&session, &program), Reason::DumpFailed, cancel).await?;
    tracing::info!(
        server = session.version(),
        pg_dump = program.version,
        path = %program.path.display(),
        bytes = facts.size_bytes,
        "the database is ready to be dumped"
    );
    Ok((program, facts))
}

/// What may come to pass, but has not, is for the readiness check to tell: a backup that went well has no warning of it.
fn is_worth_a_warning(finding: &Finding) -> bool {
    !matches!(finding.reason, Reason::LockTimeout | Reason::ReplicaConflict)
}

/// Dumps into a new backup; what a failed one has uploaded is found by the next.
async fn read(
    job: &BackupJob,
    repository: &Arc<Repository>,
    dump: &Dump<'_>,
    cancel: &CancellationToken,
) -> Result<(Backup, jiff::Timestamp), Problem> {
    let options = job.vault.write_options(job.compression);
    let mut backup = Backup::begin(repository.clone(), options, dump.reporter.meter().clone(), cancel).await?;
    dump.reporter.phase(dump.phase());
    let time = jiff::Timestamp::now();
    match dump.run(&mut backup, cancel).await {
        Ok(()) => Ok((backup, time)),
        Err(problem) => {
            backup.abandon(cancel).await;
            Err(problem)
        }
    }
}

fn began_again(problem: &Problem) -> Warning {
    Warning {
        reason: problem.reason.as_str().to_owned(),
        message: format!("the backup began again after the standby had cancelled it: {}", problem.message),
        fix: problem.fix.clone(),
    }
}
