//! The catalog in a SQLite file: WAL, `synchronous=FULL`, one thread that owns the connection.
//!
//! Objects are JSON in `body` beside the columns that are searched by.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;
use vaultferry_vault::{Id, commit};

use super::link::OUTBOX_PAGE;
use super::{
    Catalog, Error, ExpiryRun, Figures, Finding, Inserted, Instance, InstanceFigures, Job, JobFilter, JobStep,
    ListedInstance, OutboxEntry, PluginProcess, Point, Policy, Report, Retry, Server, Standing, Status, StoredProblem,
};

#[cfg(test)]
pub(crate) mod here;
mod jobs;
mod journal;
mod link;
mod points;
mod protection;
mod recent;
mod retries;
mod schema;
mod summary;
mod values;

pub use journal::single_file;

use recent::{Changes, Recent};
use values::{Failure, bodies, body, decode, time_from};

type Task = Box<dyn FnOnce(&mut Connection) + Send>;

/// An open catalog file.
#[derive(Debug)]
pub struct Sqlite {
    path: String,
    tasks: Tasks,
    /// Changes of instances and policies that this process has made; nobody else writes the file.
    generation: Arc<AtomicU64>,
    /// The same of the points of each instance, by its id.
    point_changes: Arc<Changes>,
    /// All points of some instances.
    recent: Arc<Recent>,
}

/// Where transactions are done.
#[derive(Debug)]
enum Tasks {
    /// On a thread that does nothing else.
    Thread(mpsc::Sender<Task>),
    #[cfg(test)]
    Here(here::Here),
}

impl Tasks {
    /// False when nobody does them any more.
    fn send(&self, task: Task) -> bool {
        match self {
            Self::Thread(tasks) => tasks.send(task).is_ok(),
            #[cfg(test)]
            Self::Here(here) => here.run(task),
        }
    }

    /// Where a simulation may kill the process.
    async fn step(&self) {
        #[cfg(test)]
        if let Self::Here(here) = self {
            here.step().await;
        }
    }
}

impl Sqlite {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let connection =
            schema::connect(path).map_err(|error| Error::Database { path: name.clone(), detail: error.to_string() })?;
        let (tasks, waiting) = mpsc::channel::<Task>();
        let run = move || {
            let mut connection = connection;
            while let Ok(task) = waiting.recv() {
                task(&mut connection);
            }
        };
        std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(run)
            .map_err(|error| Error::Database { path: name.clone(), detail: error.to_string() })?;
        Ok(Self::with(name, Tasks::Thread(tasks)))
    }

    fn with(path: String, tasks: Tasks) -> Self {
        let (generation, point_changes, recent) = (Arc::default(), Arc::default(), Arc::default());
        Self { path, tasks, generation, point_changes, recent }
    }

    /// Closes the catalog; everything is in one file then, without a journal beside it.
    pub async fn into_single_file(self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let _ = answer.send(journal::fold(connection));
        });
        let failed = |detail: String| Error::Database { path: self.path.clone(), detail };
        if !self.tasks.send(task) {
            return Err(failed("its thread is gone".to_owned()));
        }
        let folded = answered.await.map_err(|_| failed("its thread is gone".to_owned()))?;
        folded.map_err(|error| failed(error.to_string()))
    }

    /// Takes over jobs that have ended, with what they found, from another catalog; those that are there are left as they are.
    pub(crate) async fn insert_history(&self, jobs: Vec<(Job, Vec<Finding>)>) -> Result<(), Error> {
        self.run(move |tx| jobs.iter().try_for_each(|(job, findings)| jobs::insert_ended(tx, job, findings))).await
    }

    async fn instance_time(&self, sql: &'static str, instance_id: &str) -> Result<Option<jiff::Timestamp>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let time: Option<i64> = tx.prepare_cached(sql)?.query_row([instance_id], |row| row.get(0)).optional()?;
            time.map(time_from).transpose()
        })
        .await
    }

    async fn set_instance_time(
        &self,
        sql: &'static str,
        instance_id: &str,
        time: jiff::Timestamp,
    ) -> Result<(), Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            tx.prepare_cached(sql)?.execute(params![instance_id, time.as_microsecond()])?;
            Ok(())
        })
        .await
    }

    /// Runs a transaction on the catalog's thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        self.run_then(work, || {}).await
    }

    /// The same for a change of instances or policies.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let generation = self.generation.clone();
        self.run_then(work, move || {
            generation.fetch_add(1, Ordering::SeqCst);
        })
        .await
    }

    /// The same for a change of points of these instances.
    async fn change_points<T: Send + 'static>(
        &self,
        instance_ids: Vec<String>,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let changes = self.point_changes.clone();
        self.run_then(work, move || changes.count(instance_ids)).await
    }

    /// `committed` is called on the catalog's thread when the transaction has happened, whether or not anybody still waits for it.
    async fn run_then<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
        committed: impl FnOnce() + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let result = (|| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let value = work(&transaction)?;
                transaction.commit()?;
                committed();
                Ok(value)
            })();
            // Nobody waits any more when the future was dropped.
            let _ = answer.send(result);
        });
        let gone = || Error::Database { path: self.path.clone(), detail: "its thread is gone".to_owned() };
        self.tasks.step().await;
        if !self.tasks.send(task) {
            return Err(gone());
        }
        let answer = answered.await.map_err(|_| gone())?;
        self.tasks.step().await;
        answer.map_err(|failure| match failure {
            Failure::Taken(what) => Error::Taken(what),
            Failure::Sqlite(error) => Error::Database { path: self.path.clone(), detail: error.to_string() },
            Failure::Body(error) => Error::Database { path: self.path.clone(), detail: error },
        })
    }
}

