//! Rights: what pg_dump reads, and this user may not.
//!
//! pg_dump locks every table that it dumps (which takes SELECT on it and USAGE on its schema), copies its rows with row-level security off
//! (which fails where that would hide rows), and reads sequences and large objects. It dumps no member of an extension but the rows of its
//! configuration tables.

use tokio_postgres::Error;
use vaultferry_plugin_sdk::Finding;
use vaultferry_plugin_sdk::readiness::OBJECTS_MAX;
use vaultferry_proto::Reason;

use super::Asker;
use crate::client::Major;
use crate::connection::Session;
use crate::quote;

/// The first version with the role pg_read_all_data: USAGE on all schemas, SELECT on all tables and sequences, but not on large objects.
const KNOWS_READ_ALL: Major = Major::new(14);
/// The first version in which a membership says by itself whether its rights are used without `SET ROLE`; one that did not say so before is
/// changed by the same grant. Before, the member's own attribute (`NOINHERIT`) says it for all of its memberships.
const KNOWS_INHERIT: Major = Major::new(16);
/// The first version with default privileges for large objects.
const KNOWS_LARGE_OBJECT_DEFAULTS: Major = Major::new(18);

/// Names and statements are written out one by one up to so many bytes, so that people can read a fix and a refusal can carry it
/// (gRPC's clients take 16 KiB of it); a loop says the rest.
const LIST_MAX: usize = 1500;

/// More makers than can be written out.
const MAKERS_MAX: usize = 100;

/// Tables and sequences that pg_dump reads. Temporary ones are other sessions' own.
const READS: &str = "
with reads as (
    select c.oid, c.relkind, c.relowner, n.oid as namespace, n.nspname, c.relname
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'S') and c.relpersistence <> 't' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and (not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
           or exists (select from pg_extension e where c.oid = any (e.extconfig)))
)";

const SCHEMAS: &str = "
select format('%I', nspname), count(*) over ()
from (select distinct nspname from reads where not has_schema_privilege(namespace, 'usage')) as closed
order by 1";

/// What makes a table or a sequence unreadable, whatever its schema says.
const TABLES: &str = "relkind in ('r', 'p') and not has_table_privilege(oid, 'select')";
const SEQUENCES: &str = "relkind = 'S' and not has_table_privilege(oid, 'select')";
/// Partitioned tables have no rows of their own.
const HIDING: &str = "relkind = 'r' and row_security_active(oid)";

/// Many objects share few owners and lists of rights, so that those are looked at once each. `has_largeobject_privilege` is younger.
const CLOSED_LARGE_OBJECTS: &str = "
with kinds as (
    select min(oid) as example, lomowner, lomacl::text as acl from pg_largeobject_metadata group by lomowner, lomacl::text
), closed as (
    select k.lomowner, k.acl from kinds k join pg_largeobject_metadata m on m.oid = k.example
    where not exists (
        select from aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) as a
        where a.privilege_type = 'SELECT' and (a.grantee = 0 or pg_has_role(a.grantee, 'usage')))
)";

const LARGE_OBJECTS: &str = "
select m.oid::text, count(*) over () from pg_largeobject_metadata m
join closed c on c.lomowner = m.lomowner and c.acl is not distinct from m.lomacl::text
where current_setting('lo_compat_privileges') = 'off'
order by m.oid";

/// Who made large objects that cannot be read.
const LARGE_OBJECT_OWNERS: &str = "select distinct format('%I', pg_get_userbyid(lomowner)) from closed order by 1";

/// The objects that a query found: the first of them, and how many there are.
struct Found {
    objects: Vec<String>,
    count: u64,
}

impl Found {
    async fn ask(session: &Session, query: &str) -> Result<Option<Self>, Error> {
        let rows = session.client().query(&format!("{query} limit {OBJECTS_MAX}"), &[]).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let count: i64 = first.try_get(1)?;
        let objects = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, Error>>()?;
        Ok(Some(Self { objects, count: u64::try_from(count).unwrap_or_default() }))
    }

    /// The tables or sequences for which `condition` is true.
    async fn relations(session: &Session, condition: &str) -> Result<Option<Self>, Error> {
        let select = "select format('%I.%I', nspname, relname), count(*) over () from reads";
        Self::ask(session, &format!("{READS} {select} where {condition} order by 1")).await
    }

    /// All of them in a row; `None` when they are too many for that.
    fn list(&self) -> Option<String> {
        let all_are_named = self.count == self.objects.len() as u64;
        Some(self.objects.join(", ")).filter(|list| all_are_named && list.len() <= LIST_MAX)
    }

