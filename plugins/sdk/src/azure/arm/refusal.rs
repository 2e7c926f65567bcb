//! An answer of Azure that is an error: `{"error": {"code", "message"}}`, and the headers that belong to it.

use std::fmt;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::azure::retry_after::retry_after;

/// Azure's words are cut here.
const DETAIL_CHARS: usize = 400;

/// What Azure said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) correlation_id: String,
    /// Azure does not want to be asked before.
    pub(super) wait: Option<Duration>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    error: Option<Words>,
}

/// Some providers leave the envelope out, and some write null for a part.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Words {
    code: Option<String>,
    message: Option<String>,
}

impl Words {
    /// Fit to be told.
    pub(super) fn code(&self) -> String {
        short(self.code.as_deref().unwrap_or_default())
    }

    /// Fit to be told.
    pub(super) fn message(&self) -> String {
        short(self.message.as_deref().unwrap_or_default())
    }
}

impl Refusal {
    pub(super) fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let inner = serde_json::from_slice::<Body>(body).unwrap_or_default().error;
        let inner = inner.filter(|words| !words.code().is_empty() || !words.message().is_empty());
        let words = inner.unwrap_or_else(|| serde_json::from_slice(body).unwrap_or_default());
        Self {
            status,
            code: words.code(),
            message: words.message(),
            correlation_id: correlation_id(headers),
            wait: retry_after(headers),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        for words in [&self.code, &self.message] {
            if !words.is_empty() {
                write!(f, " {words}")?;
            }
        }
        if let Some(wait) = self.wait {
            write!(f, " (come again in {} s)", wait.as_secs())?;
        }
        if !self.correlation_id.is_empty() {
            write!(f, " (correlation id {})", self.correlation_id)?;
        }
        Ok(())
    }
}

/// The first line, without control characters, and not all of a long one.
pub(super) fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(DETAIL_CHARS).collect()
}

/// By which Azure's log and support find a request; empty when Azure named none.
pub(super) fn correlation_id(headers: &HeaderMap) -> String {
    let named = ["x-ms-correlation-request-id", "x-ms-request-id"].iter().find_map(|name| headers.get(*name));
    short(named.and_then(|value| value.to_str().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn an_error_is_told_with_everything_that_azure_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-correlation-request-id", HeaderValue::from_static("c0ffee"));
        headers.insert("retry-after", HeaderValue::from_static("17"));
        let body = br#"{"error": {"code": "Busy", "message": "too much\nmore words"}}"#;
        let refusal = Refusal::new(429, &headers, body);
        assert_eq!(refusal.to_string(), "429 Busy too much (come again in 17 s) (correlation id c0ffee)");
        let bare = Refusal::new(409, &HeaderMap::new(), br#"{"code": "Conflict", "message": "somebody else"}"#);
        assert_eq!(bare.to_string(), "409 Conflict somebody else");
        assert_eq!(Refusal::new(502, &HeaderMap::new(), b"<html>").to_string(), "502");
    }

    #[test]
    fn what_is_null_hides_nothing_else() {
        let told = |body: &[u8]| Refusal::new(409, &HeaderMap::new(), body).to_string();
        assert_eq!(told(br#"{"error": {"code": "Conflict", "message": null}}"#), "409 Conflict");
        assert_eq!(told(br#"{"error": {"code": null, "message": "somebody else"}}"#), "409 somebody else");
        assert_eq!(told(br#"{"error": null, "code": "Conflict", "message": null}"#), "409 Conflict");
    }
}
