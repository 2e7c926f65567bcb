//! Jobs wait fairly, are tried again, and tell what they did and what is to be looked after.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Job, Setup, number};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::tmpfs::Tmpfs;
use vaultferry_tests::{measured, sample, wait_for};

#[path = "support/aging.rs"]
#[allow(dead_code)] // each test takes what it needs
mod aging;

const SOON: Duration = Duration::from_secs(60);

fn phase(job: &Job) -> &str {
    job.0["progress"]["phase"].as_str().unwrap_or_default()
}

fn note(job: &Job) -> &str {
    job.0["progress"]["note"].as_str().unwrap_or_default()
}

fn steps(job: &Job) -> Vec<&str> {
    let steps = job.0["steps"].as_array().expect("steps");
    steps.iter().map(|step| step["name"].as_str().expect("a name")).collect()
}

fn queued(agent: &Agent, job: &Job) -> Job {
    agent.wait_job(job.id(), "the job is queued", SOON, |job| phase(job) == "queued")
}

fn jobs(agent: &Agent, arguments: &[&str]) -> Vec<Job> {
    let listed = agent.cli_json(&[&["job", "list"], arguments].concat()).success().json();
    listed["jobs"].as_array().expect("jobs").iter().cloned().map(Job).collect()
}

#[test]
fn a_full_server_blocks_nobody_else_and_who_waits_says_for_what() {
    let server = Server::start();
    // 84 MB of digits, and 42 MB.
    for (database, megabytes) in [("held", 40), ("behind", 20)] {
        sample::random(&server, database, megabytes);
    }
    server.create_database("elsewhere");
    let proxy = FaultProxy::start(server.port());
    let agent = Setup::new().config("[limits]\njobs = 2\njobs_per_server = 1\n").start();
    let passfile = server.passfile_for_anything();
    for database in ["held", "behind"] {
        agent.protect(database, &uri_for(proxy.port(), database), &passfile);
    }
    // Another port is another server.
    agent.protect("elsewhere", &server.uri("elsewhere"), &passfile);
    // Far enough for a pack of 16 MiB to be full (digits shrink to a half) and stored while the dump is read: else all of them could come behind it.
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 60_000_000));
    let held = agent.start_backup("held");
    let moves = |job: &Job| job.progress("bytes_read") > 1_000_000 && job.progress("bytes_stored") > 0;
    agent.wait_job(held.id(), "it reads and stores", SOON, moves);
    let behind = queued(&agent, &agent.start_backup("behind"));
    let on_server = format!("1 job runs on 127.0.0.1:{}, and no more may", proxy.port());
    assert!(note(&behind).starts_with(&on_server), "{:#}", behind.0);
    assert_eq!(behind.status(), "InProgress");

    // There is room for two, and the one that waits does not take it.
    agent.backup("elsewhere");
    assert_eq!(phase(&agent.job(behind.id())), "queued");
    let text = agent.cli(&["job", "show", behind.id()]).success().stdout;
    assert!(text.contains(&format!("queued: {on_server}")) && text.contains("since"), "{text}");
    // A queued job can be cancelled, and leaves its place.
    agent.cli(&["job", "cancel", behind.id()]).success();
    assert_eq!(agent.wait_job_end(behind.id()).status(), "Cancelled");
    let behind = queued(&agent, &agent.start_backup("behind"));
    proxy.set(Fault::None);
    let held = agent.wait_job_end(held.id()).completed();
    let behind = agent.wait_job_end(behind.id()).completed();

    // What they did, with times that follow each other and bytes that are all there.
    assert_eq!(steps(&held)[0], "starting");
    assert_eq!(steps(&behind)[..3], ["starting", "queued", "starting"]);
    for job in [&held, &behind] {
        let all = job.0["steps"].as_array().expect("steps");
        for pair in all.windows(2) {
            assert_eq!(pair[0]["end_time"], pair[1]["start_time"], "{:#}", job.0["steps"]);
        }
        let sum = |figure: &str| all.iter().map(|step| number(&step[figure])).sum::<u64>();
        assert_eq!(
            (sum("bytes_read"), sum("bytes_stored")),
            (job.progress("bytes_read"), job.progress("bytes_stored"))
        );
        for name in ["verifying", "committing"] {
            assert!(steps(job).contains(&name), "{name}: {:?}", steps(job));
        }
    }
    // Each step has its own bytes.
    let all = held.0["steps"].as_array().expect("steps");
    let dumped = all.iter().find(|step| step["name"] == "dumping").expect("a step for the dump");
    assert!(number(&dumped["bytes_read"]) > 10_000_000, "{dumped:#}");
    let text = agent.cli(&["job", "show", held.id()]).success().stdout;
    let dumping = text.lines().find(|line| line.contains("dumping ")).expect("a line for the dump");
    assert!(dumping.contains("MiB read (") && dumping.contains("/s), "), "{text}");
    assert!(
        jobs(&agent, &[]).iter().all(|job| job.0["steps"].as_array().is_some_and(Vec::is_empty)),
        "lists are short"
    );
}

