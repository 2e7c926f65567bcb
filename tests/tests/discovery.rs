//! What there is in a subscription: its servers over (a fake) Azure Resource Manager, their databases over real logins; and where files
//! can be restored to.

use serde_json::{Value, json};
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::azurite;
use vaultferry_tests::fake_arm::{CORRELATION_ID, FakeArm, Fault, GROUP, SUBSCRIPTION, TOKEN};
use vaultferry_tests::postgres::Server;

fn agent(arm: &FakeArm, setup: Setup) -> Agent {
    setup.env("VAULTFERRY_RESOURCE_MANAGER", &arm.endpoint()).env("ARM_TOKEN", TOKEN).start()
}

/// What every question to the subscription says.
const ASK: [&str; 4] = ["--subscription", SUBSCRIPTION, "--azure-identity", "env:ARM_TOKEN"];

#[track_caller]
fn array(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value:#}")).clone()
}

/// The words that find the subscription's servers, which all listen on this server's port.
fn discover(server: &Server) -> Vec<String> {
    let passfile = server.passfile_for_anything().display().to_string();
    let port = server.port().to_string();
    let login = ["--user", "postgres", "--port", &port, "--sslmode", "disable", "--passfile", &passfile];
    let words: Vec<&str> = [&["discover", "postgres"], &ASK[..], &login[..]].concat();
    words.into_iter().map(str::to_owned).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn the_servers_of_a_subscription_are_found_over_all_pages_and_asked() {
    let (server, arm) = (Server::start(), FakeArm::start());
    server.create_database("shop");
    arm.add_server("west-stopped", "westeurope", "127.0.0.1", &json!({ "state": "Stopped" }));
    arm.add_server("far-away", "eastus", "127.0.0.1", &json!({}));
    arm.add_server("west-shop", "West Europe", "127.0.0.1", &json!({ "replicationRole": "Primary" }));
    arm.fail(&[Fault::Busy(1)]);
    let agent = agent(&arm, Setup::new().vault("region = \"westeurope\""));
    let command = discover(&server);
    let found = agent.cli_json(&words(&command)).success().json();
    let servers = array(&found["servers"]);
    let pick = |field: &str| -> Vec<Value> { servers.iter().map(|server| server[field].clone()).collect() };
    assert_eq!(pick("state"), ["Ready", "Ready", "Stopped"], "{found:#}");
    assert_eq!(pick("region"), ["eastus", "westeurope", "westeurope"]);
    let left_out = pick("left_out");
    assert!(left_out[0].as_str().is_some_and(|why| why.contains("eastus")), "{found:#}");
    assert_eq!(left_out[1], "");
    assert!(
        left_out[2].as_str().is_some_and(|why| why.contains("az postgres flexible-server start --ids")),
        "{found:#}"
    );
    // Only the one that runs beside the vault was logged in to.
    assert!(array(&servers[0]["sources"]).is_empty() && array(&servers[2]["sources"]).is_empty(), "{found:#}");
    assert!(servers[1]["version"].as_str().is_some_and(|version| version.starts_with("15.")), "{found:#}");
    let databases = array(&servers[1]["sources"]);
    let shop = databases.iter().find(|database| database["name"] == "shop").expect("the database");
    assert_eq!((&shop["state"], &shop["encoding"]), (&json!("NotProtected"), &json!("UTF8")), "{shop:#}");
    // Two pages of servers, and the first of them asked for twice.
    assert_eq!(arm.calls().len(), 3, "{:?}", arm.calls());

    let text = agent.cli(&words(&command)).success().stdout;
    for part in ["primary, Ready, westeurope", "left out: it is in eastus", "left out: it is Stopped", "not protected"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // Extensions are told when they are asked for.
    assert_eq!(shop["extensions"], json!([]), "{shop:#}");
    let mut with_extensions = command.clone();
    with_extensions.push("--extensions".to_owned());
    let found = agent.cli_json(&words(&with_extensions)).success().json();
    let databases = array(&found["servers"][1]["sources"]);
    assert!(databases.iter().all(|database| database["extensions"] == json!(["plpgsql 1.0"])), "{databases:#?}");
    assert!(agent.cli(&words(&with_extensions)).success().stdout.contains("EXTENSIONS"));
    // What was found is what can be protected.
    let passfile = server.passfile_for_anything().display().to_string();
    let source = shop["uri"].as_str().expect("a URI").to_owned();
    agent.cli_json(&["instance", "create", "--source", &source, "--passfile", &passfile]).success();
    let text = agent.cli(&words(&command)).success().stdout;
    assert!(text.contains("protected as shop"), "{text}");
    assert!(!agent.log().contains(TOKEN), "the token is in the log");
}

#[test]
fn one_server_that_cannot_be_asked_does_not_hide_the_others() {
    let (server, arm) = (Server::start(), FakeArm::start());
    arm.add_server("good", "westeurope", "127.0.0.1", &json!({}));
    // Nobody listens there; Azure says why.
    let private = json!({ "network": { "publicNetworkAccess": "Disabled" } });
    arm.add_server("private", "westeurope", "127.0.0.2", &private);
    let agent = agent(&arm, Setup::new());
    let reply = agent.cli_json(&words(&discover(&server)));
    reply.assert_failed("UserErrorMissingNetworkSecurityPermissions");
    let servers = array(&reply.json()["servers"]);
    assert_eq!(servers[0]["problem"], Value::Null, "{servers:#?}");
    assert!(!array(&servers[0]["sources"]).is_empty());
    let problem = &servers[1]["problem"];
    assert!(problem["message"].as_str().is_some_and(|message| message.contains("private networks")), "{problem:#}");
    assert!(problem["fix"].as_str().is_some_and(|fix| fix.contains("virtual network")), "{problem:#}");
    assert_eq!(servers[1]["state"], "Ready");
}

/// What a managed service keeps for itself is nobody's to back up; a database that is only called so is.
#[test]
fn a_managed_services_own_databases_are_left_out() {
    let server = Server::start();
    server.psql("postgres", "create role rdsadmin");
    for database in ["rdsadmin", "azure_sys"] {
        server.create_database(database);
    }
    server.psql("postgres", "alter database rdsadmin owner to rdsadmin");
    let agent = Setup::new().start();
    let (uri, passfile) = (server.uri("postgres"), server.passfile().display().to_string());
    let found = agent.cli_json(&["discover", "postgres", &uri, "--passfile", &passfile]).success().json();
    let databases = array(&found["servers"][0]["sources"]);
    let names: Vec<&Value> = databases.iter().map(|database| &database["name"]).collect();
    assert_eq!(names, ["azure_sys", "postgres"]);
}

/// The server's list is told, its databases' extensions are not: each says why, and the command fails.
#[test]
fn extensions_that_no_database_tells_are_a_failure_with_its_reason() {
    let server = Server::start();
    server.create_database("shop");
    // Whoever may connect is no obstacle in the server's list. The list itself is read in a template, which it leaves out.
    server.psql(
        "template1",
        "create role visitor login password 'a-password'; alter database shop connection limit 0;
         alter database postgres connection limit 0",
    );
    let agent = Setup::new().start();
    let passfile = agent.write("passfile-visitor", "*:*:*:*:a-password\n").display().to_string();
    let uri = format!("postgres://visitor@127.0.0.1:{}/template1", server.port());
    let list = ["discover", "postgres", &uri, "--passfile", &passfile];
    agent.cli_json(&list).success();
    let with_extensions = [&list[..], &["--extensions"]].concat();
    let reply = agent.cli_json(&with_extensions);
    reply.assert_failed("UserErrorServerConnectionClosed");
    assert!(reply.stderr.contains("none of its 2 databases"), "{}", reply.stderr);
    let databases = array(&reply.json()["servers"][0]["sources"]);
    for database in &databases {
        let why = database["extensions_problem"]["message"].as_str().unwrap_or_default();
        assert!(why.contains("too many connections for database"), "{database:#}");
    }
    let text = agent.cli(&with_extensions);
    assert_eq!(text.code, 1);
    assert!(text.stdout.contains("not known: UserErrorServerConnectionClosed"), "{}", text.stdout);
    // One that tells is enough.
    server.psql("template1", "alter database shop connection limit -1");
    let text = agent.cli(&with_extensions).success().stdout;
    assert!(text.contains("plpgsql 1.0") && text.contains("not known: "), "{text}");
}

#[test]
fn what_azure_refuses_has_a_reason_and_a_fix() {
    let (server, arm) = (Server::start(), FakeArm::start());
    let agent = agent(&arm, Setup::new().env("OLD_TOKEN", "an-old-token-of-somebody"));
    let command = discover(&server);
    let with = |name: &str, value: &str| -> Vec<String> {
        let place = command.iter().position(|word| word == name).expect("the flag") + 1;
        let mut changed = command.clone();
        changed[place] = value.to_owned();
        changed
    };
    arm.fail(&[Fault::Forbidden]);
    let reply = agent.cli_json(&words(&command));
    reply.assert_failed("UserErrorMSIMissingPermissions");
    assert!(reply.stderr.contains("az role assignment create") && reply.stderr.contains(CORRELATION_ID), "{reply:?}");
    agent.cli_json(&words(&with("--azure-identity", "env:OLD_TOKEN"))).assert_failed("UserErrorMSIMissingPermissions");
    let other = "00000000-0000-4000-8000-000000000000";
    agent.cli_json(&words(&with("--subscription", other))).assert_failed("AzureNotFound");
    let mut group = command.clone();
    group.extend(["--resource-group".to_owned(), "nowhere".to_owned()]);
    agent.cli_json(&words(&group)).assert_failed("AzureNotFound");
    arm.fail(&[Fault::Busy(3600)]);
    let reply = agent.cli_json(&words(&command));
    reply.assert_failed("AzureUnavailable");
    assert!(reply.stderr.contains("429") && reply.stderr.contains("3600"), "{reply:?}");
    let calls = arm.calls().len();
    for (name, value) in [
        ("--azure-identity", "env:NO_SUCH_VARIABLE"),
        ("--azure-identity", "env:LD_PRELOAD"),
        ("--azure-identity", "eyJ0-a-token-in-the-wrong-place"),
        ("--subscription", "shop"),
        ("--user", ""),
    ] {
        let reply = agent.cli_json(&words(&with(name, value)));
        reply.assert_failed("InvalidRequest");
        assert!(!format!("{reply:?}").contains("a-token-in"), "{reply:?}");
    }
    agent.cli_json(&words(&with("--sslmode", "sometimes"))).assert_failed("InvalidSource");
    assert_eq!(arm.calls().len(), calls, "wrong words are refused before anything is asked");
    // The group's own name, in another spelling, is the group.
    let mut group = command.clone();
    group.extend(["--resource-group".to_owned(), GROUP.to_uppercase()]);
    assert!(array(&agent.cli_json(&words(&group)).success().json()["servers"]).is_empty());
    assert!(agent.cli(&words(&group)).success().stdout.contains("There are no servers."));
    let log = agent.log();
    assert!(!log.contains(TOKEN) && !log.contains("an-old-token"), "a token is in the log");
}

#[test]
fn containers_of_a_subscription_are_found_over_all_pages() {
    let arm = FakeArm::start();
    arm.add_account("backups", "westeurope", &["db-1", "db-2", "db-3", "logs", "web"]);
    arm.add_account("archive", "eastus", &["db-old"]);
    let agent = agent(&arm, Setup::new());
    let ask = |more: &[&str]| {
        let found = agent.cli_json(&[&["discover", "containers"], &ASK[..], more].concat()).success().json();
        let uris = array(&found["containers"]).into_iter().map(|container| container["uri"].clone());
        uris.collect::<Vec<Value>>()
    };
    let all = ask(&[]);
    assert_eq!(all.len(), 6, "{all:?}");
    assert_eq!(all[0], "azure://archive/db-old");
    let before = arm.calls().len();
    assert_eq!(
        ask(&["--account", "backups", "--prefix", "db-"]),
        ["azure://backups/db-1", "azure://backups/db-2", "azure://backups/db-3"]
    );
    // The accounts, and two pages: Azure is asked for those names alone.
    assert_eq!(arm.calls().len() - before, 3, "{:?}", arm.calls());
    // An account that was deleted in between does not hide the other.
    arm.fail(&[Fault::Fine, Fault::Gone]);
    let left = ask(&[]);
    assert!(left == ["azure://archive/db-old"] || left == all[1..], "{left:?}");
    arm.fail(&[Fault::Fine, Fault::Gone]);
    let named = [&["discover", "containers"], &ASK[..], &["--account", "backups"]].concat();
    agent.cli_json(&named).assert_failed("AzureNotFound");
    let nobody = [&["discover", "containers"], &ASK[..], &["--account", "nobody"]].concat();
    agent.cli_json(&nobody).assert_failed("AzureNotFound");
    let text = agent.cli(&[&["discover", "containers"], &ASK[..]].concat()).success().stdout;
    assert!(text.contains("azure://backups/web") && text.contains("westeurope"), "{text}");
}

/// More than a list had room for once: names alone are kept of each page, and all of them are told.
#[test]
fn very_many_containers_are_found_page_by_page() {
    let arm = FakeArm::start();
    arm.pages_of(5000);
    let names: Vec<String> = (0..12_001).map(|number| format!("c-{number:06}")).collect();
    arm.add_account("backups", "westeurope", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let agent = agent(&arm, Setup::new());
    let found = agent.cli_json(&[&["discover", "containers"], &ASK[..]].concat()).success().json();
    let found = array(&found["containers"]);
    assert_eq!(found.len(), names.len());
    let told = found.iter().map(|container| container["name"].as_str().unwrap_or_default());
    assert!(told.eq(names.iter().map(String::as_str)), "they are in another order");
    // The accounts, and seven pages of 2,000 at most.
    assert_eq!(arm.calls().len(), 1 + 7, "{:?}", arm.calls());
}

#[test]
fn containers_of_an_account_are_listed_with_its_credential_and_without_the_vaults_own() {
    let azurite = azurite::Server::start();
    let vault = format!(
        "location = \"azure://{}/vault\"\n[vault.azure]\nendpoint = \"{}\"\ncredential = \"access-key\"\naccess_key_env = \"TEST_KEY\"",
        azurite.vault.name(),
        azurite.vault.endpoint_at(azurite.port())
    );
    let setup = Setup::new().vault(vault).env("TEST_KEY", azurite.vault.key()).env("OTHER_KEY", azurite.other.key());
    let mut agent = setup.prepare();
    agent.init_vault().success();
    agent.start();
    for container in ["db-restored", "logs"] {
        azurite.other.create_container(container);
    }
    azurite.vault.create_container("beside");
    let ask = |words: &[&str]| {
        let found = agent.cli_json(&[&["discover", "containers", "--account"], words].concat()).success().json();
        array(&found["containers"]).into_iter().map(|container| container["name"].clone()).collect::<Vec<Value>>()
    };
    let other = [azurite.other.name(), "--credential-env", "OTHER_KEY"];
    assert_eq!(ask(&other), ["db-restored", "logs"]);
    assert_eq!(ask(&[&other[..], &["--prefix", "db"]].concat()), ["db-restored"]);
    // The vault's own credential serves its own account.
    assert_eq!(ask(&[azurite.vault.name()]), ["beside"]);
    let refused = |words: &[&str], reason: &str| {
        agent.cli_json(&[&["discover", "containers", "--account"], words].concat()).assert_failed(reason);
    };
    refused(&[azurite.other.name()], "InvalidRequest");
    refused(&[azurite.other.name(), "--credential-env", "NO_SUCH_VARIABLE"], "InvalidRequest");
    refused(&[azurite.other.name(), "--credential-env", "TEST_KEY"], "UserErrorContainerNotAccessible");
    refused(&["No/Account"], "InvalidRequest");
}
