//! What of a dump is restored: everything, or chosen schemas and tables with what they need, as a list for `pg_restore --use-list`.
//!
//! Invariants:
//! - A chosen table comes with its rows, indexes, constraints, triggers, rules, policies, statistics, comments, privileges and sequences.
//! - What a chosen thing needs comes with it (types, functions, extensions, its schema), but never another table or view: what needs one
//!   that was not chosen, a foreign key above all, is left out and told. A chosen table that cannot be made without is an error, and so are
//!   rows that can only come back with other tables ([`strewn`]).
//! - What pg_dump does not know to be needed does not come: what the bodies of functions name.
//! - `pg_restore --table` alone would do none of this: it restores no index and no constraint.
//! - The order is the dump's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vaultferry_plugin_sdk::DatabaseTarget;
use vaultferry_proto::{Problem, Reason};

use super::rules;
use super::toc::{Entry, Toc};
use crate::facts::TableData;

mod strewn;

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    schemas: BTreeSet<String>,
    tables: BTreeSet<(String, String)>,
}

/// What comes of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Only a part was asked for.
    pub(super) partial: bool,
    /// In the dump's order. `None`: everything, without a list.
    pub(super) ids: Option<Vec<i32>>,
    /// How many things of each kind are restored.
    pub(super) counts: BTreeMap<String, u64>,
    /// The tables whose rows are restored.
    pub(super) tables: BTreeSet<(String, String)>,
    /// The extensions that are made.
    pub(super) extensions: BTreeSet<String>,
    /// Who is to own something.
    pub(super) owners: BTreeSet<String>,
    /// Where something belongs to another than the schema that it lies in.
    pub(super) guests: BTreeSet<Guest>,
    /// What was not asked for, and comes because what was needs it.
    pub(super) along: Vec<String>,
    /// What is left out although it belongs to what was chosen.
    pub(super) left_out: Vec<String>,
    /// What is left out because this user could not restore it.
    pub(super) forbidden: Vec<String>,
}

/// A role that owns something in a schema that is another one's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Guest {
    pub(super) schema: String,
    /// Whose schema it is; empty when the dump does not make it: `public` above all.
    pub(super) host: String,
    pub(super) owner: String,
}

impl Choice {
    /// Whether the rows of this table are restored. Names in the dump may not have been read as the server tells them (in another encoding than
    /// UTF-8), so all are when everything was asked for.
    pub(super) fn fills(&self, table: &TableData) -> bool {
        !self.partial || self.tables.contains(&(table.schema.clone(), table.name.clone()))
    }
}

impl Wanted {
    /// Reads the names. A table is `schema.table`; parts with dots or quotes in them are quoted as in SQL.
    pub(super) fn new(target: &DatabaseTarget) -> Result<Self, Problem> {
        let mut wanted = Self { schemas: target.schemas.iter().cloned().collect(), tables: BTreeSet::new() };
        for text in &target.tables {
            let name = split(text).ok_or_else(|| {
                let message = format!("{text:?} is not the name of a table with its schema");
                let fix = "Write it as SCHEMA.TABLE, such as public.sales; a part with a dot in it in double quotes.";
                Problem::new(Reason::InvalidRequest, message).with_fix(fix)
            })?;
            wanted.tables.insert(name);
        }
        Ok(wanted)
    }

    /// True when nothing was chosen, which means everything.
    pub(super) fn is_everything(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }

    fn has(&self, entry: &Entry) -> bool {
        match entry.kind.as_str() {
            "SCHEMA" => self.schemas.contains(&entry.name),
            _ if self.schemas.contains(&entry.schema) => true,
            kind => is_named(kind) && self.tables.contains(&(entry.schema.clone(), entry.name.clone())),
        }
    }
}

/// `a.b`, `"a.b".c`, `a."b""c"`: exactly two parts.
fn split(text: &str) -> Option<(String, String)> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    let mut quoted = false;
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                parts.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            other => parts.last_mut()?.push(other),
        }
    }
    let name = parts.pop()?;
    let schema = parts.pop()?;
    (parts.is_empty() && !quoted && !name.is_empty() && !schema.is_empty()).then_some((schema, name))
}

/// What holds rows, or shows those of others: only what was chosen of them is restored.
fn is_relation(kind: &str) -> bool {
    matches!(kind, "TABLE" | "FOREIGN TABLE" | "VIEW" | "MATERIALIZED VIEW")
}

/// What can be asked for as a table.
fn is_named(kind: &str) -> bool {
    is_relation(kind) || kind == "SEQUENCE"
}

