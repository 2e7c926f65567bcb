//! The side of a freeze that asks for it: starts helper and guardians, tells the helper what to do, and looks after all three.
//!
//! Invariants:
//! - Nothing is frozen before the record is on disk, both guardians and the helper are ready, and the watching thread runs.
//! - Dropping a [`Session`] closes the sockets, which thaws: the helper does it, or a guardian.
//! - The watching thread is a third guardian, not one to rely on: it has no locked memory and dies with the plugin. It also reaps the three,
//!   kills one that does not end by itself, and removes the record.
//! - Everything blocks; nothing logs between the freeze and the thaw.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::board::Cause;
use super::mounts::{self, Mount};
use super::record::{self, Record};
use super::sys::{self, SharedBoard};
use super::{FreezeRequest, Thawed, command, role};

/// This program, also when its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// Starting and locking a program into memory takes some hundredths of a second; more on a machine that reads it from a slow disk.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// A cancellation is looked for this often.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Helper and guardians have this long to end a freeze that is in trouble, before this process does it, too.
const GRACE: Duration = Duration::from_millis(300);

/// After the end of a freeze its processes end by themselves in this time, or are killed.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A thaw that takes longer than this is waited for no more; the guardians go on with it.
const THAW_LIMIT: Duration = Duration::from_secs(120);

/// A freeze that fails or is cancelled is waited for so long. What takes longer is a helper that writes out what is dirty: nothing is frozen then.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

/// One of the three processes, until the watching thread has it.
struct Member {
    child: Child,
    handle: OwnedFd,
    socket: UnixStream,
}

