//! What of the database itself (see [`super::super::itself`]) comes back at this target. Of a part of a database nothing does.
//!
//! None of it stands in the way of a restore: what names a role that is missing is left out, and told before anything is made.

use std::collections::BTreeSet;

use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::{Problem, Reason};

use super::super::itself::{may_own, named};
use super::{Target, first};
use crate::facts::Itself;
use crate::quote::identifier;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) findings: Vec<Finding>,
    /// Roles that nothing in the database needs, and that are to be made for it.
    pub(super) roles: Vec<String>,
    /// Where the new database is to be; `None`: the server's default.
    pub(super) tablespace: Option<String>,
}

impl Target<'_> {
    /// `made`: roles that are missing, and that the restore makes for what is in the database.
    pub(super) async fn itself(&self, made: &[String]) -> Result<Found, Problem> {
        if self.wish.choice.is_some_and(|choice| choice.partial) {
            return Ok(Found::default());
        }
        let mut found = Found::default();
        let nothing = Itself::default();
        let itself = self.wish.facts.itself.as_ref().unwrap_or_else(|| {
            let message = "the point does not tell the database's comment, privileges and limit: they are not restored";
            found.findings.push(partly(
                message,
                "Give them to the restored database by hand, as the source has them (psql: \\l+).",
            ));
            &nothing
        });
        if let Some(name) = &itself.tablespace {
            if self.has_tablespace(name).await? {
                found.tablespace = Some(name.clone());
            } else {
                let message = format!(
                    "the database's own tablespace {name} is not there, or this user may not use it: the database comes into the default one"
                );
                let fix = "To keep it, create it before the restore: CREATE TABLESPACE name LOCATION 'folder';";
                found.findings.push(partly(message, fix).with_objects(vec![name.clone()], 1));
            }
        }
        let database = identifier(&self.wish.target.database);
        if itself.is_template {
            let message = "the database is a template at the source, and is restored as an ordinary one";
            found
                .findings
                .push(partly(message, format!("If it is to be one: ALTER DATABASE {database} IS_TEMPLATE true;")));
        }
        if !self.wish.target.no_owner {
            self.named_roles(itself, made, &mut found).await?;
        }
        Ok(found)
    }

    async fn has_tablespace(&self, name: &str) -> Result<bool, Problem> {
        let query = "select from pg_tablespace where spcname = $1::text and has_tablespace_privilege(oid, 'CREATE')";
        Ok(self.ask(self.session.client().query_opt(query, &[&name])).await?.is_some())
    }

    /// The owner, and who may do something with the database or has settings in it.
    async fn named_roles(&self, itself: &Itself, made: &[String], found: &mut Found) -> Result<(), Problem> {
        let names: Vec<&str> = named(self.wish.facts, itself).into_iter().collect();
        let query = "select name from unnest($1::text[]) name where not exists (select from pg_roles where rolname = name) order by 1";
        let rows = self.ask(self.session.client().query(query, &[&names])).await?;
        let missing: Vec<String> =
            rows.iter().map(|row| row.get::<_, String>(0)).filter(|role| !made.contains(role)).collect();
        let globals = self.wish.globals.filter(|_| self.wish.target.globals && self.user.create_role);
        let (known, unknown): (Vec<String>, Vec<String>) =
            missing.into_iter().partition(|role| globals.is_some_and(|globals| globals.has(role)));
        let quoted = |roles: &[String]| roles.iter().map(|role| identifier(role)).collect::<Vec<_>>();
        if !known.is_empty() {
            let message = "these roles may do something with the database itself and will be made, without passwords and powers over the server";
            let finding = Finding::warning(Reason::RolesMissing, message);
            let finding = finding.with_fix("Nothing; what they lack then is told by the job.");
            found.findings.push(finding.with_objects(quoted(&known), known.len() as u64));
        }
        let lacking: BTreeSet<&str> = unknown.iter().map(String::as_str).collect();
        if !unknown.is_empty() {
            let message = format!(
                "the target server lacks the roles {}: what the database itself grants them, their settings in it, and that one of them owns \
                 it, are not restored",
                first(&quoted(&unknown))
            );
            let fix = "Create them and restore again, or let the restore make them as the point has them: --globals";
            found.findings.push(partly(message, fix).with_objects(quoted(&unknown), unknown.len() as u64));
        }
        let owner = &self.wish.facts.owner;
        let comes = lacking.contains(owner.as_str()) || known.contains(owner) || made.contains(owner);
        if *owner != self.user.name && !comes && !may_own(self.session, owner, self.cancel).await? {
            let (owner, user) = (identifier(owner), identifier(&self.user.name));
            let message =
                format!("the database will belong to {user}, who is no member of its owner at the source, {owner}");
            let name = identifier(&self.wish.target.database);
            found.findings.push(partly(
                message,
                format!("GRANT {owner} TO {user}; or afterwards ALTER DATABASE {name} OWNER TO {owner};"),
            ));
        }
        found.roles = known;
        Ok(())
    }
}

fn partly(message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::warning(Reason::PartlyRestored, message).with_fix(fix)
}
