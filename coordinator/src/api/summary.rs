//! `SummaryService`.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::summary_service_server::SummaryService;
use vaultferry_proto::control::v1::{GetSummaryRequest, GetSummaryResponse, InstanceSummary};
use vaultferry_proto::{Problem, Reason};

use super::{Api, convert};
use crate::catalog::InstanceFigures;
use crate::policy::{self, Document};
use crate::scheduler;

/// Instances on one page.
const MAX_PAGE: u32 = 1000;
/// Jobs are counted for so long (V28).
const JOBS_SINCE: SignedDuration = SignedDuration::from_hours(24);
/// Growth is told for so long.
const GROWTH_SINCE: SignedDuration = SignedDuration::from_hours(30 * 24);

impl Api {
    async fn summary(&self, request: GetSummaryRequest) -> Result<GetSummaryResponse, Problem> {
        let now = vaultferry_vault::clock::now();
        let summary = convert::summary(&self.catalog.figures(now - JOBS_SINCE).await?);
        let (instances, next_page_token) = match request.instances {
            true => self.instance_summaries(&request, now).await?,
            false => Default::default(),
        };
        let warnings = self.warnings().await.into_iter().map(Into::into).collect();
        Ok(GetSummaryResponse { summary: Some(summary), instances, next_page_token, warnings })
    }

    /// A page, and the token of the next one.
    async fn instance_summaries(
        &self,
        request: &GetSummaryRequest,
        now: Timestamp,
    ) -> Result<(Vec<InstanceSummary>, String), Problem> {
        let size = if request.page_size == 0 { MAX_PAGE } else { request.page_size.min(MAX_PAGE) };
        let offset = match request.page_token.as_str() {
            "" => 0,
            token => token.parse::<u32>().map_err(|_| {
                Problem::new(Reason::InvalidRequest, format!("{token:?} is not a page_token of this list"))
            })?,
        };
        // One more than asked for says whether there is another page.
        let mut found = self.catalog.instance_figures(now - GROWTH_SINCE, offset, size + 1).await?;
        let has_more = found.len() > size as usize;
        found.truncate(size as usize);
        let next = self.next_backups(&found).await?;
        let instances =
            found.into_iter().zip(next).map(|(figures, next)| convert::instance_summary(figures, next, now));
        Ok((instances.collect(), if has_more { (offset + size).to_string() } else { String::new() }))
    }

    /// Of each of them: the next slot's backup, or the new attempt at one that failed.
    async fn next_backups(&self, found: &[InstanceFigures]) -> Result<Vec<Option<Timestamp>>, Problem> {
        let policies = self.catalog.policies().await?;
        let documents: HashMap<String, Document> = policies
            .into_iter()
            .filter(|policy| found.iter().any(|figures| figures.instance.policy == policy.name))
            .filter_map(|policy| Some((policy.name, policy::parse(&policy.document).ok()?)))
            .collect();
        let retries = self.catalog.retries().await?;
        let attempts: HashMap<&str, Timestamp> =
            retries.iter().map(|retry| (retry.instance_id.as_str(), retry.due)).collect();
        let next = |figures: &InstanceFigures| {
            let instance = &figures.instance;
            if !instance.protection.is_active() {
                return None;
            }
            let slot =
                documents.get(&instance.policy).and_then(|document| scheduler::next_backup(document, &instance.id));
            slot.into_iter().chain(attempts.get(instance.id.as_str()).copied()).min()
        };
        Ok(found.iter().map(next).collect())
    }
}

#[tonic::async_trait]
impl SummaryService for Api {
    async fn get_summary(&self, request: Request<GetSummaryRequest>) -> Result<Response<GetSummaryResponse>, Status> {
        Ok(Response::new(self.summary(request.into_inner()).await?))
    }
}
