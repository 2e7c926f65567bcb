//! The words of Azure's policies: long names of days and months, and lists in JSON.

use jiff::civil::{Date, Time, Weekday};
use serde_json::Value;

use super::super::selector::{NTHS, month_name, weekday, weekday_name};
use super::super::{DaySelector, Nth};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The texts of a list; empty for anything else.
pub(super) fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A text, or an empty one.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list, or the one item that stands where a list should.
pub(super) fn items<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value.get(key) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().collect(),
        Some(item) => vec![item],
    }
}

/// `Sunday` as a day; letters of any case.
pub(super) fn long_day(name: &str) -> Option<Weekday> {
    let at = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name))?;
    weekday(&DAYS[at][..3])
}

/// A day as `Sunday`.
pub(super) fn day_name(day: Weekday) -> &'static str {
    let short = weekday_name(day);
    DAYS.iter().find(|name| name.starts_with(short)).copied().unwrap_or_default()
}

/// `January` as `Jan`.
pub(super) fn short_month(name: &str) -> Option<String> {
    let at = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))?;
    Some(MONTHS[at][..3].to_owned())
}

/// 1 as `January`.
pub(super) fn long_month(month: i8) -> &'static str {
    let short = month_name(month);
    MONTHS.iter().find(|name| name.starts_with(short)).copied().unwrap_or_default()
}

/// `First` to `Fourth` and `Last`.
pub(super) fn nth(name: &str) -> Option<Nth> {
    NTHS.iter().find(|(word, _)| word.eq_ignore_ascii_case(name)).map(|(_, nth)| *nth)
}

/// An [`Nth`] as Azure writes it.
pub(super) fn nth_name(nth: Nth) -> &'static str {
    match nth {
        Nth::First => "First",
        Nth::Second => "Second",
        Nth::Third => "Third",
        Nth::Fourth => "Fourth",
        Nth::Last => "Last",
    }
}

/// Days of the month as `{"date": 1, "isLast": false}`; Azure's own names differ in case.
pub(super) fn month_day(value: &Value) -> Option<DaySelector> {
    let last = value.get("isLast").or_else(|| value.get("is_last")).and_then(Value::as_bool);
    if last == Some(true) {
        return Some(DaySelector::LastDay);
    }
    let day = value.get("date").and_then(Value::as_i64)?;
    i8::try_from(day).ok().filter(|day| (1..=31).contains(day)).map(DaySelector::MonthDay)
}

/// All of those weeks' days: `first-Sun`, …
pub(super) fn weeks_and_days(weeks: &[&str], days: &[&str]) -> Option<Vec<DaySelector>> {
    let mut all = Vec::new();
    for week in weeks {
        for day in days {
            all.push(DaySelector::NthWeekday(nth(week)?, long_day(day)?));
        }
    }
    Some(all)
}

/// What `on` of a document says of these days.
pub(super) fn on(days: &[DaySelector]) -> Vec<toml::Value> {
    let value = |day: &DaySelector| match day {
        DaySelector::MonthDay(day) => toml::Value::Integer(i64::from(*day)),
        other => toml::Value::String(other.to_string()),
    };
    days.iter().map(value).collect()
}

/// The same for a rule: one day stands alone.
pub(super) fn on_rule(days: &[DaySelector]) -> toml::Value {
    let mut values = on(days);
    if values.len() == 1 { values.remove(0) } else { toml::Value::Array(values) }
}

/// Weekdays and weeks whose every combination is meant; `None` when some are not.
pub(super) fn product(days: &[DaySelector]) -> Option<(Vec<&'static str>, Vec<&'static str>)> {
    let (mut weeks, mut weekdays) = (Vec::new(), Vec::new());
    for day in days {
        let DaySelector::NthWeekday(nth, weekday) = day else { return None };
        if !weeks.contains(nth) {
            weeks.push(*nth);
        }
        if !weekdays.contains(weekday) {
            weekdays.push(*weekday);
        }
    }
    let all = weeks.len() * weekdays.len() == days.len();
    all.then(|| (weekdays.into_iter().map(day_name).collect(), weeks.into_iter().map(nth_name).collect()))
}

/// The wall-clock time in a text such as `2018-01-24T10:00:00Z`, whatever its offset says, or in `10:00`.
pub(super) fn wall_time(text: &str) -> Option<Time> {
    if let Some(time) = super::super::start::time(text) {
        return Some(time);
    }
    let clock = text.split_once('T')?.1.get(..5)?;
    super::super::start::time(clock)
}

/// The date in such a text.
pub(super) fn wall_date(text: &str) -> Option<Date> {
    text.get(..10)?.parse().ok()
}
