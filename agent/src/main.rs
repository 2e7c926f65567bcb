//! `vaultferry`: the agent, its plugins, and the command line that speaks to it.
//!
//! One executable: `agent run` is the service, `plugin <type>` is a child of it, everything else is a client (or works on the configured
//! vault without an agent). Exit codes are promises: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.

#[cfg(target_os = "linux")]
use std::ffi::OsString;
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

fn main() -> ExitCode {
    // Before there is a runtime: the processes that freeze and thaw have one thread each.
    #[cfg(target_os = "linux")]
    if let Some(arguments) = freeze_arguments(std::env::args_os()) {
        return vaultferry_plugin_vm::freeze::helper_main(arguments);
    }
    run()
}

/// What stands behind `vaultferry plugin vm-freeze`, which is no command for people and not among those of [`Args`].
#[cfg(target_os = "linux")]
fn freeze_arguments(mut words: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let is_ours = words.nth(1)? == "plugin" && words.next()? == "vm-freeze";
    is_ours.then(|| words.collect())
}

#[tokio::main]
async fn run() -> ExitCode {
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_helpers_of_a_freeze_are_told_from_everything_else() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter();
        let arguments = freeze_arguments(words("/proc/self/exe plugin vm-freeze thaw --now"));
        assert_eq!(arguments, Some(vec!["thaw".into(), "--now".into()]));
        for other in ["vaultferry", "vaultferry plugin", "vaultferry plugin vm", "vaultferry point vm-freeze"] {
            assert_eq!(freeze_arguments(words(other)), None, "{other}");
        }
    }
}
