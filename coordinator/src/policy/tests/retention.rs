//! Which rule a point carries and how long it lives: the sources' examples, and an independent reference on random histories.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

use super::super::{Document, PointFacts, Stores, life, rule_for};
use super::{Random, policy_of, rules, seeds, time};

const DAILY: &str = "every = \"day\"\nat = [\"02:00\"]";

/// Runs the policy's own slots, all successful; returns (date, rule).
fn tags(document: &Document, from: &str, count: usize) -> Vec<(Date, String)> {
    let mut points: Vec<PointFacts> = Vec::new();
    let mut slot = time(from);
    for _ in 0..count {
        slot = document.next_slot(slot).expect("a slot");
        let rule = rule_for(document, slot, &points).name.clone();
        points.push(PointFacts::scheduled("", slot, slot, &rule));
    }
    points.iter().map(|point| (document.time_zone.to_datetime(point.time).date(), point.rule.clone())).collect()
}

fn of_rule(tags: &[(Date, String)], rule: &str) -> Vec<String> {
    tags.iter().filter(|(_, name)| name == rule).map(|(date, _)| date.to_string()).collect()
}

/// P55: the first of a week and of a month is the month's, and nothing else.
#[test]
fn first_of_week_and_month_is_monthly() {
    let rules = rules(&["Default;;P7D", "Weekly;first_of = \"week\";P6W", "Monthly;first_of = \"month\";P1Y"]);
    let policy = policy_of("postgres", "UTC", DAILY, &rules);
    // 1 November 2026 is a Sunday: the first of its week (D3: weeks begin on Sunday) and of its month.
    let tags = tags(&policy, "2026-10-24T12:00:00Z", 30);
    assert_eq!(
        of_rule(&tags, "Monthly"),
        ["2026-10-25", "2026-11-01"],
        "the very first point is the first of its month too"
    );
    assert_eq!(of_rule(&tags, "Weekly"), ["2026-11-08", "2026-11-15", "2026-11-22"]);
}

/// P54: of the successful ones. A failed run leaves no point, so the next one is the first.
#[test]
fn the_first_successful_one_counts() {
    let rules = rules(&["Default;;P7D", "Monthly;first_of = \"month\";P1Y"]);
    let policy = policy_of("postgres", "Asia/Seoul", DAILY, &rules);
    let point = |text: &str, rule: &str| PointFacts::scheduled("", time(text), time(text), rule);
    // 1 and 2 November failed.
    let points = [point("2026-10-30T17:00:00Z", "Default")];
    let slot = time("2026-11-02T17:00:00Z");
    assert_eq!(rule_for(&policy, slot, &points).name, "Monthly");
    // 31 October 17:00 UTC is 1 November in Seoul.
    assert_eq!(rule_for(&policy, time("2026-10-31T17:00:00Z"), &points).name, "Monthly");
    assert_eq!(
        rule_for(&policy, slot, &[point("2026-10-31T17:00:00Z", "Default")]).name,
        "Default",
        "D3: the policy's zone"
    );
}

/// D4: on-demand points never count as the first of a period.
#[test]
fn on_demand_points_take_no_ones_place() {
    let rules = rules(&["Default;;P7D", "Monthly;first_of = \"month\";P1Y"]);
    let policy = policy_of("postgres", "UTC", DAILY, &rules);
    let points = [PointFacts::on_demand("", time("2026-11-01T01:00:00Z"), "Monthly")];
    assert_eq!(rule_for(&policy, time("2026-11-01T02:00:00Z"), &points).name, "Monthly");
}

/// A backup that is caught up on Tuesday for Sunday's slot is Sunday's.
#[test]
fn a_caught_up_backup_counts_for_its_slot() {
    let rules = rules(&["Default;;P7D", "Sundays;on = \"Sun\";P1Y"]);
    let policy = policy_of("postgres", "UTC", DAILY, &rules);
    let slot = time("2026-11-22T02:00:00Z");
    assert_eq!(rule_for(&policy, slot, &[]).name, "Sundays");
    let late = PointFacts::scheduled("", time("2026-11-24T09:00:00Z"), slot, "Sundays");
    assert_eq!(rule_for(&policy, time("2026-11-24T14:00:00Z"), &[late]).name, "Default");
}

#[test]
fn of_several_backups_on_a_day_the_first_qualifies() {
    let rules = rules(&["Default;;P7D", "Month-end;on = \"last\";P1Y"]);
    let policy = policy_of("postgres", "UTC", "every = \"day\"\nat = [\"02:00\", \"14:00\"]", &rules);
    let tags = tags(&policy, "2026-11-29T00:00:00Z", 8);
    assert_eq!(tags.iter().filter(|(_, rule)| rule == "Month-end").count(), 1);
    assert_eq!(tags[2], ("2026-11-30".parse().expect("a date"), "Month-end".to_owned()));
}

