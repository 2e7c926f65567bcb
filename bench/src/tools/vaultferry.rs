//! The product itself: the release program, its agent, its command line.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;

use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::{binary, process};

use super::{DATABASE, Place, Site, Tool, folder_bytes};
use crate::Result;
use crate::azurite::{ACCOUNT, Azurite};
use crate::measure::Action;
use crate::results::Phase;

const INSTANCE: &str = "bench";
const STREAM: &str = "database.dump";
const INSTANCE_ID_DIGITS: usize = 32;

/// An agent with a vault of its own.
#[derive(Debug)]
pub struct Vaultferry {
    agent: Agent,
    azurite: Option<Azurite>,
    vault_dir: PathBuf,
    restored_dir: PathBuf,
}

impl Vaultferry {
    /// Over the server's socket, into a folder or an Azurite of its own.
    pub fn new(site: Site, place: Place) -> Result<Self> {
        let azurite = match place {
            Place::Folder => None,
            Place::Azure => Some(Azurite::start(&site.authority, false)?),
        };
        let address = azurite.as_ref().map(Azurite::address);
        let source = site.server.socket_uri(DATABASE);
        let passfile = site.server.passfile_for_socket();
        Ok(Self::set_up(&site, azurite, address, &source, &passfile))
    }

    /// From and to addresses of proxies, or from another database.
    pub fn through(site: &Site, azurite: Option<(Azurite, SocketAddrV4)>, source: &str, passfile: &Path) -> Self {
        let (azurite, address) = azurite.unzip();
        Self::set_up(site, azurite, address, source, passfile)
    }

    fn set_up(
        site: &Site,
        azurite: Option<Azurite>,
        address: Option<SocketAddrV4>,
        source: &str,
        passfile: &Path,
    ) -> Self {
        let vault_dir = site.dir.join("vault");
        let setup = match azurite.as_ref().zip(address) {
            None => Setup::new().vault(format!("location = \"{}\"", vault_dir.display())),
            Some((azurite, address)) => {
                let endpoint = azurite.endpoint(address);
                let vault = format!(
                    "location = \"azure://{ACCOUNT}/vault\"\n[vault.azure]\nendpoint = \"{endpoint}\"\n\
                     credential = \"access-key\"\naccess_key_env = \"BENCH_KEY\""
                );
                let certificate = site.authority.certificate().display().to_string();
                Setup::new().vault(vault).env("BENCH_KEY", azurite.key()).env("SSL_CERT_FILE", &certificate)
            }
        };
        let mut agent = setup.prepare();
        // A warning is no reason to lose what was measured; a failed job is told anyway.
        agent.expect_log("");
        agent.init_vault().success();
        agent.start();
        agent.protect(INSTANCE, source, passfile);
        let restored_dir = site.dir.join("restored");
        Self { agent, azurite, vault_dir, restored_dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::bound("KILL", binary());
        let endpoint = format!("unix://{}/control.sock", self.agent.dir().display());
        command.args(arguments).args(["--output", "json"]).env("VAULTFERRY_ENDPOINT", endpoint);
        command
    }

    fn action(&self, arguments: &[&str]) -> Action {
        Action { daemon: Some(self.agent.pid()), ..Action::discarding(vec![self.command(arguments)]) }
    }

    /// The bytes of the last point's dump.
    pub fn source_bytes(&self) -> u64 {
        let point = self.agent.points(INSTANCE).into_iter().next().unwrap_or_default();
        let streams = point["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
        streams.iter().find(|stream| stream["name"] == STREAM).map_or(0, |stream| number(&stream["size"]))
    }

    /// The example program that reads a point to nowhere, if it was built.
    fn reader(&self) -> Option<Action> {
        let program = binary().parent()?.join("examples/read_throughput");
        if !program.is_file() {
            return None;
        }
        let export = self.agent.cli(&["vault", "key", "export", INSTANCE]).success().stdout;
        let value = |name: &str| {
            let line = export.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches(['\'', '"']).to_owned())
        };
        // The folder or container above the repository ends in the instance's id.
        let repository = value("RESTIC_REPOSITORY")?;
        let above = repository.strip_suffix("/repo")?.trim_end_matches(':');
        let instance = above.get(above.len().checked_sub(INSTANCE_ID_DIGITS)?..)?;
        let mut command = process::bound("KILL", program);
        match &self.azurite {
            None => command.arg(&self.vault_dir),
            Some(azurite) => {
                command
                    .env("READ_ENDPOINT", azurite.endpoint(azurite.address()))
                    .env("READ_ACCOUNT_KEY", azurite.key());
                command.env("SSL_CERT_FILE", azurite.certificate());
                command.arg(format!("azure://{ACCOUNT}/vault"))
            }
        };
        command.args([instance, "latest", STREAM]);
        command.env("RESTIC_PASSWORD", value("RESTIC_PASSWORD")?);
        Some(Action::discarding(vec![command]))
    }
}

impl Tool for Vaultferry {
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn backup(&mut self, _number: u32) -> Action {
        self.action(&["backup", INSTANCE, "--wait"])
    }

    fn read(&mut self) -> Vec<(Phase, Action)> {
        let to = self.restored_dir.display().to_string();
        let into_file = (Phase::ReadFile, self.action(&["restore", "files", INSTANCE, "--to", &to, "--wait"]));
        let to_nowhere = self.reader().map(|action| (Phase::Read, action));
        to_nowhere.into_iter().chain([into_file]).collect()
    }

    /// The restored file must be as long as the stream that was dumped.
    fn after_read(&mut self) -> Result<()> {
        let length = fs::metadata(self.restored_dir.join(STREAM)).map(|file| file.len());
        let removed = fs::remove_dir_all(&self.restored_dir);
        let (length, source_bytes) = (length?, self.source_bytes());
        removed?;
        if length == source_bytes {
            return Ok(());
        }
        Err(format!("{length} bytes came back of {source_bytes}").into())
    }

    fn stored_bytes(&self) -> Result<u64> {
        match &self.azurite {
            Some(azurite) => azurite.stored_bytes(),
            None => folder_bytes(&self.vault_dir),
        }
    }

    fn azurite(&self) -> Option<&Azurite> {
        self.azurite.as_ref()
    }
}
