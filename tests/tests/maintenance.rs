//! What lies in the vault is looked after: checked, proven, held, deleted, brought back, pruned, archived; and killed in the middle of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply, Setup, number};
use vaultferry_tests::compare::{Contents, assert_equal, contents};
use vaultferry_tests::folder::{bytes_below, files};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::process::{self, Seen};
use vaultferry_tests::{azurite, binary, measured, sample};

/// How long a process may outlive the one that it works for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A database, protected as `shop` in a folder vault.
struct World {
    agent: Agent,
    server: Server,
    instance: String,
}

impl World {
    /// `soft_delete_days`: for so long a deleted point can be brought back.
    fn new(megabytes: u32, soft_delete_days: u32) -> Self {
        Self::with(megabytes, soft_delete_days, Setup::new())
    }

    fn with(megabytes: u32, soft_delete_days: u32, setup: Setup) -> Self {
        let server = Server::start();
        sample::random(&server, "shop", megabytes);
        let mut agent = setup.prepare();
        agent.init_vault().success();
        let settings = format!(
            "{{\"version\":1,\"create_time\":\"2026-01-01T00:00:00Z\",\"immutability\":\"disabled\",\"immutability_days\":0,\
             \"soft_delete_days\":{soft_delete_days},\"redundancy\":\"geo-redundant\"}}\n"
        );
        let dir = agent.state_dir().join("vault/settings");
        fs::create_dir_all(&dir).expect("a folder for settings");
        fs::write(dir.join("0000000001.json"), settings).expect("settings");
        agent.start();
        let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
        Self { agent, server, instance }
    }

    fn vault(&self) -> PathBuf {
        self.agent.state_dir().join("vault")
    }

    fn store(&self) -> PathBuf {
        self.vault().join("instances").join(&self.instance)
    }

    /// A backup of rows that are all new: its packs are its own. What it holds, and its point.
    fn backup_of_new_rows(&self) -> (Contents, String) {
        self.server.psql("shop", "update bulk set content = gen_random_bytes(1024) || gen_random_bytes(1024)");
        let held = contents(&self.server, "shop");
        (held, self.agent.backup("shop").point_id().to_owned())
    }

    fn restores_equal(&self, expected: &Contents, point: &str) {
        self.agent.restore("shop", point, &self.server, "back");
        assert_equal(expected, &contents(&self.server, "back"));
        self.server.psql("postgres", "drop database back");
    }

    fn run(&self, words: &[&str]) -> Reply {
        self.agent.cli_json(words)
    }

    fn listed(&self) -> Vec<String> {
        ids(&self.agent.points("shop"))
    }

    fn deleted(&self) -> Vec<String> {
        let json = self.run(&["point", "list", "shop", "--deleted"]).success().json();
        ids(json["points"].as_array().expect("points"))
    }

    fn point(&self, id: &str) -> Value {
        self.run(&["point", "show", "shop", id]).success().json()["point"].clone()
    }

    fn prune(&self) -> Value {
        let json = self.run(&["vault", "prune", "shop", "--wait"]).success().json();
        let job = json["jobs"][0].clone();
        assert_eq!(job["status"], "Completed", "{job:#}");
        job["prune_report"].clone()
    }

    /// The keyless check of this folder by a process that knows nothing else.
    fn check_offline(&self, words: &[&str]) -> Reply {
        let mut command = Command::new(binary());
        command.args(["vault", "check", "--keyless", "--offline", "--location"]).arg(self.vault());
        command.args(words).args(["--output", "json"]).env_clear();
        let output = process::run(&mut command, b"", Duration::from_secs(120));
        Reply { code: output.code, stdout: output.text(), stderr: output.stderr }
    }

    /// Everything that is listed reads, here and by restic.
    fn is_sound(&self) {
        self.agent.export("shop").check();
        let reply = self.run(&["vault", "check", "shop", "--read-data", "--wait"]);
        assert_eq!(reply.code, 0, "{}\n{}", reply.stdout, reply.stderr);
        let mut snapshots = self.agent.export("shop").snapshots();
        snapshots.reverse();
        assert_eq!(snapshots, self.listed(), "restic lists what we list");
    }
}

