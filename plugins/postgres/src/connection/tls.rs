//! TLS to the server, in libpq's modes.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;
use vaultferry_proto::{Problem, Reason};

use crate::client::Major;
use crate::connection::{NOWHERE, certificate};
use crate::uri::{Tls, Uri};

/// The first libpq that knows `sslrootcert=system`.
const KNOWS_SYSTEM_ROOTS: Major = Major::new(16);

/// Where systems keep the bundle of trusted certificates: Debian, Red Hat, SUSE, Alpine and the BSDs.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A system's whole bundle has some hundred KB.
const ROOTS_MAX: u64 = 16 * 1024 * 1024;

fn failed(message: impl Into<String>) -> Problem {
    Problem::new(Reason::TlsFailed, message)
}

/// A connector for every mode but [`Tls::Disable`].
pub(super) fn connector(uri: &Uri) -> Result<MakeRustlsConnect, Problem> {
    // Given explicitly: no process-wide default is needed, and none can be the wrong one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    let verifier: Arc<dyn ServerCertVerifier> = match &uri.tls {
        Tls::VerifyFull { root_cert_path } => {
            Arc::new(TrustedServer::new(root_cert_path.as_deref(), Names::Checked, provider)?)
        }
        Tls::VerifyCa { root_cert_path } => {
            Arc::new(TrustedServer::new(Some(root_cert_path.as_path()), Names::Any, provider)?)
        }
        Tls::Disable | Tls::Allow | Tls::Prefer | Tls::Require => Arc::new(AnyCertificate { provider }),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = match &uri.client_certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = certificate::read(files)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let path = files.cert_path.display();
                certificate::problem(format!("the client certificate {path} cannot be used with its key: {error}"))
            })?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn trusted(path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let Some(path) = path else { return Ok(rustls_native_certs::load_native_certs().certs) };
    let unreadable = |error: &dyn Display| failed(format!("cannot read sslrootcert {}: {error}", path.display()));
    certificate::refuse_what_is_no_file(path, ROOTS_MAX).map_err(|error| unreadable(&error))?;
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| unreadable(&error))
}

/// What PGSSLROOTCERT must say so that libpq trusts what [`connector`] trusts. In the modes that check nothing, libpq would begin to
/// check if the user's own root file existed; so it is pointed to nowhere.
pub(super) fn root_cert_for_libpq(tls: &Tls, program: Major) -> OsString {
    match tls {
        Tls::Disable | Tls::Allow | Tls::Prefer | Tls::Require => NOWHERE.into(),
        Tls::VerifyCa { root_cert_path: path } | Tls::VerifyFull { root_cert_path: Some(path) } => path.into(),
        Tls::VerifyFull { root_cert_path: None } => {
            let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
            let known = SYSTEM_BUNDLES.iter().map(PathBuf::from);
            match named.into_iter().chain(known).find(|path| path.is_file()) {
                _ if program >= KNOWS_SYSTEM_ROOTS => "system".into(),
                Some(path) => path.into(),
                None => NOWHERE.into(),
            }
        }
    }
}

/// Which names a server's certificate may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// The one that the URI has.
    Checked,
    /// `verify-ca`: whatever the authority has signed.
    Any,
}

/// Checks the chain, and the name if it counts. As libpq does, it also takes a server's own self-signed certificate when that is what
/// sslrootcert holds; rustls refuses it as the certificate of an authority, which such a certificate commonly says it is.
#[derive(Debug)]
struct TrustedServer {
    chain: Arc<WebPkiServerVerifier>,
    names: Names,
    trusted: Vec<CertificateDer<'static>>,
}

impl TrustedServer {
    fn new(path: Option<&Path>, names: Names, provider: Arc<CryptoProvider>) -> Result<Self, Problem> {
        let trusted = trusted(path)?;
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(trusted.iter().cloned());
        if usable == 0 {
            let place = path.map_or("the system".to_owned(), |path| path.display().to_string());
            return Err(failed(format!("{place} has no trusted certificate")));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { chain: chain.map_err(|error| failed(error.to_string()))?, names, trusted })
    }
}

impl ServerCertVerifier for TrustedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The dates are checked before this is found, so a certificate that has expired does not come here.
            Err(error) if is_authority(&error) && self.trusted.iter().any(|trusted| trusted == end_entity) => {
                if self.names == Names::Checked {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            // The name is the last that is looked at: the chain is good.
            Err(error) if self.names == Names::Any && is_name(&error) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn is_name(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

/// rustls has no error of its own for this one; the certificate library's is inside.
fn is_authority(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Other(other))
        if other.0.to_string() == "CaUsedAsEndEntity")
}

/// Trusts every certificate, as libpq does in the modes `allow`, `prefer` and `require`: they keep listeners out, not impostors.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Whoever may show any certificate can also sign for it; checking the signature would only refuse old kinds of certificates.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
