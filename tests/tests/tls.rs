//! Certificates, SCRAM and libpq's TLS modes, each for discovery and for a backup, with what goes wrong by its name.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::process::Command;
use std::time::Duration;

use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::process;
use vaultferry_tests::scratch::Scratch;

#[path = "support/shop.rs"]
mod shop;

use shop::{backup, discover, protect, shop};

/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);

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
