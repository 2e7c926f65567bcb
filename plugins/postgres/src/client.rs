//! pg_dump and pg_restore: where they are, which one to take, and what they need of the server that they restore to.
//!
//! - pg_dump reads servers of its own major version and older ones; the smallest that is new enough is taken, because its archive can
//!   be restored in the most places. pg_restore reads archives of its own major version and older ones, and the same rule holds.
//! - A pg_restore since 17 begins with `SET transaction_timeout = 0`, which servers before 17 do not know. The smallest that reads the archive
//!   is older wherever an older one is there; where none is, what it would do goes through psql without that line (`loader.rs`).
//! - So what was dumped from a server can be restored to it, whichever client programs there are.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::child::{self, Ended};
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_proto::{Problem, Reason};

use crate::settings::Settings;

/// Where Debian and its relatives keep the programs of every major version.
const DEBIAN_DIR: &str = "/usr/lib/postgresql";

/// A program that needs longer to say its version is not one of PostgreSQL's.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer to `--version` that is looked at.
const VERSION_MAX: u64 = 1024;

/// Sets the buffer of a program's standard output.
const STDBUF: &str = "stdbuf";
/// So many bytes are gathered by pg_dump before it writes: measured in docs/decisions/0051-the-source-goes-first.md.
const GATHERED: u32 = 64 << 10;

/// A major version: 15, 9.6. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Major {
    first: u32,
    second: u32,
}

impl Major {
    /// A major version since 10, which is one number.
    pub const fn new(number: u32) -> Self {
        Self { first: number, second: 0 }
    }

    /// From `server_version_num`: 150014 is 15, 90624 is 9.6. A negative number is version 0.
    pub fn from_version_num(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or_default();
        match number / 10_000 {
            first @ 10.. => Self::new(first),
            first => Self { first, second: number / 100 % 100 },
        }
    }

    /// From a version's text: `15.14`, `9.6.24`, `18beta1`.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|part| {
            let digits = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse::<u32>().ok()
        });
        match numbers.next()?? {
            first @ 10.. => Some(Self::new(first)),
            first => Some(Self { first, second: numbers.next()?? }),
        }
    }
}

impl PartialOrd for Major {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Major {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.first, self.second).cmp(&(other.first, other.second))
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first >= 10 { write!(f, "{}", self.first) } else { write!(f, "{}.{}", self.first, self.second) }
    }
}

/// Which program is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads a database.
    Dump,
    /// Writes one.
    Restore,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Dump => "pg_dump",
            Self::Restore => "pg_restore",
        }
    }
}

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// As it says it, without its name: `15.14 (Debian 15.14-0+deb12u1)`.
    pub version: String,
    /// Its major version.
    pub major: Major,
}

/// The smallest program of this kind whose major version is `at_least` or newer. `what_for` is for an error: `the server db:5432`.
pub async fn choose(
    kind: Kind,
    at_least: Major,
    what_for: &str,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<Program, Problem> {
    let dirs = dirs(settings);
    let mut found = Vec::new();
    for dir in &dirs {
        let path = dir.join(format!("{}{}", kind.name(), std::env::consts::EXE_SUFFIX));
        if path.is_file() && !is_wrapper(&path) {
            found.extend(ask(path, kind, cancel).await?);
        }
    }
    pick(kind, at_least, what_for, found, &dirs)
}

/// The first pg_restore that begins with `SET transaction_timeout`, and the first server that knows it.
const TRANSACTION_TIMEOUT: Major = Major::new(17);

/// The first server that knows `default_table_access_method`.
const TABLE_ACCESS_METHODS: Major = Major::new(12);

/// The first pg_restore with `--no-table-access-method`.
const CAN_LEAVE_ACCESS_METHODS: Major = Major::new(15);

/// What brings an archive into a server of a certain version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restorer {
    /// The pg_restore that reads the archive.
    pub program: Program,
    /// What it must be told because of the server's version.
    pub arguments: &'static [&'static str],
    /// The psql that runs what pg_restore writes, because the server would refuse something in it; `None`: pg_restore logs in itself.
    pub psql: Option<PathBuf>,
}

