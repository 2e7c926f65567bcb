//! Attempts that are planned at backups that have failed.

use rusqlite::{Transaction, params};

use super::jobs;
use super::values::{Failure, body, encode};
use crate::catalog::{Retry, Status};

/// See [`crate::catalog::Catalog::fail_and_retry`].
pub(super) fn fail(tx: &Transaction<'_>, job_id: &str, status: Status, retry: &Retry) -> Result<bool, Failure> {
    jobs::change(tx, job_id, |job| job.attempt.next = Some(retry.due))?;
    if !jobs::save_status(tx, job_id, status, Vec::new())? {
        return Ok(false);
    }
    let sql = "insert or replace into retries(instance_id, due, body) values (?1, ?2, ?3)";
    tx.execute(sql, params![retry.instance_id, retry.due.as_microsecond(), encode(retry)?])?;
    Ok(true)
}

/// See [`crate::catalog::Catalog::remove_retry`].
pub(super) fn remove(tx: &Transaction<'_>, retry: &Retry) -> Result<(), Failure> {
    let planned = body::<Retry>(tx, "select body from retries where instance_id = ?1", [&retry.instance_id])?;
    if planned.as_ref() == Some(retry) {
        tx.execute("delete from retries where instance_id = ?1", [&retry.instance_id])?;
    }
    Ok(())
}
