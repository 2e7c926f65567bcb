//! Opening what is run as root, and looking at it through the open file.
//!
//! | what | owner | rights that must not be there |
//! |---|---|---|
//! | the folders above | root | writing by group or others, unless sticky (as /tmp is) |
//! | the folder, and folders in it | root | writing by group or others |
//! | the configuration | root | anything for group and others, executing |
//! | a script | root | anything for group and others; its owner must be allowed to execute it |

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use vaultferry_proto::{Problem, Reason};

/// Azure's has some hundred bytes.
const CONFIG_MAX: u64 = 64 << 10;
/// Writing by group or others.
const OTHERS_WRITE: u32 = 0o022;
/// Anything by group or others.
const OTHERS: u32 = 0o077;
const EXECUTE: u32 = 0o111;
const STICKY: u32 = 0o1000;

/// A refusal, with the reason's usual fix.
pub(super) fn refused(message: impl Into<String>) -> Problem {
    Problem::new(Reason::ScriptNotAllowed, message)
}

/// The folder, open.
#[derive(Debug)]
pub(super) struct Folder {
    file: File,
    path: PathBuf,
    owner: u32,
}

impl Folder {
    /// `None` when it is not there.
    pub(super) fn open(path: &Path, owner: u32) -> Result<Option<Self>, Problem> {
        if !path.is_absolute() {
            return Err(refused(format!("{} is no absolute path", path.display())));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(refused(format!("{} is a link or no folder", path.display())));
            }
            Err(error) => return Err(refused(format!("{} cannot be opened: {error}", path.display()))),
        };
        check_above(path, owner)?;
        check(&file, path, owner, OTHERS_WRITE)?;
        Ok(Some(Self { file, path: path.to_path_buf(), owner }))
    }

    /// The configuration's text; `None` when it is not there.
    pub(super) fn read_config(&self, name: &str) -> Result<Option<String>, Problem> {
        let path = self.path.join(name);
        let Some(mut file) = self.open_in(&self.file, Path::new(name), &path, OFlag::empty())? else { return Ok(None) };
        let metadata = check(&file, &path, self.owner, OTHERS | EXECUTE)?;
        if !metadata.is_file() || metadata.len() > CONFIG_MAX {
            return Err(refused(format!("{} is no small file", path.display())));
        }
        let mut text = String::new();
        match file.read_to_string(&mut text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(refused(format!("{} cannot be read: {error}", path.display()))),
        }
    }

    /// A script below the folder, by names only.
    pub(super) fn open_script(&self, relative: &Path) -> Result<File, Problem> {
        let shown = self.path.join(relative);
        let missing = || refused(format!("{} is not there", shown.display()));
        let mut at = self.path.clone();
        let mut folder: Option<File> = None;
        let mut names = relative.iter().peekable();
        while let Some(name) = names.next() {
            at.push(name);
            let is_last = names.peek().is_none();
            let flags = if is_last { OFlag::empty() } else { OFlag::O_DIRECTORY };
            let within = folder.as_ref().unwrap_or(&self.file);
            let file = self.open_in(within, Path::new(name), &at, flags)?.ok_or_else(missing)?;
            if !is_last {
                check(&file, &at, self.owner, OTHERS_WRITE)?;
                folder = Some(file);
                continue;
            }
            let metadata = check(&file, &at, self.owner, OTHERS)?;
            if !metadata.is_file() {
                return Err(refused(format!("{} is no file", at.display())));
            }
            if metadata.mode() & 0o500 != 0o500 {
                return Err(refused(format!("{} may not be executed by its owner (chmod 700)", at.display())));
            }
            return Ok(file);
        }
        Err(missing())
    }

    fn open_in(&self, within: &File, name: &Path, shown: &Path, flags: OFlag) -> Result<Option<File>, Problem> {
        // Not to hang at a pipe that somebody has put there.
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        match openat(within, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) => Err(refused(format!("{} is a link; put the file itself there", shown.display()))),
            Err(error) => Err(refused(format!("{} cannot be opened: {error}", shown.display()))),
        }
    }
}

/// The open file belongs to the owner, and nobody has a right that is forbidden.
fn check(file: &File, path: &Path, owner: u32, forbidden: u32) -> Result<fs::Metadata, Problem> {
    let metadata =
        file.metadata().map_err(|error| refused(format!("{} cannot be looked at: {error}", path.display())))?;
    if metadata.uid() != owner {
        let message = format!("{} belongs to user {} and not to {}", path.display(), metadata.uid(), name_of(owner));
        return Err(refused(message));
    }
    let mode = metadata.mode() & 0o777;
    if mode & forbidden != 0 {
        let message = format!(
            "{} has the rights {mode:o}, which are too many: only {} may have any",
            path.display(),
            name_of(owner)
        );
        let wanted = if metadata.is_file() && forbidden & EXECUTE == EXECUTE { "600" } else { "700" };
        return Err(refused(message).with_fix(format!("chmod {wanted} {}", path.display())));
    }
    Ok(metadata)
}

fn name_of(owner: u32) -> String {
    if owner == super::ROOT { "root".to_owned() } else { format!("user {owner}") }
}

/// Nobody else can put another folder in this one's place.
fn check_above(path: &Path, owner: u32) -> Result<(), Problem> {
    let above = path.parent().unwrap_or(Path::new("/"));
    let unseen = |error| refused(format!("{} cannot be looked at: {error}", above.display()));
    let above = fs::canonicalize(above).map_err(unseen)?;
    for folder in above.ancestors() {
        let metadata = fs::symlink_metadata(folder).map_err(unseen)?;
        let ours = metadata.uid() == owner || metadata.uid() == super::ROOT;
        if !ours || (metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0) {
            let message = format!("{} lies in {}, in which others may rename it", path.display(), folder.display());
            let fix = "Put the folder where root alone may write, for example /etc/vaultferry/vm-scripts.";
            return Err(refused(message).with_fix(fix));
        }
    }
    Ok(())
}

/// How the open file is executed: by this process's own way to it. A script's interpreter opens the same name, so the file has to stay open.
pub(super) fn program(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}
