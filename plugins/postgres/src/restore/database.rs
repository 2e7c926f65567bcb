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

/// For removing an unfinished database, of any size, when its sessions are being ended.
const DROP_TIMEOUT: Duration = Duration::from_secs(120);

/// How often renaming or dropping is tried while somebody is connected; the server itself waits 5 s each time.
const IN_USE_TRIES: u32 = 4;

/// Makes the database `name`, empty, with the source's encoding and locale.
pub(super) async fn create(session: &Session, name: &str, facts: &Facts) -> Result<(), Problem> {
    let statement = create_statement(name, facts, session.major())?;
    let created = session.client().batch_execute(&statement);
    let problem = match tokio::time::timeout(CREATE_TIMEOUT, created).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => rules::named(session.problem(&error, Reason::RestoreFailed)),
        Err(_) => Problem::new(Reason::RestoreFailed, "the server did not create a database in time"),
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
    if target >= Major::new(since) || locale_option.is_none() {
        return None;
    }
    let message = format!("the database compares texts by {provider}, which a server of version {target} cannot");
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
    match tokio::time::timeout(DROP_TIMEOUT, work).await {
        Ok(dropped) => dropped.map_err(|error| session.problem(&error, Reason::RestoreFailed)),
        Err(_) => Err(Problem::new(Reason::RestoreFailed, "the server did not drop it in time")),
    }
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
