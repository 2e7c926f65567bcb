//! Roles that a restore makes on request (P19: roles are not restored by themselves), out of the point's `globals.sql`.
//!
//! Invariants:
//! - Only roles that the dump needs and the target lacks. A role that exists is never touched, nor made a member of anything.
//! - No password comes with a role, and no power over the whole server: SUPERUSER, CREATEROLE, CREATEDB, REPLICATION and BYPASSRLS are told
//!   with the statement that gives them, and not given. Memberships come between two roles that are made here, if they are plain ones: one
//!   that is limited (`INHERIT FALSE`, `SET FALSE`, since 16) is told, and so is that a member may not admit others (`ADMIN OPTION`).
//! - Each role is made in one transaction, which also marks it with the job (`COMMENT ON ROLE`): a restore that fails, or the clean-up after
//!   one that was killed, drops the roles that bear its mark. The last step of a restore takes the mark away.
//! - `globals.sql` is data: what is run is put together here out of names and known words, never copied out of it.

use std::collections::{BTreeMap, BTreeSet};

use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::Warning;
use vaultferry_proto::{Problem, Reason};

use super::database::{DROP_TIMEOUT, in_time};
use super::rules;
use crate::client::Major;
use crate::connection::{Server, Session};
use crate::quote::{identifier, literal};

/// What the mark of a role begins with; the job's id follows.
const MARK: &str = "vaultferry restore ";

/// Powers over the whole server.
const POWERS: [&str; 5] = ["SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"];

/// What `globals.sql` tells of the server's roles.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Globals {
    roles: BTreeMap<String, Role>,
    /// (role, member)
    memberships: BTreeSet<(String, String)>,
    /// Those of them whose member may admit others.
    admins: BTreeSet<(String, String)>,
    /// (role, member), and what is less in it than in a plain one.
    limited: BTreeMap<(String, String), &'static str>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Role {
    login: bool,
    no_inherit: bool,
    connection_limit: Option<String>,
    valid_until: Option<String>,
    powers: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Name(String),
    Text(String),
    Other,
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(text) if text.eq_ignore_ascii_case(word))
    }

    /// The name that it is as an identifier: words that are not quoted are in lower case.
    fn name(&self) -> Option<String> {
        match self {
            Self::Word(word) => Some(word.to_lowercase()),
            Self::Name(name) => Some(name.clone()),
            Self::Text(_) | Self::Other => None,
        }
    }
}

impl Globals {
    /// Reads the statements that it knows, and passes over all others.
    pub(super) fn parse(sql: &str) -> Self {
        let mut globals = Self::default();
        for statement in statements(sql) {
            globals.take(&statement);
        }
        globals
    }

    /// Whether the point knows this role.
    pub(super) fn has(&self, role: &str) -> bool {
        self.roles.contains_key(role)
    }

    fn take(&mut self, statement: &[Token]) {
        match statement {
            [create, role, name] if create.is("CREATE") && role.is("ROLE") => {
                if let Some(name) = name.name() {
                    self.roles.entry(name).or_default();
                }
            }
            [alter, role, name, with, options @ ..] if alter.is("ALTER") && role.is("ROLE") && with.is("WITH") => {
                if let Some(name) = name.name() {
                    self.roles.entry(name).or_default().take(options);
                }
            }
            // "GRANT role TO member …"; grants on objects have ON in the place of TO.
            [grant, role, to, member, options @ ..] if grant.is("GRANT") && to.is("TO") => {
                if let (Some(role), Some(member)) = (role.name(), member.name()) {
                    self.add_membership(role, member, options);
                }
            }
            _ => {}
        }
    }

    /// The roles themselves come first in the file. One role may be granted several times, by several others: what one gives, it has.
    fn add_membership(&mut self, role: String, member: String, options: &[Token]) {
        let has = |first: &str, second: &str| options.windows(2).any(|two| two[0].is(first) && two[1].is(second));
        // A plain grant to a role without INHERIT is one with INHERIT FALSE.
        let inherits = self.roles.get(&member).is_none_or(|member| !member.no_inherit);
        let limit = match (has("INHERIT", "FALSE") && inherits, has("SET", "FALSE")) {
            // And the other way round.
            (false, false) if has("INHERIT", "TRUE") && !inherits => Some("INHERIT TRUE"),
            (false, true) if has("INHERIT", "TRUE") && !inherits => Some("INHERIT TRUE, SET FALSE"),
            (false, false) => None,
            (true, false) => Some("INHERIT FALSE"),
            (false, true) => Some("SET FALSE"),
            (true, true) => Some("INHERIT FALSE, SET FALSE"),
        };
        if has("ADMIN", "OPTION") {
            self.admins.insert((role.clone(), member.clone()));
        }
        match limit {
            None => {
                self.memberships.insert((role, member));
            }
            Some(limit) => {
                self.limited.insert((role, member), limit);
            }
        }
    }

