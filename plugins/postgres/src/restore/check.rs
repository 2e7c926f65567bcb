//! A restored database is compared with its point before it gets its name.
//!
//! | how much | objects by their kinds | rows |
//! |---|---|---|
//! | full | yes | of every table, counted |
//! | sample | yes | of the smallest tables, up to 1 GiB of them, counted; of the others only whether they have any |
//! | nothing | no | no |
//!
//! Without a wish it is full for up to 10 GiB and a sample above: a count reads the whole table.
//!
//! Invariants:
//! - Fewer objects than the point has, or another number of rows, fails the restore. More objects do not: triggers, keys and indexes of
//!   partitions, and what extensions make, come by themselves.
//! - What cannot be compared is told as such, and never taken for equal: tables that the user may not read, those of extensions (which
//!   fill them in part), partitions by the hash of an enum (whose rows are strewn anew), and points that do not tell their rows.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_plugin_sdk::{Reporter, Verify};
use vaultferry_proto::{Problem, Reason};

use super::choice::Choice;
use crate::connection::Session;
use crate::facts::{Facts, TableData};
use crate::quote;

/// Up to here all rows are counted: some minutes on ordinary disks.
const FULL_MAX: u64 = 10 << 30;
/// Of a larger database so much is counted: less than a minute.
const SAMPLE_MAX: u64 = 1 << 30;
/// Differences that a message names.
const NAMED: usize = 5;

/// How many there are of each kind that is compared. What belongs to an extension was made by it, and is not in the dump. Of the NOT NULLs,
/// each of which has a row since 18, those alone are things of their own in a dump that are not validated.
const OBJECTS: &str = "
with member as (select classid, objid from pg_depend where deptype = 'e'),
relation as (
    select oid, relkind from pg_class
    where oid >= 16384 and relpersistence <> 't' and ('pg_class'::regclass, oid) not in (select classid, objid from member)
      and relnamespace not in
        (select oid from pg_namespace where nspname in ('pg_catalog', 'information_schema') or nspname ~ '^pg_(toast|temp)')
),
attached as (select conindid, contype, convalidated from pg_constraint where oid >= 16384 and conrelid <> 0)
select 'TABLE', count(*) from relation where relkind in ('r', 'p')
union all select 'FOREIGN TABLE', count(*) from relation where relkind = 'f'
union all select 'VIEW', count(*) from relation where relkind = 'v'
union all select 'MATERIALIZED VIEW', count(*) from relation where relkind = 'm'
union all select 'SEQUENCE', count(*) from relation where relkind = 'S'
union all select 'INDEX', count(*) from relation
    where relkind in ('i', 'I') and oid not in (select conindid from attached where contype in ('p', 'u', 'x'))
union all select 'CONSTRAINT', count(*) from attached
    where contype in ('p', 'u', 'x') or (contype = 'n' and not convalidated)
union all select 'FK CONSTRAINT', count(*) from attached where contype = 'f'
union all select 'SCHEMA', count(*) from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'
union all select 'EXTENSION', count(*) from pg_extension";

/// Tables whose rows cannot be compared with the dump's: extensions' own, and the partitions of tables that are partitioned by the hash of an
/// enum, at any depth. The hash goes by the values' oids, which are others in every database, so the rows lie in other partitions than they did;
/// pg_dump has them loaded through the table for this reason.
const MEMBERS: &str = "
with recursive strewn(oid) as (
    select partrelid from pg_partitioned_table
    where partstrat = 'h' and (
        select c.oid from pg_opclass c join pg_am a on c.opcmethod = a.oid
        where opcname = 'enum_ops' and opcnamespace = 'pg_catalog'::regnamespace and amname = 'hash'
    ) = any(partclass)
  union
    select inhrelid from pg_inherits join strewn on inhparent = strewn.oid
)
select nspname::text, relname::text from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where pg_class.oid in
    (select oid from strewn union select objid from pg_depend where classid = 'pg_class'::regclass and deptype = 'e')";

