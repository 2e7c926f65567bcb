//! The policy file: TOML in, a valid [`Document`] or every fault of it out.

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde::Deserialize;
use vaultferry_proto::{Problem, Reason};

use super::{DEFAULT_RULE, Document, Rule, Schedule, vault_duration};

/// Longest policy file.
const MAX_LEN: usize = 64 << 10;
const SOURCE_TYPES: [&str; 3] = ["postgres", "vm", "apim"];
const DAYS: [(&str, Weekday); 7] = [
    ("Sun", Weekday::Sunday),
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    source_type: String,
    time_zone: String,
    compression: Option<FileCompression>,
    schedule: FileSchedule,
    #[serde(default)]
    rule: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FileCompression {
    Level(i64),
    Word(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSchedule {
    every: String,
    #[serde(default)]
    on: Vec<String>,
    at: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    name: String,
    vault: String,
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
    check_name(&file.name, &mut faults);
    if !SOURCE_TYPES.contains(&file.source_type.as_str()) {
        faults.push(format!("source_type {:?} is not one of {}", file.source_type, SOURCE_TYPES.join(", ")));
    }
    let time_zone = TimeZone::get(&file.time_zone)
        .map_err(|_| faults.push(format!("time_zone {:?} is not an IANA name such as Asia/Seoul", file.time_zone)))
        .ok();
    let schedule = schedule(&file.schedule, &mut faults);
    let rules = rules(&file.rule, &mut faults);
    let compression = compression(file.compression.as_ref(), &mut faults);
    match time_zone {
        Some(time_zone) if faults.is_empty() => Ok(Document {
            name: file.name,
            source_type: file.source_type,
            time_zone_name: file.time_zone,
            time_zone,
            compression,
            schedule,
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

/// Policy names are parts of file names in the vault.
fn check_name(name: &str, faults: &mut Vec<String>) {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if name.is_empty() || name.len() > 64 || !plain || name.starts_with(['.', '-']) {
        faults.push(format!("name {name:?} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit"));
    }
}

fn schedule(file: &FileSchedule, faults: &mut Vec<String>) -> Schedule {
    let days = match file.every.as_str() {
        "day" => {
            if !file.on.is_empty() {
                faults.push("schedule: on is only for every = \"week\"".to_owned());
            }
            None
        }
        "week" => {
            if file.on.is_empty() {
                faults.push("schedule: every = \"week\" needs on, for example on = [\"Sun\"]".to_owned());
            }
            Some(weekdays(&file.on, faults))
        }
        other => {
            faults.push(format!("schedule: every {other:?} is not day or week (hour and month are not built yet)"));
            None
        }
    };
    let mut at = Vec::new();
    for text in &file.at {
        match Time::strptime("%H:%M", text) {
            Ok(time) if text.len() == 5 => at.push(time),
            _ => faults.push(format!("schedule: at {text:?} is not a time such as \"02:00\"")),
        }
    }
    if file.at.is_empty() {
        faults.push("schedule: at needs a time, for example at = [\"02:00\"]".to_owned());
    }
    at.sort();
    at.dedup();
    Schedule { days, at }
}

fn weekdays(names: &[String], faults: &mut Vec<String>) -> Vec<Weekday> {
    let mut days = Vec::new();
    for name in names {
        match DAYS.iter().find(|(short, _)| short == name) {
            Some((_, day)) => days.push(*day),
            None => faults.push(format!("schedule: on {name:?} is not one of Sun, Mon, Tue, Wed, Thu, Fri, Sat")),
        }
    }
    days
}

fn rules(file: &[FileRule], faults: &mut Vec<String>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for rule in file {
        if rule.name != DEFAULT_RULE {
            faults.push(format!("rule {:?}: this version knows the rule Default only", rule.name));
        }
        if rules.iter().any(|other| other.name == rule.name) {
            faults.push(format!("rule {:?} is there twice", rule.name));
        }
        match vault_duration(&rule.vault) {
            Ok(vault) => rules.push(Rule { name: rule.name.clone(), vault_text: rule.vault.clone(), vault }),
            Err(fault) => faults.push(format!("rule {:?}: vault {fault}", rule.name)),
        }
    }
    if !file.iter().any(|rule| rule.name == DEFAULT_RULE) {
        faults.push("a [[rule]] with name = \"Default\" is missing".to_owned());
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told_at_once() {
        let text = "name = \"a b\"\nsource_type = \"mysql\"\ntime_zone = \"Mars/Olympus\"\n[schedule]\nevery = \"week\"\nat = [\"2:00\", \"25:00\"]\n[[rule]]\nname = \"Other\"\nvault = \"P1D\"\n";
        let problem = parse(text).expect_err("invalid");
        assert_eq!(problem.reason, Reason::InvalidPolicy);
        for part in [
            "name \"a b\"",
            "\"mysql\"",
            "Mars/Olympus",
            "needs on",
            "2:00",
            "25:00",
            "Other",
            "P1D",
            "Default\" is missing",
        ] {
            assert!(problem.message.contains(part), "{part} in {}", problem.message);
        }
    }

    #[test]
    fn compression_is_off_or_a_level() {
        let policy = |compression: &str| {
            parse(&format!(
                "name = \"a\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n{compression}\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n[[rule]]\nname = \"Default\"\nvault = \"P7D\"\n"
            ))
            .map(|document| document.compression)
        };
        for (text, expected) in
            [("", 0), ("compression = \"off\"", -1), ("compression = 1", 1), ("compression = 19", 19)]
        {
            assert_eq!(policy(text), Ok(expected), "{text}");
        }
        for text in ["compression = 0", "compression = 20", "compression = \"fast\""] {
            let problem = policy(text).expect_err(text);
            assert!(problem.message.contains("is not \"off\" or 1 to 19"), "{problem}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let problem = parse("name = \"a\"\nsurprise = 1\n").expect_err("invalid");
        assert!(problem.message.contains("surprise"), "{}", problem.message);
    }
}
