//! Settings of the database for all of its users (`ALTER DATABASE … SET`), which no dump has.
//!
//! They come last: one such as `default_transaction_read_only` would keep pg_restore from working. A setting that this server does not
//! know, or that this user may not give, is a warning with the statement that gives it, but without its value: that may be a secret.

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Warning;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::{Problem, Reason};

use super::rules;
use crate::connection::Session;
use crate::quote::{identifier, literal};

/// Gives the database the settings, each as "name=value". `session` is a session in it.
pub(super) async fn apply(
    session: &Session,
    database: &str,
    settings: &[String],
    cancel: &CancellationToken,
) -> Result<Vec<Warning>, Problem> {
    let mut warnings = Vec::new();
    for setting in settings {
        let Some((name, value)) = setting.split_once('=') else { continue };
        let script = script(database, name, value);
        let answer = async { Ok(session.client().batch_execute(&script).await) };
        let Err(error) = unless_cancelled(answer, cancel).await? else { continue };
        let problem = session.problem(&error, Reason::RestoreFailed);
        if problem.reason == Reason::UserErrorServerConnectionClosed {
            return Err(problem);
        }
        session.run(session.client().batch_execute("rollback"), Reason::RestoreFailed, cancel).await?;
        warnings.push(not_given(name, value, &problem.message));
    }
    Ok(warnings)
}

/// The value is told to nobody but who may read the point.
fn not_given(name: &str, value: &str, said: &str) -> Warning {
    // "invalid value for parameter "x": "secret""
    let said = said.replace(&format!("\"{value}\""), "\"…\"");
    let message = format!("the database's setting {name} could not be restored: {said}");
    let fix = format!(
        "Give it to the restored database: ALTER DATABASE name SET {} TO …; its value is in the point's database.json (vaultferry restore files).",
        identifier(name)
    );
    rules::partly(message, fix)
}

/// The value goes through `set_config`, which takes it as the catalog has it; lists such as a search path would have to be taken apart
/// otherwise. It holds for the transaction only, which may write even when the setting says that none may.
fn script(database: &str, name: &str, value: &str) -> String {
    format!(
        "begin transaction read write; select pg_catalog.set_config({}, {}, true); alter database {} set {} from current; commit",
        literal(name),
        literal(value),
        identifier(database),
        identifier(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_given_is_not_told() {
        let Warning { message, fix, .. } =
            not_given("app.key", "s3cret", "h: invalid value for parameter \"app.key\": \"s3cret\"");
        assert!(message.ends_with("parameter \"app.key\": \"…\""), "{message}");
        assert!(fix.contains("SET \"app.key\" TO …") && !fix.contains("s3cret"), "{fix}");
    }

    #[test]
    fn values_are_quoted() {
        let script = script("d", "search_path", "\"$user\", it's");
        assert!(script.contains("set_config('search_path', '\"$user\", it''s', true)"), "{script}");
        assert!(script.ends_with("alter database \"d\" set \"search_path\" from current; commit"), "{script}");
    }
}
