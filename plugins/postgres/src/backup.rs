//! A backup: pg_dump's output into the vault.
//!
//! The order is what makes a half dump impossible to stage: the output ends, then pg_dump's exit status must be 0, then what came
//! must begin as an archive does; only then is anything staged. A pg_dump that dies closes its output like one that is done.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{BackupJob, Reporter, child};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::writer::{Backup, SnapshotMeta, Staged, WriteError};

use crate::client::{self, Kind, Program};
use crate::connection::{Server, words_reason};
use crate::facts::Facts;
use crate::settings::Settings;
use crate::{DUMP_STREAM, FACTS_STREAM, validate};

/// The first bytes of every archive in pg_dump's custom format.
const ARCHIVE_MAGIC: &[u8; 5] = b"PGDMP";

/// See [`vaultferry_plugin_sdk::Workload::backup`].
pub(crate) async fn backup(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    // Whatever stopped first when the job was cancelled, the job was cancelled.
    let result = run(job, reporter, cancel).await;
    result.map_err(|problem| if cancel.is_cancelled() { cancelled() } else { problem })
}

async fn run(job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
    let settings = Settings::parse(&job.settings_json)?;
    let server = Server::new(&job.source, None)?;
    reporter.phase("looking at the database");
    let (program, facts) = look(&server, &settings, cancel).await?;
    reporter.expect_bytes(facts.size_bytes);
    if let Some(warning) = validate::large(facts.size_bytes) {
        reporter.warn(warning).await;
    }
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let options = job.vault.write_options(job.compression);
    let mut backup = Backup::begin(repository, options, reporter.meter().clone(), cancel).await?;
    reporter.phase("dumping");
    let time = jiff::Timestamp::now();
    if let Err(problem) = dump(&server, &program, &mut backup, reporter.meter(), cancel).await {
        backup.abandon(cancel).await;
        return Err(problem);
    }
    reporter.phase("finishing");
    let json = facts.to_json()?;
    backup.write_stream(FACTS_STREAM, json.as_slice(), cancel).await.map_err(|error| match error {
        WriteError::Vault(error) => Problem::from(error),
        WriteError::Input(error) => Problem::new(Reason::Internal, error.to_string()),
    })?;
    let meta = SnapshotMeta { time, hostname: vaultferry_plugin_sdk::hostname(), tags: job.tags };
    Ok(backup.stage(meta, cancel).await?)
}

/// What must be known before the dump: with which program, and what is in the database.
async fn look(server: &Server, settings: &Settings, cancel: &CancellationToken) -> Result<(Program, Facts), Problem> {
    let session = server.connect(cancel).await?;
    let what_for = format!("the server {}", server.uri().server());
    let program = client::choose(Kind::Dump, session.major(), &what_for, settings, cancel).await?;
    let facts = session.run(Facts::gather(&session, &program), Reason::DumpFailed, cancel).await?;
    tracing::info!(
        server = session.version(),
        pg_dump = program.version,
        path = %program.path.display(),
        bytes = facts.size_bytes,
        "the database is ready to be dumped"
    );
    Ok((program, facts))
}

/// Streams the dump. When it returns Ok, the stream is a complete archive.
async fn dump(
    server: &Server,
    program: &Program,
    backup: &mut Backup,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let database = server.uri().source_database()?;
    let command = child::Command::new(&program.path)
        .args(["--format=custom", "--compress=0", "--no-password"])
        .envs(server.child_environment(database, program.major))
        .pipe_stdout();
    let mut child = command.spawn().await.map_err(|error| Problem::new(Reason::DumpFailed, chain(&error)))?;
    let stdout = child.take_stdout().ok_or_else(|| Problem::new(Reason::Internal, "pg_dump has no output"))?;
    stdout.follow(meter);
    let mut archive = Archive { input: stdout, head: Vec::new() };
    let written = backup.write_stream(DUMP_STREAM, &mut archive, cancel).await;
    let Archive { input, head } = archive;
    drop(input);
    if let Err(WriteError::Vault(error)) = written {
        child.stop().await;
        return Err(error.into());
    }
    let ended = match child.finish(cancel).await {
        Ok(ended) => ended,
        Err(child::Error::Cancelled) => return Err(cancelled()),
        Err(error) => return Err(Problem::new(Reason::DumpFailed, chain(&error))),
    };
    if let Err(error) = &written
        && ended.success()
    {
        return Err(Problem::new(Reason::DumpFailed, format!("pg_dump's output broke off: {}", chain(error))));
    }
    judge(&ended, &head)
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
