//! A backup: the plugin stages, the coordinator verifies and commits.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::backup_event::Event;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::{Capture, Consistency, PointCreated, PointStream};
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::{Error, Id, commit, immutability, manifest};

use super::session::{self, Reporter};
use super::{End, Jobs, pause};
use crate::catalog::{Job, Point, Policy, Report, ReportFigures, StoredProblem, Work};
use crate::plugin::Plugin;
use crate::{policy, recorded};

/// Between two questions to a store or a catalog that does not answer; the store's own retries have passed by then.
const AGAIN: Duration = Duration::from_secs(5);
/// A plugin that names more packs than this (16 PiB of data) is broken.
const MAX_PACKS: usize = 1 << 30;

/// How long the new point is kept, and what for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    /// By this rule; empty when `keep_until` is there.
    pub(super) rule: &'a str,
    /// Made for this slot of the schedule; `None`: on demand.
    pub(super) slot: Option<jiff::Timestamp>,
    /// Until then, whatever the rules say.
    pub(super) keep_until: Option<jiff::Timestamp>,
}

impl Kept<'_> {
    /// For whoever looks at the snapshot with restic.
    fn tag(&self) -> String {
        self.keep_until.map_or_else(|| format!("rule={}", self.rule), |until| format!("keep-until={until}"))
    }
}

pub(super) async fn run(jobs: &Jobs, job: &Job, kept: Kept<'_>, cancel: &CancellationToken) -> Result<End, Problem> {
    let shared = &jobs.shared;
    let instance = shared.catalog.instance(&job.instance_id).await?;
    let instance = instance.ok_or_else(|| Problem::new(Reason::InstanceNotFound, "the instance is gone"))?;
    let policy = shared.catalog.policy(&instance.policy).await?;
    let policy = policy
        .ok_or_else(|| Problem::new(Reason::PolicyNotFound, format!("the policy {} is gone", instance.policy)))?;
    let document = policy::parsed(&policy.document)?;
    if kept.slot.is_none() && kept.keep_until.is_none() {
        // A rule that somebody chose must be there. A slot's was the policy's when the job began; if it is gone since, Default applies to
        // the point (D18), and the backup is not missed for it.
        document.rule(kept.rule)?;
    }
    let vault = session::vault_access(shared, &instance.id, Role::Plugin, cancel).await?;
    let newest = shared.catalog.points(&instance.id, None, 1).await?.pop().filter(|point| point.standing.in_vault);
    let read_bytes_per_s = if let Work::Backup { read_bytes_per_s: Some(limit), .. } = job.work { limit } else { 0 };
    let request = wire::BackupRequest {
        job_id: job.id.clone(),
        instance_name: instance.name.clone(),
        source: Some(session::source(&instance.source_uri, &instance.credential)),
        vault: Some(vault),
        settings_json: session::command(shared, &instance.source_type)?.settings_json.clone(),
        compression_level: document.compression,
        tags: vec![format!("job={}", job.id), format!("instance={}", instance.id), kept.tag()],
        read_bytes_per_s,
        base_snapshot_id: newest.map(|point| point.id.to_string()).unwrap_or_default(),
    };
    let mut overtaken = false;
    loop {
        let pass_env = session::env_of(&instance.credential);
        let work = async |plugin: &mut Plugin| stage(jobs, job, plugin, request.clone()).await;
        let (staged, packs, warnings) =
            session::with_plugin(jobs, job, &instance.source_type, pass_env, cancel, work).await?;
        let (snapshot_held_ms, snapshot_transactions) = (staged.snapshot_held_ms, staged.snapshot_transactions);
        let record = record(job, kept, &policy, staged, packs)?;
        pause::at(&shared.state_dir, "staged").await;
        shared.catalog.stage(&job.id, record).await?;
        // A restart that commits what is staged goes on behind these.
        jobs.keep_steps(job).await?;
        pause::at(&shared.state_dir, "journaled").await;
        if snapshot_held_ms > 0 {
            let figures = Some(ReportFigures::Backup { snapshot_held_ms, snapshot_transactions });
            shared.catalog.set_report(&job.id, Report { finding_count: 0, figures }, Vec::new()).await?;
        }
        if !warnings.is_empty() {
            // Kept with the job now, so that a restart between here and the end does not lose them.
            shared.catalog.set_status(&job.id, crate::catalog::Status::InProgress, warnings).await?;
        }
        match commit_staged(jobs, job, false).await {
            // Once: what it meets then was not marked when it began, and a third prune in one backup's time is no chance any more.
            Err(problem) if problem.reason == Reason::PrunedMeanwhile && !overtaken => {
                tracing::warn!(job = job.id, "a prune overtook the backup, which begins again: {}", problem.message);
                overtaken = true;
            }
            other => return other,
        }
    }
}

type StagedParts = (wire::Staged, Vec<(Id, u64)>, Vec<StoredProblem>);