/// The programs that bring an archive of the pg_dump `archive` into a server of the version `target`. Archives of any version are brought
/// into newer servers; into older ones as far as their objects are known there, which the restore finds out.
pub async fn choose_restorer(
    archive: Major,
    target: Major,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<Restorer, Problem> {
    restorer(choose(Kind::Restore, archive, "the archive", settings, cancel).await?, target)
}

/// What this pg_restore needs for that server. The psql beside it is of its version, and so knows what it writes (`\restrict`).
fn restorer(program: Program, target: Major) -> Result<Restorer, Problem> {
    // Such a server has one access method, and every table gets it.
    let leaves = target < TABLE_ACCESS_METHODS && program.major >= CAN_LEAVE_ACCESS_METHODS;
    let arguments: &'static [&'static str] = if leaves { &["--no-table-access-method"] } else { &[] };
    if program.major < TRANSACTION_TIMEOUT || target >= TRANSACTION_TIMEOUT {
        return Ok(Restorer { program, arguments, psql: None });
    }
    let psql = program.path.with_file_name(format!("psql{}", std::env::consts::EXE_SUFFIX));
    if !psql.is_file() {
        let message = format!(
            "the server has version {target}, which pg_restore {} can only write to through psql, and {} is missing",
            program.version,
            psql.display()
        );
        let fix = format!("Install psql of PostgreSQL {} beside pg_restore.", program.major);
        return Err(Problem::new(Reason::ClientNotFound, message).with_fix(fix));
    }
    Ok(Restorer { program, arguments, psql: Some(psql) })
}

/// The choice itself. Of two with the same major version the first counts.
fn pick(
    kind: Kind,
    at_least: Major,
    what_for: &str,
    found: Vec<Program>,
    dirs: &[PathBuf],
) -> Result<Program, Problem> {
    let name = kind.name();
    let Some(newest) = found.iter().map(|program| program.major).max() else {
        let places: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        return Err(Problem::new(Reason::ClientNotFound, format!("no {name} was found in {}", places.join(", "))));
    };
    found.into_iter().filter(|program| program.major >= at_least).min_by_key(|program| program.major).ok_or_else(|| {
        let message = format!("{what_for} has version {at_least}; the newest {name} here has version {newest}");
        let fix = format!(
            "Install the client programs of PostgreSQL {at_least} or newer, and name their folder in [postgres] client_dirs."
        );
        Problem::new(Reason::ClientTooOld, message).with_fix(fix)
    })
}

/// Where to look, in this order.
fn dirs(settings: &Settings) -> Vec<PathBuf> {
    if !settings.client_dirs.is_empty() {
        return settings.client_dirs.clone();
    }
    let mut dirs: Vec<PathBuf> = match std::fs::read_dir(DEBIAN_DIR) {
        Ok(entries) => entries.flatten().map(|entry| entry.path().join("bin")).collect(),
        Err(_) => Vec::new(),
    };
    dirs.sort();
    dirs.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    dirs
}

/// Debian's `/usr/bin/pg_dump` is a script that chooses a version by rules of its own.
fn is_wrapper(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|real| real.file_name().is_some_and(|name| name == "pg_wrapper"))
}

/// Asks a program for its version. One that does not answer like PostgreSQL's is passed over, and named in the log.
async fn ask(path: PathBuf, kind: Kind, cancel: &CancellationToken) -> Result<Option<Program>, Problem> {
    let answer = tokio::time::timeout(VERSION_TIMEOUT, async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(child::Error::Cancelled),
            answer = version_text(child::Command::new(&path), cancel) => answer,
        }
    });
    let text = match answer.await {
        Ok(Ok((text, _))) => text,
        Ok(Err(child::Error::Cancelled)) => return Err(cancelled()),
        Ok(Err(error)) => {
            tracing::warn!("{} is passed over: {}", path.display(), vaultferry_proto::status::chain(&error));
            return Ok(None);
        }
        Err(_) => {
            tracing::warn!("{} is passed over: it does not say its version", path.display());
            return Ok(None);
        }
    };
    let program = parse_version(&text, kind).map(|(version, major)| Program { path: path.clone(), version, major });
    if program.is_none() {
        tracing::warn!("{} is passed over: its version reads {text:?}", path.display());
    }
    Ok(program)
}

