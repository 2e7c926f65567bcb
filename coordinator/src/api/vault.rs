//! `VaultService`.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::vault_service_server::VaultService;
use vaultferry_proto::control::v1::{GetVaultRequest, GetVaultResponse};

use super::{Api, convert};

#[tonic::async_trait]
impl VaultService for Api {
    async fn get_vault(&self, _: Request<GetVaultRequest>) -> Result<Response<GetVaultResponse>, Status> {
        let vault = convert::vault(&self.vault, &self.shared.vault.location);
        Ok(Response::new(GetVaultResponse { vault: Some(vault) }))
    }
}