    /// What is not made of memberships between roles; `is_new` says which roles are made.
    fn memberships_not_made(&self, is_new: impl Fn(&String) -> bool) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut tell = |role: &String, member: &String, seen: &str, options: &str| {
            let (role, member) = (identifier(role), identifier(member));
            let message = format!("the role {member} was not made a member of {role}{seen}, as it is at the source");
            warnings.push(rules::partly(message, format!("If it is to be one: GRANT {role} TO {member}{options};")));
        };
        for (role, member) in self.memberships.iter().filter(|(_, member)| is_new(member)) {
            match is_new(role) {
                false => {
                    let admits = self.admins.contains(&(role.clone(), member.clone()));
                    tell(role, member, "", if admits { " WITH ADMIN OPTION" } else { "" });
                }
                true if self.admins.contains(&(role.clone(), member.clone())) => {
                    tell(role, member, " that may admit others", " WITH ADMIN OPTION");
                }
                true => {}
            }
        }
        for ((role, member), limit) in &self.limited {
            if is_new(member) && !self.memberships.contains(&(role.clone(), member.clone())) {
                tell(role, member, &format!(" with {limit}"), &format!(" WITH {limit}"));
            }
        }
        warnings
    }
}

impl Role {
    fn take(&mut self, options: &[Token]) {
        let mut options = options.iter();
        while let Some(option) = options.next() {
            if option.is("LOGIN") {
                self.login = true;
            } else if option.is("NOINHERIT") {
                self.no_inherit = true;
            } else if option.is("LIMIT") {
                // "CONNECTION LIMIT 5", "CONNECTION LIMIT -1"
                self.connection_limit = match options.next() {
                    Some(Token::Word(number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                        Some(number.clone())
                    }
                    _ => None,
                };
            } else if option.is("UNTIL") {
                self.valid_until = match options.next() {
                    Some(Token::Text(time)) => Some(time.clone()),
                    _ => None,
                };
            } else if let Some(power) = POWERS.into_iter().find(|power| option.is(power)) {
                self.powers.push(power);
            }
        }
    }

    /// What makes it, without its powers.
    fn statement(&self, name: &str) -> String {
        let mut statement = format!("create role {}", identifier(name));
        if self.login {
            statement.push_str(" login");
        }
        if self.no_inherit {
            statement.push_str(" noinherit");
        }
        if let Some(limit) = &self.connection_limit {
            statement.push_str(&format!(" connection limit {limit}"));
        }
        if let Some(time) = &self.valid_until {
            statement.push_str(&format!(" valid until {}", literal(time)));
        }
        statement
    }
}

/// The statements' tokens. Comments, and the commands of psql that stand on lines of their own, are passed over.
fn statements(sql: &str) -> Vec<Vec<Token>> {
    let (mut all, mut current) = (Vec::new(), Vec::new());
    let mut characters = sql.chars().peekable();
    let mut at_line_start = true;
    while let Some(character) = characters.next() {
        let starts_line = std::mem::replace(&mut at_line_start, character == '\n');
        match character {
            ';' => all.push(std::mem::take(&mut current)),
            '-' if characters.peek() == Some(&'-') => at_line_start = pass_line(&mut characters),
            '\\' if starts_line => at_line_start = pass_line(&mut characters),
            '"' => current.push(Token::Name(quoted(&mut characters, '"', false))),
            '\'' => {
                let escapes = matches!(current.last(), Some(Token::Word(word)) if word.eq_ignore_ascii_case("e"));
                if escapes {
                    current.pop();
                }
                current.push(Token::Text(quoted(&mut characters, '\'', escapes)));
            }
            other if other.is_alphanumeric() || other == '_' => {
                let mut word = String::from(other);
                while let Some(next) = characters.next_if(|next| next.is_alphanumeric() || matches!(next, '_' | '$')) {
                    word.push(next);
                }
                current.push(Token::Word(word));
            }
            other if other.is_whitespace() => {}
            _ => current.push(Token::Other),
        }
    }
    all.retain(|statement: &Vec<Token>| !statement.is_empty());
    all
}

fn pass_line(characters: &mut impl Iterator<Item = char>) -> bool {
    characters.any(|character| character == '\n')
}

/// What is between the quotes; doubled ones mean one.
fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char, escapes: bool) -> String {
    let mut text = String::new();
    while let Some(character) = characters.next() {
        if character == quote {
            if characters.next_if_eq(&quote).is_none() {
                break;
            }
            text.push(quote);
        } else if character == '\\' && escapes {
            text.extend(characters.next());
        } else {
            text.push(character);
        }
    }
    text
}

