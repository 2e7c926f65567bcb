//! Asking the person at the terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use vaultferry_proto::{Problem, Reason};

/// Whether somebody can be asked. Elsewhere only --yes will do.
pub(super) fn can_ask() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks on standard error; everything but a clear yes is a no.
pub(super) fn ask(question: &str) -> Result<bool, Problem> {
    let unread = |error: std::io::Error| {
        let message = format!("the answer cannot be read: {error}");
        Problem::new(Reason::InvalidRequest, message).with_fix("Say so with --yes.")
    };
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ").map_err(unread)?;
    stderr.flush().map_err(unread)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(unread)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
