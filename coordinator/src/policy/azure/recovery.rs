//! Recovery Services policies for virtual machines: a schedule policy, and a retention policy with daily to yearly schedules.
//!
//! ```text
//!   schedulePolicy   scheduleRunFrequency, scheduleRunDays, scheduleRunTimes, hourlySchedule     [schedule]
//!   retentionPolicy  dailySchedule (of a weekly schedule: weeklySchedule)                         Default
//!                    weeklySchedule, monthlySchedule, yearlySchedule                              Weekly, Monthly, Yearly: on, months
//!   tieringPolicy    ArchivedRP TierAfter                                                         vault, archive of Monthly and Yearly
//! ```
//! Times such as `2018-01-24T10:00:00Z` are wall-clock times in the policy's `timeZone`; date and `Z` mean nothing.

use jiff::civil::Weekday;
use serde_json::Value;
use vaultferry_proto::Problem;

use super::super::document::{File, FileRule, FileSchedule};
use super::super::{DEFAULT_RULE, DaySelector};
use super::words::{items, long_day, month_day, on, on_rule, short_month, text, texts, wall_time, weeks_and_days};
use super::{invalid, zones};

mod export;

pub(super) use export::export;

pub(super) fn import(properties: &Value, name: &str, notes: &mut Vec<String>) -> Result<File, Problem> {
    let kind = text(properties, "backupManagementType");
    if !kind.eq_ignore_ascii_case("AzureIaasVM") {
        return Err(invalid(format!("policies of type {kind:?} are not supported; AzureIaasVM is")));
    }
    let zone_name = text(properties, "timeZone");
    let time_zone = zones::iana(zone_name).ok_or_else(|| invalid(format!("time zone {zone_name:?} is not known")))?;
    let (schedule, days) = schedule(&properties["schedulePolicy"], notes)?;
    let retention = &properties["retentionPolicy"];
    let mut rule = match text(retention, "retentionPolicyType") {
        "SimpleRetentionPolicy" => vec![default_rule(duration(&retention["retentionDuration"])?)],
        _ => rules(retention, &schedule, &days, notes)?,
    };
    tiering(&properties["tieringPolicy"], &mut rule, notes);
    if let Some(days) = properties.get("instantRpRetentionRangeInDays").and_then(Value::as_i64) {
        notes.push(format!("instant restore from snapshots ({days} days) has no counterpart: points are in the vault"));
    }
    Ok(File {
        name: name.to_owned(),
        source_type: "vm".to_owned(),
        time_zone,
        week_start: None,
        compression: None,
        schedule,
        retry: None,
        rule,
    })
}

/// The schedule, and its weekdays (none: every day).
fn schedule(policy: &Value, notes: &mut Vec<String>) -> Result<(FileSchedule, Vec<Weekday>), Problem> {
    let frequency = text(policy, "scheduleRunFrequency");
    let part = |key: &str| policy.get(key).filter(|part| part.is_object()).unwrap_or(policy);
    let (every, days, mut at) = match frequency {
        "Daily" => ("day", Vec::new(), times(&texts(part("dailySchedule"), "scheduleRunTimes"))?),
        "Weekly" => {
            let weekly = part("weeklySchedule");
            let days = texts(weekly, "scheduleRunDays")
                .into_iter()
                .map(|day| long_day(day).ok_or_else(|| invalid(format!("{day:?} is not a day of the week"))));
            ("week", days.collect::<Result<Vec<_>, _>>()?, times(&texts(weekly, "scheduleRunTimes"))?)
        }
        "Hourly" => ("day", Vec::new(), hourly(&policy["hourlySchedule"], notes)?),
        other => return Err(invalid(format!("scheduleRunFrequency {other:?} is not Daily, Weekly or Hourly"))),
    };
    at.sort();
    at.dedup();
    let selectors: Vec<DaySelector> = days.iter().copied().map(DaySelector::Weekday).collect();
    Ok((FileSchedule { every: every.to_owned(), on: on(&selectors), at, ..FileSchedule::default() }, days))
}

fn times(texts: &[&str]) -> Result<Vec<String>, Problem> {
    let time = |text: &&str| {
        let time = wall_time(text).ok_or_else(|| invalid(format!("{text:?} is not a time")))?;
        Ok(time.strftime("%H:%M").to_string())
    };
    texts.iter().map(time).collect()
}

/// Every so many hours of a window of the day; both ends of the window count.
fn hourly(schedule: &Value, notes: &mut Vec<String>) -> Result<Vec<String>, Problem> {
    let number = |key: &str| schedule.get(key).and_then(Value::as_i64);
    let begin = text(schedule, "scheduleWindowStartTime");
    let begin = wall_time(begin).ok_or_else(|| invalid(format!("scheduleWindowStartTime {begin:?} is not a time")))?;
    let interval = number("interval").filter(|hours| (1..=24).contains(hours));
    let interval = interval.ok_or_else(|| invalid("the hourly schedule's interval is not 1 to 24 hours"))?;
    let length = number("scheduleWindowDuration").unwrap_or(24).clamp(0, 24);
    let hours = (0..=length).step_by(usize::try_from(interval).unwrap_or(24)).filter(|hour| *hour < 24);
    let at: Vec<String> =
        hours.map(|hour| format!("{:02}:{:02}", (i64::from(begin.hour()) + hour) % 24, begin.minute())).collect();
    notes.push(format!("the hourly schedule becomes these times of each day: {}", at.join(", ")));
    Ok(at)
}

