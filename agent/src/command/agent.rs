//! `vaultferry agent`: the service itself, and a look at its configuration.

use std::path::PathBuf;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use vaultferry_coordinator::Service;
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome, network_check};
use crate::args::Agent;
use crate::config::{Purpose, Settings};
use crate::output::table::fields;
use crate::output::units::size;

pub(super) async fn run(context: &Context, command: Agent) -> Result<Outcome, Problem> {
    match command {
        Agent::Run => serve(&context.settings(Purpose::Agent)?).await,
        Agent::CheckConfig => check_config(context, &context.settings(Purpose::Agent)?),
        Agent::NetworkCheck(command) => network_check::check(context, command).await,
    }
}

/// Serves until a signal, then drains. A second signal ends the process at once; the next start cleans up.
async fn serve(settings: &Settings) -> Result<Outcome, Problem> {
    // Before the first line of the log, which might wait for it.
    super::thaw_leftovers().await;
    let shutdown = CancellationToken::new();
    // Listened to before anything is opened, so that a signal ends the start too.
    let signals = Signals::listen()?;
    tokio::spawn(shut_down_on_signal(signals, shutdown.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), state_dir = %settings.state_dir.display(), "starting");
    let service = tokio::select! {
        opened = Service::open(settings.to_coordinator()?) => opened?,
        // A start may wait long for a store that does not answer; whatever it left half-done the next start finds.
        () = shutdown.cancelled() => {
            info!("stopped while starting");
            return Ok(Outcome::Done);
        }
    };
    // Says "ready" when it listens.
    service.run(shutdown).await?;
    info!("stopped");
    Ok(Outcome::Done)
}

async fn shut_down_on_signal(mut signals: Signals, shutdown: CancellationToken) {
    let name = signals.next().await;
    info!(signal = name, "shutting down; a second signal ends at once");
    shutdown.cancel();
    let name = signals.next().await;
    warn!(signal = name, "ending at once");
    std::process::exit(1);
}

/// Whatever asks this process to end.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Result<Self, Problem> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed =
            |error: std::io::Error| Problem::new(Reason::Internal, format!("cannot listen to signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Result<Self, Problem> {
        Err(Problem::new(Reason::Internal, "agent run is not supported on this system yet"))
    }

    async fn next(&mut self) -> &'static str {
        std::future::pending().await
    }
}

/// Prints what `agent run` would use. Secrets are named by their variables only.
fn check_config(context: &Context, settings: &Settings) -> Result<Outcome, Problem> {
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let joined = |paths: &[PathBuf]| {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(", ")
    };
    let azure = settings.vault.azure.as_ref();
    let endpoint = azure.and_then(|azure| azure.endpoint.as_ref()).map(ToString::to_string);
    let key = settings.to_coordinator()?.vault_key.to_string();
    let deadline_s = settings.limits.store_deadline.as_secs();
    let service = settings.service.as_ref();
    let as_json = json!({ "config": {
        "file": settings.file,
        "state_dir": settings.state_dir,
        "listen": listen,
        "vault": {
            "location": settings.location().to_string(),
            "region": settings.vault.region,
            "azure": azure.map(|azure| json!({
                "endpoint": endpoint,
                "credential": azure.credential.as_str(),
                "variable": azure.variable,
            })),
            "key": key,
        },
        "postgres": settings.postgres,
        "vm": settings.vm,
        "limits": {
            "bytes_in_flight": settings.limits.bytes_in_flight,
            "upload_bytes_per_s": settings.limits.upload,
            "jobs": settings.limits.jobs.jobs,
            "jobs_per_server": settings.limits.jobs.jobs_per_server,
            "maintenance_jobs": settings.limits.jobs.maintenance_jobs,
            "store_deadline_s": deadline_s,
        },
        "network": settings.network,
        "service": service.map(|service| json!({
            "endpoint": service.endpoint,
            "ca": service.ca,
            "cert": service.identity.as_ref().map(|(cert, _)| cert),
            "token_env": service.token_env,
        })),
    }});
    context.output.value(&as_json, || {
        let file = settings.file.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        let credential = azure.map(|azure| format!("{} in ${}", azure.credential.as_str(), azure.variable));
        let text = fields(&[
            ("file", file),
            ("state_dir", settings.state_dir.display().to_string()),
            ("listen", listen.join(", ")),
            ("vault.location", settings.location().to_string()),
            ("vault.region", settings.vault.region.clone().unwrap_or_default()),
            ("vault.key", key),
            ("vault.azure.endpoint", endpoint.clone().unwrap_or_default()),
            ("vault.azure.credential", credential.unwrap_or_default()),
            ("postgres.client_dirs", joined(&settings.postgres.client_dirs)),
            ("vm.provider", settings.vm.provider.clone().unwrap_or_else(|| "auto".to_owned())),
            ("vm.freeze", settings.vm.freeze.as_ref().map_or("auto".to_owned(), |mounts| joined(mounts))),
            ("limits.bytes_in_flight", size(settings.limits.bytes_in_flight)),
            ("limits.upload", settings.limits.upload.map_or("no limit".to_owned(), |rate| format!("{}/s", size(rate)))),
            ("limits.jobs", settings.limits.jobs.jobs.to_string()),
            ("limits.jobs_per_server", settings.limits.jobs.jobs_per_server.to_string()),
            ("limits.maintenance_jobs", settings.limits.jobs.maintenance_jobs.to_string()),
            ("limits.store_deadline", format!("{deadline_s}s")),
            ("network.proxy", settings.network.proxy.clone().unwrap_or_else(|| "as the system says".to_owned())),
            (
                "network.ca_file",
                settings.network.ca_file.as_ref().map_or(String::new(), |path| path.display().to_string()),
            ),
            ("service.endpoint", service.map_or("none".to_owned(), |service| service.endpoint.clone())),
        ]);
        format!("The configuration is right.\n\n{text}")
    })?;
    Ok(Outcome::Done)
}
