//! The instant that a point is of: scripts, freeze, snapshot, thaw, scripts. And what can be relied on afterwards.
//!
//! ```text
//! pre scripts ─> freeze ─> take ─> thaw ─> post scripts ─> open
//!      │            │        │       │
//!      └────────────┴────────┴───────┴─ whatever fails: thaw, then the post scripts, then the problem
//! ```
//! Invariants:
//! - Between the freeze and the thaw nothing is logged, told or asked here, and nothing but the snapshot is made.
//! - The thaw and the post scripts follow whatever came before; a cancellation is heard before the freeze and behind the post scripts.
//! - A level of consistency is claimed only when every step towards it was seen to succeed, for every disk.
//! - Disks that are caught one after the other are of one instant only while nobody writes to them: otherwise there is no point of them.
//!
//! A kill in the middle: guardians thaw ([`crate::freeze`]), the next start runs post scripts that are owed ([`crate::scripts`]), and the next
//! backup removes the snapshot ([`Provider::remove_leftovers`]).

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_plugin_sdk::{Reporter, Warning};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::{Capture, Consistency};

use crate::freeze::{self, FreezeRequest, Thawed};
use crate::provider::{self, Disk, Freezable, Prepared, Provider, Snapshot, Tracking};
use crate::scripts::{ScriptReport, Scripts};
use crate::settings::{OnFreezeFailure, Settings};
use crate::usage;

/// Why a point is as after a power cut though nothing went wrong.
const NOBODY: &str = "nobody had the disks open for writing: they are as a machine that is off left them";

/// Said of several disks that were caught one after the other behind a script.
const UNLESS_QUIET: &str = "the disks are of one instant only if the pre-script kept everybody from writing to them";

/// What is to be caught.
pub(crate) struct Wanted<'a> {
    pub(crate) job_id: &'a str,
    pub(crate) disks: &'a [Disk],
    pub(crate) provider: &'a dyn Provider,
    pub(crate) base: Option<&'a Tracking>,
    pub(crate) settings: &'a Settings,
}

/// A snapshot, and what can be relied on in it. What is read and taken over is not in its figures yet.
pub(crate) struct Caught {
    pub(crate) snapshot: Snapshot,
    pub(crate) capture: Capture,
}

/// Whether file systems are frozen while the snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These are.
    Freeze(Vec<PathBuf>),
    /// None is, and the point is of that level all the same, for that reason.
    Leave(Consistency, String),
    /// None can be, for that reason: the settings say what becomes of it.
    CannotFreeze(Problem),
}

/// Catches the disks at one instant.
pub(crate) async fn catch(
    wanted: Wanted<'_>,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Caught, Problem> {
    let scripts = match &wanted.settings.scripts {
        Some(folder) => Scripts::load(folder)?,
        None => None,
    };
    let plan = match (plan(wanted.disks, wanted.provider, wanted.settings).await?, &scripts) {
        (Plan::Freeze(_), Some(scripts)) if !scripts.freezes() => {
            let reason = "the scripts' configuration wants no freeze (fsFreezeEnabled)";
            Plan::Leave(Consistency::Crash, reason.to_owned())
        }
        (plan, _) => plan,
    };
    if let Plan::CannotFreeze(problem) = &plan {
        allow_crash(wanted.settings, problem.message.clone(), &problem.fix)?;
    }
    // Scripts may keep everybody from writing; whether they ran is seen later.
    if !scripts.as_ref().is_some_and(Scripts::has_pre)
        && let Some(problem) = apart(wanted.disks, wanted.provider, &plan).await
    {
        return Err(problem);
    }
    reporter.phase("preparing the snapshot");
    let mut prepared = wanted.provider.prepare(wanted.job_id, wanted.disks, wanted.base, cancel).await?;
    let (mut quiet, mut warnings) = (false, Vec::new());
    let before = async {
        let Some(scripts) = &scripts else { return Ok(()) };
        reporter.phase("running scripts before the snapshot");
        let report = scripts.pre(cancel).await?;
        quiet = report.succeeded();
        warnings.extend(told(&report));
        Ok::<(), Problem>(())
    };
    let taken = match before.await {
        Ok(()) if cancel.is_cancelled() => Err(cancelled()),
        Ok(()) => take(&mut prepared, &plan, wanted.settings, reporter, cancel).await,
        Err(problem) => Err(problem),
    };
    // Before the scripts behind the snapshot let anybody write again.
    let apart = match &taken {
        Ok(Taken::Frozen(thawed)) if thawed.held => None,
        Ok(_) => written_apart(wanted.disks, wanted.provider).await,
        Err(_) => None,
    };
    if let Some(scripts) = &scripts {
        reporter.phase("running scripts behind the snapshot");
        match scripts.post().await {
            Ok(report) => warnings.extend(told(&report)),
            // The snapshot is as good as it is; what was stopped for it may stand still, which somebody has to look at.
            Err(problem) => warnings.push(warning(&problem, "a script behind the snapshot failed")),
        }
    }
    for warning in warnings {
        reporter.warn(warning).await;
    }
    let taken = taken?;
    let snapshot = prepared.open().await?;
    let reached = level(&plan, taken, quiet, wanted.settings, wanted.provider.name());
    let reached = reached.and_then(|reached| match apart {
        Some(problem) if !quiet => Err(problem),
        apart => Ok((reached, apart)),
    });
    match reached {
        Ok(((mut capture, said), apart)) => {
            if let Some(problem) = &apart {
                capture.reason = format!("{}; {UNLESS_QUIET}", capture.reason);
                reporter.warn(warning(problem, UNLESS_QUIET)).await;
            }
            if let Some(said) = said {
                reporter.warn(said).await;
            }
            Ok(Caught { snapshot, capture })
        }
        Err(problem) => {
            if let Err(left) = provider::release(snapshot, false).await {
                tracing::warn!("the snapshot stays until the next backup: {}", left.message);
            }
            Err(problem)
        }
    }
}

