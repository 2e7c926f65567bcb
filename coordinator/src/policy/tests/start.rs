//! Starts: jitter, windows, catching up and skipping.

use jiff::{SignedDuration, Timestamp};

use super::super::{Document, Due, Window};
use super::{Random, policy, seeds, time};

fn daily(more: &str) -> Document {
    policy("Europe/Berlin", &format!("every = \"day\"\nat = [\"02:00\"]\n{more}"))
}

#[test]
fn jitter_spreads_a_fleet_and_is_the_same_every_time() {
    let policy = daily("jitter = \"PT30M\"");
    let slot = time("2026-11-21T01:00:00Z");
    let starts: Vec<Timestamp> = (0..10_000).map(|n| policy.start_time(slot, &format!("{n:032x}"))).collect();
    let end = slot + SignedDuration::from_mins(30);
    assert!(starts.iter().all(|start| (slot..=end).contains(start)));
    // Each of the 30 minutes gets its share: 333 in the mean.
    for minute in 0..30 {
        let begin = slot + SignedDuration::from_mins(minute);
        let count = starts.iter().filter(|start| (begin..begin + SignedDuration::from_mins(1)).contains(start)).count();
        assert!((240..430).contains(&count), "{count} in minute {minute}");
    }
    // It is a promise over restarts and versions: this is written down.
    assert_eq!(policy.start_time(slot, "a"), time("2026-11-21T01:24:25Z"));
    assert_eq!(daily("").start_time(slot, "a"), slot);
}

#[test]
fn a_start_waits_for_an_allowed_window() {
    let policy = daily("jitter = \"PT30M\"\nallowed = [\"22:00-06:00\", \"Sat,Sun 00:00-24:00\"]");
    // 02:00 is inside.
    let slot = time("2026-11-20T01:00:00Z");
    assert!(policy.start_time(slot, "x") < slot + SignedDuration::from_mins(31));
    // Friday noon waits for 22:00, Saturday noon does not wait.
    let noon = super::policy(
        "Europe/Berlin",
        "every = \"day\"\nat = [\"12:00\"]\nallowed = [\"22:00-06:00\", \"Sat,Sun 00:00-24:00\"]",
    );
    assert_eq!(noon.start_time(time("2026-11-20T11:00:00Z"), "x"), time("2026-11-20T21:00:00Z"));
    assert_eq!(noon.start_time(time("2026-11-21T11:00:00Z"), "x"), time("2026-11-21T11:00:00Z"));
    // The jitter stays inside the window.
    let short =
        super::policy("UTC", "every = \"day\"\nat = [\"02:00\"]\njitter = \"PT6H\"\nallowed = [\"01:00-02:10\"]");
    for n in 0..200 {
        let start = short.start_time(time("2026-11-21T02:00:00Z"), &n.to_string());
        assert!(start < time("2026-11-21T02:10:00Z"), "{start}");
    }
}

#[test]
fn windows_are_read_as_they_are_written() {
    for (text, normal) in [
        ("22:00-06:00", "22:00-06:00"),
        ("Sat 00:00-24:00", "Sat 00:00-24:00"),
        ("Mon-Fri 20:00-06:00", "Mon,Tue,Wed,Thu,Fri 20:00-06:00"),
        ("Fri-Sun,Wed 01:00-02:00", "Fri,Sat,Sun,Wed 01:00-02:00"),
    ] {
        assert_eq!(text.parse::<Window>().expect(text).to_string(), normal);
    }
    for text in ["", "22:00", "22-06", "22:00-25:00", "Sun22:00-06:00", "Sunday 22:00-06:00", "Mon- 01:00-02:00"] {
        assert!(text.parse::<Window>().is_err(), "{text:?}");
    }
}

#[test]
fn a_slot_is_started_once_and_in_time() {
    let policy = daily("");
    let created = time("2026-11-20T12:00:00Z");
    let slot = time("2026-11-21T01:00:00Z");
    assert_eq!(policy.due(created, time("2026-11-21T00:59:59Z"), "x"), Due::Wait(slot));
    assert_eq!(policy.due(created, slot, "x"), Due::Start { slot, late: false });
    assert_eq!(policy.due(slot, slot, "x"), Due::Wait(time("2026-11-22T01:00:00Z")));
}

