//! What was measured, one line of JSON for each run.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::Result;
use crate::measure::Measured;
use crate::tools::Place;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The first backup.
    First,
    /// The second, after a change of 1 %.
    Second,
    /// Reading the last backup to nowhere.
    Read,
    /// Reading the last backup into a file.
    ReadFile,
    /// A first backup from a limited source through a proxy that delays nothing.
    Near,
    /// The same with 100 ms more for each request.
    Far,
    /// A first backup of a small database.
    Small,
}

/// One run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Record {
    /// Counted from 1.
    pub round: u32,
    /// What it did.
    pub phase: Phase,
    /// Where the backup lies.
    pub place: Place,
    /// The tool's name.
    pub tool: String,
    /// Bytes of the dump stream.
    pub source_bytes: u64,
    /// Bytes that were stored by this run.
    pub stored_bytes: Option<u64>,
    /// Nothing when it failed.
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// Why it failed, or was not measured.
    pub error: Option<String>,
}

impl Record {
    /// True when the rest of the machine left the run alone: others used at most 15 % of a core, and half a second more for what the kernel
    /// writes back. A run above it still counts when there is no quiet one, and is told as loaded.
    pub fn quiet(&self) -> bool {
        self.measured.as_ref().is_some_and(|run| run.other_cpu_s + run.steal_s <= 0.5 + 0.15 * run.wall_s)
    }

    /// Seconds from start to end; none when it failed.
    pub fn wall(&self) -> Option<f64> {
        self.measured.as_ref().map(|run| run.wall_s)
    }

    /// CPU seconds of client and server.
    pub fn cpu(&self) -> Option<f64> {
        self.measured.as_ref().map(|run| run.client_cpu_s + run.server_cpu_s)
    }

    /// The memory peak of the largest process of the tool: pg_dump and the command line are not of it.
    pub fn peak_mib(&self) -> Option<f64> {
        let peaks = &self.measured.as_ref()?.peak_mib;
        let of_tool = peaks.iter().filter(|(name, _)| !matches!(name.as_str(), "pg_dump" | "command" | "cat"));
        of_tool.map(|(_, mib)| *mib).reduce(f64::max)
    }
}

/// All runs so far, also in a file, so that nothing is lost when a later one breaks.
#[derive(Debug)]
pub struct Results {
    /// In the order in which they ran.
    pub records: Vec<Record>,
    file: File,
}

impl Results {
    /// An empty file at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { records: Vec::new(), file: File::create(path)? })
    }

    /// Keeps a run and says a line about it.
    #[allow(clippy::print_stdout)] // progress, for who waits
    pub fn add(&mut self, record: Record) -> Result<()> {
        writeln!(self.file, "{}", serde_json::to_string(&record)?)?;
        let what = format!("{:?} {:?} {}", record.phase, record.place, record.tool);
        match (&record.measured, &record.error) {
            (Some(run), None) => println!(
                "  {what:<34} {:>7.2} s  client {:>6.2}  server {:>6.2}  Azurite {:>5.2}  others {:>5.2} CPU s{}",
                run.wall_s,
                run.client_cpu_s,
                run.server_cpu_s,
                run.azurite_cpu_s,
                run.other_cpu_s,
                if record.quiet() { "" } else { "  (loaded)" }
            ),
            (_, error) => println!("  {what:<34} not measured: {}", error.as_deref().unwrap_or("unknown")),
        }
        self.records.push(record);
        Ok(())
    }
}
