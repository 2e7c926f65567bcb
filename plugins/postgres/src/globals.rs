//! `globals.sql`, the third stream of a point: roles with their attributes and memberships, and tablespaces, as pg_dumpall writes them.
//!
//! Invariants:
//! - Never a password: `--no-role-passwords`, which also asks for no more than every user may read.
//! - Whole, or not at all: what comes is held until pg_dumpall has said that it is done, up to [`GLOBALS_MAX`].
//! - They are no part of the dump's snapshot: they are read just after it, as what belongs to a server can be.
//! - A point is good without them. What a managed service refuses, or what takes longer than [`TIMEOUT`], is a warning.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::child;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::Problem;
use vaultferry_proto::status::chain;

use crate::client::Program;
use crate::connection::Server;

/// 100,000 roles with their memberships, and small enough to be held in memory.
pub const GLOBALS_MAX: u64 = 16 * 1024 * 1024;

/// pg_dumpall asks a dozen short questions.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Its last line but the comment's frame. Newer ones write `\unrestrict` after it.
const END: &str = "PostgreSQL database cluster dump complete";

/// Reads them with the pg_dumpall beside this pg_dump. The inner error says why there are none; only a cancelled job is a problem. No child is
/// left behind.
pub(crate) async fn read(
    server: &Server,
    pg_dump: &Program,
    cancel: &CancellationToken,
) -> Result<Result<Vec<u8>, String>, Problem> {
    let reading = async {
        let read = tokio::time::timeout(TIMEOUT, run(server, pg_dump, cancel)).await;
        Ok(read.unwrap_or_else(|_| Err(format!("pg_dumpall did not end within {} s", TIMEOUT.as_secs()))))
    };
    unless_cancelled(reading, cancel).await
}

async fn run(server: &Server, pg_dump: &Program, cancel: &CancellationToken) -> Result<Vec<u8>, String> {
    let database = server.uri().source_database().map_err(|problem| problem.message)?;
    let program = pg_dump.path.with_file_name(format!("pg_dumpall{}", std::env::consts::EXE_SUFFIX));
    if !program.is_file() {
        return Err(format!("{} is missing", program.display()));
    }
    let environment = server.child_environment(database, pg_dump.major, cancel).await;
    let environment = environment.map_err(|problem| problem.message)?;
    let command = child::Command::new(&program)
        .args(["--globals-only", "--no-role-passwords", "--no-password"])
        // Without it pg_dumpall logs in to `postgres`, which the backup's user may not be let into.
        .arg(format!("--database={}", connection_string(database)))
        .envs(environment)
        // Else it is the database's encoding, which whoever reads the stream would have to know.
        .envs([("PGCLIENTENCODING", "UTF8".into())])
        .pipe_stdout();
    let mut child = command.spawn().await.map_err(|error| chain(&error))?;
    let mut globals = Vec::new();
    if let Some(stdout) = child.take_stdout() {
        let read = stdout.take(GLOBALS_MAX + 1).read_to_end(&mut globals).await;
        read.map_err(|error| chain(&error))?;
    }
    if globals.len() as u64 > GLOBALS_MAX {
        child.stop().await;
        return Err(format!("they are larger than {} MiB", GLOBALS_MAX >> 20));
    }
    let ended = child.finish(cancel).await.map_err(|error| chain(&error))?;
    if !ended.success() {
        let words = if ended.words.is_empty() { "it said nothing" } else { ended.words.as_str() };
        return Err(format!("pg_dumpall ended with {}: {words}", ended.how()));
    }
    if !is_whole(&globals) {
        return Err("pg_dumpall's output breaks off".to_owned());
    }
    Ok(globals)
}

/// As a parameter of a connection string: a bare name with = or :// in it would be taken for one.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn is_whole(globals: &[u8]) -> bool {
    let tail = &globals[globals.len().saturating_sub(1024)..];
    String::from_utf8_lossy(tail).contains(END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_databases_name_means_itself() {
        assert_eq!(connection_string("shop"), "dbname='shop'");
        assert_eq!(connection_string("postgres://x?a=b"), "dbname='postgres://x?a=b'");
        assert_eq!(connection_string(r"it's \ here"), r"dbname='it\'s \\ here'");
    }

    #[test]
    fn only_what_has_its_last_line_is_whole() {
        let whole = b"--\n-- Roles\n--\nCREATE ROLE a;\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n\\unrestrict x\n\n";
        assert!(is_whole(whole));
        for end in [0, 10, whole.len() - 40] {
            assert!(!is_whole(&whole[..end]), "{end}");
        }
    }

    #[cfg(unix)]
    mod with_a_stand_in {
        use std::os::unix::fs::PermissionsExt as _;

        use vaultferry_plugin_sdk::Source;

        use super::*;
        use crate::client::Major;

        /// What comes of a pg_dumpall that is this script.
        async fn read_with(script: &str) -> Result<Vec<u8>, String> {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pg_dumpall");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let server = Server::new(&Source { uri: "postgres://u@h/d".into(), credential: None }, None).unwrap();
            let program = Program { path: dir.path().join("pg_dump"), version: "15.1".into(), major: Major::new(15) };
            read(&server, &program, &CancellationToken::new()).await.unwrap()
        }

        #[tokio::test]
        async fn half_of_them_are_none() {
            let good = "echo \"$@\"; echo \"-- PostgreSQL database cluster dump complete\"";
            let text = String::from_utf8(read_with(good).await.unwrap()).unwrap();
            assert!(
                text.starts_with("--globals-only --no-role-passwords --no-password --database=dbname='d'\n"),
                "{text}"
            );
            let failed = read_with(&format!("{good}; echo no right >&2; exit 1")).await.unwrap_err();
            assert_eq!(failed, "pg_dumpall ended with exit status 1: no right");
            assert_eq!(read_with("echo half").await.unwrap_err(), "pg_dumpall's output breaks off");
            let large = read_with(&format!("head -c 17000000 /dev/zero; {good}")).await.unwrap_err();
            assert_eq!(large, "they are larger than 16 MiB");
        }

        #[tokio::test]
        async fn a_missing_program_is_named() {
            let server = Server::new(&Source { uri: "postgres://u@h/d".into(), credential: None }, None).unwrap();
            let program =
                Program { path: "/nowhere/bin/pg_dump".into(), version: "15.1".into(), major: Major::new(15) };
            let missing = read(&server, &program, &CancellationToken::new()).await.unwrap().unwrap_err();
            assert_eq!(missing, "/nowhere/bin/pg_dumpall is missing");
        }
    }
}
