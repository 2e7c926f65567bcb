//! What the killed leave in the vault: packs of a backup that no point needs, whose space prunes give back, and a prune's lease, which stands in
//! nobody's way.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::folder::bytes_below;
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::{measured, process, sample};

/// How long a process may outlive the one that it works for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a dump to be half-way, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Several packs of 16 MiB, whatever is in memory when the kill comes.
const NEW_MB: u32 = 64;

#[track_caller]
fn prune(agent: &Agent) -> Value {
    let job = agent.cli_json(&["vault", "prune", "shop", "--wait"]).success().json()["jobs"][0].clone();
    assert_eq!(job["status"], "Completed", "{job:#}");
    job["prune_report"].clone()
}

#[test]
fn the_space_of_a_killed_backup_comes_back() {
    let server = Server::start();
    sample::random(&server, "shop", 4);
    let proxy = FaultProxy::start(server.port());
    let mut agent = Setup::new().start();
    let passfile = server.passfile_for_port(proxy.port());
    let instance = agent.protect("shop", &uri_for(proxy.port(), "shop"), &passfile);
    for text in ["nterrupted", "PluginCrashed", "plugin", "reap", "ecover"] {
        agent.expect_log(text);
    }
    let held = contents(&server, "shop");
    let kept = agent.backup("shop");
    let data = agent.state_dir().join("vault/instances").join(&instance).join("repo/data");
    let before = bytes_below(&data);

    sample::add_random(&server, "shop", "more", NEW_MB);
    // Two digits for a byte: the dump stands still when most of the new rows are read.
    let most = u64::from(NEW_MB) * 1_800_000;
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + most));
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "packs are in the vault", LIMIT, |job| {
        assert!(!job.ended(), "{:#}", job.0);
        job.progress("bytes_stored") > 16_000_000
    });
    let processes = agent.tree();
    agent.kill9_all();
    process::wait_gone(&processes, PATIENCE);
    proxy.set(Fault::None);
    agent.start();
    let ended = agent.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", "Interrupted"), "{:#}", ended.0);
    let left = bytes_below(&data);
    measured(&format!("{before} bytes of packs, {left} with what the killed backup has left"));
    assert!(left > before + 16_000_000, "{before} bytes before, {left} after the kill");
    // The rows are gone: no later backup needs what was uploaded.
    server.psql("shop", "drop table more");

    // Noted, for the backup might have been going on; marked, for it has not come to its end since; deleted.
    let reports = [prune(&agent), prune(&agent), prune(&agent)];
    let figures = |name: &str| reports.each_ref().map(|report| number(&report[name]));
    let (noted, marked, deleted) = (figures("packs_noted"), figures("packs_marked"), figures("packs_deleted"));
    assert!(noted[0] > 0 && marked[1] == noted[0] && deleted == [0, 0, noted[0]], "{reports:#?}");
    assert_eq!(number(&reports[2]["bytes_deleted"]), left - before, "{reports:#?}");
    assert_eq!(bytes_below(&data), before, "what is left is what the point needs");

    agent.export("shop").check();
    let reply = agent.cli_json(&["vault", "check", "shop", "--read-data", "--wait"]);
    assert_eq!(reply.code, 0, "{}\n{}", reply.stdout, reply.stderr);
    agent.restore("shop", kept.point_id(), &server, "back");
    assert_equal(&held, &contents(&server, "back"));
    agent.backup("shop");
}

#[test]
fn a_prune_does_not_wait_for_the_dead() {
    let server = Server::start();
    server.create_database("shop");
    let agent = Setup::new().start();
    let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let mut holder = Command::new("sleep").arg("600").spawn().expect("sleep");
    let pid = holder.id();
    let seen = process::tree(pid as i32).into_iter().find(|seen| seen.pid == pid as i32).expect("it runs");
    holder.kill().expect("killed");
    holder.wait().expect("gone");
    // As it stands in the vault when a prune was killed a moment ago, but for much longer.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux tells it");
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux tells it").display().to_string();
    let record = json!({
        "version": 1, "holder": "0".repeat(32), "purpose": "prune",
        "create_time": "2026-01-01T00:00:00Z", "expire_time": "2100-01-01T00:00:00Z",
        "process": { "boot": boot.trim(), "namespace": namespace, "pid": pid, "start": seen.start },
    });
    let leases = agent.state_dir().join("vault/instances").join(&instance).join("lease");
    fs::create_dir_all(&leases).expect("a folder");
    fs::write(leases.join("0000000001.json"), record.to_string()).expect("a lease");
    prune(&agent);
    assert_eq!(fs::read_dir(&leases).map_or(0, Iterator::count), 0, "the lease was given back");
}
