//! Policies, instances, servers, and the dashboard's figures.

use std::collections::HashMap;

use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::jobs::UNFINISHED;
use super::values::{Failure, encode, time_from};
use crate::catalog::{ExpiryRun, Figures, Instance, Policy, Server};

/// What every query of policies reads, in this order.
const COLUMNS: &str = "id, name, version, create_time, document, deleted";

/// The policies that a query finds.
fn read(tx: &Transaction<'_>, sql: &str, params: impl rusqlite::Params) -> Result<Vec<Policy>, Failure> {
    let columns = |row: &Row<'_>| {
        let policy = Policy {
            id: row.get(0)?,
            name: row.get(1)?,
            version: row.get(2)?,
            create_time: jiff::Timestamp::UNIX_EPOCH,
            document: row.get(4)?,
            deleted: row.get(5)?,
        };
        Ok((policy, row.get::<_, i64>(3)?))
    };
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map(params, columns)?;
    rows.map(|row| {
        let (policy, create_time) = row?;
        Ok(Policy { create_time: time_from(create_time)?, ..policy })
    })
    .collect()
}

/// The last slot of each instance that has had one.
pub(super) fn last_slots(tx: &Transaction<'_>) -> Result<HashMap<String, jiff::Timestamp>, Failure> {
    let mut statement = tx.prepare_cached("select instance_id, slot from slots")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    rows.map(|row| {
        let (instance_id, slot) = row?;
        Ok((instance_id, time_from(slot)?))
    })
    .collect()
}

