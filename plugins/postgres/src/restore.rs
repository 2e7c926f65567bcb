//! A restore as a new database.
//!
//! | step | undone by |
//! |---|---|
//! | look: the name is free, the roles exist, a client is there | nothing was touched |
//! | create `vaultferry_restore_<job>` from template0 | drop it |
//! | pg_restore into it, from its standard input | drop it |
//! | rename it to the wanted name | last step; when it has happened the restore is complete |
//!
//! So the wanted name appears if and only if the database is complete, and what an interrupted job left behind can be told by its name.

use std::ffi::OsString;
use std::time::Duration;

use futures::TryStreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{DatabaseTarget, Reporter, RestoreJob, child};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::reader::{CopyError, PointReader};

use crate::client::{self, Major, Restorer};
use crate::connection::{Server, Session, words_reason};
use crate::facts::{self, Facts, LocaleProvider};
use crate::loader::Loader;
use crate::settings::Settings;
use crate::{DUMP_STREAM, FACTS_STREAM, quote};

/// The database to log in to when the target names none: every server has it, unless somebody dropped it.
const MAINTENANCE_DATABASE: &str = "postgres";

/// What the unfinished database's name begins with.
const TEMPORARY_PREFIX: &str = "vaultferry_restore_";

/// PostgreSQL cuts longer names (NAMEDATALEN - 1).
const NAME_MAX: usize = 63;

/// Creating and renaming are not interrupted: who does not wait for their end does not know what to undo. Copying template0 takes
/// seconds on a busy server.
const CREATE_TIMEOUT: Duration = Duration::from_secs(300);

/// For removing an unfinished database, of any size, when its sessions are being ended.
const DROP_TIMEOUT: Duration = Duration::from_secs(120);

/// How often renaming or dropping is tried while somebody is connected; the server itself waits 5 s each time.
const IN_USE_TRIES: u32 = 4;

/// See [`vaultferry_plugin_sdk::Workload::restore`].
pub(crate) async fn restore(
    job: &RestoreJob,
    target: &DatabaseTarget,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let prepared = Prepared::new(job, target, reporter, cancel).await.map_err(|problem| told(problem, cancel))?;
    let result = match prepared.create().await {
        Ok(()) => prepared.fill_and_rename(target, reporter, cancel).await,
        Err(problem) => Err(problem),
    };
    match result {
        Ok(bytes) => Ok(bytes),
        Err(problem) => {
            reporter.phase("removing the unfinished database");
            Err(prepared.undo(told(problem, cancel)).await)
        }
    }
}

/// Removes the unfinished database of that job, if there is one.
pub(crate) async fn clean_up(job_id: &str, target: &DatabaseTarget, cancel: &CancellationToken) -> Result<(), Problem> {
    let name = temporary_name(job_id)?;
    let server = Server::new(&target.server, Some(MAINTENANCE_DATABASE))?;
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled()),
        dropped = drop_database(&server, &name) => dropped,
    }
}

/// Whatever stopped first when the job was cancelled, the job was cancelled.
fn told(problem: Problem, cancel: &CancellationToken) -> Problem {
    if cancel.is_cancelled() { cancelled() } else { problem }
}

/// The name that the database has until it is complete.
fn temporary_name(job_id: &str) -> Result<String, Problem> {
    let id: String = job_id.chars().filter(|character| *character != '-').collect();
    let usable = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !usable || TEMPORARY_PREFIX.len() + id.len() > NAME_MAX {
        return Err(Problem::new(Reason::InvalidRequest, "the job's id cannot be part of a database's name"));
    }
    Ok(format!("{TEMPORARY_PREFIX}{}", id.to_ascii_lowercase()))
}

fn check_name(name: &str) -> Result<(), Problem> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        let message = format!("a database's name has 1 to {NAME_MAX} bytes and no NUL in it");
        return Err(Problem::new(Reason::InvalidRequest, message));
    }
    Ok(())
}

/// A restore that has looked at everything and touched nothing.
struct Prepared {
    server: Server,
    session: Session,
    point: PointReader,
    facts: Facts,
    restorer: Restorer,
    temporary: String,
}

impl Prepared {
    async fn new(
        job: &RestoreJob,
        target: &DatabaseTarget,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        check_name(&target.database)?;
        let temporary = temporary_name(&job.job_id)?;
        let settings = Settings::parse(&job.settings_json)?;
        let server = Server::new(&target.server, Some(MAINTENANCE_DATABASE))?;
        reporter.phase("looking at the target");
        let session = server.connect(cancel).await?;
        refuse_existing(&session, &target.database, cancel).await?;
        reporter.phase("opening the vault");
        let repository = job.open(cancel).await?;
        let point = PointReader::open(repository, job.snapshot_id, cancel).await?;
        let dump = point.streams().iter().find(|stream| stream.name == DUMP_STREAM);
        let dump =
            dump.ok_or_else(|| Problem::new(Reason::RepositoryDamaged, "the point holds no dump of a database"))?;
        reporter.expect_bytes(dump.size);
        let facts = read_facts(&point, cancel).await?;
        if !target.no_owner {
            refuse_missing_roles(&session, &facts, cancel).await?;
        }
        let restorer = client::choose_restorer(facts.pg_dump_major()?, session.major(), &settings, cancel).await?;
        Ok(Self { server, session, point, facts, restorer, temporary })
    }

