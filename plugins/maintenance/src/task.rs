//! The tasks, in domain words, and what each tells at its end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{Reporter, VaultAccess, Warning};
use vaultferry_proto::Problem;
use vaultferry_vault::location::Location;
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::points::PointState;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::{Error, Id, holds, points, store};

mod archive;
pub(crate) mod check;
mod prune;

/// How long the maintenance lease of a task that was killed stands in the way of the next one, where nobody can tell that it is dead. Renewed
/// three times within it.
const LEASE_TERM: Duration = Duration::from_secs(60);
/// How long a task waits for the lease: a dead holder's has expired by then, and whoever still holds it is alive.
const LEASE_PATIENCE: Duration = Duration::from_secs(90);
/// Between two tries.
const LEASE_RETRY: Duration = Duration::from_secs(2);

/// One task on one instance's store.
pub(crate) struct Job {
    /// For the records that the task writes, and for logs.
    pub id: String,
    /// The instance's store, and its repository's password when the task needs it.
    pub vault: VaultAccess,
    /// What to do.
    pub task: Task,
}

/// What can be done. See the messages of the same names in maintenance.proto.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Task {
    Check {
        keyless: bool,
        read_data_percent: f64,
    },
    VerifyPoint(Id),
    /// Points are purged whose purge time is not after `purge_until`; `None`: what the machine's clock says.
    Prune {
        dry_run: bool,
        purge_until: Option<jiff::Timestamp>,
    },
    DeletePoint {
        id: Id,
        purge_time: jiff::Timestamp,
    },
    UndeletePoint(Id),
    ArchivePoint {
        id: Id,
        remove_from_vault: bool,
    },
    Rehydrate(Id),
    CleanUpRehydrated,
    Finish,
    LegalHold {
        id: Id,
        hold: bool,
    },
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Check { .. } => "check",
            Self::VerifyPoint(_) => "verify-point",
            Self::Prune { .. } => "prune",
            Self::DeletePoint { .. } => "delete-point",
            Self::UndeletePoint(_) => "undelete-point",
            Self::ArchivePoint { remove_from_vault: false, .. } => "archive-point",
            Self::ArchivePoint { remove_from_vault: true, .. } => "move-point",
            Self::Rehydrate(_) => "rehydrate",
            Self::CleanUpRehydrated => "clean-up-rehydrated",
            Self::Finish => "finish",
            Self::LegalHold { hold: true, .. } => "hold",
            Self::LegalHold { hold: false, .. } => "release",
        }
    }
}

/// A point that a finding concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// Its snapshot.
    pub id: Id,
    /// When its source was read; `None` when nothing readable says it.
    pub time: Option<jiff::Timestamp>,
}

/// Something in the vault that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `altered`, `missing`, …
    pub kind: String,
    /// Data of a point is concerned.
    pub damage: bool,
    /// The file's place in the instance's store.
    pub file: String,
    /// What is wrong with it.
    pub message: String,
    /// Listed points that need it.
    pub points: Vec<Affected>,
}

/// What a task tells at its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Done {
    /// Those that were kept.
    pub findings: Vec<Finding>,
    /// How many were not kept, because there were too many.
    pub omitted: u64,
    /// What belongs to the task.
    pub report: Option<Report>,
}

/// See the messages of the same names in maintenance.proto.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Of a check or a verification.
    Check(vaultferry_proto::plugin::v1::CheckReport),
    /// Of a prune or its dry run.
    Prune(vaultferry_proto::plugin::v1::PruneReport),
    /// Of a copy to the archive store.
    Archive(vaultferry_proto::plugin::v1::ArchiveReport),
    /// Of a request to the archive store.
    Rehydration(vaultferry_proto::plugin::v1::RehydrationReport),
}

/// Does the task. After an error, or when it was cancelled, the vault is as the task's own call leaves it: doing it again is always right.
pub(crate) async fn run(job: &Job, reporter: &Reporter, cancel: &CancellationToken) -> Result<Done, Problem> {
    let store = job.vault.access.open_instance(&job.vault.instance_id).map_err(Error::from)?;
    let done = perform(job, store.clone(), reporter, cancel).await?;
    let writes_no_record = matches!(
        job.task,
        Task::Check { keyless: true, .. } | Task::Prune { dry_run: true, .. } | Task::LegalHold { .. }
    );
    if !writes_no_record && let Err(error) = manifest::append(&*store, Scope::Instance, &[], cancel).await {
        // The next commit or task does it.
        tracing::warn!("the newest records are not covered by a manifest yet: {error}");
    }
    if let Err(problem) = complete_holds(job, &store, cancel).await {
        reporter.warn(not_on_hold(&problem)).await;
    }
    Ok(done)
}

