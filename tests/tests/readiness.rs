//! What a backup needs at its source: each missing right has its reason and the statements that mend it; locks, standbys and poolers that
//! are in the way are named; and a backup with exactly the rights that are asked for is whole.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Job, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::pooler::{self, Pooler};
use vaultferry_tests::postgres::{Server, quote};
use vaultferry_tests::{process, sample, wait_for, workspace};

/// A role whose name has to be quoted wherever it stands.
const ROLE: &str = "Sicherung \"1\" it's";
const ROLE_IN_URI: &str = "Sicherung%20%221%22%20it%27s";
const PASSWORD: &str = "a-password";
/// Longest wait for what takes a moment.
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

/// A throwaway server: Debian's, or the one of another version whose programs lie in the folder VAULTFERRY_TEST_SERVER_BIN.
fn start() -> Server {
    match std::env::var_os("VAULTFERRY_TEST_SERVER_BIN") {
        Some(dir) => Server::start_from(Path::new(&dir)),
        None => Server::start(),
    }
}

#[track_caller]
fn major(server: &Server) -> u32 {
    server.psql("postgres", "show server_version_num").parse::<u32>().expect("a number") / 10_000
}

/// The database `shop`: with everything awkward where the server knows it.
#[track_caller]
fn fill(server: &Server) {
    if major(server) >= 15 {
        sample::awkward(server, "shop", 1);
    } else {
        server.create_database("shop");
        server.psql("shop", SOURCE);
    }
}

/// Makes [`ROLE`], which may log in and nothing else.
#[track_caller]
fn create_role(server: &Server) {
    server.psql("postgres", &format!("create role {} login password '{PASSWORD}'", quote(ROLE)));
}

/// The database as [`ROLE`] sees it.
fn uri(port: u16, database: &str) -> String {
    format!("postgres://{ROLE_IN_URI}@127.0.0.1:{port}/{database}")
}

fn passfile(agent: &Agent) -> PathBuf {
    agent.write("passfile-role", &format!("*:*:*:*:{PASSWORD}\n"))
}

fn create(agent: &Agent, source: &str, passfile: &Path) -> Reply {
    let passfile = passfile.display().to_string();
    agent.cli_json(&["instance", "create", "--source", source, "--policy", "quiet", "--passfile", &passfile])
}

/// The reason and the fix of a refusal.
#[track_caller]
fn refused(reply: &Reply) -> (String, String) {
    assert_eq!(reply.code, 1, "{reply:?}");
    let json: Value = serde_json::from_str(reply.stderr.lines().next_back().unwrap_or_default()).expect("JSON");
    let text = |name: &str| json["error"][name].as_str().expect("a text").to_owned();
    (text("reason"), text("fix"))
}

#[track_caller]
fn findings(agent: &Agent, instance: &str) -> (i32, Vec<Value>) {
    let reply = agent.cli_json(&["instance", "validate", instance]);
    (reply.code, reply.json()["findings"].as_array().expect("a list of findings").clone())
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_default()
}

