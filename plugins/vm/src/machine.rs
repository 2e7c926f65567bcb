//! `machine.json`: what a point of a machine is, for people, for a restore, and for the next backup.
//!
//! Fields are added, never changed: points of every version are read for as long as they are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::records::Capture;

/// The version that this program writes.
const VERSION: u32 = 1;

/// The description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// 1.
    pub version: u32,
    /// What the instance was called.
    pub name: String,
    /// The instant that all disks are of.
    pub taken_at: jiff::Timestamp,
    /// How it was caught.
    pub capture: Capture,
    /// In order.
    pub disks: Vec<MachineDisk>,
    /// The machine that the agent ran on.
    pub host: Host,
    /// What the snapshots' provider compares the next snapshot with, in its own words; `None`: it cannot compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<serde_json::Value>,
}

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDisk {
    /// `disk0`, `disk1`, …
    pub name: String,
    /// Its stream in the point.
    pub stream: String,
    /// In bytes.
    pub size: u64,
    /// Where it was.
    pub path: PathBuf,
    /// Bytes that are no holes.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// Bytes that were read for this point.
    #[serde(default)]
    pub read_bytes: u64,
    /// Bytes that were taken over from the point that [`Capture::base`] names.
    #[serde(default)]
    pub same_bytes: u64,
}

/// Facts of the machine that the agent ran on. What could not be found out is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name.
    pub hostname: String,
    /// `Debian GNU/Linux 13 (trixie)`
    pub system: String,
    /// The kernel's release.
    pub kernel: String,
    /// `x86_64`, `aarch64`, …
    pub architecture: String,
    /// How many processors it had.
    pub processors: u64,
    /// Its memory.
    pub memory_bytes: u64,
}

impl Machine {
    /// The description of a new point.
    pub fn new(name: String, taken_at: jiff::Timestamp, capture: Capture, disks: Vec<MachineDisk>) -> Self {
        Self { version: VERSION, name, taken_at, capture, disks, host: Host::of_this_machine(), tracking: None }
    }

    /// As it is stored.
    pub fn to_json(&self) -> Result<Vec<u8>, Problem> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| Problem::new(Reason::Internal, format!("machine.json: {error}")))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Reads what [`Machine::to_json`] has made, of this version or an earlier one.
    pub fn from_json(json: &[u8]) -> Result<Self, Problem> {
        let damaged = |detail: String| Problem::new(Reason::RepositoryDamaged, format!("machine.json: {detail}"));
        let machine: Self = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        match machine.version {
            1..=VERSION => Ok(machine),
            version => Err(damaged(format!("its version is {version}, and this program knows {VERSION}"))),
        }
    }

    /// The disk of that name.
    pub fn disk(&self, name: &str) -> Option<&MachineDisk> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}

impl Host {
    /// What this machine tells of itself. Reads some small files below `/etc` and `/proc`.
    pub fn of_this_machine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let release = read("/etc/os-release");
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let memory = read("/proc/meminfo");
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kilobytes = memory.and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        Self {
            hostname: vaultferry_plugin_sdk::hostname(),
            system: system.unwrap_or_default().trim_matches('"').to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processors: std::thread::available_parallelism().map_or(0, |number| number.get() as u64),
            memory_bytes: kilobytes.unwrap_or_default().saturating_mul(1024),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of version 1 as early points have it: it stays readable.
    const FIRST: &str = r#"{"version":1,"name":"web","taken_at":"2026-11-22T04:00:00Z",
        "capture":{"consistency":"file-system","reason":"/mnt was frozen","provider":"reflink","frozen_ms":12},
        "disks":[{"name":"disk0","stream":"disk0.raw","size":1048577,"path":"/srv/web.raw"}],
        "host":{"hostname":"h","colour":"blue"},"tracking":{"provider":"reflink","id":"j","disks":[]}}"#;

    #[test]
    fn points_of_every_version_are_read_and_newer_ones_refused() {
        let machine = Machine::from_json(FIRST.as_bytes()).unwrap();
        assert_eq!(machine.disk("disk0").map(|disk| disk.size), Some(1_048_577));
        assert_eq!((machine.disk("disk1"), machine.host.processors), (None, 0));
        assert_eq!(machine.tracking.as_ref().unwrap()["id"], "j");
        assert_eq!(Machine::from_json(&machine.to_json().unwrap()).unwrap(), machine);
        let newer = FIRST.replace("\"version\":1", "\"version\":2");
        assert_eq!(Machine::from_json(newer.as_bytes()).unwrap_err().reason, Reason::RepositoryDamaged);
        assert_eq!(Machine::from_json(b"{").unwrap_err().reason, Reason::RepositoryDamaged);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells_of_itself() {
        let host = Host::of_this_machine();
        assert!(!host.kernel.is_empty() && host.processors > 0 && host.memory_bytes > 1 << 20, "{host:?}");
    }
}
