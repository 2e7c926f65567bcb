//! `BackupInstanceService`: instances are made (`create.rs`), shown and listed; what holds for every URI and credential from outside.

use std::collections::HashMap;
use std::path::PathBuf;

use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::control::v1::backup_instance::ProtectionState;
use vaultferry_proto::control::v1::backup_instance_service_server::BackupInstanceService;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::admin;
use vaultferry_vault::records::Protection;

use super::{Api, convert};
use crate::catalog::{Credential, Instance, Job, ListedInstance, Status as JobStatus, Work};
use crate::job;
use crate::policy::{self, Document};

mod create;

pub(super) use create::{Found, Order, Unready};

/// Instances on a page.
const MAX_PAGE: u32 = 1000;
/// Longest URI of a source or server.
const MAX_URI: usize = 4096;

impl Api {
    /// Refuses a source that an instance protects, other than the one with that id.
    pub(super) async fn check_unprotected(&self, identity: &str, but: Option<&str>) -> Result<(), Problem> {
        let Some(other) = self.catalog.instance_of_source(identity).await? else { return Ok(()) };
        if Some(other.id.as_str()) == but {
            return Ok(());
        }
        let message = format!("{identity} is protected already, as {}", other.name);
        let problem = Problem::new(Reason::SourceAlreadyProtected, message);
        Err(match other.protection.is_deleted() {
            true => problem.with_fix(format!("Bring that instance back: vaultferry instance undelete {}.", other.name)),
            false => problem,
        })
    }

    /// P17, P18, V2: vault and source (or target) are in one region, as far as both are told.
    pub(super) fn check_region(&self, region: &str, what: &str) -> Result<(), Problem> {
        if region.is_empty() || self.vault.region.is_empty() || is_same_region(region, &self.vault.region) {
            return Ok(());
        }
        let message = format!("the {what} is in {region}, the vault in {}", self.vault.region);
        Err(Problem::new(Reason::RegionMismatch, message))
    }

    /// With its two states as D17 names them.
    pub(super) async fn to_wire_instance(&self, instance: Instance) -> Result<wire::BackupInstance, Problem> {
        let points = self.catalog.point_count(&instance.id).await?;
        let last_backup = self.catalog.last_backup(&instance.id).await?;
        let newest_point = self.catalog.points(&instance.id, None, 1).await?.pop();
        let newest = newest_point.as_ref().filter(|_| last_backup.is_none()).map(|point| point.time);
        let policy = self.catalog.policy(&instance.policy).await?;
        let document = policy.map(|policy| policy::parsed(&policy.document)).transpose()?;
        let told = wire_of(ListedInstance { instance, points, newest, last_backup }, document.as_deref());
        let Some(capture) = newest_point.and_then(|point| point.capture) else { return Ok(told) };
        let consistency = capture.consistency.as_str().to_owned();
        Ok(wire::BackupInstance { consistency, consistency_reason: capture.reason, ..told })
    }

    /// A page of instances, and the token of the next one.
    async fn page_of_instances(
        &self,
        request: wire::ListBackupInstancesRequest,
    ) -> Result<wire::ListBackupInstancesResponse, Problem> {
        let size = if request.page_size == 0 { MAX_PAGE } else { request.page_size.min(MAX_PAGE) };
        let after = Some(request.page_token).filter(|token| !token.is_empty());
        // One more than asked for says whether there is another page.
        let mut found = self.catalog.instances_page(request.deleted, after, size + 1).await?;
        let has_more = found.len() > size as usize;
        found.truncate(size as usize);
        let next = found.last().filter(|_| has_more).map(|last| last.instance.name.clone());
        let mut documents = HashMap::new();
        for policy in self.catalog.policies().await? {
            // A document of a newer program is the scheduler's to tell.
            if let Ok(document) = policy::parsed(&policy.document) {
                documents.insert(policy.name, document);
            }
        }
        let to_wire = |listed: ListedInstance| {
            let document = documents.get(&listed.instance.policy).cloned();
            wire_of(listed, document.as_deref())
        };
        let instances = found.into_iter().map(to_wire).collect();
        Ok(wire::ListBackupInstancesResponse { instances, next_page_token: next.unwrap_or_default() })
    }

