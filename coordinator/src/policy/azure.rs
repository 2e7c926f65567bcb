//! Azure's backup policies as policies of this program, and back.
//!
//! Two kinds of JSON are known, as the resource (`properties`), as its properties alone, or as the Azure CLI writes it:
//! - Data Protection (`AzureBackupRule`, `AzureRetentionRule`, `taggingCriteria`, `lifecycles`): PostgreSQL, disks (`protection.rs`);
//! - Recovery Services (`schedulePolicy`, `retentionPolicy`): virtual machines (`recovery.rs`).
//!
//! Invariants:
//! - What one side cannot express is said in a note, never dropped in silence; where there is a choice, more is kept, not less.
//! - An import is a valid document (it went through [`super::parse`]) and its text; limits are this program's (P51, P52, V20).
//! - Zones: Azure names them as Windows does; `zones.rs` translates by CLDR's table. IANA names are taken as well.

use jiff::Timestamp;
use jiff::civil::Weekday;
use serde_json::Value;
use vaultferry_proto::{Problem, Reason};

use super::document::File;
use super::{CatchUp, Document, Period, Qualifier, parse};

mod protection;
mod recovery;
mod words;
mod zones;

/// Longest policy that is read.
const MAX_LEN: usize = 1 << 20;

/// A policy that came from Azure.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The document, to be kept (TOML).
    pub text: String,
    /// What the document says.
    pub document: Document,
    /// What it cannot express, or expresses differently.
    pub notes: Vec<String>,
}

/// A policy for Azure.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The JSON of the resource: `name` and `properties`.
    pub json: Value,
    /// What it cannot express, or expresses differently.
    pub notes: Vec<String>,
}

/// Reads an Azure backup policy. `name` is the new policy's; without it the JSON's own. `InvalidPolicy` when it is none, when it is for
/// sources that are not known here, or when the result breaks a limit (the message names it).
pub fn import(json: &str, name: Option<&str>) -> Result<Imported, Problem> {
    if json.len() > MAX_LEN {
        return Err(invalid("the policy is longer than 1 MiB"));
    }
    let value: Value =
        serde_json::from_str(json).map_err(|error| invalid(format!("the policy is not JSON: {error}")))?;
    let properties = value.get("properties").unwrap_or(&value);
    let own_name = value.get("name").or_else(|| properties.get("name")).and_then(Value::as_str);
    let name = name.or(own_name).unwrap_or("imported");
    let mut notes = Vec::new();
    let file: File = if properties.get("policyRules").is_some() {
        protection::import(properties, name, &mut notes)?
    } else if properties.get("schedulePolicy").is_some() {
        recovery::import(properties, name, &mut notes)?
    } else {
        return Err(invalid("it has neither policyRules (Data Protection) nor schedulePolicy (Recovery Services)"));
    };
    let text = toml::to_string(&file).map_err(|error| invalid(error.to_string()))?;
    let document = parse(&text)?;
    Ok(Imported { text, document, notes })
}

/// Writes a policy for Azure: `postgres` as a Data Protection policy, `vm` as a Recovery Services one. `now` is where its first run
/// is looked for. `InvalidPolicy` when Azure has no such policy at all.
pub fn export(document: &Document, now: Timestamp) -> Result<Exported, Problem> {
    match document.source_type.as_str() {
        "postgres" => protection::export(document, now),
        "vm" => recovery::export(document, now),
        other => Err(invalid(format!("Azure has no backup policies for sources of type {other}"))),
    }
}

/// Parts of a schedule that neither kind of Azure's policies has.
fn unexpressed(document: &Document, notes: &mut Vec<String>) {
    let schedule = &document.schedule;
    if !schedule.jitter.is_zero() {
        notes.push("jitter cannot be expressed: Azure spreads its starts by itself".to_owned());
    }
    if !schedule.allowed.is_empty() {
        notes.push("allowed windows cannot be expressed".to_owned());
    }
    if document.compression != 0 {
        notes.push("compression cannot be expressed: Azure chooses its own".to_owned());
    }
    if schedule.catch_up == CatchUp::Skip {
        notes.push("catch_up = \"skip\" cannot be expressed".to_owned());
    }
    let weekly = document.rules.iter().any(|rule| rule.qualifier == Qualifier::FirstOf(Period::Week));
    if document.week_start != Weekday::Sunday && weekly {
        notes.push("week_start cannot be expressed: Azure's weeks begin on Sunday".to_owned());
    }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidPolicy, message)
}
