//! `RecoveryPointService`.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::recovery_point_service_server::RecoveryPointService;
use vaultferry_proto::control::v1::{
    GetRecoveryPointRequest, GetRecoveryPointResponse, ListRecoveryPointsRequest, ListRecoveryPointsResponse,
    RecoveryPoint,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;

use super::{Api, convert};
use crate::catalog::{Instance, Point};
use crate::policy;

/// Points on one page.
const MAX_PAGE: u32 = 1000;

impl Api {
    async fn page(&self, request: ListRecoveryPointsRequest) -> Result<ListRecoveryPointsResponse, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let size = if request.page_size == 0 { MAX_PAGE } else { request.page_size.min(MAX_PAGE) };
        let before = if request.page_token.is_empty() { None } else { Some(token(&request.page_token)?) };
        let found = self.catalog.points(&instance.id, before, size).await?;
        let full = found.len() == size as usize;
        let next = found.last().filter(|_| full).map(|last| format!("{}-{}", last.time.as_microsecond(), last.id));
        let points = self.to_wire(&instance, found).await?;
        Ok(ListRecoveryPointsResponse { points, next_page_token: next.unwrap_or_default() })
    }

    /// With the expiry that the linked policy's rule gives now (D5).
    async fn to_wire(&self, instance: &Instance, points: Vec<Point>) -> Result<Vec<RecoveryPoint>, Problem> {
        let policy = self.catalog.policy(&instance.policy).await?;
        let document = policy.map(|policy| policy::parse(&policy.document)).transpose()?;
        let convert = |point: Point| {
            let expires = document.as_ref().and_then(|document| document.expiry(&point.rule, point.time));
            convert::point(point, &instance.name, expires)
        };
        Ok(points.into_iter().map(convert).collect())
    }
}

fn token(text: &str) -> Result<(jiff::Timestamp, Id), Problem> {
    let parse = || {
        let (time, id) = text.split_once('-')?;
        Some((jiff::Timestamp::from_microsecond(time.parse().ok()?).ok()?, id.parse().ok()?))
    };
    parse().ok_or_else(|| Problem::new(Reason::InvalidRequest, "page_token is not one that a page gave"))
}

#[tonic::async_trait]
impl RecoveryPointService for Api {
    async fn list_recovery_points(
        &self,
        request: Request<ListRecoveryPointsRequest>,
    ) -> Result<Response<ListRecoveryPointsResponse>, Status> {
        Ok(Response::new(self.page(request.into_inner()).await?))
    }

    async fn get_recovery_point(
        &self,
        request: Request<GetRecoveryPointRequest>,
    ) -> Result<Response<GetRecoveryPointResponse>, Status> {
        let request = request.into_inner();
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_point(&instance, &request.point).await?;
        let point = self.to_wire(&instance, vec![point]).await?.pop();
        Ok(Response::new(GetRecoveryPointResponse { point }))
    }
}
