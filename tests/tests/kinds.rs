//! Kinds of database: each is backed up and restored by the agent, and comes back equal; its `database.json` counts what the server counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::{BIN_DIR, Server, quote};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{heavy, measured, sample};

/// Every table that holds rows itself, and how many; names in UTF-8 whatever the database's encoding.
const ROWS: &str = r"
set client_encoding = 'UTF8';
select format('select %L, count(*) from only %I.%I', n.nspname || '.' || c.relname, n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
\gexec
";

/// Backs the database up and restores it under another name of the same server. What both hold has to be equal.
#[track_caller]
fn round_trip(agent: &Agent, server: &Server, instance: &str, database: &str) {
    agent.protect(instance, &server.uri(database), server.passfile());
    agent.backup(instance);
    let restored = format!("{database} again");
    agent.restore(instance, "latest", server, &restored);
    assert_equal(&contents(server, database), &contents(server, &restored));
    check_facts(&facts(agent, instance), server, database);
}

/// The newest point's `database.json`.
#[track_caller]
fn facts(agent: &Agent, instance: &str) -> Value {
    serde_json::from_slice(&agent.export(instance).dump("latest", "/database.json")).expect("JSON")
}

/// The rows that were counted in the dump are those that are there.
#[track_caller]
fn check_facts(facts: &Value, server: &Server, database: &str) {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let tables = facts["tables"].as_array().expect("a list of tables");
    let counted: BTreeMap<String, u64> = tables
        .iter()
        .map(|table| (format!("{}.{}", text(&table["schema"]), text(&table["name"])), number(&table["rows"])))
        .collect();
    let rows = server.psql(database, ROWS);
    let expected: BTreeMap<String, u64> = rows
        .lines()
        .map(|line| line.rsplit_once('|').expect("two columns"))
        .map(|(name, rows)| (name.to_owned(), rows.parse().expect("a number")))
        .collect();
    assert_eq!(counted, expected, "{database}");
    let large =
        server.psql(database, "select count(*), coalesce(sum(length(lo_get(oid))), 0) from pg_largeobject_metadata");
    let stored = &facts["large_objects"];
    assert_eq!(format!("{}|{}", number(&stored["count"]), number(&stored["bytes"])), large, "{database}");
    assert_eq!(facts["exit_status"], 0);
    assert_eq!(facts["warnings"], serde_json::json!([]), "{database}");
}

#[test]
fn what_is_known_of_a_point() {
    // Before the server, so that it is removed after it.
    let space = Scratch::new("space");
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    server.psql(
        "shop",
        "create role member login password 'never told'; grant leser to member; alter role member set work_mem = '7MB';
         create collation german (provider = icu, locale = 'de-DE');
         alter database shop set default_text_search_config = 'german'; alter database shop set work_mem = '5MB';
         alter role member in database shop set work_mem = '6MB'",
    );
    let fast = space.join("fast");
    fs::create_dir(&fast).expect("make the tablespace's folder");
    own_like(&fast, &server.data_dir());
    server.psql("shop", &format!("create tablespace \"fast one\" location '{}'", fast.display()));
    server.psql("shop", "create table moved (n integer) tablespace \"fast one\"; insert into moved values (1)");

    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let before = server.psql("shop", "select pg_current_wal_lsn() - '0/0'::pg_lsn");
    agent.backup("shop");
    let after = server.psql("shop", "select pg_current_wal_lsn() - '0/0'::pg_lsn");
    let facts = facts(&agent, "shop");
    check_facts(&facts, &server, "shop");

    let lsn = facts["snapshot"]["start_lsn"].as_str().expect("a position");
    let lsn: f64 = server.psql("shop", &format!("select '{lsn}'::pg_lsn - '0/0'::pg_lsn")).parse().expect("a number");
    let (before, after): (f64, f64) = (before.parse().expect("a number"), after.parse().expect("a number"));
    assert!((before..=after).contains(&lsn), "{before} {lsn} {after}");
    let taken = facts["snapshot"]["taken"].as_str().expect("a time");
    assert!(taken.ends_with('Z') && taken.starts_with("20"), "{taken}");

    let settings = &facts["settings"];
    for (name, value) in
        [("server_encoding", "UTF8"), ("wal_level", "minimal"), ("max_connections", "30"), ("block_size", "8192")]
    {
        assert_eq!(settings[name], value, "{name}");
    }
    let search = settings["default_text_search_config"].as_str().expect("a setting");
    assert!(search.ends_with("german"), "as a session of this database begins: {search}");
    let of_database: Vec<&str> =
        facts["database_settings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(of_database, ["default_text_search_config=german", "work_mem=5MB"]);
    assert_eq!(
        facts["itself"]["role_settings"],
        serde_json::json!([{ "role": "member", "setting": "work_mem=6MB" }]),
        "{:#}",
        facts["itself"]
    );
    assert_eq!(facts["tablespaces"], serde_json::json!(["fast one"]));
    let collations: Vec<&str> =
        facts["collations"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(collations[0].starts_with("database (libc, C.UTF-8"), "{collations:?}");
    assert!(collations[1].starts_with("public.german (icu, de-DE, "), "{collations:?}");
    assert_eq!((number(&facts["objects"]["MATERIALIZED VIEW"]), number(&facts["objects"]["BLOBS"])), (2, 1));

    let globals = String::from_utf8(agent.export("shop").dump("latest", "/globals.sql")).expect("UTF-8");
    for wanted in
        ["CREATE ROLE member;", "GRANT leser TO member", "ALTER ROLE member SET work_mem TO '7MB';", "\"fast one\""]
    {
        assert!(globals.contains(wanted), "{wanted} is missing:\n{globals}");
    }
    for secret in ["PASSWORD", "SCRAM-SHA-256", "never told", server.password()] {
        assert!(!globals.contains(secret), "{secret} in:\n{globals}");
    }
}

/// Gives a file to whom another one belongs.
#[track_caller]
fn own_like(path: &Path, other: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let owner = fs::metadata(other).expect("its owner");
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).expect("give it away");
}

/// The globals are read through the backed-up database: the user need not be let into another one.
#[test]
fn globals_need_no_other_database() {
    let server = Server::start();
    server.create_database("a=b");
    server.psql(
        "a=b",
        "create table t (n integer); create role backup login password 'p'; grant pg_read_all_data to backup;
         revoke connect on database postgres from public; revoke connect on database template1 from public",
    );
    let agent = Setup::new().start();
    let passfile = agent.write("passfile-backup", "*:*:*:backup:p\n");
    let source = format!("postgres://backup@127.0.0.1:{}/a%3Db", server.port());
    agent.protect("shop", &source, &passfile);
    agent.backup("shop");
    let globals = String::from_utf8(agent.export("shop").dump("latest", "/globals.sql")).expect("UTF-8");
    assert!(globals.contains("CREATE ROLE backup;"), "{globals}");
}

/// A folder with a pg_dump that is this script around the real one, and nothing else.
fn client_dir(script: &str) -> Scratch {
    let scratch = Scratch::new("client");
    let text =
        format!("#!/bin/sh\nreal={BIN_DIR}/pg_dump\ncase \"$1\" in --version) exec $real --version;; esac\n{script}\n");
    let path = scratch.write("pg_dump", &text);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    scratch
}

/// What pg_dump warns of, and that there are no globals, is told by the job and kept; the point is good.
#[test]
fn warnings_reach_the_job_and_the_point() {
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    let client = client_dir("echo 'pg_dump: warning: it is late' >&2\nexec $real \"$@\"");
    let config = format!("[postgres]\nclient_dirs = [\"{}\"]\n", client.path().display());
    let agent = Setup::new().config(&config).start();
    for text in ["it is late", "globals.sql"] {
        agent.expect_log(text);
    }
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let job = agent.cli_json(&["backup", "shop", "--wait"]).success().job();
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    let warnings = job.0["warnings"].as_array().expect("warnings");
    let told: Vec<(&str, &str)> = warnings
        .iter()
        .map(|warning| {
            (warning["reason"].as_str().unwrap_or_default(), warning["message"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(told[0], ("DumpWarned", "pg_dump: warning: it is late"));
    assert_eq!(told[1].0, "GlobalsNotRead");
    assert!(told[1].1.ends_with("/pg_dumpall is missing"), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
    let facts = facts(&agent, "shop");
    assert_eq!(facts["warnings"][0], "pg_dump: warning: it is late");
    assert_eq!(facts["warnings"][1], told[1].1);
    let streams = agent.points("shop")[0]["streams"].as_array().expect("streams").len();
    assert_eq!(streams, 2);
}

/// An archive that breaks off is no backup, though pg_dump says that all went well.
#[test]
fn a_dump_that_breaks_off_is_none() {
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    let client = client_dir("$real \"$@\" | head -c -1");
    let config = format!("[postgres]\nclient_dirs = [\"{}\"]\n", client.path().display());
    let agent = Setup::new().config(&config).start();
    agent.expect_log("breaks off");
    agent.expect_log("DumpFailed");
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let reply = agent.cli_json(&["backup", "shop", "--wait"]);
    reply.assert_failed("DumpFailed");
    assert!(reply.stderr.contains("breaks off in"), "{}", reply.stderr);
    assert!(agent.points("shop").is_empty());
}

/// One database with many kinds of object that are each a little different from an ordinary table.
#[test]
fn unusual_objects_come_back() {
    let mut server = Server::start();
    // With another level each publication is remarked upon, at its restore, too.
    server.psql("postgres", "alter system set wal_level = 'logical';\nalter system set max_wal_senders = 5;");
    server.restart();
    server.create_database("kinds");
    server.psql("kinds", UNUSUAL);
    let agent = Setup::new().start();
    round_trip(&agent, &server, "kinds", "kinds");
    // The data of foreign tables is not the database's; that of unlogged ones is.
    let facts = facts(&agent, "kinds");
    let rows = |name: &str| {
        let tables = facts["tables"].as_array().expect("tables");
        tables.iter().find(|table| table["name"] == name).map(|table| number(&table["rows"]))
    };
    assert_eq!((rows("lines"), rows("far_away"), rows("quick"), rows("all_made")), (None, None, Some(10), Some(3)));
    assert_eq!((rows("measured"), rows("measured_2026")), (None, Some(365)), "rows are in partitions");
    let counts = ["FOREIGN TABLE", "PUBLICATION", "EVENT TRIGGER", "POLICY", "USER MAPPING"];
    let counted: Vec<u64> = counts.iter().map(|kind| number(&facts["objects"][*kind])).collect();
    assert_eq!(counted, [2, 2, 1, 1, 1]);
}

const UNUSUAL: &str = r"
create extension file_fdw;
create extension postgres_fdw;
create server files foreign data wrapper file_fdw;
create foreign table lines (line text) server files options (filename '/etc/passwd', format 'text', delimiter E'\x01');
create server far foreign data wrapper postgres_fdw options (host '127.0.0.1', port '1', dbname 'nowhere');
create user mapping for postgres server far options (user 'nobody', password 'secret');
create foreign table far_away (id integer not null, v text) server far options (table_name 'there');

create unlogged table quick (id integer primary key, v text);
insert into quick select i, repeat('x', i * 1000) from generate_series(1, 10) as i;

create table made (
    id integer generated always as identity, other bigint generated by default as identity (start 100 increment 7),
    v integer, doubled integer generated always as (v * 2) stored, label text generated always as (upper('label ' || v::text)) stored);
insert into made (v) select generate_series(1, 100);
create table all_made (seven integer generated always as (7) stored);
insert into all_made default values;
insert into all_made default values;
insert into all_made default values;

create table measured (id bigint generated always as identity, day date not null, v numeric) partition by range (day);
create table measured_old partition of measured for values from (minvalue) to ('2026-01-01');
create table measured_2026 (v numeric, gone text, day date not null, id bigint not null);
alter table measured_2026 drop column gone;
alter table measured attach partition measured_2026 for values from ('2026-01-01') to ('2027-01-01');
create table measured_rest partition of measured default;
create index on measured (day);
insert into measured (day, v) select '2026-01-01'::date + i, i / 3.0 from generate_series(-50, 400) as i;

create view recent as select id, day from measured where day > '2026-06-01';
create materialized view by_month as select date_trunc('month', day) as month, count(*) from measured group by 1;
create materialized view months as select count(*) from by_month;
create materialized view later as select * from months with no data;

create schema app;
create table app.guarded (id integer primary key, owner name default current_user, v text);
insert into app.guarded (id, v) select i, 'row ' || i from generate_series(1, 20) as i;
alter table app.guarded enable row level security;
alter table app.guarded force row level security;
create policy own_rows on app.guarded as restrictive for all to public using (owner = current_user) with check (id > 0);

create publication everything for all tables with (publish = 'insert, truncate');
create publication chosen for table app.guarded (id, v) where (id > 0) with (publish = 'insert');

create table ddl_log (tag text);
create function note_ddl() returns event_trigger language plpgsql as $$begin insert into ddl_log values (tg_tag); end$$;
create event trigger on_drop on ddl_command_end when tag in ('DROP TABLE') execute function note_ddl();
create table dropped (); drop table dropped;

create rule quiet as on insert to ddl_log where new.tag = 'none' do instead nothing;
create statistics together (ndistinct, mcv) on day, v from measured_old;
";

/// As many columns as a table may have.
#[test]
fn the_widest_table_comes_back() {
    let server = Server::start();
    server.create_database("wide");
    server.psql(
        "wide",
        "select format('create table widest (%s)', string_agg(format('c%s integer', i), ', ')) from generate_series(1, 1600) as i \\gexec
         select format('insert into widest select %s from generate_series(1, 50) as i', string_agg('i + ' || c, ', '))
         from generate_series(1, 1600) as c \\gexec
         create table long_rows (id integer, v text);
         insert into long_rows select i, repeat(chr(9) || chr(10) || E'\\\\' || '가', 3000000) from generate_series(1, 3) as i",
    );
    let agent = Setup::new().start();
    round_trip(&agent, &server, "wide", "wide");
}

/// A value that is larger than a gigabyte in COPY's text cannot be dumped by any pg_dump. It is told, and nothing is listed.
#[test]
fn heavy_a_value_that_no_dump_can_hold_is_told() {
    if !heavy() {
        return;
    }
    let server = Server::start();
    server.create_database("huge");
    server.psql(
        "huge",
        "create table huge (v bytea); alter table huge alter v set storage external;
         insert into huge select convert_to(repeat('x', 600000000), 'UTF8')",
    );
    let agent = Setup::new().start();
    agent.expect_log("DumpFailed");
    agent.expect_log("pg_dump");
    agent.protect("huge", &server.uri("huge"), server.passfile());
    let reply = agent.cli_json(&["backup", "huge", "--wait"]);
    reply.assert_failed("DumpFailed");
    assert!(reply.stderr.contains("huge") && reply.stderr.contains("memory"), "{}", reply.stderr);
    assert!(agent.points("huge").is_empty());
}

#[test]
fn many_large_objects_come_back() {
    let server = Server::start();
    server.create_database("objects");
    server.psql(
        "objects",
        "create role holder; select lo_from_bytea(0, convert_to(repeat('large ' || i, i % 50), 'UTF8')) from generate_series(1, 3000) as i;
         select format('alter large object %s owner to holder', oid) from pg_largeobject_metadata where oid::bigint % 10 = 0 \\gexec
         select format('comment on large object %s is %L', oid, 'it''s ' || oid) from pg_largeobject_metadata where oid::bigint % 100 = 0 \\gexec
         create table papers as select oid as paper from pg_largeobject_metadata",
    );
    let agent = Setup::new().start();
    round_trip(&agent, &server, "objects", "objects");
}

/// Neither rows nor names are changed by a way through UTF-8. `SQL_ASCII` holds any bytes.
#[test]
fn other_encodings_come_back() {
    let server = Server::start();
    let agent = Setup::new().start();
    let cases = [
        (
            "LATIN1",
            "set client_encoding = 'UTF8'; create table \"Käufer\" (\"größe\" text); insert into \"Käufer\" values ('é ÿ ß ×');
             create table \"Ã©\" as select 'in UTF-8 its bytes are another name' as v",
        ),
        (
            "EUC_JP",
            "set client_encoding = 'UTF8'; create table \"顧客\" (\"名前\" text); insert into \"顧客\" values ('日本語 カタカナ')",
        ),
        ("SQL_ASCII", "create table bytes (v text); insert into bytes values (E'\\xff\\xfe\\x80 a'), (E'caf\\xe9')"),
        ("UTF8", "create table \"한글\" (v text); insert into \"한글\" values ('😀')"),
    ];
    for (encoding, sql) in cases {
        let database = format!("in {encoding}");
        let made = format!(
            "create database {} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0",
            quote(&database)
        );
        server.psql("postgres", &made);
        server.psql(&database, sql);
        let instance = encoding.to_lowercase().replace('_', "-");
        round_trip(&agent, &server, &instance, &database);
        assert_eq!(facts(&agent, &instance)["encoding"], encoding);
    }
}

/// Names that a program could take for an option, a connection string, or the end of one.
#[test]
fn names_like_options_are_names() {
    let server = Server::start();
    let agent = Setup::new().start();
    let names =
        ["--help", "-d postgres", "a b", "x'y\"z", "postgres://x", "host=nowhere dbname=a", "back\\slash", "$(id)"];
    for (index, name) in names.into_iter().enumerate() {
        let instance = format!("odd-{index}");
        server.create_database(name);
        server.psql(name, &format!("create table t as select {index} as n"));
        agent.protect(&instance, &server.uri(name), server.passfile());
        agent.backup(&instance);
        let restored = format!("{name} 2");
        let target = format!("--target=postgres://postgres@127.0.0.1:{}/", server.port());
        let passfile = format!("--passfile={}", server.passfile().display());
        let restore =
            ["restore", "database", &instance, "--wait", &target, &passfile, &format!("--database={restored}")];
        agent.cli_json(&restore).success().job().completed();
        assert_equal(&contents(&server, name), &contents(&server, &restored));
        check_facts(&facts(&agent, &instance), &server, name);
        assert!(agent.export(&instance).dump("latest", "/globals.sql").len() > 100);
    }
}

/// Makes so many small tables, each in a transaction of its own: none of them needs more locks than a server has.
#[track_caller]
fn make_tables(server: &Server, database: &str, count: u32) {
    let sql = format!(
        "select format('create table t%s as select i as id, ''row '' || i as v from generate_series(1, %s) as i', t, t % 4)
         from generate_series(1, {count}) as t \\gexec"
    );
    server.psql(database, &sql);
}

fn lock_findings(agent: &Agent, instance: &str) -> Vec<Value> {
    let reply = agent.cli_json(&["instance", "validate", instance]).success().json();
    let findings = reply["findings"].as_array().into_iter().flatten();
    findings.filter(|finding| finding["reason"] == "TooFewLocks").cloned().collect()
}

/// Many tables come back, and too many for the server's locks are told before a dump fails by it, with what mends it.
#[test]
fn many_small_tables_come_back_and_too_many_are_told() {
    let mut server = Server::start();
    server.create_database("many");
    make_tables(&server, "many", 2000);
    let agent = Setup::new().start();
    round_trip(&agent, &server, "many", "many");
    assert_eq!(lock_findings(&agent, "many"), Vec::<Value>::new());

    // Room for 64 * (30 + 5) is promised.
    server.psql("many", "select format('create sequence s%s', i) from generate_series(1, 300) as i \\gexec");
    let findings = lock_findings(&agent, "many");
    assert_eq!(findings.len(), 1, "{findings:?}");
    let message = findings[0]["message"].as_str().expect("a message");
    assert!(message.contains("locks 2300 tables") && message.contains("2240 locks"), "{message}");
    // Only told: there is a reserve, and a backup that goes well has no warning of it.
    agent.backup("many");
    server.psql("postgres", findings[0]["fix"].as_str().expect("a fix"));
    server.restart();
    assert_eq!(lock_findings(&agent, "many"), Vec::<Value>::new());
    agent.backup("many");
}

#[test]
fn heavy_fifty_thousand_tables_come_back() {
    if !heavy() {
        return;
    }
    let mut server = Server::start();
    server.psql("postgres", "alter system set max_locks_per_transaction = 2000");
    server.restart();
    server.create_database("many");
    make_tables(&server, "many", 50_000);
    let agent = Setup::new().start();
    let started = Instant::now();
    round_trip(&agent, &server, "many", "many");
    measured(&format!("50,000 tables backed up, restored and compared in {:.0} s", started.elapsed().as_secs_f64()));
}

/// More tables than the server's locks are for, without a reserve that is large enough: the reason is not "out of memory".
#[test]
fn a_dump_that_runs_out_of_locks_says_so() {
    let mut server = Server::start();
    // The room for predicate locks is a reserve of the others.
    for setting in ["max_locks_per_transaction", "max_pred_locks_per_transaction"] {
        server.psql("postgres", &format!("alter system set {setting} = 10"));
    }
    server.restart();
    server.create_database("many");
    make_tables(&server, "many", 3000);
    let agent = Setup::new().start();
    agent.protect("many", &server.uri("many"), server.passfile());
    assert_eq!(lock_findings(&agent, "many").len(), 1);
    agent.expect_log("TooFewLocks");
    agent.expect_log("shared memory");
    agent.cli_json(&["backup", "many", "--wait"]).assert_failed("TooFewLocks");
    assert!(agent.points("many").is_empty());
}
