//! What to do with each point of an instance now, and what a change of policy would do.
//!
//! | at its place in its life, a point … | step |
//! |---|---|
//! | is kept | `Keep` |
//! | is due in both stores (P48) and is not in the archive yet | `CopyToArchive` |
//! | has done its time in the vault store, the archive is next (P49) | `MoveToArchive`: copy, verify, commit there, then remove here |
//! | the same, but its copy is in the archive already (a move that was interrupted, P48) | `RemoveFromVault` |
//! | has done all its time | `Expire`: soft delete, it can be brought back until its purge time |
//! | was soft-deleted and its purge time has come | `Purge` |
//!
//! Invariants, whatever the clock, the failures and the changes of policy were:
//! - The last good point of a protected instance does not expire (not so for API Management, whose backups end after 30 days: A6). The last
//!   one is both the newest by its time and the newest by its commit, as a clock that was wrong may have made these two points.
//! - Held points stay as they are. Nothing is deleted, or removed from the vault store, before its immutability date (D5).
//! - Deletion is two-phase, and one run expires at most a tenth of the points (one at least), and purges at most as many.
//! - Deletion goes by a clock of its own, [`Plan::clock`], which follows the machine's in steps of [`STEP`] at most, unless the store's or
//!   the service's clock confirms it. A clock that jumps ahead so deletes little, and warns; one that jumps back deletes nothing.
//! - A run counts once an hour ([`deletion_time_between`]): an agent that is started again and again deletes no faster than one that runs.
//!
//! Run it every hour: then the limits do not show in ordinary life (an hourly schedule kept for 7 days expires 1 of 168 in a run; of few
//! points that end together, one waits for the next hour).

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Document, Life, PointFacts, Store, Tiering, life};

/// How far the clock of deletion goes in one run without another clock's word: longer than a weekly restart, shorter than any retention.
pub const STEP: SignedDuration = SignedDuration::from_hours(48);
/// Two clocks that differ by less agree: more than a slow answer or a coarse time stamp can explain is a clock that is off.
pub const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// So many times faster than time itself the clock of deletion goes at most: [`STEP`] in an hour.
const STEP_PER_TIME: i32 = 48;
/// One of so many points may be deleted in a run.
const FRACTION: usize = 10;

/// A run of retention over the points of one instance.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The machine's clock.
    pub now: Timestamp,
    /// [`Plan::clock`] of the run before; `None` at the first.
    pub clock: Option<Timestamp>,
    /// What the store's or the service's clock says now; `None`: there is no other clock.
    pub reference: Option<Timestamp>,
    /// The instance is protected, or was stopped with its data retained: its last good point stays.
    pub protected: bool,
}

/// What to do, point by point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// By what time it was decided. Keep it for the next run.
    pub clock: Timestamp,
    /// One for each point, in their order.
    pub actions: Vec<Action>,
    /// What people should know.
    pub warnings: Vec<Warning>,
}

/// What to do with a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    /// Its id.
    pub point: String,
    /// What.
    pub step: Step,
    /// Why.
    pub why: Why,
}

/// What can be done with a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Nothing.
    Keep {
        /// When this may change; `None`: nobody knows.
        until: Option<Timestamp>,
        /// Where it is.
        stores: Vec<Store>,
    },
    /// Copy it to the archive store; it stays in the vault store.
    CopyToArchive,
    /// Copy it to the archive store, and remove it from the vault store when the copy is complete and listed.
    MoveToArchive,
    /// Remove it from the vault store; the archive store has it.
    RemoveFromVault,
    /// Soft-delete it.
    Expire,
    /// Delete it for good.
    Purge,
}

/// Why something is done with a point, or is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Why {
    /// By the rule of that name, the point's own.
    Rule {
        /// The name.
        rule: String,
    },
    /// The policy has no rule of the point's; Default applies (D18).
    RuleGone {
        /// The point's rule.
        rule: String,
    },
    /// By the date that was chosen for it (V59).
    KeepUntil,
    /// It is held.
    Held,
    /// The store keeps it until then (D5).
    Immutable {
        /// Then.
        until: Timestamp,
    },
    /// It is the last good point.
    LastGood,
    /// It would expire, but this run has deleted enough.
    RunLimit,
    /// It would expire by the machine's clock, which is not trusted that far.
    Clock,
    /// It is soft-deleted.
    SoftDeleted,
}

/// What people should know of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "warning", rename_all = "kebab-case")]
pub enum Warning {
    /// The machine's clock is not where the last run and the time since could have brought it, and no other clock confirms it.
    ClockJumped {
        /// What the machine's clock says.
        now: Timestamp,
        /// What was taken for the time.
        taken: Timestamp,
    },
    /// The machine's clock and the store's (or the service's) differ.
    ClockOff {
        /// The machine's.
        now: Timestamp,
        /// The other.
        reference: Timestamp,
    },
    /// So many points would be deleted too, and wait for the next run.
    Deferred {
        /// How many.
        points: usize,
    },
    /// The instance has points, but no good one.
    NoGoodPoint,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClockJumped { now, taken } => {
                write!(
                    f,
                    "the clock says {now}, which is not trusted; nothing is deleted that does not expire by {taken}"
                )
            }
            Self::ClockOff { now, reference } => {
                write!(f, "the clock says {now}, another one {reference}; the earlier counts for what is deleted")
            }
            Self::Deferred { points } => write!(f, "{points} more expired points wait for the next run"),
            Self::NoGoodPoint => f.write_str("no good point is left"),
        }
    }
}

