//! The log: standard error, text or JSON lines.
//!
//! `VAULTFERRY_LOG` is the level or a filter (`info`, `debug,h2=warn`), `VAULTFERRY_LOG_FORMAT` is `text` or `json`.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use vaultferry_proto::{Problem, Reason};

use crate::args::{Agent, Args, Command};

/// Starts the log of this process. Errors: a variable that makes no sense.
pub fn start(args: &Args) -> Result<(), Problem> {
    // A person who asks for a list wants the list; a service tells what it does.
    let is_service = matches!(args.command, Command::Agent(Agent::Run) | Command::Plugin(_));
    let wanted = std::env::var("VAULTFERRY_LOG").unwrap_or_default();
    let default = if is_service { "info" } else { "warn" };
    let filter = EnvFilter::try_new(if wanted.is_empty() { default } else { &wanted })
        .map_err(|error| wrong("VAULTFERRY_LOG", &format!("is no level or filter: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var("VAULTFERRY_LOG_FORMAT").as_deref() {
        Err(_) | Ok("" | "text") => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Ok("json") => builder.json().flatten_event(true).init(),
        Ok(_) => return Err(wrong("VAULTFERRY_LOG_FORMAT", "must be text or json")),
    }
    Ok(())
}

fn wrong(variable: &str, fault: &str) -> Problem {
    Problem::new(Reason::InvalidConfiguration, format!("{variable} {fault}"))
        .with_fix(format!("Correct or unset {variable}."))
}
