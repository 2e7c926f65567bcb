//! The rights that a backup needs at its source, at servers of every version: each one that is missing has its reason and the statements that
//! give it, which are enough as they are printed; and a backup with exactly those rights is whole.

use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::{Server, quote, versions};
use vaultferry_tests::{heavy, process, sample, workspace};

#[path = "support/role.rs"]
mod role;

use role::{PASSWORD, ROLE, apply, create, create_role, findings, objects, passfile, run_script, text, uri};

/// Longest run of a script.
const SOON: Duration = Duration::from_secs(60);

/// Something of everything that has rights of its own, for servers since version 10.
const SOURCE: &str = r#"
create schema "Mixed Case"; create schema "한글";
create role maker;
create table plain (id serial primary key, v text); insert into plain (v) values ('a'), ('b');
create table "Mixed Case"."a.b" (n integer); insert into "Mixed Case"."a.b" values (1);
alter schema "Mixed Case" owner to maker; alter table "Mixed Case"."a.b" owner to maker;
create sequence "Mixed Case".alone;
create table "한글"."표" (n integer) partition by range (n);
create table "한글"."표 1" partition of "한글"."표" for values from (0) to (10);
insert into "한글"."표" values (5);
create table watched (n integer); insert into watched values (-1), (1);
alter table watched enable row level security;
create policy "own rows" on watched using (n > 0);
create unlogged table unlogged_rows (n integer);
create view seen as select * from plain;
select lo_from_bytea(4711, '\x00ff'); select lo_from_bytea(4712, '');
alter large object 4712 owner to maker;
"#;

/// One of everything that has rights of its own.
const ONE_OF_EACH: &str = r#"
create schema "Mixed Case";
create table "Mixed Case"."a.b" (n integer); insert into "Mixed Case"."a.b" values (1);
create sequence "Mixed Case".alone;
create table parted (n integer) partition by range (n);
create table part partition of parted for values from (0) to (10);
create table watched (n integer); insert into watched values (-1), (1);
alter table watched enable row level security;
create policy "own rows" on watched using (n > 0);
select lo_from_bytea(4711, '\x00ff');
"#;

/// A server of this version; `None` where there is none. Debian's own is always there.
#[track_caller]
fn start(major: u32) -> Option<Server> {
    if major == 15 { Some(Server::start()) } else { versions::start(major) }
}

/// An agent that finds the client programs of every version that are there.
fn agent() -> Agent {
    let dirs: Vec<String> = versions::client_dirs().iter().map(|dir| format!("\"{}\"", dir.display())).collect();
    Setup::new().config(&format!("[postgres]\nclient_dirs = [{}]\n", dirs.join(", "))).start()
}

/// The grant that lets [`ROLE`] read all, at servers that know it.
fn read_all(major: u32) -> &'static str {
    if major >= 16 { "GRANT pg_read_all_data TO X WITH INHERIT TRUE;" } else { "GRANT pg_read_all_data TO X;" }
}

/// The database `shop`: with everything awkward where the sample is made for the server.
#[track_caller]
fn fill(server: &Server, major: u32) {
    if major == 15 {
        sample::awkward(server, "shop", 1);
    } else {
        server.create_database("shop");
        server.psql("shop", SOURCE);
    }
}

/// The reason and the fix of a refusal.
#[track_caller]
fn refused(reply: &Reply) -> (String, String) {
    assert_eq!(reply.code, 1, "{reply:?}");
    let json: Value = serde_json::from_str(reply.stderr.lines().next_back().unwrap_or_default()).expect("JSON");
    let text = |name: &str| json["error"][name].as_str().expect("a text").to_owned();
    (text("reason"), text("fix"))
}

