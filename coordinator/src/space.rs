//! Whether a folder vault has space left: looked at at the start and every hour, and told before a backup fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Location;

use crate::job::Shared;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3600);
/// A file system that does not answer by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Over this time it is looked how much backups store,
const A_DAY: SignedDuration = SignedDuration::from_hours(24);
/// and so many times of it have to be free: a weekend.
const DAYS_AHEAD: u64 = 3;
/// One part of so many has to be free.
const LEAST_PART: u64 = 10;

/// A file system's space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// That users may still take.
    pub(crate) free: u64,
    /// In all.
    pub(crate) total: u64,
}

/// What is wrong with it, after backups have stored so many bytes in a day.
fn too_little(space: Space, stored: u64) -> Option<String> {
    let mib = |bytes: u64| bytes >> 20;
    let left = format!("{} MiB of {} MiB are free", mib(space.free), mib(space.total));
    if space.free < space.total.div_ceil(LEAST_PART) {
        return Some(format!("{left}, which is less than a tenth"));
    }
    if space.free < stored.saturating_mul(DAYS_AHEAD) {
        return Some(format!("{left}, and backups have stored {} MiB in the last 24 hours", mib(stored)));
    }
    None
}

/// Of the vault's file system. `None`: the vault is in no folder, the system cannot tell, or does not answer.
pub(crate) async fn look(location: &Location) -> Option<Space> {
    let Location::Folder(path) = location else { return None };
    let path = path.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&path));
    tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?
}

#[cfg(unix)]
fn ask(path: &Path) -> Option<Space> {
    fn bytes(blocks: impl Into<u64>, size: impl Into<u64>) -> u64 {
        blocks.into().saturating_mul(size.into())
    }
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let size = found.fragment_size();
    Some(Space { free: bytes(found.blocks_available(), size), total: bytes(found.blocks(), size) })
}

#[cfg(not(unix))]
fn ask(_: &Path) -> Option<Space> {
    None
}

/// The warning, when there is too little space now.
pub(crate) async fn warning(shared: &Shared) -> Option<Problem> {
    let location = &shared.vault.location;
    let space = look(location).await?;
    let since = vaultferry_vault::clock::now().checked_sub(A_DAY).ok()?;
    // A catalog that does not answer is told by whoever needs it more.
    let stored = shared.catalog.stored_since(since).await.unwrap_or(0);
    let why = too_little(space, stored)?;
    Some(Problem::new(Reason::VaultSpaceLow, format!("little space is left for the vault {location}: {why}")))
}

/// Looks at once and then every hour, until `stop`.
pub(crate) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        if let Some(problem) = warning(&shared).await {
            tracing::warn!(reason = problem.reason.as_str(), fix = problem.fix, "{}", problem.message);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_tenth_and_three_days_have_to_be_free() {
        let told = |free: u64, stored: u64| too_little(Space { free, total: 100 * GIB }, stored).unwrap_or_default();
        assert_eq!(told(10 * GIB, 0), "");
        assert_eq!(told(10 * GIB - 1, 0), "10239 MiB of 102400 MiB are free, which is less than a tenth");
        assert_eq!(told(30 * GIB, 10 * GIB), "");
        let stored = "30719 MiB of 102400 MiB are free, and backups have stored 10240 MiB in the last 24 hours";
        assert_eq!(told(30 * GIB - 1, 10 * GIB), stored);
        assert!(told(100 * GIB, u64::MAX).contains("in the last 24 hours"), "no overflow");
        assert!(too_little(Space { free: 0, total: 5 }, 0).is_some());
        // A file system that tells nothing of itself.
        assert_eq!(too_little(Space { free: 0, total: 0 }, 0), None);
    }

    #[tokio::test]
    async fn a_folder_s_file_system_is_looked_at() {
        let dir = tempfile::tempdir().expect("folder");
        let space = look(&Location::Folder(dir.path().to_owned())).await.expect("a file system");
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
        assert_eq!(look(&Location::Folder(dir.path().join("missing"))).await, None);
    }
}
