//! A store that refuses a request is told as that, whatever was read and by whom; a pack that was cut off is told as damage.

use std::sync::Arc;

use futures::TryStreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{PACKS, Repository};
use vaultferry_vault::store::faulty::{Fault, Faulty, Operation, Plan};
use vaultferry_vault::store::memory::Memory;
use vaultferry_vault::store::{self, Shared};
use vaultferry_vault::{Error, Id, archive, prune};

#[path = "support/filled.rs"]
mod filled;

use filled::{back_up, copy, init, keys, password, random};

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// Who reads packs.
#[derive(Debug, Clone, Copy)]
enum User {
    Reader,
    Archive,
    Prune,
}

async fn read(repository: Arc<Repository>, id: Id) -> Result<usize, Error> {
    let point = PointReader::open(repository, id, &never()).await?;
    let chunks: Vec<bytes::Bytes> = point.chunks("s", &never()).expect("a stream").try_collect().await?;
    Ok(chunks.iter().map(bytes::Bytes::len).sum())
}

async fn work(user: User, store: Shared, id: Id) -> Result<(), Error> {
    let repository = Arc::new(Repository::open(store, &password(), &never()).await?);
    match user {
        User::Reader => assert_eq!(read(repository, id).await?, 3 << 20),
        User::Archive => {
            archive::copy_point(&repository, &id, "job", &Arc::new(Meter::default()), &never()).await?;
        }
        User::Prune => {
            let options = prune::Options { lease_term: std::time::Duration::ZERO, ..prune::Options::default() };
            prune::run(&repository, &options, &Meter::default(), &never()).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_read_is_refused_the_refusal_is_told() {
    let memory = Arc::new(Memory::new("m"));
    let id = back_up(&init(&memory).await, "1", &[("s", &random(1, 3 << 20))]).await;
    for user in [User::Reader, User::Archive, User::Prune] {
        for (fault, as_told) in [
            (Fault::Rejected, (|error| matches!(error, store::Error::Rejected { .. })) as fn(&store::Error) -> bool),
            (Fault::AccessDenied, |error| matches!(error, store::Error::AccessDenied { .. })),
        ] {
            let mut refused = 0;
            for n in 1.. {
                let store = Arc::new(Faulty::new(copy(&memory).await, Plan::new().on(Operation::Get, n, fault)));
                match work(user, store.clone(), id).await {
                    Ok(()) if store.calls(Operation::Get) < n => break,
                    Err(Error::Store(error)) if as_told(&error) => refused += 1,
                    // The last is the lease's, which is given back as well as can be.
                    Ok(()) if matches!(user, User::Prune) && store.calls(Operation::Get) == n => {}
                    other => panic!("{user:?}, {fault:?} at read {n}: {other:?}"),
                }
            }
            // Config, key, index, log, trees, data: each was refused once.
            assert!(refused >= 6, "{user:?}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_pack_that_is_cut_off_behind_a_readers_back_is_damaged() {
    let memory = Arc::new(Memory::new("m"));
    let repository = init(&memory).await;
    let id = back_up(&repository, "1", &[("s", &random(2, 3 << 20))]).await;
    let point = PointReader::open(repository, id, &never()).await.expect("a point");
    for pack in keys(&memory, PACKS).await {
        assert!(memory.damage(&pack, |bytes| bytes.truncate(100)));
    }
    let result: Result<Vec<bytes::Bytes>, Error> = point.chunks("s", &never()).expect("a stream").try_collect().await;
    let Err(Error::Damaged { detail, .. }) = result else { panic!("{result:?}") };
    assert!(detail.contains("it is too short: it has 100 bytes"), "{detail}");
}
