//! Which rule a point carries, and how long each store keeps it.
//!
//! Invariants:
//! - Only committed points are looked at, so a failed run can neither take a period's place nor push a good point out (P54).
//! - On-demand points carry the rule or the date that the user chose, and never count as the first of a period (D4, P68, V59).
//! - One point, one rule: the highest of those that it qualifies for (P53, P55).
//! - A point's life is a function of the point and of the policy that is linked now (D5); a rule that is gone is Default (D18).

use std::cmp::Reverse;
use std::collections::HashSet;

use jiff::civil::Date;
use jiff::{SignedDuration, Span, Timestamp};

use super::{APIM_DAYS, DEFAULT_RULE, Document, Period, Qualifier, Rule, Tiering};

/// What is known of a committed point. Slices of them are in the order in which they were committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointFacts {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub time: Timestamp,
    /// The slot of the schedule that it was made for; `None`: on demand.
    pub slot: Option<Timestamp>,
    /// The rule that it carries.
    pub rule: String,
    /// On demand with a date (V59): this counts instead of the rule, in the vault store.
    pub keep_until: Option<Timestamp>,
    /// It must not be deleted until it is released.
    pub held: bool,
    /// The store refuses to delete it before.
    pub immutable_until: Option<Timestamp>,
    /// Where it is.
    pub stores: Stores,
    /// Known to be damaged: it does not count as a good point.
    pub damaged: bool,
    /// It is soft-deleted, and may be purged from then on.
    pub purge_time: Option<Timestamp>,
}

/// Where a point is. It is in one of them at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stores {
    /// In the vault store.
    pub vault: bool,
    /// In the archive store, complete and listed, since then.
    pub archived: Option<Timestamp>,
}

impl PointFacts {
    /// A new point in the vault store, made for a slot.
    pub fn scheduled(id: impl Into<String>, time: Timestamp, slot: Timestamp, rule: &str) -> Self {
        Self { slot: Some(slot), ..Self::on_demand(id, time, rule) }
    }

    /// A new point in the vault store, made on demand.
    pub fn on_demand(id: impl Into<String>, time: Timestamp, rule: &str) -> Self {
        Self {
            id: id.into(),
            time,
            slot: None,
            rule: rule.to_owned(),
            keep_until: None,
            held: false,
            immutable_until: None,
            stores: Stores { vault: true, archived: None },
            damaged: false,
            purge_time: None,
        }
    }

    /// True when a restore from it can be counted on.
    pub fn is_good(&self) -> bool {
        !self.damaged && self.purge_time.is_none()
    }
}

/// How long each store keeps a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Until then the vault store does.
    pub vault_until: Timestamp,
    /// And the archive store.
    pub archive: Option<ArchiveLife>,
}

/// A point's time in the archive store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLife {
    /// From then on it is due there.
    pub from: Timestamp,
    /// Until then it is kept there.
    pub until: Timestamp,
}

impl Life {
    /// When the last store lets it go.
    pub fn end(&self) -> Timestamp {
        self.archive.map_or(self.vault_until, |archive| archive.until.max(self.vault_until))
    }
}

/// How long each store keeps that point under this policy (D2, D5, D18), holds and immutability apart.
pub fn life(document: &Document, point: &PointFacts) -> Life {
    // A6, D11: whatever a rule says, a backup of an API Management service is of no use after 30 days.
    let cap = (document.source_type == "apim").then(|| point.time + SignedDuration::from_hours(24 * APIM_DAYS));
    let cut = |time: Timestamp| cap.map_or(time, |cap| time.min(cap));
    if let Some(keep_until) = point.keep_until {
        return Life { vault_until: cut(keep_until), archive: None };
    }
    let rule = document.rule_or_default(&point.rule);
    let vault_until = cut(add(document, point.time, rule.vault));
    let archive = rule.archive.as_ref().map(|archive| {
        let from = match archive.tiering {
            // P48: both clocks start at the creation (D2).
            Tiering::Immediate => point.time,
            // P49: the clock starts at the move, which may have been late; a copy made before its time changes nothing.
            Tiering::OnExpiry => point.stores.archived.map_or(vault_until, |moved| moved.max(vault_until)),
        };
        ArchiveLife { from, until: cut(add(document, from, archive.duration)) }
    });
    // What would begin after the cap never does.
    Life { vault_until, archive: archive.filter(|archive| archive.from < archive.until) }
}

/// Calendar arithmetic in the policy's zone (D7); the end of time at the latest.
fn add(document: &Document, time: Timestamp, span: Span) -> Timestamp {
    let end = time.to_zoned(document.time_zone.clone()).checked_add(span);
    end.map_or(Timestamp::MAX, |end| end.timestamp())
}

/// Which rule a new point carries that was made for `slot`, after the points that are there already (soft-deleted ones too).
/// A caught-up backup counts in its slot's periods, not in those of the moment at which it ran.
pub fn rule_for<'a>(document: &'a Document, slot: Timestamp, previous: &[PointFacts]) -> &'a Rule {
    Tagger::new(document, previous).rule_for(slot)
}

/// [`rule_for`] for many points after each other.
#[derive(Debug)]
pub struct Tagger<'a> {
    document: &'a Document,
    /// By priority, the highest first.
    rules: Vec<&'a Rule>,
    /// Days and first days of periods that have a scheduled point.
    taken: HashSet<(u8, Date)>,
}

impl<'a> Tagger<'a> {
    /// After these points.
    pub fn new(document: &'a Document, previous: &[PointFacts]) -> Self {
        let mut rules: Vec<&Rule> = document.rules.iter().collect();
        // Stable: in one class the document's order decides.
        rules.sort_by_key(|rule| Reverse(rule.class()));
        let mut tagger = Self { document, rules, taken: HashSet::new() };
        previous.iter().filter_map(|point| point.slot).for_each(|slot| tagger.add(slot));
        tagger
    }

    /// There is a scheduled point for that slot now.
    pub fn add(&mut self, slot: Timestamp) {
        let date = self.document.date(slot);
        for period in [Period::Day, Period::Week, Period::Month, Period::Year] {
            self.taken.insert((period as u8, self.begin(period, date)));
        }
    }

    /// The rule of the next point (P53-P55).
    pub fn rule_for(&self, slot: Timestamp) -> &'a Rule {
        let date = self.document.date(slot);
        let first_of = |period: Period| !self.taken.contains(&(period as u8, self.begin(period, date)));
        let qualifies = |rule: &&&Rule| {
            let in_month = rule.months.is_empty() || rule.months.contains(&date.month());
            in_month
                && match &rule.qualifier {
                    Qualifier::Default => true,
                    Qualifier::FirstOf(period) => first_of(*period),
                    Qualifier::On(days) => days.iter().any(|day| day.matches(date)) && first_of(Period::Day),
                }
        };
        self.rules.iter().find(qualifies).copied().unwrap_or_else(|| self.document.rule_or_default(DEFAULT_RULE))
    }

    /// The first day of the period (D3).
    fn begin(&self, period: Period, date: Date) -> Date {
        match period {
            Period::Day => date,
            Period::Week => {
                let days = date.weekday().since(self.document.week_start);
                date.checked_sub(Span::new().days(days)).unwrap_or(Date::MIN)
            }
            Period::Month => date.first_of_month(),
            Period::Year => date.first_of_year(),
        }
    }
}
