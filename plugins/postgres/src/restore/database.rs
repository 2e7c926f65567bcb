//! The new database on its server: made, renamed, dropped.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::rules;
use crate::client::Major;
use crate::connection::{Server, Session};
use crate::facts::{Facts, LocaleProvider};
use crate::quote;

/// Creating and renaming are not interrupted: who does not wait for their end does not know what to undo. Copying template0 takes
/// seconds on a busy server.
const CREATE_TIMEOUT: Duration = Duration::from_secs(300);

/// Until a statement that was cancelled at the server has ended.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// For removing an unfinished database, of any size, when its sessions are being ended; and for whatever else is undone by a few statements.
pub(super) const DROP_TIMEOUT: Duration = Duration::from_secs(120);

/// How often renaming or dropping is tried while somebody is connected; the server itself waits 5 s each time.
const IN_USE_TRIES: u32 = 4;

/// Takes away what would keep a database from being dropped: subscriptions. Their other side is never asked; a restored one has not
/// connected to it, and its slot there, if any, is the source's.
const DROP_SUBSCRIPTIONS: &str = "
do $$ declare s name; begin
    for s in select subname from pg_catalog.pg_subscription
        where subdbid = (select oid from pg_catalog.pg_database where datname = current_database())
    loop
        execute format('alter subscription %I disable', s);
        execute format('alter subscription %I set (slot_name = none)', s);
        execute format('drop subscription %I', s);
    end loop;
end $$";

/// Makes the database `name`, empty, with the source's encoding and locale, in `tablespace` or the server's default one. When it fails in time,
/// nothing was made; after a timeout that is not known, but the server does not go on with it.
pub(super) async fn create(
    server: &Server,
    session: &Session,
    name: &str,
    facts: &Facts,
    tablespace: Option<&str>,
) -> Result<(), Problem> {
    let mut statement = create_statement(name, facts, session.major())?;
    if let Some(tablespace) = tablespace {
        statement.push_str(&format!(" tablespace {}", quote::identifier(tablespace)));
    }
    let too_late = || Problem::new(Reason::RestoreFailed, "the server did not create a database in time");
    let asked = session.client().query_one("select pg_backend_pid()", &[]);
    let process: i32 = match tokio::time::timeout(CREATE_TIMEOUT, asked).await {
        Ok(row) => row.map_err(|error| session.problem(&error, Reason::RestoreFailed))?.get(0),
        Err(_) => return Err(too_late()),
    };
    let mut created = std::pin::pin!(session.client().batch_execute(&statement));
    let problem = match tokio::time::timeout(CREATE_TIMEOUT, &mut created).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => rules::named(session.problem(&error, Reason::RestoreFailed)),
        Err(_) => {
            // Or else the database would come up after it was dropped, and nobody would know of it.
            if let Err(error) = cancel(server, process).await {
                tracing::info!("the statement that makes the database is not cancelled: {}", error.message);
            }
            if let Ok(Ok(())) = tokio::time::timeout(CANCEL_TIMEOUT, &mut created).await {
                return Ok(());
            }
            too_late()
        }
    };
    if problem.reason != Reason::RestoreFailed {
        return Err(problem);
    }
    let fix = format!(
        "The source has encoding {}, collation {} and character type {}; make these locales known to the target server.",
        facts.encoding, facts.collate, facts.ctype
    );
    Err(problem.with_fix(fix))
}

/// Cancels the statement of one of this user's own sessions.
async fn cancel(server: &Server, process: i32) -> Result<(), Problem> {
    let session = server.connect(&CancellationToken::new()).await?;
    in_time(CANCEL_TIMEOUT, "cancel a statement", &session, async {
        session.client().query_one("select pg_cancel_backend($1)", &[&process]).await.map(drop)
    })
    .await
}

/// Runs statements that undo something, for so long at most.
pub(super) async fn in_time(
    limit: Duration,
    what: &str,
    session: &Session,
    statements: impl Future<Output = Result<(), tokio_postgres::Error>>,
) -> Result<(), Problem> {
    match tokio::time::timeout(limit, statements).await {
        Ok(done) => done.map_err(|error| session.problem(&error, Reason::RestoreFailed)),
        Err(_) => Err(Problem::new(Reason::RestoreFailed, format!("the server did not {what} in time"))),
    }
}

/// Gives the complete database its name. A new connection: an older one may have been idle for hours.
pub(super) async fn rename(server: &Server, from: &str, to: &str) -> Result<(), Problem> {
    let session = server.connect(&CancellationToken::new()).await?;
    let statement = format!("alter database {} rename to {}", quote::identifier(from), quote::identifier(to));
    let renamed = while_in_use(|| session.client().batch_execute(&statement));
    match tokio::time::timeout(CREATE_TIMEOUT, renamed).await {
        Ok(renamed) => renamed.map_err(|error| session.problem(&error, Reason::RestoreFailed)),
        Err(_) => Err(Problem::new(Reason::RestoreFailed, "the server did not rename the database in time")),
    }
}

