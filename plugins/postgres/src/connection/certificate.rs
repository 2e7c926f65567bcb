//! Our own certificate and its key, read as libpq reads them.

use std::fmt::Display;
use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use vaultferry_proto::{Problem, Reason};

use crate::uri::ClientCertificate;

/// Far above any real file; so that a wrong path (a disk, a dump) is not read into memory.
const FILE_MAX: u64 = 1024 * 1024;

pub(super) fn problem(message: impl Into<String>) -> Problem {
    let fix = "Correct --client-cert and --client-key (sslcert and sslkey in the URI): PEM files that the agent's user can read.";
    Problem::new(Reason::UserErrorDBUserAuthFailed, message).with_fix(fix)
}

/// The chain that begins with our certificate, and the key to it.
pub(super) fn read(
    files: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Problem> {
    let path = files.cert_path.display();
    let cannot_read = |error: &dyn Display| problem(format!("cannot read the client certificate {path}: {error}"));
    refuse_what_is_no_file(&files.cert_path, FILE_MAX).map_err(|error| cannot_read(&error))?;
    let chain = CertificateDer::pem_file_iter(&files.cert_path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| cannot_read(&error))?;
    if chain.is_empty() {
        return Err(problem(format!("{path} has no certificate in PEM")));
    }
    refuse_what_is_no_file(&files.key_path, FILE_MAX)
        .map_err(|error| problem(format!("cannot read the key {}: {error}", files.key_path.display())))?;
    refuse_readable_by_others(&files.key_path)?;
    let key = PrivateKeyDer::from_pem_file(&files.key_path).map_err(|error| {
        let path = files.key_path.display();
        problem(format!("cannot read the key {path}: {error} (an encrypted key cannot be used)"))
    })?;
    Ok((chain, key))
}

/// A pipe would be waited for, and a device may have no end.
pub(super) fn refuse_what_is_no_file(path: &Path, most_bytes: u64) -> std::io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() && metadata.len() <= most_bytes {
        return Ok(());
    }
    Err(std::io::Error::other(format!("it is no file of {} MiB at most", most_bytes >> 20)))
}

/// libpq's rule: others have no right on the file, and a group may read it when it is root's.
#[cfg(unix)]
fn refuse_readable_by_others(path: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata =
        std::fs::metadata(path).map_err(|error| problem(format!("cannot read the key {}: {error}", path.display())))?;
    let mode = metadata.mode() & 0o777;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden == 0 {
        return Ok(());
    }
    let message = format!("the key {} has mode {mode:04o}: others than its owner may use it", path.display());
    Err(problem(message).with_fix(format!("chmod 600 {}", path.display())))
}

#[cfg(not(unix))]
fn refuse_readable_by_others(_path: &Path) -> Result<(), Problem> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_cannot_be_used_is_named_and_a_key_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let good = file("good.crt", certificate, 0o644);
        let open = file("open.key", "hunter2", 0o644);
        let closed = file("closed.key", "hunter2", 0o600);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let encrypted = file("encrypted.key", encrypted, 0o600);
        let empty = file("empty.crt", "nothing", 0o644);
        let large = file("large.crt", &"x".repeat(2 << 20), 0o600);
        // Read, it would never end.
        let endless = PathBuf::from("/dev/zero");
        for (cert_path, key_path, expected) in [
            (&dir.path().join("none.crt"), &closed, "none.crt"),
            (&empty, &closed, "empty.crt has no certificate"),
            (&good, &dir.path().join("none.key"), "none.key"),
            (&good, &open, "0644"),
            (&good, &closed, "closed.key"),
            (&good, &encrypted, "encrypted"),
            (&large, &closed, "large.crt: it is no file of 1 MiB at most"),
            (&good, &large, "large.crt: it is no file of 1 MiB at most"),
            (&endless, &closed, "/dev/zero: it is no file"),
            (&good, &endless, "/dev/zero: it is no file"),
        ] {
            let files = ClientCertificate { cert_path: cert_path.clone(), key_path: key_path.clone() };
            let problem = read(&files).unwrap_err();
            assert_eq!(problem.reason, Reason::UserErrorDBUserAuthFailed);
            assert!(problem.message.contains(expected), "{problem}");
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
        let problem = read(&ClientCertificate { cert_path: good, key_path: open }).unwrap_err();
        assert!(problem.fix.starts_with("chmod 600 "), "{problem:?}");
    }
}
