//! Places where a test stops the agent to kill it exactly there. Not in release builds.

use std::path::Path;

/// When `VAULTFERRY_TEST_PAUSE_AT` names this step: writes `paused-<step>` into the state folder and waits for a file `resume` there.
#[cfg(debug_assertions)]
pub(crate) async fn at(state_dir: &Path, step: &str) {
    if std::env::var("VAULTFERRY_TEST_PAUSE_AT").as_deref() != Ok(step) {
        return;
    }
    if let Err(error) = std::fs::write(state_dir.join(format!("paused-{step}")), b"") {
        tracing::error!("the pause at {step} cannot be told: {error}");
    }
    while !state_dir.join("resume").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[cfg(not(debug_assertions))]
pub(crate) async fn at(_: &Path, _: &str) {}

/// True while a test keeps an archive from being readable: `VAULTFERRY_TEST_PAUSE_AT` names this step, and there is no file `resume` in the
/// state folder. Emulators rehydrate at once, and the real thing takes hours.
#[cfg(debug_assertions)]
pub(super) fn holds(state_dir: &Path, step: &str) -> bool {
    std::env::var("VAULTFERRY_TEST_PAUSE_AT").as_deref() == Ok(step) && !state_dir.join("resume").exists()
}

#[cfg(not(debug_assertions))]
pub(super) fn holds(_: &Path, _: &str) -> bool {
    false
}
