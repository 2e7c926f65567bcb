//! A freeze that cannot hang: every process of it is killed or stopped at random instants, on ext4, xfs and btrfs over loop devices under write
//! load, and no writer waits longer than the deadline and a second.
//!
//! `VAULTFERRY_FREEZE_INSTANTS` is how many instants each file system gets (10; 100 with `VAULTFERRY_TEST_ALL=1`); a run prints its seed, which
//! `VAULTFERRY_FREEZE_SEED` repeats as far as instants can be repeated.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use vaultferry_tests::process::{self, Seen};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{measured, wait_for};

#[path = "support/freezing.rs"]
mod freezing;
#[path = "support/loopfs.rs"]
mod loopfs;

use freezing::{DEADLINE, GONE, HOLD, Hold, LIMIT, Load, Mounted, Thaws, Writer, file_system, records, thaw_command};

/// What is done to a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillHelper,
    KillGuardian,
    KillBothGuardians,
    KillCaller,
    KillCallerAndHelper,
    KillCallerAndGuardian,
    StopHelper,
    StopGuardian,
    StopHelperAndGuardian,
    StopCaller,
    /// Then only the guardians are left, and the clock.
    StopCallerAndHelper,
    /// As of a whole control group; then the command of the unit's ExecStopPost.
    KillAll,
}

const BLOWS: [Blow; 12] = [
    Blow::KillHelper,
    Blow::KillGuardian,
    Blow::KillBothGuardians,
    Blow::KillCaller,
    Blow::KillCallerAndHelper,
    Blow::KillCallerAndGuardian,
    Blow::StopHelper,
    Blow::StopGuardian,
    Blow::StopHelperAndGuardian,
    Blow::StopCaller,
    Blow::StopCallerAndHelper,
    Blow::KillAll,
];

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

impl Blow {
    /// False when none of those that it is for is there: in the beginning they are not yet.
    fn strike(self, hold: &Hold, choice: usize) -> bool {
        let pids = |seen: Vec<Seen>| seen.into_iter().map(|seen| seen.pid).collect::<Vec<_>>();
        let (helper, guardians) = (pids(hold.roles("helper")), pids(hold.roles("guardian")));
        let one = guardians.get(choice % 2).copied().into_iter().collect::<Vec<_>>();
        let caller = vec![hold.pid];
        let (targets, signal) = match self {
            Self::KillHelper => (helper, Signal::SIGKILL),
            Self::KillGuardian => (one, Signal::SIGKILL),
            Self::KillBothGuardians => (guardians, Signal::SIGKILL),
            Self::KillCaller => (caller, Signal::SIGKILL),
            Self::KillCallerAndHelper => ([caller, helper].concat(), Signal::SIGKILL),
            Self::KillCallerAndGuardian => ([caller, one].concat(), Signal::SIGKILL),
            Self::StopHelper => (helper, Signal::SIGSTOP),
            Self::StopGuardian => (one, Signal::SIGSTOP),
            Self::StopHelperAndGuardian => ([helper, one].concat(), Signal::SIGSTOP),
            Self::StopCaller => (caller, Signal::SIGSTOP),
            Self::StopCallerAndHelper => ([caller, helper].concat(), Signal::SIGSTOP),
            Self::KillAll => {
                let all = [caller, helper, guardians].concat();
                // A control group is killed in one go: nobody sees another one die.
                send(&all, Signal::SIGSTOP);
                (all, Signal::SIGKILL)
            }
        };
        send(&targets, signal);
        !targets.is_empty()
    }

    /// Ends a freeze that is frozen at that time, and not only endangers it.
    fn breaks_it(self) -> bool {
        matches!(self, Self::KillHelper | Self::KillGuardian | Self::KillBothGuardians)
    }
}

/// Of a run of the matrix.
#[derive(Debug, Default)]
struct Tally {
    instants: u64,
    longest: Duration,
    thawed_by_command: u64,
    while_frozen: u64,
    blows: BTreeMap<Blow, u64>,
}

