//! Bad input and broken surroundings: a named reason, a fix, exit code 1, and nothing half-done in sight.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vaultferry_tests::agent::{Agent, Reply, Setup};
use vaultferry_tests::postgres::{BIN_DIR, Server, uri_for};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::tmpfs::Tmpfs;
use vaultferry_tests::{free_port, process, sample};

fn protect(agent: &Agent, source: &str, passfile: &Path) -> Reply {
    agent.create_policy("quiet");
    let passfile = passfile.display().to_string();
    agent.cli_json(&["instance", "create", "--source", source, "--policy", "quiet", "--passfile", &passfile])
}

fn nothing_is_protected(agent: &Agent) {
    let json = agent.cli_json(&["instance", "list"]).success().json();
    assert_eq!(json["instances"].as_array().map(Vec::len), Some(0), "{json:#}");
}

#[test]
fn sources_that_cannot_be_protected() {
    let server = Server::start();
    server.create_database("shop");
    let agent = Setup::new().start();
    let refused = free_port();
    let wrong = agent.write("wrong", &format!("127.0.0.1:{}:*:postgres:not-it\n", server.port()));
    let passfile = server.passfile_for_anything();
    let passfile = passfile.as_path();
    let with_password = format!("postgres://postgres:secret-word@127.0.0.1:{}/shop", server.port());
    let network = "UserErrorMissingNetworkSecurityPermissions";
    for (source, passfile, reason) in [
        ("postgres://postgres@no-such-host.invalid:5432/shop".to_owned(), passfile, network),
        (uri_for(refused, "shop"), passfile, network),
        (server.uri("shop"), wrong.as_path(), "UserErrorDBUserAuthFailed"),
        (server.uri("nowhere"), passfile, "UserErrorDBNotFound"),
        (with_password, passfile, "InvalidSource"),
        ("mysql://root@127.0.0.1/shop".to_owned(), passfile, "InvalidSource"),
    ] {
        let reply = protect(&agent, &source, passfile);
        reply.assert_failed(reason);
        assert!(!reply.stderr.contains("secret-word") && !reply.stderr.contains("not-it"), "{}", reply.stderr);
        nothing_is_protected(&agent);
    }
    let log = agent.log();
    assert!(!log.contains("secret-word") && !log.contains(server.password()), "a password is in the log");
    // All sources or none.
    agent.create_policy("other");
    let passfile = passfile.display().to_string();
    let both = ["--source", &server.uri("shop"), "--source", &server.uri("nowhere"), "--passfile", &passfile];
    agent
        .cli_json(&[&["instance", "create", "--policy", "other"], &both[..]].concat())
        .assert_failed("UserErrorDBNotFound");
    nothing_is_protected(&agent);
    let unknown = ["instance", "create", "--source", &server.uri("shop"), "--policy", "none", "--passfile", &passfile];
    agent.cli_json(&unknown).assert_failed("PolicyNotFound");
    agent.cli_json(&["backup", "nobody"]).assert_failed("InstanceNotFound");
}

