//! A policy for virtual machines as a Recovery Services policy.

use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use jiff::{Span, ToSpan as _};
use serde_json::{Value, json};
use vaultferry_proto::Problem;

use super::super::super::{Class, DaySelector, Document, Every, Nth, Period, Qualifier, Rule, Tiering};
use super::super::words::{day_name, long_month, nth_name, product};
use super::super::{Exported, invalid, unexpressed, zones};

/// Hours between two backups that Azure takes.
const INTERVALS: [i8; 4] = [4, 6, 8, 12];

pub(in super::super) fn export(document: &Document, now: Timestamp) -> Result<Exported, Problem> {
    let mut notes = Vec::new();
    unexpressed(document, &mut notes);
    let Some((time_zone, same)) = zones::windows(&document.time_zone_name, &document.time_zone, now) else {
        return Err(invalid(format!("Azure has no time zone with {}'s clock", document.time_zone_name)));
    };
    if !same {
        notes.push(format!("time zone {} becomes {time_zone}, which has the same clock", document.time_zone_name));
    }
    let date = document.date(now);
    let schedule = schedule(document, date, &mut notes)?;
    let mut retention = json!({ "retentionPolicyType": "LongTermRetentionPolicy" });
    let mut tier_after: Vec<i64> = Vec::new();
    for rule in &document.rules {
        let Some((key, unit, mut part)) = part(document, rule, &mut notes) else { continue };
        if !retention[key].is_null() {
            notes.push(format!("rule {}: Azure has one {key}; this rule is left out", rule.name));
            continue;
        }
        let total = total(rule, &mut tier_after, &mut notes);
        let (count, exact) = count(total, unit);
        if !exact {
            notes.push(format!("rule {}: its time becomes {count} {unit}", rule.name));
        }
        part["retentionTimes"] = json!([wall(date, document.schedule.at[0])]);
        part["retentionDuration"] = json!({ "count": count, "durationType": unit });
        retention[key] = part;
    }
    let mut properties = json!({
        "backupManagementType": "AzureIaasVM",
        "policyType": if schedule["schedulePolicyType"] == "SimpleSchedulePolicyV2" { "V2" } else { "V1" },
        "timeZone": time_zone,
        "schedulePolicy": schedule,
        "retentionPolicy": retention,
    });
    tier_after.sort_unstable();
    tier_after.dedup();
    match tier_after[..] {
        [] => {}
        // Azure moves nothing before three months.
        [after] if after >= 3 => {
            let mode = json!({ "tieringMode": "TierAfter", "duration": after, "durationType": "Months" });
            properties["tieringPolicy"] = json!({ "ArchivedRP": mode });
        }
        _ => {
            notes.push("Azure moves all rules' points after one time of 3 months or more; no tiering is written".into())
        }
    }
    Ok(Exported { json: json!({ "name": document.name, "properties": properties }), notes })
}

/// A wall-clock time as Azure writes it: the date and the `Z` mean nothing.
fn wall(date: Date, time: Time) -> String {
    format!("{date}T{}Z", time.strftime("%H:%M:%S"))
}

fn schedule(document: &Document, date: Date, notes: &mut Vec<String>) -> Result<Value, Problem> {
    let at = &document.schedule.at;
    let simple = |frequency: &str| {
        json!({
            "schedulePolicyType": "SimpleSchedulePolicy",
            "scheduleRunFrequency": frequency,
            "scheduleRunTimes": [wall(date, at[0])],
        })
    };
    let hourly = |interval: i8, begin: Time, length: i8| {
        json!({
            "schedulePolicyType": "SimpleSchedulePolicyV2",
            "scheduleRunFrequency": "Hourly",
            "hourlySchedule": {
                "interval": interval,
                "scheduleWindowStartTime": wall(date, begin),
                "scheduleWindowDuration": length,
            },
        })
    };
    match &document.schedule.every {
        Every::Hour => {
            notes.push("every hour becomes every 4 hours, Azure's shortest interval".to_owned());
            Ok(hourly(4, at[0], 24))
        }
        Every::Day => match even(at) {
            None if at.len() == 1 => Ok(simple("Daily")),
            Some(interval) => Ok(hourly(interval, at[0], at[at.len() - 1].hour() - at[0].hour())),
            None => {
                notes.push("Azure has no such times of the day; only the first is written".to_owned());
                Ok(simple("Daily"))
            }
        },
        Every::Week(days) => {
            if at.len() > 1 {
                notes.push("Azure has one time on each day of a weekly schedule; only the first is written".to_owned());
            }
            let mut weekly = simple("Weekly");
            weekly["scheduleRunDays"] = json!(names(days));
            Ok(weekly)
        }
        Every::Month(_) => Err(invalid("Azure has no monthly schedule for virtual machines")),
    }
}

