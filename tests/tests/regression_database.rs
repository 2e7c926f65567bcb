//! The database that PostgreSQL's own regression tests leave behind comes back equal.
//!
//! Equal means: the same lines of schema, in whatever order, and the same rows, in whatever order of their columns. A child table to whose parent
//! a column was added later has its columns in another order after every restore, so pg_dump's text differs there, as in PostgreSQL's own test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vaultferry_tests::agent::Setup;
use vaultferry_tests::compare::{Contents, contents};
use vaultferry_tests::postgres::{Server, versions};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{heavy, measured, process};

const DATABASE: &str = "regression";

/// One script's limit: the longest takes a second.
const LIMIT: Duration = Duration::from_secs(180);

/// They take long, and leave nothing behind.
const LEFT_OUT: [&str; 2] = ["join_hash", "select_parallel"];

/// Runs all scripts in their order, as pg_regress does. What they answer does not matter here, and many of their statements are meant to fail.
#[track_caller]
fn run_scripts(server: &Server, dir: &Path) {
    let schedule = fs::read_to_string(dir.join("parallel_schedule")).expect("read the schedule");
    let names = schedule.lines().filter_map(|line| line.strip_prefix("test:")).flat_map(str::split_whitespace);
    for name in names.filter(|name| !LEFT_OUT.contains(name)) {
        let script = fs::read(dir.join("sql").join(format!("{name}.sql"))).expect("read a script");
        let mut psql = server.client("psql", DATABASE);
        psql.arg("-Xq")
            .env("PG_ABS_SRCDIR", dir)
            .env("PG_ABS_BUILDDIR", dir)
            .env("PG_LIBDIR", dir)
            .env("PG_DLSUFFIX", ".so");
        psql.env("PGTZ", "PST8PDT")
            .env("PGDATESTYLE", "Postgres, MDY")
            .env("PGOPTIONS", "-c intervalstyle=postgres_verbose");
        let output = process::run(&mut psql, &script, LIMIT);
        assert_ne!(output.code, 2, "{name} has lost its server: {}", output.stderr);
    }
}

fn schema(contents: &Contents) -> Vec<&str> {
    let mut lines: Vec<&str> = contents.schema.lines().map(|line| line.trim_end_matches(',')).collect();
    lines.sort_unstable();
    lines
}

/// A table's rows without the order of its columns.
#[track_caller]
fn rows(server: &Server, database: &str, table: &str) -> String {
    let rows = format!("select md5(to_jsonb(t)::text) as hash from only {table} t");
    server.psql(database, &format!("select count(*), md5(string_agg(hash, '' order by hash)) from ({rows}) as rows"))
}

#[test]
fn heavy_the_regression_database_comes_back() {
    if !heavy() {
        return;
    }
    let Some(fetched) = versions::regression_dir() else { return };
    let server = Server::start();
    // The server's user reads its data and loads its module, and may not pass through every checkout.
    let scratch = Scratch::new("regress");
    let dir = scratch.join("regress");
    process::run(Command::new("cp").arg("-r").arg(&fetched).arg(&dir), b"", LIMIT).success();
    // Some scripts write their tables out there, and read them in again.
    fs::create_dir(dir.join("results")).expect("make a folder");
    process::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&dir), b"", LIMIT).success();
    process::run(Command::new("chmod").arg("a+rwx").arg(dir.join("results")), b"", LIMIT).success();
    server.create_database(DATABASE);
    run_scripts(&server, &dir);
    // pg_restore fills them anew, whatever they held; the scripts leave some that are behind their tables.
    let views = "do $$ declare s text; begin
                     for s in select format('refresh materialized view %s', oid::regclass) from pg_class where relkind = 'm' and relispopulated order by oid
                     loop execute s; end loop; end $$";
    server.psql(DATABASE, views);

    let original = contents(&server, DATABASE);
    assert!(original.data.len() > 500, "only {} tables and sequences", original.data.len());
    let agent = Setup::new().start();
    agent.protect("regression", &server.uri(DATABASE), server.passfile());
    agent.backup("regression");
    agent.restore("regression", "latest", &server, "back");
    let restored = contents(&server, "back");

    let (before, after) = (schema(&original), schema(&restored));
    let known: BTreeSet<&str> = after.iter().copied().collect();
    let missing: Vec<&str> = before.iter().copied().filter(|line| !known.contains(line)).take(10).collect();
    assert!(before == after, "{} lines and {}; missing: {missing:#?}", before.len(), after.len());
    assert!(original.data.keys().eq(restored.data.keys()), "other tables, sequences or large objects");
    let mut reordered = 0;
    for (name, value) in &original.data {
        if restored.data[name] != *value {
            let table = name.strip_prefix("table ").unwrap_or_else(|| panic!("{name} differs"));
            assert_eq!(rows(&server, DATABASE, table), rows(&server, "back", table), "{name}");
            reordered += 1;
        }
    }
    measured(&format!(
        "{} lines of schema, {} tables and the like, {reordered} with their columns in another order",
        before.len(),
        original.data.len()
    ));
}
