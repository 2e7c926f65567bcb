//! The end of a point that is made on demand and kept until a date instead of by a rule (P68, V59, D4).

use jiff::civil::{Date, DateTime};
use jiff::{Span, Timestamp};
use vaultferry_proto::{Problem, Reason};

use super::{Document, Store, duration};

/// Reads until when a point that is made at `now` is kept. In the policy's zone: a date is the last day, which is kept whole; a time without
/// an offset is that zone's. `InvalidRequest` for another text, and for an end outside of the limits of the vault store (P51, V20), which
/// the message names.
pub fn keep_until(document: &Document, text: &str, now: Timestamp) -> Result<Timestamp, Problem> {
    let refused = |message: String, fix: &str| Problem::new(Reason::InvalidRequest, message).with_fix(fix);
    let unread = || {
        let message = format!("{text:?} is neither a date nor a time");
        refused(message, "Write a date (2027-11-21) or a time (2027-11-21T10:00, 2027-11-21T01:00:00Z).")
    };
    let limits = duration::limits(Store::Vault, &document.source_type);
    let now = now.to_zoned(document.time_zone.clone());
    let edge = |span: Span| now.checked_add(span).map_err(|error| Problem::new(Reason::Internal, error.to_string()));
    let (least, most) = (edge(limits.min)?, edge(limits.max)?);
    let (until, is_within) = match last_day(text) {
        Some(day) => {
            let end = day.tomorrow().and_then(|day| day.to_zoned(document.time_zone.clone()));
            (end.ok().map(|end| end.timestamp()), least.date() <= day && day <= most.date())
        }
        None => {
            let end = instant(document, text).ok_or_else(unread)?;
            (Some(end), least.timestamp() <= end && end <= most.timestamp())
        }
    };
    // A day without an end in the calendar is beyond every limit.
    if let Some(until) = until.filter(|_| is_within) {
        return Ok(until);
    }
    let message = format!(
        "{text:?} must be between {} ({} from now) and {} ({}) in the vault store",
        least.date(),
        limits.min_text,
        most.date(),
        limits.max_text
    );
    Err(refused(message, "Choose another date."))
}

/// A text without a time part.
fn last_day(text: &str) -> Option<Date> {
    // A time reads as a date, too.
    text.parse::<Date>().ok().filter(|_| !text.contains(['T', 't', ' ']))
}

fn instant(document: &Document, text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().or_else(|| {
        let wall_clock: DateTime = text.parse().ok()?;
        wall_clock.to_zoned(document.time_zone.clone()).ok().map(|zoned| zoned.timestamp())
    })
}
