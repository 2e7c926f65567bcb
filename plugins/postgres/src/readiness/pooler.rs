//! Is there a pooler in between that gives statements of one session to several server processes?
//!
//! Two sessions tell it: on a server itself, and behind a pool in session mode, no two living sessions ever have the same process, and none
//! changes its own. (Servers behind one balanced address may have processes of the same number, but were not started at the same moment.) Behind a pool in transaction mode an idle session's process is given to whoever comes next. A pool that gives out its
//! processes in turn may not be found by this; one that is found is one.

use std::time::Duration;

use tokio_postgres::{Client, Error, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Finding;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::{Problem, Reason};

use crate::connection::{Server, Session};

/// A pool without a free process lets its clients wait; whether there is one is then not known, and no finding.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The server process that answers: its number, and when its server was started.
const PROCESS: &str = "select pg_backend_pid()::text || ' ' || extract(epoch from pg_postmaster_start_time())::text";

/// Logs in once more, and compares. What goes wrong with that is no finding: the server may have no connection to spare.
pub(super) async fn look(
    server: &Server,
    session: &Session,
    cancel: &CancellationToken,
) -> Result<Option<Finding>, Problem> {
    let looked = async { Ok(tokio::time::timeout(TIMEOUT, shares_processes(server, session, cancel)).await) };
    let is_pooled = match unless_cancelled(looked, cancel).await? {
        Ok(Ok(is_pooled)) => is_pooled,
        Ok(Err(detail)) => {
            tracing::info!("whether there is a pooler is not known: {detail}");
            false
        }
        Err(_) => {
            tracing::info!("whether there is a pooler is not known after {} s", TIMEOUT.as_secs());
            false
        }
    };
    Ok(is_pooled.then(|| {
        let message = format!(
            "{} is a connection pooler in transaction mode: it gives statements of one session to several server processes, and pg_dump's \
             settings would be another session's",
            server.uri().server()
        );
        Finding::blocking(Reason::PoolerUnsupported, message)
    }))
}

async fn shares_processes(server: &Server, session: &Session, cancel: &CancellationToken) -> Result<bool, String> {
    let told = |error: Error| vaultferry_proto::status::chain(&error);
    let first = process(session.client(), PROCESS).await.map_err(told)?;
    let other = server.connect(cancel).await.map_err(|problem| problem.message)?;
    // Its transaction keeps it where it is; it ends with the session.
    let second = process(other.client(), &format!("begin; {PROCESS}")).await.map_err(told)?;
    if first == second {
        return Ok(true);
    }
    let again = process(session.client(), PROCESS).await.map_err(told)?;
    Ok(first != again)
}

/// What [`PROCESS`] says. Without prepared statements: a pooler may know none.
async fn process(client: &Client, query: &str) -> Result<Option<String>, Error> {
    let messages = client.simple_query(query).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
