//! Plans and previews: each step of a point's life, and what no history may do.

use jiff::{SignedDuration, Timestamp, ToSpan as _};

use super::super::{
    Document, Effect, PointFacts, Run, Step, Store, Stores, Warning, Why, life, plan, preview, rule_for,
};
use super::{Random, policy_of, rules, seeds, time};

const DAILY: &str = "every = \"day\"\nat = [\"02:00\"]";

fn point(id: &str, at: &str, rule: &str) -> PointFacts {
    PointFacts::scheduled(id, time(at), time(at), rule)
}

fn run(now: &str) -> Run {
    Run { now: time(now), clock: None, reference: None, protected: true }
}

/// Steps by point, as words.
fn steps(document: &Document, points: &[PointFacts], run: &Run) -> Vec<String> {
    let word = |step: &Step, why: &Why| match (step, why) {
        (Step::Keep { .. }, Why::Rule { .. }) => "keep".to_owned(),
        (Step::Keep { .. }, why) => format!("keep: {why:?}").split(" {").next().expect("a word").to_owned(),
        (step, _) => format!("{step:?}"),
    };
    plan(document, points, run).actions.iter().map(|action| word(&action.step, &action.why)).collect()
}

#[test]
fn a_point_expires_when_its_time_has_come_and_not_before() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    let points = [point("a", "2026-11-01T02:00:00Z", "Default"), point("b", "2026-11-02T02:00:00Z", "Default")];
    assert_eq!(steps(&policy, &points, &run("2026-11-08T01:59:59Z")), ["keep", "keep"]);
    assert_eq!(steps(&policy, &points, &run("2026-11-08T02:00:00Z")), ["Expire", "keep"]);
    let plan = plan(&policy, &points, &run("2026-11-08T01:59:59Z"));
    let until = Some(time("2026-11-08T02:00:00Z"));
    assert_eq!(plan.actions[0].step, Step::Keep { until, stores: vec![Store::Vault] });
}

#[test]
fn the_last_good_point_never_expires() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    let mut points = vec![point("a", "2026-11-01T02:00:00Z", "Default"), point("b", "2026-11-02T02:00:00Z", "Default")];
    let late = run("2031-01-01T00:00:00Z");
    assert_eq!(steps(&policy, &points, &late), ["Expire", "keep: LastGood"]);
    // A damaged point, or one that is soft-deleted, is not the last good one.
    points[1].damaged = true;
    assert_eq!(steps(&policy, &points, &late), ["keep: LastGood", "Expire"]);
    points[1].damaged = false;
    points[1].purge_time = Some(time("2040-01-01T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &late), ["keep: LastGood", "keep: SoftDeleted"]);
    // Not so when the instance is no longer protected, or for API Management (A6).
    points.truncate(1);
    assert_eq!(steps(&policy, &points, &Run { protected: false, ..late }), ["Expire"]);
    let apim = policy_of("apim", "UTC", DAILY, &rules(&["Default;;P7D"]));
    assert_eq!(steps(&apim, &points, &late), ["Expire"]);
}

#[test]
fn a_point_of_a_wrong_clock_does_not_hide_the_real_last_one() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    // The first was made while the clock was ten years ahead.
    let points = [point("ahead", "2036-11-01T02:00:00Z", "Default"), point("real", "2026-11-01T02:00:00Z", "Default")];
    assert_eq!(steps(&policy, &points, &run("2027-11-01T02:00:00Z")), ["keep", "keep: LastGood"]);
}

