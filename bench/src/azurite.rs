//! Azurite over TLS, on an address of its own.
//!
//! restic 0.14 and rclone 1.60 can only be told an account's name, and find its server as `<account>.blob.core.windows.net`. So Azurite
//! listens on port 443 of a loopback address of its own, which a private mount namespace maps that name to (`in_namespace`); nothing outside
//! of it sees that. Both need root; without it, only what can be told an address is measured.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::Uid;
use vaultferry_tests::{free_port, process, random_hex, workspace};

use crate::Result;

mod client;

/// The one account.
pub const ACCOUNT: &str = "bench";
const HOST: &str = "bench.blob.core.windows.net";

/// A certificate authority of this run, and one certificate of it for every Azurite.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes keys and certificates in `dir` with the command `openssl`.
    pub fn new(dir: &Path) -> Result<Self> {
        let authority = Self { dir: dir.to_owned() };
        let names = format!("subjectAltName=DNS:{HOST},IP:127.0.0.1\nbasicConstraints=CA:FALSE\n");
        fs::write(dir.join("names"), names)?;
        let new_key = ["-newkey", "rsa:2048", "-nodes", "-days", "30"];
        let ca = ["req", "-x509", "-subj", "/CN=vaultferry bench", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(dir, &[&ca[..], &new_key].concat())?;
        let subject = format!("/CN={HOST}");
        let request = ["req", "-subj", &subject, "-keyout", "server.key", "-out", "server.csr"];
        openssl(dir, &[&request[..], &new_key[..3]].concat())?;
        let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(dir, &[&sign[..], &["-days", "30", "-extfile", "names", "-out", "server.pem"]].concat())?;
        Ok(authority)
    }

    /// The file that clients have to trust (`SSL_CERT_FILE`).
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

fn openssl(dir: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(arguments).current_dir(dir).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("openssl {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// A loopback address whose port 443 nobody uses.
fn free_address() -> Result<SocketAddrV4> {
    for _ in 0..100 {
        let bytes = hex::decode(random_hex(3))?;
        let address = SocketAddrV4::new(Ipv4Addr::new(127, bytes[0] | 1, bytes[1], bytes[2] | 1), 443);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err("no loopback address with a free port 443".into())
}

/// A running Azurite that keeps everything in memory. Dropping it kills it.
#[derive(Debug)]
pub struct Azurite {
    child: Child,
    address: SocketAddrV4,
    key: String,
    certificate: PathBuf,
    hosts: PathBuf,
    _dir: tempfile::TempDir,
}

impl Azurite {
    /// Starts one: on port 443 of an address of its own when `named`, where tools find it by its account's name (root only), else on a free
    /// port of 127.0.0.1.
    pub fn start(authority: &Authority, named: bool) -> Result<Self> {
        let address = if named { free_address()? } else { SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()) };
        let tools = workspace().join(".tools/azurite");
        let program = tools.join("node_modules/azurite/dist/src/blob/main.js");
        if !program.is_file() {
            return Err("Azurite is not installed: run scripts/setup".into());
        }
        let dir = tempfile::tempdir_in(&authority.dir)?;
        let key = STANDARD.encode(hex::decode(random_hex(32))?);
        let mut command = process::bound("KILL", tools.join("node"));
        command.arg(program).args(["--blobHost", &address.ip().to_string(), "--blobPort", &address.port().to_string()]);
        command.args(["--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck", "--loose"]);
        command.arg("--cert").arg(authority.dir.join("server.pem")).arg("--key").arg(authority.dir.join("server.key"));
        command.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{key}")).current_dir(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let hosts = dir.path().join("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n{} {HOST}\n", address.ip()))?;
        let certificate = authority.certificate();
        let mut azurite = Self { child, address, key, certificate, hosts, _dir: dir };
        azurite.wait_until_it_listens()?;
        Ok(azurite)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(code) = process::exit_code(&mut self.child, Duration::from_millis(50)) {
                return Err(format!("Azurite ended with code {code} at its start").into());
            }
            if started.elapsed() > Duration::from_secs(120) {
                return Err("Azurite does not listen".into());
            }
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The account's key, in base64.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The account's endpoint, or that of a proxy before it.
    pub fn endpoint(&self, at: SocketAddrV4) -> String {
        format!("https://{at}/{ACCOUNT}")
    }

    /// What signed its certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Bytes of all blobs of all containers.
    pub fn stored_bytes(&self) -> Result<u64> {
        client::Client::new(self.address, &self.certificate, &self.key)?.stored_bytes()
    }

    /// Makes a container, for tools that do not make it themselves.
    pub fn create_container(&self, name: &str) -> Result<()> {
        client::Client::new(self.address, &self.certificate, &self.key)?.create_container(name)
    }

    /// A command for which the account's name is this Azurite.
    pub fn in_namespace(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = process::bound("KILL", "unshare");
        command.args(["--mount", "bash", "-c", "mount --bind \"$BENCH_HOSTS\" /etc/hosts && exec \"$@\"", "_"]);
        command.arg(program).env("BENCH_HOSTS", &self.hosts).env("SSL_CERT_FILE", &self.certificate);
        command
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// Why tools that only know the account's name cannot be measured here, if so.
pub fn names_unavailable() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        return Some("needs root: port 443 and a private mount namespace");
    }
    let output = Command::new("unshare").args(["--mount", "true"]).output();
    let works = output.is_ok_and(|output| output.status.success());
    (!works).then_some("needs the right to make a mount namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_reached_over_tls_and_counts_what_it_stores() {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::new(dir.path()).expect("certificates");
        let azurite = Azurite::start(&authority, false).expect("Azurite starts");
        assert_eq!(azurite.stored_bytes().expect("a listing"), 0);
        azurite.create_container("one").expect("a container");
        let client = client::Client::new(azurite.address, &azurite.certificate, &azurite.key).expect("a client");
        client.put("one", "a", b"12345").expect("a blob");
        client.put("one", "b", b"123").expect("a blob");
        assert_eq!(azurite.stored_bytes().expect("a listing"), 8);
    }
}
