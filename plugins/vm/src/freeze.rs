//! Freezing file systems so that they cannot stay frozen.
//!
//! While a file system is frozen, everybody who writes to it waits, and what lies on the disk is consistent: a snapshot taken then needs no
//! repair. What must not happen is that it stays so. Three processes see to that, none of which needs the plugin, the agent or each other:
//! ```text
//!   plugin ── caller ──── socket ───▶ helper      freezes and thaws          (helper.rs)
//!              │  │                    ▲    ▲
//!              │  └────── socket ──▶ guardian ◀─▶ guardian                  (guardian.rs)
//!              └── a watching thread, which reaps the three and helps        (caller.rs)
//! ```
//! Each holds the mount points open and shares a page of memory (board.rs) that says what is frozen. Each polls the others' process
//! handles, the socket and the clock. Who sees that another one has ended, that the caller is gone, that freezing takes too long or that the
//! deadline has passed, kills the helper and thaws what was frozen.
//!
//! Invariants:
//! - A file system is frozen at most until the deadline, counted from the first freezing call's return, and a tenth of a second: whichever
//!   one of the processes was killed or stopped, and when agent and plugin were killed together.
//! - Thawed is what this freeze has frozen. What another one froze is refused (`EBUSY`) and left as it is.
//! - What will be frozen is on disk before it is (record.rs): when every process was killed, [`thaw_leftovers`] thaws it.
//! - [`Thawed::held`] is true only when everything was frozen from before [`freeze`] came back until [`Frozen::thaw`] was called.
//! - Between the freeze and the thaw the helper makes no allocation, log or disk access, and all its memory is locked.
//!
//! What it does not do: it does not keep others from thawing (it notices), and it cannot end a freezing call that the kernel does not come
//! back from. docs/freeze.md is for who runs it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

mod board;
mod caller;
mod command;
mod guardian;
mod helper;
mod mounts;
mod record;
mod role;
mod stack;
mod sys;

use caller::Session;
use mounts::{Mount, ThisMachine};

/// [`thaw_leftovers`] waits so long for processes that were killed a moment ago.
const LEFTOVERS_PATIENCE: Duration = Duration::from_secs(1);

/// What is still there then is looked after so long by a thread: the kernel's freezing call keeps a killed process until it has frozen.
const LEFTOVERS_LATER: Duration = Duration::from_secs(900);

/// What to freeze, and for how long at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeRequest {
    /// Mount points. Those of one file system count once; read-only file systems are left out.
    pub mounts: Vec<PathBuf>,
    /// Everything is thawed so long after the first file system was frozen: 1 to 60 s.
    pub deadline: Duration,
    /// The freezing calls together may take so long: 1 to 60 s; more than `deadline` means `deadline`.
    pub stall: Duration,
}

impl FreezeRequest {
    /// When nothing else is wanted.
    pub const DEADLINE: Duration = Duration::from_secs(10);

    /// With the default times.
    pub fn new(mounts: Vec<PathBuf>) -> Self {
        Self { mounts, deadline: Self::DEADLINE, stall: Self::DEADLINE }
    }
}

/// Frozen file systems. Dropping it thaws them, soon and without waiting for it; so does the end of this process.
#[derive(Debug)]
#[must_use = "dropping it thaws"]
pub struct Frozen {
    /// None: all that was asked for is read-only.
    session: Option<Session>,
}

/// How a freeze went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// How long the calls that freeze took together.
    pub freezing: Duration,
    /// How long writing out what was dirty took, before the freeze.
    pub synced: Duration,
    /// From the first file system's freeze to the last one's thaw.
    pub frozen: Duration,
    /// False: it was thawed before [`Frozen::thaw`] (a guardian did, or somebody by hand), so a snapshot is not of one instant.
    pub held: bool,
}

impl Frozen {
    /// Where the frozen file systems are mounted, in the order of freezing.
    pub fn mounts(&self) -> &[PathBuf] {
        self.session.as_ref().map(Session::mounts).unwrap_or_default()
    }

    /// Thaws, in reverse, and says how it went. A call that is dropped thaws too. An error means that a file system refuses to thaw.
    pub async fn thaw(self) -> Result<Thawed, Problem> {
        let (thawed, _) = self.end().await?;
        Ok(thawed)
    }

    /// With the words for why it was thawed before, when a guardian or the helper did.
    async fn end(mut self) -> Result<(Thawed, Option<&'static str>), Problem> {
        match self.session.take() {
            Some(session) => blocking(move || session.thaw()).await,
            None => {
                let none = Duration::ZERO;
                Ok((Thawed { freezing: none, synced: none, frozen: none, held: true }, None))
            }
        }
    }
}