/// What to do with the points of an instance, given in the order in which they were committed.
pub fn plan(document: &Document, points: &[PointFacts], run: &Run) -> Plan {
    let (clock, warning) = clock(run);
    let mut warnings: Vec<Warning> = warning.into_iter().collect();
    let guarded = guarded(document, points, run.protected);
    if !points.is_empty() && !points.iter().any(PointFacts::is_good) {
        warnings.push(Warning::NoGoodPoint);
    }
    let decide = |(at, point): (usize, &PointFacts)| decide(document, point, clock, run.now, guarded.contains(&at));
    let mut actions: Vec<Action> = points.iter().enumerate().map(decide).collect();
    let mut deferred = actions.iter().filter(|action| action.why == Why::Clock).count();
    let most = (points.len() / FRACTION).max(1);
    for step in [Step::Expire, Step::Purge] {
        deferred += limit(document, points, &mut actions, &step, most);
    }
    if deferred > 0 {
        warnings.push(Warning::Deferred { points: deferred });
    }
    Plan { clock, actions, warnings }
}

/// By what time something is deleted at `now`, when the last run did it by `clock` ([`Plan::clock`]): what a plan would say, for those who
/// purge beside it.
pub fn deletion_time(now: Timestamp, clock: Option<Timestamp>) -> Timestamp {
    self::clock(&Run { now, clock, reference: None, protected: true }).0
}

/// The same in the hour after that run, which began so long ago: the clock of deletion goes no faster than two days in an hour, however
/// often it is asked.
pub fn deletion_time_between(now: Timestamp, clock: Timestamp, since: SignedDuration) -> Timestamp {
    let way = since.max(SignedDuration::ZERO).saturating_mul(STEP_PER_TIME).min(STEP);
    now.min(clock.saturating_add(way).unwrap_or(Timestamp::MAX))
}

/// The clock of deletion, and what is wrong with the machine's.
fn clock(run: &Run) -> (Timestamp, Option<Warning>) {
    let now = run.now;
    if let Some(reference) = run.reference {
        let off = now.duration_since(reference).abs() > TOLERANCE;
        return (now.min(reference), off.then_some(Warning::ClockOff { now, reference }));
    }
    let Some(last) = run.clock else { return (now, None) };
    let taken = now.min(last.saturating_add(STEP).unwrap_or(Timestamp::MAX));
    let jumped = taken < now || last.duration_since(now) > TOLERANCE;
    (taken, jumped.then_some(Warning::ClockJumped { now, taken }))
}

/// The points that stay because they are the last good one, by their places.
fn guarded(document: &Document, points: &[PointFacts], protected: bool) -> Vec<usize> {
    // A6: such a backup is of no use after its 30 days, and the instance shows as unprotected.
    if !protected || document.source_type == "apim" {
        return Vec::new();
    }
    let good = || points.iter().enumerate().filter(|(_, point)| point.is_good());
    let committed_last = good().next_back();
    let newest = good().max_by_key(|(_, point)| point.time);
    committed_last.into_iter().chain(newest).map(|(at, _)| at).collect()
}

fn decide(document: &Document, point: &PointFacts, clock: Timestamp, now: Timestamp, guarded: bool) -> Action {
    let stores = {
        let vault = point.stores.vault.then_some(Store::Vault);
        vault.into_iter().chain(point.stores.archived.map(|_| Store::Archive)).collect()
    };
    let keep = |until: Option<Timestamp>, why: Why| (Step::Keep { until, stores }, why);
    let immutable = point.immutable_until.filter(|until| *until > clock);
    let life = life(document, point);
    let rule = why(document, point);
    let (step, why) = if point.held {
        keep(None, Why::Held)
    } else if let Some(purge_time) = point.purge_time {
        match immutable {
            Some(until) if until > purge_time => keep(Some(until), Why::Immutable { until }),
            _ if purge_time > clock => keep(Some(purge_time), Why::SoftDeleted),
            _ => (Step::Purge, Why::SoftDeleted),
        }
    } else if clock >= life.end() {
        match immutable {
            _ if guarded => keep(None, Why::LastGood),
            Some(until) => keep(Some(until), Why::Immutable { until }),
            None => (Step::Expire, rule),
        }
    } else if let Some(step) = tier(document, point, &life, clock, immutable.is_some()) {
        (step, rule)
    } else if now >= life.end() && !guarded {
        keep(Some(life.end()), Why::Clock)
    } else if let Some(until) = immutable.filter(|until| *until > life.end()) {
        keep(Some(until), Why::Immutable { until })
    } else {
        // One that has a copy in the archive leaves the vault store as soon as that may be.
        let next = immutable.filter(|_| life.vault_until <= clock).unwrap_or(life.vault_until.max(clock));
        let until = if next > clock && life.archive.is_some() && point.stores.vault { next } else { life.end() };
        keep(Some(until), rule)
    };
    Action { point: point.id.clone(), step, why }
}

