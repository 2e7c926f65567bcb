//! pg_dump at work: started, waited for, streamed, judged.
//!
//! | when | what may go wrong | what becomes of it |
//! |---|---|---|
//! | before the first byte, while it locks every table | a lock does not come within `lock_timeout` | ended, and begun again after a pause, `lock_retries` times; then `LockTimeout`, which names who held it |
//! | before it | the snapshot is too old by then: a huge schema, a slow catalog | ended, with `snapshot_limit` only; `snapshot_budget`, `ddl_budget` and `yield_to_ddl` begin with the first byte |
//! | after it | the snapshot is too old, or somebody waits for too long ([`guard`]) | ended, when the settings say so |
//! | after it | anything | the dump has failed: what came is no archive |
//!
//! Invariants:
//! - pg_dump writes nothing before it has every lock, so a try that waited in vain has left nothing in the vault's stream.
//! - Between two tries pg_dump holds no lock: whoever queued up behind it goes on.
//! - The order at the end is what makes a half dump impossible to stage: the output ends, then pg_dump's exit status must be 0, then what came
//!   must begin as an archive does, and end as one, as far as it was understood ([`crate::archive`]); only then is it good. A pg_dump that dies
//!   closes its output like one that is done.
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

use crate::archive::{Contents, Outcome, Reader};
use crate::client::{self, Program};
use crate::connection::{Server, words_reason};
use crate::facts::SnapshotFacts;
use crate::readiness::locks::{self, Holder};
use crate::settings::Settings;
use crate::{DUMP_STREAM, snapshot};

mod guard;

use guard::Guard;

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
    snapshot: SnapshotFacts,
}

/// A good dump, and what was seen of it.
pub(crate) struct Dumped {
    /// What it shows.
    pub(crate) snapshot: SnapshotFacts,
    /// What is in it, or why that was not understood.
    pub(crate) counted: Result<Contents, &'static str>,
    /// What pg_dump has said: its warnings.
    pub(crate) words: String,
    /// pg_dump's exit status.
    pub(crate) exit_status: Option<i32>,
}