    /// "a.b, c.d and 7 more".
    fn names(&self) -> String {
        /// How many a sentence names.
        const NAMED: usize = 5;
        let named = self.objects.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.count.saturating_sub(NAMED as u64) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }

    fn finding(self, reason: Reason, message: String, fix: String) -> Finding {
        Finding::blocking(reason, message).with_fix(fix).with_objects(self.objects, self.count)
    }
}

/// What this user, who is no superuser, may not read.
pub(super) async fn look(session: &Session, asker: &Asker) -> Result<Vec<Finding>, Error> {
    let role = &asker.role;
    let denied = Reason::UserErrorMissingDBPermissions;
    let mut findings = Vec::new();
    if let Some(found) = Found::ask(session, &format!("{READS} {SCHEMAS}")).await? {
        let message = format!("the user {role} has no right (USAGE) on the schemas {}", found.names());
        let fix = usage_fix(asker, &found);
        findings.push(found.finding(denied, message, fix));
    }
    for (condition, kind) in [(TABLES, Kind::Tables), (SEQUENCES, Kind::Sequences)] {
        let Some(found) = Found::relations(session, condition).await? else { continue };
        let message = format!("the user {role} may not read (SELECT) the {} {}", kind.in_a_sentence(), found.names());
        let fix = match asker.can_read_all() {
            true => read_all_fix(asker),
            false => select_fix(asker, kind, &found, &makers(session, condition).await?),
        };
        findings.push(found.finding(denied, message, fix));
    }
    if let Some(found) = Found::ask(session, &format!("{CLOSED_LARGE_OBJECTS} {LARGE_OBJECTS}")).await? {
        let message = format!("the user {role} may not read (SELECT) the large objects {}", found.names());
        let owners = match asker.major >= KNOWS_LARGE_OBJECT_DEFAULTS {
            true => large_object_owners(session).await?,
            false => Vec::new(),
        };
        let fix = large_objects_fix(asker, &found, &owners);
        findings.push(found.finding(denied, message, fix));
    }
    if let Some(found) = Found::relations(session, HIDING).await? {
        let message = format!("row-level security hides rows of {} from the user {role}", found.names());
        let (heading, more) = (asker.heading(), asker.managed.bypassing());
        let fix = format!("{heading}ALTER ROLE {} BYPASSRLS;{more}", quote::identifier(role));
        findings.push(found.finding(Reason::RowSecurityHidesRows, message, fix));
    }
    Ok(findings)
}

/// What one GRANT is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tables,
    Sequences,
}

impl Kind {
    fn in_a_sentence(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Sequences => "sequences",
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::Tables => "TABLE",
            Self::Sequences => "SEQUENCE",
        }
    }

    fn relkinds(self) -> &'static str {
        match self {
            Self::Tables => "'r', 'p'",
            Self::Sequences => "'S'",
        }
    }

    /// What owners of such objects make with them, in the plural. A table's key is often a sequence.
    fn made_with_it(self) -> &'static [&'static str] {
        match self {
            Self::Tables => &["TABLES", "SEQUENCES"],
            Self::Sequences => &["SEQUENCES"],
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Tables => "TABLES",
            Self::Sequences => "SEQUENCES",
        }
    }
}

impl Asker {
    /// A membership in pg_read_all_data gives this role what it lacks.
    fn can_read_all(&self) -> bool {
        self.major >= KNOWS_INHERIT || (self.major >= KNOWS_READ_ALL && self.inherits)
    }

    /// Who runs a fix, and where.
    fn heading(&self) -> String {
        // A line break in a name would end the comment.
        let database = quote::identifier(&self.database).replace(['\n', '\r'], " ");
        format!("-- as a superuser or the administrator, in the database {database}:\n")
    }
}

/// A schema and the owner of unreadable objects in it.
struct Maker {
    schema: String,
    owner: String,
}

async fn makers(session: &Session, condition: &str) -> Result<Vec<Maker>, Error> {
    let select = "select distinct format('%I', nspname), format('%I', pg_get_userbyid(relowner)) from reads";
    let query = format!("{READS} {select} where {condition} order by 1, 2 limit {MAKERS_MAX}");
    let rows = session.client().query(&query, &[]).await?;
    rows.iter().map(|row| Ok(Maker { schema: row.try_get(0)?, owner: row.try_get(1)? })).collect()
}

