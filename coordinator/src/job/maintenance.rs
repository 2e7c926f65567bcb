//! Maintenance: the plugin works in the vault; the coordinator starts it, keeps what it tells, and brings the catalog in line with the
//! vault's own records.
//!
//! Invariants:
//! - What happens to a point is written into the vault first. The catalog is a copy, made from the vault's records when the job is at its
//!   end, whatever the end is; a kill between the two is made good at the restart ([`clean_up`]).
//! - What expires, and what is purged, is decided by one clock ([`crate::expiry::purge_until`]), whoever has asked for the prune.
//! - A check that found damage is a failed job, whose findings name the points.

use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::maintenance_done::Report as WireReport;
use vaultferry_proto::plugin::v1::maintenance_event::Event;
use vaultferry_proto::plugin::v1::maintenance_request::Task;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::check::{self, Severity};
use vaultferry_vault::points::{self, PointState};
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::{Error, Id};

use super::session::{self, Reporter};
use super::{End, Jobs, Outcome, Shared, leftovers, pause, whole};
use crate::catalog::{CheckFigures, Finding, Job, PruneFigures, Report, ReportFigures, Standing, StoredProblem, Work};
use crate::plugin::{MAINTENANCE, Plugin};

/// Findings that are kept with a job; the rest is counted.
const MAX_FINDINGS: usize = 1000;
/// Findings that a failed check's message names.
const NAMED_FINDINGS: usize = 3;
/// Points that are kept with a finding.
const MAX_POINTS: usize = 100;

/// What the plugin told.
struct Told {
    done: wire::MaintenanceDone,
    findings: Vec<Finding>,
    warnings: Vec<StoredProblem>,
}