/// The helper and its guardians. Dropping it kills them: nothing is frozen as long as it is not taken apart.
struct Crew(Vec<Member>);

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.0 {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

/// Frozen file systems. Dropping it thaws them, without waiting for it.
#[derive(Debug)]
pub(super) struct Session {
    /// To the helper and to the guardians; their being open is what holds the freeze.
    sockets: Vec<UnixStream>,
    board: Arc<SharedBoard>,
    watch: Option<JoinHandle<()>>,
    mounts: Vec<PathBuf>,
}

impl Session {
    /// Freezes these, which are in their order. `state_dir` is where the record goes. Cancelling works until they are frozen; what fails or is
    /// cancelled leaves nothing frozen.
    pub(super) fn start(
        planned: &[Mount],
        request: &FreezeRequest,
        state_dir: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        let opened = planned.iter().map(|mount| {
            let why = |error| failed(format!("{} cannot be opened: {error}", mount.mount_point.display()));
            mounts::open(mount).map(OwnedFd::from).map_err(why)
        });
        let opened: Vec<OwnedFd> = opened.collect::<Result<_, _>>()?;
        let board = SharedBoard::create().map_err(|error| failed(format!("no shared memory: {error}")))?;
        board.set_up(opened.len(), request.deadline, request.stall);
        let record = Record::create(state_dir, planned).map_err(|error| {
            failed(format!("what is frozen cannot be written down in {}: {error}", state_dir.display()))
        })?;
        let path = record.path().to_path_buf();
        let mut session = Self::start_crew(planned, board, opened, record, cancel).inspect_err(|_| {
            // Nobody was told to freeze.
            let _ = record::remove(&path);
        })?;
        match session.freeze(cancel) {
            Ok(()) => Ok(session),
            Err(problem) => {
                session.let_go(LET_GO_LIMIT);
                Err(problem)
            }
        }
    }

    /// Everybody is there and watches; nothing is frozen yet.
    fn start_crew(
        planned: &[Mount],
        board: SharedBoard,
        opened: Vec<OwnedFd>,
        record: Record,
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        let crew = Crew::start(&record, &board, &opened, cancel)?;
        let sockets = crew.sockets().map_err(|error| failed(format!("no more open files: {error}")))?;
        let board = Arc::new(board);
        let watch = Some(watch(crew, Arc::clone(&board), opened, record)?);
        let mounts = planned.iter().map(|mount| mount.mount_point.clone()).collect();
        Ok(Self { sockets, board, watch, mounts })
    }

    /// Closes the sockets, by which the guardians and the watching thread see that nobody wants the freeze any more, and waits for its end, but
    /// not longer than `limit`.
    fn let_go(&mut self, limit: Duration) {
        self.sockets.clear();
        let until = Instant::now() + limit;
        while !self.board.is_ended() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.board.is_ended() {
            // The record is removed and the processes are gone when it comes back. What a panic there leaves is no frozen file system.
            let _ = self.watch.take().map(JoinHandle::join);
        }
    }

    /// Where the frozen file systems are mounted, in the order of freezing.
    pub(super) fn mounts(&self) -> &[PathBuf] {
        &self.mounts
    }

    fn freeze(&mut self, cancel: &CancellationToken) -> Result<(), Problem> {
        for (say, expect) in [(role::SYNC, role::SYNCED), (role::FREEZE, role::FROZEN)] {
            match self.ask(say, cancel)? {
                Some(answer) if answer == expect => {}
                Some(_) => return Err(self.refusal()),
                None => return Err(failed(format!("freezing was given up: {}", self.cause()))),
            }
        }
        Ok(())
    }

    /// The helper's answer; `None` when it has ended without one.
    fn ask(&mut self, say: u8, cancel: &CancellationToken) -> Result<Option<u8>, Problem> {
        let Some(helper) = self.sockets.first_mut() else { return Ok(None) };
        if helper.write_all(&[say]).is_err() {
            return Ok(None);
        }
        read_byte(helper, None, cancel)
    }

    /// The kernel's reason for not freezing one.
    fn refusal(&self) -> Problem {
        let Some((index, errno)) = self.board.refused() else { return failed("the helper says what it should not") };
        let name = self.mounts.get(index).map_or_else(|| "a file system".into(), |mount| mount.display().to_string());
        match Errno::from_raw(errno) {
            Errno::EBUSY => failed(format!("{name} is frozen by something else already; it was left as it is"))
                .with_fix("Wait until that is done. If nothing else takes snapshots now, thaw it by hand: fsfreeze --unfreeze MOUNT."),
            Errno::EOPNOTSUPP => Problem::new(Reason::FreezeRefused, format!("{name} cannot be frozen by this kernel")),
            error => failed(format!("{name} cannot be frozen: {}", error.desc())),
        }
    }

    fn cause(&self) -> &'static str {
        self.board.given_up().map_or("the process that freezes has ended", Cause::text)
    }

    /// Thaws, and says how it went, and why it was given up if it was. An error means that something may be frozen still.
    pub(super) fn thaw(mut self) -> Result<(Thawed, Option<&'static str>), Problem> {
        let answer = match self.sockets.first_mut() {
            None => None,
            Some(helper) => match helper.write_all(&[role::THAW]) {
                Ok(()) => read_byte(helper, Some(THAW_LIMIT), &CancellationToken::new())?,
                // It is gone; then others thaw.
                Err(_) => None,
            },
        };
        self.let_go(THAW_LIMIT);
        if !self.board.is_thawed() {
            let names: Vec<String> = self.mounts.iter().map(|mount| mount.display().to_string()).collect();
            return Err(failed(format!("{} may still be frozen", names.join(", ")))
                .with_fix("Thaw them by hand: fsfreeze --unfreeze MOUNT for each, then look at the kernel's log."));
        }
        let thawed = Thawed {
            freezing: self.board.freezing(sys::now_ns()),
            synced: self.board.synced_for(),
            frozen: self.board.frozen_for(),
            held: answer == Some(role::THAWED) && self.board.was_held(),
        };
        Ok((thawed, self.board.given_up().map(Cause::text)))
    }
}

impl Crew {
    /// All three, ready.
    fn start(
        record: &Record,
        board: &SharedBoard,
        mounts: &[OwnedFd],
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        let mut crew = Self(Vec::with_capacity(3));
        for role in [command::HELPER, command::GUARDIAN, command::GUARDIAN] {
            let member = Member::start(role, record.path());
            crew.0.push(
                member.map_err(|error| failed(format!("the process that is the {role} cannot be started: {error}")))?,
            );
        }
        for (index, member) in crew.0.iter().enumerate() {
            let mut fds: Vec<BorrowedFd<'_>> = vec![board.memory(), record.file()];
            // The helper first, where it is one of them.
            fds.extend(
                crew.0.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other.handle.as_fd()),
            );
            fds.extend(mounts.iter().map(|mount| mount.as_fd()));
            sys::send_fds(&member.socket, &fds)
                .map_err(|error| failed(format!("the mount points cannot be handed over: {error}")))?;
        }
        for member in &mut crew.0 {
            match read_byte(&mut member.socket, Some(READY_LIMIT), cancel)? {
                Some(role::READY) => {}
                Some(_) => {
                    let mut words = String::new();
                    let _ = member.socket.set_read_timeout(Some(END_LIMIT));
                    let _ = (&member.socket).take(1024).read_to_string(&mut words);
                    return Err(failed(format!("a process of the freeze cannot work: {words}")));
                }
                None => return Err(failed("a process of the freeze has ended, or does not get ready")),
            }
        }
        Ok(crew)
    }

    /// A second set, whose closing alone is not the end.
    fn sockets(&self) -> io::Result<Vec<UnixStream>> {
        self.0.iter().map(|member| member.socket.try_clone()).collect()
    }
}

