//! Scripts of the machine's owner: one quiets the applications before the snapshot, one lets them go on after it. Folder and rules are those of
//! Azure's framework for Linux, so that what was written for that runs here.
//!
//! ```text
//! load ─► pre ─► (freeze, snapshot, thaw) ─► post        whoever has called pre calls post, whatever happened in between
//!          │ lock, and a record in /run         │ record away, lock away
//!          └─ killed here ───────────────► the next pre, or run_leftovers, finds the record without its lock and runs post
//! ```
//! Invariants:
//! - They run as root, so only what nobody but root could have written is run: folder, configuration and scripts are opened once, looked at through the
//!   open file, and what is executed is that open file. No link is followed inside the folder, and nothing outside of it is run.
//! - A script has an environment of its own, without anything of ours, and no input. Of what it says, [`WORDS_MAX`] bytes are kept.
//! - All tries of one script together take `timeoutInSeconds` at most; then the script is asked to end and, 2 s later, killed with its process group.
//! - One job at a time runs a folder's scripts: the next one waits for the lock, which ends with the process that holds it.
//! - Post runs after every pre that was begun. It may run twice (a kill in its middle), and also when pre did not get far: it has to bear that.
//!
//! Limits: what a script has started in a session of its own (`setsid`) is not killed with it: that is how a pre-script holds a lock until post comes.
//! A pre-script whose job was killed dies with it, but what it had started may go on for a while beside the post-script.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::child;
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};

mod config;
mod files;
mod record;
mod words;

#[cfg(test)]
mod tests;

use config::Config;
use files::Folder;
use record::Held;
use words::Words;

/// The configuration's name in the folder.
pub const CONFIG_FILE: &str = "VMSnapshotScriptPluginConfig.json";
/// How much is kept of what a script says, in bytes, of each of its two outputs.
pub const WORDS_MAX: usize = 4 << 10;
/// Where records and locks are: in memory, so never on a frozen file system, and gone with the machine's next start, as what they tell of is.
const RUNTIME_DIR: &str = "/run/vaultferry/vm-scripts";
/// What a script's PATH is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Root.
const ROOT: u32 = 0;
/// Between two tries: what was in the way may be gone.
const PAUSE: Duration = Duration::from_millis(250);
/// For the end of a script that was killed: the applications wait for what comes after it.
const GONE: Duration = Duration::from_secs(10);
/// For the rest of a script's output after its end; something that it has left running may hold it open.
const REST: Duration = Duration::from_millis(500);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Before the freeze.
    Pre,
    /// After the thaw.
    Post,
}

impl Kind {
    /// `pre-script`, `post-script`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre-script",
            Self::Post => "post-script",
        }
    }
}

/// What a script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptReport {
    /// Which one.
    pub kind: Kind,
    /// False: none is configured, or there was nothing to do for it.
    pub ran: bool,
    /// Tries.
    pub attempts: u32,
    /// Of all tries.
    pub took: Duration,
    /// What it said on its last try, cut.
    pub words: String,
    /// It failed, and the configuration lets the backup go on: the point is not application-consistent. For the job's warnings.
    pub failure: Option<Problem>,
    /// The post-script of a backup that was killed was run first, and this is how it failed.
    pub leftover: Option<Problem>,
}

impl ScriptReport {
    fn none(kind: Kind) -> Self {
        let (took, words) = (Duration::ZERO, String::new());
        Self { kind, ran: false, attempts: 0, took, words, failure: None, leftover: None }
    }

    /// True when the script ran and all went well.
    pub fn succeeded(&self) -> bool {
        self.ran && self.failure.is_none()
    }

    /// What belongs into the job's warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.leftover.iter().chain(self.failure.iter())
    }
}

/// A folder's scripts.
#[derive(Debug)]
pub struct Scripts {
    path: PathBuf,
    config: Config,
    /// Whom everything has to belong to.
    owner: u32,
    runtime_dir: PathBuf,
    /// From pre to post.
    held: Mutex<Option<Held>>,
}

/// How one try ended.
enum Try {
    Good,
    Bad(Problem),
    /// Its time was over, or nobody wants it any more: no other try.
    Last(Problem),
}

impl Scripts {
    /// Reads a folder's configuration. `None` when there is no folder or no configuration in it. Runs nothing; blocks for a few small files.
    ///
    /// Errors: [`Reason::ScriptNotAllowed`] when others than root could have changed folder or configuration, or the configuration has a fault.
    pub fn load(folder: &Path) -> Result<Option<Self>, Problem> {
        Self::load_of(folder, ROOT, Path::new(RUNTIME_DIR))
    }

