//! One question to one service of Azure, asked again while that may help.
//!
//! Invariants:
//! - A question has one deadline, over all its tries and waits; `Retry-After` is honoured within it. A dropped future stops at once.
//! - Redirects are not followed: what a question carries (a token, an assertion) goes to the address that it was asked of.
//! - An answer is read up to [`LARGEST_ANSWER`], and wiped when it is dropped: a token is in it.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use tokio::time::Instant;
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::network;
use zeroize::Zeroizing;

use super::retry_after::retry_after;

/// Bound of the first wait; the metadata service answers within milliseconds when it is there.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Bound of every later wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A token has a few thousand bytes, a secret 25 KiB at most.
const LARGEST_ANSWER: usize = 128 << 10;
/// The service's words are cut here.
const DETAIL_CHARS: usize = 300;

/// How one service is spoken to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Proxies are for the way out of here, not for what is next door.
    pub(super) direct: bool,
    /// For a connection to come about.
    pub(super) connect: Duration,
    /// For all tries and waits of one question.
    pub(super) deadline: Duration,
    /// The statuses that mean "ask again".
    pub(super) again: fn(u16) -> bool,
}

/// A service.
#[derive(Debug)]
pub(super) struct Service {
    client: Client,
    settings: Settings,
}

/// Why there is no answer. No words of it hold what the question carried.
#[derive(Debug)]
pub(super) enum Failure {
    /// It did not answer, or asked for patience until the deadline.
    Away(String),
    /// It answered, and would answer the same again.
    Refused {
        /// HTTP's.
        status: u16,
        /// The service's own code and first line.
        detail: String,
    },
}

/// One try.
enum Try {
    Again { detail: String, not_before: Duration },
    Over(Failure),
}

/// Busy and failing services.
pub(super) fn busy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

impl Service {
    /// Sends nothing.
    pub(super) fn new(settings: Settings) -> Result<Self, Problem> {
        let builder = Client::builder()
            .connect_timeout(settings.connect)
            .timeout(settings.deadline)
            .redirect(reqwest::redirect::Policy::none());
        let client = if settings.direct { builder.no_proxy().build() } else { network::client(builder) };
        let client = client.map_err(|error| Problem::new(Reason::Internal, chain(&error)))?;
        Ok(Self { client, settings })
    }

    /// The body of a successful answer. `question` makes the request of each try.
    pub(super) async fn ask(
        &self,
        question: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let end = Instant::now() + self.settings.deadline;
        let mut longest_wait = FIRST_WAIT;
        let mut last = "there was no answer in time".to_owned();
        loop {
            let not_before = match tokio::time::timeout_at(end, self.attempt(question(&self.client))).await {
                Err(_) => return Err(Failure::Away(last)),
                Ok(Ok(body)) => return Ok(body),
                Ok(Err(Try::Over(failure))) => return Err(failure),
                Ok(Err(Try::Again { detail, not_before })) => {
                    last = detail;
                    not_before
                }
            };
            let wait = longest_wait.mul_f64(rand::random::<f64>()).max(not_before);
            longest_wait = (longest_wait * 2).min(LONGEST_WAIT);
            if Instant::now() + wait >= end {
                return Err(Failure::Away(last));
            }
            tracing::debug!(wait_ms = wait.as_millis() as u64, "asking again: {last}");
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, request: RequestBuilder) -> Result<Zeroizing<Vec<u8>>, Try> {
        let lost = |error: reqwest::Error| {
            // Without its address, which whoever asks names better.
            Try::Again { detail: chain(&error.without_url()), not_before: Duration::ZERO }
        };
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let not_before = retry_after(response.headers()).unwrap_or_default();
        // Its final size at once: growing would leave copies behind.
        let mut body = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER));
        while let Some(piece) = response.chunk().await.map_err(lost)? {
            if body.len() + piece.len() > LARGEST_ANSWER {
                return Err(Try::Over(Failure::Refused { status, detail: "its answer is too long".to_owned() }));
            }
            body.extend_from_slice(&piece);
        }
        if status == 200 {
            return Ok(body);
        }
        let detail = format!("{status} {}", words(&body)).trim_end().to_owned();
        if (self.settings.again)(status) {
            return Err(Try::Again { detail, not_before });
        }
        Err(Try::Over(Failure::Refused { status, detail }))
    }
}

/// The service's own code and first line. Entra and the metadata service write `error` and `error_description`, Key Vault an object.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Named {
        Code(String),
        Object {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        },
    }
    #[derive(Deserialize)]
    struct Refusal {
        error: Named,
        #[serde(default)]
        error_description: String,
    }
    let Ok(Refusal { error, error_description }) = serde_json::from_slice(body) else { return String::new() };
    let (code, message) = match error {
        Named::Code(code) => (code, error_description),
        Named::Object { code, message } => (code, message),
    };
    format!("{code} {}", message.lines().next().unwrap_or_default()).trim().chars().take(DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_refusals_are_read() {
        let entra = br#"{"error": "invalid_request", "error_description": "Identity not found\r\nTrace ID: 1"}"#;
        assert_eq!(words(entra), "invalid_request Identity not found");
        let vault = br#"{"error": {"code": "Forbidden", "message": "no right\non it"}}"#;
        assert_eq!(words(vault), "Forbidden no right");
        assert_eq!(words(b"<html>"), "");
        assert_eq!(words(br#"{"access_token": "secret"}"#), "");
    }
}
