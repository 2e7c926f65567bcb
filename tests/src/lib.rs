//! What the end-to-end tests stand on: throwaway servers, agents, faults and comparisons, all of them real components.
//!
//! Invariants:
//! - Everything lies in folders below `/tmp` that are removed again; ports are free ones of 127.0.0.1; no server of the host is used.
//! - Helpers panic, with the caller's place, when the world is not as a test needs it; what a test is about comes back as a value.
//! - Whatever a test starts dies with it, even when the test itself is killed (`setpriv --pdeathsig`).
//!
//! Tests are compiled always; heavy ones ([`heavy`]) run only with `VAULTFERRY_TEST_ALL=1`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub mod agent;
pub mod azurite;
pub mod compare;
pub mod fake_arm;
pub mod fake_service;
pub mod fault_proxy;
pub mod folder;
mod http;
pub mod imds;
pub mod key_vault;
pub mod login_proxy;
pub mod policy;
pub mod pooler;
pub mod postgres;
pub mod process;
pub mod restic;
pub mod sample;
pub mod scratch;
pub mod tmpfs;

/// The checkout's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// The program under test: `VAULTFERRY_BIN`, or what `make test` has built. It is never built from here: two builds would wait for each other.
#[track_caller]
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("VAULTFERRY_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            // …/target/<profile>/deps/<test>
            let test = std::env::current_exe().expect("a process knows its own file");
            let profile_dir =
                test.parent().and_then(Path::parent).expect("cargo puts tests into target/<profile>/deps");
            profile_dir.join("vaultferry")
        }
    };
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo build -p vaultferry-agent` (make test does)",
        path.display()
    );
    path
}

/// True when heavy tests are wanted. Otherwise it says so in one line, and the test returns at once.
#[allow(clippy::print_stdout)] // the runner shows it
pub fn heavy() -> bool {
    let wanted = std::env::var_os("VAULTFERRY_TEST_ALL").is_some_and(|value| value == "1");
    if !wanted {
        println!("skipped (heavy): run make test-all");
    }
    wanted
}

/// Tells what a test measured; the runner shows it.
#[allow(clippy::print_stdout)] // the runner shows it
pub fn measured(text: &str) {
    println!("measured: {text}");
}

/// Asks every 50 ms until there is an answer; panics after `limit` with `what` was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {} s for: {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// A fresh random text of `bytes` random bytes, in hexadecimal digits.
pub fn random_hex(bytes: usize) -> String {
    let random: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
    hex::encode(random)
}

/// Percent-encodes every byte but what RFC 3986 calls unreserved.
pub fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}
