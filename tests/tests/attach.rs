//! The agent's machine is lost, and other turns that a vault outlives: a new owner, a new key, a lost catalog.

use std::fs;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::key_vault::{KeyVault, TOKEN};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::sample;
use vaultferry_tests::scratch::Scratch;

/// An agent whose vault lies outside of everything that belongs to its machine.
fn on(vault: &Scratch) -> Setup {
    Setup::new().vault(format!("location = \"{}\"", vault.join("vault").display()))
}

/// Makes the vault; its recovery key.
fn init(agent: &Agent) -> String {
    let made = agent.offline(&["vault", "init"], b"").success().json();
    made["recovery_key"].as_str().expect("a recovery key").to_owned()
}

/// Its state folder is locked: a fault of how it was called.
fn refused_while_it_runs(reply: &Reply) {
    assert_eq!(reply.code, 78, "{}", reply.stderr);
    assert!(
        reply.stderr.contains("InvalidConfiguration") && reply.stderr.contains("another agent"),
        "{}",
        reply.stderr
    );
}

/// What a rebuilt catalog must have, as people see it.
fn lists(agent: &Agent) -> Vec<Value> {
    let list = |command: &[&str]| agent.cli_json(command).success().json();
    let mut lists = vec![list(&["policy", "list"]), list(&["instance", "list"]), list(&["vault", "show"])];
    for instance in lists[1]["instances"].as_array_mut().expect("instances") {
        // Of jobs, which a vault does not know.
        for of_jobs in ["last_backup_time", "last_backup_status", "last_backup_status_text"] {
            instance.as_object_mut().expect("an instance").remove(of_jobs);
        }
    }
    lists[2]["vault"].as_object_mut().expect("a vault").remove("owner");
    // Other programs use the disk, too.
    lists[2]["vault"].as_object_mut().expect("a vault").remove("free_bytes");
    lists[2]["vault"]["keys"].as_object_mut().expect("keys").remove("place");
    for instance in lists[1]["instances"].as_array().expect("instances").clone() {
        lists.push(list(&["point", "list", instance["id"].as_str().expect("an id")]));
    }
    lists
}

#[test]
fn the_agents_machine_is_lost() {
    let server = Server::start();
    sample::awkward(&server, "shop", 30);
    server.create_database("other");
    let vault = Scratch::new("vault");
    let lost = on(&vault);
    let mut lost = lost.prepare();
    let recovery_key = init(&lost);
    lost.start();
    lost.protect("shop", &server.uri("shop"), server.passfile());
    lost.protect("other", &server.socket_uri("other"), &server.passfile_for_socket());
    lost.create_policy("not-linked");
    let first = contents(&server, "shop");
    let first_point = lost.backup("shop");
    server.psql("shop", "create table later (n integer); insert into later select generate_series(1, 1000)");
    let second = contents(&server, "shop");
    lost.backup("shop");
    let before = lists(&lost);
    assert_eq!(before[0]["policies"].as_array().map(Vec::len), Some(2), "{:#}", before[0]);
    // Catalog, journal, vault key, the agent's id: all of it is gone.
    drop(lost);

    let mut new = on(&vault).prepare();
    new.offline(&["vault", "attach"], b"").assert_failed("VaultKeyMissing");
    new.offline(&["vault", "attach", "--recovery-key-file", "-"], b"12345678-").assert_failed("VaultKeyWrong");
    let with_key: &[&str] = &["vault", "attach", "--recovery-key-file", "-"];
    new.offline(with_key, recovery_key.as_bytes()).assert_failed("VaultOwnedByOther");
    assert!(!new.state_dir().join("vault.key").exists(), "nothing is written before the takeover is asked for");
    let take_over = [with_key, &["--take-over"]].concat();
    for _ in 0..2 {
        let attached = new.offline(&take_over, recovery_key.as_bytes()).success();
        assert!(!format!("{attached:?}").contains(&recovery_key[..8]), "{attached:?}");
        let catalog = &attached.json()["catalog"];
        let counts = ["policies", "instances", "points"].map(|what| number(&catalog[what]));
        assert_eq!(counts, [2, 2, 2], "{catalog:#}");
        assert_eq!(catalog["problems"].as_array().map(Vec::len), Some(0), "{catalog:#}");
    }
    new.start();
    assert_eq!(lists(&new), before);
    let shown = new.cli_json(&["vault", "show"]).success().json();
    assert_eq!(shown["vault"]["owner"]["this_agent"], true, "{shown:#}");
    new.restore("shop", first_point.point_id(), &server, "first again");
    assert_equal(&first, &contents(&server, "first again"));
    new.restore("shop", "latest", &server, "second again");
    assert_equal(&second, &contents(&server, "second again"));
    new.backup("shop");
    let points = new.points("shop");
    let stored = |point: usize| number(&points[point]["stored_bytes"]);
    assert!(points.len() == 3 && stored(0) * 10 < stored(2), "not deduplicated: {points:#?}");
    new.export("shop").check();
}

