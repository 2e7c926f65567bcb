//! Points whose time is over are deleted by the agent itself, and the last good one is not.

use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{sample, wait_for};

#[path = "support/aging.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod aging;

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

    // The next runs take the second, and never the last.
    agent.restart();
    wait_for("the second point's deletion", Duration::from_secs(30), || {
        (deletions(&agent).len() == 2 && agent.points("shop").len() == 1).then_some(())
    });
    agent.restart();
    agent.cli(&["point", "verify", "shop", "--wait"]).success();
    assert_eq!(agent.points("shop")[0]["id"], points[0]["id"]);
    assert_eq!(deletions(&agent).len(), 2);

    // A deletion by the agent is no other than a person's: it can be taken back.
    let oldest = points[2]["id"].as_str().expect("an id").to_owned();
    agent.cli(&["point", "undelete", "shop", &oldest, "--wait"]).success();
    assert_eq!(agent.points("shop").len(), 2);
}