    async fn create(&self) -> Result<(), Problem> {
        let statement = create_statement(&self.temporary, &self.facts, self.session.major())?;
        let created = self.session.client().batch_execute(&statement);
        let problem = match tokio::time::timeout(CREATE_TIMEOUT, created).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => self.session.problem(&error, Reason::RestoreFailed),
            Err(_) => Problem::new(Reason::RestoreFailed, "the server did not create a database in time"),
        };
        if problem.reason != Reason::RestoreFailed {
            return Err(problem);
        }
        let fix = format!(
            "The source has encoding {}, collation {} and character type {}; make these locales known to the target server.",
            self.facts.encoding, self.facts.collate, self.facts.ctype
        );
        Err(problem.with_fix(fix))
    }

    async fn fill_and_rename(
        &self,
        target: &DatabaseTarget,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<u64, Problem> {
        reporter.phase("restoring");
        let bytes = self.fill(target.no_owner, reporter, cancel).await?;
        reporter.phase("finishing");
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.rename(&target.database).await?;
        Ok(bytes)
    }

    /// Streams the dump into pg_restore. When it returns Ok, pg_restore has said that it is done.
    async fn fill(&self, no_owner: bool, reporter: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem> {
        let mut arguments: Vec<OsString> = Vec::new();
        if no_owner {
            arguments.extend(["--no-owner", "--no-acl"].map(OsString::from));
        }
        let started = Loader::start(&self.restorer, &self.server, &self.temporary, &arguments).await;
        let mut child = started.map_err(|error| Problem::new(Reason::RestoreFailed, chain(&error)))?;
        let stdin = child.take_stdin();
        let mut stdin = stdin.ok_or_else(|| Problem::new(Reason::Internal, "pg_restore has no input"))?;
        let copied = self.point.copy_stream(DUMP_STREAM, &mut stdin, reporter.meter(), cancel).await;
        drop(stdin);
        if let Err(CopyError::Vault(error)) = copied {
            child.stop().await;
            return Err(error.into());
        }
        // A pg_restore that ends early breaks our pipe; what it says is the cause, the broken pipe is not.
        let ended = match child.finish(cancel).await {
            Ok(ended) => ended,
            Err(child::Error::Cancelled) => return Err(cancelled()),
            Err(error) => return Err(Problem::new(Reason::RestoreFailed, chain(&error))),
        };
        judge(&ended, copied)
    }

    /// Gives the complete database its name. A new connection: the first may have been idle for hours.
    async fn rename(&self, name: &str) -> Result<(), Problem> {
        let session = self.server.connect(&CancellationToken::new()).await?;
        let (from, to) = (quote::identifier(&self.temporary), quote::identifier(name));
        let statement = format!("alter database {from} rename to {to}");
        let renamed = while_in_use(|| session.client().batch_execute(&statement));
        match tokio::time::timeout(CREATE_TIMEOUT, renamed).await {
            Ok(renamed) => renamed.map_err(|error| session.problem(&error, Reason::RestoreFailed)),
            Err(_) => Err(Problem::new(Reason::RestoreFailed, "the server did not rename the database in time")),
        }
    }

    /// Removes the unfinished database; the problem says so when that fails.
    async fn undo(&self, mut problem: Problem) -> Problem {
        if let Err(error) = drop_database(&self.server, &self.temporary).await {
            tracing::error!("the unfinished database {} is left: {}", self.temporary, error.message);
            let left = format!(". The unfinished database {} could not be removed: {}", self.temporary, error.message);
            problem.message.push_str(&left);
            problem.fix.push_str(&format!(" Drop the database {} by hand.", self.temporary));
        }
        problem
    }
}

/// Says whether a pg_restore that has ended did all its work.
fn judge(ended: &child::Ended, copied: Result<u64, CopyError>) -> Result<u64, Problem> {
    if !ended.success() {
        let words = if ended.words.is_empty() { "it said nothing" } else { ended.words.as_str() };
        let reason = words_reason(&ended.words, Reason::RestoreFailed);
        return Err(Problem::new(reason, format!("pg_restore ended with {}: {words}", ended.how())));
    }
    if !ended.words.is_empty() {
        tracing::warn!("pg_restore says: {}", ended.words);
    }
    let message = "pg_restore ended before it had read the whole dump";
    copied.map_err(|_| Problem::new(Reason::RestoreFailed, message))
}

async fn refuse_existing(session: &Session, name: &str, cancel: &CancellationToken) -> Result<(), Problem> {
    let query = "select from pg_database where datname = $1::text";
    let found = session.run(session.client().query(query, &[&name]), Reason::RestoreFailed, cancel).await?;
    if found.is_empty() {
        return Ok(());
    }
    let message = format!("the target server has a database named {name} already");
    Err(Problem::new(Reason::UserErrorDatabaseNameAlreadyInUse, message))
}

async fn refuse_missing_roles(session: &Session, facts: &Facts, cancel: &CancellationToken) -> Result<(), Problem> {
    let query = "select name from unnest($1::text[]) name where not exists (select from pg_roles where rolname = name)";
    let rows = session.run(session.client().query(query, &[&facts.roles]), Reason::RestoreFailed, cancel).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = rows.iter().map(|row| quote::identifier(row.get(0))).collect();
    let message =
        format!("the target server lacks the roles {}, which own or may use what is restored", names.join(", "));
    Err(Problem::new(Reason::RolesMissing, message))
}

async fn read_facts(point: &PointReader, cancel: &CancellationToken) -> Result<Facts, Problem> {
    let size = point.streams().iter().find(|stream| stream.name == FACTS_STREAM).map(|stream| stream.size);
    if size.is_none_or(|size| size > facts::SIZE_MAX) {
        return Err(Problem::new(Reason::RepositoryDamaged, "the point has no usable database.json"));
    }
    let json = point
        .chunks(FACTS_STREAM, cancel)?
        .try_fold(Vec::new(), |mut json, chunk| async move {
            json.extend_from_slice(&chunk);
            Ok(json)
        })
        .await?;
    Facts::from_json(&json)
}

/// `create database` with the source's encoding and locale; template0 is the only template that takes another encoding.
fn create_statement(name: &str, facts: &Facts, target: Major) -> Result<String, Problem> {
    let mut statement = format!(
        "create database {} template template0 encoding {} lc_collate {} lc_ctype {}",
        quote::identifier(name),
        quote::literal(&facts.encoding),
        quote::literal(&facts.collate),
        quote::literal(&facts.ctype),
    );
    let (provider, locale_option, since) = match facts.locale_provider {
        LocaleProvider::Libc => ("libc", None, 15),
        LocaleProvider::Icu => ("icu", Some("icu_locale"), 15),
        LocaleProvider::Builtin => ("builtin", Some("builtin_locale"), 17),
    };
    if target < Major::new(since) {
        if locale_option.is_none() {
            return Ok(statement);
        }
        let message = format!("the database compares texts by {provider}, which a server of version {target} cannot");
        let fix = format!("Restore to a server of version {since} or newer.");
        return Err(Problem::new(Reason::RestoreFailed, message).with_fix(fix));
    }
    statement.push_str(&format!(" locale_provider {provider}"));
    if let (Some(option), Some(locale)) = (locale_option, &facts.locale) {
        statement.push_str(&format!(" {option} {}", quote::literal(locale)));
    }
    if let Some(rules) = facts.icu_rules.as_ref().filter(|_| target >= Major::new(16)) {
        statement.push_str(&format!(" icu_rules {}", quote::literal(rules)));
    }
    Ok(statement)
}

/// Drops the database if it is there, and ends the sessions in it. On a timeout it is not known whether it is gone.
async fn drop_database(server: &Server, name: &str) -> Result<(), Problem> {
    let session = server.connect(&CancellationToken::new()).await?;
    let work = async {
        let database = quote::identifier(name);
        if session.major() >= Major::new(13) {
            let statement = format!("drop database if exists {database} with (force)");
            return while_in_use(|| session.client().batch_execute(&statement)).await;
        }
        let statement = format!("drop database if exists {database}");
        while_in_use(|| async {
            let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1::text";
            session.client().query(end, &[&name]).await?;
            session.client().batch_execute(&statement).await
        })
        .await
    };
    match tokio::time::timeout(DROP_TIMEOUT, work).await {
        Ok(dropped) => dropped.map_err(|error| session.problem(&error, Reason::RestoreFailed)),
        Err(_) => Err(Problem::new(Reason::RestoreFailed, "the server did not drop it in time")),
    }
}

/// Tries again while the server answers that somebody is connected.
async fn while_in_use<F>(mut statement: impl FnMut() -> F) -> Result<(), tokio_postgres::Error>
where
    F: Future<Output = Result<(), tokio_postgres::Error>>,
{
    let mut tries = 1;
    loop {
        match statement().await {
            Err(error) if tries < IN_USE_TRIES && is_in_use(&error) => tries += 1,
            other => return other,
        }
    }
}

fn is_in_use(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE)
}

#[cfg(test)]
mod tests;
