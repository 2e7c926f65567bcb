//! `database.json`, the second stream of every point: what a restore must know before it touches the target, and what people ask of
//! a backup without restoring it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Error;
use vaultferry_proto::{Problem, Reason};

use crate::client::{Major, Program};
use crate::connection::Session;

/// The version of the format below. Fields may be added without a new one.
pub const FORMAT_VERSION: u32 = 1;

/// Larger than any real one (100,000 roles), and small enough to be held in memory.
pub const SIZE_MAX: u64 = 16 * 1024 * 1024;

/// What is known of a backed-up database besides its dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The database's name.
    pub database: String,
    /// Who owns it. Not restored.
    pub owner: String,
    /// The server's `server_version_num`.
    pub server_version_num: i32,
    /// The version of the pg_dump that made the dump.
    pub pg_dump_version: String,
    /// The name of the character set.
    pub encoding: String,
    /// LC_COLLATE.
    pub collate: String,
    /// LC_CTYPE.
    pub ctype: String,
    /// Who compares texts.
    pub locale_provider: LocaleProvider,
    /// The locale of a provider other than libc.
    pub locale: Option<String>,
    /// Additional rules of ICU.
    pub icu_rules: Option<String>,
    /// What the server says of the database's size on its disks.
    pub size_bytes: u64,
    /// The roles that own objects of the dump, are granted something on them, or are named by a policy.
    pub roles: Vec<String>,
    /// The extensions of the database.
    pub extensions: Vec<Extension>,
    /// The tables whose rows are in the dump. Empty: not counted.
    #[serde(default)]
    pub tables: Vec<TableData>,
    /// The large objects of the dump. `None`: not counted.
    #[serde(default)]
    pub large_objects: Option<LargeObjects>,
    /// How many entries of each kind the dump's table of contents has: "TABLE" -> 12. Empty: not counted.
    #[serde(default)]
    pub objects: BTreeMap<String, u64>,
    /// Settings of the server that matter for its data.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The settings of the database for all of its users, each as "name=value".
    #[serde(default)]
    pub database_settings: Vec<String>,
    /// What the dump sees. `None`: not known.
    #[serde(default)]
    pub snapshot: Option<SnapshotFacts>,
    /// Tablespaces that objects of the database lie in, besides its own.
    #[serde(default)]
    pub tablespaces: Vec<String>,
    /// Locales of the database's own collations, and their versions.
    #[serde(default)]
    pub collations: Vec<String>,
    /// What pg_dump warned of.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A table's rows in the dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableData {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How many.
    pub rows: u64,
    /// As the dump writes them.
    pub bytes: u64,
}

/// The large objects of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many.
    pub count: u64,
    /// Of all of them.
    pub bytes: u64,
}

/// When, and where in the write-ahead log, a dump was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// When the dump began.
    pub taken: jiff::Timestamp,
    /// The place in the log right before. `None`: the server does not tell.
    pub start_lsn: Option<String>,
}

/// `pg_database.datlocprovider`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocaleProvider {
    /// The operating system's; the only one before version 15.
    Libc,
    /// ICU, since 15.
    Icu,
    /// PostgreSQL's own, since 17.
    Builtin,
}

/// An extension of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// The installed version.
    pub version: String,
}

/// Owners, grantees and policies' roles. `pg_shdepend` does not record roles that every cluster has from its first day (the first
/// superuser above all), so owners and grantees of tables, schemas, functions, types and large objects are looked up as well.
/// What belongs to an extension is created by it at the restore, and has no owner in the dump.
const ROLES: &str = "
with member as (select classid, objid from pg_depend where deptype = 'e'),
needed(role) as (
    select refobjid from pg_shdepend
    where refclassid = 'pg_authid'::regclass and deptype in ('o', 'a', 'r') and classid <> 'pg_extension'::regclass
      and dbid = (select oid from pg_database where datname = current_database())
      and not (deptype = 'o' and (classid, objid) in (select classid, objid from member))
  union
    select relowner from pg_class
    where oid >= 16384 and relkind in ('r', 'p', 'v', 'm', 'S', 'f') and relpersistence <> 't'
      and ('pg_class'::regclass, oid) not in (select classid, objid from member)
  union
    select nspowner from pg_namespace
    where oid >= 16384 and nspname !~ '^pg_' and ('pg_namespace'::regclass, oid) not in (select classid, objid from member)
  union
    select proowner from pg_proc
    where oid >= 16384 and ('pg_proc'::regclass, oid) not in (select classid, objid from member)
  union
    select typowner from pg_type
    where oid >= 16384 and typtype in ('d', 'e', 'r', 'b') and typelem = 0
      and ('pg_type'::regclass, oid) not in (select classid, objid from member)
  union
    select lomowner from pg_largeobject_metadata
  union
    select defaclrole from pg_default_acl
  union
    select grantee from pg_class, aclexplode(relacl) where pg_class.oid >= 16384 and relpersistence <> 't'
  union
    select grantee from pg_namespace, aclexplode(nspacl) where pg_namespace.oid >= 16384 and nspname !~ '^pg_'
)
select rolname::text from pg_roles where oid in (select role from needed) order by 1";

