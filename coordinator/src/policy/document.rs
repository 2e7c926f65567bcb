//! The policy file: TOML in, a valid [`Document`] or every fault of it out.

use jiff::SignedDuration;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use vaultferry_proto::{Problem, Reason};

use super::{
    Archive, CatchUp, DEFAULT_RULE, DaySelector, Document, Every, Period, Qualifier, Retry, Rule, Schedule, Store,
    Tiering, Window, duration, selector, start,
};

/// Longest policy file.
const MAX_LEN: usize = 64 << 10;
const SOURCE_TYPES: [&str; 3] = ["postgres", "vm", "apim"];
/// Rules of a policy; more is surely a mistake.
const MAX_RULES: usize = 32;
/// `start_within` when left out: an hour late is late.
pub(super) const START_WITHIN: SignedDuration = SignedDuration::from_hours(1);
const MAX_START_WITHIN: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Attempts at one backup; what ten of them did not mend needs a person.
const MAX_ATTEMPTS: i64 = 10;
/// Between two attempts: a day later there is the next day's backup.
const MAX_WAIT: SignedDuration = SignedDuration::from_hours(24);

/// The file as it is written; also what an import from Azure makes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) source_type: String,
    pub(super) time_zone: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) week_start: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) compression: Option<FileCompression>,
    pub(super) schedule: FileSchedule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retry: Option<FileRetry>,
    #[serde(default)]
    pub(super) rule: Vec<FileRule>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum FileCompression {
    Level(i64),
    Word(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSchedule {
    pub(super) every: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) on: Vec<toml::Value>,
    pub(super) at: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) catch_up: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) jitter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_within: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) allowed: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRetry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attempts: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wait: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) longest_wait: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRule {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first_of: Option<String>,
    /// One day or a list of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) on: Option<toml::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) months: Vec<String>,
    pub(super) vault: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) archive: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tiering: Option<String>,
}

/// The document of the policy that every new vault has: daily, 30 days (V16), at 02:00.
pub fn default_document(source_type: &str, time_zone: &str) -> String {
    format!(
        "name = \"default-{source_type}\"\nsource_type = \"{source_type}\"\ntime_zone = \"{time_zone}\"\n\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n\n[[rule]]\nname = \"{DEFAULT_RULE}\"\nvault = \"P30D\"\n"
    )
}

/// Reads a policy file. The problem names every fault, not only the first.
pub fn parse(text: &str) -> Result<Document, Problem> {
    let invalid = |message: String| Problem::new(Reason::InvalidPolicy, message);
    if text.len() > MAX_LEN {
        return Err(invalid("the policy is longer than 64 KiB".to_owned()));
    }
    let file: File =
        toml::from_str(text).map_err(|error| invalid(format!("the policy cannot be read: {}", error.message())))?;
    let mut faults = Vec::new();
    check_name("name", &file.name, &mut faults);
    if !SOURCE_TYPES.contains(&file.source_type.as_str()) {
        faults.push(format!("source_type {:?} is not one of {}", file.source_type, SOURCE_TYPES.join(", ")));
    }
    let time_zone = TimeZone::get(&file.time_zone)
        .map_err(|_| faults.push(format!("time_zone {:?} is not an IANA name such as Asia/Seoul", file.time_zone)))
        .ok();
    let week_start = match &file.week_start {
        None => Weekday::Sunday,
        Some(day) => selector::weekday(day).unwrap_or_else(|| {
            faults.push(format!("week_start {day:?} is not one of Sun, Mon, Tue, Wed, Thu, Fri, Sat"));
            Weekday::Sunday
        }),
    };
    let schedule = schedule(&file.schedule, &mut faults);
    let retry = retry(file.retry.as_ref(), &mut faults);
    let rules = rules(&file.rule, &file.source_type, &mut faults);
    let compression = compression(file.compression.as_ref(), &mut faults);
    match time_zone {
        Some(time_zone) if faults.is_empty() => Ok(Document {
            name: file.name,
            source_type: file.source_type,
            time_zone_name: file.time_zone,
            time_zone,
            week_start,
            compression,
            schedule,
            retry,
            rules,
        }),
        _ => Err(invalid(faults.join("; "))),
    }
}

