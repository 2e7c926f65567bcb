//! `database.json`, the second stream of every point: what a restore must know before it touches the target, and what people ask of
//! a backup without restoring it.
//!
//! | what | when it is read |
//! |---|---|
//! | the database, its roles, extensions, settings, tablespaces, collations | just before the dump: a change in the moment between is in one only |
//! | [`Facts::tables`], [`Facts::large_objects`], [`Facts::objects`] | counted in the dump as it passes ([`crate::archive`]) |
//! | [`Facts::snapshot`], [`Facts::exit_status`], [`Facts::warnings`] | of the dump itself |
//!
//! Invariants:
//! - Every field that came after the first version is optional: a point of any age is readable.
//! - Only what a user who may connect can ask; what the server does not tell is left out, and keeps nobody from a backup.
//! - It fits into [`SIZE_MAX`]: the tables of a schema that is too large for that are left out, and a warning says so; at last
//!   [`Facts::itself`] is left out too, which a restore tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Error;
use vaultferry_proto::{Problem, Reason};

use crate::archive::Contents;
use crate::client::{Major, Program};
use crate::connection::Session;

mod itself;
mod surroundings;

pub use itself::{Itself, Privilege, RoleSetting, SecurityLabel};
pub use surroundings::SETTINGS;
use surroundings::Surroundings;

/// The version of the format below. Fields may be added without a new one.
pub const FORMAT_VERSION: u32 = 1;

/// Larger than any real one (100,000 roles), and small enough to be held in memory.
pub const SIZE_MAX: u64 = 16 * 1024 * 1024;

/// Lines of pg_dump's words that are kept. They are at most 8 KiB (`child::WORDS_MAX`).
const WARNINGS_MAX: usize = 100;

/// What is known of a backed-up database besides its dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The database's name.
    pub database: String,
    /// Who owns it.
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
    /// The tables whose rows are in the dump, in its order; empty when they were not counted.
    #[serde(default)]
    pub tables: Vec<TableData>,
    /// The large objects in the dump; `None` when they were not counted.
    #[serde(default)]
    pub large_objects: Option<LargeObjects>,
    /// How many entries of each kind the dump's table of contents has, `TABLE` for example; empty when they were not counted.
    #[serde(default)]
    pub objects: BTreeMap<String, u64>,
    /// Settings of the server that matter to whoever restores, as it tells them to us: those of [`SETTINGS`].
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// What `ALTER DATABASE … SET` has set, as `name=value`.
    #[serde(default)]
    pub database_settings: Vec<String>,
    /// The state that the dump shows.
    #[serde(default)]
    pub snapshot: Option<SnapshotFacts>,
    /// The names of tablespaces that objects of the database are in, without the default one.
    #[serde(default)]
    pub tablespaces: Vec<String>,
    /// The database's collation and those that somebody has made in it, as `name (provider, locale, version)`; without the version where the
    /// server has none.
    #[serde(default)]
    pub collations: Vec<String>,
    /// The roles that policies of row-level security and user mappings name: their statements fail without them, whoever owns what.
    #[serde(default)]
    pub named_roles: Vec<String>,
    /// The database's comment, privileges and what else is its own; `None`: the point does not tell.
    #[serde(default)]
    pub itself: Option<Itself>,
    /// pg_dump's warnings, line by line, and what could not be found out for this file.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// pg_dump's exit status.
    #[serde(default)]
    pub exit_status: Option<i32>,
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
    /// Their bytes as COPY writes them.
    pub bytes: u64,
}