/// What was seen between the scripts.
enum Taken {
    /// Nothing was frozen.
    Running,
    /// File systems were frozen.
    Frozen(Thawed),
    /// They could not be, for that reason.
    NotFrozen(Problem),
}

async fn take(
    prepared: &mut Box<dyn Prepared>,
    plan: &Plan,
    settings: &Settings,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<Taken, Problem> {
    let Plan::Freeze(mounts) = plan else {
        reporter.phase("taking the snapshot");
        take_now(prepared)?;
        return Ok(Taken::Running);
    };
    reporter.phase("freezing");
    let deadline = settings.freeze_deadline();
    let request = FreezeRequest { mounts: mounts.clone(), deadline, stall: deadline };
    let frozen = match freeze::freeze(request, cancel).await {
        Ok(frozen) => frozen,
        Err(_) if cancel.is_cancelled() => return Err(cancelled()),
        Err(problem) => {
            allow_crash(settings, problem.message.clone(), &problem.fix)?;
            take_now(prepared)?;
            return Ok(Taken::NotFrozen(problem));
        }
    };
    let taken = take_now(prepared);
    let thawed = frozen.thaw().await;
    taken?;
    Ok(Taken::Frozen(thawed?))
}

/// The runtime's other tasks go on elsewhere, as it may wait for the disk. Nothing comes between the freeze and this.
fn take_now(prepared: &mut Box<dyn Prepared>) -> Result<(), Problem> {
    tokio::task::block_in_place(|| prepared.take())
}

/// Why the disks would be of several instants, if this plan freezes nothing and they are caught one after the other while somebody may write.
pub(crate) async fn apart(disks: &[Disk], provider: &dyn Provider, plan: &Plan) -> Option<Problem> {
    match plan {
        Plan::Freeze(_) => None,
        Plan::Leave(..) | Plan::CannotFreeze(_) => written_apart(disks, provider).await,
    }
}

/// The same of disks with nothing frozen.
async fn written_apart(disks: &[Disk], provider: &dyn Provider) -> Option<Problem> {
    if disks.len() < 2 || !matches!(provider.freezable(), Freezable::NotTheImages) {
        return None;
    }
    let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
    let looked = tokio::task::spawn_blocking(move || usage::may_be_written(&paths));
    if !looked.await.unwrap_or(true) {
        return None;
    }
    let message = format!(
        "{} catches the {} disks one after the other, and with nothing frozen somebody may write to them in between: they are not of one \
         instant",
        provider.name(),
        disks.len()
    );
    let fix = "Put the images into one btrfs subvolume ([vm] provider = \"btrfs\"), shut the machine down for the backup, have what is \
               mounted of all the disks frozen, or protect each disk as a machine of its own.";
    Some(Problem::new(Reason::ConsistencyNotReached, message).with_fix(fix))
}

/// What a script's run tells the user.
fn told(report: &ScriptReport) -> Vec<Warning> {
    report
        .warnings()
        .map(|problem| warning(problem, "a script failed, and its configuration lets the backup go on"))
        .collect()
}

fn warning(problem: &Problem, what: &str) -> Warning {
    let message = format!("{what}: {}", problem.message);
    Warning { reason: problem.reason.as_str().to_owned(), message, fix: problem.fix.clone() }
}

/// Refuses to go on without a freeze, unless the settings allow it.
fn allow_crash(settings: &Settings, why: String, fix: &str) -> Result<(), Problem> {
    match settings.on_freeze_failure {
        OnFreezeFailure::CrashConsistent => Ok(()),
        OnFreezeFailure::Fail => {
            let message = format!("the file systems were not frozen, and the settings want no less: {why}");
            let fix =
                format!("{fix} Or allow points as after a power cut: [vm] on_freeze_failure = \"crash-consistent\".");
            Err(Problem::new(Reason::ConsistencyNotReached, message).with_fix(fix))
        }
    }
}

/// Looks at the disks, the provider and the settings, and says what is to be frozen.
pub(crate) async fn plan(disks: &[Disk], provider: &dyn Provider, settings: &Settings) -> Result<Plan, Problem> {
    let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
    let freezable = provider.freezable();
    if matches!(freezable, Freezable::NoNeed) {
        let reason = "nobody wrote to the disks: they are as a machine that is off left them";
        return Ok(Plan::Leave(Consistency::Crash, reason.to_owned()));
    }
    let looked = paths.clone();
    let named = settings.freeze.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let (mounts, not_held) = (usage::mounts_on(&looked)?, usage::not_held(&looked, named.as_deref())?);
        Ok::<_, std::io::Error>((mounts, not_held, usage::may_be_written(&looked)))
    });
    let looked = looked.await.map_err(|error| Problem::new(Reason::Internal, error.to_string()))?;
    let (mounts, not_held, is_written) = looked.map_err(|error| {
        Problem::new(Reason::DiskUnreadable, format!("cannot see what of the disks is mounted: {error}"))
    })?;
    if matches!(freezable, Freezable::Nothing) {
        for disk in &paths {
            if is_mounted_device(disk.clone()).await {
                continue;
            }
            if !is_written {
                return Ok(Plan::Leave(Consistency::Crash, NOBODY.to_owned()));
            }
            let (name, disk) = (provider.name(), disk.display());
            let message =
                format!("{name} catches {disk} as it lies on the disk, and what is in it cannot be frozen with it");
            let fix = "Shut the machine down, or try another provider ([vm] provider), or run an agent in the machine itself.";
            return Ok(Plan::CannotFreeze(Problem::new(Reason::ConsistencyNotReached, message).with_fix(fix)));
        }
        let reason = format!("{} froze the file systems on the disks by itself", provider.name());
        return Ok(Plan::Leave(Consistency::FileSystem, reason));
    }
    let mounts = match &settings.freeze {
        Some(mounts) if mounts.is_empty() => {
            let reason = "the settings freeze nothing ([vm] freeze = [])";
            return Ok(Plan::Leave(Consistency::Crash, reason.to_owned()));
        }
        Some(mounts) => mounts.clone(),
        None => mounts,
    };
    // Whatever the settings name then, it is of other disks.
    if !is_written {
        return Ok(Plan::Leave(Consistency::Crash, NOBODY.to_owned()));
    }
    if mounts.is_empty() {
        let message =
            "nothing of the disks is mounted on this machine, so nothing can be frozen, and somebody may write to them";
        let fix =
            "Shut the machine down, or name the mount points in [vm] freeze, or run an agent in the machine itself.";
        return Ok(Plan::CannotFreeze(Problem::new(Reason::ConsistencyNotReached, message).with_fix(fix)));
    }
    // One disk that goes on being written to is not what the level of the others says.
    if let Some(not_held) = not_held {
        let message = format!("not all of the disks would stand still: {not_held}");
        let fix = "Name all mount points that are on the disks in [vm] freeze, shut the machine down, or protect the disk as a machine of its own.";
        return Ok(Plan::CannotFreeze(Problem::new(Reason::ConsistencyNotReached, message).with_fix(fix)));
    }
    match freeze::check(&mounts, &paths).await {
        Ok(()) => Ok(Plan::Freeze(mounts)),
        Err(problem) => Ok(Plan::CannotFreeze(problem)),
    }
}

