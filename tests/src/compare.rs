//! Whether two databases are equal: their schemas as pg_dump writes them, and a hash of every table's rows, of sequences and large objects.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::postgres::Server;
use crate::process;

/// Everything that is compared of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The schema dump without comments and session keys.
    pub schema: String,
    /// A line for each table, sequence and large object: what it is, and its rows' count and hash.
    pub data: BTreeMap<String, String>,
}

/// One statement for each relation that holds rows. Rows are hashed one by one and then in the order of their hashes, so that their
/// place in the file does not matter.
const TABLES: &str = r"
select format(
    'select %L, (select count(*) || '' '' || coalesce(md5(string_agg(row_hash, '''' order by row_hash)), ''-'') '
    || 'from (select md5(t::text) as row_hash from only %I.%I t) as hashes)',
    case c.relkind when 'm' then 'view ' else 'table ' end || n.nspname || '.' || c.relname, n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm') and (c.relkind = 'r' or c.relispopulated)
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_(toast|temp)'
union all
select format('select %L, last_value || '' '' || is_called from %I.%I', 'sequence ' || n.nspname || '.' || c.relname, n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'S' and n.nspname !~ '^pg_temp'
order by 1
\gexec
select 'large object ' || oid, pg_get_userbyid(lomowner) || ' ' || coalesce(lomacl::text, '-') || ' ' || md5(lo_get(oid))
from pg_largeobject_metadata order by oid;
";

/// Reads what is compared. Tables are hashed one after the other, in one session.
#[track_caller]
pub fn contents(server: &Server, database: &str) -> Contents {
    let mut dump = server.client("pg_dump", database);
    let dump = process::run(dump.arg("--schema-only"), b"", Duration::from_secs(300)).success().text();
    let keep =
        |line: &&str| !line.starts_with("--") && !line.starts_with(r"\restrict") && !line.starts_with(r"\unrestrict");
    let schema = dump.lines().filter(keep).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let rows = server.psql(database, &format!("\\pset fieldsep '\\t'\n{TABLES}"));
    let data = rows.lines().map(|row| {
        let (name, value) = row.rsplit_once('\t').unwrap_or((row, ""));
        (name.to_owned(), value.to_owned())
    });
    Contents { schema, data: data.collect() }
}

/// Panics with the first differences.
#[track_caller]
pub fn assert_equal(left: &Contents, right: &Contents) {
    if left == right {
        return;
    }
    let mut found = Vec::new();
    for (name, value) in &left.data {
        match right.data.get(name) {
            None => found.push(format!("{name} is missing in the second")),
            Some(other) if other != value => found.push(format!("{name}: {value} against {other}")),
            Some(_) => {}
        }
    }
    found.extend(
        right
            .data
            .keys()
            .filter(|name| !left.data.contains_key(*name))
            .map(|name| format!("{name} is missing in the first")),
    );
    let (mut first, mut second) = (left.schema.lines(), right.schema.lines());
    loop {
        match (first.next(), second.next()) {
            (None, None) => break,
            (one, other) if one != other => {
                found.push(format!("schema: {one:?} against {other:?}"));
                break;
            }
            _ => {}
        }
    }
    found.truncate(10);
    panic!("the databases differ:\n{}", found.join("\n"));
}
