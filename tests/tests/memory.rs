//! Memory of agent and plugin together stays below 300 MiB, however much passes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{heavy, measured, process, sample};

const LIMIT_MIB: u64 = 300;

#[test]
fn memory_stays_bounded_while_300_mb_pass() {
    memory(150);
}

#[test]
fn heavy_memory_stays_bounded_while_3_gb_pass() {
    if heavy() {
        memory(1500);
    }
}

/// pg_dump writes two digits for each random byte, so twice as much passes.
fn memory(megabytes: u32) {
    let server = Server::start();
    sample::random(&server, "big", megabytes);
    let agent = Setup::new().start();
    agent.protect("big", &server.uri("big"), server.passfile());
    let started = Instant::now();
    let (job, backup) = peak(&agent, || agent.backup("big"));
    let took = started.elapsed().as_secs_f64();
    let point = agent.cli_json(&["point", "show", "big", job.point_id()]).success().json();
    let read = number(&point["point"]["source_bytes"]);
    assert!(read > u64::from(megabytes) * 2_000_000, "{read} bytes passed only");
    let ((), restore) = peak(&agent, || agent.restore("big", "latest", &server, "back"));
    let hash = "select count(*), md5(string_agg(md5(content), '' order by id)) from bulk";
    assert_eq!(server.psql("big", hash), server.psql("back", hash));
    measured(&format!(
        "{} MB passed in {took:.1} s; peak of agent + plugin: backup {backup:?} MiB, restore {restore:?} MiB",
        read / 1_000_000
    ));
    for (agent, plugin) in [backup, restore] {
        assert!(plugin > 0, "the plugin was not seen");
        assert!(agent + plugin < LIMIT_MIB, "agent {agent} MiB + plugin {plugin} MiB");
    }
}

/// What `work` returns, and the highest resident memory of the agent and of its largest plugin meanwhile, in MiB. The system keeps the
/// peak of each process, so only what grows in a plugin's last 20 ms is missed.
fn peak<T>(agent: &Agent, work: impl FnOnce() -> T) -> (T, (u64, u64)) {
    let pid = agent.pid();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut of_agent, mut of_plugin) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                for seen in process::tree(pid) {
                    let bytes = process::peak_memory(seen.pid).unwrap_or(0);
                    if seen.pid == pid {
                        of_agent = of_agent.max(bytes);
                    } else if seen.command.contains(" plugin ") {
                        of_plugin = of_plugin.max(bytes);
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (of_agent >> 20, of_plugin >> 20)
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let peak = watch.join().expect("the watcher does not panic");
        match result {
            Ok(result) => (result, peak),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
