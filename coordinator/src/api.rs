//! The gRPC API: one file for each service. Wire types end here: `convert` is the one place that knows both sides.
//!
//! Invariants:
//! - A local socket is for its owner (mode 0600): who can open it may do everything.
//! - Every failure is a [`Problem`] with a reason and a fix.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::{DESCRIPTORS, Problem, Reason};
use vaultferry_vault::records::VaultRecord;

use crate::catalog::{Catalog, Instance, Job, Point};
use crate::job::{Jobs, Shared};

pub(crate) use instance::is_same_region;

mod convert;
mod discover;
mod instance;
mod job;
mod lifecycle;
mod maintenance;
mod point;
mod policy;
mod readiness;
mod restore;
mod server;
mod settings;
mod summary;
mod vault;

/// What every service of the API works on. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    catalog: Arc<dyn Catalog>,
    shared: Arc<Shared>,
    jobs: Jobs,
    vault: Arc<VaultRecord>,
    changed: Arc<Notify>,
    stopping: CancellationToken,
    /// One hold or release at a time: a release lets go of what no point that is held by then needs.
    holding: Arc<tokio::sync::Mutex<()>>,
    /// One change of a policy, of which instances are linked to it, or of an instance's name or source, at a time: what is linked is not
    /// deleted, and what was found free stays free.
    policies: Arc<tokio::sync::Mutex<()>>,
    /// What the scans of servers have found in this life.
    scans: Arc<server::Scans>,
}

impl Api {
    pub(crate) fn new(
        catalog: Arc<dyn Catalog>,
        shared: Arc<Shared>,
        jobs: Jobs,
        vault: VaultRecord,
        changed: Arc<Notify>,
    ) -> Self {
        let (stopping, holding, policies, scans) =
            (CancellationToken::new(), Arc::default(), Arc::default(), Arc::default());
        Self { catalog, shared, jobs, vault: Arc::new(vault), changed, stopping, holding, policies, scans }
    }

    /// The same for calls that this process makes itself: they end when the agent stops.
    pub(crate) fn until(self, stopping: CancellationToken) -> Self {
        Self { stopping, ..self }
    }

    /// Serves on every socket until `shutdown`; calls that run may end.
    pub(crate) async fn serve(mut self, listen: &[PathBuf], shutdown: CancellationToken) -> Result<(), Problem> {
        // Watchers hold their calls open; they are let go when the agent stops.
        self.stopping = shutdown.clone();
        let (health, health_service) = tonic_health::server::health_reporter();
        let names = [
            "",
            "vaultferry.control.v1.VaultService",
            "vaultferry.control.v1.PolicyService",
            "vaultferry.control.v1.BackupInstanceService",
            "vaultferry.control.v1.InstanceLifecycleService",
            "vaultferry.control.v1.SourceService",
            "vaultferry.control.v1.BackupService",
            "vaultferry.control.v1.RecoveryPointService",
            "vaultferry.control.v1.RestoreService",
            "vaultferry.control.v1.RestorePlanService",
            "vaultferry.control.v1.JobService",
            "vaultferry.control.v1.MaintenanceService",
            "vaultferry.control.v1.SummaryService",
        ];
        for name in names {
            health.set_service_status(name, tonic_health::ServingStatus::Serving).await;
        }
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| Problem::new(Reason::Internal, error.to_string()))?;
        let router = Server::builder()
            .add_service(health_service)
            .add_service(reflection)
            .add_service(wire::vault_service_server::VaultServiceServer::new(self.clone()))
            .add_service(wire::policy_service_server::PolicyServiceServer::new(self.clone()))
            .add_service(wire::backup_instance_service_server::BackupInstanceServiceServer::new(self.clone()))
            .add_service(wire::instance_lifecycle_service_server::InstanceLifecycleServiceServer::new(self.clone()))
            .add_service(wire::source_service_server::SourceServiceServer::new(self.clone()))
            .add_service(wire::backup_service_server::BackupServiceServer::new(self.clone()))
            .add_service(wire::recovery_point_service_server::RecoveryPointServiceServer::new(self.clone()))
            .add_service(wire::restore_service_server::RestoreServiceServer::new(self.clone()))
            .add_service(wire::restore_plan_service_server::RestorePlanServiceServer::new(self.clone()))
            .add_service(wire::job_service_server::JobServiceServer::new(self.clone()))
            .add_service(wire::maintenance_service_server::MaintenanceServiceServer::new(self.clone()))
            .add_service(wire::summary_service_server::SummaryServiceServer::new(self));
        sockets::serve(router, listen, shutdown).await
    }

    /// Only the vault's owner adds to it.
    async fn check_owner(&self) -> Result<(), Problem> {
        Ok(crate::owner::check(&self.shared.vault, &self.shared.agent_id, &self.stopping).await?)
    }

    /// The instance of that name or id.
    async fn find_instance(&self, name: &str) -> Result<Instance, Problem> {
        let missing = || Problem::new(Reason::InstanceNotFound, format!("no backup instance is called {name:?}"));
        self.catalog.instance(name).await?.ok_or_else(missing)
    }

    /// The instance's listed point: an id or a beginning of one, or the latest for "latest" and "".
    async fn find_point(&self, instance: &Instance, point: &str) -> Result<Point, Problem> {
        if point.is_empty() || point == "latest" {
            let newest = self.catalog.points(&instance.id, None, 1).await?.pop();
            let message = format!("{} has no recovery point yet", instance.name);
            return newest.ok_or_else(|| Problem::new(Reason::NoRecoveryPoint, message));
        }
        let point = self.find_any_point(instance, point).await?;
        if point.standing.purge_time.is_some() {
            let message = format!("the point {} of {} is deleted", point.id, instance.name);
            let fix = format!("Bring it back first: vaultferry point undelete {} {}.", instance.name, point.id);
            return Err(Problem::new(Reason::PointNotFound, message).with_fix(fix));
        }
        Ok(point)
    }

    /// The same, listed or deleted; by its id only: what is to be deleted is named.
    async fn find_any_point(&self, instance: &Instance, point: &str) -> Result<Point, Problem> {
        let not_found = |detail: &str| {
            Problem::new(Reason::PointNotFound, format!("{} has {detail} point {point:?}", instance.name))
        };
        if point.len() < 6 || !point.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found("no")
                .with_fix("Name a point by at least 6 digits of its id: vaultferry point list INSTANCE."));
        }
        let mut points = self.catalog.points_by_prefix(&instance.id, point).await?;
        match (points.pop(), points.is_empty()) {
            (Some(point), true) => Ok(point),
            (Some(_), false) => Err(not_found("more than one")),
            (None, _) => Err(not_found("no")),
        }
    }
}

