//! A restore: the plugin does it; the coordinator sees counts. What an interrupted one left is removed by the plugin, too.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::restore_event::Event;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::{Id, archive, commit, points};

use super::queue::{Need, Turn};
use super::session::{self, Reporter};
use super::{End, Jobs, Outcome, Rehydrated, Shared, maintenance, pause};
use crate::catalog::{Instance, Job, Report, ReportFigures, Status, Work};
use crate::plugin::Plugin;

/// Dropping a database takes seconds, and removing a million files from a container minutes; what takes longer than this hangs. The next
/// start tries again only for jobs that have not ended, so the job's end says what is left.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(600);

/// A restore's target, as both calls of the plugin need it.
enum Target {
    Database(wire::DatabaseTarget),
    Files(wire::FilesTarget),
    Disk(wire::DiskTarget),
}

struct Parts {
    source_type: String,
    settings_json: String,
    point_id: Id,
    target: Target,
    pass_env: Vec<String>,
}

async fn parts(shared: &Shared, job: &Job) -> Result<Parts, Problem> {
    let instance = shared.catalog.instance(&job.instance_id).await?;
    let instance = instance.ok_or_else(|| Problem::new(Reason::InstanceNotFound, "the instance is gone"))?;
    let (point_id, target, pass_env) = match &job.work {
        Work::RestoreDatabase { point_id, credential, .. } => {
            let target = database_target(&job.work)?;
            (*point_id, Target::Database(target), session::env_of(credential))
        }
        Work::RestoreFiles { point_id, to, credential_env } => {
            let credential = files_credential(credential_env)?;
            (*point_id, Target::Files(wire::FilesTarget { to: to.clone(), credential }), Vec::new())
        }
        Work::RestoreDisk { point_id, to, disk, overwrite } => {
            let target = wire::DiskTarget { to: to.clone(), disk: disk.clone(), overwrite: overwrite.clone() };
            (*point_id, Target::Disk(target), Vec::new())
        }
        Work::Backup { .. }
        | Work::ConfigureProtection
        | Work::StopProtection { .. }
        | Work::UndeleteInstance
        | Work::ChangePolicy { .. }
        | Work::Check { .. }
        | Work::VerifyPoint { .. }
        | Work::Prune { .. }
        | Work::DeletePoint { .. }
        | Work::UndeletePoint { .. }
        | Work::ArchivePoint { .. }
        | Work::Tier { .. } => {
            return Err(Problem::new(Reason::Internal, "the job is not a restore"));
        }
    };
    let settings_json = session::command(shared, &instance.source_type)?.settings_json.clone();
    Ok(Parts { source_type: instance.source_type, settings_json, point_id, target, pass_env })
}

/// The target of a restore into a database, as the plugin gets it.
fn database_target(work: &Work) -> Result<wire::DatabaseTarget, Problem> {
    let Work::RestoreDatabase { target_uri, database, no_owner, credential, options, .. } = work else {
        return Err(Problem::new(Reason::Internal, "the job is no restore into a database"));
    };
    Ok(wire::DatabaseTarget {
        server: Some(session::source(target_uri, credential)),
        database: database.clone(),
        no_owner: *no_owner,
        schemas: options.schemas.clone(),
        tables: options.tables.clone(),
        globals: options.globals,
        keep_failed: options.keep_failed,
        verify: options.verify.clone(),
    })
}

/// What a plugin is asked for the plan of a restore into a database. A point that has to be rehydrated first cannot be looked at.
pub(crate) async fn plan_request(
    shared: &Shared,
    instance: &Instance,
    work: &Work,
    cancel: &CancellationToken,
) -> Result<wire::PlanRestoreRequest, Problem> {
    let database = database_target(work)?;
    let point_id = work.point_id().ok_or_else(|| Problem::new(Reason::Internal, "a restore without a point"))?;
    if in_archive_only(shared, &instance.id, &point_id, cancel).await? {
        let message = format!("the point {point_id} lies in the archive, and is read only when it is restored");
        let fix = "Start the restore: it rehydrates the point, and then looks at the target before it makes anything.";
        return Err(Problem::new(Reason::PointArchived, message).with_fix(fix));
    }
    let vault = session::vault_access(shared, &instance.id, Role::Plugin, cancel).await?;
    let restore = wire::RestoreRequest {
        job_id: "plan".to_owned(),
        snapshot_id: point_id.to_string(),
        vault: Some(vault),
        settings_json: session::command(shared, &instance.source_type)?.settings_json.clone(),
        target: Some(wire::restore_request::Target::Database(database)),
        from_archive: false,
    };
    Ok(wire::PlanRestoreRequest { restore: Some(restore) })
}