/// Makes the roles `missing`, and marks them with the job. What is not restored of them is a warning.
///
/// When it fails, some may have been made: [`drop_marked`] removes them.
pub(super) async fn create(
    session: &Session,
    globals: &Globals,
    missing: &[String],
    job_id: &str,
    cancel: &CancellationToken,
) -> Result<Vec<Warning>, Problem> {
    let mut warnings = Vec::new();
    let failed = Reason::RestoreFailed;
    let user_query = "select rolsuper, current_user::text from pg_roles where rolname = current_user";
    let user = session.run(session.client().query_one(user_query, &[]), failed, cancel).await?;
    let (superuser, user): (bool, String) = (user.get(0), user.get(1));
    for name in missing {
        let Some(role) = globals.roles.get(name) else { continue };
        let mut script = format!("begin; {}; {};", role.statement(name), mark_statement(name, job_id));
        if !superuser {
            // Who makes an object another role's must be able to act for it.
            script.push_str(&match session.major() >= Major::new(16) {
                true => format!(" grant {} to {} with inherit true, set true;", identifier(name), identifier(&user)),
                false => format!(" grant {} to {};", identifier(name), identifier(&user)),
            });
        }
        script.push_str(" commit");
        session.run(session.client().batch_execute(&script), failed, cancel).await?;
        if !role.powers.is_empty() {
            let powers = role.powers.join(" ");
            let message =
                format!("the role {} was made without {powers}, which it had at the source", identifier(name));
            warnings.push(rules::partly(
                message,
                format!("If it is to have it: ALTER ROLE {} {powers};", identifier(name)),
            ));
        }
        if role.login {
            let message = format!("the role {} was made without a password", identifier(name));
            let fix = format!("If it is to log in by one, set it with psql: \\password {}", identifier(name));
            warnings.push(rules::partly(message, fix));
        }
    }
    let is_new = |name: &String| missing.contains(name) && globals.has(name);
    let ours: Vec<&(String, String)> =
        globals.memberships.iter().filter(|(role, member)| is_new(role) && is_new(member)).collect();
    for (role, member) in ours {
        let grant = format!("grant {} to {}", identifier(role), identifier(member));
        session.run(session.client().batch_execute(&grant), failed, cancel).await?;
    }
    warnings.extend(globals.memberships_not_made(is_new));
    Ok(warnings)
}

/// The comment of a role that was made for this job.
pub(super) fn mark(job_id: &str) -> String {
    format!("{MARK}{job_id}")
}

fn mark_statement(role: &str, job_id: &str) -> String {
    format!("comment on role {} is {}", identifier(role), literal(&mark(job_id)))
}

/// The roles that bear the job's mark.
async fn marked(session: &Session, job_id: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let query =
        "select rolname::text from pg_roles join pg_shdescription on objoid = oid and classoid = 'pg_authid'::regclass
                 where description = $1::text order by 1";
    let mark = mark(job_id);
    Ok(session.client().query(query, &[&mark]).await?.iter().map(|row| row.get(0)).collect())
}

/// With a role its settings go, and nothing says so.
const HAS_SETTINGS: &str = "
select exists (select from pg_db_role_setting where setrole = (select oid from pg_roles where rolname = $1::text))";

