//! Who uses disks here: what of them is mounted, who writes to them, what stands on a device. Everything is read from `/proc` and `/sys`;
//! nothing is changed. The calls block for as long as the kernel takes, which is moments.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, makedev, minor};

/// A block device's number.
type Number = (u64, u64);

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) point: PathBuf,
    /// The device that it lies on.
    device: Number,
    /// As the kernel names it.
    source: PathBuf,
    /// The file system, not only this mount of it.
    is_read_only: bool,
}

/// The mount points of file systems that lie on these disks, each file system once: on a loop device over an image, on a disk itself, on
/// a part of either, or on what the device mapper or RAID has made of one.
pub(crate) fn mounts_on(disks: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    Ok(file_systems_on(disks)?.into_iter().map(|mount| mount.point).collect())
}

/// What of the disks would go on being written to while file systems are frozen, for people; `None`: nothing that can be seen. Those that are
/// mounted at `named` are frozen; without it all that lie on the disks.
pub(crate) fn not_held(disks: &[PathBuf], named: Option<&[PathBuf]>) -> io::Result<Option<String>> {
    let named = match named {
        None => None,
        Some(named) => {
            let points: Vec<PathBuf> =
                named.iter().map(|point| point.canonicalize().unwrap_or_else(|_| point.clone())).collect();
            let all = mounts()?.into_iter().filter(|mount| points.contains(&mount.point));
            Some(all.map(|mount| mount.number()).collect::<BTreeSet<Number>>())
        }
    };
    for disk in disks {
        let own = file_systems_on(std::slice::from_ref(disk))?;
        match &named {
            Some(named) => {
                let left = own.iter().find(|mount| !mount.is_read_only && !named.contains(&mount.number()));
                if let Some(mount) = left {
                    let (point, disk) = (mount.point.display(), disk.display());
                    return Ok(Some(format!(
                        "{point} lies on {disk}, and is not among the mount points in [vm] freeze"
                    )));
                }
            }
            None if own.is_empty() && may_be_written(std::slice::from_ref(disk)) => {
                let disk = disk.display();
                return Ok(Some(format!("nothing of {disk} is mounted on this machine, and somebody may write to it")));
            }
            None => {}
        }
    }
    Ok(None)
}

/// True for a block device with a file system on it that is mounted here: on the device itself, not on a part of it or on what stands on it.
pub(crate) fn is_mounted_itself(disk: &Path) -> io::Result<bool> {
    let Some(number) = device(disk)? else { return Ok(false) };
    Ok(mounts()?.iter().any(|mount| mount.number() == number))
}

fn file_systems_on(disks: &[PathBuf]) -> io::Result<Vec<Mount>> {
    let mut wanted = (BTreeSet::new(), Vec::new());
    for disk in disks {
        match device(disk)? {
            Some(number) => {
                wanted.0.insert(number);
            }
            None => wanted.1.push(disk.canonicalize()?),
        }
    }
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for mount in mounts()? {
        let number = mount.number();
        let is_wanted = with_below(number).into_iter().any(|number| {
            wanted.0.contains(&number) || backing_file(number).is_some_and(|file| wanted.1.contains(&file))
        });
        if is_wanted && seen.insert(number) {
            found.push(mount);
        }
    }
    Ok(found)
}

/// True unless it is sure that nobody has one of the disks open for writing, or mounted.
pub(crate) fn may_be_written(disks: &[PathBuf]) -> bool {
    let looked = || -> io::Result<bool> {
        let mut files = BTreeSet::new();
        for disk in disks {
            let metadata = fs::metadata(disk)?;
            files.insert(place(&metadata));
            if let Some(number) = device(disk)? {
                for part in with_parts(number)? {
                    if has_holders(&part) {
                        return Ok(true);
                    }
                    let part = parse_number(fs::read_to_string(part.join("dev"))?.trim());
                    files.extend(part.map(|(major, minor)| (u64::MAX, makedev(major, minor))));
                }
            }
        }
        Ok(!mounts_on(disks)?.is_empty() || has_loop(disks)? || is_open_for_writing(&files)?)
    };
    looked().unwrap_or(true)
}

