//! What only Linux can do for a child.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::ChildStdout;
use tokio::time::Sleep;

/// The most that an ordinary user's pipe may hold (`/proc/sys/fs/pipe-max-size`); fewer switches between reader and writer.
const PIPE_BYTES: i32 = 1024 * 1024;

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

/// Best effort: with a small pipe everything works, only with more switches. True when the pipe is large.
pub(super) fn enlarge_pipe(pipe: &impl AsFd) -> bool {
    match fcntl(pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
        Ok(bytes) => bytes >= PIPE_BYTES,
        Err(error) => {
            tracing::debug!("a pipe keeps its size: {error}");
            false
        }
    }
}

/// The first sleep after the pipe was found empty, and the longest. In 2 ms (timers count whole milliseconds) a source of 500 MB/s fills
/// the pipe; a source that is silent is looked at 60 times a second.
const SLEEP: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(16);

/// A large pipe that is not waited for: see [`super::output`].
#[derive(Debug)]
pub(super) struct Gathered {
    pipe: OwnedFd,
    asleep: Option<Pin<Box<Sleep>>>,
    sleep: Duration,
}

impl Gathered {
    pub(super) fn new(pipe: ChildStdout) -> io::Result<Self> {
        let pipe = pipe.into_owned_fd()?;
        let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
        fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, asleep: None, sleep: SLEEP.start })
    }

    fn fall_asleep(&mut self) {
        self.asleep = Some(Box::pin(tokio::time::sleep(self.sleep)));
        self.sleep = (self.sleep * 2).min(SLEEP.end);
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(asleep) = &mut self.asleep {
                ready!(asleep.as_mut().poll(context));
                self.asleep = None;
            }
            match read_pipe(&self.pipe, buffer) {
                Ok(count) => {
                    self.sleep = SLEEP.start;
                    if count > 0 && buffer.remaining() > 0 {
                        self.fall_asleep();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => self.fall_asleep(),
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// Reads into the buffer's free part, without clearing it first: that would cost as much as reading.
fn read_pipe(pipe: &OwnedFd, buffer: &mut ReadBuf<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel writes initialised bytes only, and the memory is neither read nor made uninitialised here.
    let free = unsafe { buffer.unfilled_mut() };
    // SAFETY: the descriptor is open as long as `pipe` lives, and `free` is writable memory of this length.
    let count = unsafe { nix::libc::read(pipe.as_raw_fd(), free.as_mut_ptr().cast(), free.len()) };
    let count = usize::try_from(Errno::result(count)?).map_err(|_| Errno::EIO)?;
    // SAFETY: the kernel has written the first `count` bytes.
    unsafe { buffer.assume_init(count) };
    buffer.advance(count);
    Ok(count)
}