/// What belongs to the thing that it needs, and comes with it.
fn belongs(entry: &Entry, to: &Entry) -> bool {
    match entry.kind.as_str() {
        "COMMENT" | "ACL" | "SECURITY LABEL" => true,
        // One that is not validated is not in the domain's own statement.
        "CHECK CONSTRAINT" if to.kind == "DOMAIN" => true,
        "TABLE DATA"
        | "MATERIALIZED VIEW DATA"
        | "SEQUENCE"
        | "SEQUENCE OWNED BY"
        | "SEQUENCE SET"
        | "DEFAULT"
        | "CONSTRAINT"
        | "CHECK CONSTRAINT"
        | "FK CONSTRAINT"
        | "INDEX"
        | "INDEX ATTACH"
        | "TABLE ATTACH"
        | "TRIGGER"
        | "RULE"
        | "POLICY"
        | "ROW SECURITY"
        | "STATISTICS"
        | "STATISTICS DATA" => is_named(&to.kind) || matches!(to.kind.as_str(), "INDEX" | "CONSTRAINT"),
        _ => false,
    }
}

/// Makes the choice. `rights` say what this user cannot restore anyway.
pub(super) fn choose(toc: &Toc, wanted: &Wanted, rights: rules::Rights) -> Result<Choice, Problem> {
    let mut choice = Choice { partial: !wanted.is_everything(), ..Choice::default() };
    let included = match wanted.is_everything() {
        true => vec![true; toc.entries.len()],
        false => chosen(toc, wanted, &mut choice)?,
    };
    let schemas = toc.entries.iter().filter(|entry| entry.kind == "SCHEMA");
    let hosts: HashMap<&str, &str> = schemas.map(|schema| (schema.name.as_str(), schema.owner.as_str())).collect();
    let mut ids = Vec::new();
    for (entry, _) in toc.entries.iter().zip(included).filter(|(_, included)| *included) {
        if rules::is_forbidden(entry, rights) {
            choice.forbidden.push(entry.describe());
            continue;
        }
        ids.push(entry.id);
        *choice.counts.entry(entry.kind.clone()).or_default() += 1;
        if entry.kind == "TABLE DATA" {
            choice.tables.insert((entry.schema.clone(), entry.name.clone()));
        } else if entry.kind == "EXTENSION" {
            choice.extensions.insert(entry.name.clone());
        }
        // These are written without becoming the owner, or making anybody one.
        // The database itself is in every archive, and made without its owner.
        let has_owner =
            !matches!(entry.kind.as_str(), "ACL" | "COMMENT" | "SECURITY LABEL" | "DATABASE" | "DATABASE PROPERTIES");
        if has_owner && !entry.owner.is_empty() {
            choice.owners.insert(entry.owner.clone());
            let host = hosts.get(entry.schema.as_str()).copied().unwrap_or_default();
            // Default privileges are given by a member of their role, whoever may create in the schema.
            if !entry.schema.is_empty() && host != entry.owner && entry.kind != "DEFAULT ACL" {
                let (schema, host, owner) = (entry.schema.clone(), host.to_owned(), entry.owner.clone());
                choice.guests.insert(Guest { schema, host, owner });
            }
        }
    }
    if !wanted.is_everything() || !choice.forbidden.is_empty() {
        choice.ids = Some(ids);
    }
    Ok(choice)
}

