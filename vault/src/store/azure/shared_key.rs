//! Signing requests with an account key ("Shared Key"), which the SDK leaves to its users.
//!
//! The policy runs once per try, last before the request is sent, so that every try has a fresh date and everything that is signed is
//! already in the request. The text that is signed is Microsoft's "Authorize with Shared Key", version 2015-02-21 and later.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request};
use azure_core::time::{OffsetDateTime, to_rfc7231};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Standard headers in the order in which they are signed. The date is empty, because `x-ms-date` is there.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// Signs requests with an account key.
pub(super) struct SharedKey {
    account: String,
    key: hmac::Key,
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").field("account", &self.account).finish_non_exhaustive()
    }
}

impl SharedKey {
    /// `key` is base64, as the portal shows it.
    pub(super) fn new(account: &str, key: &str) -> Result<Self, base64::DecodeError> {
        let mut bytes = BASE64_STANDARD.decode(key)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        zeroize::Zeroize::zeroize(&mut bytes);
        Ok(Self { account: account.to_owned(), key })
    }

    fn sign(&self, request: &mut Request, date: OffsetDateTime) {
        request.insert_header("x-ms-date", to_rfc7231(&date));
        let text = self.string_to_sign(request);
        let signature = BASE64_STANDARD.encode(hmac::sign(&self.key, text.as_bytes()));
        request.insert_header("authorization", format!("SharedKey {}:{signature}", self.account));
    }

    fn string_to_sign(&self, request: &Request) -> String {
        let mut text = request.method().as_str().to_owned();
        for name in SIGNED_HEADERS {
            text.push('\n');
            let value = request.headers().get_optional_str(&HeaderName::from_static(name)).unwrap_or_default();
            match (name, value) {
                ("date", _) | ("content-length", "0") => {}
                // The transport adds it when the client has not.
                ("content-length", "") => {
                    if let Some(length) = request.body().len().filter(|length| *length > 0) {
                        text.push_str(&length.to_string());
                    }
                }
                (_, value) => text.push_str(value),
            }
        }
        text.push('\n');
        text.push_str(&canonical_headers(request));
        text.push_str(&self.canonical_resource(request));
        text
    }

    fn canonical_resource(&self, request: &Request) -> String {
        let url = request.url();
        let mut text = format!("/{}{}", self.account, url.path());
        let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in url.query_pairs() {
            parameters.entry(name.to_lowercase()).or_default().push(value.into_owned());
        }
        for (name, mut values) in parameters {
            values.sort_unstable();
            text.push_str(&format!("\n{name}:{}", values.join(",")));
        }
        text
    }
}

fn canonical_headers(request: &Request) -> String {
    let mut headers: Vec<(&str, &str)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    headers.sort_unstable();
    headers.into_iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect()
}

#[allow(elided_lifetimes_in_paths, reason = "the trait's signature must be met to the letter")]
#[async_trait]
impl Policy for SharedKey {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        self.sign(request, OffsetDateTime::now_utc());
        match next {
            [policy, rest @ ..] => policy.send(context, request, rest).await,
            [] => Err(azure_core::Error::with_message(azure_core::error::ErrorKind::Other, "no transport")),
        }
    }
}

#[cfg(test)]
mod tests {
    use azure_core::http::{Method, Url};

    use super::*;

    /// Azurite's public key; every emulator has it.
    const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// The date of Microsoft's example.
    fn date() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_435_361_952).expect("date")
    }

    /// The example of Microsoft's page (Get Container Metadata), with its headers and parameters.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let url = "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20";
        let mut request = Request::new(Url::parse(url).expect("url"), Method::Get);
        request.insert_header("x-ms-version", "2015-02-21");
        let key = SharedKey::new("myaccount", KEY).expect("key");
        key.sign(&mut request, date());
        assert_eq!(
            key.string_to_sign(&request),
            "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
             /myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
        );
    }

    /// The signature was computed apart from this code, with Python's `hmac` module.
    #[test]
    fn an_upload_is_signed_with_its_length_condition_and_type() {
        let url = "http://127.0.0.1:10000/devstoreaccount1/vault/data/4f/4f91?comp=block&blockid=AAAA%3D%3D";
        let mut request = Request::new(Url::parse(url).expect("url"), Method::Put);
        request.insert_header("content-type", "application/octet-stream");
        request.insert_header("if-none-match", "*");
        request.insert_header("x-ms-version", "2026-04-06");
        request.insert_header("x-ms-blob-type", "BlockBlob");
        request.set_body("twelve bytes");
        let key = SharedKey::new("devstoreaccount1", KEY).expect("key");
        key.sign(&mut request, date());
        assert_eq!(
            key.string_to_sign(&request),
            "PUT\n\n\n12\n\napplication/octet-stream\n\n\n\n*\n\n\nx-ms-blob-type:BlockBlob\n\
             x-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2026-04-06\n\
             /devstoreaccount1/devstoreaccount1/vault/data/4f/4f91\nblockid:AAAA==\ncomp:block"
        );
        let authorization = request.headers().get_optional_str(&HeaderName::from_static("authorization"));
        assert_eq!(authorization, Some("SharedKey devstoreaccount1:9zXdRcaoMoFdwCMXwAZq9TldOgymUXr8QXvBb1ipoAU="));
        assert!(!format!("{key:?}").contains("Eby8"));
    }

    #[test]
    fn a_length_of_nothing_is_signed_as_nothing() {
        let mut request = Request::new(Url::parse("http://h/a/c/b").expect("url"), Method::Put);
        request.insert_header("content-length", "0");
        let text = SharedKey::new("a", KEY).expect("key").string_to_sign(&request);
        assert!(text.starts_with("PUT\n\n\n\n"), "{text:?}");
    }
}
