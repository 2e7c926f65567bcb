//! Data Protection policies: backup rules with a trigger and tags, retention rules with lifecycles.
//!
//! ```text
//!   AzureBackupRule.trigger.schedule     repeatingTimeIntervals "R/<first run>/P1W", timeZone      [schedule]
//!   …taggingCriteria                     tagName, criteria, taggingPriority                        first_of / on / months of the rule
//!   AzureRetentionRule (name = tag)      lifecycles: VaultStore, ArchiveStore; copyAfter           vault, archive, tiering
//! ```
//! The first run of an interval is an instant; its weekday and time are read off in the policy's time zone.

use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use vaultferry_proto::Problem;

use super::super::document::{File, FileRule, FileSchedule};
use super::super::{DEFAULT_RULE, DaySelector, Document, Every, Period, Qualifier, Rule, Tiering};
use super::words::{
    day_name, items, long_day, long_month, month_day, on, on_rule, product, short_month, text, texts, wall_date,
    wall_time, weeks_and_days,
};
use super::{Exported, invalid, zones};

/// Types of sources, Azure's and ours; the first of ours is written.
const SOURCES: [(&str, &str); 4] = [
    ("Microsoft.DBforPostgreSQL/servers/databases", "postgres"),
    ("Microsoft.DBforPostgreSQL/flexibleServers", "postgres"),
    ("Microsoft.Compute/disks", "vm"),
    ("Microsoft.Compute/virtualMachines", "vm"),
];

pub(super) fn import(properties: &Value, name: &str, notes: &mut Vec<String>) -> Result<File, Problem> {
    let types = texts(properties, "datasourceTypes");
    let source = types.iter().find_map(|found| SOURCES.iter().find(|(azure, _)| azure.eq_ignore_ascii_case(found)));
    let source_type = match source {
        Some((_, ours)) => *ours,
        None => return Err(invalid(format!("policies for {} are not supported", types.join(", ")))),
    };
    let rules = items(properties, "policyRules");
    let of_type = |wanted: &str| rules.iter().filter(|rule| text(rule, "objectType") == wanted).copied().collect();
    let (backups, retentions): (Vec<&Value>, Vec<&Value>) = (of_type("AzureBackupRule"), of_type("AzureRetentionRule"));
    let backup = *backups.first().ok_or_else(|| invalid("it has no AzureBackupRule, so no schedule"))?;
    if backups.len() > 1 {
        notes.push(format!("only the first of {} backup rules is taken: {}", backups.len(), text(backup, "name")));
    }
    let kind = text(&backup["backupParameters"], "backupType");
    if !matches!(kind, "" | "Full") {
        notes.push(format!(
            "backupType {kind} has no counterpart: every backup is a full point, stored without repeats"
        ));
    }
    let trigger = &backup["trigger"];
    if text(trigger, "objectType") != "ScheduleBasedTriggerContext" {
        return Err(invalid(format!("the trigger {:?} has no schedule", text(trigger, "objectType"))));
    }
    let zone_name = text(&trigger["schedule"], "timeZone");
    let time_zone = zones::iana(zone_name).ok_or_else(|| invalid(format!("time zone {zone_name:?} is not known")))?;
    let schedule = schedule(&texts(&trigger["schedule"], "repeatingTimeIntervals"), &time_zone, notes)?;
    let tags = items(trigger, "taggingCriteria");
    let mut rule = Vec::new();
    for retention in &retentions {
        let tag = tags.iter().find(|tag| text(&tag["tagInfo"], "tagName") == text(retention, "name"));
        rule.extend(import_rule(retention, tag.copied(), notes));
    }
    check_tags(&tags, &retentions, &rule, notes);
    Ok(File {
        name: name.to_owned(),
        source_type: source_type.to_owned(),
        time_zone,
        week_start: None,
        compression: None,
        schedule,
        retry: None,
        rule,
    })
}

