//! The generated, seeded database: about 3 GB of tables and indexes, a dump stream of 2.8 GB at scale 1.
//!
//! `pgbench` accounts (mostly blanks: they compress 90 times), JSON documents whose words follow a natural distribution, time series,
//! incompressible blobs (a dump writes two digits for each byte), large objects, 200 small tables, indexes, foreign keys, views.
//! A third of the stream is nearly free for every compressor: rates on real data will be lower.

use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};

use vaultferry_tests::postgres::Server;

use crate::Result;
use crate::random::Random;

mod documents;

const SEED: u64 = 20_240_601;
const PGBENCH_SCALE: f64 = 80.0;
const DOCUMENT_BYTES: f64 = 800e6;
const EVENTS: f64 = 6e6;
const BLOB_BYTES: f64 = 200e6;
const LARGE_OBJECT_BYTES: f64 = 50e6;

const TABLES: &str = "
create table tenants(id int primary key, name text not null, country char(2), created date);
create table docs(
  id bigint primary key, tenant_id int not null, ref uuid not null, title text not null, status text not null, tags text[],
  body jsonb not null, notes text, created_at timestamptz not null, updated_at timestamptz);
create table events(
  id bigint, device_id int not null, ts timestamptz not null, session uuid not null, kind smallint not null,
  value double precision, temp real, code int, flag boolean);
create table blobs(id int primary key, name text not null, mime text, data bytea not null);
alter table blobs alter column data set storage external;
create unlogged table lo_source(data bytea not null);
insert into tenants select i, 'Tenant ' || i, 'NL', '2020-01-01'::date + i from generate_series(0, 499) i;";

const REST: &str = "
drop table lo_source;
alter table docs add foreign key (tenant_id) references tenants(id);
create index docs_tenant_created on docs(tenant_id, created_at);
create index docs_ref on docs(ref);
alter table events add primary key (id);
create index events_ts on events using brin(ts);
create index events_device_ts on events(device_id, ts);
create view v_docs_open as select id, title, tenant_id from docs where status = 'open';
create view v_events_hour as select date_trunc('hour', ts) h, device_id, avg(value) from events group by 1, 2;
create materialized view mv_tenants as select tenant_id, count(*) n, max(created_at) last from docs group by 1;
create function doc_count(t int) returns bigint language sql stable as 'select count(*) from docs where tenant_id = t';
vacuum (freeze, analyze);
checkpoint;";