impl Dump<'_> {
    /// What the job's step is called.
    pub(crate) fn phase(&self) -> &'static str {
        match self.settings.read_limit_bytes_per_s {
            None => "dumping",
            Some(_) => "dumping, limited",
        }
    }

    /// Streams the dump. When it returns Ok, the stream is a complete archive, and the reporter knows for how long its snapshot was held;
    /// after an error the backup is good for nothing but [`Backup::abandon`]. No pg_dump is left behind.
    pub(crate) async fn run(&self, backup: &mut Backup, cancel: &CancellationToken) -> Result<Dumped, Problem> {
        self.reporter.set_snapshot_transactions(0);
        let Begun { child, input, since, snapshot } = self.begin(cancel).await?;
        let mut archive = Archive::new(input);
        let guard = Guard { server: self.server, settings: self.settings, reporter: self.reporter, since };
        let stop = cancel.child_token();
        let (written, verdict) = {
            let mut writing = std::pin::pin!(backup.write_stream(DUMP_STREAM, &mut archive, &stop));
            tokio::select! {
                biased;
                written = &mut writing => (written, None),
                // Both share what tokio lets one task do in a turn, and the writer comes first. When it has used that up, every timer and
                // socket of the guard would say that it is not ready, turn after turn, as long as the dump comes fast.
                problem = tokio::task::coop::unconstrained(guard.watch(cancel)) => {
                    stop.cancel();
                    (writing.await, Some(problem))
                }
            }
        };
        let Archive { input, head, reader } = archive;
        drop(input);
        // A dump that was written to its end in the same moment is in nobody's way any more.
        if let Some(problem) = verdict.filter(|_| written.is_err()) {
            child.stop().await;
            return Err(problem);
        }
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
        let counted = whole(reader)?;
        self.reporter.set_snapshot_held(since.elapsed());
        Ok(Dumped { snapshot, counted, exit_status: ended.status.code(), words: ended.words })
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
        let snapshot = snapshot::look(self.server, cancel).await;
        let command = client::dump_command(self.program, cancel)
            .await
            .args(["--format=custom", "--compress=0", "--no-password"])
            .arg(format!("--lock-wait-timeout={}", self.settings.lock_timeout().as_millis()))
            .envs(self.server.child_environment(database, self.program.major, cancel).await?)
            .pipe_stdout()
            .limit_stdout(self.settings.read_limit_bytes_per_s);
        let since = Instant::now();
        let mut child = command.spawn().await.map_err(|error| Problem::new(Reason::DumpFailed, chain(&error)))?;
        let stdout = child.take_stdout();
        let mut stdout = stdout.ok_or_else(|| Problem::new(Reason::Internal, "pg_dump has no output"))?;
        stdout.follow(self.reporter.meter());
        let (mut first, mut seen) = (vec![0; FIRST_PIECE], Vec::new());
        let read = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(cancelled()),
            read = stdout.read(&mut first) => Ok(read),
            problem = too_old(since, self.settings.snapshot_limit()) => Err(problem),
            never = self.watch(&mut seen, cancel) => match never {},
        };
        let read = match read {
            Ok(Ok(count @ 1..)) => {
                first.truncate(count);
                self.reporter.note(String::new());
                return Ok(Begun { child, input: Cursor::new(first).chain(stdout), since, snapshot });
            }
            Ok(read) => read,
            Err(problem) => {
                drop(stdout);
                child.stop().await;
                return Err(problem);
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
            match locks::blocking(&session, self.server.application()).await {
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
}

/// Ends when a pg_dump that was started at `since`, and has written nothing, has had its snapshot for too long: it takes it before its locks.
async fn too_old(since: Instant, limit: Option<Duration>) -> Problem {
    let Some(limit) = limit else { return std::future::pending().await };
    tokio::time::sleep(limit.saturating_sub(since.elapsed())).await;
    let seconds = limit.as_secs();
    let message = format!("the backup was ended: pg_dump had written nothing after {seconds} s (snapshot_limit)");
    Problem::new(Reason::SnapshotTooOld, message)
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
    match head {
        [] => Err(Problem::new(Reason::DumpFailed, "pg_dump ended with exit status 0 and wrote nothing")),
        head if head == ARCHIVE_MAGIC => Ok(()),
        _ => Err(Problem::new(Reason::DumpFailed, "what pg_dump wrote is no archive")),
    }
}

/// What was counted in an archive whose pg_dump has ended well. One that breaks off is none, whatever pg_dump says.
fn whole(reader: Reader) -> Result<Result<Contents, &'static str>, Problem> {
    match reader.finish() {
        Outcome::Whole(contents) => Ok(Ok(contents)),
        Outcome::Unknown(why) => {
            tracing::info!("the rows of the dump were not counted: {why}");
            Ok(Err(why))
        }
        Outcome::Cut(place) => {
            let message = format!("pg_dump ended with exit status 0, but the archive that it wrote breaks off {place}");
            Err(Problem::new(Reason::DumpFailed, message))
        }
    }
}

/// Passes an archive on, keeps its first bytes, and has it read as it passes.
struct Archive<R> {
    input: R,
    head: Vec<u8>,
    reader: Reader,
}

impl<R> Archive<R> {
    fn new(input: R) -> Self {
        Self { input, head: Vec::new(), reader: Reader::default() }
    }
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
        self.reader.feed(new);
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

    /// A proof besides the exit status. What is not understood is not held against a dump that ended well.
    #[test]
    fn an_archive_that_breaks_off_is_none_whatever_pg_dump_says() {
        let mut reader = Reader::default();
        reader.feed(b"PGDMP\x01\x0e\0\x04\x08\x01\0");
        let problem = whole(reader).unwrap_err();
        assert_eq!(problem.reason, Reason::DumpFailed);
        assert!(problem.message.ends_with("breaks off in its table of contents"), "{problem}");
        let mut reader = Reader::default();
        reader.feed(b"PGDMP\x02\x01\0\x04\x08\x01");
        assert_eq!(whole(reader), Ok(Err("the version of its format is not known here")));
    }

    #[tokio::test]
    async fn a_dump_that_writes_nothing_is_ended_by_its_snapshots_limit() {
        let since = Instant::now().checked_sub(Duration::from_secs(4)).unwrap();
        let problem = too_old(since, Some(Duration::from_secs(3))).await;
        assert_eq!(problem.reason, Reason::SnapshotTooOld);
        assert!(problem.message.ends_with("nothing after 3 s (snapshot_limit)"), "{problem}");
        let forever = tokio::time::timeout(Duration::from_millis(20), too_old(since, None)).await;
        assert!(forever.is_err(), "nobody has set a limit");
    }

    #[tokio::test]
    async fn the_first_bytes_are_kept_however_they_come() {
        for piece in 1..7 {
            let input = tokio_util::io::StreamReader::new(futures::stream::iter(
                b"PGDMP and more".chunks(piece).map(Ok::<_, std::io::Error>),
            ));
            let mut archive = Archive::new(input);
            let mut all = Vec::new();
            archive.read_to_end(&mut all).await.unwrap();
            assert_eq!((archive.head.as_slice(), all.as_slice()), (&b"PGDMP"[..], &b"PGDMP and more"[..]));
        }
    }
}
