//! One vault for a machine, as the machine remembers it (V8, V52).
//!
//! ```text
//! /var/lib/vaultferry/registration.json   {"machine": "<hash of /etc/machine-id>", "vault": "azure://account/name", "time": "…"}
//! ```
//! Invariants:
//! - The record is there whole or not at all, and is changed under a lock: of two vaults that claim a machine at the same time, one gets it.
//! - It lies in one place for all agents of the machine, whatever their own state folders are: another agent, with another vault, is who has to see it.
//! - It binds the machine whose id it has. A copy of a machine that was given an id of its own is another machine, and may go to another vault.
//! - The machine's id itself is told to nobody (machine-id(5) asks for that): its hash is.
//!
//! What it does not do: it does not ask the other vault. Whoever gives a vault up says so ([`Registration::release`]), or removes the record.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vaultferry_proto::{Problem, Reason};

/// Where the record is.
const DIR: &str = "/var/lib/vaultferry";
const FILE: &str = "registration.json";
const LOCK: &str = "registration.lock";
const NEW: &str = "registration.new";
/// Where the machine's id is: systemd's place, then that of before.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// So that nobody else's hash of the same id is the same.
const PURPOSE: &[u8] = b"vaultferry machine 1\0";
/// Hexadecimal digits of a machine's id.
const ID_DIGITS: usize = 32;

/// This machine, and what it remembers.
#[derive(Debug, Clone)]
pub struct Registration {
    dir: PathBuf,
    machine: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    machine: String,
    vault: String,
    time: jiff::Timestamp,
}

impl Registration {
    /// Reads the machine's id. [`Reason::InvalidSource`] when it has none.
    pub fn of_this_machine() -> Result<Self, Problem> {
        let id = MACHINE_IDS.iter().find_map(|path| fs::read_to_string(path).ok());
        Self::new(Path::new(DIR), &id.unwrap_or_default())
    }

