//! What the coordinator would journal of a staged backup.

use vaultferry_vault::commit::Record;
use vaultferry_vault::records::PointCreated;
use vaultferry_vault::writer::Staged;

/// Of the rule "Default" of a policy "nightly".
pub fn record(job: &str, staged: &Staged) -> Record {
    Record {
        snapshot_id: staged.snapshot_id,
        sealed: staged.sealed.clone(),
        prune_epoch: staged.prune_epoch,
        packs: staged.packs.clone(),
        time: staged.time,
        created: PointCreated {
            job_id: job.to_owned(),
            rule: "Default".to_owned(),
            policy: "nightly".to_owned(),
            policy_version: 1,
            slot: None,
            keep_until: None,
            streams: Vec::new(),
            source_bytes: staged.source_bytes,
            stored_bytes: staged.stored_bytes,
            sealed_snapshot: String::new(),
            prune_epoch: 0,
            capture: None,
        },
    }
}
