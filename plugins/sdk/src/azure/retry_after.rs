//! When a service of Azure wants to be asked again: `Retry-After`, in seconds or as a date (RFC 9110).

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::HeaderMap;

/// A longer wait is beyond every deadline of whoever asks, and one without bounds is beyond what the clock can count.
const LONGEST: Duration = Duration::from_secs(3600);

/// The wait that the answer asks for, an hour at most; `None`: it names none that can be read. A date that is over is no wait.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?;
    parse(text.trim(), vaultferry_vault::clock::now())
}

fn parse(text: &str, now: Timestamp) -> Option<Duration> {
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::try_from(until.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_both_forms_and_has_a_bound() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        for (text, seconds) in [
            ("17", Some(17)),
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("10000000000000000000", Some(3600)),
            ("Sun, 01 Mar 2026 12:00:42 GMT", Some(42)),
            ("Sun, 01 Mar 2026 11:00:00 GMT", Some(0)),
            ("Mon, 01 Mar 2027 12:00:00 GMT", Some(3600)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
