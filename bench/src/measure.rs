//! Runs a pipeline and measures it.
//!
//! What is counted as what:
//! - Client CPU: every process of the pipeline with its descendants, and for an agent all that it and its plugins use meanwhile.
//! - Server CPU: the PostgreSQL server with its backends. Azurite's CPU: its one process.
//! - Others' CPU: what the machine was busy with besides all of these and this program. The kernel's own threads are in it: they
//!   write back what was written to files.
//! - Memory: the kernel's high-water mark (VmHWM) of each process, read every 100 ms; the last 100 ms of a process can be missed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vaultferry_tests::process;

use crate::Result;

mod procfs;

use procfs::Processes;

/// Set by the first signal to end: the pipeline that runs is killed, and no other starts.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// A plugin goes away after its job has ended.
const SETTLE: Duration = Duration::from_secs(10);

/// What is run and measured.
#[derive(Debug)]
pub struct Action {
    /// Joined by pipes. Standard input of the first is empty.
    pub stages: Vec<Command>,
    /// Where the last one's output goes.
    pub stdout: PathBuf,
    /// A daemon that works for the pipeline: the agent.
    pub daemon: Option<i32>,
}

impl Action {
    /// A pipeline whose output nobody needs.
    pub fn discarding(stages: Vec<Command>) -> Self {
        Self { stages, stdout: "/dev/null".into(), daemon: None }
    }
}

/// Servers whose CPU is told apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Servers {
    /// PostgreSQL's first process.
    pub postgres: Option<i32>,
    /// Azurite's process.
    pub azurite: Option<i32>,
}

/// What was measured. Seconds are of wall or of CPU (user and system).
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// From the first start to the last end.
    pub wall_s: f64,
    /// CPU of the pipeline and its daemon.
    pub client_cpu_s: f64,
    /// CPU of PostgreSQL.
    pub server_cpu_s: f64,
    /// CPU of Azurite.
    pub azurite_cpu_s: f64,
    /// CPU of everything else on the machine.
    pub other_cpu_s: f64,
    /// CPU that the hypervisor gave to others.
    pub steal_s: f64,
    /// The highest resident memory of the largest process of each name.
    pub peak_mib: BTreeMap<String, f64>,
}

/// Runs the action to its end.
///
/// Errors: a stage that cannot be started or fails, told with the last words of the pipeline; an interruption. What was started is gone
/// then.
pub fn run(action: Action, servers: Servers, scratch: &Path) -> Result<Measured> {
    // What the run before left to be written must not be charged to this one.
    nix::unistd::sync();
    let errors_path = scratch.join("stderr");
    let before = Counters::now(servers, action.daemon);
    let started = Instant::now();
    let mut children = start(action.stages, &action.stdout, &errors_path)?;
    let roots: Vec<i32> = children.iter().map(|child| child.id() as i32).collect();
    let done = AtomicBool::new(false);
    let (statuses, wall, peaks) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&roots, action.daemon, &done));
        let statuses: Vec<_> = children.iter_mut().map(Child::wait).collect();
        let wall = started.elapsed();
        settle(action.daemon);
        done.store(true, Ordering::Relaxed);
        (statuses, wall, sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let used = Counters::now(servers, action.daemon).since(&before);
    stopped()?;
    for status in statuses {
        let status = status?;
        if !status.success() {
            return Err(format!("{status}: {}", last_words(&errors_path)).into());
        }
    }
    let known = used.client + used.server + used.azurite + used.own;
    Ok(Measured {
        wall_s: wall.as_secs_f64(),
        client_cpu_s: used.client,
        server_cpu_s: used.server,
        azurite_cpu_s: used.azurite,
        other_cpu_s: (used.busy - known).max(0.0),
        steal_s: used.steal,
        peak_mib: peaks,
    })
}

/// An error once the program was told to end.
pub fn stopped() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