fn ids(points: &[Value]) -> Vec<String> {
    points.iter().map(|point| point["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn space_of_a_deleted_point_comes_back_and_the_others_stay() {
    let world = World::new(6, 0);
    let kept: Vec<(Contents, String)> = (0..2).map(|_| world.backup_of_new_rows()).collect();
    let (_, doomed) = world.backup_of_new_rows();
    let data = world.store().join("repo/data");
    let before = bytes_below(&data);

    world.run(&["point", "delete", "shop", &doomed, "--yes", "--wait"]).success();
    assert_eq!(world.listed(), [kept[1].1.clone(), kept[0].1.clone()]);
    let plan = world.run(&["vault", "prune", "shop", "--dry-run", "--wait"]).success().json();
    let plan = &plan["jobs"][0]["prune_report"];
    assert_eq!((number(&plan["points_purged"]), number(&plan["packs_deleted"])), (1, 0), "{plan:#}");
    assert_eq!(bytes_below(&data), before, "a dry run does nothing");
    let first = world.prune();
    assert_eq!(number(&first["points_purged"]), 1, "{first:#}");
    assert!(number(&first["packs_marked"]) > 0 && number(&first["packs_deleted"]) == 0, "{first:#}");
    assert_eq!(bytes_below(&data), before, "the first prune only marks");
    let second = world.prune();
    assert!(number(&second["packs_deleted"]) > 0, "{second:#}");
    let after = bytes_below(&data);
    measured(&format!("{before} bytes of packs before, {after} after the second prune"));
    assert!(after * 10 < before * 8, "{before} bytes before, {after} after");

    assert!(world.deleted().is_empty(), "a purged point is gone");
    world.run(&["point", "undelete", "shop", &doomed, "--wait"]).assert_failed("PointNotFound");
    for (held, point) in &kept {
        world.restores_equal(held, point);
    }
    world.is_sound();
    // Beside all of this, the next backup works.
    let (held, point) = world.backup_of_new_rows();
    world.restores_equal(&held, &point);
}

#[test]
fn damage_is_found_named_and_healed() {
    let world = World::new(6, 14);
    let (held, old) = world.backup_of_new_rows();
    world.is_sound();
    let (pack, _) = files(&world.store().join("repo/data")).into_iter().next().expect("a pack");
    let mut bytes = fs::read(&pack).expect("the pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&pack).expect("packs are read-only");
    fs::write(&pack, &bytes).expect("damage");
    let name = pack.file_name().expect("a name").to_string_lossy().into_owned();

    // By names and sizes nothing is seen; by reading it is, with and without the key.
    assert_eq!(world.run(&["vault", "check", "shop", "--wait"]).code, 0);
    assert_eq!(world.check_offline(&[]).code, 0);
    for words in [&["--keyless"][..], &[]] {
        world.agent.expect_log("RepositoryDamaged");
        world.agent.expect_log("damaged");
        world.agent.expect_log("found altered");
        let reply = world.run(&[&["vault", "check", "shop", "--read-data", "--wait"], words].concat());
        reply.assert_failed("RepositoryDamaged");
        assert!(reply.stderr.contains(&name), "{}", reply.stderr);
        let job = &reply.json()["jobs"][0];
        let finding = &job["findings"][0];
        assert!(finding["file"].as_str().is_some_and(|file| file.ends_with(&name)), "{job:#}");
        assert_eq!((finding["kind"].as_str(), finding["damage"].as_bool()), (Some("altered"), Some(true)));
        assert_eq!(finding["points"][0]["id"], old, "{job:#}");
        let id = job["id"].as_str().expect("an id");
        assert_eq!(world.agent.job(id).0["findings"], job["findings"]);
    }
    let offline = world.check_offline(&["--read-data"]);
    assert_eq!(offline.code, 1, "{offline:?}");
    assert!(offline.stdout.contains(&name), "{}", offline.stdout);
    world.run(&["point", "verify", "shop", "--wait"]).assert_failed("RepositoryDamaged");
    assert_eq!(world.point(&old)["proven_time"], Value::Null);

    // The source has not changed: the next backup stores again what was lost, and the old point reads with it.
    let healed = world.agent.backup("shop").point_id().to_owned();
    for point in [&healed, &old] {
        world.run(&["point", "verify", "shop", point, "--wait"]).success().job().completed();
        assert!(world.point(point)["proven_time"].is_string());
        world.restores_equal(&held, point);
    }
}

#[test]
fn held_points_stay_and_deleted_ones_come_back() {
    let mut world = World::new(2, 14);
    // Its only points are deleted for a while, and an agent that starts then says so.
    world.agent.expect_log("no good point is left");
    let (held, point) = world.backup_of_new_rows();
    for _ in 0..2 {
        let reply = world.run(&["point", "hold", "shop", "latest", "--note", "audit 2026"]).success().json();
        assert_eq!((&reply["point"]["held"], &reply["point"]["hold_note"]), (&true.into(), &"audit 2026".into()));
    }
    world.run(&["point", "delete", "shop", &point, "--yes"]).assert_failed("DataProtected");
    world.run(&["point", "delete", "shop", &point]).assert_failed("InvalidRequest");
    world.run(&["point", "hold", "shop", "latest", "--note", " "]).assert_failed("InvalidRequest");
    for _ in 0..2 {
        let reply = world.run(&["point", "release", "shop", &point]).success().json();
        assert_eq!(reply["point"]["held"], false);
    }
    for _ in 0..2 {
        world.run(&["point", "delete", "shop", &point, "--yes", "--wait"]).success().job().completed();
        assert!(world.listed().is_empty());
        assert_eq!(world.deleted(), std::slice::from_ref(&point));
    }
    let shown = world.point(&point);
    assert_eq!(shown["state"], "Deleted");
    assert!(shown["purge_time"].is_string(), "{shown:#}");
    assert!(world.agent.export("shop").snapshots().is_empty());
    world
        .agent
        .try_restore("shop", &point, world.server.port(), world.server.passfile(), "x")
        .assert_failed("PointNotFound");
    world
        .agent
        .try_restore("shop", "latest", world.server.port(), world.server.passfile(), "x")
        .assert_failed("NoRecoveryPoint");
    // What was deleted stays through prunes until its time comes, and through restarts.
    (0..3).for_each(|_| drop(world.prune()));
    world.agent.restart();
    assert_eq!(world.deleted(), std::slice::from_ref(&point));
    for _ in 0..2 {
        world.run(&["point", "undelete", "shop", &point, "--wait"]).success().job().completed();
        assert_eq!(world.listed(), std::slice::from_ref(&point));
    }
    assert!(world.deleted().is_empty());
    world.restores_equal(&held, &point);
    world.is_sound();
}

#[test]
fn a_point_is_archived_and_restored_from_there() {
    let world = World::new(4, 14);
    let (held, point) = world.backup_of_new_rows();
    for _ in 0..2 {
        world.run(&["point", "archive", "shop", &point, "--wait"]).success().job().completed();
    }
    let shown = world.point(&point);
    assert_eq!((&shown["in_vault"], &shown["in_archive"]), (&true.into(), &true.into()), "{shown:#}");
    world.is_sound();
    // As after the point's removal from the vault store: nothing of it is there but the copy.
    fs::remove_dir_all(world.store().join("repo/data")).expect("the packs go");
    fs::remove_file(world.store().join("repo/snapshots").join(&point)).expect("the snapshot goes");
    world.restores_equal(&held, &point);
    assert!(
        !world.store().join("archive/rehydrated/requests").exists()
            || files(&world.store().join("archive/rehydrated")).is_empty()
    );
}

/// A restore from the archive waits for hours; it lives through restarts and kills of the agent, and can be cancelled.
#[test]
fn a_restore_that_waits_for_the_archive_goes_on_by_itself() {
    let setup = Setup::new().config("[limits]\nrehydration_poll = \"1s\"\n");
    let mut world = World::with(2, 14, setup);
    let (held, point) = world.backup_of_new_rows();
    world.run(&["point", "archive", "shop", &point, "--wait"]).success();
    fs::remove_file(world.store().join("repo/snapshots").join(&point)).expect("the snapshot goes");
    world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "rehydrating");
    world.agent.restart();
    let restore = |name: &str| {
        let target = format!("postgres://postgres@127.0.0.1:{}/", world.server.port());
        let passfile = world.server.passfile().display().to_string();
        let words = ["restore", "database", "shop", "--point", &point, "--target", &target, "--database", name];
        world.run(&[&words[..], &["--passfile", &passfile]].concat()).success().job().id().to_owned()
    };
    let (waits, cancelled) = (restore("back"), restore("never"));
    let is_waiting = |agent: &Agent, id: &str| {
        agent.wait_job(id, "the job waits", Duration::from_secs(60), |job| {
            assert!(!job.ended(), "{:#}", job.0);
            job.0["progress"]["phase"] == "rehydrating"
                && job.0["progress"]["note"].as_str().is_some_and(|note| note.contains("packs"))
        });
        assert_eq!(agent.job(id).status(), "InProgress");
    };
    is_waiting(&world.agent, &waits);
    is_waiting(&world.agent, &cancelled);
    world.run(&["job", "cancel", &cancelled]).success();
    assert_eq!(world.agent.wait_job_end(&cancelled).status(), "Cancelled");
    world.agent.restart();
    is_waiting(&world.agent, &waits);
    let before = world.agent.tree();
    world.agent.kill9_all();
    process::wait_gone(&before, PATIENCE);
    world.agent.start();
    is_waiting(&world.agent, &waits);
    world.agent.resume("rehydrating");
    world.agent.wait_job_end(&waits).completed();
    assert_equal(&held, &contents(&world.server, "back"));
    assert_eq!(world.server.databases(), ["back", "shop"]);
}

#[test]
fn the_agent_dies_between_the_vault_and_the_catalog() {
    let mut world = World::new(2, 14);
    // Its only points are deleted for a while, and an agent that starts then says so.
    world.agent.expect_log("no good point is left");
    let (held, point) = world.backup_of_new_rows();
    world.agent.expect_log("nterrupted");
    for (words, listed) in [("delete", false), ("undelete", true)] {
        world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "maintained");
        world.agent.restart();
        let yes: &[&str] = if listed { &[] } else { &["--yes"] };
        let job = world.run(&[&["point", words, "shop", &point], yes].concat()).success().job();
        world.agent.wait_paused("maintained");
        // In the vault it has happened, here it is not known yet; and nobody else works on this instance's vault.
        assert_eq!(world.listed().is_empty(), listed);
        let busy = world.run(&["vault", "prune", "shop"]);
        busy.assert_failed("MaintenanceBusy");
        let before = world.agent.tree();
        world.agent.kill9_all();
        process::wait_gone(&before, PATIENCE);
        world.agent.clear_pause("maintained");
        world.agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
        world.agent.start();
        let ended = world.agent.wait_job_end(job.id());
        assert_eq!((ended.status(), ended.reason()), ("Failed", "Interrupted"), "{:#}", ended.0);
        assert_eq!(world.listed().is_empty(), !listed);
        assert_eq!(world.deleted().is_empty(), listed);
    }
    world.restores_equal(&held, &point);
    world.is_sound();
}

/// Two prunes go by between a backup's reading and its commit: what it re-uses may be gone, so it begins again, once and by itself.
#[test]
fn a_backup_that_prunes_overtake_begins_again() {
    let mut world = World::new(4, 0);
    let (_, doomed) = world.backup_of_new_rows();
    world.run(&["point", "delete", "shop", &doomed, "--yes", "--wait"]).success();
    world.agent.expect_log("no good point is left");
    world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "staged");
    world.agent.restart();
    // The deleted point's rows are the backup's rows: it needs the packs that the prunes are about to take.
    let held = contents(&world.server, "shop");
    let job = world.agent.start_backup("shop");
    world.agent.wait_paused("staged");
    let reports = [world.prune(), world.prune()];
    assert!(reports.iter().any(|report| number(&report["packs_deleted"]) > 0), "{reports:#?}");
    world.agent.expect_log("a prune overtook the backup");
    world.agent.resume("staged");
    let ended = world.agent.wait_job_end(job.id());
    assert_eq!(ended.status(), "Completed", "{:#}", ended.0);
    assert!(world.agent.log().contains("a prune overtook the backup"), "it was not overtaken");
    assert_eq!(world.listed(), [ended.point_id()]);
    world.restores_equal(&held, ended.point_id());
    world.is_sound();
}