impl Facts {
    /// Asks the server. The database's user needs no right for it but to connect.
    pub async fn gather(session: &Session, pg_dump: &Program) -> Result<Self, Error> {
        let client = session.client();
        let row = client.query_one(&database_query(session.major()), &[]).await?;
        let provider: String = row.try_get("provider")?;
        let size: i64 = row.try_get("size")?;
        let mut extensions = Vec::new();
        for row in client.query("select extname::text, extversion from pg_extension order by 1", &[]).await? {
            extensions.push(Extension { name: row.try_get(0)?, version: row.try_get(1)? });
        }
        let mut roles = Vec::new();
        for row in client.query(ROLES, &[]).await? {
            roles.push(row.try_get(0)?);
        }
        Ok(Self {
            format_version: FORMAT_VERSION,
            database: row.try_get("name")?,
            owner: row.try_get("owner")?,
            server_version_num: session.version(),
            pg_dump_version: pg_dump.version.clone(),
            encoding: row.try_get("encoding")?,
            collate: row.try_get("collate")?,
            ctype: row.try_get("ctype")?,
            locale_provider: match provider.as_str() {
                "i" => LocaleProvider::Icu,
                "b" => LocaleProvider::Builtin,
                _ => LocaleProvider::Libc,
            },
            locale: row.try_get("locale")?,
            icu_rules: row.try_get("rules")?,
            size_bytes: u64::try_from(size).unwrap_or_default(),
            roles,
            extensions,
            tables: Vec::new(),
            large_objects: None,
            objects: BTreeMap::new(),
            settings: BTreeMap::new(),
            database_settings: Vec::new(),
            snapshot: None,
            tablespaces: Vec::new(),
            collations: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// As the stream's bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, Problem> {
        serde_json::to_vec_pretty(self).map_err(|error| Problem::new(Reason::Internal, error.to_string()))
    }

    /// Reads the stream's bytes.
    pub fn from_json(json: &[u8]) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let unreadable =
            |detail: String| Problem::new(Reason::VaultUnreadable, format!("the point's database.json: {detail}"));
        let version: Version = serde_json::from_slice(json).map_err(|error| unreadable(error.to_string()))?;
        if version.format_version != FORMAT_VERSION {
            return Err(unreadable(format!("its format {} is not known here", version.format_version)));
        }
        serde_json::from_slice(json).map_err(|error| unreadable(error.to_string()))
    }

    /// The major version of the pg_dump that made the dump.
    pub fn pg_dump_major(&self) -> Result<Major, Problem> {
        let message = || format!("the point's database.json names a strange pg_dump: {:?}", self.pg_dump_version);
        Major::from_text(&self.pg_dump_version).ok_or_else(|| Problem::new(Reason::VaultUnreadable, message()))
    }
}

/// Columns that older servers do not have are replaced by what they mean there.
fn database_query(major: Major) -> String {
    let since = |number: u32| major >= Major::new(number);
    let provider = if since(15) { "datlocprovider::text" } else { "'c'" };
    let locale = match () {
        () if since(17) => "datlocale::text",
        () if since(15) => "daticulocale::text",
        () => "null::text",
    };
    let rules = if since(16) { "daticurules::text" } else { "null::text" };
    format!(
        "select datname::text as name, pg_get_userbyid(datdba)::text as owner, pg_encoding_to_char(encoding)::text as encoding, \
         datcollate::text as collate, datctype::text as ctype, {provider} as provider, {locale} as locale, {rules} as rules, \
         pg_database_size(oid) as size from pg_database where datname = current_database()"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            format_version: FORMAT_VERSION,
            database: "백업 \"1\"".into(),
            owner: "postgres".into(),
            server_version_num: 150_014,
            pg_dump_version: "15.14 (Debian 15.14-0+deb12u1)".into(),
            encoding: "UTF8".into(),
            collate: "C.UTF-8".into(),
            ctype: "C.UTF-8".into(),
            locale_provider: LocaleProvider::Libc,
            locale: None,
            icu_rules: None,
            size_bytes: 7_000_000,
            roles: vec!["app".into(), "postgres".into()],
            extensions: vec![Extension { name: "plpgsql".into(), version: "1.0".into() }],
            tables: Vec::new(),
            large_objects: None,
            objects: BTreeMap::new(),
            settings: BTreeMap::new(),
            database_settings: Vec::new(),
            snapshot: None,
            tablespaces: Vec::new(),
            collations: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let json = facts().to_json().unwrap();
        assert_eq!(Facts::from_json(&json).unwrap(), facts());
        assert_eq!(facts().pg_dump_major().unwrap(), Major::new(15));
        assert!(String::from_utf8(json).unwrap().contains("\"locale_provider\": \"libc\""));
    }

    #[test]
    fn another_format_or_no_json_is_refused() {
        for json in ["", "{}", "{\"format_version\": 2}", "{\"format_version\": 1}", "[1]"] {
            assert_eq!(Facts::from_json(json.as_bytes()).unwrap_err().reason, Reason::VaultUnreadable, "{json}");
        }
    }
}