#[test]
fn missed_slots_are_caught_up_once_or_skipped() {
    let (done, now) = (time("2026-11-17T01:00:00Z"), time("2026-11-20T12:00:00Z"));
    let slot = time("2026-11-20T01:00:00Z");
    assert_eq!(daily("").due(done, now, "x"), Due::Start { slot, late: true });
    assert_eq!(daily("catch_up = \"skip\"").due(done, now, "x"), Due::Skip(slot));
    // Within the start window it is not missed.
    let hour = time("2026-11-20T02:00:00Z");
    assert_eq!(daily("catch_up = \"skip\"").due(done, hour, "x"), Due::Start { slot, late: false });
    let generous = daily("catch_up = \"skip\"\nstart_within = \"PT12H\"");
    assert_eq!(generous.due(done, now, "x"), Due::Start { slot, late: false });
    // What is caught up waits for a window too.
    let windowed = daily("allowed = [\"22:00-06:00\"]");
    assert_eq!(windowed.due(done, now, "x"), Due::Wait(time("2026-11-20T21:00:00Z")));
}

#[test]
fn a_clock_that_went_back_starts_nothing_twice() {
    let policy = daily("");
    let slot = time("2026-11-21T01:00:00Z");
    assert_eq!(policy.due(slot, time("2026-11-18T00:00:00Z"), "x"), Due::Wait(time("2026-11-22T01:00:00Z")));
}

/// A scheduler that asks at random moments runs each slot once, never before its start, never outside a window.
#[test]
fn policy_scheduler_simulation() {
    let variants = [
        ("", false),
        ("jitter = \"PT45M\"", false),
        ("jitter = \"PT2H\"\nallowed = [\"20:00-04:00\"]", true),
        ("catch_up = \"skip\"\nstart_within = \"PT20M\"", false),
        ("allowed = [\"Mon-Fri 01:00-05:00\", \"Sat 00:00-24:00\"]\njitter = \"PT1H\"", true),
    ];
    for seed in seeds(20, 500) {
        let mut random = Random::new(seed);
        let (more, windowed) = variants[random.below(variants.len())];
        let zone = random.pick(&["Europe/Berlin", "America/New_York", "Asia/Seoul", "Australia/Lord_Howe"]);
        let policy = policy(zone, &format!("every = \"day\"\nat = [\"02:00\", \"13:00\", \"23:30\"]\n{more}"));
        let from =
            time("2027-02-20T00:00:00Z") + SignedDuration::from_hours(i64::try_from(random.below(6000)).expect("fits"));
        let to = from + SignedDuration::from_hours(24 * 40);
        let (mut now, mut done, mut started) = (from, from, 0);
        let mut asleep = 0;
        while now < to {
            match policy.due(done, now, "instance") {
                Due::Start { slot, late } => {
                    let start = policy.start_time(slot, "instance");
                    assert!(slot > done && start <= now, "seed {seed}: {slot} starts at {now}, due {start}");
                    assert!(late || now <= start + policy.schedule.start_within, "seed {seed}");
                    if windowed {
                        let clock = policy.time_zone.to_datetime(now);
                        let open = policy.schedule.allowed.iter().any(|window| {
                            let (at, from, to) = (clock.time(), window.from, window.to);
                            let day = |date: jiff::civil::Date| {
                                window.days.is_empty() || window.days.contains(&date.weekday())
                            };
                            let today = day(clock.date()) && at >= from && (at < to || to <= from);
                            let yesterday = to <= from && at < to && day(clock.date().yesterday().expect("a date"));
                            today || yesterday
                        });
                        assert!(open, "seed {seed}: started at {clock}");
                    }
                    done = slot;
                    started += 1;
                }
                Due::Skip(slot) => {
                    assert!(slot > done && asleep > 0, "seed {seed}: skipped without a reason");
                    done = slot;
                }
                Due::Wait(until) => {
                    assert!(until > now, "seed {seed}: waits for the past");
                    // Mostly it sleeps until then; at times the agent is down for longer.
                    let down = random.chance(10);
                    asleep = if down { asleep + 1 } else { asleep };
                    now = if down {
                        until + SignedDuration::from_mins(i64::try_from(random.below(5000)).expect("fits"))
                    } else {
                        until
                    };
                }
                Due::Never => panic!("seed {seed}: never"),
            }
        }
        assert!(started >= 10, "seed {seed}: {started} starts");
    }
}
