//! `vaultferry`: the agent, its plugins, and the command line that speaks to it.
//!
//! One executable: `agent run` is the service, `plugin <type>` is a child of it, everything else is a client (or works on the configured
//! vault without an agent). Exit codes are promises: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.

use std::process::ExitCode;

use vaultferry_proto::{Problem, Reason};

use args::Args;
use command::Outcome;
use config::Surroundings;
use output::Output;

mod args;
mod client;
mod command;
mod config;
mod output;
mod progress;
mod telemetry;
mod wait;

/// `EX_CONFIG` of sysexits.h, which systemd shows by name.
const EXIT_CONFIGURATION: u8 = 78;

#[tokio::main]
async fn main() -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing can have chosen a provider before the first line of main");
    let args = Args::from_process();
    let output = Output::new(args.global.output);
    let result = match telemetry::start(&args) {
        Ok(()) => command::run(args, Surroundings::of_process(), output).await,
        Err(problem) => Err(problem),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        // Whoever chains commands must not take an unknown end for a good one.
        Ok(Outcome::Detached | Outcome::Failed) => ExitCode::FAILURE,
        Err(problem) => {
            output.problem(&problem);
            exit_code(&problem)
        }
    }
}

fn exit_code(problem: &Problem) -> ExitCode {
    match problem.reason {
        Reason::InvalidConfiguration => ExitCode::from(EXIT_CONFIGURATION),
        _ => ExitCode::FAILURE,
    }
}
