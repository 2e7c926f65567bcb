//! `vaultferry vault`

use secrecy::ExposeSecret as _;
use serde_json::json;
use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::{ExportRepositoryKeyRequest, GetVaultRequest};

use super::{Context, Outcome};
use crate::args::{Key, Redundancy, Vault};
use crate::config::Purpose;
use crate::output::table::fields;
use crate::output::text;

pub(super) async fn run(context: &Context, command: Vault) -> Result<Outcome, Problem> {
    match command {
        Vault::Init { redundancy } => init(context, redundancy).await,
        Vault::Show => show(context).await,
        Vault::Key(Key::Export { instance }) => export_key(context, instance).await,
    }
}

/// Makes the vault without an agent. The recovery key is printed this one time only.
async fn init(context: &Context, redundancy: Redundancy) -> Result<Outcome, Problem> {
    let settings = context.settings(Purpose::Agent)?;
    let made = vaultferry_coordinator::init_vault(&settings.to_coordinator()?, redundancy.as_str()).await?;
    let recovery_key = made.recovery_key.as_ref().map(|key| key.expose_secret().to_owned());
    let key_path = made.key_path.display().to_string();
    let name = made.location.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut as_json = json!({
        "vault": { "id": made.vault_id, "name": name, "location": made.location },
        "key_path": key_path,
        "existed": made.existed,
    });
    if let Some(key) = &recovery_key {
        as_json["recovery_key"] = json!(key);
    }
    context.output.value(&as_json, || {
        let head = if made.existed { "The vault exists; it is left as it is." } else { "The vault is made." };
        let lines =
            fields(&[("id", made.vault_id.clone()), ("location", made.location.clone()), ("key file", key_path)]);
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
