//! `BackupService` and `RestoreService`: what starts jobs. `RestorePlanService` tells what a restore would meet (`plan.rs`).

use std::path::Path;

use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::backup_service_server::BackupService;
use vaultferry_proto::control::v1::restore_service_server::RestoreService;
use vaultferry_proto::control::v1::{
    Job as WireJob, StartBackupRequest, StartBackupResponse, StartRestoreDatabaseRequest, StartRestoreDatabaseResponse,
    StartRestoreDiskRequest, StartRestoreDiskResponse, StartRestoreFilesRequest, StartRestoreFilesResponse,
};
use vaultferry_proto::{Problem, Reason};

use super::{Api, instance};
use crate::LEAST_READ_BYTES_PER_S;
use crate::catalog::{Instance, RestoreOptions, Work};
use crate::policy::{self, DEFAULT_RULE};

mod plan;

/// Longest path or URI of a target.
const MAX_TARGET: usize = 4096;
/// Schemas or tables of one restore: they are stored with its job.
const MAX_CHOSEN: usize = 1000;
/// Longest name of a chosen schema or table in bytes: two names of 63 bytes, every one of them a quote that is doubled.
const MAX_CHOSEN_NAME: usize = 300;

impl Api {
    async fn start(&self, instance: &Instance, work: Work, request_id: &str) -> Result<WireJob, Problem> {
        self.start_job(instance, work, request_id_of(request_id)?).await
    }

    async fn backup(&self, request: StartBackupRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let document = policy::parse(&self.find_policy(&instance.policy).await?.document)?;
        let (rule, keep_until) = match (request.rule, request.keep_until) {
            (rule, keep_until) if keep_until.is_empty() => {
                let rule = if rule.is_empty() { DEFAULT_RULE.to_owned() } else { rule };
                document.rule(&rule)?;
                (rule, None)
            }
            // D4: the one or the other.
            (rule, keep_until) if rule.is_empty() => {
                (rule, Some(policy::keep_until(&document, &keep_until, vaultferry_vault::clock::now())?))
            }
            _ => {
                let message = "a point is kept by a rule or until a date, not both";
                return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Leave rule or keep_until out."));
            }
        };
        let read_bytes_per_s = match request.read_bytes_per_s {
            0 => None,
            bytes if bytes >= LEAST_READ_BYTES_PER_S => Some(bytes),
            bytes => {
                let message =
                    format!("a source is read with {LEAST_READ_BYTES_PER_S} bytes per second or more, not {bytes}");
                return Err(Problem::new(Reason::InvalidRequest, message));
            }
        };
        let work = Work::Backup { rule, slot: None, keep_until, read_bytes_per_s };
        self.start(&instance, work, &request.request_id).await
    }

    async fn restore_database(&self, request: StartRestoreDatabaseRequest) -> Result<WireJob, Problem> {
        let request_id = request.request_id.clone();
        let (instance, work) = self.database_work(request).await?;
        self.start(&instance, work, &request_id).await
    }

    /// What a restore into a database is to do, checked as far as the agent can.
    async fn database_work(&self, request: StartRestoreDatabaseRequest) -> Result<(Instance, Work), Problem> {
        let instance = self.find_instance(&request.instance).await?;
        if instance.source_type != "postgres" {
            let message = format!("{} is not a database", instance.name);
            return Err(Problem::new(Reason::InvalidRequest, message));
        }
        instance::check_uri(&request.target_uri)?;
        self.check_region(&request.target_region, "target")?;
        // PostgreSQL's own limit for a name is 63 bytes; what is longer would be cut off silently.
        if request.database.is_empty() || request.database.len() > 63 || request.database.contains('\0') {
            let message = "the new database needs a name of 1 to 63 bytes";
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Name it with --database."));
        }
        check_chosen("schema", &request.schemas)?;
        check_chosen("table", &request.tables)?;
        if !matches!(request.verify.as_str(), "" | "full" | "sample" | "none") {
            let message = format!("{:?} is no kind of verification", request.verify);
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Say full, sample or none."));
        }
        let options = RestoreOptions {
            schemas: request.schemas,
            tables: request.tables,
            globals: request.globals,
            keep_failed: request.keep_failed,
            verify: request.verify,
        };
        let point = self.find_point(&instance, &request.point).await?;
        let work = Work::RestoreDatabase {
            point_id: point.id,
            target_uri: request.target_uri,
            database: request.database,
            no_owner: request.no_owner,
            credential: instance::credential(request.credential)?,
            options,
        };
        Ok((instance, work))
    }