#[test]
fn a_lost_catalog_is_made_again_and_the_old_one_kept() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let point = agent.backup("shop");
    let before = lists(&agent);
    refused_while_it_runs(&agent.offline(&["vault", "rebuild-catalog"], b""));
    agent.terminate();
    let rebuilt = agent.offline(&["vault", "rebuild-catalog"], b"").success().json();
    let kept = rebuilt["catalog"]["kept"].as_str().expect("the old catalog").to_owned();
    assert!(fs::metadata(&kept).expect("it is kept").len() > 0);
    agent.start();
    assert_eq!(lists(&agent), before);
    assert!(agent.cli_json(&["job", "list"]).success().json()["jobs"].as_array().expect("jobs").is_empty());
    // One that is no catalog any more is put aside too.
    agent.terminate();
    fs::write(agent.state_dir().join("catalog.sqlite"), b"not a catalog").expect("damaged");
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    assert_eq!(agent.points("shop")[0]["id"], point.point_id());
    agent.backup("shop");
}

#[test]
fn a_vault_has_one_agent() {
    let server = Server::start();
    sample::random(&server, "shop", 5);
    let vault = Scratch::new("vault");
    let mut first = on(&vault).env("VAULTFERRY_TEST_PAUSE_AT", "packs-verified").prepare();
    init(&first);
    first.start();
    first.protect("shop", &server.uri("shop"), server.passfile());
    let job = first.start_backup("shop");
    first.wait_paused("packs-verified");

    let second = on(&vault).prepare();
    fs::create_dir_all(second.state_dir()).expect("state folder");
    fs::copy(first.state_dir().join("vault.key"), second.state_dir().join("vault.key")).expect("the key is copied");
    second.offline(&["vault", "attach"], b"").assert_failed("VaultOwnedByOther");
    second.offline(&["vault", "attach", "--take-over"], b"").success();

    // The backup that was about to be committed is not, and no other begins.
    first.expect_log("VaultOwnedByOther");
    first.resume("packs-verified");
    let ended = first.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", "VaultOwnedByOther"), "{:#}", ended.0);
    assert!(first.points("shop").is_empty());
    let next = first.cli_json(&["backup", "shop", "--wait"]);
    assert_eq!(next.job().reason(), "VaultOwnedByOther", "{next:?}");
    let shown = first.cli_json(&["vault", "show"]).success().json();
    assert!(!shown["vault"]["owner"].get("this_agent").and_then(Value::as_bool).unwrap_or(false));

    let mut second = second;
    second.start();
    second.backup("shop");
    // The former owner starts and tells what it knows; it says whose the vault is.
    first.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    first.expect_log("belongs to the agent");
    first.restart();
    assert!(first.points("shop").is_empty());
}

#[test]
fn a_rotation_leaves_every_point_readable() {
    let server = Server::start();
    sample::awkward(&server, "shop", 2);
    let before = contents(&server, "shop");
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let recovery_file = agent.state_dir().join("recovery-key.txt");
    let old_recovery_key = fs::read_to_string(&recovery_file).expect("the default vault's recovery key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&recovery_file).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    refused_while_it_runs(&agent.offline(&["vault", "key", "rotate"], b""));
    // A recovery key is made while the agent runs, and the last one is not removed by a slip.
    let added = agent.offline(&["vault", "key", "add"], b"").success().json();
    let first = agent.offline(&["vault", "key", "list"], b"").success().json()["keys"]["recovery_keys"][0].clone();
    let id = |key: &Value| key["id"].as_str().expect("an id").to_owned();
    agent.offline(&["vault", "key", "remove", &id(&first)], b"").success();
    agent.offline(&["vault", "key", "remove", &id(&added)], b"").assert_failed("InvalidRequest");

    agent.terminate();
    let rotated = agent.offline(&["vault", "key", "rotate"], b"").success().json();
    assert_ne!(rotated["vault_key_id"], rotated["old_vault_key_id"]);
    let keys = agent.offline(&["vault", "key", "list"], b"").success().json()["keys"].clone();
    assert_eq!(keys["vault_key_id"], rotated["vault_key_id"], "{keys:#}");
    assert_eq!(keys["instances"][0]["vault_key_id"], rotated["vault_key_id"], "{keys:#}");
    assert_eq!(keys["recovery_keys"].as_array().map(Vec::len), Some(1), "{keys:#}");
    assert!(!recovery_file.exists(), "the old recovery key opens nothing any more");
    agent.start();
    agent.restore("shop", "latest", &server, "after");
    assert_equal(&before, &contents(&server, "after"));
    agent.backup("shop");
    agent.export("shop").check();

    agent.terminate();
    fs::remove_file(agent.state_dir().join("vault.key")).expect("the key file is lost");
    let attach: &[&str] = &["vault", "attach", "--recovery-key-file", "-"];
    agent.offline(attach, old_recovery_key.as_bytes()).assert_failed("VaultKeyWrong");
    agent.offline(attach, rotated["recovery_key"].as_str().expect("a key").as_bytes()).success();
    agent.start();
    assert_eq!(agent.points("shop").len(), 2);
}

#[test]
fn the_vault_key_in_key_vault() {
    let server = Server::start();
    server.create_database("shop");
    let key_vault = KeyVault::start();
    let vault = Scratch::new("vault");
    let toml = format!(
        "location = \"{}\"\n[vault.key]\nkey_vault = \"{}\"\ntoken_env = \"KEY_VAULT_TOKEN\"",
        vault.join("vault").display(),
        key_vault.key()
    );
    let mut agent = Setup::new().vault(&toml).env("KEY_VAULT_TOKEN", TOKEN).prepare();
    let recovery_key = init(&agent);
    assert!(!agent.state_dir().join("vault.key").exists());
    let calls = key_vault.calls().len();
    agent.start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    for _ in 0..2 {
        agent.backup("shop");
    }
    assert_eq!(key_vault.calls().len(), calls + 1, "one question in the life of the agent");
    assert!(!agent.log().contains(TOKEN));
    agent.terminate();
    key_vault.add_version();
    agent.offline(&["vault", "key", "rotate"], b"").success();
    agent.start();
    agent.export("shop").check();
    drop(agent);

    // Key Vault is gone; a machine with a key file and the newest recovery key is not stopped by that, but this key is of before.
    let new = on(&vault).prepare();
    let attach: &[&str] = &["vault", "attach", "--take-over", "--recovery-key-file", "-"];
    new.offline(attach, recovery_key.as_bytes()).assert_failed("VaultKeyWrong");
}

#[test]
fn an_upgrade_finds_nothing_to_do_in_a_new_vault() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.terminate();
    let steps = agent.offline(&["vault", "upgrade"], b"").success().json();
    let written: u64 = steps["steps"].as_array().expect("steps").iter().map(|step| number(&step["written"])).sum();
    assert_eq!(written, 0, "{steps:#}");
    // What an early version left out is filled in from the catalog.
    let instances = agent.state_dir().join("vault/instances");
    let instance = fs::read_dir(instances).expect("instances").next().expect("one").expect("entry").path();
    let record = instance.join("instance/0000000001.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&record).expect("the record")).expect("JSON");
    for new in ["login", "source_identity"] {
        assert!(json.as_object_mut().expect("a record").remove(new).is_some(), "{json:#}");
    }
    fs::write(&record, format!("{json:#}\n")).expect("as an early version wrote it");
    let steps = agent.offline(&["vault", "upgrade"], b"").success().json();
    assert_eq!(number(&steps["steps"][1]["written"]), 1, "{steps:#}");
    assert_eq!(number(&agent.offline(&["vault", "upgrade"], b"").success().json()["steps"][1]["written"]), 0);
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    agent.backup("shop");
}
