//! `vaultferry instance`

use vaultferry_proto::control::v1::create_backup_instances_request::Unready;
use vaultferry_proto::control::v1::{
    ChangePolicyRequest, ChangePolicyResponse, CreateBackupInstancesRequest, GetBackupInstanceRequest,
    ListBackupInstancesRequest, ListBackupInstancesResponse, MoveBackupInstanceRequest, PauseProtectionRequest,
    RenameBackupInstanceRequest, ResumeProtectionRequest, ResumeProtectionResponse, StopProtectionRequest,
    UndeleteBackupInstanceRequest, ValidateBackupInstanceRequest,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, confirm, job, list, login, source};
use crate::args::{
    Instance, InstanceChangePolicy, InstanceCreate, InstanceMove, InstanceResume, InstanceStop, InstanceUndelete,
};
use crate::client::Client;
use crate::output::{policy as policy_text, readiness, source as source_text, text};

pub(super) async fn run(context: &Context, command: Instance) -> Result<Outcome, Problem> {
    match command {
        Instance::Create(command) => self::create(context, command).await,
        Instance::List { deleted } => list_all(context, deleted).await,
        Instance::Show { instance } => show(context, instance).await,
        Instance::Validate { instance } => validate(context, instance).await,
        Instance::Pause { instance } => pause(context, instance).await,
        Instance::Resume(command) => resume(context, command).await,
        Instance::Stop(command) => stop(context, command).await,
        Instance::Undelete(command) => undelete(context, command).await,
        Instance::Rename { instance, name } => rename(context, instance, name).await,
        Instance::Move(command) => move_elsewhere(context, command).await,
        Instance::ChangePolicy(command) => change_policy(context, command).await,
    }
}

/// One source that is not ready is the call's own failure; of several each is told.
async fn create(context: &Context, create: InstanceCreate) -> Result<Outcome, Problem> {
    let source_uris =
        login::with_certificates(&create.login, list::with_file(create.sources, create.file.as_deref())?)?;
    let unready = match (create.only_ready, source_uris.len()) {
        (true, _) => Unready::LeaveOut,
        (false, 1) => Unready::Unspecified,
        (false, _) => Unready::Report,
    };
    let request = CreateBackupInstancesRequest {
        credential: login::reference(&create.login)?,
        source_uris,
        policy: create.policy.unwrap_or_default(),
        name: create.name.unwrap_or_default(),
        region: create.region.unwrap_or_default(),
        unready: unready.into(),
        check_only: create.check,
    };
    let client = context.client().await?;
    let answer = client.instances().create_backup_instances(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| {
        let all_made = response.instances.len() == response.results.len() && !response.results.is_empty();
        match response.instances.as_slice() {
            // An early agent tells no results.
            made if all_made || response.results.is_empty() => text::instances(made),
            [] => source_text::readiness(response),
            made => format!("{}\n\n{}", text::instances(made), source_text::readiness(response)),
        }
    })?;
    if answer.policy_created {
        context.output.hint(&source_text::policy_created(&answer.policy));
    }
    let all_or_none = !create.check && !create.only_ready;
    source::unready(&answer, all_or_none).map_or(Ok(Outcome::Done), Err)
}

