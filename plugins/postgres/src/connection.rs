//! Logging in: our own connection by `tokio-postgres`, and the environment that makes pg_dump and pg_restore log in alike.
//!
//! Invariants:
//! - Both see the same host, port, user, password, certificates and TLS mode, and nothing from this machine's libpq files (`~/.pgpass`,
//!   `~/.postgresql`, service files): what validation found true is true for the dump.
//! - The database's name goes through PGDATABASE, which libpq takes as it is; as an argument, a name like `postgres://…` or `a=b`
//!   would be taken for a connection string.
//! - Every login has a password that was looked up, or issued, for it (`login.rs`).
//! - Logging in takes [`CONNECT_TIMEOUT`] at most, with all the ways that a TLS mode has, besides the wait for a token (25 s at most, of Key
//!   Vault's secrets twice that). After that a query waits until it is cancelled; TCP keepalives find a dead peer.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Source;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::{Problem, Reason};

use crate::client::Major;
use crate::quote;
use crate::uri::{Host, Tls, Uri};

mod certificate;
mod classify;
mod login;
mod tls;

use login::Login;

pub use classify::{classify, words_reason};

/// For the whole login: name, TCP, TLS, authentication, and the session's settings; with TLS and without it, where both are tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How the server and its log name us: our own connections, and those of our children. A job's have its id behind it.
const APPLICATION_NAME: &str = "vaultferry";

/// Before firewalls commonly forget an idle connection (some after 4 minutes), and rare enough to cost nothing.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(60);

/// Only the catalog's own functions and operators: a user of the database must not be able to slip in theirs. And no time limit of the
/// database's or the role's own, whichever of them this version has, so that none of them ends a backup half-way: `statement_timeout`
/// a long look at a large catalog, `lock_timeout` a wait for whoever has a catalog's table, `idle_in_transaction_session_timeout` and
/// `idle_session_timeout` a session that waits for pg_dump. What waits here is cancelled with its job. (pg_dump does the same for itself.)
const SETTLE: &str = "
set search_path = pg_catalog;
select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings where name in
    ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";

/// A server, and everything needed to log in.
#[derive(Debug)]
pub struct Server {
    uri: Uri,
    login: Arc<Login>,
    application: String,
}

/// A connection that is logged in. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    client: Client,
    server: String,
    version: i32,
}

impl Server {
    /// Reads the source's URI and where its password is; no service is asked. The URI's database, or else `default_database`, is the one
    /// that the password is for; without either it is [`Reason::InvalidSource`].
    pub fn new(source: &Source, default_database: Option<&str>) -> Result<Self, Problem> {
        let mut uri: Uri = source.uri.parse()?;
        if uri.database.is_none() {
            uri.database = default_database.map(str::to_owned);
        }
        let login = Login::new(source.credential.as_ref(), &uri, uri.source_database()?)?;
        Ok(Self { uri, login: Arc::new(login), application: APPLICATION_NAME.to_owned() })
    }

    /// The same for one job, by whose id an administrator finds all of its sessions in `pg_stat_activity`, pg_dump's among them.
    #[must_use]
    pub(crate) fn for_job(self, job_id: &str) -> Self {
        Self { application: format!("{APPLICATION_NAME} {job_id}"), ..self }
    }

    /// The `application_name` of its sessions. (The server keeps 63 bytes of it: more than a job's id needs.)
    pub(crate) fn application(&self) -> &str {
        &self.application
    }

    /// Where it is.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The same server and login, in another database.
    #[must_use]
    pub fn in_database(&self, database: &str) -> Self {
        let uri = Uri { database: Some(database.to_owned()), ..self.uri.clone() };
        Self { uri, login: self.login.clone(), application: self.application.clone() }
    }

    /// Logs in to the URI's database. A missing right to do so has the statement that grants it as its fix.
    pub async fn connect(&self, cancel: &CancellationToken) -> Result<Session, Problem> {
        let password = self.login.password(cancel).await?;
        unless_cancelled(self.log_in_in_time(password.as_ref()), cancel).await
    }

    async fn log_in_in_time(&self, password: Option<&SecretString>) -> Result<Session, Problem> {
        let logged_in = tokio::time::timeout(CONNECT_TIMEOUT, self.log_in(password)).await;
        logged_in.unwrap_or_else(|_| {
            let message = format!("{} did not answer in {} s", self.uri.server(), CONNECT_TIMEOUT.as_secs());
            Err(Problem::new(Reason::UserErrorMissingNetworkSecurityPermissions, message))
        })
    }

