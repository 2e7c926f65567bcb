//! Readiness of a database (P36): everything that a backup needs is tried, nothing is changed.

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{Source, Validated, Warning};
use vaultferry_proto::{Problem, Reason};

use crate::client::{self, Kind};
use crate::connection::{Server, Session};
use crate::settings::Settings;

/// The size up to which the service recommends this kind of backup (P16); above it a warning is given (D20).
const RECOMMENDED_BYTES_MAX: u64 = 400_000_000_000;

/// How many tables without permission are named.
const NAMED_MAX: usize = 5;

/// What pg_dump reads and this user may not: it locks tables and reads sequences, needs their schemas for it, and gives up when
/// row-level security would hide rows.
const UNREADABLE: &str = "
select format('%I.%I', nspname, relname) from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where pg_class.oid >= 16384 and relkind in ('r', 'p', 'S') and relpersistence <> 't'
  and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = pg_class.oid and deptype = 'e')
  and not (has_schema_privilege(pg_namespace.oid, 'usage') and has_table_privilege(pg_class.oid, 'select')
           and not row_security_active(pg_class.oid))
order by 1 limit 1000";

/// Logs in, looks for a client, and asks whether everything may be read.
pub(crate) async fn validate(
    source: &Source,
    settings_json: &str,
    cancel: &CancellationToken,
) -> Result<Validated, Problem> {
    let settings = Settings::parse(settings_json)?;
    let server = Server::new(source, None)?;
    let session = server.connect(cancel).await?;
    let what_for = format!("the server {}", server.uri().server());
    client::choose(Kind::Dump, session.major(), &what_for, &settings, cancel).await?;
    refuse_unreadable(&session, cancel).await?;
    let size = size(&session, cancel).await?;
    Ok(Validated {
        source_identity: server.uri().identity(),
        suggested_name: server.uri().source_database()?.to_owned(),
        warnings: large(size).into_iter().collect(),
    })
}

async fn refuse_unreadable(session: &Session, cancel: &CancellationToken) -> Result<(), Problem> {
    let rows = session.run(session.client().query(UNREADABLE, &[]), Reason::DumpFailed, cancel).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut names: Vec<String> = rows.iter().take(NAMED_MAX).map(|row| row.get(0)).collect();
    if rows.len() > NAMED_MAX {
        names.push(format!("and {} more", rows.len() - NAMED_MAX));
    }
    let message = format!("the user may not read all of {}", names.join(", "));
    let fix = "Grant USAGE on the schemas and SELECT on all tables and sequences, or (since version 14) the role pg_read_all_data; \
               where row-level security is on, the user also needs BYPASSRLS.";
    Err(Problem::new(Reason::UserErrorMissingDBPermissions, message).with_fix(fix))
}

async fn size(session: &Session, cancel: &CancellationToken) -> Result<u64, Problem> {
    let query = session.client().query_one("select pg_database_size(current_database())", &[]);
    let row = session.run(query, Reason::DumpFailed, cancel).await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// The warning for a database that is larger than recommended.
pub(crate) fn large(size: u64) -> Option<Warning> {
    (size > RECOMMENDED_BYTES_MAX).then(|| Warning {
        reason: "SizeAboveRecommended".to_owned(),
        message: format!(
            "the database has {} GB; up to {} GB are recommended for this kind of backup",
            size / 1_000_000_000,
            RECOMMENDED_BYTES_MAX / 1_000_000_000
        ),
        fix: "Nothing must be done; expect backups and restores to take long.".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_the_recommended_size_is_worth_a_warning() {
        assert_eq!(large(RECOMMENDED_BYTES_MAX), None);
        let warning = large(512_000_000_000).unwrap();
        assert!(warning.message.contains("512 GB") && warning.message.contains("400 GB"), "{warning:?}");
    }
}
