//! The program under test: an agent with a state folder of its own, and its command line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{self, Seen};
use crate::scratch::Scratch;
use crate::{binary, wait_for};

mod cli;

pub use cli::{Job, Reply, number};

/// Longest start, and longest orderly end.
const LIMIT: Duration = Duration::from_secs(60);

/// How an agent is set up before it starts.
#[derive(Debug, Default)]
pub struct Setup {
    vault: Option<String>,
    extra: String,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// A folder vault in the agent's own state folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines below `[vault]`, and its sub-sections.
    #[must_use]
    pub fn vault(mut self, toml: impl Into<String>) -> Self {
        self.vault = Some(toml.into());
        self
    }

    /// More sections of the configuration.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self
    }

    /// A variable of the agent's environment, for secrets and test switches.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes the configuration and starts the agent.
    #[track_caller]
    pub fn start(self) -> Agent {
        let mut agent = self.prepare();
        agent.start();
        agent
    }

    /// Writes the configuration; nothing runs yet.
    #[track_caller]
    pub fn prepare(self) -> Agent {
        let scratch = Scratch::new("agent");
        let mut config =
            format!("state_dir = \"{0}/state\"\nlisten = [\"unix://{0}/control.sock\"]\n", scratch.path().display());
        if let Some(vault) = &self.vault {
            config.push_str(&format!("\n[vault]\n{vault}\n"));
        }
        config.push_str(&format!("\n{}\n", self.extra));
        let config_path = scratch.write("vaultferry.toml", &config);
        Agent {
            config_path,
            environment: self.environment,
            child: None,
            known: Mutex::new(Vec::new()),
            // Of every default vault, at every start; and of every machine whose /tmp is nearly full.
            expected: Mutex::new(vec![
                "recovery key is still in a file".to_owned(),
                "little space is left for the vault".to_owned(),
            ]),
            scratch,
        }
    }
}

/// An agent. Dropping it ends it, and then the test fails if a process is left or the log holds a warning or an error that
/// [`Agent::expect_log`] did not announce.
#[derive(Debug)]
pub struct Agent {
    scratch: Scratch,
    config_path: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    known: Mutex<Vec<Seen>>,
    expected: Mutex<Vec<String>>,
}

