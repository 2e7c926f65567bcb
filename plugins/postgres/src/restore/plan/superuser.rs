//! What only a superuser makes. Managed services let others make some of it, so it is told by the plan and stands in nobody's way: who may
//! not is told by the server, after the tables and their rows at worst.

use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::{Problem, Reason};

use super::{Target, first};
use crate::client::Major;
use crate::quote::identifier;

/// Kinds of things in a dump.
const KINDS: [&str; 4] = ["ACCESS METHOD", "EVENT TRIGGER", "FOREIGN DATA WRAPPER", "SUBSCRIPTION"];

impl Target<'_> {
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
