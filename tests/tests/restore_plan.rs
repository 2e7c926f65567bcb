//! Restores as a database beyond the plain one: the plan, chosen tables, missing roles, a full disk, a cancellation, and what is kept of a
//! failure.

use std::path::Path;
use std::time::Duration;

use nix::unistd::{Uid, User, chown};
use serde_json::Value;
use vaultferry_tests::agent::{Agent, Job, Reply, Setup, number};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::tmpfs::Tmpfs;
use vaultferry_tests::{process, sample, wait_for};

/// Two tables with all that can belong to one, a role that owns one of them, and a key from the first to the second.
const SOURCE: &str = r#"
create role "Besitzer 1" login connection limit 3 createdb;
create schema "Mixed Case";
create type "Mixed Case".kind as enum ('a', 'b');
create function touch() returns trigger language plpgsql as $$ begin return new; end $$;
create table goods (id integer primary key, name text not null);
insert into goods select i, 'good ' || i from generate_series(1, 20) i;
create table "Mixed Case"."a.b" (
    id serial primary key,
    good integer not null references goods,
    kind "Mixed Case".kind default 'a',
    amount numeric check (amount > 0)
);
insert into "Mixed Case"."a.b" (good, amount) select i, i from generate_series(1, 20) i;
create index by_amount on "Mixed Case"."a.b" (amount);
create trigger touched before update on "Mixed Case"."a.b" for each row execute function touch();
comment on table "Mixed Case"."a.b" is 'counted';
alter table goods owner to "Besitzer 1";
create view seen as select * from goods;
"#;

fn source(server: &Server) {
    server.create_database("shop");
    server.psql("shop", SOURCE);
}

/// `restore database shop` into `database` of that server, with more flags.
fn restore(agent: &Agent, server: &Server, database: &str, flags: &[&str]) -> Reply {
    let target = server.uri("postgres");
    let passfile = server.passfile().display().to_string();
    let place = ["--target", &target, "--database", database, "--passfile", &passfile];
    agent.cli_json(&[&["restore", "database", "shop"], &place[..], flags].concat())
}

fn finding<'a>(plan: &'a Value, reason: &str) -> &'a Value {
    let findings = plan["findings"].as_array().expect("a list of findings");
    let found = findings.iter().find(|finding| finding["reason"] == reason);
    found.unwrap_or_else(|| panic!("no {reason} in {plan:#}"))
}

fn reasons_of(job: &Job) -> Vec<String> {
    let warnings = job.0["warnings"].as_array().into_iter().flatten();
    warnings.filter_map(|warning| warning["reason"].as_str()).map(str::to_owned).collect()
}

/// What the plan finds keeps the restore from beginning, the same is mended by --globals where the point has the roles, and in every case by
/// --no-owner.
#[test]
fn a_missing_role_is_planned_refused_and_made_on_request() {
    let (server, other) = (Server::start(), Server::start());
    source(&server);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    for text in ["RolesMissing", "PartlyRestored"] {
        agent.expect_log(text);
    }

    let plan = restore(&agent, &other, "shop", &["--plan"]);
    plan.assert_failed("RolesMissing");
    let json = plan.json();
    assert_eq!(finding(&json, "RolesMissing")["objects"][0], "\"Besitzer 1\"", "{json:#}");
    assert_eq!(finding(&json, "RolesMissing")["blocking"], true);
    assert!(number(&json["dump_bytes"]) > 0 && number(&json["database_bytes"]) > 0, "{json:#}");
    assert_eq!(number(&json["tables"]), 2, "{json:#}");
    restore(&agent, &other, "shop", &["--wait"]).assert_failed("RolesMissing");
    assert!(other.databases().is_empty(), "{:?}", other.databases());

    let taken = restore(&agent, &server, "shop", &["--plan"]);
    taken.assert_failed("UserErrorDatabaseNameAlreadyInUse");
    restore(&agent, &other, "shop", &["--plan", "--no-owner"]).success();
    assert!(other.databases().is_empty(), "a plan changes nothing: {:?}", other.databases());

    let has_globals = agent.points("shop")[0]["streams"]
        .as_array()
        .is_some_and(|streams| streams.iter().any(|stream| stream["name"] == "globals.sql"));
    if !has_globals {
        restore(&agent, &other, "shop", &["--globals", "--wait"]).assert_failed("RolesMissing");
        return;
    }
    let job = restore(&agent, &other, "shop", &["--globals", "--wait"]).success().job();
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    assert!(reasons_of(&job).iter().all(|reason| reason == "PartlyRestored"), "{:#}", job.0);
    let role = "select rolcanlogin, rolconnlimit, rolcreatedb, shobj_description(oid, 'pg_authid') from pg_roles
                where rolname = 'Besitzer 1'";
    // It may log in, but makes no databases; and the mark of the job is gone.
    assert_eq!(other.psql("shop", role), "t|3|f|");
    let owner = "select tableowner from pg_tables where tablename = 'goods'";
    assert_eq!(other.psql("shop", owner), "Besitzer 1");
}