    fn load_of(path: &Path, owner: u32, runtime_dir: &Path) -> Result<Option<Self>, Problem> {
        // One spelling: a slash at the end would make the system follow a link there, and would have a lock and a record of its own.
        let path: PathBuf = path.components().collect();
        let Some(folder) = Folder::open(&path, owner)? else { return Ok(None) };
        let Some(text) = folder.read_config(CONFIG_FILE)? else { return Ok(None) };
        let config = Config::parse(&text, &path)?;
        Ok(Some(Self { path, config, owner, runtime_dir: runtime_dir.to_path_buf(), held: Mutex::new(None) }))
    }

    /// `fsFreezeEnabled`: false when an application cannot bear the freeze.
    pub fn freezes(&self) -> bool {
        self.config.fs_freeze_enabled
    }

    /// True when a pre-script is configured: without one no point is application-consistent.
    pub fn has_pre(&self) -> bool {
        self.config.script(Kind::Pre).is_some()
    }

    /// Waits for the lock, runs what a killed backup left to do, and then the pre-script. Whatever it answers, and also when it is dropped in its
    /// middle, [`Scripts::post`] has to be called afterwards.
    ///
    /// Errors: [`Reason::Cancelled`]; [`Reason::ScriptFailed`] and [`Reason::ScriptNotAllowed`] unless the configuration lets the backup go on;
    /// [`Reason::Internal`] when record or lock cannot be made: then nothing was run.
    pub async fn pre(&self, cancel: &CancellationToken) -> Result<ScriptReport, Problem> {
        if self.is_held() {
            return Err(Problem::new(Reason::Internal, "the pre-script was asked for again before the post-script"));
        }
        let held = record::lock(&self.runtime_dir, &self.path, self.owner, cancel).await?;
        let leftover = if held.is_due() { self.leftover().await.err() } else { None };
        // Before anything is run: from here on post is due.
        held.begin()?;
        self.hold(Some(held));
        match (self.run(Kind::Pre, cancel).await, leftover) {
            (Ok(report), leftover) => Ok(ScriptReport { leftover, ..report }),
            (Err(problem), None) => Err(problem),
            // No report is left that could tell it.
            (Err(problem), Some(leftover)) => {
                let message = format!(
                    "{}; and what a killed backup had left to do failed before it: {}",
                    problem.message, leftover.message
                );
                Err(Problem { message, ..problem })
            }
        }
    }

    /// Runs the post-script, if pre was called, and gives the lock back. Calling it again does nothing. It is not to be cancelled: an application
    /// waits for it. Dropped in its middle, it is due again.
    ///
    /// Errors: as of [`Scripts::pre`]. The record is gone then too: a script that fails is not run for ever.
    pub async fn post(&self) -> Result<ScriptReport, Problem> {
        if !self.is_held() {
            return Ok(ScriptReport::none(Kind::Post));
        }
        let report = self.run(Kind::Post, &CancellationToken::new()).await;
        let ended = self.hold(None).map_or(Ok(()), Held::end);
        // What the script's failure says is worth more than that its record stays.
        report.and_then(|report| ended.map(|()| report))
    }

    /// Runs the post-script that a killed backup owes; `None` when none is owed, or the backup that owes it is still running.
    ///
    /// Errors: as of [`Scripts::post`].
    pub async fn finish_leftover(&self) -> Result<Option<ScriptReport>, Problem> {
        let Some(held) = record::try_lock(&self.runtime_dir, &self.path, self.owner)? else { return Ok(None) };
        if !held.is_due() {
            return Ok(None);
        }
        let report = self.leftover().await;
        let ended = held.end();
        report.and_then(|report| ended.map(|()| Some(report)))
    }

    async fn leftover(&self) -> Result<ScriptReport, Problem> {
        tracing::warn!(folder = %self.path.display(), "a backup was killed after its pre-script: running the post-script that it owes");
        let report = self.run(Kind::Post, &CancellationToken::new()).await?;
        match report.failure {
            Some(problem) => Err(problem),
            None => Ok(report),
        }
    }

