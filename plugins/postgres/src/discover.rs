//! The databases of a server (P35), each as a source of its own. One query in one session; nothing is changed.
//!
//! - Templates are left out: they are what databases are made from, and hold nothing of their own. So are a managed service's own databases,
//!   which belong to its own role, and which nobody else may read.
//! - Whether a database can be backed up is for [`crate::validate`] to say, which has to log in to it. Here only what the server's list
//!   tells already: whether anybody may log in, and whether this user may.
//! - Sizes of databases that this user may not connect to are not told by the server.

use tokio_postgres::{Error, Row};
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::{Discovered, DiscoveredSource, Source, Warning};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::percent::encode;

use crate::connection::Server;
use crate::quote::identifier;
use crate::settings::Settings;
use crate::uri::Uri;

pub(crate) mod azure;

/// Every server has it, but where somebody has dropped it.
const LOGIN_DATABASE: &str = "postgres";

/// The protocol's limit: so many databases are some 3 MB of answer, and several times that with long names, of the 16 MiB that it may have.
const DATABASES_MAX: usize = 10_000;

/// `datconnlimit` is -2 for what an interrupted DROP DATABASE has left: nobody can log in to it.
const DATABASES: &str = "
select datname::text as name, pg_encoding_to_char(encoding)::text as encoding, datallowconn and datconnlimit <> -2 as allows,
  has_database_privilege(oid, 'connect') as may_connect,
  case when has_database_privilege(oid, 'connect') then pg_database_size(oid) end as size
from pg_database
where not datistemplate and not (datname in ('azure_maintenance', 'azure_sys', 'rdsadmin', 'cloudsqladmin')
                                 and pg_get_userbyid(datdba) in ('azuresu', 'azure_superuser', 'rdsadmin', 'cloudsqladmin'))
order by datname limit 10001";

/// Logs in to the URI's database, or to `postgres`, and lists what is there.
pub(crate) async fn discover(
    source: &Source,
    settings_json: &str,
    cancel: &CancellationToken,
) -> Result<Discovered, Problem> {
    Settings::parse(settings_json)?;
    let server = Server::new(source, Some(LOGIN_DATABASE))?;
    let session = server.connect(cancel).await?;
    let queries = async {
        let about = "select current_setting('server_version'), pg_is_in_recovery()";
        let about = session.client().query_one(about, &[]).await?;
        let rows = session.client().query(DATABASES, &[]).await?;
        Ok::<_, Error>((about.try_get::<_, String>(0)?, about.try_get::<_, bool>(1)?, rows))
    };
    let (server_version, replica, rows) = session.run(queries, Reason::UserErrorServerConnectionClosed, cancel).await?;
    if rows.len() > DATABASES_MAX {
        let message = format!("{} has more than {DATABASES_MAX} databases", server.uri().server());
        return Err(Problem::new(Reason::InvalidSource, message).with_fix("Name the databases one by one."));
    }
    let sources: Result<Vec<_>, Error> = rows.iter().map(|row| database(row, &source.uri, server.uri())).collect();
    let sources = sources.map_err(|error| session.problem(&error, Reason::UserErrorServerConnectionClosed))?;
    let server_identity = Uri { database: None, ..server.uri().clone() }.identity();
    Ok(Discovered { server_identity, server_name: server.uri().server(), server_version, replica, sources })
}

/// The extensions of one database, with their versions, by name.
pub(crate) async fn extensions(
    source: &Source,
    settings_json: &str,
    cancel: &CancellationToken,
) -> Result<Vec<String>, Problem> {
    Settings::parse(settings_json)?;
    let session = Server::new(source, None)?.connect(cancel).await?;
    let query = async {
        let statement = "select extname || ' ' || extversion from pg_extension order by extname";
        let rows = session.client().query(statement, &[]).await?;
        rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, Error>>()
    };
    session.run(query, Reason::UserErrorServerConnectionClosed, cancel).await
}

fn database(row: &Row, server_text: &str, server: &Uri) -> Result<DiscoveredSource, Error> {
    let name: String = row.try_get("name")?;
    let size: Option<i64> = row.try_get("size")?;
    let (allows_connections, may_connect): (bool, bool) = (row.try_get("allows")?, row.try_get("may_connect")?);
    Ok(DiscoveredSource {
        uri: with_database(server_text, &name),
        source_identity: Uri { database: Some(name.clone()), ..server.clone() }.identity(),
        size: size.and_then(|size| u64::try_from(size).ok()),
        encoding: row.try_get("encoding")?,
        allows_connections,
        obstacle: obstacle(&name, &server.user, allows_connections, may_connect),
        name,
    })
}

fn obstacle(database: &str, user: &str, allows_connections: bool, may_connect: bool) -> Option<Warning> {
    let (message, fix) = match (allows_connections, may_connect) {
        (true, true) => return None,
        (true, false) => (
            format!("the user {user} may not connect to the database {database}"),
            format!("Run at the server: GRANT CONNECT ON DATABASE {} TO {};", identifier(database), identifier(user)),
        ),
        (false, _) => (
            format!("the database {database} allows no connections"),
            format!(
                "If it is to be backed up, run at the server: ALTER DATABASE {} WITH ALLOW_CONNECTIONS true;",
                identifier(database)
            ),
        ),
    };
    Some(Warning { reason: Reason::UserErrorMissingDBPermissions.to_string(), message, fix })
}

/// The same URI, with this database in the place of its own. What else stands in it, parameters above all, stays as it was written;
/// it has been parsed before.
fn with_database(uri: &str, database: &str) -> String {
    let (head, query) = uri.split_once('?').map_or((uri, None), |(head, query)| (head, Some(query)));
    let (scheme, rest) = head.split_once("://").unwrap_or(("postgres", head));
    let authority = rest.split('/').next().unwrap_or_default();
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{scheme}://{authority}/{}{query}", encode(database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_takes_its_place_in_the_servers_uri() {
        let awkward = "Shop \"\u{3a9}\" 100% a/b?c#d&e=f";
        for server in [
            "postgres://u@h",
            "postgres://u@h/",
            "postgresql://u%40corp@[::1]:5433/postgres?sslmode=require",
            "postgres://u@/?host=/run/postgresql&port=5433",
            "postgres://u@%2Ftmp%2Fpg:5433/other?sslmode=disable",
        ] {
            let before: Uri = server.parse().expect(server);
            let uri = with_database(server, awkward);
            let after: Uri = uri.parse().expect(&uri);
            assert_eq!(after, Uri { database: Some(awkward.to_owned()), ..before.clone() }, "{uri}");
            let server_identity = Uri { database: None, ..before }.identity();
            assert!(after.identity().starts_with(&server_identity), "{server_identity}");
        }
    }

    #[test]
    fn what_stands_in_the_way_has_a_statement_that_mends_it() {
        assert_eq!(obstacle("d", "u", true, true), None);
        let grant = obstacle("a\"b", "u", true, false).unwrap();
        assert!(grant.fix.ends_with("GRANT CONNECT ON DATABASE \"a\"\"b\" TO \"u\";"), "{grant:?}");
        for may_connect in [true, false] {
            let closed = obstacle("d", "u", false, may_connect).unwrap();
            assert!(closed.fix.ends_with("ALTER DATABASE \"d\" WITH ALLOW_CONNECTIONS true;"), "{closed:?}");
        }
    }
}