/// True for a block device whose own file system is mounted here: what is mounted of its parts, LVM does not freeze.
async fn is_mounted_device(disk: PathBuf) -> bool {
    let looked = tokio::task::spawn_blocking(move || usage::is_mounted_itself(&disk));
    looked.await.is_ok_and(|mounted| mounted.unwrap_or(false))
}

/// What can be relied on, and what of it is worth a warning.
fn level(
    plan: &Plan,
    taken: Taken,
    scripts_ran: bool,
    settings: &Settings,
    provider: &str,
) -> Result<(Capture, Option<Warning>), Problem> {
    let mut said = None;
    let (mut consistency, mut reason, times) = match (plan, taken) {
        (_, Taken::Frozen(thawed)) if thawed.held => {
            let mounts: Vec<String> = match plan {
                Plan::Freeze(mounts) => mounts.iter().map(|mount| mount.display().to_string()).collect(),
                Plan::Leave(..) | Plan::CannotFreeze(_) => Vec::new(),
            };
            let reason = format!("frozen while the snapshot was taken: {}", mounts.join(", "));
            (Consistency::FileSystem, reason, Some(thawed))
        }
        (_, Taken::Frozen(thawed)) => {
            let why =
                "they were thawed before the snapshot was there, because the deadline passed or a guardian had to";
            let fix =
                "Find what is slow (the point before tells how long it was frozen), or raise [vm] freeze_deadline.";
            allow_crash(settings, why.to_owned(), fix)?;
            said = Some(not_reached(why, fix));
            (Consistency::Crash, format!("the file systems did not stay frozen: {why}"), Some(thawed))
        }
        (_, Taken::NotFrozen(problem)) => {
            said = Some(not_reached(&problem.message, &problem.fix));
            (Consistency::Crash, format!("the file systems were not frozen: {}", problem.message), None)
        }
        (Plan::CannotFreeze(problem), Taken::Running) => {
            said = Some(not_reached(&problem.message, &problem.fix));
            (Consistency::Crash, format!("the file systems were not frozen: {}", problem.message), None)
        }
        (Plan::Leave(level, reason), Taken::Running) => (*level, reason.clone(), None),
        (Plan::Freeze(_), Taken::Running) => {
            return Err(Problem::new(Reason::Internal, "a snapshot was taken without the freeze that was planned"));
        }
    };
    if scripts_ran && consistency == Consistency::FileSystem {
        consistency = Consistency::Application;
        reason = format!("the scripts ran; {reason}");
    }
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let capture = Capture {
        consistency,
        reason,
        provider: provider.to_owned(),
        synced_ms: times.as_ref().map_or(0, |times| ms(times.synced)),
        freezing_ms: times.as_ref().map_or(0, |times| ms(times.freezing)),
        frozen_ms: times.as_ref().map_or(0, |times| ms(times.frozen)),
        read_bytes: 0,
        base: String::new(),
        full_read_reason: String::new(),
    };
    Ok((capture, said))
}

