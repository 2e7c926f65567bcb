//! Azure's policies: samples after the published schemas, in and out, and round trips.

use vaultferry_proto::Reason;

use super::super::{Document, azure};
use super::simulation::golden;
use super::{policy_of, rules, time};

const NOW: &str = "2026-11-21T00:00:00Z";

/// What an import says: the document and its notes.
fn imported(json: &str) -> (Document, String) {
    let imported = azure::import(json, None).unwrap_or_else(|problem| panic!("{}", problem.message));
    let notes: String = imported.notes.iter().map(|note| format!("# {note}\n")).collect();
    (imported.document, format!("{notes}{}", imported.text))
}

fn exported(document: &Document) -> String {
    let exported = azure::export(document, time(NOW)).unwrap_or_else(|problem| panic!("{}", problem.message));
    let notes: String = exported.notes.iter().map(|note| format!("// {note}\n")).collect();
    format!("{notes}{}\n", serde_json::to_string_pretty(&exported.json).expect("a text"))
}

#[test]
fn azure_postgresql_policies_are_read() {
    let (document, text) = imported(include_str!("azure_samples/postgres.json"));
    golden("azure-postgres.toml", &text);
    assert_eq!(document.name, "pg-weekly");
    // 17:00 UTC on Tuesday is 02:00 on Wednesday in Seoul.
    assert_eq!(document.schedule.on_texts(), ["Sun", "Wed"]);
    golden("azure-postgres-back.json", &exported(&document));
}