/// Who waits has not begun: a kill costs it nothing, and its place is kept.
#[test]
fn a_queued_job_is_still_there_after_a_kill() {
    let server = Server::start();
    sample::random(&server, "held", 20);
    server.create_database("behind");
    let proxy = FaultProxy::start(server.port());
    let mut agent = Setup::new().config("[limits]\njobs = 1\n").start();
    let passfile = server.passfile_for_anything();
    for database in ["held", "behind"] {
        agent.protect(database, &uri_for(proxy.port(), database), &passfile);
    }
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 10_000_000));
    let held = agent.start_backup("held");
    agent.wait_job(held.id(), "it reads", SOON, |job| job.progress("bytes_read") > 1_000_000);
    let backup = queued(&agent, &agent.start_backup("behind"));
    agent.cli_json(&["backup", "behind"]).assert_failed("InstanceBusy");
    agent.kill9_all();
    proxy.set(Fault::None);
    agent.start();
    assert_eq!(agent.wait_job_end(held.id()).reason(), "Interrupted");
    let ended = agent.wait_job_end(backup.id()).completed();
    assert_eq!(agent.points("behind")[0]["job_id"], ended.id());
}

#[test]
fn a_long_check_blocks_no_backup() {
    let server = Server::start();
    let setup = Setup::new().config("[limits]\njobs = 1\nmaintenance_jobs = 1\n");
    let agent = setup.env("VAULTFERRY_TEST_PAUSE_AT", "maintained").start();
    for database in ["first", "second"] {
        server.create_database(database);
        agent.protect(database, &server.uri(database), server.passfile());
        agent.backup(database);
    }
    let check = |instance: &str| {
        agent.cli(&["vault", "check", instance]).success();
        let checks = jobs(&agent, &["--operation", "Check"]);
        checks.into_iter().find(|job| job.0["instance_name"] == instance).expect("the check is listed")
    };
    let first = check("first");
    agent.wait_paused("maintained");
    let second = queued(&agent, &check("second"));
    assert_eq!(note(&second), "1 maintenance job runs, and no more may ([limits] maintenance_jobs)");
    for instance in ["first", "second"] {
        agent.backup(instance);
    }
    assert_eq!((agent.job(first.id()).status(), phase(&agent.job(second.id()))), ("InProgress", "queued"));
    agent.resume("maintained");
    for job in [first, second] {
        agent.wait_job_end(job.id()).completed();
    }
}

/// A policy of which a slot has passed and the next one is days away.
fn retrying(agent: &Agent, retry: &str) {
    let text = vaultferry_tests::policy::quiet("retrying");
    let text = text.replace("[[rule]]", &format!("[retry]\n{retry}\n\n[[rule]]"));
    let file = agent.write("retrying.toml", &text).display().to_string();
    agent.cli(&["policy", "create", "-f", &file]).success();
}

