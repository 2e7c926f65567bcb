//! The way of somebody new: what is there to protect, what does it lack, protected, and looked after; and servers whose databases are
//! protected by themselves.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use vaultferry_tests::agent::{Agent, Job, Reply, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::{binary, free_port, sample, wait_for};

/// Longest wait for what the agent does by itself at its start.
const SOON: Duration = Duration::from_secs(60);
const AWKWARD: &str = "Shop \"Ω\" 100% a/b?c#d 한글";

#[track_caller]
fn array(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value:#}")).clone()
}

#[track_caller]
fn texts(values: &[Value], field: &str) -> Vec<String> {
    values.iter().map(|value| value[field].as_str().unwrap_or_default().to_owned()).collect()
}

/// The names of all instances.
#[track_caller]
fn instances(agent: &Agent) -> Vec<String> {
    texts(&array(&agent.cli_json(&["instance", "list"]).success().json()["instances"]), "name")
}

#[track_caller]
fn configured(agent: &Agent, status: &str) -> Vec<Job> {
    let words = ["job", "list", "--operation", "ConfigureBackup", "--status", status];
    array(&agent.cli_json(&words).success().json()["jobs"]).into_iter().map(Job).collect()
}

/// The databases of the first server in an answer, by name.
#[track_caller]
fn database(list: &Value, name: &str) -> Value {
    let found = array(list).into_iter().find(|database| database["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {list:#}"))
}

/// A role that may read nothing but what it is granted, and its password file.
#[track_caller]
fn reader(server: &Server, agent: &Agent) -> PathBuf {
    server.psql("postgres", "create role reader login password 'reading'");
    agent.write("reader", &format!("127.0.0.1:{}:*:reader:reading\n", server.port()))
}

#[track_caller]
fn grant(server: &Server, database: &str) {
    server.psql(database, "grant select on all tables in schema public to reader");
}

