//! `vaultferry vault key`: what needs no agent.

use secrecy::ExposeSecret as _;
use serde_json::json;
use vaultferry_coordinator::vault::KeyList;
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, coordinator};
use crate::output::table::{fields, table};

const KEEP: &str = "This key is shown once. Write it down, or keep it in a password safe, away from this machine.";
const NOT_UNDONE: &str = "The passwords of the repositories are the same as before: whoever has learnt one, or has the old key \
                          and a copy\nof the vault's old records, can still read the backups. No data was uploaded again.";

pub(super) async fn list(context: &Context) -> Result<Outcome, Problem> {
    let (key_id, list) = vaultferry_coordinator::list_keys(&coordinator(context)?).await?;
    let recovery: Vec<_> = list
        .recovery
        .iter()
        .map(|key| json!({ "id": key.id, "create_time": key.create_time, "vault_key_id": key.vault_key_id }))
        .collect();
    let key_vault: Vec<_> =
        list.key_vault.iter().map(|(id, opens)| json!({ "id": id, "vault_key_id": opens })).collect();
    let instances: Vec<_> = list
        .instances
        .iter()
        .map(|key| {
            json!({
                "id": key.instance_id,
                "name": key.name,
                "vault_key_id": key.key_id,
                "create_time": key.create_time,
                "superseded": key.superseded,
            })
        })
        .collect();
    let as_json = json!({ "keys": {
        "vault_key_id": key_id,
        "recovery_keys": recovery,
        "key_vault_keys": key_vault,
        "instances": instances,
    }});
    context.output.value(&as_json, || text(key_id.as_deref(), &list))?;
    Ok(Outcome::Done)
}

fn text(key_id: Option<&str>, list: &KeyList) -> String {
    let id = key_id.unwrap_or("not at hand").to_owned();
    let mut rows = Vec::new();
    for key in &list.recovery {
        let opens = key.vault_key_id.clone().unwrap_or_else(|| "the vault's first".to_owned());
        rows.push(["recovery key".to_owned(), key.id.clone(), opens, key.create_time.to_string()]);
    }
    for (key, opens) in &list.key_vault {
        rows.push(["Key Vault".to_owned(), key.clone(), opens.clone(), String::new()]);
    }
    let keys = table(["KEY", "ID", "OPENS VAULT KEY", "MADE"], &rows, "No other key opens the vault key.");
    let rows: Vec<[String; 4]> = list
        .instances
        .iter()
        .map(|key| {
            let superseded = if key.superseded == 0 { String::new() } else { key.superseded.to_string() };
            [key.name.clone(), key.key_id.clone(), key.create_time.to_string(), superseded]
        })
        .collect();
    let instances = table(["INSTANCE", "WRAPPED BY", "SINCE", "OLD RECORDS"], &rows, "There are no instances yet.");
    format!("{}\n\n{keys}\n\n{instances}", fields(&[("vault key", id)]))
}

pub(super) async fn add(context: &Context) -> Result<Outcome, Problem> {
    let (id, key) = vaultferry_coordinator::add_recovery_key(&coordinator(context)?).await?;
    context.output.value(&json!({ "id": id, "recovery_key": key.expose_secret() }), || {
        format!("The vault has another recovery key, {id}.\n\nrecovery key: {}\n\n{KEEP}", key.expose_secret())
    })?;
    Ok(Outcome::Done)
}

/// The recovery key is shown before the old records go: a kill between leaves the old one of use.
pub(super) async fn rotate(context: &Context) -> Result<Outcome, Problem> {
    let rotation = vaultferry_coordinator::rotate_key(&coordinator(context)?).await?;
    let rotated = &rotation.rotated;
    let as_json = json!({
        "vault_key_id": rotated.key.id(),
        "old_vault_key_id": rotated.old_id,
        "instances": rotated.instances,
        "recovery_key_id": rotated.recovery_id,
        "recovery_key": rotated.recovery_key.expose_secret(),
    });
    context.output.value(&as_json, || {
        let lines = fields(&[
            ("vault key", rotated.key.id()),
            ("before", rotated.old_id.clone()),
            ("instances", rotated.instances.to_string()),
        ]);
        let recovery_key = rotated.recovery_key.expose_secret();
        format!(
            "The vault has a new vault key.\n\n{lines}\n\nrecovery key: {recovery_key}\n\n{KEEP}\n\
             Recovery keys of before open nothing any more.\n\n{NOT_UNDONE}"
        )
    })?;
    let cleaned = rotation.clean_up().await?;
    if cleaned.kept.is_empty() {
        return Ok(Outcome::Done);
    }
    let message = format!(
        "the vault key is changed, but the store keeps records that the old keys open:\n  {}",
        cleaned.kept.join("\n  ")
    );
    Err(Problem::new(Reason::DataProtected, message)
        .with_fix("Rotate again with a credential that may delete, when nothing protects these records any more."))
}

pub(super) async fn remove(context: &Context, id: &str, yes: bool) -> Result<Outcome, Problem> {
    let id = vaultferry_coordinator::remove_recovery_key(&coordinator(context)?, id, yes).await?;
    context.output.value(&json!({ "id": id }), || {
        format!(
            "The recovery key {id} is removed: it opens the vault no more, but for whoever kept a copy of its record."
        )
    })?;
    Ok(Outcome::Done)
}