/// The interval of times that follow each other evenly, if Azure takes it.
fn even(at: &[Time]) -> Option<i8> {
    let interval = at.get(1)?.hour() - at[0].hour();
    let even =
        at.windows(2).all(|pair| pair[1].hour() - pair[0].hour() == interval && pair[1].minute() == pair[0].minute());
    (even && INTERVALS.contains(&interval)).then_some(interval)
}

fn names(days: &[Weekday]) -> Vec<&'static str> {
    days.iter().map(|day| day_name(*day)).collect()
}

/// Where a rule stands in the retention policy, in which unit its time is told, and its days.
fn part(document: &Document, rule: &Rule, notes: &mut Vec<String>) -> Option<(&'static str, &'static str, Value)> {
    let scheduled = match &document.schedule.every {
        Every::Week(days) => days.clone(),
        _ => Vec::new(),
    };
    let first_day = scheduled.iter().copied().min_by_key(|day| day.since(document.week_start));
    match (rule.class(), &rule.qualifier) {
        (Class::Default, _) if scheduled.is_empty() => Some(("dailySchedule", "Days", json!({}))),
        (Class::Default, _) => Some(("weeklySchedule", "Weeks", json!({ "daysOfTheWeek": names(&scheduled) }))),
        (Class::Daily, _) => {
            notes.push(format!("rule {} is left out: Azure keeps each backup of a day alike", rule.name));
            None
        }
        (Class::Weekly, _) if !scheduled.is_empty() => {
            notes
                .push(format!("rule {} is left out: a weekly schedule has one weekly retention, Default's", rule.name));
            None
        }
        (Class::Weekly, Qualifier::On(days)) => {
            let days: Vec<&str> = days
                .iter()
                .filter_map(|day| if let DaySelector::Weekday(day) = day { Some(day_name(*day)) } else { None })
                .collect();
            Some(("weeklySchedule", "Weeks", json!({ "daysOfTheWeek": days })))
        }
        (Class::Weekly, _) => {
            let day = day_name(first_day.unwrap_or(document.week_start));
            notes.push(format!("rule {}: the first good backup of the week becomes {day}'s", rule.name));
            Some(("weeklySchedule", "Weeks", json!({ "daysOfTheWeek": [day] })))
        }
        (class, qualifier) => {
            let (key, unit) =
                if class == Class::Yearly { ("yearlySchedule", "Years") } else { ("monthlySchedule", "Months") };
            let mut part = days_of_month(rule, qualifier, first_day, notes)?;
            if class == Class::Yearly {
                let january = [1_i8];
                let months = if rule.months.is_empty() { &january[..] } else { &rule.months };
                part["monthsOfYear"] = json!(months.iter().map(|month| long_month(*month)).collect::<Vec<_>>());
            }
            Some((key, unit, part))
        }
    }
}