/// The printed fixes, one after the other, lead from a role without any right to a backup that comes back equal.
fn fixes(major: u32) {
    let Some(server) = start(major) else { return };
    server.create_database("shop");
    server.psql("shop", SOURCE);
    create_role(&server);
    server.psql("shop", "revoke connect on database shop from public; revoke usage on schema public from public");
    let agent = agent();
    agent.create_policy("quiet");
    let (source, passfile) = (uri(server.port(), "shop"), passfile(&agent));
    let mut steps = Vec::new();
    loop {
        let reply = create(&agent, &source, &passfile);
        if reply.code == 0 {
            break;
        }
        let (reason, fix) = refused(&reply);
        apply(&server, "shop", &fix);
        let grants = fix.lines().find(|line| !line.starts_with("--")).unwrap_or_default();
        steps.push(format!("{reason}: {}", grants.replace(&quote(ROLE), "X")));
        assert!(steps.len() < 10, "the fixes do not help: {steps:#?}");
    }
    let denied = |grant: &str| format!("UserErrorMissingDBPermissions: GRANT {grant} TO X;");
    let mut expected = vec![denied("CONNECT ON DATABASE \"shop\"")];
    // In the order of their bytes: that is the database's collation.
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(", ")
    };
    if major >= 14 {
        expected.push(format!("UserErrorMissingDBPermissions: {}", read_all(major)));
    } else {
        let (mixed, hangul) = ("\"Mixed Case\".\"a.b\"", ["\"한글\".\"표\"", "\"한글\".\"표 1\""]);
        let tables = vec![mixed, hangul[0], hangul[1], "public.plain", "public.unlogged_rows", "public.watched"];
        let schemas = sorted(vec!["\"Mixed Case\"", "public", "\"한글\""]);
        expected.push(denied(&format!("USAGE ON SCHEMA {schemas}")));
        expected.push(denied(&format!("SELECT ON TABLE {}", sorted(tables))));
        expected.push(denied("SELECT ON SEQUENCE \"Mixed Case\".alone, public.plain_id_seq"));
    }
    expected.push(denied("SELECT ON LARGE OBJECT 4711, 4712"));
    expected.push("RowSecurityHidesRows: ALTER ROLE X BYPASSRLS;".to_owned());
    assert_eq!(steps, expected);
    agent.backup("shop");
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&contents(&server, "shop"), &contents(&server, "back"));
    // What the owners of these tables make from now on can be read, too.
    server.psql("shop", "set role maker; create table \"Mixed Case\".later (n serial)");
    if major >= 18 {
        server.psql("shop", "select lo_create(0); set role maker; select lo_create(0)");
    }
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}

/// All that is missing is told at once, with the objects; a backup that begins then fails by the first of it, before pg_dump is started.
fn all_at_once(major: u32) {
    let Some(server) = start(major) else { return };
    server.create_database("shop");
    server.psql("shop", SOURCE);
    create_role(&server);
    server.psql("shop", "select lo_create(0) from generate_series(1, 150)");
    run_script(&server, "shop", false);
    let agent = agent();
    agent.protect("shop", &uri(server.port(), "shop"), &passfile(&agent));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
    let answer = agent.cli(&["instance", "validate", "shop"]).success().stdout;
    assert!(answer.contains("shop is ready"), "{answer}");

    let role = quote(ROLE);
    server.psql("shop", &format!("drop owned by {role}; alter role {role} nobypassrls"));
    if major >= 14 {
        server.psql("shop", &format!("revoke pg_read_all_data from {role}"));
    }
    // More than are named.
    server.psql(
        "shop",
        "do $$ begin for n in 1..120 loop execute format('create table many_%s (n integer)', n); end loop; end $$",
    );
    let (code, found) = findings(&agent, "shop");
    assert_eq!(code, 1);
    let kinds: Vec<(&str, u64, usize)> = found
        .iter()
        .map(|finding| (text(finding, "reason"), number(&finding["object_count"]), objects(finding).len()))
        .collect();
    let denied = "UserErrorMissingDBPermissions";
    let (tables, sequences) = (count(&server, "relkind in ('r', 'p')"), count(&server, "relkind = 'S'"));
    assert_eq!((tables, sequences), (126, 2));
    // Everybody may use the schema public.
    let expected =
        [(denied, 2, 2), (denied, 126, 100), (denied, 2, 2), (denied, 152, 100), ("RowSecurityHidesRows", 1, 1)];
    assert_eq!(kinds, expected, "{found:#?}");
    assert!(found.iter().all(|finding| finding["blocking"] == true), "{found:#?}");
    assert_eq!(objects(&found[0]), ["\"Mixed Case\"", "\"한글\""]);
    assert!(objects(&found[1]).contains(&"\"Mixed Case\".\"a.b\""), "{found:#?}");
    assert!(text(&found[1], "message").contains(ROLE), "{found:#?}");
    assert_eq!(objects(&found[4]), ["public.watched"]);
    let answer = agent.cli(&["instance", "validate", "shop"]);
    assert_eq!(answer.code, 1);
    assert!(answer.stdout.contains("shop is not ready: 5 things are missing"), "{}", answer.stdout);
    assert!(answer.stdout.contains("and 142 more"), "{}", answer.stdout);

    agent.expect_log(denied);
    agent.cli_json(&["backup", "shop", "--wait"]).assert_failed(denied);
    assert!(!agent.log().contains("pg_dump ended"), "pg_dump was started in vain");
    found.iter().for_each(|finding| apply(&server, "shop", text(finding, "fix")));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
    agent.backup("shop");
}

