//! `vaultferry backup`

use vaultferry_proto::Problem;
use vaultferry_proto::control::v1::StartBackupRequest;

use super::{Context, Outcome, job};
use crate::args::Backup;
use crate::client::Client;

pub(super) async fn run(context: &Context, command: Backup) -> Result<Outcome, Problem> {
    let request = StartBackupRequest {
        instance: command.instance,
        rule: command.rule.unwrap_or_default(),
        keep_until: command.keep_until.unwrap_or_default(),
        request_id: job::new_request_id(),
        read_bytes_per_s: command.read_limit.unwrap_or_default(),
    };
    let mut client = context.client().await?;
    let call = |client: Client| {
        let request = request.clone();
        async move { client.backups().start_backup(request).await }
    };
    let answer = client.idempotent(call).await?;
    job::started(context, client, &command.wait, answer, |answer| answer.job.as_ref()).await
}
