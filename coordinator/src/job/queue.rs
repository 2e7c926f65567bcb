//! Which job runs next: first come, first served, among those that may run.
//!
//! ```text
//! enter ─► waiting, in order of arrival ──[room among the jobs, and on the server]──► running ──► the ticket is dropped
//! ```
//! | lane | what runs in it | limit |
//! |---|---|---|
//! | `Jobs` | backups and restores; what takes seconds in the vault | `jobs`, and `jobs_per_server` on each database server |
//! | `Maintenance` | checks, verifications, prunes, copies to the archive store, all points of an instance | `maintenance_jobs` |
//!
//! Invariants:
//! - No limit is ever exceeded, and nobody waits who could run ([`decide`]).
//! - In a lane a job is overtaken only while its server has all the jobs that it may have, and never by another one of that server. So
//!   everybody's turn comes, as jobs end.
//! - Who waits has done nothing yet, and is still there after a restart, in the same order.
//! - Lanes do not wait for each other: a copy that takes hours never holds up a backup.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::Jobs;
use crate::catalog::{Job, Work};

#[cfg(test)]
mod tests;

/// Jobs that run at once. All are above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Backups and restores, and what is short in the vault.
    pub jobs: usize,
    /// Of these, those that read from or write to one database server.
    pub jobs_per_server: usize,
    /// Checks, prunes and copies; beside the others.
    pub maintenance_jobs: usize,
}

impl From<usize> for Limits {
    /// So many in each lane, wherever they run.
    fn from(jobs: usize) -> Self {
        Self { jobs, jobs_per_server: jobs, maintenance_jobs: jobs }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Jobs,
    Maintenance,
}

/// What a job needs in order to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) lane: Lane,
    /// `host:port` of the database server that it works on.
    pub(super) server: Option<Arc<str>>,
}

impl Need {
    /// What is short, and works on no database server.
    pub(super) fn short() -> Self {
        Self { lane: Lane::Jobs, server: None }
    }

    /// `None`: it needs no place, as it does nothing but end. `source`: the identity of the instance's source.
    pub(super) fn of(work: &Work, source: &str) -> Option<Self> {
        let maintenance = Some(Self { lane: Lane::Maintenance, server: None });
        match work {
            Work::Backup { .. } => Some(Self { lane: Lane::Jobs, server: server(source) }),
            Work::RestoreDatabase { target_uri, .. } => Some(Self { lane: Lane::Jobs, server: server(target_uri) }),
            Work::RestoreFiles { .. }
            | Work::RestoreDisk { .. }
            | Work::DeletePoint { .. }
            | Work::UndeletePoint { .. } => Some(Self::short()),
            Work::Check { .. }
            | Work::VerifyPoint { .. }
            | Work::Prune { .. }
            | Work::ArchivePoint { .. }
            | Work::Tier { .. }
            | Work::StopProtection { purge_time: Some(_) }
            | Work::UndeleteInstance => maintenance,
            Work::ConfigureProtection | Work::StopProtection { purge_time: None } | Work::ChangePolicy { .. } => None,
        }
    }
}

/// `host:port` of `postgres://user@host:port/…`; for a socket, its folder and the port. `None`: there is no host in it.
fn server(uri: &str) -> Option<Arc<str>> {
    let (scheme, rest) = uri.split_once("://")?;
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = before.split('/').next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let has_port = |host: &str| {
        let is_number = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        host.rsplit_once(':').is_some_and(|(_, port)| is_number(port))
    };
    let host = if authority.is_empty() { parameter("host").unwrap_or_default() } else { authority };
    let host = host.to_ascii_lowercase().replace("%2f", "/");
    if host.is_empty() {
        return None;
    }
    if has_port(&host) || !matches!(scheme, "postgres" | "postgresql") {
        return Some(host.into());
    }
    let port = parameter("port").unwrap_or("5432");
    Some(format!("{}:{port}", host.trim_end_matches(':')).into())
}

/// For what a queued job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wait {
    /// So many jobs run in its lane.
    Lane(Lane, usize),
    /// So many jobs run on its server.
    Server(Arc<str>, usize),
}

impl Wait {
    /// "2 jobs run on db1:5432, and no more may"
    pub(super) fn note(&self) -> String {
        let run = |count: usize, what: &str| match count {
            1 => format!("1 {what} runs"),
            count => format!("{count} {what}s run"),
        };
        match self {
            Self::Lane(Lane::Jobs, count) => format!("{}, and no more may ([limits] jobs)", run(*count, "job")),
            Self::Lane(Lane::Maintenance, count) => {
                format!("{}, and no more may ([limits] maintenance_jobs)", run(*count, "maintenance job"))
            }
            Self::Server(server, count) => {
                format!("{} on {server}, and no more may ([limits] jobs_per_server)", run(*count, "job"))
            }
        }
    }
}

