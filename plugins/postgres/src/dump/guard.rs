//! What a running dump does to its source, watched from beside it: how old its snapshot is, and who waits for its locks.
//!
//! | what | when | what comes of it |
//! |---|---|---|
//! | the snapshot's age | passes `snapshot_budget` | a warning, once |
//! | | reaches `snapshot_limit` | the dump is ended: `SnapshotTooOld` |
//! | somebody waits for a lock that conflicts with pg_dump's | longer than `ddl_budget` | a warning, once |
//! | | for `yield_to_ddl` | the dump is ended: `DdlWaits` |
//!
//! Invariants:
//! - The age is a matter of our own clock. Who waits is asked for in a session of its own; a dump goes on when that cannot be had, is slow, or
//!   breaks, and it is tried again a while later.
//! - A dump that is done within [`FIRST_LOOK`] costs no session. A look is two short queries of the server's own views, which take no lock but
//!   those of the lock table for a moment; looks take [`SHARE`] of the time at most, however many locks there are.
//! - Rights beyond a login are not needed: everybody may see who waits for what. Of another one's statement at most the first word is told.
//!
//! pg_dump's locks (`ACCESS SHARE`) are in the way of one kind of lock only, `ACCESS EXCLUSIVE`. Whoever waits for that on a table that pg_dump has
//! locked waits for pg_dump; all others who wait for this table wait behind him.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::{Error, Row};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{Reporter, Warning};
use vaultferry_proto::status::chain;
use vaultferry_proto::{Problem, Reason};

use crate::connection::{Server, Session};
use crate::settings::Settings;

/// How often the snapshot's age is told and compared.
const AGE_EVERY: Duration = Duration::from_secs(1);

/// A dump that is done sooner is in nobody's way for long.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Between two looks, unless somebody wants to know sooner: often enough for people.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Between two looks at least.
const LOOK_EVERY_LEAST: Duration = Duration::from_millis(500);

/// Looks take at most one part in so many of the time: the list of locks is long when there are very many tables.
const SHARE: u32 = 50;

/// A look that takes longer is given up. The server ends its queries sooner by itself ([`SETTLE`]).
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// Until a new session is tried after one that broke, or could not be had.
const AGAIN: Duration = Duration::from_secs(60);

/// A look must never be what a server suffers from: unlike pg_dump's own session this one has limits.
const SETTLE: &str = "set statement_timeout = '5s'; set lock_timeout = '1s'";

/// Everybody who waits for a lock that the sessions called `$1` (pg_dump's; a pooler may put its client's address behind it) are in the way
/// of, and how many wait behind him.
const WAITERS: &str = "
with locks as (
    select l.pid, l.relation, l.mode, l.granted from pg_locks l
    where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
), ours as (
    select distinct l.relation from locks l join pg_stat_activity a on a.pid = l.pid
    where l.granted and left(a.application_name, length($1::text)) = $1::text and a.usename = session_user
      and a.pid <> pg_backend_pid()
)
select w.pid, format('%I.%I', n.nspname, c.relname) as relation, coalesce(a.usename::text, '') as role,
       coalesce(a.application_name, '') as application, coalesce(a.query, '') as query,
       (select count(*) from locks b where b.relation = w.relation and not b.granted and b.pid <> w.pid) as behind
from locks w join ours o on o.relation = w.relation
join pg_class c on c.oid = w.relation join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_activity a on a.pid = w.pid
where not w.granted and w.mode = 'AccessExclusiveLock'
order by w.pid limit 100";

/// How many transactions began since the oldest snapshot of the sessions called `$1`.
const TRANSACTIONS: &str = "
select coalesce(max(age(backend_xmin)), 0)::int8 from pg_stat_activity
where left(application_name, length($1::text)) = $1::text and usename = session_user and datname = current_database()
  and pid <> pg_backend_pid()";

/// Watches one dump.
pub(super) struct Guard<'a> {
    /// Where the database is.
    pub(super) server: &'a Server,
    /// What it may do to its source.
    pub(super) settings: &'a Settings,
    /// Who is told.
    pub(super) reporter: &'a Reporter,
    /// When pg_dump was started; it takes its snapshot a moment later.
    pub(super) since: Instant,
}

