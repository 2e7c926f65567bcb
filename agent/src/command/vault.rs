//! `vaultferry vault`

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use vaultferry_coordinator::Rebuilt;
use vaultferry_proto::control::v1::{
    ExportRepositoryKeyRequest, GetVaultRequest, GetVaultSettingsRequest, UpdateVaultSettingsRequest,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, maintenance};
use crate::args::{Key, Redundancy, Vault, VaultSettings};
use crate::client::Client;
use crate::config::Purpose;
use crate::output::table::fields;
use crate::output::text;

mod key;

/// A recovery key has 80 characters; a file of more is another one.
const LARGEST_RECOVERY_FILE: u64 = 4096;

pub(super) async fn run(context: &Context, command: Vault) -> Result<Outcome, Problem> {
    match command {
        Vault::Init { redundancy } => init(context, redundancy).await,
        Vault::Show => show(context).await,
        Vault::Settings(command) => settings(context, command).await,
        Vault::Attach { recovery_key_file, take_over } => {
            let recovery_key = recovery_key_file.as_deref().map(read_recovery_key).transpose()?;
            attach(context, recovery_key, take_over).await
        }
        Vault::RebuildCatalog { with_history } => rebuild_catalog(context, with_history).await,
        Vault::Upgrade => upgrade(context).await,
        Vault::Check(command) => maintenance::check(context, command).await,
        Vault::Prune(command) => maintenance::prune(context, command).await,
        Vault::Key(Key::Export { instance }) => export_key(context, instance).await,
        Vault::Key(Key::List) => key::list(context).await,
        Vault::Key(Key::Add) => key::add(context).await,
        Vault::Key(Key::Rotate) => key::rotate(context).await,
        Vault::Key(Key::Remove { id, yes }) => key::remove(context, &id, yes).await,
    }
}

/// What the commands that need no agent work with.
fn coordinator(context: &Context) -> Result<vaultferry_coordinator::Config, Problem> {
    context.settings(Purpose::Agent)?.to_coordinator()
}

/// Makes the vault without an agent. The recovery key is printed this one time only.
async fn init(context: &Context, redundancy: Redundancy) -> Result<Outcome, Problem> {
    let made = vaultferry_coordinator::init_vault(&coordinator(context)?, redundancy.as_str()).await?;
    let recovery_key = made.recovery_key.as_ref().map(|key| key.expose_secret().to_owned());
    let name = made.location.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut as_json = json!({
        "vault": { "id": made.vault_id, "name": name, "location": made.location },
        "key_path": made.key,
        "existed": made.existed,
    });
    if let Some(key) = &recovery_key {
        as_json["recovery_key"] = json!(key);
    }
    context.output.value(&as_json, || {
        let head = if made.existed { "The vault exists; it is left as it is." } else { "The vault is made." };
        let lines =
            fields(&[("id", made.vault_id.clone()), ("location", made.location.clone()), ("key file", made.key)]);
        let advice = recovery_key.map_or(String::new(), |key| {
            format!(
                "\n\nrecovery key: {key}\n\n\
                 This key is shown once. Write it down, or keep it in a password safe, away from this machine:\n\
                 without the key file and without this key nobody can read the backups."
            )
        });
        format!("{head}\n\n{lines}{advice}")
    })?;
    Ok(Outcome::Done)
}

async fn show(context: &Context) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.vaults().get_vault(GetVaultRequest {}).await.map_err(|status| client.problem(&status))?;
    context.output.message(&answer.into_inner(), |response| text::vault(response.vault.as_ref()))?;
    Ok(Outcome::Done)
}

/// Shows the settings, or changes them. The same change again is no error, so a broken connection is no reason to doubt.
async fn settings(context: &Context, command: VaultSettings) -> Result<Outcome, Problem> {
    let mut client = context.client().await?;
    if !command.changes() {
        let answer = client.vaults().get_vault_settings(GetVaultSettingsRequest {}).await;
        let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
        context.output.message(&answer, |response| text::vault_settings(response.settings.as_ref()))?;
        return Ok(Outcome::Done);
    }
    let request = UpdateVaultSettingsRequest {
        immutability: command.immutability.map(|state| state.as_str().to_owned()),
        immutability_days: command.immutability_days,
        soft_delete_days: command.soft_delete_days,
        confirm_lock: command.yes,
    };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.vaults().update_vault_settings(request).await }
    };
    let answer = client.idempotent(call).await?;
    context.output.message(&answer, |response| text::vault_settings(response.settings.as_ref()))?;
    Ok(Outcome::Done)
}

