//! Simulations: that they agree with what would really be done, and what they look like.

use jiff::{SignedDuration, Timestamp, ToSpan as _};

use super::super::{PointFacts, Run, Step, Store, Stores, plan, rule_for, simulate};
use super::{Random, policy_of, rules, seeds, time};

pub(super) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        std::fs::write(&path, text).expect("write the golden file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; look at it, and UPDATE_GOLDEN=1 if it is right", path.display());
}

#[test]
fn three_years_of_the_documented_policy() {
    let text = "name = \"nightly\"\nsource_type = \"postgres\"\ntime_zone = \"Asia/Seoul\"\n[schedule]\nevery = \"week\"\non = [\"Sun\", \"Wed\"]\nat = [\"02:00\"]\n";
    let rules = rules(&[
        "Default;;P3M",
        "Monthly;first_of = \"month\";P6M;P9Y;on-expiry",
        "Yearly;first_of = \"year\";P1Y;P10Y;immediate",
    ]);
    let policy = super::super::parse(&format!("{text}{rules}")).expect("valid");
    let timeline = simulate(&policy, time("2026-11-21T00:00:00Z"), 3.years(), &[]).expect("a timeline");
    golden("three-years.txt", &timeline.text());
    let json = serde_json::to_value(&timeline).expect("serialisable");
    assert_eq!(json["points"].as_array().expect("points").len(), 314);
    let first = serde_json::to_string_pretty(&json["points"][0]).expect("a text");
    golden("first-point.json", &first);
}

#[test]
fn it_begins_with_the_points_that_exist() {
    let policy = policy_of(
        "postgres",
        "UTC",
        "every = \"day\"\nat = [\"02:00\"]",
        &rules(&["Default;;P7D", "Monthly;first_of = \"month\";P1M;P6M;on-expiry"]),
    );
    let point = |id: &str, at: &str, rule: &str| PointFacts::scheduled(id, time(at), time(at), rule);
    let mut points = vec![
        point("archived", "2026-06-01T02:00:00Z", "Monthly"),
        point("held", "2026-07-10T02:00:00Z", "Default"),
        point("other-policy", "2026-11-10T02:00:00Z", "Gone"),
        point("this-month", "2026-11-11T02:00:00Z", "Monthly"),
        point("deleted", "2026-11-12T02:00:00Z", "Default"),
    ];
    points[0].stores = Stores { vault: false, archived: Some(time("2026-07-01T02:00:00Z")) };
    points[1].held = true;
    points[4].purge_time = Some(time("2026-12-01T00:00:00Z"));
    let from = time("2026-11-21T00:00:00Z");
    let timeline = simulate(&policy, from, 4.weeks(), &points).expect("a timeline");
    let ids: Vec<&str> = timeline.points.iter().filter_map(|point| point.id.as_deref()).collect();
    assert_eq!(ids, ["archived", "held", "other-policy", "this-month"]);
    assert_eq!(timeline.points[2].rule, "Default", "D18");
    // November has had its first; December's is the next.
    let monthly: Vec<Timestamp> = timeline
        .points
        .iter()
        .filter(|point| point.id.is_none() && point.rule == "Monthly")
        .map(|point| point.time)
        .collect();
    assert_eq!(monthly, [time("2026-12-01T02:00:00Z")]);
    assert!(timeline.points[0].is_in(Store::Archive, from) && !timeline.points[0].is_in(Store::Vault, from));
    assert_eq!(timeline.points[1].stays[0].until, None, "held");
    assert!(!timeline.points[2].exists(from), "it is over: expired on 17 November");
    golden("existing.txt", &timeline.text());
}