/// Tags without a rule, and an order of priority that is not ours.
fn check_tags(tags: &[&Value], retentions: &[&Value], rules: &[FileRule], notes: &mut Vec<String>) {
    let rank = |tag: &Value| {
        let rule = rules.iter().find(|rule| rule.name == text(&tag["tagInfo"], "tagName"))?;
        let class = match (rule.first_of.as_deref(), rule.months.is_empty()) {
            _ if rule.name == DEFAULT_RULE => 4,
            (_, false) | (Some("year"), _) => 0,
            (Some("month"), _) => 1,
            (Some("week"), _) => 2,
            (Some(_), _) => 3,
            // Weekdays, or days of the month.
            (None, _) => match &rule.on {
                Some(toml::Value::String(day)) if long_or_short_day(day) => 2,
                Some(toml::Value::Array(days))
                    if days.iter().all(|day| day.as_str().is_some_and(long_or_short_day)) =>
                {
                    2
                }
                _ => 1,
            },
        };
        Some((tag.get("taggingPriority").and_then(Value::as_i64).unwrap_or(99), class))
    };
    let mut ranks: Vec<(i64, i32)> = tags.iter().filter_map(|tag| rank(tag)).collect();
    ranks.sort_by_key(|(priority, _)| *priority);
    if !ranks.is_sorted_by_key(|(_, class)| *class) {
        notes.push(
            "taggingPriority is in another order; here yearly goes before monthly, weekly, daily, default".into(),
        );
    }
    for tag in tags {
        let name = text(&tag["tagInfo"], "tagName");
        if !retentions.iter().any(|rule| text(rule, "name") == name) && name != DEFAULT_RULE {
            notes.push(format!("tag {name} has no retention rule and is left out"));
        }
    }
}

fn long_or_short_day(name: &str) -> bool {
    super::super::selector::weekday(name).is_some()
}

/// The intervals as one schedule: all of one period, every day with every time.
fn schedule(intervals: &[&str], zone: &str, notes: &mut Vec<String>) -> Result<FileSchedule, Problem> {
    let zone = TimeZone::get(zone).map_err(|error| invalid(error.to_string()))?;
    let mut runs: Vec<(i8, Weekday, Time)> = Vec::new();
    let mut periods: Vec<&str> = Vec::new();
    for interval in intervals {
        let parts: Vec<&str> = interval.split('/').collect();
        let [_, first, period] = parts[..] else {
            return Err(invalid(format!("{interval:?} is not an interval such as R/2026-11-22T02:00:00+00:00/P1W")));
        };
        // An instant, or a wall-clock time where no offset is given.
        let local = match first.parse::<Timestamp>() {
            Ok(time) => zone.to_datetime(time),
            Err(_) => match (wall_date(first), wall_time(first)) {
                (Some(date), Some(time)) => date.to_datetime(time),
                _ => return Err(invalid(format!("{first:?} in {interval:?} is not a time"))),
            },
        };
        runs.push((local.day(), local.weekday(), local.time()));
        periods.push(period);
    }
    let period = *periods.first().ok_or_else(|| invalid("the schedule has no repeatingTimeIntervals"))?;
    if periods.iter().any(|other| *other != period) {
        return Err(invalid("its intervals have different periods, which one schedule cannot have"));
    }
    let clock = |time: &Time| time.strftime("%H:%M").to_string();
    let mut at: Vec<String> = runs.iter().map(|(_, _, time)| clock(time)).collect();
    let mut days: Vec<DaySelector> = Vec::new();
    let every = match period {
        "P1D" | "PT24H" => "day",
        "P1W" | "P7D" => {
            days = runs.iter().map(|(_, weekday, _)| DaySelector::Weekday(*weekday)).collect();
            "week"
        }
        "P1M" => {
            days = runs.iter().map(|(day, _, _)| DaySelector::MonthDay(*day)).collect();
            "month"
        }
        "PT1H" => {
            at = runs.iter().map(|(_, _, time)| time.strftime(":%M").to_string()).collect();
            "hour"
        }
        other => {
            let step = other.strip_prefix("PT").and_then(|rest| rest.strip_suffix('H'));
            let step: i8 = step
                .and_then(|hours| hours.parse().ok())
                .filter(|hours| (2..24).contains(hours))
                .ok_or_else(|| invalid(format!("a backup every {other} cannot be expressed")))?;
            if 24 % step != 0 {
                notes.push(format!("every {step} hours begins anew each midnight"));
            }
            let times = runs.iter().flat_map(|(_, _, time)| {
                let first = if 24 % step == 0 { time.hour() % step } else { time.hour() };
                (first..24)
                    .step_by(usize::from(step.unsigned_abs()))
                    .map(|hour| format!("{hour:02}:{:02}", time.minute()))
            });
            at = times.collect();
            "day"
        }
    };
    at.sort();
    at.dedup();
    let mut distinct: Vec<DaySelector> = Vec::new();
    for day in days {
        if !distinct.contains(&day) {
            distinct.push(day);
        }
    }
    // Azure names the next run of each day; a document names them from Sunday on.
    distinct.sort_by_key(|day| match day {
        DaySelector::Weekday(weekday) => weekday.to_sunday_zero_offset(),
        DaySelector::MonthDay(day) => *day,
        _ => 0,
    });
    if !distinct.is_empty() && distinct.len() * at.len() != runs.len() {
        notes.push("its days have different times; here each of the days has all of them".to_owned());
    }
    Ok(FileSchedule { every: every.to_owned(), on: on(&distinct), at, ..FileSchedule::default() })
}