/// One table comes back with everything that is its own, and with nothing else; the key to a table that was not chosen is told.
#[test]
fn a_chosen_table_comes_back_whole_and_alone() {
    let server = Server::start();
    source(&server);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("PartlyRestored");

    let chosen = ["--table", "\"Mixed Case\".\"a.b\""];
    let plan = restore(&agent, &server, "one", &[&chosen[..], &["--plan"]].concat()).success().json();
    assert!(
        finding(&plan, "PartlyRestored")["message"].as_str().unwrap_or_default().contains("FK CONSTRAINT"),
        "{plan:#}"
    );
    assert_eq!(number(&plan["tables"]), 1, "{plan:#}");
    let along = finding(&plan, "AlsoRestored")["objects"].as_array().expect("objects");
    assert!(along.contains(&"FUNCTION public.touch()".into()), "{plan:#}");
    let job = restore(&agent, &server, "one", &[&chosen[..], &["--wait"]].concat()).success().job();
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    assert_eq!(reasons_of(&job), ["PartlyRestored"]);

    let tables = "select schemaname || '.' || tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')";
    assert_eq!(server.psql("one", tables), "Mixed Case.a.b");
    assert_eq!(server.psql("one", "select count(*) from pg_views where viewname = 'seen'"), "0");
    let own = r#"
        select count(*), sum(amount) from "Mixed Case"."a.b";
        select string_agg(indexname, ',' order by indexname) from pg_indexes where schemaname = 'Mixed Case';
        select string_agg(contype::text, '' order by contype) from pg_constraint
            where conrelid = '"Mixed Case"."a.b"'::regclass and contype <> 'n';
        select count(*) from pg_trigger where tgname = 'touched';
        select obj_description('"Mixed Case"."a.b"'::regclass);
        insert into "Mixed Case"."a.b" (good, amount) values (99, 1) returning id, kind;
    "#;
    assert_eq!(server.psql("one", own), "20|210\na.b_pkey,by_amount\ncp\n1\ncounted\n21|a");

    // A whole schema is the same here, both tables together have their key, and what is not there is refused by name.
    restore(&agent, &server, "schema", &["--schema", "Mixed Case", "--wait"]).success();
    assert_eq!(server.psql("schema", tables), "Mixed Case.a.b");
    let both = ["--schema", "Mixed Case", "--table", "public.goods", "--wait"];
    restore(&agent, &server, "both", &both).success().job().completed();
    assert_eq!(server.psql("both", "select count(*) from pg_constraint where contype = 'f'"), "1");
    agent.expect_log("InvalidRequest");
    restore(&agent, &server, "none", &["--table", "public.GOODS", "--wait"]).assert_failed("InvalidRequest");
    restore(&agent, &server, "none", &["--table", "public.seen", "--wait"]).assert_failed("InvalidRequest");
    assert_eq!(server.databases(), ["both", "one", "schema", "shop"]);
}

/// What was compared is said by the job; without a comparison that is said, too.
#[test]
fn the_job_says_what_was_checked() {
    let server = Server::start();
    source(&server);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let job = restore(&agent, &server, "checked", &["--wait"]).success().job().completed();
    let checked = job.0["restore_report"]["checked"].as_str().unwrap_or_default();
    assert!(checked.starts_with("compared with the point: "), "{:#}", job.0);
    let job = restore(&agent, &server, "unchecked", &["--verify", "none", "--wait"]).success().job().completed();
    let checked = job.0["restore_report"]["checked"].as_str().unwrap_or_default();
    assert!(checked.starts_with("not compared"), "{:#}", job.0);
    // The next plan knows how fast it was, if it was not too fast to be measured.
    let plan = restore(&agent, &server, "again", &["--plan"]).success().json();
    assert!(number(&plan["estimate_restores"]) <= 2, "{plan:#}");
}

/// A tablespace in a small file system, which the source fills by more than half: a second copy finds no room.
struct Small {
    agent: Agent,
    server: Server,
    _mount: Tmpfs,
}

