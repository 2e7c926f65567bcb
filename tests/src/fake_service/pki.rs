//! Certificates for a service and its agents, made by openssl's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::process;
use crate::scratch::Scratch;

/// An authority, a certificate of 127.0.0.1 for a service, and one for an agent.
#[derive(Debug)]
pub struct Pki {
    scratch: Scratch,
}

impl Pki {
    /// Makes everything anew.
    #[track_caller]
    pub fn make() -> Self {
        let pki = Self { scratch: Scratch::new("pki") };
        let (ca, ca_key) = (pki.ca().display().to_string(), pki.path("ca.key").display().to_string());
        let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", &ca_key, "-out", &ca];
        openssl(&[&new[..], &authority[..]].concat());
        for (name, usage) in [("service", "serverAuth"), ("agent", "clientAuth")] {
            let [key, request, cert] =
                ["key", "csr", "crt"].map(|ending| pki.path(&format!("{name}.{ending}")).display().to_string());
            let subject = format!("/CN={name}");
            openssl(&[&new[..], &["-subj", &subject, "-keyout", &key, "-out", &request]].concat());
            let extensions = format!("subjectAltName = IP:127.0.0.1\nextendedKeyUsage = {usage}\n");
            let extensions = pki.scratch.write(&format!("{name}.ext"), &extensions).display().to_string();
            let sign =
                ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
            openssl(&[&sign[..], &["-extfile", &extensions, "-out", &cert]].concat());
        }
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// The agent's certificate and key.
    pub fn agent(&self) -> (PathBuf, PathBuf) {
        (self.path("agent.crt"), self.path("agent.key"))
    }

    /// The certificate of 127.0.0.1 for a service, and its key.
    pub fn service(&self) -> (PathBuf, PathBuf) {
        (self.path("service.crt"), self.path("service.key"))
    }

    /// A server that shows its certificate, and wants one of this authority.
    pub(super) fn server(&self) -> ServerTlsConfig {
        let identity = Identity::from_pem(read(&self.path("service.crt")), read(&self.path("service.key")));
        ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read(&self.ca())))
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("openssl has written it")
}

#[track_caller]
fn openssl(arguments: &[&str]) {
    process::run(Command::new("openssl").args(arguments), b"", Duration::from_secs(60)).success();
}
