//! What the link to the backup service must not forget, in SQLite. The table `link` has one row.

use async_trait::async_trait;
use rusqlite::{Transaction, params};

use super::Sqlite;
use super::values::{Failure, body, decode, encode, signed};
use crate::catalog::link::{JobReport, LinkRecords, LinkState, OUTBOX_PAGE, Outcome};
use crate::catalog::{Error, Job, Point};

/// Notes that a job was changed, in the transaction that changes it. While nothing is reported, it does nothing.
pub(super) fn note_change(tx: &Transaction<'_>, job_id: &str) -> Result<(), Failure> {
    if tx.prepare_cached("update link set sequence = sequence + 1 where reporting")?.execute([])? == 1 {
        let sql = "insert or replace into job_reports(job_id, sequence) select ?1, sequence from link";
        tx.prepare_cached(sql)?.execute([job_id])?;
    }
    Ok(())
}

/// Takes commits out of the outbox.
pub(super) fn acknowledge(tx: &Transaction<'_>, job_ids: Vec<String>) -> Result<(), Failure> {
    let mut delete = tx.prepare_cached("delete from outbox where job_id = ?1")?;
    for job_id in job_ids {
        delete.execute([job_id])?;
    }
    Ok(())
}

/// Puts a commit into the outbox, unless it is there.
pub(super) fn queue_commit(
    tx: &Transaction<'_>,
    job_id: &str,
    point: &Point,
    time: jiff::Timestamp,
) -> Result<(), Failure> {
    let sql = "insert or ignore into outbox(job_id, create_time, body) values (?1, ?2, ?3)";
    tx.prepare_cached(sql)?.execute(params![job_id, time.as_microsecond(), encode(point)?])?;
    Ok(())
}

fn state(tx: &Transaction<'_>) -> Result<LinkState, Failure> {
    type Row = (String, i64, Option<i64>, Option<String>);
    let sql = "select service_id, applied_version, outcome_sequence, outcome from link";
    let (service_id, applied, sequence, outcome): Row =
        tx.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let outcome = match (sequence, outcome) {
        (Some(sequence), Some(text)) => Some((sequence.cast_unsigned(), decode(&text)?)),
        _ => None,
    };
    Ok(LinkState { service_id, applied_version: applied.cast_unsigned(), outcome })
}

fn next_sequence(tx: &Transaction<'_>) -> Result<i64, Failure> {
    Ok(tx.query_row("update link set sequence = sequence + 1 returning sequence", [], |row| row.get(0))?)
}

#[async_trait]
impl LinkRecords for Sqlite {
    async fn set_reporting(&self, reporting: bool) -> Result<(), Error> {
        self.run(move |tx| {
            tx.execute("update link set reporting = ?1 where reporting <> ?1", [reporting])?;
            if !reporting {
                tx.execute("delete from job_reports", [])?;
                tx.execute("update link set outcome_sequence = null, outcome = null", [])?;
            }
            Ok(())
        })
        .await
    }

    async fn link_state(&self) -> Result<LinkState, Error> {
        self.run(state).await
    }

    async fn register_service(&self, service_id: &str, last_sequence: u64) -> Result<LinkState, Error> {
        let service_id = service_id.to_owned();
        self.run(move |tx| {
            let known = signed(last_sequence);
            let behind: bool = tx.query_row("select sequence < ?1 from link", [known], |row| row.get(0))?;
            if behind {
                // Their order stays.
                for sql in [
                    "update job_reports set sequence = sequence + ?1",
                    "update link set sequence = sequence + ?1, outcome_sequence = outcome_sequence + ?1",
                ] {
                    tx.execute(sql, [known])?;
                }
            }
            let sql = "update link set service_id = ?1, applied_version = 0, outcome_sequence = null, outcome = null where service_id <> ?1";
            tx.execute(sql, [service_id])?;
            state(tx)
        })
        .await
    }

    async fn next_sequence(&self) -> Result<u64, Error> {
        self.run(|tx| Ok(next_sequence(tx)?.cast_unsigned())).await
    }

    async fn set_outcome(&self, service_id: &str, outcome: Outcome) -> Result<bool, Error> {
        let service_id = service_id.to_owned();
        self.run(move |tx| {
            let version = signed(outcome.version);
            let current = state(tx)?;
            if current.service_id != service_id || outcome.version <= current.applied_version {
                return Ok(false);
            }
            let sequence = next_sequence(tx)?;
            let sql =
                "update link set outcome_sequence = ?1, outcome = ?2, applied_version = iif(?3, ?4, applied_version)";
            tx.execute(sql, params![sequence, encode(&outcome)?, outcome.complete, version])?;
            Ok(true)
        })
        .await
    }

    async fn acknowledge_outcome(&self, sequence: u64) -> Result<(), Error> {
        self.run(move |tx| {
            let sql = "update link set outcome_sequence = null, outcome = null where outcome_sequence = ?1";
            tx.execute(sql, [signed(sequence)])?;
            Ok(())
        })
        .await
    }

    async fn job_of_request(&self, request_id: &str) -> Result<Option<Job>, Error> {
        let request_id = request_id.to_owned();
        self.run(move |tx| body(tx, "select body from jobs where request_id = ?1", [request_id])).await
    }

    async fn queue_commits(&self, points: Vec<Point>) -> Result<(), Error> {
        self.run(move |tx| points.iter().try_for_each(|point| queue_commit(tx, &point.job_id, point, point.time))).await
    }

    async fn job_reports(&self) -> Result<Vec<JobReport>, Error> {
        self.run(|tx| {
            let sql = "select r.sequence, j.body from job_reports r join jobs j on j.id = r.job_id
                       where not exists (select 1 from outbox o where o.job_id = r.job_id) order by r.sequence limit ?1";
            let mut statement = tx.prepare_cached(sql)?;
            let rows =
                statement.query_map([OUTBOX_PAGE], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (sequence, text) = row?;
                Ok(JobReport { sequence: sequence.cast_unsigned(), job: decode(&text)? })
            })
            .collect()
        })
        .await
    }

    async fn acknowledge_reports(&self, reports: Vec<(String, u64)>) -> Result<(), Error> {
        self.run(move |tx| {
            let mut delete = tx.prepare_cached("delete from job_reports where job_id = ?1 and sequence = ?2")?;
            for (job_id, sequence) in reports {
                delete.execute(params![job_id, signed(sequence)])?;
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests;
