//! The one place that turns the protocol's messages into the SDK's words and back. Nothing from outside passes unchecked.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::records::Capture;
use vaultferry_vault::store::azure::Credential;
use vaultferry_vault::writer::{Compression, Staged};

use crate::azure::Scope;
use crate::azure::containers::Container;
use crate::readiness::{Finding, OBJECTS_MAX};
use crate::report::{Progress, SourceCost, Warning};
use crate::workload::{
    BackupJob, CleanUpJob, CredentialReference, DatabaseTarget, Discovered, DiskTarget, FilesDestination, FoundServer,
    RestoreJob, RestorePlan, RestoreTarget, ServerLogin, Source, Validated, VaultAccess, Verify,
};

/// How many packs one message holds: the protocol's number. 4096 of them are about 200 KB, far below gRPC's limit of 4 MiB.
const PACKS_IN_MESSAGE: usize = 4096;

/// Used when a request says 0: the default of the configuration's `bytes_in_flight`.
const DEFAULT_BYTES_IN_FLIGHT: u64 = 64 * 1024 * 1024;

/// Used when a request says 0: longer than the store's own minute of throttling, shorter than a person's patience.
const DEFAULT_STORE_DEADLINE: Duration = Duration::from_secs(300);

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Problem> {
    field.ok_or_else(|| invalid(format!("the request lacks {name}")))
}

fn non_empty(text: String, name: &str) -> Result<String, Problem> {
    if text.is_empty() { Err(invalid(format!("the request lacks {name}"))) } else { Ok(text) }
}

/// The parts of a validate request: the source, the settings, and what its last backup took.
pub fn validate_from(
    request: proto::ValidateRequest,
) -> Result<(Source, String, Option<crate::workload::FormerBackup>), Problem> {
    let former = request.former.map(|former| crate::workload::FormerBackup {
        source_bytes: former.source_bytes,
        snapshot_held: Duration::from_millis(former.snapshot_held_ms),
    });
    Ok((source_from(required(request.source, "source")?)?, request.settings_json, former))
}

/// The parts of a discover request: the server and the settings, and whether the sources' extensions are asked for.
pub fn discover_from(request: proto::DiscoverRequest) -> Result<(Source, String, bool), Problem> {
    Ok((source_from(required(request.server, "server")?)?, request.settings_json, request.extensions))
}

/// A backup request.
pub fn backup_from(request: proto::BackupRequest) -> Result<BackupJob, Problem> {
    let compression = match request.compression_level {
        0 => Compression::default(),
        -1 => Compression::Off,
        level @ 1..=19 => Compression::Level(level),
        level => return Err(invalid(format!("compression_level is {level}; it must be -1 to 19"))),
    };
    Ok(BackupJob {
        job_id: non_empty(request.job_id, "job_id")?,
        instance_name: request.instance_name,
        source: source_from(required(request.source, "source")?)?,
        vault: vault_from(required(request.vault, "vault")?)?,
        settings_json: request.settings_json,
        compression,
        tags: request.tags,
        read_bytes_per_s: (request.read_bytes_per_s != 0).then_some(request.read_bytes_per_s),
        base: (!request.base_snapshot_id.is_empty()).then(|| id_from(&request.base_snapshot_id)).transpose()?,
    })
}

/// A restore request.
pub fn restore_from(request: proto::RestoreRequest) -> Result<RestoreJob, Problem> {
    use proto::restore_request::Target;
    let target = match required(request.target, "target")? {
        Target::Database(database) => RestoreTarget::Database(database_from(database)?),
        Target::Files(files) => RestoreTarget::Files(files_from(files)?),
        Target::Disk(disk) => RestoreTarget::Disk(disk_from(disk)?),
    };
    Ok(RestoreJob {
        job_id: non_empty(request.job_id, "job_id")?,
        snapshot_id: id_from(&request.snapshot_id)?,
        vault: vault_from(required(request.vault, "vault")?)?,
        settings_json: request.settings_json,
        target,
        from_archive: request.from_archive,
    })
}

/// A plan request.
pub fn plan_from(request: proto::PlanRestoreRequest) -> Result<RestoreJob, Problem> {
    restore_from(required(request.restore, "restore")?)
}

/// A clean-up request.
pub fn clean_up_from(request: proto::CleanUpRequest) -> Result<CleanUpJob, Problem> {
    use proto::clean_up_request::Target;
    let target = match required(request.target, "target")? {
        Target::Database(database) => RestoreTarget::Database(database_from(database)?),
        Target::Files(files) => RestoreTarget::Files(files_from(files)?),
        Target::Disk(disk) => RestoreTarget::Disk(disk_from(disk)?),
    };
    Ok(CleanUpJob { job_id: non_empty(request.job_id, "job_id")?, settings_json: request.settings_json, target })
}

