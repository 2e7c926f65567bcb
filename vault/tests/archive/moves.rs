//! Points that leave the vault store for the archive: killed at every call, and with copies that do not read back.

use super::*;

/// Every call of a move is its last, done or not. At each of these instants one of the stores has the whole point, listed; then the move is
/// repeated, and the archive has it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_move_leaves_a_whole_point_and_is_repeated() {
    let bytes = random(14, 1 << 20);
    // A copy that was made before, as a policy's `immediate` makes it, or none.
    for copied_before in [false, true] {
        let mut n = 0;
        loop {
            n += 1;
            let mut killed = 0;
            for last in [Last::NotDone, Last::Done] {
                let memory = Arc::new(Memory::new("killed"));
                let store: Shared = memory.clone();
                let whole = repository(&store).await;
                let id = point(&whole, "1", &bytes).await;
                if copied_before {
                    copy(&whole, &id, "copy").await.expect("copy");
                }
                let dying = Arc::new(Dying::new(store.clone(), calls_of_opening(&store).await + n, last));
                let opened = Arc::new(Repository::open(dying, &password(), &cancel()).await.expect("open"));
                killed += u64::from(move_point(&opened, &id).await.is_err());
                let what = format!("copied before: {copied_before}, call {n}, {last:?}");
                let state = points::read(&*store, &id, &cancel()).await.expect("state");
                assert!(state.is_listed(), "{what}");
                if state.in_vault {
                    assert!(read(repository_of(&store).await, id).await.expect("read") == bytes, "{what}");
                }
                if state.in_archive {
                    rehydrated_equals(&memory, &id, &bytes).await;
                }
                // What a restart does first, and then the next run. A prune between takes nothing that is needed.
                points::finish_interrupted(&*store, &cancel()).await.expect("finished");
                for _ in 0..2 {
                    move_point(&whole, &id).await.expect("repeated");
                }
                let state = points::read(&*store, &id, &cancel()).await.expect("state");
                assert!(!state.in_vault && state.in_archive && state.removed_from_vault, "{what}: {state:?}");
                let removals = events(&store, &id).await.into_iter();
                let removals = removals.filter(|event| *event == PointEventKind::RemovedFromVault).count();
                assert_eq!(removals, 1, "{what}");
                rehydrated_equals(&memory, &id, &bytes).await;
            }
            if killed == 0 {
                break;
            }
        }
        assert!(n > 10, "copied before: {copied_before}: a move makes {n} calls");
    }
}

async fn move_point(repository: &Arc<Repository>, id: &Id) -> Result<Copied, Error> {
    archive::move_point(repository, id, "move", &Arc::new(Meter::default()), &cancel()).await
}

/// Waits for the archive as a restore does, and reads the point from there alone.
async fn rehydrated_equals(memory: &Arc<Memory>, id: &Id, bytes: &[u8]) {
    let store: Shared = memory.clone();
    let repository = repository(&store).await;
    archive::rehydrate(&repository, id, "r", &cancel()).await.expect("asked");
    memory.finish_rehydration();
    assert!(read_archive(&store, *id).await.expect("read") == bytes);
    archive::clean_up_rehydrated(&repository, "r", &cancel()).await.expect("cleaned up");
}

/// What a killed copy has left in the archive is read back before anything counts on it; a prune then takes the bad part away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_read_back_never_takes_the_place_of_the_point() {
    let memory = Arc::new(Memory::new("archive"));
    let store: Shared = memory.clone();
    let whole = repository(&store).await;
    let bytes = random(15, 3 << 20);
    let id = point(&whole, "1", &bytes).await;
    let before = calls_of_opening(&store).await;
    let mut n = 0;
    // Killed with the data and its index in the archive.
    while entries(&store, "archive/repo/index/").await.is_empty() {
        n += 1;
        let dying = Arc::new(Dying::new(store.clone(), before + n, Last::Done));
        let opened = Arc::new(Repository::open(dying, &password(), &cancel()).await.expect("open"));
        move_point(&opened, &id).await.expect_err("killed");
    }
    // Earlier kills have left packs that no index names.
    let opened = Repository::open(archive::store(&store).expect("store"), &password(), &cancel()).await.expect("open");
    let index = opened.load_index(&cancel()).await.expect("index");
    let pack = index.packs().map(|(_, pack)| pack).max_by_key(|pack| pack.size).expect("a pack");
    let key = Key::new(format!("archive/{}", pack_key(&pack.id))).expect("key");
    assert_eq!(memory.tier(&key), Some(Tier::Hot), "not verified yet");
    assert!(memory.damage(&key, |bytes| bytes[1000] ^= 1));
    for _ in 0..2 {
        let error = move_point(&whole, &id).await.expect_err("damaged");
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(!archive::contains(&store, &id, &cancel()).await.expect("contains"));
        assert!(read(repository_of(&store).await, id).await.expect("the point is where it was") == bytes);
    }
    archive::prune(&whole, days(0), false, &cancel()).await.expect("prune");
    move_point(&whole, &id).await.expect("moved");
    rehydrated_equals(&memory, &id, &bytes).await;
}

/// A copy of long ago is looked at again before it is the only one.
#[tokio::test]
async fn a_copy_that_has_lost_a_pack_does_not_take_the_place_of_the_point() {
    let store: Shared = Arc::new(Memory::new("archive"));
    let whole = repository(&store).await;
    let bytes = random(16, 3 << 20);
    let id = point(&whole, "1", &bytes).await;
    copy(&whole, &id, "copy").await.expect("copy");
    let pack = entries(&store, "archive/repo/data/").await.into_iter().max_by_key(|pack| pack.size).expect("a pack");
    store.delete(&pack.key).await.expect("delete");
    let error = move_point(&whole, &id).await.expect_err("incomplete");
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    let state = points::read(&*store, &id, &cancel()).await.expect("state");
    assert!(state.in_vault && !state.removed_from_vault, "{state:?}");
    assert!(read(repository_of(&store).await, id).await.expect("the point is where it was") == bytes);
}

async fn repository_of(store: &Shared) -> Repository {
    Repository::open(store.clone(), &password(), &cancel()).await.expect("open")
}
