//! `--print-grants` of `vaultferry discover postgres`

use vaultferry_proto::Problem;

use super::{Context, Outcome};
use crate::args::Grants;

/// Prints the script; nobody is asked for anything. As JSON: `{"grants": "…"}`.
pub(super) fn print(context: &Context, grants: &Grants) -> Result<Outcome, Problem> {
    let script = vaultferry_plugin_postgres::grants::grants(&grants.role, &grants.databases, grants.per_database);
    context.output.value(&serde_json::json!({ "grants": script }), || script.clone())?;
    Ok(Outcome::Done)
}