/// A retention rule with its tag. `None`, and a note, when nothing can be made of it.
fn import_rule(retention: &Value, tag: Option<&Value>, notes: &mut Vec<String>) -> Option<FileRule> {
    let name = text(retention, "name");
    let default = retention["isDefault"] == Value::Bool(true);
    let mut rule = FileRule { name: if default { DEFAULT_RULE } else { name }.to_owned(), ..FileRule::default() };
    if !default {
        let Some(tag) = tag else {
            notes.push(format!("rule {name} has no tag, so no backup would get it; it is left out"));
            return None;
        };
        criteria(&items(tag, "criteria"), &mut rule, notes)?;
    }
    for lifecycle in items(retention, "lifecycles") {
        let duration = text(&lifecycle["deleteAfter"], "duration").to_owned();
        match text(&lifecycle["sourceDataStore"], "dataStoreType") {
            "ArchiveStore" => rule.archive = Some(duration),
            store => {
                if store == "OperationalStore" {
                    notes.push(format!("rule {name}: the operational store's {duration} becomes the vault store's"));
                }
                rule.vault = duration;
                for copy in items(lifecycle, "targetDataStoreCopySettings") {
                    tiering(copy, &mut rule, notes);
                }
            }
        }
    }
    if rule.archive.is_none() {
        if rule.tiering.take().is_some() {
            notes.push(format!("rule {name} copies to the archive store, but says not for how long; it does not copy"));
        }
    } else if rule.tiering.is_none() {
        notes.push(format!("rule {name} never copies to the archive store; its archive time is left out"));
        rule.archive = None;
    }
    Some(rule)
}

fn tiering(copy: &Value, rule: &mut FileRule, notes: &mut Vec<String>) {
    let tiering = match text(&copy["copyAfter"], "objectType") {
        "CopyOnExpiryOption" => "on-expiry",
        "ImmediateCopyOption" => "immediate",
        other => {
            let after = text(&copy["copyAfter"], "duration");
            notes.push(format!("rule {}: {other} {after} has no counterpart; the copy is made at once", rule.name));
            "immediate"
        }
    };
    rule.tiering = Some(tiering.to_owned());
}

