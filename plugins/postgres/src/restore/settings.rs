//! Settings of the database for all of its users (`ALTER DATABASE … SET`) and for some (`ALTER ROLE … IN DATABASE … SET`), which pg_restore
//! gives only to a database that it makes itself.
//!
//! They come late: one such as `default_transaction_read_only` would keep pg_restore from working. A setting that this server does not
//! know, or that this user may not give, is a warning with the statement that gives it, but without its value: that may be a secret.

use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Warning;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::{Problem, Reason};

use super::rules;
use crate::connection::Session;
use crate::quote::{identifier, literal};

/// With these a session would be somebody else before the statement that keeps them.
const IDENTITIES: [&str; 2] = ["role", "session_authorization"];

/// Whom settings are for.
#[derive(Debug, Clone, Copy)]
pub(super) struct For<'a> {
    /// `None`: everybody.
    pub(super) role: Option<&'a str>,
    /// As it is called now.
    pub(super) database: &'a str,
}

impl For<'_> {
    /// The beginning of the statement.
    fn alter(&self) -> String {
        let database = identifier(self.database);
        match self.role {
            None => format!("alter database {database}"),
            Some(role) => format!("alter role {} in database {database}", identifier(role)),
        }
    }
}

/// Gives one setting, which is "name=value". `session` is a session in the database, `name` what that will be called. A warning when it could
/// not be given.
pub(super) async fn apply(
    session: &Session,
    whose: For<'_>,
    database: &str,
    setting: &str,
    cancel: &CancellationToken,
) -> Result<Option<Warning>, Problem> {
    let Some((name, value)) = setting.split_once('=') else { return Ok(None) };
    let is_identity = IDENTITIES.iter().any(|identity| name.eq_ignore_ascii_case(identity));
    let first = if is_identity { None } else { Some(script(whose, name, value)) };
    let mut last = None;
    for script in first.into_iter().chain([plain_script(whose, name, value)]) {
        let answer = async { Ok(session.client().batch_execute(&script).await) };
        let Err(error) = unless_cancelled(answer, cancel).await? else { return Ok(None) };
        let problem = session.problem(&error, Reason::RestoreFailed);
        if problem.reason == Reason::UserErrorServerConnectionClosed {
            return Err(problem);
        }
        session.run(session.client().batch_execute("rollback"), Reason::RestoreFailed, cancel).await?;
        last = Some(problem.message);
        // No running session can take such a one, but a database can.
        if error.code() != Some(&SqlState::CANT_CHANGE_RUNTIME_PARAM) {
            break;
        }
    }
    Ok(last.map(|said| not_given(For { database, ..whose }, name, value, &said)))
}

/// The value is told to nobody but who may read the point.
fn not_given(whose: For<'_>, name: &str, value: &str, said: &str) -> Warning {
    // "invalid value for parameter "x": "secret""
    let said = said.replace(&format!("\"{value}\""), "\"…\"");
    let message = match whose.role {
        None => format!("the database's setting {name} could not be restored: {said}"),
        Some(role) => {
            format!("the setting {name} of the role {} in the database could not be restored: {said}", identifier(role))
        }
    };
    let fix = format!(
        "Give it to the restored database: {} SET {} TO …; its value is in the point's database.json (vaultferry restore files).",
        whose.alter(),
        identifier(name)
    );
    rules::partly(message, fix)
}

/// The value goes through `set_config`, which takes it as the catalog has it; lists such as a search path would have to be taken apart
/// otherwise. It holds for the transaction only, which may write even when the setting says that none may.
fn script(whose: For<'_>, name: &str, value: &str) -> String {
    format!(
        "begin transaction read write; select pg_catalog.set_config({}, {}, true); {} set {} from current; commit",
        literal(name),
        literal(value),
        whose.alter(),
        identifier(name)
    )
}

/// As one value: for `role` and `session_authorization`, which would change who sets them, and after a refusal. No list is among these.
fn plain_script(whose: For<'_>, name: &str, value: &str) -> String {
    let alter = whose.alter();
    format!("begin transaction read write; {alter} set {} to {}; commit", identifier(name), literal(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYBODY: For<'static> = For { role: None, database: "d" };

    #[test]
    fn a_value_that_is_not_given_is_not_told() {
        let Warning { message, fix, .. } =
            not_given(EVERYBODY, "app.key", "s3cret", "h: invalid value for parameter \"app.key\": \"s3cret\"");
        assert!(message.ends_with("parameter \"app.key\": \"…\""), "{message}");
        assert!(fix.contains("SET \"app.key\" TO …") && !fix.contains("s3cret"), "{fix}");
    }

    #[test]
    fn values_are_quoted() {
        let script = script(EVERYBODY, "search_path", "\"$user\", it's");
        assert!(script.contains("set_config('search_path', '\"$user\", it''s', true)"), "{script}");
        assert!(script.ends_with("alter database \"d\" set \"search_path\" from current; commit"), "{script}");
        let script = plain_script(For { role: Some("a\"b"), ..EVERYBODY }, "role", "x");
        assert!(script.ends_with("; alter role \"a\"\"b\" in database \"d\" set \"role\" to 'x'; commit"), "{script}");
    }
}
