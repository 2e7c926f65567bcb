//! The link to the backup service: the control plane that is told of every commit (P29).
//!
//! On one machine there is no service apart: this agent's own catalog plays its part, and takes every message at once. The outbox is the
//! same for both: a message is written in the transaction that ends the job, and removed when it was acknowledged.

use crate::catalog::Catalog;

/// Where messages go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link;

impl Link {
    /// Delivers what waits in the outbox. What cannot be delivered stays there.
    pub async fn confirm(&self, catalog: &dyn Catalog) {
        let delivered = async {
            for entry in catalog.outbox().await? {
                tracing::info!(job = entry.job_id, point = %entry.point.id, "commit confirmed");
                catalog.acknowledge(&entry.job_id).await?;
            }
            Ok::<(), crate::catalog::Error>(())
        };
        if let Err(error) = delivered.await {
            tracing::warn!("commits wait for their confirmation: {error}");
        }
    }
}