#[async_trait]
impl Catalog for Sqlite {
    async fn generation(&self) -> Result<u64, Error> {
        Ok(self.generation.load(Ordering::SeqCst))
    }

    async fn point_changes(&self, instance_id: &str) -> Result<u64, Error> {
        Ok(self.point_changes.of(instance_id))
    }

    async fn insert_policy(&self, policy: Policy) -> Result<(), Error> {
        self.change(move |tx| protection::insert_policy(tx, &policy)).await
    }

    async fn change_policy(&self, policy: Policy, slots: Vec<(String, jiff::Timestamp)>) -> Result<(), Error> {
        self.change(move |tx| {
            protection::insert_policy(tx, &policy)?;
            protection::advance_slots(tx, &slots)
        })
        .await
    }

    async fn policy(&self, name: &str) -> Result<Option<Policy>, Error> {
        let name = name.to_owned();
        self.run(move |tx| Ok(protection::policies(tx, "(p.name = ?1 or p.id = ?1)", [name])?.into_iter().next())).await
    }

    async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.run(|tx| protection::policies(tx, "true", [])).await
    }

    async fn policy_versions(&self, name: &str) -> Result<Vec<Policy>, Error> {
        let name = name.to_owned();
        self.run(move |tx| protection::policy_versions(tx, "name = ?1", [name])).await
    }

    async fn begin_instances(&self, instances: Vec<Instance>) -> Result<(), Error> {
        self.run(move |tx| protection::begin_instances(tx, &instances)).await
    }

    async fn unmade_instances(&self) -> Result<Vec<Instance>, Error> {
        self.run(|tx| bodies(tx, "select body from unmade order by instance_id", [])).await
    }

    async fn forget_unmade(&self, instance_id: &str) -> Result<(), Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| protection::forget_unmade(tx, &instance_id)).await
    }

    async fn insert_instances(&self, instances: Vec<Instance>) -> Result<(), Error> {
        self.change(move |tx| protection::insert_instances(tx, &instances)).await
    }

    async fn instance(&self, name: &str) -> Result<Option<Instance>, Error> {
        let name = name.to_owned();
        self.run(move |tx| {
            body(tx, "select body from instances where id = ?1 or name = ?1 order by id = ?1 desc", [name])
        })
        .await
    }

    async fn instance_of_source(&self, identity: &str) -> Result<Option<Instance>, Error> {
        let identity = identity.to_owned();
        self.run(move |tx| body(tx, "select body from instances where identity = ?1", [identity])).await
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        self.run(|tx| bodies(tx, "select body from instances order by name", [])).await
    }

    async fn instances_page(
        &self,
        deleted: bool,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<ListedInstance>, Error> {
        self.run(move |tx| summary::page_of_instances(tx, deleted, after.as_deref(), limit)).await
    }

    async fn save_instance(&self, instance: Instance) -> Result<(), Error> {
        self.change(move |tx| protection::save_instance(tx, &instance)).await
    }

    async fn remove_instance(&self, instance_id: &str) -> Result<(), Error> {
        let instance_id = instance_id.to_owned();
        self.change(move |tx| protection::remove_instance(tx, &instance_id)).await
    }

    async fn servers(&self) -> Result<Vec<Server>, Error> {
        self.run(|tx| bodies(tx, "select body from servers order by name, id", [])).await
    }

    async fn save_server(&self, server: Server) -> Result<(), Error> {
        self.run(move |tx| protection::save_server(tx, &server)).await
    }

    async fn remove_server(&self, server_id: &str) -> Result<(), Error> {
        let server_id = server_id.to_owned();
        self.run(move |tx| {
            tx.execute("delete from servers where id = ?1", [server_id])?;
            Ok(())
        })
        .await
    }

    async fn insert_job(&self, job: Job) -> Result<Inserted, Error> {
        self.run(move |tx| jobs::insert(tx, &job)).await
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, Error> {
        if id.len() < 4 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let from = id.to_ascii_lowercase();
        self.run(move |tx| jobs::find(tx, &from)).await
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, Error> {
        self.run(move |tx| jobs::list_like(tx, &filter, &[], &[])).await
    }

    async fn jobs_like(
        &self,
        filter: JobFilter,
        statuses: &'static [&'static str],
        operations: &'static [&'static str],
    ) -> Result<Vec<Job>, Error> {
        self.run(move |tx| jobs::list_like(tx, &filter, statuses, operations)).await
    }

    async fn jobs_of(
        &self,
        instance_id: &str,
        operations: &'static [&'static str],
        from: jiff::Timestamp,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| jobs::list_of(tx, &instance_id, operations, from, limit)).await
    }

    async fn last_backup(&self, instance_id: &str) -> Result<Option<Job>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| jobs::last_backup(tx, &instance_id)).await
    }

    async fn unfinished_jobs(&self) -> Result<Vec<Job>, Error> {
        let sql = format!("select body from jobs where {} order by create_time", jobs::UNFINISHED);
        self.run(move |tx| bodies(tx, &sql, [])).await
    }

    async fn set_status(&self, job_id: &str, status: Status, warnings: Vec<StoredProblem>) -> Result<bool, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::save_status(tx, &job_id, status, warnings)).await
    }

    async fn fail_and_retry(&self, job_id: &str, status: Status, retry: Retry) -> Result<bool, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| retries::fail(tx, &job_id, status, &retry)).await
    }

    async fn retries(&self) -> Result<Vec<Retry>, Error> {
        self.run(|tx| bodies(tx, "select body from retries order by due, instance_id", [])).await
    }

    async fn remove_retry(&self, retry: Retry) -> Result<(), Error> {
        self.run(move |tx| retries::remove(tx, &retry)).await
    }

    async fn set_steps(&self, job_id: &str, steps: Vec<JobStep>) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::set_steps(tx, &job_id, steps)).await
    }

    async fn set_report(&self, job_id: &str, report: Report, findings: Vec<Finding>) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::set_report(tx, &job_id, report, &findings)).await
    }

    async fn findings(&self, job_id: &str) -> Result<Vec<Finding>, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::findings(tx, &job_id)).await
    }

    async fn set_rehydrating(&self, job_id: &str, rehydrating: bool) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::set_rehydrating(tx, &job_id, rehydrating)).await
    }

    async fn set_queued(&self, job_id: &str, queued: bool) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| jobs::change(tx, &job_id, |job| job.queued = queued).map(|_| ())).await
    }

    async fn set_plugin_process(&self, process: PluginProcess) -> Result<(), Error> {
        self.run(move |tx| jobs::set_plugin_process(tx, &process)).await
    }

    async fn clear_plugin_process(&self, job_id: &str) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            tx.prepare_cached("delete from plugin_processes where job_id = ?1")?.execute([job_id])?;
            Ok(())
        })
        .await
    }

    async fn plugin_processes(&self) -> Result<Vec<PluginProcess>, Error> {
        self.run(jobs::plugin_processes).await
    }

    async fn stage(&self, job_id: &str, record: commit::Record) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| points::stage(tx, &job_id, &record)).await
    }

    async fn staged(&self, job_id: &str) -> Result<Option<commit::Record>, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| points::staged(tx, &job_id)).await
    }

    async fn complete_backup(&self, job_id: &str, point: Point, warnings: Vec<StoredProblem>) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.change_points(vec![point.instance_id.clone()], move |tx| {
            points::insert(tx, &point, false)?;
            let now = vaultferry_vault::clock::now();
            link::queue_commit(tx, &job_id, &point, now)?;
            let status = Status::Completed {
                end_time: now,
                point_id: Some(point.id),
                bytes_read: point.source_bytes,
                bytes_stored: point.stored_bytes,
            };
            jobs::save_status(tx, &job_id, status, warnings)?;
            Ok(())
        })
        .await
    }

    async fn points(
        &self,
        instance_id: &str,
        before: Option<(jiff::Timestamp, Id)>,
        limit: u32,
    ) -> Result<Vec<Point>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| points::page(tx, &instance_id, false, before, limit)).await
    }

    async fn deleted_points(
        &self,
        instance_id: &str,
        before: Option<(jiff::Timestamp, Id)>,
        limit: u32,
    ) -> Result<Vec<Point>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| points::page(tx, &instance_id, true, before, limit)).await
    }

    async fn all_points(&self, instance_id: &str) -> Result<Arc<Vec<Point>>, Error> {
        if let Some(points) = self.recent.get(instance_id, self.point_changes.of(instance_id)) {
            return Ok(points);
        }
        let (id, changes, recent) = (instance_id.to_owned(), self.point_changes.clone(), self.recent.clone());
        self.run(move |tx| {
            // No change comes between: they are counted on this thread.
            let as_of = changes.of(&id);
            let points = Arc::new(points::all(tx, &id)?);
            recent.note(id, as_of, points.clone());
            Ok(points)
        })
        .await
    }

    async fn set_standings(&self, instance_id: &str, standings: Vec<(Id, Option<Standing>)>) -> Result<(), Error> {
        let (id, changed_id) = (instance_id.to_owned(), instance_id.to_owned());
        let (changes, noted) = (self.point_changes.clone(), Arc::new(AtomicBool::new(false)));
        let has_changed = noted.clone();
        self.run_then(
            move |tx| {
                for (point_id, standing) in standings {
                    if points::set_standing(tx, &id, &point_id, standing)? {
                        noted.store(true, Ordering::Relaxed);
                    }
                }
                Ok(())
            },
            move || {
                if has_changed.load(Ordering::Relaxed) {
                    changes.count([changed_id]);
                }
            },
        )
        .await
    }

    async fn insert_points(&self, points: Vec<Point>) -> Result<(), Error> {
        let mut instance_ids: Vec<String> = points.iter().map(|point| point.instance_id.clone()).collect();
        instance_ids.dedup();
        self.change_points(instance_ids, move |tx| points.iter().try_for_each(|point| points::insert(tx, point, false)))
            .await
    }

    async fn points_by_prefix(&self, instance_id: &str, prefix: &str) -> Result<Vec<Point>, Error> {
        let (instance_id, prefix) = (instance_id.to_owned(), prefix.to_ascii_lowercase());
        self.run(move |tx| points::by_prefix(tx, &instance_id, &prefix)).await
    }

    async fn point_count(&self, instance_id: &str) -> Result<u64, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let sql = "select count(*) from points where instance_id = ?1 and deleted = 0";
            let count: i64 = tx.prepare_cached(sql)?.query_row([instance_id], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
        .await
    }

    async fn outbox(&self) -> Result<Vec<OutboxEntry>, Error> {
        self.run(|tx| {
            let mut statement = tx.prepare_cached("select job_id, body from outbox order by create_time limit ?1")?;
            let rows =
                statement.query_map([OUTBOX_PAGE], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (job_id, text) = row?;
                Ok(OutboxEntry { job_id, point: decode(&text)? })
            })
            .collect()
        })
        .await
    }

    async fn acknowledge(&self, job_ids: Vec<String>) -> Result<(), Error> {
        self.run(move |tx| link::acknowledge(tx, job_ids)).await
    }

    async fn last_slot(&self, instance_id: &str) -> Result<Option<jiff::Timestamp>, Error> {
        self.instance_time("select slot from slots where instance_id = ?1", instance_id).await
    }

    async fn last_slots(&self) -> Result<HashMap<String, jiff::Timestamp>, Error> {
        self.run(protection::last_slots).await
    }

    async fn set_last_slot(&self, instance_id: &str, slot: jiff::Timestamp) -> Result<(), Error> {
        let sql = "insert or replace into slots(instance_id, slot) values (?1, ?2)";
        self.set_instance_time(sql, instance_id, slot).await
    }

    async fn expiry_run(&self, instance_id: &str) -> Result<Option<ExpiryRun>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| protection::expiry_run(tx, &instance_id)).await
    }

    async fn set_expiry_run(&self, instance_id: &str, run: ExpiryRun) -> Result<(), Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| protection::set_expiry_run(tx, &instance_id, &run)).await
    }

    async fn figures(&self, since: jiff::Timestamp) -> Result<Figures, Error> {
        self.run(move |tx| protection::figures(tx, since)).await
    }

    async fn instance_figures(
        &self,
        since: jiff::Timestamp,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<InstanceFigures>, Error> {
        self.run(move |tx| summary::of_instances(tx, since, offset, limit)).await
    }

    async fn stored_since(&self, since: jiff::Timestamp) -> Result<u64, Error> {
        self.run(move |tx| summary::stored_since(tx, since)).await
    }

    async fn all_policies(&self) -> Result<Vec<Policy>, Error> {
        self.run(|tx| protection::policy_versions(tx, "true", [])).await
    }
}

#[cfg(test)]
mod tests;
