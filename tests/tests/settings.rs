//! The vault's settings, and holds that the storage itself keeps: in a folder, which can do little, and in a stand-in for Azure's Blob
//! service that knows versions, immutability and legal holds.

use std::fs;
use std::path::Path;

use secrecy::ExposeSecret as _;
use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::sample;

#[path = "../../vault/tests/support/fake_blob.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod fake_blob;

use fake_blob::FakeBlob;

fn settings(agent: &Agent, words: &[&str]) -> Reply {
    agent.cli_json(&[&["vault", "settings"], words].concat())
}

fn told(reply: Reply) -> Value {
    reply.success().json()["settings"].clone()
}

/// State, its days, soft-delete days, and the record's number.
#[track_caller]
fn assert_settings(settings: &Value, state: &str, days: u64, soft_delete_days: u64, version: u64) {
    let field = |name: &str| if settings[name].is_null() { 0 } else { number(&settings[name]) };
    let numbers = (field("immutability_days"), field("soft_delete_days"), field("version"));
    assert_eq!(
        (settings["immutability"].as_str(), numbers),
        (Some(state), (days, soft_delete_days, version)),
        "{settings:#}"
    );
}

fn records(vault: &Path) -> usize {
    fs::read_dir(vault.join("settings")).map(|dir| dir.count()).unwrap_or(0)
}

#[test]
fn a_folders_settings_are_shown_and_changed_as_far_as_a_folder_can() {
    let agent = Setup::new().start();
    let vault = agent.state_dir().join("vault");
    assert_settings(&told(settings(&agent, &[])), "Disabled", 0, 14, 0);
    let changed = told(settings(&agent, &["--soft-delete-days", "30"]));
    assert_settings(&changed, "Disabled", 0, 30, 1);
    assert!(changed["create_time"].is_string(), "{changed:#}");
    assert_settings(&told(settings(&agent, &["--soft-delete-days", "30"])), "Disabled", 0, 30, 1);
    assert_eq!(records(&vault), 1, "the same again writes nothing");
    assert_settings(&told(settings(&agent, &["--soft-delete-days", "0"])), "Disabled", 0, 0, 2);
    let shown = agent.cli_json(&["vault", "show"]).success().json();
    assert_eq!(shown["vault"]["immutability"], "Disabled", "{shown:#}");
    let text = agent.cli(&["vault", "settings"]).success().stdout;
    assert!(text.contains("soft delete") && text.contains("0 days") && text.contains("Disabled"), "{text}");

    let enable = ["--immutability", "enabled", "--immutability-days", "30"];
    let lock = ["--immutability", "locked", "--immutability-days", "30", "--yes"];
    for (words, reason) in [
        (&enable[..], "VaultUnsupported"),
        (&lock[..], "VaultUnsupported"),
        (&lock[..4], "InvalidRequest"),
        (&enable[..2], "InvalidRequest"),
        (&["--immutability-days", "30"][..], "InvalidRequest"),
        (&["--soft-delete-days", "181"][..], "InvalidRequest"),
    ] {
        let reply = settings(&agent, words);
        reply.assert_failed(reason);
        assert_settings(&told(settings(&agent, &[])), "Disabled", 0, 0, 2);
    }
    let unconfirmed = settings(&agent, &lock[..4]);
    assert!(unconfirmed.stderr.contains("irreversible") && unconfirmed.stderr.contains("--yes"), "{unconfirmed:?}");
    assert_eq!(records(&vault), 2);

    // Whatever this agent thinks of folders: what a record locks is locked.
    let locked = fs::read_to_string(vault.join("settings/0000000002.json")).expect("the record");
    let locked =
        locked.replace("\"disabled\"", "\"locked\"").replace("\"immutability_days\": 0", "\"immutability_days\": 30");
    fs::write(vault.join("settings/0000000003.json"), locked).expect("write");
    assert_settings(&told(settings(&agent, &[])), "Locked", 30, 0, 3);
    for words in [
        &["--immutability", "disabled"][..],
        &["--immutability", "enabled", "--yes"],
        &["--immutability-days", "29", "--yes"],
    ] {
        settings(&agent, words).assert_failed("VaultSettingsLocked");
    }
    assert_settings(&told(settings(&agent, &["--soft-delete-days", "7"])), "Locked", 30, 7, 4);
    let check = agent.cli_json(&["vault", "check", "--wait"]);
    assert_eq!(check.code, 0, "{check:?}");
}

