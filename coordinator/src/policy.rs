//! Policies: when backups run and how long they are kept. Pure functions of a document, of points and of times; no I/O, no clock.
//!
//! ```text
//!   document   TOML in, a valid Document or every fault of it out          selector, duration   its parts
//!   calendar   next_slot, last_slot: the schedule as instants              start   when a slot's backup starts; due
//!   retention  rule_for: which rule a new point carries; life of a point   plan    what to do with each point now; preview
//!   keep_until the end of a point on demand that no rule is for            retry   the pauses between attempts at one backup
//!   simulate   which points would exist, where and until when              azure   import and export of Azure's policies
//!   parsed     documents that were parsed already
//!   change     what another version, or another policy, does to instances and to their points
//! ```
//! Invariants:
//! - A [`Document`] is valid: it can only be made by [`parse`], which tells every fault at once.
//! - Slots are exact in the policy's time zone (D14). A wall-clock time that daylight saving skips becomes the same time after the gap,
//!   one that comes twice counts once (its first); only an hourly schedule counts both, as they are two hours. So each slot is one
//!   instant, and instants of one policy are distinct.
//! - Durations are calendar durations (D7): three months after 30 November is the last day of February.
//! - What is decided here is decided again the same way from the same points: nothing depends on the order of a map or on chance.

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde::Serialize;
use vaultferry_proto::{Problem, Reason};

pub mod azure;
mod calendar;
mod change;
mod document;
mod duration;
mod keep_until;
mod parsed;
mod plan;
mod retention;
mod retry;
mod selector;
mod simulate;
mod start;

pub use calendar::Slots;
pub use change::{Figures, check_confirmed, slots_settled};
pub use document::{default_document, default_policy, parse};
pub use keep_until::keep_until;
pub use parsed::parsed;
pub use plan::{
    Action, Change, Effect, Plan, Preview, Run, Step, Warning, Why, deletion_time, deletion_time_between, plan, preview,
};
pub use retention::{ArchiveLife, Life, PointFacts, Stores, Tagger, life, rule_for};
pub use retry::Retry;
pub use selector::{DaySelector, Nth};
pub use simulate::{Stay, Timeline, TimelinePoint, simulate};
pub use start::{Due, Window};

/// The rule that every policy has (P50).
pub const DEFAULT_RULE: &str = "Default";
/// Backups of API Management services cannot be restored after this many days (A6, A30, D11).
pub const APIM_DAYS: i64 = 30;

/// A valid policy.
#[derive(Debug, Clone)]
pub struct Document {
    /// Unique in the vault; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// `postgres`, `vm` or `apim`.
    pub source_type: String,
    /// Its IANA name.
    pub time_zone_name: String,
    /// The zone itself.
    pub time_zone: TimeZone,
    /// The day on which weeks begin (D3); Sunday when left out.
    pub week_start: Weekday,
    /// As the plugin protocol says it: a zstd level, -1 for none, 0 for what is the default.
    pub compression: i32,
    /// When backups run.
    pub schedule: Schedule,
    /// When a scheduled backup that has failed is tried again.
    pub retry: Retry,
    /// At least the Default rule; in the order of the document.
    pub rules: Vec<Rule>,
}

/// When backups run: at these times on these days (P45, V16, D14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// On which days.
    pub every: Every,
    /// Ascending, distinct. For [`Every::Hour`] only the minutes count, and the hour is 0.
    pub at: Vec<Time>,
    /// What becomes of a slot that nothing started in time.
    pub catch_up: CatchUp,
    /// Starts are spread over this time after the slot, so that a fleet does not start in one second.
    pub jitter: SignedDuration,
    /// How long after its start a slot still counts as in time; later, `catch_up` decides. Above zero.
    pub start_within: SignedDuration,
    /// Backups start in these windows only; empty: always.
    pub allowed: Vec<Window>,
}

/// The days of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Every {
    /// Each hour of each day.
    Hour,
    /// Each day.
    Day,
    /// These weekdays: at least one, in the document's order.
    Week(Vec<Weekday>),
    /// These days of each month: at least one.
    Month(Vec<DaySelector>),
}

/// What becomes of slots that were missed (agent down, machine off, a backup that ran too long).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// One backup, for the last of them.
    Once,
    /// Nothing: the next slot is the next backup.
    Skip,
}