#[test]
fn holds_and_immutability_keep_a_point() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D;P6M;on-expiry"]));
    let mut points = vec![point("a", "2026-01-01T02:00:00Z", "Default"), point("z", "2026-12-01T02:00:00Z", "Default")];
    points[0].held = true;
    assert_eq!(steps(&policy, &points, &run("2026-12-02T00:00:00Z"))[0], "keep: Held");
    points[0].held = false;
    points[0].immutable_until = Some(time("2027-01-01T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &run("2026-12-02T00:00:00Z"))[0], "keep: Immutable");
    assert_eq!(steps(&policy, &points, &run("2027-01-01T00:00:00Z"))[0], "Expire");
    // What cannot be removed yet is copied, and removed later.
    points[0] = point("a", "2026-11-01T02:00:00Z", "Default");
    points[0].immutable_until = Some(time("2027-01-01T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &run("2026-12-02T00:00:00Z"))[0], "CopyToArchive");
    points[0].stores.archived = Some(time("2026-12-02T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &run("2026-12-02T01:00:00Z"))[0], "keep");
    let kept = plan(&policy, &points, &run("2026-12-02T01:00:00Z")).actions.swap_remove(0).step;
    let until = Some(time("2027-01-01T00:00:00Z"));
    assert_eq!(kept, Step::Keep { until, stores: vec![Store::Vault, Store::Archive] });
    assert_eq!(steps(&policy, &points, &run("2027-01-01T00:00:00Z"))[0], "RemoveFromVault");
}

/// P48, P49, and a move that was killed at any of its steps.
#[test]
fn points_move_between_the_stores() {
    let policy = policy_of(
        "postgres",
        "UTC",
        DAILY,
        &rules(&["Default;;P1M;P1Y;on-expiry", "Monthly;first_of = \"month\";P1M;P1Y;immediate"]),
    );
    let newest = point("z", "2026-12-31T02:00:00Z", "Default");
    let moving = |at: &str, rule: &str, stores: Stores, now: &str| {
        let first = PointFacts { stores, ..point("a", at, rule) };
        steps(&policy, &[first, newest.clone()], &run(now)).swap_remove(0)
    };
    let hot = Stores { vault: true, archived: None };
    let both = Stores { vault: true, archived: Some(time("2026-12-01T02:00:00Z")) };
    let cold = Stores { vault: false, ..both };
    let made = "2026-11-01T02:00:00Z";
    assert_eq!(moving(made, "Default", hot, "2026-12-01T01:59:59Z"), "keep");
    assert_eq!(moving(made, "Default", hot, "2026-12-01T02:00:00Z"), "MoveToArchive");
    assert_eq!(moving(made, "Default", both, "2026-12-01T02:00:01Z"), "RemoveFromVault");
    assert_eq!(moving(made, "Default", cold, "2026-12-01T02:00:01Z"), "keep");
    assert_eq!(moving(made, "Default", cold, "2027-12-01T01:59:59Z"), "keep");
    assert_eq!(moving(made, "Default", cold, "2027-12-01T02:00:00Z"), "Expire");
    assert_eq!(moving(made, "Monthly", hot, made), "CopyToArchive");
    assert_eq!(moving(made, "Monthly", both, "2026-11-15T00:00:00Z"), "keep");
    assert_eq!(moving(made, "Monthly", both, "2026-12-01T02:00:00Z"), "RemoveFromVault");
    assert_eq!(moving(made, "Monthly", cold, "2027-11-01T02:00:00Z"), "Expire");
}

#[test]
fn one_run_deletes_a_tenth_at_most() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    let begin = time("2026-01-01T02:00:00Z");
    let points: Vec<PointFacts> = (0..95)
        .map(|n| begin + SignedDuration::from_hours(24 * n))
        .map(|at| PointFacts::scheduled(at.to_string(), at, at, "Default"))
        .collect();
    let plan = plan(&policy, &points, &run("2030-01-01T00:00:00Z"));
    let expired: Vec<usize> =
        plan.actions.iter().enumerate().filter(|(_, action)| action.step == Step::Expire).map(|(at, _)| at).collect();
    assert_eq!(expired, (0..9).collect::<Vec<_>>(), "the oldest ones");
    assert_eq!(plan.warnings, [Warning::Deferred { points: 85 }]);
    // And of few, one.
    assert_eq!(
        steps(&policy, &points[..3], &run("2030-01-01T00:00:00Z")),
        ["Expire", "keep: RunLimit", "keep: LastGood"]
    );
}

#[test]
fn a_clock_that_jumps_ahead_deletes_nothing_at_once() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P30D"]));
    let begin = time("2026-11-01T02:00:00Z");
    let points: Vec<PointFacts> = (0..20)
        .map(|n| begin + SignedDuration::from_hours(24 * n))
        .map(|at| PointFacts::scheduled(at.to_string(), at, at, "Default"))
        .collect();
    let clock = Some(time("2026-11-21T00:00:00Z"));
    let jumped = Run { clock, ..run("2031-11-21T00:00:00Z") };
    let result = plan(&policy, &points, &jumped);
    assert!(result.actions.iter().all(|action| matches!(action.step, Step::Keep { .. })));
    assert_eq!(result.clock, time("2026-11-23T00:00:00Z"), "two days on");
    assert_eq!(result.actions[0].why, Why::Clock);
    assert_eq!(
        result.warnings,
        [Warning::ClockJumped { now: jumped.now, taken: result.clock }, Warning::Deferred { points: 19 }]
    );
    // Another clock confirms it: then it is so, and the limit of a run holds.
    let confirmed = Run { reference: Some(jumped.now + SignedDuration::from_secs(20)), ..jumped };
    let result = plan(&policy, &points, &confirmed);
    assert_eq!(result.actions.iter().filter(|action| action.step == Step::Expire).count(), 2);
    // Another clock denies it.
    let denied = Run { reference: Some(time("2026-11-21T00:00:00Z")), ..jumped };
    let result = plan(&policy, &points, &denied);
    assert!(result.actions.iter().all(|action| matches!(action.step, Step::Keep { .. })));
    assert!(matches!(result.warnings[0], Warning::ClockOff { .. }));
    // A machine that was off for a while catches up, run by run.
    let mut run = Run { clock, ..run("2026-12-20T00:00:00Z") };
    let mut runs = 0;
    while run.clock != Some(run.now) {
        run.clock = Some(plan(&policy, &points, &run).clock);
        runs += 1;
    }
    assert_eq!(runs, 15);
}

#[test]
fn a_clock_that_jumps_back_deletes_nothing() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    let points = [point("a", "2026-11-01T02:00:00Z", "Default"), point("b", "2026-11-20T02:00:00Z", "Default")];
    let back = Run { clock: Some(time("2026-11-21T00:00:00Z")), ..run("2020-01-01T00:00:00Z") };
    let result = plan(&policy, &points, &back);
    assert!(result.actions.iter().all(|action| matches!(action.step, Step::Keep { .. })));
    assert_eq!(result.warnings, [Warning::ClockJumped { now: back.now, taken: back.now }]);
    assert_eq!(result.clock, back.now);
}

#[test]
fn soft_deleted_points_are_purged_when_their_time_has_come() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P7D"]));
    let mut points = vec![point("a", "2026-11-01T02:00:00Z", "Default"), point("b", "2026-11-20T02:00:00Z", "Default")];
    points[0].purge_time = Some(time("2026-11-22T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &run("2026-11-21T23:59:59Z"))[0], "keep: SoftDeleted");
    assert_eq!(steps(&policy, &points, &run("2026-11-22T00:00:00Z"))[0], "Purge");
    points[0].immutable_until = Some(time("2026-12-22T00:00:00Z"));
    assert_eq!(steps(&policy, &points, &run("2026-11-22T00:00:00Z"))[0], "keep: Immutable");
}

/// D5, D18.
#[test]
fn a_change_of_policy_is_previewed() {
    let old = policy_of(
        "postgres",
        "UTC",
        DAILY,
        &rules(&["Default;;P30D", "Monthly;first_of = \"month\";P1Y", "Extra;first_of = \"week\";P6M"]),
    );
    let new = policy_of(
        "postgres",
        "UTC",
        DAILY,
        &rules(&["Default;;P60D", "Monthly;first_of = \"month\";P2M;P1Y;on-expiry"]),
    );
    let mut points = vec![
        point("monthly", "2026-06-01T02:00:00Z", "Monthly"),
        point("extra", "2026-08-02T02:00:00Z", "Extra"),
        point("extra-new", "2026-11-02T02:00:00Z", "Extra"),
        point("default", "2026-11-10T02:00:00Z", "Default"),
        point("last", "2026-11-20T02:00:00Z", "Default"),
    ];
    let now = time("2026-11-21T00:00:00Z");
    let result = preview(&old, &new, &points, now, true);
    let effects: Vec<Effect> = result.changes.iter().map(|change| change.effect).collect();
    assert_eq!(effects, [Effect::Moved, Effect::Deleted, Effect::Shorter, Effect::Longer, Effect::Longer]);
    assert_eq!(result.changes[1].new_rule, "Default", "D18");
    assert!(result.needs_confirmation());
    // Never shortened below an immutability date (D5).
    points[1].immutable_until = Some(time("2027-03-01T00:00:00Z"));
    assert_eq!(preview(&old, &new, &points, now, true).changes[1].after, time("2027-03-01T00:00:00Z"));
    assert_eq!(preview(&old, &old, &points, now, true).count(Effect::Same), 5);
    assert!(!preview(&old, &old, &points, now, true).needs_confirmation());
    // The other way round nothing is lost that has not been: the archive's year becomes the vault's.
    points.truncate(1);
    assert_eq!(preview(&new, &old, &points, now, true).changes[0].effect, Effect::Shorter);
}

/// A point whose time is over, and that only waits for a run of retention, is kept as long as before: until that run.
#[test]
fn what_is_over_already_is_not_made_shorter() {
    let of = |days: &str| policy_of("postgres", "UTC", DAILY, &rules(&[&format!("Default;;P{days}D")]));
    let points = [point("over", "2026-10-01T02:00:00Z", "Default"), point("last", "2026-11-20T02:00:00Z", "Default")];
    let effects = |old: &str, new: &str| {
        let result = preview(&of(old), &of(new), &points, time("2026-11-21T00:00:00Z"), true);
        result.changes.iter().map(|change| change.effect).collect::<Vec<_>>()
    };
    assert_eq!(effects("30", "7"), [Effect::Same, Effect::Shorter]);
    assert_eq!(effects("30", "60"), [Effect::Longer, Effect::Longer]);
    assert_eq!(effects("60", "30"), [Effect::Deleted, Effect::Shorter]);
}

/// A made-up life of an instance: backups that fail, clocks that jump, policies that change, moves that are killed, retention that runs at
/// any time. After each run of retention: the last good point is there, each point is in one of the stores at least, no point is lost before
/// its time by the true clock (as far as the machine could know it), no more than a tenth is gone, and nothing that is held or immutable is.
#[test]
fn policy_no_history_deletes_the_last_good_point() {
    let policies = [
        rules(&["Default;;P7D"]),
        rules(&["Default;;P30D", "Weekly;first_of = \"week\";P8W", "Monthly;first_of = \"month\";P6M;P1Y;on-expiry"]),
        rules(&["Default;;P10D;P1Y;immediate", "Yearly;first_of = \"year\";P1Y;P10Y;on-expiry"]),
    ]
    .map(|rules| policy_of("postgres", "America/New_York", DAILY, &rules));
    for seed in seeds(20, 300) {
        let mut random = Random::new(seed);
        let mut policy = &policies[random.below(3)];
        let mut now = time("2026-01-01T00:00:00Z");
        let mut points: Vec<PointFacts> = Vec::new();
        let mut clock: Option<Timestamp> = None;
        let failing = random.below(101);
        for step in 0..400 {
            let hours = |random: &mut Random, most: usize| {
                SignedDuration::from_hours(i64::try_from(random.below(most)).expect("fits"))
            };
            now += SignedDuration::from_hours(1) + hours(&mut random, 30);
            match random.below(60) {
                0 => now += hours(&mut random, 24 * 4000),
                1 => now = (now - hours(&mut random, 24 * 4000)).max(time("2001-01-01T00:00:00Z")),
                2 => policy = &policies[random.below(3)],
                3 if !points.is_empty() => {
                    let at = random.below(points.len());
                    points[at].held = !points[at].held;
                }
                4 if !points.is_empty() => {
                    let at = random.below(points.len());
                    // One good point is never damaged by the test itself.
                    points[at].damaged = points.iter().filter(|point| point.is_good()).count() > 1;
                }
                _ => {}
            }
            if !random.chance(failing) {
                let rule = rule_for(policy, now, &points).name.clone();
                let mut point = PointFacts::scheduled(format!("{step}"), now, now, &rule);
                if random.chance(10) {
                    point.immutable_until = Some(now + hours(&mut random, 24 * 60));
                }
                if random.chance(5) {
                    (point.slot, point.keep_until) = (None, Some(now + hours(&mut random, 24 * 20)));
                }
                points.push(point);
            }
            if !random.chance(70) {
                continue;
            }
            let had_good = points.iter().any(PointFacts::is_good);
            let last_good = points.iter().rfind(|point| point.is_good()).map(|point| point.id.clone());
            let run = Run { now, clock, reference: None, protected: true };
            let result = plan(policy, &points, &run);
            clock = Some(result.clock);
            let count = |wanted: Step| result.actions.iter().filter(|action| action.step == wanted).count();
            assert!(count(Step::Expire) <= (points.len() / 10).max(1), "seed {seed}, step {step}");
            assert!(count(Step::Purge) <= (points.len() / 10).max(1), "seed {seed}, step {step}");
            let mut gone = Vec::new();
            for (at, action) in result.actions.iter().enumerate() {
                let point = &mut points[at];
                let immutable = point.immutable_until.is_some_and(|until| until > now);
                match action.step {
                    Step::Keep { .. } => {}
                    Step::CopyToArchive => point.stores.archived = Some(now),
                    Step::MoveToArchive => {
                        assert!(!point.held && !immutable, "seed {seed}, step {step}");
                        // A kill comes before the copy is listed, behind that, or not at all.
                        match random.below(3) {
                            0 => {}
                            1 => point.stores.archived = Some(now),
                            _ => point.stores = Stores { vault: false, archived: Some(now) },
                        }
                    }
                    Step::RemoveFromVault => {
                        assert!(
                            point.stores.archived.is_some() && !point.held && !immutable,
                            "seed {seed}, step {step}"
                        );
                        point.stores.vault = false;
                    }
                    Step::Expire => {
                        assert!(Some(&point.id) != last_good.as_ref(), "seed {seed}, step {step}: the last good point");
                        assert!(!point.held && !immutable, "seed {seed}, step {step}");
                        assert!(life(policy, point).end() <= now, "seed {seed}, step {step}: before its time");
                        point.purge_time = Some(now + SignedDuration::from_hours(24 * 14));
                    }
                    Step::Purge => {
                        assert!(!point.held && !immutable, "seed {seed}, step {step}");
                        gone.push(at);
                    }
                }
                assert!(point.stores.vault || point.stores.archived.is_some(), "seed {seed}, step {step}");
            }
            for at in gone.into_iter().rev() {
                points.remove(at);
            }
            assert_eq!(had_good, points.iter().any(PointFacts::is_good), "seed {seed}, step {step}");
        }
    }
}

/// With a clock that goes as it should and a run each hour, the limits change nothing: the plan is the life.
#[test]
fn policy_limits_do_not_bend_ordinary_life() {
    let policy = policy_of(
        "postgres",
        "UTC",
        "every = \"hour\"\nat = [\":00\"]",
        &rules(&["Default;;P7D", "Daily;first_of = \"day\";P5W"]),
    );
    let mut points: Vec<PointFacts> = Vec::new();
    let (mut now, mut clock) = (time("2026-11-01T00:30:00Z"), None);
    let end = now.to_zoned(jiff::tz::TimeZone::UTC).checked_add(6.weeks()).expect("a time").timestamp();
    while now < end {
        let slot = now - SignedDuration::from_mins(30);
        let rule = rule_for(&policy, slot, &points).name.clone();
        points.push(PointFacts::scheduled(slot.to_string(), slot, slot, &rule));
        let result = plan(&policy, &points, &Run { now, clock, reference: None, protected: true });
        assert_eq!(result.warnings, [], "{now}");
        clock = Some(result.clock);
        let mut actions = result.actions.iter();
        points.retain(|_| actions.next().expect("one each").step != Step::Expire);
        assert!(points.iter().all(|point| life(&policy, point).end() > now), "{now}");
        now += SignedDuration::from_hours(1);
    }
    assert_eq!(points.len(), 7 * 23 + 35, "7 days of hours, of which the first of each day counts for 5 weeks");
}