/// The newest versions for which the condition on `p` holds, of policies that are not deleted.
pub(super) fn policies(
    tx: &Transaction<'_>,
    condition: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Policy>, Failure> {
    let sql = format!(
        "select {COLUMNS} from policies p where {condition} and deleted = 0 and version =
         (select max(version) from policies q where q.name = p.name) order by name"
    );
    read(tx, &sql, params)
}

/// Every version for which the condition holds, by name and version, deletions too.
pub(super) fn policy_versions(
    tx: &Transaction<'_>,
    condition: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Policy>, Failure> {
    read(tx, &format!("select {COLUMNS} from policies where {condition} order by name, version"), params)
}

pub(super) fn insert_policy(tx: &Transaction<'_>, policy: &Policy) -> Result<(), Failure> {
    let create_time = policy.create_time.as_microsecond();
    let values = params![policy.name, policy.version, policy.id, create_time, policy.document, policy.deleted];
    let sql = "insert or ignore into policies(name, version, id, create_time, document, deleted)
               values (?1, ?2, ?3, ?4, ?5, ?6)";
    match tx.execute(sql, values)? {
        0 => Err(Failure::Taken(format!("version {} of policy {}", policy.version, policy.name))),
        _ => Ok(()),
    }
}

/// Slots up to these are dealt with; one that is noted already and is later stays.
pub(super) fn advance_slots(tx: &Transaction<'_>, slots: &[(String, jiff::Timestamp)]) -> Result<(), Failure> {
    let sql = "insert into slots(instance_id, slot) values (?1, ?2)
               on conflict(instance_id) do update set slot = max(slot, excluded.slot)";
    let mut statement = tx.prepare_cached(sql)?;
    for (instance_id, slot) in slots {
        statement.execute(params![instance_id, slot.as_microsecond()])?;
    }
    Ok(())
}

pub(super) fn begin_instances(tx: &Transaction<'_>, instances: &[Instance]) -> Result<(), Failure> {
    let mut insert = tx.prepare_cached("insert or replace into unmade(instance_id, body) values (?1, ?2)")?;
    for instance in instances {
        insert.execute(params![instance.id, encode(instance)?])?;
    }
    Ok(())
}

pub(super) fn forget_unmade(tx: &Transaction<'_>, instance_id: &str) -> Result<(), Failure> {
    tx.prepare_cached("delete from unmade where instance_id = ?1")?.execute([instance_id])?;
    Ok(())
}

/// See [`crate::catalog::Catalog::expiry_run`].
pub(super) fn expiry_run(tx: &Transaction<'_>, instance_id: &str) -> Result<Option<ExpiryRun>, Failure> {
    let mut statement = tx.prepare_cached("select clock, time from expiry_clocks where instance_id = ?1")?;
    let row: Option<(i64, Option<i64>)> =
        statement.query_row([instance_id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((clock, time)) = row else { return Ok(None) };
    Ok(Some(ExpiryRun { clock: time_from(clock)?, time: time.map(time_from).transpose()? }))
}

/// See [`crate::catalog::Catalog::set_expiry_run`].
pub(super) fn set_expiry_run(tx: &Transaction<'_>, instance_id: &str, run: &ExpiryRun) -> Result<(), Failure> {
    let sql = "insert or replace into expiry_clocks(instance_id, clock, time) values (?1, ?2, ?3)";
    let time = run.time.map(jiff::Timestamp::as_microsecond);
    tx.prepare_cached(sql)?.execute(params![instance_id, run.clock.as_microsecond(), time])?;
    Ok(())
}

pub(super) fn insert_instances(tx: &Transaction<'_>, instances: &[Instance]) -> Result<(), Failure> {
    for instance in instances {
        forget_unmade(tx, &instance.id)?;
        let values = params![instance.id, instance.name, instance.source_identity, encode(instance)?];
        let sql = "insert or ignore into instances(id, name, identity, body) values (?1, ?2, ?3, ?4)";
        if tx.execute(sql, values)? == 0 {
            return Err(Failure::Taken(format!("the name {} or the source {}", instance.name, instance.source_uri)));
        }
    }
    Ok(())
}

pub(super) fn save_instance(tx: &Transaction<'_>, instance: &Instance) -> Result<(), Failure> {
    let values = params![instance.id, instance.name, instance.source_identity, encode(instance)?];
    let sql = "update or ignore instances set name = ?2, identity = ?3, body = ?4 where id = ?1";
    match tx.execute(sql, values)? {
        0 => Err(Failure::Taken(format!("the name {} or the source {}", instance.name, instance.source_uri))),
        _ => Ok(()),
    }
}

pub(super) fn remove_instance(tx: &Transaction<'_>, instance_id: &str) -> Result<(), Failure> {
    tx.execute("delete from instances where id = ?1", [instance_id])?;
    tx.execute("delete from slots where instance_id = ?1", [instance_id])?;
    tx.execute("delete from expiry_clocks where instance_id = ?1", [instance_id])?;
    tx.execute("delete from retries where instance_id = ?1", [instance_id])?;
    Ok(())
}

pub(super) fn save_server(tx: &Transaction<'_>, server: &Server) -> Result<(), Failure> {
    let sql = "insert or replace into servers(id, name, body) values (?1, ?2, ?3)";
    tx.execute(sql, params![server.id, server.name, encode(server)?])?;
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
    // Left out of the body when the policy is followed.
    let state = "json_extract(i.body, '$.protection.state')";
    let instances = |condition: String| count(&format!("select count(*) from instances i where {condition}"));
    Ok(Figures {
        protected: instances(format!("{state} is null and {with_point}"))?,
        pending: instances(format!("{state} is null and not {with_point}"))?,
        paused: instances(format!("{state} = 'paused'"))?,
        stopped: instances(format!("{state} = 'stopped'"))?,
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

#[cfg(test)]
mod tests {
    use crate::catalog::sqlite::Sqlite;
    use crate::catalog::{Catalog as _, Credential, Server};

    fn server(name: &str) -> Server {
        Server {
            id: format!("id-of-{name}"),
            name: name.to_owned(),
            create_time: jiff::Timestamp::UNIX_EPOCH,
            source_type: "postgres".to_owned(),
            server_uri: format!("postgres://u@{name}/"),
            server_identity: format!("postgres://{name}:5432/"),
            region: String::new(),
            policy: "nightly".to_owned(),
            credential: Credential::PasswordEnv("PGPASS".to_owned()),
            include: vec!["shop*".to_owned()],
            exclude: Vec::new(),
        }
    }

    #[tokio::test]
    async fn servers_are_kept_replaced_and_forgotten() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("catalog.sqlite");
        let catalog = Sqlite::open(&path).expect("opens");
        for name in ["b", "a"] {
            catalog.save_server(server(name)).await.expect("saved");
        }
        let changed = Server { policy: "weekly".to_owned(), ..server("b") };
        catalog.save_server(changed.clone()).await.expect("saved");
        drop(catalog);
        let catalog = Sqlite::open(&path).expect("opens again");
        assert_eq!(catalog.servers().await.expect("servers"), [server("a"), changed]);
        for _ in 0..2 {
            catalog.remove_server("id-of-b").await.expect("removed");
            assert_eq!(catalog.servers().await.expect("servers"), [server("a")]);
        }
    }
}
