//! The few requests to Azurite that measuring needs: how much it stores, and a container. HTTP/1.0 over TLS, signed with the account's key.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use vaultferry_tests::azurite::elements;
use vaultferry_tests::percent;

use super::{ACCOUNT, HOST};
use crate::Result;

const VERSION: &str = "2021-12-02";

/// A client of one Azurite.
pub(super) struct Client {
    address: SocketAddrV4,
    config: Arc<ClientConfig>,
    key: hmac::Key,
}

impl Client {
    pub(super) fn new(address: SocketAddrV4, certificate: &Path, key: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Ok(Self { address, config, key: hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key)?) })
    }

    pub(super) fn create_container(&self, name: &str) -> Result<()> {
        self.send("PUT", name, &[("restype", "container")], &[], b"").map(drop)
    }

    #[cfg(test)]
    pub(super) fn put(&self, container: &str, blob: &str, body: &[u8]) -> Result<()> {
        self.send("PUT", &format!("{container}/{blob}"), &[], &[("x-ms-blob-type", "BlockBlob")], body).map(drop)
    }

    pub(super) fn stored_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for container in self.list("", &[("comp", "list")], "Name")? {
            let query = [("comp", "list"), ("restype", "container")];
            for size in self.list(&container, &query, "Content-Length")? {
                total += size.parse::<u64>()?;
            }
        }
        Ok(total)
    }

    /// The texts of all elements of that name, over all pages of a listing.
    fn list(&self, path: &str, query: &[(&str, &str)], element: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut marker = String::new();
        loop {
            let mut query = query.to_vec();
            query.push(("marker", &marker));
            // They are signed in the order of their names.
            query.sort_unstable();
            let body = self.send("GET", path, &query, &[], b"")?;
            found.extend(elements(&body, element));
            match elements(&body, "NextMarker").pop().filter(|next| !next.is_empty()) {
                Some(next) => marker = next,
                None => return Ok(found),
            }
        }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<String> {
        let path = format!("/{ACCOUNT}/{path}").trim_end_matches('/').to_owned();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())?;
        let mut signed = headers.to_vec();
        signed.extend([("x-ms-date", date.as_str()), ("x-ms-version", VERSION)]);
        signed.sort_unstable();
        let length = if body.is_empty() { String::new() } else { body.len().to_string() };
        let mut text = format!("{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n");
        signed.iter().for_each(|(name, value)| text.push_str(&format!("{name}:{value}\n")));
        text.push_str(&format!("/{ACCOUNT}{path}"));
        query.iter().for_each(|(name, value)| text.push_str(&format!("\n{name}:{value}")));
        let signature = STANDARD.encode(hmac::sign(&self.key, text.as_bytes()));
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
        let mut head = format!("{method} {path}?{} HTTP/1.0\r\nHost: {}\r\n", query.join("&"), self.address);
        signed.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str(&format!(
            "Content-Length: {}\r\nAuthorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n",
            body.len()
        ));
        let answer = self.exchange(head.as_bytes(), body)?;
        let (answer_head, answer_body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = answer_head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('2') {
            return Ok(answer_body.to_owned());
        }
        Err(format!("Azurite answers {method} {path} with {status}").into())
    }

    fn exchange(&self, head: &[u8], body: &[u8]) -> Result<String> {
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
        let name = ServerName::try_from(HOST)?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.config), name)?, tcp);
        stream.write_all(head)?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            // Node.js closes without saying so in TLS; a short listing is noticed as one that does not end.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