    fn hold(&self, held: Option<Held>) -> Option<Held> {
        let mut place = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, held)
    }

    fn is_held(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// One script, with its tries.
    async fn run(&self, kind: Kind, cancel: &CancellationToken) -> Result<ScriptReport, Problem> {
        let Some(script) = self.config.script(kind) else { return Ok(ScriptReport::none(kind)) };
        let began = Instant::now();
        let deadline = began + self.config.timeout;
        let mut report = ScriptReport { ran: true, ..ScriptReport::none(kind) };
        let problem = loop {
            report.attempts += 1;
            let (outcome, words) = self.attempt(kind, script, deadline, cancel).await;
            report.took = began.elapsed();
            report.words = words;
            match outcome {
                Try::Good => return Ok(report),
                Try::Bad(_) if report.attempts <= script.retries && Instant::now() + PAUSE < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Try::Bad(problem) | Try::Last(problem) => break problem,
            }
        };
        if problem.reason == Reason::Cancelled || !self.config.continue_on_failure {
            return Err(problem);
        }
        report.failure = Some(problem);
        Ok(report)
    }

    async fn attempt(
        &self,
        kind: Kind,
        script: &config::Script,
        deadline: Instant,
        cancel: &CancellationToken,
    ) -> (Try, String) {
        if cancel.is_cancelled() {
            let problem = Problem::new(Reason::Cancelled, format!("the {} was cancelled", kind.as_str()));
            return (Try::Last(problem), String::new());
        }
        let opened = Folder::open(&self.path, self.owner).and_then(|folder| match folder {
            Some(folder) => folder.open_script(&script.path),
            None => Err(files::refused(format!("the folder {} is gone", self.path.display()))),
        });
        // Open until the script has ended: its interpreter opens it again by the same name.
        let file = match opened {
            Ok(file) => file,
            Err(problem) => return (Try::Last(problem), String::new()),
        };
        let shown = self.path.join(&script.path);
        let command = child::Command::new(files::program(&file))
            .args(&script.params)
            .envs([
                ("PATH", OsString::from(PATH)),
                ("VAULTFERRY_SCRIPT", OsString::from(kind.as_str())),
                ("VAULTFERRY_SCRIPT_DIR", self.path.clone().into_os_string()),
            ])
            .pipe_stdout();
        let failed = |what: String| {
            Problem::new(Reason::ScriptFailed, format!("the {} {} {what}", kind.as_str(), shown.display()))
        };
        let mut child = match command.spawn().await {
            Ok(child) => child,
            Err(error) => return (Try::Bad(failed(format!("cannot be started: {}", chain(&error)))), String::new()),
        };
        let output = child.take_stdout().map(|output| Words::collect(output, WORDS_MAX));
        let stop = cancel.child_token();
        let ended = {
            let finish = child.finish(&stop);
            tokio::pin!(finish);
            let in_time = tokio::select! {
                ended = &mut finish => Some(ended),
                () = tokio::time::sleep_until(deadline) => None,
            };
            match in_time {
                Some(ended) => Some(ended),
                None => {
                    // Asks its group to end, then kills it. One that had ended, and whose outputs were waited for, was in time.
                    stop.cancel();
                    // One that waits for a disk is not gone when it is killed: it is left to the system then.
                    tokio::time::timeout(GONE, finish).await.ok().and_then(Result::ok).map(Ok)
                }
            }
        };
        drop(file);
        let said = match output {
            Some(output) => output.finish(REST).await,
            None => String::new(),
        };
        let with_words = |words: &str, errors: &str| {
            let both = [words, errors].map(str::trim).into_iter().filter(|text| !text.is_empty());
            words::cut(&both.collect::<Vec<_>>().join("\n"), WORDS_MAX)
        };
        match ended {
            None => {
                let words = with_words(&said, "");
                let limit = self.config.timeout.as_secs();
                let problem = failed(format!("did not end within {limit} s and was killed{}", quoted(&words)))
                    .with_fix("Make the script quicker, or give it more time: timeoutInSeconds, at most 1800.");
                (Try::Last(problem), words)
            }
            Some(Err(child::Error::Cancelled)) => {
                (Try::Last(Problem::new(Reason::Cancelled, format!("the {} was cancelled", kind.as_str()))), said)
            }
            Some(Err(error)) => (Try::Bad(failed(format!("was lost: {}", chain(&error)))), said),
            Some(Ok(ended)) => {
                let words = with_words(&said, &ended.words);
                if ended.success() {
                    return (Try::Good, words);
                }
                (Try::Bad(failed(format!("ended with {}{}", ended.how(), quoted(&words)))), words)
            }
        }
    }
}

fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

/// Runs every post-script that a killed backup owes, of all folders; for the start of the plugin, and for a job's cleaning up.
/// Nothing is done for backups that still run. Each answer is a folder's.
pub async fn run_leftovers() -> Vec<(PathBuf, Result<ScriptReport, Problem>)> {
    run_leftovers_of(Path::new(RUNTIME_DIR), ROOT).await
}

async fn run_leftovers_of(runtime_dir: &Path, owner: u32) -> Vec<(PathBuf, Result<ScriptReport, Problem>)> {
    let mut results = Vec::new();
    for path in record::due(runtime_dir, owner) {
        let result = match Scripts::load_of(&path, owner, runtime_dir) {
            Ok(Some(scripts)) => scripts.finish_leftover().await,
            // Kept: the folder may come back, and an application may wait.
            Ok(None) => Err(files::refused(format!("the folder {} owes a post-script and is gone", path.display()))),
            Err(problem) => Err(problem),
        };
        if let Some(result) = result.transpose() {
            results.push((path, result));
        }
    }
    results
}
