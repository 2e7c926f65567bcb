//! A look at what is said to be unchanged: some of it is read all the same, and compared with the point before.
//!
//! One chunk that differs means that the comparison of snapshots cannot be relied on: then everything is read.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;
use vaultferry_vault::writer::{IMAGE_CHUNK, Throttle};

use super::Reading;
use crate::plan::Piece;
use crate::provider::Snapshot;

/// Whoever waits for the limit sees so often whether the job was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// Reads about `percent` of the chunks that are to be taken over. The bytes that were read, or what differs, for people. Which chunks are
/// drawn depends on the job, so that in time all of them are.
pub(super) async fn compare(
    snapshot: &Snapshot,
    readings: &[Reading],
    percent: u32,
    job_id: &str,
    throttle: Option<&Arc<Throttle>>,
    cancel: &CancellationToken,
) -> Result<Result<u64, String>, Problem> {
    let mut read = 0;
    for (disk, reading) in snapshot.disks.iter().zip(readings) {
        let drawn: Vec<u64> = reading
            .pieces
            .iter()
            .filter_map(|piece| if let Piece::Same(chunks) = piece { Some(chunks.clone()) } else { None })
            .flatten()
            .filter(|number| is_drawn(job_id, *number, percent))
            .collect();
        if drawn.is_empty() {
            continue;
        }
        let file = disk.file.try_clone().map_err(|error| unreadable(&disk.name, &error))?;
        let (size, name, chunks, cancel) = (disk.size, disk.name.clone(), reading.chunks.clone(), cancel.clone());
        let throttle = throttle.cloned();
        let compared = tokio::task::spawn_blocking(move || {
            let (mut buffer, mut read) = (vec![0; IMAGE_CHUNK], 0);
            for number in drawn {
                if cancel.is_cancelled() {
                    return Err(cancelled());
                }
                let start = number * IMAGE_CHUNK as u64;
                let bytes = &mut buffer[..(size - start).min(IMAGE_CHUNK as u64) as usize];
                let turn = throttle.as_ref().map(|throttle| throttle.turn(bytes.len() as u64));
                while let Some(wait) = turn.map(|turn| turn.saturating_duration_since(Instant::now()))
                    && !wait.is_zero()
                    && !cancel.is_cancelled()
                {
                    std::thread::sleep(wait.min(LOOK));
                }
                file.read_exact_at(bytes, start).map_err(|error| unreadable(&name, &error))?;
                read += bytes.len() as u64;
                if chunks.get(number as usize) != Some(&Id::of(bytes)) {
                    return Ok(Err(format!(
                        "{name} differs from the point before at byte {start}, where its snapshots were said to be the same"
                    )));
                }
            }
            Ok(Ok(read))
        });
        match compared.await.map_err(|error| Problem::new(Reason::Internal, error.to_string()))?? {
            Ok(bytes) => read += bytes,
            Err(differs) => return Ok(Err(differs)),
        }
    }
    Ok(Ok(read))
}

fn unreadable(disk: &str, error: &std::io::Error) -> Problem {
    Problem::new(Reason::DiskUnreadable, format!("the snapshot of {disk} cannot be read: {error}"))
}

fn is_drawn(job_id: &str, number: u64, percent: u32) -> bool {
    if percent == 0 {
        return false;
    }
    let draw = Id::of(format!("{job_id}/{number}").as_bytes());
    let draw = draw.as_bytes();
    u32::from(draw[0]) * 256 + u32::from(draw[1]) < percent.saturating_mul(65_536) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_so_many_are_drawn_and_others_by_the_next_job() {
        let drawn = |job: &str, percent: u32| (0..10_000).filter(|number| is_drawn(job, *number, percent)).count();
        assert_eq!((drawn("a", 0), drawn("a", 100)), (0, 10_000));
        assert!((350..650).contains(&drawn("a", 5)), "{}", drawn("a", 5));
        assert!((0..10_000).any(|number| is_drawn("a", number, 5) && !is_drawn("b", number, 5)));
    }
}
