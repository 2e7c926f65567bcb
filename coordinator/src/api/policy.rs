//! `PolicyService`: policies are made, shown, changed, deleted, simulated and translated.
//!
//! Invariants:
//! - Every version is in the vault before it is in the catalog; what a kill left between them is taken over ([`crate::adopt`]).
//! - Changes of policies and links to them are one at a time (`Api::policies`), so that a policy with an instance is never deleted.
//! - A change that has begun goes on when its caller hangs up.
//! - A deletion is a version, and so is what makes the policy anew: name and version always name one document.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::policy_service_server::PolicyService;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin;

use super::{Api, convert};
use crate::catalog::{Error, Policy};
use crate::policy::azure;
use crate::{adopt, policy, recorded};

mod change;
mod simulate;

impl Api {
    /// The policy, and what its translation from Azure could not express.
    pub(super) async fn create(&self, request: wire::CreatePolicyRequest) -> Result<(Policy, Vec<String>), Problem> {
        let (text, notes) = document(request)?;
        let document = policy::parse(&text)?;
        let taken = || {
            let message = format!("there is a policy {} with other rules already", document.name);
            Problem::new(Reason::NameTaken, message)
                .with_fix("Choose another name, or change the policy that is there: vaultferry policy update -f FILE.")
        };
        let _one_at_a_time = self.policies.lock().await;
        if let Some(existing) = self.newest_policy(&document.name).await? {
            return if existing.document == text { Ok((existing, notes)) } else { Err(taken()) };
        }
        self.check_owner().await?;
        self.adopt_policy(&document.name).await?;
        let versions = self.catalog.policy_versions(&document.name).await?;
        let policy = match versions.last() {
            Some(existing) if !existing.deleted => {
                return if existing.document == text { Ok((existing.clone(), notes)) } else { Err(taken()) };
            }
            Some(deleted) => next_version(deleted, text),
            None => Policy {
                id: admin::new_id()?,
                name: document.name.clone(),
                version: 1,
                create_time: vaultferry_vault::clock::now(),
                document: text,
                deleted: false,
            },
        };
        // In the vault first: a rebuilt catalog must have every policy that this one ever had.
        self.keep_policy(&policy).await?;
        match self.catalog.insert_policy(policy.clone()).await {
            Ok(()) => Ok((policy, notes)),
            Err(Error::Taken(_)) => Err(taken()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a policy's version into the vault, which must hold every version that a point refers to.
    pub(super) async fn keep_policy(&self, policy: &Policy) -> Result<(), Problem> {
        let record = recorded::policy_record(policy);
        let root = self.shared.vault.open_root()?;
        if admin::put_policy(&root, &record, &self.stopping).await? {
            return Ok(());
        }
        // Points would refer to a document that is not the one that they were made under.
        let message = format!("the vault holds another policy {} already, of an earlier agent", policy.name);
        Err(Problem::new(Reason::NameTaken, message).with_fix("Create the policy under another name, and link that."))
    }

    /// The newest version of the policy of that name or id.
    pub(super) async fn find_policy(&self, name: &str) -> Result<Policy, Problem> {
        let missing = || Problem::new(Reason::PolicyNotFound, format!("no policy is called {name:?}"));
        self.catalog.policy(name).await?.ok_or_else(missing)
    }

    /// The newest version of the policy of exactly that name; `None` when there is none, or it is deleted.
    async fn newest_policy(&self, name: &str) -> Result<Option<Policy>, Problem> {
        Ok(self.catalog.policy_versions(name).await?.pop().filter(|newest| !newest.deleted))
    }

    /// Before a new version is numbered: versions that the vault has and the catalog has not.
    async fn adopt_policy(&self, name: &str) -> Result<(), Problem> {
        let root = self.shared.vault.open_root()?;
        adopt::policies(&*self.catalog, &root, Some(name), &self.stopping).await
    }
}

/// The request's document, or what its policy of Azure becomes, with notes.
fn document(request: wire::CreatePolicyRequest) -> Result<(String, Vec<String>), Problem> {
    let wire::CreatePolicyRequest { document, azure_policy, name } = request;
    match (document.is_empty(), azure_policy.is_empty()) {
        (false, true) if name.is_empty() => Ok((document, Vec::new())),
        (true, false) => {
            let imported = azure::import(&azure_policy, Some(name.as_str()).filter(|name| !name.is_empty()))?;
            Ok((imported.text, imported.notes))
        }
        // An empty document has its own faults, which are told.
        (true, true) if name.is_empty() => Ok((document, Vec::new())),
        (_, true) => {
            Err(Problem::new(Reason::InvalidRequest, "a document has its own name; `name` is for azure_policy"))
        }
        (false, false) => Err(Problem::new(Reason::InvalidRequest, "give document or azure_policy, not both")),
    }
}

/// Runs a change to its end, also when the caller hangs up: a future that is dropped between vault and catalog would leave the catalog behind
/// until the next start. The store's deadline ends it at the latest.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let ended = tokio::spawn(change).await;
    ended.map_err(|error| Problem::new(Reason::Internal, format!("the change broke: {error}")))?
}

/// The version after this one, from now on.
fn next_version(before: &Policy, document: String) -> Policy {
    Policy {
        id: before.id.clone(),
        name: before.name.clone(),
        version: before.version + 1,
        create_time: vaultferry_vault::clock::now(),
        document,
        deleted: false,
    }
}

#[tonic::async_trait]
impl PolicyService for Api {
    async fn create_policy(
        &self,
        request: Request<wire::CreatePolicyRequest>,
    ) -> Result<Response<wire::CreatePolicyResponse>, Status> {
        let api = self.clone();
        let (policy, notes) = to_its_end(async move {
            let made = api.create(request.into_inner()).await?;
            api.changed.notify_one();
            Ok(made)
        })
        .await?;
        Ok(Response::new(wire::CreatePolicyResponse { policy: Some(convert::policy(policy)?), notes }))
    }

    async fn get_policy(
        &self,
        request: Request<wire::GetPolicyRequest>,
    ) -> Result<Response<wire::GetPolicyResponse>, Status> {
        let policy = self.find_policy(&request.into_inner().policy).await?;
        Ok(Response::new(wire::GetPolicyResponse { policy: Some(convert::policy(policy)?) }))
    }

    async fn list_policies(
        &self,
        _: Request<wire::ListPoliciesRequest>,
    ) -> Result<Response<wire::ListPoliciesResponse>, Status> {
        let policies = self.catalog.policies().await.map_err(Problem::from)?;
        let policies = policies.into_iter().map(convert::policy).collect::<Result<_, _>>()?;
        Ok(Response::new(wire::ListPoliciesResponse { policies }))
    }

    async fn update_policy(
        &self,
        request: Request<wire::UpdatePolicyRequest>,
    ) -> Result<Response<wire::UpdatePolicyResponse>, Status> {
        let api = self.clone();
        let response = to_its_end(async move {
            let response = api.change_policy(request.into_inner()).await?;
            if !response.preview {
                api.changed.notify_one();
            }
            Ok(response)
        })
        .await?;
        Ok(Response::new(response))
    }

    async fn delete_policy(
        &self,
        request: Request<wire::DeletePolicyRequest>,
    ) -> Result<Response<wire::DeletePolicyResponse>, Status> {
        let api = self.clone();
        let policy = to_its_end(async move { api.remove_policy(&request.into_inner().policy).await }).await?;
        Ok(Response::new(wire::DeletePolicyResponse { policy: Some(convert::policy(policy)?) }))
    }

    async fn simulate_policy(
        &self,
        request: Request<wire::SimulatePolicyRequest>,
    ) -> Result<Response<wire::SimulatePolicyResponse>, Status> {
        let timeline = self.simulated(request.into_inner()).await?;
        Ok(Response::new(wire::SimulatePolicyResponse { simulation: Some(convert::simulation(timeline)) }))
    }

    async fn export_policy(
        &self,
        request: Request<wire::ExportPolicyRequest>,
    ) -> Result<Response<wire::ExportPolicyResponse>, Status> {
        let policy = self.find_policy(&request.into_inner().policy).await?;
        let exported = azure::export(&policy::parse(&policy.document)?, vaultferry_vault::clock::now())?;
        let (azure_policy, notes) = (exported.json.to_string(), exported.notes);
        Ok(Response::new(wire::ExportPolicyResponse { azure_policy, notes }))
    }
}
