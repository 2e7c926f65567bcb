//! The system calls of freezing that no safe function offers: the only unsafe code of this module's neighbours.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long, c_ulong};
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlockall, mmap, munmap};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::time::{ClockId, clock_gettime};

use super::board::{Board, MOUNTS_MAX};

/// What a process is given beside the mount points: the board, the record, and the two that it watches.
pub(super) const FDS_FIRST: usize = 4;

/// The kernel takes 253 in one message.
const FDS_MAX: usize = FDS_FIRST + MOUNTS_MAX;

/// `PR_SET_IO_FLUSHER` of linux/prctl.h, which libc knows for some systems only.
const PR_SET_IO_FLUSHER: c_int = 57;

/// As much stack as a role may ever need, several times over: its calls are ten deep, with small frames.
const STACK_TOUCHED: usize = 256 * 1024;

mod raw {
    use std::ffi::c_int;
    // linux/fs.h; the argument is not used.
    nix::ioctl_readwrite!(fifreeze, b'X', 119, c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, c_int);
}

/// Freezes the file system of an open file. `EBUSY`: it is frozen already. Waits for the file system's own writing, and cannot be ended in it.
pub(super) fn freeze(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut unused: c_int = 0;
    // SAFETY: the descriptor is open for the call's time; the pointer is to a number on the stack.
    unsafe { raw::fifreeze(file.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Thaws the file system of an open file. `EINVAL`: it is not frozen, or not yet.
pub(super) fn thaw(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut unused: c_int = 0;
    // SAFETY: as in `freeze`.
    unsafe { raw::fithaw(file.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Nanoseconds since boot, those of a suspended machine too. A clock that cannot be read says that it is late: everything is thawed then.
pub(super) fn now_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return u64::MAX };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(u64::MAX);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
}

/// A handle of a process that is this one's child and was not waited for, so that its number is its own. It is readable from the process's end on.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let flags: c_long = 0;
    // SAFETY: the call takes numbers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(pid.cast_signed()), flags) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SIGKILL. No error when the process has ended.
pub(super) fn kill(process: BorrowedFd<'_>) {
    let (information, flags): (c_long, c_long) = (0, 0);
    let signal = c_long::from(libc::SIGKILL);
    // SAFETY: the call takes numbers, and a null pointer that it allows.
    let _ = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, c_long::from(process.as_raw_fd()), signal, information, flags)
    };
}

/// Sends open files to another process.
pub(super) fn send_fds(socket: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let message = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"i")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives what [`send_fds`] has sent; nothing when the other side has gone.
pub(super) fn receive_fds(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space[..]), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made them for us, and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(fds)
}

/// The board in memory that all processes of a freeze share, and that lives as long as one of them.
#[derive(Debug)]
pub(super) struct SharedBoard {
    board: NonNull<Board>,
    memory: OwnedFd,
}

// SAFETY: the board consists of atomics only.
unsafe impl Send for SharedBoard {}
// SAFETY: as above.
unsafe impl Sync for SharedBoard {}

impl SharedBoard {
    /// A new one, all zero.
    pub(super) fn create() -> io::Result<Self> {
        let memory = memfd_create("vaultferry-freeze", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&memory, libc::off_t::try_from(size_of::<Board>()).map_err(io::Error::other)?)?;
        Self::open(memory)
    }

    /// That of another process. Fails when the file is no board.
    pub(super) fn open(memory: OwnedFd) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(&memory)?.st_size;
        let length = NonZeroUsize::new(size_of::<Board>()).ok_or(Errno::EINVAL)?;
        if usize::try_from(size).ok() != Some(length.get()) {
            return Err(Errno::EINVAL.into());
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place; the file is as long as the mapping, and nobody shortens it.
        let place = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &memory, 0) }?;
        Ok(Self { board: place.cast(), memory })
    }

    /// The file, to be sent on.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Deref for SharedBoard {
    type Target = Board;

    fn deref(&self) -> &Board {
        // SAFETY: the mapping is page-aligned, has a board's size, and lives as long as `self`; zeros are a valid board, and every other
        // value of an atomic number is valid too.
        unsafe { self.board.as_ref() }
    }
}

impl Drop for SharedBoard {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference outlives `self`.
        let _ = unsafe { munmap(self.board.cast(), size_of::<Board>()) };
    }
}

/// Keeps everything that this process has, and will have, in memory: its program too, which may lie on what is frozen.
pub(super) fn lock_memory() -> Result<(), Errno> {
    touch_stack();
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
}

#[inline(never)]
fn touch_stack() {
    let mut stack = [0_u8; STACK_TOUCHED];
    for byte in stack.iter_mut().step_by(1024) {
        *byte = 1;
    }
    std::hint::black_box(&stack);
}

/// Tells the kernel that its own memory for this process must not come from writing to disks. Best effort: kernels before 5.6 cannot, and a
/// container's root may lack CAP_SYS_RESOURCE. A role asks for next to no such memory while something is frozen.
pub(super) fn become_io_flusher() {
    let (on, unused): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: the call takes numbers only.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
}

/// Runs before whatever else wants a processor: a guardian does next to nothing, and a backup may have lowered the priority that it inherits.
/// Best effort.
pub(super) fn go_first() {
    // SAFETY: numbers only, all zero is valid.
    let mut wanted: libc::sched_param = unsafe { std::mem::zeroed() };
    wanted.sched_priority = 1;
    // SAFETY: the pointer is to a structure on the stack, which the call reads.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const wanted) } != 0 {
        normal_priority();
    }
}

/// Takes back what a backup's process has lowered. Best effort.
pub(super) fn normal_priority() {
    // SAFETY: the call takes numbers only.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) };
}