fn objects(finding: &Value) -> Vec<&str> {
    finding["objects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Runs what a finding says must be run.
#[track_caller]
fn apply(server: &Server, database: &str, fix: &str) {
    assert!(fix.lines().any(|line| !line.starts_with("--")), "nothing to run: {fix}");
    server.psql(database, fix);
}

/// The printed fixes, one after the other, lead from a role without any right to a backup that comes back equal.
#[test]
fn each_missing_right_has_its_fix_until_a_backup_is_whole() {
    let server = start();
    server.create_database("shop");
    server.psql("shop", SOURCE);
    create_role(&server);
    server.psql("shop", "revoke connect on database shop from public; revoke usage on schema public from public");
    let agent = Setup::new().start();
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
    if major(&server) >= 14 {
        expected.push(denied("pg_read_all_data"));
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
    server.psql("shop", "set role maker; create table \"Mixed Case\".later (n integer)");
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}

/// All that is missing is told at once, with the objects; a backup that begins then fails by the first of it, before pg_dump is started.
#[test]
fn validate_tells_all_that_is_missing_at_once_and_a_backup_looks_again() {
    let server = start();
    server.create_database("shop");
    server.psql("shop", SOURCE);
    create_role(&server);
    server.psql("shop", "select lo_create(0) from generate_series(1, 150)");
    run_script(&server, "shop", false);
    let agent = Setup::new().start();
    agent.protect("shop", &uri(server.port(), "shop"), &passfile(&agent));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
    let answer = agent.cli(&["instance", "validate", "shop"]).success().stdout;
    assert!(answer.contains("shop is ready"), "{answer}");

    let role = quote(ROLE);
    server.psql("shop", &format!("drop owned by {role}; alter role {role} nobypassrls"));
    if major(&server) >= 14 {
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

/// `deploy/grant-backup-role.sql`, as one runs it.
#[track_caller]
fn run_script(server: &Server, database: &str, per_database: bool) {
    let script = workspace().join("deploy/grant-backup-role.sql");
    let mut psql = server.client("psql", database);
    psql.args(["-X", "-q", "-v", &format!("role={ROLE}")]);
    if per_database {
        psql.args(["-v", "per_database=1"]);
    }
    process::run(psql.arg("-f").arg(script), b"", SOON).success();
}

/// The least rights are enough, they are no more than reading, and the script may run again.
fn least_rights(per_database: bool) {
    let server = start();
    fill(&server);
    server.create_database("other");
    server.psql("other", "create table private (n integer)");
    run_script(&server, "shop", per_database);
    run_script(&server, "shop", per_database);
    server.psql("postgres", &format!("alter role {} password '{PASSWORD}'", quote(ROLE)));
    let agent = Setup::new().start();
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
    let reads_all = !per_database && major(&server) >= 14;
    assert_eq!(server.psql("other", &elsewhere), if reads_all { "t" } else { "f" });
}

#[test]
fn a_backup_with_exactly_the_rights_of_the_script_comes_back_equal() {
    least_rights(false);
}

#[test]
fn a_backup_with_exactly_the_rights_on_one_database_comes_back_equal() {
    least_rights(true);
}

/// A session of somebody else, which stays in the middle of a transaction.
struct Somebody(Child);

impl Somebody {
    /// Runs statements, and waits until `done` is a row.
    #[track_caller]
    fn runs(server: &Server, database: &str, sql: &str, done: &str) -> Self {
        let mut psql = server.client("psql", database);
        psql.args(["-Xq"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = psql.spawn().expect("start psql");
        let stdin = child.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(format!("{sql}\n").as_bytes()).and_then(|()| stdin.flush()).expect("psql reads");
        wait_for(done, SOON, || (server.psql(database, done) == "t").then_some(()));
        Self(child)
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const IS_LOCKED: &str = "select exists (select from pg_locks where mode = 'AccessExclusiveLock' and granted and relation = 'sales'::regclass)";

fn note(job: &Job) -> &str {
    job.0["progress"]["note"].as_str().unwrap_or_default()
}

/// Who holds a table is named, before and while a backup waits for it; the backup goes on as soon as it can.
#[test]
fn a_locked_table_is_waited_for_and_its_holder_is_named() {
    let server = start();
    server.create_database("shop");
    server.psql("shop", "create table sales (n integer); insert into sales values (1)");
    let agent = Setup::new().config("[postgres]\nlock_timeout = \"2s\"\nlock_retries = 1\n").start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let locked = "begin; lock table sales in access exclusive mode; select 'a secret';";
    let somebody = Somebody::runs(&server, "shop", locked, IS_LOCKED);

    let (code, found) = findings(&agent, "shop");
    assert_eq!((code, found.len()), (0, 1), "{found:#?}");
    assert_eq!((text(&found[0], "reason"), &found[0]["blocking"]), ("LockTimeout", &Value::Bool(false)));
    assert_eq!(objects(&found[0]), ["public.sales"]);
    let pid = server
        .psql("shop", "select pid from pg_locks where mode = 'AccessExclusiveLock' and relation = 'sales'::regclass");
    let (message, fix) = (text(&found[0], "message"), text(&found[0], "fix"));
    assert!(message.contains(&format!("pid {pid} (postgres, psql, for ")), "{message}");
    assert!(message.contains("idle in transaction: select") && !message.contains("secret"), "{message}");
    assert!(fix.contains(&format!("-- SELECT pg_terminate_backend({pid});")), "{fix}");

    for text in ["LockTimeout", "lock did not come"] {
        agent.expect_log(text);
    }
    let failed = agent.cli_json(&["backup", "shop", "--wait"]);
    failed.assert_failed("LockTimeout");
    for part in ["public.sales, held by pid", &pid, "idle in transaction", "the last of 2 tries"] {
        assert!(failed.stderr.contains(part), "{part} is not told: {}", failed.stderr);
    }
    wait_for("the end of our sessions", SOON, || (server.sessions_of("vaultferry") == 0).then_some(()));

    let job = agent.start_backup("shop");
    let waiting = agent.wait_job(job.id(), "it tells whom it waits for", SOON, |job| note(job).contains("held by pid"));
    assert!(note(&waiting).contains(&pid), "{}", note(&waiting));
    drop(somebody);
    let ended = agent.wait_job_end(job.id()).completed();
    assert!(note(&ended).contains("snapshot was held for "), "{:#}", ended.0);

    server.psql("shop", "begin; lock table sales in access exclusive mode; prepare transaction 'it''s'");
    let (code, found) = findings(&agent, "shop");
    assert_eq!((code, found.len()), (0, 1), "{found:#?}");
    assert!(text(&found[0], "message").contains("the prepared transaction it's (postgres, for "), "{found:#?}");
    let fix = text(&found[0], "fix");
    let last =
        fix.lines().next_back().and_then(|line| line.strip_prefix("-- ")).and_then(|line| line.split(" or ").next());
    assert_eq!(last, Some("COMMIT PREPARED 'it''s';"), "{fix}");
    server.psql("shop", last.unwrap_or_default());
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}

/// Time limits that a database or a role has of its own do not end a long dump, and the job tells how long it was.
#[test]
fn time_limits_of_the_source_do_not_end_a_dump() {
    let server = start();
    sample::random(&server, "shop", 3);
    create_role(&server);
    let role = quote(ROLE);
    run_script(&server, "shop", false);
    let known = "select name from pg_settings where name ~ 'timeout$' and name ~ '^(statement|lock|idle_|transaction)'";
    let limits = server.psql("shop", known);
    assert!(limits.lines().count() >= 3, "{limits}");
    for limit in limits.lines() {
        server.psql("shop", &format!("alter role {role} set {limit} = '1s'"));
    }
    let proxy = FaultProxy::start(server.port());
    let agent = Setup::new().start();
    agent.protect("shop", &uri(proxy.port(), "shop"), &passfile(&agent));
    // 6 MB of digits, a megabyte and a half in a second.
    proxy.set(Fault::Rate(1_500_000));
    let job = agent.backup("shop");
    let held_ms = number(&job.0["backup_report"]["snapshot_held_ms"]);
    assert!(held_ms > 2500, "{:#}", job.0);
    assert_eq!(note(&job), format!("the source's snapshot was held for {} s", held_ms.div_ceil(1000)));
}

/// Statements of one session that run in another one's process: no backup, and the reason.
#[test]
fn poolers_that_cannot_be_used_are_named() {
    let server = start();
    server.create_database("shop");
    let pooler = Pooler::start(&server, "shop");
    let agent = Setup::new().start();
    agent.create_policy("quiet");
    let source = |port: u16| format!("postgres://{}@127.0.0.1:{port}/shop?sslmode=disable", pooler::ROLE);
    let pooled = create(&agent, &source(pooler.port()), server.passfile_for_anything().as_path());
    pooled.assert_failed("PoolerUnsupported");
    assert!(pooled.stderr.contains("transaction mode"), "{}", pooled.stderr);
    // The same role at the server itself is fine.
    create(&agent, &source(server.port()), server.passfile_for_anything().as_path()).success();

    let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let _ = std::io::Read::read(&mut client, &mut [0; 1024]);
            let mut answer = b"E\0\0\0\0SFATAL\0C08P01\0Munsupported startup parameter: application_name\0\0".to_vec();
            let length = u32::try_from(answer.len() - 1).expect("short");
            answer[1..5].copy_from_slice(&length.to_be_bytes());
            let _ = client.write_all(&answer);
        }
    });
    let refused = create(&agent, &source(port), server.passfile_for_anything().as_path());
    refused.assert_failed("PoolerUnsupported");
}

/// A standby that cancels the dump: named, begun again once by itself, and it can be seen before.
#[test]
fn a_standby_that_cancels_is_named_and_tried_again() {
    let mut primary = start();
    let standby = primary.standby();
    // 24 MB of digits: far more than stays on the way while the proxy holds the rest back, so the dump is in the middle of the table.
    sample::random(&primary, "shop", 12);
    primary.psql("shop", "alter table bulk set (autovacuum_enabled = off, toast.autovacuum_enabled = off)");
    let replayed = primary.psql("shop", "select pg_current_wal_insert_lsn()");
    let caught_up = format!("select pg_last_wal_replay_lsn() >= '{replayed}'::pg_lsn");
    wait_for("the standby to have it all", SOON, || (standby.psql("postgres", &caught_up) == "t").then_some(()));
    standby.psql("postgres", "alter system set max_standby_streaming_delay = 0;\nselect pg_reload_conf()");
    let proxy = FaultProxy::start(standby.port());
    let agent = Setup::new().start();
    let passfile = standby.passfile_for_port(proxy.port());
    agent.protect("shop", &vaultferry_tests::postgres::uri_for(proxy.port(), "shop"), &passfile);
    let (code, found) = findings(&agent, "shop");
    assert_eq!((code, found.len()), (0, 1), "{found:#?}");
    assert_eq!((text(&found[0], "reason"), &found[0]["blocking"]), ("ReplicaConflict", &Value::Bool(false)));

    // The dump stands still in the middle of a table that the primary changes. Its process is told to give way, and does so with the next row.
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 6_000_000));
    agent.expect_log("ReplicaConflict");
    agent.expect_log("the backup began again");
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "bytes are read", SOON, |job| job.progress("bytes_read") > 3_000_000);
    // Only what is written through is sent to the standby.
    primary.psql("shop", "set synchronous_commit = on;\nalter table bulk add column later integer default 7");
    let changed = primary.psql("shop", "select pg_current_wal_flush_lsn()");
    let received = format!("select pg_last_wal_receive_lsn() >= '{changed}'::pg_lsn");
    wait_for("the standby to have the change", SOON, || (standby.psql("postgres", &received) == "t").then_some(()));
    // Nothing says for certain that the replay waits now: with a delay of 0 it does not stay in pg_locks to be seen, and pg_stat_database_conflicts
    // counts when the dump's process gives way, which it does only when its bytes flow. So they flow slowly: the rest of the table takes seconds,
    // and the replay milliseconds to get to the change.
    proxy.set(Fault::Rate(2_000_000));
    wait_for("the backup to begin again", SOON, || agent.log().contains("the backup began again").then_some(()));
    proxy.set(Fault::None);
    let ended = agent.wait_job_end(job.id());
    assert_eq!(ended.status(), "CompletedWithWarnings", "{:#}", ended.0);
    assert_eq!(ended.0["warnings"][0]["reason"], "ReplicaConflict", "{:#}", ended.0);
    let warning = ended.0["warnings"][0]["message"].as_str().unwrap_or_default();
    assert!(warning.contains("began again") && warning.contains("conflict with recovery"), "{warning}");
    agent.restore("shop", "latest", &primary, "back");
    let rows = "select count(*), sum(later) from bulk";
    assert_eq!(primary.psql("back", rows), primary.psql("shop", rows));

    // The printed fix makes the standby one that can be backed up.
    apply(&standby, "postgres", text(&found[0], "fix"));
    wait_for("the new setting", SOON, || (standby.psql("postgres", "show hot_standby_feedback") == "on").then_some(()));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}

/// Without a role the script does nothing, and says so.
#[test]
fn the_script_needs_a_role() {
    let script = workspace().join("deploy/grant-backup-role.sql");
    let server = start();
    let mut psql = server.client("psql", "postgres");
    let output = process::run(psql.args(["-X", "-q", "-f"]).arg(script), b"", SOON);
    assert_ne!(output.code, 0, "{}", output.stderr);
    assert_eq!(
        server.psql("postgres", "select string_agg(rolname, ',') from pg_roles where rolname !~ '^pg_'"),
        "postgres"
    );
}
