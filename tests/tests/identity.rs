//! Who logs in, and how: tokens of a (fake) managed identity and of a workload, a secret of a (fake) key vault, certificates, SCRAM, and
//! libpq's TLS modes; each for discovery and for a backup, with what goes wrong by its name. And that no secret is left anywhere.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vaultferry_tests::agent::{Agent, Reply, Setup};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::imds::{CLIENT_ID, FakeAzure, Fault, KEY_VAULT, POSTGRES, TENANT_ID, TokenFront};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{free_port, process, random_hex, wait_for};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// Asks a server with these flags of the login.
fn discover(agent: &Agent, uri: &str, login: &[&str]) -> Reply {
    agent.cli_json(&[&["discover", "postgres", uri][..], login].concat())
}

fn protect(agent: &Agent, source: &str, login: &[&str]) -> Reply {
    let create = ["instance", "create", "--source", source, "--policy", "quiet", "--name", "shop"];
    agent.cli_json(&[&create[..], login].concat())
}

fn backup(agent: &Agent) -> Reply {
    agent.cli_json(&["backup", "shop", "--wait"])
}

/// The database `shop`, of one table.
#[track_caller]
fn shop(server: &Server) {
    server.create_database("shop");
    server.psql("shop", "create table sales (n integer); insert into sales select generate_series(1, 1000)");
}

// ---- identities

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

// ---- TLS

/// Authorities and certificates, made by openssl.
struct Certificates {
    scratch: Scratch,
}

impl Certificates {
    /// `ca` and `other-ca`; of `ca`: the servers `localhost` and `elsewhere.example`, the client `app`.
    #[track_caller]
    fn make() -> Self {
        let made = Self { scratch: Scratch::new("tls") };
        for authority in ["ca", "other-ca"] {
            // A configuration of its own: the system's adds extensions of which this one has some already.
            let config = format!(
                "[req]\ndistinguished_name = dn\nx509_extensions = v3\nprompt = no\n[dn]\nCN = {authority}\n[v3]\n\
                 basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\n"
            );
            made.scratch.write(&format!("{authority}.cnf"), &config);
            made.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -config {authority}.cnf -keyout \
                 {authority}.key -out {authority}.crt"
            ));
        }
        for (serial, name) in ["localhost", "elsewhere.example", "app"].into_iter().enumerate() {
            let usage = if name == "app" { "clientAuth" } else { "serverAuth" };
            made.scratch.write("leaf.ext", &format!("subjectAltName = DNS:{name}\nextendedKeyUsage = {usage}\n"));
            made.openssl(&format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config ca.cnf -subj /CN={name} -keyout {name}.key \
                 -out {name}.csr"
            ));
            made.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -set_serial {} -days 30 -extfile leaf.ext -out {name}.crt",
                serial + 1
            ));
            made.set_mode(&format!("{name}.key"), 0o600);
        }
        made
    }

    #[track_caller]
    fn openssl(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split_whitespace()).current_dir(self.scratch.path());
        process::run(&mut openssl, b"", SOON).success();
    }

    #[track_caller]
    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.scratch.join(name), fs::Permissions::from_mode(mode)).expect("change the mode");
    }

    fn path(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }
}

/// A server with TLS, and the agent that backs it up.
struct Secured {
    agent: Agent,
    server: Server,
    certificates: Certificates,
    passfile: String,
}

const PASSWORD: &str = "a-password";
/// `backup` has a password and TLS, `app` a certificate.
const RULES: &str = "hostssl all app 127.0.0.1/32 cert\nhostssl all backup 127.0.0.1/32 scram-sha-256\n";

impl Secured {
    #[track_caller]
    fn start() -> Self {
        let server = Server::start();
        shop(&server);
        for role in ["app", "backup"] {
            server.psql(
                "postgres",
                &format!("create role {role} login password '{PASSWORD}'; grant pg_read_all_data to {role}"),
            );
        }
        for setting in [
            "log_connections = on",
            "ssl = on",
            "ssl_cert_file = 'tls.crt'",
            "ssl_key_file = 'tls.key'",
            "ssl_ca_file = 'ca.crt'",
        ] {
            server.psql("postgres", &format!("alter system set {setting}"));
        }
        let agent = Setup::new().start();
        agent.create_policy("quiet");
        let passfile = agent.write("passfile", &format!("*:*:*:*:{PASSWORD}\n")).display().to_string();
        let mut secured = Self { server, certificates: Certificates::make(), agent, passfile };
        secured.serve("localhost", RULES);
        secured
    }

