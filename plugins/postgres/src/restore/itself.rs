//! What is the database's own and in nothing that it holds: its comment, labels, privileges, settings, limit and owner.
//!
//! pg_restore gives these only to a database that it makes itself (`--create`), under the name that it had; so they are given here, out of
//! the point's `database.json`, by statements that are put together anew.
//!
//! Invariants:
//! - They come after the check and before the name: whoever sees the name sees nobody in the database who could not be in the source's. The
//!   privileges are the source's, not more: what everybody may do with a new database is taken away first.
//! - What names a role is left out with `--no-owner`, and for roles that the target lacks; the plan has told that ([`super::plan`]).
//! - A statement that fails is a warning with the statement, and the restore goes on: the data is there, and was compared.
//! - The owner comes first of all, before anything is restored: who is no superuser can make a table in the schema `public` the owner's only
//!   when the owner may create there, and since 15 that is who owns the database. It is given only to a role whose member this user is, and
//!   inherits from: who is not could neither name the database afterwards nor drop it.

use std::collections::{BTreeMap, BTreeSet};

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Warning;
use vaultferry_plugin_sdk::workload::unless_cancelled;
use vaultferry_proto::{Problem, Reason};

use super::rules;
use super::settings::{self, For};
use crate::client::Major;
use crate::connection::Session;
use crate::facts::{Facts, Itself, Privilege, RoleSetting};
use crate::quote::{identifier, literal};

/// What can be granted on a database.
const PRIVILEGES: [&str; 3] = ["CREATE", "CONNECT", "TEMPORARY"];

/// Characters of a statement that a warning tells.
const STATEMENT_MAX: usize = 2000;

/// A database that has been filled.
#[derive(Clone, Copy)]
pub(super) struct Filled<'a> {
    /// A session in it.
    pub(super) session: &'a Session,
    /// As it is called now.
    pub(super) temporary: &'a str,
    /// As it will be called.
    pub(super) name: &'a str,
    /// Neither owner nor privileges, nor anything else that names a role.
    pub(super) no_owner: bool,
}

/// Gives the database what was its own; what could not be given is a warning.
pub(super) async fn apply(
    filled: Filled<'_>,
    facts: &Facts,
    cancel: &CancellationToken,
) -> Result<Vec<Warning>, Problem> {
    let Filled { session, temporary, name, no_owner } = filled;
    let known = facts.itself.clone().unwrap_or_default();
    let mut warnings = Vec::new();
    let roles = Roles::ask(session, facts, &known, cancel).await?;
    let all = |database: &str| {
        let mut all = steps(database, &known);
        if !no_owner {
            all.extend(privileges(database, &known, &roles));
        }
        all
    };
    warnings.extend(run(session, all(temporary), all(name), cancel).await?);
    let everybody = For { role: None, database: temporary };
    for setting in &facts.database_settings {
        warnings.extend(settings::apply(session, everybody, name, setting, cancel).await?);
    }
    // Collected: a filter that borrows would keep this future from being sent between threads.
    let is_given = |setting: &&RoleSetting| !no_owner && roles.there.contains(&setting.role);
    let given: Vec<&RoleSetting> = known.role_settings.iter().filter(is_given).collect();
    for setting in given {
        let whose = For { role: Some(&setting.role), database: temporary };
        warnings.extend(settings::apply(session, whose, name, &setting.setting, cancel).await?);
    }
    Ok(warnings)
}

/// Makes the empty database the source's owner's, when this user may. `session` is one anywhere on the server. Of an owner that was `made` by
/// this restore the plan has promised it.
pub(super) async fn give_owner(
    session: &Session,
    (temporary, name): (&str, &str),
    owner: &str,
    made: bool,
    cancel: &CancellationToken,
) -> Result<Vec<Warning>, Problem> {
    if !may_own(session, owner, cancel).await? {
        if !made {
            return Ok(Vec::new());
        }
        // Before 16 a user with NOINHERIT inherits from nobody, of whatever roles a member it is made.
        let message = format!(
            "the database belongs to the restore's user, who does not inherit from its owner at the source, {}",
            identifier(owner)
        );
        let fix = format!("ALTER DATABASE {} OWNER TO {};", identifier(name), identifier(owner));
        return Ok(vec![rules::partly(message, fix)]);
    }
    let alter = |database: &str| {
        vec![step("owner", format!("alter database {} owner to {}", identifier(database), identifier(owner)))]
    };
    run(session, alter(temporary), alter(name), cancel).await
}

