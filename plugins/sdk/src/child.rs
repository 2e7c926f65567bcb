//! Child programs: started without a shell, in a process group of their own, and never left behind.
//!
//! Invariants:
//! - A [`Child`] that is dropped is killed with its whole group, and reaped.
//! - On Linux a child gets SIGKILL when this process dies, however it dies.
//! - The environment is what the caller gives, and a few variables that every program needs; nothing else leaks in. Secrets go through
//!   the environment, never through the arguments, which every user of the machine can read.
//! - Of standard error the beginning and the end are kept, [`WORDS_MAX`] bytes in all, whatever the child writes: pg_dump says what is wrong
//!   first, and the query that went wrong after it, which may name every table of a database.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdin};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[cfg(target_os = "linux")]
mod linux;
mod output;

pub use output::Output;

/// How much of a child's standard error is kept: several screens, and small enough for an error message's journal entry.
pub const WORDS_MAX: usize = 8 * 1024;

/// How long to wait for the rest of standard error after the child's end; something that inherited it may hold it open.
const WORDS_WAIT: Duration = Duration::from_secs(2);

/// How long a child that is told to end may take. A person who cancels waits for it.
#[cfg(target_os = "linux")]
const GRACE: Duration = Duration::from_secs(2);

/// Passed on from this process's environment.
const INHERITED: &[&str] =
    if cfg!(windows) { &["PATH", "SystemRoot", "TEMP", "TMP", "APPDATA", "TZ"] } else { &["PATH", "HOME", "TZ"] };

/// Why a child could not be started or waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there, is not executable, or the machine is out of processes.
    #[error("cannot start {program}")]
    Start {
        /// What.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system does not tell how the child ended.
    #[error("cannot wait for {program}")]
    Wait {
        /// What.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The wait was cancelled; the child and its group were killed.
    #[error("cancelled")]
    Cancelled,
}

/// A program to start. Has no `Debug`: its environment may hold secrets.
pub struct Command {
    program: PathBuf,
    inner: tokio::process::Command,
    stdout: bool,
    stdout_limit: Option<u64>,
}

impl Command {
    /// `program` is a path; a bare name is looked up in PATH. All streams are closed but standard error, which is collected.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let mut inner = tokio::process::Command::new(&program);
        inner.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                inner.env(name, value);
            }
        }
        // Messages in English, names in UTF-8: the first are read by people far away, the second are other people's tables.
        inner.env("LANG", "C.UTF-8").env("LC_MESSAGES", "C");
        #[cfg(unix)]
        inner.process_group(0);
        #[cfg(target_os = "linux")]
        linux::die_with_parent(&mut inner);
        Self { program, inner, stdout: false, stdout_limit: None }
    }

    /// Adds an argument. Never a secret.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments. Never a secret.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets variables of the environment.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = (&'static str, OsString)>) -> Self {
        self.inner.envs(variables);
        self
    }

    /// Lets the caller write to the child: see [`Child::take_stdin`].
    #[must_use]
    pub fn pipe_stdin(mut self) -> Self {
        self.inner.stdin(Stdio::piped());
        self
    }

    /// Lets the caller read from the child: see [`Child::take_stdout`].
    #[must_use]
    pub fn pipe_stdout(mut self) -> Self {
        self.stdout = true;
        self
    }

    /// Reads so many bytes in a second at most, on average, of what is piped with [`Command::pipe_stdout`]; the child waits with the rest.
    /// `None`: no limit, and no cost.
    #[must_use]
    pub fn limit_stdout(mut self, bytes_per_s: Option<u64>) -> Self {
        self.stdout_limit = bytes_per_s;
        self
    }

    /// Starts the program. Must run in a Tokio runtime. A call that is dropped leaves no child.
    pub async fn spawn(self) -> Result<Child, Error> {
        let Self { program, mut inner, stdout, stdout_limit } = self;
        let cannot = |source| Error::Start { program: program.clone(), source };
        let stdout = match stdout {
            // The runtime's own pipes are under epoll, which costs their writer time for good.
            true => {
                let (reader, writer) = io::pipe().map_err(cannot)?;
                inner.stdout(writer);
                Some(reader)
            }
            false => None,
        };
        // The command, and with it this process's copy of the writing end, is gone after this.
        let mut process = start(inner).await.map_err(cannot)?;
        tracing::debug!(program = %program.display(), pid = process.id(), "child started");
        let words = tokio::spawn(collect(process.stderr.take()));
        let stdin = process.stdin.take();
        #[cfg(target_os = "linux")]
        stdin.as_ref().map(|stdin| linux::size_pipe(stdin, linux::LARGEST_PIPE));
        let stdout = stdout.map(|pipe| Output::new(pipe, stdout_limit)).transpose().map_err(cannot)?;
        Ok(Child { program, process, stdin, stdout, words })
    }
}

/// A running child. Dropping it kills its process group.
#[derive(Debug)]
pub struct Child {
    program: PathBuf,
    process: tokio::process::Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Output>,
    words: JoinHandle<Vec<u8>>,
}

/// How a child ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// As the system tells it.
    pub status: ExitStatus,
    /// What it wrote to standard error, trimmed; of much of it the beginning and the end.
    pub words: String,
}

