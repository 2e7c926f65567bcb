//! `RecoveryPointService`.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::recovery_point_service_server::RecoveryPointService;
use vaultferry_proto::control::v1::{
    GetRecoveryPointRequest, GetRecoveryPointResponse, HoldRecoveryPointRequest, HoldRecoveryPointResponse,
    ListRecoveryPointsRequest, ListRecoveryPointsResponse, RecoveryPoint, ReleaseRecoveryPointRequest,
    ReleaseRecoveryPointResponse,
};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::{Id, points};

use super::{Api, convert};
use crate::catalog::{Instance, Point};
use crate::job::{note_standing, set_legal_hold};
use crate::{expiry, lifecycle, policy};

/// Points on one page.
const MAX_PAGE: u32 = 1000;
/// Longest note of a hold, in characters.
const MAX_NOTE: usize = 500;

impl Api {
    async fn page(&self, request: ListRecoveryPointsRequest) -> Result<ListRecoveryPointsResponse, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let size = if request.page_size == 0 { MAX_PAGE } else { request.page_size.min(MAX_PAGE) };
        let before = if request.page_token.is_empty() { None } else { Some(token(&request.page_token)?) };
        let found = match request.deleted {
            false => self.catalog.points(&instance.id, before, size).await?,
            true => self.catalog.deleted_points(&instance.id, before, size).await?,
        };
        let full = found.len() == size as usize;
        let next = found.last().filter(|_| full).map(|last| format!("{}-{}", last.time.as_microsecond(), last.id));
        let points = self.to_wire(&instance, found).await?;
        Ok(ListRecoveryPointsResponse { points, next_page_token: next.unwrap_or_default() })
    }

    /// With the times that the linked policy's rule gives now (D5); none while protection is stopped.
    async fn to_wire(&self, instance: &Instance, points: Vec<Point>) -> Result<Vec<RecoveryPoint>, Problem> {
        let policy = self.catalog.policy(&instance.policy).await?;
        let document = policy.map(|policy| policy::parsed(&policy.document)).transpose()?;
        let convert = |point: Point| {
            let document = document.as_ref().filter(|_| !lifecycle::keeps_for_ever(instance));
            let life = document.map(|document| policy::life(document, &expiry::fact(&point)));
            convert::point(point, &instance.name, life)
        };
        Ok(points.into_iter().map(convert).collect())
    }
}

impl Api {
    /// The files first, then the vault's record, then the catalog: what is recorded as held is held. A kill between is made good by the next
    /// call; the catalog's copy also by the next maintenance job.
    async fn hold(&self, request: HoldRecoveryPointRequest) -> Result<Option<RecoveryPoint>, Problem> {
        let note = request.note.trim();
        if note.is_empty() || note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
            let message = format!("a hold needs a note of 1 to {MAX_NOTE} characters on one line");
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Say why it is held: --note TEXT."));
        }
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_named(&instance, &request.point).await?;
        let store = self.shared.vault.open_instance(&instance.id)?;
        let _holding = self.holding.lock().await;
        set_legal_hold(&self.shared, &instance.id, &point.id, true, &self.stopping).await?;
        points::hold(&*store, &point.id, note, &self.stopping).await?;
        self.told_by_the_vault(&instance, &point).await
    }

    /// The vault's record first, then the files: a file that is let go is of no point that is recorded as held.
    async fn release(&self, request: ReleaseRecoveryPointRequest) -> Result<Option<RecoveryPoint>, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let point = self.find_named(&instance, &request.point).await?;
        let store = self.shared.vault.open_instance(&instance.id)?;
        let _holding = self.holding.lock().await;
        points::release(&*store, &point.id, &self.stopping).await?;
        let told = self.told_by_the_vault(&instance, &point).await?;
        set_legal_hold(&self.shared, &instance.id, &point.id, false, &self.stopping).await?;
        Ok(told)
    }

    /// A listed point by its name or as the latest; a deleted one by its id.
    async fn find_named(&self, instance: &Instance, point: &str) -> Result<Point, Problem> {
        match point {
            "" | "latest" => self.find_point(instance, point).await,
            _ => self.find_any_point(instance, point).await,
        }
    }

    async fn told_by_the_vault(&self, instance: &Instance, point: &Point) -> Result<Option<RecoveryPoint>, Problem> {
        note_standing(&self.shared, &instance.id, &point.id, &self.stopping).await?;
        let point = self.find_any_point(instance, &point.id.to_string()).await?;
        Ok(self.to_wire(instance, vec![point]).await?.pop())
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
        let point = self.find_named(&instance, &request.point).await?;
        let point = self.to_wire(&instance, vec![point]).await?.pop();
        Ok(Response::new(GetRecoveryPointResponse { point }))
    }

    async fn hold_recovery_point(
        &self,
        request: Request<HoldRecoveryPointRequest>,
    ) -> Result<Response<HoldRecoveryPointResponse>, Status> {
        let point = self.hold(request.into_inner()).await?;
        Ok(Response::new(HoldRecoveryPointResponse { point }))
    }

    async fn release_recovery_point(
        &self,
        request: Request<ReleaseRecoveryPointRequest>,
    ) -> Result<Response<ReleaseRecoveryPointResponse>, Status> {
        let point = self.release(request.into_inner()).await?;
        Ok(Response::new(ReleaseRecoveryPointResponse { point }))
    }
}