/// The days of a monthly or yearly retention.
fn days_of_month(
    rule: &Rule,
    qualifier: &Qualifier,
    first_day: Option<Weekday>,
    notes: &mut Vec<String>,
) -> Option<Value> {
    let days = match qualifier {
        Qualifier::On(days) => days.clone(),
        Qualifier::FirstOf(period) => {
            let day = first_day.map_or(DaySelector::MonthDay(1), |day| DaySelector::NthWeekday(Nth::First, day));
            let period = if *period == Period::Year || !rule.months.is_empty() { "its months" } else { "the month" };
            notes.push(format!("rule {}: the first good backup of {period} becomes the one on {day}", rule.name));
            vec![day]
        }
        Qualifier::Default => return None,
    };
    if let Some((weekdays, weeks)) = product(&days) {
        return Some(json!({
            "retentionScheduleFormatType": "Weekly",
            "retentionScheduleWeekly": { "daysOfTheWeek": weekdays, "weeksOfTheMonth": weeks },
        }));
    }
    let mut dates = Vec::new();
    for day in &days {
        match day {
            DaySelector::MonthDay(day @ 1..=28) => dates.push(json!({ "date": day, "isLast": false })),
            DaySelector::LastDay | DaySelector::MonthDay(31) => dates.push(json!({ "date": 0, "isLast": true })),
            DaySelector::NthWeekday(nth, weekday) => notes.push(format!(
                "rule {}: on {} {} cannot stand beside the others and is left out",
                rule.name,
                nth_name(*nth),
                day_name(*weekday)
            )),
            other => notes.push(format!("rule {}: on {other} cannot be expressed and is left out", rule.name)),
        }
    }
    if dates.is_empty() {
        notes.push(format!("rule {} is left out: none of its days can be expressed", rule.name));
        return None;
    }
    Some(json!({
        "retentionScheduleFormatType": "Daily",
        "retentionScheduleDaily": { "daysOfTheMonth": dates },
    }))
}

/// How long a rule keeps points in both stores together, which is what Azure counts.
fn total(rule: &Rule, tier_after: &mut Vec<i64>, notes: &mut Vec<String>) -> Span {
    let Some(archive) = &rule.archive else { return rule.vault };
    if !matches!(rule.class(), Class::Monthly | Class::Yearly) {
        notes.push(format!("rule {}: Azure moves only monthly and yearly points to the archive", rule.name));
    } else if archive.tiering == Tiering::Immediate {
        notes.push(format!("rule {}: Azure has no copy at once; its points move when they may", rule.name));
        tier_after.push(3);
    } else if rule.vault.get_weeks() != 0 || rule.vault.get_days() != 0 {
        notes.push(format!("rule {}: Azure moves after whole months; no tiering is written for it", rule.name));
    } else {
        tier_after.push(months_and_days(rule.vault).0);
    }
    match archive.tiering {
        Tiering::Immediate => archive.duration,
        Tiering::OnExpiry => {
            let [(months, days), (more_months, more_days)] =
                [months_and_days(rule.vault), months_and_days(archive.duration)];
            (months + more_months).months().days(days + more_days)
        }
    }
}

fn months_and_days(span: Span) -> (i64, i64) {
    let months = i64::from(span.get_years()) * 12 + i64::from(span.get_months());
    (months, i64::from(span.get_weeks()) * 7 + i64::from(span.get_days()))
}

/// A duration in one unit, rounded up so that nothing is kept shorter, and whether it is the same.
fn count(span: Span, unit: &str) -> (i64, bool) {
    let (calendar, rest) = months_and_days(span);
    let begin = Date::constant(2003, 7, 1);
    // The longest that the span can be: from July 2003 on there are the most long months and the leap day.
    let end = begin.checked_add(calendar.months().days(rest)).unwrap_or(Date::MAX);
    let days = begin.until(end).map_or(0, |span| i64::from(span.get_days()));
    let months = calendar + ceil(rest, 28);
    match unit {
        "Days" => (days, calendar == 0),
        "Weeks" => (ceil(days, 7), calendar == 0 && rest % 7 == 0),
        "Months" => (months, rest == 0),
        _ => (ceil(months, 12), rest == 0 && calendar % 12 == 0),
    }
}

/// Of numbers that are not negative.
fn ceil(number: i64, by: i64) -> i64 {
    (number + by - 1) / by
}
