use vaultferry_vault::Id;

use super::*;
use crate::catalog::{Attempt, PruneFigures, Report, Standing};

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn point(standing: Standing) -> Point {
    Point {
        id: Id::of(b"p"),
        instance_id: "i".to_owned(),
        job_id: "j".to_owned(),
        time: time(10),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        slot: None,
        keep_until: Some(time(99)),
        streams: Vec::new(),
        source_bytes: 0,
        stored_bytes: 0,
        capture: None,
        standing,
    }
}

/// A kill may come between a copy's snapshot file and its event: the vault store must not be emptied on the word of a file alone, and the
/// repeated job writes the event.
#[test]
fn a_copy_counts_when_it_is_recorded_or_all_there_is() {
    for (in_vault, in_archive, archived_time, expected) in [
        (true, false, None, None),
        // Recorded, and deleted since.
        (true, false, Some(time(50)), None),
        (true, true, None, None),
        (true, true, Some(time(50)), Some(time(50))),
        (false, true, Some(time(50)), Some(time(50))),
        (false, true, None, Some(time(10))),
    ] {
        let standing = Standing { in_vault, in_archive, archived_time, ..Standing::default() };
        let fact = fact(&point(standing));
        assert_eq!(
            fact.stores,
            Stores { vault: in_vault, archived: expected },
            "{in_vault} {in_archive} {archived_time:?}"
        );
        assert_eq!(fact.keep_until, Some(time(99)));
    }
}

fn job(hour: i64, work: Work, figures: Option<PruneFigures>) -> Job {
    Job {
        id: "j".to_owned(),
        create_time: time(hour * 3600),
        instance_id: "i".to_owned(),
        instance_name: "shop".to_owned(),
        work,
        status: Status::InProgress,
        scheduled: true,
        request_id: None,
        warnings: Vec::new(),
        rehydrating: false,
        report: figures.map(|figures| Report { finding_count: 0, figures: Some(ReportFigures::Prune(figures)) }),
        queued: false,
        attempt: Attempt::default(),
        steps: Vec::new(),
    }
}

/// The agent prunes by itself once a day at most, and not when a prune has nothing to do.
#[test]
fn a_prune_is_due_after_a_move_and_after_one_that_left_work() {
    let prune = |hour: i64, packs_marked: u64| {
        job(hour, Work::Prune { dry_run: false }, Some(PruneFigures { packs_marked, ..PruneFigures::default() }))
    };
    let killed = |hour: i64| job(hour, Work::Prune { dry_run: false }, None);
    let told = |hour: i64| job(hour, Work::Prune { dry_run: true }, Some(PruneFigures::default()));
    let tier =
        |hour: i64, remove_from_vault: bool| job(hour, Work::Tier { point_id: Id::of(b"p"), remove_from_vault }, None);
    let (now, no) = (PruneDue::Now, PruneDue::No);
    let later = |prune_hour: i64| PruneDue::Later(time((prune_hour + 24) * 3600));
    for (what, jobs, expected) in [
        ("nothing happened", vec![], no),
        ("a copy takes nothing out", vec![tier(90, false)], no),
        ("a move, and never a prune", vec![tier(90, true)], now),
        ("a dry run does nothing", vec![told(95), tier(90, true)], now),
        ("a move behind a prune of today", vec![tier(99, true), prune(80, 0)], later(80)),
        ("a move behind a prune of yesterday", vec![tier(99, true), prune(76, 0)], now),
        ("a prune behind the move has nothing to do", vec![prune(50, 0), tier(40, true)], no),
        ("it has marked packs", vec![prune(50, 1), tier(40, true)], now),
        ("it has marked packs today", vec![prune(77, 1)], later(77)),
        ("it was killed", vec![killed(76)], now),
    ] {
        assert_eq!(prune_due(jobs.into_iter(), time(100 * 3600)), expected, "{what}");
    }
}

/// A run counts once an hour, and between two of them the clock of deletion goes two days in an hour at most, whatever the machine's says.
#[test]
fn an_agent_that_starts_again_and_again_deletes_no_faster_than_one_that_runs() {
    let run = |clock: i64, at: i64| ExpiryRun { clock: time(clock), time: Some(time(at)) };
    // An ordinary restart: its run goes by the time that it is, and does not count.
    assert_eq!(between_runs(&run(1000, 1000), time(1010)), Some(time(1010)));
    assert_eq!(between_runs(&run(1000, 1000), time(1000 + 3600)), None);
    // Rows of early versions do not say when they ran.
    assert_eq!(between_runs(&ExpiryRun { clock: time(1000), time: None }, time(1010)), None);
    // The clock has jumped by a year, and one run of that time has counted.
    let (clock, jumped) = (1000 + 48 * 3600, 1000 + 365 * 86_400);
    for (later, way) in [(0, 0), (10, 480), (3599, 48 * 3599)] {
        assert_eq!(between_runs(&run(clock, jumped), time(jumped + later)), Some(time(clock + way)), "{later} s later");
    }
    // Set back, nobody knows how long ago it was.
    assert_eq!(between_runs(&run(5000, 9000), time(4000)), Some(time(4000)));
    assert_eq!(between_runs(&run(5000, 9000), time(6000)), Some(time(5000)));
    // Such a run counts: the start after it goes by its time.
    assert!(is_early(&run(1000, 1000), time(1000)) && is_early(&run(1000, 1000), time(4599)));
    assert!(!is_early(&run(1000, 1000), time(4600)) && !is_early(&run(5000, 9000), time(4000)));
    assert!(!is_early(&ExpiryRun { clock: time(1000), time: None }, time(1010)));
    // A hundred starts in an hour come as far as one run.
    let after_an_hour = policy::deletion_time(time(jumped + 3600), Some(time(clock)));
    let starts = (0..100).filter_map(|start| between_runs(&run(clock, jumped), time(jumped + start * 36)));
    assert!(starts.max().is_some_and(|furthest| furthest <= after_an_hour));
}

/// A run that has gone a step keeps its clock, and a prune right behind it purges by that, not by another step.
#[test]
fn a_prune_purges_nothing_that_the_last_run_would_not() {
    let (clock, jumped) = (48 * 3600, 365 * 86_400);
    let last = ExpiryRun { clock: time(clock), time: Some(time(jumped)) };
    assert_eq!(purge_until(Some(&last), time(jumped)), time(clock));
    assert_eq!(purge_until(Some(&last), time(jumped + 10)), time(clock + 480));
    // The next run is due, and would go as far.
    assert_eq!(purge_until(Some(&last), time(jumped + 3600)), time(2 * clock));
    // Set back to before that run, but ahead of its clock.
    assert_eq!(purge_until(Some(&last), time(jumped - 86_400)), time(clock));
    assert_eq!(purge_until(None, time(77)), time(77));
}