    /// The ways to try, one after the other: libpq's.
    fn modes(&self) -> &'static [SslMode] {
        match (&self.uri.host, &self.uri.tls) {
            (Host::Socket(_), _) | (_, Tls::Disable) => &[SslMode::Disable],
            (_, Tls::Allow) => &[SslMode::Disable, SslMode::Require],
            (_, Tls::Prefer) => &[SslMode::Prefer, SslMode::Disable],
            (_, Tls::Require | Tls::VerifyCa { .. } | Tls::VerifyFull { .. }) => &[SslMode::Require],
        }
    }

    async fn log_in(&self, password: Option<&SecretString>) -> Result<Session, Problem> {
        let mut told = None;
        for &mode in self.modes() {
            let error = match self.log_in_with(mode, password).await? {
                Ok(client) => return self.settle(client).await,
                Err(error) => error,
            };
            let tls = classify::is_tls(&error);
            // The other way is tried when the server cannot do this one, or does not let us in that way.
            let last = !tls && !classify::is_refused(&error);
            // The first refusal counts; but that of a connection with TLS says more than the one before it without.
            if told.is_none() || (mode == SslMode::Require && !tls) {
                told = Some(error);
            }
            if last {
                break;
            }
        }
        Err(match told {
            Some(error) => self.classify(&error),
            None => Problem::new(Reason::Internal, "no way to log in was tried"),
        })
    }

    async fn settle(&self, client: Client) -> Result<Session, Problem> {
        let settled = client.batch_execute(SETTLE).await;
        settled.map_err(|error| self.classify(&error))?;
        let version = client.query_one("select current_setting('server_version_num')::int", &[]).await;
        let version = version.and_then(|row| row.try_get(0)).map_err(|error| self.classify(&error))?;
        Ok(Session { client, server: self.uri.server(), version })
    }

    async fn log_in_with(
        &self,
        mode: SslMode,
        password: Option<&SecretString>,
    ) -> Result<Result<Client, tokio_postgres::Error>, Problem> {
        let mut config = self.config();
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        config.ssl_mode(mode);
        if mode == SslMode::Disable {
            let connected = config.connect(NoTls).await;
            return Ok(connected.map(|(client, connection)| drive(client, connection)));
        }
        let connected = config.connect(tls::connector(&self.uri)?).await;
        Ok(connected.map(|(client, connection)| drive(client, connection)))
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        match &self.uri.host {
            #[cfg(unix)]
            Host::Socket(dir) => config.host_path(dir),
            #[cfg(not(unix))]
            Host::Socket(dir) => config.host(dir),
            Host::Name(name) => config.host(name),
        };
        config.port(self.uri.port).user(&self.uri.user).application_name(&self.application);
        config.connect_timeout(CONNECT_TIMEOUT).keepalives_idle(KEEPALIVES_IDLE);
        if let Some(database) = &self.uri.database {
            config.dbname(database);
        }
        config
    }

    /// What a failed login means, with the statement that mends it when there is one.
    fn classify(&self, error: &tokio_postgres::Error) -> Problem {
        let problem = classify(error, &self.uri.server(), Reason::UserErrorServerConnectionClosed);
        let problem = self.login.refused(problem, &self.uri.user);
        let says = |words: &[&str]| words.iter().any(|words| problem.message.contains(words));
        let user = quote::identifier(&self.uri.user);
        match (problem.reason, &self.uri.database) {
            (Reason::UserErrorMissingDBPermissions, Some(database)) => {
                let database = quote::identifier(database);
                problem.with_fix(format!("GRANT CONNECT ON DATABASE {database} TO {user};"))
            }
            (Reason::UserErrorDBUserAuthFailed, _) if says(&["is not permitted to log in"]) => {
                problem.with_fix(format!("ALTER ROLE {user} LOGIN;"))
            }
            // Since 14, and before.
            (Reason::UserErrorDBUserAuthFailed, _) if says(&["no encryption", "SSL off"]) => {
                problem.with_fix("The server lets this user in over TLS only: add sslmode=verify-full to the URI.")
            }
            // With TLS, so that is not what is missing. At a flexible server the rules are made of its firewall's.
            (Reason::UserErrorDBUserAuthFailed | Reason::UserErrorBackupUserAuthFailed, _)
                if says(&["no pg_hba.conf entry"]) && is_azure(&self.uri.host) =>
            {
                Problem::new(Reason::UserErrorMissingNetworkSecurityPermissions, problem.message).with_fix(
                    "Let the address in that the message names: az postgres flexible-server firewall-rule create --resource-group GROUP \
                     --server-name SERVER --name agent --start-ip-address ADDRESS --end-ip-address ADDRESS",
                )
            }
            (Reason::UserErrorDBUserAuthFailed, _) if says(&["no pg_hba.conf entry"]) => problem.with_fix(
                "Add a line for this user, database and address to the server's pg_hba.conf (hostssl DATABASE USER ADDRESS scram-sha-256), and \
                 let the server read it: SELECT pg_reload_conf();",
            ),
            (Reason::UserErrorDBUserAuthFailed, _) if says(&["requires a valid client certificate"]) => {
                problem.with_fix("Name one with --client-cert FILE --client-key FILE (sslcert and sslkey in the URI).")
            }
            _ => problem,
        }
    }

    /// The variables with which a libpq program that is started at once logs in to `database` as [`Server::connect`] does, and once. One
    /// of them is the password.
    pub async fn child_environment(
        &self,
        database: &str,
        program: Major,
        cancel: &CancellationToken,
    ) -> Result<Vec<(&'static str, OsString)>, Problem> {
        let password = self.login.password(cancel).await?;
        let mode = match &self.uri.tls {
            Tls::Disable => "disable",
            Tls::Allow => "allow",
            Tls::Prefer => "prefer",
            Tls::Require => "require",
            Tls::VerifyCa { .. } => "verify-ca",
            Tls::VerifyFull { .. } => "verify-full",
        };
        let nowhere = || OsString::from(NOWHERE);
        let (cert, key) = match &self.uri.client_certificate {
            Some(files) => (files.cert_path.clone().into_os_string(), files.key_path.clone().into_os_string()),
            None => (nowhere(), nowhere()),
        };
        let mut variables: Vec<(&'static str, OsString)> = vec![
            ("PGHOST", self.uri.host.as_str().into()),
            ("PGPORT", self.uri.port.to_string().into()),
            ("PGUSER", self.uri.user.as_str().into()),
            ("PGDATABASE", database.into()),
            ("PGSSLMODE", mode.into()),
            ("PGSSLROOTCERT", tls::root_cert_for_libpq(&self.uri.tls, program)),
            ("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT.as_secs().to_string().into()),
            ("PGAPPNAME", self.application.as_str().into()),
            // Our own connection speaks no GSSAPI, and knows no passfile, certificate or service file that this user has for libpq.
            ("PGGSSENCMODE", "disable".into()),
            ("PGPASSFILE", nowhere()),
            ("PGSSLCERT", cert),
            ("PGSSLKEY", key),
            ("PGSSLCRL", nowhere()),
            ("PGSERVICEFILE", nowhere()),
        ];
        if let Some(password) = &password {
            variables.push(("PGPASSWORD", password.expose_secret().into()));
        }
        Ok(variables)
    }
}

