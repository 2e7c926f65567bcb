//! Servers and client programs of every version, as `scripts/postgres-versions` lays them out; Debian 12's own is 15.
//!
//! What is not there is told in one line, and the test passes without it. Where `CI=true`, [`BASE`] must be there.

use std::path::PathBuf;
use std::process::Command;

use super::{BIN_DIR, LIMIT, Server, as_server_user};
use crate::scratch::Scratch;
use crate::{process, workspace};

/// The versions that `make test` runs.
pub const BASE: [u32; 4] = [10, 13, 15, 18];

/// The versions that `make test-all` runs.
pub const ALL: [u32; 9] = [10, 11, 12, 13, 14, 15, 16, 17, 18];

/// Debian 12's version.
const INSTALLED: u32 = 15;

/// The newest version whose client programs are there.
const NEWEST: u32 = 18;

/// A running server of this version, whose [`Server::client`] are the newest there are, so that two servers' dumps can be compared; `None`
/// where there is no such server.
#[track_caller]
pub fn start(major: u32) -> Option<Server> {
    let ((bin_dir, programs), client_dir) = (server_dir(major)?, client_dir(NEWEST)?);
    let mut server = Server::start_with(&bin_dir, &client_dir);
    server._programs = programs;
    Some(server)
}

/// The folder of a version's client programs; `None` where they are not there.
#[track_caller]
pub fn client_dir(major: u32) -> Option<PathBuf> {
    let dir = match major {
        INSTALLED => PathBuf::from(BIN_DIR),
        major => tools().join(format!("clients/{major}/bin")),
    };
    there(dir, "pg_dump", &format!("client {major}"), [INSTALLED, NEWEST].contains(&major))
}

/// The folders of all client programs that are there, for `[postgres] client_dirs`: the oldest first.
pub fn client_dirs() -> Vec<PathBuf> {
    let fetched = [16, 17, 18].map(|major| tools().join(format!("clients/{major}/bin")));
    let fetched = fetched.into_iter().filter(|dir| dir.join("pg_dump").is_file());
    std::iter::once(PathBuf::from(BIN_DIR)).chain(fetched).collect()
}

/// The folder with PostgreSQL 15's own regression tests and their module; `None` where they are not there.
#[track_caller]
pub fn regression_dir() -> Option<PathBuf> {
    there(tools().join("regression"), "regress.so", "the regression tests", false)
}

/// The folder of a version's server programs, and what keeps it there.
#[track_caller]
fn server_dir(major: u32) -> Option<(PathBuf, Option<Scratch>)> {
    if major == INSTALLED {
        return Some((PathBuf::from(BIN_DIR), None));
    }
    let dir = tools().join(format!("servers/{major}"));
    let bin_dir = there(dir.join("bin"), "postgres", &format!("server {major}"), BASE.contains(&major))?;
    let mut version = as_server_user(&bin_dir.join("postgres"), "KILL");
    if process::run(version.arg("--version"), b"", LIMIT).code == 0 {
        return Some((bin_dir, None));
    }
    // A checkout that the server's user may not pass through, somewhere below /root.
    let copy = Scratch::new("pg-programs");
    let mut cp = Command::new("cp");
    process::run(cp.arg("-a").arg(&dir).arg(copy.join("server")), b"", LIMIT).success();
    Some((copy.join("server/bin"), Some(copy)))
}

fn tools() -> PathBuf {
    workspace().join(".tools/postgresql")
}

/// The folder, if this program is in it.
#[track_caller]
#[allow(clippy::print_stdout)] // the runner shows it
fn there(dir: PathBuf, program: &str, what: &str, needed: bool) -> Option<PathBuf> {
    if dir.join(program).is_file() {
        return Some(dir);
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!(ci && needed), "{what} is missing in {}: scripts/postgres-versions fetches it", dir.display());
    println!("skipped: {what} of PostgreSQL is not there; scripts/postgres-versions all fetches it");
    None
}