/// Relations of the sample that pg_dump reads.
#[track_caller]
fn count(server: &Server, condition: &str) -> u64 {
    let sql = format!(
        "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace where {condition} and nspname !~ '^pg_'
         and nspname <> 'information_schema' and not has_table_privilege('{}', c.oid, 'select')",
        ROLE.replace('\'', "''")
    );
    server.psql("shop", &sql).parse().expect("a number")
}

/// The least rights are enough, they are no more than reading, and the script may run again.
fn least_rights(major: u32, per_database: bool) {
    let Some(server) = start(major) else { return };
    fill(&server, major);
    server.create_database("other");
    server.psql("other", "create table private (n integer)");
    run_script(&server, "shop", per_database);
    run_script(&server, "shop", per_database);
    server.psql("postgres", &format!("alter role {} password '{PASSWORD}'", quote(ROLE)));
    let agent = agent();
    agent.protect("shop", &uri(server.port(), "shop"), &passfile(&agent));
    // What owners make from now on can be read, too.
    server.psql("shop", "create table later (id serial, v text); insert into later (v) values ('new')");
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
    agent.backup("shop");
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&contents(&server, "shop"), &contents(&server, "back"));

    let role = ROLE.replace('\'', "''");
    let attributes = "rolsuper or rolcreaterole or rolcreatedb or rolreplication";
    assert_eq!(server.psql("shop", &format!("select {attributes} from pg_roles where rolname = '{role}'")), "f");
    let writable = format!(
        "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'p') and nspname !~ '^pg_'
         and has_table_privilege('{role}', c.oid, 'insert, update, delete, truncate')"
    );
    assert_eq!(server.psql("shop", &writable), "0");
    let elsewhere = format!("select has_table_privilege('{role}', 'private', 'select')");
    let reads_all = !per_database && major >= 14;
    assert_eq!(server.psql("other", &elsewhere), if reads_all { "t" } else { "f" });
}

/// Each right is taken away by itself. It is told when the source is looked at and when a backup begins, as the same thing, with what gives it
/// back: the printed statements, run as they are, and nothing else is needed.
fn taken(major: u32) {
    let Some(server) = start(major) else { return };
    server.create_database("shop");
    server.psql("shop", ONE_OF_EACH);
    let role = quote(ROLE);
    // One by one, so that each of them can be missed.
    run_script(&server, "shop", true);
    server.psql("postgres", &format!("alter role {role} password '{PASSWORD}'"));
    let agent = agent();
    agent.protect("shop", &uri(server.port(), "shop"), &passfile(&agent));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));

    let denied = "UserErrorMissingDBPermissions";
    let reads_all = major >= 14;
    let or_read_all = |one: &'static str| if reads_all { "GRANT pg_read_all_data TO" } else { one };
    let (usage, table) = (or_read_all("GRANT USAGE ON SCHEMA"), or_read_all("GRANT SELECT ON TABLE"));
    let sequence = or_read_all("GRANT SELECT ON SEQUENCE");
    for (taken, reason, object, fix_begins) in [
        (format!("revoke connect on database shop from public, {role}"), denied, None, "GRANT CONNECT ON DATABASE"),
        (format!("alter role {role} nologin"), "UserErrorDBUserAuthFailed", None, "ALTER ROLE"),
        (format!("revoke usage on schema \"Mixed Case\" from {role}"), denied, Some("\"Mixed Case\""), usage),
        (format!("revoke select on \"Mixed Case\".\"a.b\" from {role}"), denied, Some("\"Mixed Case\".\"a.b\""), table),
        (format!("revoke select on parted from {role}"), denied, Some("public.parted"), table),
        (format!("revoke select on part from {role}"), denied, Some("public.part"), table),
        (
            format!("revoke select on sequence \"Mixed Case\".alone from {role}"),
            denied,
            Some("\"Mixed Case\".alone"),
            sequence,
        ),
        (
            format!("revoke select on large object 4711 from {role}"),
            denied,
            Some("4711"),
            "GRANT SELECT ON LARGE OBJECT 4711",
        ),
        (format!("alter role {role} nobypassrls"), "RowSecurityHidesRows", Some("public.watched"), "ALTER ROLE"),
    ] {
        server.psql("shop", &taken);
        let reply = agent.cli_json(&["instance", "validate", "shop"]);
        let (told, fix) = refused(&reply);
        assert_eq!(told, reason, "{taken}: {reply:?}");
        if let Some(object) = object {
            let found = reply.json()["findings"].as_array().cloned().unwrap_or_default();
            assert_eq!(found.len(), 1, "{taken}: {found:#?}");
            assert_eq!(found[0]["objects"], serde_json::json!([object]), "{taken}");
            assert_eq!(found[0]["blocking"], true, "{taken}");
        }
        agent.expect_log(reason);
        agent.cli_json(&["backup", "shop", "--wait"]).assert_failed(reason);

        let statement = fix.lines().find(|line| !line.starts_with("--")).unwrap_or_default();
        assert!(statement.starts_with(fix_begins) && statement.ends_with(';'), "{taken}: {fix}");
        server.psql("shop", &fix);
        let reply = agent.cli_json(&["instance", "validate", "shop"]);
        assert_eq!((reply.code, reply.json()["findings"].as_array().map(Vec::len)), (0, Some(0)), "{taken}: {reply:?}");
        // As it was before: a right that covers others would hide the next one that is taken.
        if reads_all {
            server.psql("shop", &format!("revoke pg_read_all_data from {role}"));
        }
        run_script(&server, "shop", true);
    }
    agent.backup("shop");
    assert!(!agent.log().contains("pg_dump ended"), "pg_dump was started in vain");
}

