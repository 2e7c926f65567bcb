//! The catalog in a SQLite file: WAL, `synchronous=FULL`, one thread that owns the connection.
//!
//! Objects are JSON in `body` beside the columns that are searched by. `user_version` is the schema's version; migrations only add.

use std::path::Path;
use std::sync::mpsc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use vaultferry_vault::{Id, commit};

use super::{
    Catalog, Error, Figures, Inserted, Instance, Job, JobFilter, OutboxEntry, PluginProcess, Point, Policy, Status,
    StoredProblem, Work,
};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
create table policies(name text not null, version integer not null, id text not null, create_time integer not null,
    document text not null, primary key(name, version)) strict;
create table instances(id text primary key, name text not null unique, identity text not null unique, body text not null) strict;
create table jobs(id text primary key, create_time integer not null, instance_id text not null, operation text not null,
    status text not null, request_id text unique, body text not null) strict;
create index jobs_by_time on jobs(create_time);
create index jobs_by_instance on jobs(instance_id, operation, create_time);
create index jobs_unfinished on jobs(status) where status in ('in-progress', 'cancelling');
create table plugin_processes(job_id text primary key, pid integer not null, start_time integer not null) strict;
create table staged(job_id text primary key, snapshot_id text not null, sealed blob not null, prune_epoch integer not null,
    packs blob not null, time integer not null, created text not null) strict;
create table points(instance_id text not null, id text not null, time integer not null, stored_bytes integer not null,
    body text not null, primary key(instance_id, id)) strict;
create index points_by_time on points(instance_id, time, id);
create table outbox(job_id text primary key, create_time integer not null, body text not null) strict;
create table slots(instance_id text primary key, slot integer not null) strict;
";

type Task = Box<dyn FnOnce(&mut Connection) + Send>;

/// An open catalog file.
#[derive(Debug)]
pub struct Sqlite {
    path: String,
    tasks: mpsc::Sender<Task>,
}

impl Sqlite {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let connection =
            connect(path).map_err(|error| Error::Database { path: name.clone(), detail: error.to_string() })?;
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
        Ok(Self { path: name, tasks })
    }

    /// Closes the catalog; everything is in one file then, without a journal beside it.
    pub async fn into_single_file(self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let _ = answer.send(fold_journal(connection));
        });
        let failed = |detail: String| Error::Database { path: self.path.clone(), detail };
        self.tasks.send(task).map_err(|_| failed("its thread is gone".to_owned()))?;
        let folded = answered.await.map_err(|_| failed("its thread is gone".to_owned()))?;
        folded.map_err(|error| failed(error.to_string()))
    }

    /// Runs a transaction on the catalog's thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let result = (|| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })();
            // Nobody waits any more when the future was dropped.
            let _ = answer.send(result);
        });
        let gone = || Error::Database { path: self.path.clone(), detail: "its thread is gone".to_owned() };
        self.tasks.send(task).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|failure| match failure {
            Failure::Taken(what) => Error::Taken(what),
            Failure::Sqlite(error) => Error::Database { path: self.path.clone(), detail: error.to_string() },
            Failure::Body(error) => Error::Database { path: self.path.clone(), detail: error },
        })
    }
}

/// Folds the journal of a catalog that nobody has open into its one file.
pub fn single_file(path: &Path) -> Result<(), Error> {
    let fold = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        fold_journal(&connection)
    };
    fold().map_err(|error: rusqlite::Error| Error::Database {
        path: path.display().to_string(),
        detail: error.to_string(),
    })
}

fn fold_journal(connection: &Connection) -> rusqlite::Result<()> {
    // Leaving WAL copies it into the file and removes it. SQLite's answer says whether it could.
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))?;
    match mode.as_str() {
        "delete" => Ok(()),
        mode => Err(rusqlite::Error::ToSqlConversionFailure(format!("its journal stays {mode}").into())),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    } else if version > SCHEMA_VERSION {
        let message =
            format!("its schema has version {version}, this program knows {SCHEMA_VERSION}: use the newest version");
        return Err(rusqlite::Error::ToSqlConversionFailure(message.into()));
    }
    Ok(connection)
}

