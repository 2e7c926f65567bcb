//! Readiness of a database (P36): everything that a backup needs is looked at, nothing is changed, and all that is found is told at once.
//!
//! Invariants:
//! - A backup looks again before it begins (D12), by [`look`] as well: what was found true when the database was protected may have changed.
//! - What a user lacks is found in the catalog and not by trying: no table is locked, and no row is read.
//! - A blocking finding is a thing at which pg_dump would fail, or dump something else than the database. A doubt is no finding.
//! - Every finding about rights has the exact statements that mend it, as a script for psql.
//! - Objects are counted, and [`OBJECTS_MAX`](vaultferry_plugin_sdk::readiness::OBJECTS_MAX) of them named. Works on servers since version 10.
//!
//! Nobody can look at a database without logging in to it: those faults are the problems of [`Server::connect`].

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Finding;
use vaultferry_plugin_sdk::workload::FormerBackup;
use vaultferry_proto::{Problem, Reason};

use crate::client::{self, Kind, Major, Program};
use crate::connection::{Server, Session};
use crate::settings::Settings;
use crate::support;

mod access;
mod lock_space;
pub(crate) mod locks;
mod managed;
mod pooler;
mod standby;

use managed::{ADMINISTRATORS, Managed};
use standby::Expected;

/// What was found.
pub(crate) struct Readiness {
    /// The pg_dump to take; `None` only when a blocking finding says why.
    program: Option<Program>,
    /// What is blocking first.
    pub(crate) findings: Vec<Finding>,
}

impl Readiness {
    /// The pg_dump to take; the first blocking finding is the problem.
    pub(crate) fn ready(self) -> Result<(Program, Vec<Finding>), Problem> {
        Finding::refuse_blocking(&self.findings)?;
        let missing = || Problem::new(Reason::Internal, "a source is ready without a pg_dump");
        Ok((self.program.ok_or_else(missing)?, self.findings))
    }
}

/// Who asks, and where.
struct Asker {
    /// The role whose rights count.
    role: String,
    database: String,
    major: Major,
    /// A superuser may read everything.
    superuser: bool,
    /// What it is granted a membership in, it may use without `SET ROLE`. Since 16 a membership says that itself.
    inherits: bool,
    standby: bool,
    size: u64,
    managed: Managed,
    /// The server's host, for commands that name it.
    host: String,
}

/// Looks at the database that `session` is logged in to. `former` is for estimates. A problem only when the server does not answer any more.
pub(crate) async fn look(
    server: &Server,
    session: &Session,
    settings: &Settings,
    former: Option<FormerBackup>,
    cancel: &CancellationToken,
) -> Result<Readiness, Problem> {
    let mut findings = Vec::new();
    let what_for = format!("the server {}", server.uri().server());
    let program = match client::choose(Kind::Dump, session.major(), &what_for, settings, cancel).await {
        Ok(program) => Some(program),
        Err(problem) if matches!(problem.reason, Reason::ClientNotFound | Reason::ClientTooOld) => {
            findings.push(Finding::from(problem));
            None
        }
        Err(problem) => return Err(problem),
    };
    findings.extend(pooler::look(server, session, cancel).await?);
    let host = server.uri().host.as_str();
    let (asker, access) = session.run(access(session, host), Reason::DumpFailed, cancel).await?;
    findings.extend(access);
    findings.extend(support::large(asker.size));
    let expected = Expected::of(asker.size, former, settings.read_limit_bytes_per_s);
    let surroundings = surroundings(session, &asker, settings, &expected);
    findings.extend(session.run(surroundings, Reason::DumpFailed, cancel).await?);
    findings.sort_by_key(|finding| !finding.blocking);
    Ok(Readiness { program, findings })
}

async fn access(session: &Session, host: &str) -> Result<(Asker, Vec<Finding>), tokio_postgres::Error> {
    let asker = Asker::ask(session, host).await?;
    let findings = if asker.superuser { Vec::new() } else { access::look(session, &asker).await? };
    Ok((asker, findings))
}

/// What is only worth knowing. On whatever server this is, it must not keep anybody from a backup.
async fn surroundings(
    session: &Session,
    asker: &Asker,
    settings: &Settings,
    expected: &Expected,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = Vec::new();
    let mut all = Vec::new();
    if asker.standby {
        let cancels = standby::cancels(session, asker, expected).await;
        all.extend([cancels, standby::is_behind(session, settings.replica_lag()).await]);
    }
    all.extend([locks::look(session).await, lock_space::look(session, asker).await]);
    for looked in all {
        match looked {
            Ok(finding) => findings.extend(finding),
            Err(error) if error.is_closed() => return Err(error),
            Err(error) => tracing::info!("not looked at: {}", vaultferry_proto::status::chain(&error)),
        }
    }
    Ok(findings)
}

impl Asker {
    async fn ask(session: &Session, host: &str) -> Result<Self, tokio_postgres::Error> {
        let query = format!(
            "select current_user::text, current_database()::text, pg_database_size(current_database()), pg_is_in_recovery(),
                    coalesce((select rolsuper from pg_roles where rolname = current_user), false),
                    coalesce((select rolinherit from pg_roles where rolname = current_user), true), {ADMINISTRATORS}"
        );
        let row = session.client().query_one(&query, &[]).await?;
        let size: i64 = row.try_get(2)?;
        let (superuser, administrators): (bool, Option<String>) = (row.try_get(4)?, row.try_get(6)?);
        // Whoever is one at a server with such a role has brought the role there: no service has superusers.
        let administrators = administrators.filter(|_| !superuser);
        Ok(Self {
            role: row.try_get(0)?,
            database: row.try_get(1)?,
            major: session.major(),
            superuser,
            inherits: row.try_get(5)?,
            standby: row.try_get(3)?,
            size: u64::try_from(size).unwrap_or_default(),
            managed: Managed::by_role(administrators.as_deref()),
            host: host.to_owned(),
        })
    }
}
