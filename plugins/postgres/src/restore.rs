//! A restore as a new database.
//!
//! | step | undone by |
//! |---|---|
//! | look ([`mod@plan`]): name, rights, roles, extensions, a client; what of the dump is restored ([`choice`]) | nothing was touched |
//! | create `vaultferry_restore_<job>` from template0 ([`database`]) | drop it |
//! | on request, make the roles that are missing, marked with the job ([`globals`]) | drop the ones with the mark |
//! | make it its owner's, as the source's is ([`itself`]) | drop it |
//! | pg_restore into it, from its standard input; what it says is judged by rules ([`rules`]); what extensions want before it ([`extension`]) | drop it |
//! | compare it with the point ([`check`]); then what extensions want at the end, as their workers may begin to change rows; give it what was the database's own ([`itself`]) | drop it |
//! | rename it to the wanted name | last step; when it has happened the restore is complete |
//! | take the marks off the roles | by the clean-up after a crash: roles that own something stay |
//!
//! So the wanted name appears if and only if the database is complete and was checked, and what an interrupted job left behind can be told
//! by its name. With `keep_failed` the unfinished database stays after a failure, and after a crash, under its temporary name, and so do the
//! roles that were made for it, with their marks; a restore that was cancelled leaves nothing all the same.

use std::ffi::OsString;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{DatabaseTarget, Reporter, RestoreJob, RestorePlan, Warning, child};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::reader::{CopyError, PointReader};

use crate::client::Restorer;
use crate::connection::{Server, Session};
use crate::facts::{self, Facts};
use crate::loader::Loader;
use crate::settings::Settings;
use crate::{DUMP_STREAM, FACTS_STREAM, GLOBALS_STREAM, extension};

mod check;
mod choice;
mod database;
mod globals;
mod itself;
mod list;
mod plan;
mod rules;
mod settings;
mod toc;

use choice::{Choice, Wanted};
use globals::Globals;
use toc::Toc;

/// The database to log in to when the target names none: every server has it, unless somebody dropped it.
const MAINTENANCE_DATABASE: &str = "postgres";

/// What the unfinished database's name begins with.
const TEMPORARY_PREFIX: &str = "vaultferry_restore_";

/// PostgreSQL cuts longer names (NAMEDATALEN - 1).
const NAME_MAX: usize = 63;

/// Larger than any real `globals.sql` (100,000 roles), and small enough to be held in memory.
const GLOBALS_MAX: u64 = 64 * 1024 * 1024;

/// See [`vaultferry_plugin_sdk::Workload::restore`].
pub(crate) async fn restore(
    job: &RestoreJob,
    target: &DatabaseTarget,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let looked = Prepared::new(job, target, reporter, cancel).await.map_err(|problem| told(problem, cancel))?;
    if let Err(problem) = looked.create().await {
        // There is nothing in it to keep, if it is there at all.
        return Err(looked.remove(told(problem, cancel), target, reporter).await);
    }
    match looked.complete(target, reporter, cancel).await {
        Ok(bytes) => Ok(bytes),
        Err(problem) => Err(looked.undo(told(problem, cancel), target, reporter).await),
    }
}

/// See [`vaultferry_plugin_sdk::Workload::plan_restore`].
pub(crate) async fn plan(
    job: &RestoreJob,
    target: &DatabaseTarget,
    cancel: &CancellationToken,
) -> Result<RestorePlan, Problem> {
    check_name(&target.database)?;
    let settings = Settings::parse(&job.settings_json)?;
    let wanted = Wanted::new(target)?;
    let server = Server::new(&target.server, Some(MAINTENANCE_DATABASE))?;
    let session = server.connect(cancel).await?;
    let user = plan::ask(&session, &target.database, cancel).await?;
    let read = Point::read(job, target, cancel).await?;
    let choice = read.choose(&wanted, &user)?;
    let wish = read.wish(target, choice.as_ref());
    let look = plan::look(&session, &user, wish, &settings, cancel).await?;
    let (database_bytes, free_bytes) = (plan::database_bytes(wish), plan::free_at(&server, &session, cancel).await?);
    let mut findings = look.findings;
    findings.extend(plan::space(database_bytes, free_bytes));
    let tables = choice.as_ref().and_then(|choice| choice.counts.get("TABLE").copied()).unwrap_or_default();
    Ok(RestorePlan { findings, dump_bytes: read.dump_bytes, database_bytes, free_bytes, tables })
}