/// Drops what [`create`] has made for this job, in [`DROP_TIMEOUT`]. A role that owns something by now, or has settings in a database (those of
/// an unfinished one went with it), stays and loses its mark: somebody uses it.
pub(super) async fn drop_marked(server: &Server, job_id: &str) -> Result<(), Problem> {
    let session = server.connect(&CancellationToken::new()).await?;
    let work = async {
        for role in marked(&session, job_id).await? {
            let name = identifier(&role);
            let has_settings: bool = session.client().query_one(HAS_SETTINGS, &[&role]).await?.try_get(0)?;
            let is_used = has_settings
                || match session.client().batch_execute(&format!("drop role {name}")).await {
                    Ok(()) => false,
                    Err(error)
                        if error.code() == Some(&tokio_postgres::error::SqlState::DEPENDENT_OBJECTS_STILL_EXIST) =>
                    {
                        true
                    }
                    Err(error) => return Err(error),
                };
            if is_used {
                session.client().batch_execute(&format!("comment on role {name} is null")).await?;
            }
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    in_time(DROP_TIMEOUT, "drop them", &session, work).await
}

/// Takes the marks away, in [`DROP_TIMEOUT`]: the roles stay.
pub(super) async fn keep_marked(session: &Session, job_id: &str) -> Result<(), Problem> {
    let work = async {
        for role in marked(session, job_id).await? {
            session.client().batch_execute(&format!("comment on role {} is null", identifier(&role))).await?;
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    in_time(DROP_TIMEOUT, "remove them", session, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = r#"
--
-- PostgreSQL database cluster dump; DROP ROLE app;
--
\restrict abc;
SET client_encoding = 'UTF8';
CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5 VALID UNTIL '2030-01-01 00:00:00+00';
CREATE ROLE "Be; ""ta""
-- two";
ALTER ROLE "Be; ""ta""
-- two" WITH SUPERUSER NOINHERIT NOCREATEROLE CREATEDB NOLOGIN REPLICATION NOBYPASSRLS CONNECTION LIMIT -1 PASSWORD 'SUPERUSER LOGIN;';
ALTER ROLE app SET search_path TO 'x', 'y';
ALTER ROLE app IN DATABASE d SET work_mem TO E'a\'; CREATE ROLE bad;';
GRANT "Be; ""ta""
-- two" TO app WITH ADMIN OPTION GRANTED BY postgres;
GRANT SELECT ON PARAMETER x TO app;
CREATE TABLESPACE fast OWNER postgres LOCATION '/fast';
"#;

    #[test]
    fn roles_and_memberships_are_read_and_nothing_else() {
        let globals = Globals::parse(SQL);
        let odd = "Be; \"ta\"\n-- two";
        assert_eq!(globals.roles.keys().map(String::as_str).collect::<Vec<_>>(), [odd, "app"]);
        assert_eq!(globals.memberships, BTreeSet::from([(odd.to_owned(), "app".to_owned())]));
        let statement = globals.roles["app"].statement("app");
        assert_eq!(statement, "create role \"app\" login connection limit 5 valid until '2030-01-01 00:00:00+00'");
        assert_eq!(globals.roles[odd].powers, ["SUPERUSER", "CREATEDB", "REPLICATION"]);
        assert_eq!(globals.roles[odd].statement("b"), "create role \"b\" noinherit");
    }

    /// As pg_dumpall since 16 writes them.
    #[test]
    fn only_plain_memberships_are_made() {
        let sql = "CREATE ROLE a; CREATE ROLE b; CREATE ROLE c; ALTER ROLE c WITH NOINHERIT;
            GRANT a TO b WITH INHERIT FALSE, SET FALSE GRANTED BY postgres;
            GRANT b TO a WITH INHERIT TRUE, SET FALSE GRANTED BY postgres;
            GRANT b TO a WITH INHERIT TRUE GRANTED BY other;
            GRANT a TO c WITH INHERIT FALSE GRANTED BY postgres;
            GRANT b TO c WITH ADMIN OPTION, INHERIT FALSE GRANTED BY postgres;
            GRANT old TO b WITH INHERIT TRUE GRANTED BY postgres;";
        let globals = Globals::parse(sql);
        let pair = |role: &str, member: &str| (role.to_owned(), member.to_owned());
        let plain = [pair("a", "c"), pair("b", "a"), pair("b", "c"), pair("old", "b")];
        assert_eq!(globals.memberships, BTreeSet::from(plain));
        let warnings = globals.memberships_not_made(|role| role != "old");
        let fixes: Vec<&str> = warnings.iter().map(|warning| warning.fix.as_str()).collect();
        let expected = [
            "If it is to be one: GRANT \"b\" TO \"c\" WITH ADMIN OPTION;",
            "If it is to be one: GRANT \"old\" TO \"b\";",
            "If it is to be one: GRANT \"a\" TO \"b\" WITH INHERIT FALSE, SET FALSE;",
        ];
        assert_eq!(fixes, expected);
        assert!(warnings[2].message.contains("member of \"a\" with INHERIT FALSE, SET FALSE"), "{warnings:?}");
    }

    #[test]
    fn no_password_and_no_power_is_ever_in_a_statement() {
        let hostile = "CREATE ROLE a; ALTER ROLE a WITH PASSWORD 'secret' SUPERUSER VALID UNTIL 'x'' SUPERUSER' CONNECTION LIMIT 1e9;";
        let globals = Globals::parse(hostile);
        let statement = globals.roles["a"].statement("a\" superuser");
        assert_eq!(statement, "create role \"a\"\" superuser\" valid until 'x'' SUPERUSER'");
        for cut in 0..SQL.len() {
            // Whatever is there of it, reading it comes to an end.
            let _ = Globals::parse(&SQL[..cut]);
        }
    }
}
