//! Restore as files: every stream of a point becomes a file of its name. The same for every workload.
//!
//! All files are written first, and get their names after that, in the order of their names: a failure while bytes move leaves no
//! file. What can still fail in the middle are the last steps; a folder's files are taken back then, and files in a container, for
//! which no right to delete is asked, are named in the message.

use std::path::Path;

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::store::retry;
use vaultferry_vault::target::{Config, FileSink, FilesTarget, Target};

use crate::report::Reporter;
use crate::workload::{FilesDestination, RestoreJob, cancelled, unless_cancelled};

/// Restores the job's point to `destination`; the result is the number of bytes. Nothing that exists is overwritten.
pub async fn restore(
    job: &RestoreJob,
    destination: &FilesDestination,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    // Whatever stopped first when the job was cancelled, the job was cancelled.
    let result = run(job, destination, reporter, cancel).await;
    result.map_err(|problem| if cancel.is_cancelled() { cancelled() } else { problem })
}

/// Removes what a killed restore left in a folder. In a container nothing is visible that would have to be removed.
pub async fn clean_up(job_id: &str, destination: &FilesDestination, cancel: &CancellationToken) -> Result<(), Problem> {
    match parse(&destination.to)? {
        FilesTarget::Azure { .. } => Ok(()),
        FilesTarget::Folder(dir) => {
            let removed = tokio::task::spawn_blocking(move || remove_parts(&dir));
            let removed = async { removed.await.map_err(|error| Problem::new(Reason::Internal, error.to_string()))? };
            let count = unless_cancelled(removed, cancel).await?;
            tracing::info!(job = job_id, count, "unfinished files are removed");
            Ok(())
        }
    }
}

fn parse(to: &str) -> Result<FilesTarget, Problem> {
    to.parse().map_err(|error| Problem::new(Reason::InvalidRequest, format!("{error}")))
}

async fn run(
    job: &RestoreJob,
    destination: &FilesDestination,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let parsed = parse(&destination.to)?;
    reporter.phase("opening the vault");
    let repository = job.open(cancel).await?;
    let point = PointReader::open(repository, job.snapshot_id, cancel).await?;
    reporter.expect_bytes(point.streams().iter().map(|stream| stream.size).sum());
    reporter.phase("opening the target");
    let config = Config {
        endpoint: destination.endpoint.clone(),
        credential: destination.credential.clone(),
        retry: retry::Config { deadline: job.vault.access.store_deadline },
    };
    let open = async {
        let target = parsed.open(&config).await?;
        create_all(&target, &point).await
    };
    let mut sinks = unless_cancelled(open, cancel).await?;
    reporter.phase("restoring");
    for (name, sink) in &mut sinks {
        unless_cancelled(copy(&point, name, sink, reporter, cancel), cancel).await?;
    }
    reporter.phase("finishing");
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    finish_all(sinks, &parsed).await
}

/// Begins every file, so that one that exists is refused before a byte is written.
async fn create_all(target: &Target, point: &PointReader) -> Result<Vec<(String, FileSink)>, Problem> {
    let mut sinks = Vec::new();
    for stream in point.streams() {
        sinks.push((stream.name.clone(), target.create(&stream.name).await?));
    }
    Ok(sinks)
}

async fn copy(
    point: &PointReader,
    name: &str,
    sink: &mut FileSink,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let mut chunks = point.chunks(name, cancel)?;
    let mut copied = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let size = chunk.len() as u64;
        sink.write(chunk).await?;
        copied += size;
        reporter.meter().add_read(size);
    }
    Ok(point.check_size(name, copied)?)
}

/// Gives the files their names. Not cancelled in the middle: it takes moments, and half of the files would be worse than all.
async fn finish_all(sinks: Vec<(String, FileSink)>, parsed: &FilesTarget) -> Result<u64, Problem> {
    let mut finished: Vec<String> = Vec::new();
    let mut bytes = 0;
    for (name, sink) in sinks {
        match sink.finish().await {
            Ok(size) => {
                bytes += size;
                finished.push(name);
            }
            Err(error) => return Err(take_back(error.into(), &finished, parsed).await),
        }
    }
    Ok(bytes)
}

async fn take_back(mut problem: Problem, finished: &[String], parsed: &FilesTarget) -> Problem {
    let mut left = Vec::new();
    for name in finished {
        let removed = match parsed {
            FilesTarget::Folder(dir) => tokio::fs::remove_file(dir.join(name)).await.is_ok(),
            FilesTarget::Azure { .. } => false,
        };
        if !removed {
            left.push(name.as_str());
        }
    }
    if !left.is_empty() {
        problem.message.push_str(&format!(". Of this restore {} is left there", left.join(", ")));
    }
    problem
}

/// Removes the files that the folder target calls `.vaultferry-<32 hexadecimal digits>.part` until they are whole.
fn remove_parts(dir: &Path) -> Result<usize, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(Reason::TargetNotWritable, format!("cannot clean up in {}: {error}", dir.display()))
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(error)),
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if is_part(&entry.file_name().to_string_lossy()) {
            match std::fs::remove_file(entry.path()) {
                Ok(()) => count += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(count)
}

fn is_part(name: &str) -> bool {
    let digits = name.strip_prefix(".vaultferry-").and_then(|rest| rest.strip_suffix(".part"));
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cleaning_up_removes_unfinished_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let part = format!(".vaultferry-{:032x}.part", 0xfeed);
        for name in [part.as_str(), "database.dump", ".vaultferry-notes.part", ".hidden"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let to = dir.path().display().to_string();
        let destination = FilesDestination { to, endpoint: None, credential: None };
        for _ in 0..2 {
            clean_up("job", &destination, &CancellationToken::new()).await.unwrap();
        }
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".hidden", ".vaultferry-notes.part", "database.dump"]);
        let gone = FilesDestination { to: "/nowhere/at/all".into(), endpoint: None, credential: None };
        clean_up("job", &gone, &CancellationToken::new()).await.unwrap();
    }
}
