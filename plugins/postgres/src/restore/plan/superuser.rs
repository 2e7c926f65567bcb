//! What only a superuser can restore. Managed services let others do some of it, so it is told by the plan and stands in nobody's way: who may
//! not is told by the server, after the tables and their rows at worst.

use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::{Problem, Reason};

use super::super::choice::Guest;
use super::super::itself::may_own;
use super::{Target, first};
use crate::client::Major;
use crate::quote::identifier;

/// Kinds of things in a dump.
const KINDS: [&str; 4] = ["ACCESS METHOD", "EVENT TRIGGER", "FOREIGN DATA WRAPPER", "SUBSCRIPTION"];

/// Roles that may not create in the schema by what they are: no superusers, nor members of its owner.
const GUESTS: &str = "
select g.schema, g.owner from unnest($1::text[], $2::text[], $3::text[]) g(schema, host, owner)
  left join pg_roles h on h.rolname = g.host left join pg_roles o on o.rolname = g.owner
where o.oid is null or h.oid is null or not (o.rolsuper or pg_has_role(o.oid, h.oid, 'USAGE'))
order by 1, 2";

impl Target<'_> {
    /// Who is no superuser gives a thing only to a role that may create where it lies. Rights on schemas, which may say so, come back last of all.
    pub(super) async fn guests(&self) -> Result<Option<Finding>, Problem> {
        let is_of_use = !self.user.rights.superuser && !self.wish.target.no_owner;
        let Some(choice) = self.wish.choice.filter(|_| is_of_use) else { return Ok(None) };
        let owner = &self.wish.facts.owner;
        let is_given = !choice.partial && may_own(self.session, owner, self.cancel).await?;
        let database_owner = if is_given { owner } else { &self.user.name };
        let (mut schemas, mut hosts, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for Guest { schema, host, owner } in &choice.guests {
            let host = match host.as_str() {
                // Before 15 everybody may create there.
                "" if schema == "public" && self.session.major() >= Major::new(15) => database_owner,
                "" => continue,
                _ => host,
            };
            if host != owner {
                schemas.push(schema.as_str());
                hosts.push(host.as_str());
                owners.push(owner.as_str());
            }
        }
        if owners.is_empty() {
            return Ok(None);
        }
        let rows = self.ask(self.session.client().query(GUESTS, &[&schemas, &hosts, &owners])).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut names = Vec::new();
        for row in rows {
            names.push(format!("{} in {}", identifier(row.get(1)), identifier(row.get(0))));
        }
        let (user, count) = (identifier(&self.user.name), names.len() as u64);
        let message = format!(
            "the target's user {user} is no superuser, and can make these roles the owners of something only where they may create; rights on \
             schemas come back last: {}",
            first(&names)
        );
        let fix = "Restore as a superuser, or with --no-owner; or make these roles members of the schemas' owners until it is done.";
        let finding = Finding::warning(Reason::UserErrorMissingDBPermissions, message).with_fix(fix);
        Ok(Some(finding.with_objects(names, count)))
    }

    /// Nothing for a superuser, and for a dump whose table of contents is not known.
    pub(super) async fn superuser_only(&self) -> Result<Option<Finding>, Problem> {
        let Some(choice) = self.wish.choice.filter(|_| !self.user.rights.superuser) else { return Ok(None) };
        let mut things = Vec::new();
        for kind in KINDS {
            if let Some(count) = choice.counts.get(kind) {
                things.push(format!("{kind} ({count})"));
            }
        }
        let names: Vec<&str> = choice.extensions.iter().map(String::as_str).collect();
        // A trusted one may be made by whoever may create in the database.
        let untrusted = if self.session.major() >= Major::new(13) { "superuser and not trusted" } else { "superuser" };
        let query = format!(
            "select distinct name::text from pg_available_extension_versions where name = any($1::text[]) and {untrusted} order by 1"
        );
        match self.ask(self.session.client().query(&query, &[&names])).await {
            Ok(rows) => {
                for row in rows {
                    things.push(format!("EXTENSION {}", row.get::<_, String>(0)));
                }
            }
            // A control file that cannot be read: that is told where the extensions are looked for.
            Err(problem) if problem.reason == Reason::RestoreFailed => {}
            Err(problem) => return Err(problem),
        }
        if things.is_empty() {
            return Ok(None);
        }
        let (user, count) = (identifier(&self.user.name), things.len() as u64);
        let message = format!(
            "as a rule only a superuser may make these, and the target's user {user} is none: {}",
            first(&things)
        );
        let fix = "Restore as a superuser, or leave them out with --schema; nothing, where the service lets this user make them.";
        let finding = Finding::warning(Reason::UserErrorMissingDBPermissions, message).with_fix(fix);
        Ok(Some(finding.with_objects(things, count)))
    }
}
