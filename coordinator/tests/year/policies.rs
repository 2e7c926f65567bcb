//! The policies of the year, and a naive reference of what they mean: it knows no code of the product's policies.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// What a store keeps a point for.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub months: i32,
    pub days: i32,
}

/// A rule in plain words.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub name: &'static str,
    /// As the document writes it; empty for Default.
    pub condition: &'static str,
    pub vault: Kept,
    pub archive: Option<(Kept, &'static str)>,
}

/// A policy in plain words.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub name: &'static str,
    pub schedule: &'static str,
    /// Between two slots, in hours, at the most.
    pub hours: i64,
    pub rules: &'static [Rule],
}

const fn days(days: i32) -> Kept {
    Kept { months: 0, days }
}

const fn months(months: i32) -> Kept {
    Kept { months, days: 0 }
}

const fn rule(name: &'static str, condition: &'static str, vault: Kept) -> Rule {
    Rule { name, condition, vault, archive: None }
}

/// All of them, in UTC.
pub const ALL: &[Policy] = &[
    Policy {
        name: "daily",
        schedule: "every = \"day\"\nat = [\"02:00\"]\n",
        hours: 24,
        rules: &[
            rule("Monthly", "first_of = \"month\"", months(4)),
            rule("Default", "", days(8)),
            rule("Weekly", "first_of = \"week\"", days(35)),
        ],
    },
    Policy {
        name: "daily-skip",
        schedule: "every = \"day\"\nat = [\"22:00\"]\ncatch_up = \"skip\"\nstart_within = \"PT2H\"\njitter = \"PT30M\"\n",
        hours: 24,
        rules: &[rule("Default", "", days(14)), rule("Sundays", "on = \"Sun\"", months(2))],
    },
    Policy {
        name: "twice-a-week",
        schedule: "every = \"week\"\non = [\"Mon\", \"Thu\"]\nat = [\"01:30\"]\njitter = \"PT2H\"\n",
        hours: 4 * 24,
        rules: &[
            rule("Default", "", days(21)),
            Rule {
                name: "Monthly",
                condition: "first_of = \"month\"",
                vault: months(1),
                archive: Some((months(7), "on-expiry")),
            },
        ],
    },
    Policy {
        name: "weekly",
        schedule: "every = \"week\"\non = [\"Sun\"]\nat = [\"03:30\"]\nallowed = [\"22:00-06:00\"]\n",
        hours: 7 * 24,
        rules: &[
            Rule { name: "Default", condition: "", vault: days(20), archive: Some((months(6), "on-expiry")) },
            Rule {
                name: "Yearly",
                condition: "first_of = \"year\"",
                vault: months(3),
                archive: Some((months(120), "immediate")),
            },
        ],
    },
    Policy {
        name: "monthly",
        schedule: "every = \"month\"\non = [1, \"last-Fri\"]\nat = [\"12:00\", \"18:00\"]\n",
        hours: 31 * 24,
        rules: &[rule("Default", "", months(2))],
    },
    Policy {
        name: "hourly",
        schedule: "every = \"hour\"\nat = [\":15\"]\ncatch_up = \"skip\"\n",
        hours: 1,
        rules: &[rule("Default", "", days(7)), rule("Daily", "first_of = \"day\"", days(30))],
    },
];

/// Those that the backup service assigns.
pub const ASSIGNED: &[Policy] = &[
    Policy {
        name: "fleet-weekly",
        schedule: "every = \"week\"\non = [\"Wed\"]\nat = [\"04:00\"]\njitter = \"PT4H\"\n",
        hours: 7 * 24,
        rules: &[rule("Default", "", days(28)), rule("Monthly", "first_of = \"month\"", months(5))],
    },
    Policy {
        name: "fleet-monthly",
        schedule: "every = \"month\"\non = [15]\nat = [\"06:00\"]\n",
        hours: 31 * 24,
        rules: &[Rule { name: "Default", condition: "", vault: days(40), archive: Some((months(8), "on-expiry")) }],
    },
];

impl Policy {
    pub fn named(name: &str) -> &'static Self {
        ALL.iter().chain(ASSIGNED).find(|policy| policy.name == name).expect("one of them")
    }

    /// The document.
    pub fn document(&self) -> String {
        let span = |kept: Kept| format!("P{}M{}D", kept.months, kept.days);
        let mut text = format!(
            "name = \"{}\"\nsource_type = \"postgres\"\ntime_zone = \"UTC\"\n[schedule]\n{}",
            self.name, self.schedule
        );
        for rule in self.rules {
            text +=
                &format!("[[rule]]\nname = \"{}\"\n{}\nvault = \"{}\"\n", rule.name, rule.condition, span(rule.vault));
            if let Some((kept, tiering)) = rule.archive {
                text += &format!("archive = \"{}\"\ntiering = \"{tiering}\"\n", span(kept));
            }
        }
        text
    }

    fn rule(&self, name: &str) -> &Rule {
        let named = self.rules.iter().find(|rule| rule.name == name);
        named.or_else(|| self.rules.iter().find(|rule| rule.name == "Default")).expect("every policy has it")
    }

    /// Until when the vault store keeps a point of that rule.
    pub fn vault_until(&self, rule: &str, time: Timestamp, keep_until: Option<Timestamp>) -> Timestamp {
        keep_until.unwrap_or_else(|| after(time, self.rule(rule).vault))
    }

    /// When the last store lets a point go; `archived`: since when it is in the archive.
    pub fn end(
        &self,
        rule: &str,
        time: Timestamp,
        keep_until: Option<Timestamp>,
        archived: Option<Timestamp>,
    ) -> Timestamp {
        let vault_until = self.vault_until(rule, time, keep_until);
        match (keep_until, self.rule(rule).archive) {
            (None, Some((kept, "immediate"))) => after(time, kept).max(vault_until),
            (None, Some((kept, _))) => after(archived.unwrap_or(vault_until).max(vault_until), kept),
            _ => vault_until,
        }
    }
}

fn after(time: Timestamp, kept: Kept) -> Timestamp {
    let end = time.to_zoned(TimeZone::UTC).checked_add(Span::new().months(kept.months).days(kept.days));
    end.expect("within the calendar").timestamp()
}
