//! Running jobs for callers that read their events from a stream.
//!
//! | who ends | what happens to the other |
//! |---|---|
//! | the coordinator drops the call | the stream is dropped, its guard cancels the job's token; the job cleans up and ends |
//! | the job ends | its outcome is the stream's last item |
//! | the job panics | the stream ends with the reason Internal, never without a last item |
//!
//! Progress is made by the stream itself, from a timer, so that it comes also while the job waits for a lock somewhere, and never
//! queues up when the coordinator reads slowly. Only changes of the phase wait to be told, each with its counts, and they have a limit.

use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use vaultferry_proto::{Problem, Reason};

use crate::report::{Progress, Reporter, Warning};

/// The protocol asks for one event in 5 s at least; people want to see more.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Starts jobs, and ends them all with the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runner {
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What a running job's stream yields; `Done` and `Failed` are last.
pub enum Event<T> {
    /// How far it is.
    Progress(Progress),
    /// Something to tell the user; the job goes on.
    Warning(Warning),
    /// It did what it was for.
    Done(T),
    /// It did not.
    Failed(Problem),
}

impl Runner {
    /// `shutdown` ends all jobs; they are among `tasks` until they have ended. [`crate::serve_router`] makes one for a plugin's process; who serves
    /// a plugin in another way makes its own.
    pub fn new(shutdown: CancellationToken, tasks: TaskTracker) -> Self {
        Self { shutdown, tasks }
    }

    /// For work that is no job: fires when the process ends.
    pub fn cancellation(&self) -> CancellationToken {
        self.shutdown.child_token()
    }

    /// Starts a job in a task of its own; dropping the stream cancels it. The stream's last item is `Done` or `Failed`, always.
    pub fn run<T, F>(&self, work: impl FnOnce(Reporter, CancellationToken) -> F) -> BoxStream<'static, Event<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let (reporter, warnings) = Reporter::new();
        let cancel = self.shutdown.child_token();
        let (outcome_sender, outcome) = oneshot::channel();
        let work = work(reporter.clone(), cancel.clone());
        self.tasks.spawn(async move {
            let result = work.await;
            match &result {
                Ok(_) => tracing::info!("job ends"),
                Err(problem) => tracing::info!(reason = %problem.reason, "job fails: {}", problem.message),
            }
            // An error means that the caller has dropped the call and wants no answer.
            let _ = outcome_sender.send(result);
        });
        let mut ticker = tokio::time::interval(PROGRESS_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let running = Running { reporter, warnings, outcome, ended: None, ticker, _guard: cancel.drop_guard() };
        stream::unfold(Some(running), |running| async {
            let mut running = running?;
            let event = running.next().await;
            let ended = matches!(event, Event::Done(_) | Event::Failed(_));
            Some((event, (!ended).then_some(running)))
        })
        .boxed()
    }
}

struct Running<T> {
    reporter: Reporter,
    warnings: mpsc::Receiver<Warning>,
    outcome: oneshot::Receiver<Result<T, Problem>>,
    /// The outcome, while something that was told before it waits.
    ended: Option<Event<T>>,
    ticker: Interval,
    _guard: DropGuard,
}

impl<T> Running<T> {
    /// The next event. Warnings and changes of the phase come before the outcome.
    async fn next(&mut self) -> Event<T> {
        let ended = match self.ended.take() {
            Some(ended) => ended,
            None => tokio::select! {
                biased;
                Some(warning) = self.warnings.recv() => return Event::Warning(warning),
                change = self.reporter.change() => return Event::Progress(change),
                outcome = &mut self.outcome => match outcome {
                    Ok(Ok(done)) => Event::Done(done),
                    Ok(Err(problem)) => Event::Failed(problem),
                    Err(_) => Event::Failed(Problem::new(Reason::Internal, "the plugin's task ended without a result")),
                },
                _ = self.ticker.tick() => return Event::Progress(self.reporter.upcoming()),
            },
        };
        // The job runs on another thread: it may have warned and ended after the warnings were looked at, and before the outcome was.
        let told = match self.warnings.try_recv() {
            Ok(warning) => Some(Event::Warning(warning)),
            Err(_) => self.reporter.waiting().map(Event::Progress),
        };
        match told {
            Some(event) => {
                self.ended = Some(ended);
                event
            }
            None => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is when all of it came between the look at the warnings and that at the outcome.
    #[tokio::test]
    async fn nothing_that_was_told_is_lost_behind_the_outcome() {
        let (reporter, warnings) = Reporter::new();
        let (_sender, outcome) = oneshot::channel::<Result<u32, Problem>>();
        reporter.phase("finishing");
        for number in 0..2 {
            let message = number.to_string();
            reporter.warn(Warning { reason: "R".to_owned(), message, fix: String::new() }).await;
        }
        let mut running = Running {
            reporter,
            warnings,
            outcome,
            ended: Some(Event::Done(7)),
            ticker: tokio::time::interval(PROGRESS_INTERVAL),
            _guard: CancellationToken::new().drop_guard(),
        };
        for number in 0..2 {
            assert!(matches!(running.next().await, Event::Warning(warning) if warning.message == number.to_string()));
        }
        assert!(matches!(running.next().await, Event::Progress(progress) if progress.phase == "finishing"));
        assert!(matches!(running.next().await, Event::Done(7)));
    }
}
