use std::collections::BTreeMap;

use super::super::queue::{Lane, Need};
use super::super::{Limits, new_job};
use super::*;
use crate::catalog::{Instance, JobFilter, Policy};
use crate::lifecycle::tests::world;

fn document(more: &str) -> String {
    format!(
        "name = \"nightly\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n{more}\n\
         [[rule]]\nname = \"Default\"\nvault = \"P30D\"\n"
    )
}

fn policy(more: &str) -> Policy {
    Policy {
        id: "0".repeat(32),
        name: "nightly".to_owned(),
        version: 1,
        create_time: Timestamp::UNIX_EPOCH,
        document: document(more),
        deleted: false,
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn backup(slot: Timestamp) -> Work {
    Work::Backup { rule: "Default".to_owned(), slot: Some(slot), keep_until: None, read_bytes_per_s: None }
}

#[test]
fn every_reason_is_sorted_in() {
    let mendable: Vec<&str> =
        Reason::ALL.iter().filter(|reason| is_mendable(**reason)).map(|reason| reason.as_str()).collect();
    let expected = [
        "PolicyRaced",
        "InstanceBusy",
        "AgentUnreachable",
        "Internal",
        "Interrupted",
        "PluginCrashed",
        "PluginTimeout",
        "FreezeFailed",
        "VaultUnavailable",
        "KeyVaultUnavailable",
        "StagedIncomplete",
        "PrunedMeanwhile",
        "VaultSettingsRaced",
        "MaintenanceBusy",
        "ExtensionSnapshotFailedNoNetwork",
        "ScriptFailed",
        "UserErrorMissingNetworkSecurityPermissions",
        "IdentityUnavailable",
        "LockTimeout",
        "ReplicaConflict",
        "DdlWaits",
        "UserErrorServerConnectionClosed",
        "DumpFailed",
        "ConsistencyNotReached",
        "SnapshotFailed",
        "SourceInUse",
        "SourceChanged",
        "AzureUnavailable",
    ];
    assert_eq!(mendable, expected);
}

async fn shop(jobs: &Jobs) -> Instance {
    jobs.shared().catalog.instance("shop").await.expect("found").expect("there")
}

#[tokio::test]
async fn what_comes_after_a_failure() {
    let dir = tempfile::tempdir().expect("folder");
    let shop = shop(&world(dir.path()).await).await;
    let slot = time("2026-11-21T02:00:00Z");
    let job = Job { id: "f".repeat(32), ..new_job(&shop, backup(slot), None, true) };
    let now = slot + SignedDuration::from_mins(7);
    let of = |more: &str| policy::parse(&document(more)).expect("valid");
    let usual = of("");
    let lost = Reason::UserErrorServerConnectionClosed;

    let second = next(&job, lost, &usual, now).expect("another attempt");
    assert_eq!((second.number, second.first.as_str(), &second.work), (2, job.id.as_str(), &job.work));
    assert_eq!(second.due, now + usual.retry.pause(2, &job.id));
    assert_eq!(second.until, Some(time("2026-11-22T02:00:00Z")));
    let attempt = |number: u32| Job {
        id: format!("{number:032x}"),
        attempt: Attempt { number, first: Some(job.id.clone()), next: None },
        ..job.clone()
    };
    let third = next(&attempt(2), lost, &usual, now).expect("another attempt");
    assert_eq!((third.number, third.first.as_str()), (3, job.id.as_str()), "it names the first one");
    assert!(third.due > second.due);
    for (what, job, reason, document) in [
        ("three are all", attempt(3), lost, usual.clone()),
        ("one is all", job.clone(), lost, of("[retry]\nattempts = 1")),
        ("it would be the same again", job.clone(), Reason::UserErrorDBUserAuthFailed, usual.clone()),
        ("nobody but a person asked for it", Job { scheduled: false, ..job.clone() }, lost, usual.clone()),
        (
            "it is no backup",
            Job { work: Work::Prune { dry_run: false }, ..job.clone() },
            Reason::Interrupted,
            usual.clone(),
        ),
    ] {
        assert_eq!(next(&job, reason, &document, now), None, "{what}");
    }

    // The agent's own end: at once, and not at once again.
    assert_eq!(next(&job, Reason::Interrupted, &usual, now).expect("one").due, now);
    assert!(next(&attempt(2), Reason::Interrupted, &usual, now).expect("one").due > now);
    // The next slot is nearer than the next attempt.
    let late = time("2026-11-22T01:59:00Z");
    assert_eq!(next(&job, lost, &usual, late), None);
    assert!(next(&job, Reason::Interrupted, &usual, late).is_some());
    // Not outside of the windows.
    let windows = Document {
        schedule: policy::Schedule {
            allowed: vec!["22:00-02:10".parse().expect("a window")],
            ..usual.schedule.clone()
        },
        ..usual.clone()
    };
    assert_eq!(next(&job, lost, &windows, now).expect("one").due, time("2026-11-21T22:00:00Z"));
}

/// Random numbers that are the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A life of the agent in which no job gets its turn: what becomes of each is the test's to say.
fn life(before: &Jobs) -> Jobs {
    let jobs = Jobs::new(before.shared().clone(), Limits::from(1));
    // Nobody ever leaves this place.
    std::mem::forget(jobs.inner.queue.enter(Need { lane: Lane::Jobs, server: None }));
    jobs
}

/// Failures, ends and kills in any order, the kills also between two writes. After each step the journal tells one story.
#[tokio::test]
async fn a_slot_has_one_attempt_at_a_time_and_no_more_than_its_policy_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("VAULTFERRY_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..if number("VAULTFERRY_TEST_ALL") == Some(1) { 200 } else { 12 },
    };
    let dir = tempfile::tempdir().expect("folder");
    let mut jobs = life(&world(dir.path()).await);
    let catalog = jobs.shared().catalog.clone();
    let attempts = 4;
    catalog.insert_policy(policy(&format!("[retry]\nattempts = {attempts}\nwait = \"PT1S\""))).await.expect("policy");
    let shop = shop(&jobs).await;
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in seeds {
        let mut random = Random(seed);
        // Far from now, so that no next slot comes in between.
        let slot = time("2040-01-01T02:00:00Z") + SignedDuration::from_hours(24 * i64::try_from(seed).expect("fits"));
        let first = jobs.start(&shop, backup(slot), Some(format!("slot:{slot}")), true).await.expect("started");
        let end = loop {
            let story = story(&jobs, slot, attempts, seed).await;
            let last = story.last().expect("at least the first").clone();
            let planned = catalog.retries().await.expect("retries");
            if last.status.has_ended() {
                let Some(retry) = planned.first() else { break "given up" };
                if retry.number <= last.attempt.number {
                    // Its job was begun, and a kill has kept the journal from forgetting it. It begins nothing new.
                    assert!(matches!(jobs.begin_attempt(retry, retry.due).await, Ok(Begun::Done)), "seed {seed}");
                    catalog.remove_retry(retry.clone()).await.expect("removed");
                    continue;
                }
                assert_eq!((&retry.first, retry.number), (&first.id, last.attempt.number + 1), "seed {seed}");
                assert_eq!(last.attempt.next, Some(retry.due), "seed {seed}");
                // Its time comes; the process may be killed before the journal forgets it, and the next life begins it "again".
                assert!(matches!(jobs.begin_attempt(retry, retry.due).await, Ok(Begun::Done)), "seed {seed}");
                if random.below(3) == 0 {
                    jobs = restart(&jobs, &mut random).await;
                    let again = jobs.begin_attempt(retry, retry.due).await;
                    assert!(matches!(again, Ok(Begun::Done | Begun::Later)), "seed {seed}");
                }
                if random.below(3) > 0 {
                    catalog.remove_retry(retry.clone()).await.expect("removed");
                }
                continue;
            }
            match random.below(8) {
                0 => {
                    jobs.cancel(&last).await.expect("asked");
                    while !ended(&jobs, &last).await {
                        tokio::task::yield_now().await;
                    }
                    break "cancelled";
                }
                1 => {
                    let status = Status::failed(&Problem::new(Reason::VaultFull, "full"));
                    jobs.write_end(&last, status, Vec::new()).await.expect("written");
                    break "for good";
                }
                2 | 3 => jobs = restart(&jobs, &mut random).await,
                _ => {
                    let status = Status::failed(&Problem::new(Reason::VaultUnavailable, "away"));
                    jobs.write_end(&last, status, Vec::new()).await.expect("written");
                }
            }
        };
        *ends.entry(end).or_default() += 1;
        let jobs_of_slot = story(&jobs, slot, attempts, seed).await;
        // What a kill has left of the plan begins nothing new.
        for left in catalog.retries().await.expect("retries") {
            let number = left.number;
            assert!(jobs_of_slot.iter().any(|job| job.attempt.number == number), "seed {seed}: {left:?} after its end");
            catalog.remove_retry(left).await.expect("removed");
        }
    }
    println!("measured: {ends:?}");
    assert!(ends.len() == 3 || number("VAULTFERRY_TEST_SEED").is_some(), "{ends:?}");
}

/// The next life of the agent, which begins with what the last one has left: a job that waits for its turn, or one that was at work.
async fn restart(jobs: &Jobs, random: &mut Random) -> Jobs {
    let catalog = &jobs.shared().catalog;
    for job in catalog.unfinished_jobs().await.expect("jobs") {
        while !catalog.job(&job.id).await.expect("found").expect("there").queued {
            tokio::task::yield_now().await;
        }
        if random.below(2) == 0 {
            catalog.set_queued(&job.id, false).await.expect("noted");
        }
    }
    let jobs = life(jobs);
    jobs.recover().await.expect("recovered");
    jobs
}

async fn ended(jobs: &Jobs, job: &Job) -> bool {
    let job = jobs.shared().catalog.job(&job.id).await.expect("found").expect("there");
    job.status.has_ended()
}

/// The slot's jobs, by attempt, which must make sense.
async fn story(jobs: &Jobs, slot: Timestamp, attempts: u32, seed: u64) -> Vec<Job> {
    let filter = JobFilter { from: None, to: None, limit: u32::MAX };
    let mut story = jobs.shared().catalog.jobs(filter).await.expect("jobs");
    story.retain(|job| job.work == backup(slot));
    story.sort_by_key(|job| job.attempt.number);
    let numbers: Vec<u32> = story.iter().map(|job| job.attempt.number).collect();
    assert_eq!(numbers, (1..=u32::try_from(story.len()).expect("few")).collect::<Vec<_>>(), "seed {seed}");
    assert!(story.len() <= attempts as usize, "seed {seed}: {numbers:?}");
    for pair in story.windows(2) {
        assert_eq!(pair[1].attempt.first.as_ref(), Some(&story[0].id), "seed {seed}");
        let Status::Failed { problem, .. } = &pair[0].status else {
            panic!("seed {seed}: {:?} and yet another attempt", pair[0]);
        };
        assert!(is_mendable(problem.reason.parse().expect("a reason")), "seed {seed}: {problem:?}");
    }
    story
}

#[tokio::test]
async fn an_attempt_is_given_up_when_the_schedule_goes_on_or_the_instance_does_not() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = life(&world(dir.path()).await);
    let catalog = jobs.shared().catalog.clone();
    catalog.insert_policy(policy("")).await.expect("policy");
    let shop = shop(&jobs).await;
    let slot = time("2040-01-01T02:00:00Z");
    let retry = Retry {
        instance_id: shop.id.clone(),
        due: slot,
        until: Some(slot + SignedDuration::from_hours(24)),
        first: "f".repeat(32),
        number: 2,
        work: backup(slot),
    };
    let begin = async |retry: &Retry, now: Timestamp| {
        let begun = jobs.begin_attempt(retry, now).await.expect("asked");
        let unfinished = catalog.unfinished_jobs().await.expect("jobs").len();
        (matches!(begun, Begun::Done), unfinished)
    };
    assert_eq!(begin(&retry, slot + SignedDuration::from_hours(24)).await, (true, 0), "the next slot's turn");
    let gone = Retry { instance_id: "0".repeat(32), ..retry.clone() };
    assert_eq!(begin(&gone, slot).await, (true, 0), "the instance is gone");
    catalog.set_last_slot(&shop.id, slot + SignedDuration::from_hours(1)).await.expect("noted");
    assert_eq!(begin(&retry, slot).await, (true, 0), "a later slot was dealt with");
    catalog.set_last_slot(&shop.id, slot).await.expect("noted");
    let since = slot;
    let paused = Instance { protection: vaultferry_vault::records::Protection::Paused { since }, ..shop.clone() };
    catalog.save_instance(paused).await.expect("saved");
    assert_eq!(begin(&retry, slot).await, (true, 0), "it is paused");
    catalog.save_instance(shop.clone()).await.expect("saved");
    // A backup on demand is at work: later.
    let on_demand = Work::Backup { rule: "Default".to_owned(), slot: None, keep_until: None, read_bytes_per_s: None };
    let job = jobs.start(&shop, on_demand, None, false).await.expect("started");
    assert_eq!(begin(&retry, slot).await, (false, 1));
    jobs.write_end(&job, Status::failed(&Problem::new(Reason::VaultUnavailable, "away")), Vec::new())
        .await
        .expect("ended");
    assert!(catalog.retries().await.expect("retries").is_empty(), "nobody tries again what a person has asked for");
    assert_eq!(begin(&retry, slot).await, (true, 1));
    assert_eq!(catalog.unfinished_jobs().await.expect("jobs")[0].attempt.number, 2);
}

