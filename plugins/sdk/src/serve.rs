//! The life of a plugin's process: listen, say where, serve, and leave nothing behind.
//!
//! - `VAULTFERRY_PLUGIN_DIR` names a folder that the host made for this process alone (mode 0700): secrets pass over the socket in it.
//! - One line on standard output, `vaultferry-plugin|1|unix:///path`, says that calls are answered now. Nothing else goes there.
//! - The end of standard input, SIGTERM or SIGINT cancel every job. The jobs get [`DRAIN`] to clean up; then the process ends.
//!
//! Telemetry is the binary's: this module logs through `tracing` and sets nothing up.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Router;
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPluginServer;

use crate::runner::Runner;
use crate::service::Service;
use crate::workload::Workload;

/// The variable that names the private folder.
pub const DIR_VARIABLE: &str = "VAULTFERRY_PLUGIN_DIR";

/// The version of the protocol, as the handshake says it.
pub const PROTOCOL_VERSION: u32 = 1;

/// How long jobs may clean up after the shutdown began: dropping a half-restored database may wait for its sessions to end.
pub const DRAIN: Duration = Duration::from_secs(20);

/// The longest path that a Unix socket can have: `sun_path` less its closing zero.
#[cfg(unix)]
const SOCKET_PATH_MAX: usize = 107;

/// Why the plugin could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Started by hand: plugins are started by the agent.
    #[error("{DIR_VARIABLE} is not set; plugins are started by the agent, not by hand")]
    NotStartedByHost,
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The handshake cannot be written, or the signals or standard input cannot be watched.
    #[error("cannot talk to the host")]
    Host(#[source] std::io::Error),
    /// The gRPC server failed.
    #[error("cannot serve")]
    Serve(#[source] tonic::transport::Error),
    /// No way to listen is built for this system.
    #[error("plugins cannot be served on this system")]
    Unsupported,
}

/// Serves `workload` until the host is gone or says stop. Must run in a multi-threaded Tokio runtime.
///
/// When it returns, every job has ended, or [`DRAIN`] was over and the rest is named in the log.
pub async fn serve<W: Workload>(workload: W) -> Result<(), Error> {
    serve_router(|runner| {
        let service = Service { workload: Arc::new(workload), runner, own_process: true };
        tonic::transport::Server::builder().add_service(WorkloadPluginServer::new(service))
    })
    .await
}

/// As [`serve`], for a plugin with a gRPC service of its own: `make` builds it, and its jobs run in the [`Runner`].
pub async fn serve_router(make: impl FnOnce(Runner) -> Router) -> Result<(), Error> {
    vaultferry_vault::memory::give_large_blocks_back();
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let dir = std::env::var_os(DIR_VARIABLE).map(PathBuf::from).ok_or(Error::NotStartedByHost)?;
    let router = make(Runner::new(shutdown.clone(), tasks.clone()));
    watch_stdin(shutdown.clone())?;
    watch_signals(&shutdown)?;
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::pin!(overdue);
    let served = tokio::select! {
        served = listen(router, dir, shutdown.clone()) => served,
        // A caller that does not read its stream to the end must not hold this process up.
        () = &mut overdue => Ok(()),
    };
    shutdown.cancel();
    tasks.close();
    tokio::select! {
        biased;
        () = tasks.wait() => {}
        () = &mut overdue => {
            tracing::error!(jobs = tasks.len(), "jobs did not end in {} s; leaving without them", DRAIN.as_secs());
        }
    }
    served
}

/// Cancels `shutdown` when standard input ends. A thread of its own: Tokio's would keep the runtime from ending.
fn watch_stdin(shutdown: CancellationToken) -> Result<(), Error> {
    let watch = move || {
        let mut buffer = [0_u8; 64];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {}
            }
        }
        tracing::debug!("standard input ended: the host is gone or wants this process to end");
        shutdown.cancel();
    };
    std::thread::Builder::new().name("host-watch".into()).spawn(watch).map_err(Error::Host)?;
    Ok(())
}

#[cfg(unix)]
fn watch_signals(shutdown: &CancellationToken) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Host)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Host)?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to end by a signal");
        shutdown.cancel();
    });
    Ok(())
}

#[cfg(not(unix))]
fn watch_signals(_shutdown: &CancellationToken) -> Result<(), Error> {
    Ok(())
}

#[cfg(unix)]
async fn listen(router: Router, dir: PathBuf, shutdown: CancellationToken) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt as _;
    use tokio_stream::wrappers::UnixListenerStream;

    let path = dir.join("plugin.sock");
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
        let source = std::io::Error::other(format!("the path is longer than {SOCKET_PATH_MAX} bytes"));
        return Err(Error::Listen { path, source });
    }
    let listener =
        tokio::net::UnixListener::bind(&path).map_err(|source| Error::Listen { path: path.clone(), source })?;
    say_where(&format!("unix://{}", path.display()))?;
    let server = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned());
    let served = server.await.map_err(Error::Serve);
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::debug!("the socket was removed by somebody else: {error}");
    }
    served
}

#[cfg(not(unix))]
async fn listen(router: Router, dir: PathBuf, shutdown: CancellationToken) -> Result<(), Error> {
    drop((router, dir, shutdown));
    Err(Error::Unsupported)
}

/// The handshake: the one line on standard output.
#[cfg_attr(not(unix), expect(dead_code, reason = "nothing listens there yet"))]
fn say_where(endpoint: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "vaultferry-plugin|{PROTOCOL_VERSION}|{endpoint}")
        .and_then(|()| stdout.flush())
        .map_err(Error::Host)
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