/// The plugin, or all of the agent, is killed at some moment of a prune; whatever it had done, the next one goes on.
#[test]
fn a_killed_prune_leaves_nothing_broken() {
    let mut world = World::new(4, 0);
    for text in ["nterrupted", "PluginCrashed", "maintenance lease", "waiting for the"] {
        world.agent.expect_log(text);
    }
    let (held, kept) = world.backup_of_new_rows();
    for round in 0..4_u64 {
        let (_, doomed) = world.backup_of_new_rows();
        world.run(&["point", "delete", "shop", &doomed, "--yes", "--wait"]).success();
        let job =
            world.run(&["vault", "prune", "shop"]).success().json()["jobs"][0]["id"].as_str().expect("id").to_owned();
        std::thread::sleep(Duration::from_millis(150 + round * 130));
        let before = world.agent.tree();
        if round % 2 == 0 {
            world.agent.plugins().iter().for_each(Seen::kill9);
        } else {
            world.agent.kill9_all();
            process::wait_gone(&before, PATIENCE);
            world.agent.start();
        }
        let ended = world.agent.wait_job_end(&job);
        assert!(matches!(ended.reason(), "" | "PluginCrashed" | "Interrupted"), "{:#}", ended.0);
        assert_eq!(world.listed(), std::slice::from_ref(&kept), "round {round}");
    }
    (0..3).for_each(|_| drop(world.prune()));
    world.restores_equal(&held, &kept);
    world.is_sound();
}