    /// The instance's state in words.
    pub(super) async fn protection_text(&self, instance: &Instance) -> Result<&'static str, Problem> {
        let point_count = self.catalog.point_count(&instance.id).await?;
        Ok(shown(&instance.protection, point_count).1)
    }

    async fn export(&self, name: &str) -> Result<wire::ExportRepositoryKeyResponse, Problem> {
        let instance = self.find_instance(name).await?;
        let store = self.shared.vault.open_instance(&instance.id)?;
        let password = admin::password_of(&store, &self.shared.vault_key, &instance.id, &self.stopping).await?;
        tracing::info!(instance = instance.name, "the repository's password was exported");
        Ok(wire::ExportRepositoryKeyResponse {
            restic_repository: self.shared.vault.restic_repository(&instance.id),
            restic_password: password.expose_secret().to_owned(),
        })
    }
}

/// As a list tells it. `document`: of its policy, if that is there.
fn wire_of(listed: ListedInstance, document: Option<&Document>) -> wire::BackupInstance {
    use wire::backup_instance::LastBackupStatus;
    let ListedInstance { instance, points, newest, last_backup } = listed;
    let document = document.filter(|_| instance.protection.is_active());
    let next = document.and_then(|document| crate::scheduler::next_backup(document, &instance.id));
    let (protection_state, protection_state_text, since) = shown(&instance.protection, points);
    let purge_time = match &instance.protection {
        Protection::Deleted { purge_time, .. } => Some(*purge_time),
        _ => None,
    };
    let (last_backup_status, last_backup_status_text) = match last_backup.as_ref().map(|job| &job.status) {
        Some(JobStatus::Completed { .. }) => (LastBackupStatus::Completed, "Completed"),
        Some(_) => (LastBackupStatus::Failed, "Failed"),
        // The jobs of an earlier catalog are not known; its points are.
        None if points > 0 => (LastBackupStatus::Completed, "Completed"),
        None => (LastBackupStatus::InitialBackupPending, "Warning (initial backup pending)"),
    };
    let last_time = last_backup.map(|job| job.create_time).or(newest);
    wire::BackupInstance {
        id: instance.id,
        name: instance.name,
        create_time: Some(convert::time(instance.create_time)),
        source_uri: instance.source_uri,
        source_type: instance.source_type,
        policy: instance.policy,
        region: instance.region,
        protection_state: protection_state.into(),
        last_backup_status: last_backup_status.into(),
        protection_state_text: protection_state_text.to_owned(),
        last_backup_status_text: last_backup_status_text.to_owned(),
        last_backup_time: last_time.map(convert::time),
        next_backup_time: next.map(convert::time),
        point_count: points,
        protection_state_time: since.map(convert::time),
        purge_time: purge_time.map(convert::time),
        // A list would have to read a point of each.
        consistency: String::new(),
        consistency_reason: String::new(),
    }
}

/// How protection is told (D17), and since when it is so.
fn shown(protection: &Protection, point_count: u64) -> (ProtectionState, &'static str, Option<jiff::Timestamp>) {
    match protection {
        Protection::Active if point_count == 0 => {
            (ProtectionState::ProtectionPending, "Protected - (pending initial backup)", None)
        }
        Protection::Active => (ProtectionState::Protected, "Protected", None),
        Protection::Paused { since } => (ProtectionState::Paused, "Paused", Some(*since)),
        Protection::Stopped { since } => (ProtectionState::Stopped, "Stopped - (data retained)", Some(*since)),
        Protection::Deleted { since, .. } | Protection::Purged { since } => {
            (ProtectionState::Stopped, "Stopped - (data deleted)", Some(*since))
        }
    }
}

/// True for two spellings of one region: Azure's portal writes `Korea Central`, its interfaces `koreacentral`.
pub(crate) fn is_same_region(one: &str, other: &str) -> bool {
    let plain = |text: &str| -> String {
        text.chars().filter(|letter| !letter.is_whitespace()).flat_map(char::to_lowercase).collect()
    };
    plain(one) == plain(other)
}