/// Why the block device must not be written to; `None`: nobody uses it.
pub(crate) fn use_of_device(path: &Path) -> io::Result<Option<String>> {
    let Some(number) = device(path)? else { return Ok(Some("it is no block device".to_owned())) };
    for mount in mounts()? {
        if with_below(mount.number()).contains(&number) {
            return Ok(Some(format!("it, or a part of it, is mounted on {}", mount.point.display())));
        }
    }
    for part in with_parts(number)? {
        if has_holders(&part) {
            return Ok(Some("another device (LVM, RAID, encryption) stands on it, or on a part of it".to_owned()));
        }
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let swap = PathBuf::from(line.split_whitespace().next().unwrap_or_default());
        if let Ok(Some(swap)) = device(&swap)
            && with_below(swap).contains(&number)
        {
            return Ok(Some("it, or a part of it, is swap".to_owned()));
        }
    }
    Ok(None)
}

/// The number of a block device; `None`: it is something else.
pub(crate) fn device(path: &Path) -> io::Result<Option<Number>> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.file_type().is_block_device().then(|| number_of(metadata.rdev())))
}

fn number_of(device: u64) -> Number {
    (major(device), minor(device))
}

/// A block device by its number, any other file by its place.
fn place(metadata: &Metadata) -> (u64, u64) {
    match metadata.file_type().is_block_device() {
        true => (u64::MAX, metadata.rdev()),
        false => (metadata.dev(), metadata.ino()),
    }
}

fn sys(number: Number) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1))
}

/// The device, the whole of which it is a part, and what both stand on (LVM, RAID, encryption).
fn with_below(number: Number) -> Vec<Number> {
    let (mut all, mut next) = (vec![number], 0);
    while let Some(folder) = all.get(next).map(|number| sys(*number)) {
        next += 1;
        let mut below: Vec<PathBuf> =
            fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        if folder.join("partition").exists()
            && let Ok(folder) = folder.canonicalize()
            && let Some(whole) = folder.parent()
        {
            below.push(whole.to_owned());
        }
        for folder in below {
            let number = fs::read_to_string(folder.join("dev")).ok().and_then(|text| parse_number(text.trim()));
            all.extend(number.filter(|number| !all.contains(number)));
        }
    }
    all
}

/// True when another device stands on the one whose folder below `/sys` it is.
fn has_holders(folder: &Path) -> bool {
    fs::read_dir(folder.join("holders")).is_ok_and(|mut holders| holders.next().is_some())
}

/// The folders below `/sys` of the device and of its parts.
fn with_parts(number: Number) -> io::Result<Vec<PathBuf>> {
    let folder = sys(number).canonicalize()?;
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.join("partition").exists() {
            all.push(path);
        }
    }
    all.push(folder);
    Ok(all)
}

