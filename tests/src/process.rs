//! Child processes: run with a limit, find them in `/proc`, kill them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_for;

/// What a command left: its exit code (128 + n when signal n ended it) and its words.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "exit code\nstdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}

/// Runs a command to its end, with `input` on its standard input; kills it and panics after `limit`.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {name}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let mut stderr = child.stderr.take().expect("stderr is a pipe");
    std::thread::scope(|scope| {
        // A child that does not read its input closes the pipe; its exit code tells the rest.
        scope.spawn(move || stdin.write_all(input).is_ok());
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let code = exit_code(&mut child, limit).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} ran for more than {} s", limit.as_secs());
        });
        Output {
            code,
            stdout: out.join().expect("the reader does not panic").expect("read stdout"),
            stderr: String::from_utf8_lossy(&err.join().expect("the reader does not panic").expect("read stderr"))
                .into_owned(),
        }
    })
}

/// The exit code, once the child has ended; `None` after `limit`.
pub fn exit_code(child: &mut Child, limit: Duration) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    let start = std::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("ask for a child's state") {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that gets `signal` when this process (its calling thread) dies. Its pid is the program's own.
pub fn bound(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

/// A process as it was seen: a pid alone may belong to another one later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The process id.
    pub pid: i32,
    /// Its start, in clock ticks since boot.
    pub start: u64,
    /// Its program's short name.
    pub name: String,
    /// Its command line, blanks between the arguments.
    pub command: String,
}

impl Seen {
    /// True while it runs. A dead one that its parent has not waited for yet counts as gone.
    pub fn alive(&self) -> bool {
        read(self.pid).is_some_and(|(now, _)| now.start == self.start)
    }

    /// SIGKILL; no error when it is gone already.
    pub fn kill9(&self) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// The process and its parent, or `None` when it is gone or dead.
fn read(pid: i32) -> Option<(Seen, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state ppid …; the name may hold anything, even blanks and brackets.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    if fields.first().is_none_or(|state| *state == "Z" || *state == "X") {
        return None;
    }
    let parent = fields.get(1)?.parse().ok()?;
    let start = fields.get(19)?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
    Some((Seen { pid, start, name, command }, parent))
}

fn all() -> Vec<(Seen, i32)> {
    let entries = fs::read_dir("/proc").expect("list /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(read).collect()
}

/// The process and everything below it.
pub fn tree(root: i32) -> Vec<Seen> {
    let mut children: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    let mut found = Vec::new();
    for (seen, parent) in all() {
        if seen.pid == root {
            found.push(seen);
        } else {
            children.entry(parent).or_default().push(seen);
        }
    }
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&found[next].pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// Every process, but this one, whose command line or environment holds `text`.
pub fn mentioning(text: &str) -> Vec<Seen> {
    let me = std::process::id() as i32;
    let needle = text.as_bytes();
    let holds = |seen: &Seen| {
        let environment = fs::read(format!("/proc/{}/environ", seen.pid)).unwrap_or_default();
        seen.command.contains(text) || environment.windows(needle.len()).any(|window| window == needle)
    };
    all().into_iter().map(|(seen, _)| seen).filter(|seen| seen.pid != me && holds(seen)).collect()
}

/// The highest resident memory so far, in bytes; `None` when the process is gone.
pub fn peak_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Sends the signal and waits for the end; SIGKILL and a panic after `limit`.
#[track_caller]
pub fn end(child: &mut Child, signal: Signal, limit: Duration) -> i32 {
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
    match exit_code(child, limit) {
        Some(code) => code,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("process {} did not end within {} s after {signal}", child.id(), limit.as_secs());
        }
    }
}

/// Waits until all of these are gone.
#[track_caller]
pub fn wait_gone(processes: &[Seen], limit: Duration) {
    let alive = || processes.iter().filter(|seen| seen.alive()).cloned().collect::<Vec<_>>();
    let what = format!("the end of {:?}", alive());
    wait_for(&what, limit, || alive().is_empty().then_some(()));
}
