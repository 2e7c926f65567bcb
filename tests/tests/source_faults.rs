//! What may happen to a source while it is read: the outcome has a name, no point is listed, nothing of the backup is left at the server, and
//! the next backup works.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use vaultferry_tests::agent::{Agent, Job, Setup};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::{sample, wait_for};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// A database of 10 MB, which is protected through a proxy, and read as far as its middle.
struct Reading {
    // In this order: the agent ends first.
    agent: Agent,
    proxy: FaultProxy,
    server: Server,
    job: Job,
}

impl Reading {
    #[track_caller]
    fn begin() -> Self {
        let server = Server::start();
        sample::random(&server, "shop", 10);
        let proxy = FaultProxy::start(server.port());
        let agent = Setup::new().start();
        agent.protect("shop", &uri_for(proxy.port(), "shop"), &server.passfile_for_port(proxy.port()));
        proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 10_000_000));
        let job = agent.start_backup("shop");
        let job = agent.wait_job(job.id(), "it reads", SOON, |job| job.progress("bytes_read") > 1_000_000);
        Self { agent, proxy, server, job }
    }

    /// The backup has failed for this reason and has left nothing; the next one is whole.
    #[track_caller]
    fn fails_and_works_again(&self, reason: &str) {
        // What pg_dump says has several lines: the reason stands on the last one.
        for text in ["job failed: pg_dump ended with exit status 1", reason] {
            self.agent.expect_log(text);
        }
        let ended = self.agent.wait_job_end(self.job.id());
        assert_eq!((ended.status(), ended.reason()), ("Failed", reason), "{:#}", ended.0);
        self.proxy.set(Fault::None);
        nothing_is_left(&self.agent, &self.server);
        self.agent.backup("shop");
        assert_eq!(self.agent.points("shop").len(), 1);
        self.agent.restore("shop", "latest", &self.server, "back");
        assert_equal(&contents(&self.server, "shop"), &contents(&self.server, "back"));
    }
}

#[track_caller]
fn nothing_is_left(agent: &Agent, server: &Server) {
    assert!(agent.points("shop").is_empty());
    wait_for("the end of our sessions", SOON, || (server.sessions_of("vaultferry") == 0).then_some(()));
    assert!(agent.clients("pg_dump").is_empty());
}

#[test]
fn the_server_is_restarted_in_the_middle() {
    let mut reading = Reading::begin();
    reading.server.restart();
    reading.proxy.set(Fault::None);
    reading.fails_and_works_again("UserErrorServerConnectionClosed");
}

#[test]
fn the_server_crashes_in_the_middle() {
    let mut reading = Reading::begin();
    reading.server.kill_hard();
    reading.proxy.set(Fault::None);
    reading.server.restart();
    reading.fails_and_works_again("UserErrorServerConnectionClosed");
}

#[test]
fn the_connection_is_cut_in_the_middle() {
    let reading = Reading::begin();
    reading.proxy.set(Fault::Refuse);
    reading.fails_and_works_again("UserErrorServerConnectionClosed");
}

/// An administrator ends pg_dump's session.
#[test]
fn the_session_is_ended_in_the_middle() {
    let reading = Reading::begin();
    // The session that watches the dump has this name, too, when it has begun.
    let end = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'vaultferry {}'",
        reading.job.id()
    );
    assert_ne!(reading.server.psql("shop", &end), "0");
    reading.proxy.set(Fault::None);
    reading.fails_and_works_again("UserErrorServerConnectionClosed");
}

/// A session of psql that runs statements beside the test.
struct Somebody(Child);

impl Somebody {
    #[track_caller]
    fn runs(server: &Server, sql: &str) -> Self {
        let mut psql = server.client("psql", "shop");
        psql.args(["-Xq"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut somebody = Self(psql.spawn().expect("start psql"));
        somebody.says(sql);
        somebody
    }

    #[track_caller]
    fn says(&mut self, sql: &str) {
        let stdin = self.0.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(format!("{sql}\n").as_bytes()).and_then(|()| stdin.flush()).expect("psql reads");
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a query answers "t".
#[track_caller]
fn until(server: &Server, query: &str) {
    wait_for(query, SOON, || (server.psql("shop", query) == "t").then_some(()));
}

/// A table that is being read cannot be dropped: the DROP waits, and the backup has the whole table.
#[test]
fn a_drop_waits_until_the_table_is_read() {
    let server = Server::start();
    sample::random(&server, "shop", 10);
    let original = contents(&server, "shop");
    let proxy = FaultProxy::start(server.port());
    let agent = Setup::new().start();
    agent.protect("shop", &uri_for(proxy.port(), "shop"), &server.passfile_for_port(proxy.port()));
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 10_000_000));
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "it reads", SOON, |job| job.progress("bytes_read") > 1_000_000);
    let _somebody = Somebody::runs(&server, "drop table bulk;");
    until(&server, "select exists (select from pg_locks where not granted and relation = 'bulk'::regclass)");
    proxy.set(Fault::None);
    agent.wait_job_end(job.id()).completed();
    until(&server, "select to_regclass('bulk') is null");
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&original, &contents(&server, "back"));
}

/// pg_dump has read the catalog, and waits for the lock of a table that somebody is dropping: when it is gone, the dump has failed, and says
/// which table it was.
#[test]
fn a_table_goes_between_the_catalog_and_its_lock() {
    let server = Server::start();
    server.create_database("shop");
    server.psql("shop", "create table stays (n integer); create table goes (n integer); insert into stays values (1)");
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let mut somebody = Somebody::runs(&server, "begin; drop table goes;");
    until(
        &server,
        "select exists (select from pg_locks where granted and mode = 'AccessExclusiveLock' and relation = 'goes'::regclass)",
    );
    let job = agent.start_backup("shop");
    until(
        &server,
        "select exists (select from pg_locks where not granted and mode = 'AccessShareLock' and relation = 'goes'::regclass)",
    );
    // What pg_dump says has several lines: the reason stands on the last one.
    for text in ["job failed: pg_dump ended with exit status 1", "DumpFailed"] {
        agent.expect_log(text);
    }
    somebody.says("commit;");
    let ended = agent.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", "DumpFailed"), "{:#}", ended.0);
    let message = ended.0["problem"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("goes"), "the table is not named: {message}");
    nothing_is_left(&agent, &server);
    agent.backup("shop");
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&contents(&server, "shop"), &contents(&server, "back"));
}

/// The same, but the DROP is taken back: the dump goes on.
#[test]
fn a_drop_that_is_taken_back_only_delays_the_backup() {
    let server = Server::start();
    server.create_database("shop");
    server.psql("shop", "create table stays (n integer); insert into stays values (1)");
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let mut somebody = Somebody::runs(&server, "begin; drop table stays;");
    until(
        &server,
        "select exists (select from pg_locks where granted and mode = 'AccessExclusiveLock' and relation = 'stays'::regclass)",
    );
    let job = agent.start_backup("shop");
    until(
        &server,
        "select exists (select from pg_locks where not granted and mode = 'AccessShareLock' and relation = 'stays'::regclass)",
    );
    somebody.says("rollback;");
    agent.wait_job_end(job.id()).completed();
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&contents(&server, "shop"), &contents(&server, "back"));
}