#[test]
fn three_databases_are_found_mended_protected_and_looked_after() {
    let server = Server::start();
    let agent = Setup::new().start();
    let databases = ["orders", "shop", "stock"];
    databases.iter().for_each(|database| sample::random(&server, database, 1));
    server.psql(
        "postgres",
        "create database closed; create database private; revoke connect on database private from public",
    );
    server.psql("postgres", "alter database closed with allow_connections false");
    let passfile = reader(&server, &agent).display().to_string();
    ["shop", "stock"].iter().for_each(|database| grant(&server, database));
    let login = ["--passfile", &passfile];
    let uri = format!("postgres://reader@127.0.0.1:{}/", server.port());

    let discover = ["discover", "postgres", &uri, "--passfile", &passfile];
    let found = agent.cli_json(&discover).success().json()["servers"][0].clone();
    assert_eq!(texts(&array(&found["sources"]), "name"), ["closed", "orders", "postgres", "private", "shop", "stock"]);
    assert!(found["version"].as_str().is_some_and(|version| version.starts_with("15.")), "{found:#}");
    assert_eq!((&found["replica"], &found["problem"]), (&json!(false), &Value::Null), "{found:#}");
    let shop = database(&found["sources"], "shop");
    assert!(number(&shop["size_bytes"]) > 1_000_000, "{shop:#}");
    assert_eq!((&shop["encoding"], &shop["state"]), (&json!("UTF8"), &json!("NotProtected")), "{shop:#}");
    assert_eq!(shop["uri"], format!("{uri}shop"));
    for (name, statement) in
        [("closed", "ALTER DATABASE \"closed\""), ("private", "GRANT CONNECT ON DATABASE \"private\"")]
    {
        let source = database(&found["sources"], name);
        assert_eq!(source["state"], "CannotBeProtected", "{source:#}");
        assert!(source["problem"]["fix"].as_str().is_some_and(|fix| fix.contains(statement)), "{source:#}");
    }
    let text = agent.cli(&discover).success().stdout;
    assert!(text.contains("primary") && text.matches("not protected").count() == 4, "{text}");

    // One of three lacks a right: all are told, none is protected.
    let sources: Vec<String> = databases.iter().map(|name| format!("{uri}{name}")).collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let create = [&["instance", "create"], &login[..], &["--source"], &sources[..]].concat();
    let refused = agent.cli_json(&create);
    refused.assert_failed("UserErrorMissingDBPermissions");
    let told = refused.json();
    assert_eq!(texts(&array(&told["results"]), "state"), ["NotReady", "Ready", "Ready"], "{told:#}");
    let obstacle = &told["results"][0]["obstacles"][0];
    assert!(obstacle["fix"].as_str().is_some_and(|fix| fix.to_lowercase().contains("grant")), "{obstacle:#}");
    assert!(array(&told["instances"]).is_empty() && instances(&agent).is_empty());
    let failed = configured(&agent, "Failed");
    assert_eq!(failed.iter().map(|job| job.0["instance_name"].clone()).collect::<Vec<_>>(), ["orders"]);
    assert_eq!(failed[0].reason(), "UserErrorMissingDBPermissions");
    agent.cli_json(&["policy", "show", "Default"]).assert_failed("PolicyNotFound");
    let check = [&create[..], &["--check"]].concat();
    let text = agent.cli(&check);
    text.assert_failed("UserErrorMissingDBPermissions");
    assert!(text.stdout.contains("not ready") && text.stdout.contains("fix: "), "{}", text.stdout);
    assert_eq!(configured(&agent, "Failed").len(), 1, "a check leaves no job");

    // Mended, looked at again, protected, by the policy that nobody had to write.
    grant(&server, "orders");
    let ready = agent.cli_json(&check).success().json();
    assert_eq!(texts(&array(&ready["results"]), "state"), ["Ready"; 3], "{ready:#}");
    assert!(instances(&agent).is_empty());
    let made = agent.cli_json(&create).success().json();
    assert_eq!(texts(&array(&made["results"]), "instance"), databases, "{made:#}");
    assert_eq!((&made["policy"], &made["policy_created"]), (&json!("Default"), &json!(true)));
    assert_eq!(instances(&agent), databases);
    assert_eq!(configured(&agent, "Completed").len(), 3);
    let policy = agent.cli_json(&["policy", "show", "Default"]).success().json()["policy"].clone();
    assert_eq!((&policy["schedule"]["every"], &policy["rules"][0]["vault"]), (&json!("day"), &json!("P30D")));
    let text = agent.cli(&["instance", "list"]).success().stdout;
    assert_eq!(text.matches("Protected - (pending initial backup)").count(), 3, "{text}");
    let text = agent.cli(&discover).success().stdout;
    assert_eq!(text.matches("(pending initial backup)").count(), 3, "{text}");

    for database in databases {
        agent.backup(database);
    }
    let shown = agent.cli_json(&["instance", "show", "shop"]).success().json()["instance"].clone();
    assert_eq!((&shown["protection_state"], &shown["last_backup_status"]), (&json!("Protected"), &json!("Completed")));
    assert!(agent.cli(&discover).success().stdout.contains("protected as shop  "));

    // Another policy, looked at before; stopped, and protected again.
    agent.create_policy("quiet");
    let link = ["instance", "change-policy", "shop", "--policy", "quiet"];
    let preview = agent.cli_json(&[&link[..], &["--preview"]].concat()).success().json();
    assert_eq!((&preview["preview"], &preview["instance"]["policy"]), (&json!(true), &json!("Default")), "{preview:#}");
    agent.cli(&link).success();
    agent.cli(&["instance", "stop", "shop", "--retain-data"]).success();
    let shop = agent.cli_json(&discover).success().json()["servers"][0]["sources"].clone();
    assert_eq!(database(&shop, "shop")["protection_state_text"], "Stopped - (data retained)");
    let kept = contents(&server, "shop");
    agent.restore("shop", "latest", &server, "again");
    assert_equal(&kept, &contents(&server, "again"));
    agent.cli(&["instance", "resume", "shop"]).success();
    agent.backup("shop");

    // What is protected is not protected once more, and no error when only the rest was meant.
    agent.cli_json(&create).assert_failed("SourceAlreadyProtected");
    let again = agent.cli_json(&[&create[..], &["--only-ready"]].concat()).success().json();
    assert_eq!(texts(&array(&again["results"]), "state"), ["AlreadyProtected"; 3]);
    assert_eq!(texts(&array(&again["results"]), "instance"), databases);
    assert_eq!(instances(&agent), databases);
    assert_eq!((configured(&agent, "Completed").len(), configured(&agent, "Failed").len()), (4, 1));
}

