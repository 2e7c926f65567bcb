//! What a backup needs at its source besides rights (`rights.rs`): locks, standbys and poolers that are in the way are named, and mended as they
//! say.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Job, Setup, number};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::pooler::{self, Pooler};
use vaultferry_tests::postgres::{Server, quote};
use vaultferry_tests::{sample, wait_for};

#[path = "support/role.rs"]
mod role;

use role::{ROLE, apply, create, create_role, findings, objects, passfile, run_script, text, uri};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// A throwaway server: Debian's, or the one of another version whose programs lie in the folder VAULTFERRY_TEST_SERVER_BIN.
fn start() -> Server {
    match std::env::var_os("VAULTFERRY_TEST_SERVER_BIN") {
        Some(dir) => Server::start_from(Path::new(&dir)),
        None => Server::start(),
    }
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
    let delay = "show max_standby_streaming_delay";
    wait_for("the new setting", SOON, || (standby.psql("postgres", delay) == "0").then_some(()));
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

/// Whether a standby lets a backup finish depends on how long it takes: at first by its size, then by the last one.
#[test]
fn a_standby_is_told_of_when_the_last_backup_took_longer_than_it_waits() {
    let mut primary = start();
    let standby = primary.standby();
    sample::random(&primary, "shop", 3);
    primary.psql("shop", "alter table bulk set (autovacuum_enabled = off, toast.autovacuum_enabled = off)");
    let replayed = primary.psql("shop", "select pg_current_wal_insert_lsn()");
    let caught_up = format!("select pg_last_wal_replay_lsn() >= '{replayed}'::pg_lsn");
    wait_for("the standby to have it all", SOON, || (standby.psql("postgres", &caught_up) == "t").then_some(()));
    // Twice what a database of this size takes at a common rate, and less than twice what the slow backup below takes.
    standby.psql("postgres", "alter system set max_standby_streaming_delay = '4s';\nselect pg_reload_conf()");
    let delay = "show max_standby_streaming_delay";
    wait_for("the new setting", SOON, || (standby.psql("postgres", delay) == "4s").then_some(()));
    let proxy = FaultProxy::start(standby.port());
    let agent = Setup::new().start();
    let passfile = standby.passfile_for_port(proxy.port());
    agent.protect("shop", &vaultferry_tests::postgres::uri_for(proxy.port(), "shop"), &passfile);
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
    // 6 MB of digits, a megabyte and a half in a second.
    proxy.set(Fault::Rate(1_500_000));
    let job = agent.backup("shop");
    let held_ms = number(&job.0["backup_report"]["snapshot_held_ms"]);
    assert!(held_ms > 2500, "{:#}", job.0);
    proxy.set(Fault::None);
    let (code, found) = findings(&agent, "shop");
    assert_eq!((code, found.len()), (0, 1), "{found:#?}");
    assert_eq!((text(&found[0], "reason"), &found[0]["blocking"]), ("ReplicaConflict", &Value::Bool(false)));
    let message = text(&found[0], "message");
    assert!(message.contains(&format!("the last backup held its snapshot for {} s", held_ms / 1000)), "{message}");
    apply(&standby, "postgres", text(&found[0], "fix"));
    wait_for("the new setting", SOON, || (standby.psql("postgres", "show hot_standby_feedback") == "on").then_some(()));
    assert_eq!(findings(&agent, "shop"), (0, Vec::new()));
}
