//! The machine that the plugin runs on.

use std::path::Path;

/// Bytes that are free on the file system of `path`, for others than root; `None` when that is not known. May block for as long as the
/// file system does.
pub fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        fn bytes(blocks: impl Into<u64>, size: impl Into<u64>) -> u64 {
            blocks.into().saturating_mul(size.into())
        }
        let found = nix::sys::statvfs::statvfs(path).ok()?;
        Some(bytes(found.blocks_available(), found.fragment_size()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The machine's name, for the snapshot's record; `localhost` when the system does not tell.
pub fn hostname() -> String {
    #[cfg(unix)]
    let name = nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned());
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").ok();
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}
