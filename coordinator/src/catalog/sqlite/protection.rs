//! Policies, instances, and the dashboard's figures.

use rusqlite::{Row, Transaction, params};

use super::jobs::UNFINISHED;
use super::values::{Failure, encode, time_from};
use crate::catalog::{Figures, Instance, Policy};

fn policy_of(row: &Row<'_>) -> rusqlite::Result<(String, String, u32, i64, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

/// The newest versions for which the condition on `p` holds.
pub(super) fn policies(
    tx: &Transaction<'_>,
    condition: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Policy>, Failure> {
    let sql = format!(
        "select id, name, version, create_time, document from policies p where {condition} and version =
         (select max(version) from policies q where q.name = p.name) order by name"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(params, policy_of)?;
    rows.map(|row| {
        let (id, name, version, create_time, document) = row?;
        Ok(Policy { id, name, version, create_time: time_from(create_time)?, document })
    })
    .collect()
}

/// Every version of every policy, by name and version.
pub(super) fn all_policies(tx: &Transaction<'_>) -> Result<Vec<Policy>, Failure> {
    let sql = "select id, name, version, create_time, document from policies order by name, version";
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map([], policy_of)?;
    rows.map(|row| {
        let (id, name, version, create_time, document) = row?;
        Ok(Policy { id, name, version, create_time: time_from(create_time)?, document })
    })
    .collect()
}

pub(super) fn insert_policy(tx: &Transaction<'_>, policy: &Policy) -> Result<(), Failure> {
    let values = params![policy.name, policy.version, policy.id, policy.create_time.as_microsecond(), policy.document];
    let sql = "insert or ignore into policies(name, version, id, create_time, document) values (?1, ?2, ?3, ?4, ?5)";
    match tx.execute(sql, values)? {
        0 => Err(Failure::Taken(format!("version {} of policy {}", policy.version, policy.name))),
        _ => Ok(()),
    }
}

pub(super) fn insert_instances(tx: &Transaction<'_>, instances: &[Instance]) -> Result<(), Failure> {
    for instance in instances {
        let values = params![instance.id, instance.name, instance.source_identity, encode(instance)?];
        let sql = "insert or ignore into instances(id, name, identity, body) values (?1, ?2, ?3, ?4)";
        if tx.execute(sql, values)? == 0 {
            return Err(Failure::Taken(format!("the name {} or the source {}", instance.name, instance.source_uri)));
        }
    }
    Ok(())
}

pub(super) fn figures(tx: &Transaction<'_>, since: jiff::Timestamp) -> Result<Figures, Failure> {
    let count = |sql: &str| tx.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
    let since = since.as_microsecond();
    let ended = |status: &str| {
        let sql = "select count(*) from jobs where status = ?1 and create_time >= ?2";
        tx.query_row(sql, params![status, since], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    };
    let sql = "select min(time), max(time) from points where deleted = 0";
    let (oldest, newest): (Option<i64>, Option<i64>) = tx.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let with_point = "exists (select 1 from points p where p.instance_id = i.id and p.deleted = 0)";
    Ok(Figures {
        protected: count(&format!("select count(*) from instances i where {with_point}"))?,
        pending: count(&format!("select count(*) from instances i where not {with_point}"))?,
        points: count("select count(*) from points where deleted = 0")?,
        completed: ended("completed")?,
        failed: ended("failed")?,
        in_progress: count(&format!("select count(*) from jobs where {UNFINISHED}"))?,
        // Of deleted points, too: their bytes are still there.
        stored_bytes: count("select coalesce(sum(stored_bytes), 0) from points")?,
        oldest: oldest.map(time_from).transpose()?,
        newest: newest.map(time_from).transpose()?,
    })
}
