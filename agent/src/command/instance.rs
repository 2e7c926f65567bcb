//! `vaultferry instance`

use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::{
    CreateBackupInstancesRequest, GetBackupInstanceRequest, ListBackupInstancesRequest,
};

use super::{Context, Outcome, login};
use crate::args::{Instance, InstanceCreate};
use crate::output::text;

pub(super) async fn run(context: &Context, command: Instance) -> Result<Outcome, Problem> {
    match command {
        Instance::Create(create) => self::create(context, create).await,
        Instance::List => list(context).await,
        Instance::Show { instance } => show(context, instance).await,
    }
}

async fn create(context: &Context, create: InstanceCreate) -> Result<Outcome, Problem> {
    let request = CreateBackupInstancesRequest {
        credential: login::reference(&create.login)?,
        source_uris: create.sources,
        policy: create.policy,
        name: create.name.unwrap_or_default(),
        region: create.region.unwrap_or_default(),
    };
    let client = context.client().await?;
    let answer = client.instances().create_backup_instances(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::instances(&response.instances))?;
    Ok(Outcome::Done)
}

async fn list(context: &Context) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.instances().list_backup_instances(ListBackupInstancesRequest {}).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::instances(&response.instances))?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.instances().get_backup_instance(GetBackupInstanceRequest { instance }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}
