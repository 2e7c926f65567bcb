//! pg_dump at work: started, waited for, streamed, judged.
//!
//! | when | what may go wrong | what becomes of it |
//! |---|---|---|
//! | before the first byte, while it locks every table | a lock does not come within `lock_timeout` | ended, and begun again after a pause, `lock_retries` times; then `LockTimeout`, which names who held it |
//! | after it | anything | the dump has failed: what came is no archive |
//!
//! Invariants:
//! - pg_dump writes nothing before it has every lock, so a try that waited in vain has left nothing in the vault's stream.
//! - Between two tries pg_dump holds no lock: whoever queued up behind it goes on.
//! - The order at the end is what makes a half dump impossible to stage: the output ends, then pg_dump's exit status must be 0, then what came
//!   must begin as an archive does; only then is it good. A pg_dump that dies closes its output like one that is done.
//! - Time limits that the database or the role has set do not end a dump: pg_dump takes all of them away before its transaction begins
//!   (`statement_timeout`, `lock_timeout`, `idle_in_transaction_session_timeout`, since 17 `transaction_timeout`). They are not given through
//!   PGOPTIONS, which poolers in session mode would refuse.

use std::convert::Infallible;
use std::io::Cursor;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, Chain, ReadBuf};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::{cancelled, unless_cancelled};
use vaultferry_plugin_sdk::{Reporter, child};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::{Backup, WriteError};

use crate::DUMP_STREAM;
use crate::client::Program;
use crate::connection::{Server, words_reason};
use crate::readiness::locks::{self, Holder};
use crate::settings::Settings;

/// The first bytes of every archive in pg_dump's custom format.
const ARCHIVE_MAGIC: &[u8; 5] = b"PGDMP";

/// What is read before the stream is begun. pg_dump writes pieces of this size.
const FIRST_PIECE: usize = 4096;

/// Long enough for what queued up behind a dump's locks to get through, short beside the time that a try waits.
const LOCK_PAUSE: Duration = Duration::from_secs(5);

/// A dump that has its locks sooner needs nobody to watch it.
const WATCH_AFTER: Duration = Duration::from_millis(300);

/// How often it is looked who is in the way; often enough to see it within the shortest lock_timeout.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How often the snapshot's age is told.
const AGE_EVERY: Duration = Duration::from_secs(1);

/// One database's dump, which may be made more than once.
pub(crate) struct Dump<'a> {
    /// Where the database is.
    pub(crate) server: &'a Server,
    /// The pg_dump to start.
    pub(crate) program: &'a Program,
    /// How long it waits for locks.
    pub(crate) settings: &'a Settings,
    /// Who is told how it fares.
    pub(crate) reporter: &'a Reporter,
}

/// A pg_dump that has every lock, and has begun to write.
struct Begun {
    child: child::Child,
    input: Chain<Cursor<Vec<u8>>, child::Output>,
    since: Instant,
}