#[test]
fn weeks_begin_when_the_policy_says() {
    let weekly = rules(&["Default;;P7D", "Weekly;first_of = \"week\";P6W"]);
    let policy = policy_of("postgres", "UTC", DAILY, &weekly);
    assert_eq!(
        of_rule(&tags(&policy, "2026-11-20T12:00:00Z", 14), "Weekly"),
        ["2026-11-21", "2026-11-22", "2026-11-29"]
    );
    let text = format!(
        "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\nweek_start = \"Mon\"\n[schedule]\n{DAILY}\n{weekly}"
    );
    let policy = super::super::parse(&text).expect("valid");
    assert_eq!(
        of_rule(&tags(&policy, "2026-11-20T12:00:00Z", 14), "Weekly"),
        ["2026-11-21", "2026-11-23", "2026-11-30"]
    );
}

/// V20: daily 30 days; weekly (Sunday) 104 weeks; monthly (last Sunday) 120 months; yearly (first Sunday of January) 99 years.
#[test]
fn v20_over_99_years() {
    let rules = rules(&[
        "Default;;P30D",
        "Weekly;on = \"Sun\";P104W",
        "Monthly;on = \"last-Sun\";P120M",
        "Yearly;on = \"first-Sun\"\nmonths = [\"Jan\"];P99Y",
    ]);
    let policy = policy_of("vm", "Asia/Seoul", DAILY, &rules);
    let timeline = super::super::simulate(&policy, time("2027-01-01T00:00:00Z"), 99.years(), &[]).expect("a timeline");
    let made = |rule: &str| timeline.points.iter().filter(|point| point.rule == rule).count();
    let there = |rule: &str| timeline.at(timeline.to).filter(|point| point.rule == rule).count();
    // Counted by hand, on the calendar of 2027-01-01 to 2126-01-01: 36,159 days, 5,166 Sundays, 1,188 months, 99 Januaries.
    assert_eq!(timeline.points.len(), 36_159);
    assert_eq!((made("Yearly"), made("Monthly")), (99, 1_188));
    assert_eq!(made("Weekly"), 5_166 - 99 - 1_188);
    assert_eq!(there("Yearly"), 99, "the first of them ends on 3 January 2126");
    assert_eq!(there("Monthly"), 120);
    assert_eq!(there("Default"), 30 - 4, "of 30 days, 4 are Sundays");
    // 104 weeks, without the 24 last Sundays and the first of January 2125 (that of 2124 was on the 2nd, before them).
    assert_eq!(there("Weekly"), 104 - 24 - 1);
    let first = timeline.points.iter().find(|point| point.rule == "Yearly").expect("a yearly point");
    assert_eq!(first.time, time("2027-01-02T17:00:00Z"), "Sunday 3 January, 02:00 in Seoul");
    assert_eq!(first.stays[0].until, Some(time("2126-01-02T17:00:00Z")));
}

/// P50: Default is three months in the example of the sources; D7: on the calendar.
#[test]
fn three_months_are_calendar_months() {
    let policy = policy_of("postgres", "UTC", DAILY, &rules(&["Default;;P3M"]));
    let expiry = |text: &str| policy.expiry("Default", time(text)).expect("an end").to_string();
    assert_eq!(expiry("2026-11-30T02:00:00Z"), "2027-02-28T02:00:00Z");
    assert_eq!(expiry("2027-11-30T02:00:00Z"), "2028-02-29T02:00:00Z");
    assert_eq!(
        policy.expiry("Gone", time("2026-11-30T02:00:00Z")),
        policy.expiry("Default", time("2026-11-30T02:00:00Z"))
    );
    // In the policy's zone: 02:00 stays 02:00 when clocks change.
    let berlin = policy_of("postgres", "Europe/Berlin", DAILY, &rules(&["Default;;P3M"]));
    assert_eq!(berlin.expiry("Default", time("2027-01-15T01:00:00Z")), Some(time("2027-04-15T00:00:00Z")));
    // The clock skips 02:30 on 28 March 2027: the end is as long after the gap.
    assert_eq!(berlin.expiry("Default", time("2026-12-28T01:30:00Z")), Some(time("2027-03-28T01:30:00Z")));
}