#[test]
fn the_ready_ones_of_a_list_are_protected_and_each_other_one_is_told() {
    let server = Server::start();
    ["shop", AWKWARD].iter().for_each(|database| sample::random(&server, database, 1));
    let agent = Setup::new().start();
    agent.create_policy("quiet");
    let passfile = server.passfile_for_anything().display().to_string();
    let with_password = format!("postgres://postgres:secret-word@127.0.0.1:{}/shop", server.port());
    let list = [
        "# What the shop needs".to_owned(),
        format!("{}  # by its address", server.uri("shop")),
        format!("{}?sslmode=disable", server.uri("shop")),
        server.socket_uri("shop"),
        String::new(),
        with_password,
        server.uri("nowhere"),
        uri_for(free_port(), "shop"),
    ];
    let list = agent.write("list", &list.join("\n")).display().to_string();
    let create = ["instance", "create", "--policy", "quiet", "--passfile", &passfile, "--file", &list];
    for words in [&[][..], &["--check"]] {
        agent.cli_json(&[&create[..], words].concat()).assert_failed("SourceAlreadyProtected");
        assert!(instances(&agent).is_empty());
    }
    let reply = agent.cli_json(&[&create[..], &["--only-ready"]].concat());
    reply.assert_failed("SourceAlreadyProtected");
    let told = reply.json();
    let results = array(&told["results"]);
    let states = ["Ready", "NotReady", "Ready", "NotReady", "NotReady", "NotReady"];
    assert_eq!(texts(&results, "state"), states, "{told:#}");
    let reasons: Vec<Value> = results.iter().map(|result| result["obstacles"][0]["reason"].clone()).collect();
    let network = json!("UserErrorMissingNetworkSecurityPermissions");
    let expected = [json!("SourceAlreadyProtected"), json!("InvalidSource"), json!("UserErrorDBNotFound"), network];
    assert_eq!([&reasons[1], &reasons[3], &reasons[4], &reasons[5]], expected.each_ref(), "{told:#}");
    assert!(
        results.iter().all(|result| array(&result["obstacles"]).iter().all(|obstacle| obstacle["fix"] != "")),
        "{told:#}"
    );
    // Two databases of one name are told apart.
    assert_eq!(instances(&agent), ["shop", "shop-2"]);
    let text = agent.cli(&[&create[..], &["--only-ready"]].concat());
    assert!(text.stdout.contains("already protected as shop-2"), "{}", text.stdout);
    for output in [&reply.stdout, &reply.stderr, &text.stdout, &text.stderr, &agent.log()] {
        assert!(!output.contains("secret-word"), "{output}");
    }

    // What was discovered is what can be protected, whatever its name is.
    let server_uri = format!("postgres://postgres@127.0.0.1:{}/shop?sslmode=disable", server.port());
    let found = agent.cli_json(&["discover", "postgres", &server_uri, "--passfile", &passfile]).success().json();
    let awkward = database(&found["servers"][0]["sources"], AWKWARD);
    let source = awkward["uri"].as_str().expect("a source").to_owned();
    assert!(source.ends_with("?sslmode=disable"), "{source}");
    let made =
        agent.cli_json(&["instance", "create", "--source", &source, "--policy", "quiet", "--passfile", &passfile]);
    assert_eq!(made.success().json()["instances"][0]["name"], AWKWARD);
    agent.backup(AWKWARD);
    let found = agent.cli_json(&["discover", "postgres", &server_uri, "--passfile", &passfile]).success().json();
    assert_eq!(database(&found["servers"][0]["sources"], AWKWARD)["instance"], AWKWARD);
}