impl Small {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Self> {
        let mount = Tmpfs::new("size=64m")?;
        let server = Server::start();
        give_to_server(&mount.path());
        server.psql("postgres", &format!("create tablespace small location '{}'", mount.path().display()));
        sample::random(&server, "shop", 36);
        server.psql("shop", "alter table bulk set tablespace small");
        let agent = Setup::new().start();
        agent.protect("shop", &server.uri("shop"), server.passfile());
        agent.backup("shop");
        for text in ["TargetFull", "No space left"] {
            agent.expect_log(text);
        }
        Some(Self { agent, server, _mount: mount })
    }
}

/// PostgreSQL runs as nobody when the tests run as root.
fn give_to_server(path: &Path) {
    if Uid::effective().is_root() {
        let user = User::from_name("nobody").expect("read the users").expect("nobody exists");
        chown(path, Some(user.uid), Some(user.gid)).expect("give the folder to the server's user");
    }
}

#[test]
fn a_full_disk_at_the_target_is_named_and_nothing_is_left() {
    let Some(small) = Small::new() else { return };
    restore(&small.agent, &small.server, "copy", &["--wait"]).assert_failed("TargetFull");
    assert_eq!(small.server.databases(), ["shop"]);
    assert!(small.agent.clients("pg_restore").is_empty());
    // Its space is free again: with the source gone, the copy fits.
    small.server.psql("postgres", "drop database shop");
    small.server.psql("postgres", "checkpoint");
    restore(&small.agent, &small.server, "copy", &["--wait"]).success().job().completed();
}

#[test]
fn what_failed_is_kept_on_request_under_the_name_that_the_job_tells() {
    let Some(small) = Small::new() else { return };
    let reply = restore(&small.agent, &small.server, "copy", &["--keep-failed", "--wait"]);
    reply.assert_failed("TargetFull");
    let databases = small.server.databases();
    let [_, kept] = databases.as_slice() else { panic!("{databases:?}") };
    assert!(kept.starts_with("vaultferry_restore_"), "{databases:?}");
    assert!(reply.stderr.contains(kept.as_str()), "{reply:?}");
    // It is there after a restart of the agent, too.
    let mut agent = small.agent;
    agent.restart();
    assert_eq!(small.server.databases(), databases);
}

#[test]
fn a_cancelled_restore_leaves_no_database() {
    let (server, other) = (Server::start(), Server::start());
    sample::random(&server, "shop", 40);
    let proxy = FaultProxy::start(other.port());
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    for text in ["ancel", "pg_restore"] {
        agent.expect_log(text);
    }
    let target = vaultferry_tests::postgres::uri_for(proxy.port(), "postgres");
    let passfile = other.passfile_for_port(proxy.port()).display().to_string();
    // Slow enough to be found in the middle, on the fastest machine.
    proxy.set(Fault::Rate(4_000_000));
    let place = ["--target", &target, "--database", "copy", "--passfile", &passfile, "--keep-failed"];
    let job = agent.cli_json(&[&["restore", "database", "shop"], &place[..]].concat()).success().job();
    agent.wait_job(job.id(), "rows come in", Duration::from_secs(120), |job| {
        assert!(!job.ended(), "{:#}", job.0);
        job.0["progress"]["phase"] == "restoring" && job.progress("bytes_read") > 1_000_000
    });
    assert_eq!(other.databases().len(), 1, "the unfinished database");
    agent.cli_json(&["job", "cancel", job.id()]).success();
    proxy.set(Fault::None);
    assert_eq!(agent.wait_job_end(job.id()).status(), "Cancelled");
    process::wait_gone(&agent.plugins(), Duration::from_secs(30));
    assert!(agent.clients("pg_restore").is_empty());
    // The plugin drops it before it ends; the server's own end of the session may take a moment.
    wait_for("the unfinished database to go", Duration::from_secs(60), || other.databases().is_empty().then_some(()));
}