/// A snapshot's name.
pub fn id_from(text: &str) -> Result<Id, Problem> {
    text.parse::<Id>().map_err(|_| invalid("snapshot_id is not 64 hexadecimal digits"))
}

fn source_from(source: proto::Source) -> Result<Source, Problem> {
    let proto::Source { uri, passfile, password_env, identity } = source;
    let credential = match (passfile.is_empty(), password_env.is_empty(), identity.is_empty()) {
        (true, true, true) => None,
        (false, true, true) => Some(CredentialReference::Passfile(PathBuf::from(passfile))),
        (true, false, true) => Some(CredentialReference::Environment(password_env)),
        (true, true, false) => {
            // Not repeated: somebody may have put a secret there.
            let read = CredentialReference::from_identity(&identity);
            Some(read.map_err(|error| invalid(error.to_string()))?)
        }
        _ => return Err(invalid("a source has a passfile, a password_env or an identity, not two of them")),
    };
    Ok(Source { uri: non_empty(uri, "source.uri")?, credential })
}

fn database_from(target: proto::DatabaseTarget) -> Result<DatabaseTarget, Problem> {
    let verify = match target.verify.as_str() {
        "" => Verify::BySize,
        "full" => Verify::Full,
        "sample" => Verify::Sample,
        "none" => Verify::Nothing,
        other => return Err(invalid(format!("target.verify is {other:?}; it must be full, sample or none"))),
    };
    Ok(DatabaseTarget {
        server: source_from(required(target.server, "target.server")?)?,
        database: non_empty(target.database, "target.database")?,
        no_owner: target.no_owner,
        schemas: target.schemas,
        tables: target.tables,
        globals: target.globals,
        keep_failed: target.keep_failed,
        verify,
    })
}

fn files_from(target: proto::FilesTarget) -> Result<FilesDestination, Problem> {
    let (endpoint, credential) = credential_from(target.credential.unwrap_or_default())?;
    Ok(FilesDestination { to: non_empty(target.to, "target.to")?, endpoint, credential })
}

fn disk_from(target: proto::DiskTarget) -> Result<DiskTarget, Problem> {
    let to = PathBuf::from(non_empty(target.to, "target.to")?);
    if !to.is_absolute() {
        return Err(invalid("target.to is no absolute path"));
    }
    let disk = Some(target.disk).filter(|disk| !disk.is_empty());
    let overwrite = Some(target.overwrite).filter(|device| !device.is_empty()).map(PathBuf::from);
    Ok(DiskTarget { to, disk, overwrite })
}

/// Access to an instance's store for a task that opens nothing: its password may be missing.
pub fn store_from(vault: proto::VaultAccess) -> Result<VaultAccess, Problem> {
    let location: Location =
        non_empty(vault.location, "vault.location")?.parse().map_err(|error| invalid(format!("{error}")))?;
    let (endpoint, credential) = credential_from(vault.credential.unwrap_or_default())?;
    let store_deadline = match vault.store_deadline_s {
        0 => DEFAULT_STORE_DEADLINE,
        seconds => Duration::from_secs(u64::from(seconds)),
    };
    Ok(VaultAccess {
        access: Access { location, endpoint, credential, store_deadline },
        instance_id: non_empty(vault.instance_id, "vault.instance_id")?,
        repository_password: SecretString::from(vault.repository_password),
        bytes_in_flight: if vault.bytes_in_flight == 0 { DEFAULT_BYTES_IN_FLIGHT } else { vault.bytes_in_flight },
        upload_bytes_per_s: (vault.upload_bytes_per_s != 0).then_some(vault.upload_bytes_per_s),
    })
}

/// Access to an instance's repository.
pub fn vault_from(vault: proto::VaultAccess) -> Result<VaultAccess, Problem> {
    if vault.repository_password.is_empty() {
        return Err(invalid("the request lacks vault.repository_password"));
    }
    store_from(vault)
}

fn credential_from(credential: proto::StoreCredential) -> Result<(Option<Url>, Option<Credential>), Problem> {
    let endpoint = match credential.endpoint.as_str() {
        "" => None,
        text => Some(Url::parse(text).map_err(|error| invalid(format!("the store's endpoint is no URL: {error}")))?),
    };
    let credential = match (credential.sas.is_empty(), credential.account_key.is_empty()) {
        (true, true) => None,
        (false, true) => Some(Credential::Sas(SecretString::from(credential.sas))),
        (true, false) => Some(Credential::AccountKey(SecretString::from(credential.account_key))),
        (false, false) => return Err(invalid("a store has a SAS or an account key, not both")),
    };
    Ok((endpoint, credential))
}

