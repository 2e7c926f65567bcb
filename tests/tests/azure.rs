//! A vault on Azure Storage (Azurite), and its bad weather.

use std::time::{Duration, Instant};

use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::azurite;
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{measured, process, sample};

/// An agent whose vault is `azure://vaultaccount/vault`, reached through `port`.
/// An operation on the store is given up after `deadline_s` seconds.
fn agent(azurite: &azurite::Server, port: u16, deadline_s: u32) -> Agent {
    let vault = format!(
        "location = \"azure://{}/vault\"\n[vault.azure]\nendpoint = \"{}\"\ncredential = \"access-key\"\naccess_key_env = \"TEST_KEY\"",
        azurite.vault.name(),
        azurite.vault.endpoint_at(port)
    );
    let setup = Setup::new().vault(vault).config(&format!("[limits]\nstore_deadline = \"{deadline_s}s\"\n"));
    let mut agent = setup.env("TEST_KEY", azurite.vault.key()).env("OTHER_KEY", azurite.other.key()).prepare();
    agent.init_vault().success();
    agent.start();
    agent
}

/// The one container that holds an instance's repository.
fn instance_container(azurite: &azurite::Server, instance: &str) -> String {
    let containers = azurite.vault.containers();
    let found: Vec<&String> = containers.iter().filter(|name| *name != "vault").collect();
    assert_eq!(found, [&format!("vault-{instance}")], "{containers:?}");
    found[0].clone()
}

#[test]
fn two_backups_restore_equal_and_restic_reads_the_container() {
    let (server, azurite) = (Server::start(), azurite::Server::start());
    sample::awkward(&server, "shop", 40);
    let agent = agent(&azurite, azurite.port(), 60);
    let instance = agent.protect("shop", &server.uri("shop"), server.passfile());
    let first = contents(&server, "shop");
    let first_job = agent.backup("shop");
    server.psql("shop", "delete from sales where region = 'Jeju'; refresh materialized view monthly; update bulk set content = 'x' where id < 100");
    let second = contents(&server, "shop");
    let second_job = agent.backup("shop");
    agent.restore("shop", first_job.point_id(), &server, "one");
    assert_equal(&first, &contents(&server, "one"));
    agent.restore("shop", second_job.point_id(), &server, "two");
    assert_equal(&second, &contents(&server, "two"));

    let scratch = Scratch::new("container");
    azurite.vault.copy_out(&instance_container(&azurite, &instance), scratch.path());
    let export = agent.export("shop");
    assert!(export.location().starts_with(&format!("azure:vault-{instance}:")), "{}", export.location());
    let folder = export.location().rsplit(':').next().unwrap_or_default().trim_start_matches('/').to_owned();
    let copied = export.at(&scratch.join(&folder));
    copied.check();
    assert_eq!(copied.snapshots(), [first_job.point_id(), second_job.point_id()]);
    let archive = scratch.join("database.dump");
    copied.dump_to("latest", "/database.dump", &archive);
    process::run(server.client("pg_restore", "postgres").arg("-l").arg(&archive), b"", Duration::from_secs(60))
        .success();

    restore_files_to_the_other_account(&agent, &azurite, &std::fs::read(&archive).expect("the archive"));
}

fn restore_files_to_the_other_account(agent: &Agent, azurite: &azurite::Server, expected: &[u8]) {
    let files = |container: &str| {
        let to = format!("azure://{}/{container}", azurite.other.name());
        agent.cli_json(&["restore", "files", "shop", "--to", &to, "--credential-env", "OTHER_KEY", "--wait"])
    };
    agent.expect_log("UserErrorContainerNotAccessible");
    files("missing").assert_failed("UserErrorContainerNotAccessible");
    azurite.other.create_container("restored");
    files("restored").success().job().completed();
    assert!(azurite.other.get("restored", "database.dump") == expected, "not the bytes that restic reads");
    agent.expect_log("TargetExists");
    files("restored").assert_failed("TargetExists");
    let blobs = azurite.other.blobs("restored");
    let names: Vec<&str> = blobs.iter().map(|blob| blob.name.as_str()).collect();
    assert_eq!(names, ["database.dump", "database.json", "globals.sql"]);
}

/// A world behind a proxy, protected, with one good backup.
struct Weather {
    server: Server,
    azurite: azurite::Server,
    proxy: FaultProxy,
    agent: Agent,
}

