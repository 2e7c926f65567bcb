//! Other tools. Their secrets are constants: what they protect lives for minutes.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Place, Site, Tool, folder_bytes};
use crate::Result;
use crate::azurite::{ACCOUNT, Azurite};
use crate::measure::Action;
use crate::results::Phase;

const PASSWORD: &str = "bench";
const CONTAINER: &str = "repo";

/// A tool that is told everything by its arguments and environment.
struct Peer {
    site: Site,
    azurite: Option<Azurite>,
    /// Runs before the first backup.
    init: fn(&Self) -> Option<Command>,
    /// What the dump is piped into.
    backup: fn(&Self, u32) -> Vec<Command>,
    /// Reads a backup.
    read: fn(&Self, u32) -> Option<Vec<Command>>,
    /// For readings of [`FLOOR`](super::FLOOR): the output is the backup.
    to_file: bool,
    last: u32,
}

type Made = Result<Box<dyn Tool>>;

impl Peer {
    fn make(
        site: Site,
        place: Place,
        init: fn(&Self) -> Option<Command>,
        backup: fn(&Self, u32) -> Vec<Command>,
        read: fn(&Self, u32) -> Option<Vec<Command>>,
    ) -> Result<Box<Self>> {
        let azurite = match place {
            Place::Folder => None,
            Place::Azure => Some(Azurite::start(&site.authority, true)?),
        };
        fs::create_dir_all(site.dir.join("repo"))?;
        Ok(Box::new(Self { site, azurite, init, backup, read, to_file: false, last: 0 }))
    }

    /// The tool's program, which finds Azurite by its name.
    fn command(&self, program: &str) -> Command {
        match &self.azurite {
            Some(azurite) => self.site.isolate(azurite.in_namespace(program)),
            None => self.site.command(program),
        }
    }

    fn restored(&self) -> PathBuf {
        self.site.dir.join("restored")
    }

    fn repo(&self) -> String {
        self.site.dir.join("repo").display().to_string()
    }
}

impl Tool for Peer {
    fn prepare(&mut self) -> Result<()> {
        let Some(mut command) = (self.init)(self) else { return Ok(()) };
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{}: {}", output.status, words.lines().last().unwrap_or_default()).into())
    }

    fn backup(&mut self, number: u32) -> Action {
        self.last = number;
        let mut stages = vec![self.site.dump()];
        stages.extend((self.backup)(self, number));
        let mut action = Action::discarding(stages);
        if self.to_file {
            action.stdout = self.site.dir.join("repo").join(format!("{number}.zst"));
        }
        action
    }

    fn read(&mut self) -> Vec<(Phase, Action)> {
        let stages = || (self.read)(self, self.last).map(Action::discarding);
        let to_nowhere = stages().map(|action| (Phase::Read, action));
        let into_file = stages().map(|action| (Phase::ReadFile, Action { stdout: self.restored(), ..action }));
        to_nowhere.into_iter().chain(into_file).collect()
    }

    fn after_read(&mut self) -> Result<()> {
        Ok(fs::remove_file(self.restored())?)
    }

    fn stored_bytes(&self) -> Result<u64> {
        match &self.azurite {
            Some(azurite) => azurite.stored_bytes(),
            None => folder_bytes(&self.site.dir.join("repo")),
        }
    }

    fn azurite(&self) -> Option<&Azurite> {
        self.azurite.as_ref()
    }
}

pub(super) fn baseline(site: Site, _place: Place) -> Made {
    let cat = |peer: &Peer, _| vec![peer.site.command("cat")];
    Ok(Peer::make(site, Place::Folder, |_| None, cat, |_, _| None)?)
}

pub(super) fn zstd(site: Site, place: Place) -> Made {
    let compress = |peer: &Peer, _| {
        let mut zstd = peer.site.command("zstd");
        zstd.args(["-q", "-1", "--single-thread", "-c"]);
        vec![zstd]
    };
    let mut peer = Peer::make(site, place, |_| None, compress, |_, _| None)?;
    peer.to_file = true;
    Ok(peer)
}

