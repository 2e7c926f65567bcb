//! What only Linux can do for a child.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};

/// The most that an ordinary user's pipe may hold (`/proc/sys/fs/pipe-max-size`); fewer switches between reader and writer.
pub(super) const LARGEST_PIPE: usize = 1 << 20;

/// Lets the kernel kill the child when the thread that starts it ends.
pub(super) fn die_with_parent(command: &mut tokio::process::Command) {
    let parent = Pid::this();
    let before_exec = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // A parent that died before the line above sends no signal any more.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::ESRCH)) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two system calls (prctl, getppid),
    // allocates nothing, takes no lock, and its errors are plain numbers.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Looks for the end this often.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// Sends SIGTERM to the group of a child that was not reaped, and waits for the child's end, but not longer than `grace`. The child
/// is not reaped by it: so its number stays its own, and the rest of its group can be killed safely afterwards.
pub(super) async fn ask_to_end(id: u32, grace: Duration) {
    let pid = Pid::from_raw(id.cast_signed());
    if let Err(error) = killpg(pid, Signal::SIGTERM) {
        tracing::debug!(id, "asking a process group to end: {error}");
    }
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let ended = async {
        while let Ok(WaitStatus::StillAlive) = waitid(Id::Pid(pid), flags) {
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    };
    if tokio::time::timeout(grace, ended).await.is_err() {
        tracing::debug!(id, "a child does not end when asked to");
    }
}

/// Asks the system for a pipe that holds so much; false when it does not give it. Everything works with any size, only with more switches.
pub(super) fn size_pipe(pipe: &impl AsFd, bytes: usize) -> bool {
    let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
    match fcntl(pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(wanted)) {
        Ok(size) => size >= wanted,
        Err(error) => {
            tracing::debug!("a pipe keeps its size: {error}");
            false
        }
    }
}