/// What it answers, and how it ended.
async fn version_text(command: child::Command, cancel: &CancellationToken) -> Result<(String, Ended), child::Error> {
    let mut child = command.arg("--version").pipe_stdout().spawn().await?;
    let mut answer = Vec::new();
    if let Some(stdout) = child.take_stdout() {
        let read = stdout.take(VERSION_MAX).read_to_end(&mut answer).await;
        read.map_err(|source| child::Error::Wait { program: child.program().to_owned(), source })?;
    }
    let ended = child.finish(cancel).await?;
    Ok((String::from_utf8_lossy(&answer).trim().to_owned(), ended))
}

/// What starts this pg_dump, without its arguments. pg_dump writes 4 KiB at a time, and both sides of the pipe pay for every piece; `stdbuf` of
/// GNU's coreutils has the C library gather 64 KiB first. It is asked for the version before: where there is none, or it does not fit
/// this pg_dump (another C library), pg_dump is started as it is.
pub async fn dump_command(program: &Program, cancel: &CancellationToken) -> child::Command {
    let gathering = || child::Command::new(STDBUF).arg(format!("--output={GATHERED}")).arg(&program.path);
    let asked = tokio::time::timeout(VERSION_TIMEOUT, async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(child::Error::Cancelled),
            answer = version_text(gathering(), cancel) => answer,
        }
    });
    let fits = match asked.await {
        // The loader's complaint about a library is on standard error, and the program runs nevertheless.
        Ok(Ok((text, ended))) => {
            let version = parse_version(&text, Kind::Dump).map(|(version, _)| version);
            ended.success() && ended.words.is_empty() && version.as_ref() == Some(&program.version)
        }
        Ok(Err(_)) | Err(_) => false,
    };
    if fits {
        return gathering();
    }
    tracing::debug!("{STDBUF} does not fit {}: it writes 4 KiB at a time", program.path.display());
    child::Command::new(&program.path)
}