pub(super) fn restic(site: Site, place: Place) -> Made {
    fn restic(peer: &Peer, arguments: &[&str]) -> Command {
        let mut command = peer.command("restic");
        let repository = match &peer.azurite {
            Some(_) => format!("azure:{CONTAINER}:/"),
            None => peer.repo(),
        };
        if let Some(azurite) = &peer.azurite {
            command.env("AZURE_ACCOUNT_NAME", ACCOUNT).env("AZURE_ACCOUNT_KEY", azurite.key());
        }
        command.env("RESTIC_PASSWORD", PASSWORD).args(["--repo", &repository]).args(arguments);
        command
    }
    let init = |peer: &Peer| Some(restic(peer, &["init", "--repository-version", "2"]));
    let backup = |peer: &Peer, _| vec![restic(peer, &["backup", "--stdin", "--stdin-filename", "db.dump"])];
    let read = |peer: &Peer, _| Some(vec![restic(peer, &["dump", "latest", "/db.dump"])]);
    Ok(Peer::make(site, place, init, backup, read)?)
}

pub(super) fn borg(site: Site, place: Place) -> Made {
    fn borg(peer: &Peer, arguments: &[&str]) -> Command {
        let mut command = peer.command("borg");
        command.env("BORG_PASSPHRASE", PASSWORD).env("BORG_BASE_DIR", peer.site.dir.join("base")).args(arguments);
        command
    }
    let init = |peer: &Peer| Some(borg(peer, &["init", "--encryption=repokey-blake2", &peer.repo()]));
    let backup = |peer: &Peer, number| {
        let archive = format!("{}::{number}", peer.repo());
        vec![borg(peer, &["create", "--compression", "zstd,3", "--stdin-name", "db.dump", &archive, "-"])]
    };
    let read =
        |peer: &Peer, number| Some(vec![borg(peer, &["extract", "--stdout", &format!("{}::{number}", peer.repo())])]);
    Ok(Peer::make(site, place, init, backup, read)?)
}

pub(super) fn rclone(site: Site, place: Place) -> Made {
    /// Configured by its environment alone.
    fn rclone(peer: &Peer, verb: &str, number: u32) -> Command {
        let mut command = peer.command("rclone");
        command.env("RCLONE_CONFIG", "/notfound").env("RCLONE_CONFIG_HERE_TYPE", "local");
        let path = match &peer.azurite {
            Some(azurite) => {
                command.env("RCLONE_CONFIG_AZ_TYPE", "azureblob").env("RCLONE_CONFIG_AZ_ACCOUNT", ACCOUNT);
                command.env("RCLONE_CONFIG_AZ_KEY", azurite.key());
                format!("az:{CONTAINER}/{number}.zst")
            }
            None => format!("here:{}/{number}.zst", peer.repo()),
        };
        command.args([verb, &path]);
        command
    }
    let backup = |peer: &Peer, number| {
        let mut zstd = peer.site.command("zstd");
        zstd.args(["-q", "-3", "-T2", "-c"]);
        vec![zstd, rclone(peer, "rcat", number)]
    };
    let read = |peer: &Peer, number| {
        let mut unzstd = peer.site.command("zstd");
        unzstd.args(["-q", "-d", "-c"]);
        Some(vec![rclone(peer, "cat", number), unzstd])
    };
    Ok(Peer::make(site, place, |_| None, backup, read)?)
}

pub(super) fn rustic(site: Site, place: Place) -> Made {
    fn rustic(peer: &Peer, arguments: &[&str]) -> Command {
        let mut command = peer.command("rustic");
        command.env("RUSTIC_PASSWORD", PASSWORD);
        match &peer.azurite {
            Some(_) => command.args(["-P", &peer.site.dir.join("profile").display().to_string()]),
            None => command.args(["-r", &peer.repo()]),
        };
        command.args(arguments);
        command
    }
    let init = |peer: &Peer| Some(rustic(peer, &["init"]));
    // Without --force it takes the second stream of a name for unchanged and stores nothing (0.11.4).
    let backup = |peer: &Peer, _| vec![rustic(peer, &["backup", "--force", "--stdin-filename", "db.dump", "-"])];
    let read = |peer: &Peer, _| Some(vec![rustic(peer, &["dump", "latest:db.dump"])]);
    let peer = Peer::make(site, place, init, backup, read)?;
    if let Some(azurite) = &peer.azurite {
        azurite.create_container(CONTAINER)?;
        let profile = format!(
            "[repository]\nrepository = \"opendal:azblob\"\n[repository.options]\ncontainer = \"{CONTAINER}\"\n\
             endpoint = \"https://{ACCOUNT}.blob.core.windows.net\"\naccount_name = \"{ACCOUNT}\"\naccount_key = \"{}\"\nroot = \"/\"\n",
            azurite.key()
        );
        fs::write(peer.site.dir.join("profile.toml"), profile)?;
    }
    Ok(peer)
}