enum Failure {
    Taken(String),
    Sqlite(rusqlite::Error),
    Body(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn encode<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Body(error.to_string()))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Body(error.to_string()))
}

/// Every `body` that the query finds.
fn bodies<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<T>, Failure> {
    let mut statement = tx.prepare_cached(sql)?;
    let texts = statement.query_map(params, |row| row.get::<_, String>(0))?;
    texts.map(|text| decode(&text?)).collect()
}

fn body<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Option<T>, Failure> {
    Ok(bodies(tx, sql, params)?.into_iter().next())
}

fn time_from(us: i64) -> Result<jiff::Timestamp, Failure> {
    jiff::Timestamp::from_microsecond(us).map_err(|error| Failure::Body(error.to_string()))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn status_name(status: &Status) -> &'static str {
    match status {
        Status::InProgress => "in-progress",
        Status::Cancelling => "cancelling",
        Status::Completed { .. } => "completed",
        Status::Failed { .. } => "failed",
        Status::Cancelled { .. } => "cancelled",
    }
}

const UNFINISHED: &str = "status in ('in-progress', 'cancelling')";

fn save_status(
    tx: &Transaction<'_>,
    job_id: &str,
    status: Status,
    warnings: Vec<StoredProblem>,
) -> Result<bool, Failure> {
    let Some(mut job) = body::<Job>(tx, "select body from jobs where id = ?1", [job_id])? else { return Ok(false) };
    if job.status.has_ended() {
        return Ok(false);
    }
    job.status = status;
    job.warnings.extend(warnings);
    let (name, text) = (status_name(&job.status), encode(&job)?);
    tx.execute("update jobs set status = ?2, body = ?3 where id = ?1", params![job_id, name, text])?;
    if job.status.has_ended() {
        tx.execute("delete from staged where job_id = ?1", [job_id])?;
    }
    Ok(true)
}

