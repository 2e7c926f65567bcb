//! `[vm]`: how machines' disks are backed up.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Faults, Section};
use super::values;

/// The providers of snapshots that can be asked for by name.
const PROVIDERS: [&str; 5] = ["auto", "offline", "reflink", "btrfs", "lvm"];
/// What becomes of a backup whose file systems could not be frozen.
const ON_FREEZE_FAILURE: [&str; 2] = ["fail", "crash-consistent"];
/// Longer than this nothing is kept frozen: whoever writes waits.
const MOST_FROZEN: Duration = Duration::from_secs(60);

/// `[vm]`; handed to the plugin as JSON. What is left out is for the plugin to know.
#[derive(Debug, Default, serde::Serialize)]
pub struct Vm {
    /// Who takes the snapshots: auto, offline, reflink, btrfs or lvm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The mount points to freeze; none: those of file systems that lie on the disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Vec<PathBuf>>,
    /// When what is frozen is thawed, whatever happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_deadline_s: Option<u64>,
    /// fail or crash-consistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_freeze_failure: Option<String>,
    /// The folder with scripts that run before and behind the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scripts: Option<PathBuf>,
    /// How much of what is said to be unchanged is read all the same, and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_percent: Option<u32>,
    /// Bytes of the disks that are read in a second at most, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_limit_bytes_per_s: Option<u64>,
}

pub(super) fn read(mut section: Section, faults: &mut Faults) -> Vm {
    let one_of = |names: &'static [&'static str]| {
        move |text: &str| match names.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(format!("must be one of {}", names.join(", "))),
        }
    };
    let provider = section.parsed("provider", faults, one_of(&PROVIDERS)).filter(|name| name != "auto");
    let freeze = section.list_or_text("freeze", faults).and_then(|texts| mounts(&texts, faults));
    let freeze_deadline = section.parsed("freeze_deadline", faults, |text| match values::seconds(text)? {
        time if time <= MOST_FROZEN => Ok(time),
        _ => Err(format!("must be a time from 1s to {}s", MOST_FROZEN.as_secs())),
    });
    let on_freeze_failure = section.parsed("on_freeze_failure", faults, one_of(&ON_FREEZE_FAILURE));
    let scripts = section.parsed("scripts", faults, values::absolute_path);
    let sample_percent = section.parsed("sample_percent", faults, |text| match text.parse::<u32>() {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err("must be a number from 0 to 100".to_owned()),
    });
    let read_limit_bytes_per_s = section.parsed("read_limit", faults, values::read_limit);
    section.finish(faults);
    Vm {
        provider,
        freeze,
        freeze_deadline_s: freeze_deadline.map(|time| time.as_secs()),
        on_freeze_failure,
        scripts,
        sample_percent,
        read_limit_bytes_per_s,
    }
}

/// None: "auto".
fn mounts(texts: &[String], faults: &mut Faults) -> Option<Vec<PathBuf>> {
    if texts == ["auto"] {
        return None;
    }
    let mut mounts = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match values::absolute_path(text) {
            Ok(path) => mounts.push(path),
            Err(fault) => faults.add(&format!("vm.freeze[{index}]"), format!("{fault}, or \"auto\" alone")),
        }
    }
    Some(mounts)
}