/// A partition is a table of its own when the whole is not chosen with it, by its name or by its schema; that it is not attached is told.
#[test]
fn a_partition_comes_back_without_its_table() {
    let server = Server::start();
    server.create_database("shop");
    server.psql(
        "shop",
        "create schema parts;
         create table whole (id integer primary key, v text) partition by range (id);
         create table parts.low partition of whole for values from (0) to (100);
         create table parts.high partition of whole for values from (100) to (200);
         create index by_v on whole (v);
         insert into whole select i, 'row ' || i from generate_series(1, 150) i",
    );
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("PartlyRestored");

    let job = restore(&agent, &server, "one", &["--table", "parts.low", "--wait"]).success().job();
    assert_eq!(reasons_of(&job), ["PartlyRestored"], "{:#}", job.0);
    assert!(
        job.0["warnings"][0]["message"].as_str().unwrap_or_default().contains("TABLE ATTACH parts.low"),
        "{:#}",
        job.0
    );
    let found = "select count(*) from parts.low; select count(*) from pg_constraint where contype = 'p' and conrelid = 'parts.low'::regclass;
                 select count(*) from pg_indexes where schemaname = 'parts'; select count(*) from pg_tables where schemaname in ('parts', 'public')";
    assert_eq!(server.psql("one", found), "99\n1\n2\n1");
    restore(&agent, &server, "schema", &["--schema", "parts", "--wait"]).success();
    assert_eq!(server.psql("schema", "select count(*) from parts.low; select count(*) from parts.high"), "99\n51");
    // With the whole it is attached.
    let both = ["--table", "parts.low", "--table", "public.whole", "--wait"];
    restore(&agent, &server, "both", &both).success();
    assert_eq!(server.psql("both", "select count(*) from whole"), "99");
}

/// In which partition by the hash of an enum a row lies is new in each database: one alone is refused before anything is made.
#[test]
fn a_partition_by_the_hash_of_an_enum_does_not_come_alone() {
    let server = Server::start();
    server.create_database("shop");
    server.psql(
        "shop",
        "create type colour as enum ('red', 'green', 'blue');
         create table whole (id integer, colour colour) partition by hash (colour);
         create table part_0 partition of whole for values with (modulus 2, remainder 0);
         create table part_1 partition of whole for values with (modulus 2, remainder 1);
         insert into whole select i, (array['red', 'green', 'blue'])[1 + i % 3]::colour from generate_series(1, 90) i",
    );
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("InvalidRequest");

    let one = ["--table", "public.whole", "--table", "public.part_0"];
    for how in ["--plan", "--wait"] {
        let reply = restore(&agent, &server, "some", &[&one[..], &[how]].concat());
        reply.assert_failed("InvalidRequest");
        assert!(reply.stderr.contains("--table 'public.part_1'"), "{}", reply.stderr);
    }
    assert_eq!(server.databases(), ["shop"]);
    let all = [&one[..], &["--table", "public.part_1", "--wait"]].concat();
    restore(&agent, &server, "all", &all).success().job().completed();
    assert_eq!(server.psql("all", "select count(*), count(distinct colour) from whole"), "90|3");
}

/// A policy names its roles whoever owns what, so they are looked for without owners, too.
#[test]
fn a_policys_role_is_missed_before_anything_is_made() {
    let (server, other) = (Server::start(), Server::start());
    server.create_database("shop");
    server.psql(
        "shop",
        "create role readers; create table t as select 1 as n; alter table t enable row level security;
         create policy read_some on t to readers using (n > 0)",
    );
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("RolesMissing");
    let reply = restore(&agent, &other, "copy", &["--no-owner", "--wait"]);
    reply.assert_failed("RolesMissing");
    assert!(reply.stderr.contains("readers") && reply.stderr.contains("which policies"), "{}", reply.stderr);
    assert!(other.databases().is_empty(), "{:?}", other.databases());
    other.psql("postgres", "create role readers");
    restore(&agent, &other, "copy", &["--no-owner", "--wait"]).success().job().completed();
}

/// PostgreSQL drops no database that has a subscription, not even by force.
#[test]
fn an_unfinished_database_goes_with_its_subscription() {
    let server = Server::start();
    server.create_database("shop");
    // The view is filled last of all, and fails in every database but this one.
    server.psql(
        "shop",
        "create subscription \"to nowhere\" connection 'host=nowhere dbname=none' publication p
             with (connect = false, slot_name = 'not_made');
         create function only_here() returns integer language plpgsql as $$ begin
             if current_database() <> 'shop' then raise exception 'only in the shop'; end if;
             return 1;
         end $$;
         create materialized view seen as select only_here() as one",
    );
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    for text in ["RestoreFailed", "only in the shop"] {
        agent.expect_log(text);
    }
    let reply = restore(&agent, &server, "copy", &["--wait"]);
    reply.assert_failed("RestoreFailed");
    assert!(reply.stderr.contains("only in the shop") && !reply.stderr.contains("could not be removed"), "{reply:?}");
    assert_eq!(server.databases(), ["shop"]);
    // The source keeps its own.
    assert_eq!(server.psql("shop", "select subname, subslotname from pg_subscription"), "to nowhere|not_made");
}