fn start(stages: Vec<Command>, stdout: &Path, errors_path: &Path) -> Result<Vec<Child>> {
    let errors = File::create(errors_path)?;
    let count = stages.len();
    let mut children: Vec<Child> = Vec::with_capacity(count);
    let mut input = Stdio::null();
    for (index, mut stage) in stages.into_iter().enumerate() {
        let output = if index + 1 == count { Stdio::from(File::create(stdout)?) } else { Stdio::piped() };
        let spawned = stage.stdin(input).stdout(output).stderr(errors.try_clone()?).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                for child in &mut children {
                    let _ = (child.kill(), child.wait());
                }
                return Err(format!("start {stage:?}: {error}").into());
            }
        };
        // The command, and with it our end of the pipe, is dropped here: a reader that ends early must be felt by its writer.
        input = child.stdout.take().map_or_else(Stdio::null, Stdio::from);
        children.push(child);
    }
    Ok(children)
}

/// Peaks by process name, until `done`.
fn sample(roots: &[i32], daemon: Option<i32>, done: &AtomicBool) -> BTreeMap<String, f64> {
    let mut peaks: BTreeMap<String, f64> = BTreeMap::new();
    while !done.load(Ordering::Relaxed) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            for root in roots {
                let _ = kill(Pid::from_raw(*root), Signal::SIGKILL);
            }
        }
        let processes = Processes::now();
        for pid in roots.iter().copied().chain(daemon).flat_map(|root| processes.below(root)) {
            let Some(name) = processes.name(pid) else { continue };
            // What starts the tools is not of them.
            if matches!(name.as_str(), "setpriv" | "unshare" | "bash" | "mount" | "vaultferry-benc") {
                continue;
            }
            let name = if Some(pid) == daemon { "agent".to_owned() } else { name };
            let mib = process::peak_memory(pid).unwrap_or(0) as f64 / f64::from(1 << 20);
            let peak = peaks.entry(name).or_default();
            *peak = peak.max(mib);
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
    peaks
}

/// Waits until the daemon has no children: their CPU is counted as its own then.
fn settle(daemon: Option<i32>) {
    let Some(daemon) = daemon else { return };
    let started = Instant::now();
    while Processes::now().below(daemon).len() > 1 && started.elapsed() < SETTLE {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn last_words(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// CPU seconds so far.
#[derive(Debug, Clone, Copy)]
struct Counters {
    client: f64,
    server: f64,
    azurite: f64,
    own: f64,
    busy: f64,
    steal: f64,
}

impl Counters {
    fn now(servers: Servers, daemon: Option<i32>) -> Self {
        let processes = Processes::now();
        let with_descendants = |pid: Option<i32>| pid.map_or(0.0, |pid| processes.cpu_below(pid));
        let (own, reaped) = processes.own();
        let (busy, steal) = procfs::machine();
        Self {
            client: reaped + with_descendants(daemon),
            server: with_descendants(servers.postgres),
            azurite: with_descendants(servers.azurite),
            own,
            busy,
            steal,
        }
    }

    fn since(self, before: &Self) -> Self {
        Self {
            client: self.client - before.client,
            server: self.server - before.server,
            azurite: self.azurite - before.azurite,
            own: self.own - before.own,
            busy: self.busy - before.busy,
            steal: self.steal - before.steal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn cpu_and_memory_of_the_whole_tree_are_counted() {
        let scratch = tempfile::tempdir().expect("a folder");
        // A grandchild burns CPU, and `head` keeps 50 MB in memory through `tail`.
        let burn = "bash -c 'i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done'; head -c 50000000 /dev/zero | tail -c 50000000";
        let action = Action::discarding(vec![shell(burn), shell("exec cat; sleep 0.3")]);
        let measured = run(action, Servers::default(), scratch.path()).expect("it runs");
        assert!(measured.client_cpu_s > 0.3, "{measured:?}");
        assert!(measured.client_cpu_s < measured.wall_s * 3.0 + 0.1, "{measured:?}");
        assert_eq!((measured.server_cpu_s, measured.azurite_cpu_s), (0.0, 0.0));
    }

    #[test]
    fn a_failing_stage_fails_the_run_with_its_words() {
        let scratch = tempfile::tempdir().expect("a folder");
        let action = Action::discarding(vec![shell("echo lost >&2; exit 3"), Command::new("cat")]);
        let error = run(action, Servers::default(), scratch.path()).expect_err("a stage fails").to_string();
        assert!(error.contains('3') && error.contains("lost"), "{error}");
    }
}
