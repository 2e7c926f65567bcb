//! A catalog in memory whose transactions happen on the caller's thread, for the simulated year: a paused clock knows nothing of the thread
//! that a catalog usually has, and would run on while it works. It lives longer than the runtimes of the agents that use it, as a file does.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use rusqlite::Connection;

use super::{Sqlite, Task, Tasks, schema};
use crate::catalog::Error;

/// Waited for before and after every transaction: a simulation kills its agent there by never answering.
pub(crate) type Step = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// See the module.
pub(crate) struct Here {
    connection: Mutex<Connection>,
    step: Step,
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Here")
    }
}

impl Here {
    pub(super) fn run(&self, task: Task) -> bool {
        task(&mut self.connection.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }

    pub(super) async fn step(&self) {
        (self.step)().await;
    }
}

impl Sqlite {
    /// An empty catalog in memory.
    pub(crate) fn in_memory(step: Step) -> Result<Self, Error> {
        let path = ":memory:".to_owned();
        let connection = schema::connect(Path::new(&path))
            .map_err(|error| Error::Database { path: path.clone(), detail: error.to_string() })?;
        let tasks = Tasks::Here(Here { connection: Mutex::new(connection), step });
        Ok(Self::with(path, tasks))
    }
}
