//! What a failed request means, in a store's words.

use azure_core::error::ErrorKind;
use azure_core::http::StatusCode;
use azure_core::http::headers::HeaderName;

use crate::store::Error;

/// Azure's own name of an error, in every answer that is one, also where the answer has no body.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
/// The service's words are cut here: enough for its sentences.
const DETAIL_CHARS: usize = 300;

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The status of the answer, when there was one.
    pub(crate) status: Option<StatusCode>,
    /// An answer came that the SDK could not read.
    pub(crate) unreadable: bool,
    /// Azure's name of the error (`BlobNotFound`, …), or empty.
    pub(crate) code: String,
    error: Error,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// A failure that did not come from the service.
    pub(crate) fn local(error: Error) -> Self {
        Self { status: None, unreadable: false, code: String::new(), error }
    }

    pub(crate) fn new(location: &str, error: &azure_core::Error) -> Self {
        let store = location.to_owned();
        let ErrorKind::HttpResponse { status, error_code, raw_response } = error.kind() else {
            let detail = without_queries(&vaultferry_proto::status::chain(error));
            let failure = Self::local(match error.kind() {
                ErrorKind::Credential => Error::AccessDenied { store, detail },
                // Nothing was sent.
                ErrorKind::Other => Error::Rejected { store, detail },
                _ => Error::Unavailable { store, detail },
            });
            return Self { unreadable: matches!(error.kind(), ErrorKind::DataConversion), ..failure };
        };
        let code = raw_response.as_ref().and_then(|response| response.headers().get_optional_string(&ERROR_CODE));
        let code = code.or_else(|| error_code.clone()).unwrap_or_default();
        let message = raw_response.as_ref().map(|response| message(response.body())).unwrap_or_default();
        let detail = detail(*status, &code, &message);
        Self { status: Some(*status), unreadable: false, error: meaning(store, *status, &code, detail), code }
    }

    /// The container is there, the blob is not.
    pub(crate) fn is_missing_blob(&self) -> bool {
        self.status == Some(StatusCode::NotFound) && !matches!(self.error, Error::NoStore { .. })
    }

    /// The blob is there, and a request that only creates was refused for it: by the condition, or by a credential that may not
    /// overwrite.
    pub(crate) fn is_existing_blob(&self) -> bool {
        matches!(self.code.as_str(), "BlobAlreadyExists" | "ConditionNotMet" | "UnauthorizedBlobOverwrite")
    }

    /// A request that creates was refused because a blob of that name is in the archive, on its way out of it, or being copied.
    pub(crate) fn is_offline_blob(&self) -> bool {
        matches!(self.code.as_str(), "BlobArchived" | "BlobBeingRehydrated" | "PendingCopyOperation")
    }
}

fn meaning(store: String, status: StatusCode, code: &str, detail: String) -> Error {
    match (u16::from(status), code) {
        (401 | 403, _) | (_, "AuthenticationFailed" | "InvalidAuthenticationInfo") => {
            Error::AccessDenied { store, detail }
        }
        // ResourceNotFound is about the account, for an emulator.
        (404, "ContainerNotFound" | "ResourceNotFound") => Error::NoStore { store },
        (501, _) => Error::Unsupported { store, what: format!("do that ({detail})") },
        (408 | 429 | 500.., _) | (_, "ContainerBeingDeleted") => Error::Unavailable { store, detail },
        _ => Error::Rejected { store, detail },
    }
}

fn detail(status: StatusCode, code: &str, message: &str) -> String {
    let reason = if code.is_empty() { status.canonical_reason() } else { code.into() };
    let mut detail = format!("{} {reason}", u16::from(status));
    if !message.is_empty() {
        detail.push_str(": ");
        detail.push_str(message);
    }
    detail
}

/// The first line of the answer's message (request id and time follow on others), and why a SAS is not valid now.
/// The rest of an answer about authentication repeats signatures, and is left out.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut message = first_line(element(&text, "Message")).to_owned();
    let authentication = first_line(element(&text, "AuthenticationErrorDetail"));
    if authentication.contains("time frame") {
        message.push(' ');
        message.push_str(authentication);
    }
    without_queries(&message).chars().take(DETAIL_CHARS).collect()
}

fn element<'a>(text: &'a str, name: &str) -> &'a str {
    let begin = text.split_once(&format!("<{name}>")).map(|(_, rest)| rest);
    begin.and_then(|rest| rest.split_once("</")).map(|(value, _)| value).unwrap_or_default()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

/// Cuts the query off every URL: a SAS is one.
pub(super) fn without_queries(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("://") {
        let (before, url) = rest.split_at(begin);
        let end =
            url.find(|c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '>' | '<')).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        clean.push_str(before);
        clean.push_str(url.split('?').next().unwrap_or_default());
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_cut() {
        for (text, clean) in [
            ("plain? yes", "plain? yes"),
            ("error for url (http://a:1/b/c?sv=1&sig=x%2B): refused?", "error for url (http://a:1/b/c): refused?"),
            ("https://a/b?sig=1 and https://c?sig=2", "https://a/b and https://c"),
        ] {
            assert_eq!(without_queries(text), clean);
        }
    }

    #[test]
    fn statuses_mean_what_the_trait_says() {
        let kind = |status: u16, code: &str| {
            let error = meaning("s".to_owned(), StatusCode::from(status), code, String::new());
            format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
        };
        for (status, code, expected) in [
            (401, "", "AccessDenied"),
            (403, "AuthorizationPermissionMismatch", "AccessDenied"),
            (400, "InvalidAuthenticationInfo", "AccessDenied"),
            (404, "ContainerNotFound", "NoStore"),
            (408, "", "Unavailable"),
            (409, "ContainerBeingDeleted", "Unavailable"),
            (409, "BlobArchived", "Rejected"),
            (429, "", "Unavailable"),
            (500, "InternalError", "Unavailable"),
            (501, "", "Unsupported"),
            (503, "ServerBusy", "Unavailable"),
            (400, "InvalidHeaderValue", "Rejected"),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn the_services_words_are_kept_and_its_signatures_are_not() {
        let body = b"<?xml?><Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the request.\n\
            RequestId:1\nTime:2</Message><AuthenticationErrorDetail>Signature not valid in the specified time frame: Start [a] - \
            Expiry [b]</AuthenticationErrorDetail></Error>";
        let text = message(body);
        assert_eq!(
            text,
            "Server failed to authenticate the request. Signature not valid in the specified time frame: Start [a] - Expiry [b]"
        );
        let body = b"<Error><Message>No.</Message><AuthenticationErrorDetail>The MAC signature 'abc' is not the same</AuthenticationErrorDetail></Error>";
        assert_eq!(message(body), "No.");
        assert_eq!(message(b"\xff<Message>"), "");
    }
}