/// Lets the plugin read and upload, until everything but the snapshot is in the vault.
async fn stage(
    jobs: &Jobs,
    job: &Job,
    plugin: &mut Plugin,
    request: wire::BackupRequest,
) -> Result<StagedParts, Problem> {
    let broken =
        |detail: &str| Problem::new(Reason::PluginProtocol, format!("the plugin broke the protocol: {detail}"));
    let mut reporter = Reporter::new(jobs, &job.id);
    let (mut packs, mut warnings) = (Vec::new(), Vec::new());
    let mut client = plugin.client();
    let mut events = plugin.begin(client.backup(request)).await?;
    loop {
        let event = session::next_event(plugin, &mut events).await?.event;
        match event.ok_or_else(|| broken("an empty event"))? {
            Event::Progress(progress) => reporter.report(progress),
            Event::Warning(warning) => warnings.push(session::warning(warning)),
            Event::StagedPacks(more) => {
                for pack in more.packs {
                    packs.push((session::id_from(&pack.id)?, pack.size));
                }
                if packs.len() > MAX_PACKS {
                    return Err(broken("too many packs"));
                }
            }
            Event::Staged(staged) if staged.pack_count == packs.len() as u64 => return Ok((staged, packs, warnings)),
            Event::Staged(_) => return Err(broken("packs are missing from its list")),
        }
    }
}

fn record(
    job: &Job,
    kept: Kept<'_>,
    policy: &Policy,
    staged: wire::Staged,
    packs: Vec<(Id, u64)>,
) -> Result<commit::Record, Problem> {
    let broken =
        |detail: String| Problem::new(Reason::PluginProtocol, format!("the plugin broke the protocol: {detail}"));
    let snapshot_id: Id = staged.snapshot_id.parse().map_err(|_| broken("a bad snapshot id".to_owned()))?;
    let time = jiff::Timestamp::from_microsecond(staged.time_us).map_err(|error| broken(error.to_string()))?;
    let stream =
        |stream: wire::StagedStream| PointStream { name: stream.name, size: stream.size, sha256: stream.sha256 };
    Ok(commit::Record {
        snapshot_id,
        sealed: staged.sealed_snapshot.into(),
        prune_epoch: staged.prune_epoch,
        packs,
        time,
        created: PointCreated {
            job_id: job.id.clone(),
            rule: kept.rule.to_owned(),
            policy: policy.name.clone(),
            policy_version: policy.version,
            slot: kept.slot,
            keep_until: kept.keep_until,
            streams: staged.streams.into_iter().map(stream).collect(),
            source_bytes: staged.source_bytes,
            stored_bytes: staged.stored_bytes,
            // The commit fills these in, from the staged record itself.
            sealed_snapshot: String::new(),
            prune_epoch: 0,
            capture: staged.capture.map(capture).transpose()?,
        },
    })
}

fn capture(told: wire::Capture) -> Result<Capture, Problem> {
    let consistency = Consistency::from_name(&told.consistency).ok_or_else(|| {
        let message =
            format!("the plugin broke the protocol: no level of consistency is called {:?}", told.consistency);
        Problem::new(Reason::PluginProtocol, message)
    })?;
    Ok(Capture {
        consistency,
        reason: told.reason,
        provider: told.provider,
        synced_ms: told.synced_ms,
        freezing_ms: told.freezing_ms,
        frozen_ms: told.frozen_ms,
        read_bytes: told.read_bytes,
        base: told.base_snapshot_id,
        full_read_reason: told.full_read_reason,
    })
}

