//! The connection to the service: address, trust, token, deadlines.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};
use vaultferry_proto::service::v1::link_service_client::LinkServiceClient;
use vaultferry_proto::status::chain;

use super::Config;

/// Names are looked up, TCP and TLS agree.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer to a page of messages; the service only writes it down.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that hangs is noticed after both; gRPC servers allow a ping every 20 s without a fuss when a call is open.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Assignments of 10,000 instances are a few megabytes; gRPC's own limit of 4 MiB is too near.
const LONGEST_MESSAGE: usize = 64 << 20;

/// The service's calls over one connection. Cheap to clone.
pub(super) type Client = LinkServiceClient<InterceptedService<Channel, Bearer>>;

/// Why the link does not work now. It is made again after a while, whatever it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A file of the configuration, or the address.
    #[error("{0}")]
    Configuration(String),
    /// No connection comes about.
    #[error("{0}")]
    Connect(String),
    /// A call was not answered well.
    #[error("{call}: {detail}")]
    Call {
        /// Which one.
        call: &'static str,
        /// The service's own words, with the code.
        detail: String,
    },
    /// What there is to tell cannot be read.
    #[error(transparent)]
    Catalog(#[from] crate::catalog::Error),
}

/// Puts the token to every call.
#[derive(Debug, Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects, once. The first call tells whether the service believes us.
pub(super) async fn connect(config: &Config) -> Result<Client, Error> {
    #[cfg(test)]
    if let Some(way) = &config.in_process {
        let client = LinkServiceClient::with_interceptor(super::in_process::connect(way), Bearer(None));
        return Ok(client.max_decoding_message_size(LONGEST_MESSAGE));
    }
    let invalid = |error: tonic::transport::Error| Error::Configuration(format!("[service]: {}", chain(&error)));
    let mut endpoint = Endpoint::from_shared(config.endpoint.clone())
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    if config.endpoint.starts_with("https://") {
        endpoint = endpoint.tls_config(trust(config)?).map_err(invalid)?;
    }
    let token = config.token.as_ref().map(|token| bearer(token.expose_secret())).transpose()?;
    let channel = endpoint.connect().await.map_err(|error| Error::Connect(chain(&error)))?;
    let client = LinkServiceClient::with_interceptor(channel, Bearer(token));
    Ok(client.max_decoding_message_size(LONGEST_MESSAGE))
}

fn trust(config: &Config) -> Result<ClientTlsConfig, Error> {
    let tls = match &config.ca {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(match &config.identity {
        Some((cert, key)) => tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
        None => tls,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Configuration(format!("cannot read {}: {error}", path.display())))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    // The token is not repeated.
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Error::Configuration("the token of [service] has characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Waits for a call's answer, but not for ever.
pub(super) async fn call<T>(
    call: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failed(call, &status)),
        Err(_) => Err(Error::Call { call, detail: format!("no answer for {CALL_TIMEOUT:?}") }),
    }
}

/// A call's bad end, in words.
pub(super) fn failed(call: &'static str, status: &Status) -> Error {
    let detail = match std::error::Error::source(status) {
        Some(cause) => format!("{} ({:?}): {}", status.message(), status.code(), chain(cause)),
        None => format!("{} ({:?})", status.message(), status.code()),
    };
    Error::Call { call, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_neither_shown_nor_repeated() {
        let value = bearer("s3cret").expect("a token");
        assert_eq!(value.to_str().expect("text"), "Bearer s3cret");
        assert!(!format!("{:?}", Bearer(Some(value))).contains("s3cret"));
        let error = bearer("s3cret\n").expect_err("a line feed").to_string();
        assert!(error.contains("[service]") && !error.contains("s3cret"), "{error}");
    }
}