    async fn restore_files(&self, request: StartRestoreFilesRequest) -> Result<WireJob, Problem> {
        let instance = self.find_instance(&request.instance).await?;
        let to = request.to;
        if to.len() > MAX_TARGET || !(to.starts_with("azure://") || Path::new(&to).is_absolute()) {
            let message = format!("{to:?} is neither an absolute folder nor azure://account/container");
            return Err(Problem::new(Reason::InvalidRequest, message).with_fix("Correct --to."));
        }
        // P65: an account of any subscription, in the vault's region.
        self.check_region(&request.target_region, "storage account")?;
        let point = self.find_point(&instance, &request.point).await?;
        let work = Work::RestoreFiles { point_id: point.id, to, credential_env: request.credential_env };
        self.start(&instance, work, &request.request_id).await
    }
}

impl Api {
    /// What is said of the target is looked at by the plugin, which has the right to.
    async fn restore_disk(&self, request: StartRestoreDiskRequest) -> Result<WireJob, Problem> {
        let invalid = |message: String| Problem::new(Reason::InvalidRequest, message);
        let instance = self.find_instance(&request.instance).await?;
        if instance.source_type != "vm" {
            let fix = "Restore it as a database or as files: vaultferry restore database, vaultferry restore files.";
            return Err(invalid(format!("{} has no disks", instance.name)).with_fix(fix));
        }
        for path in [&request.to, &request.overwrite] {
            if path.len() > MAX_TARGET || path.contains('\0') || !(path.is_empty() || Path::new(path).is_absolute()) {
                return Err(invalid(format!("{path:?} is no absolute path")).with_fix("Correct --to."));
            }
        }
        if request.to.is_empty() {
            return Err(invalid("the restore needs a target".to_owned()).with_fix("Name it with --to."));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric();
        if request.disk.len() > 64 || !request.disk.bytes().all(is_plain) {
            return Err(invalid(format!("{:?} is no name of a disk", request.disk)).with_fix("Say disk0, disk1, ...."));
        }
        let point = self.find_point(&instance, &request.point).await?;
        let StartRestoreDiskRequest { to, disk, overwrite, request_id, .. } = request;
        self.start(&instance, Work::RestoreDisk { point_id: point.id, to, disk, overwrite }, &request_id).await
    }
}

/// Schemas or tables that a restore is to bring back. Whether the point has them is the plugin's to say.
fn check_chosen(what: &str, names: &[String]) -> Result<(), Problem> {
    let invalid = |message: String| Err(Problem::new(Reason::InvalidRequest, message));
    if names.len() > MAX_CHOSEN {
        return invalid(format!("at most {MAX_CHOSEN} names of the kind {what} are possible, not {}", names.len()));
    }
    match names.iter().any(|name| name.is_empty() || name.len() > MAX_CHOSEN_NAME || name.contains('\0')) {
        true => invalid(format!("the name of a {what} has 1 to {MAX_CHOSEN_NAME} bytes and no NUL in it")),
        false => Ok(()),
    }
}

/// A caller's own id for a request, kept apart from ours.
pub(super) fn request_id_of(text: &str) -> Result<Option<String>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    match uuid::Uuid::parse_str(text) {
        Ok(id) => Ok(Some(format!("request:{}", id.simple()))),
        Err(_) => Err(Problem::new(Reason::InvalidRequest, "request_id is not a UUID")),
    }
}

#[tonic::async_trait]
impl BackupService for Api {
    async fn start_backup(
        &self,
        request: Request<StartBackupRequest>,
    ) -> Result<Response<StartBackupResponse>, Status> {
        let job = self.backup(request.into_inner()).await?;
        Ok(Response::new(StartBackupResponse { job: Some(job) }))
    }
}

#[tonic::async_trait]
impl RestoreService for Api {
    async fn start_restore_database(
        &self,
        request: Request<StartRestoreDatabaseRequest>,
    ) -> Result<Response<StartRestoreDatabaseResponse>, Status> {
        let job = self.restore_database(request.into_inner()).await?;
        Ok(Response::new(StartRestoreDatabaseResponse { job: Some(job) }))
    }

    async fn start_restore_files(
        &self,
        request: Request<StartRestoreFilesRequest>,
    ) -> Result<Response<StartRestoreFilesResponse>, Status> {
        let job = self.restore_files(request.into_inner()).await?;
        Ok(Response::new(StartRestoreFilesResponse { job: Some(job) }))
    }

    async fn start_restore_disk(
        &self,
        request: Request<StartRestoreDiskRequest>,
    ) -> Result<Response<StartRestoreDiskResponse>, Status> {
        let job = self.restore_disk(request.into_inner()).await?;
        Ok(Response::new(StartRestoreDiskResponse { job: Some(job) }))
    }
}