impl Member {
    fn start(role: &str, record: &Path) -> io::Result<Self> {
        // Closed at an exec, both of them, but for the child's standard input: no other child has the freeze in its hand.
        let (socket, theirs) = UnixStream::pair()?;
        let mut start = Command::new(PROGRAM);
        start.args(command::PREFIX).arg(role).arg(record).env_clear().current_dir("/");
        start.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = start.spawn()?;
        match sys::pidfd_open(child.id()) {
            Ok(handle) => Ok(Self { child, handle, socket }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// `None` at the other side's end, and after the limit.
fn read_byte(
    socket: &mut UnixStream,
    limit: Option<Duration>,
    cancel: &CancellationToken,
) -> Result<Option<u8>, Problem> {
    let until = limit.map(|limit| Instant::now() + limit);
    if socket.set_read_timeout(Some(ASK_INTERVAL)).is_err() {
        return Ok(None);
    }
    let mut byte = [0_u8; 1];
    loop {
        match socket.read(&mut byte) {
            Ok(1) => return Ok(Some(byte[0])),
            Ok(_) => return Ok(None),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                _ => return Ok(None),
            },
        }
        if cancel.is_cancelled() {
            return Err(Problem::new(Reason::Cancelled, "cancelled before the file systems were frozen"));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
    }
}

/// Starts the watching thread, which has the processes from now on.
fn watch(
    mut crew: Crew,
    board: Arc<SharedBoard>,
    mounts: Vec<OwnedFd>,
    record: Record,
) -> Result<JoinHandle<()>, Problem> {
    let run = move || {
        // Its end of the sockets would keep the freeze alive when the session is dropped.
        let members = std::mem::take(&mut crew.0);
        let (mut children, handles): (Vec<Child>, Vec<OwnedFd>) =
            members.into_iter().map(|member| (member.child, member.handle)).unzip();
        if let [helper, first, second] = handles.as_slice() {
            let pids: Vec<Pid> = children.iter().map(|child| Pid::from_raw(child.id().cast_signed())).collect();
            look_after(&board, [helper.as_fd(), first.as_fd(), second.as_fd()], &pids, &mounts);
        }
        if board.is_thawed() {
            let _ = record::remove(record.path());
        }
        reap(&mut children);
    };
    let started = std::thread::Builder::new().name("freeze-watch".into()).spawn(run);
    started.map_err(|error| failed(format!("no thread can be started: {error}")))
}

/// Until the freeze has ended.
fn look_after(board: &SharedBoard, processes: [BorrowedFd<'_>; 3], pids: &[Pid], mounts: &[OwnedFd]) {
    let mut trouble: Option<Instant> = None;
    loop {
        let ended = role::wait_for_end(processes);
        if board.is_ended() {
            return;
        }
        // Only the parent sees that one is stopped: before the freeze, when no clock runs, nobody else would.
        let stopped = pids.iter().any(|pid| is_stopped(*pid)).then_some(Cause::Stalled);
        let late = board.lateness(sys::now_ns()).or(stopped);
        if late.is_some() || ended.contains(&true) {
            let since = *trouble.get_or_insert_with(Instant::now);
            if since.elapsed() >= GRACE || !ended.contains(&false) {
                let ended = if ended[0] { Cause::HelperEnded } else { Cause::GuardianEnded };
                board.give_up(late.unwrap_or(ended));
                role::rescue(board, processes[0], mounts);
                return;
            }
            // The handle of one that has ended is readable at once.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A child that was not reaped, so that its number is its own.
fn is_stopped(child: Pid) -> bool {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(child), flags), Ok(WaitStatus::Stopped(..)))
}

/// They end by themselves, but for one that is stopped.
fn reap(children: &mut [Child]) {
    let until = Instant::now() + END_LIMIT;
    for child in children {
        while let Ok(None) = child.try_wait() {
            if Instant::now() >= until {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn failed(message: impl Into<String>) -> Problem {
    Problem::new(Reason::FreezeFailed, message)
}
