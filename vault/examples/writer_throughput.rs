//! How fast the writer is, and what it needs: `writer_throughput FOLDER [BYTES_IN_FLIGHT_MIB] < stream`. A repository is made in the
//! folder when there is none, so that a second run is a second backup. Prints one line of JSON.

#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use vaultferry_vault::location::{Access, Location};
use vaultferry_vault::meter::Meter;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::writer::{Backup, Options, SnapshotMeta};

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    vaultferry_vault::memory::give_large_blocks_back();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: writer_throughput FOLDER [BYTES_IN_FLIGHT_MIB] < stream")?;
    let mib: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let location = Location::Folder(folder.into());
    let access = Access { location, endpoint: None, credential: None, store_deadline: Duration::from_secs(60) };
    access.create_root().await?;
    access.create_instance(INSTANCE).await?;
    let (store, cancel) = (access.open_instance(INSTANCE)?, CancellationToken::new());
    let password = SecretString::from("5e".repeat(32));
    let repository = Arc::new(Repository::init(store, &password, &cancel).await?);
    let (meter, started) = (Arc::new(Meter::default()), Instant::now());
    let options = Options { bytes_in_flight: mib << 20, ..Options::default() };
    let mut backup = Backup::begin(repository, options, meter.clone(), &cancel).await?;
    let input = tokio::net::unix::pipe::Receiver::from_file(std::fs::File::open("/dev/stdin")?)?;
    backup.write_stream("database.dump", input, &cancel).await?;
    let meta = SnapshotMeta { time: jiff::Timestamp::now(), hostname: String::new(), tags: Vec::new() };
    let staged = backup.stage(meta, &cancel).await?;
    let wall = started.elapsed().as_secs_f64();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    println!(
        "{{\"mb_per_s\":{:.0},\"wall_s\":{wall:.2},\"user_s\":{:.2},\"system_s\":{:.2},\"peak_mib\":{},\"read_mb\":{},\"stored_mb\":{:.1}}}",
        staged.source_bytes as f64 / wall / 1e6,
        seconds(usage.user_time()),
        seconds(usage.system_time()),
        usage.max_rss() / 1024,
        staged.source_bytes / 1_000_000,
        staged.stored_bytes as f64 / 1e6,
    );
    Ok(())
}
