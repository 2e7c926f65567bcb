//! Azure Resource Manager over its REST interface: what there is in a subscription, and what plugins ask to be done there.
//!
//! ```text
//! get, list (page ─ nextLink ─ page …)        what is there
//! put, post, delete ─► Operation ─ finish: polls Azure-AsyncOperation, or Location ─► done
//! ```
//! Invariants:
//! - The token goes to the configured host only. A `nextLink`, a `Location` and an `Azure-AsyncOperation` that point anywhere else are
//!   refused before anything is sent, as is one with a user in it; redirects are not followed.
//! - A list ends: a `nextLink` to a page that was read already is refused, and a list of ever new pages is ended by its deadline.
//! - One retry layer, here: busy (429), failing (408, 5xx) and silent services are asked again, jittered, never before `Retry-After` is over,
//!   until one deadline for the whole call. A POST whose answer was lost is not sent again: it may have been done.
//! - An answer is read up to 8 MiB, a list up to 10,000 items (page by page: up to what its reader takes); more is an error, and never a
//!   part of it.
//! - Every error that Azure answers has its code, its words and its correlation id. None holds a token.
//!
//! What is not here: what the resources mean, and which api-version a provider wants. That is for whoever asks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::network;

use super::token::{RESOURCE_MANAGER, TokenSource};
use super::{is_local, is_safe};
use crate::workload::unless_cancelled;

mod operation;
mod refusal;

pub use operation::Operation;
use refusal::Refusal;

/// The variable of the agent's environment that names another address than the public cloud's: a sovereign cloud's, or a test's.
pub const ENDPOINT_VARIABLE: &str = "VAULTFERRY_RESOURCE_MANAGER";
/// The public cloud.
const PUBLIC: &str = "https://management.azure.com/";
/// For a connection to come about, as for stores.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one answer: Resource Manager gives up its own providers after 60 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(65);
/// Bound of the first wait, when Azure names none.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Bound of every later wait, when Azure names none.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A page has some hundred items of a few KB.
const LARGEST_ANSWER: usize = 8 << 20;
/// Of one list that is kept as a whole, over all of its pages.
const MOST_ITEMS: usize = 10_000;

/// How Resource Manager is asked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it is: https, or an emulator on this machine.
    pub endpoint: Url,
    /// For one call, with all its pages, tries and waits.
    pub deadline: Duration,
    /// The role that allows what is asked, for the fix of a refusal: `Reader`.
    pub role: &'static str,
    /// Where that role is needed, for the same: `/subscriptions/…`.
    pub role_scope: String,
}

impl Config {
    /// The public cloud, or what [`ENDPOINT_VARIABLE`] names. 90 s: below the 120 s that the agent waits for a plugin's answer, above the
    /// minute that Resource Manager commonly asks a busy caller to wait.
    pub fn from_environment(role: &'static str, role_scope: impl Into<String>) -> Result<Self, Problem> {
        let named = std::env::var(ENDPOINT_VARIABLE).ok().filter(|value| !value.is_empty());
        let endpoint = endpoint(named.as_deref().unwrap_or(PUBLIC))?;
        Ok(Self { endpoint, deadline: Duration::from_secs(90), role, role_scope: role_scope.into() })
    }
}

fn endpoint(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text).ok().filter(|url| url.username().is_empty() && url.password().is_none());
    // Every question has a path and a query of its own, so one that stands here would be lost.
    let url = url.filter(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none());
    // Without TLS only an emulator on this machine is spoken to: a token must not cross a network in the clear.
    url.filter(is_safe).ok_or_else(|| {
        let message = format!("{ENDPOINT_VARIABLE} in the agent's environment is not an https address without a path");
        Problem::new(Reason::InvalidConfiguration, message).with_fix("Write it as https://management.azure.com/.")
    })
}

/// Resource Manager, asked with the tokens of one identity. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    config: Config,
    tokens: Arc<dyn TokenSource>,
    /// What the tokens are for.
    token_scope: String,
    http: reqwest::Client,
}

/// What was answered, when it was no error.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    /// Null when there was nothing.
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default = "Vec::new")]
    value: Vec<T>,
    #[serde(default, rename = "nextLink")]
    next_link: Option<String>,
}

/// Why one try was none.
enum Failure {
    /// Another may succeed, but not before the wait is over.
    Passing {
        detail: String,
        wait: Option<Duration>,
    },
    Final(Box<Problem>),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Final(Box::new(problem))
    }
}