/// Large objects in the dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The state of the database that the dump shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// Just before pg_dump was started: what was committed then is in it.
    pub taken: jiff::Timestamp,
    /// Where the server's WAL was at that time, or on a standby what was replayed of it: `0/1A2B3C4D`. `None` when the server did not tell.
    /// About where the dump's state is, and no exact place to replay from: what waits for a synchronous standby lies before it, unseen.
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
        let surroundings = Surroundings::gather(session).await;
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
            settings: surroundings.settings,
            database_settings: surroundings.database_settings,
            snapshot: None,
            tablespaces: surroundings.tablespaces,
            collations: surroundings.collations,
            named_roles: surroundings.named_roles,
            itself: surroundings.itself,
            warnings: Vec::new(),
            exit_status: None,
        })
    }

    /// Adds what was seen of the dump. `counted` is the reason when it was not.
    pub(crate) fn add_dump(&mut self, snapshot: SnapshotFacts, counted: Result<Contents, &'static str>) {
        self.snapshot = Some(snapshot);
        match counted {
            Ok(Contents { tables, large_objects, objects, .. }) => {
                self.tables = tables;
                self.large_objects = Some(large_objects);
                self.objects = objects;
            }
            Err(why) => self.warnings.push(format!("the rows were not counted: {why}")),
        }
    }

    /// Adds what pg_dump has said, and how it has ended.
    pub(crate) fn add_ended(&mut self, words: &str, exit_status: Option<i32>) {
        let lines = words.lines().map(str::trim_end).filter(|line| !line.is_empty());
        self.warnings.extend(lines.take(WARNINGS_MAX).map(str::to_owned));
        self.exit_status = exit_status;
    }

    /// As the stream's bytes; at most [`SIZE_MAX`] of them.
    pub fn to_json(&self) -> Result<Vec<u8>, Problem> {
        self.to_json_within(SIZE_MAX)
    }

    fn to_json_within(&self, max: u64) -> Result<Vec<u8>, Problem> {
        let internal = |error: serde_json::Error| Problem::new(Reason::Internal, error.to_string());
        let fits = |json: &Vec<u8>| json.len() as u64 <= max;
        let json = Some(serde_json::to_vec_pretty(self).map_err(internal)?).filter(fits);
        if let Some(json) = json {
            return Ok(json);
        }
        let json = Some(serde_json::to_vec(self).map_err(internal)?).filter(fits);
        if let Some(json) = json {
            return Ok(json);
        }
        let mut small = Self { tables: Vec::new(), ..self.clone() };
        small
            .warnings
            .push(format!("the rows of {} tables were counted, and too many to be kept here", self.tables.len()));
        let json = Some(serde_json::to_vec_pretty(&small).map_err(internal)?).filter(fits);
        if let Some(json) = json {
            return Ok(json);
        }
        // A comment may have a GB. Without it the point does not tell what the database's own is, and its restores say so.
        serde_json::to_vec_pretty(&Self { itself: None, ..small }).map_err(internal)
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
            tables: vec![TableData { schema: "한글".into(), name: "sales".into(), rows: 7, bytes: 700 }],
            large_objects: Some(LargeObjects { count: 2, bytes: 5 }),
            objects: [("TABLE".to_owned(), 12)].into(),
            settings: [("wal_level".to_owned(), "minimal".to_owned())].into(),
            database_settings: vec!["search_path=public, app".into()],
            snapshot: Some(SnapshotFacts { taken: jiff::Timestamp::UNIX_EPOCH, start_lsn: Some("0/1A2B3C4D".into()) }),
            tablespaces: vec!["fast".into()],
            collations: vec!["database (libc, C.UTF-8)".into()],
            named_roles: vec!["app".into()],
            itself: Some(Itself {
                comment: Some("it's \\ here".into()),
                connection_limit: Some(5),
                privileges: Some(vec![Privilege { role: None, privilege: "CONNECT".into(), grantable: false }]),
                role_settings: vec![RoleSetting { role: "app".into(), setting: "work_mem=1MB".into() }],
                ..Itself::default()
            }),
            warnings: vec!["pg_dump: warning: it's late".into()],
            exit_status: Some(0),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let json = facts().to_json().unwrap();
        assert_eq!(Facts::from_json(&json).unwrap(), facts());
        assert_eq!(facts().pg_dump_major().unwrap(), Major::new(15));
        assert!(String::from_utf8(json).unwrap().contains("\"locale_provider\": \"libc\""));
    }

    /// As the first version wrote it. Its points are to be readable for ever.
    #[test]
    fn a_point_of_the_first_version_is_read() {
        let first = r#"{
          "format_version": 1, "database": "shop", "owner": "postgres", "server_version_num": 150014, "pg_dump_version": "15.14",
          "encoding": "UTF8", "collate": "C.UTF-8", "ctype": "C.UTF-8", "locale_provider": "libc", "locale": null,
          "icu_rules": null, "size_bytes": 7000000, "roles": ["app"], "extensions": [{"name": "plpgsql", "version": "1.0"}]
        }"#;
        let facts = Facts::from_json(first.as_bytes()).unwrap();
        assert_eq!((facts.roles.as_slice(), facts.extensions.len()), (["app".to_owned()].as_slice(), 1));
        assert_eq!((facts.tables.len(), facts.large_objects, facts.snapshot, facts.exit_status), (0, None, None, None));
        assert!(facts.objects.is_empty() && facts.settings.is_empty() && facts.warnings.is_empty());
        assert_eq!(facts.itself, None, "not known, which is another thing than nothing");
        let later = first.replace("\"extensions\"", "\"itself\": {\"a_later_field\": 1}, \"extensions\"");
        assert_eq!(Facts::from_json(later.as_bytes()).unwrap().itself, Some(Itself::default()));
    }

    /// What the size costs first is the layout, then the tables, then what is the database's own; never more than that, and never the point.
    #[test]
    fn too_many_tables_are_left_out_and_told() {
        let mut facts = facts();
        let table = |number: u64| TableData { schema: "s".into(), name: format!("t{number}"), rows: number, bytes: 1 };
        facts.tables = (0..1000).map(table).collect();
        let (pretty, dense) =
            (serde_json::to_vec_pretty(&facts).unwrap().len() as u64, serde_json::to_vec(&facts).unwrap().len() as u64);
        for max in [pretty, dense] {
            let json = facts.to_json_within(max).unwrap();
            assert_eq!((json.len() as u64, Facts::from_json(&json).unwrap()), (max, facts.clone()));
        }
        let json = facts.to_json_within(dense - 1).unwrap();
        let read = Facts::from_json(&json).unwrap();
        assert_eq!((read.tables.len(), read.large_objects), (0, facts.large_objects));
        assert!(read.warnings[1].contains("1000 tables"), "{:?}", read.warnings);
        assert_eq!(read.itself, facts.itself);
        facts.itself = Some(Itself { comment: Some("c".repeat(100_000)), ..Itself::default() });
        let read = Facts::from_json(&facts.to_json_within(50_000).unwrap()).unwrap();
        assert_eq!((read.itself, read.roles), (None, facts.roles));
    }

    #[test]
    fn what_pg_dump_has_said_is_bounded() {
        let mut facts = Facts { warnings: Vec::new(), exit_status: None, ..facts() };
        facts.add_ended("pg_dump: warning: one\r\n\npg_dump: detail: two\n", Some(0));
        assert_eq!(facts.warnings, ["pg_dump: warning: one", "pg_dump: detail: two"]);
        assert_eq!(facts.exit_status, Some(0));
        facts.add_ended(&"word\n".repeat(1000), Some(0));
        assert_eq!(facts.warnings.len(), 2 + WARNINGS_MAX);
    }

    #[test]
    fn another_format_or_no_json_is_refused() {
        for json in ["", "{}", "{\"format_version\": 2}", "{\"format_version\": 1}", "[1]"] {
            assert_eq!(Facts::from_json(json.as_bytes()).unwrap_err().reason, Reason::VaultUnreadable, "{json}");
        }
    }
}
