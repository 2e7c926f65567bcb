//! The dashboard's figures of each instance, and what a list tells of it. Every query runs in an index; none reads a point's row.

use rusqlite::{Transaction, params};

use super::jobs;
use super::values::{Failure, bodies, decode, time_from};
use crate::catalog::{Instance, InstanceFigures, ListedInstance};

/// See [`crate::catalog::Catalog::instance_figures`].
pub(super) fn of_instances(
    tx: &Transaction<'_>,
    since: jiff::Timestamp,
    offset: u32,
    limit: u32,
) -> Result<Vec<InstanceFigures>, Failure> {
    // The order takes one look into `points_by_time` for each instance; the other figures are asked for this page's only. `points_proven` is
    // named, with its own condition, as nothing tells SQLite how few of the points are proven.
    let sql = "
        with page as materialized (
            select id, body, name,
                (select max(time) from points p where p.instance_id = i.id and p.deleted = 0) as good,
                coalesce(json_extract(body, '$.protection.state'), '') = 'stopped' as stopped
            from instances i
            where coalesce(json_extract(body, '$.protection.state'), '') not in ('deleted', 'purged')
            order by stopped, good, name limit ?2 offset ?3
        )
        select body, good,
            (select max(time) from points p indexed by points_proven where p.instance_id = page.id and p.deleted = 0
                and json_extract(p.body, '$.standing.proven_time') is not null),
            (select count(*) from points p where p.instance_id = page.id and p.deleted = 0),
            (select coalesce(sum(stored_bytes), 0) from points p where p.instance_id = page.id),
            (select coalesce(sum(stored_bytes), 0) from points p where p.instance_id = page.id and p.time >= ?1)
        from page order by stopped, good, name";
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map(params![since.as_microsecond(), limit, offset], |row| {
        let times: (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        let numbers: (i64, i64, i64) = (row.get(3)?, row.get(4)?, row.get(5)?);
        Ok((row.get::<_, String>(0)?, times, numbers))
    })?;
    rows.map(|row| {
        let (body, (good, proven), (points, stored, stored_since)) = row?;
        Ok(InstanceFigures {
            instance: decode(&body)?,
            last_good: good.map(time_from).transpose()?,
            last_proven: proven.map(time_from).transpose()?,
            points: points.cast_unsigned(),
            stored_bytes: stored.cast_unsigned(),
            stored_bytes_since: stored_since.cast_unsigned(),
        })
    })
    .collect()
}

/// See [`crate::catalog::Catalog::instances_page`].
pub(super) fn page_of_instances(
    tx: &Transaction<'_>,
    deleted: bool,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ListedInstance>, Failure> {
    let sql = "select body from instances
               where name > ?1 and (coalesce(json_extract(body, '$.protection.state'), '') in ('deleted', 'purged')) = ?2
               order by name limit ?3";
    // No name is empty.
    let found: Vec<Instance> = bodies(tx, sql, params![after.unwrap_or(""), deleted, limit])?;
    let sql = "select count(*), max(time) from points where instance_id = ?1 and deleted = 0";
    let mut points = tx.prepare_cached(sql)?;
    let mut page = Vec::with_capacity(found.len());
    for instance in found {
        let (count, newest): (i64, Option<i64>) =
            points.query_row([&instance.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let last_backup = jobs::last_backup(tx, &instance.id)?;
        let newest = newest.map(time_from).transpose()?;
        page.push(ListedInstance { instance, points: count.cast_unsigned(), newest, last_backup });
    }
    Ok(page)
}

/// See [`crate::catalog::Catalog::stored_since`].
pub(super) fn stored_since(tx: &Transaction<'_>, since: jiff::Timestamp) -> Result<u64, Failure> {
    // Both values of `deleted`, so that the index `points_figures` is of use.
    let sql = "select coalesce(sum(stored_bytes), 0) from points where deleted in (0, 1) and time >= ?1";
    let sum: i64 = tx.query_row(sql, [since.as_microsecond()], |row| row.get(0))?;
    Ok(sum.cast_unsigned())
}
