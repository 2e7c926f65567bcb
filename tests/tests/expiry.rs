//! Points whose time is over are deleted by the agent itself, and the last good one is not.

use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{sample, wait_for};

#[path = "support/aging.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod aging;

/// Restarts the agent, whose first run counts.
fn restart_in_an_hour(agent: &mut Agent) {
    agent.terminate();
    aging::runs(agent);
    agent.start();
}

fn deletions(agent: &Agent) -> Vec<Value> {
    let listed = agent.cli_json(&["job", "list", "--operation", "DeletePoint"]).success().json();
    listed["jobs"].as_array().cloned().unwrap_or_default()
}

#[test]
fn an_expired_point_is_soft_deleted_and_the_last_good_one_stays() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    for _ in 0..3 {
        agent.cli(&["backup", "shop", "--wait"]).success();
    }
    let points = agent.points("shop");
    assert_eq!(points.len(), 3);
    agent.restart();
    assert!(deletions(&agent).is_empty(), "nothing is old enough");

    // Older than any rule of the policy.
    agent.terminate();
    aging::points(&agent, 4000);
    aging::runs(&agent);
    agent.start();
    wait_for("the oldest point's deletion", Duration::from_secs(30), || {
        let jobs = deletions(&agent);
        (jobs.len() == 1 && jobs[0]["status"] == "Completed").then_some(())
    });
    // One of three: a run deletes a tenth, and one at least. The oldest goes first.
    assert_eq!(deletions(&agent)[0]["scheduled"], true);
    let left = agent.points("shop");
    assert_eq!(left.iter().map(|point| &point["id"]).collect::<Vec<_>>(), [&points[0]["id"], &points[1]["id"]]);
    let deleted = agent.cli_json(&["point", "list", "shop", "--deleted"]).success().json();
    assert_eq!(deleted["points"][0]["id"], points[2]["id"]);
    assert!(deleted["points"][0]["purge_time"].is_string());

    // Starts within the hour are no runs.
    for _ in 0..2 {
        agent.restart();
        agent.cli(&["point", "verify", "shop", "--wait"]).success();
    }
    assert_eq!(deletions(&agent).len(), 1);

    // The next runs take the second, and never the last.
    restart_in_an_hour(&mut agent);
    wait_for("the second point's deletion", Duration::from_secs(30), || {
        (deletions(&agent).len() == 2 && agent.points("shop").len() == 1).then_some(())
    });
    restart_in_an_hour(&mut agent);
    agent.cli(&["point", "verify", "shop", "--wait"]).success();
    assert_eq!(agent.points("shop")[0]["id"], points[0]["id"]);
    assert_eq!(deletions(&agent).len(), 2);

    // A deletion by the agent is no other than a person's: it can be taken back.
    let oldest = points[2]["id"].as_str().expect("an id").to_owned();
    agent.cli(&["point", "undelete", "shop", &oldest, "--wait"]).success();
    assert_eq!(agent.points("shop").len(), 2);
}

/// What is purged goes by the clock that points expire by: one that has jumped ahead takes nothing that could still be brought back.
#[test]
fn a_prune_purges_by_the_clock_of_retention() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    // Of the clock, which this test sets.
    agent.expect_log("is not trusted");
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.cli(&["vault", "settings", "--soft-delete-days", "0"]).success();
    let old = agent.backup("shop").point_id().to_owned();
    agent.backup("shop");
    // The first run of retention over the instance.
    agent.restart();
    agent.cli(&["point", "delete", "shop", &old, "--yes", "--wait"]).success();
    // Retention may be at work with a prune of its own.
    let purged = |agent: &Agent| {
        wait_for("the prune's turn", Duration::from_secs(30), || {
            let reply = agent.cli_json(&["vault", "prune", "shop", "--wait"]);
            let busy = reply.stderr.contains("MaintenanceBusy");
            (!busy).then(|| number(&reply.success().json()["jobs"][0]["prune_report"]["points_purged"]))
        })
    };
    wait_for_a_run(&agent);
    agent.terminate();
    // As if the machine had been off for a month, or its clock had jumped by one: by the trusted clock the point's time has not come.
    aging::expiry_clocks(&agent, 30);
    agent.start();
    wait_for_a_run(&agent);
    assert_eq!(purged(&agent), 0);
    let deleted = |agent: &Agent| {
        let points = agent.cli_json(&["point", "list", "shop", "--deleted"]).success().json();
        points["points"][0]["id"].as_str().map(str::to_owned)
    };
    assert_eq!(deleted(&agent), Some(old));
    agent.terminate();
    aging::expiry_clocks(&agent, -30);
    agent.start();
    purged(&agent);
    assert_eq!(deleted(&agent), None, "it is purged, by this prune or by retention's own");
}

/// Until retention has looked at the instance in this life of the agent.
fn wait_for_a_run(agent: &Agent) {
    let catalog = agent.state_dir().join("catalog.sqlite");
    let ran = || {
        let catalog = rusqlite::Connection::open(&catalog).expect("the catalog opens");
        let sql = "select max(time) from expiry_clocks";
        let last = catalog.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).expect("the table");
        last.is_some_and(|last| jiff::Timestamp::now().as_microsecond() - last < 3_600_000_000)
    };
    wait_for("a run of retention", Duration::from_secs(30), || ran().then_some(()));
}
