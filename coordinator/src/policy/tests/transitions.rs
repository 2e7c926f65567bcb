//! Exactly one run for each slot, around every change of every zone's clock: against a clock that is watched minute by minute.
//!
//! The reference knows no dates and no gaps: it walks through the minutes, reads the wall clock at each of them, and notes when each label
//! (date and time) was first seen. A label of the schedule that was seen must have its one run there. One that was never seen, because
//! the clock jumped over it, must have its one run as long after the jump as the label lies after the moment of the jump.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

use super::super::{Document, Every};
use super::{Random, heavy, policy, seeds, time};

/// Two days either side.
const AROUND: SignedDuration = SignedDuration::from_hours(48);
/// A label's run may lie a day after it, so the labels of the last day are not checked, nor those of the first.
const MARGIN: SignedDuration = SignedDuration::from_hours(26);

/// 30 years: past ones with all their whims, and coming ones by today's rules.
const FROM: &str = "2008-01-01T00:00:00Z";
const TO: &str = "2038-01-01T00:00:00Z";

fn zones() -> Vec<String> {
    let names = jiff::tz::db().available().map(|name| name.as_str().to_owned());
    let mut names: Vec<String> =
        names.filter(|name| !name.starts_with("posix") && !name.starts_with("right")).collect();
    names.sort();
    assert!(names.len() > 400, "the database has {} zones", names.len());
    names
}

fn transitions(zone: &TimeZone) -> Vec<Timestamp> {
    let (from, to) = (time(FROM), time(TO));
    zone.following(from).map(|transition| transition.timestamp()).take_while(|at| *at < to).collect()
}

/// What schedules are tried around each transition; the times are near where clocks change, and at its edges.
fn schedules() -> Vec<&'static str> {
    vec![
        "every = \"day\"\nat = [\"00:00\", \"00:15\", \"00:30\", \"01:30\", \"02:00\", \"02:30\", \"03:00\", \"03:30\", \"22:15\", \"23:30\", \"23:59\"]",
        "every = \"hour\"\nat = [\":00\", \":20\", \":59\"]",
        "every = \"week\"\non = [\"Sat\", \"Sun\", \"Mon\"]\nat = [\"00:30\", \"02:15\", \"23:45\"]",
        "every = \"month\"\non = [1, 31, \"last-Sun\", \"second-Sun\", \"first-Fri\"]\nat = [\"00:05\", \"02:45\", \"23:15\"]",
    ]
}

/// The minutes of their times.
const MINUTES: [i8; 7] = [0, 5, 15, 20, 30, 45, 59];

/// The runs of a scheduler that asks for the next slot after each one, and of one that looks back every 97 minutes.
fn runs(policy: &Document, from: Timestamp, to: Timestamp) -> BTreeSet<Timestamp> {
    let forward = std::iter::successors(policy.next_slot(from), |slot| policy.next_slot(*slot));
    let forward: Vec<Timestamp> = forward.take_while(|slot| *slot <= to).collect();
    assert!(forward.is_sorted_by(|a, b| a < b), "slots go forward");
    let runs: BTreeSet<Timestamp> = forward.iter().copied().collect();
    assert!(policy.slots(from).take(forward.len()).eq(forward), "one by one, or all in a row");
    let (mut done, mut now) = (from, from);
    let mut seen = 0;
    while now < to {
        now = to.min(now + SignedDuration::from_mins(97));
        if let Some(slot) = policy.last_slot(done, now) {
            assert!(runs.contains(&slot) && slot > done && slot <= now, "{slot} looking back");
            seen += runs.range(..=slot).count() - runs.range(..=done).count();
            done = slot;
        }
    }
    assert_eq!(seen, runs.len(), "looking back meets every slot");
    runs
}

/// What a clock showed, minute by minute.
struct Watched {
    /// When it showed each label (of the minutes that the schedules have).
    shown: BTreeMap<DateTime, Vec<Timestamp>>,
    /// Where it jumped ahead: from which reading to which, and when.
    jumps: Vec<(DateTime, DateTime, Timestamp)>,
}

fn watch(zone: &TimeZone, from: Timestamp, to: Timestamp) -> Watched {
    let mut shown: BTreeMap<DateTime, Vec<Timestamp>> = BTreeMap::new();
    let mut jumps: Vec<(DateTime, DateTime, Timestamp)> = Vec::new();
    let mut now = Timestamp::from_second(from.as_second().div_euclid(60) * 60).expect("a time");
    let mut before: Option<DateTime> = None;
    while now <= to {
        let reading = zone.to_datetime(now);
        let expected = before.map(|before| before.checked_add(1.minute()).expect("a date"));
        if let Some(expected) = expected.filter(|expected| *expected < reading) {
            jumps.push((expected, reading, now));
        }
        if MINUTES.contains(&reading.minute()) {
            shown.entry(reading).or_default().push(now);
        }
        before = Some(reading);
        now += SignedDuration::from_mins(1);
    }
    Watched { shown, jumps }
}

/// Checks a span of time with every schedule. Returns how many slots it has checked.
fn check_all(policies: &[Document], at: Timestamp) -> usize {
    let (from, to) = (at - AROUND - MARGIN, at + AROUND + MARGIN);
    let watched = watch(&policies[0].time_zone, from, to);
    policies.iter().map(|policy| check(policy, &watched, from, to)).sum()
}

