//! The answer to "is it ready?" (P36): see [`crate::readiness`].

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::FormerBackup;
use vaultferry_plugin_sdk::{Source, Validated};
use vaultferry_proto::Problem;

use crate::connection::Server;
use crate::readiness;
use crate::settings::Settings;

/// Logs in, and tells all that is found. `former` is what the last backup took.
pub(crate) async fn validate(
    source: &Source,
    settings_json: &str,
    former: Option<FormerBackup>,
    cancel: &CancellationToken,
) -> Result<Validated, Problem> {
    let settings = Settings::parse(settings_json)?;
    let server = Server::new(source, None)?;
    let session = server.connect(cancel).await?;
    let looked = readiness::look(&server, &session, &settings, former, cancel).await?;
    Ok(Validated {
        source_identity: server.uri().identity(),
        suggested_name: server.uri().source_database()?.to_owned(),
        findings: looked.findings,
    })
}
