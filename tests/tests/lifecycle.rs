//! What becomes of instances: protected, pending, paused, stopped, deleted, brought back, renamed, moved, under another policy; and killed
//! in the middle of it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use vaultferry_tests::agent::{Agent, Job, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{binary, policy, sample, wait_for};

#[path = "support/aging.rs"]
mod aging;

/// Longest wait for what the agent does by itself at its start.
const SOON: Duration = Duration::from_secs(60);

fn run(agent: &Agent, words: &[&str]) -> Reply {
    agent.cli_json(&[&["instance"], words].concat())
}

#[track_caller]
fn show(agent: &Agent, name: &str) -> Value {
    run(agent, &["show", name]).success().json()["instance"].clone()
}

#[track_caller]
fn assert_state(agent: &Agent, name: &str, state: &str, text: &str) {
    let instance = show(agent, name);
    let told = (&instance["protection_state"], &instance["protection_state_text"]);
    assert_eq!(told, (&json!(state), &json!(text)), "{instance:#}");
}

/// The names in the list.
#[track_caller]
fn names(agent: &Agent, words: &[&str]) -> Vec<String> {
    let listed = run(agent, &[&["list"], words].concat()).success().json();
    let instances = listed["instances"].as_array().expect("a list").clone();
    instances.iter().map(|instance| instance["name"].as_str().expect("a name").to_owned()).collect()
}

/// Protected, pending, paused, stopped.
#[track_caller]
fn counts(agent: &Agent) -> [u64; 4] {
    let summary = agent.cli_json(&["summary"]).success().json()["summary"].clone();
    ["protected", "pending", "paused", "stopped"].map(|state| number(&summary[format!("instances_{state}")]))
}

#[track_caller]
fn jobs(agent: &Agent, operation: &str) -> Vec<Job> {
    let listed = agent.cli_json(&["job", "list", "--operation", operation]).success().json();
    listed["jobs"].as_array().expect("a list").iter().cloned().map(Job).collect()
}

#[track_caller]
fn ids(agent: &Agent, instance: &str, words: &[&str]) -> Vec<String> {
    let listed = agent.cli_json(&[&["point", "list", instance], words].concat()).success().json();
    let points = listed["points"].as_array().expect("a list").clone();
    points.iter().map(|point| point["id"].as_str().expect("an id").to_owned()).collect()
}

/// Makes a policy that does not fire, and keeps points for so long.
#[track_caller]
fn create_policy(agent: &Agent, name: &str, vault: &str) {
    let file = agent.write(&format!("{name}.toml"), &policy::quiet(name).replace("P3M", vault));
    agent.cli(&["policy", "create", "-f", &file.display().to_string()]).success();
}

/// An agent that protects the databases of that name, without a point yet.
fn protected(setup: Setup, server: &Server, databases: &[&str]) -> Agent {
    let agent = setup.start();
    for database in databases {
        sample::random(server, database, 1);
        agent.protect(database, &server.uri(database), server.passfile());
    }
    agent
}