/// Removes the unfinished database of that job and the roles that it made, if there are any.
pub(crate) async fn clean_up(job_id: &str, target: &DatabaseTarget, cancel: &CancellationToken) -> Result<(), Problem> {
    let name = temporary_name(job_id)?;
    if target.keep_failed {
        tracing::info!("the unfinished database {name} is left, as it was asked for");
        return Ok(());
    }
    let server = Server::new(&target.server, Some(MAINTENANCE_DATABASE))?;
    let work = async {
        database::drop_database(&server, &name).await?;
        if target.globals { globals::drop_marked(&server, job_id).await } else { Ok(()) }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled()),
        done = work => done,
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

/// What a restore reads of its point before it begins.
struct Point {
    reader: PointReader,
    dump_bytes: u64,
    facts: Facts,
    /// `None`: it is not what this version knows; then everything is restored as it is.
    toc: Option<Toc>,
    /// `None`: the point has none.
    globals: Option<Globals>,
}

impl Point {
    async fn read(job: &RestoreJob, target: &DatabaseTarget, cancel: &CancellationToken) -> Result<Self, Problem> {
        let repository = job.open(cancel).await?;
        let reader = PointReader::open(repository, job.snapshot_id, cancel).await?;
        let dump = reader.streams().iter().find(|stream| stream.name == DUMP_STREAM).map(|stream| stream.size);
        let dump_bytes =
            dump.ok_or_else(|| Problem::new(Reason::RepositoryDamaged, "the point holds no dump of a database"))?;
        let facts = read_facts(&reader, cancel).await?;
        let has_to_choose = !target.schemas.is_empty() || !target.tables.is_empty();
        let toc = read_toc(&reader, has_to_choose, cancel).await?;
        let globals = read_globals(&reader, cancel).await?;
        Ok(Self { reader, dump_bytes, facts, toc, globals })
    }

    fn choose(&self, wanted: &Wanted, user: &plan::User) -> Result<Option<Choice>, Problem> {
        self.toc.as_ref().map(|toc| choice::choose(toc, wanted, user.rights)).transpose()
    }

    fn wish<'a>(&'a self, target: &'a DatabaseTarget, choice: Option<&'a Choice>) -> plan::Wish<'a> {
        plan::Wish { target, facts: &self.facts, choice, globals: self.globals.as_ref() }
    }
}