/// All pages, as one response.
async fn list_all(context: &Context, deleted: bool) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let mut all = ListBackupInstancesResponse::default();
    let mut page_token = String::new();
    loop {
        let request = ListBackupInstancesRequest { deleted, page_size: 0, page_token };
        let answer = client.instances().list_backup_instances(request).await;
        let page = answer.map_err(|status| client.problem(&status))?.into_inner();
        all.instances.extend(page.instances);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    context.output.message(&all, |response| match deleted {
        true => text::deleted_instances(&response.instances),
        false => text::instances(&response.instances),
    })?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.instances().get_backup_instance(GetBackupInstanceRequest { instance }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

/// Shows all findings; a blocking one is a failure, with its reason.
async fn validate(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.lifecycles().validate_backup_instance(ValidateBackupInstanceRequest { instance }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, readiness::validated)?;
    readiness::problem(&answer).map_or(Ok(Outcome::Done), Err)
}

async fn pause(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let request = PauseProtectionRequest { instance };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().pause_protection(request).await }
    };
    let answer = context.client().await?.idempotent(call).await?;
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

async fn resume(context: &Context, command: InstanceResume) -> Result<Outcome, Problem> {
    let request = ResumeProtectionRequest {
        instance: command.instance,
        policy: command.policy.unwrap_or_default(),
        confirmed: command.yes,
    };
    let mut client = context.client().await?;
    let answer = match send_resume(&mut client, &request).await {
        Err(problem) if problem.reason == Reason::RetentionShortened && confirm::can_ask() => {
            context.output.aside(&problem.message);
            if !confirm::ask("Protect it all the same?")? {
                return Err(Problem::new(Reason::Cancelled, "nothing was changed"));
            }
            send_resume(&mut client, &ResumeProtectionRequest { confirmed: true, ..request }).await
        }
        answer => answer,
    }?;
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

async fn send_resume(
    client: &mut Client,
    request: &ResumeProtectionRequest,
) -> Result<ResumeProtectionResponse, Problem> {
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().resume_protection(request).await }
    };
    client.idempotent(call).await
}

async fn stop(context: &Context, command: InstanceStop) -> Result<Outcome, Problem> {
    let mut confirmed = command.yes;
    if command.delete_data && !confirmed && confirm::can_ask() {
        if !confirm::ask(&format!("Delete {} with all of its points?", command.instance))? {
            return Err(Problem::new(Reason::Cancelled, "nothing was deleted"));
        }
        confirmed = true;
    }
    let request = StopProtectionRequest { instance: command.instance, delete_data: command.delete_data, confirmed };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().stop_protection(request).await }
    };
    let answer = client.idempotent(call).await?;
    if answer.job.is_some() {
        return job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await;
    }
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

async fn undelete(context: &Context, command: InstanceUndelete) -> Result<Outcome, Problem> {
    let request = UndeleteBackupInstanceRequest { instance: command.instance };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().undelete_backup_instance(request).await }
    };
    let answer = client.idempotent(call).await?;
    if answer.job.is_some() {
        return job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await;
    }
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

/// Asked once: after an answer that was lost, the old name may be nobody's any more.
async fn rename(context: &Context, instance: String, name: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.lifecycles().rename_backup_instance(RenameBackupInstanceRequest { instance, name }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

async fn move_elsewhere(context: &Context, command: InstanceMove) -> Result<Outcome, Problem> {
    let request = MoveBackupInstanceRequest {
        instance: command.instance,
        source_uri: login::with_certificate(&command.login, command.source)?,
        credential: login::reference(&command.login)?,
        region: command.region.unwrap_or_default(),
    };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().move_backup_instance(request).await }
    };
    let answer = context.client().await?.idempotent(call).await?;
    context.output.message(&answer, |response| text::instance(response.instance.as_ref()))?;
    Ok(Outcome::Done)
}

async fn change_policy(context: &Context, command: InstanceChangePolicy) -> Result<Outcome, Problem> {
    let request = ChangePolicyRequest {
        instance: command.instance,
        policy: command.policy,
        preview: command.preview,
        confirmed: command.yes,
    };
    let mut client = context.client().await?;
    let answer = match send_change(&mut client, &request).await {
        Err(problem) if problem.reason == Reason::RetentionShortened && confirm::can_ask() => {
            let preview = send_change(&mut client, &ChangePolicyRequest { preview: true, ..request.clone() }).await?;
            context.output.aside(&policy_text::link(&preview));
            if !confirm::ask("Link the policy all the same?")? {
                return Err(Problem::new(Reason::Cancelled, "nothing was changed"));
            }
            send_change(&mut client, &ChangePolicyRequest { confirmed: true, ..request }).await
        }
        answer => answer,
    }?;
    context.output.message(&answer, policy_text::link)?;
    Ok(Outcome::Done)
}

async fn send_change(client: &mut Client, request: &ChangePolicyRequest) -> Result<ChangePolicyResponse, Problem> {
    let call = |client: Client| {
        let request = request.clone();
        async move { client.lifecycles().change_policy(request).await }
    };
    client.idempotent(call).await
}