#[test]
fn a_server_that_cannot_be_asked_is_told_and_the_others_are_asked() {
    let server = Server::start();
    server.create_database("shop");
    let agent = Setup::new().start();
    let passfile = server.passfile_for_anything().display().to_string();
    let wrong = agent.write("wrong", &format!("127.0.0.1:{}:*:postgres:not-it\n", server.port())).display().to_string();
    let good = format!("postgres://postgres@127.0.0.1:{}", server.port());
    let nobody = format!("postgres://postgres@127.0.0.1:{}/", free_port());
    let network = "UserErrorMissingNetworkSecurityPermissions";
    for (uri, passfile, reason) in [
        (&nobody, &passfile, network),
        (&good, &wrong, "UserErrorDBUserAuthFailed"),
        (&format!("{good}/nowhere"), &passfile, "UserErrorDBNotFound"),
        (&good.replace("postgres@", "postgres:secret-word@"), &passfile, "InvalidSource"),
    ] {
        let reply = agent.cli_json(&["discover", "postgres", uri, "--passfile", passfile]);
        reply.assert_failed(reason);
        assert_eq!(reply.json()["servers"][0]["problem"]["reason"], reason);
        assert!(!format!("{reply:?}").contains("secret-word"), "{reply:?}");
        agent.cli_json(&["server", "add", uri, "--passfile", passfile]).assert_failed(reason);
    }
    assert!(array(&agent.cli_json(&["server", "list"]).success().json()["servers"]).is_empty());
    let list = agent.write("servers", &format!("# two\n{nobody}\n{good} # this one\n")).display().to_string();
    let both = agent.cli_json(&["discover", "postgres", "--file", &list, "--passfile", &passfile]);
    both.assert_failed(network);
    let servers = both.json()["servers"].clone();
    assert_eq!((&servers[0]["problem"]["reason"], &servers[1]["problem"]), (&json!(network), &Value::Null));
    assert_eq!(database(&servers[1]["sources"], "shop")["state"], "NotProtected");
    assert!(!agent.log().contains("secret-word"));
}

/// The server's databases as `server list` shows them: names and states.
#[track_caller]
fn states(agent: &Agent) -> Vec<(String, String)> {
    let server = agent.cli_json(&["server", "list"]).success().json()["servers"][0].clone();
    let databases = array(&server["databases"]);
    texts(&databases, "name").into_iter().zip(texts(&databases, "state")).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect()
}