/// The same on Azure Storage (Azurite), where backups and restores have a signature that can only create and read.
#[test]
fn a_vault_in_azure_is_looked_after() {
    let (server, azurite) = (Server::start(), azurite::Server::start());
    sample::random(&server, "shop", 4);
    let vault = format!(
        "location = \"azure://{}/vault\"\n[vault.azure]\nendpoint = \"{}\"\ncredential = \"access-key\"\naccess_key_env = \"TEST_KEY\"",
        azurite.vault.name(),
        azurite.vault.endpoint_at(azurite.port())
    );
    let setup = Setup::new().vault(vault).config("[limits]\nrehydration_poll = \"1s\"\n");
    let mut agent = setup.env("TEST_KEY", azurite.vault.key()).prepare();
    agent.init_vault().success();
    agent.start();
    let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
    let run = |words: &[&str]| agent.cli_json(words);
    let held = contents(&server, "shop");
    let point = agent.backup("shop").point_id().to_owned();
    for words in [
        &["vault", "check", "shop", "--read-data"][..],
        &["vault", "check", "shop", "--keyless", "--read-data"],
        &["point", "verify", "shop"],
        &["point", "delete", "shop", &point, "--yes"],
        &["vault", "prune", "shop"],
        &["vault", "prune", "shop"],
        &["point", "undelete", "shop", &point],
        &["point", "archive", "shop", &point],
        &["vault", "check", "shop"],
    ] {
        let reply = run(&[words, &["--wait"]].concat());
        assert_eq!(reply.code, 0, "{words:?}: {}\n{}", reply.stdout, reply.stderr);
    }
    let shown = run(&["point", "show", "shop", &point]).success().json()["point"].clone();
    assert!(shown["proven_time"].is_string() && shown["in_archive"] == true, "{shown:#}");
    let container = format!("vault-{instance}");
    azurite.vault.delete(&container, &format!("repo/snapshots/{point}"));
    agent.restore("shop", &point, &server, "back");
    assert_equal(&held, &contents(&server, "back"));
    let left = azurite.vault.blobs(&container).into_iter().filter(|blob| blob.name.starts_with("archive/rehydrated/"));
    assert_eq!(left.count(), 0, "what was read from is removed again");
}

