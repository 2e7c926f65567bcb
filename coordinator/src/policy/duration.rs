//! ISO 8601 durations of a policy, and their limits.

use jiff::civil::Date;
use jiff::{SignedDuration, Span, ToSpan as _};

use super::Store;

/// Limits of a store: P51, P52 and, for virtual machines, V20 (D2). The words are the ones that messages say.
pub(super) struct Limits {
    pub(super) min: Span,
    pub(super) min_text: &'static str,
    pub(super) max: Span,
    pub(super) max_text: &'static str,
}

pub(super) fn limits(store: Store, source_type: &str) -> Limits {
    let (min, min_text) = match store {
        Store::Vault => (7.days(), "7 days"),
        Store::Archive => (6.months(), "6 months"),
    };
    let (max, max_text) = if source_type == "vm" { (99.years(), "99 years") } else { (10.years(), "10 years") };
    Limits { min, min_text, max, max_text }
}

/// Reads an ISO 8601 duration of calendar units, and checks the limits of that store (P51, P52, V20).
pub(super) fn retention(text: &str, store: Store, source_type: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|_| format!("{text:?} is not an ISO 8601 duration such as P3M"))?;
    let days = (span.get_years(), span.get_months(), span.get_weeks(), span.get_days());
    if !text.starts_with('P') || text.contains('T') || days == (0, 0, 0, 0) || span.is_negative() {
        return Err(format!("{text:?} must be made of years, months, weeks or days, such as P3M"));
    }
    let limits = limits(store, source_type);
    // The limits are compared on a calendar, from a date without leap days nearby.
    let start = Date::constant(2001, 1, 1);
    let end = start.checked_add(span).map_err(|_| format!("{text:?} is too long; at most {}", limits.max_text))?;
    let limit = |span: Span| start.checked_add(span).expect("limits are short");
    if end < limit(limits.min) || end > limit(limits.max) {
        let store = match store {
            Store::Vault => "vault",
            Store::Archive => "archive",
        };
        return Err(format!(
            "{text:?} must be between {} and {} in the {store} store",
            limits.min_text, limits.max_text
        ));
    }
    Ok(span)
}

/// True when `longer` is longer than `shorter` on a calendar. Both are within [`retention`]'s limits.
pub(super) fn is_longer(longer: Span, shorter: Span) -> bool {
    let start = Date::constant(2001, 1, 1);
    let end = |span: Span| start.checked_add(span).unwrap_or(Date::MAX);
    end(longer) > end(shorter)
}

/// Reads an ISO 8601 duration of hours, minutes and seconds, such as `PT30M`, up to `max`; `P1D` counts as 24 hours.
pub(super) fn short(text: &str, max: SignedDuration) -> Result<SignedDuration, String> {
    let fault = || format!("{text:?} must be a duration such as PT30M, at most {max:#}");
    let span: Span = text.parse().map_err(|_| fault())?;
    let calendar = (span.get_years(), span.get_months(), span.get_weeks());
    if !text.starts_with('P') || calendar != (0, 0, 0) || span.is_negative() {
        return Err(fault());
    }
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| fault())?;
    if duration > max { Err(fault()) } else { Ok(duration) }
}
