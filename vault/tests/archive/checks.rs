//! Checks of points that only the archive store has: what is online is looked at, what is not is counted.

use vaultferry_vault::check::{Depth, Finding, FindingKind, PointReport, Severity};

use super::*;

/// A point of one pack of data and one of trees, in the archive store alone.
async fn archived() -> (Arc<Memory>, Arc<Repository>, Id) {
    let memory = Arc::new(Memory::new("checks"));
    let store: Shared = memory.clone();
    let repository = repository(&store).await;
    let id = point(&repository, "1", &random(21, 3 << 20)).await;
    copy(&repository, &id, "copy").await.expect("copy");
    let both = verify(&repository, id).await;
    assert!(both.is_proven() && !both.in_archive, "{both:?}");
    points::remove_from_vault(&*store, &id, &cancel()).await.expect("remove");
    (memory, repository, id)
}

async fn verify(repository: &Arc<Repository>, id: Id) -> PointReport {
    check::point(repository, id, &Meter::default(), &cancel()).await.expect("checked")
}

/// What a check with the key, which reads no pack whole, says of the repositories: this instance has no records of its own.
async fn damage(repository: &Arc<Repository>) -> Vec<Finding> {
    let report = check::full(repository, Depth::Structure, &Meter::default(), &cancel()).await.expect("checked");
    let of_records = |finding: &Finding| ["instance/", "keys/"].iter().any(|record| finding.file.starts_with(record));
    report.findings.into_iter().filter(|found| found.severity == Severity::Damage && !of_records(found)).collect()
}

/// The archive's packs: of data, then of trees.
async fn packs(memory: &Arc<Memory>) -> [Key; 2] {
    let store: Shared = memory.clone();
    let packs = entries(&store, "archive/repo/data/").await;
    let of = |archived: bool| {
        let mut those = packs.iter().filter(|pack| (pack.tier == Tier::Archive) == archived);
        those.next().expect("a pack").key.clone()
    };
    [of(true), of(false)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_online_of_an_archived_point_is_read_and_the_rest_is_counted() {
    let (memory, repository, id) = archived().await;
    assert_eq!(damage(&repository).await, []);
    let report = verify(&repository, id).await;
    assert!(report.in_archive && !report.is_proven() && report.findings.is_empty(), "{report:?}");
    assert_eq!((report.bytes, report.blobs, report.packs_not_readable), (3 << 20, 0, 1), "{report:?}");
    assert!(report.not_readable > 0, "{report:?}");
    archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate");
    memory.finish_rehydration();
    assert!(archive::rehydrate(&repository, &id, "r", &cancel()).await.expect("rehydrate").is_ready());
    let report = verify(&repository, id).await;
    assert!(report.in_archive && report.is_proven() && report.blobs > 0, "{report:?}");
}

/// What a restore begins with has to be online; the check goes on after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_reads_first_is_told_when_it_lies_in_the_archive_tier() {
    for (prefix, file, kind) in [
        ("archive/repo/index/", None, FindingKind::Unreadable),
        ("archive/repo/snapshots/", None, FindingKind::Unreadable),
        ("archive/repo/data/", Some("archive/repo/snapshots/"), FindingKind::Inconsistent),
    ] {
        let (memory, repository, id) = archived().await;
        let store: Shared = memory.clone();
        for moved in entries(&store, prefix).await {
            store.set_tier(&moved.key, Tier::Archive).await.expect("moved");
        }
        let found = damage(&repository).await;
        let told =
            found.iter().find(|finding| finding.file.starts_with(file.unwrap_or(prefix)) && finding.kind == kind);
        let told = told.unwrap_or_else(|| panic!("{prefix}: {found:?}"));
        assert!(told.detail.contains("Archive tier"), "{told:?}");
        assert!(told.points.iter().any(|point| point.id == id), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_archive_is_found_without_rehydration() {
    let touches = |finding: &Finding, id: Id| finding.points.iter().any(|point| point.id == id);

    let (memory, repository, id) = archived().await;
    let store: Shared = memory.clone();
    for index in entries(&store, "archive/repo/index/").await {
        store.delete(&index.key).await.expect("the index goes");
    }
    let found = damage(&repository).await;
    let snapshot = format!("archive/repo/snapshots/{id}");
    let lost = found.iter().find(|finding| finding.file == snapshot && finding.kind == FindingKind::Missing);
    assert!(lost.is_some_and(|finding| touches(finding, id)), "{found:?}");
    let report = verify(&repository, id).await;
    assert!(report.findings.iter().any(|finding| finding.file == snapshot), "{report:?}");

    // A pack that cannot be read has the wrong size.
    let (memory, repository, id) = archived().await;
    let [data, _] = packs(&memory).await;
    memory.damage(&data, |bytes| bytes.truncate(1000));
    let found = damage(&repository).await;
    let cut = found.iter().find(|finding| finding.file == data.as_str() && finding.kind == FindingKind::WrongSize);
    assert!(cut.is_some_and(|finding| touches(finding, id)), "{found:?}");
    let report = verify(&repository, id).await;
    assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::Missing), "{report:?}");
    assert_eq!(report.altered_packs().len(), 0, "the hot store's packs are others");

    // The header of a pack that can.
    let (memory, repository, _) = archived().await;
    let [_, trees] = packs(&memory).await;
    memory.damage(&trees, |bytes| {
        let at = bytes.len() - 10;
        bytes[at] ^= 1;
    });
    let found = damage(&repository).await;
    let altered = found.iter().any(|finding| finding.file == trees.as_str() && finding.kind == FindingKind::Altered);
    assert!(altered, "{found:?}");
}