#[test]
fn a_vault_is_checked_without_agent_and_key() {
    let mut world = World::new(4, 14);
    world.backup_of_new_rows();
    world.agent.terminate();
    fs::remove_file(world.agent.state_dir().join("vault.key")).expect("the key goes");
    let reply = world.check_offline(&["--read-data"]);
    assert_eq!(reply.code, 0, "{}\n{}", reply.stdout, reply.stderr);
    let json = reply.json();
    assert_eq!(json["checks"][1]["id"], world.instance, "{json:#}");
    assert!(number(&json["checks"][1]["check_report"]["bytes_read"]) > 1_500_000, "{json:#}");
    let subset = world.check_offline(&["--read-data-subset", "50%"]).json();
    let probability = subset["checks"][1]["check_report"]["detects_one"].as_f64().expect("a probability");
    assert!(probability > 0.3 && probability <= 1.0, "{subset:#}");
    let (pack, _) = files(&world.store().join("repo/data")).into_iter().next().expect("a pack");
    fs::remove_file(&pack).expect("the pack goes");
    let reply = world.check_offline(&[]);
    reply.assert_failed("RepositoryDamaged");
    let json = reply.json();
    let finding = &json["checks"][1]["findings"][0];
    assert_eq!(finding["kind"], "missing", "{json:#}");
    assert!(finding["file"].as_str().is_some_and(|file| pack.ends_with(file)), "{json:#}");
}
