//! One container: its clients, the time limits of their requests, and its name for messages.

use std::sync::Arc;
use std::time::Duration;

use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_storage_blob::{
    BlobClient, BlobClientOptions, BlobContainerClient, BlobContainerClientOptions, BlobServiceClient,
    BlobServiceClientOptions, BlockBlobClient, BlockBlobClientOptions,
};
use secrecy::ExposeSecret as _;
use url::Url;

use super::failure::Failure;
use super::shared_key::SharedKey;
use super::{Config, Credential};
use crate::network;
use crate::store::Error;

/// For a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer, and for each next piece of one. Azure gives up its own requests after 30 s (listings) and more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A slower upload counts as stalled: 16 MiB get 64 s more.
const SLOWEST_UPLOAD_BYTES_PER_S: u64 = 256 << 10;

/// A container of a storage account. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Container {
    /// The container's URL; a SAS is its query.
    url: Url,
    options: ClientOptions,
    location: String,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Container {
    /// Checks the configuration and makes the HTTP client. Sends nothing.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let location = format!("azure://{}/{}", config.account, config.container);
        let rejected = |detail: String| Error::Rejected { store: location.clone(), detail };
        for (what, name) in [("account", &config.account), ("container", &config.container)] {
            check_name(what, name).map_err(rejected)?;
        }
        let mut url = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => network::blob_endpoint(&config.account)
                .ok_or_else(|| rejected("its account has no address".to_owned()))?,
        };
        url.set_query(None);
        url.path_segments_mut()
            .map_err(|()| rejected("the endpoint is not an http or https URL".to_owned()))?
            .pop_if_empty()
            .push(&config.container);
        let mut options = ClientOptions { retry: RetryOptions::none(), ..Default::default() };
        options.transport = Some(transport().map_err(rejected)?);
        let denied = |detail: &str| Error::AccessDenied { store: location.clone(), detail: detail.to_owned() };
        match &config.credential {
            Credential::AccountKey(key) => {
                let policy = SharedKey::new(&config.account, key.expose_secret().trim());
                options.per_try_policies.push(Arc::new(policy.map_err(|_| denied("the account key is not base64"))?));
            }
            Credential::Sas(sas) => {
                // A plus sign in a query means a blank to most readers, and no SAS has a blank.
                let query = sas.expose_secret().trim().trim_start_matches('?').replace('+', "%2B");
                if !query.split('&').any(|pair| pair.starts_with("sig=")) {
                    return Err(denied("the shared access signature has no sig"));
                }
                url.set_query(Some(&query));
            }
        }
        Ok(Self { url, options, location })
    }

    /// `azure://account/container`.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    pub(crate) fn client(&self) -> Result<BlobContainerClient, Failure> {
        let options = BlobContainerClientOptions { client_options: self.options.clone(), ..Default::default() };
        BlobContainerClient::new(self.url.clone(), None, Some(options)).map_err(|error| self.failure(&error))
    }

    /// The account that the container is in.
    pub(crate) fn account(&self) -> Result<BlobServiceClient, Failure> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop();
        }
        let options = BlobServiceClientOptions { client_options: self.options.clone(), ..Default::default() };
        BlobServiceClient::new(url, None, Some(options)).map_err(|error| self.failure(&error))
    }

    pub(crate) fn blob(&self, name: &str) -> Result<BlobClient, Failure> {
        let options = BlobClientOptions { client_options: self.options.clone(), ..Default::default() };
        BlobClient::new(self.blob_url(name), None, Some(options)).map_err(|error| self.failure(&error))
    }

    pub(crate) fn block_blob(&self, name: &str) -> Result<BlockBlobClient, Failure> {
        let options = BlockBlobClientOptions { client_options: self.options.clone(), ..Default::default() };
        BlockBlobClient::new(self.blob_url(name), None, Some(options)).map_err(|error| self.failure(&error))
    }

    /// Waits for a request that sends `upload_bytes`, as long as one may take.
    pub(crate) async fn call<T>(
        &self,
        upload_bytes: u64,
        request: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Failure> {
        let limit = ANSWER_TIMEOUT + Duration::from_secs(upload_bytes / SLOWEST_UPLOAD_BYTES_PER_S);
        match tokio::time::timeout(limit, request).await {
            Ok(result) => result.map_err(|error| self.failure(&error)),
            Err(_) => Err(Failure::local(self.unavailable(&format!("no answer within {} s", limit.as_secs())))),
        }
    }

    pub(crate) fn unavailable(&self, detail: &str) -> Error {
        Error::Unavailable { store: self.location.clone(), detail: detail.to_owned() }
    }

    pub(crate) fn failure(&self, error: &azure_core::Error) -> Failure {
        Failure::new(&self.location, error)
    }

    /// With the SAS, when there is one. Keeps the slashes of a name: they are part of what a shared key signs.
    pub(super) fn blob_url(&self, name: &str) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(name.split('/'));
        }
        url
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (3..=63).contains(&name.len()) && name.bytes().all(known) {
        return Ok(());
    }
    Err(format!("{name:?} is not the name of a storage {what}: 3 to 63 lower-case letters, digits and hyphens"))
}

