//! What is around a database and matters to whoever restores it: settings, tablespaces, collations, what is the database's own.

use std::collections::BTreeMap;

use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

use super::Itself;
use crate::client::Major;
use crate::connection::Session;

/// The settings that are asked for. Those about sessions are told as the database gives them to everybody who names none.
pub const SETTINGS: &[&str] = &[
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "block_size",
    "bytea_output",
    "data_checksums",
    "default_table_access_method",
    "default_text_search_config",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "max_connections",
    "max_identifier_length",
    "max_index_keys",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "password_encryption",
    "row_security",
    "server_encoding",
    "session_preload_libraries",
    "shared_preload_libraries",
    "standard_conforming_strings",
    "wal_level",
    "xmloption",
];

/// Those of the database itself, for every role.
const DATABASE_SETTINGS: &str = "
select unnest(setconfig) from pg_db_role_setting
where setrole = 0 and setdatabase = (select oid from pg_database where datname = current_database())
order by 1";

/// PUBLIC is no role. The view leaves out the mappings' options, which are secret.
const NAMED_ROLES: &str = "
select rolname::text from pg_roles
where oid in (select unnest(polroles) from pg_policy) or oid in (select umuser from pg_user_mappings)
order by 1";

/// Where objects are that are not in the database's own tablespace.
const TABLESPACES: &str = "
select spcname::text from pg_tablespace
where spcname not in ('pg_default', 'pg_global')
  and oid in (select reltablespace from pg_class where oid >= 16384 and relpersistence <> 't')
order by 1";

/// What was found. What a server does not tell is empty.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    pub(super) settings: BTreeMap<String, String>,
    pub(super) database_settings: Vec<String>,
    pub(super) tablespaces: Vec<String>,
    pub(super) collations: Vec<String>,
    pub(super) named_roles: Vec<String>,
    pub(super) itself: Option<Itself>,
}

impl Surroundings {
    /// Never fails: on whatever server this is, and whatever it hides, it keeps nobody from a backup.
    pub(super) async fn gather(session: &Session) -> Self {
        let collations = collations_query(session.major());
        Self {
            settings: told("settings", settings(session).await),
            database_settings: told("the database's settings", list(session, DATABASE_SETTINGS, &[]).await),
            tablespaces: told("tablespaces", list(session, TABLESPACES, &[]).await),
            collations: told("collations", list(session, &collations, &[]).await),
            named_roles: told("roles that policies name", list(session, NAMED_ROLES, &[]).await),
            itself: told("the database's comment and privileges", Itself::gather(session).await.map(Some)),
        }
    }
}

/// A connection that is gone is noticed by whoever asks next.
fn told<T: Default>(what: &str, answer: Result<T, Error>) -> T {
    answer.unwrap_or_else(|error| {
        tracing::info!("{what} are not told: {}", vaultferry_proto::status::chain(&error));
        T::default()
    })
}

/// `reset_val` is what a session began with; ours has changed some for itself. Settings that only some roles may see are left out.
async fn settings(session: &Session) -> Result<BTreeMap<String, String>, Error> {
    let query = "select name, coalesce(reset_val, setting, '') from pg_settings where name = any($1::text[])";
    let names: Vec<&str> = SETTINGS.to_vec();
    let mut settings = BTreeMap::new();
    for row in session.client().query(query, &[&names]).await? {
        settings.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(settings)
}

async fn list(session: &Session, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<String>, Error> {
    session.client().query(query, parameters).await?.iter().map(|row| row.try_get(0)).collect()
}

/// `database (libc, C.UTF-8, 2.36)`, `public.german (icu, de-DE, 153.120)`. Columns that older servers do not have are replaced by what they
/// mean there: before 15 the locale of ICU, too, was in `collcollate`.
fn collations_query(major: Major) -> String {
    let since = |number: u32| major >= Major::new(number);
    let (provider, version) =
        if since(15) { ("datlocprovider::text", "datcollversion") } else { ("'c'", "null::text") };
    let (database_locale, locale) = match () {
        () if since(17) => ("datlocale::text", "colllocale::text"),
        () if since(15) => ("daticulocale::text", "colliculocale::text"),
        () => ("null::text", "null::text"),
    };
    let name = |provider: &str| {
        format!("case {provider} when 'i' then 'icu' when 'b' then 'builtin' when 'd' then 'default' else 'libc' end")
    };
    format!(
        "with found(place, name, provider, locale, version) as (
             select 0, 'database', {database_provider}, coalesce({database_locale}, datcollate::text), {version}
             from pg_database where datname = current_database()
           union all
             select 1, format('%I.%I', n.nspname, c.collname), {provider_of_one}, coalesce({locale}, c.collcollate::text), c.collversion
             from pg_collation c join pg_namespace n on n.oid = c.collnamespace
             where c.oid >= 16384 and n.nspname <> 'pg_catalog'
               and not exists (select from pg_depend where classid = 'pg_collation'::regclass and objid = c.oid and deptype = 'e'))
         select format('%s (%s)', name, concat_ws(', ', provider, locale, version)) from found order by place, name",
        database_provider = name(provider),
        provider_of_one = name("c.collprovider::text"),
    )
}