/// Which provider compares texts, its option of `create database`, and the first version that has it.
pub(super) fn provider(facts: &Facts) -> (&'static str, Option<&'static str>, u32) {
    match facts.locale_provider {
        LocaleProvider::Libc => ("libc", None, 15),
        LocaleProvider::Icu => ("icu", Some("icu_locale"), 15),
        LocaleProvider::Builtin => ("builtin", Some("builtin_locale"), 17),
    }
}

/// Why a server of this version cannot compare texts as the source does; `None` when it can.
pub(super) fn provider_problem(facts: &Facts, target: Major) -> Option<Problem> {
    let (provider, locale_option, since) = provider(facts);
    let locale = facts.locale.as_deref().unwrap_or_default();
    let (what, since) = match facts.locale_provider {
        LocaleProvider::Icu if facts.icu_rules.is_some() => (format!("{provider} with rules of its own"), 16),
        LocaleProvider::Builtin if locale == "PG_UNICODE_FAST" => (format!("{provider}'s {locale}"), 18),
        LocaleProvider::Libc | LocaleProvider::Icu | LocaleProvider::Builtin => (provider.to_owned(), since),
    };
    if target >= Major::new(since) || locale_option.is_none() {
        return None;
    }
    let message = format!("the database compares texts by {what}, which a server of version {target} cannot");
    let fix = format!("Restore to a server of version {since} or newer.");
    Some(Problem::new(Reason::LocaleMissing, message).with_fix(fix))
}

/// `create database` with the source's encoding and locale; template0 is the only template that takes another encoding.
pub(super) fn create_statement(name: &str, facts: &Facts, target: Major) -> Result<String, Problem> {
    let mut statement = format!(
        "create database {} template template0 encoding {} lc_collate {} lc_ctype {}",
        quote::identifier(name),
        quote::literal(&facts.encoding),
        quote::literal(&facts.collate),
        quote::literal(&facts.ctype),
    );
    if let Some(problem) = provider_problem(facts, target) {
        return Err(problem);
    }
    let (provider, locale_option, since) = provider(facts);
    if target < Major::new(since) {
        return Ok(statement);
    }
    statement.push_str(&format!(" locale_provider {provider}"));
    if let (Some(option), Some(locale)) = (locale_option, &facts.locale) {
        statement.push_str(&format!(" {option} {}", quote::literal(locale)));
    }
    if let Some(rules) = facts.icu_rules.as_ref().filter(|_| target >= Major::new(16)) {
        statement.push_str(&format!(" icu_rules {}", quote::literal(rules)));
    }
    Ok(statement)
}

/// Drops the database if it is there, and ends the sessions in it. On a timeout it is not known whether it is gone.
pub(super) async fn drop_database(server: &Server, name: &str) -> Result<(), Problem> {
    let session = server.connect(&CancellationToken::new()).await?;
    if let Err(error) = drop_subscriptions(server, &session, name).await {
        tracing::info!("subscriptions of the database {name} are not dropped: {}", error.message);
    }
    let work = async {
        let database = quote::identifier(name);
        if session.major() >= Major::new(13) {
            let statement = format!("drop database if exists {database} with (force)");
            return while_in_use(|| session.client().batch_execute(&statement)).await;
        }
        let statement = format!("drop database if exists {database}");
        while_in_use(|| async {
            let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1::text";
            session.client().query(end, &[&name]).await?;
            session.client().batch_execute(&statement).await
        })
        .await
    };
    in_time(DROP_TIMEOUT, "drop it", &session, work).await
}

/// Only a session in the database can do this; it is made when there is need for it.
async fn drop_subscriptions(server: &Server, session: &Session, name: &str) -> Result<(), Problem> {
    let query =
        "select from pg_subscription where subdbid = (select oid from pg_database where datname = $1::text) limit 1";
    let mut found = false;
    let looked = async {
        found = session.client().query_opt(query, &[&name]).await?.is_some();
        Ok::<_, tokio_postgres::Error>(())
    };
    in_time(DROP_TIMEOUT, "tell its subscriptions", session, looked).await?;
    if !found {
        return Ok(());
    }
    let inside = server.in_database(name).connect(&CancellationToken::new()).await?;
    let dropped = inside.client().batch_execute(DROP_SUBSCRIPTIONS);
    in_time(DROP_TIMEOUT, "drop its subscriptions", &inside, dropped).await
}

/// Tries again while the server answers that somebody is connected.
async fn while_in_use<F>(mut statement: impl FnMut() -> F) -> Result<(), tokio_postgres::Error>
where
    F: Future<Output = Result<(), tokio_postgres::Error>>,
{
    let mut tries = 1;
    loop {
        match statement().await {
            Err(error) if tries < IN_USE_TRIES && is_in_use(&error) => tries += 1,
            other => return other,
        }
    }
}

fn is_in_use(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE)
}
