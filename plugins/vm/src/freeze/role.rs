//! What helper and guardians have in common: how they are made ready, and how they wait and thaw.
//!
//! A role is a process of its own with one thread: a fresh start of this program, in a session of its own, so that whoever kills the plugin's
//! group does not kill it. Its standard input is a socket to the caller: first come the open files, then commands of one byte, and the end of
//! input is the caller's end. A role answers with one byte each; [`FAILED`] is followed by words, and by the role's end.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;

use super::board::Board;
use super::sys::{self, SharedBoard};

/// To the helper: write out what is dirty.
pub(super) const SYNC: u8 = b's';
/// To the helper: freeze.
pub(super) const FREEZE: u8 = b'f';
/// To the helper: thaw, and end.
pub(super) const THAW: u8 = b't';
/// From a role: ready.
pub(super) const READY: u8 = b'r';
/// From the helper: nothing is dirty.
pub(super) const SYNCED: u8 = b'S';
/// From the helper: all are frozen.
pub(super) const FROZEN: u8 = b'F';
/// From the helper: one could not be frozen ([`Board::refused`]); none is.
pub(super) const REFUSED: u8 = b'X';
/// From the helper: all are thawed.
pub(super) const THAWED: u8 = b'T';
/// From a role: it cannot do its work; the reason follows.
pub(super) const FAILED: u8 = b'!';

/// The board is looked at this often, in milliseconds. It bounds how late a deadline is noticed; what ends is noticed at once.
const TICK_MS: u8 = 50;

/// Who thaws what another process was freezing asks for its death this often, in milliseconds.
const RESCUE_TICK_MS: u8 = 10;

/// A file system that says "input/output error" is asked again: [`RESCUE_TICK_MS`] apart, so for a second.
const THAW_ATTEMPTS: u32 = 100;

/// All that a role has.
#[derive(Debug)]
pub(super) struct Role {
    pub socket: UnixStream,
    pub board: SharedBoard,
    /// The guardian and the guardian, for the helper; the helper and the other guardian, for a guardian.
    pub watched: [OwnedFd; 2],
    pub mounts: Vec<OwnedFd>,
    /// Held for its lock.
    _record: OwnedFd,
}

impl Role {
    /// Makes this process what the module says, tells the caller, and comes back. On failure the caller was told why.
    pub(super) fn prepare(go_first: bool) -> Option<Self> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().ok().map(UnixStream::from)?;
        let role = match Self::equip(socket.try_clone().ok()?, go_first) {
            Ok(role) => role,
            Err(reason) => {
                let mut socket = socket;
                let _ = socket.write_all(&[FAILED]).and_then(|()| socket.write_all(reason.as_bytes()));
                return None;
            }
        };
        role.say(READY);
        Some(role)
    }

    fn equip(socket: UnixStream, go_first: bool) -> Result<Self, String> {
        // Only SIGKILL and SIGSTOP act on it. It has one thread, so its mask is the process's.
        SigSet::all().thread_block().map_err(|error| why("block signals", error))?;
        nix::unistd::setsid().map_err(|error| why("start a session", error))?;
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if threads != 1 {
            return Err(format!("it must have one thread and has {threads}"));
        }
        let mut fds = sys::receive_fds(&socket).map_err(|error| why("receive the open files", error))?.into_iter();
        let mut next = || fds.next().ok_or("the caller sent too few open files");
        // So many as `sys::FDS_FIRST` says.
        let (memory, record, first, second) = (next()?, next()?, next()?, next()?);
        let board = SharedBoard::open(memory).map_err(|error| why("map the board", error))?;
        let mounts: Vec<OwnedFd> = fds.collect();
        if mounts.len() != board.count() {
            return Err(format!("{} mount points came where {} were told", mounts.len(), board.count()));
        }
        // Best effort, and only while memory is short: whoever dies of it is survived.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        if go_first {
            sys::go_first()
        } else {
            sys::normal_priority()
        }
        sys::become_io_flusher();
        sys::lock_memory()
            .map_err(|error| why("lock its memory (needs CAP_IPC_LOCK, or a larger RLIMIT_MEMLOCK)", error))?;
        Ok(Self { socket, board, watched: [first, second], mounts, _record: record })
    }

    /// Says one byte; a caller that has gone is noticed by its end.
    pub(super) fn say(&self, word: u8) {
        let _ = (&self.socket).write_all(&[word]);
    }

    /// Waits a tick at most. Says who has something: the caller, the first and the second that are watched.
    pub(super) fn wait(&self) -> [bool; 3] {
        wait_for([self.socket.as_fd(), self.watched[0].as_fd(), self.watched[1].as_fd()], TICK_MS)
    }
}