/// Makes and fills a database. A failure leaves a half-filled one.
pub fn generate(server: &Server, database: &str, scale: f64) -> Result<()> {
    server.create_database(database);
    pgbench(server, database, scale)?;
    psql(server, database, TABLES)?;
    std::thread::scope(|scope| {
        let events = scope.spawn(|| psql(server, database, &events(scale)));
        copy(server, database, "docs", |to| documents::write(to, 1, SEED, DOCUMENT_BYTES * scale))?;
        copy(server, database, "blobs", |to| blobs(to, BLOB_BYTES * scale))?;
        copy(server, database, "lo_source", |to| large_objects(to, LARGE_OBJECT_BYTES * scale))?;
        psql(server, database, "select count(lo_from_bytea(0, data)) from lo_source")?;
        psql(server, database, &small_tables())?;
        events.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    // VACUUM runs in no transaction, so each statement goes alone.
    REST.split_inclusive(";\n").try_for_each(|statement| psql(server, database, statement))
}

/// What a day does: 1 % of the accounts are updated, at random places, and 2 % of new documents come.
pub fn change(server: &Server, database: &str, round: u32, scale: f64) -> Result<()> {
    let update = format!(
        "set max_parallel_workers_per_gather = 0; select setseed(0.1{round});
         update pgbench_accounts set abalance = abalance + 17 where aid in
           (select (random() * (select max(aid) from pgbench_accounts))::int
            from generate_series(1, (select max(aid) / 100 from pgbench_accounts)));"
    );
    psql(server, database, &update)?;
    let last: u64 = server.psql(database, "select max(id) from docs").parse()?;
    let seed = SEED + 1000 + u64::from(round);
    copy(server, database, "docs", |to| documents::write(to, last + 1, seed, DOCUMENT_BYTES * 0.02 * scale))?;
    // Otherwise the next dump would pay for setting the new rows' hint bits.
    psql(server, database, "vacuum")?;
    psql(server, database, "checkpoint")
}

fn pgbench(server: &Server, database: &str, scale: f64) -> Result<()> {
    let scale = (PGBENCH_SCALE * scale).round().max(1.0);
    let mut command = server.client("pgbench", database);
    command.args(["--initialize", "--quiet", "--scale", &scale.to_string()]);
    run(command.stdin(Stdio::null()))
}

/// `sql` goes in as it is: several statements separated by semicolons become one transaction.
fn psql(server: &Server, database: &str, sql: &str) -> Result<()> {
    if sql.trim().is_empty() {
        return Ok(());
    }
    let mut command = server.client("psql", database);
    run(command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]).stdin(Stdio::null()))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Lets `write` fill a table with rows in COPY's text format.
fn copy(
    server: &Server,
    database: &str,
    table: &str,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut command = server.client("psql", database);
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", &format!("copy {table} from stdin")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().ok_or("psql has no standard input")?;
    let mut stdin = BufWriter::with_capacity(1 << 20, stdin);
    let written = write(&mut stdin).and_then(|()| stdin.flush());
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("copy {table}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(written?)
}

fn events(scale: f64) -> String {
    format!(
        "set max_parallel_workers_per_gather = 0; select setseed(0.42);
         insert into events select i, (random()*2000)::int, '2024-01-01'::timestamptz + i * interval '1.7 s' + random() * interval '1 s',
           md5((i/40)::text || 's')::uuid, (random()*12)::smallint, 20 + 5*sin(i/5000.0) + random(), (15 + random()*20)::real,
           (random()*100000)::int, random() < 0.1 from generate_series(1, {}) i;",
        (EVENTS * scale) as u64
    )
}

fn blobs(to: &mut dyn Write, bytes: f64) -> std::io::Result<()> {
    let mut random = Random::new(SEED + 7);
    let (mut total, mut id) = (0.0, 1);
    let mut content = Vec::new();
    while total < bytes {
        let size = random.log_normal(11.5, 1.0, 2000, 4_000_000);
        content.clear();
        random.fill(&mut content, size as usize);
        writeln!(to, "{id}\tfile-{id:06}.bin\tapplication/octet-stream\t\\\\x{}", hex::encode(&content))?;
        total += size as f64;
        id += 1;
    }
    Ok(())
}

/// Half words, half random bytes.
fn large_objects(to: &mut dyn Write, bytes: f64) -> std::io::Result<()> {
    let mut random = Random::new(SEED + 9);
    let mut words = documents::Words::new(SEED + 11);
    let mut total = 0.0;
    while total < bytes {
        let size = 200_000 + random.below(3_800_000) as usize;
        let mut content = String::new();
        words.append(&mut content, size / 12);
        let mut content = content.into_bytes();
        random.fill(&mut content, size / 2);
        writeln!(to, "\\\\x{}", hex::encode(&content))?;
        total += content.len() as f64;
    }
    Ok(())
}

fn small_tables() -> String {
    let mut random = Random::new(SEED + 5);
    let table = |number: u32| {
        let rows = 100 + random.below(800);
        format!(
            "create table cfg_{number:03}(id int primary key, key text, val text, n numeric(10,2), at timestamptz);
             insert into cfg_{number:03} select i, 'key.' || i, md5(i::text || '{number}'), i * 1.25,
               '2024-01-01'::timestamptz + i * interval '1 h' from generate_series(1, {rows}) i;
             create index on cfg_{number:03}(key);\n"
        )
    };
    (0..200).map(table).collect()
}