#[test]
fn a_server_newer_than_every_client() {
    let server = Server::start();
    server.create_database("shop");
    let scratch = Scratch::new("old-client");
    for program in ["pg_dump", "pg_restore"] {
        let path = scratch.write(program, &format!("#!/bin/sh\necho '{program} (PostgreSQL) 9.6.24'\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }
    let agent = Setup::new().config(&format!("[postgres]\nclient_dirs = [\"{}\"]\n", scratch.path().display())).start();
    let reply = protect(&agent, &server.uri("shop"), server.passfile());
    reply.assert_failed("ClientTooOld");
    assert!(reply.stderr.contains("15"), "the server's version is not told: {}", reply.stderr);
    nothing_is_protected(&agent);
}

#[test]
fn no_client_at_all() {
    let server = Server::start();
    server.create_database("shop");
    let scratch = Scratch::new("no-client");
    let agent = Setup::new().config(&format!("[postgres]\nclient_dirs = [\"{}\"]\n", scratch.path().display())).start();
    protect(&agent, &server.uri("shop"), server.passfile()).assert_failed("ClientNotFound");
    nothing_is_protected(&agent);
}

#[test]
fn sources_that_break_later() {
    let mut server = Server::start();
    sample::awkward(&server, "shop", 1);
    let agent = Setup::new().start();
    let passfile = agent.write("passfile", &fs::read_to_string(server.passfile()).expect("the password file"));
    agent.protect("shop", &server.uri("shop"), &passfile);
    let backup_fails = |reason: &str| {
        agent.expect_log(reason);
        agent.cli_json(&["backup", "shop", "--wait"]).assert_failed(reason);
        assert!(agent.points("shop").is_empty());
    };
    server.psql("postgres", "alter role postgres password 'changed'");
    backup_fails("UserErrorDBUserAuthFailed");
    server.stop();
    backup_fails("UserErrorMissingNetworkSecurityPermissions");
    server.restart();
    let line = format!("127.0.0.1:{}:*:postgres:changed\n", server.port());
    fs::write(&passfile, &line).expect("write the new password");
    fs::write(server.passfile(), &line).expect("write the new password");
    agent.backup("shop");
    server.psql("postgres", "drop database shop");
    agent.expect_log("UserErrorDBNotFound");
    agent.cli_json(&["backup", "shop", "--wait"]).assert_failed("UserErrorDBNotFound");
    assert_eq!(agent.points("shop").len(), 1);
}

/// pg_dump fails in the middle: its own words are told.
#[test]
fn a_user_without_rights_and_a_dump_that_fails() {
    let server = Server::start();
    server.create_database("shop");
    server.psql("shop", "create table secret (n integer); create role weak login password 'weak'");
    let agent = Setup::new().start();
    let passfile = agent.write("weak", &format!("127.0.0.1:{}:*:weak:weak\n", server.port()));
    let source = format!("postgres://weak@127.0.0.1:{}/shop", server.port());
    for text in ["UserErrorMissingDBPermissions", "DumpFailed"] {
        agent.expect_log(text);
    }
    let reply = protect(&agent, &source, &passfile);
    let reply = if reply.code == 0 { agent.cli_json(&["backup", "shop", "--wait"]) } else { reply };
    reply.assert_failed("UserErrorMissingDBPermissions");
    assert!(reply.stderr.contains("secret"), "pg_dump's words are not told: {}", reply.stderr);
}

#[test]
fn restore_targets_that_are_refused() {
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    server.create_database("there");
    server.psql("there", "create table mine (n integer); insert into mine values (7)");
    let before = server.databases();
    for reason in
        ["UserErrorDatabaseNameAlreadyInUse", "UserErrorMissingNetworkSecurityPermissions", "UserErrorDBUserAuthFailed"]
    {
        agent.expect_log(reason);
    }
    let restore = |port: u16, passfile: &Path, name: &str| agent.try_restore("shop", "latest", port, passfile, name);
    restore(server.port(), server.passfile(), "there").assert_failed("UserErrorDatabaseNameAlreadyInUse");
    // The source itself is never overwritten.
    restore(server.port(), server.passfile(), "shop").assert_failed("UserErrorDatabaseNameAlreadyInUse");
    assert_eq!(server.psql("there", "select n from mine"), "7");
    restore(free_port(), &server.passfile_for_anything(), "new")
        .assert_failed("UserErrorMissingNetworkSecurityPermissions");
    let wrong = agent.write("wrong", &format!("127.0.0.1:{}:*:postgres:not-it\n", server.port()));
    restore(server.port(), &wrong, "new").assert_failed("UserErrorDBUserAuthFailed");
    agent.try_restore("shop", "ffffffffff", server.port(), server.passfile(), "new").assert_failed("PointNotFound");
    assert_eq!(server.databases(), before);
}

/// A server without the roles: refused by name, with nothing left there; without owners it works.
#[test]
fn roles_that_are_missing_at_the_target() {
    let (server, other) = (Server::start(), Server::start());
    sample::awkward(&server, "shop", 1);
    // A policy names its role even without owners and privileges.
    server.psql("shop", "drop policy \"own rows\" on watched");
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    for text in ["RolesMissing", "pg_restore"] {
        agent.expect_log(text);
    }
    agent.try_restore("shop", "latest", other.port(), other.passfile(), "shop").assert_failed("RolesMissing");
    assert!(other.databases().is_empty(), "{:?}", other.databases());
    let (target, passfile) =
        (format!("postgres://postgres@127.0.0.1:{}/", other.port()), other.passfile().display().to_string());
    let target = ["--target", &target, "--database", "shop", "--passfile", &passfile, "--no-owner", "--wait"];
    agent.cli_json(&[&["restore", "database", "shop"], &target[..]].concat()).success();
    let count = "select count(*) from sales";
    assert_eq!(server.psql("shop", count), other.psql("shop", count));
}

#[test]
fn a_vault_folder_that_cannot_be_written() {
    let mount = Tmpfs::new("size=64m");
    let folder = mount.as_ref().map_or_else(|| Scratch::new("read-only"), |_| Scratch::new("unused"));
    let path = mount.as_ref().map_or_else(|| folder.path().to_owned(), |mount| mount.path());
    let agent = Setup::new().vault(format!("location = \"{}/vault\"", path.display())).prepare();
    match &mount {
        Some(mount) => mount.remount("ro"),
        None => fs::set_permissions(&path, fs::Permissions::from_mode(0o500)).expect("close the folder"),
    }
    agent.init_vault().assert_failed("VaultNotWritable");
    match &mount {
        Some(mount) => mount.remount("rw"),
        None => fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("open the folder"),
    }
    assert!(!path.join("vault/vault.json").exists());
    agent.init_vault().success();
}

#[test]
fn a_vault_folder_that_is_full_or_becomes_read_only() {
    let Some(mount) = Tmpfs::new("size=24m") else {
        vaultferry_tests::measured("skipped: only root can mount a small file system");
        return;
    };
    let server = Server::start();
    sample::random(&server, "shop", 30);
    server.create_database("small");
    let mut agent = Setup::new().vault(format!("location = \"{}/vault\"", mount.path().display())).prepare();
    agent.init_vault().success();
    agent.start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.protect("small", &server.uri("small"), server.passfile());
    agent.backup("small");
    for text in ["VaultFull", "VaultNotWritable"] {
        agent.expect_log(text);
    }
    agent.cli_json(&["backup", "shop", "--wait"]).assert_failed("VaultFull");
    assert!(agent.points("shop").is_empty());
    mount.remount("size=200m");
    agent.backup("shop");
    mount.remount("ro");
    agent.cli_json(&["backup", "shop", "--wait"]).assert_failed("VaultNotWritable");
    mount.remount("rw");
    assert_eq!(agent.points("shop").len(), 1);
    agent.backup("shop");
    agent.terminate();
}

#[test]
fn a_vault_in_another_region() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().vault("region = \"koreacentral\"").prepare();
    agent.start();
    agent.create_policy("quiet");
    let passfile = server.passfile().display().to_string();
    let source = server.uri("shop");
    let create = ["instance", "create", "--source", &source, "--policy", "quiet", "--passfile", &passfile, "--region"];
    agent.cli_json(&[&create[..], &["koreasouth"]].concat()).assert_failed("RegionMismatch");
    nothing_is_protected(&agent);
    agent.cli_json(&[&create[..], &["koreacentral"]].concat()).success();
    let to = agent.dir().join("files").display().to_string();
    let files = ["restore", "files", "shop", "--to", &to, "--target-region", "koreasouth"];
    agent.cli_json(&files).assert_failed("RegionMismatch");
    let target = format!("postgres://postgres@127.0.0.1:{}/", server.port());
    let database = ["restore", "database", "shop", "--target", &target, "--database", "back", "--passfile", &passfile];
    agent.cli_json(&[&database[..], &["--target-region", "koreasouth"]].concat()).assert_failed("RegionMismatch");
}

#[test]
fn a_damaged_pack() {
    damaged(|repository| files(&repository.join("data")), "RepositoryDamaged");
}

#[test]
fn a_damaged_index() {
    damaged(|repository| files(&repository.join("index")), "RepositoryDamaged");
}

#[test]
fn a_damaged_snapshot() {
    damaged(|repository| files(&repository.join("snapshots")), "RepositoryDamaged");
}

/// Damages files of the instance's repository; a restore then fails by name and leaves no database.
fn damaged(choose: impl Fn(&Path) -> Vec<PathBuf>, reason: &str) {
    let server = Server::start();
    sample::awkward(&server, "shop", 2);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let before = server.databases();
    let repository = PathBuf::from(agent.export("shop").location());
    let chosen = choose(&repository);
    assert!(!chosen.is_empty());
    let damage = || {
        for path in &chosen {
            let mut bytes = fs::read(path).expect("read a file of the vault");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("open a file of the vault");
            fs::write(path, bytes).expect("damage a file of the vault");
        }
    };
    for text in [reason, "damaged"] {
        agent.expect_log(text);
    }
    damage();
    agent.try_restore("shop", "latest", server.port(), server.passfile(), "back").assert_failed(reason);
    assert_eq!(server.databases(), before);
    let to = agent.dir().join("files").display().to_string();
    agent.cli_json(&["restore", "files", "shop", "--to", &to, "--wait"]).assert_failed(reason);
    assert!(files(Path::new(&to)).is_empty());
    // The same bits once more: as it was.
    damage();
    agent.restore("shop", "latest", &server, "back");
}

/// All files below a folder; none when it is not there.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_configuration_with_faults() {
    let agent = Setup::new()
        .config("[limits]\njobs = 0\nno_such_key = 1\n[postgres]\nclient_dirs = [\"relative\"]\n")
        .prepare();
    let mut command = Command::new(vaultferry_tests::binary());
    command.args(["agent", "check-config", "--config"]).arg(agent.config_path());
    let output = process::run(&mut command, b"", Duration::from_secs(20));
    assert_eq!(output.code, 78, "{}", output.stderr);
    for fault in ["jobs", "no_such_key", "relative"] {
        let told = output.stderr.contains(fault) || (fault == "relative" && output.stderr.contains("client_dirs"));
        assert!(told, "{fault} is not told: {}", output.stderr);
    }
    let good = Setup::new().config(&format!("[postgres]\nclient_dirs = [\"{BIN_DIR}\"]\n")).prepare();
    let mut command = Command::new(vaultferry_tests::binary());
    command.args(["agent", "check-config", "--config"]).arg(good.config_path());
    process::run(&mut command, b"", Duration::from_secs(20)).success();
}

#[test]
fn an_agent_that_is_not_there() {
    let agent = Setup::new().prepare();
    agent.cli_json(&["summary"]).assert_failed("AgentUnreachable");
    assert_eq!(agent.cli(&["backup"]).code, 2);
}
