//! Points on demand with an end of their own.

use vaultferry_proto::Reason;

use super::super::{PointFacts, Run, Step, Why, keep_until, life, plan};
use super::{policy_of, rules, time};

const DAILY: &str = "every = \"day\"\nat = [\"02:00\"]";

#[test]
fn a_date_is_kept_whole_in_the_policys_zone() {
    let seoul = policy_of("postgres", "Asia/Seoul", DAILY, &rules(&["Default;;P3M"]));
    let now = time("2026-11-21T16:30:00Z");
    for (text, until) in [
        ("2027-03-01", "2027-03-01T15:00:00Z"),
        ("2027-03-01T10:00", "2027-03-01T01:00:00Z"),
        ("2027-03-01T10:00:00Z", "2027-03-01T10:00:00Z"),
        ("2027-03-01T10:00:00+02:00", "2027-03-01T08:00:00Z"),
        // It is the 22nd in Seoul already: the first and the last day that are within the limits.
        ("2026-11-29", "2026-11-29T15:00:00Z"),
        ("2036-11-22", "2036-11-22T15:00:00Z"),
    ] {
        assert_eq!(keep_until(&seoul, text, now), Ok(time(until)), "{text}");
    }
    // Midnight does not exist there on that day: its end is the next day's first moment.
    let beirut = policy_of("postgres", "Asia/Beirut", DAILY, &rules(&["Default;;P3M"]));
    assert_eq!(keep_until(&beirut, "2027-03-27", now), Ok(time("2027-03-27T22:00:00Z")));
}

#[test]
fn limits_are_those_of_the_vault_store_and_are_named() {
    let policy = |source_type: &str| policy_of(source_type, "UTC", DAILY, &rules(&["Default;;P30D"]));
    let now = time("2026-11-21T12:00:00Z");
    for text in ["2026-11-27", "2026-11-28T11:59", "2036-11-22", "2036-11-21T12:00:01Z", "2001-01-01", "9999-12-31"] {
        let problem = keep_until(&policy("postgres"), text, now).expect_err(text);
        assert_eq!(problem.reason, Reason::InvalidRequest);
        for part in ["2026-11-28 (7 days from now)", "2036-11-21 (10 years)"] {
            assert!(problem.message.contains(part), "{text}: {}", problem.message);
        }
    }
    for text in ["2026-11-28", "2026-11-28T12:00", "2036-11-21", "2036-11-21T12:00:00Z"] {
        assert!(keep_until(&policy("postgres"), text, now).is_ok(), "{text}");
    }
    // V20.
    assert!(keep_until(&policy("vm"), "2125-11-21", now).is_ok());
    assert!(keep_until(&policy("vm"), "2125-11-22", now).is_err());
    for text in ["", "tomorrow", "P3M", "2026-13-01", "2026-11-28T25:00", "2027-01-01T"] {
        let problem = keep_until(&policy("postgres"), text, now).expect_err(text);
        assert!(problem.message.contains("neither a date nor a time"), "{text}: {}", problem.message);
    }
}

/// Neither the rule, nor its archive, nor another policy has a say.
#[test]
fn the_date_counts_instead_of_every_rule() {
    let made = time("2026-11-01T02:00:00Z");
    let until = time("2026-12-01T00:00:00Z");
    let chosen = PointFacts { keep_until: Some(until), ..PointFacts::on_demand("a", made, "") };
    let newest = PointFacts::scheduled("z", time("2026-12-31T02:00:00Z"), time("2026-12-31T02:00:00Z"), "Default");
    for rule in ["Default;;P7D", "Default;;P7D;P6M;immediate", "Default;;P10Y;P10Y;on-expiry"] {
        let policy = policy_of("postgres", "UTC", DAILY, &rules(&[rule]));
        assert_eq!(life(&policy, &chosen).end(), until, "{rule}");
        let points = [chosen.clone(), newest.clone()];
        let step = |now: &str| {
            let run = Run { now: time(now), clock: None, reference: None, protected: true };
            let action = plan(&policy, &points, &run).actions.swap_remove(0);
            assert_eq!(action.why, Why::KeepUntil, "{rule}");
            action.step
        };
        assert!(matches!(step("2026-11-30T23:59:59Z"), Step::Keep { .. }), "{rule}");
        assert_eq!(step("2026-12-01T00:00:00Z"), Step::Expire, "{rule}");
    }
}
