//! Copies of a catalog with bytes that are not theirs: passed over, whatever zstd or SQLite makes of them. For two seconds, or for twenty with
//! `VAULTFERRY_TEST_ALL=1`; a failure prints its seed, which `FUZZ_SEED` repeats.

use std::time::Instant;

use super::*;
use crate::catalog::copy;

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Some other bytes, and at times a shorter end.
fn altered(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        bytes[at] ^= random.below(255) as u8 + 1;
    }
    if random.below(5) == 0 {
        bytes.truncate(random.below(good.len()) + 1);
    }
    bytes
}

#[tokio::test]
async fn no_altered_copy_is_more_than_passed_over() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_microsecond() as u64);
    let heavy = number("VAULTFERRY_TEST_ALL") == Some(1);
    let limit = Duration::from_secs(if heavy { 20 } else { 2 });
    let (_dir, config, catalog) = made(3).await;
    let ended = |number| job(number, Status::Cancelled { end_time: jiff::Timestamp::UNIX_EPOCH });
    let known: Vec<_> = (1..40).map(|number| (ended(number), Vec::new())).collect();
    catalog.insert_history(known).await.expect("inserted");
    let packed = copy::read(&config.state_dir).await.expect("read");
    let plain = zstd::bulk::decompress(&packed, 64 << 20).expect("zstd");
    let root = config.vault.open_root().expect("root");
    let key = Key::new("catalog/20260101T000000Z.sqlite.zst").expect("a key");
    let cancel = CancellationToken::new();
    let (begun, mut random, mut runs) = (Instant::now(), Random(seed), 0_u64);
    while begun.elapsed() < limit {
        // What zstd refuses, and what only SQLite sees.
        let body = match random.below(2) {
            0 => altered(&packed, &mut random),
            _ => zstd::stream::encode_all(&altered(&plain, &mut random)[..], 1).expect("zstd"),
        };
        root.put_if_absent(&key, body.into()).await.expect("put");
        let mut problems = Vec::new();
        let taken = history::take(&catalog, &config, &mut problems, &cancel).await;
        assert!(taken.is_ok(), "FUZZ_SEED={seed}, run {runs}: {taken:?} {problems:?}");
        root.delete(&key).await.expect("delete");
        runs += 1;
    }
    assert!(runs > 5, "{runs} runs in {limit:?}");
}