/// What of the target is asked.
#[derive(Debug, Default)]
struct Roles {
    /// Of the roles that the database names, those that are there.
    there: BTreeSet<String>,
    /// Who owns the database.
    owner: String,
}

impl Roles {
    async fn ask(
        session: &Session,
        facts: &Facts,
        known: &Itself,
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        let names: Vec<&str> = named(facts, known).into_iter().collect();
        let query = "select pg_get_userbyid(datdba)::text, array(select rolname::text from pg_roles where rolname = any($1::text[]))
                     from pg_database where datname = current_database()";
        let row = session.run(session.client().query_one(query, &[&names]), Reason::RestoreFailed, cancel).await?;
        let there: Vec<String> = row.get(1);
        Ok(Self { there: there.into_iter().collect(), owner: row.get(0) })
    }
}

/// Whether this user can make a database that role's, and then still rename and drop it. No when there is no such role.
pub(super) async fn may_own(session: &Session, role: &str, cancel: &CancellationToken) -> Result<bool, Problem> {
    let right = if session.major() >= Major::new(16) { "SET" } else { "MEMBER" };
    let query = format!(
        "select pg_has_role(oid, 'USAGE') and pg_has_role(oid, '{right}') from pg_roles where rolname = $1::text"
    );
    let row = session.run(session.client().query_opt(&query, &[&role]), Reason::RestoreFailed, cancel).await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// The roles that the database itself names: its owner, and those that may do something with it or have settings in it.
pub(super) fn named<'a>(facts: &'a Facts, itself: &'a Itself) -> BTreeSet<&'a str> {
    let granted = itself.privileges.iter().flatten().filter_map(|privilege| privilege.role.as_deref());
    let set = itself.role_settings.iter().map(|setting| setting.role.as_str());
    granted.chain(set).chain([facts.owner.as_str()]).collect()
}

/// One statement, and what it gives.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    what: &'static str,
    statement: String,
}

fn step(what: &'static str, statement: String) -> Step {
    Step { what, statement }
}

/// What names no role. The limit is nobody's whose session is there already, and not that of the one that renames.
fn steps(database: &str, itself: &Itself) -> Vec<Step> {
    let database = identifier(database);
    let comment = itself
        .comment
        .iter()
        .map(|comment| step("comment", format!("comment on database {database} is {}", literal(comment))));
    let labels = itself.security_labels.iter().map(|label| {
        let (provider, label) = (identifier(&label.provider), literal(&label.label));
        step("security label", format!("security label for {provider} on database {database} is {label}"))
    });
    let limit = itself.connection_limit.iter();
    let limit =
        limit.map(|limit| step("connection limit", format!("alter database {database} connection limit {limit}")));
    comment.chain(labels).chain(limit).collect()
}

/// Nothing when nobody has changed them at the source.
fn privileges(database: &str, itself: &Itself, roles: &Roles) -> Vec<Step> {
    let Some(privileges) = &itself.privileges else { return Vec::new() };
    let database = identifier(database);
    let what = "privileges";
    let mut steps = vec![step(what, format!("revoke all on database {database} from public"))];
    // Those of one role together, and apart what it may grant to others.
    let mut grants: BTreeMap<(Option<&str>, bool), Vec<&str>> = BTreeMap::new();
    for Privilege { role, privilege, grantable } in privileges {
        // Who owns it needs no grant.
        let is_wanted = role.as_ref().is_none_or(|role| roles.there.contains(role) && *role != roles.owner);
        if let Some(word) = PRIVILEGES.into_iter().find(|word| is_wanted && privilege == word) {
            grants.entry((role.as_deref(), *grantable)).or_default().push(word);
        }
    }
    steps.extend(grants.into_iter().map(|((role, grantable), words)| {
        let role = role.map_or_else(|| "public".to_owned(), identifier);
        let option = if grantable { " with grant option" } else { "" };
        step(what, format!("grant {} on database {database} to {role}{option}", words.join(", ")))
    }));
    steps
}

/// Runs `steps`; `later` are the same with the name that the database will have, for people.
async fn run(
    session: &Session,
    steps: Vec<Step>,
    later: Vec<Step>,
    cancel: &CancellationToken,
) -> Result<Vec<Warning>, Problem> {
    let mut warnings = Vec::new();
    for (step, later) in steps.into_iter().zip(later) {
        let answer = async { Ok(session.client().batch_execute(&step.statement).await) };
        let Err(error) = unless_cancelled(answer, cancel).await? else { continue };
        let problem = session.problem(&error, Reason::RestoreFailed);
        if problem.reason == Reason::UserErrorServerConnectionClosed {
            return Err(problem);
        }
        let message = format!("the database's {} could not be restored: {}", step.what, problem.message);
        warnings.push(rules::partly(message, format!("When you may: {}", shown(&later.statement))));
    }
    Ok(warnings)
}