/// What is due begins by itself; what the journal has of it then is forgotten.
#[tokio::test]
async fn the_task_begins_what_an_earlier_life_has_planned() {
    let dir = tempfile::tempdir().expect("folder");
    let jobs = world(dir.path()).await;
    let catalog = jobs.shared().catalog.clone();
    catalog.insert_policy(policy("")).await.expect("policy");
    let shop = shop(&jobs).await;
    // Slots of the past: the last one.
    let now = vaultferry_vault::clock::now();
    let document = policy::parse(&document("")).expect("valid");
    let slot = document.last_slot(now - SignedDuration::from_hours(48), now).expect("a slot");
    let job = new_job(&shop, backup(slot), None, true);
    catalog.insert_job(job.clone()).await.expect("inserted");
    // Nobody works on it: the restart ends it, and plans the next attempt for now.
    jobs.recover().await.expect("recovered");
    assert_eq!(catalog.retries().await.expect("retries").len(), 1);
    let stop = CancellationToken::new();
    let task = tokio::spawn(jobs.clone().run_retries(LONGEST_SLEEP, stop.clone()));
    // There is no plugin here, so it fails again, and for good.
    let second = loop {
        let filter = JobFilter { from: None, to: None, limit: 10 };
        let all = catalog.jobs(filter).await.expect("jobs");
        if let Some(second) = all.iter().find(|other| other.attempt.number == 2 && other.status.has_ended()) {
            break second.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(second.attempt.first.as_deref(), Some(job.id.as_str()));
    assert!(
        second.scheduled
            && matches!(&second.status, Status::Failed { problem, .. } if problem.reason == "PluginNotFound")
    );
    assert!(!second.steps.is_empty());
    while !catalog.retries().await.expect("retries").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    task.await.expect("no panic");
}
