//! What a restore needs at its target (P63): everything is looked at before anything is made, and all that is found is told at once.
//!
//! Invariants:
//! - Nothing is changed at the target, and of the dump only the table of contents is read.
//! - A blocking finding is a thing at which the restore would fail. What is a guess (space, the locales of the operating system) is not.
//! - A restore looks in the same way before it begins, and the first blocking finding is its failure. Findings of the reason
//!   `PartlyRestored` become its warnings; the other ones are told by the plan only.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tokio_postgres::Error;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::readiness::OBJECTS_MAX;
use vaultferry_plugin_sdk::{DatabaseTarget, Finding, free_bytes};
use vaultferry_proto::{Problem, Reason};

use super::choice::Choice;
use super::globals::Globals;
use super::{database, rules};
use crate::client::{self, Major, Restorer};
use crate::connection::{Server, Session};
use crate::facts::{Facts, LocaleProvider};
use crate::quote::identifier;
use crate::settings::Settings;
use crate::uri::Host;

mod itself;
mod superuser;

/// What of the target and its user is asked at once.
const ABOUT: &str = "
select current_user::text, rolsuper, rolcreatedb, rolcreaterole, pg_is_in_recovery(),
  exists (select from pg_database where datname = $1::text)
from pg_roles where rolname = current_user";

/// The point's side of a restore.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) target: &'a DatabaseTarget,
    pub(super) facts: &'a Facts,
    /// `None`: the dump's table of contents cannot be read, and everything is restored.
    pub(super) choice: Option<&'a Choice>,
    /// `None`: the point has none.
    pub(super) globals: Option<&'a Globals>,
}

/// What the target's user is.
#[derive(Debug, Clone)]
pub(super) struct User {
    name: String,
    create_db: bool,
    create_role: bool,
    pub(super) rights: rules::Rights,
    standby: bool,
    name_taken: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) findings: Vec<Finding>,
    /// The pg_restore to take; `None` only when a blocking finding says why.
    pub(super) restorer: Option<Restorer>,
    /// Roles that are needed and not there, and that the point knows.
    pub(super) missing_roles: Vec<String>,
    /// Something lay in a tablespace that the target lacks.
    pub(super) no_tablespaces: bool,
    /// Where the database itself is to be; `None`: the server's default.
    pub(super) tablespace: Option<String>,
}

/// Asks who the user is, and whether the name is free.
pub(super) async fn ask(session: &Session, database: &str, cancel: &CancellationToken) -> Result<User, Problem> {
    let row = session.run(session.client().query_one(ABOUT, &[&database]), Reason::RestoreFailed, cancel).await?;
    let superuser: bool = row.get(1);
    Ok(User {
        name: row.get(0),
        create_db: superuser || row.get(2),
        create_role: superuser || row.get(3),
        rights: rules::Rights { superuser, owns_public: session.major() >= Major::new(15) },
        standby: row.get(4),
        name_taken: row.get(5),
    })
}

/// Looks at everything.
pub(super) async fn look(
    session: &Session,
    user: &User,
    wish: Wish<'_>,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<Look, Problem> {
    let target = Target { session, user, wish, cancel };
    let mut findings = target.place();
    findings.extend(target.locale().await?);
    let missing = target.missing_roles().await?;
    findings.extend(target.roles(&missing));
    findings.extend(target.owners().await?);
    findings.extend(target.extensions().await?);
    findings.extend(target.superuser_only().await?);
    findings.extend(target.guests().await?);
    let tablespaces = target.tablespaces().await?;
    let no_tablespaces = tablespaces.is_some();
    findings.extend(tablespaces);
    let known = |role: &String| wish.globals.is_some_and(|globals| globals.has(role));
    let mut missing_roles: Vec<String> = missing.into_iter().filter(known).collect();
    let made: &[String] = if wish.target.globals { &missing_roles } else { &[] };
    let itself = target.itself(made).await?;
    findings.extend(itself.findings);
    missing_roles.extend(itself.roles);
    findings.extend(target.left_out());
    let at_least = wish.facts.pg_dump_major()?;
    let restorer = match client::choose_restorer(at_least, session.major(), settings, cancel).await {
        Ok(restorer) => Some(restorer),
        Err(problem) if problem.reason == Reason::Cancelled => return Err(problem),
        Err(problem) => {
            findings.push(problem.into());
            None
        }
    };
    Ok(Look { findings, restorer, missing_roles, no_tablespaces, tablespace: itself.tablespace })
}