impl Weather {
    fn new(megabytes: u32, deadline_s: u32) -> Self {
        let (server, azurite) = (Server::start(), azurite::Server::start());
        sample::random(&server, "shop", megabytes);
        let proxy = FaultProxy::start(azurite.port());
        let agent = agent(&azurite, proxy.port(), deadline_s);
        agent.protect("shop", &server.uri("shop"), server.passfile());
        for text in ["VaultUnavailable", "retr", "not available", "try"] {
            agent.expect_log(text);
        }
        Self { server, azurite, proxy, agent }
    }

    /// A backup under the fault fails by name within the deadline (8 s for each operation) and some patience; then it works again.
    fn fails_and_recovers(&self, fault: Fault) {
        self.proxy.set(fault);
        let started = Instant::now();
        self.agent.cli_json(&["backup", "shop", "--wait"]).assert_failed("VaultUnavailable");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(60), "it took {took:?}");
        self.proxy.set(Fault::None);
        assert!(self.agent.points("shop").is_empty());
        process::wait_gone(&self.agent.plugins(), Duration::from_secs(15));
        assert_eq!(self.server.sessions_of("pg_dump"), 0);
        self.works();
    }

    fn works(&self) {
        self.agent.backup("shop");
        assert_eq!(self.agent.points("shop").len(), 1);
        self.agent.restore("shop", "latest", &self.server, "back");
        let hash = "select count(*), md5(string_agg(md5(content), '' order by id)) from bulk";
        assert_eq!(self.server.psql("shop", hash), self.server.psql("back", hash));
    }
}

#[test]
fn a_store_that_refuses_connections() {
    Weather::new(20, 8).fails_and_recovers(Fault::Refuse);
}

#[test]
fn a_store_that_answers_503() {
    Weather::new(20, 8).fails_and_recovers(Fault::Http(503));
}

#[test]
fn a_store_that_does_not_answer() {
    Weather::new(20, 8).fails_and_recovers(Fault::BlackHole);
}

#[test]
fn a_store_that_resets_every_large_upload() {
    Weather::new(60, 8).fails_and_recovers(Fault::ResetAfter(1_000_000));
}

#[test]
fn a_fault_in_the_middle_that_passes_is_retried() {
    let weather = Weather::new(60, 60);
    let before = weather.proxy.bytes_from_client();
    let job = weather.agent.start_backup("shop");
    vaultferry_tests::wait_for("10 MB are uploaded", Duration::from_secs(60), || {
        (weather.proxy.bytes_from_client() > before + 10_000_000).then_some(())
    });
    for fault in [Fault::Refuse, Fault::Http(500), Fault::ResetAfter(100_000)] {
        weather.proxy.set(fault);
        std::thread::sleep(Duration::from_millis(700));
        weather.proxy.set(Fault::None);
        std::thread::sleep(Duration::from_millis(300));
    }
    weather.agent.wait_job_end(job.id()).completed();
    weather.agent.restore("shop", "latest", &weather.server, "back");
    assert_eq!(weather.azurite.vault.containers().len(), 2);
}

#[test]
fn a_slow_store_slows_the_dump_and_memory_stays_bounded() {
    let weather = Weather::new(200, 120);
    weather.proxy.set(Fault::Rate(1_000_000));
    let pid = weather.agent.pid();
    let job = weather.agent.start_backup("shop");
    let (mut peak, mut read) = (0, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        let plugins = weather.agent.plugins();
        let sum: u64 = plugins.iter().filter_map(|seen| process::peak_memory(seen.pid)).sum();
        peak = peak.max(sum + process::peak_memory(pid).unwrap_or(0));
        read = weather.agent.job(job.id()).progress("bytes_read");
        std::thread::sleep(Duration::from_millis(200));
    }
    measured(&format!("slow store: {} MB read in 20 s, peak {} MiB", read / 1_000_000, peak >> 20));
    assert!(read < 380_000_000, "pg_dump was not held back: {read} bytes read");
    assert!(peak < 300 << 20, "{} MiB", peak >> 20);
    weather.proxy.set(Fault::None);
    let ended = weather.agent.wait_job_end(job.id()).completed();
    assert!(number(&ended.0["progress"]["bytes_read"]) > 400_000_000);
}

#[test]
fn wrong_credentials_are_told_by_name() {
    let azurite = azurite::Server::start();
    let vault = format!(
        "location = \"azure://{}/vault\"\n[vault.azure]\nendpoint = \"{}\"\ncredential = \"access-key\"\naccess_key_env = \"TEST_KEY\"",
        azurite.vault.name(),
        azurite.vault.endpoint()
    );
    // The key of another account.
    let agent = Setup::new().vault(vault).env("TEST_KEY", azurite.other.key()).prepare();
    agent.init_vault().assert_failed("VaultAccessDenied");
    assert!(azurite.vault.containers().is_empty());
}