/// What qualifies for a tag. `None`, and a note, when it cannot be expressed.
fn criteria(criteria: &[&Value], rule: &mut FileRule, notes: &mut Vec<String>) -> Option<()> {
    let left_out = |why: &str, notes: &mut Vec<String>| {
        notes.push(format!("rule {} is left out: {why}", rule.name));
    };
    let [criterion] = criteria else {
        left_out("it has none or several criteria, and a rule here has one", notes);
        return None;
    };
    let mut months = Vec::new();
    for month in texts(criterion, "monthsOfYear") {
        months.extend(short_month(month));
    }
    let first_of = match texts(criterion, "absoluteCriteria")[..] {
        [] => None,
        ["FirstOfDay"] => Some("day"),
        ["FirstOfWeek"] => Some("week"),
        ["FirstOfMonth"] => Some("month"),
        ["FirstOfYear"] => Some("year"),
        ref other => {
            left_out(&format!("{} has no counterpart", other.join(" and ")), notes);
            return None;
        }
    };
    let days = texts(criterion, "daysOfTheWeek");
    let weeks = texts(criterion, "weeksOfTheMonth");
    let month_days: Option<Vec<DaySelector>> = items(criterion, "daysOfMonth").into_iter().map(month_day).collect();
    let days = if !weeks.is_empty() {
        weeks_and_days(&weeks, &days)
    } else if !days.is_empty() {
        days.iter().map(|day| long_day(day).map(DaySelector::Weekday)).collect()
    } else {
        month_days
    };
    match (first_of, days) {
        (Some(period), Some(days)) if days.is_empty() => rule.first_of = Some(period.to_owned()),
        (None, Some(days)) if !days.is_empty() => rule.on = Some(on_rule(&days)),
        (None, Some(_)) if !months.is_empty() => rule.first_of = Some("month".to_owned()),
        _ => {
            left_out("its criteria cannot be expressed", notes);
            return None;
        }
    }
    if !texts(criterion, "scheduleTimes").is_empty() {
        notes.push(format!(
            "rule {}: scheduleTimes are not kept; the first good backup of the day qualifies",
            rule.name
        ));
    }
    rule.months = months;
    Some(())
}

pub(super) fn export(document: &Document, now: Timestamp) -> Result<Exported, Problem> {
    let mut notes = Vec::new();
    super::unexpressed(document, &mut notes);
    let zone = zones::windows(&document.time_zone_name, &document.time_zone, now);
    let (time_zone, same) = zone.unwrap_or(("UTC", false));
    if zone.is_none() {
        notes.push(format!(
            "Azure has no zone with {}'s clock; the schedule is in UTC, as it is now",
            document.time_zone_name
        ));
    } else if !same {
        notes.push(format!("time zone {} becomes {time_zone}, which has the same clock", document.time_zone_name));
    }
    let (name, intervals) = intervals(document, now, &mut notes)?;
    let mut rules: Vec<&Rule> = document.rules.iter().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.class()));
    let mut tags = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        tags.push(tag(rule, at, &mut notes));
    }
    let backup = json!({
        "name": name,
        "objectType": "AzureBackupRule",
        "backupParameters": { "backupType": "Full", "objectType": "AzureBackupParams" },
        "dataStore": store("VaultStore"),
        "trigger": {
            "objectType": "ScheduleBasedTriggerContext",
            "schedule": { "repeatingTimeIntervals": intervals, "timeZone": time_zone },
            "taggingCriteria": tags,
        },
    });
    let mut policy_rules = vec![backup];
    policy_rules.extend(document.rules.iter().map(retention));
    let json = json!({
        "name": document.name,
        "properties": {
            "objectType": "BackupPolicy",
            "datasourceTypes": [SOURCES[0].0],
            "policyRules": policy_rules,
        },
    });
    Ok(Exported { json, notes })
}

/// The schedule's name and one interval for each of its days and times, beginning with their next run.
fn intervals(
    document: &Document,
    now: Timestamp,
    notes: &mut Vec<String>,
) -> Result<(&'static str, Vec<String>), Problem> {
    let (name, period, runs) = match &document.schedule.every {
        Every::Hour => ("BackupHourly", "PT1H", document.schedule.at.len()),
        Every::Day => ("BackupDaily", "P1D", document.schedule.at.len()),
        Every::Week(days) => ("BackupWeekly", "P1W", document.schedule.at.len() * days.len()),
        Every::Month(days) => {
            if days.iter().any(|day| !matches!(day, DaySelector::MonthDay(1..=28))) {
                return Err(super::invalid("Azure cannot repeat a backup on such days of the month; only on 1 to 28"));
            }
            notes.push("a monthly schedule is not offered for PostgreSQL; the service may refuse it".to_owned());
            ("BackupMonthly", "P1M", document.schedule.at.len() * days.len())
        }
    };
    if matches!(document.schedule.every, Every::Hour) || (document.schedule.at.len() > 1 && runs > 0) {
        notes.push("Azure takes one backup of a PostgreSQL database a day; the service may refuse more".to_owned());
    }
    let slots = document.slots(now).take(runs);
    let text = |slot: Timestamp| {
        let local = slot.to_zoned(document.time_zone.clone());
        format!("R/{}/{period}", local.strftime("%Y-%m-%dT%H:%M:%S%:z"))
    };
    Ok((name, slots.map(text).collect()))
}

