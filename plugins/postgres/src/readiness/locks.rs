//! Who keeps a table locked against reading: now (a finding), and while pg_dump waits for it.

use std::fmt;

use tokio_postgres::{Error, Row};
use vaultferry_plugin_sdk::Finding;
use vaultferry_plugin_sdk::readiness::OBJECTS_MAX;
use vaultferry_proto::Reason;

use crate::connection::Session;
use crate::quote;

/// How many holders a sentence names.
const NAMED: usize = 3;

/// How much of a query is told: enough to know it again, and too little for the values in it.
const WORDS: usize = 5;

/// What holders are read from: `pid` (null for a prepared transaction) and `gid` are the asking query's own.
const HOLDER: &str = "
    coalesce(pid, 0)::int4 as pid, coalesce(gid, '') as gid, coalesce(usename, '') as role, coalesce(application_name, '') as application,
    coalesce(state, '') as state, coalesce(query, '') as query, coalesce(extract(epoch from clock_timestamp() - began)::float8, -1) as age";

/// Tables and sequences that somebody holds for himself, and who: a session, or a prepared transaction, which has no process and is told by
/// the lock on its own number. Other users' queries and times are null without pg_read_all_stats.
const LOCKED: &str = "
from (
    select format('%I.%I', n.nspname, c.relname) as relation, l.pid, p.gid, coalesce(a.usename, p.owner)::text as usename,
           a.application_name, a.state, a.query, coalesce(a.xact_start, p.prepared) as began
    from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
    left join pg_stat_activity a on a.pid = l.pid
    left join pg_locks t on l.pid is null and t.pid is null and t.virtualtransaction = l.virtualtransaction
         and t.locktype = 'transactionid' and t.mode = 'ExclusiveLock' and t.granted
    left join pg_prepared_xacts p on p.transaction = t.transactionid
    where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted
      and l.database = (select oid from pg_database where datname = current_database())
      and l.pid is distinct from pg_backend_pid()
      and c.relkind in ('r', 'p', 'S') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
) as locked";

/// Who is in the way of our own sessions' locks, and of which relation. pg_blocking_pids says 0 for a prepared transaction.
const BLOCKING: &str = "
from (
    select (select l.relation::regclass::text from pg_locks l where l.pid = w.pid and not l.granted and l.locktype = 'relation' limit 1)
               as relation,
           b.pid, null::text as gid, a.usename::text as usename, a.application_name, a.state, a.query, a.xact_start as began
    from pg_stat_activity w cross join lateral unnest(pg_blocking_pids(w.pid)) as b(pid) left join pg_stat_activity a on a.pid = b.pid
    where left(w.application_name, length($1::text)) = $1::text and w.usename = session_user and w.datname = current_database()
      and w.wait_event_type = 'Lock' and w.pid <> pg_backend_pid()
) as blocking
order by relation, pid limit 20";

/// Somebody who holds a lock.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Holder {
    /// What is locked, as SQL names it.
    pub(crate) relation: String,
    pid: i32,
    gid: String,
    role: String,
    application: String,
    state: String,
    query: String,
    age_s: f64,
}

impl Holder {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            relation: row.try_get::<_, Option<String>>("relation")?.unwrap_or_default(),
            pid: row.try_get("pid")?,
            gid: row.try_get("gid")?,
            role: row.try_get("role")?,
            application: row.try_get("application")?,
            state: row.try_get("state")?,
            query: row.try_get("query")?,
            age_s: row.try_get("age")?,
        })
    }

    /// What ends it, as a remark: whether it should be ended is for people to know.
    fn end(&self) -> String {
        match (self.gid.as_str(), self.pid) {
            ("", 0) => "-- SELECT gid, prepared, owner FROM pg_prepared_xacts;".to_owned(),
            ("", pid) => format!("-- SELECT pg_terminate_backend({pid});"),
            (gid, _) => format!("-- COMMIT PREPARED {0}; or ROLLBACK PREPARED {0};", quote::literal(gid).trim_start()),
        }
    }
}

/// "pid 1234 (app, psql, for 12 s, idle in transaction: ALTER TABLE sales ADD x)"
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.gid.as_str(), self.pid) {
            ("", 0) => f.write_str("a prepared transaction")?,
            ("", pid) => write!(f, "pid {pid}")?,
            (gid, _) => write!(f, "the prepared transaction {gid}")?,
        }
        let mut parts: Vec<String> =
            [&self.role, &self.application].into_iter().filter(|part| !part.is_empty()).cloned().collect();
        if self.age_s >= 0.0 {
            parts.push(format!("for {:.0} s", self.age_s));
        }
        if self.state.starts_with("idle in transaction") {
            parts.push(self.state.clone());
        }
        let words = first_words(&self.query);
        match (parts.is_empty(), words.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => write!(f, " ({})", parts.join(", ")),
            (true, false) => write!(f, " ({words})"),
            (false, false) => write!(f, " ({}: {words})", parts.join(", ")),
        }
    }
}

