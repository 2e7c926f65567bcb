//! Azurite, the Azure Storage emulator that `scripts/setup` puts into `.tools`.

use std::process::{Child, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::scratch::Scratch;
use crate::{free_port, process, wait_for, workspace};

mod client;

pub use client::{Account, elements};

/// A running emulator with two accounts. Dropping it kills it and removes what it stored.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    /// Holds the vault.
    pub vault: Account,
    /// Somebody else's account: a target for restores.
    pub other: Account,
    scratch: Scratch,
}

impl Server {
    /// Starts it on a free port with random account keys.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new("azurite");
        for attempt in 1.. {
            let port = free_port();
            let vault = Account::new(port, "vaultaccount", &random_key());
            let other = Account::new(port, "otheraccount", &random_key());
            let mut child = spawn(&scratch, port, &[&vault, &other]);
            let answers = || {
                let ended = process::exit_code(&mut child, Duration::ZERO).is_some();
                let up = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
                (ended || up).then_some(up && !ended)
            };
            if wait_for("Azurite to start", Duration::from_secs(120), answers) {
                return Self { child, port, vault, other, scratch };
            }
            assert!(attempt < 5, "Azurite does not start");
        }
        unreachable!("the loop returns or panics")
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Peak memory is of no interest here, but its folder is: what it stores.
    pub fn dir(&self) -> &std::path::Path {
        self.scratch.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn spawn(scratch: &Scratch, port: u16, accounts: &[&Account]) -> Child {
    let tools = workspace().join(".tools/azurite");
    let program = tools.join("node_modules/azurite/dist/src/blob/main.js");
    assert!(program.is_file(), "{} is missing: run scripts/setup", program.display());
    let mut command = process::bound("KILL", tools.join("node"));
    command.arg(program).args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]);
    command.arg(scratch.path()).args(["--disableTelemetry", "--silent", "--skipApiVersionCheck"]);
    let accounts: Vec<String> =
        accounts.iter().map(|account| format!("{}:{}", account.name(), account.key())).collect();
    command.env("AZURITE_ACCOUNTS", accounts.join(";"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(scratch.path());
    command.spawn().expect("start Azurite")
}

fn random_key() -> String {
    STANDARD.encode((0..64).map(|_| rand::random::<u8>()).collect::<Vec<u8>>())
}
