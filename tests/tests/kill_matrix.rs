//! `kill -9` at every step of a backup: nothing incomplete is listed, nothing is left running, a staged point is committed exactly once,
//! and the next backup works and uses what was uploaded.

use std::time::Duration;

use vaultferry_tests::agent::{Agent, Job, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::process::{self, Seen};
use vaultferry_tests::{heavy, measured, sample};

/// How long a process may outlive the one that it works for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Enough for several packs and indexes before the dump is held back; the stream is twice as long, what is stored about as long.
const READING_MB: u32 = 160;
const STEP_MB: u32 = 20;

/// A database behind a proxy that can hold the dump back, and an agent that protects it as `shop`.
struct World {
    agent: Agent,
    server: Server,
    proxy: FaultProxy,
}

impl World {
    fn new(megabytes: u32) -> Self {
        let server = Server::start();
        sample::awkward(&server, "shop", megabytes);
        let proxy = FaultProxy::start(server.port());
        let agent = Setup::new().start();
        agent.protect("shop", &uri_for(proxy.port(), "shop"), &server.passfile_for_port(proxy.port()));
        // What a killed job is worth in the log.
        for text in ["nterrupted", "PluginCrashed", "plugin", "DumpFailed", "pg_dump", "reap", "ecover"] {
            agent.expect_log(text);
        }
        Self { agent, server, proxy }
    }

    /// A backup that waits in the middle of the dump, with chunks in the vault.
    fn reading(&self) -> Job {
        self.proxy.set(Fault::HoldAfter(self.proxy.bytes_from_server() + u64::from(READING_MB) * 1_700_000));
        let job = self.agent.start_backup("shop");
        let far = u64::from(READING_MB) * 1_600_000;
        self.agent.wait_job(job.id(), "the dump is half-way", Duration::from_secs(120), |job| {
            assert!(!job.ended(), "{:#}", job.0);
            job.progress("bytes_read") > far && job.progress("bytes_stored") > 70_000_000
        });
        assert_eq!(self.agent.plugins().len(), 1);
        assert_eq!(self.agent.clients("pg_dump").len(), 1);
        job
    }

    /// The next backup completes, is listed, re-uses what was uploaded, and restores equal.
    fn next_backup_works(&self, points: usize) {
        self.proxy.set(Fault::None);
        self.agent.backup("shop");
        let listed = self.agent.points("shop");
        assert_eq!(listed.len(), points);
        let (read, stored) = (number(&listed[0]["source_bytes"]), number(&listed[0]["stored_bytes"]));
        // Hexadecimal digits of random bytes: half of what is read would be stored without the earlier upload.
        assert!(stored * 100 < read * 35, "{stored} bytes stored of {read} read: what was uploaded is not used");
        self.restores_equal("latest");
        self.agent.export("shop").check();
    }

    fn restores_equal(&self, point: &str) {
        self.agent.restore("shop", point, &self.server, "back");
        assert_equal(&contents(&self.server, "shop"), &contents(&self.server, "back"));
        self.server.psql("postgres", "drop database back");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Plugin,
    PgDump,
    All,
}

fn killed_while_reading(victim: Victim) {
    let mut world = World::new(READING_MB);
    let job = world.reading();
    let before: Vec<Seen> = world.agent.tree();
    match victim {
        Victim::Agent => world.agent.kill9(),
        Victim::Plugin => world.agent.plugins().iter().for_each(Seen::kill9),
        Victim::PgDump => world.agent.clients("pg_dump").iter().for_each(Seen::kill9),
        Victim::All => world.agent.kill9_all(),
    }
    if matches!(victim, Victim::Agent | Victim::All) {
        // Orphans end by themselves, before anybody restarts anything.
        process::wait_gone(&before, PATIENCE);
        world.agent.start();
    }
    let ended = world.agent.wait_job_end(job.id());
    assert_eq!(ended.status(), "Failed", "{:#}", ended.0);
    let reason = match victim {
        Victim::Agent | Victim::All => "Interrupted",
        Victim::Plugin => "PluginCrashed",
        Victim::PgDump => "DumpFailed",
    };
    assert_eq!(ended.reason(), reason, "{:#}", ended.0);
    let agent = world.agent.pid();
    let workers: Vec<Seen> = before.into_iter().filter(|seen| seen.pid != agent).collect();
    process::wait_gone(&workers, PATIENCE);
    // The server may need a moment to see that its client is gone behind the proxy.
    world.proxy.set(Fault::None);
    vaultferry_tests::wait_for("the server's session to end", PATIENCE, || {
        (world.server.sessions_of("pg_dump") == 0).then_some(())
    });
    assert!(world.agent.points("shop").is_empty());
    world.next_backup_works(1);
}

#[test]
fn reading_agent_killed() {
    killed_while_reading(Victim::Agent);
}

#[test]
fn reading_plugin_killed() {
    killed_while_reading(Victim::Plugin);
}

#[test]
fn reading_pg_dump_killed() {
    killed_while_reading(Victim::PgDump);
}

#[test]
fn reading_all_killed() {
    killed_while_reading(Victim::All);
}

/// Kills at a step behind the reading. From `journaled` on the point must come, exactly once; before, it may or may not, but job and list
/// must agree.
fn killed_at(step: &str, victim: Victim) {
    let mut world = World::new(STEP_MB);
    world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", step);
    world.agent.restart();
    let job = world.agent.start_backup("shop");
    world.agent.wait_paused(step);
    let before = world.agent.tree();
    match victim {
        Victim::Agent => world.agent.kill9(),
        Victim::All => world.agent.kill9_all(),
        Victim::Plugin | Victim::PgDump => unreachable!("they have done their work at this step"),
    }
    process::wait_gone(&before, PATIENCE);
    world.agent.clear_pause(step);
    world.agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    world.agent.start();
    let ended = world.agent.wait_job_end(job.id());
    let points = world.agent.points("shop");
    if step == "staged" && ended.status() == "Failed" {
        assert_eq!(ended.reason(), "Interrupted", "{:#}", ended.0);
        assert!(points.is_empty(), "{points:#?}");
        world.next_backup_works(1);
        return;
    }
    assert_eq!(ended.status(), "Completed", "{:#}", ended.0);
    assert_eq!(points.len(), 1, "{points:#?}");
    assert_eq!(points[0]["id"], ended.point_id());
    assert_eq!(points[0]["job_id"], job.id());
    world.restores_equal(ended.point_id());
    // Once more: a second restart commits nothing again.
    world.agent.restart();
    assert_eq!(world.agent.points("shop"), points);
    assert_eq!(world.agent.export("shop").snapshots(), [ended.point_id()]);
    world.next_backup_works(2);
}

#[test]
fn staged_agent_killed() {
    killed_at("staged", Victim::Agent);
}

#[test]
fn staged_all_killed() {
    killed_at("staged", Victim::All);
}

#[test]
fn journaled_agent_killed() {
    killed_at("journaled", Victim::Agent);
}

#[test]
fn journaled_all_killed() {
    killed_at("journaled", Victim::All);
}

#[test]
fn packs_verified_agent_killed() {
    killed_at("packs-verified", Victim::Agent);
}

#[test]
fn packs_verified_all_killed() {
    killed_at("packs-verified", Victim::All);
}

#[test]
fn committed_agent_killed() {
    killed_at("committed", Victim::Agent);
}

#[test]
fn committed_all_killed() {
    killed_at("committed", Victim::All);
}

#[test]
fn completed_agent_killed() {
    killed_at("completed", Victim::Agent);
}

#[test]
fn completed_all_killed() {
    killed_at("completed", Victim::All);
}

/// Killed after the commit, and at the restart the instance's part of the vault is away: nobody can say whether the point is there, so the
/// job must not fail. It waits, and ends when the vault is back.
#[test]
fn committed_agent_killed_and_the_vault_away() {
    let mut world = World::new(STEP_MB);
    world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "committed");
    world.agent.restart();
    let job = world.agent.start_backup("shop");
    world.agent.wait_paused("committed");
    world.agent.kill9_all();
    world.agent.clear_pause("committed");
    world.agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    let instances = world.agent.state_dir().join("vault/instances");
    let away = world.agent.state_dir().join("vault/away");
    std::fs::rename(&instances, &away).expect("moved away");
    // What is told of a vault that is away.
    for text in ["trying again", "unfinished files"] {
        world.agent.expect_log(text);
    }
    world.agent.start();
    let log = || world.agent.log();
    vaultferry_tests::wait_for("a second try", Duration::from_secs(30), || {
        log().contains("trying again").then_some(())
    });
    assert!(!world.agent.job(job.id()).ended(), "nobody can know how it ended");
    std::fs::rename(&away, &instances).expect("moved back");
    let ended = world.agent.wait_job_end(job.id()).completed();
    assert_eq!(world.agent.points("shop")[0]["id"], ended.point_id());
    assert_eq!(world.agent.export("shop").snapshots(), [ended.point_id()]);
}

/// A restore that is killed leaves no half database: the agent, or its restart, has it removed.
fn killed_while_restoring(victim: Victim) {
    let mut world = World::new(STEP_MB);
    world.agent.backup("shop");
    let port = world.proxy.port();
    let target = format!("postgres://postgres@127.0.0.1:{port}/");
    let passfile = world.server.passfile_for_port(port).display().to_string();
    world.proxy.set(Fault::Rate(2_000_000));
    let arguments = ["restore", "database", "shop", "--target", &target, "--database", "half", "--passfile", &passfile];
    let job = world.agent.cli_json(&arguments).success().job();
    let started = |job: &Job| job.progress("bytes_read") > 2_000_000;
    world.agent.wait_job(job.id(), "rows arrive in the new database", Duration::from_secs(60), started);
    // It is filled under another name, so that nobody takes it for a whole one.
    let half = world.server.databases();
    assert!(half.len() == 2 && !half.contains(&"half".to_owned()), "{half:?}");
    let before = world.agent.tree();
    assert!(before.iter().any(|seen| seen.name == "pg_restore"), "{before:?}");
    let reason = match victim {
        Victim::Plugin => {
            world.agent.plugins().iter().for_each(Seen::kill9);
            "PluginCrashed"
        }
        Victim::Agent | Victim::All | Victim::PgDump => {
            if victim == Victim::All {
                world.agent.kill9_all()
            } else {
                world.agent.kill9()
            }
            process::wait_gone(&before, PATIENCE);
            world.proxy.set(Fault::None);
            world.agent.start();
            "Interrupted"
        }
    };
    world.proxy.set(Fault::None);
    let ended = world.agent.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", reason), "{:#}", ended.0);
    assert_eq!(world.server.databases(), ["shop"]);
    world.agent.restore("shop", "latest", &world.server, "half");
}

#[test]
fn restoring_agent_killed() {
    killed_while_restoring(Victim::Agent);
}

#[test]
fn restoring_plugin_killed() {
    killed_while_restoring(Victim::Plugin);
}

#[test]
fn restoring_all_killed() {
    killed_while_restoring(Victim::All);
}

/// Kills everything at random moments of one backup after the other. The seed is told when it fails.
#[test]
fn heavy_killed_at_random() {
    if !heavy() {
        return;
    }
    let seed: u64 =
        std::env::var("VAULTFERRY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    measured(&format!("VAULTFERRY_TEST_SEED={seed}"));
    let mut world = World::new(STEP_MB);
    let (mut state, mut committed) = (seed, 0);
    for round in 0..40 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_millis((state >> 33) % 4000);
        world
            .server
            .psql("shop", "update bulk set content = gen_random_bytes(1000) where id % 50 = (random() * 49)::integer");
        let job = world.agent.start_backup("shop");
        std::thread::sleep(delay);
        let before = world.agent.tree();
        if state >> 63 == 0 {
            world.agent.kill9()
        } else {
            world.agent.kill9_all()
        }
        process::wait_gone(&before, PATIENCE);
        world.agent.start();
        let ended = world.agent.wait_job_end(job.id());
        let points = world.agent.points("shop");
        committed += usize::from(ended.status() == "Completed");
        assert_eq!(points.len(), committed, "seed {seed}, round {round}, after {delay:?}: {:#}", ended.0);
        assert_eq!(world.agent.export("shop").snapshots().len(), committed, "seed {seed}, round {round}");
    }
    world.agent.backup("shop");
    world.restores_equal("latest");
    world.agent.export("shop").check();
    measured(&format!("{committed} of 40 killed backups were committed"));
}