/// For each job that waits, in order of arrival: whether it starts now, beside those that run and those before it that start, or for what
/// it waits.
pub(super) fn decide<'a>(
    waiting: impl Iterator<Item = &'a Need>,
    running: impl Iterator<Item = &'a Need>,
    limits: &Limits,
) -> Vec<Result<(), Wait>> {
    let mut lanes = HashMap::from([(Lane::Jobs, 0), (Lane::Maintenance, 0)]);
    let mut servers: HashMap<&str, usize> = HashMap::new();
    for need in running {
        *lanes.entry(need.lane).or_default() += 1;
        if let Some(server) = &need.server {
            *servers.entry(server).or_default() += 1;
        }
    }
    let start = |need: &'a Need| {
        let limit = match need.lane {
            Lane::Jobs => limits.jobs,
            Lane::Maintenance => limits.maintenance_jobs,
        };
        let lane = lanes.entry(need.lane).or_default();
        if let Some(server) = &need.server {
            let on_server = servers.entry(server).or_default();
            // Told first: this may last when there is room in the lane.
            if *on_server >= limits.jobs_per_server {
                return Err(Wait::Server(server.clone(), *on_server));
            }
            if *lane < limit {
                *on_server += 1;
            }
        }
        if *lane >= limit {
            return Err(Wait::Lane(need.lane, *lane));
        }
        *lane += 1;
        Ok(())
    };
    waiting.map(start).collect()
}

/// Who waits, and who runs.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entered: u64,
    /// In order of arrival.
    waiting: Vec<Waiting>,
    running: Vec<(u64, Need)>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    need: Need,
    turn: watch::Sender<Option<Wait>>,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// Takes a place behind those that wait. It is left, wherever it has come, by dropping the ticket.
    pub(super) fn enter(self: &Arc<Self>, need: Need) -> Ticket {
        let mut state = self.lock();
        state.entered += 1;
        let number = state.entered;
        let (sender, turn) = watch::channel(Some(Wait::Lane(need.lane, 0)));
        state.waiting.push(Waiting { number, need, turn: sender });
        self.admit(&mut state);
        Ticket { queue: self.clone(), number, turn }
    }

    /// Starts whom [`decide`] says, and tells the others for what they wait.
    fn admit(&self, state: &mut State) {
        let running = state.running.iter().map(|(_, need)| need);
        let decided = decide(state.waiting.iter().map(|waiting| &waiting.need), running, &self.limits);
        let waiting = std::mem::take(&mut state.waiting);
        for (waiting, decision) in waiting.into_iter().zip(decided) {
            let wait = decision.err();
            waiting.turn.send_if_modified(|told| {
                let is_new = *told != wait;
                told.clone_from(&wait);
                is_new
            });
            match wait {
                None => state.running.push((waiting.number, waiting.need)),
                Some(_) => state.waiting.push(waiting),
            }
        }
    }

    fn leave(&self, number: u64) {
        let mut state = self.lock();
        state.waiting.retain(|waiting| waiting.number != number);
        state.running.retain(|(running, _)| *running != number);
        self.admit(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a job's turn has come.
pub(super) enum Turn {
    /// Its place is its own until this is dropped.
    Come(Ticket),
    /// The agent stops; the next start goes on waiting.
    NotYet,
}

impl Jobs {
    /// Waits for the job's turn; whoever watches it sees for what. That it waits is journaled, so that a restart goes on with it.
    pub(super) async fn turn(
        &self,
        job: &Job,
        mut ticket: Ticket,
        cancel: &CancellationToken,
    ) -> Result<Turn, Problem> {
        let catalog = &self.shared.catalog;
        if ticket.has_come() {
            if job.queued {
                catalog.set_queued(&job.id, false).await?;
            }
            return Ok(Turn::Come(ticket));
        }
        // An earlier life may have noted it.
        if !job.queued {
            catalog.set_queued(&job.id, true).await?;
        }
        let turn = ticket.turn(|wait| {
            self.update(&job.id, |progress| {
                "queued".clone_into(&mut progress.phase);
                progress.note = wait.note();
            });
        });
        tokio::select! {
            biased;
            // Before the other: a stop cancels every job.
            () = self.inner.draining.cancelled() => return Ok(Turn::NotYet),
            () = cancel.cancelled() => return Err(Problem::new(Reason::Cancelled, "cancelled before it began")),
            () = turn => {}
        }
        // From here on it may leave something behind: a restart must not simply begin again.
        catalog.set_queued(&job.id, false).await?;
        self.update(&job.id, |progress| {
            "starting".clone_into(&mut progress.phase);
            progress.note.clear();
        });
        Ok(Turn::Come(ticket))
    }
}

/// A job's place in the queue, and then among the running jobs, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Arc<Queue>,
    number: u64,
    turn: watch::Receiver<Option<Wait>>,
}

impl Ticket {
    fn has_come(&self) -> bool {
        self.turn.borrow().is_none()
    }

    /// Waits for the turn; `told` hears for what, at once and at each change. May be dropped and asked again.
    pub(super) async fn turn(&mut self, mut told: impl FnMut(&Wait)) {
        loop {
            match &*self.turn.borrow_and_update() {
                None => return,
                Some(wait) => told(wait),
            }
            // An error: its sender was dropped with its turn, which was told before.
            if self.turn.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.leave(self.number);
    }
}