#[test]
fn the_databases_of_a_server_are_protected_by_themselves() {
    let server = Server::start();
    ["shop", "tmp1"].iter().for_each(|database| server.create_database(database));
    let mut agent = Setup::new().start();
    let passfile = server.passfile().display().to_string();
    let uri = format!("postgres://postgres@127.0.0.1:{}/", server.port());
    let name = format!("127.0.0.1:{}", server.port());
    let add = ["server", "add", &uri, "--passfile", &passfile, "--exclude", "postgres", "--exclude", "tmp?"];
    let added = agent.cli_json(&add).success().json();
    assert_eq!((&added["server"]["name"], &added["server"]["policy"]), (&json!(name), &json!("Default")), "{added:#}");
    assert_eq!(added["policy_created"], true);
    let known = pairs(&[("postgres", "LeftOut"), ("shop", "Protected"), ("tmp1", "LeftOut")]);
    assert_eq!(states(&agent), known);
    assert_eq!(instances(&agent), ["shop"]);
    // The same again is no error, and changes nothing.
    let again = agent.cli_json(&add).success().json();
    assert_eq!((&again["server"]["id"], &again["policy_created"]), (&added["server"]["id"], &json!(false)));
    assert_eq!(again["server"]["create_time"], added["server"]["create_time"]);
    assert_eq!((states(&agent), instances(&agent).len()), (known, 1));

    // A new one is found by a scan, and by the agent itself at its start; each has its job.
    server.create_database("stock");
    agent.cli(&["server", "scan", &name]).success();
    assert_eq!(instances(&agent), ["shop", "stock"]);
    server.create_database("later");
    agent.restart();
    wait_for("the new database to be protected", SOON, || (instances(&agent).len() == 3).then_some(()));
    assert_eq!(instances(&agent), ["later", "shop", "stock"]);
    let jobs = configured(&agent, "Completed");
    assert!(jobs.len() == 3 && jobs.iter().all(|job| job.0["scheduled"] == true), "{jobs:#?}");
    agent.backup("later");

    // One that is not ready is told, and protected as soon as it is.
    server.psql("postgres", "create database closed; ");
    server.psql("postgres", "alter database closed with allow_connections false");
    agent.cli(&["server", "scan"]).success();
    let listed = agent.cli_json(&["server", "list"]).success().json()["servers"][0]["databases"].clone();
    let closed = database(&listed, "closed");
    assert_eq!(closed["state"], "NotReady", "{closed:#}");
    assert!(closed["problem"]["fix"].as_str().is_some_and(|fix| fix.contains("ALLOW_CONNECTIONS")), "{closed:#}");
    assert!(agent.cli(&["server", "list"]).success().stdout.contains("ALLOW_CONNECTIONS"));
    assert!(configured(&agent, "Failed").is_empty(), "a scan is no order that fails every hour");
    server.psql("postgres", "alter database closed with allow_connections true");
    agent.cli(&["server", "scan"]).success();
    assert_eq!(instances(&agent), ["closed", "later", "shop", "stock"]);

    // One that has gone stays protected, one that was stopped stays stopped, and nothing is protected twice.
    server.psql("postgres", "drop database stock");
    agent.cli(&["instance", "stop", "shop", "--retain-data"]).success();
    agent.cli(&["instance", "stop", "closed", "--delete-data", "--yes", "--wait"]).success();
    agent.cli(&["server", "scan"]).success();
    let expected = pairs(&[
        ("closed", "Protected"),
        ("later", "Protected"),
        ("postgres", "LeftOut"),
        ("shop", "Protected"),
        ("stock", "Missing"),
        ("tmp1", "LeftOut"),
    ]);
    assert_eq!(states(&agent), expected);
    assert_eq!(instances(&agent), ["later", "shop", "stock"]);
    let text = agent.cli(&["server", "list"]).success().stdout;
    assert!(text.contains("missing at the server") && text.contains("Stopped - (data retained), as shop"), "{text}");
    let in_use = agent.cli_json(&["policy", "delete", "Default"]);
    in_use.assert_failed("PolicyInUse");
    assert!(in_use.stderr.contains(&format!("the server {name}")), "{}", in_use.stderr);

    // The vault alone knows all of it.
    agent.cli(&["vault", "check", "--wait"]).success();
    agent.terminate();
    agent.offline(&["vault", "rebuild-catalog"], b"").success();
    agent.start();
    wait_for("the first scan", SOON, || (states(&agent) == expected).then_some(()));
    assert_eq!(instances(&agent), ["later", "shop", "stock"]);

    // Another answer of the server is not needed to leave it alone.
    let removed = agent.cli_json(&["server", "remove", &uri]).success().json();
    assert_eq!(removed["server"]["name"], name.as_str());
    server.create_database("after");
    agent.restart();
    agent.cli(&["server", "scan"]).success();
    assert_eq!(instances(&agent), ["later", "shop", "stock"]);
    for words in [&["server", "scan", &name][..], &["server", "remove", &name]] {
        agent.cli_json(words).assert_failed("ServerNotFound");
    }
}

#[test]
fn a_server_that_goes_away_is_told_and_what_it_has_stays_protected() {
    let mut server = Server::start();
    server.create_database("shop");
    let agent = Setup::new().start();
    let passfile = server.passfile().display().to_string();
    let uri = format!("postgres://postgres@127.0.0.1:{}/", server.port());
    agent.cli(&["server", "add", &uri, "--passfile", &passfile, "--include", "s*"]).success();
    server.stop();
    agent.expect_log("the server could not be scanned");
    let reason = "UserErrorMissingNetworkSecurityPermissions";
    agent.cli_json(&["server", "scan"]).assert_failed(reason);
    let listed = agent.cli_json(&["server", "list"]).success().json()["servers"][0].clone();
    assert_eq!(listed["problem"]["reason"], reason, "{listed:#}");
    assert!(listed["scan_time"].is_string(), "{listed:#}");
    assert_eq!(states(&agent), pairs(&[("postgres", "LeftOut"), ("shop", "Protected")]));
    server.restart();
    agent.cli(&["server", "scan"]).success();
    agent.backup("shop");
}

