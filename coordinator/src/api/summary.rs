//! `SummaryService`.

use jiff::ToSpan as _;
use tonic::{Request, Response, Status};
use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::summary_service_server::SummaryService;
use vaultferry_proto::control::v1::{GetSummaryRequest, GetSummaryResponse};

use super::{Api, convert};

#[tonic::async_trait]
impl SummaryService for Api {
    async fn get_summary(&self, _: Request<GetSummaryRequest>) -> Result<Response<GetSummaryResponse>, Status> {
        // Jobs of the last 24 hours (V28).
        let figures = self.catalog.figures(vaultferry_vault::clock::now() - 24.hours()).await.map_err(Problem::from)?;
        Ok(Response::new(GetSummaryResponse { summary: Some(convert::summary(&figures)) }))
    }
}