/// A job as the API shows it in lists, without the progress of one that runs.
pub(crate) fn job_message(job: Job) -> wire::Job {
    convert::job(job, None)
}

/// What a point was when it was committed. It has no name and no end: these change with its instance and its policy.
pub(crate) fn point_message(point: Point) -> wire::RecoveryPoint {
    wire::RecoveryPoint { name: String::new(), ..convert::point(point, "", None) }
}

/// The id under which the catalog knows a caller's request; `None` for an empty one, which is known to nobody.
pub(crate) fn request_key(request_id: &str) -> Result<Option<String>, Problem> {
    restore::request_id_of(request_id)
}

#[cfg(unix)]
mod sockets {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use futures::future::try_join_all;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::transport::server::Router;

    use super::{CancellationToken, PathBuf, Problem, Reason};

    /// Serves on every socket; removes them at the end.
    pub(super) async fn serve(router: Router, listen: &[PathBuf], shutdown: CancellationToken) -> Result<(), Problem> {
        let mut serving = Vec::new();
        for path in listen {
            let listener = bind(path).await?;
            let incoming = UnixListenerStream::new(listener);
            serving.push(router.clone().serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()));
        }
        tracing::info!(listen = ?listen, "ready");
        let served = try_join_all(serving).await;
        for path in listen {
            // A socket that stays behind is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
        served.map(|_| ()).map_err(|error| Problem::new(Reason::Internal, vaultferry_proto::status::chain(&error)))
    }

    async fn bind(path: &Path) -> Result<UnixListener, Problem> {
        let cannot = |error: std::io::Error| {
            Problem::new(Reason::InvalidConfiguration, format!("cannot listen at {}: {error}", path.display()))
                .with_fix("Name another socket in `listen`, or give the agent's user the right to make this one.")
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(cannot)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(cannot(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another program answers there")));
        }
        match std::fs::symlink_metadata(path) {
            Ok(file) if std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()) => {
                std::fs::remove_file(path).map_err(cannot)?;
            }
            Ok(_) => return Err(cannot(std::io::Error::other("there is something else than a socket"))),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(cannot)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        Ok(listener)
    }
}

#[cfg(not(unix))]
mod sockets {
    use tonic::transport::server::Router;

    use super::{CancellationToken, PathBuf, Problem, Reason};

    pub(super) async fn serve(_: Router, _: &[PathBuf], _: CancellationToken) -> Result<(), Problem> {
        Err(Problem::new(Reason::InvalidConfiguration, "local control is not supported on this system yet"))
    }
}