impl Ended {
    /// True when the child says that all went well.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// "exit status 1", "signal 9 (SIGKILL)".
    pub fn how(&self) -> String {
        #[cfg(unix)]
        if let Some(number) = std::os::unix::process::ExitStatusExt::signal(&self.status) {
            return match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => format!("signal {number} ({signal})"),
                Err(_) => format!("signal {number}"),
            };
        }
        match self.status.code() {
            Some(code) => format!("exit status {code}"),
            None => self.status.to_string(),
        }
    }
}

impl Child {
    /// The path that was started.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The process's id, until it was waited for.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Where to write to the child; dropping it is the child's end of input. `None` when not piped, or taken.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Where to read from the child; the last bytes may wait for its end. `None` when not piped, or taken.
    pub fn take_stdout(&mut self) -> Option<Output> {
        self.stdout.take()
    }

    /// Waits until the child has ended by itself. What was not taken of its pipes is closed first.
    pub async fn finish(mut self, cancel: &CancellationToken) -> Result<Ended, Error> {
        drop((self.stdin.take(), self.stdout.take()));
        let waited = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            waited = self.process.wait() => Some(waited),
        };
        let Some(waited) = waited else {
            self.stop().await;
            return Err(Error::Cancelled);
        };
        let status = waited.map_err(|source| Error::Wait { program: self.program.clone(), source })?;
        let words = match tokio::time::timeout(WORDS_WAIT, &mut self.words).await {
            Ok(Ok(words)) => String::from_utf8_lossy(&words).trim().to_owned(),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        tracing::debug!(program = %self.program.display(), %status, "child ended");
        Ok(Ended { status, words })
    }

    /// Ends the child with its group, and waits until it is gone. What was not taken of its pipes is closed first.
    ///
    /// On Linux it is asked first, and killed after 2 s: pg_dump then cancels its query at the server, which would wait on for
    /// a lock otherwise.
    pub async fn stop(mut self) {
        drop((self.stdin.take(), self.stdout.take()));
        #[cfg(target_os = "linux")]
        if let Some(id) = self.process.id() {
            linux::ask_to_end(id, GRACE).await;
        }
        self.kill_group();
        if let Err(error) = self.process.wait().await {
            tracing::warn!(program = %self.program.display(), "cannot wait for a killed child: {error}");
        }
    }

    /// Does nothing to a child that was reaped: its number may be another's by now.
    fn kill_group(&mut self) {
        let Some(id) = self.process.id() else { return };
        #[cfg(unix)]
        {
            use nix::sys::signal::{Signal, killpg};
            let group = nix::unistd::Pid::from_raw(id.cast_signed());
            if let Err(error) = killpg(group, Signal::SIGKILL) {
                tracing::debug!(id, "killing a process group: {error}");
            }
        }
        #[cfg(not(unix))]
        if let Err(error) = self.process.start_kill() {
            tracing::debug!(id, "killing a process: {error}");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_group();
        self.words.abort();
        // Tokio reaps the process: `kill_on_drop` hands one that still runs to the runtime's queue of orphans.
    }
}

/// Reads to the end, and keeps [`WORDS_MAX`] bytes.
async fn collect(stderr: Option<ChildStderr>) -> Vec<u8> {
    match stderr {
        Some(stderr) => keep_ends(stderr, WORDS_MAX).await,
        None => Vec::new(),
    }
}

/// In the place of what is left out.
const GAP: &[u8] = "\n…\n".as_bytes();

/// The first half of `max` bytes, and the last ones.
async fn keep_ends(mut input: impl AsyncRead + Unpin, max: usize) -> Vec<u8> {
    let (mut first, mut last, mut is_cut) = (Vec::new(), Vec::new(), false);
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        let (head, tail) = buffer[..count].split_at(count.min(max / 2 - first.len()));
        first.extend_from_slice(head);
        last.extend_from_slice(tail);
        let excess = last.len().saturating_sub(max / 2 - GAP.len());
        is_cut |= excess > 0;
        last.drain(..excess);
    }
    if is_cut {
        first.extend_from_slice(GAP);
    }
    first.append(&mut last);
    first
}

/// A start that was asked of the starter thread.
struct Start {
    command: tokio::process::Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<tokio::process::Child>>,
}

/// Starts a process from the one thread that does so and never ends.
///
/// The kernel sends the parent-death signal when the *thread* ends that forked. Tokio's threads may end while the process lives on
/// (those for blocking work do after ten idle seconds, and a worker becomes one when it calls `block_in_place`).
async fn start(command: tokio::process::Command) -> io::Result<tokio::process::Child> {
    let (answer, answered) = oneshot::channel();
    let request = Start { command, runtime: Handle::current(), answer };
    starter()?.send(request).map_err(|_| io::Error::other("the thread that starts programs has ended"))?;
    answered.await.map_err(|_| io::Error::other("the thread that starts programs has ended"))?
}

/// The way to the starter thread, which is made at the first use.
fn starter() -> io::Result<mpsc::Sender<Start>> {
    static STARTER: Mutex<Option<mpsc::Sender<Start>>> = Mutex::new(None);
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = starter.as_ref() {
        return Ok(sender.clone());
    }
    let (sender, requests) = mpsc::channel::<Start>();
    let run = move || {
        for mut request in requests {
            let _runtime = request.runtime.enter();
            // An error means that nobody waits any more; the child that comes back with it is killed by its drop.
            let _ = request.answer.send(request.command.spawn());
        }
    };
    std::thread::Builder::new().name("child-starter".into()).spawn(run)?;
    *starter = Some(sender.clone());
    Ok(sender)
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