    fn new(dir: &Path, id: &str) -> Result<Self, Problem> {
        let id = id.trim().to_ascii_lowercase();
        if id.len() != ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = "this machine has no id: /etc/machine-id is missing, empty or not made yet";
            return Err(Problem::new(Reason::InvalidSource, message).with_fix("Make one: systemd-machine-id-setup."));
        }
        let hash = Sha256::new().chain_update(PURPOSE).chain_update(id.as_bytes()).finalize();
        Ok(Self { dir: dir.to_path_buf(), machine: hex::encode(hash) })
    }

    /// The hash of the machine's id: 64 hexadecimal digits, the same for as long as the machine is installed.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Nothing stands against protecting this machine in the vault. Changes nothing.
    ///
    /// Errors: [`Reason::SourceAlreadyProtected`] with the other vault's name; [`Reason::Internal`] when the record cannot be read.
    pub fn check(&self, vault: &str) -> Result<(), Problem> {
        self.judge(self.read()?.as_ref(), vault).map(|_| ())
    }

    /// Gives the machine to the vault; again is no error. Errors: as of [`Registration::check`], and when the record cannot be written.
    pub fn claim(&self, vault: &str, now: jiff::Timestamp) -> Result<(), Problem> {
        let record = Record { machine: self.machine.clone(), vault: vault.to_owned(), time: now };
        let text = serde_json::to_vec(&record).map_err(|error| self.cannot(&error))?;
        let _lock = self.lock()?;
        // A record of a machine that this one was copied from is replaced.
        if self.judge(self.read()?.as_ref(), vault)? {
            return Ok(());
        }
        self.replace(&text).map_err(|error| self.cannot(&error))
    }

    /// Takes the machine from the vault, if that has it.
    pub fn release(&self, vault: &str) -> Result<(), Problem> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(record) if record.machine == self.machine && record.vault == vault => {
                fs::remove_file(self.path()).map_err(|error| self.cannot(&error))
            }
            _ => Ok(()),
        }
    }

    /// Whoever changes the record has this, for some milliseconds; it ends with its process.
    fn lock(&self) -> Result<File, Problem> {
        fs::create_dir_all(&self.dir).map_err(|error| self.cannot(&error))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.join(LOCK));
        let lock = lock.map_err(|error| self.cannot(&error))?;
        lock.lock().map_err(|error| self.cannot(&error))?;
        Ok(lock)
    }

    /// Only under the lock, so one name is enough for what is not there whole yet.
    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let new = self.dir.join(NEW);
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(new, self.path())
    }

    /// True when the vault has the machine, false when nobody has.
    fn judge(&self, record: Option<&Record>, vault: &str) -> Result<bool, Problem> {
        match record {
            Some(record) if record.machine == self.machine && record.vault != vault => {
                let message = format!(
                    "this machine is protected in the vault {} since {}, and a machine has one vault",
                    record.vault, record.time
                );
                let fix = format!(
                    "Use that vault. If the machine has left it: stop its protection there, then remove {} and try again.",
                    self.path().display()
                );
                Err(Problem::new(Reason::SourceAlreadyProtected, message).with_fix(fix))
            }
            Some(record) => Ok(record.machine == self.machine),
            None => Ok(false),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn read(&self) -> Result<Option<Record>, Problem> {
        match fs::read(self.path()) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| self.cannot(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.cannot(&error)),
        }
    }

    fn cannot(&self, error: &dyn std::fmt::Display) -> Problem {
        Problem::new(Reason::Internal, format!("the machine's registration {}: {error}", self.path().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef\n";
    const COPY: &str = "ffffffffffffffffffffffffffffffff\n";

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    #[test]
    fn a_machine_has_one_vault() {
        let dir = tempfile::tempdir().expect("a folder");
        let machine = Registration::new(dir.path(), ID).expect("an id");
        assert!(!machine.machine().contains("0123456789abcdef"), "the id is not told");
        machine.check("/srv/a").expect("nobody has it");
        machine.claim("/srv/a", now()).expect("claimed");
        machine.claim("/srv/a", now()).expect("again");
        machine.check("/srv/a").expect("the same");
        for problem in
            [machine.check("/srv/b"), machine.claim("/srv/b", now())].map(|result| result.expect_err("taken"))
        {
            assert_eq!(problem.reason, Reason::SourceAlreadyProtected);
            assert!(problem.message.contains("/srv/a"), "{problem}");
        }
        machine.release("/srv/b").expect("nothing to release");
        assert!(machine.check("/srv/b").is_err());
        machine.release("/srv/a").expect("released");
        machine.claim("/srv/b", now()).expect("free again");
    }

    #[test]
    fn a_copy_with_an_id_of_its_own_is_another_machine() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Registration::new(dir.path(), ID).expect("an id");
        first.claim("/srv/a", now()).expect("claimed");
        let copy = Registration::new(dir.path(), COPY).expect("an id");
        copy.check("/srv/b").expect("not bound by the other's record");
        copy.claim("/srv/b", now()).expect("claimed");
        assert!(copy.check("/srv/a").is_err());
        for none in ["", "uninitialized\n", "0123"] {
            assert_eq!(Registration::new(dir.path(), none).expect_err(none).reason, Reason::InvalidSource);
        }
    }

    #[test]
    fn of_many_vaults_at_once_one_gets_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let claims: Vec<_> = (0..8)
            .map(|number| {
                let machine = Registration::new(dir.path(), ID).expect("an id");
                std::thread::spawn(move || machine.claim(&format!("/srv/{number}"), now()).is_ok())
            })
            .collect();
        let won = claims.into_iter().filter_map(|claim| claim.join().ok()).filter(|won| *won).count();
        assert_eq!(won, 1);
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 2, "the record and its lock");
    }

    #[test]
    fn a_damaged_record_lets_nobody_in() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(FILE), "{").expect("written");
        let machine = Registration::new(dir.path(), ID).expect("an id");
        assert_eq!(machine.claim("/srv/a", now()).expect_err("unreadable").reason, Reason::Internal);
    }
}
