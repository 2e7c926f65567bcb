//! The tables. `user_version` is the schema's version; every older version is brought to the newest one at the opening, in one
//! transaction. Migrations add and never drop data.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

/// Version 2 adds what happens to points after their commit, and what checks find; version 3 the clock by which points are deleted; version 4
/// deletions of policies; version 5 the index that the summary counts in; version 6 servers that are sources; version 7 what the link to the
/// backup service must not forget; version 8 planned attempts, and the indexes in which the summary counts for each instance; version 9 when points were last
/// deleted, instances that are being made, and the indexes of lists of jobs.
pub(super) const VERSION: i64 = 9;
/// Version 1, from which every catalog starts.
const FIRST: &str = "
create table policies(name text not null, version integer not null, id text not null, create_time integer not null,
    document text not null, primary key(name, version)) strict;
create table instances(id text primary key, name text not null unique, identity text not null unique, body text not null) strict;
create table jobs(id text primary key, create_time integer not null, instance_id text not null, operation text not null,
    status text not null, request_id text unique, body text not null) strict;
create index jobs_by_time on jobs(create_time);
create index jobs_by_instance on jobs(instance_id, operation, create_time);
create index jobs_unfinished on jobs(status) where status in ('in-progress', 'cancelling');
create table plugin_processes(job_id text primary key, pid integer not null, start_time integer not null) strict;
create table staged(job_id text primary key, snapshot_id text not null, sealed blob not null, prune_epoch integer not null,
    packs blob not null, time integer not null, created text not null) strict;
create table points(instance_id text not null, id text not null, time integer not null, stored_bytes integer not null,
    body text not null, primary key(instance_id, id)) strict;
create index points_by_time on points(instance_id, time, id);
create table outbox(job_id text primary key, create_time integer not null, body text not null) strict;
create table slots(instance_id text primary key, slot integer not null) strict;
";

/// From each version to the next, the first from 1 to 2.
const MIGRATIONS: [&str; 8] = [
    "
alter table points add column deleted integer not null default 0;
drop index points_by_time;
create index points_by_time on points(instance_id, deleted, time, id);
create table findings(job_id text not null, number integer not null, body text not null, primary key(job_id, number)) strict;
",
    "
create table expiry_clocks(instance_id text primary key, clock integer not null) strict;
",
    "
alter table policies add column deleted integer not null default 0;
",
    "
create index points_figures on points(deleted, time, stored_bytes);
",
    "
create table servers(id text primary key, name text not null, body text not null) strict;
",
    "
create table link(one integer primary key check (one = 1), reporting integer not null, sequence integer not null,
    service_id text not null, applied_version integer not null, outcome_sequence integer, outcome text) strict;
insert into link(one, reporting, sequence, service_id, applied_version) values (1, 0, 0, '', 0);
create table job_reports(job_id text primary key, sequence integer not null) strict;
create index job_reports_by_sequence on job_reports(sequence);
create index outbox_by_time on outbox(create_time);
",
    "
create table retries(instance_id text primary key, due integer not null, body text not null) strict;
create index points_stored on points(instance_id, time, stored_bytes);
create index points_proven on points(instance_id, time)
    where deleted = 0 and json_extract(body, '$.standing.proven_time') is not null;
",
    "
alter table expiry_clocks add column time integer;
create table unmade(instance_id text primary key, body text not null) strict;
create index jobs_by_status on jobs(status, create_time);
create index jobs_by_operation on jobs(operation, create_time);
",
];

/// Prepared statements that are kept. There are some sixty in all, and a look of the agent at one instance takes a dozen of them.
const STATEMENTS: usize = 128;

/// Opens the file, makes it or brings it to this program's version, all or nothing.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > VERSION {
        let message = format!("its schema has version {found}, this program knows {VERSION}: use the newest version");
        return Err(rusqlite::Error::ToSqlConversionFailure(message.into()));
    }
    if found < 1 {
        transaction.execute_batch(FIRST)?;
    }
    for (from, migration) in (1..).zip(MIGRATIONS) {
        if found.max(1) <= from {
            transaction.execute_batch(migration)?;
        }
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(connection)
}
