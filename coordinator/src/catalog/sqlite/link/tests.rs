use vaultferry_vault::Id;

use super::*;
use crate::catalog::link::{Item, ItemResult};
use crate::catalog::sqlite::tests::{job, open, point};
use crate::catalog::{Catalog as _, Report, Status};

fn cancelled() -> Status {
    Status::Cancelled { end_time: jiff::Timestamp::UNIX_EPOCH }
}

fn outcome(version: u64, complete: bool) -> Outcome {
    let done = ItemResult { item: Item::Policy("p".to_owned()), id: "1".to_owned(), problem: None };
    Outcome { version, complete, results: vec![done] }
}

/// Ids and numbers of the reports that wait.
async fn waiting(catalog: &Sqlite) -> Vec<(String, u64)> {
    let reports = catalog.job_reports().await.expect("reports");
    reports.into_iter().map(|report| (report.job.id, report.sequence)).collect()
}

#[tokio::test]
async fn every_change_of_a_job_is_one_report_with_a_number_of_its_own() {
    let (_dir, catalog) = open();
    let (first, second) = (job(1, "i", None), job(2, "other", None));
    catalog.insert_job(first.clone()).await.expect("insert");
    assert!(waiting(&catalog).await.is_empty(), "nothing is reported without a service");
    catalog.set_reporting(true).await.expect("set");
    catalog.insert_job(second.clone()).await.expect("insert");
    let told = waiting(&catalog).await;
    assert_eq!(told.len(), 1);
    catalog.set_status(&first.id, Status::Cancelling, Vec::new()).await.expect("set");
    catalog.set_report(&second.id, Report::default(), Vec::new()).await.expect("set");
    let both = waiting(&catalog).await;
    assert_eq!(both.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), [first.id.clone(), second.id.clone()]);
    assert!(told[0].1 < both[0].1 && both[0].1 < both[1].1, "{told:?} {both:?}");
    // What was acknowledged late does not take away what came since.
    catalog.acknowledge_reports(told).await.expect("acknowledged");
    assert_eq!(waiting(&catalog).await, both);
    catalog.acknowledge_reports(both.clone()).await.expect("acknowledged");
    assert!(waiting(&catalog).await.is_empty());
    assert!(catalog.set_status(&second.id, cancelled(), Vec::new()).await.expect("set"));
    assert!(!catalog.set_status(&second.id, cancelled(), Vec::new()).await.expect("set"));
    let ended = catalog.job_reports().await.expect("reports");
    assert_eq!((ended.len(), &ended[0].job.status), (1, &cancelled()));
    assert!(ended[0].sequence > both[1].1);
    assert!(catalog.next_sequence().await.expect("a number") > ended[0].sequence);
    // A service that is not configured any more is owed nothing.
    catalog.set_reporting(false).await.expect("set");
    assert!(waiting(&catalog).await.is_empty());
}

#[tokio::test]
async fn a_commit_is_told_before_its_job_and_both_in_pages() {
    let (_dir, catalog) = open();
    catalog.set_reporting(true).await.expect("set");
    for n in 0..=120 {
        let job = job(n, &format!("{n}"), None);
        catalog.insert_job(job.clone()).await.expect("insert");
        catalog.complete_backup(&job.id, point(n, 1), Vec::new()).await.expect("complete");
    }
    assert!(waiting(&catalog).await.is_empty(), "their commits are not confirmed");
    let mut told = Vec::new();
    loop {
        let page: Vec<String> = catalog.outbox().await.expect("a page").into_iter().map(|entry| entry.job_id).collect();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 100);
        catalog.acknowledge(page.clone()).await.expect("acknowledged");
        told.extend(page);
    }
    assert_eq!(told.len(), 121);
    let mut reported = Vec::new();
    loop {
        let page = waiting(&catalog).await;
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 100 && page.is_sorted_by_key(|(_, sequence)| *sequence));
        catalog.acknowledge_reports(page.clone()).await.expect("acknowledged");
        reported.extend(page.into_iter().map(|(id, _)| id));
    }
    reported.sort();
    told.sort();
    assert_eq!(reported, told);
    let known = catalog.job_of_request("request:none").await.expect("asked");
    assert_eq!(known, None);
    assert_eq!(point(1, 1).id, Id::of(&[1]));
}

#[tokio::test]
async fn numbers_go_on_behind_those_that_the_service_knows() {
    let (_dir, catalog) = open();
    catalog.set_reporting(true).await.expect("set");
    for n in 1..=3 {
        catalog.insert_job(job(n, &format!("{n}"), None)).await.expect("insert");
    }
    let before = waiting(&catalog).await;
    catalog.register_service("s", before[2].1).await.expect("registered");
    assert_eq!(waiting(&catalog).await, before, "nothing is lost, and nothing is changed");
    catalog.set_outcome("s", outcome(1, true)).await.expect("set");
    // An earlier catalog of this agent had come to 1000.
    let state = catalog.register_service("s", 1000).await.expect("registered");
    let after = waiting(&catalog).await;
    let ids = |reports: &[(String, u64)]| reports.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before));
    assert!(after.iter().all(|(_, sequence)| *sequence > 1000), "{after:?}");
    assert!(state.outcome.is_some_and(|(sequence, _)| sequence > after[2].1));
    assert!(catalog.next_sequence().await.expect("a number") > after[2].1);
}

#[tokio::test]
async fn a_version_is_done_with_once_and_versions_are_a_services_own() {
    let (_dir, catalog) = open();
    assert_eq!(catalog.link_state().await.expect("state"), LinkState::default());
    assert!(!catalog.set_outcome("s", outcome(1, true)).await.expect("asked"), "nobody has answered yet");
    catalog.register_service("s", 0).await.expect("registered");
    assert!(catalog.set_outcome("s", outcome(3, false)).await.expect("noted"));
    let first = catalog.link_state().await.expect("state");
    assert_eq!((first.applied_version, first.outcome.as_ref().map(|(_, outcome)| outcome.version)), (0, Some(3)));
    assert!(catalog.set_outcome("s", outcome(3, true)).await.expect("noted"));
    let (sequence, _) = first.outcome.expect("an outcome");
    catalog.acknowledge_outcome(sequence).await.expect("acknowledged");
    let second = catalog.link_state().await.expect("state");
    assert_eq!((second.applied_version, second.outcome.as_ref().map(|(_, outcome)| outcome.complete)), (3, Some(true)));
    for version in [1, 3] {
        assert!(!catalog.set_outcome("s", outcome(version, true)).await.expect("asked"), "{version}");
    }
    assert!(!catalog.set_outcome("another", outcome(4, true)).await.expect("asked"));
    assert_eq!(catalog.register_service("s", 0).await.expect("again"), second);
    let (sequence, _) = second.outcome.expect("an outcome");
    catalog.acknowledge_outcome(sequence).await.expect("acknowledged");
    assert_eq!(catalog.link_state().await.expect("state").outcome, None);
    let other = catalog.register_service("another", 0).await.expect("registered");
    assert_eq!(other, LinkState { service_id: "another".to_owned(), ..LinkState::default() });
    assert!(catalog.set_outcome("another", outcome(1, true)).await.expect("noted"));
}
