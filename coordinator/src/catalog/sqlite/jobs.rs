//! Jobs, what they found, and their plugins' processes.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::link::note_change;
use super::values::{Failure, bodies, body, encode, signed, status_name};
use crate::catalog::{Finding, Inserted, Job, JobFilter, JobStep, PluginProcess, Report, Status, StoredProblem};

/// The condition for jobs that have not ended.
pub(super) const UNFINISHED: &str = "status in ('in-progress', 'cancelling')";

/// See [`crate::catalog::Catalog::set_status`].
pub(super) fn save_status(
    tx: &Transaction<'_>,
    job_id: &str,
    status: Status,
    warnings: Vec<StoredProblem>,
) -> Result<bool, Failure> {
    let Some(mut job) = body::<Job>(tx, "select body from jobs where id = ?1", [job_id])? else { return Ok(false) };
    if job.status.has_ended() {
        return Ok(false);
    }
    job.status = status;
    job.warnings.extend(warnings);
    let (name, text) = (status_name(&job.status), encode(&job)?);
    tx.prepare_cached("update jobs set status = ?2, body = ?3 where id = ?1")?.execute(params![job_id, name, text])?;
    if job.status.has_ended() {
        tx.prepare_cached("delete from staged where job_id = ?1")?.execute([job_id])?;
    }
    note_change(tx, job_id)?;
    Ok(true)
}

/// See [`crate::catalog::Catalog::insert_job`].
pub(super) fn insert(tx: &Transaction<'_>, job: &Job) -> Result<Inserted, Failure> {
    if let Some(request_id) = &job.request_id
        && let Some(known) = body::<Job>(tx, "select body from jobs where request_id = ?1", [request_id])?
    {
        return Ok(Inserted::Known(Box::new(known)));
    }
    if let Some(exclusive) = job.work.exclusive()
        && !job.status.has_ended()
    {
        let operations = exclusive.operations().join("', '");
        let sql =
            format!("select id from jobs where instance_id = ?1 and operation in ('{operations}') and {UNFINISHED}");
        let busy: Option<String> =
            tx.prepare_cached(&sql)?.query_row([&job.instance_id], |row| row.get(0)).optional()?;
        if let Some(busy) = busy {
            return Ok(Inserted::Busy(busy));
        }
    }
    let (time, operation) = (job.create_time.as_microsecond(), job.work.name());
    let values =
        params![job.id, time, job.instance_id, operation, status_name(&job.status), job.request_id, encode(job)?];
    let sql = "insert into jobs(id, create_time, instance_id, operation, status, request_id, body)
               values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.prepare_cached(sql)?.execute(values)?;
    note_change(tx, &job.id)?;
    Ok(Inserted::New)
}

/// See [`super::Sqlite::insert_history`].
pub(super) fn insert_ended(tx: &Transaction<'_>, job: &Job, found: &[Finding]) -> Result<(), Failure> {
    if !job.status.has_ended() || body::<Job>(tx, "select body from jobs where id = ?1", [&job.id])?.is_some() {
        return Ok(());
    }
    match insert(tx, job)? {
        Inserted::New => insert_findings(tx, &job.id, found),
        // Its request has another job here.
        Inserted::Known(_) | Inserted::Busy(_) => Ok(()),
    }
}

fn insert_findings(tx: &Transaction<'_>, job_id: &str, found: &[Finding]) -> Result<(), Failure> {
    let mut insert = tx.prepare_cached("insert into findings(job_id, number, body) values (?1, ?2, ?3)")?;
    for (number, finding) in (0_i64..).zip(found) {
        insert.execute(params![job_id, number, encode(finding)?])?;
    }
    Ok(())
}

/// The job with that id, or the only one whose id begins so.
pub(super) fn find(tx: &Transaction<'_>, from: &str) -> Result<Option<Job>, Failure> {
    let sql = "select body from jobs where id >= ?1 and id < ?1 || 'g' order by id limit 2";
    let mut jobs: Vec<Job> = bodies(tx, sql, [from])?;
    Ok(if jobs.len() == 1 { jobs.pop() } else { None })
}

