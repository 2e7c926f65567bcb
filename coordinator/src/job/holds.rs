//! Legal holds of the storage: the maintenance plugin sets and clears them, because only what opens the repository knows a point's files.
//! It is no job: whoever holds or releases a point waits for it.
//!
//! Invariants:
//! - Storage that knows no legal holds (a folder, an account without version-level immutability) is left alone: there the point's event
//!   is the whole hold.
//! - A kill leaves some files on hold and some not; the same call again ends it. The plugin ends with this process.

use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::maintenance_event::Event;
use vaultferry_proto::plugin::v1::maintenance_request::Task;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::location::Location;
use vaultferry_vault::store::azure::sas::Role;
use vaultferry_vault::{Id, holds};

use super::Shared;
use super::session;
use crate::plugin::{MAINTENANCE, Plugin, Start};

/// Asks the storage to hold the files of a point, or to let go of those that no held point needs. False: the storage cannot, and nothing
/// was done. `vault/src/holds.rs` says what an error leaves.
pub(crate) async fn set_legal_hold(
    shared: &Shared,
    instance_id: &str,
    point: &Id,
    hold: bool,
    cancel: &CancellationToken,
) -> Result<bool, Problem> {
    if matches!(shared.vault.location, Location::Folder(_)) {
        return Ok(false);
    }
    let store = shared.roles.of(Role::Maintenance).open_instance(instance_id)?;
    if !holds::is_supported(&*store, cancel).await? {
        return Ok(false);
    }
    let purpose = if hold { "hold" } else { "release" };
    let request = wire::MaintenanceRequest {
        job_id: format!("{purpose}-{point}"),
        vault: Some(session::vault_access(shared, instance_id, Role::Maintenance, cancel).await?),
        task: Some(Task::LegalHold(wire::LegalHoldTask { snapshot_id: point.to_string(), hold })),
    };
    let start = Start {
        command: session::command(shared, MAINTENANCE)?,
        source_type: MAINTENANCE,
        purpose,
        runtime_dir: &shared.runtime_dir,
        pass_env: Vec::new(),
    };
    let mut plugin = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(stopped()),
        plugin = Plugin::start(start) => plugin?,
    };
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(stopped()),
        result = wait(&mut plugin, request) => result,
    };
    plugin.stop().await;
    result.map(|()| true)
}

fn stopped() -> Problem {
    Problem::new(Reason::Interrupted, "the agent stops; some files may be on legal hold and some not")
        .with_fix("Do it again: what was done already is no error.")
}

async fn wait(plugin: &mut Plugin, request: wire::MaintenanceRequest) -> Result<(), Problem> {
    let mut client = plugin.maintenance();
    let mut events = plugin.begin(client.run(request)).await?;
    loop {
        match session::next_event(plugin, &mut events).await?.event {
            Some(Event::Done(_)) => return Ok(()),
            Some(Event::Warning(warning)) => tracing::info!(reason = warning.reason, "{}", warning.message),
            Some(Event::Progress(_) | Event::Finding(_)) => {}
            None => return Err(Problem::new(Reason::PluginProtocol, "the plugin sent an empty event")),
        }
    }
}
