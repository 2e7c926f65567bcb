//! When and where in the server's WAL a dump begins.

use tokio_util::sync::CancellationToken;
use vaultferry_proto::Reason;

use crate::connection::Server;
use crate::facts::SnapshotFacts;

/// On a standby it is what was replayed: that is what its queries see.
const LSN: &str =
    "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text";

/// To be asked just before pg_dump is started: what was committed by then is in the dump. A server that does not tell its position (some
/// services hide it) is no problem, and neither is one that does not answer: pg_dump will say so better.
pub(crate) async fn look(server: &Server, cancel: &CancellationToken) -> SnapshotFacts {
    let asked = async {
        let session = server.connect(cancel).await?;
        let row = session.run(session.client().query_one(LSN, &[]), Reason::DumpFailed, cancel).await?;
        row.try_get::<_, Option<String>>(0).map_err(|error| session.problem(&error, Reason::DumpFailed))
    };
    let start_lsn = asked.await.unwrap_or_else(|problem| {
        tracing::info!("the position in the WAL is not told: {}", problem.message);
        None
    });
    SnapshotFacts { taken: jiff::Timestamp::now(), start_lsn }
}
