//! What a backup service and a plugin send, with bytes that are not theirs: refused or read, and never more than that. For two seconds, or for
//! twenty with `VAULTFERRY_TEST_ALL=1`; a failure prints its seed, which `FUZZ_SEED` repeats. What lies in a vault is in `vault/tests/fuzz.rs`.

use std::time::{Duration, Instant};

use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use vaultferry_proto::{control, plugin, service};
use vaultferry_tests::measured;

/// A name, a good message, and its decoder.
type Target = (&'static str, Vec<u8>, fn(&[u8]));

/// What is read can be written, and read again.
fn decode<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert!(M::decode(&message.encode_to_vec()[..]).is_ok());
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn targets() -> [Target; 6] {
    let credential = control::v1::CredentialReference {
        from: Some(control::v1::credential_reference::From::Passfile(text("/etc/passfile"))),
    };
    let assignments = service::v1::Assignments {
        version: 7,
        policies: vec![service::v1::PolicyAssignment {
            name: text("nightly"),
            document: text("version = 1\n"),
            confirm_shorter: true,
        }],
        instances: vec![service::v1::InstanceAssignment {
            name: text("shop"),
            source_uri: text("postgres://backup@db:5432/shop"),
            credential: Some(credential),
            ..service::v1::InstanceAssignment::default()
        }],
        backups: vec![service::v1::BackupAssignment { instance: text("shop"), ..Default::default() }],
    };
    let assignments = service::v1::WatchAssignmentsResponse { assignments: Some(assignments) };
    let registered = service::v1::RegisterResponse { service_id: text("s"), last_sequence: u64::MAX };
    let finding = plugin::v1::Finding {
        kind: text("missing"),
        damage: true,
        file: text("repo/data/1"),
        points: vec![plugin::v1::AffectedPoint { snapshot_id: text("1"), time: None }],
        ..plugin::v1::Finding::default()
    };
    let found = plugin::v1::MaintenanceEvent { event: Some(plugin::v1::maintenance_event::Event::Finding(finding)) };
    let source =
        plugin::v1::DiscoveredSource { uri: text("postgres://db/shop"), name: text("shop"), ..Default::default() };
    let discovered = plugin::v1::DiscoverResponse { sources: vec![source], ..Default::default() };
    [
        ("assignments", assignments.encode_to_vec(), decode::<service::v1::WatchAssignmentsResponse>),
        ("registered", registered.encode_to_vec(), decode::<service::v1::RegisterResponse>),
        ("maintenance", found.encode_to_vec(), decode::<plugin::v1::MaintenanceEvent>),
        ("backup", found.encode_to_vec(), decode::<plugin::v1::BackupEvent>),
        ("restore", found.encode_to_vec(), decode::<plugin::v1::RestoreEvent>),
        ("discovered", discovered.encode_to_vec(), decode::<plugin::v1::DiscoverResponse>),
    ]
}

/// Some other bytes, some fewer, some twice.
fn altered(good: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.random_range(1..6_u32) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..20_usize)).min(bytes.len());
        match random.random_range(0..4_u32) {
            0 => bytes.insert(at, random.random()),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ if at < bytes.len() => bytes[at] = random.random(),
            _ => {}
        }
    }
    bytes
}

#[test]
fn no_message_from_outside_ends_its_reader() {
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    let all = std::env::var_os("VAULTFERRY_TEST_ALL").is_some_and(|value| value == "1");
    let (targets, total) = (targets(), Duration::from_secs(if all { 20 } else { 2 }));
    let share = total / targets.len() as u32;
    let mut runs = Vec::new();
    for (name, good, target) in targets {
        let (mut random, begun, mut count) = (StdRng::seed_from_u64(seed), Instant::now(), 0_u64);
        target(&good);
        while begun.elapsed() < share {
            let input = altered(&good, &mut random);
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name} panics, FUZZ_SEED={seed}, run {count}: {}", hex::encode(&input));
            count += 1;
        }
        runs.push(format!("{name} {count}"));
    }
    measured(&format!("seed {seed}, runs: {}", runs.join(", ")));
}