/// Compares, and says what was compared, for people. `choice`: what was restored; `None`: everything.
pub(super) async fn check(
    session: &Session,
    facts: &Facts,
    choice: Option<&Choice>,
    verify: Verify,
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> Result<String, Problem> {
    let tables: Vec<&TableData> =
        facts.tables.iter().filter(|table| choice.is_none_or(|choice| choice.fills(table))).collect();
    let budget = match verify {
        Verify::Nothing => return Ok("not compared with the point, as it was asked for".to_owned()),
        Verify::Full => u64::MAX,
        Verify::Sample => SAMPLE_MAX,
        Verify::BySize if facts.size_bytes <= FULL_MAX => u64::MAX,
        Verify::BySize => SAMPLE_MAX,
    };
    reporter.phase("checking");
    // What was counted when the dump was made; what the dump says itself, where that was not done or a part was chosen.
    let expected = match choice {
        Some(choice) if choice.ids.is_some() || facts.objects.is_empty() => &choice.counts,
        _ => &facts.objects,
    };
    let found = objects(session, cancel).await?;
    let mut wrong = compare_objects(expected, &found);
    let rows = Rows { session, reporter, cancel };
    let counted = rows.compare(tables, budget, &mut wrong).await?;
    if !wrong.is_empty() {
        return Err(incomplete(&wrong));
    }
    let compared: u64 = found.keys().filter_map(|kind| expected.get(kind)).sum();
    let objects = match compared {
        0 => "the point does not tell its objects".to_owned(),
        count => format!("{count} objects"),
    };
    Ok(format!("compared with the point: {objects}; {}", counted.tell()))
}

async fn objects(session: &Session, cancel: &CancellationToken) -> Result<BTreeMap<String, u64>, Problem> {
    let query = session.client().query(OBJECTS, &[]);
    let rows = session.run(query, Reason::RestoreFailed, cancel).await?;
    let count = |count: i64| u64::try_from(count).unwrap_or_default();
    Ok(rows.iter().map(|row| (row.get::<_, String>(0), count(row.get(1)))).collect())
}

/// What there are too few of.
fn compare_objects(expected: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Vec<String> {
    let lacking = |(kind, found): (&String, &u64)| {
        let expected = expected.get(kind).copied().unwrap_or_default();
        (*found < expected).then(|| format!("{found} of {expected} objects of the kind {kind} are there"))
    };
    found.iter().filter_map(lacking).collect()
}

/// What a look at a table found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Missing,
    Rows(u64),
    /// Whether it has any.
    Any(bool),
    /// It may not be read, or is one of [`MEMBERS`].
    Unknown,
}

/// The difference, when there is one.
fn compare_rows(table: &TableData, found: Found) -> Option<String> {
    let TableData { schema, name, rows, .. } = table;
    match found {
        Found::Missing => Some(format!("the table {schema}.{name} is not there")),
        Found::Rows(found) if found != *rows => Some(format!("the table {schema}.{name} has {found} rows, not {rows}")),
        Found::Any(false) if *rows > 0 => Some(format!("the table {schema}.{name} has no rows, not {rows}")),
        Found::Any(true) if *rows == 0 => Some(format!("the table {schema}.{name} has rows, and is to have none")),
        Found::Rows(_) | Found::Any(_) | Found::Unknown => None,
    }
}

fn incomplete(wrong: &[String]) -> Problem {
    let more = if wrong.len() > NAMED { format!("; and {} more", wrong.len() - NAMED) } else { String::new() };
    let named = &wrong[..wrong.len().min(NAMED)];
    Problem::new(
        Reason::RestoreIncomplete,
        format!("what was restored is not what was backed up: {}{more}", named.join("; ")),
    )
}

/// How many tables were looked at, and how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    tables: u64,
    rows: u64,
    any: u64,
    unknown: u64,
}

impl Counted {
    fn tell(&self) -> String {
        if *self == Self::default() {
            return "the point does not tell the rows of its tables".to_owned();
        }
        let mut text = format!("the rows of {} tables ({} rows)", self.tables, self.rows);
        if self.any > 0 {
            text.push_str(&format!("; of {} larger tables only whether they have rows", self.any));
        }
        if self.unknown > 0 {
            text.push_str(&format!("; {} tables could not be compared", self.unknown));
        }
        text
    }
}

struct Rows<'a> {
    session: &'a Session,
    reporter: &'a Reporter,
    cancel: &'a CancellationToken,
}