#[test]
fn a_scheduled_backup_that_failed_is_tried_again_also_by_the_next_life() {
    let server = Server::start();
    server.create_database("shop");
    let proxy = FaultProxy::start(server.port());
    let mut agent = Setup::new().start();
    retrying(&agent, "attempts = 10\nwait = \"PT2S\"\nlongest_wait = \"PT2S\"");
    let (source, passfile) = (uri_for(proxy.port(), "shop"), server.passfile_for_anything().display().to_string());
    let create = ["instance", "create", "--source", &source, "--policy", "retrying", "--passfile", &passfile];
    agent.cli(&create).success();
    agent.expect_log("job failed");
    agent.terminate();
    aging::slots(&agent, 8);
    proxy.set(Fault::Refuse);
    agent.start();
    let attempts = |agent: &Agent| {
        let mut attempts = jobs(agent, &["--operation", "Backup"]);
        attempts.reverse();
        attempts
    };
    let has_failed = |agent: &Agent, attempt: usize| {
        wait_for("the attempt's failure", SOON, || {
            let attempts = attempts(agent);
            attempts.get(attempt - 1).filter(|job| job.status() == "Failed").cloned()
        })
    };
    let first = has_failed(&agent, 1);
    assert!(first.0["next_attempt_time"].is_string() && first.0["retry_of"] == "", "{:#}", first.0);
    let text = agent.cli(&["job", "show", first.id()]).success().stdout;
    assert!(text.contains("next attempt:"), "{text}");
    let next = agent.cli_json(&["summary", "--instances"]).success().json()["instances"][0]["next_backup_time"].clone();
    let late = agent.cli_json(&["instance", "show", "shop"]).success().json()["instance"]["next_backup_time"].clone();
    assert!(next.as_str() < late.as_str(), "the attempt comes before the schedule: {next} {late}");
    // A person's backup is not held up by what is planned, and its own failure is nobody's to repeat.
    let by_hand = agent.cli_json(&["backup", "shop", "--wait"]);
    assert_eq!(by_hand.code, 1);

    agent.kill9_all();
    proxy.set(Fault::None);
    agent.start();
    let completed = wait_for("an attempt that completes", SOON, || {
        attempts(&agent).into_iter().find(|job| job.status() == "Completed")
    });
    assert_eq!(completed.0["retry_of"], first.id());
    assert!(number(&completed.0["attempt"]) >= 2 && completed.0["scheduled"] == true, "{:#}", completed.0);
    let text = agent.cli(&["job", "show", completed.id()]).success().stdout;
    assert!(text.contains(&format!("after the job {}", first.id())), "{text}");
    let all = attempts(&agent);
    let of_the_slot: Vec<u64> =
        all.iter().filter(|job| job.0["scheduled"] == true).map(|job| number(&job.0["attempt"])).collect();
    let expected: Vec<u64> = (1..=of_the_slot.len() as u64).collect();
    assert_eq!(of_the_slot, expected, "each once, in order");
    assert_eq!(agent.points("shop").len(), 1);
    // Nothing is left to be done.
    let before = all.len();
    agent.restart();
    agent.backup("shop");
    assert_eq!(attempts(&agent).len(), before + 1);
}

#[test]
fn attempts_end_with_their_number_and_with_the_schedule_s_pause() {
    let server = Server::start();
    server.create_database("shop");
    let proxy = FaultProxy::start(server.port());
    let mut agent = Setup::new().start();
    retrying(&agent, "attempts = 2\nwait = \"PT1S\"");
    let (source, passfile) = (uri_for(proxy.port(), "shop"), server.passfile_for_anything().display().to_string());
    let create = ["instance", "create", "--source", &source, "--policy", "retrying", "--passfile", &passfile];
    agent.cli(&create).success();
    agent.expect_log("job failed");
    proxy.set(Fault::Refuse);
    let life = |agent: &mut Agent| {
        agent.terminate();
        aging::slots(agent, 8);
        agent.start();
    };
    let failed = |agent: &Agent, count: usize| {
        wait_for("the failures", SOON, || {
            let failed = jobs(agent, &["--status", "Failed"]);
            assert!(failed.len() <= count, "{failed:#?}");
            (failed.len() == count).then_some(failed)
        })
    };
    life(&mut agent);
    let ended = failed(&agent, 2);
    assert!(ended[0].0["next_attempt_time"].is_null() && ended[1].0["next_attempt_time"].is_string(), "{ended:#?}");
    // Paused between two attempts: a later life has nothing to do for it either.
    let policy = agent.write("slow.toml", &vaultferry_tests::policy::quiet("slow")).display().to_string();
    agent.cli(&["policy", "create", "-f", &policy]).success();
    agent.cli(&["instance", "change-policy", "shop", "--policy", "slow", "--yes"]).success();
    life(&mut agent);
    let ended = failed(&agent, 3);
    assert!(ended[0].0["next_attempt_time"].is_string(), "in five minutes");
    agent.cli(&["instance", "pause", "shop"]).success();
    proxy.set(Fault::None);
    agent.restart();
    agent.backup("shop");
    assert_eq!(jobs(&agent, &["--operation", "Backup"]).len(), 4);
}