/// What the last look has seen.
#[derive(Debug, Default)]
struct Seen {
    transactions: u64,
    /// Who waits longest, in words, and since when.
    waits: Option<(String, Instant)>,
}

impl Guard<'_> {
    /// Runs beside the dump, until it is dropped. Returns only when the dump is to be ended, and tells why.
    pub(super) async fn watch(&self, cancel: &CancellationToken) -> Problem {
        let seen = Mutex::default();
        tokio::select! {
            biased;
            problem = self.watch_age(&seen) => problem,
            problem = self.watch_waiters(&seen, cancel) => problem,
        }
    }

    /// Tells how old the snapshot is, until it is too old.
    async fn watch_age(&self, seen: &Mutex<Seen>) -> Problem {
        let (budget, limit) = (self.settings.snapshot_budget(), self.settings.snapshot_limit());
        let mut warned = false;
        loop {
            let age = self.since.elapsed();
            let (note, transactions) = {
                let seen = lock(seen);
                (note(age, &seen), seen.transactions)
            };
            self.reporter.note(note);
            if limit.is_some_and(|limit| age >= limit) {
                let held = held(age, transactions);
                return Problem::new(Reason::SnapshotTooOld, format!("the backup was ended: {held} (snapshot_limit)"));
            }
            if age > budget && !warned {
                warned = true;
                let held = held(age, transactions);
                self.warn(Reason::SnapshotTooOld, format!("{held}, and the backup goes on (snapshot_budget)")).await;
            }
            tokio::time::sleep(AGE_EVERY).await;
        }
    }

    /// Looks who waits, until one has waited for too long.
    async fn watch_waiters(&self, seen: &Mutex<Seen>, cancel: &CancellationToken) -> Problem {
        tokio::time::sleep(FIRST_LOOK).await;
        let mut waiters = Waiters::default();
        let mut warned = false;
        loop {
            let detail = match self.open(cancel).await {
                Ok(session) => match self.look_on(&session, &mut waiters, &mut warned, seen).await {
                    Ok(problem) => return problem,
                    Err(detail) => detail,
                },
                Err(problem) => problem.message,
            };
            tracing::info!("who waits for pg_dump is not known: {detail}");
            // Somebody may wait still, but nobody knows.
            lock(seen).waits = None;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn open(&self, cancel: &CancellationToken) -> Result<Session, Problem> {
        let session = self.server.connect(cancel).await?;
        session.run(session.client().batch_execute(SETTLE), Reason::DumpFailed, cancel).await?;
        Ok(session)
    }

    /// Looks again and again, until one has waited for too long (`Ok`), or the session is no good any more.
    async fn look_on(
        &self,
        session: &Session,
        waiters: &mut Waiters,
        warned: &mut bool,
        seen: &Mutex<Seen>,
    ) -> Result<Problem, String> {
        let (budget, limit) = (self.settings.ddl_budget(), self.settings.yield_to_ddl());
        loop {
            let begin = Instant::now();
            let looked = tokio::time::timeout(LOOK_TIMEOUT, look(session, self.server.application())).await;
            let looked = looked.map_err(|_| format!("no answer in {} s", LOOK_TIMEOUT.as_secs()))?;
            let (rows, transactions) = looked.map_err(|error| chain(&error))?;
            // The last look may come when pg_dump's session is over, and its output still on its way.
            let transactions = transactions.max(lock(seen).transactions);
            self.reporter.set_snapshot_transactions(transactions);
            let longest = waiters.follow(rows, Instant::now());
            {
                let mut seen = lock(seen);
                seen.transactions = transactions;
                seen.waits = longest.as_ref().map(|(waiter, since)| (waiter.to_string(), *since));
            }
            if let Some((waiter, since)) = longest {
                let waited = since.elapsed();
                let seconds = waited.as_secs();
                if limit.is_some_and(|limit| waited >= limit) {
                    let message = format!("the backup gave way after {seconds} s: {waiter} (yield_to_ddl)");
                    return Ok(Problem::new(Reason::DdlWaits, message));
                }
                if waited >= budget && !*warned {
                    *warned = true;
                    let message =
                        format!("for {seconds} s, because the backup reads that table, {waiter} (ddl_budget)");
                    self.warn(Reason::DdlWaits, message).await;
                }
            }
            tokio::time::sleep(pause(self.settings, begin.elapsed())).await;
        }
    }

    async fn warn(&self, reason: Reason, message: String) {
        let fix = reason.default_fix().to_owned();
        self.reporter.warn(Warning { reason: reason.as_str().to_owned(), message, fix }).await;
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until the next look, after one that took so long. Twice as often as the shortest wait that somebody wants to know of.
fn pause(settings: &Settings, took: Duration) -> Duration {
    let wanted = settings.yield_to_ddl().map_or(settings.ddl_budget(), |limit| limit.min(settings.ddl_budget()));
    let usual = (wanted / 2).clamp(LOOK_EVERY_LEAST, LOOK_EVERY);
    usual.max(took.saturating_mul(SHARE))
}

/// "the source's snapshot is held for 12 s; 3400 transactions have begun there since; pid 7 (app: ALTER) waits for public.sales, for 5 s"
fn note(age: Duration, seen: &Seen) -> String {
    let mut note = format!("the source's snapshot is held for {} s", age.as_secs());
    if seen.transactions > 0 {
        note.push_str(&format!("; {} transactions have begun there since", seen.transactions));
    }
    if let Some((waiter, since)) = &seen.waits {
        note.push_str(&format!("; {waiter}, for {} s", since.elapsed().as_secs()));
    }
    note
}

fn held(age: Duration, transactions: u64) -> String {
    let transactions = match transactions {
        0 => String::new(),
        transactions => format!(", in which {transactions} transactions began there"),
    };
    format!("the source's snapshot was held for {} s{transactions}", age.as_secs())
}

/// One look: who waits, and how many transactions have begun.
async fn look(session: &Session, application: &str) -> Result<(Vec<Waiter>, u64), Error> {
    let rows = session.client().query(WAITERS, &[&application]).await?;
    let waiters = rows.iter().map(Waiter::from_row).collect::<Result<Vec<_>, Error>>()?;
    let transactions: i64 = session.client().query_one(TRANSACTIONS, &[&application]).await?.try_get(0)?;
    Ok((waiters, u64::try_from(transactions).unwrap_or_default()))
}

/// Somebody who waits for pg_dump.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiter {
    pid: i32,
    /// As SQL names it.
    relation: String,
    role: String,
    application: String,
    /// The first word of the statement; empty when it is not known.
    word: String,
    /// Others who wait for the same relation.
    behind: i64,
}

impl Waiter {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            pid: row.try_get("pid")?,
            relation: row.try_get("relation")?,
            role: row.try_get("role")?,
            application: row.try_get("application")?,
            word: first_word(row.try_get("query")?),
            behind: row.try_get("behind")?,
        })
    }
}

