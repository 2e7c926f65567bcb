//! The PostgreSQL plugin: `pg_dump` streamed into a vault, restore as a new database or as files.
//!
//! Invariants:
//! - A password is read where its reference says, given to our own connection and to the children's environment, and never to an
//!   argument, a log, an error or a file.
//! - A point holds up to three streams: `database.dump` (pg_dump's custom format, uncompressed: the vault compresses and deduplicates),
//!   `globals.sql` (the server's roles and tablespaces, without passwords, where they could be read) and `database.json` ([`facts::Facts`]:
//!   what a restore must know before it begins, and what the dump holds).
//! - Nobody is backed up whose rows the user may not read, or cannot see: `readiness` says what is missing, before pg_dump begins.
//! - A dump that ends with anything but status 0, is empty, is no archive or breaks off fails the job with pg_dump's own words.
//! - A restored database has its name if and only if it is complete; until then it is called `vaultferry_restore_<job>`.
//!
//! What it does not do: physical backup, several databases at once.

pub mod archive;
mod backup;
pub mod client;
pub mod connection;
mod discover;
mod dump;
pub mod extension;
pub mod facts;
mod globals;
pub mod grants;
mod loader;
pub mod passfile;
pub mod quote;
mod readiness;
mod restore;
pub mod settings;
mod snapshot;
mod support;
pub mod uri;
mod validate;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::azure::Scope;
use vaultferry_plugin_sdk::{
    BackupJob, CleanUpJob, Discovered, FoundServer, Reporter, RestoreJob, RestorePlan, RestoreTarget, ServerLogin,
    Source, Validated, Workload, files,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::Staged;

/// The name of the stream that `pg_restore` reads.
pub const DUMP_STREAM: &str = "database.dump";

/// The name of the stream with [`facts::Facts`].
pub const FACTS_STREAM: &str = "database.json";

/// The name of the stream with the server's roles and tablespaces as SQL, which a point may lack.
pub const GLOBALS_STREAM: &str = "globals.sql";

/// The workload `postgres`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postgres;

#[async_trait]
impl Workload for Postgres {
    fn source_type(&self) -> &'static str {
        "postgres"
    }

    async fn validate(
        &self,
        source: Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) -> Result<Validated, Problem> {
        validate::validate(&source, settings_json, None, cancel).await
    }

    async fn validate_again(
        &self,
        source: Source,
        settings_json: &str,
        former: vaultferry_plugin_sdk::workload::FormerBackup,
        cancel: &CancellationToken,
    ) -> Result<Validated, Problem> {
        validate::validate(&source, settings_json, Some(former), cancel).await
    }

    async fn discover(
        &self,
        server: Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) -> Result<Discovered, Problem> {
        discover::discover(&server, settings_json, cancel).await
    }

    async fn extensions(
        &self,
        source: Source,
        settings_json: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>, Problem> {
        discover::extensions(&source, settings_json, cancel).await
    }

    async fn find_servers(
        &self,
        scope: &Scope,
        login: &ServerLogin,
        cancel: &CancellationToken,
    ) -> Result<Vec<FoundServer>, Problem> {
        discover::azure::find(scope, login, cancel).await
    }

    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        backup::backup(job, reporter, cancel).await
    }

    async fn restore(&self, job: RestoreJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<u64, Problem> {
        match &job.target {
            RestoreTarget::Database(target) => restore::restore(&job, target, reporter, cancel).await,
            RestoreTarget::Files(destination) => files::restore(&job, destination, reporter, cancel).await,
            RestoreTarget::Disk(_) => Err(no_disk()),
        }
    }

    async fn plan_restore(&self, job: RestoreJob, cancel: &CancellationToken) -> Result<RestorePlan, Problem> {
        match &job.target {
            RestoreTarget::Database(target) => restore::plan(&job, target, cancel).await,
            RestoreTarget::Disk(_) => Err(no_disk()),
            RestoreTarget::Files(_) => {
                let message = "only a restore as a database has a plan";
                Err(Problem::new(Reason::InvalidRequest, message).with_fix("Start the restore as files as it is."))
            }
        }
    }

    async fn clean_up(&self, job: CleanUpJob, cancel: &CancellationToken) -> Result<(), Problem> {
        match &job.target {
            RestoreTarget::Database(target) => restore::clean_up(&job.job_id, target, cancel).await,
            RestoreTarget::Files(destination) => files::clean_up(&job.job_id, destination, cancel).await,
            RestoreTarget::Disk(_) => Err(no_disk()),
        }
    }
}

fn no_disk() -> Problem {
    Problem::new(Reason::InvalidRequest, "a point of a database holds no disk")
        .with_fix("Restore it as a database, or as files.")
}
