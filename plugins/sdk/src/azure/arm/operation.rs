//! What Azure goes on with after it has answered: polled until it has ended.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_proto::{Problem, Reason};

use super::refusal::{Words, correlation_id};
use super::{Answer, Client};
use crate::azure::retry_after::retry_after;
use crate::workload::unless_cancelled;

/// Between two polls, when Azure names no time.
const POLL: Duration = Duration::from_secs(5);
/// A date that is over, by a clock that is ahead of Azure's, must not make of polls a loop without a pause.
const SHORTEST_POLL: Duration = Duration::from_millis(200);
/// A longer `Retry-After` of a poll is not waited for at once.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// A change that Azure has accepted, and may still be at. Dropping it changes nothing: Azure goes on.
#[derive(Debug, Clone)]
pub struct Operation {
    state: State,
    wait: Duration,
}

#[derive(Debug, Clone)]
enum State {
    Done(Value),
    /// `Azure-AsyncOperation`: a document with a `status`.
    Status(Url),
    /// `Location`: 202 until it has ended.
    Location(Url),
}

/// The document behind `Azure-AsyncOperation`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    status: String,
    error: Option<Words>,
}

impl Operation {
    pub(super) fn done() -> Self {
        Self { state: State::Done(Value::Null), wait: Duration::ZERO }
    }

    pub(super) fn of(client: &Client, answer: &Answer) -> Result<Self, Problem> {
        let state = match (answer.header("azure-asyncoperation"), answer.header("location")) {
            (Some(link), _) => State::Status(client.same_host(link, "Azure-AsyncOperation")?),
            (None, Some(link)) if answer.status == 202 => State::Location(client.same_host(link, "Location")?),
            _ => State::Done(answer.body.clone()),
        };
        Ok(Self { state, wait: pause(answer) })
    }

    /// Waits until Azure has ended, for `limit` at most, and gives its last answer: the resource's or the operation's document, or null.
    /// An operation that fails at Azure is [`Reason::AzureRefused`] with Azure's words. After `limit` ([`Reason::AzureUnavailable`]) and
    /// after a cancellation Azure goes on by itself.
    pub async fn finish(self, client: &Client, limit: Duration, cancel: &CancellationToken) -> Result<Value, Problem> {
        let end = Instant::now() + limit;
        let (mut wait, url) = match &self.state {
            State::Done(body) => return Ok(body.clone()),
            State::Status(url) | State::Location(url) => (self.wait, url.clone()),
        };
        loop {
            if Instant::now() + wait >= end {
                let message =
                    format!("Azure has not ended in {} s, and goes on by itself: {}", limit.as_secs(), url.path());
                return Err(Problem::new(Reason::AzureUnavailable, message));
            }
            let pause_over = async {
                tokio::time::sleep(wait).await;
                Ok(())
            };
            unless_cancelled(pause_over, cancel).await?;
            let answer = client.send(&Method::GET, &url, None, end.min(client.end()), cancel).await?;
            wait = pause(&answer);
            match &self.state {
                State::Location(_) if answer.status == 202 => {}
                State::Status(_) => {
                    let status = Status::deserialize(&answer.body).unwrap_or_default();
                    match status.status.as_str() {
                        "Succeeded" => return Ok(answer.body),
                        "Failed" | "Canceled" | "Cancelled" => return Err(failed(client, &answer, &status)),
                        "" => return Err(client.refused("the answer about an operation has no status")),
                        // Every other word is one of a provider's own for being at it.
                        _ => {}
                    }
                }
                State::Location(_) | State::Done(_) => return Ok(answer.body),
            }
        }
    }
}

fn pause(answer: &Answer) -> Duration {
    retry_after(&answer.headers).map_or(POLL, |wait| wait.clamp(SHORTEST_POLL, LONGEST_POLL))
}

fn failed(client: &Client, answer: &Answer, status: &Status) -> Problem {
    let mut words = status.status.clone();
    if let Some(error) = &status.error {
        words = format!("{words}: {} {}", error.code(), error.message());
    }
    let id = correlation_id(&answer.headers);
    let id = if id.is_empty() { id } else { format!(" (correlation id {id})") };
    client.refused(&format!("the operation ended as {words}{id}"))
}
