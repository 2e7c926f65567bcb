//! What a policy, or a document that is not kept, would leave in the vault.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::{Problem, Reason};

use super::super::Api;
use crate::expiry;
use crate::policy::{self, Document, PointFacts, Timeline};

impl Api {
    pub(super) async fn simulated(&self, request: wire::SimulatePolicyRequest) -> Result<Timeline, Problem> {
        let document = match (request.policy.is_empty(), request.document.is_empty()) {
            (false, true) => policy::parse(&self.find_policy(&request.policy).await?.document)?,
            (true, false) => policy::parse(&request.document)?,
            _ => return Err(invalid("give policy or document, and not both")),
        };
        let now = vaultferry_vault::clock::now();
        let from = from(&request.from, &document.time_zone, now)?;
        let span = span(&request.span)?;
        let points = match request.instance.is_empty() {
            true => None,
            false => Some(self.points_for(&document, &request.instance).await?),
        };
        // A hundred thousand points take a second, which is too long for one of the few threads that answer everybody.
        let run = move || run(&document, from, span, points.as_deref(), now);
        let ran = tokio::task::spawn_blocking(run).await;
        ran.map_err(|error| Problem::new(Reason::Internal, format!("the simulation broke: {error}")))?
    }

    /// The points that the instance has now, under whatever policy they were made.
    async fn points_for(&self, document: &Document, instance: &str) -> Result<Vec<PointFacts>, Problem> {
        let instance = self.find_instance(instance).await?;
        if instance.source_type != document.source_type {
            let message = format!(
                "the policy {} is for {}, and {} is of type {}",
                document.name, document.source_type, instance.name, instance.source_type
            );
            return Err(Problem::new(Reason::PolicySourceTypeMismatch, message));
        }
        expiry::facts(&*self.catalog, &instance.id).await
    }
}

/// From `from` over `span`; with the points that exist the backups go on from `now`, as real ones do.
fn run(
    document: &Document,
    from: Timestamp,
    span: Span,
    points: Option<&[PointFacts]>,
    now: Timestamp,
) -> Result<Timeline, Problem> {
    let Some(points) = points else { return policy::simulate(document, from, span, &[]) };
    let from = from.max(now);
    let to = from.to_zoned(document.time_zone.clone()).checked_add(span);
    let to = to.map_err(|_| invalid("the simulation would end after the year 9999"))?.timestamp();
    if to <= from {
        return Err(no_length());
    }
    let whole = Span::try_from(to.duration_since(now)).map_err(|error| invalid(error.to_string()))?;
    let timeline = policy::simulate(document, now, whole, points)?;
    Ok(Timeline { from, to, ..timeline })
}

/// An ISO 8601 duration, or jiff's "3y" or "18 months".
fn span(text: &str) -> Result<Span, Problem> {
    let span: Span = text.parse().map_err(|_| {
        invalid(format!("{text:?} is not a time to simulate"))
            .with_fix("Write an ISO 8601 duration such as P3Y, or 3y, or 18 months.")
    })?;
    if span.is_positive() { Ok(span) } else { Err(no_length()) }
}

fn no_length() -> Problem {
    invalid("the simulation must have a length").with_fix("Write how long, such as P3Y or 3y.")
}

/// A time with an offset, or a date or a time on the clocks of the policy's zone.
fn from(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Timestamp, Problem> {
    if text.is_empty() {
        return Ok(now);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    // "2026-11-20T22:00" reads as a date too; only a text without a time part means a day.
    let clock: Option<DateTime> = match text.parse::<Date>() {
        Ok(date) if !text.contains(['T', 't', ' ']) => Some(date.to_datetime(Time::midnight())),
        _ => text.parse().ok(),
    };
    let time = clock.and_then(|clock| zone.to_ambiguous_timestamp(clock).compatible().ok());
    time.ok_or_else(|| {
        invalid(format!("{text:?} is not a time to begin at"))
            .with_fix("Write a date (2026-11-20), or a time (2026-11-20T22:00, 2026-11-20T13:00:00Z).")
    })
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_beginning_is_read_on_the_policys_clocks() {
        let zone = TimeZone::get("Asia/Seoul").expect("a zone");
        let now = time("2026-11-21T05:00:00Z");
        for (text, expected) in [
            ("", "2026-11-21T05:00:00Z"),
            ("2027-01-01", "2026-12-31T15:00:00Z"),
            ("2027-01-01T02:00", "2026-12-31T17:00:00Z"),
            ("2027-01-01T02:00:00Z", "2027-01-01T02:00:00Z"),
            ("2027-01-01T02:00:00+01:00", "2027-01-01T01:00:00Z"),
        ] {
            assert_eq!(from(text, &zone, now), Ok(time(expected)), "{text}");
        }
        for bad in ["tomorrow", "2027-13-01", "2027-01-01T25:00"] {
            assert_eq!(from(bad, &zone, now).expect_err(bad).reason, Reason::InvalidRequest);
        }
    }

    #[test]
    fn a_span_is_iso_or_friendly_and_has_a_length() {
        for text in ["P3Y", "3y", "36 months", "3 years"] {
            assert!(span(text).is_ok(), "{text}");
        }
        for bad in ["", "P", "P0D", "-P3Y", "three", "3"] {
            assert_eq!(span(bad).expect_err(bad).reason, Reason::InvalidRequest);
        }
    }

    /// Points that exist are followed from now on; what is made until `from` is there then.
    #[test]
    fn with_points_the_backups_go_on_from_now() {
        let text = "name = \"p\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\nevery = \"day\"\nat = [\"02:00\"]\n\
                    [[rule]]\nname = \"Default\"\nvault = \"P7D\"\n";
        let document = policy::parse(text).expect("valid");
        let (now, span) = (time("2026-11-21T05:00:00Z"), Span::new().days(10));
        let made = |from: &str, points: Option<&[PointFacts]>| {
            let timeline = run(&document, time(from), span, points, now).expect("a timeline");
            assert_eq!(timeline.to, timeline.from + jiff::SignedDuration::from_hours(240));
            (timeline.from, timeline.points.first().expect("points").time, timeline.points.len())
        };
        let later = "2026-12-01T00:00:00Z";
        assert_eq!(made(later, None), (time(later), time("2026-12-01T02:00:00Z"), 10));
        assert_eq!(made(later, Some(&[])), (time(later), time("2026-11-22T02:00:00Z"), 19));
        assert_eq!(made("2026-11-01T00:00:00Z", Some(&[])), (now, time("2026-11-22T02:00:00Z"), 10));
        assert!(run(&document, now, Span::new().years(9000), Some(&[]), now).is_err());
    }
}