    /// Starts the server anew with that certificate, and these rules for `app` and `backup`; `postgres` has its password, as before.
    #[track_caller]
    fn serve(&mut self, name: &str, rules: &str) {
        let data_dir = self.server.data_dir();
        let owner = fs::metadata(&data_dir).expect("the data folder");
        for (from, to) in
            [("ca.crt", "ca.crt"), (&*format!("{name}.crt"), "tls.crt"), (&*format!("{name}.key"), "tls.key")]
        {
            let to = data_dir.join(to);
            fs::copy(self.certificates.path(from), &to).expect("copy a certificate");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("close the file");
            chown(&to, Some(owner.uid()), Some(owner.gid())).expect("give the file to the server's user");
        }
        let rules = format!("host all postgres 127.0.0.1/32 scram-sha-256\n{rules}");
        fs::write(data_dir.join("pg_hba.conf"), rules).expect("write pg_hba.conf");
        self.server.restart();
    }

    /// A URI whose host has the name in the certificate, or `127.0.0.1`, which is no name there.
    fn uri(&self, user: &str, host: &str, parameters: &str) -> String {
        let parameters = parameters.replace("<ca>", &self.certificates.path("ca.crt"));
        let parameters = parameters.replace("<other>", &self.certificates.path("other-ca.crt"));
        format!("postgres://{user}@{host}:{}/shop?{parameters}", self.server.port())
    }

    fn certificate(&self) -> [String; 4] {
        let (certificate, key) = (self.certificates.path("app.crt"), self.certificates.path("app.key"));
        ["--client-cert".to_owned(), certificate, "--client-key".to_owned(), key]
    }

    /// A backup, of which the server says how each session came: ours, and pg_dump's.
    #[track_caller]
    fn backup_is_encrypted(&self, encrypted: bool) {
        let log = || fs::read_to_string(self.server.data_dir().with_file_name("server.log")).expect("the server's log");
        let before = log().len();
        self.agent.backup("shop");
        let new = log().split_off(before);
        let is_login =
            |line: &&str| line.contains("connection authorized") && line.contains("application_name=vaultferry");
        let logins: Vec<&str> = new.lines().filter(is_login).collect();
        assert!(logins.len() >= 2, "{new}");
        assert!(logins.iter().all(|line| line.contains("SSL enabled") == encrypted), "{logins:#?}");
    }
}

/// Passwords and certificates over TLS that is checked: discovery, a backup, and what it restores.
#[test]
fn verified_tls_with_a_password_and_with_a_certificate() {
    let secured = Secured::start();
    let password = ["--passfile", secured.passfile.as_str()];
    let checked = secured.uri("backup", "localhost", "sslmode=verify-full&sslrootcert=<ca>");
    discover(&secured.agent, &checked, &password).success();
    protect(&secured.agent, &checked, &password).success();
    secured.backup_is_encrypted(true);
    secured.agent.restore("shop", "latest", &secured.server, "back");
    assert_equal(&contents(&secured.server, "shop"), &contents(&secured.server, "back"));

    let certificate = secured.certificate();
    let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
    let proven = secured.uri("app", "localhost", "sslmode=verify-full&sslrootcert=<ca>");
    let found = discover(&secured.agent, &proven, &certificate).success().json();
    let source = found["servers"][0]["sources"].as_array().and_then(|sources| {
        sources.iter().filter_map(|source| source["uri"].as_str()).find(|uri| uri.contains("/shop?"))
    });
    // What is discovered is what can be protected: the paths are in the URI.
    let source = source.expect("the database");
    assert!(source.contains("sslcert=") && source.contains("sslkey="), "{source}");
    let moved =
        secured.agent.cli_json(&[&["instance", "move", "shop", "--source", &proven][..], &certificate].concat());
    moved.success();
    secured.backup_is_encrypted(true);
    // libpq's rule for keys, in our connection and before pg_dump's.
    secured.certificates.set_mode("app.key", 0o644);
    let open = discover(&secured.agent, &proven, &certificate);
    open.assert_failed("UserErrorDBUserAuthFailed");
    assert!(open.stderr.contains("chmod 600"), "{}", open.stderr);
    secured.certificates.set_mode("app.key", 0o600);
}

