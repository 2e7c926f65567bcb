//! What the results were measured on, and with.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use vaultferry_tests::{binary, workspace};

use crate::Result;
use crate::rounds::World;
use crate::settings::Settings;
use crate::tools::{KINDS, Place, version};

/// The lines above the tables, as pairs of a name and a text.
pub type Facts = Vec<(&'static str, String)>;

/// Looks around.
pub fn facts(settings: &Settings, world: &World) -> Result<Facts> {
    let cores = std::thread::available_parallelism()?;
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let machine = format!(
        "{cores} cores of {model}, {} GiB of memory, Linux {}, repositories on {}",
        memory.unwrap_or(0).div_ceil(1 << 20),
        kernel.trim(),
        file_system(world.dir()).unwrap_or_else(|| "an unknown file system".to_owned()),
    );
    let mut versions = vec![version(&binary().display().to_string()), format!("PostgreSQL {}", world.server_version())];
    versions.push(format!("Azurite {}", azurite_version().unwrap_or_else(|| "(not installed)".to_owned())));
    for kind in KINDS.iter().filter(|kind| kind.unavailable(Place::Folder).is_none()) {
        let text = kind.version();
        if !text.starts_with("cat ") {
            versions.push(text);
        }
    }
    let database = format!(
        "{:.2} GB of tables and indexes (`BENCH_GB={}`), {} rounds",
        world.database_bytes()? as f64 / 1e9,
        settings.gigabytes,
        settings.rounds
    );
    Ok(vec![
        ("Date", Timestamp::now().strftime("%Y-%m-%d").to_string()),
        ("Machine", machine),
        ("Versions", versions.join("; ")),
        ("Database", database),
    ])
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

/// The type of the file system that holds a folder.
fn file_system(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    });
    // Of several on one place, the last is seen.
    let holds = mounts.filter(|(place, _)| dir.starts_with(place));
    holds.max_by_key(|(place, _)| place.len()).map(|(_, kind)| kind)
}

fn azurite_version() -> Option<String> {
    let path = workspace().join(".tools/azurite/node_modules/azurite/package.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(json["version"].as_str()?.to_owned())
}
