//! Everything that this program prints, but for progress bars and the agent's log.
//!
//! Standard output has results only; errors, warnings and hints go to standard error. With `--output json` standard output is exactly one
//! JSON value.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use prost::{Message, Name};
use vaultferry_proto::{Problem, Reason, control, json};

use crate::args::Format;

pub mod findings;
pub mod job;
pub mod policy;
pub mod readiness;
pub mod source;
pub mod summary;
pub mod table;
pub mod text;
pub mod units;

/// Prints in the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether texts for people may go to standard error while something runs.
    pub fn is_text(self) -> bool {
        self.format == Format::Text
    }

    /// A response: itself as JSON, or what `text` makes of it.
    ///
    /// Errors: standard output cannot be written (but a reader that has gone away is no error).
    pub fn message<M: Message + Name>(self, message: &M, text: impl FnOnce(&M) -> String) -> Result<(), Problem> {
        match self.format {
            Format::Json => to_stdout(&json::to_string(message, io::stdout().is_terminal())),
            Format::Text => to_stdout(&text(message)),
        }
    }

    /// The same for what is no message of the contract.
    pub fn value(self, value: &serde_json::Value, text: impl FnOnce() -> String) -> Result<(), Problem> {
        match self.format {
            Format::Json if io::stdout().is_terminal() => to_stdout(&format!("{value:#}")),
            Format::Json => to_stdout(&value.to_string()),
            Format::Text => to_stdout(&text()),
        }
    }

    /// A failure, with its fix.
    pub fn problem(self, problem: &Problem) {
        match self.format {
            Format::Text => to_stderr(&said("error", problem.reason.as_str(), &problem.message, &problem.fix)),
            Format::Json => {
                let error = serde_json::json!({
                    "reason": problem.reason.as_str(),
                    "message": problem.message,
                    "fix": problem.fix,
                });
                to_stderr(&serde_json::json!({ "error": error }).to_string());
            }
        }
    }

    /// A job's warning. As JSON it is a part of the job.
    pub fn warning(self, warning: &control::v1::Problem) {
        if self.is_text() {
            to_stderr(&said("warning", &warning.reason, &warning.message, &warning.fix));
        }
    }

    /// What a result cannot say, on standard error: a line each, or one JSON value with all of them. Nothing when there are none.
    pub fn notes(self, notes: &[String]) {
        match self.format {
            Format::Text => notes.iter().for_each(|note| to_stderr(&format!("note: {}", table::printable(note)))),
            Format::Json if notes.is_empty() => {}
            Format::Json => to_stderr(&serde_json::json!({ "notes": notes }).to_string()),
        }
    }

    /// What a person has to see before answering a question, in every format.
    pub fn aside(self, text: &str) {
        to_stderr(text);
    }

    /// A remark to a person at the terminal; nothing in JSON mode.
    pub fn hint(self, text: &str) {
        if self.is_text() {
            to_stderr(text);
        }
    }
}

/// A line of progress where there is no terminal to draw on.
pub fn progress_line(text: &str) {
    to_stderr(text);
}

fn said(kind: &str, reason: &str, message: &str, fix: &str) -> String {
    let mut text = format!("{kind}: {reason}: {}", table::printable(message.trim_end()));
    if !fix.is_empty() {
        text.push_str("\nfix: ");
        text.push_str(&table::printable(fix));
    }
    text
}

fn to_stdout(text: &str) -> Result<(), Problem> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let message = format!("cannot write to standard output: {error}");
            Err(Problem::new(Reason::Internal, message).with_fix("Look at where the output goes."))
        }
        _ => Ok(()),
    }
}

fn to_stderr(text: &str) {
    // Nowhere is left to tell that standard error is gone; the exit code tells the rest.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
