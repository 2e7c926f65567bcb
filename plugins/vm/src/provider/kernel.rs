//! The kernel's calls that no library wraps: extents, clones, btrfs subvolumes, leases, buffers of devices.
//!
//! Invariants:
//! - All of the crate's `unsafe` for snapshots is here; each function is safe for its callers, whatever they give it.
//! - Numbers of calls are those of x86, ARM and RISC-V ([`request`]); PowerPC, MIPS and SPARC write the direction otherwise.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::libc;

use crate::extents::FiemapExtent;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IO`, `_IOR`, `_IOW` and `_IOWR` of `asm-generic/ioctl.h`.
const fn request(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((kind as u32) << 8) | number as u32
}

const FS_IOC_FIEMAP: u32 = request(READ | WRITE, b'f', 11, size_of::<FiemapHeader>());
const FICLONE: u32 = request(WRITE, 0x94, 9, size_of::<libc::c_int>());
const FICLONERANGE: u32 = request(WRITE, 0x94, 13, size_of::<CloneRange>());
const FS_IOC_GETFLAGS: u32 = request(READ, b'f', 1, size_of::<libc::c_long>());
const FS_IOC_SETFLAGS: u32 = request(WRITE, b'f', 2, size_of::<libc::c_long>());
const FS_IOC_FSGETXATTR: u32 = request(READ, b'X', 31, size_of::<FileAttributes>());
const BLKFLSBUF: u32 = request(NONE, 0x12, 97, 0);
const BTRFS_IOC_SNAP_DESTROY: u32 = request(WRITE, 0x94, 15, size_of::<BtrfsName>());
const BTRFS_IOC_SNAP_CREATE_V2: u32 = request(WRITE, 0x94, 23, size_of::<BtrfsSnapshot>());
const BTRFS_IOC_FS_INFO: u32 = request(READ, 0x94, 31, size_of::<BtrfsSystem>());
const BTRFS_IOC_GET_SUBVOL_INFO: u32 = request(READ, 0x94, 60, size_of::<BtrfsInfo>());

// A struct of another size would be another call.
const _: () = assert!(FS_IOC_FIEMAP == 0xC020_660B && FICLONE == 0x4004_9409 && FICLONERANGE == 0x4020_940D);
const _: () = assert!(FS_IOC_FSGETXATTR == 0x801C_581F && BLKFLSBUF == 0x1261);
const _: () = assert!(BTRFS_IOC_SNAP_DESTROY == 0x5000_940F && BTRFS_IOC_SNAP_CREATE_V2 == 0x5000_9417);
const _: () = assert!(BTRFS_IOC_GET_SUBVOL_INFO == 0x81F8_943C && BTRFS_IOC_FS_INFO == 0x8400_941F);

/// # Safety
/// `argument` must be what this request takes: a number, or a pointer to a struct of the request's size that lives until the end of the call and
/// is big enough for all that the kernel writes.
unsafe fn ioctl(file: &File, request: u32, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed; the argument is right by this function's own condition.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Extents that are asked for at once: 28 KiB.
const PAGE: usize = 512;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct FiemapCall {
    header: FiemapHeader,
    extents: [RawExtent; PAGE],
}

/// Room for the answers of [`fiemap`].
pub(crate) struct ExtentPage(Box<FiemapCall>);

impl Default for ExtentPage {
    fn default() -> Self {
        Self(Box::new(FiemapCall { header: FiemapHeader::default(), extents: [RawExtent::default(); PAGE] }))
    }
}

impl ExtentPage {
    /// Of the last answer.
    pub(crate) fn extent(&self, index: usize) -> FiemapExtent {
        let RawExtent { logical, physical, length, flags, .. } = self.0.extents[index];
        FiemapExtent { logical, physical, length, flags }
    }
}

/// `FIEMAP_FLAG_SYNC`: what is only in memory is written first.
const FIEMAP_SYNC: u32 = 1;

/// The extents from `start` on, as many as the page has room for; tells how many there are.
pub(crate) fn fiemap(file: &File, start: u64, page: &mut ExtentPage) -> io::Result<usize> {
    let header = FiemapHeader {
        start,
        // The kernel refuses what goes over the largest file.
        length: (i64::MAX as u64).saturating_sub(start),
        flags: FIEMAP_SYNC,
        count: PAGE as u32,
        ..FiemapHeader::default()
    };
    page.0.header = header;
    let call: *mut FiemapCall = &raw mut *page.0;
    // SAFETY: `call` points to a whole FiemapCall, which the page owns: the header and room for the `count` extents that it asks for.
    unsafe { ioctl(file, FS_IOC_FIEMAP, call as libc::c_ulong) }?;
    Ok((page.0.header.mapped as usize).min(PAGE))
}

/// Makes `to` a clone of all of `from`: blocks are shared until one of them is written to. The file system brings what was written to `from`
/// to the disk before, and lets nobody write to it meanwhile. What a failure leaves in `to` is unknown.
pub(crate) fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the argument is a descriptor, which is open as long as `from` is borrowed.
    unsafe { ioctl(to, FICLONE, from.as_raw_fd() as libc::c_ulong) }
}

#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    from_length: u64,
    to_offset: u64,
}

/// The same for the file's first bytes; 0: all. Any other number is a multiple of the file system's blocks.
pub(crate) fn clone_beginning(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let range = CloneRange { from: i64::from(from.as_raw_fd()), from_offset: 0, from_length: bytes, to_offset: 0 };
    let pointer: *const CloneRange = &raw const range;
    // SAFETY: `pointer` points to a whole CloneRange, which lives longer than the call; the kernel only reads it.
    unsafe { ioctl(to, FICLONERANGE, pointer as libc::c_ulong) }
}

/// `FS_NOCOW_FL`, the C of chattr: btrfs overwrites in place what nobody shares, and keeps no checksums.
const NOCOW: libc::c_uint = 0x0080_0000;

/// What chattr shows, where the file system has such flags.
fn file_flags(file: &File) -> io::Result<libc::c_uint> {
    // The kernel writes an int, though the request's number says long.
    let mut flags: [libc::c_uint; 2] = [0; 2];
    let pointer: *mut [libc::c_uint; 2] = &raw mut flags;
    // SAFETY: `pointer` points to eight bytes, which live longer than the call: as much as a long, and more than what is written.
    unsafe { ioctl(file, FS_IOC_GETFLAGS, pointer as libc::c_ulong) }?;
    Ok(flags[0])
}

/// Makes an empty file one that btrfs lets be a clone of `image`: both have checksums, or neither has. Other file systems are left alone.
pub(crate) fn match_checksums(image: &File, empty: &File) -> io::Result<()> {
    let (Ok(wanted), Ok(there)) = (file_flags(image), file_flags(empty)) else { return Ok(()) };
    if wanted & NOCOW == there & NOCOW {
        return Ok(());
    }
    let flags: [libc::c_uint; 2] = [(there & !NOCOW) | (wanted & NOCOW), 0];
    let pointer: *const [libc::c_uint; 2] = &raw const flags;
    // SAFETY: `pointer` points to eight bytes, which live longer than the call; the kernel only reads them.
    unsafe { ioctl(empty, FS_IOC_SETFLAGS, pointer as libc::c_ulong) }
}

#[repr(C)]
#[derive(Default)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `FS_XFLAG_REALTIME`
const REALTIME: u32 = 1;

/// True for a file whose data lies on the realtime device of an xfs: its addresses are those of another device.
pub(crate) fn is_realtime(file: &File) -> io::Result<bool> {
    let mut attributes = FileAttributes::default();
    let pointer: *mut FileAttributes = &raw mut attributes;
    // SAFETY: `pointer` points to a whole FileAttributes, which lives longer than the call and is of the size that the request names.
    unsafe { ioctl(file, FS_IOC_FSGETXATTR, pointer as libc::c_ulong) }?;
    Ok(attributes.flags & REALTIME != 0)
}

/// Writes a device's buffers out, and forgets them: what was written through one of its partitions is read anew.
pub(crate) fn forget_buffers(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { ioctl(device, BLKFLSBUF, 0) }
}

/// As the kernel does, `F_LINUX_SPECIFIC_BASE` and 10.
const F_SETLEASE: libc::c_int = 1024;
const F_SETSIG: libc::c_int = 10;

/// True when nobody has this regular file open for writing, nor mapped so; the file must be open for reading only. By a lease that is
/// given back at once. Errors: a file system without leases, or a file of somebody else (`CAP_LEASE`).
pub(crate) fn nobody_writes(file: &File) -> io::Result<bool> {
    let descriptor = file.as_raw_fd();
    // SAFETY: all three calls take numbers only. Whoever opens the file for writing in between makes the kernel send a signal: the usual one
    // would end this process, SIGURG is ignored by default.
    let set = unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) };
    Errno::result(set)?;
    // SAFETY: as above.
    let lease = unsafe { libc::fcntl(descriptor, F_SETLEASE, libc::F_RDLCK) };
    match Errno::result(lease) {
        Ok(_) => {
            // SAFETY: as above.
            let back = unsafe { libc::fcntl(descriptor, F_SETLEASE, libc::F_UNLCK) };
            Errno::result(back)?;
            Ok(true)
        }
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct BtrfsName {
    descriptor: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct BtrfsSnapshot {
    descriptor: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_get_subvol_info_args`