/// The beginning of a query, without any value that may stand in it.
fn first_words(query: &str) -> String {
    let harmless = query.split(['\'', '$']).next().unwrap_or_default();
    // What another user's query is told as.
    if harmless.starts_with("<insufficient privilege>") {
        return String::new();
    }
    let words = harmless.split_whitespace().take(WORDS).collect::<Vec<_>>().join(" ");
    words.chars().take(100).collect()
}

/// Names a few of them.
pub(crate) fn names(holders: &[Holder]) -> String {
    let named = holders.iter().take(NAMED).map(Holder::to_string).collect::<Vec<_>>().join("; ");
    match holders.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

/// Tables that are locked at this moment: a backup would wait for them.
pub(super) async fn look(session: &Session) -> Result<Option<Finding>, Error> {
    let query =
        format!("select relation, count(*) over () as total, {HOLDER} {LOCKED} order by relation limit {OBJECTS_MAX}");
    let rows = session.client().query(&query, &[]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let total: i64 = first.try_get("total")?;
    let holders = rows.iter().map(Holder::from_row).collect::<Result<Vec<_>, _>>()?;
    let objects: Vec<String> = holders.iter().map(|holder| holder.relation.clone()).collect();
    let mut who = holders;
    who.sort_by(|a, b| (a.pid, &a.gid).cmp(&(b.pid, &b.gid)));
    who.dedup_by(|a, b| (a.pid, &a.gid) == (b.pid, &b.gid));
    let message =
        format!("{total} tables are locked now, and a backup would wait for them; they are held by {}", names(&who));
    let ends: Vec<String> = who.iter().take(NAMED).map(Holder::end).collect();
    let fix = format!("-- Let them come to their end. To end them by force:\n{}", ends.join("\n"));
    let finding = Finding::warning(Reason::LockTimeout, message).with_fix(fix);
    Ok(Some(finding.with_objects(objects, u64::try_from(total).unwrap_or_default())))
}

/// Who is in the way of the sessions called `application` (pg_dump's) in this database now. Needs version 9.6.
pub(crate) async fn blocking(session: &Session, application: &str) -> Result<Vec<Holder>, Error> {
    let query = format!("select relation, {HOLDER} {BLOCKING}");
    let rows = session.client().query(&query, &[&application]).await?;
    rows.iter().map(Holder::from_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder {
            relation: "public.sales".to_owned(),
            pid: 1234,
            gid: String::new(),
            role: "app".to_owned(),
            application: "psql".to_owned(),
            state: "idle in transaction".to_owned(),
            query: "ALTER TABLE sales\n ADD x text DEFAULT 'secret'".to_owned(),
            age_s: 12.4,
        }
    }

    #[test]
    fn a_holder_is_told_by_what_is_known_of_it() {
        let all = "pid 1234 (app, psql, for 12 s, idle in transaction: ALTER TABLE sales ADD x)";
        assert_eq!(holder().to_string(), all);
        let hidden = Holder {
            state: String::new(),
            query: "<insufficient privilege>".to_owned(),
            age_s: -1.0,
            application: String::new(),
            ..holder()
        };
        assert_eq!(hidden.to_string(), "pid 1234 (app)");
        let prepared = Holder { pid: 0, gid: "it's".to_owned(), ..hidden.clone() };
        assert_eq!(prepared.to_string(), "the prepared transaction it's (app)");
        assert_eq!(prepared.end(), "-- COMMIT PREPARED 'it''s'; or ROLLBACK PREPARED 'it''s';");
        let unknown = Holder { pid: 0, role: String::new(), ..hidden };
        assert_eq!(unknown.to_string(), "a prepared transaction");
        assert_eq!(names(&vec![unknown; 5]), format!("{}; and 2 more", ["a prepared transaction"; 3].join("; ")));
    }

    #[test]
    fn values_in_a_query_are_not_told() {
        assert_eq!(first_words("ALTER ROLE app PASSWORD 'secret'"), "ALTER ROLE app PASSWORD");
        assert_eq!(first_words("DO $$ secret $$"), "DO");
        assert_eq!(first_words("  lock\ttable a, b, c in access exclusive mode"), "lock table a, b, c");
        assert_eq!(first_words(""), "");
    }
}