/// The value of the variable: an account key (base64 of 64 bytes), or a SAS (which has a signature in it).
pub(crate) fn files_credential(credential_env: &str) -> Result<Option<wire::StoreCredential>, Problem> {
    if credential_env.is_empty() {
        return Ok(None);
    }
    let value = std::env::var(credential_env).map_err(|_| {
        let message = format!("the agent's environment has no variable {credential_env}");
        Problem::new(Reason::InvalidRequest, message).with_fix("Set the variable for the agent, and start it again.")
    })?;
    let mut credential = wire::StoreCredential::default();
    if value.contains("sig=") {
        credential.sas = value.trim_start_matches('?').to_owned();
    } else {
        credential.account_key = value;
    }
    Ok(Some(credential))
}

pub(super) async fn run(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<End, Problem> {
    let from_archive = is_archived(&jobs.shared, job, cancel).await?;
    let result = with_plugin(jobs, job, from_archive, cancel).await;
    if from_archive {
        maintenance::clean_up_rehydrated(jobs, job).await;
    }
    match result {
        Ok(outcome) => Ok(End::Done(outcome)),
        Err(problem) => after_failure(jobs, job, deleted_meanwhile(&jobs.shared, job, problem, cancel).await).await,
    }
}

/// A restore that waits for its point, or reads it, does not keep it from being deleted. What it then misses is no damage.
async fn deleted_meanwhile(shared: &Shared, job: &Job, problem: Problem, cancel: &CancellationToken) -> Problem {
    if problem.reason != Reason::RepositoryDamaged {
        return problem;
    }
    let (Some(id), Ok(store)) = (job.work.point_id(), shared.vault.open_instance(&job.instance_id)) else {
        return problem;
    };
    match points::read(&*store, &id, cancel).await {
        Ok(state) if state.soft_deleted.is_some() || state.purged => {
            let message = format!("the point {id} was deleted while it was restored: {}", problem.message);
            let fix = "Bring the point back with point undelete as long as that is possible, and restore it again; or restore another one.";
            Problem::new(Reason::PointNotFound, message).with_fix(fix)
        }
        Ok(_) | Err(_) => problem,
    }
}

/// A plugin that ends by itself removes what it made. One that died could not, and one that was cancelled may have been ended before it was
/// done with that.
async fn after_failure(jobs: &Jobs, job: &Job, problem: Problem) -> Result<End, Problem> {
    let stop = &jobs.inner.stop;
    // Unfinished files of streams do not say whose they are: another restore may be at work in the same folder.
    let says_whose = matches!(job.work, Work::RestoreDatabase { .. } | Work::RestoreDisk { .. });
    let is_cancelled = problem.reason == Reason::Cancelled && !stop.is_cancelled() && says_whose;
    if !is_cancelled && !died(problem.reason) {
        return Err(problem);
    }
    // The copies out of the archive are gone already, whatever came of the restore.
    match clean_up_target(jobs, job, is_cancelled, stop).await {
        Ok(()) => Err(problem),
        // The restart finds that the job is being cancelled, and cleans up.
        Err(_) if is_cancelled && stop.is_cancelled() => Ok(End::LeftToRestart),
        Err(left) => {
            let message = format!("{}; what it left could not be removed: {}", problem.message, left.message);
            if is_cancelled {
                // A cancelled job's end tells no more than that.
                tracing::error!(job = job.id, "{message}");
            }
            Err(Problem { message, ..problem })
        }
    }
}

fn died(reason: Reason) -> bool {
    matches!(reason, Reason::PluginCrashed | Reason::PluginTimeout | Reason::PluginProtocol)
}

async fn with_plugin(
    jobs: &Jobs,
    job: &Job,
    from_archive: bool,
    cancel: &CancellationToken,
) -> Result<Outcome, Problem> {
    let shared = &jobs.shared;
    let parts = parts(shared, job).await?;
    let vault = session::vault_access(shared, &job.instance_id, Role::Plugin, cancel).await?;
    let target = match parts.target {
        Target::Database(target) => wire::restore_request::Target::Database(target),
        Target::Files(mut target) => {
            if let Some(credential) = &mut target.credential {
                credential.endpoint = endpoint_for(&shared.vault, &target.to);
            }
            wire::restore_request::Target::Files(target)
        }
        Target::Disk(target) => wire::restore_request::Target::Disk(target),
    };
    let request = wire::RestoreRequest {
        job_id: job.id.clone(),
        snapshot_id: parts.point_id.to_string(),
        vault: Some(vault),
        settings_json: parts.settings_json,
        target: Some(target),
        from_archive,
    };
    let work = async |plugin: &mut Plugin| restore(jobs, job, plugin, request).await;
    session::with_plugin(jobs, job, &parts.source_type, parts.pass_env, cancel, work).await
}

async fn restore(
    jobs: &Jobs,
    job: &Job,
    plugin: &mut Plugin,
    request: wire::RestoreRequest,
) -> Result<Outcome, Problem> {
    let mut reporter = Reporter::new(jobs, &job.id);
    let mut warnings = Vec::new();
    let mut client = plugin.client();
    let mut events = plugin.begin(client.restore(request)).await?;
    loop {
        match session::next_event(plugin, &mut events).await?.event {
            Some(Event::Progress(progress)) => reporter.report(progress),
            Some(Event::Warning(warning)) => warnings.push(session::warning(warning)),
            Some(Event::Done(done)) => {
                if !done.checked.is_empty() {
                    let figures = Some(ReportFigures::Restore { checked: done.checked });
                    let report = Report { finding_count: 0, figures };
                    // What is restored stays restored; only how much of it was checked is not told.
                    if let Err(error) = jobs.shared.catalog.set_report(&job.id, report, Vec::new()).await {
                        tracing::warn!(job = job.id, "the restore's report is not kept: {error}");
                    }
                }
                return Ok(Outcome { bytes_read: done.bytes_restored, warnings, ..Outcome::default() });
            }
            None => return Err(Problem::new(Reason::PluginProtocol, "the plugin sent an empty event")),
        }
    }
}

/// An emulator's or a private cloud's endpoint holds for the target, too. Where it ends with the vault's account (emulators), or its host begins
/// with it (clouds), the target's account takes that place: its credential is for its own host. Empty: Azure's public cloud.
pub(crate) fn endpoint_for(vault: &Access, to: &str) -> String {
    let (Some(endpoint), Location::Azure { account, .. }) = (&vault.endpoint, &vault.location) else {
        return String::new();
    };
    let endpoint = endpoint.as_str().trim_end_matches('/');
    let target = to.strip_prefix("azure://").and_then(|rest| rest.split('/').next());
    let Some(target) = target else { return endpoint.to_owned() };
    if let Some((scheme, rest)) = endpoint.split_once(&format!("//{account}.")) {
        return format!("{scheme}//{target}.{rest}");
    }
    match endpoint.strip_suffix(account.as_str()) {
        Some(base) if base.ends_with('/') && !base.ends_with("//") => format!("{base}{target}"),
        _ => endpoint.to_owned(),
    }
}

/// Removes what an interrupted restore has left, in the vault and at its target. A failure says what to remove by hand.
pub(super) async fn clean_up(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<(), Problem> {
    // A vault that does not answer must not keep the target from being cleaned.
    if let Ok(true) = is_archived(&jobs.shared, job, cancel).await {
        maintenance::clean_up_rehydrated(jobs, job).await;
    }
    clean_up_target(jobs, job, job.status == Status::Cancelling, cancel).await
}

/// `is_cancelled`: nothing of it is kept, whatever was asked for.
async fn clean_up_target(
    jobs: &Jobs,
    job: &Job,
    is_cancelled: bool,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let parts = parts(&jobs.shared, job).await?;
    let target = match parts.target {
        Target::Database(mut target) => {
            target.keep_failed &= !is_cancelled;
            wire::clean_up_request::Target::Database(target)
        }
        Target::Files(target) => wire::clean_up_request::Target::Files(target),
        Target::Disk(target) => wire::clean_up_request::Target::Disk(target),
    };
    let request =
        wire::CleanUpRequest { job_id: job.id.clone(), settings_json: parts.settings_json, target: Some(target) };
    let work = async |plugin: &mut Plugin| {
        let mut client = plugin.client();
        plugin.answer(CLEAN_UP_LIMIT, client.clean_up(request)).await.map(|_| ())
    };
    session::with_plugin(jobs, job, &parts.source_type, parts.pass_env, cancel, work).await
}

/// True when a crash of this job may have left something at its target.
pub(super) fn leaves_something(work: &Work) -> bool {
    matches!(work, Work::RestoreDatabase { .. } | Work::RestoreFiles { .. } | Work::RestoreDisk { .. })
}

impl Work {
    /// Where a restore writes, or which policy was linked; for people. Never a credential.
    pub fn target(&self) -> Option<String> {
        match self {
            Self::RestoreDatabase { target_uri, database, .. } => Some(format!("{database} on {target_uri}")),
            Self::RestoreFiles { to, .. } | Self::RestoreDisk { to, .. } => Some(to.clone()),
            Self::ChangePolicy { policy } => Some(policy.clone()),
            Self::Backup { .. }
            | Self::ConfigureProtection
            | Self::StopProtection { .. }
            | Self::UndeleteInstance
            | Self::Check { .. }
            | Self::VerifyPoint { .. }
            | Self::Prune { .. }
            | Self::DeletePoint { .. }
            | Self::UndeletePoint { .. }
            | Self::ArchivePoint { .. }
            | Self::Tier { .. } => None,
        }
    }
}

/// True when the point is in the archive store only, as its snapshot files say: the catalog's copy may be old, and a point whose log is
/// damaged can be restored all the same.
async fn is_archived(shared: &Shared, job: &Job, cancel: &CancellationToken) -> Result<bool, Problem> {
    let Some(point_id) = job.work.point_id() else { return Ok(false) };
    in_archive_only(shared, &job.instance_id, &point_id, cancel).await
}

async fn in_archive_only(
    shared: &Shared,
    instance_id: &str,
    point_id: &Id,
    cancel: &CancellationToken,
) -> Result<bool, Problem> {
    let store = shared.vault.open_instance(instance_id)?;
    if commit::is_committed(&*store, point_id, cancel).await? {
        return Ok(false);
    }
    Ok(archive::contains(&store, point_id, cancel).await?)
}

/// Before a restore touches anything: asks for the packs of an archived point, and waits until they can be read. It is journaled that the
/// job waits, so that a restart goes on with it. While it waits it holds no slot and no process.
pub(super) async fn rehydrate(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<Rehydrated, Problem> {
    let shared = &jobs.shared;
    if !is_archived(shared, job, cancel).await? {
        return Ok(Rehydrated::Ready);
    }
    shared.catalog.set_rehydrating(&job.id, true).await?;
    let waited = wait_until_readable(jobs, job, cancel).await;
    if waited.is_err() {
        maintenance::clean_up_rehydrated(jobs, job).await;
    } else if waited == Ok(Rehydrated::Ready) {
        // From here on something may be made at the target: a restart must not simply begin again.
        shared.catalog.set_rehydrating(&job.id, false).await?;
    }
    match waited {
        Err(problem) => Err(deleted_meanwhile(shared, job, problem, cancel).await),
        waited => waited,
    }
}

async fn wait_until_readable(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<Rehydrated, Problem> {
    loop {
        let asked = match jobs.turn(job, jobs.inner.queue.enter(Need::short()), cancel).await {
            Ok(Turn::Come(_place)) => maintenance::ask_for_rehydration(jobs, job, cancel).await,
            Ok(Turn::NotYet) => return Ok(Rehydrated::NotYet),
            Err(problem) => Err(problem),
        };
        match asked {
            Ok(report) if report.waiting == 0 && !pause::holds(&jobs.shared.state_dir, "rehydrating") => {
                return Ok(Rehydrated::Ready);
            }
            Ok(report) => {
                let note = waiting_note(&report);
                tracing::info!(job = job.id, "rehydrating: {note}");
                jobs.update(&job.id, |progress| {
                    "rehydrating".clone_into(&mut progress.phase);
                    progress.note = note;
                });
            }
            // The store may be away for a while; hours of waiting are not given up for that.
            Err(problem) if problem.reason == Reason::VaultUnavailable => {
                tracing::warn!(job = job.id, "the archive does not answer, asking again later: {problem}");
            }
            Err(problem) if problem.reason == Reason::Cancelled && jobs.inner.stop.is_cancelled() => {
                return Ok(Rehydrated::NotYet);
            }
            Err(problem) => return Err(problem),
        }
        tokio::select! {
            biased;
            () = jobs.inner.draining.cancelled() => return Ok(Rehydrated::NotYet),
            () = cancel.cancelled() => return Err(Problem::new(Reason::Cancelled, "the job was cancelled")),
            () = tokio::time::sleep(jobs.shared.rehydration_poll) => {}
        }
    }
}

/// "3 of 10 packs are on their way out of the archive, up to 15 h more"
fn waiting_note(report: &wire::RehydrationReport) -> String {
    let total = report.waiting + report.ready;
    let hours = report.estimate_s.div_ceil(3600);
    format!("{} of {total} packs are on their way out of the archive, up to {hours} h more", report.waiting)
}

#[cfg(test)]
mod tests;