/// `pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`
fn parse_version(text: &str, kind: Kind) -> Option<(String, Major)> {
    let version = text.strip_prefix(kind.name())?.strip_prefix(" (PostgreSQL) ")?.trim();
    Some((version.to_owned(), Major::from_text(version)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(major: &str, place: &str) -> Program {
        Program { path: place.into(), version: major.into(), major: Major::from_text(major).unwrap() }
    }

    #[test]
    fn versions_are_read() {
        let cases = [
            ("pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "15"),
            ("pg_dump (PostgreSQL) 9.6.24", "9.6"),
            ("pg_dump (PostgreSQL) 18beta1", "18"),
            ("pg_dump (PostgreSQL) 19devel", "19"),
        ];
        for (text, major) in cases {
            assert_eq!(parse_version(text, Kind::Dump).map(|(_, major)| major.to_string()).as_deref(), Some(major));
        }
        for text in ["", "pg_dump", "pg_restore (PostgreSQL) 15.1", "pg_dump (PostgreSQL) new", "pg_dump (EDB) 15"] {
            assert_eq!(parse_version(text, Kind::Dump), None, "{text}");
        }
        assert_eq!(Major::from_version_num(150_014).to_string(), "15");
        assert_eq!(Major::from_version_num(90_624).to_string(), "9.6");
        assert!(Major::from_version_num(90_624) < Major::new(10));
    }

    #[test]
    fn the_smallest_that_is_new_enough_is_taken() {
        let all = || ["13.9", "17.2", "15.1", "15.9", "9.6.1"].map(|major| program(major, major)).to_vec();
        let choose = |at_least: &str| {
            let at_least = Major::from_text(at_least).unwrap();
            pick(Kind::Dump, at_least, "the server db:5432", all(), &[]).map(|program| program.version)
        };
        assert_eq!(choose("14"), Ok("15.1".to_owned()), "the first of two");
        assert_eq!(choose("9.5"), Ok("9.6.1".to_owned()));
        assert_eq!(choose("17"), Ok("17.2".to_owned()));
        let problem = choose("18").unwrap_err();
        assert_eq!(problem.reason, Reason::ClientTooOld);
        assert!(problem.message.contains("18") && problem.message.contains("17"), "{problem}");
        let problem = pick(Kind::Restore, Major::new(9), "x", Vec::new(), &["/a".into(), "/b".into()]).unwrap_err();
        assert_eq!(problem.reason, Reason::ClientNotFound);
        assert!(problem.message.contains("pg_restore") && problem.message.contains("/a, /b"), "{problem}");
    }

    #[test]
    fn an_older_server_gets_what_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        let at = |major: u32| Program {
            path: dir.path().join(format!("pg_restore{}", std::env::consts::EXE_SUFFIX)),
            ..program(&major.to_string(), "")
        };
        let psql = dir.path().join(format!("psql{}", std::env::consts::EXE_SUFFIX));
        let problem = restorer(at(17), Major::new(16)).unwrap_err();
        assert_eq!(problem.reason, Reason::ClientNotFound);
        assert!(problem.message.contains("psql") && problem.fix.contains("17"), "{problem:?}");
        std::fs::write(&psql, "").unwrap();
        let leaves = ["--no-table-access-method"];
        // pg_restore, server, through psql, arguments
        let cases: [(u32, u32, bool, &[&str]); 8] = [
            (15, 18, false, &[]),
            (16, 16, false, &[]),
            (16, 10, false, &leaves),
            (17, 17, false, &[]),
            (17, 16, true, &[]),
            (18, 17, false, &[]),
            (18, 11, true, &leaves),
            (13, 11, false, &[]),
        ];
        for (client, target, through, arguments) in cases {
            let chosen = restorer(at(client), Major::new(target)).unwrap();
            assert_eq!(chosen.psql, through.then(|| psql.clone()), "{client} to {target}");
            assert_eq!(chosen.arguments, arguments, "{client} to {target}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn stdbuf_is_used_for_what_it_fits_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let started = async |script: &str| {
            let path = dir.path().join("pg_dump");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let program = Program { path, version: "15.3".into(), major: Major::new(15) };
            let child = dump_command(&program, &cancel).await.arg("--version").spawn().await.unwrap();
            child.program().to_owned()
        };
        let plain = dir.path().join("pg_dump");
        assert_eq!(started("echo 'pg_dump (PostgreSQL) 15.3'").await, Path::new(STDBUF));
        assert_eq!(started("echo 'pg_dump (PostgreSQL) 15.3'; echo 'object cannot be preloaded' >&2").await, plain);
        assert_eq!(started("test -z \"$LD_PRELOAD\" || exit 1; echo 'pg_dump (PostgreSQL) 15.3'").await, plain);
        assert_eq!(started("echo 'pg_dump (PostgreSQL) 15.4'").await, plain);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn programs_are_asked_and_strange_ones_passed_over() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, script: &str| {
            let bin = dir.path().join(name);
            std::fs::create_dir(&bin).unwrap();
            let path = bin.join("pg_dump");
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            bin
        };
        let client_dirs = vec![
            dir.path().join("missing"),
            write("strange", "#!/bin/sh\necho hello\n"),
            write("broken", "#!/nowhere/interpreter\n"),
            write("good", "#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.3'\n"),
        ];
        let settings = Settings { client_dirs, ..Settings::default() };
        let cancel = CancellationToken::new();
        let program = choose(Kind::Dump, Major::new(14), "the server", &settings, &cancel).await.unwrap();
        assert_eq!((program.version.as_str(), program.major), ("15.3", Major::new(15)));
        let problem = choose(Kind::Restore, Major::new(14), "the archive", &settings, &cancel).await.unwrap_err();
        assert_eq!(problem.reason, Reason::ClientNotFound);
    }
}