/// Bytes that the target needs, about; 0: not known.
pub(super) fn database_bytes(wish: Wish<'_>) -> u64 {
    match wish.choice {
        Some(choice) if choice.partial => {
            let chosen = wish.facts.tables.iter().filter(|table| choice.fills(table));
            chosen.map(|table| table.bytes).sum()
        }
        _ => wish.facts.size_bytes,
    }
}

/// Bytes that are free where the server keeps its data: PostgreSQL does not tell, so only of a server whose socket is on this machine, and
/// to a user who may see where that is.
pub(super) async fn free_at(
    server: &Server,
    session: &Session,
    cancel: &CancellationToken,
) -> Result<Option<u64>, Problem> {
    let Host::Socket(_) = &server.uri().host else { return Ok(None) };
    let query = session.client().query_opt("select setting from pg_settings where name = 'data_directory'", &[]);
    let Some(row) = session.run(query, Reason::RestoreFailed, cancel).await? else { return Ok(None) };
    let Some(dir) = row.get::<_, Option<String>>(0) else { return Ok(None) };
    let asked = tokio::task::spawn_blocking(move || free_bytes(&PathBuf::from(dir)));
    Ok(asked.await.ok().flatten())
}

/// Told when the data of the source would not fit.
pub(super) fn space(needed: u64, free: Option<u64>) -> Option<Finding> {
    let free = free.filter(|free| *free < needed)?;
    let message =
        format!("the source's data had {needed} bytes, and {free} are free where the target server keeps its own");
    Some(Finding::warning(Reason::TargetFull, message))
}

struct Target<'a> {
    session: &'a Session,
    user: &'a User,
    wish: Wish<'a>,
    cancel: &'a CancellationToken,
}

