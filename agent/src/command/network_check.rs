//! `vaultferry agent network-check`: the way to the vault, from this process, with the configured proxy and authorities.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use vaultferry_coordinator::vault::network::{Network, Surroundings};
use vaultferry_coordinator::vault::{InvalidLocation, Location};
use vaultferry_plugin_sdk::network::{Diagnosis, Limits, Place, Rule, diagnose, endpoint};
use vaultferry_proto::{Problem, Reason};

use super::{Context, Outcome};
use crate::args::NetworkCheck;
use crate::config::Purpose;

/// The steps are told on standard output in any case, and then what stands in the way as every problem is.
pub(super) async fn check(context: &Context, command: NetworkCheck) -> Result<Outcome, Problem> {
    let settings = context.settings(Purpose::Client)?;
    let network = Network::new(&settings.network, &Surroundings::of_process());
    let network = network.map_err(|fault| super::wrong_network(&fault))?;
    let mut access = settings.access();
    if let Some(text) = &command.vault {
        let location = text.parse::<Location>();
        let location =
            location.map_err(|error: InvalidLocation| Problem::new(Reason::InvalidRequest, error.to_string()))?;
        if location != access.location {
            access.endpoint = None;
        }
        access.location = location;
    }
    let region = command.region.or_else(|| settings.vault.region.clone());
    let place = Place { region, disks: command.disks.kind(), deny_priority: command.deny_priority };
    let Some(endpoint) = endpoint(&access) else {
        let value = json!({ "network": { "vault": access.location.to_string(), "target": Value::Null } });
        context
            .output
            .value(&value, || format!("The vault is the folder {}: no network is needed.", access.location))?;
        return Ok(Outcome::Done);
    };
    // Ctrl-C ends the process, which holds nothing.
    let diagnosis = diagnose(&endpoint, &network, Limits::default(), &CancellationToken::new()).await?;
    let rule = diagnosis.rule(&place).transpose();
    let value = as_json(&access.location, &diagnosis, rule.as_ref().ok().and_then(Option::as_ref));
    context.output.value(&value, || as_text(&access.location, &diagnosis))?;
    // A deny rule before which nothing can go is a fault of the question.
    rule?;
    match diagnosis.problem(&place) {
        Some(problem) => Err(problem),
        None => Ok(Outcome::Done),
    }
}

fn as_text(location: &Location, diagnosis: &Diagnosis) -> String {
    let proxy = match &diagnosis.proxy {
        Some((proxy, origin)) => format!(" by the proxy {proxy} ({origin})"),
        None => String::new(),
    };
    let mut text = format!("The way to {location}, {}{proxy}:", diagnosis.target);
    for step in &diagnosis.steps {
        text.push_str(&format!("\n  {:<6} ok  {} ({} ms)", step.stage.to_string(), step.detail, step.took.as_millis()));
    }
    match &diagnosis.failure {
        Some(failure) => text.push_str(&format!("\n  {:<6} ends here", failure.stage.to_string())),
        None => {
            text.push_str("\nThe vault can be reached. Whether its credential is right, vaultferry vault show says.")
        }
    }
    text
}

fn as_json(location: &Location, diagnosis: &Diagnosis, rule: Option<&Rule>) -> Value {
    let steps: Vec<Value> = diagnosis
        .steps
        .iter()
        .map(|step| json!({ "stage": step.stage.to_string(), "detail": step.detail, "took_ms": step.took.as_millis() as u64 }))
        .collect();
    let failure = diagnosis.failure.as_ref();
    let failure = failure.map(|failure| json!({ "stage": failure.stage.to_string(), "message": failure.message }));
    let rule = rule.map(|rule| {
        json!({
            "name": rule.name,
            "direction": rule.direction,
            "access": rule.access,
            "protocol": rule.protocol,
            "source": rule.source,
            "source_ports": rule.source_ports,
            "destination": rule.destination,
            "destination_ports": rule.destination_ports,
            "priority": rule.priority,
        })
    });
    json!({ "network": {
        "vault": location.to_string(),
        "target": diagnosis.target,
        "proxy": diagnosis.proxy.as_ref().map(|(proxy, origin)| json!({ "url": proxy, "origin": origin })),
        "steps": steps,
        "failure": failure,
        "rule": rule,
    }})
}
