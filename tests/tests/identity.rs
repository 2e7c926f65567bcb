//! Who logs in, and how: tokens of a (fake) managed identity and of a workload, a secret of a (fake) key vault, each
//! for discovery and for a backup, with what goes wrong by its name. And that no secret is left anywhere.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::imds::{CLIENT_ID, FakeAzure, Fault, KEY_VAULT, POSTGRES, TENANT_ID, TokenFront};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{free_port, random_hex, wait_for};

#[path = "support/shop.rs"]
mod shop;

use shop::{backup, discover, protect, shop};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// A server that takes tokens of the role `app`, and the agent of a machine with an identity.
struct World {
    agent: Agent,
    server: Server,
    azure: FakeAzure,
    front: TokenFront,
}

impl World {
    #[track_caller]
    fn new(setup: impl FnOnce(&FakeAzure) -> Setup) -> Self {
        let server = Server::start();
        shop(&server);
        let azure = FakeAzure::start();
        let front = TokenFront::start(&server, &azure, "app");
        let agent = setup(&azure).start();
        agent.create_policy("quiet");
        Self { server, azure, front, agent }
    }

    #[track_caller]
    fn on_a_machine() -> Self {
        Self::new(|azure| azure.machine(Setup::new()))
    }

    fn uri(&self) -> String {
        format!("postgres://app@127.0.0.1:{}/shop", self.front.port())
    }

    #[track_caller]
    fn restored_is_equal(&self) {
        self.agent.restore("shop", "latest", &self.server, "back");
        assert_equal(&contents(&self.server, "shop"), &contents(&self.server, "back"));
    }
}

/// Each login has a token of its own: the front takes none twice.
#[test]
fn a_managed_identity_gets_a_fresh_token_for_each_login() {
    let world = World::on_a_machine();
    let login = ["--identity", "managed"];
    let found = discover(&world.agent, &world.uri(), &login).success().json();
    assert_eq!(found["servers"][0]["sources"].as_array().map(Vec::len), Some(2), "{found:#}");
    let figures = || (world.azure.issued(POSTGRES).len(), world.azure.logins());
    let discovered = figures();
    assert!(discovered.0 >= 1 && discovered.0 == discovered.1, "each token is used, and once: {discovered:?}");
    protect(&world.agent, &world.uri(), &login).success();
    let protected = figures();
    assert!(protected.1 > discovered.1 && protected.0 == protected.1, "{protected:?}");
    world.agent.backup("shop");
    let backed_up = figures();
    // Somebody who watches pg_dump may come too late for the token to be used.
    assert!(backed_up.1 >= protected.1 + 2 && backed_up.0 >= backed_up.1, "the look, and pg_dump: {backed_up:?}");
    world.agent.cli_json(&["instance", "validate", "shop"]).success();
    assert!(figures().1 > backed_up.1);
    // IMDS is busy for a moment, and breaks; the next backup waits for it.
    world.azure.fail(&[Fault::Busy(1), Fault::Broken]);
    world.agent.backup("shop");
    world.restored_is_equal();
    // A restore logs in here and there, and pg_restore does.
    world.server.psql("postgres", "alter role app createdb");
    let target = format!("postgres://app@127.0.0.1:{}/", world.front.port());
    let into = ["--target", &target, "--database", "by_token", "--no-owner", "--identity", "managed", "--wait"];
    world.agent.cli_json(&[&["restore", "database", "shop"][..], &into].concat()).success().job().completed();
    assert_eq!(world.server.psql("by_token", "select count(*) from sales"), "1000");
    let questions = world.azure.questions();
    assert!(
        questions.iter().all(|question| question.starts_with("GET /metadata/") && !question.contains("client_id")),
        "{questions:?}"
    );
}

