//! Rows that belong to another partition in each database: those of tables that are partitioned by the hash of an enum, at any depth.
//!
//! The hash goes by the values' oids, which are new in every database. So pg_dump has such rows loaded through the whole table
//! (`forcePartitionRootLoad`), which puts each where it belongs now. They come back with the whole table and all of its partitions, or not
//! at all: without the table there is nothing to load them into, and without one of the partitions no place for some of them.

use std::collections::{BTreeSet, HashMap};

use vaultferry_proto::{Problem, Reason};

use super::super::toc::Entry;

/// Tables that a message names.
const NAMED: usize = 10;

/// Which table is a partition of which, by the places of their entries.
struct Partitions {
    whole_of: HashMap<usize, usize>,
    parts_of: HashMap<usize, Vec<usize>>,
}

impl Partitions {
    fn new(entries: &[Entry], place: &HashMap<i32, usize>) -> Self {
        let mut partitions = Self { whole_of: HashMap::new(), parts_of: HashMap::new() };
        for entry in entries.iter().filter(|entry| entry.kind == "TABLE ATTACH") {
            let tables =
                entry.needs.iter().filter_map(|id| place.get(id).copied()).filter(|at| is_table(&entries[*at]));
            // It bears the partition's name, and needs both.
            let (part, whole): (Vec<usize>, Vec<usize>) = tables.partition(|at| {
                let table = &entries[*at];
                (&table.schema, &table.name) == (&entry.schema, &entry.name)
            });
            if let (&[part], &[whole]) = (part.as_slice(), whole.as_slice()) {
                partitions.whole_of.insert(part, whole);
                partitions.parts_of.entry(whole).or_default().push(part);
            }
        }
        partitions
    }

    /// The table that is no partition itself; `None` for a table that is none.
    fn root_of(&self, table: usize) -> Option<usize> {
        let mut root = *self.whole_of.get(&table)?;
        // A chain is not longer than there are links, even in a dump that somebody has made up.
        for _ in 0..self.whole_of.len() {
            match self.whole_of.get(&root) {
                Some(whole) => root = *whole,
                None => return Some(root),
            }
        }
        None
    }

    /// The table and everything below it.
    fn family(&self, root: usize) -> BTreeSet<usize> {
        let (mut family, mut waiting) = (BTreeSet::new(), vec![root]);
        while let Some(table) = waiting.pop() {
            if family.insert(table) {
                waiting.extend(self.parts_of.get(&table).into_iter().flatten());
            }
        }
        family
    }
}

fn is_table(entry: &Entry) -> bool {
    matches!(entry.kind.as_str(), "TABLE" | "FOREIGN TABLE")
}

/// Refuses a choice with such rows when their whole table, or one of its partitions, is not in it. `included` says of each entry whether it is
/// chosen, `place` where it is by its number.
pub(super) fn refuse_parts(entries: &[Entry], place: &HashMap<i32, usize>, included: &[bool]) -> Result<(), Problem> {
    let is_chosen = |at: usize| included.get(at).copied().unwrap_or_default();
    let strewn = |(at, entry): &(usize, &Entry)| entry.through_root && is_chosen(*at);
    let mut known = None;
    for (_, rows) in entries.iter().enumerate().filter(strewn) {
        let partitions = known.get_or_insert_with(|| Partitions::new(entries, place));
        let table = rows.needs.iter().filter_map(|id| place.get(id).copied()).find(|at| is_table(&entries[*at]));
        let missing: Vec<&Entry> = match table.and_then(|table| partitions.root_of(table)) {
            Some(root) => {
                partitions.family(root).into_iter().filter(|at| !is_chosen(*at)).map(|at| &entries[at]).collect()
            }
            None => return Err(refused(rows, "the table that it is a partition of", "Restore everything.".to_owned())),
        };
        if !missing.is_empty() {
            let more = if missing.len() > NAMED { ", …" } else { "" };
            let shown = &missing[..missing.len().min(NAMED)];
            let names: Vec<String> = shown.iter().map(|table| table.qualified()).collect();
            let flags: Vec<String> = names.iter().map(|name| format!("--table '{name}'")).collect();
            let fix = format!("Choose the whole table with all of its partitions, too: {}{more}", flags.join(" "));
            return Err(refused(rows, &format!("{}{more}", names.join(", ")), fix));
        }
    }
    Ok(())
}

fn refused(rows: &Entry, missing: &str, fix: String) -> Problem {
    let message = format!(
        "the rows of {} cannot be restored without {missing}: it is a partition by the hash of an enum, and in which of the partitions a row \
         lies is new in each database",
        rows.qualified()
    );
    Problem::new(Reason::InvalidRequest, message).with_fix(fix)
}