#[repr(C)]
struct BtrfsInfo {
    id: u64,
    name: [u8; 256],
    parent: u64,
    dir: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    /// Of the last change, of the making, and of two more things.
    transactions: [u64; 4],
    /// Seconds, nanoseconds and padding of each.
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}

/// `BTRFS_SUBVOL_RDONLY`
const READ_ONLY_SNAPSHOT: u64 = 1 << 1;
/// `BTRFS_ROOT_SUBVOL_RDONLY`
const READ_ONLY_ROOT: u64 = 1;
/// `BTRFS_SUBVOL_NAME_MAX` is 4039, but a folder's entry has this at most.
const NAME_MAX: usize = 255;

/// Fills a name in, with a zero behind it.
fn fill(field: &mut [u8], name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    let plain = !bytes.is_empty() && bytes.len() <= NAME_MAX && bytes.len() < field.len();
    if !plain || bytes.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    field[..bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// Makes the entry `name` of the folder `dir` a read-only snapshot of the subvolume whose root `subvolume` is, of one instant. Once it returns
/// the snapshot outlives a crash.
pub(crate) fn btrfs_snapshot(dir: &File, name: &OsStr, subvolume: &File) -> io::Result<()> {
    let mut call = BtrfsSnapshot {
        descriptor: i64::from(subvolume.as_raw_fd()),
        transaction: 0,
        flags: READ_ONLY_SNAPSHOT,
        unused: [0; 4],
        name: [0; 4040],
    };
    fill(&mut call.name, name)?;
    let pointer: *mut BtrfsSnapshot = &raw mut call;
    // SAFETY: `pointer` points to a whole BtrfsSnapshot, which lives longer than the call and is of the size that the request names.
    unsafe { ioctl(dir, BTRFS_IOC_SNAP_CREATE_V2, pointer as libc::c_ulong) }
}

/// Removes the subvolume that is the entry `name` of the folder `dir`.
pub(crate) fn btrfs_destroy(dir: &File, name: &OsStr) -> io::Result<()> {
    let mut call = BtrfsName { descriptor: 0, name: [0; 4088] };
    fill(&mut call.name, name)?;
    let pointer: *const BtrfsName = &raw const call;
    // SAFETY: `pointer` points to a whole BtrfsName, which lives longer than the call; the kernel only reads it.
    unsafe { ioctl(dir, BTRFS_IOC_SNAP_DESTROY, pointer as libc::c_ulong) }
}

/// What tells one subvolume from another, and from what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subvolume {
    /// No other one has it, and it has no other one ever.
    pub(crate) uuid: [u8; 16],
    /// The transaction of its last change.
    pub(crate) changed: u64,
    /// Nobody may write to it.
    pub(crate) read_only: bool,
}

/// Of the subvolume that a file or folder is in.
pub(crate) fn btrfs_subvolume(file: &File) -> io::Result<Subvolume> {
    let mut info = BtrfsInfo {
        id: 0,
        name: [0; 256],
        parent: 0,
        dir: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        transactions: [0; 4],
        times: [[0; 2]; 4],
        reserved: [0; 8],
    };
    let pointer: *mut BtrfsInfo = &raw mut info;
    // SAFETY: `pointer` points to a whole BtrfsInfo, which lives longer than the call and is of the size that the request names.
    unsafe { ioctl(file, BTRFS_IOC_GET_SUBVOL_INFO, pointer as libc::c_ulong) }?;
    Ok(Subvolume { uuid: info.uuid, changed: info.transactions[0], read_only: info.flags & READ_ONLY_ROOT != 0 })
}

/// `struct btrfs_ioctl_fs_info_args`
#[repr(C)]
struct BtrfsSystem {
    max_id: u64,
    devices: u64,
    id: [u8; 16],
    rest: [u64; 124],
}

/// What tells one mounted btrfs from another; its subvolumes have device numbers of their own.
pub(crate) fn btrfs_id(file: &File) -> io::Result<[u8; 16]> {
    let mut system = BtrfsSystem { max_id: 0, devices: 0, id: [0; 16], rest: [0; 124] };
    let pointer: *mut BtrfsSystem = &raw mut system;
    // SAFETY: `pointer` points to a whole BtrfsSystem, which lives longer than the call and is of the size that the request names.
    unsafe { ioctl(file, BTRFS_IOC_FS_INFO, pointer as libc::c_ulong) }?;
    Ok(system.id)
}