/// From a file or standard input, never from the command line, which others can see.
fn read_recovery_key(path: &std::path::Path) -> Result<SecretString, Problem> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| {
        let message = format!("the recovery key in {} cannot be read: {error}", path.display());
        Problem::new(Reason::InvalidRequest, message)
    };
    let mut text = zeroize::Zeroizing::new(String::new());
    if path == std::path::Path::new("-") {
        std::io::stdin().lock().take(LARGEST_RECOVERY_FILE).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LARGEST_RECOVERY_FILE).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(SecretString::from(text.trim()))
}

async fn attach(context: &Context, recovery_key: Option<SecretString>, take_over: bool) -> Result<Outcome, Problem> {
    let attached = vaultferry_coordinator::attach(&coordinator(context)?, recovery_key, take_over).await?;
    let as_json = json!({
        "vault": { "id": attached.vault_id, "location": attached.location },
        "key_path": attached.key,
        "agent_id": attached.agent_id,
        "catalog": rebuilt_json(&attached.rebuilt),
    });
    context.output.value(&as_json, || {
        let lines = fields(&[
            ("id", attached.vault_id.clone()),
            ("location", attached.location.clone()),
            ("key", attached.key.clone()),
            ("agent", attached.agent_id.clone()),
        ]);
        format!("The vault belongs to this agent now.\n\n{lines}\n\n{}", rebuilt_text(&attached.rebuilt))
    })?;
    Ok(Outcome::Done)
}

async fn rebuild_catalog(context: &Context, with_history: bool) -> Result<Outcome, Problem> {
    let rebuilt = vaultferry_coordinator::rebuild_catalog(&coordinator(context)?, with_history).await?;
    context.output.value(&json!({ "catalog": rebuilt_json(&rebuilt) }), || rebuilt_text(&rebuilt))?;
    Ok(Outcome::Done)
}

fn rebuilt_json(rebuilt: &Rebuilt) -> serde_json::Value {
    json!({
        "policies": rebuilt.policies,
        "instances": rebuilt.instances,
        "points": rebuilt.points,
        "jobs": rebuilt.jobs,
        "problems": rebuilt.problems,
        "kept": rebuilt.kept,
    })
}

fn rebuilt_text(rebuilt: &Rebuilt) -> String {
    let mut text = format!(
        "The catalog is made anew from the vault.\n\n{}",
        fields(&[
            ("policy versions", rebuilt.policies.to_string()),
            ("instances", rebuilt.instances.to_string()),
            ("points", rebuilt.points.to_string()),
            ("jobs of the past", rebuilt.jobs.to_string()),
            ("catalog before", rebuilt.kept.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
        ])
    );
    if !rebuilt.problems.is_empty() {
        text.push_str("\n\nnot in it:");
        for problem in &rebuilt.problems {
            text.push_str("\n  ");
            text.push_str(&crate::output::table::printable(problem));
        }
    }
    text
}

async fn upgrade(context: &Context) -> Result<Outcome, Problem> {
    let steps = vaultferry_coordinator::upgrade(&coordinator(context)?).await?;
    let as_json: Vec<serde_json::Value> = steps
        .iter()
        .map(|step| json!({ "name": step.name, "written": step.written, "remarks": step.remarks }))
        .collect();
    context.output.value(&json!({ "steps": as_json }), || {
        let written: u64 = steps.iter().map(|step| step.written).sum();
        let mut text = match written {
            0 => "The vault is up to date; nothing was written.".to_owned(),
            count => format!("The vault is up to date; records written: {count}."),
        };
        for step in &steps {
            text.push_str(&format!("\n  {}: {}", step.name, step.written));
            for remark in &step.remarks {
                text.push_str("\n    ");
                text.push_str(&crate::output::table::printable(remark));
            }
        }
        text
    })?;
    Ok(Outcome::Done)
}

async fn export_key(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let request = ExportRepositoryKeyRequest { instance };
    let answer = client.instances().export_repository_key(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| {
        format!("RESTIC_REPOSITORY={}\nRESTIC_PASSWORD={}", response.restic_repository, response.restic_password)
    })?;
    context.output.hint("Only read with it (restic --no-lock): never run restic prune or forget on this repository.");
    Ok(Outcome::Done)
}