fn read_all_fix(asker: &Asker) -> String {
    let inherit = if asker.major >= KNOWS_INHERIT { " WITH INHERIT TRUE" } else { "" };
    format!("{}GRANT pg_read_all_data TO {}{inherit};", asker.heading(), quote::identifier(&asker.role))
}

fn usage_fix(asker: &Asker, found: &Found) -> String {
    if asker.can_read_all() {
        return read_all_fix(asker);
    }
    let role = quote::identifier(&asker.role);
    let statement = match found.list() {
        Some(list) => format!("GRANT USAGE ON SCHEMA {list} TO {role};"),
        None => for_each(
            "SELECT format('GRANT USAGE ON SCHEMA %I TO %I', nspname, {role}) FROM pg_namespace \
             WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'",
            &asker.role,
        ),
    };
    format!("{}{statement}", asker.heading())
}

/// Also for what the same owners will make there: a table that is made tomorrow, and the sequence of its key, must not break tomorrow's
/// backup.
fn select_fix(asker: &Asker, kind: Kind, found: &Found, makers: &[Maker]) -> String {
    let (role, singular, plural) = (quote::identifier(&asker.role), kind.singular(), kind.plural());
    let all = |what: &str| {
        format!(
            "SELECT DISTINCT {what} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ({}) AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
            kind.relkinds()
        )
    };
    let now = match found.list() {
        Some(list) => format!("GRANT SELECT ON {singular} {list} TO {role};"),
        None => {
            let query = format!("format('GRANT SELECT ON ALL {plural} IN SCHEMA %I TO %I', n.nspname, {{role}})");
            for_each(&all(&query), &asker.role)
        }
    };
    let later = kind.made_with_it().iter().map(|plural| {
        let default = |Maker { schema, owner }: &Maker| {
            format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON {plural} TO {role};")
        };
        let each = makers.iter().map(default).collect::<Vec<_>>().join("\n");
        if each.len() <= LIST_MAX / 2 {
            return each;
        }
        let query = format!(
            "format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON {plural} TO %I', \
             pg_get_userbyid(c.relowner), n.nspname, {{role}})"
        );
        for_each(&all(&query), &asker.role)
    });
    let later = later.collect::<Vec<_>>().join("\n");
    format!("{}{now}\n{later}", asker.heading())
}