/// As the plugin protocol says it: a level, -1 for none, 0 for what is the default.
fn compression(file: Option<&FileCompression>, faults: &mut Vec<String>) -> i32 {
    match file {
        None => 0,
        Some(FileCompression::Word(word)) if word == "off" => -1,
        Some(FileCompression::Level(level @ 1..=19)) => *level as i32,
        Some(FileCompression::Level(level)) => {
            faults.push(format!("compression {level} is not \"off\" or 1 to 19"));
            0
        }
        Some(FileCompression::Word(word)) => {
            faults.push(format!("compression {word:?} is not \"off\" or 1 to 19"));
            0
        }
    }
}

/// Policy names are parts of file names in the vault; names of rules are arguments of commands.
fn check_name(what: &str, name: &str, faults: &mut Vec<String>) {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if name.is_empty() || name.len() > 64 || !plain || name.starts_with(['.', '-']) {
        faults
            .push(format!("{what} {name:?} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter, digit or _"));
    }
}

fn schedule(file: &FileSchedule, faults: &mut Vec<String>) -> Schedule {
    let every = every(file, faults);
    let mut at = Vec::new();
    for text in &file.at {
        let hourly = every == Every::Hour;
        let time = if hourly { text.strip_prefix(':').map(|minutes| format!("00:{minutes}")) } else { None };
        match start::time(time.as_deref().unwrap_or(text)).filter(|_| !hourly || time.is_some()) {
            Some(time) => at.push(time),
            None if hourly => faults.push(format!("schedule: at {text:?} is not a minute of the hour such as \":15\"")),
            None => faults.push(format!("schedule: at {text:?} is not a time such as \"02:00\"")),
        }
    }
    if file.at.is_empty() {
        faults.push("schedule: at needs a time, for example at = [\"02:00\"]".to_owned());
    }
    at.sort();
    at.dedup();
    let catch_up = match file.catch_up.as_deref() {
        None | Some("once") => CatchUp::Once,
        Some("skip") => CatchUp::Skip,
        Some(other) => {
            faults.push(format!("schedule: catch_up {other:?} is not once or skip"));
            CatchUp::Once
        }
    };
    // A start never reaches the next slot's day (hour).
    let most = SignedDuration::from_hours(if every == Every::Hour { 1 } else { 24 });
    let mut short = |key: &str, text: &Option<String>, max: SignedDuration, otherwise: SignedDuration| {
        text.as_deref().map_or(Ok(otherwise), |text| duration::short(text, max)).unwrap_or_else(|fault| {
            faults.push(format!("schedule: {key} {fault}"));
            otherwise
        })
    };
    let jitter = short("jitter", &file.jitter, most, SignedDuration::ZERO);
    let start_within = short("start_within", &file.start_within, MAX_START_WITHIN, START_WITHIN);
    if start_within < SignedDuration::from_mins(1) {
        faults.push("schedule: start_within must be at least PT1M".to_owned());
    }
    Schedule { every, at, catch_up, jitter, start_within, allowed: windows(&file.allowed, faults) }
}

fn retry(file: Option<&FileRetry>, faults: &mut Vec<String>) -> Retry {
    let usual = Retry::default();
    let Some(file) = file else { return usual };
    let attempts = match file.attempts {
        None => usual.attempts,
        Some(attempts @ 1..=MAX_ATTEMPTS) => attempts as u32,
        Some(attempts) => {
            faults.push(format!("retry: attempts {attempts} is not a number from 1 to {MAX_ATTEMPTS}"));
            usual.attempts
        }
    };
    let mut pause = |key: &str, text: &Option<String>| {
        let read = duration::short(text.as_deref()?, MAX_WAIT);
        let long_enough = read.and_then(|pause| match pause < SignedDuration::from_secs(1) {
            true => Err("must be at least PT1S".to_owned()),
            false => Ok(pause),
        });
        long_enough.map_err(|fault| faults.push(format!("retry: {key} {fault}"))).ok()
    };
    let wait = pause("wait", &file.wait).unwrap_or(usual.wait);
    let longest_wait = pause("longest_wait", &file.longest_wait);
    if longest_wait.is_some_and(|longest| longest < wait) {
        faults.push("retry: longest_wait must not be shorter than wait".to_owned());
    }
    Retry { attempts, wait, longest_wait: longest_wait.unwrap_or(usual.longest_wait.max(wait)) }
}

