//! What a backup does to its source, and what it does not: its sessions are known by its job, its snapshot has a budget, whoever waits for it is
//! told and may have his way, and it reads no faster than it may.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Job, Setup, number};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{sample, wait_for};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// So slow that a dump of [`MEGABYTES`], which are twice as many when they are written as digits, lasts for twelve seconds.
const SLOWLY: &str = "read_limit = \"1500KB/s\"\n";
const MEGABYTES: u32 = 9;

/// A server with the database `shop`, whose table `bulk` takes a while to read.
fn source() -> Server {
    let server = Server::start();
    sample::random(&server, "shop", MEGABYTES);
    server
}

/// An agent that protects the database `shop`, with these keys in `[postgres]`.
#[track_caller]
fn agent(server: &Server, settings: &str) -> Agent {
    let agent = Setup::new().config(&format!("[postgres]\n{settings}")).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent
}

fn note(job: &Job) -> &str {
    job.0["progress"]["note"].as_str().unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The reasons and messages of a job's warnings.
fn warnings(job: &Job) -> Vec<(&str, &str)> {
    let all = job.0["warnings"].as_array().into_iter().flatten();
    all.map(|warning| (text(warning, "reason"), text(warning, "message"))).collect()
}

/// Starts a backup and waits until pg_dump has its locks, and reads.
#[track_caller]
fn reading(agent: &Agent) -> Job {
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "bytes are read", SOON, |job| job.progress("bytes_read") > 100_000);
    job
}

/// A statement of somebody else, at work.
struct Statement(Child);

