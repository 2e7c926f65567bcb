//! Reads a stream of a point to nowhere, and tells how fast that was.
//!
//! ```text
//! RESTIC_PASSWORD=… read_throughput <vault: folder or azure://account/name> <instance id> <snapshot id | latest> <stream>
//! ```
//! In Azure it needs READ_ACCOUNT_KEY, and READ_ENDPOINT where that is not Azure's public cloud.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::location::Access;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::{FileKind, Repository};
use vaultferry_vault::store::{self, azure};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
#[allow(clippy::print_stdout)] // its only output
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().ok_or_else(|| format!("the {what} is missing"));
    let (location, instance) = (next("vault")?, next("instance id")?);
    let (snapshot, stream) = (next("snapshot")?, next("stream")?);
    let password = std::env::var("RESTIC_PASSWORD").map_err(|_| "RESTIC_PASSWORD is not set")?;
    let cancel = CancellationToken::new();
    let variable = |name| std::env::var(name).ok();
    let access = Access {
        location: location.parse()?,
        endpoint: variable("READ_ENDPOINT").map(|endpoint| endpoint.parse()).transpose()?,
        credential: variable("READ_ACCOUNT_KEY").map(|key| azure::Credential::AccountKey(key.into())),
        store_deadline: Duration::from_secs(60),
    };
    let start = Instant::now();
    let store = access.open_instance(&instance)?;
    let repository = Arc::new(Repository::open(store.clone(), &password.into(), &cancel).await?);
    let id = match snapshot.as_str() {
        "latest" => latest(&store, &repository, &cancel).await?,
        id => id.parse()?,
    };
    let point = PointReader::open(repository, id, &cancel).await?;
    let opened = start.elapsed();
    let mut bytes = 0;
    let mut chunks = point.chunks(&stream, &cancel)?;
    while let Some(chunk) = chunks.next().await {
        bytes += chunk?.len() as u64;
    }
    let wall = start.elapsed();
    let (cpu, rss) = usage()?;
    println!(
        "{bytes} bytes in {:.2} s (opened in {:.2} s): {:.0} MB/s, {:.2} CPU-s, {:.2} CPU-s/GB, peak memory {rss}",
        wall.as_secs_f64(),
        opened.as_secs_f64(),
        bytes as f64 / 1e6 / wall.as_secs_f64(),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() / (bytes as f64 / 1e9),
    );
    Ok(())
}

async fn latest(
    store: &store::Shared,
    repository: &Repository,
    cancel: &CancellationToken,
) -> Result<vaultferry_vault::Id> {
    let mut newest = None;
    let mut entries = store::list(&**store, FileKind::Snapshot.prefix());
    while let Some(entry) = entries.next().await {
        let id = entry?.key.name().parse()?;
        let time: jiff::Timestamp = repository.snapshot(&id, cancel).await?.time.parse()?;
        newest = newest.max(Some((time, id)));
    }
    Ok(newest.ok_or("there is no point")?.1)
}

/// CPU time of this process, and its peak memory, as Linux tells them.
fn usage() -> Result<(Duration, String)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim();
    // User and system time are in ticks of 10 ms.
    Ok((Duration::from_millis((ticks(11) + ticks(12)) * 10), peak.to_owned()))
}