async fn large_object_owners(session: &Session) -> Result<Vec<String>, Error> {
    let query = format!("{CLOSED_LARGE_OBJECTS} {LARGE_OBJECT_OWNERS} limit {MAKERS_MAX}");
    let rows = session.client().query(&query, &[]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Also for what `owners` will make. Before version 18 there are no default privileges for large objects, so new ones need the same again.
fn large_objects_fix(asker: &Asker, found: &Found, owners: &[String]) -> String {
    let role = quote::identifier(&asker.role);
    let statement = match found.list() {
        Some(list) => format!("GRANT SELECT ON LARGE OBJECT {list} TO {role};"),
        None => for_each(
            "SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', oid, {role}) FROM pg_largeobject_metadata",
            &asker.role,
        ),
    };
    let mut text = format!("{}{statement}", asker.heading());
    for owner in owners {
        let later = format!("\nALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON LARGE OBJECTS TO {role};");
        if text.len() + later.len() > 2 * LIST_MAX {
            text.push_str("\n-- and the same for each other owner of large objects");
            break;
        }
        text.push_str(&later);
    }
    text
}

/// A block that runs every statement that `query` gives; `{role}` in it is the role's name.
fn for_each(query: &str, role: &str) -> String {
    // The tag must not be in the body; whatever the role is called, some number of letters is not.
    let body = query.replace("{role}", &quote::literal(role));
    let mut tag = "$grant$".to_owned();
    while body.contains(&tag) {
        tag.insert(1, 'x');
    }
    format!(
        "DO {tag} DECLARE statement text; BEGIN FOR statement IN {body} LOOP EXECUTE statement; END LOOP; END {tag};"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::managed::Managed;

    fn asker(major: u32) -> Asker {
        let (role, database) = ("back \"up\"".to_owned(), "sh'op".to_owned());
        Asker {
            role,
            database,
            major: Major::new(major),
            superuser: false,
            inherits: true,
            standby: false,
            size: 0,
            managed: Managed::Nobody,
            host: "h".to_owned(),
        }
    }

    fn found(names: &[&str], count: u64) -> Found {
        Found { objects: names.iter().map(|name| (*name).to_owned()).collect(), count }
    }

    #[test]
    fn fixes_are_exact_for_servers_with_and_without_a_role_that_reads_all() {
        let makers = ["public", "\"S\""].map(|schema| Maker { schema: schema.to_owned(), owner: "app".to_owned() });
        let tables = found(&["public.a", "\"S\".b"], 2);
        let heading = "-- as a superuser or the administrator, in the database \"sh'op\":\n";
        assert_eq!(
            select_fix(&asker(13), Kind::Tables, &tables, &makers[..1]),
            format!(
                "{heading}GRANT SELECT ON TABLE public.a, \"S\".b TO \"back \"\"up\"\"\";\n\
                 ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA public GRANT SELECT ON TABLES TO \"back \"\"up\"\"\";\n\
                 ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA public GRANT SELECT ON SEQUENCES TO \"back \"\"up\"\"\";"
            )
        );
        let many = select_fix(&asker(10), Kind::Sequences, &found(&["public.a"], 7), &makers);
        assert!(many.contains("'GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO %I'"), "{many}");
        assert_eq!(many.matches("ALTER DEFAULT PRIVILEGES").count(), 2, "{many}");
        assert_eq!(usage_fix(&asker(14), &tables), read_all_fix(&asker(14)));
        assert!(read_all_fix(&asker(15)).ends_with("GRANT pg_read_all_data TO \"back \"\"up\"\"\";"));
        // A role that inherits nothing has nothing of a membership, unless the membership itself says so.
        assert!(read_all_fix(&asker(16)).ends_with("GRANT pg_read_all_data TO \"back \"\"up\"\"\" WITH INHERIT TRUE;"));
        for (major, can) in [(13, false), (14, false), (15, false), (16, true), (18, true)] {
            let aloof = Asker { inherits: false, ..asker(major) };
            assert_eq!(aloof.can_read_all(), can, "{major}");
            assert_eq!(usage_fix(&aloof, &tables).contains("GRANT USAGE ON SCHEMA"), !can, "{major}");
        }
        assert!(usage_fix(&asker(12), &found(&["a"], 1)).contains("GRANT USAGE ON SCHEMA a TO "));
    }

    #[test]
    fn a_fix_is_short_however_many_and_long_the_names_are() {
        let name = |number: usize| format!("\"{}{number}\"", "n".repeat(60));
        let names: Vec<String> = (0..100).map(|number| format!("{}.{}", name(number), name(number))).collect();
        let makers: Vec<Maker> = (0..100).map(|number| Maker { schema: name(number), owner: name(number) }).collect();
        let all = Found { objects: names, count: 100 };
        for fix in [
            select_fix(&asker(10), Kind::Tables, &all, &makers),
            usage_fix(&asker(10), &all),
            large_objects_fix(&asker(14), &all, &[]),
        ] {
            assert!(fix.len() < 2 * LIST_MAX && fix.contains("DO $grant$ "), "{fix}");
        }
    }

    #[test]
    fn a_block_for_many_objects_ends_where_it_should_whatever_the_role_is_called() {
        for role in ["backup", "a $grant$ b", "it's", "$xgrant$ $grant$", "back\\slash"] {
            let block = for_each("SELECT {role}", role);
            let tag = &block[3..=block[4..].find('$').unwrap() + 4];
            assert_eq!(block.matches(tag).count(), 2, "{block}");
            assert!(block.ends_with(&format!("END {tag};")) && block.contains(&quote::literal(role)), "{block}");
        }
    }

    #[test]
    fn large_objects_that_are_still_to_come_can_be_read_where_the_server_knows_how() {
        let objects = found(&["4711", "4712"], 2);
        let before = large_objects_fix(&asker(17), &objects, &[]);
        assert!(before.ends_with("GRANT SELECT ON LARGE OBJECT 4711, 4712 TO \"back \"\"up\"\"\";"), "{before}");
        let since = large_objects_fix(&asker(18), &objects, &["app".to_owned()]);
        let default = "\nALTER DEFAULT PRIVILEGES FOR ROLE app GRANT SELECT ON LARGE OBJECTS TO \"back \"\"up\"\"\";";
        assert_eq!(since, format!("{before}{default}"));
        let many: Vec<String> = (0..100).map(|number| format!("\"{}{number}\"", "n".repeat(60))).collect();
        assert!(large_objects_fix(&asker(18), &objects, &many).len() <= 2 * LIST_MAX + 100);
    }

    #[test]
    fn a_sentence_names_a_few() {
        assert_eq!(found(&["a", "b"], 2).names(), "a, b");
        assert_eq!(found(&["1", "2", "3", "4", "5", "6"], 250).names(), "1, 2, 3, 4, 5 and 245 more");
    }
}
