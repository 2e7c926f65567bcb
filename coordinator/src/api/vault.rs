//! `VaultService`.

use tonic::{Request, Response, Status};
use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::vault_service_server::VaultService;
use vaultferry_proto::control::v1::{
    self as wire, GetVaultRequest, GetVaultResponse, GetVaultSettingsRequest, GetVaultSettingsResponse,
    UpdateVaultSettingsRequest, UpdateVaultSettingsResponse,
};
use vaultferry_vault::admin;
use vaultferry_vault::settings::Settings;

use super::{Api, convert};
use crate::space;

impl Api {
    /// The record, and what may have changed since it was made.
    async fn vault_now(&self) -> Result<wire::Vault, Problem> {
        let shared = &self.shared;
        let root = shared.vault.open_root()?;
        let owner = admin::owner::current(&root, &self.stopping).await?.map(|(_, owner)| wire::VaultOwner {
            this_agent: owner.agent_id == shared.agent_id,
            agent_id: owner.agent_id,
            hostname: owner.hostname,
            create_time: Some(convert::time(owner.create_time)),
        });
        let recovery_keys = admin::recovery_keys(&root, &self.stopping).await?;
        let keys = wire::VaultKeys {
            id: shared.vault_key.id(),
            place: shared.vault_key_place.to_string(),
            recovery_key_ids: recovery_keys.into_iter().map(|key| key.id).collect(),
        };
        // A credential that may not ask, and a service that does not answer, are no reason not to show the rest.
        let storage_redundancy = match shared.vault.redundancy().await {
            Ok(redundancy) => redundancy.map(|redundancy| redundancy.as_str().to_owned()).unwrap_or_default(),
            Err(error) => {
                tracing::debug!("the storage's redundancy is not known: {error}");
                String::new()
            }
        };
        let space = space::look(&shared.vault.location).await;
        Ok(wire::Vault {
            warnings: self.warnings().await.into_iter().map(Into::into).collect(),
            free_bytes: space.map_or(0, |space| space.free),
            total_bytes: space.map_or(0, |space| space.total),
            owner,
            keys: Some(keys),
            storage_redundancy,
            ..convert::vault(&self.vault, &self.settings().await?, &shared.vault.location)
        })
    }

    /// What somebody should look at before it becomes a failure.
    pub(super) async fn warnings(&self) -> Vec<Problem> {
        space::warning(&self.shared).await.into_iter().collect()
    }

    /// The vault's settings as they are now.
    pub(super) async fn settings(&self) -> Result<Settings, Problem> {
        Ok(self.numbered_settings().await?.1)
    }
}

#[tonic::async_trait]
impl VaultService for Api {
    async fn get_vault(&self, _: Request<GetVaultRequest>) -> Result<Response<GetVaultResponse>, Status> {
        let vault = self.vault_now().await?;
        Ok(Response::new(GetVaultResponse { vault: Some(vault) }))
    }

    async fn get_vault_settings(
        &self,
        _: Request<GetVaultSettingsRequest>,
    ) -> Result<Response<GetVaultSettingsResponse>, Status> {
        let (number, settings) = self.numbered_settings().await?;
        Ok(Response::new(GetVaultSettingsResponse { settings: Some(convert::settings(number, &settings)) }))
    }

    async fn update_vault_settings(
        &self,
        request: Request<UpdateVaultSettingsRequest>,
    ) -> Result<Response<UpdateVaultSettingsResponse>, Status> {
        let settings = self.update_settings(&request.into_inner()).await?;
        Ok(Response::new(UpdateVaultSettingsResponse { settings: Some(settings) }))
    }
}