/// Whether these could be frozen while snapshots of these images are taken; touches nothing. The error ([`Reason::FreezeRefused`]) names every
/// fault that there is: no mount point, a network mount, a type that cannot freeze, a loop mount whose file would be frozen with it, an image on
/// what would be frozen.
pub async fn check(mounts: &[PathBuf], images: &[PathBuf]) -> Result<(), Problem> {
    let (mounts, images) = (mounts.to_vec(), images.to_vec());
    blocking(move || plan(&mounts, &images).map(|_| ())).await
}

/// Writes out what is dirty, then freezes: what is mounted deeper first, the root last. Comes back when all are frozen.
///
/// An error leaves nothing frozen (one that is frozen by something else, too, is left as it is). Cancelling works until all are frozen. A
/// call that is dropped leaves nothing frozen, but may freeze and thaw afterwards.
///
/// The caller must not write to a frozen file system until it has thawed: it would wait for the deadline.
pub async fn freeze(request: FreezeRequest, cancel: &CancellationToken) -> Result<Frozen, Problem> {
    freeze_in(Path::new(record::DIR), request, cancel).await
}

/// With the record in another folder.
async fn freeze_in(state_dir: &Path, request: FreezeRequest, cancel: &CancellationToken) -> Result<Frozen, Problem> {
    const TIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
    if !TIMES.contains(&request.deadline) || !TIMES.contains(&request.stall) {
        return Err(invalid("a freeze's deadline, and the time that freezing may take, are 1 to 60 s"));
    }
    let (state_dir, cancel) = (state_dir.to_path_buf(), cancel.clone());
    blocking(move || {
        let planned = plan(&request.mounts, &[])?;
        if planned.is_empty() {
            return Ok(Frozen { session: None });
        }
        let session = Session::start(&planned, &request, &state_dir, &cancel)?;
        Ok(Frozen { session: Some(session) })
    })
    .await
}

/// Thaws what processes that are dead by now left frozen, and says where; nothing to thaw is no error. For the start of whoever freezes, and for
/// a service's end. Blocks for a second at most while another freeze goes on, which it leaves alone; a thread then sees to it that what its
/// processes may leave is thawed, and logs that, as long as this process lives, for a quarter of an hour. An error names what could not
/// be thawed; all else was.
pub fn thaw_leftovers() -> Result<Vec<PathBuf>, Problem> {
    let leftovers = record::thaw_all(Path::new(record::DIR), LEFTOVERS_PATIENCE);
    if leftovers.running > 0 {
        // Without the thread the next start does it.
        let _ = std::thread::Builder::new().name("freeze-leftovers".into()).spawn(thaw_later);
    }
    if leftovers.faults.is_empty() {
        return Ok(leftovers.thawed);
    }
    let message = format!("what an earlier freeze left cannot be looked after: {}", leftovers.faults.join("; "));
    Err(Problem::new(Reason::FreezeFailed, message)
        .with_fix("Thaw by hand what is frozen (fsfreeze --unfreeze MOUNT), then remove the named file in /run/vaultferry/frozen."))
}

/// For those that die only when the kernel has frozen: nobody else is left who would see it.
fn thaw_later() {
    let leftovers = record::thaw_all(Path::new(record::DIR), LEFTOVERS_LATER);
    for mount in leftovers.thawed {
        tracing::warn!(mount = %mount.display(), "thawed: it was frozen for a snapshot whose processes were all killed");
    }
    for fault in leftovers.faults {
        tracing::error!(%fault, "what an earlier freeze left cannot be looked after");
    }
}

/// `vaultferry plugin vm-freeze …`, with what comes after those words (command.rs has a list). Must be called while the process has one
/// thread: before a runtime is made.
pub fn helper_main<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    command::run(&arguments)
}

fn plan(wanted: &[PathBuf], images: &[PathBuf]) -> Result<Vec<Mount>, Problem> {
    if wanted.is_empty() {
        return Err(invalid("a freeze names at least one mount point"));
    }
    let table = mounts::read_table()
        .map_err(|error| Problem::new(Reason::Internal, format!("what is mounted cannot be read: {error}")))?;
    mounts::plan(&table, wanted, images, &ThisMachine)
        .map_err(|faults| Problem::new(Reason::FreezeRefused, faults.join("; ")))
}

fn invalid(message: &str) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Problem::new(Reason::Internal, format!("freezing broke off: {error}"))))
}