#[test]
fn what_azure_can_and_this_cannot_is_said() {
    let (_, text) = imported(include_str!("azure_samples/disks.json"));
    golden("azure-disks.toml", &text);
    for part in
        ["Incremental", "operational store", "CustomCopyOption P5D", "AllBackup", "Ghost", "Untagged", "scheduleTimes"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn azure_vm_policies_are_read() {
    let (document, text) = imported(include_str!("azure_samples/vm-weekly.json"));
    golden("azure-vm-weekly.toml", &text);
    golden("azure-vm-weekly-back.json", &exported(&document));
    let (document, text) = imported(include_str!("azure_samples/vm-hourly.json"));
    golden("azure-vm-hourly.toml", &text);
    assert_eq!(document.schedule.at_texts(), ["08:00", "12:00", "16:00", "20:00"]);
    golden("azure-vm-hourly-back.json", &exported(&document));
}

/// Out and in again: the same policy, where Azure can say all of it.
#[test]
fn azure_round_trips() {
    let postgres = rules(&[
        "Default;;P3M",
        "Weekly;on = [\"Sun\", \"Wed\"];P26W",
        "Month-end;on = [\"last\", 15];P1Y",
        "Monthly;first_of = \"month\";P6M;P9Y;on-expiry",
        "Quarterly;first_of = \"month\"\nmonths = [\"Mar\", \"Jun\", \"Sep\", \"Dec\"];P2Y",
        "Yearly;on = \"first-Sun\"\nmonths = [\"Jan\"];P1Y;P10Y;immediate",
    ]);
    let vm = rules(&[
        "Default;;P30D",
        "Weekly;on = \"Sun\";P104W",
        "Monthly;on = \"last-Sun\";P120M",
        "Yearly;on = \"first-Sun\"\nmonths = [\"Jan\"];P99Y",
    ]);
    let cases = [
        ("postgres", "every = \"week\"\non = [\"Sun\", \"Wed\"]\nat = [\"02:00\"]", &postgres),
        ("postgres", "every = \"day\"\nat = [\"02:30\"]", &postgres),
        ("vm", "every = \"day\"\nat = [\"23:00\"]", &vm),
        ("vm", "every = \"day\"\nat = [\"08:00\", \"14:00\", \"20:00\"]", &vm),
    ];
    for (source, schedule, rules) in cases {
        let document = policy_of(source, "America/New_York", schedule, rules);
        let out = azure::export(&document, time(NOW)).expect("exported");
        let back = azure::import(&out.json.to_string(), None).expect("imported");
        let left = |notes: &[String]| notes.iter().filter(|note| !note.contains("becomes these times")).count();
        assert_eq!(left(&back.notes), 0, "{:?}", back.notes);
        let back = back.document;
        assert_eq!(back.schedule, document.schedule);
        assert_eq!((&back.time_zone_name, &back.source_type), (&document.time_zone_name, &document.source_type));
        let facts = |document: &Document| {
            let mut facts: Vec<String> = document
                .rules
                .iter()
                .map(|rule| {
                    let archive = rule.archive.as_ref().map(|archive| (&archive.text, archive.tiering));
                    format!("{} {:?} {:?} {} {archive:?}", rule.name, rule.qualifier, rule.months, rule.vault_text)
                })
                .collect();
            facts.sort();
            facts
        };
        assert_eq!(facts(&back), facts(&document));
    }
}

#[test]
fn what_this_can_and_azure_cannot_is_said() {
    let rules = rules(&[
        "Default;;P3M",
        "Weekly;first_of = \"week\";P26W",
        "Ends;on = [\"last-Fri\", 30];P1Y",
        "Daily;first_of = \"day\";P6W",
    ]);
    let schedule = "every = \"day\"\nat = [\"02:00\", \"03:30\"]\njitter = \"PT10M\"\ncatch_up = \"skip\"\nallowed = [\"01:00-05:00\"]";
    let notes = |source: &str| {
        azure::export(&policy_of(source, "Europe/Vienna", schedule, &rules), time(NOW))
            .expect("exported")
            .notes
            .join("\n")
    };
    for part in [
        "jitter",
        "allowed",
        "catch_up",
        "Europe/Vienna becomes W. Europe Standard Time",
        "one backup of a PostgreSQL database a day",
        "on last-Fri cannot",
    ] {
        assert!(notes("postgres").contains(part), "{part} in {}", notes("postgres"));
    }
    for part in [
        "only the first is written",
        "rule Default: its time becomes 92 Days",
        "rule Daily is left out",
        "first good backup of the week becomes Sunday's",
        "on 30 cannot",
    ] {
        assert!(notes("vm").contains(part), "{part} in {}", notes("vm"));
    }
    let monthly = policy_of(
        "vm",
        "UTC",
        "every = \"month\"\non = [1]\nat = [\"02:00\"]",
        "[[rule]]\nname = \"Default\"\nvault = \"P3M\"",
    );
    assert_eq!(azure::export(&monthly, time(NOW)).expect_err("refused").reason, Reason::InvalidPolicy);
    let apim =
        policy_of("apim", "UTC", "every = \"day\"\nat = [\"02:00\"]", "[[rule]]\nname = \"Default\"\nvault = \"P30D\"");
    assert!(azure::export(&apim, time(NOW)).expect_err("refused").message.contains("apim"));
}

#[test]
fn what_is_no_policy_is_refused_and_nothing_panics() {
    let sample = include_str!("azure_samples/postgres.json");
    let refused = |json: &str| {
        let problem = azure::import(json, None).expect_err("refused");
        assert_eq!(problem.reason, Reason::InvalidPolicy);
        problem.message
    };
    assert!(refused("{").contains("not JSON"));
    assert!(refused("{}").contains("neither policyRules"));
    assert!(refused("[]").contains("neither policyRules"));
    assert!(refused(&sample.replace("servers/databases", "x")).contains("not supported"));
    assert!(refused(&sample.replace("Korea Standard Time", "Mars Standard Time")).contains("Mars Standard Time"));
    assert!(refused(&sample.replace("/P1W\", ", "/P1D\", ")).contains("different periods"));
    assert!(refused(&sample.replace("P24M", "P24Y")).contains("6 months and 10 years in the archive store"), "P52");
    assert!(
        refused(&sample.replace("ScheduleBasedTriggerContext", "AdhocBasedTriggerContext")).contains("no schedule")
    );
    // Every piece of a sample in the place of every other: an error or a policy, but no panic.
    for sample in [sample, include_str!("azure_samples/vm-hourly.json"), include_str!("azure_samples/disks.json")] {
        let strings: Vec<&str> = sample.split('"').skip(1).step_by(2).collect();
        for (at, string) in strings.iter().enumerate() {
            for other in [
                "",
                "P1W",
                "R/x/P1D",
                "R/2026-11-22T02:00:00Z/P1M",
                "-1",
                strings[(at + 7) % strings.len()],
                "한글한글한글한글",
            ] {
                let _ = azure::import(&sample.replace(&format!("\"{string}\""), &format!("\"{other}\"")), None);
            }
        }
    }
}

#[test]
fn a_name_can_be_given() {
    let sample = include_str!("azure_samples/vm-weekly.json");
    assert_eq!(azure::import(sample, Some("mine")).expect("imported").document.name, "mine");
}