fn not_reached(why: &str, fix: &str) -> Warning {
    let message = format!("the point is as after a power cut only, which the settings allow: {why}");
    Warning { reason: Reason::ConsistencyNotReached.as_str().to_owned(), message, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn frozen(held: bool) -> Taken {
        Taken::Frozen(Thawed { freezing: 2 * MILLISECOND, synced: 30 * MILLISECOND, frozen: 4 * MILLISECOND, held })
    }

    fn allowed() -> Settings {
        Settings { on_freeze_failure: OnFreezeFailure::CrashConsistent, ..Settings::default() }
    }

    fn freeze() -> Plan {
        Plan::Freeze(vec!["/mnt/a".into(), "/mnt/b".into()])
    }

    fn cannot() -> Problem {
        Problem::new(Reason::ConsistencyNotReached, "it is a network mount").with_fix("Mount a disk.")
    }

    #[test]
    fn no_level_is_claimed_that_was_not_reached() {
        let settings = Settings::default();
        let (capture, said) = level(&freeze(), frozen(true), false, &settings, "reflink").unwrap();
        assert_eq!((capture.consistency, said), (Consistency::FileSystem, None));
        assert_eq!(capture.reason, "frozen while the snapshot was taken: /mnt/a, /mnt/b");
        assert_eq!((capture.synced_ms, capture.freezing_ms, capture.frozen_ms), (30, 2, 4));
        let (capture, _) = level(&freeze(), frozen(true), true, &settings, "reflink").unwrap();
        assert_eq!(capture.consistency, Consistency::Application);
        // Scripts do not make up for a freeze.
        let off = Plan::Leave(Consistency::Crash, "off".to_owned());
        let (capture, said) = level(&off, Taken::Running, true, &settings, "offline").unwrap();
        assert_eq!((capture.consistency, capture.reason.as_str(), said), (Consistency::Crash, "off", None));
        assert_eq!(level(&freeze(), Taken::Running, false, &allowed(), "x").unwrap_err().reason, Reason::Internal);
    }

    #[test]
    fn what_falls_short_is_a_failure_or_allowed_and_said() {
        let problem = level(&freeze(), frozen(false), true, &Settings::default(), "reflink").unwrap_err();
        assert_eq!(problem.reason, Reason::ConsistencyNotReached);
        assert!(problem.fix.contains("crash-consistent"), "{}", problem.fix);
        let cases = [
            (freeze(), frozen(false)),
            (freeze(), Taken::NotFrozen(cannot())),
            (Plan::CannotFreeze(cannot()), Taken::Running),
        ];
        for (plan, taken) in cases {
            let (capture, said) = level(&plan, taken, true, &allowed(), "reflink").unwrap();
            assert_eq!(capture.consistency, Consistency::Crash, "{plan:?}");
            let said = said.expect("a warning");
            assert_eq!((said.reason.as_str(), said.fix.is_empty()), ("ConsistencyNotReached", false));
        }
        assert!(allow_crash(&allowed(), String::new(), "").is_ok());
        assert!(allow_crash(&Settings::default(), String::new(), "").is_err());
    }
}