/// The last good point stays until the next one is there, in a simulation too; not so for API Management (A6).
#[test]
fn the_last_point_stays_until_the_next() {
    let at = |source: &str, now: &str| {
        let policy =
            policy_of(source, "UTC", "every = \"month\"\non = [1]\nat = [\"02:00\"]", &rules(&["Default;;P7D"]));
        let timeline = simulate(&policy, time("2026-11-21T00:00:00Z"), 3.months(), &[]).expect("a timeline");
        timeline.at(time(now)).map(|point| point.time.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(at("postgres", "2026-12-31T00:00:00Z"), ["2026-12-01T02:00:00Z"]);
    assert_eq!(at("postgres", "2027-01-01T02:00:00Z"), ["2027-01-01T02:00:00Z"]);
    assert_eq!(at("postgres", "2027-02-21T00:00:00Z"), ["2027-02-01T02:00:00Z"], "the last one, for ever");
    assert!(at("apim", "2026-12-31T00:00:00Z").is_empty());
}

#[test]
fn too_much_is_refused() {
    let policy = policy_of("postgres", "UTC", "every = \"hour\"\nat = [\":00\"]", &rules(&["Default;;P7D"]));
    let from = time("2026-11-21T00:00:00Z");
    let problem = simulate(&policy, from, 99.years(), &[]).expect_err("too many");
    assert!(problem.message.contains("100000 points"), "{}", problem.message);
    assert!(simulate(&policy, from, (-3).years(), &[]).is_err());
    assert!(simulate(&policy, from, 9000.years(), &[]).is_err());
}

/// What a simulation says is there is what plans, carried out every six hours, leave there.
#[test]
fn policy_simulation_equals_what_plans_do() {
    let schedules = [
        "every = \"day\"\nat = [\"02:00\"]",
        "every = \"week\"\non = [\"Sun\", \"Thu\"]\nat = [\"04:00\"]",
        "every = \"month\"\non = [1, 15, \"last\"]\nat = [\"00:00\"]",
    ];
    let all = [
        "Weekly;first_of = \"week\";P5W",
        "Month-end;on = \"last\";P2M;P6M;on-expiry",
        "Monthly;first_of = \"month\";P3M;P1Y;immediate",
        "Yearly;first_of = \"year\";P1Y;P2Y;on-expiry",
    ];
    for seed in seeds(8, 60) {
        let mut random = Random::new(seed);
        let mut lines = vec![*random.pick(&[&"Default;;P7D", &"Default;;P6W", &"Default;;P1M;P6M;on-expiry"])];
        lines.extend(all.iter().copied().filter(|_| random.chance(50)));
        let source = random.pick(&["postgres", "vm", "apim"]);
        let policy = policy_of(source, "Europe/Berlin", random.pick(&schedules), &rules(&lines));
        let from =
            time("2026-11-21T00:00:00Z") + SignedDuration::from_hours(i64::try_from(random.below(9000)).expect("fits"));
        let timeline = simulate(&policy, from, 1.year(), &[]).expect("a timeline");
        let (mut now, mut clock, mut slot) = (from, None, policy.next_slot(from).expect("a slot"));
        let mut points: Vec<PointFacts> = Vec::new();
        let mut compared = 0;
        while now < timeline.to {
            while slot <= now {
                let rule = rule_for(&policy, slot, &points).name.clone();
                points.push(PointFacts::scheduled(slot.to_string(), slot, slot, &rule));
                slot = policy.next_slot(slot).expect("a slot");
            }
            let result = plan(&policy, &points, &Run { now, clock, reference: Some(now), protected: true });
            clock = Some(result.clock);
            // A simulation knows no limit of a run; the next run makes up for it.
            let deferred = !result.warnings.is_empty();
            let mut kept = Vec::new();
            for (mut point, action) in points.into_iter().zip(result.actions) {
                match action.step {
                    Step::CopyToArchive => point.stores.archived = Some(point.time),
                    // Moved in time: the simulation knows no delay.
                    Step::MoveToArchive => {
                        let moved = super::super::life(&policy, &point).vault_until;
                        point.stores = Stores { vault: false, archived: Some(moved) };
                    }
                    Step::RemoveFromVault => point.stores.vault = false,
                    Step::Expire => continue,
                    Step::Keep { .. } | Step::Purge => {}
                }
                kept.push(point);
            }
            points = kept;
            now += SignedDuration::from_hours(6);
            if deferred {
                continue;
            }
            let now = now - SignedDuration::from_hours(6);
            let really: Vec<(Timestamp, &str, bool, bool)> = points
                .iter()
                .map(|point| (point.time, point.rule.as_str(), point.stores.vault, point.stores.archived.is_some()))
                .collect();
            let simulated: Vec<(Timestamp, &str, bool, bool)> = timeline
                .at(now)
                .filter(|point| point.time <= now)
                .map(|point| {
                    (point.time, point.rule.as_str(), point.is_in(Store::Vault, now), point.is_in(Store::Archive, now))
                })
                .collect();
            assert_eq!(really, simulated, "seed {seed} at {now}, {source}, {lines:?}");
            compared += 1;
        }
        assert!(compared > 1200, "seed {seed}: only {compared} compared");
    }
}