fn why(what: &str, error: impl std::fmt::Display) -> String {
    format!("{what}: {error}")
}

/// Who of them is readable, or has ended, within so many milliseconds.
fn wait_for<const N: usize>(fds: [BorrowedFd<'_>; N], milliseconds: u8) -> [bool; N] {
    let mut asked = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut asked, PollTimeout::from(milliseconds)) {
        Ok(1..) => asked.map(|one| one.any().unwrap_or(true)),
        Ok(_) | Err(_) => [false; N],
    }
}

/// True when the process of this handle has ended, now or within so many milliseconds.
pub(super) fn has_ended(process: BorrowedFd<'_>, milliseconds: u8) -> bool {
    wait_for([process], milliseconds)[0]
}

/// Waits a tick at most; says who of the three processes have ended.
pub(super) fn wait_for_end(processes: [BorrowedFd<'_>; 3]) -> [bool; 3] {
    wait_for(processes, TICK_MS)
}

/// Thaws everything that the helper froze or may have frozen, after killing it, and ends the freeze. Comes back when the helper is dead and
/// nothing is frozen: while the kernel freezes for it, the helper cannot die. False when a file system refused to thaw for a second.
///
/// Several may do it at the same time.
pub(super) fn rescue(board: &Board, helper: BorrowedFd<'_>, mounts: &[OwnedFd]) -> bool {
    // What runs on freezes the next one, and what is stopped now may run later.
    sys::kill(helper);
    // What is surely frozen first: thawing what is being frozen may have to wait for that.
    while !has_ended(helper, 0) {
        thaw_where(board, mounts, false);
        thaw_where(board, mounts, true);
        has_ended(helper, RESCUE_TICK_MS);
    }
    for _ in 0..THAW_ATTEMPTS {
        if thaw_finally(board, mounts) {
            board.end();
            return true;
        }
        // A dead helper's handle is readable at once.
        std::thread::sleep(std::time::Duration::from_millis(u64::from(RESCUE_TICK_MS)));
    }
    board.end();
    false
}

/// In the order of thawing: the reverse of freezing.
fn thaw_where(board: &Board, mounts: &[OwnedFd], begun: bool) {
    for (index, mount) in mounts.iter().enumerate().rev() {
        // EINVAL is no answer yet: it may be in the middle of being frozen.
        if board.is_to_thaw(index, begun) && sys::thaw(mount.as_fd()).is_ok() {
            board.thaw(index, sys::now_ns());
        }
    }
}

/// With the helper dead, what is not frozen now never will be. True when nothing is.
fn thaw_finally(board: &Board, mounts: &[OwnedFd]) -> bool {
    for (index, mount) in mounts.iter().enumerate().rev() {
        if !board.is_to_thaw(index, true) {
            continue;
        }
        if let Ok(()) | Err(Errno::EINVAL) = sys::thaw(mount.as_fd()) {
            board.thaw(index, sys::now_ns());
        }
    }
    board.is_thawed()
}

/// The path that a role was started with, when it is one.
pub(super) fn record_path(argument: Option<&std::ffi::OsStr>) -> Option<&Path> {
    argument.map(Path::new).filter(|path| path.is_absolute())
}
