//! A backup: a look at the database (D12), pg_dump's output into the vault, and what must be known of it.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{BackupJob, Finding, Reporter, Warning};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::repository::Repository;
use vaultferry_vault::writer::{Backup, SnapshotMeta, Staged, WriteError};

use crate::client::Program;
use crate::connection::{Server, Session};
use crate::dump::{Dump, Dumped};
use crate::facts::{Facts, TableData};
use crate::settings::Settings;
use crate::{FACTS_STREAM, GLOBALS_STREAM, globals, readiness};

/// How much of pg_dump's warnings a job's warning tells; all of them are in the point.
const TOLD_MAX: usize = 2000;

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
    let (program, mut facts) = look(&server, &settings, reporter, cancel).await?;
    reporter.expect_bytes(facts.size_bytes);
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let dump = Dump { server: &server, program: &program, settings: &settings, reporter };
    let (mut backup, dumped) = match read(&job, &repository, &dump, cancel).await {
        Err(problem) if problem.reason == Reason::ReplicaConflict && !cancel.is_cancelled() => {
            reporter.warn(began_again(&problem)).await;
            // Once: a second conflict says that the standby's settings are wrong for it.
            read(&job, &repository, &dump, cancel).await?
        }
        other => other?,
    };
    reporter.phase("finishing");
    reporter.note(format!("the source's snapshot was held for {} s", reporter.snapshot_held().as_secs()));
    let time = dumped.snapshot.taken;
    let finished = finish(&mut backup, &dump, &mut facts, dumped, cancel).await;
    if let Err(problem) = finished {
        backup.abandon(cancel).await;
        return Err(problem);
    }
    let meta = SnapshotMeta { time, hostname: vaultferry_plugin_sdk::hostname(), tags: job.tags };
    Ok(backup.stage(meta, cancel).await?)
}

/// What follows a good dump: its warnings are told, and the other streams written.
async fn finish(
    backup: &mut Backup,
    dump: &Dump<'_>,
    facts: &mut Facts,
    dumped: Dumped,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let Dumped { snapshot, mut counted, words, exit_status } = dumped;
    if !words.is_empty() {
        dump.reporter.warn(said(&words)).await;
    }
    // In another encoding than UTF-8 the bytes of a name may be valid UTF-8 by chance, of another name.
    if let Ok(contents) = &mut counted
        && (contents.foreign_names || !matches!(facts.encoding.as_str(), "UTF8" | "SQL_ASCII"))
    {
        name_again(dump.server, &contents.oids, &mut contents.tables, cancel).await?;
    }
    if let Err(why) = &counted {
        dump.reporter.note(format!("the rows of the dump were not counted: {why}"));
    }
    facts.add_ended(&words, exit_status);
    facts.add_dump(snapshot, counted);
    match globals::read(dump.server, dump.program, cancel).await? {
        Ok(globals) => write(backup, GLOBALS_STREAM, &globals, cancel).await?,
        Err(why) => {
            let message = format!("the point has no {GLOBALS_STREAM}, which holds roles and tablespaces: {why}");
            facts.warnings.push(message.clone());
            dump.reporter.warn(warning(Reason::GlobalsNotRead, message)).await;
        }
    }
    write(backup, FACTS_STREAM, &facts.to_json()?, cancel).await
}

async fn write(backup: &mut Backup, stream: &str, bytes: &[u8], cancel: &CancellationToken) -> Result<(), Problem> {
    backup.write_stream(stream, bytes, cancel).await.map_err(|error| match error {
        WriteError::Vault(error) => Problem::from(error),
        WriteError::Input(error) => Problem::new(Reason::Internal, error.to_string()),
    })?;
    Ok(())
}

/// Asks the server for the names of tables that are not in UTF-8 in the dump, or may not be. A table that is gone by now, or a database whose encoding
/// (`SQL_ASCII`) nobody knows, keeps the name with its strange bytes replaced.
async fn name_again(
    server: &Server,
    oids: &[u32],
    tables: &mut [TableData],
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let asked = async {
        let session = server.connect(cancel).await?;
        session.run(names(&session, oids), Reason::DumpFailed, cancel).await
    };
    match asked.await {
        Ok(names) => {
            for (oid, table) in oids.iter().zip(tables) {
                if let Some((schema, name)) = names.get(oid) {
                    (table.schema, table.name) = (schema.clone(), name.clone());
                }
            }
        }
        Err(_) if cancel.is_cancelled() => return Err(cancelled()),
        Err(problem) => tracing::info!("the names of tables are not told: {}", problem.message),
    }
    Ok(())
}

async fn names(session: &Session, oids: &[u32]) -> Result<HashMap<u32, (String, String)>, tokio_postgres::Error> {
    let query = "select c.oid, n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where c.oid = any($1::oid[])";
    let mut names = HashMap::new();
    for row in session.client().query(query, &[&oids]).await? {
        names.insert(row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?));
    }
    Ok(names)
}

/// pg_dump's warnings, as the job's.
fn said(words: &str) -> Warning {
    let told: String = words.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ");
    let mut message: String = told.chars().take(TOLD_MAX).collect();
    if message.len() < told.len() {
        message.push_str(" … (the point's database.json has more)");
    }
    warning(Reason::DumpWarned, message)
}

fn warning(reason: Reason, message: String) -> Warning {
    Warning { reason: reason.as_str().to_owned(), message, fix: reason.default_fix().to_owned() }
}

/// What must be known before the dump: that everything can be read, with which program, and what is in the database.
async fn look(
    server: &Server,
    settings: &Settings,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<(Program, Facts), Problem> {
    let session = server.connect(cancel).await?;
    let (program, findings) = readiness::look(server, &session, settings, None, cancel).await?.ready()?;
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
    !matches!(finding.reason, Reason::LockTimeout | Reason::ReplicaConflict | Reason::TooFewLocks)
}

/// Dumps into a new backup; what a failed one has uploaded is found by the next.
async fn read(
    job: &BackupJob,
    repository: &Arc<Repository>,
    dump: &Dump<'_>,
    cancel: &CancellationToken,
) -> Result<(Backup, Dumped), Problem> {
    let options = job.vault.write_options(job.compression);
    let mut backup = Backup::begin(repository.clone(), options, dump.reporter.meter().clone(), cancel).await?;
    dump.reporter.phase(dump.phase());
    match dump.run(&mut backup, cancel).await {
        Ok(dumped) => Ok((backup, dumped)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_dump_says_is_a_warning_of_bounded_length() {
        let warning = said("pg_dump: warning: typed table\n\npg_dump: detail: t");
        assert_eq!(warning.reason, "DumpWarned");
        assert_eq!(warning.message, "pg_dump: warning: typed table; pg_dump: detail: t");
        assert!(!warning.fix.is_empty());
        let long = said(&"한".repeat(TOLD_MAX + 1)).message;
        assert!(
            long.starts_with("한한") && long.ends_with("has more)") && long.chars().count() < TOLD_MAX + 60,
            "{long}"
        );
    }
}
