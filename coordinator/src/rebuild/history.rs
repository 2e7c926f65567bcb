//! The history of jobs, from the newest copy of a catalog that the vault has and that can be read.
//!
//! Jobs that had not ended when the copy was made are left out: nothing tells how they ended.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;
use vaultferry_vault::store::{self, Key};

use super::{cannot, remove_all};
use crate::Config;
use crate::catalog::copy;
use crate::catalog::sqlite::Sqlite;
use crate::catalog::{Catalog as _, Finding, Job, JobFilter};

/// In the state folder, while the history is taken from the copy of that number. Each has a name of its own: who has had one open that could not
/// be read lets it go a moment later, and takes a journal of its name away then.
fn unpacked(config: &Config, number: usize) -> PathBuf {
    config.state_dir.join(format!("{UNPACKED}{number}.sqlite"))
}

/// With what the names of [`unpacked`] and of their journals begin.
const UNPACKED: &str = "catalog-history-";

/// Removes what a kill has left of an earlier rebuild, which may have seen more copies than there are now.
fn remove_leftovers(config: &Config) -> Result<(), Problem> {
    let cannot_list = |error: std::io::Error| cannot(&config.state_dir, &error);
    for entry in std::fs::read_dir(&config.state_dir).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        if entry.file_name().to_string_lossy().starts_with(UNPACKED) {
            remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// Jobs in one transaction.
const BATCH: usize = 1000;

/// How many jobs were taken. A copy that cannot be read is told in `problems`, and the one before it is tried; a store that does not answer
/// is an error.
pub(super) async fn take(
    catalog: &Sqlite,
    config: &Config,
    problems: &mut Vec<String>,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let root = config.vault.open_root()?;
    let stopped = || Problem::from(vaultferry_vault::Error::Cancelled);
    let copies = cancel.run_until_cancelled(copy::list(&root)).await.unwrap_or_else(|| Err(stopped()))?;
    remove_leftovers(config)?;
    for (number, key) in copies.into_iter().rev().enumerate() {
        let path = unpacked(config, number);
        let taken = cancel.run_until_cancelled(take_from(catalog, &path, &root, &key)).await;
        match taken.unwrap_or_else(|| Err(stopped()))? {
            Ok(count) => return Ok(count),
            Err(detail) => problems.push(format!("the copy {key} is passed over: {detail}")),
        }
    }
    problems.push("the history of jobs begins anew: the vault has no copy of a catalog that can be read".to_owned());
    Ok(0)
}

/// The inner error: this copy is of no use.
async fn take_from(
    catalog: &Sqlite,
    path: &Path,
    root: &store::Shared,
    key: &Key,
) -> Result<Result<u64, String>, Problem> {
    let body = match copy::fetch(root, key).await? {
        Ok(body) => body,
        Err(detail) => return Ok(Err(detail)),
    };
    let read = async {
        copy::unpack(body, path).await.map_err(|problem| problem.message)?;
        let old = Sqlite::open(path).map_err(|error| error.to_string())?;
        let jobs = history(&old).await.map_err(|error| error.to_string())?;
        // Closed before its file is removed.
        old.into_single_file().await.map_err(|error| error.to_string())?;
        Ok(jobs)
    };
    let jobs: Result<_, String> = read.await;
    remove_all(path)?;
    let mut jobs = match jobs {
        Ok(jobs) => jobs,
        Err(detail) => return Ok(Err(detail)),
    };
    let count = jobs.len() as u64;
    while !jobs.is_empty() {
        let rest = jobs.split_off(jobs.len().min(BATCH));
        catalog.insert_history(jobs).await?;
        jobs = rest;
    }
    Ok(Ok(count))
}

/// The jobs that have ended, with what they found.
async fn history(old: &Sqlite) -> Result<Vec<(Job, Vec<Finding>)>, crate::catalog::Error> {
    let all = old.jobs(JobFilter { limit: u32::MAX, ..JobFilter::default() }).await?;
    let mut jobs = Vec::with_capacity(all.len());
    for job in all.into_iter().filter(|job| job.status.has_ended()) {
        let findings = match job.report {
            Some(_) => old.findings(&job.id).await?,
            None => Vec::new(),
        };
        jobs.push((job, findings));
    }
    Ok(jobs)
}
