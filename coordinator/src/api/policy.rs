//! `PolicyService`.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::policy_service_server::PolicyService;
use vaultferry_proto::control::v1::{
    CreatePolicyRequest, CreatePolicyResponse, GetPolicyRequest, GetPolicyResponse, ListPoliciesRequest,
    ListPoliciesResponse,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin;

use super::{Api, convert};
use crate::catalog::{Error, Policy};
use crate::{policy, recorded};

impl Api {
    async fn create(&self, text: String) -> Result<Policy, Problem> {
        let document = policy::parse(&text)?;
        let taken =
            || Problem::new(Reason::NameTaken, format!("there is a policy {} with other rules already", document.name));
        if let Some(existing) = self.catalog.policy(&document.name).await? {
            return if existing.document == text { Ok(existing) } else { Err(taken()) };
        }
        let policy = Policy {
            id: admin::new_id()?,
            name: document.name.clone(),
            version: 1,
            create_time: jiff::Timestamp::now(),
            document: text,
        };
        // In the vault first: a rebuilt catalog must have every policy that this one ever had.
        self.check_owner().await?;
        self.keep_policy(&policy).await?;
        match self.catalog.insert_policy(policy.clone()).await {
            Ok(()) => Ok(policy),
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
}

#[tonic::async_trait]
impl PolicyService for Api {
    async fn create_policy(
        &self,
        request: Request<CreatePolicyRequest>,
    ) -> Result<Response<CreatePolicyResponse>, Status> {
        let policy = self.create(request.into_inner().document).await?;
        self.changed.notify_one();
        Ok(Response::new(CreatePolicyResponse { policy: Some(convert::policy(policy)?) }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let policy = self.find_policy(&request.into_inner().policy).await?;
        Ok(Response::new(GetPolicyResponse { policy: Some(convert::policy(policy)?) }))
    }

    async fn list_policies(&self, _: Request<ListPoliciesRequest>) -> Result<Response<ListPoliciesResponse>, Status> {
        let policies = self.catalog.policies().await.map_err(Problem::from)?;
        let policies = policies.into_iter().map(convert::policy).collect::<Result<_, _>>()?;
        Ok(Response::new(ListPoliciesResponse { policies }))
    }
}

impl Api {
    /// The newest version of the policy of that name or id.
    pub(super) async fn find_policy(&self, name: &str) -> Result<Policy, Problem> {
        let missing = || Problem::new(Reason::PolicyNotFound, format!("no policy is called {name:?}"));
        self.catalog.policy(name).await?.ok_or_else(missing)
    }
}
