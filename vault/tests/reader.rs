//! Reading a part of a stream: the right bytes, only the packs that hold them, and damage told.

use std::sync::Arc;

use futures::TryStreamExt as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{PACKS, Repository};
use vaultferry_vault::store::faulty::{Faulty, Operation, Plan};
use vaultferry_vault::store::{self, Store as _, memory::Memory};
use vaultferry_vault::{Error, Id};

#[path = "support/filled.rs"]
mod filled;

use filled::{back_up, init, keys, password, random};

async fn open(store: store::Shared, id: Id) -> PointReader {
    let cancel = CancellationToken::new();
    let repository = Repository::open(store, &password(), &cancel).await.expect("open");
    PointReader::open(Arc::new(repository), id, &cancel).await.expect("point")
}

#[tokio::test]
async fn random_ranges_are_those_of_the_stream_and_cost_few_reads() {
    let store = Arc::new(Memory::new("m"));
    let repository = init(&store).await;
    let text: Vec<u8> = (0..30_000_000_u32).map(|n| (n / 977) as u8).collect();
    let bytes = [random(1, 20 << 20), text].concat();
    let id = back_up(&repository, "1", &[("s", &bytes), ("empty", b"")]).await;
    let faulty = Arc::new(Faulty::new(store, Plan::new()));
    let (point, cancel) = (open(faulty.clone(), id).await, CancellationToken::new());
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    for _ in 0..60 {
        let start = random.random_range(0..bytes.len());
        let length = random.random_range(0..(3_usize << 20)).min(bytes.len() - start);
        let before = faulty.calls(Operation::Get);
        let range = start as u64..(start + length) as u64;
        let pieces: Vec<bytes::Bytes> =
            point.range("s", range, &cancel).expect("within").try_collect().await.expect("read");
        assert!(pieces.concat() == bytes[start..start + length], "{start} + {length}");
        // Three MiB lie in few chunks, which lie side by side.
        assert!(faulty.calls(Operation::Get) - before <= 4, "{start} + {length}");
    }
    let whole: Vec<bytes::Bytes> =
        point.range("s", 0..bytes.len() as u64, &cancel).expect("within").try_collect().await.expect("read");
    assert!(whole.concat() == bytes);
    let before = faulty.calls(Operation::Get);
    let mut copied = Vec::new();
    point.copy_stream("s", &mut copied, &Meter::default(), &cancel).await.expect("copied");
    assert!(copied == bytes);
    // 20 MiB that do not compress, in ranges of 4 MiB at most, and a chunk of 8 MiB of the rest at once.
    assert!(faulty.calls(Operation::Get) - before <= 16, "{}", faulty.calls(Operation::Get) - before);
    let nothing: Vec<bytes::Bytes> =
        point.range("empty", 0..0, &cancel).expect("within").try_collect().await.expect("read");
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn a_range_that_is_whole_reads_though_another_is_damaged() {
    let store = Arc::new(Memory::new("m"));
    let repository = init(&store).await;
    let bytes = random(2, 40 << 20);
    let id = back_up(&repository, "1", &[("s", &bytes)]).await;
    let point = open(store.clone(), id).await;
    for pack in keys(&store, PACKS).await {
        let size = store.head(&pack).await.expect("head").expect("there").size;
        if size > 1 << 20 {
            store.damage(&pack, |bytes| bytes[size as usize / 2] ^= 1);
        }
    }
    let cancel = CancellationToken::new();
    let first: Vec<bytes::Bytes> =
        point.range("s", 0..100, &cancel).expect("within").try_collect().await.expect("the first chunk is good");
    assert!(first.concat() == bytes[..100]);
    let whole: Result<Vec<bytes::Bytes>, Error> = point.chunks("s", &cancel).expect("stream").try_collect().await;
    assert!(matches!(whole, Err(Error::Damaged { .. })));
    cancel.cancel();
    let ended: Result<Vec<bytes::Bytes>, Error> = point.chunks("s", &cancel).expect("stream").try_collect().await;
    assert!(matches!(ended, Err(Error::Cancelled)));
}