/// A flexible server of Azure, in whichever of its clouds.
fn is_azure(host: &Host) -> bool {
    matches!(host, Host::Name(name) if name.contains(".postgres.database."))
}

/// A path that libpq takes for "there is no such file"; the null device would be read, and found to be no certificate.
pub(crate) const NOWHERE: &str = "/nonexistent/vaultferry";

/// Lets the connection's own task move bytes until the client is dropped.
fn drive<S, T>(client: Client, connection: tokio_postgres::Connection<S, T>) -> Client
where
    tokio_postgres::Connection<S, T>: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever uses the client sees the error at the next query.
            tracing::debug!("a connection ended: {}", vaultferry_proto::status::chain(&error));
        }
    });
    client
}

impl Session {
    /// The server's `server_version_num`: 150014 for 15.14.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The server's major version.
    pub fn major(&self) -> Major {
        Major::from_version_num(self.version)
    }

    /// The client, for queries that [`Session::run`] bounds.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits for queries; errors without a reason of their own get `otherwise`. A cancelled query goes on at the server until it
    /// notices that the connection was closed.
    pub async fn run<T>(
        &self,
        queries: impl Future<Output = Result<T, tokio_postgres::Error>>,
        otherwise: Reason,
        cancel: &CancellationToken,
    ) -> Result<T, Problem> {
        unless_cancelled(async { queries.await.map_err(|error| self.problem(&error, otherwise)) }, cancel).await
    }

    /// The problem that a query's error is.
    pub fn problem(&self, error: &tokio_postgres::Error, otherwise: Reason) -> Problem {
        classify(error, &self.server, otherwise)
    }
}
