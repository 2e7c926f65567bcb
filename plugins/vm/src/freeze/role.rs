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
    let thaw = |index: usize| mounts.get(index).map_or(Err(Errno::EBADF), |mount| sys::thaw(mount.as_fd()));
    // What runs on freezes the next one, and what is stopped now may run later.
    sys::kill(helper);
    // What is surely frozen first: thawing what is being frozen may have to wait for that.
    while !has_ended(helper, 0) {
        thaw_where(board, false, &thaw);
        thaw_where(board, true, &thaw);
        has_ended(helper, RESCUE_TICK_MS);
    }
    for _ in 0..THAW_ATTEMPTS {
        if thaw_finally(board, &thaw) {
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
fn thaw_where(board: &Board, begun: bool, thaw: &dyn Fn(usize) -> Result<(), Errno>) {
    for index in (0..board.count()).rev() {
        // EINVAL is no answer yet: it may be in the middle of being frozen.
        if board.is_to_thaw(index, begun) && thaw(index).is_ok() {
            board.thaw(index, sys::now_ns());
        }
    }
}

/// With the helper dead, what is not frozen now never will be. True when nothing is.
fn thaw_finally(board: &Board, thaw: &dyn Fn(usize) -> Result<(), Errno>) -> bool {
    for index in (0..board.count()).rev() {
        if !board.is_to_thaw(index, true) {
            continue;
        }
        if let Ok(()) | Err(Errno::EINVAL) = thaw(index) {
            board.thaw(index, sys::now_ns());
        }
    }
    board.is_thawed()
}

/// The path that a role was started with, when it is one.
pub(super) fn record_path(argument: Option<&std::ffi::OsStr>) -> Option<&Path> {
    argument.map(Path::new).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::*;

    const COUNT: usize = 3;

    /// What the kernel knows: frozen or not.
    #[derive(Default)]
    struct Kernel(RefCell<[bool; COUNT]>);

    impl Kernel {
        fn freeze(&self, index: usize) {
            let was = std::mem::replace(&mut self.0.borrow_mut()[index], true);
            assert!(!was, "frozen twice");
        }

        fn thaw(&self, index: usize) -> Result<(), Errno> {
            let was = std::mem::replace(&mut self.0.borrow_mut()[index], false);
            if was { Ok(()) } else { Err(Errno::EINVAL) }
        }

        fn frozen(&self) -> Vec<usize> {
            let state = self.0.borrow();
            (0..COUNT).filter(|index| state[*index]).collect()
        }
    }

    fn board() -> Board {
        let board = Board::empty();
        board.set_up(COUNT, Duration::from_secs(10), Duration::from_secs(10));
        board
    }

    /// A helper's life, cut off after so many steps.
    fn helper(board: &Board, kernel: &Kernel, steps: usize) {
        let mut left = steps;
        let mut go_on = || {
            left = left.saturating_sub(1);
            left > 0
        };
        for index in 0..COUNT {
            if !go_on() {
                return;
            }
            board.begin(index, 1);
            if !go_on() {
                return;
            }
            kernel.freeze(index);
            if !go_on() {
                return;
            }
            board.freeze(index, 2);
        }
        for index in (0..COUNT).rev() {
            if !go_on() {
                return;
            }
            kernel.thaw(index).expect("it is frozen");
            if !go_on() {
                return;
            }
            board.thaw(index, 3);
        }
    }

    #[test]
    fn a_helper_that_dies_after_any_step_leaves_nothing_frozen() {
        for steps in 0..=COUNT * 5 + 1 {
            let (board, kernel) = (board(), Kernel::default());
            helper(&board, &kernel, steps);
            thaw_where(&board, false, &|index| kernel.thaw(index));
            thaw_where(&board, true, &|index| kernel.thaw(index));
            assert!(thaw_finally(&board, &|index| kernel.thaw(index)), "{steps} steps");
            assert_eq!(kernel.frozen(), [] as [usize; 0], "{steps} steps");
        }
    }

    #[test]
    fn what_is_frozen_only_after_the_first_thaw_is_thawed_by_the_last() {
        let (board, kernel) = (board(), Kernel::default());
        board.begin(0, 1);
        kernel.freeze(0);
        board.freeze(0, 2);
        board.begin(1, 3);
        // The helper is killed in the middle of the call, which goes on.
        thaw_where(&board, false, &|index| kernel.thaw(index));
        thaw_where(&board, true, &|index| kernel.thaw(index));
        assert_eq!(kernel.frozen(), [] as [usize; 0]);
        assert!(!board.is_thawed(), "the second one may still come to be frozen");
        kernel.freeze(1);
        assert!(thaw_finally(&board, &|index| kernel.thaw(index)));
        assert_eq!(kernel.frozen(), [] as [usize; 0]);
    }

    #[test]
    fn what_others_froze_stays_frozen_whoever_comes_late() {
        for steps in 0..=COUNT * 3 {
            let (board, kernel) = (board(), Kernel::default());
            helper(&board, &kernel, steps);
            assert!(thaw_finally(&board, &|index| kernel.thaw(index)));
            // Another tool's freeze, and a guardian that was stopped all the time.
            (0..COUNT).for_each(|index| kernel.freeze(index));
            thaw_where(&board, true, &|index| kernel.thaw(index));
            assert!(thaw_finally(&board, &|index| kernel.thaw(index)));
            assert_eq!(kernel.frozen(), [0, 1, 2], "{steps} steps");
        }
    }

    #[test]
    fn a_file_system_that_refuses_to_thaw_is_asked_again() {
        let (board, kernel) = (board(), Kernel::default());
        helper(&board, &kernel, COUNT * 3 + 1);
        assert!(!thaw_finally(&board, &|index| if index == 1 { Err(Errno::EIO) } else { kernel.thaw(index) }));
        assert_eq!(kernel.frozen(), [1]);
        assert!(thaw_finally(&board, &|index| kernel.thaw(index)));
        assert_eq!(kernel.frozen(), [] as [usize; 0]);
    }
}
