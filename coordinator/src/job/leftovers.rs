//! Commits that a failed job left in the vault without a word: neither published nor given up.
//!
//! A backup that fails behind its record gives the commit up in the vault. When the store does not take that either, its record stays, and
//! every prune keeps what the point would have needed. Only the coordinator can tell such a record from a commit that is going on, because
//! it knows the jobs; so it gives them up before each prune.
//!
//! Invariants:
//! - Only commits of jobs that have ended without a point are given up. An ended job never publishes: see `commit_staged` in `backup.rs`.
//!   Commits of running jobs, of jobs that the catalog does not know (those of an agent before this one, which may only sleep), and of
//!   completed ones (their snapshot file was lost, which a check must go on telling) are left as they are.
//! - No clock decides that. The day that passes first is for a request of the failed job that is still on its way to the store.

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use vaultferry_proto::Problem;
use vaultferry_vault::points;
use vaultferry_vault::store::Store;

use super::Shared;
use crate::catalog::{Catalog, Job, Status, Work};

/// Since the end of the job. No request to a store lives as long.
const MIN_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Gives up what ended jobs of the instance have left. What cannot be given up now is by the next prune, so no error fails this one.
pub(super) async fn give_up(shared: &Shared, job: &Job, cancel: &CancellationToken) {
    let given_up = async {
        let store = shared.vault.open_instance(&job.instance_id).map_err(vaultferry_vault::Error::from)?;
        give_up_in(&*shared.catalog, &*store, vaultferry_vault::clock::now(), cancel).await
    };
    match given_up.await {
        Ok(0) => {}
        Ok(count) => tracing::info!(job = job.id, count, "gave up the commits of failed backups"),
        Err(problem) => tracing::warn!(
            job = job.id,
            "what failed backups have uploaded may stay in the vault until the next prune: {}",
            problem.message
        ),
    }
}

async fn give_up_in(
    catalog: &dyn Catalog,
    store: &dyn Store,
    now: Timestamp,
    cancel: &CancellationToken,
) -> Result<u64, Problem> {
    let mut count = 0;
    for state in points::unfinished(store, cancel).await? {
        // The catalog takes the beginning of an id for the id.
        let maker = catalog.job(&state.created.job_id).await?.filter(|maker| maker.id == state.created.job_id);
        if maker.is_some_and(|maker| left_for_good(&maker, now)) {
            count += u64::from(points::abandon(store, &state.id, cancel).await?);
        }
    }
    Ok(count)
}

/// True when no point of that job will ever appear.
fn left_for_good(maker: &Job, now: Timestamp) -> bool {
    let Work::Backup { .. } = maker.work else { return false };
    match maker.status {
        Status::Failed { end_time, .. } | Status::Cancelled { end_time } => now.duration_since(end_time) >= MIN_AGE,
        Status::InProgress | Status::Cancelling | Status::Completed { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vaultferry_proto::Reason;
    use vaultferry_vault::commit::{self, Record};
    use vaultferry_vault::records::PointCreated;
    use vaultferry_vault::store::memory::Memory;
    use vaultferry_vault::{Id, store};

    use super::*;
    use crate::catalog::sqlite::Sqlite;
    use crate::catalog::{Attempt, Inserted};

    fn never() -> CancellationToken {
        CancellationToken::new()
    }

    /// A backup job of an instance of its own, in that state.
    async fn job(catalog: &Sqlite, status: &Status) -> Job {
        let job = Job {
            id: uuid::Uuid::now_v7().simple().to_string(),
            create_time: vaultferry_vault::clock::now(),
            instance_id: uuid::Uuid::now_v7().simple().to_string(),
            instance_name: "shop".to_owned(),
            work: Work::Backup { rule: "Default".to_owned(), slot: None, keep_until: None, read_bytes_per_s: None },
            status: Status::InProgress,
            scheduled: false,
            request_id: None,
            warnings: Vec::new(),
            rehydrating: false,
            report: None,
            queued: false,
            attempt: Attempt::default(),
            steps: Vec::new(),
        };
        assert!(matches!(catalog.insert_job(job.clone()).await.expect("inserted"), Inserted::New));
        if *status != Status::InProgress {
            assert!(catalog.set_status(&job.id, status.clone(), Vec::new()).await.expect("its status"));
        }
        job
    }

    /// A commit of the job that has come as far as its record.
    async fn leave(store: &dyn Store, job_id: &str) -> Record {
        let sealed = bytes::Bytes::from(format!("the snapshot of {job_id}"));
        let record = Record {
            snapshot_id: Id::of(&sealed),
            sealed,
            prune_epoch: 0,
            packs: Vec::new(),
            time: vaultferry_vault::clock::now(),
            created: PointCreated {
                job_id: job_id.to_owned(),
                rule: "Default".to_owned(),
                policy: "nightly".to_owned(),
                policy_version: 1,
                slot: None,
                keep_until: None,
                streams: Vec::new(),
                source_bytes: 0,
                stored_bytes: 0,
                sealed_snapshot: String::new(),
                prune_epoch: 0,
                capture: None,
            },
        };
        commit::prepare(store, &record, &never()).await.expect("prepare");
        record
    }

    async fn given_up(store: &dyn Store, record: &Record) -> bool {
        points::read(store, &record.snapshot_id, &never()).await.expect("a point").abandoned
    }

    /// A job for each state that a job can be in; each has left a commit.
    #[tokio::test]
    async fn only_commits_of_jobs_that_ended_long_ago_without_a_point_are_given_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let catalog = Sqlite::open(&dir.path().join("catalog.sqlite")).expect("catalog");
        let store: store::Shared = Arc::new(Memory::new("memory"));
        let now = vaultferry_vault::clock::now();
        let completed = Status::Completed { end_time: now, point_id: None, bytes_read: 0, bytes_stored: 0 };
        let failed = Status::failed(&Problem::new(Reason::VaultUnavailable, "the vault was away"));
        let mut records = Vec::new();
        for (status, is_left_for_good) in [
            (failed.clone(), true),
            (Status::Cancelled { end_time: now }, true),
            (completed, false),
            (Status::Cancelling, false),
            (Status::InProgress, false),
        ] {
            let job = job(&catalog, &status).await;
            records.push((leave(&*store, &job.id).await, is_left_for_good));
        }
        // The job of another agent, of which this catalog knows nothing; a beginning of an id is not the id.
        let of_a_job = records[0].0.created.job_id[..31].to_owned();
        for unknown in ["ffffffffffffffffffffffffffffffff", &of_a_job] {
            records.push((leave(&*store, unknown).await, false));
        }
        // The job failed, and yet its point is there: whatever came to pass, it is a point.
        let job = job(&catalog, &failed).await;
        let published = leave(&*store, &job.id).await;
        commit::publish(&*store, &published, &never()).await.expect("publish");
        records.push((published, false));

        let soon = now + SignedDuration::from_hours(23);
        assert_eq!(
            give_up_in(&catalog, &*store, soon, &never()).await.expect("asked"),
            0,
            "a request may be under way"
        );
        let later = vaultferry_vault::clock::now() + SignedDuration::from_hours(25);
        assert_eq!(give_up_in(&catalog, &*store, later, &never()).await.expect("given up"), 2);
        for (record, is_left_for_good) in &records {
            assert_eq!(given_up(&*store, record).await, *is_left_for_good, "{record:?}");
        }
        assert_eq!(give_up_in(&catalog, &*store, later, &never()).await.expect("nothing more"), 0);
    }
}