/// A command that does not come to its end, because the agent pauses in it; to be killed by the test.
fn begun(agent: &Agent, words: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.args(words).env("VAULTFERRY_ENDPOINT", format!("unix://{}/control.sock", agent.dir().display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts")
}

/// The agent is killed when it has come to that step of the command; the next one starts without a pause.
#[track_caller]
fn killed_at(agent: &mut Agent, step: &str, words: &[&str]) {
    agent.set_env("VAULTFERRY_TEST_PAUSE_AT", step);
    agent.restart();
    let mut command = begun(agent, words);
    agent.wait_paused(step);
    // It would ask the next agent again.
    command.kill().expect("killed");
    command.wait().expect("gone");
    agent.kill9_all();
    agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    agent.clear_pause(step);
    agent.start();
}

#[test]
fn a_newcomers_flow() {
    let server = Server::start();
    let databases = ["orders", "shop", "stock"];
    databases.iter().for_each(|database| sample::random(&server, database, 1));
    let agent = Setup::new().start();
    create_policy(&agent, "nightly", "P3M");
    create_policy(&agent, "short", "P7D");
    let passfile = server.passfile().display().to_string();
    let sources = databases.map(|database| server.uri(database));
    let create = ["instance", "create", "--policy", "nightly", "--passfile", &passfile, "--source"];
    let sources = sources.each_ref().map(String::as_str);
    let made = agent.cli_json(&[&create[..], &sources[..]].concat()).success().json();
    assert_eq!(made["instances"].as_array().map(Vec::len), Some(3), "{made:#}");
    assert_eq!(names(&agent, &[]), databases);
    for database in databases {
        assert_state(&agent, database, "ProtectionPending", "Protected - (pending initial backup)");
        run(&agent, &["validate", database]).success();
    }
    assert_eq!(counts(&agent), [0, 3, 0, 0]);
    let text = agent.cli(&["instance", "list"]).success().stdout;
    assert_eq!(text.matches("Protected - (pending initial backup)").count(), 3, "{text}");
    assert_eq!(text.matches("Warning (initial backup pending)").count(), 3, "{text}");

    for database in databases {
        agent.backup(database);
        assert_state(&agent, database, "Protected", "Protected");
        assert_eq!(show(&agent, database)["last_backup_status"], "Completed");
    }
    assert_eq!(counts(&agent), [3, 0, 0, 0]);

    // Another policy: looked at first, refused without a word, then linked.
    let link = ["change-policy", "shop", "--policy", "short"];
    let preview = run(&agent, &[&link[..], &["--preview"]].concat()).success().json();
    assert_eq!((&preview["preview"], &preview["needs_confirmation"]), (&json!(true), &json!(true)), "{preview:#}");
    assert_eq!(number(&preview["change"]["points_shorter"]), 1, "{preview:#}");
    assert_eq!(preview["change"]["points"][0]["id"], agent.points("shop")[0]["id"], "{preview:#}");
    assert_eq!(preview["instance"]["policy"], "nightly");
    let text = agent.cli(&[&["instance"], &link[..], &["--preview"]].concat()).success().stdout;
    assert!(text.contains("nothing was changed") && text.contains("shorter") && text.contains("--yes"), "{text}");
    let refused = run(&agent, &link);
    refused.assert_failed("RetentionShortened");
    assert!(refused.stderr.contains("1 of 1 points"), "{}", refused.stderr);
    assert_eq!(show(&agent, "shop")["policy"], "nightly");
    let before = agent.points("shop")[0]["expire_time"].clone();
    let linked = run(&agent, &[&link[..], &["--yes"]].concat()).success().json();
    assert_eq!(linked["instance"]["policy"], "short", "{linked:#}");
    let after = agent.points("shop")[0]["expire_time"].clone();
    assert!(after.as_str() < before.as_str(), "{after} is not before {before}");
    // Longer needs no word, and the same again is no error.
    for _ in 0..2 {
        run(&agent, &["change-policy", "shop", "--policy", "nightly"]).success();
    }
    assert_eq!(agent.points("shop")[0]["expire_time"], before);
    let changes = jobs(&agent, "ChangePolicy");
    assert_eq!(changes.iter().map(|job| job.0["target"].clone()).collect::<Vec<_>>(), ["nightly", "short"]);
    run(&agent, &["change-policy", "shop", "--policy", "none"]).assert_failed("PolicyNotFound");
    // A policy that is linked is not deleted.
    run(&agent, &["change-policy", "stock", "--policy", "short", "--yes"]).success();
    agent.cli_json(&["policy", "delete", "short"]).assert_failed("PolicyInUse");

    // Stopped: no backups, everything can be restored, nothing expires.
    for _ in 0..2 {
        run(&agent, &["stop", "shop", "--retain-data"]).success();
        assert_state(&agent, "shop", "Stopped", "Stopped - (data retained)");
    }
    assert_eq!(counts(&agent), [2, 0, 0, 1]);
    let stopped = show(&agent, "shop");
    assert!(stopped["next_backup_time"].is_null() && stopped["protection_state_time"].is_string(), "{stopped:#}");
    assert!(agent.points("shop")[0]["expire_time"].is_null());
    let refused = agent.cli_json(&["backup", "shop"]);
    refused.assert_failed("ProtectionStopped");
    assert!(refused.stderr.contains("instance resume"), "{}", refused.stderr);
    run(&agent, &["pause", "shop"]).assert_failed("ProtectionStopped");
    run(&agent, &["change-policy", "shop", "--policy", "short"]).assert_failed("ProtectionStopped");
    let kept = contents(&server, "shop");
    agent.restore("shop", "latest", &server, "again");
    assert_equal(&kept, &contents(&server, "again"));
    assert_eq!(jobs(&agent, "StopProtection").len(), 1);

    for _ in 0..2 {
        run(&agent, &["resume", "shop"]).success();
        assert_state(&agent, "shop", "Protected", "Protected");
    }
    let resumed = show(&agent, "shop");
    assert!(resumed["next_backup_time"].is_string() && resumed["protection_state_time"].is_null(), "{resumed:#}");
    assert_eq!(agent.points("shop")[0]["expire_time"], before);
    run(&agent, &["resume", "shop", "--policy", "short"]).assert_failed("InvalidRequest");
    agent.backup("shop");
    assert_eq!(agent.points("shop").len(), 2);
    agent.export("shop").check();
}

#[test]
fn a_paused_schedule_starts_nothing_and_makes_up_for_nothing() {
    let server = Server::start();
    // What happens to the second tells that the scheduler has looked.
    let mut agent = protected(Setup::new(), &server, &["first", "second"]);
    run(&agent, &["pause", "first"]).success();
    assert_state(&agent, "first", "Paused", "Paused");
    assert!(show(&agent, "first")["next_backup_time"].is_null());
    assert_eq!(counts(&agent), [0, 1, 1, 0]);
    let text = agent.cli(&["summary"]).success().stdout;
    assert!(text.contains("paused:") && agent.cli(&["instance", "list"]).success().stdout.contains("Paused"), "{text}");
    let scheduled = |agent: &Agent, instance: &str| {
        let jobs = jobs(agent, "Backup");
        jobs.iter().filter(|job| job.0["instance_name"] == instance && job.0["scheduled"] == true).count()
    };
    let passes_a_slot = |agent: &mut Agent, before: usize| {
        agent.terminate();
        aging::slots(agent, 8);
        agent.start();
        wait_for("the other instance's backup", SOON, || {
            let ended = jobs(agent, "Backup").iter().all(Job::ended);
            (scheduled(agent, "second") == before + 1 && ended).then_some(())
        });
    };
    passes_a_slot(&mut agent, 0);
    assert_eq!(scheduled(&agent, "first"), 0);

    // On demand it is backed up all the same.
    agent.backup("first");
    assert_state(&agent, "first", "Paused", "Paused");
    // Resumed, it goes on with the next slot; the one that has passed is not made up for. The other's next catch-up tells that the
    // scheduler has looked.
    agent.terminate();
    aging::slots(&agent, 8);
    agent.start();
    run(&agent, &["resume", "first"]).success();
    assert_state(&agent, "first", "Protected", "Protected");
    wait_for("the other instance's backup", SOON, || (scheduled(&agent, "second") == 2).then_some(()));
    agent.restart();
    agent.backup("second");
    assert_eq!(scheduled(&agent, "first"), 0);
    // The control: it would have been made up for, had it not been paused.
    passes_a_slot(&mut agent, 2);
    wait_for("the resumed instance's backup", SOON, || (scheduled(&agent, "first") == 1).then_some(()));
}

#[test]
fn nothing_of_a_stopped_instance_expires_and_a_paused_one_keeps_its_last_point() {
    let server = Server::start();
    let mut agent = protected(Setup::new(), &server, &["first", "second"]);
    for instance in ["first", "second"] {
        for _ in 0..2 {
            agent.backup(instance);
        }
    }
    run(&agent, &["stop", "first", "--retain-data"]).success();
    run(&agent, &["pause", "second"]).success();
    agent.terminate();
    aging::points(&agent, 4000);
    aging::runs(&agent);
    agent.start();
    wait_for("the paused instance's expiry", SOON, || (ids(&agent, "second", &[]).len() == 1).then_some(()));
    assert_eq!(ids(&agent, "first", &[]).len(), 2);
    agent.restart();
    agent.cli(&["point", "verify", "second", "--wait"]).success();
    assert_eq!((ids(&agent, "first", &[]).len(), ids(&agent, "second", &[]).len()), (2, 1));

    // Protected again, one of them has outlived its rule: that has to be meant.
    let refused = run(&agent, &["resume", "first"]);
    refused.assert_failed("RetentionShortened");
    assert!(refused.stderr.contains("1 of its 2 points"), "{}", refused.stderr);
    assert_state(&agent, "first", "Stopped", "Stopped - (data retained)");
    run(&agent, &["resume", "first", "--yes"]).success();
    agent.terminate();
    aging::runs(&agent);
    agent.start();
    wait_for("its expiry", SOON, || (ids(&agent, "first", &[]).len() == 1).then_some(()));
    run(&agent, &["resume", "second"]).success();
}

#[test]
fn a_deleted_instance_comes_back_with_its_points_after_any_kill() {
    let server = Server::start();
    let mut agent = protected(Setup::new(), &server, &["shop"]);
    for _ in 0..3 {
        agent.backup("shop");
    }
    let kept = contents(&server, "shop");
    let points = ids(&agent, "shop", &[]);
    // One that was deleted by itself stays deleted.
    agent.cli(&["point", "delete", "shop", &points[2], "--yes", "--wait"]).success();
    let stop = ["stop", "shop", "--delete-data"];
    run(&agent, &stop).assert_failed("InvalidRequest");
    agent.cli(&["point", "hold", "shop", &points[1], "--note", "audit"]).success();
    let refused = run(&agent, &[&stop[..], &["--yes"]].concat());
    refused.assert_failed("DataProtected");
    assert!(refused.stderr.contains(&points[1]) && refused.stderr.contains("audit"), "{}", refused.stderr);
    assert_state(&agent, "shop", "Protected", "Protected");
    agent.cli(&["point", "release", "shop", &points[1]]).success();
    run(&agent, &["pause", "shop"]).success();

    // Killed when the first of two points is deleted: the next start goes on.
    killed_at(&mut agent, "maintained", &["instance", "stop", "shop", "--delete-data", "--yes"]);
    let stopped = jobs(&agent, "StopProtection");
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    agent.wait_job_end(stopped[0].id()).completed();
    assert!(ids(&agent, "shop", &[]).is_empty());
    assert_eq!(ids(&agent, "shop", &["--deleted"]).len(), 3);
    assert_state(&agent, "shop", "Stopped", "Stopped - (data deleted)");
    assert!(show(&agent, "shop")["purge_time"].is_string());
    assert!(names(&agent, &[]).is_empty());
    assert_eq!(names(&agent, &["--deleted"]), ["shop"]);
    assert!(agent.cli(&["instance", "list", "--deleted"]).success().stdout.contains("shop"));
    assert_eq!(counts(&agent), [0, 0, 0, 0]);
    for words in [
        &["backup", "shop"][..],
        &["point", "undelete", "shop", &points[0]],
        &["instance", "resume", "shop"],
        &["instance", "pause", "shop"],
        &["instance", "rename", "shop", "store"],
        &["instance", "validate", "shop"],
        &["instance", "stop", "shop", "--retain-data"],
    ] {
        agent.cli_json(words).assert_failed("InstanceDeleted");
    }
    let (source, passfile) = (server.uri("shop"), server.passfile().display().to_string());
    let again = ["instance", "create", "--source", &source, "--policy", "quiet", "--passfile", &passfile];
    agent.cli_json(&again).assert_failed("SourceAlreadyProtected");

    // The vault alone knows all of it.
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!(names(&agent, &["--deleted"]), ["shop"]);
    assert_eq!(ids(&agent, "shop", &["--deleted"]).len(), 3);

    // Killed when the first point is back, and again when the instance is back in the vault and not in the catalog.
    killed_at(&mut agent, "maintained", &["instance", "undelete", "shop"]);
    wait_for("the instance", SOON, || (names(&agent, &[]) == ["shop"]).then_some(()));
    assert_eq!(ids(&agent, "shop", &[]), points[..2]);
    assert_eq!(ids(&agent, "shop", &["--deleted"]), points[2..]);
    assert_state(&agent, "shop", "Paused", "Paused");
    run(&agent, &[&stop[..], &["--yes", "--wait"]].concat()).success().job().completed();
    killed_at(&mut agent, "instance-recorded", &["instance", "undelete", "shop"]);
    let job = jobs(&agent, "UndeleteInstance")[0].clone();
    agent.wait_job_end(job.id()).completed();
    assert_state(&agent, "shop", "Paused", "Paused");
    run(&agent, &["undelete", "shop", "--wait"]).success();
    run(&agent, &["resume", "shop"]).success();
    agent.restore("shop", &points[1], &server, "again");
    assert_equal(&kept, &contents(&server, "again"));
    agent.backup("shop");
    agent.export("shop").check();
}

#[test]
fn a_deleted_instance_whose_time_is_over_is_gone_and_its_name_is_free() {
    let server = Server::start();
    let mut agent = protected(Setup::new(), &server, &["shop"]);
    let vault = ["vault", "settings", "--soft-delete-days", "0"];
    agent.cli(&vault).success();
    agent.backup("shop");
    let id = show(&agent, "shop")["id"].as_str().expect("an id").to_owned();
    run(&agent, &["stop", "shop", "--delete-data", "--yes", "--wait"]).success().job().completed();
    run(&agent, &["undelete", "shop"]).assert_failed("InstanceDeleted");
    // Prunes give its space back; the last one finds nothing to do.
    let prune = || {
        let reply = agent.cli_json(&["vault", "prune", "shop", "--wait"]).success().json();
        let report = &reply["jobs"][0]["prune_report"];
        ["packs_marked", "packs_noted", "packs_deleted", "points_purged"]
            .iter()
            .map(|figure| number(&report[figure]))
            .sum::<u64>()
    };
    let runs = (0..6).take_while(|_| prune() > 0).count();
    assert!((2..6).contains(&runs), "{runs} prunes had something to do");
    agent.restart();
    wait_for("the instance's end", SOON, || names(&agent, &["--deleted"]).is_empty().then_some(()));
    run(&agent, &["show", "shop"]).assert_failed("InstanceNotFound");
    let packs = agent.state_dir().join("vault/instances").join(&id).join("repo/data");
    let left = fs::read_dir(&packs).map_or(0, |dirs| {
        dirs.filter_map(|dir| fs::read_dir(dir.expect("an entry").path()).ok()).map(Iterator::count).sum::<usize>()
    });
    assert_eq!(left, 0, "packs are left");

    // Name and source are free, and a rebuilt catalog knows the new instance only.
    let new = agent.protect("shop", &server.uri("shop"), server.passfile());
    assert_ne!(new, id);
    agent.backup("shop");
    agent.terminate();
    let rebuilt = agent.offline(&["vault", "rebuild-catalog"], b"").success().json();
    assert_eq!(rebuilt["catalog"]["problems"].as_array().map(Vec::len), Some(0), "{rebuilt:#}");
    agent.start();
    assert_eq!(show(&agent, "shop")["id"], new.as_str());
    agent.backup("shop");
}

#[test]
fn the_server_got_another_name_and_the_chain_goes_on() {
    let server = Server::start();
    let mut agent = protected(Setup::new(), &server, &["shop", "other"]);
    let first = agent.backup("shop");
    let id = show(&agent, "shop")["id"].clone();
    run(&agent, &["rename", "shop", "other"]).assert_failed("NameTaken");
    run(&agent, &["rename", "shop", ""]).assert_failed("InvalidRequest");
    run(&agent, &["rename", "nobody", "somebody"]).assert_failed("InstanceNotFound");
    run(&agent, &["rename", "shop", "the store"]).success();
    run(&agent, &["show", "shop"]).assert_failed("InstanceNotFound");
    assert_eq!(show(&agent, "the store")["id"], id);

    // Checked like a new source, and nothing is changed by what is refused.
    let socket = server.socket_uri("shop");
    let passfile = server.passfile_for_socket().display().to_string();
    let wrong = agent.write("wrong", "*:*:*:*:not-it\n").display().to_string();
    let with_password = format!("postgres://postgres:secret-word@127.0.0.1:{}/shop", server.port());
    for (source, passfile, reason) in [
        (server.socket_uri("nowhere"), &passfile, "UserErrorDBNotFound"),
        (socket.clone(), &wrong, "UserErrorDBUserAuthFailed"),
        (server.uri("other"), &server.passfile().display().to_string(), "SourceAlreadyProtected"),
        (with_password, &passfile, "InvalidSource"),
    ] {
        let reply = run(&agent, &["move", "the store", "--source", &source, "--passfile", passfile]);
        reply.assert_failed(reason);
        assert!(!reply.stderr.contains("secret-word"), "{}", reply.stderr);
        assert_eq!(show(&agent, "the store")["source_uri"], server.uri("shop").as_str());
    }
    let moved = ["move", "the store", "--source", &socket, "--passfile", &passfile];
    for _ in 0..2 {
        run(&agent, &moved).success();
        assert_eq!(show(&agent, "the store")["source_uri"], socket.as_str());
    }
    run(&agent, &["validate", "the store"]).success();
    agent.backup("the store");
    let points = agent.points("the store");
    let stored = |point: usize| number(&points[point]["stored_bytes"]);
    assert!(points.len() == 2 && stored(0) * 10 < stored(1), "the chain does not go on: {points:#?}");
    assert_eq!(points[1]["id"], first.point_id());
    // The place that it has left is free, and the vault alone knows the new one.
    let left = agent.protect("left", &server.uri("shop"), server.passfile());
    assert_ne!(json!(left), id);
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!((&show(&agent, "the store")["id"], &show(&agent, "the store")["source_uri"]), (&id, &json!(socket)));
    agent.backup("the store");

    // Not while a job runs.
    agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "staged");
    agent.restart();
    let job = agent.start_backup("the store");
    agent.wait_paused("staged");
    for words in [&["rename", "the store", "shop"][..], &moved, &["stop", "the store", "--delete-data", "--yes"]] {
        let reply = run(&agent, words);
        reply.assert_failed("InstanceBusy");
        assert!(reply.stderr.contains(job.id()), "{}", reply.stderr);
    }
    // A stop that retains the data does not wait: the backup that runs is retained, too.
    run(&agent, &["stop", "the store", "--retain-data"]).success();
    agent.resume("staged");
    agent.wait_job_end(job.id()).completed();
    run(&agent, &["rename", "the store", "shop"]).success();
    assert_eq!(agent.points("shop").len(), 4);
    agent.restore("shop", "latest", &server, "again");
    assert_equal(&contents(&server, "shop"), &contents(&server, "again"));
}

#[test]
fn a_killed_change_is_taken_back_or_completed_and_a_rebuilt_catalog_knows_every_state() {
    let server = Server::start();
    let mut agent = protected(Setup::new(), &server, &["a", "b", "c", "d"]);
    for instance in ["a", "b", "c", "d"] {
        agent.backup(instance);
    }
    killed_at(&mut agent, "instance-marked", &["instance", "stop", "a", "--retain-data"]);
    assert_state(&agent, "a", "Protected", "Protected");
    agent.backup("a");
    killed_at(&mut agent, "instance-recorded", &["instance", "stop", "a", "--retain-data"]);
    assert_state(&agent, "a", "Stopped", "Stopped - (data retained)");
    run(&agent, &["pause", "b"]).success();
    run(&agent, &["stop", "c", "--delete-data", "--yes", "--wait"]).success();
    create_policy(&agent, "longer", "P6M");
    run(&agent, &["change-policy", "d", "--policy", "longer"]).success();
    let states = |agent: &Agent| {
        ["a", "b", "c", "d"].map(|name| {
            let instance = show(agent, name);
            ["protection_state", "protection_state_time", "purge_time", "policy", "point_count"]
                .map(|field| instance[field].clone())
        })
    };
    let before = states(&agent);
    assert_eq!(before.clone().map(|instance| instance[0].clone()), ["Stopped", "Paused", "Stopped", "Protected"]);
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!(states(&agent), before);
    run(&agent, &["resume", "a"]).success();
    run(&agent, &["undelete", "c", "--wait"]).success();
    for instance in ["a", "b", "c", "d"] {
        agent.backup(instance);
        agent.export(instance).check();
    }
}
