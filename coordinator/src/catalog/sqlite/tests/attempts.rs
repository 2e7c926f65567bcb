//! Attempts, and the steps of jobs.

use super::*;
use crate::catalog::{JobStep, Retry};

fn time(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a time")
}

fn retry(instance: &str, number: u32) -> Retry {
    Retry {
        instance_id: instance.to_owned(),
        due: time(i64::from(number) * 100),
        until: None,
        first: format!("{:032x}", 1),
        number,
        work: job(1, instance, None).work,
    }
}

fn failed() -> Status {
    Status::Failed {
        end_time: time(50),
        problem: StoredProblem { reason: "Interrupted".to_owned(), message: "m".to_owned(), fix: "f".to_owned() },
    }
}

#[tokio::test]
async fn an_attempt_is_planned_with_the_failure_or_not_at_all() {
    let (_dir, catalog) = open();
    for (id, instance) in [(1, "a"), (2, "b")] {
        catalog.insert_job(job(id, instance, None)).await.expect("insert");
    }
    let first = job(1, "a", None).id;
    assert!(catalog.fail_and_retry(&first, failed(), retry("a", 3)).await.expect("failed"));
    assert!(catalog.fail_and_retry(&job(2, "b", None).id, failed(), retry("b", 2)).await.expect("failed"));
    assert_eq!(catalog.retries().await.expect("retries"), [retry("b", 2), retry("a", 3)], "the earliest first");
    let found = catalog.job(&first).await.expect("find").expect("there");
    assert_eq!((found.status, found.attempt.next), (failed(), Some(time(300))));
    // It had ended: nothing is planned.
    assert!(!catalog.fail_and_retry(&first, failed(), retry("a", 9)).await.expect("asked"));
    assert!(!catalog.fail_and_retry(&"f".repeat(32), failed(), retry("c", 2)).await.expect("asked"));
    assert_eq!(catalog.retries().await.expect("retries").len(), 2);
    // Another one than is planned is not forgotten; a later failure takes its place.
    catalog.remove_retry(retry("a", 2)).await.expect("asked");
    assert_eq!(catalog.retries().await.expect("retries").len(), 2);
    catalog.insert_job(job(3, "a", None)).await.expect("insert");
    assert!(catalog.fail_and_retry(&job(3, "a", None).id, failed(), retry("a", 4)).await.expect("failed"));
    assert_eq!(catalog.retries().await.expect("retries"), [retry("b", 2), retry("a", 4)]);
    catalog.remove_retry(retry("a", 4)).await.expect("removed");
    catalog.remove_instance("b").await.expect("removed");
    assert!(catalog.retries().await.expect("retries").is_empty());
}

#[tokio::test]
async fn steps_are_kept_until_the_end_and_not_behind_it() {
    let (_dir, catalog) = open();
    let job = job(1, "a", None);
    catalog.insert_job(job.clone()).await.expect("insert");
    let steps = |name: &str| {
        vec![JobStep { name: name.to_owned(), start: time(1), end: time(2), bytes_read: 3, bytes_stored: 4 }]
    };
    catalog.set_steps(&job.id, steps("a")).await.expect("set");
    catalog.set_steps(&job.id, steps("b")).await.expect("set");
    catalog.set_status(&job.id, failed(), Vec::new()).await.expect("ended");
    catalog.set_steps(&job.id, steps("c")).await.expect("asked");
    assert_eq!(catalog.job(&job.id).await.expect("find").expect("there").steps, steps("b"));
}