impl Statement {
    #[track_caller]
    fn start(server: &Server, application: &str, sql: &str) -> Self {
        let mut psql = server.client("psql", "shop");
        psql.env("PGAPPNAME", application).args(["-Xq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(psql.spawn().expect("start psql"))
    }

    /// True when it has ended well; it must not have failed.
    #[track_caller]
    fn is_done(&mut self) -> bool {
        match self.0.try_wait().expect("ask for psql's state") {
            None => false,
            Some(status) => {
                assert!(status.success(), "the statement failed: {status}");
                true
            }
        }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The value stands for somebody's secret.
const MIGRATION: &str = "alter table bulk add column more text default 'a secret'";

/// Every session of a backup is found by the job's id; who waits for one of its tables is told, with what he is known by and no more; and
/// so is what the snapshot costs.
#[test]
fn sessions_are_named_by_their_job_and_who_waits_for_them_is_told() {
    let server = source();
    let agent = agent(&server, &format!("{SLOWLY}ddl_budget = \"1s\"\n"));
    for text in ["DdlWaits", "waits for public.bulk"] {
        agent.expect_log(text);
    }
    let job = reading(&agent);
    let name = format!("vaultferry {}", job.id());
    let sessions = format!("select count(*) from pg_stat_activity where application_name = '{name}'");
    let copies = format!("{sessions} and query like 'COPY %'");
    assert_eq!(server.psql("shop", &copies), "1", "pg_dump's own");
    // What may not be read yet waits where it is: in the end the server's own process waits with it.
    let held_up = format!("{copies} and wait_event = 'ClientWrite'");
    wait_for("the limit to be felt at the server", SOON, || (server.psql("shop", &held_up) == "1").then_some(()));
    // The one that watches comes a second later.
    wait_for("the second session", SOON, || (server.psql("shop", &sessions) == "2").then_some(()));
    let others = "select count(*) from pg_stat_activity where application_name like 'vaultferry%'";
    assert_eq!(server.psql("shop", others), "2", "there is none that is called otherwise");

    server.psql("shop", &"select txid_current();\n".repeat(50));
    let mut migration = Statement::start(&server, "migration", MIGRATION);
    let waits = "waits for public.bulk";
    let told = agent.wait_job(job.id(), "it is told who waits", SOON, |job| note(job).contains(waits));
    assert!(note(&told).contains("(postgres, migration: ALTER) waits for public.bulk"), "{}", note(&told));
    assert!(note(&told).contains("transactions have begun there since"), "{}", note(&told));
    assert!(!migration.is_done());

    let ended = agent.wait_job_end(job.id());
    assert_eq!(ended.status(), "CompletedWithWarnings", "{:#}", ended.0);
    let warnings = warnings(&ended);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].0, "DdlWaits");
    assert!(warnings[0].1.contains("(postgres, migration: ALTER) waits for public.bulk"), "{warnings:?}");
    assert!(!ended.0.to_string().contains("secret"), "{:#}", ended.0);
    let report = &ended.0["backup_report"];
    assert!(number(&report["snapshot_transactions"]) >= 50, "{report:#}");
    assert!(number(&report["snapshot_held_ms"]) > 3000, "{report:#}");
    let text = agent.cli(&["job", "show", job.id()]).success().stdout;
    assert!(
        text.contains("a snapshot was held at the source for ") && text.contains(" transactions began there"),
        "{text}"
    );
    wait_for("the migration to go on", SOON, || migration.is_done().then_some(()));
    wait_for("the end of our sessions", SOON, || (server.sessions_of("vaultferry") == 0).then_some(()));
}

/// When migrations matter more: the dump is ended, and leaves nothing that is in anybody's way.
#[test]
fn a_backup_gives_way_when_it_is_told_to() {
    let server = source();
    let agent = agent(&server, &format!("{SLOWLY}yield_to_ddl = \"2s\"\n"));
    for text in ["DdlWaits", "gave way"] {
        agent.expect_log(text);
    }
    let job = reading(&agent);
    let mut migration = Statement::start(&server, "migration", MIGRATION);
    let ended = agent.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", "DdlWaits"), "{:#}", ended.0);
    let message = text(&ended.0["problem"], "message");
    assert!(message.contains("gave way") && message.contains("migration: ALTER"), "{message}");
    wait_for("the migration to go on", SOON, || migration.is_done().then_some(()));
    wait_for("the end of our sessions", SOON, || (server.sessions_of("vaultferry") == 0).then_some(()));
    assert!(agent.clients("pg_dump").is_empty());
    assert!(agent.points("shop").is_empty());
}

/// The session that watches is nothing that a backup needs.
#[test]
fn a_dump_goes_on_without_the_session_that_watches_it() {
    let server = source();
    let agent = agent(&server, &format!("{SLOWLY}yield_to_ddl = \"1h\"\n"));
    let job = reading(&agent);
    let name = format!("application_name = 'vaultferry {}'", job.id());
    let watching = format!("select pid from pg_stat_activity where {name} and query not like 'COPY %'");
    let watcher = |pid: String| (!pid.is_empty()).then_some(pid);
    let pid = wait_for("the session that watches", SOON, || watcher(server.psql("shop", &watching)));
    assert_eq!(server.psql("shop", &format!("select pg_terminate_backend({pid})")), "t");
    let all = format!("select count(*) from pg_stat_activity where {name}");
    wait_for("its end", SOON, || (server.psql("shop", &all) == "1").then_some(()));
    agent.wait_job_end(job.id()).completed();
}

/// An old snapshot is a warning, and, only if that is asked for, the end of the dump.
#[test]
fn a_snapshot_has_a_budget() {
    let server = source();
    let told = agent(&server, &format!("{SLOWLY}snapshot_budget = \"1s\"\n"));
    told.expect_log("SnapshotTooOld");
    told.expect_log("snapshot_budget");
    let job = told.wait_job_end(told.start_backup("shop").id());
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    let all = warnings(&job);
    assert_eq!(all.len(), 1, "once: {all:?}");
    assert!(all[0].0 == "SnapshotTooOld" && all[0].1.contains("the source's snapshot was held for "), "{all:?}");

    let ended = agent(&server, &format!("{SLOWLY}snapshot_limit = \"3s\"\n"));
    ended.expect_log("SnapshotTooOld");
    ended.expect_log("snapshot_limit");
    let job = ended.wait_job_end(ended.start_backup("shop").id());
    assert_eq!((job.status(), job.reason()), ("Failed", "SnapshotTooOld"), "{:#}", job.0);
    let message = text(&job.0["problem"], "message");
    assert!(message.contains("was held for ") && message.contains("snapshot_limit"), "{message}");
    wait_for("the end of our sessions", SOON, || (server.sessions_of("vaultferry") == 0).then_some(()));
    assert!(ended.points("shop").is_empty());
}

/// The step of that name.
#[track_caller]
fn step<'a>(job: &'a Job, name: &str) -> &'a Value {
    let steps = job.0["steps"].as_array().expect("steps");
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {steps:#?}"))
}

/// A limit holds, and its step says that there was one. Without one a dump is quick, and its bytes are counted in its own step although it
/// is over before anybody looks.
#[test]
fn a_source_is_read_no_faster_than_it_may() {
    let server = Server::start();
    // 21 MB, written as digits.
    sample::random(&server, "shop", 10);
    let limited = agent(&server, "read_limit = \"10MB/s\"\n");
    let job = limited.backup("shop");
    let held_ms = number(&job.0["backup_report"]["snapshot_held_ms"]);
    assert!(held_ms >= 1900, "21 MB in {held_ms} ms");
    assert!(number(&step(&job, "dumping, limited")["bytes_read"]) > 20_000_000, "{:#}", job.0["steps"]);

    // One backup may have a limit of its own.
    let rate = ["backup", "shop", "--wait", "--read-limit", "500MB/s"];
    let own = limited.cli_json(&rate).success().job().completed();
    step(&own, "dumping, limited");
    let own_ms = number(&own.0["backup_report"]["snapshot_held_ms"]);
    assert!(own_ms < held_ms, "{own_ms} ms without the other limit, {held_ms} ms with it");

    sample::random(&server, "small", 1);
    let unlimited = Setup::new().start();
    unlimited.protect("small", &server.uri("small"), server.passfile());
    let job = unlimited.backup("small");
    assert!(number(&step(&job, "dumping")["bytes_read"]) > 2_000_000, "{:#}", job.0["steps"]);
    for before in ["looking at the database", "opening the vault"] {
        assert_eq!(number(&step(&job, before)["bytes_read"]), 0, "{:#}", job.0["steps"]);
    }
}

fn findings(agent: &Agent) -> Vec<Value> {
    let reply = agent.cli_json(&["instance", "validate", "shop"]);
    reply.json()["findings"].as_array().expect("a list of findings").clone()
}

/// A standby that is behind is told of; one whose primary has nothing new is not.
#[test]
fn a_standby_that_is_behind_is_told() {
    let mut primary = Server::start();
    primary.create_database("shop");
    let standby = primary.standby();
    primary.psql("shop", "create table one (n integer)");
    let has_it = || standby.try_psql("shop", "select to_regclass('one') is not null").text().trim() == "t";
    wait_for("the standby to follow", SOON, || has_it().then_some(()));
    let agent = agent(&standby, "replica_lag = \"2s\"\n");
    let behind = || findings(&agent).into_iter().find(|finding| text(finding, "reason") == "ReplicaBehind");
    let passfile = standby.passfile().display().to_string();
    let uri = standby.uri("postgres");
    let listed = agent.cli(&["discover", "postgres", &uri, "--passfile", &passfile]).success().stdout;
    assert!(listed.contains(", replica\n"), "{listed}");
    // As old as it may be, and nothing newer is there.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(behind(), None);

    standby.psql("postgres", "select pg_wal_replay_pause()");
    let is_paused = || standby.psql("postgres", "select pg_get_wal_replay_pause_state()") == "paused";
    wait_for("replay to pause", SOON, || is_paused().then_some(()));
    primary.psql("shop", "create table two (n integer)");
    let found = wait_for("the standby to be behind", SOON, behind);
    assert_eq!(found["blocking"], false, "{found:#}");
    assert!(text(&found, "message").contains("has paused its replay"), "{found:#}");
    for text in ["ReplicaBehind", "is a standby that"] {
        agent.expect_log(text);
    }
    let job = agent.wait_job_end(agent.start_backup("shop").id());
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    assert_eq!(warnings(&job)[0].0, "ReplicaBehind", "{:#}", job.0);

    standby.psql("postgres", text(&found, "fix"));
    wait_for("the standby to have caught up", SOON, || behind().is_none().then_some(()));
    agent.backup("shop");
}