/// A restore that has looked at everything and touched nothing.
struct Prepared {
    job_id: String,
    server: Server,
    session: Session,
    reader: PointReader,
    facts: Facts,
    choice: Option<Choice>,
    /// Only a part was asked for.
    partial: bool,
    globals: Option<Globals>,
    missing_roles: Vec<String>,
    no_tablespaces: bool,
    /// The database's own.
    tablespace: Option<String>,
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
        let wanted = Wanted::new(target)?;
        let server = Server::new(&target.server, Some(MAINTENANCE_DATABASE))?;
        reporter.phase("looking at the target");
        let session = server.connect(cancel).await?;
        let user = plan::ask(&session, &target.database, cancel).await?;
        reporter.phase("opening the vault");
        let read = Point::read(job, target, cancel).await?;
        reporter.expect_bytes(read.dump_bytes);
        let choice = read.choose(&wanted, &user)?;
        let look = plan::look(&session, &user, read.wish(target, choice.as_ref()), &settings, cancel).await?;
        vaultferry_plugin_sdk::Finding::refuse_blocking(&look.findings)?;
        for finding in &look.findings {
            match finding.reason {
                Reason::PartlyRestored => reporter.warn(finding.to_warning()).await,
                reason => tracing::info!(%reason, "{}", finding.message),
            }
        }
        let missing = || Problem::new(Reason::Internal, "a target is ready without a pg_restore");
        Ok(Self {
            job_id: job.job_id.clone(),
            server,
            session,
            reader: read.reader,
            facts: read.facts,
            choice,
            partial: !wanted.is_everything(),
            globals: read.globals,
            missing_roles: look.missing_roles,
            no_tablespaces: look.no_tablespaces,
            tablespace: look.tablespace,
            restorer: look.restorer.ok_or_else(missing)?,
            temporary,
        })
    }

    /// Makes the new database, empty.
    async fn create(&self) -> Result<(), Problem> {
        let tablespace = self.tablespace.as_deref();
        database::create(&self.server, &self.session, &self.temporary, &self.facts, tablespace).await
    }

    /// Fills the new database, checks it, and gives it its name.
    async fn complete(
        &self,
        target: &DatabaseTarget,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<u64, Problem> {
        if let Some(globals) = self.globals.as_ref().filter(|_| target.globals) {
            reporter.phase("making roles");
            let made = globals::create(&self.session, globals, &self.missing_roles, &self.job_id, cancel).await?;
            warn_all(reporter, made).await;
        }
        if !self.partial && !target.no_owner {
            let (names, owner) = ((self.temporary.as_str(), target.database.as_str()), &self.facts.owner);
            let made = target.globals && self.missing_roles.contains(owner);
            let warnings = itself::give_owner(&self.session, names, owner, made, cancel).await?;
            warn_all(reporter, warnings).await;
        }
        let hooks = self.hooks();
        let before: Vec<&str> = hooks.iter().flat_map(|hook| hook.before_restore).copied().collect();
        if !before.is_empty() {
            reporter.phase("preparing extensions");
            let inside = self.server.in_database(&self.temporary).connect(cancel).await?;
            run_all(&inside, &before, cancel).await?;
        }
        reporter.phase("restoring");
        let (bytes, warnings) = self.fill(target.no_owner, reporter, cancel).await?;
        warn_all(reporter, warnings).await;
        let mut inside = self.server.in_database(&self.temporary).connect(cancel).await?;
        let choice = self.choice.as_ref();
        let checked = check::check(&inside, &self.facts, choice, target.verify, reporter, cancel).await?;
        reporter.phase("finishing");
        let after: Vec<&str> = hooks.iter().flat_map(|hook| hook.after_restore).copied().collect();
        if !after.is_empty() {
            // A new session: the one of the check has settings of its own.
            drop(inside);
            inside = self.server.in_database(&self.temporary).connect(cancel).await?;
            run_all(&inside, &after, cancel).await?;
        }
        if !self.partial {
            let (name, no_owner) = (&target.database, target.no_owner);
            let filled = itself::Filled { session: &inside, temporary: &self.temporary, name, no_owner };
            warn_all(reporter, itself::apply(filled, &self.facts, cancel).await?).await;
        }
        // Nobody may be in it when it gets its name.
        drop(inside);
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        database::rename(&self.server, &self.temporary, &target.database).await?;
        reporter.set_checked(checked);
        if target.globals {
            self.keep_roles(reporter).await;
        }
        Ok(bytes)
    }

    /// What the extensions that are restored want around it.
    fn hooks(&self) -> Vec<&'static extension::ExtensionHooks> {
        let mut hooks = extension::hooks(&self.facts.extensions);
        if let Some(choice) = &self.choice {
            hooks.retain(|hook| choice.extensions.contains(hook.name));
        }
        for hook in &hooks {
            tracing::info!(extension = hook.name, "{}", hook.note);
        }
        hooks
    }

    /// The database is complete: what goes wrong here is worth a warning only.
    async fn keep_roles(&self, reporter: &Reporter) {
        let work = async {
            let session = self.server.connect(&CancellationToken::new()).await?;
            globals::keep_marked(&session, &self.job_id).await
        };
        if let Err(problem) = work.await {
            let message = format!("the comments that mark the new roles could not be removed: {}", problem.message);
            reporter.warn(rules::partly(message, "Remove them: COMMENT ON ROLE name IS NULL;")).await;
        }
    }

    /// Streams the dump into pg_restore. When it returns Ok, pg_restore has said that it is done.
    async fn fill(
        &self,
        no_owner: bool,
        reporter: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<(u64, Vec<Warning>), Problem> {
        let mut arguments: Vec<OsString> = Vec::new();
        if no_owner {
            arguments.extend(["--no-owner", "--no-acl"].map(OsString::from));
        }
        if self.no_tablespaces {
            arguments.push("--no-tablespaces".into());
        }
        // Removed when it is dropped, behind pg_restore's end.
        let list = match self.choice.as_ref().and_then(|choice| choice.ids.as_deref()) {
            Some(ids) => Some(list::File::write(&self.temporary, ids).await?),
            None => None,
        };
        arguments.extend(list.as_ref().map(list::File::argument));
        let mut child = Loader::start(&self.restorer, &self.server, &self.temporary, &arguments, cancel).await?;
        let stdin = child.take_stdin();
        let mut stdin = stdin.ok_or_else(|| Problem::new(Reason::Internal, "pg_restore has no input"))?;
        let copied = self.reader.copy_stream(DUMP_STREAM, &mut stdin, reporter.meter(), cancel).await;
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
        drop(list);
        let warnings = rules::judge(&ended)?;
        // What lies behind the last chosen table is not read.
        let copied = if self.partial { Ok(copied.unwrap_or_else(|_| reporter.meter().read())) } else { copied };
        Ok((all_of(copied)?, warnings))
    }

    /// Removes what this restore has made, or says that it is left, as it was asked for.
    async fn undo(&self, mut problem: Problem, target: &DatabaseTarget, reporter: &Reporter) -> Problem {
        if target.keep_failed && problem.reason != Reason::Cancelled {
            let left = format!(". What was restored is left in the database {}, as it was asked for", self.temporary);
            problem.message.push_str(&left);
            problem.fix.push_str(&format!(" When it is of no use any more: DROP DATABASE {};", self.temporary));
            if target.globals && !self.missing_roles.is_empty() {
                let mark = globals::mark(&self.job_id);
                let left = format!("; roles that were made for it are left, too, with the comment {mark:?}");
                problem.message.push_str(&left);
                let fix = " Then drop these roles, or take their comment away: COMMENT ON ROLE name IS NULL;";
                problem.fix.push_str(fix);
            }
            return problem;
        }
        self.remove(problem, target, reporter).await
    }

    /// Removes what this restore has made. The problem says what is left when that fails.
    async fn remove(&self, mut problem: Problem, target: &DatabaseTarget, reporter: &Reporter) -> Problem {
        reporter.phase("removing the unfinished database");
        if let Err(error) = database::drop_database(&self.server, &self.temporary).await {
            tracing::error!("the unfinished database {} is left: {}", self.temporary, error.message);
            let left = format!(". The unfinished database {} could not be removed: {}", self.temporary, error.message);
            problem.message.push_str(&left);
            problem.fix.push_str(&format!(" Drop the database {} by hand.", self.temporary));
            if target.globals && !self.missing_roles.is_empty() {
                let mark = globals::mark(&self.job_id);
                let left = format!(". Roles that were made for it are left, too, with the comment {mark:?}");
                problem.message.push_str(&left);
            }
            // They own what is in it: a try to drop them would only take their marks away.
            return problem;
        }
        if target.globals
            && let Err(error) = globals::drop_marked(&self.server, &self.job_id).await
        {
            tracing::error!("roles that were made for the restore are left: {}", error.message);
            problem.message.push_str(&format!(". Roles that it made could not be removed: {}", error.message));
        }
        problem
    }
}