impl Agent {
    /// The folder that holds everything of this agent.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Its configuration file.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// Its state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Writes a file of the test next to the agent's own.
    #[track_caller]
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        self.scratch.write(name, content)
    }

    /// Its process id.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("the agent runs").id() as i32
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the agent's log");
        let mut command = process::bound("KILL", binary());
        command.args(["agent", "run", "--config"]).arg(&self.config_path);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        self.set_environment(&mut command);
        self.child = Some(command.spawn().expect("start the agent"));
        let started = Instant::now();
        while self.cli(&["summary", "--output", "json"]).code != 0 {
            let child = self.child.as_mut().expect("it was started just now");
            if let Some(code) = process::exit_code(child, Duration::from_millis(50)) {
                panic!("the agent ended with code {code} at its start:\n{}", self.log_tail());
            }
            assert!(started.elapsed() < LIMIT, "the agent does not answer:\n{}", self.log_tail());
        }
    }

    fn set_environment(&self, command: &mut Command) {
        // A mark by which its descendants are found again, even when their parent is gone.
        command.env("VAULTFERRY_TEST_DIR", self.dir());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// Adds or changes a variable for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable away for the next start.
    pub fn unset_env(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Everything below the agent now, itself first. They are remembered for [`Agent::wait_until_nothing_is_left`].
    pub fn tree(&self) -> Vec<Seen> {
        let tree = self.child.as_ref().map(|child| process::tree(child.id() as i32)).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Seen> = tree.iter().filter(|seen| !known.contains(seen)).cloned().collect();
        known.extend(new);
        tree
    }

    /// The running plugin processes.
    pub fn plugins(&self) -> Vec<Seen> {
        self.tree().into_iter().filter(|seen| seen.command.contains(" plugin ")).collect()
    }

    /// Running children of plugins: pg_dump, pg_restore.
    pub fn clients(&self, name: &str) -> Vec<Seen> {
        self.tree().into_iter().filter(|seen| seen.name == name).collect()
    }

    /// All processes that belong to this agent: seen below it, or marked with its folder.
    pub fn processes(&self) -> Vec<Seen> {
        self.tree();
        let mut found = process::mentioning(&self.dir().display().to_string());
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        found.extend(known.iter().filter(|seen| seen.alive()).cloned());
        found.sort();
        found.dedup_by_key(|seen| seen.pid);
        found
    }

    /// Waits until nothing of the agent runs, itself neither.
    #[track_caller]
    pub fn wait_until_nothing_is_left(&self, limit: Duration) {
        let mut left = Vec::new();
        let started = Instant::now();
        while started.elapsed() < limit {
            left = self.processes();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("still running: {left:?}");
    }

    /// SIGKILL to the agent alone.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.tree();
        let mut child = self.child.take().expect("the agent runs");
        child.kill().expect("kill the agent");
        child.wait().expect("wait for the agent");
    }

    /// SIGKILL to the agent and everything below it, at once: nobody gets to see another's death.
    #[track_caller]
    pub fn kill9_all(&mut self) {
        let tree = self.tree();
        for seen in &tree {
            // A stopped process cannot react.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(seen.pid), Signal::SIGSTOP);
        }
        tree.iter().for_each(Seen::kill9);
        let mut child = self.child.take().expect("the agent runs");
        child.wait().expect("wait for the agent");
    }

    /// SIGTERM; the exit code.
    #[track_caller]
    pub fn terminate(&mut self) -> i32 {
        self.tree();
        let mut child = self.child.take().expect("the agent runs");
        process::end(&mut child, Signal::SIGTERM, LIMIT)
    }

    /// Ends it in order and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        assert_eq!(self.terminate(), 0, "exit code after SIGTERM:\n{}", self.log_tail());
        self.start();
    }

    /// Waits until the agent has stopped itself at the named step (`VAULTFERRY_TEST_PAUSE_AT`).
    #[track_caller]
    pub fn wait_paused(&self, step: &str) {
        let path = self.state_dir().join(format!("paused-{step}"));
        wait_for(&format!("the agent to pause at {step}"), Duration::from_secs(120), || path.exists().then_some(()));
    }

    /// Lets a paused agent go on, and clears the marks for the next pause.
    #[track_caller]
    pub fn resume(&self, step: &str) {
        fs::write(self.state_dir().join("resume"), "").expect("write the mark");
        let paused = self.state_dir().join(format!("paused-{step}"));
        let _ = fs::remove_file(paused);
    }

    /// Removes the marks of a pause whose agent is gone.
    pub fn clear_pause(&self, step: &str) {
        let _ = fs::remove_file(self.state_dir().join(format!("paused-{step}")));
        let _ = fs::remove_file(self.state_dir().join("resume"));
    }

    /// Announces a warning or an error that the log will or may hold.
    pub fn expect_log(&self, text: &str) {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
    }

    /// The agent's log so far, over all of its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("agent.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Warnings and errors that nobody announced.
    pub fn unexpected_log_lines(&self) -> Vec<String> {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let log = self.log();
        let bad = log.lines().filter(|line| is_warning(line));
        bad.filter(|line| !expected.iter().any(|text| line.contains(text))).map(str::to_owned).collect()
    }
}

/// True for a line of the levels WARN and ERROR, in the text and in the JSON format, and for a panic's first line.
fn is_warning(line: &str) -> bool {
    let json = serde_json::from_str::<Value>(line).ok();
    match json.as_ref().and_then(|line| line["level"].as_str()) {
        Some(level) => matches!(level, "WARN" | "ERROR"),
        None => {
            let head: Vec<&str> = line.split_whitespace().take(3).collect();
            head.iter().any(|word| matches!(*word, "WARN" | "ERROR")) || line.contains("panicked at")
        }
    }
}

impl Drop for Agent {
    #[allow(clippy::print_stderr)] // the failed test's report
    fn drop(&mut self) {
        self.tree();
        let ended = self.child.take().map(|mut child| {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let code = process::exit_code(&mut child, LIMIT);
            if code.is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
            code
        });
        let failing = std::thread::panicking();
        if failing {
            eprintln!("the agent's log ends with:\n{}", self.log_tail());
        }
        let left = self.processes();
        left.iter().for_each(Seen::kill9);
        if !failing {
            assert!(ended.is_none_or(|code| code == Some(0)), "the agent ended with {ended:?}:\n{}", self.log_tail());
            assert!(left.is_empty(), "left behind: {left:?}");
            let lines = self.unexpected_log_lines();
            assert!(lines.is_empty(), "unexpected in the log:\n{}", lines.join("\n"));
        }
    }
}