/// An agent whose vault is in the stand-in.
fn agent_on(fake: &FakeBlob) -> Agent {
    let vault = format!(
        "location = \"azure://{}/vault\"\n[vault.azure]\nendpoint = \"{}\"\ncredential = \"access-key\"\naccess_key_env = \"TEST_KEY\"",
        fake_blob::ACCOUNT,
        fake.endpoint()
    );
    let mut agent = Setup::new().vault(vault).env("TEST_KEY", FakeBlob::key().expose_secret()).prepare();
    agent.init_vault().success();
    agent.start();
    agent
}

#[test]
fn holds_and_immutability_reach_the_storage() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let fake = runtime.block_on(FakeBlob::start(fake_blob::Account::default()));
    let server = Server::start();
    sample::random(&server, "shop", 2);
    let agent = agent_on(&fake);
    let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
    let container = format!("vault-{instance}");
    let held = contents(&server, "shop");
    let points: Vec<String> = (0..2).map(|_| agent.backup("shop").point_id().to_owned()).collect();
    let point = |words: &[&str], id: &str| agent.cli_json(&[&["point", words[0], "shop", id], &words[1..]].concat());
    let snapshot = |id: &str| format!("repo/snapshots/{id}");
    assert!(fake.on_hold(&container).is_empty());

    let told = point(&["hold", "--note", "audit"], &points[0]).success().json();
    assert_eq!(told["point"]["held"], true, "{told:#}");
    let of_first = fake.on_hold(&container);
    let packs = |files: &[String]| files.iter().filter(|file| file.starts_with("repo/data/")).count();
    assert!(packs(&of_first) >= 2 && of_first.contains(&snapshot(&points[0])), "{of_first:?}");
    point(&["hold", "--note", "audit"], &points[1]).success();
    let of_both = fake.on_hold(&container);
    assert!(of_both.contains(&snapshot(&points[1])));

    // The second point stands on the packs of the first one: they stay.
    let told = point(&["release"], &points[0]).success().json();
    assert!(!told["point"]["held"].as_bool().unwrap_or(false), "{told:#}");
    let of_second = fake.on_hold(&container);
    assert!(!of_second.contains(&snapshot(&points[0])) && of_second.contains(&snapshot(&points[1])), "{of_second:?}");
    assert!(packs(&of_second) >= 2 && of_second.len() < of_both.len(), "{of_second:?}");
    point(&["delete", "--yes", "--wait"], &points[1]).assert_failed("DataProtected");
    point(&["delete", "--yes", "--wait"], &points[0]).success();
    // What comes to a held point later is held by the job that brings it.
    assert!(!of_second.iter().any(|file| file.starts_with("archive/")), "{of_second:?}");
    point(&["archive", "--wait"], &points[1]).success();
    let with_copy = fake.on_hold(&container);
    let there = |prefix: &str| with_copy.iter().any(|file| file.starts_with(prefix));
    assert!(there(&format!("archive/{}", snapshot(&points[1]))) && there("archive/repo/data/"), "{with_copy:?}");
    point(&["release"], &points[1]).success();
    assert!(fake.on_hold(&container).is_empty(), "{:?}", fake.on_hold(&container));
    point(&["release"], &points[1]).success();

    // From now on, points have a date.
    assert_settings(
        &self::told(settings(&agent, &["--immutability", "enabled", "--immutability-days", "2"])),
        "Enabled",
        2,
        14,
        1,
    );
    let dated = agent.backup("shop").point_id().to_owned();
    // Dates are a matter of the store, which the next maintenance tells the catalog.
    agent.cli_json(&["vault", "check", "shop", "--wait"]).success();
    let shown = agent.cli_json(&["point", "show", "shop", &dated]).success().json();
    assert!(shown["point"]["immutable_until_time"].is_string(), "{shown:#}");
    point(&["delete", "--yes", "--wait"], &dated).assert_failed("DataProtected");
    settings(&agent, &["--immutability", "locked"]).assert_failed("InvalidRequest");
    assert_settings(&self::told(settings(&agent, &["--immutability", "locked", "--yes"])), "Locked", 2, 14, 2);
    settings(&agent, &["--immutability", "disabled"]).assert_failed("VaultSettingsLocked");
    agent.restore("shop", &dated, &server, "back");
    assert_equal(&held, &contents(&server, "back"));
}
