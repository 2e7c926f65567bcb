//! The tools that are measured. Each backs up the same dump stream into a place of its own, and reads it back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use vaultferry_tests::postgres::Server;
use vaultferry_tests::process;

use crate::Result;
use crate::azurite::{self, Authority, Azurite};
use crate::measure::Action;
use crate::results::Phase;

mod peers;
mod vaultferry;

pub use self::vaultferry::Vaultferry;

/// The database that is backed up.
pub const DATABASE: &str = "bench";

/// The tool that every other is compared with.
pub const BASELINE: &str = "pg_dump | cat";
/// The tool that does the least a backup has to do.
pub const FLOOR: &str = "pg_dump | zstd -1";
/// Our own name.
pub const OURS: &str = "vaultferry";
/// Our own read-back to nowhere: the reader without an agent, as an agent restores into something.
pub const OURS_READER: &str = "vaultferry (reader)";

/// Where the backups go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A folder.
    Folder,
    /// Azurite over TLS.
    Azure,
}

/// What a tool works with in one round.
#[derive(Debug, Clone)]
pub struct Site {
    /// The source.
    pub server: Rc<Server>,
    /// An empty folder of this tool and round.
    pub dir: PathBuf,
    /// Signs Azurite's certificates.
    pub authority: Rc<Authority>,
}

impl Site {
    /// `pg_dump -Fc -Z0` over the server's socket.
    pub fn dump(&self) -> Command {
        let mut command = process::bound("KILL", Path::new(vaultferry_tests::postgres::BIN_DIR).join("pg_dump"));
        command.args(["-Fc", "-Z0"]);
        command.env("PGHOST", self.server.data_dir()).env("PGPORT", self.server.port().to_string());
        command
            .env("PGPASSFILE", self.server.passfile_for_socket())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", DATABASE);
        command
    }

    /// A command with nothing of the user's: no configuration, no cache but in this tool's folder.
    pub fn command(&self, program: &str) -> Command {
        self.isolate(process::bound("KILL", program))
    }

    fn isolate(&self, mut command: Command) -> Command {
        command.env("HOME", &self.dir).env("XDG_CONFIG_HOME", self.dir.join("config"));
        command.env("XDG_CACHE_HOME", self.dir.join("cache")).current_dir(&self.dir);
        command
    }
}

/// One tool, set up for one round and place.
pub trait Tool {
    /// Makes its repository; not measured.
    fn prepare(&mut self) -> Result<()>;

    /// One backup of the stream. `number` is 1 for the first, 2 for the second.
    fn backup(&mut self, number: u32) -> Action;

    /// Reads the last backup's stream back, to nowhere ([`Phase::Read`]) and into a file ([`Phase::ReadFile`]); nothing for what is no
    /// backup.
    fn read(&mut self) -> Vec<(Phase, Action)> {
        Vec::new()
    }

    /// Looks at the file that was read and removes it; not measured.
    fn after_read(&mut self) -> Result<()> {
        Ok(())
    }

    /// The bytes that it stores now.
    fn stored_bytes(&self) -> Result<u64>;

    /// Its Azurite.
    fn azurite(&self) -> Option<&Azurite> {
        None
    }
}

/// How a tool is made.
type Make = fn(Site, Place) -> Result<Box<dyn Tool>>;

/// A tool, its places, and what it needs.
pub struct Kind {
    /// As it is called in the results.
    pub name: &'static str,
    /// The commands, for the documentation.
    pub command: &'static str,
    program: &'static str,
    places: &'static [Place],
    /// Whether it can only be told an account's name.
    by_name: bool,
    make: Make,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Kind {
    /// Why it cannot be measured at that place, if so.
    pub fn unavailable(&self, place: Place) -> Option<String> {
        if !self.places.contains(&place) {
            return Some("it has no Azure backend".to_owned());
        }
        if find(self.program).is_none() {
            return Some(format!("{} is not installed", self.program));
        }
        if place == Place::Azure && self.by_name {
            return azurite::names_unavailable().map(str::to_owned);
        }
        None
    }

    /// Sets it up in a place of its own.
    pub fn make(&self, site: Site, place: Place) -> Result<Box<dyn Tool>> {
        (self.make)(site, place)
    }

    /// Its version, as its program tells it.
    pub fn version(&self) -> String {
        version(self.program)
    }
}

/// The first line that a program says of its version.
pub fn version(program: &str) -> String {
    let argument = if matches!(program, "restic" | "rclone") { "version" } else { "--version" };
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    line.split(" compiled").next().unwrap_or_default().trim_matches(['*', ' ']).to_owned()
}

/// A program's place on the PATH.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// All tools: the baseline and ourselves first.
pub const KINDS: &[Kind] = &[
    Kind {
        name: BASELINE,
        command: "pg_dump -Fc -Z0 | cat >/dev/null",
        program: "cat",
        places: &[Place::Folder, Place::Azure],
        by_name: false,
        make: peers::baseline,
    },
    Kind {
        name: OURS,
        command: "vaultferry backup bench --wait; vaultferry restore files bench --to FOLDER --wait",
        program: "cat",
        places: &[Place::Folder, Place::Azure],
        by_name: false,
        make: |site, place| Ok(Box::new(Vaultferry::new(site, place)?)),
    },
    Kind {
        name: FLOOR,
        command: "pg_dump -Fc -Z0 | zstd -q -1 --single-thread > FILE",
        program: "zstd",
        places: &[Place::Folder],
        by_name: false,
        make: peers::zstd,
    },
    Kind {
        name: "restic",
        command: "pg_dump -Fc -Z0 | restic backup --stdin --stdin-filename db.dump; restic dump latest db.dump",
        program: "restic",
        places: &[Place::Folder, Place::Azure],
        by_name: true,
        make: peers::restic,
    },
    Kind {
        name: "borg",
        command: "pg_dump -Fc -Z0 | borg create --compression zstd,3 --stdin-name db.dump REPO::N -; borg extract --stdout REPO::N",
        program: "borg",
        places: &[Place::Folder],
        by_name: false,
        make: peers::borg,
    },
    Kind {
        name: "rclone",
        command: "pg_dump -Fc -Z0 | zstd -q -3 -T2 | rclone rcat REMOTE:N.zst; rclone cat REMOTE:N.zst | zstd -q -dc",
        program: "rclone",
        places: &[Place::Folder, Place::Azure],
        by_name: true,
        make: peers::rclone,
    },
    Kind {
        name: "rustic",
        command: "pg_dump -Fc -Z0 | rustic backup --force --stdin-filename db.dump -; rustic dump latest:db.dump",
        program: "rustic",
        places: &[Place::Folder, Place::Azure],
        by_name: true,
        make: peers::rustic,
    },
];

/// Bytes of all files below a folder.
fn folder_bytes(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}
