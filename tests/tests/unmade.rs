//! An agent that is killed while it protects a source: the source is not protected, and the vault does not say so either.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{binary, sample};

const STEP: &str = "instances-recorded";

fn names(agent: &Agent) -> Vec<String> {
    let listed = agent.cli_json(&["instance", "list"]).success().json();
    let instances = listed["instances"].as_array().cloned().unwrap_or_default();
    instances.iter().map(|instance| instance["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_killed_protection_leaves_no_instance_in_the_catalog_or_in_the_vault() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut agent = Setup::new().start();
    agent.create_policy("nightly");
    agent.set_env("VAULTFERRY_TEST_PAUSE_AT", STEP);
    agent.restart();
    let passfile = server.passfile().display().to_string();
    let mut command = Command::new(binary());
    command.env("VAULTFERRY_ENDPOINT", format!("unix://{}/control.sock", agent.dir().display()));
    command.args([
        "instance",
        "create",
        "--source",
        &server.uri("shop"),
        "--policy",
        "nightly",
        "--name",
        "shop",
        "--passfile",
        &passfile,
    ]);
    let mut asking = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    agent.wait_paused(STEP);
    asking.kill().expect("killed");
    asking.wait().expect("gone");
    agent.kill9_all();
    agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    agent.clear_pause(STEP);
    let instances = agent.state_dir().join("vault/instances");
    assert_eq!(fs::read_dir(&instances).expect("a folder").count(), 1, "the vault has it already");

    // The next start takes it back, so that a rebuilt catalog does not think that it is protected.
    agent.start();
    assert!(names(&agent).is_empty());
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert!(names(&agent).is_empty());

    // The source is free, and the instance that it gets then is the one of a rebuilt catalog.
    let id = agent.protect("shop", &server.uri("shop"), server.passfile());
    let point = agent.backup("shop").point_id().to_owned();
    agent.terminate();
    let rebuilt = agent.offline(&["vault", "rebuild-catalog"], b"").success().json();
    assert_eq!(rebuilt["catalog"]["problems"].as_array().map(Vec::len), Some(0), "{rebuilt:#}");
    agent.start();
    assert_eq!(names(&agent), ["shop"]);
    let shown: Value = agent.cli_json(&["instance", "show", "shop"]).success().json();
    assert_eq!(shown["instance"]["id"], id.as_str());
    assert_eq!(agent.points("shop")[0]["id"], point.as_str());
}