/// A pg_restore that says that it is done has read everything.
fn all_of(copied: Result<u64, CopyError>) -> Result<u64, Problem> {
    copied.map_err(|_| Problem::new(Reason::RestoreFailed, "pg_restore ended before it had read the whole dump"))
}

/// Runs statements one by one; the first error is the restore's.
async fn run_all(session: &Session, statements: &[&str], cancel: &CancellationToken) -> Result<(), Problem> {
    for statement in statements {
        let ran = session.run(session.client().batch_execute(statement), Reason::RestoreFailed, cancel).await;
        ran.map_err(rules::named)?;
    }
    Ok(())
}

async fn warn_all(reporter: &Reporter, warnings: Vec<Warning>) {
    for warning in warnings {
        reporter.warn(warning).await;
    }
}

async fn read_facts(point: &PointReader, cancel: &CancellationToken) -> Result<Facts, Problem> {
    let size = point.streams().iter().find(|stream| stream.name == FACTS_STREAM).map(|stream| stream.size);
    if size.is_none_or(|size| size > facts::SIZE_MAX) {
        return Err(Problem::new(Reason::RepositoryDamaged, "the point has no usable database.json"));
    }
    Facts::from_json(&read_all(point, FACTS_STREAM, cancel).await?)
}

/// Not every point has them.
async fn read_globals(point: &PointReader, cancel: &CancellationToken) -> Result<Option<Globals>, Problem> {
    match point.streams().iter().find(|stream| stream.name == GLOBALS_STREAM) {
        None => Ok(None),
        Some(stream) if stream.size > GLOBALS_MAX => {
            Err(Problem::new(Reason::RepositoryDamaged, "the point's globals.sql is too large to be one"))
        }
        Some(_) => {
            let sql = read_all(point, GLOBALS_STREAM, cancel).await?;
            Ok(Some(Globals::parse(&String::from_utf8_lossy(&sql))))
        }
    }
}

async fn read_all(point: &PointReader, name: &str, cancel: &CancellationToken) -> Result<Vec<u8>, Problem> {
    let all = point
        .chunks(name, cancel)?
        .try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    Ok(all)
}

/// The dump's table of contents; the rest is not read. One that this version does not know is an error only for who has to choose in it.
async fn read_toc(point: &PointReader, needed: bool, cancel: &CancellationToken) -> Result<Option<Toc>, Problem> {
    let chunks = point.chunks(DUMP_STREAM, cancel)?;
    let mut input = StreamReader::new(chunks.map(|chunk| chunk.map_err(std::io::Error::other)));
    let error = match toc::read(&mut input).await {
        Ok(toc) => return Ok(Some(toc)),
        Err(error) => error,
    };
    match error.downcast::<vaultferry_vault::Error>() {
        Ok(error) => Err(error.into()),
        Err(error) if needed => {
            let message = format!("the dump's table of contents cannot be read: {error}");
            let fix = "Restore everything, without --schema and --table, with a pg_restore of the version that made the dump or a newer one.";
            Err(Problem::new(Reason::RestoreFailed, message).with_fix(fix))
        }
        Err(error) => {
            tracing::info!("the dump's table of contents is not known here, everything is restored as it is: {error}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests;