/// One freeze and one blow. A panic says what it was.
fn instant(
    random: &mut StdRng,
    fs: &Path,
    state: &Path,
    writer: &Writer,
    epoch: Instant,
    blow: Blow,
    tally: &mut Tally,
) {
    writer.longest();
    let mut hold = Hold::start(&[fs.to_owned()], state, HOLD);
    // The command needs something to thaw now and then.
    let seen_frozen = random.random_bool(if blow == Blow::KillAll { 0.8 } else { 0.5 });
    let delay = if seen_frozen {
        assert!(hold.wait_until_frozen(), "not frozen: {:?}", hold.end());
        random.random_range(Duration::ZERO..HOLD)
    } else {
        random.random_range(Duration::ZERO..2 * HOLD)
    };
    let begun = Instant::now();
    std::thread::sleep(delay);
    let family = process::tree(hold.pid);
    let choice = random.random_range(0..2_usize);
    // A caller that has ended by itself is not there; its number is still its own.
    let has_struck = !family.is_empty() && blow.strike(&hold, choice);
    // On a busy machine it is later than was meant.
    let struck_after = begun.elapsed();
    let what =
        format!("{blow:?} {} ms after {}", delay.as_millis(), if seen_frozen { "the freeze" } else { "the start" });

    if blow == Blow::KillAll && has_struck {
        process::exit_code(&mut hold.child, GONE).expect("it is dead");
        let thawed = thaw_command(state);
        assert_eq!(thawed.code, 0, "{what}: {} {}", thawed.text(), thawed.stderr);
        tally.thawed_by_command += u64::from(thawed.text().contains("thawed "));
        let before = writer.writes();
        wait_for("a write after the thaw", LIMIT, || (writer.writes() > before + 1).then_some(()));
    }
    // No write waits longer than the limit while the freeze and its processes go.
    let start = Instant::now();
    let is_alive = || family.iter().any(Seen::alive) || process::tree(hold.pid).len() > 1;
    while is_alive() {
        let waiting = writer.waiting(epoch);
        assert!(waiting <= LIMIT, "{what}: a write has waited for {waiting:?}");
        if start.elapsed() > LIMIT && matches!(blow, Blow::StopCaller | Blow::StopCallerAndHelper) {
            family.iter().filter(|seen| seen.pid == hold.pid).for_each(Seen::kill9);
        }
        if start.elapsed() > 2 * LIMIT && has_struck {
            // Stopped before its guardians were ready, and nobody is left who could end it.
            send(&family.iter().filter(|seen| seen.alive()).map(|seen| seen.pid).collect::<Vec<_>>(), Signal::SIGCONT);
        }
        assert!(start.elapsed() < GONE, "{what}: still there: {family:?}");
        std::thread::sleep(Duration::from_millis(10));
        // Reaped here, where nobody else would.
        let _ = hold.child.try_wait();
    }
    let before = writer.writes();
    wait_for("writes go on", Duration::from_secs(2), || (writer.writes() > before + 1).then_some(()));
    let longest = writer.longest();
    assert!(longest <= LIMIT, "{what}: a write waited for {longest:?}");
    tally.longest = tally.longest.max(longest);
    let ended = hold.end();
    // The blow needs a moment, and so does whoever sees it.
    if seen_frozen && has_struck && blow.breaks_it() && struck_after + Duration::from_millis(150) < HOLD {
        assert_ne!(ended.code, 0, "{what}: the freeze was not held, and that was not said: {ended:?}");
    }
    if ended.code == 0 {
        assert!(ended.line.contains("held=true"), "{what}: {ended:?}");
    }
    // Nothing is left to be thawed, but what the very first moment of a record may leave.
    let left = thaw_command(state);
    assert_eq!(left.code, 0, "{what}: {} {}", left.text(), left.stderr);
    assert!(!left.text().contains("thawed "), "{what}: it was frozen still: {}", left.text());
    assert_eq!(records(state), 0, "{what}");
    if has_struck {
        tally.instants += 1;
        tally.while_frozen += u64::from(seen_frozen);
        *tally.blows.entry(blow).or_default() += 1;
    }
}

