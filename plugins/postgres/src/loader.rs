//! What fills a database from an archive: pg_restore by itself, or psql with what pg_restore writes.
//!
//! ```text
//!  archive ──► pg_restore ──► server                             the usual way
//!  archive ──► pg_restore ──► filter ──► psql ──► server         a pg_restore since 17, a server before 17
//! ```
//!
//! pg_restore since 17 begins with `SET transaction_timeout = 0`, at which such a server ends it. The filter drops this one line and nothing
//! else, and only in the script's head: further down the same words may be somebody's data.
//!
//! Invariants:
//! - The first error ends either way: `--exit-on-error`, ON_ERROR_STOP.
//! - A psql whose input breaks off says that it is done. So the database is filled only when both programs say that they are, and all that
//!   the first wrote has reached the second.
//! - A [`Loader`] that is dropped leaves no program behind.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::child::{self, Child, Command, Ended};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};

use crate::client::Restorer;
use crate::connection::Server;

/// The line that a server before 17 does not know.
const UNKNOWN_LINE: &[u8] = b"SET transaction_timeout = 0;";

/// A script's head is some 700 bytes long; whatever is in more than this is not looked for.
const HEAD_MAX: usize = 64 << 10;

/// What is passed on at once, in bytes.
const PIECE: usize = 128 << 10;

/// The running programs.
#[derive(Debug)]
pub(crate) struct Loader {
    restore: Child,
    psql: Option<Psql>,
}

#[derive(Debug)]
struct Psql {
    child: Child,
    program: PathBuf,
    /// Ends when pg_restore's output ends, or when psql does.
    pump: JoinHandle<io::Result<()>>,
}

impl Loader {
    /// Starts them for `database`, whose name is of letters, digits and `_`; `arguments` are pg_restore's own. They wait for the archive on
    /// [`Loader::take_stdin`]. A call that is dropped leaves no program.
    pub(crate) async fn start(
        restorer: &Restorer,
        server: &Server,
        database: &str,
        arguments: &[OsString],
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        // One of the two logs in, with a password of its own.
        let environment = server.child_environment(database, restorer.program.major, cancel).await?;
        let failed = |error: child::Error| Problem::new(Reason::RestoreFailed, chain(&error));
        let command = Command::new(&restorer.program.path)
            .args(["--format=custom", "--exit-on-error", "--no-password"])
            .args(restorer.arguments)
            .args(arguments)
            .pipe_stdin();
        let Some(path) = &restorer.psql else {
            // Letters and digits only: nothing that could be taken for a connection string.
            let command = command.arg(format!("--dbname={database}")).envs(environment);
            return Ok(Self { restore: command.spawn().await.map_err(failed)?, psql: None });
        };
        let mut restore = command.arg("--file=-").pipe_stdout().spawn().await.map_err(failed)?;
        let mut child = psql(path, database).envs(environment).spawn().await.map_err(failed)?;
        let (Some(output), Some(input)) = (restore.take_stdout(), child.take_stdin()) else {
            return Err(Problem::new(Reason::Internal, "psql or pg_restore has no pipe"));
        };
        let pump = tokio::spawn(pass_on(output, input));
        Ok(Self { restore, psql: Some(Psql { child, program: path.clone(), pump }) })
    }

    /// Where to write the archive; dropping it is its end. `None` when it was taken.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.restore.take_stdin()
    }

    /// Waits until all has ended by itself: how the program ended that is to blame, or else pg_restore, and what both have said. A
    /// cancellation stops both.
    pub(crate) async fn finish(self, cancel: &CancellationToken) -> Result<Ended, child::Error> {
        let restored = self.restore.finish(cancel).await;
        let Some(psql) = self.psql else { return restored };
        let restored = match restored {
            Ok(restored) => restored,
            Err(error) => {
                psql.child.stop().await;
                return Err(error);
            }
        };
        let loaded = psql.child.finish(cancel).await?;
        let pumped = psql.pump.await.map_err(io::Error::other).flatten();
        // A psql that fails breaks pg_restore's pipe: then what psql says is the cause. But it may have failed at what pg_restore told it.
        if !loaded.success() {
            return Ok(Ended { status: loaded.status, words: both(&loaded.words, &restored.words) });
        }
        let words = both(&restored.words, &loaded.words);
        if restored.success() {
            pumped.map_err(|source| child::Error::Wait { program: psql.program, source })?;
        }
        Ok(Ended { status: restored.status, words })
    }

    /// Ends all, and waits until they are gone.
    pub(crate) async fn stop(self) {
        self.restore.stop().await;
        if let Some(psql) = self.psql {
            psql.child.stop().await;
        }
    }
}

/// What two programs have said, the one to blame first.
fn both(first: &str, second: &str) -> String {
    [first, second].join("\n").trim().to_owned()
}

/// Runs a script from its standard input. What the statements answer goes nowhere.
fn psql(path: &Path, database: &str) -> Command {
    Command::new(path)
        .args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"])
        .arg(format!("--dbname={database}"))
        .pipe_stdin()
}

/// Passes a script on without the [`UNKNOWN_LINE`] of its head. Dropping `output` at the end is psql's end of input.
async fn pass_on(mut input: impl AsyncRead + Unpin, mut output: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = vec![0; PIECE];
    let line = loop {
        match find(&head) {
            Head::At(line) => break Some(line),
            Head::Over => break None,
            Head::GoesOn if head.len() > HEAD_MAX => break None,
            Head::GoesOn => {}
        }
        match input.read(&mut buffer).await? {
            0 => break None,
            count => head.extend_from_slice(&buffer[..count]),
        }
    };
    if let Some(line) = line {
        head.drain(line);
    }
    output.write_all(&head).await?;
    loop {
        match input.read(&mut buffer).await? {
            0 => return output.shutdown().await,
            count => output.write_all(&buffer[..count]).await?,
        }
    }
}

/// What is known of the line in a script's first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// It is here, with its end of line.
    At(Range<usize>),
    /// It is not in the head.
    Over,
    /// More must be read.
    GoesOn,
}

/// The head is what comes before the first statement that is no SET.
fn find(script: &[u8]) -> Head {
    let mut begin = 0;
    while let Some(length) = script[begin..].iter().position(|byte| *byte == b'\n') {
        let end = begin + length;
        let line = &script[begin..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line == UNKNOWN_LINE {
            return Head::At(begin..end + 1);
        }
        let in_head =
            line.is_empty() || [&b"--"[..], b"\\restrict ", b"SET "].iter().any(|word| line.starts_with(word));
        if !in_head {
            return Head::Over;
        }
        begin = end + 1;
    }
    Head::GoesOn
}

#[cfg(test)]
mod tests;
