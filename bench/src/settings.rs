//! What a run measures, read from the environment: `make bench BENCH_GB=0.3 BENCH_ROUNDS=1`.

use std::path::PathBuf;

use crate::Result;

/// The generator's sizes are those of a dump stream of 2.8 GB; it is called 3 GB because its tables and indexes take that much.
const FULL_GB: f64 = 3.0;
const DEFAULT_ROUNDS: u32 = 3;

/// One run's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Size of the database, in GB of tables and indexes (`BENCH_GB`).
    pub gigabytes: f64,
    /// How often everything is measured (`BENCH_ROUNDS`).
    pub rounds: u32,
    /// Only tools whose name begins with one of these, and the baseline; all when empty (`BENCH_ONLY`, separated by commas).
    pub only: Vec<String>,
    /// Parts that are left out: `folder`, `azure`, `latency`, `memory` (`BENCH_SKIP`, separated by commas).
    pub skip: Vec<String>,
    /// Where repositories lie (`BENCH_DIR`). Default: `/tmp`.
    pub dir: PathBuf,
    /// Where the results go (`BENCH_OUT`).
    pub out: PathBuf,
    /// Whether the documentation is rewritten (`BENCH_WRITE=1` or `0`). Default: only a full run does it.
    pub write_docs: bool,
}

impl Settings {
    /// Reads the environment.
    ///
    /// Errors: a variable that is no number, or out of its range.
    pub fn from_environment() -> Result<Self> {
        let gigabytes: f64 = number("BENCH_GB", FULL_GB)?;
        if !(0.05..=100.0).contains(&gigabytes) {
            return Err("BENCH_GB must be between 0.05 and 100".into());
        }
        let rounds: u32 = number("BENCH_ROUNDS", DEFAULT_ROUNDS)?;
        if rounds == 0 {
            return Err("BENCH_ROUNDS must be at least 1".into());
        }
        let skip = list("BENCH_SKIP");
        let only = list("BENCH_ONLY");
        let known = ["folder", "azure", "latency", "memory"];
        if let Some(unknown) = skip.iter().find(|part| !known.contains(&part.as_str())) {
            return Err(format!("BENCH_SKIP: {unknown} is none of {}", known.join(", ")).into());
        }
        let full = gigabytes >= FULL_GB && rounds >= DEFAULT_ROUNDS && skip.is_empty() && only.is_empty();
        let write_docs = match std::env::var("BENCH_WRITE").as_deref() {
            Ok("1") => true,
            Ok("0") => false,
            _ => full,
        };
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Self {
            gigabytes,
            rounds,
            only,
            skip,
            dir: path("BENCH_DIR").unwrap_or_else(|| "/tmp".into()),
            out: path("BENCH_OUT").unwrap_or_else(|| vaultferry_tests::workspace().join("target/bench")),
            write_docs,
        })
    }

    /// The generator's scale: 1 gives a dump stream of 2.8 GB.
    pub fn scale(&self) -> f64 {
        self.gigabytes / FULL_GB
    }

    /// Whether a part is to run.
    pub fn wants(&self, part: &str) -> bool {
        !self.skip.iter().any(|skipped| skipped == part)
    }

    /// Whether a tool is to run.
    pub fn wants_tool(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|start| name.starts_with(start.as_str()))
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| format!("{name}={text} is not a number").into()),
        _ => Ok(default),
    }
}

fn list(name: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}