/// For each entry whether it is restored.
fn chosen(toc: &Toc, wanted: &Wanted, choice: &mut Choice) -> Result<Vec<bool>, Problem> {
    let entries = &toc.entries;
    refuse_unknown(toc, wanted)?;
    let place: HashMap<i32, usize> = entries.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
    let attached: BTreeSet<(&str, &str)> = entries
        .iter()
        .filter(|entry| entry.kind == "TABLE ATTACH")
        .map(|entry| (entry.schema.as_str(), entry.name.as_str()))
        .collect();
    // A partition, and its indexes and keys, are made as tables, indexes and keys of their own, and attached afterwards; that they are said to
    // need the whole table's is a matter of their order only.
    let is_real = |entry: &Entry, other: &Entry| match entry.kind.as_str() {
        "TABLE" => other.kind != "TABLE" || !attached.contains(&(entry.schema.as_str(), entry.name.as_str())),
        "CONSTRAINT" | "INDEX" => !matches!(other.kind.as_str(), "CONSTRAINT" | "INDEX"),
        _ => true,
    };
    let needs = |entry: &Entry| -> Vec<usize> {
        let places = entry.needs.iter().filter_map(|id| place.get(id).copied());
        places.filter(|other| is_real(entry, &entries[*other])).collect()
    };
    let needs: Vec<Vec<usize>> = entries.iter().map(needs).collect();
    let asked: Vec<bool> = entries.iter().map(|entry| wanted.has(entry)).collect();
    let is_foreign = |other: usize| is_relation(&entries[other].kind) && !asked[other];
    let mut blocked = vec![false; entries.len()];
    // Needs point to the front, but for a few; so few rounds.
    loop {
        let mut changed = false;
        for (index, needs) in needs.iter().enumerate() {
            if !blocked[index] && needs.iter().any(|other| is_foreign(*other) || blocked[*other]) {
                blocked[index] = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut belongings: Vec<Vec<usize>> = vec![Vec::new(); entries.len()];
    for (index, entry) in entries.iter().enumerate() {
        for other in needs[index].iter().filter(|other| belongs(entry, &entries[**other])) {
            belongings[*other].push(index);
        }
    }
    let schemas: HashMap<&str, usize> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.kind == "SCHEMA")
        .map(|(place, entry)| (entry.name.as_str(), place))
        .collect();
    let (mut included, mut left_out) = (vec![false; entries.len()], BTreeSet::new());
    let mut waiting: Vec<usize> = (0..entries.len()).filter(|index| asked[*index]).collect();
    while let Some(index) = waiting.pop() {
        let entry = &entries[index];
        if blocked[index] {
            if is_named(&entry.kind) && wanted.tables.contains(&(entry.schema.clone(), entry.name.clone())) {
                let needed = needs[index].iter().find(|other| is_foreign(**other) || blocked[**other]);
                return Err(cannot_stand_alone(entry, needed.map(|other| &entries[*other])));
            }
            left_out.insert(index);
            continue;
        }
        if std::mem::replace(&mut included[index], true) {
            continue;
        }
        waiting.extend(&needs[index]);
        waiting.extend(&belongings[index]);
        waiting.extend(schemas.get(entry.schema.as_str()));
    }
    strewn::refuse_parts(entries, &place, &included)?;
    choice.along = along(entries, &asked, &included, &belongings);
    choice.left_out = left_out.into_iter().map(|index| entries[index].describe()).collect();
    choice.left_out.extend(mappings(entries, &included));
    if entries.iter().any(|entry| matches!(entry.kind.as_str(), "BLOB" | "BLOBS" | "BLOB METADATA")) {
        choice.left_out.push("all large objects, which belong to no schema and to no table".to_owned());
    }
    Ok(included)
}

/// What is included for what it is to others: neither asked for, nor a part of something that is included, nor the schema that it lies in.
fn along(entries: &[Entry], asked: &[bool], included: &[bool], belongings: &[Vec<usize>]) -> Vec<String> {
    let chosen: Vec<usize> = (0..entries.len()).filter(|at| included[*at]).collect();
    let parts: BTreeSet<usize> = chosen.iter().flat_map(|at| &belongings[*at]).copied().collect();
    let asked_for = chosen.iter().filter(|at| asked[**at]);
    let homes: BTreeSet<&str> = asked_for.map(|at| entries[*at].schema.as_str()).collect();
    let is_home = |entry: &Entry| entry.kind == "SCHEMA" && homes.contains(entry.name.as_str());
    let others = chosen.iter().filter(|at| !asked[**at] && !parts.contains(*at) && !is_home(&entries[**at]));
    others.map(|at| entries[*at].describe()).collect()
}

/// The user mappings of servers that come with foreign tables: pg_dump does not say what they need, and they hold passwords.
fn mappings(entries: &[Entry], included: &[bool]) -> Vec<String> {
    let servers = entries.iter().zip(included).filter(|(entry, included)| **included && entry.kind == "SERVER");
    let ends: Vec<String> = servers.map(|(entry, _)| format!(" SERVER {}", entry.name)).collect();
    let is_theirs = |name: &str| ends.iter().any(|end| name.ends_with(end.as_str()));
    let mappings = entries.iter().filter(|entry| entry.kind == "USER MAPPING" && is_theirs(&entry.name));
    mappings.map(|entry| entry.name.clone()).collect()
}

fn refuse_unknown(toc: &Toc, wanted: &Wanted) -> Result<(), Problem> {
    let entries = &toc.entries;
    let has_schema = |name: &String| {
        entries.iter().any(|entry| &entry.schema == name || (entry.kind == "SCHEMA" && &entry.name == name))
    };
    let has_table = |(schema, table): &(String, String)| {
        entries.iter().any(|entry| is_named(&entry.kind) && &entry.schema == schema && &entry.name == table)
    };
    let mut unknown: Vec<String> =
        wanted.schemas.iter().filter(|name| !has_schema(name)).map(|name| format!("schema {name}")).collect();
    let tables = wanted.tables.iter().filter(|name| !has_table(name));
    unknown.extend(tables.map(|(schema, table)| format!("table {schema}.{table}")));
    if unknown.is_empty() {
        return Ok(());
    }
    let message = format!("the point has no {}", unknown.join(", no "));
    let fix = "Write names as the database has them, upper and lower case too. What is in the point: vaultferry restore files, then pg_restore -l database.dump.";
    Err(Problem::new(Reason::InvalidRequest, message).with_fix(fix))
}

fn cannot_stand_alone(entry: &Entry, needed: Option<&Entry>) -> Problem {
    let needed = needed.map_or_else(|| "another table".to_owned(), Entry::describe);
    let message = format!("{} cannot be made without {needed}, which was not chosen", entry.describe());
    Problem::new(Reason::InvalidRequest, message).with_fix("Choose that with --table or --schema, too.")
}

#[cfg(test)]
mod tests;
