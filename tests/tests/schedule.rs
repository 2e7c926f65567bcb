//! A policy fires by itself, each slot once, and a slot that was missed is caught up once.

use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{sample, wait_for};

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs()
}

/// The UTC wall-clock time of this minute, counted from 1970.
fn clock(minute: u64) -> String {
    format!("{:02}:{:02}", minute / 60 % 24, minute % 60)
}

fn scheduled(agent: &Agent) -> Vec<Value> {
    let listed = agent.cli_json(&["job", "list", "--operation", "backup"]).success().json();
    let jobs = listed["jobs"].as_array().cloned().unwrap_or_default();
    assert!(jobs.iter().all(|job| job["scheduled"] == true), "{jobs:#?}");
    jobs
}

fn all_completed(agent: &Agent, count: usize) -> bool {
    let jobs = scheduled(agent);
    assert!(jobs.len() <= count, "{jobs:#?}");
    jobs.len() == count && jobs.iter().all(|job| job["status"] == "Completed")
}

#[test]
fn slots_fire_by_themselves_and_a_missed_one_is_caught_up_once() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    // The next minute that leaves time to set things up, and the one after it.
    let first = (now_s() + 10) / 60 + 1;
    let policy = format!(
        "name = \"soon\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"{}\", \"{}\"]\n\
         [[rule]]\nname = \"Default\"\nvault = \"P7D\"\n[[rule]]\nname = \"Daily\"\nfirst_of = \"day\"\nvault = \"P14D\"\n",
        clock(first),
        clock(first + 1)
    );
    let file = agent.write("soon.toml", &policy).display().to_string();
    agent.cli(&["policy", "create", "-f", &file]).success();
    let (source, passfile) = (server.uri("shop"), server.passfile().display().to_string());
    agent
        .cli(&[
            "instance",
            "create",
            "--source",
            &source,
            "--policy",
            "soon",
            "--name",
            "shop",
            "--passfile",
            &passfile,
        ])
        .success();
    assert!(scheduled(&agent).is_empty(), "nothing is due yet");
    wait_for("the first slot's backup", Duration::from_secs(100), || all_completed(&agent, 1).then_some(()));
    assert!(now_s() >= first * 60, "not before its time");

    agent.terminate();
    while now_s() < (first + 1) * 60 + 1 {
        sleep(Duration::from_millis(200));
    }
    agent.start();
    wait_for("the missed slot's backup", Duration::from_secs(30), || all_completed(&agent, 2).then_some(()));
    // A third life finds nothing that is due.
    agent.restart();
    sleep(Duration::from_secs(2));
    assert!(all_completed(&agent, 2));
    // The first of a day carries the day's rule; newest first.
    let points = agent.points("shop");
    let second = if first / 1440 == (first + 1) / 1440 { "Default" } else { "Daily" };
    assert_eq!((&points[0]["rule"], &points[1]["rule"]), (&second.into(), &"Daily".into()));
    assert!(points.iter().all(|point| point["expire_time"].is_string()));
}
