//! `vaultferry point`

use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::{
    GetRecoveryPointRequest, ListRecoveryPointsRequest, ListRecoveryPointsResponse, RecoveryPoint,
};

use super::{Context, Outcome};
use crate::args::Point;
use crate::output::text;

pub(super) async fn run(context: &Context, command: Point) -> Result<Outcome, Problem> {
    match command {
        Point::List { instance } => list(context, instance).await,
        Point::Show { instance, point } => show(context, instance, point).await,
    }
}

/// All pages, as one response.
async fn list(context: &Context, instance: String) -> Result<Outcome, Problem> {
    let client = context.client().await?;
    let mut points: Vec<RecoveryPoint> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRecoveryPointsRequest { instance: instance.clone(), page_size: 0, page_token };
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