/// A role that inherits nothing has nothing of pg_read_all_data before 16, and since then only where the membership says so; one that was made
/// a member before, and reads nothing by it, is mended all the same.
fn aloof(major: u32) {
    let Some(server) = start(major) else { return };
    server.create_database("shop");
    server.psql("shop", SOURCE);
    create_role(&server);
    let role = quote(ROLE);
    server.psql("shop", &format!("alter role {role} noinherit; grant pg_read_all_data to {role}"));
    let agent = agent();
    agent.create_policy("quiet");
    let (source, passfile) = (uri(server.port(), "shop"), passfile(&agent));
    let mut steps = Vec::new();
    let made = || create(&agent, &source, &passfile);
    let mut reply = made();
    while reply.code != 0 {
        let (_, fix) = refused(&reply);
        apply(&server, "shop", &fix);
        steps.push(fix);
        assert!(steps.len() < 8, "the fixes do not help: {steps:#?}");
        reply = made();
    }
    assert_eq!(steps[0].contains("WITH INHERIT TRUE"), major >= 16, "{steps:#?}");
    agent.backup("shop");
    // The script does as much by itself.
    server.psql("shop", &format!("drop owned by {role}; revoke pg_read_all_data from {role}"));
    assert_eq!(findings(&agent, "shop").0, 1);
    run_script(&server, "shop", false);
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}

#[test]
fn matrix_rights_10() {
    fixes(10);
    taken(10);
}

#[test]
fn matrix_rights_13() {
    fixes(13);
    taken(13);
}

#[test]
fn matrix_rights_15() {
    fixes(15);
    taken(15);
    aloof(15);
}

#[test]
fn matrix_rights_18() {
    fixes(18);
    taken(18);
    aloof(18);
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    all_at_once(15);
}

#[test]
fn a_backup_with_exactly_the_rights_of_the_script_comes_back_equal() {
    least_rights(15, false);
}

#[test]
fn a_backup_with_exactly_the_rights_on_one_database_comes_back_equal() {
    least_rights(15, true);
}

#[test]
fn heavy_rights_fixed_and_taken_at_all_versions() {
    if heavy() {
        for major in versions::ALL.into_iter().filter(|major| !versions::BASE.contains(major)) {
            fixes(major);
            taken(major);
            if major >= 14 {
                aloof(major);
            }
        }
    }
}

#[test]
fn heavy_rights_at_once_and_by_the_script_at_all_versions() {
    if heavy() {
        for major in versions::ALL.into_iter().filter(|major| *major != 15) {
            all_at_once(major);
            least_rights(major, false);
            least_rights(major, true);
        }
    }
}

/// Without a role the script does nothing, and says so.
#[test]
fn the_script_needs_a_role() {
    let script = workspace().join("deploy/grant-backup-role.sql");
    let server = Server::start();
    let mut psql = server.client("psql", "postgres");
    let output = process::run(psql.args(["-X", "-q", "-f"]).arg(script), b"", SOON);
    assert_ne!(output.code, 0, "{}", output.stderr);
    assert_eq!(
        server.psql("postgres", "select string_agg(rolname, ',') from pg_roles where rolname !~ '^pg_'"),
        "postgres"
    );
}
