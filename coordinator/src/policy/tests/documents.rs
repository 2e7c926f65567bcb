//! The policy file: what is read, what is refused, and that the documentation's examples are true.

use vaultferry_proto::Reason;

use super::super::{CatchUp, Class, Period, Qualifier, Tiering, default_document, default_policy, parse};
use super::policy_of;

fn faults(text: &str) -> String {
    let problem = parse(text).expect_err("invalid");
    assert_eq!(problem.reason, Reason::InvalidPolicy);
    problem.message
}

/// A document with that schedule and rules.
fn document(schedule: &str, rules: &str) -> String {
    format!("name = \"a\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\n{schedule}\n{rules}")
}

fn rule_fault(rule: &str) -> String {
    let rules = format!("[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n[[rule]]\n{rule}");
    faults(&document("every = \"day\"\nat = [\"02:00\"]", &rules))
}

#[test]
fn every_fault_is_told_at_once() {
    let text = "name = \"a b\"\nsource_type = \"mysql\"\ntime_zone = \"Mars/Olympus\"\n[schedule]\nevery = \"week\"\nat = [\"2:00\", \"25:00\"]\n[[rule]]\nname = \"Other\"\nvault = \"P1D\"\n";
    let message = faults(text);
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
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn unknown_keys_are_refused() {
    assert!(faults("name = \"a\"\nsurprise = 1\n").contains("surprise"));
    assert!(rule_fault("name = \"A\"\nfirst_of = \"month\"\nvault = \"P1M\"\nsurprise = 1").contains("surprise"));
}

#[test]
fn compression_is_off_or_a_level() {
    let policy = |compression: &str| {
        let text = document("every = \"day\"\nat = [\"02:00\"]", "[[rule]]\nname = \"Default\"\nvault = \"P7D\"");
        parse(&format!("{compression}\n{text}")).map(|document| document.compression)
    };
    for (text, expected) in [("", 0), ("compression = \"off\"", -1), ("compression = 1", 1), ("compression = 19", 19)] {
        assert_eq!(policy(text), Ok(expected), "{text}");
    }
    for text in ["compression = 0", "compression = 20", "compression = \"fast\""] {
        let problem = policy(text).expect_err(text);
        assert!(problem.message.contains("is not \"off\" or 1 to 19"), "{problem}");
    }
}

#[test]
fn schedules_are_checked() {
    let default = "[[rule]]\nname = \"Default\"\nvault = \"P3M\"";
    for (schedule, part) in [
        ("every = \"hour\"\nat = [\"02:00\"]", "\"02:00\" is not a minute of the hour"),
        ("every = \"hour\"\nat = [\":75\"]", "is not a minute of the hour"),
        ("every = \"day\"\nat = [\":15\"]", "is not a time such as"),
        ("every = \"day\"\nat = []", "at needs a time"),
        ("every = \"day\"\non = [\"Sun\"]\nat = [\"02:00\"]", "on is only for every = \"week\" or \"month\""),
        ("every = \"week\"\non = [1]\nat = [\"02:00\"]", "on \"1\" is not one of Sun"),
        ("every = \"week\"\non = [\"Sun\", \"Sun\"]\nat = [\"02:00\"]", "is there twice"),
        ("every = \"month\"\non = [\"Sun\"]\nat = [\"02:00\"]", "first-Sun is"),
        ("every = \"month\"\non = [32]\nat = [\"02:00\"]", "\"32\" is not one of"),
        ("every = \"month\"\nat = [\"02:00\"]", "needs on"),
        ("every = \"year\"\nat = [\"02:00\"]", "is not hour, day, week or month"),
        ("every = \"day\"\nat = [\"02:00\"]\ncatch_up = \"always\"", "catch_up \"always\" is not once or skip"),
        ("every = \"day\"\nat = [\"02:00\"]\njitter = \"PT25H\"", "jitter \"PT25H\""),
        ("every = \"hour\"\nat = [\":00\"]\njitter = \"PT61M\"", "jitter \"PT61M\""),
        ("every = \"day\"\nat = [\"02:00\"]\njitter = \"P1M\"", "jitter \"P1M\""),
        ("every = \"day\"\nat = [\"02:00\"]\nstart_within = \"PT0S\"", "start_within must be at least PT1M"),
        ("every = \"day\"\nat = [\"02:00\"]\nallowed = [\"night\"]", "allowed \"night\" is not a window"),
    ] {
        let message = faults(&document(schedule, default));
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn rules_are_checked() {
    for (rule, part) in [
        ("name = \"A\"\nvault = \"P1M\"", "rule \"A\": needs first_of"),
        ("name = \"A\"\nfirst_of = \"decade\"\nvault = \"P1M\"", "first_of \"decade\""),
        ("name = \"A\"\nfirst_of = \"month\"\non = \"Sun\"\nvault = \"P1M\"", "has first_of and on"),
        ("name = \"A\"\non = []\nvault = \"P1M\"", "on needs a day"),
        ("name = \"A\"\non = [\"Sun\", 1]\nvault = \"P1M\"", "make two rules of it"),
        ("name = \"A\"\nfirst_of = \"week\"\nmonths = [\"Jan\"]\nvault = \"P1M\"", "months goes with on"),
        ("name = \"A\"\nfirst_of = \"month\"\nmonths = [\"January\"]\nvault = \"P1M\"", "months \"January\""),
        ("name = \"A\"\nfirst_of = \"month\"\nvault = \"P1M\"\ntiering = \"immediate\"", "tiering needs archive"),
        (
            "name = \"A\"\nfirst_of = \"month\"\nvault = \"P1M\"\narchive = \"P1Y\"\ntiering = \"soon\"",
            "tiering \"soon\"",
        ),
        (
            "name = \"A\"\nfirst_of = \"month\"\nvault = \"P1Y\"\narchive = \"P1Y\"\ntiering = \"immediate\"",
            "archive must be longer",
        ),
        ("name = \"Default\"\nvault = \"P1M\"", "is there twice"),
        ("name = \"a b\"\nfirst_of = \"month\"\nvault = \"P1M\"", "must be 1 to 64"),
    ] {
        let message = rule_fault(rule);
        assert!(message.contains(part), "{part} in {message}");
    }
    let text = document(
        "every = \"day\"\nat = [\"02:00\"]",
        "[[rule]]\nname = \"Default\"\nfirst_of = \"month\"\nvault = \"P3M\"",
    );
    assert!(faults(&text).contains("the Default rule is for all points"));
}

/// P51, P52, D2, V20: each with a message that names the limit.
#[test]
fn durations_have_limits_that_messages_name() {
    let check = |source: &str, vault: &str, archive: Option<&str>| {
        let archive = archive.map(|text| format!("\narchive = \"{text}\"")).unwrap_or_default();
        let rules = format!("[[rule]]\nname = \"Default\"\nvault = \"{vault}\"{archive}");
        parse(&document("every = \"day\"\nat = [\"02:00\"]", &rules).replace("postgres", source))
            .map_err(|problem| problem.message)
    };
    for good in ["P7D", "P1W", "P10Y", "P3M", "P1Y6M", "P120M", "P3650D"] {
        assert!(check("postgres", good, None).is_ok(), "{good}");
    }
    for bad in ["P6D", "P10Y1D", "P11Y"] {
        let message = check("postgres", bad, None).expect_err(bad);
        assert!(message.contains("must be between 7 days and 10 years in the vault store"), "{message}");
    }
    for bad in ["PT200H", "3M", "", "P", "-P3M", "P3MT1H", "P0D", "3 months"] {
        assert!(check("postgres", bad, None).is_err(), "{bad}");
    }
    for good in ["P6M", "P10Y", "P26W", "P181D"] {
        assert!(check("postgres", "P7D", Some(good)).is_ok(), "{good}");
    }
    for bad in ["P5M", "P180D", "P10Y1D", "P11Y"] {
        let message = check("postgres", "P7D", Some(bad)).expect_err(bad);
        assert!(message.contains("must be between 6 months and 10 years in the archive store"), "{message}");
    }
    for good in ["P99Y", "P1188M", "P104W"] {
        assert!(check("vm", good, None).is_ok(), "{good}");
    }
    let message = check("vm", "P100Y", None).expect_err("too long");
    assert!(message.contains("between 7 days and 99 years in the vault store"), "{message}");
    let message = check("vm", "P7D", Some("P1189M")).expect_err("too long");
    assert!(message.contains("between 6 months and 99 years in the archive store"), "{message}");
}

#[test]
fn what_is_left_out_has_its_default() {
    let policy = policy_of(
        "postgres",
        "UTC",
        "every = \"day\"\nat = [\"02:00\"]",
        "[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n[[rule]]\nname = \"Monthly\"\nfirst_of = \"month\"\nvault = \"P6M\"\narchive = \"P9Y\"",
    );
    assert_eq!(policy.week_start, jiff::civil::Weekday::Sunday, "D3");
    assert_eq!(policy.schedule.catch_up, CatchUp::Once);
    assert!(policy.schedule.jitter.is_zero() && policy.schedule.allowed.is_empty());
    assert_eq!(policy.rules[1].archive.as_ref().expect("an archive").tiering, Tiering::OnExpiry);
}

/// V16.
#[test]
fn the_default_policy_is_daily_for_30_days() {
    for source_type in ["postgres", "vm", "apim"] {
        let policy = parse(&default_document(source_type, "Asia/Seoul")).expect("valid");
        assert_eq!(policy.schedule.every_text(), "day");
        assert_eq!(policy.rules[0].vault_text, "P30D");
        assert_eq!(policy.name, default_policy(source_type));
    }
}

/// P53, and where rules of the user's own stand.
#[test]
fn rules_rank_by_what_they_are_for() {
    let rules = [
        "first_of = \"day\"",
        "on = [\"Sun\", \"Wed\"]",
        "first_of = \"week\"",
        "first_of = \"month\"",
        "on = \"last-Sun\"",
        "on = 15",
        "on = \"last\"",
        "on = \"first-Sun\"\nmonths = [\"Jan\"]",
        "first_of = \"month\"\nmonths = [\"Mar\", \"Jun\"]",
        "first_of = \"year\"",
    ];
    let text: String = rules
        .iter()
        .zip(0..)
        .map(|(rule, n)| format!("[[rule]]\nname = \"r{n}\"\nvault = \"P1M\"\n{rule}\n"))
        .collect();
    let policy = policy_of(
        "postgres",
        "UTC",
        "every = \"day\"\nat = [\"02:00\"]",
        &format!("[[rule]]\nname = \"Default\"\nvault = \"P3M\"\n{text}"),
    );
    let classes: Vec<Class> = policy.rules.iter().map(|rule| rule.class()).collect();
    use Class::{Daily, Default, Monthly, Weekly, Yearly};
    assert_eq!(classes, [Default, Daily, Weekly, Weekly, Monthly, Monthly, Monthly, Monthly, Yearly, Yearly, Yearly]);
    assert!(classes.is_sorted());
    assert_eq!(policy.rules[1].qualifier, Qualifier::FirstOf(Period::Day));
}

/// Every example of docs/policies.md is a valid policy.
#[test]
fn policy_documentation_examples_are_valid() {
    let page = include_str!("../../../../docs/policies.md");
    let mut count = 0;
    for block in page.split("```toml\n").skip(1) {
        let text = block.split("```").next().expect("a block");
        parse(text).unwrap_or_else(|problem| panic!("{}\n{text}", problem.message));
        count += 1;
    }
    assert!(count >= 4, "{count} examples");
}