/// True for what an instance may be called.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && !name.chars().any(char::is_control)
}

/// Refuses a policy for another type of source.
pub(super) fn check_type(policy: &policy::Document, source_type: &str) -> Result<(), Problem> {
    if policy.source_type == source_type {
        return Ok(());
    }
    let message = format!("the policy {} is for {}, the source for {source_type}", policy.name, policy.source_type);
    Err(Problem::new(Reason::PolicySourceTypeMismatch, message))
}

/// What holds for every URI from outside; its own plugin reads it closely.
pub(super) fn check_uri(uri: &str) -> Result<(), Problem> {
    if uri.len() > MAX_URI || uri.chars().any(char::is_control) {
        return Err(Problem::new(Reason::InvalidSource, "the URI is too long, or has control characters"));
    }
    if holds_password(uri) {
        return Err(Problem::new(Reason::InvalidSource, "the URI has a password in it, or a port that is no number"));
    }
    source_type(uri).map(|_| ())
}

/// A URI is stored and shown; a password in it must not get that far, whatever its plugin would say of it.
fn holds_password(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let (authority, query) =
        (rest.split(['/', '?']).next().unwrap_or_default(), rest.split_once('?').map_or("", |(_, query)| query));
    let (user_info, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    // An unescaped slash in a password cuts it in two; what is left of it stands where a port should.
    let port = host.rsplit_once(']').map_or(host, |(_, after)| after).split_once(':').map_or("", |(_, port)| port);
    user_info.contains(':')
        || !port.bytes().all(|byte| byte.is_ascii_digit())
        || query
            .to_ascii_lowercase()
            .split('&')
            .any(|pair| pair.split('=').next().is_some_and(|name| name.ends_with("password")))
}

pub(super) fn source_type(uri: &str) -> Result<&'static str, Problem> {
    match uri.split_once("://").map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => Ok("postgres"),
        Some("disk") => Ok("vm"),
        // The URI itself is not repeated: a password may stand in it.
        _ => Err(Problem::new(Reason::InvalidSource, "the URI begins neither with postgres:// nor with disk://")),
    }
}

/// Where to find a password, as the caller told it.
pub(super) fn credential(reference: Option<wire::CredentialReference>) -> Result<Credential, Problem> {
    use wire::credential_reference::From;
    match reference.and_then(|reference| reference.from) {
        None => Ok(Credential::None),
        Some(From::Passfile(path)) if std::path::Path::new(&path).is_absolute() => {
            Ok(Credential::Passfile(PathBuf::from(path)))
        }
        Some(From::Passfile(_)) => {
            Err(Problem::new(Reason::InvalidRequest, "the password file's path must be absolute"))
        }
        Some(From::PasswordEnv(name)) => {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            // A plugin is given this variable: nobody may make it change how programs start.
            if name.is_empty() || name.len() > 128 || !plain || name.starts_with("LD_") || name == "PATH" {
                return Err(Problem::new(
                    Reason::InvalidRequest,
                    "password_env is not the name of a variable for a password",
                ));
            }
            Ok(Credential::PasswordEnv(name))
        }
        Some(From::Identity(identity)) => {
            let kinds = ["managed:", "key-vault:https://", "key-vault:http://"];
            let known = matches!(identity.as_str(), "managed" | "workload")
                || kinds.iter().any(|kind| identity.starts_with(*kind));
            // Its plugin reads it closely. It is not repeated: a secret may have been put there by mistake.
            if !known || identity.len() > MAX_URI || !identity.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message =
                    "identity is not managed, managed:CLIENT-ID, workload, or key-vault: and a secret's address";
                return Err(Problem::new(Reason::InvalidRequest, message));
            }
            Ok(Credential::Identity(identity))
        }
    }
}