impl Client {
    /// Sends nothing.
    pub fn new(config: Config, tokens: Arc<dyn TokenSource>) -> Result<Self, Problem> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        let http = network::client(builder).map_err(|error| Problem::new(Reason::Internal, chain(&error)))?;
        let token_scope = match config.endpoint.host_str() {
            Some(host) if config.endpoint.as_str() != PUBLIC && !is_local(&config.endpoint) => {
                format!("https://{host}/.default")
            }
            _ => RESOURCE_MANAGER.to_owned(),
        };
        Ok(Self { config, tokens, token_scope, http })
    }

    /// The resource at `path` (`/subscriptions/…`).
    pub async fn get(&self, path: &str, api_version: &str, cancel: &CancellationToken) -> Result<Value, Problem> {
        Ok(self.send(&Method::GET, &self.url(path, api_version), None, self.end(), cancel).await?.body)
    }

    /// All items of a list, over all of its pages; more than 10,000 are refused ([`Reason::InvalidRequest`]).
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        api_version: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<T>, Problem> {
        let mut items = Vec::new();
        let keep = |page: Vec<T>| {
            items.extend(page);
            if items.len() <= MOST_ITEMS {
                return Ok(());
            }
            let message = format!("{path} has more than {MOST_ITEMS} items");
            Err(Problem::new(Reason::InvalidRequest, message).with_fix("Ask for a resource group: --resource-group."))
        };
        self.list_pages(path, api_version, &[], keep, cancel).await?;
        Ok(items)
    }

    /// The items of a list, page after page as they come; memory holds one page. `parameters` are the list's own, besides the
    /// api-version (`$filter`, `$maxpagesize`). The first error of `each` ends it, and is the answer. All of the pages have one deadline.
    pub async fn list_pages<T: DeserializeOwned>(
        &self,
        path: &str,
        api_version: &str,
        parameters: &[(&str, &str)],
        mut each: impl FnMut(Vec<T>) -> Result<(), Problem>,
        cancel: &CancellationToken,
    ) -> Result<(), Problem> {
        let mut url = self.url(path, api_version);
        for (name, value) in parameters {
            url.query_pairs_mut().append_pair(name, value);
        }
        let end = self.end();
        // Some dozens of addresses; a list of 10,000 pages would not come to its end in time.
        let mut read = HashSet::new();
        loop {
            let answer = self.send(&Method::GET, &url, None, end, cancel).await?;
            let page: Page<T> = serde_json::from_value(answer.body)
                .map_err(|error| self.refused(&format!("a page of {path} cannot be read: {error}")))?;
            // A page that is empty and has a next one is Azure's way.
            each(page.value)?;
            let Some(link) = page.next_link.filter(|link| !link.is_empty()) else { return Ok(()) };
            let next = self.same_host(&link, "nextLink")?;
            read.insert(std::mem::replace(&mut url, next));
            if read.contains(&url) {
                return Err(self.refused(&format!("nextLink leads back to a page of {path} that was read already")));
            }
        }
    }

    /// Makes or changes the resource at `path`. The same again does no harm, and is done after an answer that was lost.
    pub async fn put(
        &self,
        path: &str,
        api_version: &str,
        body: &Value,
        cancel: &CancellationToken,
    ) -> Result<Operation, Problem> {
        self.begin(Method::PUT, path, api_version, Some(body), cancel).await
    }

    /// Asks for an action at `path`. After an answer that was lost it is not known whether it was begun ([`Reason::AzureUnavailable`]).
    pub async fn post(
        &self,
        path: &str,
        api_version: &str,
        body: Option<&Value>,
        cancel: &CancellationToken,
    ) -> Result<Operation, Problem> {
        self.begin(Method::POST, path, api_version, body, cancel).await
    }

    /// Deletes the resource at `path`; one that is not there is deleted.
    pub async fn delete(
        &self,
        path: &str,
        api_version: &str,
        cancel: &CancellationToken,
    ) -> Result<Operation, Problem> {
        match self.begin(Method::DELETE, path, api_version, None, cancel).await {
            // A wrong subscription is no resource that is gone.
            Err(problem)
                if problem.reason == Reason::AzureNotFound && !problem.message.contains("SubscriptionNotFound") =>
            {
                Ok(Operation::done())
            }
            begun => begun,
        }
    }

    async fn begin(
        &self,
        method: Method,
        path: &str,
        api_version: &str,
        body: Option<&Value>,
        cancel: &CancellationToken,
    ) -> Result<Operation, Problem> {
        let answer = self.send(&method, &self.url(path, api_version), body, self.end(), cancel).await?;
        Operation::of(self, &answer)
    }

    fn end(&self) -> Instant {
        Instant::now() + self.config.deadline
    }

    fn url(&self, path: &str, api_version: &str) -> Url {
        let mut url = self.config.endpoint.clone();
        url.set_path(path);
        url.query_pairs_mut().clear().append_pair("api-version", api_version);
        url
    }

    /// An address that Azure names; it must be where the token may go.
    fn same_host(&self, text: &str, what: &str) -> Result<Url, Problem> {
        let ours = &self.config.endpoint;
        let is_ours = |url: &Url| {
            url.scheme() == ours.scheme()
                && url.username().is_empty()
                && url.password().is_none()
                && url.host() == ours.host()
                && url.port_or_known_default() == ours.port_or_known_default()
        };
        Url::parse(text).ok().filter(is_ours).ok_or_else(|| {
            self.refused(&format!("{what} of the answer does not point to the same host, so it was not followed"))
        })
    }

    fn refused(&self, detail: &str) -> Problem {
        Problem::new(Reason::AzureRefused, format!("Azure Resource Manager ({}): {detail}", self.host()))
    }

    fn host(&self) -> &str {
        self.config.endpoint.host_str().unwrap_or_default()
    }

    /// Sends until there is an answer that stays so, or `end`. A dropped or cancelled call stops at once; what was sent may be done.
    async fn send(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Value>,
        end: Instant,
        cancel: &CancellationToken,
    ) -> Result<Answer, Problem> {
        let tries = async {
            let mut longest_wait = FIRST_WAIT;
            let mut count = 0_u32;
            let mut last = "no answer".to_owned();
            loop {
                count += 1;
                let least = match tokio::time::timeout_at(end, self.attempt(method, url, body, cancel)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(Failure::Final(problem))) => return Err(*problem),
                    Ok(Err(Failure::Passing { detail, wait })) => {
                        last = detail;
                        wait
                    }
                    Err(_) if *method == Method::POST => {
                        let detail = format!("{last}; whether it was done is not known");
                        return Err(self.unavailable(url, count, &detail));
                    }
                    Err(_) => return Err(self.unavailable(url, count, &last)),
                };
                let wait = least.unwrap_or_default() + longest_wait.mul_f64(rand::random::<f64>());
                longest_wait = (longest_wait * 2).min(LONGEST_WAIT);
                if Instant::now() + wait >= end {
                    return Err(self.unavailable(url, count, &last));
                }
                tracing::debug!(path = url.path(), count, wait_ms = wait.as_millis() as u64, error = last, "again");
                tokio::time::sleep(wait).await;
            }
        };
        unless_cancelled(tries, cancel).await
    }

    fn unavailable(&self, url: &Url, count: u32, last: &str) -> Problem {
        let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
        let message = format!("Azure Resource Manager ({}) was asked {times} for {}: {last}", self.host(), url.path());
        Problem::new(Reason::AzureUnavailable, message)
    }

    async fn attempt(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Value>,
        cancel: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let token = self.tokens.token(&self.token_scope, cancel).await?;
        let mut request = self.http.request(method.clone(), url.clone()).bearer_auth(token.expose_secret());
        request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            // Resource Manager wants a length of everything that is no GET.
            None if *method != Method::GET => request.header("content-length", "0"),
            None => request,
        };
        // What was not sent was not done; what was sent, and not answered, may have been.
        let repeatable = |sent: bool| !sent || *method != Method::POST;
        let response = match request.send().await {
            Ok(response) => response,
            // Nothing was sent, and nothing would be the next time: a header cannot hold the token.
            Err(error) if error.is_builder() => {
                return Err(self
                    .refused("the token cannot be sent: is it a token alone, without a line break?")
                    .into());
            }
            Err(error) => {
                let again = repeatable(!error.is_connect());
                return Err(self.passing(again, url, chain(&error.without_url()), None));
            }
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let read = read(response).await.map_err(|detail| self.passing(repeatable(true), url, detail, None))?;
        let bytes = read.ok_or_else(|| {
            self.refused(&format!("the answer for {} has more than {} MiB", url.path(), LARGEST_ANSWER >> 20))
        })?;
        if (200..300).contains(&status) {
            let body = match bytes.is_empty() {
                true => Ok(Value::Null),
                false => serde_json::from_slice(&bytes),
            };
            let body =
                body.map_err(|error| self.refused(&format!("the answer for {} is no JSON: {error}", url.path())))?;
            return Ok(Answer { status, headers, body });
        }
        let refusal = Refusal::new(status, &headers, &bytes);
        match status {
            // Busy services have not begun; the others may have.
            429 | 503 => Err(self.passing(true, url, refusal.to_string(), refusal.wait)),
            408 | 500.. => Err(self.passing(repeatable(true), url, refusal.to_string(), refusal.wait)),
            _ => Err(self.problem(url, &refusal).into()),
        }
    }

    fn passing(&self, again: bool, url: &Url, detail: String, wait: Option<Duration>) -> Failure {
        match again {
            true => Failure::Passing { detail, wait },
            false => self.unavailable(url, 1, &format!("{detail}; whether it was done is not known")).into(),
        }
    }

    /// A refusal that stays one.
    fn problem(&self, url: &Url, refusal: &Refusal) -> Problem {
        let Config { role, role_scope, .. } = &self.config;
        let message = format!("Azure Resource Manager refuses {}: {refusal}", url.path());
        match refusal.status {
            401 => Problem::new(Reason::UserErrorMSIMissingPermissions, message).with_fix(
                "Use an identity of the subscription's own directory (--azure-identity), and a token that has not expired: \
                 az account get-access-token --resource https://management.azure.com/",
            ),
            403 => Problem::new(Reason::UserErrorMSIMissingPermissions, message).with_fix(format!(
                "Give the machine's identity the role {role}, and wait some minutes: az role assignment create \
                 --assignee PRINCIPAL-ID --role {role:?} --scope {role_scope}"
            )),
            404 => Problem::new(Reason::AzureNotFound, message),
            _ => Problem::new(Reason::AzureRefused, message),
        }
    }
}

/// The whole body; `None`: it is too long. The error says what became of the connection.
async fn read(mut response: reqwest::Response) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
        if bytes.len() + piece.len() > LARGEST_ANSWER {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
