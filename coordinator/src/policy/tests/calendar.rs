//! Slots: what the documents say of them, case by case.

use super::super::{DaySelector, Document};
use super::{policy, time};

fn slots(policy: &Document, from: &str, count: usize) -> Vec<String> {
    let mut time = time(from);
    (0..count)
        .map(|_| {
            let next = policy.next_slot(time).expect("a slot");
            assert_eq!(policy.last_slot(time, next), Some(next), "both directions agree");
            time = next;
            next.to_zoned(policy.time_zone.clone()).strftime("%F %H:%M %z").to_string()
        })
        .collect()
}

#[test]
fn a_weekly_schedule_runs_on_its_days() {
    let policy = policy("Asia/Seoul", "every = \"week\"\non = [\"Sun\", \"Wed\"]\nat = [\"02:00\"]");
    let expected = ["2026-11-22 02:00 +0900", "2026-11-25 02:00 +0900", "2026-11-29 02:00 +0900"];
    assert_eq!(slots(&policy, "2026-11-21T00:00:00Z", 3), expected);
}

#[test]
fn a_gap_moves_a_slot_and_an_overlap_does_not_double_it() {
    let daily = policy("America/New_York", "every = \"day\"\nat = [\"02:30\"]");
    // 14 March 2027 has no 02:30, 7 November 2027 has one; its 01:30 comes twice.
    let spring = ["2027-03-13 02:30 -0500", "2027-03-14 03:30 -0400", "2027-03-15 02:30 -0400"];
    assert_eq!(slots(&daily, "2027-03-13T00:00:00Z", 3), spring);
    let daily = policy("America/New_York", "every = \"day\"\nat = [\"01:30\"]");
    let autumn = ["2027-11-06 01:30 -0400", "2027-11-07 01:30 -0400", "2027-11-08 01:30 -0500"];
    assert_eq!(slots(&daily, "2027-11-06T00:00:00Z", 3), autumn);
}

#[test]
fn two_times_that_a_gap_makes_one_run_once() {
    let policy = policy("America/New_York", "every = \"day\"\nat = [\"02:30\", \"03:30\"]");
    let expected = ["2027-03-14 03:30 -0400", "2027-03-15 02:30 -0400", "2027-03-15 03:30 -0400"];
    assert_eq!(slots(&policy, "2027-03-14T05:00:00Z", 3), expected);
}

#[test]
fn a_slot_that_a_gap_moves_past_midnight_hides_no_slot_of_the_next_day() {
    // In Greenland the clock goes from 22:59 (Saturday) to 00:00.
    let policy = policy("America/Nuuk", "every = \"day\"\nat = [\"00:15\", \"23:30\"]");
    let expected =
        ["2027-03-27 00:15 -0200", "2027-03-28 00:15 -0100", "2027-03-28 00:30 -0100", "2027-03-28 23:30 -0100"];
    assert_eq!(slots(&policy, "2027-03-27T01:30:00Z", 4), expected);
}

#[test]
fn an_hourly_schedule_counts_hours_and_not_names() {
    let policy = policy("America/New_York", "every = \"hour\"\nat = [\":30\"]");
    // The day of 23 hours, and the day of 25.
    let spring = ["2027-03-14 01:30 -0500", "2027-03-14 03:30 -0400", "2027-03-14 04:30 -0400"];
    assert_eq!(slots(&policy, "2027-03-14T06:00:00Z", 3), spring);
    let autumn = ["2027-11-07 01:30 -0400", "2027-11-07 01:30 -0500", "2027-11-07 02:30 -0500"];
    assert_eq!(slots(&policy, "2027-11-07T05:00:00Z", 3), autumn);
}

#[test]
fn a_day_that_does_not_exist_is_not_run_twice() {
    // Samoa had no 30 December 2011.
    let policy = policy("Pacific/Apia", "every = \"day\"\nat = [\"02:00\"]");
    let expected = ["2011-12-29 02:00 -1000", "2011-12-31 02:00 +1400", "2012-01-01 02:00 +1400"];
    assert_eq!(slots(&policy, "2011-12-29T00:00:00Z", 3), expected);
    // Its Friday backup ran on Saturday.
    let weekly = super::policy("Pacific/Apia", "every = \"week\"\non = [\"Fri\"]\nat = [\"02:00\"]");
    let expected = ["2011-12-23 02:00 -1000", "2011-12-31 02:00 +1400", "2012-01-06 02:00 +1400"];
    assert_eq!(slots(&weekly, "2011-12-22T00:00:00Z", 3), expected);
}

#[test]
fn a_monthly_schedule_runs_on_its_days() {
    let on = |days: &str| policy("UTC", &format!("every = \"month\"\non = [{days}]\nat = [\"02:00\"]"));
    let days = |days: &str, count: usize| -> Vec<String> {
        slots(&on(days), "2027-01-01T12:00:00Z", count).into_iter().map(|slot| slot[..10].to_owned()).collect()
    };
    assert_eq!(days("1", 2), ["2027-02-01", "2027-03-01"]);
    // A month without the day runs on its last, once.
    assert_eq!(days("31", 4), ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]);
    assert_eq!(days("30, 31", 4), ["2027-01-30", "2027-01-31", "2027-02-28", "2027-03-30"]);
    assert_eq!(days("\"last\"", 2), ["2027-01-31", "2027-02-28"]);
    assert_eq!(days("\"first-Sun\"", 3), ["2027-01-03", "2027-02-07", "2027-03-07"]);
    assert_eq!(days("\"last-Sun\", \"second-Tue\"", 4), ["2027-01-12", "2027-01-31", "2027-02-09", "2027-02-28"]);
    assert_eq!(days("\"fourth-Thu\", \"third-Wed\"", 2), ["2027-01-20", "2027-01-28"]);
}

#[test]
fn selectors_are_read_as_they_are_written() {
    for text in ["Sun", "Sat", "1", "31", "last", "first-Mon", "second-Tue", "third-Wed", "fourth-Thu", "last-Fri"] {
        assert_eq!(text.parse::<DaySelector>().expect(text).to_string(), text);
    }
    for text in ["", "sun", "Sunday", "0", "32", "-1", "+1", "01", "fifth-Sun", "first-", "first", "last-Sonntag"] {
        assert!(text.parse::<DaySelector>().is_err(), "{text:?}");
    }
}

#[test]
fn a_missed_slot_is_the_last_one_before_now() {
    let policy = policy("UTC", "every = \"day\"\nat = [\"02:00\", \"14:00\"]");
    let last = policy.last_slot(time("2026-11-01T00:00:00Z"), time("2026-11-21T12:00:00Z"));
    assert_eq!(last, Some(time("2026-11-21T02:00:00Z")));
    assert_eq!(policy.last_slot(time("2026-11-21T02:00:00Z"), time("2026-11-21T12:00:00Z")), None);
    assert_eq!(policy.last_slot(time("2026-11-22T00:00:00Z"), time("2026-11-21T00:00:00Z")), None, "a clock went back");
}

#[test]
fn the_ends_of_time_are_no_panic() {
    let policy = policy("Asia/Seoul", "every = \"month\"\non = [1]\nat = [\"02:00\"]");
    assert_eq!(policy.next_slot(jiff::Timestamp::MAX), None);
    assert_eq!(policy.last_slot(jiff::Timestamp::MIN, jiff::Timestamp::MIN), None);
    assert!(policy.next_slot(jiff::Timestamp::MIN).is_none_or(|slot| slot > jiff::Timestamp::MIN));
}