impl Target<'_> {
    async fn ask<T>(&self, query: impl Future<Output = Result<T, Error>>) -> Result<T, Problem> {
        self.session.run(query, Reason::RestoreFailed, self.cancel).await
    }

    /// Whether a database of that name can be made at all.
    fn place(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let name = &self.wish.target.database;
        if self.user.name_taken {
            let message = format!("the target server has a database named {name} already");
            findings.push(Finding::blocking(Reason::UserErrorDatabaseNameAlreadyInUse, message));
        }
        if self.user.standby {
            let message = "the target server is a standby: nothing can be made there";
            let fix = "Name the primary server as the target.";
            findings.push(Finding::blocking(Reason::TargetNotWritable, message).with_fix(fix));
        }
        if !self.user.create_db {
            let user = identifier(&self.user.name);
            let message = format!("the target's user {user} may not make databases");
            let fix = format!("ALTER ROLE {user} CREATEDB;");
            findings.push(Finding::blocking(Reason::UserErrorMissingDBPermissions, message).with_fix(fix));
        }
        findings
    }

    /// Which locales the operating system has, PostgreSQL learnt when its cluster was made: what is missing there is a doubt only.
    async fn locale(&self) -> Result<Vec<Finding>, Problem> {
        let facts = self.wish.facts;
        if let Some(problem) = database::provider_problem(facts, self.session.major()) {
            return Ok(vec![problem.into()]);
        }
        let query = "select distinct collcollate::text from pg_collation where collprovider in ('c', 'd') and collcollate is not null";
        let rows = self.ask(self.session.client().query(query, &[])).await?;
        let known: BTreeSet<String> = rows.iter().map(|row| plain_locale(row.get(0))).collect();
        let wanted: BTreeSet<&String> = BTreeSet::from([&facts.collate, &facts.ctype]);
        let is_known = |name: &str| matches!(name, "C" | "POSIX") || known.contains(&plain_locale(name));
        let unknown: Vec<String> = wanted.into_iter().filter(|name| !is_known(name)).cloned().collect();
        if unknown.is_empty() || facts.locale_provider != LocaleProvider::Libc {
            return Ok(Vec::new());
        }
        let count = unknown.len() as u64;
        let message = "the target server may not have the locales of the database".to_owned();
        Ok(vec![Finding::warning(Reason::LocaleMissing, message).with_objects(unknown, count)])
    }

    async fn missing_roles(&self) -> Result<Vec<String>, Problem> {
        let query = "select name from unnest($1::text[]) name where not exists (select from pg_roles where rolname = name) order by 1";
        let needed = match self.wish.target.no_owner {
            true => self.wish.facts.named_roles.clone(),
            false => needed_roles(self.wish.facts, self.wish.choice),
        };
        let rows = self.ask(self.session.client().query(query, &[&needed])).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn roles(&self, missing: &[String]) -> Vec<Finding> {
        if missing.is_empty() {
            return Vec::new();
        }
        let list = |roles: &[&String]| roles.iter().map(|role| identifier(role)).collect::<Vec<_>>();
        let blocking = |roles: &[&String], why: &str, fix: Option<String>| {
            let names = list(roles);
            let message = format!(
                "the target server lacks the roles {}, which own or may use what is restored{why}",
                names.join(", ")
            );
            let count = names.len() as u64;
            let finding = Finding::blocking(Reason::RolesMissing, message).with_objects(names, count);
            match fix {
                Some(fix) => finding.with_fix(fix),
                None => finding,
            }
        };
        let all: Vec<&String> = missing.iter().collect();
        if self.wish.target.no_owner && !self.wish.target.globals {
            return vec![self.named(list(&all))];
        }
        match (self.wish.target.globals, self.wish.globals) {
            (false, None) => vec![blocking(&all, "", None)],
            (false, Some(_)) => {
                let fix = "Let the restore make them as the point has them: --globals. Or create them yourself, or restore without owners \
                           and privileges: --no-owner.";
                vec![blocking(&all, "", Some(fix.to_owned()))]
            }
            (true, None) => vec![blocking(&all, "; the point does not hold the server's roles", None)],
            (true, Some(globals)) => {
                let (known, unknown): (Vec<&String>, Vec<&String>) =
                    all.into_iter().partition(|role| globals.has(role));
                let mut findings = Vec::new();
                if !unknown.is_empty() {
                    findings.push(blocking(&unknown, "; the point does not know them either", None));
                }
                if !known.is_empty() && !self.user.create_role {
                    let user = identifier(&self.user.name);
                    let message = format!("the target's user {user} may not make the roles that are missing");
                    let fix = format!("ALTER ROLE {user} CREATEROLE;");
                    findings.push(Finding::blocking(Reason::UserErrorMissingDBPermissions, message).with_fix(fix));
                } else if !known.is_empty() {
                    let names = list(&known);
                    let count = names.len() as u64;
                    let message =
                        "these roles are missing and will be made, without passwords and powers over the server";
                    let fix = "Nothing; what they lack then is told by the job.";
                    let finding = Finding::warning(Reason::RolesMissing, message).with_fix(fix);
                    findings.push(finding.with_objects(names, count));
                }
                findings
            }
        }
    }

    /// What names roles without owners and privileges. Whether a chosen part has such a thing is not known.
    fn named(&self, names: Vec<String>) -> Finding {
        let count = names.len() as u64;
        let message = format!(
            "the target server lacks the roles {}, which policies of row-level security or user mappings name",
            names.join(", ")
        );
        let fix =
            "Create them, NOLOGIN is enough; or leave the tables with such policies out, with --schema or --table.";
        let finding = match self.wish.choice.is_some_and(|choice| choice.partial) {
            true => Finding::warning(Reason::RolesMissing, message),
            false => Finding::blocking(Reason::RolesMissing, message),
        };
        finding.with_fix(fix).with_objects(names, count)
    }

    /// Who is no superuser can make things another role's only as its member.
    async fn owners(&self) -> Result<Option<Finding>, Problem> {
        let Some(choice) = self.wish.choice.filter(|_| !self.wish.target.no_owner && !self.user.rights.superuser)
        else {
            return Ok(None);
        };
        let owners: Vec<&str> =
            choice.owners.iter().map(String::as_str).filter(|owner| !owner.starts_with("pg_")).collect();
        let right = if self.session.major() >= Major::new(16) { "SET" } else { "MEMBER" };
        let query = format!(
            "select rolname::text from pg_roles where rolname = any($1::text[]) and not pg_has_role(current_user, oid, '{right}') order by 1"
        );
        let rows = self.ask(self.session.client().query(&query, &[&owners])).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let user = identifier(&self.user.name);
        let names: Vec<String> = rows.iter().map(|row| identifier(row.get(0))).collect();
        let message = format!(
            "the target's user {user} is no member of the roles {}, which own what is restored",
            names.join(", ")
        );
        let fix = format!("GRANT {} TO {user}; or restore without owners: --no-owner", names.join(", "));
        let count = names.len() as u64;
        let finding = Finding::blocking(Reason::UserErrorMissingDBPermissions, message).with_fix(fix);
        Ok(Some(finding.with_objects(names, count)))
    }

    async fn extensions(&self) -> Result<Vec<Finding>, Problem> {
        let is_made = |name: &str| self.wish.choice.is_none_or(|choice| choice.extensions.contains(name));
        let wanted: Vec<_> = self.wish.facts.extensions.iter().filter(|extension| is_made(&extension.name)).collect();
        let names: Vec<&str> = wanted.iter().map(|extension| extension.name.as_str()).collect();
        let query = "select name::text, coalesce(default_version, '') from pg_available_extensions where name = any($1::text[])";
        let rows = match self.ask(self.session.client().query(query, &[&names])).await {
            Ok(rows) => rows,
            // The server reads the control files of all extensions for it, and one that it cannot read ends the query. pg_restore will tell.
            Err(problem) if problem.reason == Reason::RestoreFailed => {
                let message =
                    format!("the target server does not tell which extensions it offers: {}", problem.message);
                return Ok(vec![Finding::warning(Reason::ExtensionMissing, message)]);
            }
            Err(problem) => return Err(problem),
        };
        let offered: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let is_offered = |name: &str| offered.iter().any(|(offered, _)| offered == name);
        let mut findings = Vec::new();
        let missing: Vec<String> =
            names.iter().filter(|name| !is_offered(name)).map(|name| (*name).to_owned()).collect();
        if !missing.is_empty() {
            let count = missing.len() as u64;
            let message = format!("the target server does not offer the extensions {}", missing.join(", "));
            findings.push(Finding::blocking(Reason::ExtensionMissing, message).with_objects(missing, count));
        }
        let other: Vec<String> = wanted
            .iter()
            .filter(|extension| {
                is_offered(&extension.name) && !offered.contains(&(extension.name.clone(), extension.version.clone()))
            })
            .map(|extension| format!("{} {}", extension.name, extension.version))
            .collect();
        if !other.is_empty() {
            let count = other.len() as u64;
            let message = "the target server makes other versions of some extensions";
            let fix = "Look whether what you use of them is the same there; ALTER EXTENSION name UPDATE TO 'version' changes it afterwards.";
            let finding = Finding::warning(Reason::ExtensionMissing, message).with_fix(fix);
            findings.push(finding.with_objects(other, count));
        }
        Ok(findings)
    }

    async fn tablespaces(&self) -> Result<Option<Finding>, Problem> {
        let query = "select name from unnest($1::text[]) name where not exists \
             (select from pg_tablespace where spcname = name and has_tablespace_privilege(oid, 'CREATE')) order by 1";
        let rows = self.ask(self.session.client().query(query, &[&self.wish.facts.tablespaces])).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let count = names.len() as u64;
        let message = format!(
            "the target server lacks the tablespaces {}, or this user may not use them: everything comes into the default one",
            names.join(", ")
        );
        let fix = "To keep them, create them before the restore: CREATE TABLESPACE name LOCATION 'folder'; or GRANT CREATE ON TABLESPACE …";
        Ok(Some(Finding::warning(Reason::PartlyRestored, message).with_fix(fix).with_objects(names, count)))
    }

    fn left_out(&self) -> Vec<Finding> {
        let Some(choice) = self.wish.choice else { return Vec::new() };
        let finding = |objects: &[String], message: &str, fix: &str| {
            let finding = Finding::warning(Reason::PartlyRestored, message).with_fix(fix);
            (!objects.is_empty()).then(|| finding.with_objects(objects.to_vec(), objects.len() as u64))
        };
        // The job's warning has the message only, and whoever has to make these things by hand needs their names.
        let left_out = format!("left out, because it needs what was not chosen: {}", first(&choice.left_out));
        let fix = "Choose what it needs as well, with --table or --schema, or make it by hand afterwards.";
        let forbidden = format!(
            "comments are left out that only a superuser, or the owner of the extension, may write: {}",
            first(&choice.forbidden)
        );
        let others = [
            finding(&choice.left_out, &left_out, fix),
            finding(&choice.forbidden, &forbidden, "If they matter, write them as a superuser after the restore."),
            along(&choice.along),
        ];
        others.into_iter().flatten().collect()
    }
}