fn every(file: &FileSchedule, faults: &mut Vec<String>) -> Every {
    let days = selectors("schedule: on", &file.on, faults);
    match file.every.as_str() {
        every @ ("hour" | "day") => {
            if !file.on.is_empty() {
                faults
                    .push(format!("schedule: on is only for every = \"week\" or \"month\", not for every = {every:?}"));
            }
            if every == "hour" { Every::Hour } else { Every::Day }
        }
        "week" => {
            if file.on.is_empty() {
                faults.push("schedule: every = \"week\" needs on, for example on = [\"Sun\"]".to_owned());
            }
            let mut weekdays = Vec::new();
            for day in days {
                match day {
                    DaySelector::Weekday(day) => weekdays.push(day),
                    other => faults.push(format!(
                        "schedule: on \"{other}\" is not one of Sun, Mon, Tue, Wed, Thu, Fri, Sat (every = \"week\")"
                    )),
                }
            }
            Every::Week(weekdays)
        }
        "month" => {
            if file.on.is_empty() {
                faults.push("schedule: every = \"month\" needs on, for example on = [1, \"last-Sun\"]".to_owned());
            }
            for day in days.iter().filter(|day| matches!(day, DaySelector::Weekday(_))) {
                faults.push(format!(
                    "schedule: on \"{day}\" is not a day of a month (every = \"month\"); first-{day} is"
                ));
            }
            Every::Month(days)
        }
        other => {
            faults.push(format!("schedule: every {other:?} is not hour, day, week or month"));
            Every::Day
        }
    }
}

fn windows(texts: &[String], faults: &mut Vec<String>) -> Vec<Window> {
    let mut windows = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(window) => windows.push(window),
            Err(()) => faults.push(format!(
                "schedule: allowed {text:?} is not a window such as \"22:00-06:00\" or \"Sat,Sun 00:00-24:00\""
            )),
        }
    }
    windows
}

/// `on`: days as texts or numbers.
fn selectors(what: &str, values: &[toml::Value], faults: &mut Vec<String>) -> Vec<DaySelector> {
    let mut days = Vec::new();
    for value in values {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match text.parse() {
            Ok(day) if days.contains(&day) => faults.push(format!("{what} {text:?} is there twice")),
            Ok(day) => days.push(day),
            Err(()) => faults.push(format!(
                "{what} {text:?} is not one of Sun, Mon, Tue, Wed, Thu, Fri, Sat, 1 to 31, last, or first-Sun to fourth-Sun and last-Sun"
            )),
        }
    }
    days
}

fn rules(file: &[FileRule], source_type: &str, faults: &mut Vec<String>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for rule in file.iter().take(MAX_RULES) {
        let mut own = Vec::new();
        check_name("name", &rule.name, &mut own);
        if rules.iter().any(|other| other.name == rule.name) {
            own.push("is there twice".to_owned());
        }
        let qualifier = qualifier(rule, &mut own);
        let months = months(rule, &mut own);
        let vault = duration::retention(&rule.vault, Store::Vault, source_type);
        let vault = vault.map_err(|fault| own.push(format!("vault {fault}"))).ok();
        let archive = archive(rule, source_type, &mut own);
        if let (Some(vault), Some(archive)) = (vault, &archive)
            && archive.tiering == Tiering::Immediate
            && !duration::is_longer(archive.duration, vault)
        {
            own.push("archive must be longer than vault when tiering is immediate, as both begin together".to_owned());
        }
        faults.extend(own.into_iter().map(|fault| format!("rule {:?}: {fault}", rule.name)));
        let (name, vault_text) = (rule.name.clone(), rule.vault.clone());
        // A rule with a fault is counted too, so that its name is missed by nobody.
        rules.push(Rule { name, qualifier, months, vault_text, vault: vault.unwrap_or_default(), archive });
    }
    if file.len() > MAX_RULES {
        faults.push(format!("more than {MAX_RULES} rules"));
    }
    if !file.iter().any(|rule| rule.name == DEFAULT_RULE) {
        faults.push("a [[rule]] with name = \"Default\" is missing".to_owned());
    }
    rules
}