/// The process's way out: its proxy, and whom it trusts.
fn transport() -> Result<Transport, String> {
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // Azure closes idle connections after some minutes; one that it closed must not be taken for the next upload.
        .pool_idle_timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none());
    let client = network::client(builder).map_err(|error| format!("no HTTP client: {error}"))?;
    Ok(Transport::new(Arc::new(client)))
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn config(credential: Credential) -> Config {
        let endpoint = Some(Url::parse("http://127.0.0.1:1/devstoreaccount1/").expect("url"));
        Config { account: "devstoreaccount1".to_owned(), container: "vault".to_owned(), endpoint, credential }
    }

    #[test]
    fn names_and_credentials_are_checked_before_anything_is_sent() {
        let key = || Credential::AccountKey(SecretString::from("c2VjcmV0"));
        assert!(Container::new(&config(key())).is_ok());
        for name in ["", "ab", "Vault", "va/ult", "vault?", "../x", &"x".repeat(64)] {
            let error = Container::new(&Config { container: name.to_owned(), ..config(key()) }).expect_err(name);
            assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        }
        for bad in [
            Credential::AccountKey(SecretString::from("not base64!")),
            Credential::Sas(SecretString::from("sv=1&sp=rl")),
        ] {
            let error = Container::new(&config(bad)).expect_err("refused");
            assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("base64!"));
        }
    }

    #[test]
    fn a_sas_is_sent_as_it_is_and_shown_nowhere() {
        let sas = Credential::Sas(SecretString::from("?sv=2020-12-06&sig=a+b%2Fc%3D"));
        let config = config(sas);
        let container = Container::new(&config).expect("container");
        let url = container.blob_url("data/4f/4f91");
        assert_eq!(url.path(), "/devstoreaccount1/vault/data/4f/4f91");
        let signature = url.query_pairs().find(|(name, _)| name == "sig").map(|(_, value)| value.into_owned());
        assert_eq!(signature.as_deref(), Some("a+b/c="));
        for text in [format!("{config:?}"), format!("{container:?}")] {
            assert!(!text.contains("sig=") && !text.contains("a+b") && !text.contains("a%2Bb"), "{text}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unavailable_and_names_no_secret() {
        let sas = Credential::Sas(SecretString::from("sv=2020-12-06&sig=c2VjcmV0"));
        let container = Container::new(&config(sas)).expect("container");
        let client = container.blob("x").expect("client");
        let error = Error::from(container.call(0, client.get_properties(None)).await.expect_err("nobody listens"));
        assert!(error.is_retryable(), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error:?}");
        assert!(error.to_string().contains("azure://devstoreaccount1/vault is not available"), "{error}");
    }
}