/// The answer to a validate request, what is blocking first.
pub fn validated_to(validated: Validated) -> proto::ValidateResponse {
    let (mut findings, others): (Vec<_>, Vec<_>) = validated.findings.into_iter().partition(|finding| finding.blocking);
    let warnings = others.iter().map(|finding| warning_to(finding.to_warning())).collect();
    findings.extend(others);
    proto::ValidateResponse {
        source_identity: validated.source_identity,
        suggested_name: validated.suggested_name,
        warnings,
        findings: findings.into_iter().map(finding_to).collect(),
    }
}

fn finding_to(finding: Finding) -> proto::ReadinessFinding {
    proto::ReadinessFinding {
        reason: finding.reason.as_str().to_owned(),
        message: finding.message,
        fix: finding.fix,
        objects: finding.objects.into_iter().take(OBJECTS_MAX).collect(),
        object_count: finding.object_count,
        blocking: finding.blocking,
    }
}

/// The answer to a plan request, what is blocking first.
pub fn plan_to(plan: RestorePlan) -> proto::PlanRestoreResponse {
    let (mut findings, others): (Vec<_>, Vec<_>) = plan.findings.into_iter().partition(|finding| finding.blocking);
    findings.extend(others);
    proto::PlanRestoreResponse {
        findings: findings.into_iter().map(finding_to).collect(),
        dump_bytes: plan.dump_bytes,
        database_bytes: plan.database_bytes,
        free_bytes: plan.free_bytes.unwrap_or_default(),
        free_bytes_known: plan.free_bytes.is_some(),
        tables: plan.tables,
    }
}

/// The answer to a discover request.
pub fn discovered_to(discovered: Discovered) -> proto::DiscoverResponse {
    let Discovered { server_identity, server_name, server_version, replica, sources } = discovered;
    let sources = sources.into_iter().map(|source| proto::DiscoveredSource {
        uri: source.uri,
        source_identity: source.source_identity,
        name: source.name,
        size_bytes: source.size.unwrap_or_default(),
        server_version: server_version.clone(),
        encoding: source.encoding,
        replica,
        allows_connections: source.allows_connections,
        obstacle: source.obstacle.map(warning_to),
        extensions: Vec::new(),
        extensions_problem: None,
    });
    proto::DiscoverResponse { sources: sources.collect(), server_identity, server_name, server_version, replica }
}

/// A part of Azure.
pub fn scope_from(scope: Option<proto::AzureScope>) -> Result<Scope, Problem> {
    let scope = required(scope, "scope")?;
    Scope::parse(&scope.subscription_id, &scope.resource_group, &scope.identity)
}

/// The parts of a request to find servers: where, and how they are to be logged in to.
pub fn find_servers_from(request: proto::FindServersRequest) -> Result<(Scope, ServerLogin), Problem> {
    let port = match request.port {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| invalid(format!("{port} is no port")))?),
    };
    let ssl_mode = Some(request.ssl_mode).filter(|mode| !mode.is_empty());
    let login = ServerLogin { user: non_empty(request.user, "user")?, port, ssl_mode };
    Ok((scope_from(request.scope)?, login))
}

/// The answer to a request to find servers.
pub fn found_servers_to(servers: Vec<FoundServer>) -> proto::FindServersResponse {
    let servers = servers.into_iter().map(|server| proto::FoundServer {
        name: server.name,
        uri: server.uri.unwrap_or_default(),
        version: server.version,
        replica: server.replica,
        state: server.state,
        running: server.running,
        region: server.region,
        private_network: server.private_network,
        resource_id: server.resource_id,
    });
    proto::FindServersResponse { servers: servers.collect() }
}

/// The answer to a request to find containers.
pub fn found_containers_to(containers: Vec<Container>) -> proto::FindContainersResponse {
    let containers = containers.into_iter().map(|container| proto::FoundContainer {
        account: container.account,
        name: container.name,
        region: container.region,
    });
    proto::FindContainersResponse { containers: containers.collect() }
}

/// A warning of any job.
pub fn warning_to(warning: Warning) -> proto::PluginWarning {
    proto::PluginWarning { reason: warning.reason, message: warning.message, fix: warning.fix }
}

/// Progress of any job.
pub fn progress_to(progress: Progress) -> proto::PluginProgress {
    proto::PluginProgress {
        phase: progress.phase.to_owned(),
        bytes_read: progress.bytes_read,
        bytes_stored: progress.bytes_stored,
        bytes_total: progress.bytes_total,
        note: progress.note,
    }
}

fn backup_event(event: proto::backup_event::Event) -> proto::BackupEvent {
    proto::BackupEvent { event: Some(event) }
}

fn restore_event(event: proto::restore_event::Event) -> proto::RestoreEvent {
    proto::RestoreEvent { event: Some(event) }
}