/// See [`crate::catalog::Catalog::jobs_like`].
pub(super) fn list_like(
    tx: &Transaction<'_>,
    filter: &JobFilter,
    statuses: &[&str],
    operations: &[&str],
) -> Result<Vec<Job>, Failure> {
    let from = filter.from.map_or(i64::MIN, jiff::Timestamp::as_microsecond);
    let to = filter.to.map_or(i64::MAX, jiff::Timestamp::as_microsecond);
    let one_of = |column: &str, names: &[&str]| match names.is_empty() {
        true => String::new(),
        false => format!("and {column} in ('{}')", names.join("', '")),
    };
    let sql = format!(
        "select body from jobs where create_time >= ?1 and create_time < ?2 {} {}
         order by create_time desc, id desc limit ?3",
        one_of("status", statuses),
        one_of("operation", operations)
    );
    bodies(tx, &sql, params![from, to, filter.limit])
}

/// See [`crate::catalog::Catalog::last_backup`].
pub(super) fn last_backup(tx: &Transaction<'_>, instance_id: &str) -> Result<Option<Job>, Failure> {
    let sql =
        "select body from jobs where instance_id = ?1 and operation = 'backup' and status in ('completed', 'failed')
               order by create_time desc limit 1";
    body(tx, sql, [instance_id])
}

/// See [`crate::catalog::Catalog::jobs_of`].
pub(super) fn list_of(
    tx: &Transaction<'_>,
    instance_id: &str,
    operations: &[&str],
    from: jiff::Timestamp,
    limit: u32,
) -> Result<Vec<Job>, Failure> {
    let operations = operations.join("', '");
    let sql = format!(
        "select body from jobs where instance_id = ?1 and operation in ('{operations}') and create_time >= ?2
         order by create_time desc, id desc limit ?3"
    );
    bodies(tx, &sql, params![instance_id, from.as_microsecond(), limit])
}

/// Changes a job that has not ended; one that has is left as it is.
pub(super) fn change(tx: &Transaction<'_>, job_id: &str, change: impl FnOnce(&mut Job)) -> Result<bool, Failure> {
    let Some(mut job) = body::<Job>(tx, "select body from jobs where id = ?1", [job_id])? else { return Ok(false) };
    if job.status.has_ended() {
        return Ok(false);
    }
    change(&mut job);
    tx.prepare_cached("update jobs set body = ?2 where id = ?1")?.execute(params![job_id, encode(&job)?])?;
    note_change(tx, job_id)?;
    Ok(true)
}

pub(super) fn set_rehydrating(tx: &Transaction<'_>, job_id: &str, rehydrating: bool) -> Result<(), Failure> {
    change(tx, job_id, |job| job.rehydrating = rehydrating).map(|_| ())
}

pub(super) fn set_steps(tx: &Transaction<'_>, job_id: &str, steps: Vec<JobStep>) -> Result<(), Failure> {
    change(tx, job_id, |job| job.steps = steps).map(|_| ())
}

pub(super) fn set_report(
    tx: &Transaction<'_>,
    job_id: &str,
    report: Report,
    findings: &[Finding],
) -> Result<(), Failure> {
    if !change(tx, job_id, |job| job.report = Some(report))? {
        return Ok(());
    }
    tx.execute("delete from findings where job_id = ?1", [job_id])?;
    insert_findings(tx, job_id, findings)
}

pub(super) fn findings(tx: &Transaction<'_>, job_id: &str) -> Result<Vec<Finding>, Failure> {
    bodies(tx, "select body from findings where job_id = ?1 order by number", [job_id])
}

pub(super) fn set_plugin_process(tx: &Transaction<'_>, process: &PluginProcess) -> Result<(), Failure> {
    let sql = "insert or replace into plugin_processes(job_id, pid, start_time) values (?1, ?2, ?3)";
    tx.prepare_cached(sql)?.execute(params![process.job_id, process.pid, signed(process.start_time)])?;
    Ok(())
}

pub(super) fn plugin_processes(tx: &Transaction<'_>) -> Result<Vec<PluginProcess>, Failure> {
    let mut statement = tx.prepare_cached("select job_id, pid, start_time from plugin_processes")?;
    let rows = statement.query_map([], |row| {
        let start_time = row.get::<_, i64>(2)?.cast_unsigned();
        Ok(PluginProcess { job_id: row.get(0)?, pid: row.get(1)?, start_time })
    })?;
    rows.map(|row| Ok(row?)).collect()
}