/// Checks a span of time. Returns how many slots it has checked.
fn check(policy: &Document, watched: &Watched, from: Timestamp, to: Timestamp) -> usize {
    let zone = &policy.time_zone;
    let runs = runs(policy, from, to);
    let Watched { shown, jumps } = watched;
    let mut accounted: BTreeSet<Timestamp> = BTreeSet::new();
    let mut labels = 0;
    let inside = |at: Timestamp| at > from + MARGIN && at < to - MARGIN;
    let mut date = zone.to_datetime(from).date();
    while date <= zone.to_datetime(to).date() {
        let on = match &policy.schedule.every {
            Every::Hour | Every::Day => true,
            Every::Week(days) => days.contains(&date.weekday()),
            Every::Month(days) => days.iter().any(|day| day.matches(date)),
        };
        let hours = if policy.schedule.every == Every::Hour { 0..24 } else { 0..1 };
        for (hour, at) in hours.flat_map(|hour| policy.schedule.at.iter().map(move |at| (hour, at))).filter(|_| on) {
            let label = date.at(at.hour() + hour, at.minute(), 0, 0);
            let expected: Vec<Timestamp> = if let Some(times) = shown.get(&label) {
                let count = if policy.schedule.every == Every::Hour { times.len() } else { 1 };
                times[..count].to_vec()
            } else if let Some((begin, _, at)) = jumps.iter().find(|(begin, end, _)| *begin <= label && label < *end) {
                let after = label.duration_since(*begin);
                vec![*at + after]
            } else {
                continue;
            };
            for run in expected {
                accounted.insert(run);
                if inside(run) {
                    labels += 1;
                    assert!(runs.contains(&run), "{} has no run for {label} at {run}", policy.time_zone_name);
                }
            }
        }
        date = date.tomorrow().expect("a date");
    }
    for run in runs.iter().filter(|run| inside(**run)) {
        assert!(accounted.contains(run), "{} runs at {run} for no slot", policy.time_zone_name);
    }
    labels
}

fn check_zone(name: &str, random: &mut Random) -> (usize, usize) {
    let zone = TimeZone::get(name).expect("a zone of the database");
    let policies: Vec<Document> = schedules().into_iter().map(|schedule| policy(name, schedule)).collect();
    let mut changes = 0;
    let mut labels = 0;
    let mut spans: Vec<Timestamp> = transitions(&zone);
    changes += spans.len();
    // Quiet days between them.
    let length = usize::try_from(time(TO).duration_since(time(FROM)).as_secs()).expect("fits");
    for _ in 0..4 {
        spans.push(time(FROM) + SignedDuration::from_secs(i64::try_from(random.below(length)).expect("fits")));
    }
    for at in spans {
        labels += check_all(&policies, at);
    }
    (changes, labels)
}

#[test]
fn policy_slots_run_exactly_once_in_some_zones() {
    for seed in seeds(1, 1) {
        let mut random = Random::new(seed);
        let zones = zones();
        // The ones with the strangest clocks, and two that chance picks.
        let mut names = vec!["Pacific/Apia".to_owned(), "Australia/Lord_Howe".to_owned(), "America/Nuuk".to_owned()];
        names.extend((0..2).map(|_| zones[random.below(zones.len())].clone()));
        for name in names {
            println!("seed {seed}, zone {name}");
            let zone = TimeZone::get(&name).expect("a zone of the database");
            let policies: Vec<Document> = schedules().into_iter().map(|schedule| policy(&name, schedule)).collect();
            let mut all = transitions(&zone);
            let sample: Vec<Timestamp> =
                (0..6.min(all.len())).map(|_| all.swap_remove(random.below(all.len()))).collect();
            for at in sample {
                assert!(check_all(&policies, at) > 0);
            }
        }
    }
}

/// In four parts, so that a runner with several cores is done sooner.
#[test]
fn heavy_policy_slots_run_exactly_once_in_every_zone_1() {
    every_zone(0);
}

#[test]
fn heavy_policy_slots_run_exactly_once_in_every_zone_2() {
    every_zone(1);
}

#[test]
fn heavy_policy_slots_run_exactly_once_in_every_zone_3() {
    every_zone(2);
}

#[test]
fn heavy_policy_slots_run_exactly_once_in_every_zone_4() {
    every_zone(3);
}

/// Around every transition of every zone, of each fourth clock.
fn every_zone(part: usize) {
    if !heavy() {
        println!("skipped (heavy): run make test-all");
        return;
    }
    let mut total = (0, 0);
    let zones = zones();
    // Many names are of one clock: zones with the same offsets at the same transitions are checked once.
    let mut clocks = BTreeSet::new();
    for seed in seeds(1, 1) {
        for (at, name) in zones.iter().enumerate() {
            let mut random = Random::new(seed ^ (u64::try_from(at).expect("fits") << 32));
            let zone = TimeZone::get(name).expect("a zone of the database");
            let offsets = zone.following(time(FROM)).take_while(|next| next.timestamp() < time(TO));
            let offsets: Vec<(Timestamp, i32)> =
                offsets.map(|next| (next.timestamp(), next.offset().seconds())).collect();
            if !clocks.insert((zone.to_offset(time(FROM)).seconds(), offsets)) {
                continue;
            }
            if clocks.len() % 4 != part {
                continue;
            }
            println!("seed {seed}, zone {name}");
            let (changes, labels) = check_zone(name, &mut random);
            total = (total.0 + changes, total.1 + labels);
        }
    }
    println!("measured: {} zones ({} clocks), {} transitions, {} slots", zones.len(), clocks.len(), total.0, total.1);
    assert!(total.0 > 300 && total.1 > 100_000, "{total:?}");
}