/// From the environment, or by the kind of the run.
fn instants() -> u64 {
    let all = std::env::var_os("VAULTFERRY_TEST_ALL").is_some_and(|value| value == "1");
    let wanted = std::env::var("VAULTFERRY_FREEZE_INSTANTS").ok().and_then(|value| value.parse().ok());
    wanted.unwrap_or(if all { 100 } else { 10 })
}

fn matrix(kind: &str) {
    let Some(fs) = file_system(kind) else { return };
    let seed = std::env::var("VAULTFERRY_FREEZE_SEED").ok().and_then(|value| value.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    measured(&format!("{kind}: VAULTFERRY_FREEZE_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = Scratch::new("freeze");
    let state = scratch.join("frozen");
    let epoch = Instant::now();
    let _load = Load::start(&fs.path(), seed);
    let writer = Writer::start(&fs.path(), epoch);
    let _thaws = Thaws(vec![fs.path()]);
    let mut tally = Tally::default();
    let wanted = instants();
    // Each blow in turn, so that a short run has nearly all; where they begin is chance. One that comes too late does not count.
    let turn = BLOWS.into_iter().cycle().skip((seed % 12) as usize);
    for blow in turn.take(usize::try_from(wanted * 4).expect("a few")) {
        if tally.instants < wanted {
            instant(&mut random, &fs.path(), &state, &writer, epoch, blow, &mut tally);
        }
    }
    assert_eq!(tally.instants, wanted, "most blows came when all was over: {tally:?}");
    assert!(tally.instants < 60 || tally.thawed_by_command > 0, "the command never had anything to thaw: {tally:?}");
    measured(&format!(
        "{kind}: {} instants ({} within a freeze, {} thawed by command), 0 left frozen past {LIMIT:?}; the longest write {:?}; {:?}",
        tally.instants, tally.while_frozen, tally.thawed_by_command, tally.longest, tally.blows
    ));
}

#[test]
fn matrix_of_freezes_on_ext4() {
    matrix("ext4");
}

#[test]
fn matrix_of_freezes_on_xfs() {
    matrix("xfs");
}

#[test]
fn matrix_of_freezes_on_btrfs() {
    matrix("btrfs");
}

#[test]
fn a_freeze_holds_writers_until_its_thaw() {
    let Some(fs) = file_system("ext4") else { return };
    let scratch = Scratch::new("freeze");
    let state = scratch.join("frozen");
    let epoch = Instant::now();
    let writer = Writer::start(&fs.path(), epoch);
    let _thaws = Thaws(vec![fs.path()]);
    let hold = Hold::start(&[fs.path()], &state, Duration::from_millis(600));
    assert!(hold.wait_until_frozen(), "{:?}", hold.end());
    assert_eq!(records(&state), 1, "what is frozen is written down");
    let ended = hold.end();
    assert!(ended.code == 0 && ended.line.contains("held=true"), "{ended:?}");
    wait_for("the write that waited", Duration::from_secs(1), || (writer.waiting(epoch) < LIMIT / 10).then_some(()));
    let longest = writer.longest();
    assert!(longest >= Duration::from_millis(500) && longest < LIMIT, "{longest:?}");
    assert_eq!(records(&state), 0);
}

#[test]
fn the_deadline_thaws_and_is_told() {
    let Some(fs) = file_system("ext4") else { return };
    let scratch = Scratch::new("freeze");
    let epoch = Instant::now();
    let writer = Writer::start(&fs.path(), epoch);
    let _thaws = Thaws(vec![fs.path()]);
    let hold = Hold::start(&[fs.path()], &scratch.join("frozen"), Duration::from_secs(4));
    assert!(hold.wait_until_frozen(), "{:?}", hold.end());
    let frozen = Instant::now();
    let before = writer.writes();
    wait_for("the thaw", LIMIT, || (writer.writes() > before + 2).then_some(()));
    assert!(frozen.elapsed() >= DEADLINE / 2, "{:?}", frozen.elapsed());
    let ended = hold.end();
    assert!(ended.code == 1 && ended.line.contains("held=false") && ended.line.contains("deadline"), "{ended:?}");
}

#[test]
fn what_something_else_has_frozen_is_left_as_it_is() {
    let Some(fs) = file_system("ext4") else { return };
    let scratch = Scratch::new("freeze");
    let state = scratch.join("frozen");
    let _thaws = Thaws(vec![fs.path()]);
    let fsfreeze = |what: &str| {
        let mut command = Command::new("fsfreeze");
        process::run(command.arg(what).arg(fs.path()), b"", Duration::from_secs(20)).code
    };
    assert_eq!(fsfreeze("--freeze"), 0);
    let ended = Hold::start(&[fs.path()], &state, HOLD).end();
    assert!(ended.code == 1 && ended.errors.contains("FreezeFailed"), "{ended:?}");
    assert!(ended.errors.contains("frozen by something else"), "{ended:?}");
    assert_eq!(records(&state), 0);
    assert_eq!(fsfreeze("--unfreeze"), 0, "it was still frozen");
}

#[test]
fn two_file_systems_are_frozen_and_rescued_together() {
    let (Some(outer), Some(inner)) = (file_system("ext4"), file_system("ext4")) else { return };
    let scratch = Scratch::new("freeze");
    let state = scratch.join("frozen");
    let nested = Mounted::new(&["--bind"], &inner.path(), outer.path().join("inner"));
    let epoch = Instant::now();
    let writers = [Writer::start(&outer.path(), epoch), Writer::start(&inner.path(), epoch)];
    let _thaws = Thaws(vec![outer.path(), inner.path()]);
    // Three names for two file systems.
    let mounts = [outer.path(), nested.0.clone(), inner.path()];
    let held = Hold::start(&mounts, &state, Duration::from_millis(500));
    assert!(held.wait_until_frozen(), "{:?}", held.end());
    let ended = held.end();
    assert!(ended.code == 0, "{ended:?}");
    for writer in &writers {
        wait_for("the write that waited", LIMIT, || (writer.waiting(epoch) < LIMIT / 10).then_some(()));
        assert!(writer.longest() >= Duration::from_millis(400));
    }
    let hold = Hold::start(&mounts, &state, Duration::from_secs(3));
    assert!(hold.wait_until_frozen(), "{:?}", hold.end());
    let killed = Instant::now();
    send(&hold.roles("helper").iter().map(|seen| seen.pid).collect::<Vec<_>>(), Signal::SIGKILL);
    for writer in &writers {
        let before = writer.writes();
        wait_for("the thaw", LIMIT, || (writer.writes() > before + 1).then_some(()));
    }
    assert!(killed.elapsed() < DEADLINE, "a death is seen at once, not at the deadline: {:?}", killed.elapsed());
    assert_ne!(hold.end().code, 0);
}

#[test]
fn a_loop_mount_and_what_its_file_lies_on_are_refused_together() {
    let Some(outer) = file_system("ext4") else { return };
    let scratch = Scratch::new("freeze");
    let state = scratch.join("frozen");
    let image = outer.path().join("image");
    File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("make an image");
    let mut make = Command::new("mkfs.ext4");
    make.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    process::run(make.args(["-q", "-F"]).arg(&image), b"", Duration::from_secs(20)).success();
    let inner = Mounted::new(&["-o", "loop"], &image, scratch.join("inner"));
    let _thaws = Thaws(vec![inner.0.clone(), outer.path()]);
    let ended = Hold::start(&[inner.0.clone(), outer.path()], &state, HOLD).end();
    assert!(ended.code == 1 && ended.errors.contains("FreezeRefused"), "{ended:?}");
    assert!(ended.errors.contains("stands on the file"), "{ended:?}");
    // Alone it can be.
    assert_eq!(Hold::start(std::slice::from_ref(&inner.0), &state, HOLD).end().code, 0);
    let ended = Hold::start(&[scratch.path().to_owned()], &state, HOLD).end();
    assert!(ended.errors.contains("is no mount point"), "{ended:?}");
}
