//! Which points would exist, when, in which store and by which rule, if every backup succeeded from now on.
//!
//! Invariants:
//! - It is the same logic that runs: slots of the calendar, [`Tagger`] for the rules, [`life`] for the times, and the last point stays
//!   until the next one is there. The limits of a single run of retention are left out: they delay, and do not decide.
//! - At most [`MAX_POINTS`] points, so that a mistake in a span is an error and not a long wait.

use jiff::{Span, Timestamp};
use serde::Serialize;
use vaultferry_proto::{Problem, Reason};

use super::{Document, PointFacts, Store, Tagger, life};

mod text;

/// V20's scheme makes 36,160 points in 99 years; an hourly schedule fills 11 years.
pub const MAX_POINTS: usize = 100_000;

/// What would be there over a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The policy's name.
    pub policy: String,
    /// Its zone, in which the texts are written.
    pub time_zone: String,
    /// The beginning of the simulation.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// The rules' names, the highest priority first.
    pub rules: Vec<String>,
    /// By time: those that were there at the beginning, then those that were made.
    pub points: Vec<TimelinePoint>,
}

/// A point of a simulation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimelinePoint {
    /// Its id, if it was there at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it was made.
    pub time: Timestamp,
    /// The rule that keeps it.
    pub rule: String,
    /// Where it is and until when, by time.
    pub stays: Vec<Stay>,
}

/// A point's time in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stay {
    /// The store.
    pub store: Store,
    /// From then on.
    pub from: Timestamp,
    /// Up to, but not with, then; left out: as long as it is the last good point, or is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Stay {
    /// True while it lasts.
    pub fn covers(&self, time: Timestamp) -> bool {
        self.from <= time && self.until.is_none_or(|until| time < until)
    }
}

impl TimelinePoint {
    /// True when it is in that store at that time.
    pub fn is_in(&self, store: Store, time: Timestamp) -> bool {
        self.stays.iter().any(|stay| stay.store == store && stay.covers(time))
    }

    /// True when it is there at that time.
    pub fn exists(&self, time: Timestamp) -> bool {
        self.stays.iter().any(|stay| stay.covers(time))
    }
}

impl Timeline {
    /// The points that are there at that time.
    pub fn at(&self, time: Timestamp) -> impl Iterator<Item = &TimelinePoint> {
        self.points.iter().filter(move |point| point.exists(time))
    }
}

/// Runs the policy from `from` over `span`, beginning with these points (in the order in which they were committed; soft-deleted ones
/// are left out). `InvalidRequest` when the span is not above zero, or makes more than 100,000 points.
pub fn simulate(
    document: &Document,
    from: Timestamp,
    span: Span,
    existing: &[PointFacts],
) -> Result<Timeline, Problem> {
    let refused = |message: String| Problem::new(Reason::InvalidRequest, message);
    let to = from.to_zoned(document.time_zone.clone()).checked_add(span).map(|end| end.timestamp());
    let to = to.map_err(|_| refused("the simulation would end after the year 9999".to_owned()))?;
    if to <= from {
        return Err(refused("the simulation must have a length, such as P3Y".to_owned()));
    }
    let mut points: Vec<PointFacts> = existing.iter().filter(|point| point.purge_time.is_none()).cloned().collect();
    let known = points.len();
    let mut tagger = Tagger::new(document, existing);
    for slot in document.slots(from).take_while(|slot| *slot <= to) {
        if points.len() >= MAX_POINTS {
            let message = format!("the simulation has more than {MAX_POINTS} points; take a shorter span");
            return Err(refused(message));
        }
        points.push(PointFacts::scheduled("", slot, slot, &tagger.rule_for(slot).name));
        tagger.add(slot);
    }
    let mut rules: Vec<_> = document.rules.iter().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.class()));
    let mut timeline = Timeline {
        policy: document.name.clone(),
        time_zone: document.time_zone_name.clone(),
        from,
        to,
        rules: rules.into_iter().map(|rule| rule.name.clone()).collect(),
        points: Vec::with_capacity(points.len()),
    };
    // When the next good point takes the place of the last one; API Management has no such guard (A6).
    let mut next_good: Option<Option<Timestamp>> = (document.source_type != "apim").then_some(None);
    for (at, point) in points.iter().enumerate().rev() {
        let stays = stays(document, point, next_good.filter(|_| point.is_good()));
        if point.is_good() && next_good.is_some() {
            next_good = Some(Some(point.time));
        }
        let id = (at < known).then(|| point.id.clone());
        let rule = document.rule_or_default(&point.rule).name.clone();
        timeline.points.push(TimelinePoint { id, time: point.time, rule, stays });
    }
    timeline.points.reverse();
    timeline.points.sort_by_key(|point| point.time);
    Ok(timeline)
}

/// Where a point is. `replaced`: it is a good point and stays until that time at least (`Some(None)`: for ever).
fn stays(document: &Document, point: &PointFacts, replaced: Option<Option<Timestamp>>) -> Vec<Stay> {
    let life = life(document, point);
    let least = |until: Timestamp| match replaced {
        _ if point.held => None,
        Some(next) => next.map(|next| until.max(next)),
        None => Some(until),
    };
    let immutable = |until: Timestamp| point.immutable_until.map_or(until, |date| until.max(date));
    let mut stays = Vec::new();
    // A hold, or being the last, keeps a point in its last store.
    let vault_until = Some(immutable(life.vault_until)).filter(|_| life.archive.is_some() && !point.held);
    if point.stores.vault {
        let until = vault_until.or_else(|| least(immutable(life.vault_until)));
        stays.push(Stay { store: Store::Vault, from: point.time, until });
    }
    match life.archive {
        Some(archive) if !point.held || point.stores.archived.is_some() => {
            let from = point.stores.archived.unwrap_or(archive.from);
            stays.push(Stay { store: Store::Archive, from, until: least(immutable(archive.until)) });
        }
        _ => {}
    }
    if let (None, Some(from), false) = (life.archive, point.stores.archived, point.stores.vault) {
        stays.push(Stay { store: Store::Archive, from, until: least(immutable(life.vault_until)) });
    }
    stays
}