pub(super) async fn run(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<End, Problem> {
    if job.work == (Work::Prune { dry_run: false }) {
        leftovers::give_up(&jobs.shared, job, cancel).await;
    }
    let mut task = task(&job.work)?;
    if let Task::Prune(prune) = &mut task {
        // By the clock that points are deleted by: one that has jumped ahead takes nothing that can still be brought back.
        let last = jobs.shared.catalog.expiry_run(&job.instance_id).await?;
        let until = crate::expiry::purge_until(last.as_ref(), vaultferry_vault::clock::now());
        prune.purge_until = Some(session::time(until));
    }
    let told = with_plugin(jobs, job, task, cancel).await;
    if was_interrupted(&told) && leaves_something(&job.work) && !jobs.inner.stop.is_cancelled() {
        // Neither here nor there: the next plugin goes to where the vault's log says.
        let finished = with_plugin(jobs, job, Task::Finish(wire::FinishTask {}), &jobs.inner.stop).await;
        if let Err(problem) = finished {
            tracing::warn!(job = job.id, "what the job had begun is ended by the next maintenance: {problem}");
        }
    }
    pause::at(&jobs.shared.state_dir, "maintained").await;
    let in_line = bring_in_line(&jobs.shared, job, &jobs.inner.stop).await;
    if jobs.inner.stop.is_cancelled() && (was_interrupted(&told) || in_line.is_err()) {
        // The next start ends in the vault what was begun there, and then the job.
        return Ok(End::LeftToRestart);
    }
    let mut told = told?;
    if matches!(job.work, Work::Check { .. }) {
        add_vault_records(&jobs.shared, &mut told, &jobs.inner.stop).await?;
    }
    match in_line {
        // What the check has found is worth more than the list that could not be made of it.
        Err(problem) if finds(&job.work) => told.warnings.push((&problem).into()),
        other => other?,
    }
    conclude(jobs, job, told).await
}

/// Adds what is wrong with the vault's own records (its identity, keys, policies, settings), which every instance needs. The plugin sees its
/// instance's store only.
async fn add_vault_records(shared: &Shared, told: &mut Told, cancel: &CancellationToken) -> Result<(), Problem> {
    let root = shared.vault.open_root()?;
    let report = check::vault(&*root, cancel).await?;
    for finding in report.findings {
        let damage = finding.severity == Severity::Damage;
        told.done.finding_count += 1;
        told.done.damage_count += u64::from(damage);
        if told.findings.len() < MAX_FINDINGS {
            told.findings.push(Finding {
                kind: finding.kind.as_str().to_owned(),
                damage,
                file: format!("vault:{}", finding.file),
                message: finding.detail,
                points: Vec::new(),
            });
        }
    }
    Ok(())
}

/// True when the plugin may have been stopped in the middle of its work.
fn was_interrupted<T>(result: &Result<T, Problem>) -> bool {
    let reasons = [Reason::Cancelled, Reason::PluginCrashed, Reason::PluginTimeout, Reason::PluginProtocol];
    matches!(result, Err(problem) if reasons.contains(&problem.reason))
}

/// True for the operations that look for damage.
fn finds(work: &Work) -> bool {
    matches!(work, Work::Check { .. } | Work::VerifyPoint { .. })
}

/// After a kill: ends what the job had begun in the vault, and brings the catalog in line.
pub(super) async fn clean_up(jobs: &Jobs, job: &Job, cancel: &CancellationToken) -> Result<(), Problem> {
    if leaves_something(&job.work) {
        with_plugin(jobs, job, Task::Finish(wire::FinishTask {}), cancel).await?;
    }
    bring_in_line(&jobs.shared, job, cancel).await
}

/// Asks for what a restore from the archive needs; the first answer comes soon, the data hours later.
pub(super) async fn ask_for_rehydration(
    jobs: &Jobs,
    job: &Job,
    cancel: &CancellationToken,
) -> Result<wire::RehydrationReport, Problem> {
    let snapshot_id = job.work.point_id().map(|id| id.to_string()).unwrap_or_default();
    let told = with_plugin(jobs, job, Task::Rehydrate(wire::RehydrateTask { snapshot_id }), cancel).await?;
    match told.done.report {
        Some(WireReport::Rehydration(report)) => Ok(report),
        _ => Err(Problem::new(Reason::PluginProtocol, "the plugin does not say what it asked for")),
    }
}

/// Removes the copies that a restore has read. What cannot be removed costs money only, and goes with the next restore.
pub(super) async fn clean_up_rehydrated(jobs: &Jobs, job: &Job) {
    let task = Task::CleanUpRehydrated(wire::CleanUpRehydratedTask {});
    if let Err(problem) = with_plugin(jobs, job, task, &jobs.inner.stop).await {
        tracing::warn!(job = job.id, "rehydrated copies are left in the vault: {problem}");
    }
}

/// True when a kill can leave a point between two states.
fn leaves_something(work: &Work) -> bool {
    let leaves = matches!(
        work,
        Work::DeletePoint { .. }
            | Work::UndeletePoint { .. }
            | Work::Prune { dry_run: false }
            | Work::Tier { remove_from_vault: true, .. }
    );
    leaves || whole::is_whole(work)
}

fn task(work: &Work) -> Result<Task, Problem> {
    let text = |id: &Id| id.to_string();
    let archive = |id: &Id, remove_from_vault: bool| {
        Task::ArchivePoint(wire::ArchivePointTask { snapshot_id: text(id), remove_from_vault })
    };
    Ok(match work {
        Work::Check { keyless, read_data_ppm } => Task::Check(wire::CheckTask {
            keyless: *keyless,
            read_data_percent: f64::from(*read_data_ppm) * 100.0 / f64::from(Work::ALL_DATA),
        }),
        Work::VerifyPoint { point_id } => Task::VerifyPoint(wire::VerifyPointTask { snapshot_id: text(point_id) }),
        Work::Prune { dry_run } => Task::Prune(wire::PruneTask { dry_run: *dry_run, purge_until: None }),
        Work::DeletePoint { point_id, purge_time } => Task::DeletePoint(wire::DeletePointTask {
            snapshot_id: text(point_id),
            purge_time: Some(session::time(*purge_time)),
        }),
        Work::UndeletePoint { point_id } => {
            Task::UndeletePoint(wire::UndeletePointTask { snapshot_id: text(point_id) })
        }
        Work::ArchivePoint { point_id } => archive(point_id, false),
        Work::Tier { point_id, remove_from_vault } => archive(point_id, *remove_from_vault),
        Work::Backup { .. }
        | Work::RestoreDatabase { .. }
        | Work::RestoreFiles { .. }
        | Work::RestoreDisk { .. }
        | Work::ConfigureProtection
        | Work::StopProtection { .. }
        | Work::UndeleteInstance
        | Work::ChangePolicy { .. } => {
            return Err(Problem::new(Reason::Internal, "the job is no maintenance"));
        }
    })
}

/// True for tasks that open the repository.
fn needs_key(task: &Task) -> bool {
    match task {
        Task::Check(check) => !check.keyless,
        Task::VerifyPoint(_)
        | Task::Prune(_)
        | Task::ArchivePoint(_)
        | Task::Rehydrate(_)
        | Task::CleanUpRehydrated(_)
        | Task::LegalHold(_) => true,
        Task::DeletePoint(_) | Task::UndeletePoint(_) | Task::Finish(_) => false,
    }
}

async fn with_plugin(jobs: &Jobs, job: &Job, task: Task, cancel: &CancellationToken) -> Result<Told, Problem> {
    let shared = &jobs.shared;
    let vault = match needs_key(&task) {
        true => session::vault_access(shared, &job.instance_id, Role::Maintenance, cancel).await?,
        false => session::store_access(shared, &job.instance_id, Role::Maintenance)?,
    };
    let request = wire::MaintenanceRequest { job_id: job.id.clone(), vault: Some(vault), task: Some(task) };
    let work = async |plugin: &mut Plugin| listen(jobs, job, plugin, request).await;
    session::with_plugin(jobs, job, MAINTENANCE, Vec::new(), cancel, work).await
}

async fn listen(
    jobs: &Jobs,
    job: &Job,
    plugin: &mut Plugin,
    request: wire::MaintenanceRequest,
) -> Result<Told, Problem> {
    let mut reporter = Reporter::new(jobs, &job.id);
    let (mut findings, mut warnings) = (Vec::new(), Vec::new());
    let mut client = plugin.maintenance();
    let mut events = plugin.begin(client.run(request)).await?;
    loop {
        match session::next_event(plugin, &mut events).await?.event {
            Some(Event::Progress(progress)) => reporter.report(progress),
            Some(Event::Warning(warning)) => warnings.push(session::warning(warning)),
            Some(Event::Finding(finding)) if findings.len() < MAX_FINDINGS => findings.push(finding_from(finding)?),
            Some(Event::Finding(_)) => {}
            Some(Event::Done(done)) => return Ok(Told { done, findings, warnings }),
            None => return Err(Problem::new(Reason::PluginProtocol, "the plugin sent an empty event")),
        }
    }
}

fn finding_from(finding: wire::Finding) -> Result<Finding, Problem> {
    let bad = |what: &str| Problem::new(Reason::PluginProtocol, format!("the plugin sent a finding with a bad {what}"));
    let mut points = Vec::new();
    for point in finding.points.into_iter().take(MAX_POINTS) {
        let id = point.snapshot_id.parse().map_err(|_| bad("id"))?;
        let time = point.time.map(|time| session::time_from(time).ok_or_else(|| bad("time"))).transpose()?;
        points.push((id, time));
    }
    Ok(Finding { kind: finding.kind, damage: finding.damage, file: finding.file, message: finding.message, points })
}

/// Copies the points' standing from the vault's records into the catalog: of the job's point, or of all points of the instance that the catalog
/// knows.
async fn bring_in_line(shared: &Shared, job: &Job, cancel: &CancellationToken) -> Result<(), Problem> {
    let store = shared.vault.open_instance(&job.instance_id)?;
    match job.work.point_id() {
        Some(id) => note_standing(shared, &job.instance_id, &id, cancel).await,
        None => {
            let known = shared.catalog.all_points(&job.instance_id).await?;
            let ids = known.iter().map(|point| point.id).collect();
            let states = points::read_these(&*store, &ids, cancel).await?;
            let standings = states.iter().map(|state| (state.id, standing(state))).collect();
            Ok(shared.catalog.set_standings(&job.instance_id, standings).await?)
        }
    }
}

/// Copies one point's standing from the vault's records into the catalog.
pub(crate) async fn note_standing(
    shared: &Shared,
    instance_id: &str,
    id: &Id,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    let store = shared.vault.open_instance(instance_id)?;
    let standing = match points::read(&*store, id, cancel).await {
        Ok(state) => Some(standing(&state)),
        // The catalog knows a point that the vault does not: that is for a check to find, not for us to forget.
        Err(Error::PointNotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let standings = standing.into_iter().map(|standing| (*id, standing)).collect();
    Ok(shared.catalog.set_standings(instance_id, standings).await?)
}

/// How the catalog tells a point's state; `None` when it is gone for good.
pub(crate) fn standing(state: &PointState) -> Option<Standing> {
    if state.purged || state.abandoned {
        return None;
    }
    Some(Standing {
        proven_time: state.proven,
        held: state.held.clone(),
        purge_time: state.soft_deleted,
        immutable_until: state.immutable_until,
        in_vault: state.in_vault,
        in_archive: state.in_archive,
        archived_time: state.archived_at,
    })
}

/// Keeps the report; damage fails the job.
async fn conclude(jobs: &Jobs, job: &Job, told: Told) -> Result<End, Problem> {
    let Told { done, findings, warnings } = told;
    let bytes_read = match &done.report {
        Some(WireReport::Check(check)) => check.bytes_read,
        _ => 0,
    };
    let bytes_stored = match &done.report {
        Some(WireReport::Archive(archive)) => archive.bytes,
        _ => 0,
    };
    let report = Report { finding_count: done.finding_count, figures: done.report.and_then(figures) };
    let damage = damage(&job.instance_name, done.damage_count, &findings);
    jobs.shared.catalog.set_report(&job.id, report, findings).await?;
    match damage {
        Some(problem) => Err(problem),
        None => Ok(End::Done(Outcome { bytes_read, bytes_stored, warnings })),
    }
}

fn figures(report: WireReport) -> Option<ReportFigures> {
    // Millionths: enough for a probability, and exact.
    let ppm = |probability: f64| (probability.clamp(0.0, 1.0) * 1e6).round() as u32;
    match report {
        WireReport::Check(check) => Some(ReportFigures::Check(CheckFigures {
            points: check.points,
            packs: check.packs,
            pack_bytes: check.pack_bytes,
            files_read: check.files_read,
            bytes_read: check.bytes_read,
            blobs_read: check.blobs_read,
            files_unreadable: check.files_unreadable,
            seed: check.seed,
            packs_drawn: check.packs_drawn,
            detects_one_ppm: ppm(check.detects_one),
            detects_one_percent_ppm: ppm(check.detects_one_percent),
        })),
        WireReport::Prune(prune) => Some(ReportFigures::Prune(PruneFigures {
            epoch: prune.epoch,
            packs_marked: prune.packs_marked,
            bytes_marked: prune.bytes_marked,
            packs_deleted: prune.packs_deleted,
            bytes_deleted: prune.bytes_deleted,
            packs_noted: prune.packs_noted,
            bytes_noted: prune.bytes_noted,
            packs_protected: prune.packs_protected,
            bytes_protected: prune.bytes_protected,
            bytes_kept: prune.bytes_kept,
            bytes_kept_deleted: prune.bytes_kept_deleted,
            bytes_kept_uncommitted: prune.bytes_kept_uncommitted,
            bytes_unused: prune.bytes_unused,
            points_purged: prune.points_purged,
            index_files: prune.index_files,
            index_files_replaced: prune.index_files_replaced,
            archive_packs_deleted: prune.archive_packs_deleted,
            archive_bytes_deleted: prune.archive_bytes_deleted,
            damage: prune.damage,
        })),
        WireReport::Archive(archive) => Some(ReportFigures::Archive { packs: archive.packs, bytes: archive.bytes }),
        WireReport::Rehydration(_) => None,
    }
}

/// The problem of a check that found damage: how much, the first of it, and the points that it concerns.
fn damage(instance: &str, count: u64, findings: &[Finding]) -> Option<Problem> {
    if count == 0 {
        return None;
    }
    let damaged: Vec<&Finding> = findings.iter().filter(|finding| finding.damage).collect();
    let named: Vec<String> =
        damaged.iter().take(NAMED_FINDINGS).map(|finding| format!("{}: {}", finding.file, finding.message)).collect();
    let mut points: Vec<&(Id, Option<jiff::Timestamp>)> = damaged.iter().flat_map(|finding| &finding.points).collect();
    points.sort_by_key(|(id, time)| std::cmp::Reverse((*time, *id)));
    points.dedup();
    let more = count.saturating_sub(named.len() as u64);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let text = |(id, time): &&(Id, Option<jiff::Timestamp>)| {
        let of = time.map_or(String::new(), |time| format!(" of {}", time.strftime("%FT%TZ")));
        format!("{}{of}", &id.to_string()[..16])
    };
    let times: Vec<String> = points.iter().take(NAMED_FINDINGS).map(text).collect();
    let concerned = match points.len() {
        0 => "No listed point is known to need it.".to_owned(),
        1 => format!("It concerns the point {}.", times[0]),
        n if n <= NAMED_FINDINGS => format!("It concerns {n} points: {}.", times.join(", ")),
        n => format!("It concerns {n} points, among them {}.", times.join(", ")),
    };
    let message = format!("the vault of {instance} is damaged: {}{more}. {concerned}", named.join("; "));
    Some(Problem::new(Reason::RepositoryDamaged, message).with_fix(
        "Run a backup: it stores again what the source still has; then check again. Restore points that are not concerned, and keep the \
         vault as it is.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_check_names_files_and_points() {
        assert_eq!(damage("shop", 0, &[]), None);
        let time = Some(jiff::Timestamp::UNIX_EPOCH);
        let finding = |n: u8| Finding {
            kind: "altered".to_owned(),
            damage: true,
            file: format!("repo/data/{n}"),
            message: "its bytes are others".to_owned(),
            points: vec![(Id::of(&[1]), time), (Id::of(&[n]), time)],
        };
        let findings: Vec<Finding> = (1..=4).map(finding).collect();
        let problem = damage("shop", 5, &findings).expect("damage");
        assert_eq!(problem.reason, Reason::RepositoryDamaged);
        assert!(problem.message.contains("repo/data/1: its bytes are others; repo/data/2"), "{}", problem.message);
        assert!(problem.message.contains("; and 2 more. It concerns 4 points, among them"), "{}", problem.message);
        let one = damage("shop", 1, &findings[..1]).expect("damage").message;
        assert!(one.contains(&format!("It concerns the point {}", &Id::of(&[1]).to_string()[..16])), "{one}");
    }
}
