use super::*;

#[tokio::test]
async fn instances_are_listed_by_pages_and_the_deleted_ones_apart() {
    let (_dir, catalog) = open();
    let time = |second| jiff::Timestamp::from_second(second).expect("a time");
    let deleted =
        |before: Protection| Protection::Deleted { since: time(1), purge_time: time(9), before: Box::new(before) };
    let mut all = ["e", "c", "a", "d", "b"].map(instance);
    all[1].protection = Protection::Paused { since: time(1) };
    all[4].protection = deleted(Protection::Active);
    catalog.insert_instances(all.to_vec()).await.expect("inserted");
    let id = |name: &str| format!("{name:0>32}");
    let point = |number: u8, second: i64| Point { instance_id: id("c"), ..point(number, second) };
    let gone = Standing { purge_time: Some(time(8)), ..Standing::default() };
    let points = vec![point(2, 20), point(3, 30), Point { standing: gone, ..point(4, 40) }];
    catalog.insert_points(points).await.expect("points");
    let page = async |deleted: bool, after: Option<&str>, limit: u32| {
        let page = catalog.instances_page(deleted, after.map(str::to_owned), limit).await.expect("a page");
        page.into_iter().map(|one| (one.instance.name, one.points, one.newest)).collect::<Vec<_>>()
    };
    let of = |name: &str| -> (String, u64, Option<jiff::Timestamp>) { (name.to_owned(), 0, None) };
    assert_eq!(page(false, None, 2).await, [of("a"), ("c".to_owned(), 2, Some(time(30)))]);
    assert_eq!(page(false, Some("c"), 9).await, [of("d"), of("e")]);
    assert!(page(false, Some("e"), 9).await.is_empty());
    assert_eq!(page(true, None, 9).await, [of("b")]);
    // The backup that ended last, whatever is running now.
    let mut failed = job(7, &id("c"), None);
    failed.status = Status::Failed {
        end_time: time(7),
        problem: StoredProblem { reason: "Internal".to_owned(), message: "m".to_owned(), fix: String::new() },
    };
    catalog.insert_job(failed.clone()).await.expect("a job");
    catalog.insert_job(job(8, &id("c"), None)).await.expect("a job");
    let like = async |statuses: &'static [&'static str], operations: &'static [&'static str]| {
        let filter = JobFilter { from: None, to: None, limit: 9 };
        let jobs = catalog.jobs_like(filter, statuses, operations).await.expect("jobs");
        jobs.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    let ids = |numbers: &[u8]| numbers.iter().map(|number| format!("{number:032x}")).collect::<Vec<_>>();
    assert_eq!(like(&[], &[]).await, ids(&[8, 7]));
    assert_eq!(like(&["failed"], &[]).await, ids(&[7]));
    assert_eq!(like(&["failed", "in-progress"], &["backup", "prune"]).await, ids(&[8, 7]));
    assert_eq!(like(&["failed"], &["prune"]).await, ids(&[]));
    let listed = catalog.instances_page(false, Some("a".to_owned()), 1).await.expect("a page");
    assert_eq!(listed[0].last_backup, Some(failed));
}