/// What the task has written for points that are held is put on legal hold, where the storage can. A prune completes every point's: what
/// others have written since, and what a kill left.
async fn complete_holds(job: &Job, store: &store::Shared, cancel: &CancellationToken) -> Result<(), Problem> {
    let (only, with_key) = match &job.task {
        Task::ArchivePoint { id, .. } => (Some(id), true),
        Task::Prune { dry_run: false, .. } => (None, true),
        Task::VerifyPoint(id) | Task::UndeletePoint(id) => (Some(id), false),
        Task::Finish => (None, false),
        // A deletion is refused for a point that is held, the last is the hold itself, and the others write nothing for a point.
        Task::Check { .. }
        | Task::Prune { dry_run: true, .. }
        | Task::Rehydrate(_)
        | Task::CleanUpRehydrated
        | Task::DeletePoint { .. }
        | Task::LegalHold { .. } => return Ok(()),
    };
    if matches!(job.vault.access.location, Location::Folder(_)) {
        return Ok(());
    }
    let held = holds::held_points(&**store, only, cancel).await?;
    if held.is_empty() {
        return Ok(());
    }
    let completed = if with_key {
        let repository = job.vault.open(cancel).await?;
        holds::complete(&repository, &held, cancel).await
    } else {
        holds::complete_own(&**store, &held, cancel).await
    };
    let changed = match completed {
        // Not asked before: to ask is to write a hold that a release beside this may be taking off.
        Err(Error::Store(store::Error::Unsupported { .. })) => return Ok(()),
        completed => completed?,
    };
    tracing::info!(files = changed.files, "files of held points are on legal hold");
    if changed.missing > 0 {
        tracing::warn!(missing = changed.missing, "files of held points are not in the vault: run a check");
    }
    Ok(())
}

fn not_on_hold(problem: &Problem) -> Warning {
    Warning {
        reason: problem.reason.as_str().to_owned(),
        message: format!("not everything of the points that are held is on legal hold yet: {}", problem.message),
        fix: "The next prune does it, or: vaultferry point hold, again with the same note.".to_owned(),
    }
}

async fn perform(
    job: &Job,
    store: store::Shared,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    match job.task {
        Task::Check { keyless, read_data_percent } => {
            check::run(job, store, keyless, read_data_percent, reporter, cancel).await
        }
        Task::VerifyPoint(id) => check::verify_point(job, id, reporter, cancel).await,
        Task::Prune { dry_run, purge_until } => prune::run(job, dry_run, purge_until, reporter, cancel).await,
        Task::DeletePoint { id, purge_time } => {
            reporter.phase("deleting");
            points::soft_delete(&*store, &id, purge_time, cancel).await?;
            Ok(Done::default())
        }
        Task::UndeletePoint(id) => {
            reporter.phase("undeleting");
            points::undelete(&*store, &id, cancel).await?;
            Ok(Done::default())
        }
        Task::ArchivePoint { id, remove_from_vault } => {
            archive::copy_point(job, id, remove_from_vault, reporter, cancel).await
        }
        Task::Rehydrate(id) => archive::rehydrate(job, id, reporter, cancel).await,
        Task::CleanUpRehydrated => archive::clean_up(job, reporter, cancel).await,
        Task::Finish => finish(&store, reporter, cancel).await,
        Task::LegalHold { id, hold } => legal_hold(job, id, hold, reporter, cancel).await,
    }
}

/// Without the maintenance lease: what a point needs is not pruned, and a hold does not wait for the end of a long task.
async fn legal_hold(
    job: &Job,
    id: Id,
    hold: bool,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Done, Problem> {
    reporter.phase(if hold { "holding" } else { "releasing" });
    let repository = job.vault.open(cancel).await?;
    let changed = match hold {
        true => holds::hold(&repository, &id, cancel).await?,
        false => holds::release(&repository, &id, cancel).await?,
    };
    tracing::info!(point = %id, hold, files = changed.files, "the storage's legal holds were changed");
    if changed.missing > 0 {
        tracing::warn!(point = %id, missing = changed.missing, "files of the point are not in the vault: run a check");
    }
    Ok(Done::default())
}

/// The instance's repository, and a point that has to be listed.
async fn open_listed(
    job: &Job,
    id: Id,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<(Arc<Repository>, PointState), Problem> {
    reporter.phase("opening the vault");
    let repository = job.vault.open(cancel).await?;
    let state = points::read(&**repository.store(), &id, cancel).await?;
    if !state.is_listed() {
        return Err(Error::PointNotFound { id }.into());
    }
    Ok((repository, state))
}

/// Does what needs the maintenance lease, as soon as it is free. The coordinator starts one task of an instance at a time: what holds the
/// lease is a task that was killed, or somebody else's.
async fn when_free<T, F: Future<Output = Result<T, Error>>>(
    reporter: &Reporter,
    cancel: &CancellationToken,
    work: impl Fn() -> F,
) -> Result<T, Error> {
    let begun = tokio::time::Instant::now();
    loop {
        match work().await {
            Err(Error::MaintenanceBusy { store, detail }) if begun.elapsed() < LEASE_PATIENCE => {
                tracing::info!("waiting for the maintenance lease of {store}: {detail}");
                reporter.note(format!("waiting for another maintenance: {detail}"));
            }
            other => {
                reporter.note(String::new());
                return other;
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(LEASE_RETRY) => {}
        }
    }
}

async fn finish(store: &store::Shared, reporter: &Reporter, cancel: &CancellationToken) -> Result<Done, Problem> {
    reporter.phase("finishing");
    let mended = points::finish_interrupted(&**store, cancel).await?;
    if mended > 0 {
        tracing::info!(mended, "ended what a kill had interrupted");
    }
    Ok(Done::default())
}
