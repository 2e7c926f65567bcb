//! Live progress on standard error: a bar or a spinner on a terminal, a line at each new phase elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use vaultferry_proto::control::v1::{Job, Progress as Report};

use crate::output::{progress_line, text};

/// Draws one job.
pub struct Progress {
    /// None where there is no terminal.
    bar: Option<ProgressBar>,
    /// Whether the total is known, so that there is a bar to fill.
    has_total: bool,
    phase: String,
    note: String,
    is_lost: bool,
}

impl Progress {
    /// Draws nothing until the first update.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new_spinner().with_style(spinner_style()));
        Self { bar, has_total: false, phase: String::new(), note: String::new(), is_lost: false }
    }

    /// Shows where the job is.
    pub fn update(&mut self, job: &Job) {
        let Some(report) = &job.progress else { return };
        let was_lost = std::mem::take(&mut self.is_lost);
        match &self.bar {
            Some(bar) => draw(bar, report, &mut self.has_total),
            None if was_lost || self.phase != report.phase || self.note != report.note => {
                progress_line(&text::progress(report))
            }
            None => {}
        }
        self.phase.clone_from(&report.phase);
        self.note.clone_from(&report.note);
    }

    /// Tells, once, that the agent is looked for.
    pub fn lost(&mut self) {
        if std::mem::replace(&mut self.is_lost, true) {
            return;
        }
        let message = "the connection to the agent is lost; trying again";
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => progress_line(message),
        }
    }

    /// Leaves a clean terminal.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, report: &Report, has_total: &mut bool) {
    // Keeps the spinner turning between reports; asked for again, it does nothing.
    bar.enable_steady_tick(Duration::from_millis(120));
    if report.bytes_total > 0 {
        // A database's total is an estimate; what is read may grow beyond it.
        bar.set_length(report.bytes_total.max(report.bytes_read));
        if !std::mem::replace(has_total, true) {
            bar.set_style(bar_style());
        }
    }
    bar.set_position(report.bytes_read);
    bar.set_message(text::progress(report));
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}").expect("the template is a constant of this file")
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {elapsed} [{bar:24}] {percent:>3}% {wide_msg}")
        .expect("the template is a constant of this file")
        .progress_chars("=> ")
}
