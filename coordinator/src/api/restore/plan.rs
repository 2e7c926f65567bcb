//! `RestorePlanService`: what a restore into a database would meet (P63), told by its plugin; nothing is changed.
//!
//! How long it takes is guessed here, from the restores of whole databases that this agent has completed: their median rate. It is a guess:
//! another server, or a database of other tables and indexes, is faster or slower. A restore of chosen tables passes over most of its dump,
//! and tells nothing of a rate.

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::restore_plan_service_server::RestorePlanService;
use vaultferry_proto::control::v1::{PlanRestoreDatabaseRequest, PlanRestoreDatabaseResponse};
use vaultferry_proto::{Problem, Reason};

use crate::api::Api;
use crate::api::discover::PluginClient;
use crate::api::readiness::to_wire_finding;
use crate::catalog::{self, Job, JobFilter, Work};
use crate::job::plan_request;

/// Restores that are looked at: those before tell of other servers and other hardware.
const LAST_RESTORES: usize = 5;
/// Jobs among which restores are looked for, newest first.
const LAST_JOBS: u32 = 1000;
/// Shorter restores measure logins, not rates; in milliseconds.
const MEASURED_MS: u64 = 100;

impl Api {
    async fn plan(&self, request: PlanRestoreDatabaseRequest) -> Result<PlanRestoreDatabaseResponse, Problem> {
        let missing = || Problem::new(Reason::InvalidRequest, "the request lacks restore");
        let (instance, work) = self.database_work(request.restore.ok_or_else(missing)?).await?;
        let Work::RestoreDatabase { point_id, credential, .. } = &work else {
            return Err(Problem::new(Reason::Internal, "a restore into a database is something else"));
        };
        let request = plan_request(&self.shared, &instance, &work, &self.stopping).await?;
        let call = |mut plugin: PluginClient, _: String| async move { plugin.plan_restore(request).await };
        let answer = self.ask_plugin(&instance.source_type, credential, "plan", call).await?;
        let rates = self.rates_of_restores().await?;
        let estimate_restores = u32::try_from(rates.len()).unwrap_or(u32::MAX);
        Ok(PlanRestoreDatabaseResponse {
            point_id: point_id.to_string(),
            target: work.target().unwrap_or_default(),
            findings: answer.findings.into_iter().map(to_wire_finding).collect(),
            dump_bytes: answer.dump_bytes,
            database_bytes: answer.database_bytes,
            free_bytes: answer.free_bytes,
            free_bytes_known: answer.free_bytes_known,
            tables: answer.tables,
            estimate_s: median(rates).map_or(0, |rate| answer.dump_bytes.div_ceil(rate)),
            estimate_restores,
        })
    }

    /// Bytes in a second of the last restores into databases, each above 0.
    async fn rates_of_restores(&self) -> Result<Vec<u64>, Problem> {
        let jobs = self.catalog.jobs(JobFilter { from: None, to: None, limit: LAST_JOBS }).await?;
        Ok(jobs.iter().filter_map(rate).take(LAST_RESTORES).collect())
    }
}

/// Bytes in a second, over all that the job did but waiting for its turn and for the archive.
fn rate(job: &Job) -> Option<u64> {
    let Work::RestoreDatabase { options, .. } = &job.work else { return None };
    if !options.schemas.is_empty() || !options.tables.is_empty() {
        return None;
    }
    let catalog::Status::Completed { bytes_read, .. } = &job.status else { return None };
    let worked = job.steps.iter().filter(|step| !matches!(step.name.as_str(), "queued" | "rehydrating"));
    let took: u64 =
        worked.map(|step| u64::try_from(step.end.duration_since(step.start).as_millis()).unwrap_or(0)).sum();
    if took < MEASURED_MS {
        return None;
    }
    let rate = u128::from(*bytes_read) * 1000 / u128::from(took);
    u64::try_from(rate).ok().filter(|rate| *rate > 0)
}

fn median(mut rates: Vec<u64>) -> Option<u64> {
    rates.sort_unstable();
    rates.get(rates.len() / 2).copied()
}

#[tonic::async_trait]
impl RestorePlanService for Api {
    async fn plan_restore_database(
        &self,
        request: Request<PlanRestoreDatabaseRequest>,
    ) -> Result<Response<PlanRestoreDatabaseResponse>, Status> {
        Ok(Response::new(self.plan(request.into_inner()).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_restore_does_not_make_the_guess() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![7]), Some(7));
        assert_eq!(median(vec![100, 1, 90]), Some(90));
    }
}
