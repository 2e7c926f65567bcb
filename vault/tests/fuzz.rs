//! Every decoder against bytes that are nearly right: seeded mutations of good input, for two seconds, or for a minute with
//! `VAULTFERRY_TEST_ALL=1`. A failure prints its seed; `FUZZ_SEED` repeats it.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use vaultferry_vault::fuzz::TARGETS;
use vaultferry_vault::repository::pack::{BlobKind, PackedBlob};
use vaultferry_vault::repository::tree::{Node, Tree};
use vaultferry_vault::{Id, records, repository};

/// What a decoder may take at its worst: a key file may ask for 512 MiB, as restic's of other machines do.
const MEMORY_MAX_KIB: u64 = 900 << 10;

fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The golden vault's only file of a folder.
fn golden_file(dir: &str) -> Vec<u8> {
    let dir = format!("vault-v1/instances/0123456789abcdef0123456789abcdef/{dir}");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&dir);
    let mut files = std::fs::read_dir(path).expect("folder");
    let name = files.next().expect("a file").expect("entry").file_name();
    golden(&format!("{dir}/{}", name.to_str().expect("hexadecimal")))
}

/// Good input of each target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let time = jiff::Timestamp::UNIX_EPOCH;
    let id = Id::of(b"x");
    match target {
        "pack" => vec![vec![0; 60], [vec![1; 100], 60_u32.to_le_bytes().to_vec()].concat()],
        "pack-header" => {
            let entry = |kind: u8| {
                let raw: &[u8] = if kind > 1 { &[0, 4, 0, 0] } else { &[] };
                [&[kind, 0, 1, 0, 0], raw, id.as_bytes()].concat()
            };
            vec![entry(0), [entry(2), entry(2)].concat(), [entry(1), entry(3)].concat(), Vec::new()]
        }
        "blob" => {
            let plain = b"text ".repeat(1000);
            let packed = zstd::bulk::compress(&plain, 1).expect("compress");
            vec![[&5000_u32.to_le_bytes()[..], &packed].concat(), [&u32::MAX.to_le_bytes()[..], &packed].concat()]
        }
        "index" => {
            let blob = |offset| PackedBlob { id, kind: BlobKind::Data, offset, length: 100, raw_length: Some(300) };
            let pack = repository::index::IndexPack::new(id, &[blob(0), blob(100)]);
            let file = repository::index::IndexFile { supersedes: vec![id], packs: vec![pack] };
            let json = serde_json::to_vec(&file).expect("JSON");
            vec![[&[2], &zstd::bulk::compress(&json, 3).expect("compress")[..]].concat(), json]
        }
        "snapshot" => {
            let json = br#"{"time":"2026-01-02T03:04:05Z","tree":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881","paths":["/x"],"hostname":"h","tags":["job=1"]}"#;
            vec![json.to_vec(), [&[2], &zstd::bulk::compress(json, 3).expect("compress")[..]].concat()]
        }
        "tree" => {
            let nodes = vec![Node::directory("d.parts", time, 5, id), Node::file("s", time, 3, vec![id, id])];
            vec![Tree { nodes }.to_blob().expect("JSON")]
        }
        "key-file" => vec![golden_file("repo/keys")],
        "config" => vec![
            br#"{"version":2,"id":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881","chunker_polynomial":"25b468838dcb75"}"#.to_vec(),
        ],
        "percent" => vec![b"%EB%B0%B1%EC%97%85%20%22a%2Fb".to_vec(), b"100%25".to_vec()],
        _ => ["vault", "recovery-key", "policy", "instance", "server", "password", "point-event", "packs-next", "prune"]
            .iter()
            .map(|name| golden(&format!("records/{name}.json")))
            .chain([
                serde_json::json!({"version": 1, "files": [], "previous": []}),
                serde_json::json!({"version": 1, "create_time": time, "immutability": "enabled", "immutability_days": 30,
                    "soft_delete_days": 14, "redundancy": "geo-redundant"}),
                serde_json::json!({"version": 1, "holder": "1", "purpose": "prune", "create_time": time, "expire_time": time,
                    "process": {"boot": "b", "namespace": "pid:[1]", "pid": 1, "start": 2}}),
                serde_json::json!({"version": 1, "create_time": time, "job_id": "1", "snapshot_id": id}),
            ].map(|record| records::to_bytes(&record).expect("JSON")))
            .collect(),
    }
}

/// Bytes that often matter: signs of JSON, digits, and the ends of ranges.
const TELLING: &[u8] = b"{}[]\",:0123456789e-.\\\x00\x01\x7f\x80\xff\x02\x28";

fn mutate(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..6_u32) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..8_u32) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8_u32),
            1 if at < bytes.len() => bytes[at] = TELLING[random.random_range(0..TELLING.len())],
            2 => bytes.insert(at, TELLING[random.random_range(0..TELLING.len())]),
            3 => bytes.truncate(at),
            4 => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = random.random_range(0..=other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            5 => {
                let end = (at + random.random_range(0..40_usize)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 if at + 4 <= bytes.len() => bytes[at..at + 4].copy_from_slice(&random.random::<u32>().to_le_bytes()),
            _ => {
                let end = (at + random.random_range(0..20_usize)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

/// Peak memory of this process; `None` where the system does not tell.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn no_decoder_panics_or_takes_absurd_memory() {
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    let total = Duration::from_secs(if vaultferry_tests::heavy() { 60 } else { 2 });
    let mut runs = Vec::new();
    for (name, target) in TARGETS {
        let (corpus, mut random) = (corpus(name), StdRng::seed_from_u64(seed));
        corpus.iter().for_each(|input| target(input));
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < total / TARGETS.len() as u32 {
            let input = mutate(&mut random, &corpus);
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name} panics, FUZZ_SEED={seed}, run {count}: {}", hex::encode(&input));
            count += 1;
        }
        runs.push(format!("{name} {count}"));
    }
    let peak = peak_kib();
    assert!(peak.is_none_or(|peak| peak < MEMORY_MAX_KIB), "{peak:?} KiB, FUZZ_SEED={seed}");
    vaultferry_tests::measured(&format!("seed {seed}, peak {peak:?} KiB, runs: {}", runs.join(", ")));
}