/// The file that a loop device shows.
fn backing_file(number: Number) -> Option<PathBuf> {
    let text = fs::read_to_string(sys(number).join("loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

/// True when a loop device that can be written shows one of the disks: its file is open in the kernel, and in no process.
fn has_loop(disks: &[PathBuf]) -> io::Result<bool> {
    let disks: io::Result<Vec<PathBuf>> = disks.iter().map(|disk| disk.canonicalize()).collect();
    let disks = disks?;
    for entry in fs::read_dir("/sys/block")? {
        let folder = entry?.path();
        let Ok(backing) = fs::read_to_string(folder.join("loop/backing_file")) else { continue };
        let is_read_only = fs::read_to_string(folder.join("ro")).is_ok_and(|text| text.trim() == "1");
        if !is_read_only && disks.contains(&PathBuf::from(backing.trim_end_matches('\n'))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// True when a process has one of the files open for writing. Fails when not every process may be looked at.
fn is_open_for_writing(files: &BTreeSet<(u64, u64)>) -> io::Result<bool> {
    let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(code) if code == nix::libc::ENOENT || code == nix::libc::ESRCH);
    for process in fs::read_dir("/proc")? {
        let process = process?;
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let descriptors = match fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for descriptor in descriptors.flatten() {
            let Ok(metadata) = fs::metadata(descriptor.path()) else { continue };
            if !files.contains(&place(&metadata)) {
                continue;
            }
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            if fs::read_to_string(info).is_ok_and(|info| writes(&info)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// True when the flags of a `/proc/…/fdinfo` file allow writing.
fn writes(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY)
}

fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

/// One line of mountinfo: `36 35 98:0 /root /point options … - ext4 /dev/root …`
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = parse_number(std::str::from_utf8(words.nth(2)?).ok()?)?;
    let point = unescape(words.nth(1)?);
    let mut rest = words.skip_while(|word| *word != b"-");
    let source = unescape(rest.nth(2)?);
    let is_read_only =
        rest.next().is_some_and(|options| options.split(|byte| *byte == b',').any(|option| option == b"ro"));
    Some(Mount { point, device, source, is_read_only })
}

impl Mount {
    /// File systems such as btrfs have a number of their own: then the device is what its source is.
    fn number(&self) -> Number {
        match self.device {
            (0, _) => device(&self.source).ok().flatten().unwrap_or(self.device),
            number => number,
        }
    }
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel writes blanks, line ends and backslashes as `\040`.
fn unescape(word: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(word.len()), word);
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            br"36 35 98:0 /mnt1 /mnt/my\040disk rw,noatime master:1 shared:2 - ext3 /dev/my\134root rw,errors=continue";
        let found = mount(line).unwrap();
        assert_eq!((found.point.as_path(), found.device), (Path::new("/mnt/my disk"), (98, 0)));
        assert_eq!(found.source, Path::new(r"/dev/my\root"));
        // The file system's own options count, not the mount's.
        assert!(!found.is_read_only && !mount(b"1 2 7:0 / /a ro - ext4 /dev/a rw").unwrap().is_read_only);
        assert!(mount(b"1 2 7:0 / /a rw - ext4 /dev/a errors=continue,ro").unwrap().is_read_only);
        assert_eq!(mount(b""), None);
        assert_eq!(mount(b"1 2 x:y / / rw - ext4 /dev/a rw"), None);
        assert!(mounts().unwrap().iter().any(|mount| mount.point == Path::new("/")));
    }

    #[test]
    fn whoever_writes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        fs::write(&path, "x").unwrap();
        let file = place(&fs::metadata(&path).unwrap());
        let reader = fs::File::open(&path).unwrap();
        // Others' processes may be none of our business, and what cannot be looked at counts as written elsewhere.
        let seen = |expected: bool| match is_open_for_writing(&BTreeSet::from([file])) {
            Ok(seen) => assert_eq!(seen, expected),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        };
        seen(false);
        let writer = fs::File::options().append(true).open(&path).unwrap();
        seen(true);
        assert!(may_be_written(std::slice::from_ref(&path)));
        drop((reader, writer));
        assert!(may_be_written(&[dir.path().join("none")]), "what cannot be looked at");
        assert!(writes("pos:\t0\nflags:\t0100002\n") && writes("flags:\t0102001") && !writes("flags:\t0100000"));
        assert_eq!(use_of_device(&path).unwrap().as_deref(), Some("it is no block device"));
        assert_eq!(mounts_on(std::slice::from_ref(&path)).unwrap(), Vec::<PathBuf>::new());
        assert!(!is_mounted_itself(&path).unwrap());
        // A freeze of what is mounted of other disks does not hold this one.
        let disks = [path];
        let _writer = fs::File::options().append(true).open(&disks[0]).unwrap();
        assert!(not_held(&disks, None).unwrap().is_some_and(|who| who.contains("disk.raw")));
        let named = [PathBuf::from("/")];
        assert_eq!(not_held(&disks, Some(&named[..])).unwrap(), None, "the user knows what is on it");
    }
}