#[test]
fn a_server_that_does_not_answer_holds_up_no_other() {
    let server = Server::start();
    let mut agent = Setup::new().start();
    let passfile = server.passfile_for_anything().display().to_string();
    let proxies = [FaultProxy::start(server.port()), FaultProxy::start(server.port())];
    for proxy in &proxies {
        let uri = format!("postgres://postgres@127.0.0.1:{}/", proxy.port());
        agent.cli(&["server", "add", &uri, "--passfile", &passfile, "--exclude", "postgres"]).success();
    }
    // In the order in which they would be asked one after the other.
    let listed = servers(agent.cli_json(&["server", "list"]));
    let silent = proxies.iter().find(|proxy| listed[0]["name"] == format!("127.0.0.1:{}", proxy.port()));
    silent.expect("the first server has its proxy").set(Fault::BlackHole);
    server.create_database("later");
    agent.expect_log("the server could not be scanned");
    agent.restart();
    wait_for("the other server's database to be protected", SOON, || (instances(&agent) == ["later"]).then_some(()));
    let listed = servers(agent.cli_json(&["server", "list"]));
    // The silent one is still being asked.
    assert_eq!((&listed[0]["problem"], listed[0]["scan_time"].is_string()), (&Value::Null, false), "{listed:#?}");
    // `server scan` tells of each, after the same wait.
    agent.cli_json(&["server", "scan"]).assert_failed("UserErrorMissingNetworkSecurityPermissions");
    let listed = servers(agent.cli_json(&["server", "list"]));
    assert_eq!(database(&listed[1]["databases"], "later")["state"], "Protected", "{listed:#?}");
}

/// The agent is killed when the vault has the record and the catalog has not.
#[track_caller]
fn killed_when_recorded(agent: &mut Agent, words: &[&str]) {
    let step = "server-recorded";
    agent.set_env("VAULTFERRY_TEST_PAUSE_AT", step);
    agent.restart();
    let mut command = Command::new(binary());
    command.args(words).env("VAULTFERRY_ENDPOINT", format!("unix://{}/control.sock", agent.dir().display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = command.spawn().expect("the command starts");
    agent.wait_paused(step);
    // It would ask the next agent again.
    command.kill().expect("killed");
    command.wait().expect("gone");
    agent.kill9_all();
    agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
    agent.clear_pause(step);
    agent.start();
}

fn servers(reply: Reply) -> Vec<Value> {
    array(&reply.success().json()["servers"])
}

#[test]
fn a_killed_change_of_a_server_is_completed_by_the_next_start() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().start();
    let (name, passfile) = (format!("127.0.0.1:{}", server.port()), server.passfile().display().to_string());
    let uri = format!("postgres://postgres@{name}/");
    let first = ["server", "add", &uri, "--passfile", &passfile, "--exclude", "*"];
    // Of a new one nobody was told that it is a source, and it is none; adding it again goes on where it was.
    killed_when_recorded(&mut agent, &first);
    assert!(servers(agent.cli_json(&["server", "list"])).is_empty());
    agent.cli(&first).success();
    assert_eq!(servers(agent.cli_json(&["server", "list"]))[0]["exclude"], json!(["*"]));
    let second = ["server", "add", &uri, "--passfile", &passfile, "--exclude", "postgres"];
    killed_when_recorded(&mut agent, &second);
    assert_eq!(servers(agent.cli_json(&["server", "list"]))[0]["exclude"], json!(["postgres"]));
    wait_for("the database to be protected", SOON, || (instances(&agent) == ["shop"]).then_some(()));
    killed_when_recorded(&mut agent, &["server", "remove", &name]);
    assert!(servers(agent.cli_json(&["server", "list"])).is_empty());
    assert_eq!(instances(&agent), ["shop"]);
    agent.cli(&["vault", "check", "--wait"]).success();
}
