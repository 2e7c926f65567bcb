//! Who this agent is, and whether the vault is its own.
//!
//! An agent's id is made once, in its state folder: whoever loses the folder is another agent, and takes the vault over explicitly.

use std::path::Path;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Access;
use vaultferry_vault::{Error, admin, store};

/// The agent's id, 32 hexadecimal digits, in a file of the state folder; made when it is not there.
pub(crate) fn agent_id(state_dir: &Path) -> Result<String, Problem> {
    let path = state_dir.join("agent-id");
    let cannot = |detail: &dyn std::fmt::Display| {
        Problem::new(Reason::InvalidConfiguration, format!("the agent's id in {}: {detail}", path.display()))
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => {
            return Err(cannot(&"it is not 32 hexadecimal digits").with_fix(
                "Put the right file back, or remove it and take the vault over: vaultferry vault attach --take-over.",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(&error)),
    }
    let id = admin::new_id()?;
    // Whole or not there: half an id would be another agent's.
    let unfinished = state_dir.join("agent-id.new");
    let write = || {
        use std::io::Write as _;
        let mut file = std::fs::File::create(&unfinished)?;
        file.write_all(format!("{id}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)
    };
    write().map_err(|error| cannot(&error))?;
    Ok(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// This machine's name, for people.
pub(crate) fn hostname() -> String {
    #[cfg(unix)]
    let name = nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned());
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").ok();
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// At the agent's start: an unowned vault becomes its own. An agent that starts beside the owner serves what it knows, and starts no job.
pub(crate) async fn claim_at_start(
    root: &store::Shared,
    agent_id: &str,
    cancel: &CancellationToken,
) -> Result<(), Problem> {
    match admin::owner::claim(root, agent_id, &hostname(), false, cancel).await {
        Err(error @ Error::OwnedByOther { .. }) => {
            tracing::error!("{error}: this agent starts no job (`vaultferry vault attach --take-over` changes that)");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Before a job's work, and again before its commit: [`Error::OwnedByOther`] when the vault has changed hands.
pub(crate) async fn check(vault: &Access, agent_id: &str, cancel: &CancellationToken) -> Result<(), Error> {
    admin::owner::check(&vault.open_root()?, agent_id, cancel).await
}