/// A comment may be longer than what a job's warning, and a message of the plugin, can carry.
fn shown(statement: &str) -> String {
    match statement.char_indices().nth(STATEMENT_MAX) {
        None => format!("{statement};"),
        Some((end, _)) => format!("{} … (all of it is in the point's database.json)", &statement[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::SecurityLabel;

    fn privilege(role: Option<&str>, privilege: &str, grantable: bool) -> Privilege {
        Privilege { role: role.map(str::to_owned), privilege: privilege.to_owned(), grantable }
    }

    fn statements(steps: Vec<Step>) -> Vec<String> {
        steps.into_iter().map(|step| step.statement).collect()
    }

    fn roles() -> Roles {
        let there = ["app", "me", "b\"x"].map(str::to_owned).into();
        Roles { there, owner: "me".to_owned() }
    }

    #[test]
    fn names_and_texts_are_quoted() {
        let itself = Itself {
            comment: Some("it's; drop".to_owned()),
            connection_limit: Some(5),
            security_labels: vec![SecurityLabel { provider: "se\"x".to_owned(), label: "a'b".to_owned() }],
            ..Itself::default()
        };
        let expected = [
            "comment on database \"d\"\"d\" is 'it''s; drop'",
            "security label for \"se\"\"x\" on database \"d\"\"d\" is 'a''b'",
            "alter database \"d\"\"d\" connection limit 5",
        ];
        assert_eq!(statements(steps("d\"d", &itself)), expected);
        assert!(steps("d", &Itself::default()).is_empty());
    }

    #[test]
    fn a_warning_is_short_however_long_the_comment_is() {
        assert_eq!(shown("alter database d"), "alter database d;");
        assert_eq!(shown(&"가".repeat(STATEMENT_MAX)).chars().count(), STATEMENT_MAX + 1);
        assert!(shown(&"가".repeat(1 << 20)).chars().count() < STATEMENT_MAX + 100);
    }

    #[test]
    fn nobody_may_more_than_at_the_source() {
        let itself = Itself {
            privileges: Some(vec![
                privilege(Some("app"), "CONNECT", true),
                privilege(Some("app"), "CREATE", false),
                privilege(Some("app"), "TEMPORARY", false),
                privilege(Some("b\"x"), "CONNECT", false),
                privilege(Some("gone"), "CONNECT", false),
                privilege(Some("me"), "CREATE", false),
                privilege(Some("app"), "ALL; drop", false),
                privilege(None, "TEMPORARY", false),
            ]),
            ..Itself::default()
        };
        let expected = [
            "revoke all on database \"d\" from public",
            "grant TEMPORARY on database \"d\" to public",
            "grant CREATE, TEMPORARY on database \"d\" to \"app\"",
            "grant CONNECT on database \"d\" to \"app\" with grant option",
            "grant CONNECT on database \"d\" to \"b\"\"x\"",
        ];
        assert_eq!(statements(privileges("d", &itself, &roles())), expected);
        // Somebody has taken everything from everybody; and nobody has touched it.
        let closed = Itself { privileges: Some(Vec::new()), ..Itself::default() };
        assert_eq!(statements(privileges("d", &closed, &roles())), expected[..1]);
        assert!(privileges("d", &Itself::default(), &roles()).is_empty());
    }

    #[test]
    fn every_role_is_looked_for() {
        let json = serde_json::json!({
            "format_version": 1, "database": "d", "owner": "dba", "server_version_num": 150_000, "pg_dump_version": "15.1",
            "encoding": "UTF8", "collate": "C", "ctype": "C", "locale_provider": "libc", "locale": null,
            "icu_rules": null, "size_bytes": 1, "roles": [], "extensions": [],
        });
        let facts = Facts::from_json(json.to_string().as_bytes()).unwrap();
        let itself = Itself {
            privileges: Some(vec![privilege(None, "CONNECT", false), privilege(Some("app"), "CONNECT", false)]),
            role_settings: vec![RoleSetting { role: "reports".to_owned(), setting: "a=b".to_owned() }],
            ..Itself::default()
        };
        assert_eq!(named(&facts, &itself).into_iter().collect::<Vec<_>>(), ["app", "dba", "reports"]);
    }
}
