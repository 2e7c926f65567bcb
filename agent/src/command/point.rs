//! `vaultferry point`

use vaultferry_proto::control::v1::{
    GetRecoveryPointRequest, HoldRecoveryPointRequest, ListRecoveryPointsRequest, ListRecoveryPointsResponse,
    RecoveryPoint, ReleaseRecoveryPointRequest, StartArchivePointRequest, StartDeletePointRequest,
    StartUndeletePointRequest, StartVerifyPointRequest,
};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, confirm, job};
use crate::args::{Point, PointArchive, PointDelete, PointHold, PointList, PointRelease, PointUndelete, PointVerify};
use crate::client::Client;
use crate::output::text;

pub(super) async fn run(context: &Context, command: Point) -> Result<Outcome, Problem> {
    match command {
        Point::List(command) => list(context, command).await,
        Point::Show { instance, point } => show(context, instance, point).await,
        Point::Verify(command) => verify(context, command).await,
        Point::Hold(command) => hold(context, command).await,
        Point::Release(command) => release(context, command).await,
        Point::Delete(command) => delete(context, command).await,
        Point::Undelete(command) => undelete(context, command).await,
        Point::Archive(command) => archive(context, command).await,
    }
}

/// All pages, as one response.
async fn list(context: &Context, command: PointList) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let mut points: Vec<RecoveryPoint> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRecoveryPointsRequest {
            instance: command.instance.clone(),
            page_size: 0,
            page_token,
            deleted: command.deleted,
        };
        let answer = client.points().list_recovery_points(request).await;
        let page = answer.map_err(|status| client.problem(&status))?.into_inner();
        let is_last = page.next_page_token.is_empty() || page.points.is_empty();
        points.extend(page.points);
        if is_last {
            break;
        }
        page_token = page.next_page_token;
    }
    let response = ListRecoveryPointsResponse { points, next_page_token: String::new() };
    context.output.message(&response, |response| text::points(&response.points))?;
    Ok(Outcome::Done)
}

async fn show(context: &Context, instance: String, point: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let answer = client.points().get_recovery_point(GetRecoveryPointRequest { instance, point }).await;
    let answer = answer.map_err(|status| client.problem(&status))?.into_inner();
    context.output.message(&answer, |response| text::point(response.point.as_ref()))?;
    Ok(Outcome::Done)
}

async fn hold(context: &Context, command: PointHold) -> Result<Outcome, Problem> {
    let request = HoldRecoveryPointRequest { instance: command.instance, point: command.point, note: command.note };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.points().hold_recovery_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    context.output.message(&answer, |response| text::point(response.point.as_ref()))?;
    Ok(Outcome::Done)
}

async fn release(context: &Context, command: PointRelease) -> Result<Outcome, Problem> {
    let request = ReleaseRecoveryPointRequest { instance: command.instance, point: command.point };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.points().release_recovery_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    context.output.message(&answer, |response| text::point(response.point.as_ref()))?;
    Ok(Outcome::Done)
}

async fn verify(context: &Context, command: PointVerify) -> Result<Outcome, Problem> {
    let request =
        StartVerifyPointRequest { instance: command.instance, point: command.point, request_id: job::new_request_id() };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_verify_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

async fn delete(context: &Context, command: PointDelete) -> Result<Outcome, Problem> {
    check_confirmed(&command)?;
    let request =
        StartDeletePointRequest { instance: command.instance, point: command.point, request_id: job::new_request_id() };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_delete_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

/// Asks at a terminal; elsewhere only --yes will do.
fn check_confirmed(command: &PointDelete) -> Result<(), Problem> {
    if command.yes {
        return Ok(());
    }
    if !confirm::can_ask() {
        return Err(Problem::new(Reason::InvalidRequest, "a deletion must be confirmed").with_fix("Say so with --yes."));
    }
    match confirm::ask(&format!("Delete the point {} of {}?", command.point, command.instance))? {
        true => Ok(()),
        false => Err(Problem::new(Reason::Cancelled, "nothing was deleted")),
    }
}

async fn undelete(context: &Context, command: PointUndelete) -> Result<Outcome, Problem> {
    let request = StartUndeletePointRequest {
        instance: command.instance,
        point: command.point,
        request_id: job::new_request_id(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_undelete_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}

async fn archive(context: &Context, command: PointArchive) -> Result<Outcome, Problem> {
    let request = StartArchivePointRequest {
        instance: command.instance,
        point: command.point,
        request_id: job::new_request_id(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.maintenance().start_archive_point(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}