fn policy_of(row: &Row<'_>) -> rusqlite::Result<(String, String, u32, i64, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn policies(tx: &Transaction<'_>, condition: &str, params: impl rusqlite::Params) -> Result<Vec<Policy>, Failure> {
    let sql = format!(
        "select id, name, version, create_time, document from policies p where {condition} and version =
         (select max(version) from policies q where q.name = p.name) order by name"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(params, policy_of)?;
    rows.map(|row| {
        let (id, name, version, create_time, document) = row?;
        Ok(Policy { id, name, version, create_time: time_from(create_time)?, document })
    })
    .collect()
}

fn insert_point(tx: &Transaction<'_>, point: &Point) -> Result<(), Failure> {
    let (time, stored) = (point.time.as_microsecond(), signed(point.stored_bytes));
    let sql = "insert or ignore into points(instance_id, id, time, stored_bytes, body) values (?1, ?2, ?3, ?4, ?5)";
    tx.execute(sql, params![point.instance_id, point.id.to_string(), time, stored, encode(point)?])?;
    Ok(())
}

/// 40 bytes for each pack: its id, and its size in little endian.
fn encode_packs(packs: &[(Id, u64)]) -> Vec<u8> {
    packs.iter().flat_map(|(id, size)| id.as_bytes().iter().copied().chain(size.to_le_bytes())).collect()
}

fn decode_packs(bytes: &[u8]) -> Result<Vec<(Id, u64)>, Failure> {
    let (packs, rest) = bytes.as_chunks::<40>();
    if !rest.is_empty() {
        return Err(Failure::Body("a staged record's packs are cut off".to_owned()));
    }
    packs
        .iter()
        .map(|pack| {
            let id = Id::try_from(&pack[..32]).map_err(|error| Failure::Body(error.to_string()))?;
            let size = pack.last_chunk::<8>().expect("a pack has 40 bytes");
            Ok((id, u64::from_le_bytes(*size)))
        })
        .collect()
}

#[async_trait]
impl Catalog for Sqlite {
    async fn insert_policy(&self, policy: Policy) -> Result<(), Error> {
        self.run(move |tx| {
            let values =
                params![policy.name, policy.version, policy.id, policy.create_time.as_microsecond(), policy.document];
            let sql =
                "insert or ignore into policies(name, version, id, create_time, document) values (?1, ?2, ?3, ?4, ?5)";
            match tx.execute(sql, values)? {
                0 => Err(Failure::Taken(format!("version {} of policy {}", policy.version, policy.name))),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn policy(&self, name: &str) -> Result<Option<Policy>, Error> {
        let name = name.to_owned();
        self.run(move |tx| Ok(policies(tx, "(p.name = ?1 or p.id = ?1)", [name])?.into_iter().next())).await
    }

    async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.run(|tx| policies(tx, "true", [])).await
    }

    async fn insert_instances(&self, instances: Vec<Instance>) -> Result<(), Error> {
        self.run(move |tx| {
            for instance in instances {
                let values = params![instance.id, instance.name, instance.source_identity, encode(&instance)?];
                let sql = "insert or ignore into instances(id, name, identity, body) values (?1, ?2, ?3, ?4)";
                if tx.execute(sql, values)? == 0 {
                    return Err(Failure::Taken(format!(
                        "the name {} or the source {}",
                        instance.name, instance.source_uri
                    )));
                }
            }
            Ok(())
        })
        .await
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

    async fn insert_job(&self, job: Job) -> Result<Inserted, Error> {
        self.run(move |tx| {
            if let Some(request_id) = &job.request_id
                && let Some(known) = body::<Job>(tx, "select body from jobs where request_id = ?1", [request_id])?
            {
                return Ok(Inserted::Known(Box::new(known)));
            }
            if matches!(job.work, Work::Backup { .. }) && !job.status.has_ended() {
                let sql =
                    format!("select id from jobs where instance_id = ?1 and operation = 'backup' and {UNFINISHED}");
                let busy: Option<String> = tx.query_row(&sql, [&job.instance_id], |row| row.get(0)).optional()?;
                if let Some(busy) = busy {
                    return Ok(Inserted::Busy(busy));
                }
            }
            let (time, operation) = (job.create_time.as_microsecond(), job.work.name());
            let values = params![
                job.id,
                time,
                job.instance_id,
                operation,
                status_name(&job.status),
                job.request_id,
                encode(&job)?
            ];
            let sql = "insert into jobs(id, create_time, instance_id, operation, status, request_id, body)
                       values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            tx.execute(sql, values)?;
            Ok(Inserted::New)
        })
        .await
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, Error> {
        if id.len() < 4 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let from = id.to_ascii_lowercase();
        self.run(move |tx| {
            let sql = "select body from jobs where id >= ?1 and id < ?1 || 'g' order by id limit 2";
            let mut jobs: Vec<Job> = bodies(tx, sql, [from])?;
            Ok(if jobs.len() == 1 { jobs.pop() } else { None })
        })
        .await
    }

    async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, Error> {
        self.run(move |tx| {
            let from = filter.from.map_or(i64::MIN, jiff::Timestamp::as_microsecond);
            let to = filter.to.map_or(i64::MAX, jiff::Timestamp::as_microsecond);
            let sql = "select body from jobs where create_time >= ?1 and create_time < ?2 order by create_time desc, id desc limit ?3";
            bodies(tx, sql, params![from, to, filter.limit])
        })
        .await
    }

    async fn last_backup(&self, instance_id: &str) -> Result<Option<Job>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let sql = "select body from jobs where instance_id = ?1 and operation = 'backup' and status in ('completed', 'failed')
                       order by create_time desc limit 1";
            body(tx, sql, [instance_id])
        })
        .await
    }

    async fn unfinished_jobs(&self) -> Result<Vec<Job>, Error> {
        self.run(|tx| bodies(tx, &format!("select body from jobs where {UNFINISHED} order by create_time"), [])).await
    }

    async fn set_status(&self, job_id: &str, status: Status, warnings: Vec<StoredProblem>) -> Result<bool, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| save_status(tx, &job_id, status, warnings)).await
    }

    async fn set_plugin_process(&self, process: PluginProcess) -> Result<(), Error> {
        self.run(move |tx| {
            let sql = "insert or replace into plugin_processes(job_id, pid, start_time) values (?1, ?2, ?3)";
            tx.execute(sql, params![process.job_id, process.pid, signed(process.start_time)])?;
            Ok(())
        })
        .await
    }

    async fn clear_plugin_process(&self, job_id: &str) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            tx.execute("delete from plugin_processes where job_id = ?1", [job_id])?;
            Ok(())
        })
        .await
    }

    async fn plugin_processes(&self) -> Result<Vec<PluginProcess>, Error> {
        self.run(|tx| {
            let mut statement = tx.prepare_cached("select job_id, pid, start_time from plugin_processes")?;
            let rows = statement.query_map([], |row| {
                let start_time = row.get::<_, i64>(2)?.cast_unsigned();
                Ok(PluginProcess { job_id: row.get(0)?, pid: row.get(1)?, start_time })
            })?;
            rows.map(|row| Ok(row?)).collect()
        })
        .await
    }

    async fn stage(&self, job_id: &str, record: commit::Record) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            // A backup that a prune overtook is staged again by the same job.
            let sql = "insert or replace into staged(job_id, snapshot_id, sealed, prune_epoch, packs, time, created)
                       values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let (time, epoch) = (record.time.as_microsecond(), signed(record.prune_epoch));
            let (packs, created) = (encode_packs(&record.packs), encode(&record.created)?);
            tx.execute(
                sql,
                params![job_id, record.snapshot_id.to_string(), &record.sealed[..], epoch, packs, time, created],
            )?;
            Ok(())
        })
        .await
    }

    async fn staged(&self, job_id: &str) -> Result<Option<commit::Record>, Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            let sql = "select snapshot_id, sealed, prune_epoch, packs, time, created from staged where job_id = ?1";
            let row = tx
                .query_row(sql, [job_id], |row| {
                    let texts: (String, String) = (row.get(0)?, row.get(5)?);
                    let blobs: (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(3)?);
                    let numbers: (i64, i64) = (row.get(2)?, row.get(4)?);
                    Ok((texts, blobs, numbers))
                })
                .optional()?;
            let Some(((snapshot_id, created), (sealed, packs), (epoch, time))) = row else { return Ok(None) };
            Ok(Some(commit::Record {
                snapshot_id: snapshot_id
                    .parse()
                    .map_err(|_| Failure::Body("a staged record's id is not one".to_owned()))?,
                sealed: sealed.into(),
                prune_epoch: epoch.cast_unsigned(),
                packs: decode_packs(&packs)?,
                time: time_from(time)?,
                created: decode(&created)?,
            }))
        })
        .await
    }

    async fn complete_backup(&self, job_id: &str, point: Point, warnings: Vec<StoredProblem>) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            insert_point(tx, &point)?;
            let text = encode(&point)?;
            let now = jiff::Timestamp::now();
            let sql = "insert or ignore into outbox(job_id, create_time, body) values (?1, ?2, ?3)";
            tx.execute(sql, params![job_id, now.as_microsecond(), text])?;
            let status = Status::Completed {
                end_time: now,
                point_id: Some(point.id),
                bytes_read: point.source_bytes,
                bytes_stored: point.stored_bytes,
            };
            save_status(tx, &job_id, status, warnings)?;
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
        self.run(move |tx| {
            let (time, id) = before.map_or((i64::MAX, String::new()), |(time, id)| (time.as_microsecond(), id.to_string()));
            let sql = "select body from points where instance_id = ?1 and (time, id) < (?2, ?3) order by time desc, id desc limit ?4";
            bodies(tx, sql, params![instance_id, time, id, limit])
        })
        .await
    }

    async fn points_by_prefix(&self, instance_id: &str, prefix: &str) -> Result<Vec<Point>, Error> {
        let (instance_id, prefix) = (instance_id.to_owned(), prefix.to_ascii_lowercase());
        self.run(move |tx| {
            let sql =
                "select body from points where instance_id = ?1 and id >= ?2 and id < ?2 || 'g' order by id limit 2";
            bodies(tx, sql, params![instance_id, prefix])
        })
        .await
    }

    async fn point_count(&self, instance_id: &str) -> Result<u64, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let count: i64 =
                tx.query_row("select count(*) from points where instance_id = ?1", [instance_id], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
        .await
    }

    async fn outbox(&self) -> Result<Vec<OutboxEntry>, Error> {
        self.run(|tx| {
            let mut statement = tx.prepare_cached("select job_id, body from outbox order by create_time")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (job_id, text) = row?;
                Ok(OutboxEntry { job_id, point: decode(&text)? })
            })
            .collect()
        })
        .await
    }

    async fn acknowledge(&self, job_id: &str) -> Result<(), Error> {
        let job_id = job_id.to_owned();
        self.run(move |tx| {
            tx.execute("delete from outbox where job_id = ?1", [job_id])?;
            Ok(())
        })
        .await
    }

    async fn last_slot(&self, instance_id: &str) -> Result<Option<jiff::Timestamp>, Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let sql = "select slot from slots where instance_id = ?1";
            let slot: Option<i64> = tx.query_row(sql, [instance_id], |row| row.get(0)).optional()?;
            slot.map(time_from).transpose()
        })
        .await
    }

    async fn set_last_slot(&self, instance_id: &str, slot: jiff::Timestamp) -> Result<(), Error> {
        let instance_id = instance_id.to_owned();
        self.run(move |tx| {
            let sql = "insert or replace into slots(instance_id, slot) values (?1, ?2)";
            tx.execute(sql, params![instance_id, slot.as_microsecond()])?;
            Ok(())
        })
        .await
    }

    async fn figures(&self, since: jiff::Timestamp) -> Result<Figures, Error> {
        self.run(move |tx| {
            let count = |sql: &str| tx.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
            let since = since.as_microsecond();
            let ended = |status: &str| {
                let sql = "select count(*) from jobs where status = ?1 and create_time >= ?2";
                tx.query_row(sql, params![status, since], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
            };
            let (oldest, newest): (Option<i64>, Option<i64>) =
                tx.query_row("select min(time), max(time) from points", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let with_point = "exists (select 1 from points p where p.instance_id = i.id)";
            Ok(Figures {
                protected: count(&format!("select count(*) from instances i where {with_point}"))?,
                pending: count(&format!("select count(*) from instances i where not {with_point}"))?,
                points: count("select count(*) from points")?,
                completed: ended("completed")?,
                failed: ended("failed")?,
                in_progress: count(&format!("select count(*) from jobs where {UNFINISHED}"))?,
                stored_bytes: count("select coalesce(sum(stored_bytes), 0) from points")?,
                oldest: oldest.map(time_from).transpose()?,
                newest: newest.map(time_from).transpose()?,
            })
        })
        .await
    }

    async fn all_policies(&self) -> Result<Vec<Policy>, Error> {
        self.run(|tx| {
            let sql = "select id, name, version, create_time, document from policies order by name, version";
            let mut statement = tx.prepare_cached(sql)?;
            let rows = statement.query_map([], policy_of)?;
            rows.map(|row| {
                let (id, name, version, create_time, document) = row?;
                Ok(Policy { id, name, version, create_time: time_from(create_time)?, document })
            })
            .collect()
        })
        .await
    }

    async fn insert_points(&self, points: Vec<Point>) -> Result<(), Error> {
        self.run(move |tx| points.iter().try_for_each(|point| insert_point(tx, point))).await
    }
}

#[cfg(test)]
mod tests;
