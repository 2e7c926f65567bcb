//! A plugin at work for one job: started with the job's credentials only, remembered for the reaper, its events turned into progress.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::store::azure::{self, sas::Role};
use vaultferry_vault::{Id, admin};

use super::{Jobs, Shared};
use crate::catalog::{Credential, Job, StoredProblem};
use crate::plugin::{self, Plugin, Start};

/// The rate is taken over this many seconds.
const RATE_WINDOW_S: u64 = 5;

/// Longer than any backup or restore takes; a signature cannot be taken back before.
const SIGNATURE_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs `work` with a plugin for this job. The plugin is stopped and forgotten, whatever comes of it; when `cancel` fires, `work` is
/// dropped, which tells the plugin to stop.
pub(super) async fn with_plugin<T>(
    jobs: &Jobs,
    job: &Job,
    source_type: &str,
    pass_env: Vec<String>,
    cancel: &CancellationToken,
    work: impl AsyncFnOnce(&mut Plugin) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let shared = &jobs.shared;
    let cancelled = || Problem::new(Reason::Cancelled, "the job was cancelled");
    let start = Start {
        command: command(shared, source_type)?,
        source_type,
        purpose: &job.id,
        runtime_dir: &shared.runtime_dir,
        pass_env,
    };
    let mut plugin = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(cancelled()),
        plugin = Plugin::start(start) => plugin?,
    };
    shared.catalog.set_plugin_process(plugin.process(&job.id)).await?;
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled()),
        result = work(&mut plugin) => result,
    };
    plugin.stop().await;
    shared.catalog.clear_plugin_process(&job.id).await?;
    result
}

/// The plugin for a type of source.
pub(crate) fn command<'a>(shared: &'a Shared, source_type: &str) -> Result<&'a plugin::Command, Problem> {
    shared.plugins.get(source_type).ok_or_else(|| {
        Problem::new(Reason::PluginNotFound, format!("no plugin is configured for sources of the type {source_type}"))
    })
}

/// What an identity in Entra is found by: plugins/sdk/src/azure/identity.rs reads these.
const IDENTITY_VARIABLES: [&str; 5] = [
    "AZURE_POD_IDENTITY_AUTHORITY_HOST",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
];

/// The variables that a credential needs.
pub(crate) fn env_of(credential: &Credential) -> Vec<String> {
    match credential {
        Credential::PasswordEnv(name) => vec![name.clone()],
        Credential::Identity(_) => IDENTITY_VARIABLES.iter().map(|&name| name.to_owned()).collect(),
        Credential::None | Credential::Passfile(_) => Vec::new(),
    }
}

/// A source or a server, as the plugin gets it.
pub(crate) fn source(uri: &str, credential: &Credential) -> wire::Source {
    let mut source = wire::Source { uri: uri.to_owned(), ..wire::Source::default() };
    match credential {
        Credential::None => {}
        Credential::Passfile(path) => source.passfile = path.display().to_string(),
        Credential::PasswordEnv(name) => source.password_env.clone_from(name),
        Credential::Identity(identity) => source.identity.clone_from(identity),
    }
    source
}

/// What the plugin needs to read and write this instance's repository, and no other, with the rights of its role.
pub(super) async fn vault_access(
    shared: &Shared,
    instance_id: &str,
    role: Role,
    cancel: &CancellationToken,
) -> Result<wire::VaultAccess, Problem> {
    let store = shared.vault.open_instance(instance_id)?;
    let password = admin::password_of(&store, &shared.vault_key, instance_id, cancel).await?;
    let access = store_access(shared, instance_id, role)?;
    Ok(wire::VaultAccess { repository_password: password.expose_secret().to_owned(), ..access })
}

/// The same without the repository's password: names, sizes and plain records.
pub(super) fn store_access(shared: &Shared, instance_id: &str, role: Role) -> Result<wire::VaultAccess, Problem> {
    let access = match role {
        // A worker that is taken over must not be able to delete: it gets a signature for its container, and never the account's key.
        Role::Plugin => shared.roles.for_instance(role, instance_id, SIGNATURE_VALID)?,
        Role::Commit | Role::Maintenance => shared.roles.of(role),
    };
    let mut credential = wire::StoreCredential {
        endpoint: access.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..wire::StoreCredential::default()
    };
    match &access.credential {
        Some(azure::Credential::AccountKey(key)) => key.expose_secret().clone_into(&mut credential.account_key),
        Some(azure::Credential::Sas(sas)) => sas.expose_secret().clone_into(&mut credential.sas),
        None => {}
    }
    Ok(wire::VaultAccess {
        location: access.location.to_string(),
        instance_id: instance_id.to_owned(),
        credential: Some(credential),
        repository_password: String::new(),
        bytes_in_flight: shared.bytes_in_flight,
        upload_bytes_per_s: shared.upload_bytes_per_s.unwrap_or(0),
        store_deadline_s: u32::try_from(access.store_deadline.as_secs()).unwrap_or(u32::MAX),
    })
}

/// The next event of a plugin, which must come before it counts as silent.
pub(super) async fn next_event<T>(plugin: &mut Plugin, events: &mut tonic::Streaming<T>) -> Result<T, Problem> {
    match tokio::time::timeout(plugin::SILENCE, events.message()).await {
        Ok(Ok(Some(event))) => Ok(event),
        Ok(Ok(None)) => Err(Problem::new(Reason::PluginProtocol, "the plugin ended its answer too early")),
        Ok(Err(status)) => Err(plugin.problem(&status).await),
        Err(_) => Err(Plugin::silent()),
    }
}

/// A time as the plugin gets it.
pub(super) fn time(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// A time that a plugin sent.
pub(super) fn time_from(time: prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

pub(super) fn warning(warning: wire::PluginWarning) -> StoredProblem {
    StoredProblem { reason: warning.reason, message: warning.message, fix: warning.fix }
}

/// An id that a plugin sent.
pub(super) fn id_from(bytes: &[u8]) -> Result<Id, Problem> {
    Id::try_from(bytes)
        .map_err(|error| Problem::new(Reason::PluginProtocol, format!("the plugin sent a bad id: {error}")))
}

/// Turns a plugin's counts into a job's progress.
pub(super) struct Reporter<'a> {
    jobs: &'a Jobs,
    job_id: &'a str,
    samples: VecDeque<(Instant, u64)>,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(jobs: &'a Jobs, job_id: &'a str) -> Self {
        Self { jobs, job_id, samples: VecDeque::new() }
    }

    pub(super) fn report(&mut self, event: wire::PluginProgress) {
        let now = Instant::now();
        self.samples.push_back((now, event.bytes_read));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0).as_secs() >= RATE_WINDOW_S {
            self.samples.pop_front();
        }
        let (first, bytes) = self.samples[0];
        let elapsed_ms = u64::try_from(now.duration_since(first).as_millis()).unwrap_or(u64::MAX);
        let moved = event.bytes_read.saturating_sub(bytes).saturating_mul(1000);
        let rate = moved.checked_div(elapsed_ms).unwrap_or(0);
        self.jobs.update(self.job_id, |progress| {
            progress.phase = event.phase;
            progress.bytes_read = event.bytes_read;
            progress.bytes_stored = event.bytes_stored;
            progress.bytes_total = event.bytes_total;
            progress.bytes_per_second = rate;
            progress.note = event.note;
        });
    }
}