fn tag(rule: &Rule, at: usize, notes: &mut Vec<String>) -> Value {
    let info = json!({ "tagName": rule.name });
    let default = rule.qualifier == Qualifier::Default;
    // As the portal numbers them: the highest rule has the lowest number, Default 99.
    let priority = if default { 99 } else { 10 + 5 * at };
    if default {
        return json!({ "isDefault": true, "tagInfo": info, "taggingPriority": priority });
    }
    let mut criterion = json!({ "objectType": "ScheduleBasedBackupCriteria" });
    match &rule.qualifier {
        Qualifier::Default => {}
        Qualifier::FirstOf(period) => {
            let name = match period {
                Period::Day => "FirstOfDay",
                Period::Week => "FirstOfWeek",
                Period::Month => "FirstOfMonth",
                Period::Year => "FirstOfYear",
            };
            criterion["absoluteCriteria"] = json!([name]);
        }
        Qualifier::On(days) => on_days(rule, days, &mut criterion, notes),
    }
    if !rule.months.is_empty() {
        let months: Vec<&str> = rule.months.iter().map(|month| long_month(*month)).collect();
        criterion["monthsOfYear"] = json!(months);
    }
    json!({ "isDefault": false, "tagInfo": info, "taggingPriority": priority, "criteria": [criterion] })
}

fn on_days(rule: &Rule, days: &[DaySelector], criterion: &mut Value, notes: &mut Vec<String>) {
    let weekdays: Option<Vec<&str>> =
        days.iter().map(|day| if let DaySelector::Weekday(day) = day { Some(day_name(*day)) } else { None }).collect();
    if let Some(weekdays) = weekdays {
        criterion["daysOfTheWeek"] = json!(weekdays);
    } else if let Some((weekdays, weeks)) = product(days) {
        criterion["daysOfTheWeek"] = json!(weekdays);
        criterion["weeksOfTheMonth"] = json!(weeks);
    } else {
        let mut dates = Vec::new();
        for day in days {
            match day {
                DaySelector::MonthDay(day @ 1..=28) => dates.push(json!({ "date": day, "isLast": false })),
                DaySelector::LastDay | DaySelector::MonthDay(31) => dates.push(json!({ "isLast": true })),
                other => notes.push(format!("rule {}: on {other} cannot be expressed and is left out", rule.name)),
            }
        }
        criterion["daysOfMonth"] = json!(dates);
    }
}

fn retention(rule: &Rule) -> Value {
    let delete = |duration: &str| json!({ "duration": duration, "objectType": "AbsoluteDeleteOption" });
    let mut copies = Vec::new();
    let mut archive = None;
    if let Some(kept) = &rule.archive {
        let option = match kept.tiering {
            Tiering::Immediate => "ImmediateCopyOption",
            Tiering::OnExpiry => "CopyOnExpiryOption",
        };
        copies.push(json!({ "copyAfter": { "objectType": option }, "dataStore": store("ArchiveStore") }));
        archive = Some(json!({
            "deleteAfter": delete(&kept.text),
            "sourceDataStore": store("ArchiveStore"),
            "targetDataStoreCopySettings": [],
        }));
    }
    let hot = json!({
        "deleteAfter": delete(&rule.vault_text),
        "sourceDataStore": store("VaultStore"),
        "targetDataStoreCopySettings": copies,
    });
    let lifecycles: Vec<Value> = [hot].into_iter().chain(archive).collect();
    json!({
        "name": rule.name,
        "objectType": "AzureRetentionRule",
        "isDefault": rule.qualifier == Qualifier::Default,
        "lifecycles": lifecycles,
    })
}

fn store(name: &str) -> Value {
    json!({ "dataStoreType": name, "objectType": "DataStoreInfoBase" })
}