/// P48, P49, D2.
#[test]
fn stores_have_clocks_of_their_own() {
    let rules = rules(&[
        "Default;;P3M",
        "Now;first_of = \"year\";P1Y;P10Y;immediate",
        "Then;first_of = \"month\";P6M;P9Y;on-expiry",
    ]);
    let policy = policy_of("postgres", "UTC", DAILY, &rules);
    let made = time("2026-11-21T02:00:00Z");
    let mut point = PointFacts::scheduled("", made, made, "Now");
    let copied = life(&policy, &point);
    let archive = copied.archive.expect("an archive");
    assert_eq!((copied.vault_until, archive.from), (time("2027-11-21T02:00:00Z"), made));
    assert_eq!(
        (archive.until, copied.end()),
        (time("2036-11-21T02:00:00Z"), archive.until),
        "both clocks start at the creation"
    );
    point.rule = "Then".to_owned();
    let moved = life(&policy, &point);
    let archive = moved.archive.expect("an archive");
    assert_eq!((moved.vault_until, archive.from), (time("2027-05-21T02:00:00Z"), time("2027-05-21T02:00:00Z")));
    assert_eq!(moved.end(), time("2036-05-21T02:00:00Z"), "the total is the sum");
    // A late move starts the archive's clock late; an early copy does not start it early.
    point.stores = Stores { vault: false, archived: Some(time("2027-06-01T00:00:00Z")) };
    assert_eq!(life(&policy, &point).end(), time("2036-06-01T00:00:00Z"));
    point.stores = Stores { vault: true, archived: Some(time("2026-12-01T00:00:00Z")) };
    assert_eq!(life(&policy, &point).end(), time("2036-05-21T02:00:00Z"));
    // V59, D4: a date counts instead of a rule.
    point.keep_until = Some(time("2026-12-24T00:00:00Z"));
    assert_eq!(life(&policy, &point).end(), time("2026-12-24T00:00:00Z"));
}

/// A6, D11: 30 days, whatever the rule says.
#[test]
fn api_management_ends_after_30_days() {
    let policy = policy_of("apim", "UTC", DAILY, &rules(&["Default;;P3M;P1Y;on-expiry"]));
    let made = time("2026-11-21T02:00:00Z");
    let point = PointFacts::scheduled("", made, made, "Default");
    assert_eq!(life(&policy, &point).end(), made + SignedDuration::from_hours(720));
    assert_eq!(life(&policy, &point).archive, None);
}

/// The reference: written without the code under test, by text and by counting days.
mod reference {
    use super::*;

    /// What a rule of the random policies is, in plain words.
    #[derive(Debug, Clone, Copy)]
    pub struct Plain {
        pub name: &'static str,
        /// `day`, `week`, `month`, `year`, or a day of the week that must match.
        pub kind: &'static str,
        /// Years, months, days.
        pub kept: (i16, i32, i64),
    }

    fn labels(date: Date, week_start: Weekday) -> [(&'static str, String); 4] {
        let mut monday = date;
        while monday.weekday() != week_start {
            monday = monday.yesterday().expect("a date");
        }
        let (day, week) = (date.to_string(), monday.to_string());
        [("day", day.clone()), ("week", week), ("month", day[..7].to_owned()), ("year", day[..4].to_owned())]
    }

    /// Rules of all successful runs, in order: for each run, look at all the runs before it.
    pub fn tags(runs: &[Date], rules: &[Plain], week_start: Weekday) -> Vec<&'static str> {
        let order = ["year", "month", "week", "Sunday", "day"];
        let mut tags = Vec::new();
        for (at, date) in runs.iter().enumerate() {
            let mut found = "Default";
            'rules: for kind in order {
                for rule in rules.iter().filter(|rule| rule.kind == kind) {
                    let period = if kind == "Sunday" { "day" } else { kind };
                    let label = |date: Date| labels(date, week_start).into_iter().find(|(name, _)| *name == period);
                    let first = runs[..at].iter().all(|before| label(*before) != label(*date));
                    if first && (kind != "Sunday" || date.weekday() == Weekday::Sunday) {
                        found = rule.name;
                        break 'rules;
                    }
                }
            }
            tags.push(found);
        }
        tags
    }

    /// The last moment's date by counting: years and months on the calendar with the day cut to the month's end, then days.
    pub fn end(date: Date, (years, months, days): (i16, i32, i64)) -> Date {
        let all = i32::from(date.year()) * 12 + i32::from(date.month()) - 1 + i32::from(years) * 12 + months;
        let year = i16::try_from(all.div_euclid(12)).expect("a year");
        let month = i8::try_from(all.rem_euclid(12) + 1).expect("a month");
        let mut day = date.day();
        let mut end = Date::new(year, month, day);
        while end.is_err() {
            day -= 1;
            end = Date::new(year, month, day);
        }
        let mut end = end.expect("a date");
        for _ in 0..days {
            end = end.tomorrow().expect("a date");
        }
        end
    }
}