impl Rows<'_> {
    /// Smallest tables first. All rows of tables with `budget` bytes in the dump together, whether there are any of the rest.
    async fn compare(
        &self,
        mut tables: Vec<&TableData>,
        mut budget: u64,
        wrong: &mut Vec<String>,
    ) -> Result<Counted, Problem> {
        let mut counted = Counted::default();
        if tables.is_empty() {
            return Ok(counted);
        }
        // A policy that would hide rows is an error then, and not another number.
        let settle = self.session.client().batch_execute("set row_security = off");
        self.session.run(settle, Reason::RestoreFailed, self.cancel).await?;
        let members = self.session.client().query(MEMBERS, &[]);
        let members = self.session.run(members, Reason::RestoreFailed, self.cancel).await?;
        let members: BTreeSet<(String, String)> = members.iter().map(|row| (row.get(0), row.get(1))).collect();
        tables.sort_by_key(|table| table.bytes);
        let count = tables.len();
        for (place, table) in tables.into_iter().enumerate() {
            self.reporter.note(format!("table {} of {count}", place + 1));
            let all = table.bytes <= budget;
            let is_member = members.contains(&(table.schema.clone(), table.name.clone()));
            // Names in another encoding than UTF-8 did not come through.
            let is_garbled =
                table.schema.contains(char::REPLACEMENT_CHARACTER) || table.name.contains(char::REPLACEMENT_CHARACTER);
            let found = match is_member || is_garbled {
                true => Found::Unknown,
                false => self.look(table, all).await?,
            };
            match found {
                Found::Rows(rows) => {
                    budget -= table.bytes;
                    counted.tables += 1;
                    counted.rows += rows;
                }
                Found::Any(_) => counted.any += 1,
                Found::Unknown => counted.unknown += 1,
                Found::Missing => {}
            }
            wrong.extend(compare_rows(table, found));
        }
        Ok(counted)
    }

    async fn look(&self, table: &TableData, all: bool) -> Result<Found, Problem> {
        let name = format!("{}.{}", quote::identifier(&table.schema), quote::identifier(&table.name));
        let query = match all {
            true => format!("select count(*) from only {name}"),
            false => format!("select count(*) from (select from only {name} limit 1) head"),
        };
        let answer = async { Ok(self.session.client().query_one(&query, &[]).await) };
        let row = match unless_cancelled(answer, self.cancel).await? {
            Ok(row) => row,
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(Found::Missing),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => return Ok(Found::Unknown),
            Err(error) => return Err(self.session.problem(&error, Reason::RestoreFailed)),
        };
        let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or_default();
        Ok(if all { Found::Rows(rows) } else { Found::Any(rows > 0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: u64) -> TableData {
        TableData { schema: "s".into(), name: "t".into(), rows, bytes: 1 }
    }

    #[test]
    fn one_row_more_or_less_is_a_difference() {
        assert_eq!(compare_rows(&table(7), Found::Rows(7)), None);
        for found in [Found::Rows(6), Found::Rows(8), Found::Missing, Found::Any(false)] {
            assert!(compare_rows(&table(7), found).is_some(), "{found:?}");
        }
        assert!(compare_rows(&table(0), Found::Any(true)).is_some());
        for (rows, found) in [(7, Found::Any(true)), (0, Found::Any(false)), (7, Found::Unknown), (0, Found::Rows(0))] {
            assert_eq!(compare_rows(&table(rows), found), None, "{rows} {found:?}");
        }
    }

    #[test]
    fn too_few_objects_are_a_difference_and_too_many_are_none() {
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        let expected: BTreeMap<String, u64> = counts(&[("TABLE", 3), ("INDEX", 2), ("TYPE", 9)]);
        assert_eq!(
            compare_objects(&expected, &counts(&[("TABLE", 3), ("INDEX", 5), ("VIEW", 1)])),
            Vec::<String>::new()
        );
        let wrong = compare_objects(&expected, &counts(&[("TABLE", 2), ("INDEX", 2)]));
        assert_eq!(wrong, ["2 of 3 objects of the kind TABLE are there"]);
    }

    #[test]
    fn a_difference_is_a_failure_with_its_own_name() {
        let wrong: Vec<String> = (0..7).map(|number| format!("difference {number}")).collect();
        let problem = incomplete(&wrong);
        assert_eq!(problem.reason, Reason::RestoreIncomplete);
        assert!(problem.message.ends_with("difference 4; and 2 more"), "{problem}");
        assert!(!incomplete(&wrong[..1]).message.contains("more"));
    }

    #[test]
    fn what_was_not_compared_is_said() {
        assert_eq!(Counted::default().tell(), "the point does not tell the rows of its tables");
        let text = Counted { tables: 2, rows: 30, any: 1, unknown: 4 }.tell();
        assert!(
            text.contains("2 tables (30 rows)") && text.contains("1 larger") && text.contains("4 tables could not")
        );
    }
}