impl Dump<'_> {
    /// Streams the dump. When it returns Ok, the stream is a complete archive, and the reporter knows for how long its snapshot was held;
    /// after an error the backup is good for nothing but [`Backup::abandon`]. No pg_dump is left behind.
    pub(crate) async fn run(&self, backup: &mut Backup, cancel: &CancellationToken) -> Result<(), Problem> {
        let Begun { child, input, since } = self.begin(cancel).await?;
        let mut archive = Archive { input, head: Vec::new() };
        let written = tokio::select! {
            biased;
            written = backup.write_stream(DUMP_STREAM, &mut archive, cancel) => written,
            never = self.tell_age(since) => match never {},
        };
        let Archive { input, head } = archive;
        drop(input);
        if let Err(WriteError::Vault(error)) = written {
            child.stop().await;
            return Err(error.into());
        }
        let ended = finish(child, cancel).await?;
        if let Err(error) = &written
            && ended.success()
        {
            return Err(broke_off(&chain(error)));
        }
        judge(&ended, &head)?;
        self.reporter.set_snapshot_held(since.elapsed());
        Ok(())
    }

    /// Starts pg_dump until it has its locks, or has waited for them as often as it may.
    async fn begin(&self, cancel: &CancellationToken) -> Result<Begun, Problem> {
        let tries = self.settings.lock_retries.saturating_add(1);
        for left in (0..tries).rev() {
            match self.try_to_begin(cancel).await {
                Err(problem) if problem.reason == Reason::LockTimeout && left > 0 => {
                    tracing::info!(left, "pg_dump is started again: {}", problem.message);
                    self.reporter.note(format!("{}; {left} tries are left", problem.message));
                    let pause = async {
                        tokio::time::sleep(LOCK_PAUSE).await;
                        Ok(())
                    };
                    unless_cancelled(pause, cancel).await?;
                }
                Err(mut problem) if problem.reason == Reason::LockTimeout && tries > 1 => {
                    problem.message.push_str(&format!("; this was the last of {tries} tries"));
                    return Err(problem);
                }
                other => return other,
            }
        }
        Err(Problem::new(Reason::Internal, "pg_dump was never tried"))
    }

    async fn try_to_begin(&self, cancel: &CancellationToken) -> Result<Begun, Problem> {
        let database = self.server.uri().source_database()?;
        let command = child::Command::new(&self.program.path)
            .args(["--format=custom", "--compress=0", "--no-password"])
            .arg(format!("--lock-wait-timeout={}", self.settings.lock_timeout().as_millis()))
            .envs(self.server.child_environment(database, self.program.major, cancel).await?)
            .pipe_stdout();
        let since = Instant::now();
        let mut child = command.spawn().await.map_err(|error| Problem::new(Reason::DumpFailed, chain(&error)))?;
        let stdout = child.take_stdout();
        let mut stdout = stdout.ok_or_else(|| Problem::new(Reason::Internal, "pg_dump has no output"))?;
        stdout.follow(self.reporter.meter());
        let (mut first, mut seen) = (vec![0; FIRST_PIECE], Vec::new());
        let read = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            read = stdout.read(&mut first) => Some(read),
            never = self.watch(&mut seen, cancel) => match never {},
        };
        let read = match read {
            Some(Ok(count @ 1..)) => {
                first.truncate(count);
                self.reporter.note(String::new());
                return Ok(Begun { child, input: Cursor::new(first).chain(stdout), since });
            }
            Some(read) => read,
            None => {
                drop(stdout);
                child.stop().await;
                return Err(cancelled());
            }
        };
        drop(stdout);
        let ended = finish(child, cancel).await?;
        Err(match (judge(&ended, &[]), read) {
            (Err(problem), _) if problem.reason == Reason::LockTimeout => {
                lock_timeout(&problem, &seen, self.settings.lock_timeout())
            }
            (_, Err(error)) if ended.success() => broke_off(&error.to_string()),
            (Err(problem), _) => problem,
            (Ok(()), _) => broke_off("nothing came"),
        })
    }

    /// Looks who is in the way as long as pg_dump has not begun to write, and keeps those that were there last.
    async fn watch(&self, seen: &mut Vec<Holder>, cancel: &CancellationToken) -> Infallible {
        tokio::time::sleep(WATCH_AFTER).await;
        let session = match self.server.connect(cancel).await {
            Ok(session) => session,
            Err(problem) => {
                tracing::info!("pg_dump is not watched: {}", problem.message);
                std::future::pending().await
            }
        };
        let since = Instant::now();
        loop {
            match locks::blocking(&session).await {
                Ok(holders) if holders.is_empty() => self.reporter.note(String::new()),
                Ok(holders) => {
                    let seconds = since.elapsed().as_secs();
                    self.reporter.note(format!("waits for {}, for {seconds} s", waited_for(&holders)));
                    *seen = holders;
                }
                Err(error) => {
                    tracing::info!("pg_dump is not watched: {}", chain(&error));
                    std::future::pending::<()>().await;
                }
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// Tells for how long the snapshot is held.
    async fn tell_age(&self, since: Instant) -> Infallible {
        loop {
            self.reporter.note(format!("the source's snapshot is held for {} s", since.elapsed().as_secs()));
            tokio::time::sleep(AGE_EVERY).await;
        }
    }
}

/// "public.sales, held by pid 1234 (app: ALTER TABLE sales)"
fn waited_for(holders: &[Holder]) -> String {
    let relation = holders.iter().map(|holder| holder.relation.as_str()).find(|relation| !relation.is_empty());
    format!("{}, held by {}", relation.unwrap_or("a lock"), locks::names(holders))
}

/// What pg_dump says of a lock that did not come is a list of all its tables; who was seen says more.
fn lock_timeout(problem: &Problem, seen: &[Holder], timeout: Duration) -> Problem {
    let seconds = timeout.as_secs();
    let message = match seen {
        [] => {
            let words: String = problem.message.chars().take(300).collect();
            format!("a table's lock did not come within {seconds} s: {words}")
        }
        seen => format!("a lock did not come within {seconds} s: {}", waited_for(seen)),
    };
    Problem::new(Reason::LockTimeout, message)
}

fn broke_off(detail: &str) -> Problem {
    Problem::new(Reason::DumpFailed, format!("pg_dump's output broke off: {detail}"))
}

async fn finish(child: child::Child, cancel: &CancellationToken) -> Result<child::Ended, Problem> {
    child.finish(cancel).await.map_err(|error| match error {
        child::Error::Cancelled => cancelled(),
        error => Problem::new(Reason::DumpFailed, chain(&error)),
    })
}

/// Says whether a dump that has ended is a good one.
fn judge(ended: &child::Ended, head: &[u8]) -> Result<(), Problem> {
    if !ended.success() {
        let words = if ended.words.is_empty() { "it said nothing" } else { ended.words.as_str() };
        let reason = words_reason(&ended.words, Reason::DumpFailed);
        return Err(Problem::new(reason, format!("pg_dump ended with {}: {words}", ended.how())));
    }
    if !ended.words.is_empty() {
        tracing::warn!("pg_dump says: {}", ended.words);
    }
    match head {
        [] => Err(Problem::new(Reason::DumpFailed, "pg_dump ended with exit status 0 and wrote nothing")),
        head if head == ARCHIVE_MAGIC => Ok(()),
        _ => Err(Problem::new(Reason::DumpFailed, "what pg_dump wrote is no archive")),
    }
}

/// Passes an archive on, and keeps its first bytes.
struct Archive<R> {
    input: R,
    head: Vec<u8>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Archive<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.input).poll_read(context, buffer);
        let wanted = ARCHIVE_MAGIC.len() - self.head.len();
        let new = &buffer.filled()[before..];
        self.head.extend_from_slice(&new[..wanted.min(new.len())]);
        polled
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn ended(wait_status: i32, words: &str) -> child::Ended {
        child::Ended { status: ExitStatus::from_raw(wait_status), words: words.to_owned() }
    }

    #[test]
    fn only_an_archive_of_a_pg_dump_that_says_it_is_done_is_good() {
        assert_eq!(judge(&ended(0, "pg_dump: warning: x"), b"PGDMP"), Ok(()));
        let cases = [
            (judge(&ended(0, ""), b""), "wrote nothing"),
            (judge(&ended(0, ""), b"PGDM"), "no archive"),
            (judge(&ended(0, ""), b"hello"), "no archive"),
            (judge(&ended(1 << 8, "pg_dump: error: bad"), b"PGDMP"), "exit status 1: pg_dump: error: bad"),
            (judge(&ended(9, ""), b"PGDMP"), "signal 9 (SIGKILL): it said nothing"),
        ];
        for (judged, message) in cases {
            let problem = judged.unwrap_err();
            assert_eq!(problem.reason, Reason::DumpFailed);
            assert!(problem.message.contains(message), "{problem}");
        }
    }

    #[tokio::test]
    async fn the_first_bytes_are_kept_however_they_come() {
        for piece in 1..7 {
            let input = tokio_util::io::StreamReader::new(futures::stream::iter(
                b"PGDMP and more".chunks(piece).map(Ok::<_, std::io::Error>),
            ));
            let mut archive = Archive { input, head: Vec::new() };
            let mut all = Vec::new();
            archive.read_to_end(&mut all).await.unwrap();
            assert_eq!((archive.head.as_slice(), all.as_slice()), (&b"PGDMP"[..], &b"PGDMP and more"[..]));
        }
    }
}