/// The step between the stores that is due (P48, P49).
fn tier(document: &Document, point: &PointFacts, life: &Life, clock: Timestamp, immutable: bool) -> Option<Step> {
    life.archive?;
    if !point.stores.vault {
        return None;
    }
    let archived = point.stores.archived.is_some();
    let rule = document.rule_or_default(&point.rule);
    let immediate = rule.archive.as_ref().is_some_and(|archive| archive.tiering == Tiering::Immediate);
    let leaves = clock >= life.vault_until;
    match (leaves, archived) {
        // What cannot be removed yet can be copied.
        (true, false) => Some(if immutable { Step::CopyToArchive } else { Step::MoveToArchive }),
        (true, true) => (!immutable).then_some(Step::RemoveFromVault),
        (false, false) => immediate.then_some(Step::CopyToArchive),
        (false, true) => None,
    }
}

fn why(document: &Document, point: &PointFacts) -> Why {
    let rule = point.rule.clone();
    if point.keep_until.is_some() {
        Why::KeepUntil
    } else if document.rules.iter().any(|other| other.name == rule) {
        Why::Rule { rule }
    } else {
        Why::RuleGone { rule }
    }
}

/// Leaves `most` of those actions, of the points that ended first; the others keep their points. Returns how many wait.
fn limit(document: &Document, points: &[PointFacts], actions: &mut [Action], step: &Step, most: usize) -> usize {
    let mut all: Vec<usize> = (0..actions.len()).filter(|at| actions[*at].step == *step).collect();
    let end = |at: &usize| points[*at].purge_time.unwrap_or_else(|| life(document, &points[*at]).end());
    all.sort_by_key(|at| (end(at), points[*at].time));
    let waiting = all.get(most..).unwrap_or_default();
    for at in waiting {
        let point = &points[*at].stores;
        let vault = point.vault.then_some(Store::Vault);
        let stores = vault.into_iter().chain(point.archived.map(|_| Store::Archive)).collect();
        actions[*at].step = Step::Keep { until: None, stores };
        actions[*at].why = Why::RunLimit;
    }
    waiting.len()
}

/// What linking another policy (or a new version of it) would change (D5, D18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// One for each point that is not soft-deleted, in their order.
    pub changes: Vec<Change>,
}

/// What would change for a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its id.
    pub point: String,
    /// When it was made.
    pub time: Timestamp,
    /// The rule that it carries.
    pub rule: String,
    /// The rule that would apply.
    pub new_rule: String,
    /// Until when it is kept now.
    pub before: Timestamp,
    /// Until when it would be kept.
    pub after: Timestamp,
    /// In one word.
    pub effect: Effect,
}

/// What a change of policy does to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing.
    Same,
    /// It is kept longer.
    Longer,
    /// As long or longer as before, but it is due in the archive store at once.
    Moved,
    /// It is kept shorter.
    Shorter,
    /// It is over at once (by and by, as [`plan`]'s limits allow).
    Deleted,
}

impl Preview {
    /// True when something would be kept shorter than before: then the change needs a person's word (D18).
    pub fn needs_confirmation(&self) -> bool {
        self.changes.iter().any(|change| matches!(change.effect, Effect::Shorter | Effect::Deleted))
    }

    /// How many points meet that effect.
    pub fn count(&self, effect: Effect) -> usize {
        self.changes.iter().filter(|change| change.effect == effect).count()
    }
}

/// What changing from `old` to `new` does to these points at `now`.
pub fn preview(old: &Document, new: &Document, points: &[PointFacts], now: Timestamp, protected: bool) -> Preview {
    let guarded = guarded(new, points, protected);
    let live = points.iter().enumerate().filter(|(_, point)| point.purge_time.is_none());
    let change = |(at, point): (usize, &PointFacts)| {
        // Neither is below the immutability date (D5).
        let least = |time: Timestamp| point.immutable_until.map_or(time, |until| time.max(until));
        let (old_life, new_life) = (life(old, point), life(new, point));
        let (before, after) = (least(old_life.end()), least(new_life.end()));
        let stays = point.held || guarded.contains(&at);
        let due = |life: &Life| life.archive.is_some_and(|archive| archive.from <= now);
        let moved = due(&new_life) && !due(&old_life) && point.stores.archived.is_none();
        // What is over already, and waits for its run, loses nothing.
        let (reached_before, reached) = (before.max(now), after.max(now));
        let effect = if reached < reached_before {
            if after <= now && !stays { Effect::Deleted } else { Effect::Shorter }
        } else if moved && after > now {
            Effect::Moved
        } else if reached > reached_before {
            Effect::Longer
        } else {
            Effect::Same
        };
        let new_rule = match point.keep_until {
            // It follows no rule, before and after.
            Some(_) => point.rule.clone(),
            None => new.rule_or_default(&point.rule).name.clone(),
        };
        Change { point: point.id.clone(), time: point.time, rule: point.rule.clone(), new_rule, before, after, effect }
    };
    Preview { changes: live.map(change).collect() }
}
