//! Changes of policy: who is asked, and which slots count.

use jiff::{SignedDuration, Timestamp};
use vaultferry_proto::Reason;

use super::super::{Document, Due, Figures, PointFacts, Preview, check_confirmed, preview, slots_settled};
use super::{Random, policy_of, rules, seeds, time};

const NOW: &str = "2026-11-21T00:00:00Z";

fn keeping(days: &str) -> Document {
    policy_of("postgres", "UTC", "every = \"day\"\nat = [\"02:00\"]", &rules(&[&format!("Default;;P{days}D")]))
}

/// What it means for points that are so many days old.
fn change(old: &str, new: &str, ages: &[i64]) -> Preview {
    let point = |age: &i64| {
        let at = time(NOW) - SignedDuration::from_hours(24 * age);
        PointFacts::scheduled(format!("{age}"), at, at, "Default")
    };
    let points: Vec<PointFacts> = ages.iter().map(point).collect();
    preview(&keeping(old), &keeping(new), &points, time(NOW), true)
}

#[test]
fn figures_count_every_point_once() {
    let shorter = change("60", "30", &[50, 40, 20, 10, 1]);
    assert_eq!(shorter.figures(), Figures { shorter: 3, expiring: 2, ..Figures::default() });
    assert_eq!(
        shorter.figures().to_string(),
        "5 of 5 points are kept shorter, and the time of 2 of them is over at once"
    );
    let longer = change("30", "60", &[70, 10]);
    assert_eq!(longer.figures(), Figures { same: 1, longer: 1, ..Figures::default() });
    let mut all = shorter.figures();
    all += longer.figures();
    assert_eq!((all.points(), all.shortened()), (7, 5));
}

#[test]
fn only_what_is_kept_shorter_needs_a_word() {
    let (longer, shorter) = (change("30", "60", &[10]), change("60", "30", &[50, 10, 1]));
    assert_eq!(check_confirmed("the change", [("a", &longer)], false), Ok(()));
    assert_eq!(check_confirmed("the change", [], false), Ok(()));
    assert_eq!(check_confirmed("the change", [("a", &shorter)], true), Ok(()));
    let problem = check_confirmed("the change", [("a", &longer), ("shop", &shorter)], false).expect_err("refused");
    assert_eq!(problem.reason, Reason::RetentionShortened);
    assert_eq!(
        problem.message,
        "with the change, 3 of 4 points are kept shorter, and the time of 1 of them is over at once (shop 3)"
    );
    let names: Vec<String> = (0..8).map(|number| format!("shop-{number}")).collect();
    let many = names.iter().map(|name| (name.as_str(), &shorter));
    let message = check_confirmed("the change", many, false).expect_err("refused").message;
    assert!(message.ends_with("(shop-0 3, shop-1 3, shop-2 3, shop-3 3, shop-4 3, and 3 more instances)"), "{message}");
}

/// Nothing is started for a time at which the new schedule did not count yet, and what the old one still owed is not forgotten.
#[test]
fn a_change_begins_now() {
    let schedules = [
        "every = \"hour\"\nat = [\":15\"]",
        "every = \"day\"\nat = [\"02:00\", \"14:30\"]\njitter = \"PT2H\"",
        "every = \"day\"\nat = [\"23:00\"]\nallowed = [\"01:00-05:00\"]",
        "every = \"week\"\non = [\"Sun\"]\nat = [\"02:00\"]\ncatch_up = \"skip\"",
        "every = \"month\"\non = [\"last\"]\nat = [\"00:00\"]",
    ];
    let documents =
        schedules.map(|schedule| policy_of("postgres", "Europe/Berlin", schedule, &rules(&["Default;;P7D"])));
    let (mut settled, mut waiting) = (0, 0);
    for seed in seeds(400, 20_000) {
        let mut random = Random::new(seed);
        let (old, new) = (&documents[random.below(5)], &documents[random.below(5)]);
        let hours = |random: &mut Random, most: usize| {
            SignedDuration::from_mins(i64::try_from(random.below(60 * most)).expect("fits"))
        };
        let now = time("2026-03-20T00:00:00Z") + hours(&mut random, 5000);
        let done = now - hours(&mut random, 60);
        match slots_settled(old, done, now) {
            Some(slot) => {
                settled += 1;
                assert!(old.last_slot(done, now).is_none(), "seed {seed}: a slot is forgotten");
                let due = new.due(slot, now, "an instance");
                assert!(matches!(due, Due::Wait(start) if start >= now), "seed {seed}: {due:?}");
                let next: Timestamp = new.next_slot(now).expect("a slot");
                assert!(
                    new.due(slot, next + SignedDuration::from_hours(12), "an instance") != due,
                    "seed {seed}: {next}"
                );
            }
            None => {
                waiting += 1;
                assert!(done == now || old.last_slot(done, now).is_some(), "seed {seed}");
            }
        }
    }
    assert!(settled > 50 && waiting > 50, "{settled} {waiting}");
}