#[test]
fn jobs_of_the_last_seven_days_are_listed_and_filters_narrow_or_widen_that() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let (old, new) = (agent.backup("shop"), agent.backup("shop"));
    agent.terminate();
    aging::job(&agent, old.id(), 8);
    agent.start();
    let ids = |arguments: &[&str]| -> Vec<String> {
        let backups = jobs(&agent, arguments).into_iter().filter(|job| job.0["operation"] == "Backup");
        backups.map(|job| job.id().to_owned()).collect()
    };
    let day = |days: i64| (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).to_string();
    let (old, new) = (old.id().to_owned(), new.id().to_owned());
    assert_eq!(ids(&[]), [new.as_str()]);
    assert_eq!(ids(&["--from", &day(30)]), [new.as_str(), &old]);
    assert_eq!(ids(&["--from", &day(30), "--to", &day(5)]), [old.as_str()]);
    assert_eq!(ids(&["--to", &day(5)]), [old.as_str()], "the seven days before that");
    assert_eq!(ids(&["--to", &day(9)]), [""; 0]);
    assert_eq!(ids(&["--status", "completed", "--operation", "backup"]), [new.as_str()]);
    assert_eq!(ids(&["--status", "Failed"]), [""; 0]);
    assert_eq!(jobs(&agent, &["--operation", "ConfigureBackup"]).len(), 1);
    agent.cli_json(&["job", "list", "--status", "Broken"]).assert_failed("InvalidRequest");
}

#[test]
fn the_summary_tells_each_instance() {
    let server = Server::start();
    let agent = Setup::new().start();
    for database in ["first", "second", "third"] {
        sample::random(&server, database, 1);
        agent.protect(database, &server.uri(database), server.passfile());
    }
    let summary = || agent.cli_json(&["summary", "--instances"]).success().json();
    let names = |summary: &Value| -> Vec<String> {
        let instances = summary["instances"].as_array().expect("instances");
        instances.iter().map(|instance| instance["name"].as_str().expect("a name").to_owned()).collect()
    };
    for instance in ["second", "first"] {
        agent.backup(instance);
    }
    agent.cli(&["point", "verify", "second", "--wait"]).success();
    let told = summary();
    assert_eq!(names(&told), ["third", "second", "first"], "the oldest good point first");
    assert_eq!(number(&told["summary"]["points"]), 2, "V28's figures are there too");
    let second = &told["instances"][1];
    let points = agent.points("second");
    assert_eq!(
        (&second["last_good_time"], &second["last_proven_time"]),
        (&points[0]["create_time"], &points[0]["create_time"])
    );
    assert_eq!((number(&second["point_count"]), second["protection_state_text"].as_str()), (1, Some("Protected")));
    let stored = number(&points[0]["stored_bytes"]);
    assert!(stored > 1_000_000);
    assert_eq!((number(&second["stored_bytes"]), number(&second["stored_bytes_30d"])), (stored, stored));
    assert!(number(&second["last_good_age_s"]) < 600 && second["next_backup_time"].is_string());
    assert!(told["instances"][0]["last_good_time"].is_null() && told["instances"][2]["last_proven_time"].is_null());
    agent.cli(&["instance", "stop", "third", "--retain-data"]).success();
    assert_eq!(names(&summary()), ["second", "first", "third"], "what was stopped is at the end");
    let text = agent.cli(&["summary", "--instances"]).success().stdout;
    assert!(text.contains("LAST PROVEN") && text.contains("never"), "{text}");
    let short = agent.cli_json(&["summary"]).success().json();
    assert_eq!(short["instances"].as_array().map(Vec::len), Some(0));
}

#[test]
fn little_space_is_told_before_a_backup_fails() {
    let Some(mount) = Tmpfs::new("size=200m") else {
        measured("skipped: only root can mount a small file system");
        return;
    };
    let mut agent = Setup::new().vault(format!("location = \"{}/vault\"", mount.path().display())).prepare();
    agent.init_vault().success();
    agent.start();
    let warnings = |command: &[&str], part: &str| {
        let json = agent.cli_json(command).success().json();
        let warnings = json.pointer(part).and_then(Value::as_array).expect("warnings").clone();
        warnings.iter().map(|warning| warning["reason"].as_str().expect("a reason").to_owned()).collect::<Vec<_>>()
    };
    assert!(warnings(&["summary"], "/warnings").is_empty());
    assert!(warnings(&["vault", "show"], "/vault/warnings").is_empty());
    // Something else takes nearly all of it.
    fs::write(mount.path().join("other"), vec![7_u8; 190 << 20]).expect("write");
    assert_eq!(warnings(&["summary"], "/warnings"), ["VaultSpaceLow"]);
    assert_eq!(warnings(&["vault", "show"], "/vault/warnings"), ["VaultSpaceLow"]);
    let text = agent.cli(&["vault", "show"]).success().stdout;
    assert!(text.contains("which is less than a tenth") && text.contains("fix: "), "{text}");
    assert!(text.contains("of 200.0 MiB"), "{text}");
    assert!(!agent.log().contains("little space is left"), "the next look is in an hour");
    agent.restart();
    wait_for("the log's line", SOON, || agent.log().contains("little space is left for the vault").then_some(()));
    agent.terminate();
}
