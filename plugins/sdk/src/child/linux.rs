//! What only Linux can do for a child.
#![allow(unsafe_code)]

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::process::ChildStdout;

/// Four times the usual size: few switches, and yet so small that a writer that fills it stops for a while (see [`super::output`]).
const PIPE_BYTES: i32 = 256 << 10;

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

/// How long the pipe is left alone after it was read empty: as short as timers are, and as long as a source that is silent for long may wait.
const SLEEP: RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(16);
/// The first of them. A source of 250 MB/s fills the pipe in it.
const FIRST_SLEEP: Duration = Duration::from_millis(1);

/// A pipe that is not waited for: see [`super::output`].
#[derive(Debug)]
pub(super) struct Gathered {
    pipe: OwnedFd,
    timer: AsyncFd<Timer>,
    asleep: bool,
    /// The next sleep's length.
    sleep: Duration,
    /// What has come since the last sleep.
    gathered: usize,
}

impl Gathered {
    pub(super) fn new(pipe: ChildStdout) -> io::Result<Self> {
        let pipe = pipe.into_owned_fd()?;
        let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
        fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the timer owns its descriptor, which stays open and the same as long as the timer lives.
        let timer = unsafe { AsyncFd::register_with_interest(Timer::new()?, Interest::READABLE) }?;
        Ok(Self { pipe, timer, asleep: false, sleep: FIRST_SLEEP, gathered: 0 })
    }

    /// The pipe is empty. Its writer is to fill it just once until the next look.
    fn fall_asleep(&mut self) -> io::Result<()> {
        let was_full = std::mem::take(&mut self.gathered) >= PIPE_BYTES as usize;
        let sleep = if was_full { self.sleep - self.sleep / 4 } else { self.sleep + self.sleep / 4 };
        self.sleep = sleep.clamp(*SLEEP.start(), *SLEEP.end());
        self.timer.get_ref().start(self.sleep)?;
        self.asleep = true;
        Ok(())
    }

    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.asleep {
            let mut ready = ready!(self.timer.poll_read_ready(context))?;
            if self.timer.get_ref().has_rung()? {
                self.asleep = false;
            }
            ready.clear_ready();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_wake(context))?;
            match read_pipe(&self.pipe, buffer) {
                Ok(count) => {
                    self.gathered += count;
                    // A pipe that was full has a stopped writer behind it, which goes on now.
                    if count > 0 && count < PIPE_BYTES as usize && buffer.remaining() > 0 {
                        self.fall_asleep()?;
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => self.fall_asleep()?,
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// A timer that rings once, finer than the runtime's, whose times are whole milliseconds.
#[derive(Debug)]
struct Timer(TimerFd);

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))
    }

    fn start(&self, after: Duration) -> io::Result<()> {
        Ok(self.0.set(Expiration::OneShot(TimeSpec::from_duration(after)), TimerSetTimeFlags::empty())?)
    }

    /// True once after each ring.
    fn has_rung(&self) -> io::Result<bool> {
        match nix::unistd::read(&self.0, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
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
