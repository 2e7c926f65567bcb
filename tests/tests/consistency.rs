//! A database that is written to all the time comes back as it was at one instant.

use std::process::{Child, Stdio};
use std::time::Duration;

use vaultferry_tests::agent::Setup;
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::{measured, process, wait_for};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// 200,000 accounts, 20 MB of a dump: the balances of tellers and branches and the history are read after them.
const SCALE: &str = "--scale=2";

/// How many transactions happen before the backup, and while it stands still.
const TRANSACTIONS: u64 = 300;

/// A running pgbench, which ends with the test.
struct Bench(Child);

impl Bench {
    #[track_caller]
    fn start(server: &Server) -> Self {
        let mut pgbench = server.client("pgbench", "bench");
        pgbench.args(["--no-vacuum", "--client=4", "--time=600"]);
        pgbench.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(pgbench.spawn().expect("start pgbench"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn transactions(server: &Server, database: &str) -> u64 {
    server.psql(database, "select count(*) from pgbench_history").parse().expect("a number")
}

/// Waits until so many more have happened; how many there are now.
#[track_caller]
fn more_transactions(server: &Server) -> u64 {
    let wanted = transactions(server, "bench") + TRANSACTIONS;
    wait_for("more transactions", SOON, || Some(transactions(server, "bench")).filter(|count| *count >= wanted))
}

/// The four sums that every transaction of pgbench changes alike.
#[track_caller]
fn sums(server: &Server, database: &str) -> Vec<i64> {
    let sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                       (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)";
    let row = server.psql(database, sums);
    row.split('|').map(|sum| sum.parse().expect("a number")).collect()
}

#[test]
fn what_is_written_during_a_backup_is_in_it_wholly_or_not_at_all() {
    let server = Server::start();
    server.create_database("bench");
    let mut fill = server.client("pgbench", "bench");
    process::run(fill.args(["--initialize", "--quiet", SCALE]), b"", SOON).success();
    let proxy = FaultProxy::start(server.port());
    let agent = Setup::new().start();
    agent.protect("bench", &uri_for(proxy.port(), "bench"), &server.passfile_for_port(proxy.port()));
    let bench = Bench::start(&server);

    let before = more_transactions(&server);
    // The dump stands still among the accounts while all the tables change.
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 8_000_000));
    let job = agent.start_backup("bench");
    agent.wait_job(job.id(), "it reads", SOON, |job| job.progress("bytes_read") > 1_000_000);
    let at_least = transactions(&server, "bench");
    let after = more_transactions(&server);
    proxy.set(Fault::None);
    agent.wait_job_end(job.id()).completed();
    drop(bench);

    agent.restore("bench", "latest", &server, "copy");
    let copied = transactions(&server, "copy");
    assert!(before <= copied && copied <= at_least, "{copied} transactions; {before} before, {at_least} in the middle");
    assert!(copied + TRANSACTIONS <= after, "{copied} transactions in the copy, and only {after} when it was released");
    let sums = sums(&server, "copy");
    assert!(sums.iter().all(|sum| *sum == sums[0]), "accounts, tellers, branches, history: {sums:?}");
    assert_ne!(sums[0], 0);
    let left = transactions(&server, "bench") - copied;
    measured(&format!("{copied} transactions in the copy, {left} more happened during the backup and after it"));
}
