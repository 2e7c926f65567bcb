//! Values of flags that are more than text.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::config::Endpoint;

pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse()
}

/// "5%", "5" or "0.5": more than 0, at most 100.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').trim_end().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("write a part of the data such as 5%, more than 0% and at most 100%".to_owned()),
    }
}

/// A time to simulate: "P3Y", "3y", "18 months". The agent reads it again; here it is found wrong before it is asked.
pub(super) fn span(text: &str) -> Result<String, String> {
    match text.parse::<jiff::Span>() {
        Ok(span) if span.is_positive() => Ok(text.to_owned()),
        _ => Err("write how long, such as 3y, 18mo or P3Y".to_owned()),
    }
}

/// A date, a wall-clock time or an instant. Whose clock it is on only the agent knows, so it stays a text.
pub(super) fn beginning(text: &str) -> Result<String, String> {
    from_time(text).map(|_| text.to_owned())
}

/// A date means its first moment in the local zone.
pub(super) fn from_time(text: &str) -> Result<Timestamp, String> {
    time(text, Ok)
}

/// A date means its end in the local zone, so that `--from D --to D` is the whole day.
pub(super) fn to_time(text: &str) -> Result<Timestamp, String> {
    time(text, |date| date.tomorrow())
}

fn time(text: &str, date_edge: fn(Date) -> Result<Date, jiff::Error>) -> Result<Timestamp, String> {
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp);
    }
    let wall_clock = match text.parse::<Date>() {
        // "2026-11-20T22:00" reads as a date too; only a text without a time part means a day.
        Ok(date) if !text.contains(['T', 't', ' ']) => {
            date_edge(date).map(|date| date.to_datetime(jiff::civil::Time::midnight()))
        }
        _ => text.parse::<DateTime>(),
    };
    wall_clock
        .and_then(|wall_clock| wall_clock.to_zoned(TimeZone::system()))
        .map(|zoned| zoned.timestamp())
        .map_err(|_| "write a date (2026-11-20), or a time (2026-11-20T22:00, 2026-11-20T13:00:00Z)".to_owned())
}