/// Progress of a backup.
pub fn backup_progress(progress: Progress) -> proto::BackupEvent {
    backup_event(proto::backup_event::Event::Progress(progress_to(progress)))
}

/// A warning of a backup.
pub fn backup_warning(warning: Warning) -> proto::BackupEvent {
    backup_event(proto::backup_event::Event::Warning(warning_to(warning)))
}

/// Progress of a restore.
pub fn restore_progress(progress: Progress) -> proto::RestoreEvent {
    restore_event(proto::restore_event::Event::Progress(progress_to(progress)))
}

/// A warning of a restore.
pub fn restore_warning(warning: Warning) -> proto::RestoreEvent {
    restore_event(proto::restore_event::Event::Warning(warning_to(warning)))
}

/// The last event of a restore; `checked` says what of it was compared with the point.
pub fn restored_to(bytes_restored: u64, checked: String) -> proto::RestoreEvent {
    restore_event(proto::restore_event::Event::Done(proto::RestoreDone { bytes_restored, checked }))
}

fn capture_to(capture: Capture) -> proto::Capture {
    proto::Capture {
        consistency: capture.consistency.as_str().to_owned(),
        reason: capture.reason,
        provider: capture.provider,
        synced_ms: capture.synced_ms,
        freezing_ms: capture.freezing_ms,
        frozen_ms: capture.frozen_ms,
        read_bytes: capture.read_bytes,
        base_snapshot_id: capture.base,
        full_read_reason: capture.full_read_reason,
    }
}

/// The last events of a backup: the packs in pieces, then the rest. `cost` and `capture` are told as they are.
pub fn staged_to(staged: Staged, cost: SourceCost, capture: Option<Capture>) -> Vec<proto::BackupEvent> {
    use proto::backup_event::Event;
    let pack_count = staged.packs.len() as u64;
    let pieces = staged.packs.chunks(PACKS_IN_MESSAGE).map(|piece| {
        let packs =
            piece.iter().map(|(id, size)| proto::PackReference { id: id.as_bytes().to_vec(), size: *size }).collect();
        backup_event(Event::StagedPacks(proto::StagedPacks { packs }))
    });
    let mut events: Vec<_> = pieces.collect();
    let streams = staged.streams.into_iter().map(|stream| proto::StagedStream {
        name: stream.name,
        size: stream.size,
        sha256: String::new(),
    });
    events.push(backup_event(Event::Staged(proto::Staged {
        snapshot_id: staged.snapshot_id.to_string(),
        sealed_snapshot: staged.sealed.to_vec(),
        prune_epoch: staged.prune_epoch,
        pack_count,
        streams: streams.collect(),
        source_bytes: staged.source_bytes,
        stored_bytes: staged.stored_bytes,
        time_us: staged.time.as_microsecond(),
        snapshot_held_ms: u64::try_from(cost.snapshot_held.as_millis()).unwrap_or(u64::MAX),
        snapshot_transactions: cost.transactions,
        capture: capture.map(capture_to),
    })));
    events
}

#[cfg(test)]
mod tests {
    use vaultferry_vault::records::Consistency;

    use super::*;

    #[test]
    fn a_disk_target_is_an_absolute_path() {
        let target = |to: &str| proto::DiskTarget { to: to.into(), ..proto::DiskTarget::default() };
        let plain = disk_from(target("/srv/disk.raw")).unwrap();
        assert_eq!(plain, DiskTarget { to: "/srv/disk.raw".into(), disk: None, overwrite: None });
        let device = proto::DiskTarget { disk: "disk1".into(), overwrite: "/dev/vdb".into(), ..target("/dev/vdb") };
        let device = disk_from(device).unwrap();
        assert_eq!((device.disk.as_deref(), device.overwrite), (Some("disk1"), Some(PathBuf::from("/dev/vdb"))));
        for wrong in ["", "disk.raw", "./disk.raw"] {
            assert_eq!(disk_from(target(wrong)).unwrap_err().reason, Reason::InvalidRequest, "{wrong:?}");
        }
    }

    #[test]
    fn how_a_source_was_caught_is_told_whole() {
        let capture = Capture {
            consistency: Consistency::FileSystem,
            reason: "frozen".into(),
            provider: "reflink".into(),
            synced_ms: 1,
            freezing_ms: 2,
            frozen_ms: 3,
            read_bytes: 4,
            base: "b".into(),
            full_read_reason: "f".into(),
        };
        let told = capture_to(capture);
        assert_eq!((told.consistency.as_str(), told.reason.as_str()), ("file-system", "frozen"));
        assert_eq!((told.synced_ms, told.freezing_ms, told.frozen_ms, told.read_bytes), (1, 2, 3, 4));
        assert_eq!((told.base_snapshot_id.as_str(), told.full_read_reason.as_str()), ("b", "f"));
    }
}