/// "pid 1234 (app, psql: ALTER) waits for public.sales, and 17 others behind it"
impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        let names: Vec<&str> =
            [&self.role, &self.application].into_iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        match (names.is_empty(), self.word.is_empty()) {
            (true, true) => {}
            (false, true) => write!(f, " ({})", names.join(", "))?,
            (true, false) => write!(f, " ({})", self.word)?,
            (false, false) => write!(f, " ({}: {})", names.join(", "), self.word)?,
        }
        write!(f, " waits for {}", self.relation)?;
        match self.behind {
            ..1 => Ok(()),
            1 => f.write_str(", and 1 other behind it"),
            others => write!(f, ", and {others} others behind it"),
        }
    }
}

/// "ALTER". Nothing of what may hold somebody's values; nothing when it begins with a remark, or may not be seen.
fn first_word(query: &str) -> String {
    let word: String = query.trim_start().chars().take_while(char::is_ascii_alphabetic).take(20).collect();
    word.to_ascii_uppercase()
}

/// Since when each of them was seen waiting.
#[derive(Debug, Default)]
struct Waiters {
    since: HashMap<(i32, String), Instant>,
}

impl Waiters {
    /// Takes in what is seen now; who has waited longest, and since when.
    fn follow(&mut self, seen: Vec<Waiter>, now: Instant) -> Option<(Waiter, Instant)> {
        let mut since = HashMap::new();
        let mut longest: Option<(Waiter, Instant)> = None;
        for waiter in seen {
            let key = (waiter.pid, waiter.relation.clone());
            let from = self.since.get(&key).copied().unwrap_or(now);
            since.insert(key, from);
            if longest.as_ref().is_none_or(|(_, earliest)| from < *earliest) {
                longest = Some((waiter, from));
            }
        }
        self.since = since;
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(pid: i32, relation: &str) -> Waiter {
        Waiter {
            pid,
            relation: relation.to_owned(),
            role: "app".to_owned(),
            application: "psql".to_owned(),
            word: "ALTER".to_owned(),
            behind: 0,
        }
    }

    #[test]
    fn a_waiter_is_told_by_what_is_known_of_it() {
        let known = waiter(7, "public.sales");
        assert_eq!(known.to_string(), "pid 7 (app, psql: ALTER) waits for public.sales");
        let hidden = Waiter { application: String::new(), word: String::new(), behind: 1, ..known.clone() };
        assert_eq!(hidden.to_string(), "pid 7 (app) waits for public.sales, and 1 other behind it");
        let gone = Waiter { role: String::new(), application: String::new(), word: String::new(), behind: 5, ..known };
        assert_eq!(gone.to_string(), "pid 7 waits for public.sales, and 5 others behind it");
    }

    #[test]
    fn of_a_statement_the_first_word_is_told() {
        for (query, word) in [
            ("alter table users add x text default 'secret'", "ALTER"),
            ("  TRUNCATE\tsecret", "TRUNCATE"),
            ("-- secret\nALTER TABLE t", ""),
            ("/* secret */ DROP TABLE t", ""),
            ("<insufficient privilege>", ""),
            ("DO$$secret$$", "DO"),
            ("", ""),
        ] {
            assert_eq!(first_word(query), word, "{query}");
        }
    }

    #[test]
    fn a_wait_goes_on_until_it_is_not_seen() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut waiters = Waiters::default();
        let mut follow = |seen: &[(i32, &str)], now: u64| {
            let seen = seen.iter().map(|(pid, relation)| waiter(*pid, relation)).collect();
            waiters.follow(seen, at(now)).map(|(waiter, since)| (waiter.pid, since.duration_since(start).as_secs()))
        };
        assert_eq!(follow(&[], 0), None);
        assert_eq!(follow(&[(2, "a")], 10), Some((2, 10)));
        assert_eq!(follow(&[(1, "b"), (2, "a")], 20), Some((2, 10)), "who came first has waited longest");
        assert_eq!(follow(&[(1, "b"), (2, "c")], 30), Some((1, 20)), "another table is another wait");
        assert_eq!(follow(&[], 40), None);
        assert_eq!(follow(&[(1, "b")], 50), Some((1, 50)), "it has waited anew");
    }

    #[test]
    fn looks_come_in_time_and_take_little_of_it() {
        let with = |ddl_budget_s, yield_to_ddl_s| Settings { ddl_budget_s, yield_to_ddl_s, ..Settings::default() };
        let millis = Duration::from_millis;
        for (settings, took, expected) in [
            (Settings::default(), millis(1), LOOK_EVERY),
            (with(60, Some(6)), millis(1), millis(3000)),
            (with(1, None), millis(1), LOOK_EVERY_LEAST),
            (with(1, None), millis(100), millis(5000)),
            (Settings::default(), millis(1000), millis(50_000)),
        ] {
            assert_eq!(pause(&settings, took), expected, "{settings:?}");
        }
    }

    #[test]
    fn a_note_says_all_that_is_seen() {
        let age = Duration::from_millis(12_900);
        assert_eq!(note(age, &Seen::default()), "the source's snapshot is held for 12 s");
        let seen = Seen { transactions: 3400, waits: Some(("pid 7 waits for a".to_owned(), Instant::now())) };
        let expected = "the source's snapshot is held for 12 s; 3400 transactions have begun there since; pid 7 waits for a, for 0 s";
        assert_eq!(note(age, &seen), expected);
    }
}