fn qualifier(rule: &FileRule, faults: &mut Vec<String>) -> Qualifier {
    let period = match rule.first_of.as_deref() {
        None => None,
        Some("day") => Some(Period::Day),
        Some("week") => Some(Period::Week),
        Some("month") => Some(Period::Month),
        Some("year") => Some(Period::Year),
        Some(other) => {
            faults.push(format!("first_of {other:?} is not day, week, month or year"));
            Some(Period::Year)
        }
    };
    let days = rule.on.as_ref().map(|on| match on {
        toml::Value::Array(values) => selectors("on", values, faults),
        value => selectors("on", std::slice::from_ref(value), faults),
    });
    if rule.name == DEFAULT_RULE {
        if period.is_some() || days.is_some() || !rule.months.is_empty() {
            faults
                .push("the Default rule is for all points that no other rule is for: no first_of, on or months".into());
        }
        return Qualifier::Default;
    }
    match (period, days) {
        (Some(period), None) => {
            if !rule.months.is_empty() && period != Period::Month {
                faults.push("months goes with on, or with first_of = \"month\"".to_owned());
            }
            Qualifier::FirstOf(period)
        }
        (None, Some(days)) => {
            let weekdays = days.iter().filter(|day| matches!(day, DaySelector::Weekday(_))).count();
            if rule.on.as_ref().and_then(toml::Value::as_array).is_some_and(Vec::is_empty) {
                faults.push("on needs a day".to_owned());
            }
            if weekdays != 0 && weekdays != days.len() {
                faults.push("on has weekdays and days of the month; make two rules of it".to_owned());
            }
            Qualifier::On(days)
        }
        (Some(period), Some(_)) => {
            faults.push("has first_of and on; it can have one of them".to_owned());
            Qualifier::FirstOf(period)
        }
        (None, None) => {
            faults.push("needs first_of, for example \"month\", or on, for example \"last-Sun\"".to_owned());
            Qualifier::FirstOf(Period::Year)
        }
    }
}

fn months(rule: &FileRule, faults: &mut Vec<String>) -> Vec<i8> {
    let mut months = Vec::new();
    for name in &rule.months {
        match selector::month(name) {
            Some(month) => months.push(month),
            None => faults.push(format!("months {name:?} is not one of Jan, Feb, Mar, … Dec")),
        }
    }
    months.sort_unstable();
    months.dedup();
    months
}

fn archive(rule: &FileRule, source_type: &str, faults: &mut Vec<String>) -> Option<Archive> {
    let tiering = match rule.tiering.as_deref() {
        None | Some("on-expiry") => Tiering::OnExpiry,
        Some("immediate") => Tiering::Immediate,
        Some(other) => {
            faults.push(format!("tiering {other:?} is not immediate or on-expiry"));
            Tiering::OnExpiry
        }
    };
    let Some(text) = &rule.archive else {
        if rule.tiering.is_some() {
            faults.push("tiering needs archive, for example archive = \"P9Y\"".to_owned());
        }
        return None;
    };
    match duration::retention(text, Store::Archive, source_type) {
        Ok(duration) => Some(Archive { text: text.clone(), duration, tiering }),
        Err(fault) => {
            faults.push(format!("archive {fault}"));
            None
        }
    }
}
