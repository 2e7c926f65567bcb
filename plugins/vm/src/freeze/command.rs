//! `vaultferry plugin vm-freeze …`: the roles of a freeze, and two commands for people and services.
//!
//! ```text
//! vm-freeze helper|guardian RECORD                       started by the plugin only, with a socket as standard input
//! vm-freeze thaw [--state DIR] [--wait SECONDS]          thaws what dead processes left frozen (the unit's ExecStopPost)
//! vm-freeze hold --mount DIR… [--seconds S] [--deadline S] [--stall S] [--state DIR]     freezes, waits, thaws: to try it out
//! ```
//! `hold` says `frozen` when it is, and one line about how it went at the end. Its exit code is 0 only when the freeze was held.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vaultferry_proto::{Problem, Reason};

use super::{FreezeRequest, guardian, helper, record};

/// What comes before a role's name.
pub(super) const PREFIX: [&str; 2] = ["plugin", "vm-freeze"];

/// The role that freezes.
pub(super) const HELPER: &str = "helper";

/// The role that watches.
pub(super) const GUARDIAN: &str = "guardian";

/// Exit code for wrong usage, as of all commands.
const EXIT_USAGE: u8 = 2;

/// A service's stop may take 90 s with systemd, and a freeze that goes on may take as long as it is allowed to.
const THAW_PATIENCE: Duration = Duration::from_secs(65);

/// Runs one command to its end.
pub(super) fn run(arguments: &[OsString]) -> ExitCode {
    let (name, rest) =
        arguments.split_first().map_or((OsStr::new(""), arguments), |(name, rest)| (name.as_os_str(), rest));
    if name == HELPER {
        return helper::run();
    }
    if name == GUARDIAN {
        return guardian::run(rest.first().map(OsString::as_os_str));
    }
    let result = Options::read(rest).and_then(|options| {
        if name == "thaw" {
            thaw(&options)
        } else if name == "hold" {
            in_runtime(hold(options))
        } else {
            Err(usage(format!("{:?} is neither thaw nor hold", name.to_string_lossy())))
        }
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            say_error(&format!("error: {problem}\nfix: {}", problem.fix));
            if problem.reason == Reason::InvalidRequest { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Of both commands.
#[derive(Debug)]
struct Options {
    mounts: Vec<PathBuf>,
    seconds: Duration,
    deadline: Duration,
    stall: Duration,
    wait: Duration,
    state: PathBuf,
}

impl Options {
    fn read(arguments: &[OsString]) -> Result<Self, Problem> {
        let mut options = Self {
            mounts: Vec::new(),
            seconds: Duration::from_secs(1),
            deadline: FreezeRequest::DEADLINE,
            stall: FreezeRequest::DEADLINE,
            wait: THAW_PATIENCE,
            state: record::DIR.into(),
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let name = name.to_string_lossy();
            let value = arguments.next().ok_or_else(|| usage(format!("{name} has no value")))?;
            match &*name {
                "--mount" => options.mounts.push(value.into()),
                "--state" => options.state = value.into(),
                "--seconds" => options.seconds = seconds(value)?,
                "--deadline" => options.deadline = seconds(value)?,
                "--stall" => options.stall = seconds(value)?,
                "--wait" => options.wait = seconds(value)?,
                _ => return Err(usage(format!("{name} is no option"))),
            }
        }
        Ok(options)
    }
}

fn seconds(value: &OsStr) -> Result<Duration, Problem> {
    let number = value.to_str().and_then(|value| value.parse().ok());
    let duration = number.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| usage(format!("{} is no number of seconds", value.to_string_lossy())))
}

fn usage(message: String) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
        .with_fix("vm-freeze thaw, or vm-freeze hold --mount DIR: see docs/freeze.md.")
}

fn thaw(options: &Options) -> Result<bool, Problem> {
    let leftovers = record::thaw_all(&options.state, options.wait);
    for mount in &leftovers.thawed {
        say(&format!("thawed {}", mount.display()));
    }
    if leftovers.running > 0 {
        say(&format!("left alone: {} whose processes live", leftovers.running));
    }
    for fault in &leftovers.faults {
        say_error(&format!("error: {fault}"));
    }
    if leftovers.is_denied {
        let dir = options.state.display();
        say_error(&format!("error: {dir} cannot be read by this user, so nothing was thawed\nfix: Run this as root."));
    }
    Ok(leftovers.faults.is_empty() && !leftovers.is_denied)
}

async fn hold(options: Options) -> Result<bool, Problem> {
    let Options { mounts, seconds, deadline, stall, state, .. } = options;
    let cancel = CancellationToken::new();
    super::check(&mounts, &[]).await?;
    let frozen = super::freeze_in(&state, FreezeRequest { mounts, deadline, stall }, &cancel).await?;
    say("frozen");
    tokio::time::sleep(seconds).await;
    let (thawed, given_up) = frozen.end().await?;
    say(&format!(
        "thawed held={} synced_ms={} freezing_ms={} frozen_ms={} given_up={}",
        thawed.held,
        thawed.synced.as_millis(),
        thawed.freezing.as_millis(),
        thawed.frozen.as_millis(),
        given_up.unwrap_or("no")
    ));
    Ok(thawed.held)
}

/// In a thread of its own: the caller's may belong to a runtime already.
fn in_runtime<T: Send>(work: impl Future<Output = Result<T, Problem>> + Send) -> Result<T, Problem> {
    let internal = |message: String| Problem::new(Reason::Internal, message);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| internal(format!("no runtime: {error}")))?.block_on(work)
        });
        thread.join().unwrap_or_else(|_| Err(internal("the command panicked".into())))
    })
}

/// A reader that has gone changes nothing.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn say_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, Problem> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Options::read(&arguments)
    }

    #[test]
    fn options_are_read_and_faults_are_told() {
        let options = read(&["--mount", "/a", "--mount", "/b", "--seconds", "0.25", "--state", "/s"]).expect("options");
        assert_eq!(options.mounts, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(options.seconds, Duration::from_millis(250));
        assert_eq!(options.state, Path::new("/s"));
        assert_eq!(options.deadline, FreezeRequest::DEADLINE);
        for wrong in [&["--seconds"][..], &["--seconds", "-1"], &["--seconds", "nan"], &["--what", "x"], &["x"]] {
            assert_eq!(read(wrong).expect_err("wrong usage").reason, Reason::InvalidRequest, "{wrong:?}");
        }
    }
}