/// What comes with what was chosen.
fn along(names: &[String]) -> Option<Finding> {
    let message = format!("what was chosen needs these, and they come with it: {}", first(names));
    let finding = Finding::warning(Reason::AlsoRestored, message);
    (!names.is_empty()).then(|| finding.with_objects(names.to_vec(), names.len() as u64))
}

/// As many names as a finding keeps.
fn first(names: &[String]) -> String {
    let more = if names.len() > OBJECTS_MAX { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(OBJECTS_MAX)].join(", "))
}

/// The roles that the server named before the dump, and the owners that the dump names: one may have come in between. In a dump that is not in
/// UTF-8 the names of some cannot be known.
fn needed_roles(facts: &Facts, choice: Option<&Choice>) -> Vec<String> {
    let is_known = |owner: &&String| {
        let is_read = owner.is_ascii() || (facts.encoding == "UTF8" && !owner.contains(char::REPLACEMENT_CHARACTER));
        is_read && !owner.starts_with("pg_")
    };
    let owners = choice.into_iter().flat_map(|choice| &choice.owners).filter(is_known);
    let all: BTreeSet<&String> = facts.roles.iter().chain(&facts.named_roles).chain(owners).collect();
    all.into_iter().cloned().collect()
}

/// "en_US.UTF-8" and "en_US.utf8" are the same.
fn plain_locale(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|character| character.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_are_compared_without_their_spelling() {
        assert_eq!(plain_locale("en_US.UTF-8"), plain_locale("en_US.utf8"));
        assert_ne!(plain_locale("en_US.utf8"), plain_locale("de_DE.utf8"));
    }

    #[test]
    fn owners_that_came_after_the_look_are_needed_too() {
        let facts = |encoding: &str| {
            let json = serde_json::json!({
                "format_version": 1, "database": "d", "owner": "o", "server_version_num": 150_000, "pg_dump_version": "15.1",
                "encoding": encoding, "collate": "C", "ctype": "C", "locale_provider": "libc", "locale": null,
                "icu_rules": null, "size_bytes": 1, "roles": ["app", "old"], "extensions": [],
            });
            Facts::from_json(json.to_string().as_bytes()).unwrap()
        };
        let owners = ["app", "new", "pg_database_owner", "é", "a\u{fffd}"].map(str::to_owned).into();
        let choice = Choice { owners, ..Choice::default() };
        assert_eq!(needed_roles(&facts("UTF8"), Some(&choice)), ["app", "new", "old", "é"]);
        assert_eq!(needed_roles(&facts("LATIN1"), Some(&choice)), ["app", "new", "old"]);
        assert_eq!(needed_roles(&facts("UTF8"), None), ["app", "old"]);
    }

    #[test]
    fn a_message_names_a_hundred_and_says_that_there_are_more() {
        let names: Vec<String> = (0..=OBJECTS_MAX).map(|number| format!("VIEW s.v{number}")).collect();
        assert!(first(&names).ends_with("VIEW s.v99, …"));
        assert_eq!(first(&names[..2]), "VIEW s.v0, VIEW s.v1");
    }

    #[test]
    fn only_what_is_known_to_be_too_little_is_told() {
        assert_eq!(space(10, None), None);
        assert_eq!(space(10, Some(10)), None);
        let finding = space(10, Some(9)).unwrap();
        assert!(!finding.blocking && finding.reason == Reason::TargetFull, "{finding:?}");
    }
}