/// The record of an operation that took no time.
pub(super) fn done(instance: &Instance, work: Work) -> Job {
    let mut job = job::new_job(instance, work, None, false);
    job.status = JobStatus::Completed { end_time: job.create_time, point_id: None, bytes_read: 0, bytes_stored: 0 };
    job
}

#[tonic::async_trait]
impl BackupInstanceService for Api {
    async fn create_backup_instances(
        &self,
        request: Request<wire::CreateBackupInstancesRequest>,
    ) -> Result<Response<wire::CreateBackupInstancesResponse>, Status> {
        let protected = self.create_instances(request.into_inner()).await?;
        let results = protected.results.iter().map(|looked| looked.to_wire(&protected.instances)).collect();
        let (policy, policy_created) = (protected.policy, protected.policy_created);
        let mut instances = Vec::with_capacity(protected.instances.len());
        for instance in protected.instances {
            instances.push(self.to_wire_instance(instance).await?);
        }
        let answer = wire::CreateBackupInstancesResponse { instances, results, policy, policy_created };
        Ok(Response::new(answer))
    }

    async fn get_backup_instance(
        &self,
        request: Request<wire::GetBackupInstanceRequest>,
    ) -> Result<Response<wire::GetBackupInstanceResponse>, Status> {
        let instance = self.find_instance(&request.into_inner().instance).await?;
        let instance = Some(self.to_wire_instance(instance).await?);
        Ok(Response::new(wire::GetBackupInstanceResponse { instance }))
    }

    async fn list_backup_instances(
        &self,
        request: Request<wire::ListBackupInstancesRequest>,
    ) -> Result<Response<wire::ListBackupInstancesResponse>, Status> {
        Ok(Response::new(self.page_of_instances(request.into_inner()).await?))
    }

    async fn export_repository_key(
        &self,
        request: Request<wire::ExportRepositoryKeyRequest>,
    ) -> Result<Response<wire::ExportRepositoryKeyResponse>, Status> {
        Ok(Response::new(self.export(&request.into_inner().instance).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_uris_are_refused_and_not_repeated() {
        for bad in [
            "postgres://u:secret@h/db",
            "postgres://u:@h",
            "postgresql://u@h/db?sslmode=require&Password=secret",
            "postgres://u:a/b@h",
            "postgres://u@h/db?sslpassword=secret",
        ] {
            let problem = check_uri(bad).expect_err(bad);
            assert_eq!(problem.reason, Reason::InvalidSource);
            assert!(!problem.message.contains("secret"), "{problem}");
        }
        for good in [
            "postgres://u@h:5432/db",
            "postgres://u@/db?host=/a:b&port=1",
            "postgres://h/a@b:c",
            "postgres://u@[::1]:5432/db",
            "postgres://u@[::1]/db",
        ] {
            assert_eq!(check_uri(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_region_is_the_same_however_it_is_spelt() {
        for (one, other, same) in [
            ("koreacentral", "Korea Central", true),
            ("eastus", "East US", true),
            ("eastus", "eastus2", false),
            ("West US", "East US", false),
        ] {
            assert_eq!(is_same_region(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn only_variables_for_passwords_are_passed_on() {
        use wire::credential_reference::From;
        let from = |from| credential(Some(wire::CredentialReference { from: Some(from) }));
        assert!(from(From::PasswordEnv("SHOP_PASSWORD".to_owned())).is_ok());
        for bad in ["", "LD_PRELOAD", "PATH", "A=B"] {
            assert!(from(From::PasswordEnv(bad.to_owned())).is_err(), "{bad}");
        }
        assert!(from(From::Passfile("relative".to_owned())).is_err());
        for good in ["managed", "managed:1-2", "workload", "key-vault:https://v.vault.azure.net/secrets/s"] {
            assert!(from(From::Identity(good.to_owned())).is_ok(), "{good}");
        }
        for bad in ["", "hunter2", "managedx", "workload:", "managed:a b", "key-vault:", "managed:\n"] {
            let problem = from(From::Identity(bad.to_owned())).expect_err(bad);
            assert!(!problem.message.contains("hunter2"), "{problem}");
        }
    }
}
