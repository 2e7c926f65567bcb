//! `vaultferry restore`

use std::path::Path;

use vaultferry_proto::control::v1::{
    PlanRestoreDatabaseRequest, StartRestoreDatabaseRequest, StartRestoreDiskRequest, StartRestoreFilesRequest,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, job, login};
use crate::args::{Restore, RestoreDatabase, RestoreDisk, RestoreFiles};
use crate::client::Client;
use crate::output::readiness;

pub(super) async fn run(context: &Context, command: Restore) -> Result<Outcome, Problem> {
    match command {
        Restore::Database(command) => database(context, *command).await,
        Restore::Files(command) => files(context, command).await,
        Restore::Disk(command) => disk(context, command).await,
    }
}

async fn database(context: &Context, command: RestoreDatabase) -> Result<Outcome, Problem> {
    let request = StartRestoreDatabaseRequest {
        credential: login::reference(&command.login)?,
        instance: command.instance,
        point: command.point,
        target_uri: login::with_certificate(&command.login, command.target)?,
        database: command.database,
        target_region: command.target_region.unwrap_or_default(),
        no_owner: command.no_owner,
        request_id: job::new_request_id(),
        schemas: command.schema,
        tables: command.table,
        globals: command.globals,
        keep_failed: command.keep_failed,
        verify: command.verify.map(|verify| verify.as_str().to_owned()).unwrap_or_default(),
    };
    if command.plan {
        return plan(context, request).await;
    }
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.restores().start_restore_database(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

/// Looks only. What stands in the way of the restore is the command's failure.
async fn plan(context: &Context, restore: StartRestoreDatabaseRequest) -> Result<Outcome, Problem> {
    let request = PlanRestoreDatabaseRequest { restore: Some(restore) };
    let client = context.client().await?;
    let answer = client.restore_plans().plan_restore_database(request).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, readiness::plan)?;
    match readiness::first_problem(&answer.findings) {
        Some(problem) => Err(problem),
        None => Ok(Outcome::Done),
    }
}

async fn files(context: &Context, command: RestoreFiles) -> Result<Outcome, Problem> {
    let request = StartRestoreFilesRequest {
        to: target(&command.to)?,
        credential_env: match &command.credential_env {
            Some(name) => login::variable("--credential-env", name)?,
            None => String::new(),
        },
        instance: command.instance,
        point: command.point,
        target_region: command.target_region.unwrap_or_default(),
        request_id: job::new_request_id(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.restores().start_restore_files(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

async fn disk(context: &Context, command: RestoreDisk) -> Result<Outcome, Problem> {
    let overwrite = command.yes_overwrite.map(|device| login::absolute(Path::new(&device))).transpose()?;
    let request = StartRestoreDiskRequest {
        instance: command.instance,
        point: command.point,
        to: login::absolute(Path::new(&command.to))?,
        disk: command.disk.unwrap_or_default(),
        overwrite: overwrite.unwrap_or_default(),
        request_id: job::new_request_id(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.restores().start_restore_disk(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

/// A container as it is; a folder as an absolute path. Any other URI is refused here, before it is taken for a folder's name.
fn target(to: &str) -> Result<String, Problem> {
    if to.starts_with("azure://") {
        return Ok(to.to_owned());
    }
    if to.contains("://") {
        let message = "--to takes a folder, or azure://account/container";
        return Err(Problem::new(Reason::InvalidRequest, message));
    }
    login::absolute(Path::new(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(target("azure://account/container/p").unwrap(), "azure://account/container/p");
        assert!(Path::new(&target("here").unwrap()).is_absolute());
        assert_eq!(target("s3://bucket").unwrap_err().reason, Reason::InvalidRequest);
    }
}
