//! The way to the vault: by a proxy that demands a login, and what is told when it is not gone to its end.

use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::login_proxy::LoginProxy;
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{azurite, free_port, sample};

const LOGIN: &str = "kim:geh:eim";
/// The emulator's name, which only the proxy knows: names of this machine never take a proxy. It has no dot, so that the emulator finds
/// the account in the path.
const HOST: &str = "azurite-behind-a-proxy";

/// An agent whose vault is reached by the proxy alone.
fn setup(azurite: &azurite::Server, proxy: u16) -> Setup {
    let vault = format!(
        "location = \"azure://{0}/vault\"\n[vault.azure]\nendpoint = \"http://{HOST}:{1}/{0}\"\ncredential = \"access-key\"\n\
         access_key_env = \"TEST_KEY\"",
        azurite.vault.name(),
        azurite.port()
    );
    let network = format!(
        "[network]\nproxy = \"http://127.0.0.1:{proxy}\"\nproxy_credential_env = \"TEST_LOGIN\"\n[limits]\nstore_deadline = \"30s\"\n"
    );
    Setup::new().vault(vault).config(&network).env("TEST_KEY", azurite.vault.key())
}

fn check(agent: &Agent) -> vaultferry_tests::agent::Reply {
    agent.offline(&["agent", "network-check", "--region", "koreacentral"], b"")
}

#[test]
fn backups_and_restores_go_by_a_proxy_that_demands_a_login() {
    let (server, azurite) = (Server::start(), azurite::Server::start());
    sample::awkward(&server, "shop", 20);
    let proxy = LoginProxy::start(azurite.port(), LOGIN);
    let mut agent = setup(&azurite, proxy.port()).env("TEST_LOGIN", LOGIN).prepare();
    let reply = check(&agent).success();
    let steps = reply.json()["network"]["steps"].as_array().expect("steps").len();
    assert!(steps == 2 && reply.json()["network"]["failure"].is_null(), "{}", reply.stdout);
    agent.init_vault().success();
    agent.start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let before = contents(&server, "shop");
    let begin = proxy.seen().passed.len();
    let job = agent.backup("shop");
    let passed = proxy.seen().passed;
    let packs = passed[begin..].iter().filter(|seen| seen.starts_with("PUT ") && seen.contains("/repo/data/")).count();
    assert!(packs > 0, "the plugin's uploads take the agent's way: {passed:#?}");
    assert!(passed.iter().all(|seen| seen.contains(&format!(" http://{HOST}:"))), "{passed:#?}");
    agent.restore("shop", job.point_id(), &server, "back");
    assert_equal(&before, &contents(&server, "back"));
    assert_eq!(proxy.seen().refused, 0, "each question has the login at once");
    assert!(!agent.log().contains("geh:eim"), "the login is in the log");
}

#[test]
fn a_wrong_login_is_told_without_it() {
    let azurite = azurite::Server::start();
    let proxy = LoginProxy::start(azurite.port(), LOGIN);
    let agent = setup(&azurite, proxy.port()).env("TEST_LOGIN", "kim:falsch").prepare();
    let reply = agent.init_vault();
    assert!(
        reply.code == 1 && reply.stderr.contains("VaultUnavailable") && reply.stderr.contains("407"),
        "{}",
        reply.stderr
    );
    assert!(!reply.stderr.contains("falsch"), "{}", reply.stderr);
    let reply = check(&agent);
    reply.assert_failed("ExtensionSnapshotFailedNoNetwork");
    assert!(reply.stderr.contains("proxy: the proxy refuses the login"), "{}", reply.stderr);
    assert!(!format!("{}{}", reply.stdout, reply.stderr).contains("falsch"), "{}", reply.stderr);
    assert!(proxy.seen().passed.is_empty() && proxy.seen().refused >= 2, "{:?}", proxy.seen());
}

#[test]
fn a_missing_login_is_a_fault_of_the_configuration() {
    let azurite = azurite::Server::start();
    let agent = setup(&azurite, free_port()).prepare();
    let reply = agent.offline(&["agent", "check-config"], b"");
    assert!(reply.code == 78 && reply.stderr.contains("TEST_LOGIN"), "{}", reply.stderr);
}

#[test]
fn the_check_says_where_the_way_ends() {
    let closed = free_port();
    let vault = format!(
        "location = \"azure://account/vault\"\n[vault.azure]\nendpoint = \"http://127.0.0.1:{closed}/account\"\ncredential = \"sas\"\n"
    );
    // No credential is needed for the check, and the network is not the system's.
    let agent = Setup::new().vault(vault).config("[network]\nproxy = \"none\"\n").prepare();
    let reply = check(&agent);
    reply.assert_failed("ExtensionSnapshotFailedNoNetwork");
    assert!(
        reply.stderr.contains("TCP: the vault is not reached") && reply.stderr.contains("refuses"),
        "{}",
        reply.stderr
    );
    let told = reply.json();
    assert_eq!(told["network"]["failure"]["stage"], "TCP", "{told:#}");
    let folder = Setup::new().prepare();
    let reply = folder.offline(&["agent", "network-check"], b"").success();
    assert!(reply.json()["network"]["target"].is_null(), "{}", reply.stdout);
    let reply = folder.offline(&["agent", "network-check", "--vault", "azure://x"], b"");
    reply.assert_failed("InvalidRequest");
}