/// Commits what is journaled, from wherever an earlier try has stopped. It is not cancelled by a request: the work is done, and
/// undoing it would cost more than ending it. When the agent stops, the restart goes on from here.
///
/// With `resume`, an earlier life may have published the point already. Until the store has said that it has not, and from `publish` on,
/// no error fails the job: a failed job whose point is there must never be.
pub(super) async fn commit_staged(jobs: &Jobs, job: &Job, resume: bool) -> Result<End, Problem> {
    let shared = &jobs.shared;
    let stop = &jobs.inner.stop;
    let Some(record) = until_answered(jobs, job, || shared.catalog.staged(&job.id)).await else {
        return Ok(End::LeftToRestart);
    };
    let record =
        record.ok_or_else(|| Problem::new(Reason::Internal, "the journal has no staged record of this job"))?;
    let (source_bytes, stored_bytes) = (record.created.source_bytes, record.created.stored_bytes);
    let phase = |phase: &str| {
        jobs.update(&job.id, |progress| {
            phase.clone_into(&mut progress.phase);
            (progress.bytes_read, progress.bytes_stored) = (source_bytes, stored_bytes);
            progress.bytes_per_second = 0;
        });
    };
    phase("verifying");
    let Some(store) =
        until_answered(jobs, job, || std::future::ready(shared.vault.open_instance(&job.instance_id))).await
    else {
        return Ok(End::LeftToRestart);
    };
    let ask = || commit::is_committed(&*store, &record.snapshot_id, stop);
    let committed = match resume {
        true => until_answered(jobs, job, ask).await,
        false => Some(false),
    };
    let Some(committed) = committed else { return Ok(End::LeftToRestart) };
    if !committed {
        // Until `publish` is asked for, the point is certainly not there, and a failure is a failed job.
        let prepared = async {
            commit::verify(&*store, &record, stop).await?;
            pause::at(&shared.state_dir, "packs-verified").await;
            // The vault may have changed hands while the backup ran.
            crate::owner::check(&shared.vault, &shared.agent_id, stop).await?;
            commit::prepare(&*store, &record, stop).await?;
            if let Some((until, locked)) = immutable_until(jobs).await? {
                immutability::before_publish(&*store, &record, until, locked, stop).await?;
            }
            Ok(())
        };
        if let Err(error) = prepared.await {
            return give_up(jobs, job, &*store, &record, error).await;
        }
        phase("committing");
        if let Err(error) = publish(jobs, job, &*store, &record).await {
            return left_to_restart(jobs, error);
        }
        pause::at(&shared.state_dir, "committed").await;
    }
    if let Err(error) = settle(jobs, &*store, &record).await {
        // The point is there and whole. The next commit names its records, and a repeated one sets its dates.
        tracing::warn!(job = job.id, "the point's records are not covered by a manifest or a date yet: {error}");
    }
    if let Err(problem) = jobs.keep_steps(job).await {
        tracing::warn!(job = job.id, "what the job did is not all kept: {problem}");
    }
    let complete = || shared.catalog.complete_backup(&job.id, point(job, &record), Vec::new());
    if until_answered(jobs, job, complete).await.is_none() {
        return Ok(End::LeftToRestart);
    }
    pause::at(&shared.state_dir, "completed").await;
    shared.link.confirm(&*shared.catalog).await;
    Ok(End::Recorded)
}

/// Asks until there is an answer. `None`: the agent stops, and the restart asks again.
async fn until_answered<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    jobs: &Jobs,
    job: &Job,
    ask: impl Fn() -> F,
) -> Option<T> {
    loop {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(_) if jobs.inner.stop.is_cancelled() => return None,
            Err(error) => tracing::warn!(job = job.id, "the commit waits for an answer, trying again: {error}"),
        }
        tokio::select! {
            () = jobs.inner.stop.cancelled() => return None,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Until when the vault's settings make a point immutable that is committed now, and whether that is locked.
async fn immutable_until(jobs: &Jobs) -> Result<Option<(jiff::Timestamp, bool)>, Error> {
    let settings = jobs.shared.settings(&jobs.inner.stop).await?;
    Ok(settings.immutable_until(vaultferry_vault::clock::now()))
}

/// What a published point gets: its dates, and a manifest that names its files. May be repeated.
async fn settle(jobs: &Jobs, store: &dyn vaultferry_vault::store::Store, record: &commit::Record) -> Result<(), Error> {
    let stop = &jobs.inner.stop;
    if let Some((until, locked)) = immutable_until(jobs).await? {
        immutability::after_publish(store, &record.snapshot_id, until, locked, stop).await?;
    }
    manifest::append(store, manifest::Scope::Instance, &[], stop).await?;
    Ok(())
}

/// An error before the commit fails the job, unless it only means that the agent stops: then the staged record stays for the restart.
fn left_to_restart(jobs: &Jobs, error: Error) -> Result<End, Problem> {
    if matches!(error, Error::Cancelled) && jobs.inner.stop.is_cancelled() {
        return Ok(End::LeftToRestart);
    }
    Err(error.into())
}

/// Ends a commit whose publication was not asked for: says so in the vault, so that a prune may take what was uploaded. Only when the agent
/// stops does the staged record stay, for the restart.
async fn give_up(
    jobs: &Jobs,
    job: &Job,
    store: &dyn vaultferry_vault::store::Store,
    record: &commit::Record,
    error: Error,
) -> Result<End, Problem> {
    let stop = &jobs.inner.stop;
    if !(matches!(error, Error::Cancelled) && stop.is_cancelled())
        && let Err(left) = commit::abandon(store, record, stop).await
    {
        // Nothing is wrong with the vault then, but that a prune keeps what no point needs.
        tracing::warn!(job = job.id, "what the failed backup has uploaded stays in the vault: {left}");
    }
    left_to_restart(jobs, error)
}

/// Asks for the commit until the store has answered: an answer that is lost may have been a yes, and a job must not fail whose point is there.
async fn publish(
    jobs: &Jobs,
    job: &Job,
    store: &dyn vaultferry_vault::store::Store,
    record: &commit::Record,
) -> Result<(), Error> {
    let mut may_be_there = false;
    loop {
        match commit::publish(store, record, &jobs.inner.stop).await {
            Err(Error::Store(error)) if may_be_there || error.is_retryable() => {
                may_be_there = true;
                tracing::warn!(job = job.id, "the vault does not answer to the commit, trying again: {error}");
            }
            other => return other,
        }
        tokio::select! {
            () = jobs.inner.stop.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn point(job: &Job, record: &commit::Record) -> Point {
    recorded::point_of(&job.instance_id, record.snapshot_id, record.time, record.created.clone())
}