/// What a token is refused for, and a service that gives none, have names of their own; the instance stays and goes on.
#[test]
fn refused_and_missing_tokens_have_reasons() {
    let world = World::on_a_machine();
    let login = ["--identity", "managed"];
    world.azure.fail(&[Fault::Worthless]);
    let refused = discover(&world.agent, &world.uri(), &login);
    refused.assert_failed("UserErrorMSIMissingPermissions");
    assert!(refused.stderr.contains("pgaadauth_create_principal('app', false, false)"), "{}", refused.stderr);
    world.azure.fail(&[Fault::NoIdentity]);
    let refused = protect(&world.agent, &world.uri(), &login);
    refused.assert_failed("UserErrorMSIMissingPermissions");
    assert!(refused.stderr.contains("az vm identity assign"), "{}", refused.stderr);
    let other = format!("managed:{}", CLIENT_ID.replace('6', "7"));
    discover(&world.agent, &world.uri(), &["--identity", &other]).assert_failed("UserErrorMSIMissingPermissions");

    let known = format!("managed:{CLIENT_ID}");
    protect(&world.agent, &world.uri(), &["--identity", &known]).success();
    world.agent.expect_log("UserErrorMSIMissingPermissions");
    world.azure.fail(&[Fault::Worthless]);
    backup(&world.agent).assert_failed("UserErrorMSIMissingPermissions");
    // The look is let in, and nothing after it: pg_dump above all, whose refusal is in its own words.
    for text in ["pg_dump says", "UserErrorDBUserAuthFailed"] {
        world.agent.expect_log(text);
    }
    world.azure.fail(&[&[Fault::Fine][..], &[Fault::Worthless; 8]].concat());
    let refused = backup(&world.agent);
    let reasons = ["UserErrorDBUserAuthFailed", "UserErrorMSIMissingPermissions"];
    assert!(refused.code == 1 && reasons.iter().any(|reason| refused.stderr.contains(reason)), "{refused:?}");
    world.azure.fail_no_more();
    let before = world.azure.issued(POSTGRES).len();
    world.agent.backup("shop");
    assert!(world.azure.issued(POSTGRES).len() >= before + 2);

    // A token that would cross a network in the clear is not even asked for.
    let before = world.azure.questions().len();
    discover(&world.agent, "postgres://app@192.0.2.1/shop", &login).assert_failed("InvalidSource");
    assert_eq!(world.azure.questions().len(), before);
    // What is no identity is not repeated: it may be a password.
    let wrong = discover(&world.agent, &world.uri(), &["--identity", "hunter2"]);
    wrong.assert_failed("InvalidRequest");
    assert!(!wrong.stderr.contains("hunter2"), "{}", wrong.stderr);
}

/// Elsewhere than in Azure nobody answers.
#[test]
fn a_metadata_service_that_does_not_answer_has_a_reason() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let agent = Setup::new().env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &nobody).start();
    let lost = discover(&agent, "postgres://app@127.0.0.1:1/shop", &["--identity", "managed"]);
    lost.assert_failed("IdentityUnavailable");
    assert!(lost.stderr.contains(&nobody), "{}", lost.stderr);
}

/// A workload shows what its platform says of it, as it is at the moment.
#[test]
fn a_workload_logs_in_with_what_its_platform_says() {
    let files = Scratch::new("workload");
    let token_file = files.write("token", "not yet\n");
    let world = World::new(|azure| {
        Setup::new()
            .env("AZURE_AUTHORITY_HOST", &azure.url())
            .env("AZURE_TENANT_ID", TENANT_ID)
            .env("AZURE_CLIENT_ID", CLIENT_ID)
            .env("AZURE_FEDERATED_TOKEN_FILE", &token_file.display().to_string())
    });
    let login = ["--identity", "workload"];
    let refused = discover(&world.agent, &world.uri(), &login);
    refused.assert_failed("UserErrorMSIMissingPermissions");
    assert!(refused.stderr.contains("federated-credential") && !refused.stderr.contains("not yet"), "{refused:?}");
    files.write("token", &format!("{}\n", world.azure.assertion()));
    protect(&world.agent, &world.uri(), &login).success();
    world.agent.backup("shop");
    world.restored_is_equal();
    fs::remove_file(&token_file).expect("remove the token");
    world.agent.expect_log("InvalidConfiguration");
    backup(&world.agent).assert_failed("InvalidConfiguration");
}

/// The password of a role, in a key vault: read anew by each login, so that it may change.
#[test]
fn a_secret_of_a_key_vault_is_the_password() {
    let server = Server::start();
    shop(&server);
    let azure = FakeAzure::start();
    let agent = azure.machine(Setup::new()).start();
    agent.create_policy("quiet");
    let change = |password: &str| {
        server.psql("postgres", &format!("alter role postgres password '{password}'"));
        azure.set_secret("pg-backup", &format!("{password}\n"))
    };
    let first = server.password().to_owned();
    let address = azure.set_secret("pg-backup", &first);
    let identity = format!("key-vault:{address}");
    let login = ["--identity", identity.as_str()];
    discover(&agent, &server.uri("shop"), &login).success();
    protect(&agent, &server.uri("shop"), &login).success();
    agent.backup("shop");
    // The passfile of the test itself is of no use from here on.
    change(&random_hex(12));
    agent.backup("shop");
    assert!(azure.issued(POSTGRES).is_empty() && azure.issued(KEY_VAULT).len() >= 6);

    azure.fail(&[Fault::Fine, Fault::Forbidden]);
    let denied = discover(&agent, &server.uri("shop"), &login);
    denied.assert_failed("KeyVaultAccessDenied");
    assert!(denied.stderr.contains("Key Vault Secrets User"), "{}", denied.stderr);
    azure.fail(&[Fault::NoIdentity]);
    discover(&agent, &server.uri("shop"), &login).assert_failed("UserErrorMSIMissingPermissions");
    let elsewhere = format!("key-vault:{}", address.replace("pg-backup", "other"));
    discover(&agent, &server.uri("shop"), &["--identity", &elsewhere]).assert_failed("UserErrorDBUserAuthFailed");
    let evil = "key-vault:https://evil.example/secrets/x";
    let before = azure.questions().len();
    discover(&agent, &server.uri("shop"), &["--identity", evil]).assert_failed("InvalidRequest");
    assert_eq!(azure.questions().len(), before, "no token is asked for on behalf of somebody else's address");
    // A wrong secret is a wrong password.
    azure.set_secret("pg-backup", "wrong");
    agent.expect_log("UserErrorDBUserAuthFailed");
    backup(&agent).assert_failed("UserErrorDBUserAuthFailed");
}