fn rules(
    retention: &Value,
    schedule: &FileSchedule,
    days: &[Weekday],
    notes: &mut Vec<String>,
) -> Result<Vec<FileRule>, Problem> {
    let part = |key: &str| retention.get(key).filter(|part| part.is_object());
    let weekly_schedule = schedule.every == "week";
    let mut rules = Vec::new();
    let weekly = part("weeklySchedule");
    match (part("dailySchedule"), weekly) {
        (Some(daily), _) => rules.push(default_rule(duration(&daily["retentionDuration"])?)),
        (None, Some(weekly)) if weekly_schedule => {
            rules.push(default_rule(duration(&weekly["retentionDuration"])?));
            if texts(weekly, "daysOfTheWeek").len() != days.len() {
                notes.push("weeklySchedule is not for all days of the schedule; here it is, as Default".to_owned());
            }
        }
        _ => return Err(invalid("the retention policy has no dailySchedule (weeklySchedule of a weekly schedule)")),
    }
    if let Some(weekly) = weekly.filter(|_| part("dailySchedule").is_some()) {
        let days = texts(weekly, "daysOfTheWeek").into_iter().filter_map(long_day).map(DaySelector::Weekday).collect();
        rules.push(on_days("Weekly", days, Vec::new(), weekly)?);
    }
    for (name, key) in [("Monthly", "monthlySchedule"), ("Yearly", "yearlySchedule")] {
        let Some(part) = part(key) else { continue };
        let days = match text(part, "retentionScheduleFormatType") {
            "Daily" => {
                let days: Option<_> =
                    items(&part["retentionScheduleDaily"], "daysOfTheMonth").into_iter().map(month_day).collect();
                days
            }
            _ => {
                let weekly = &part["retentionScheduleWeekly"];
                weeks_and_days(&texts(weekly, "weeksOfTheMonth"), &texts(weekly, "daysOfTheWeek"))
            }
        };
        let days = days.ok_or_else(|| invalid(format!("{key} has days that are not known")))?;
        let months = texts(part, "monthsOfYear").into_iter().filter_map(short_month).collect();
        rules.push(on_days(name, days, months, part)?);
    }
    let run_times = &schedule.at;
    for key in ["dailySchedule", "weeklySchedule", "monthlySchedule", "yearlySchedule"] {
        let kept = times(&texts(&retention[key], "retentionTimes"))?;
        if kept.iter().any(|time| !run_times.contains(time)) {
            notes.push(format!(
                "{key}: retentionTimes are not times of the schedule; the first good backup of the day qualifies"
            ));
        }
    }
    Ok(rules)
}

fn on_days(name: &str, days: Vec<DaySelector>, months: Vec<String>, part: &Value) -> Result<FileRule, Problem> {
    if days.is_empty() {
        return Err(invalid(format!("the {name} retention names no day")));
    }
    let vault = duration(&part["retentionDuration"])?;
    Ok(FileRule { name: name.to_owned(), on: Some(on_rule(&days)), months, vault, ..FileRule::default() })
}

fn default_rule(vault: String) -> FileRule {
    FileRule { name: DEFAULT_RULE.to_owned(), vault, ..FileRule::default() }
}

/// `{"count": 30, "durationType": "Days"}` as `P30D`.
fn duration(value: &Value) -> Result<String, Problem> {
    let unit = match text(value, "durationType") {
        "Days" => 'D',
        "Weeks" => 'W',
        "Months" => 'M',
        "Years" => 'Y',
        other => return Err(invalid(format!("durationType {other:?} is not Days, Weeks, Months or Years"))),
    };
    let count =
        value.get("count").and_then(Value::as_u64).ok_or_else(|| invalid("a retentionDuration has no count"))?;
    Ok(format!("P{count}{unit}"))
}

/// Azure's time is the total, and a point moves within it; here each store has its own time (D2).
fn tiering(policy: &Value, rules: &mut [FileRule], notes: &mut Vec<String>) {
    let archived = &policy["ArchivedRP"];
    match text(archived, "tieringMode") {
        "" | "DoNotTier" | "Invalid" => return,
        "TierAfter" => {}
        other => {
            notes.push(format!("tieringMode {other} cannot be expressed: say vault and archive times of each rule"));
            return;
        }
    }
    let count = archived.get("duration").and_then(Value::as_i64).unwrap_or(0);
    let after = match text(archived, "durationType") {
        "Months" => count,
        "Years" => 12 * count,
        other => {
            notes.push(format!("TierAfter {count} {other} cannot be expressed: a rule's times must add up in months"));
            return;
        }
    };
    for rule in rules.iter_mut().filter(|rule| matches!(rule.name.as_str(), "Monthly" | "Yearly")) {
        let total = rule.vault.trim_start_matches('P');
        let number = total.get(..total.len().saturating_sub(1)).and_then(|number| number.parse::<i64>().ok());
        let total = match (number, total.chars().last()) {
            (Some(number), Some('M')) => number,
            (Some(number), Some('Y')) => 12 * number,
            _ => 0,
        };
        // P52: the archive store keeps nothing for less than 6 months.
        if total - after < 6 || after < 1 {
            notes.push(format!("rule {} is too short for the archive store and stays in the vault store", rule.name));
            continue;
        }
        rule.vault = format!("P{after}M");
        rule.archive = Some(format!("P{}M", total - after));
        rule.tiering = Some("on-expiry".to_owned());
    }
}