/// Each mode does what it does in libpq; what is refused has its name, in discovery.
#[test]
fn tls_modes_are_libpqs_in_discovery() {
    let secured = Secured::start();
    let (password, certificate) = (["--passfile", secured.passfile.as_str()], secured.certificate());
    let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
    let good = "";
    let (tls, auth) = ("TlsFailed", "UserErrorDBUserAuthFailed");
    for (user, host, parameters, outcome) in [
        ("backup", "localhost", "", good),
        ("backup", "127.0.0.1", "sslmode=prefer", good),
        ("backup", "127.0.0.1", "sslmode=allow", good),
        ("backup", "127.0.0.1", "sslmode=require", good),
        ("backup", "127.0.0.1", "sslmode=verify-ca&sslrootcert=<ca>", good),
        ("backup", "localhost", "sslmode=verify-full&sslrootcert=<ca>", good),
        ("backup", "localhost", "sslmode=disable", auth),
        ("backup", "127.0.0.1", "sslmode=verify-full&sslrootcert=<ca>", tls),
        ("backup", "localhost", "sslmode=verify-full&sslrootcert=<other>", tls),
        ("backup", "localhost", "sslmode=verify-ca&sslrootcert=<other>", tls),
        // As libpq reads it: an authority makes `require` check.
        ("backup", "localhost", "sslmode=require&sslrootcert=<other>", tls),
        // No public authority has signed it.
        ("backup", "localhost", "sslmode=verify-full", tls),
        ("backup", "localhost", "sslmode=verify-ca", "InvalidSource"),
        ("app", "localhost", "sslmode=verify-full&sslrootcert=<ca>", auth),
        ("postgres", "127.0.0.1", "sslmode=disable", auth),
    ] {
        let uri = secured.uri(user, host, parameters);
        let reply = discover(&secured.agent, &uri, &password);
        match outcome {
            "" => drop(reply.success()),
            reason => reply.assert_failed(reason),
        }
    }
    let clear = discover(&secured.agent, &secured.uri("backup", "localhost", "sslmode=disable"), &password);
    assert!(clear.stderr.contains("sslmode=verify-full"), "{}", clear.stderr);
    let missing = secured.uri("app", "localhost", "sslmode=require");
    let missing = discover(&secured.agent, &missing, &password);
    assert!(missing.stderr.contains("--client-cert"), "{}", missing.stderr);
    // A certificate that might not be shown.
    let weak = secured.uri("app", "localhost", "sslmode=prefer");
    discover(&secured.agent, &weak, &certificate).assert_failed("InvalidSource");
}

/// The same for backups, of a source that was fine when it was protected.
#[test]
fn tls_modes_are_libpqs_in_backups() {
    let mut secured = Secured::start();
    secured.agent.expect_log("job failed");
    let password = ["--passfile".to_owned(), secured.passfile.clone()];
    let password = [password[0].as_str(), password[1].as_str()];
    // A copy that can be another authority's later.
    let trusted = secured.agent.write("trusted.crt", "");
    let trust = |secured: &Secured, authority: &str| {
        fs::copy(secured.certificates.path(&format!("{authority}.crt")), &trusted).expect("copy an authority");
    };
    trust(&secured, "ca");
    let checked = format!("sslmode=verify-full&sslrootcert={}", trusted.display());
    protect(&secured.agent, &secured.uri("backup", "localhost", &checked), &password).success();
    secured.agent.backup("shop");
    trust(&secured, "other-ca");
    backup(&secured.agent).assert_failed("TlsFailed");
    trust(&secured, "ca");
    secured.agent.backup("shop");
    secured.serve("elsewhere.example", RULES);
    backup(&secured.agent).assert_failed("TlsFailed");
    let move_to = |secured: &Secured, mode: &str| {
        let uri = secured.uri("backup", "localhost", mode);
        secured.agent.cli_json(&[&["instance", "move", "shop", "--source", &uri][..], &password].concat()).success();
    };
    // The name does not count here.
    move_to(&secured, &checked.replace("verify-full", "verify-ca"));
    secured.backup_is_encrypted(true);
    trust(&secured, "other-ca");
    backup(&secured.agent).assert_failed("TlsFailed");
    // The server wants a certificate now, and gets none.
    move_to(&secured, "sslmode=require");
    secured.serve("localhost", &RULES.replace("backup 127.0.0.1/32 scram-sha-256", "backup 127.0.0.1/32 cert"));
    backup(&secured.agent).assert_failed("UserErrorDBUserAuthFailed");
    // TLS may be left out, until it may not.
    let either = RULES.replace("hostssl all backup", "host all backup");
    secured.serve("localhost", &either);
    move_to(&secured, "sslmode=disable");
    secured.backup_is_encrypted(false);
    secured.serve("localhost", RULES);
    backup(&secured.agent).assert_failed("UserErrorDBUserAuthFailed");
    // The server takes both: each mode takes its own way, ours and pg_dump's alike.
    secured.serve("localhost", &either);
    for (mode, encrypted) in [("sslmode=allow", false), ("sslmode=prefer", true), ("sslmode=require", true)] {
        move_to(&secured, mode);
        secured.backup_is_encrypted(encrypted);
    }
}