/// A session of somebody else that holds a table, so that pg_dump waits and can be looked at.
struct Holder(Child);

impl Holder {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let mut psql = server.client("psql", "shop");
        psql.args(["-Xq"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = psql.spawn().expect("start psql");
        let stdin = child.stdin.as_mut().expect("stdin is a pipe");
        let sql = b"begin; lock table sales in access exclusive mode;\n";
        stdin.write_all(sql).and_then(|()| stdin.flush()).expect("psql reads");
        let held = "select exists (select from pg_locks where mode = 'AccessExclusiveLock' and granted and relation = 'sales'::regclass)";
        wait_for("the lock", SOON, || (server.psql("shop", held) == "t").then_some(()));
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// While a backup runs its password is in the environment of pg_dump, and in no argument; afterwards it is nowhere.
#[test]
fn no_secret_is_in_process_lists_logs_or_records() {
    let world = World::new(|azure| azure.machine(Setup::new()).env("VAULTFERRY_LOG", "debug"));
    protect(&world.agent, &world.uri(), &["--identity", "managed"]).success();
    let holder = Holder::of(&world.server);
    let job = world.agent.start_backup("shop");
    // The process is named so a moment after it was made.
    let environment = wait_for("pg_dump with a token", SOON, || {
        let dump = world.agent.clients("pg_dump").pop()?;
        let environment = fs::read(format!("/proc/{}/environ", dump.pid)).ok()?;
        holds(&environment, b"PGPASSWORD=").then_some(environment)
    });
    let issued = world.azure.issued(POSTGRES);
    assert!(issued.iter().any(|token| holds(&environment, token.as_bytes())), "the test looks at the right place");
    let tree = world.agent.tree();
    assert!(tree.len() >= 3, "agent, plugin, pg_dump: {tree:?}");
    for seen in &tree {
        let line = fs::read(format!("/proc/{}/cmdline", seen.pid)).unwrap_or_default();
        assert!(world.azure.issued(POSTGRES).iter().all(|token| !holds(&line, token.as_bytes())), "{seen:?}");
    }
    drop(holder);
    let ended = world.agent.wait_job_end(job.id()).completed();
    // And what is told of a failure.
    world.azure.fail(&[Fault::Worthless]);
    world.agent.expect_log("UserErrorMSIMissingPermissions");
    let failed = backup(&world.agent);
    failed.assert_failed("UserErrorMSIMissingPermissions");

    let issued = world.azure.issued(POSTGRES);
    assert!(issued.len() >= 4, "{} tokens", issued.len());
    let show = |command: &[&str]| world.agent.cli_json(command).success().stdout;
    let told = [
        ended.0.to_string(),
        failed.stdout,
        failed.stderr,
        show(&["job", "list"]),
        show(&["job", "show", job.id()]),
        show(&["instance", "show", "shop"]),
        show(&["point", "list", "shop"]),
        world.agent.log(),
    ];
    let mut files = Vec::new();
    files_below(world.agent.dir(), &mut files);
    assert!(files.len() > 10, "{files:?}");
    for token in &issued {
        // Its beginning, so that one that was cut is found, too.
        let token = &token[..60];
        for text in &told {
            assert!(!holds(text.as_bytes(), token.as_bytes()), "{text}");
        }
        for file in &files {
            // Sockets, and what ends meanwhile.
            let content = fs::read(file).unwrap_or_default();
            assert!(!holds(&content, token.as_bytes()), "{}", file.display());
        }
    }
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    // What is gone again is no place for a secret.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => files_below(&path, files),
            false if path.is_file() => files.push(path),
            false => {}
        }
    }
}