/// How long a point is kept, and which points it is for.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique in the policy.
    pub name: String,
    /// Which points it is for.
    pub qualifier: Qualifier,
    /// Months (1 to 12, ascending) to which it is limited; empty: all.
    pub months: Vec<i8>,
    /// As its author wrote it.
    pub vault_text: String,
    /// In the vault store, from the point's creation (P51, D2).
    pub vault: Span,
    /// In the archive store (P47-P49); `None`: never there.
    pub archive: Option<Archive>,
}

/// Which points a rule is for. All of them mean successful, scheduled backups (P54, D4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qualifier {
    /// Every point that no other rule is for (P50).
    Default,
    /// The first of each period (P54).
    FirstOf(Period),
    /// The first of each of these days.
    On(Vec<DaySelector>),
}

/// A period in the policy's time zone (D3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // they say it
pub enum Period {
    Day,
    Week,
    Month,
    Year,
}

/// What a rule says of the archive store.
#[derive(Debug, Clone)]
pub struct Archive {
    /// As its author wrote it.
    pub text: String,
    /// How long a point is kept there (P52); from when on, `tiering` says.
    pub duration: Span,
    /// When it gets there.
    pub tiering: Tiering,
}

/// When a point gets to the archive store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tiering {
    /// At once: a copy is in both stores (P48). Both clocks start at the point's creation (D2).
    Immediate,
    /// It moves when its time in the vault store is over (P49). The archive's clock starts at the move: the total is the sum (D2).
    OnExpiry,
}

impl Tiering {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::OnExpiry => "on-expiry",
        }
    }
}

/// A data store of a vault (P47).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// Hot.
    Vault,
    /// Cold.
    Archive,
}

/// Priority of rules (P53), least first: of the rules that a point qualifies for, the highest applies, and only that (P55).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // they say it
pub enum Class {
    Default,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Rule {
    /// Its priority (P53). A rule for some months only ranks as yearly; in one class the document's order decides.
    pub fn class(&self) -> Class {
        match &self.qualifier {
            Qualifier::Default => Class::Default,
            _ if !self.months.is_empty() => Class::Yearly,
            Qualifier::FirstOf(Period::Day) => Class::Daily,
            Qualifier::FirstOf(Period::Week) => Class::Weekly,
            Qualifier::FirstOf(Period::Month) => Class::Monthly,
            Qualifier::FirstOf(Period::Year) => Class::Yearly,
            Qualifier::On(days) if days.iter().all(|day| matches!(day, DaySelector::Weekday(_))) => Class::Weekly,
            Qualifier::On(_) => Class::Monthly,
        }
    }
}

impl Schedule {
    /// `hour`, `day`, `week` or `month`, as in the document.
    pub fn every_text(&self) -> &'static str {
        match self.every {
            Every::Hour => "hour",
            Every::Day => "day",
            Every::Week(_) => "week",
            Every::Month(_) => "month",
        }
    }

    /// The days of a weekly or monthly schedule, as in the document.
    pub fn on_texts(&self) -> Vec<String> {
        match &self.every {
            Every::Hour | Every::Day => Vec::new(),
            Every::Week(days) => days.iter().map(|day| selector::weekday_name(*day).to_owned()).collect(),
            Every::Month(days) => days.iter().map(ToString::to_string).collect(),
        }
    }

    /// The times, as in the document: `HH:MM`, or `:MM` of an hourly schedule.
    pub fn at_texts(&self) -> Vec<String> {
        let format = if self.every == Every::Hour { ":%M" } else { "%H:%M" };
        self.at.iter().map(|at| at.strftime(format).to_string()).collect()
    }
}

impl Document {
    /// The rule of that name.
    pub fn rule(&self, name: &str) -> Result<&Rule, Problem> {
        self.rules.iter().find(|rule| rule.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.rules.iter().map(|rule| rule.name.as_str()).collect();
            let message = format!("the policy {} has no rule {name:?}; it has {}", self.name, names.join(", "));
            Problem::new(Reason::RuleNotFound, message)
        })
    }

    /// The rule of that name, or Default when this policy has no such rule (D18).
    pub fn rule_or_default(&self, name: &str) -> &Rule {
        let find = |name: &str| self.rules.iter().find(|rule| rule.name == name);
        find(name).or_else(|| find(DEFAULT_RULE)).expect("every document has the Default rule")
    }

    /// When a point of that time expires in the last store that keeps it, by the rule that it carries, or by Default when this policy has
    /// no such rule (D5, D18), and if it goes to the archive when it is due there. Never `None`.
    pub fn expiry(&self, rule: &str, time: Timestamp) -> Option<Timestamp> {
        Some(life(self, &PointFacts::scheduled("", time, time, rule)).end())
    }
}

#[cfg(test)]
mod tests;