#[test]
fn policy_retention_equals_a_naive_reference_on_random_histories() {
    use reference::Plain;
    let choices: [&[Plain]; 4] = [
        &[
            Plain { name: "Year", kind: "year", kept: (10, 0, 0) },
            Plain { name: "Old-year", kind: "year", kept: (9, 0, 0) },
        ],
        &[
            Plain { name: "Month", kind: "month", kept: (1, 6, 0) },
            Plain { name: "Monthly", kind: "month", kept: (0, 0, 70) },
        ],
        &[
            Plain { name: "Week", kind: "week", kept: (0, 0, 45) },
            Plain { name: "Sundays", kind: "Sunday", kept: (0, 2, 3) },
        ],
        &[Plain { name: "Daily", kind: "day", kept: (0, 0, 12) }],
    ];
    let default = (0, 1, 0);
    for seed in seeds(15, 300) {
        let mut random = Random::new(seed);
        let mut plain: Vec<Plain> = Vec::new();
        for group in choices {
            for rule in group {
                if random.chance(60) {
                    plain.push(*rule);
                }
            }
        }
        let iso = |(years, months, days): (i16, i32, i64)| format!("P{years}Y{months}M{days}D");
        let mut lines = vec![format!("Default;;{}", iso(default))];
        // In any order: the priority is fixed (P53), but within a class the order counts.
        for rule in &plain {
            let kind =
                if rule.kind == "Sunday" { "on = \"Sun\"".to_owned() } else { format!("first_of = \"{}\"", rule.kind) };
            let at = if plain.iter().filter(|other| other.kind == rule.kind).count() > 1 {
                lines.len()
            } else {
                random.below(lines.len() + 1)
            };
            lines.insert(at, format!("{};{kind};{}", rule.name, iso(rule.kept)));
        }
        // Weekly and Sunday rules are of one class: the document's order decides; the reference has weeks first.
        lines.sort_by_key(|line| line.contains("on = \"Sun\""));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let zone_name = random.pick(&["UTC", "Asia/Seoul", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]);
        let week_start =
            [("Sun", Weekday::Sunday), ("Mon", Weekday::Monday), ("Sat", Weekday::Saturday)][random.below(3)];
        let text = format!(
            "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"{zone_name}\"\nweek_start = \"{}\"\n[schedule]\nevery = \"day\"\nat = [\"12:00\", \"20:00\"]\n{}",
            week_start.0,
            rules(&lines)
        );
        let policy = super::super::parse(&text).unwrap_or_else(|problem| panic!("seed {seed}: {}", problem.message));
        let zone = TimeZone::get(zone_name).expect("a zone");
        let mut slot = time("2024-01-01T00:00:00Z")
            + SignedDuration::from_hours(i64::try_from(random.below(20_000)).expect("fits"));
        let (mut points, mut runs): (Vec<PointFacts>, Vec<Date>) = (Vec::new(), Vec::new());
        let failing = random.below(95);
        for _ in 0..300 {
            slot = policy.next_slot(slot).expect("a slot");
            if random.chance(5) {
                let mut point = PointFacts::on_demand("", slot - SignedDuration::from_mins(5), "Default");
                point.keep_until = random.chance(50).then_some(slot);
                points.push(point);
            }
            if random.chance(failing) {
                continue;
            }
            let rule = rule_for(&policy, slot, &points).name.clone();
            points.push(PointFacts::scheduled("", slot, slot, &rule));
            runs.push(zone.to_datetime(slot).date());
        }
        let expected = reference::tags(&runs, &plain, week_start.1);
        let scheduled: Vec<&PointFacts> = points.iter().filter(|point| point.slot.is_some()).collect();
        assert_eq!(scheduled.len(), expected.len());
        for ((point, rule), date) in scheduled.iter().zip(&expected).zip(&runs) {
            assert_eq!(point.rule, *rule, "seed {seed}, {date}\n{text}");
            let kept = plain.iter().find(|plain| plain.name == *rule).map_or(default, |plain| plain.kept);
            let end = reference::end(*date, kept);
            let at: Timestamp = policy.expiry(&point.rule, point.time).expect("an end");
            assert_eq!(zone.to_datetime(at).date(), end, "seed {seed}, {date}, rule {rule}");
        }
    }
}
