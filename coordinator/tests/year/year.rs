//! A simulated year: the real coordinator, maintenance plugin, writer and stores of a vault, on a paused clock, through crashes, outages,
//! faults, jumps of the clock and whatever people do; everything that must always hold is checked all along.
//!
//! ```text
//!   agent.rs     lives of the agent, one runtime each: dropping it is the kill        world.rs     what outlives them: stores, time, sources
//!   story.rs     what happens, drawn from the seed                                    store.rs     stores in their weather
//!   check.rs     what must hold                                                       plugins.rs   plugins in this process
//!   contents.rs  the same of points, files and rows                                   shape.rs     what years differ in
//!   policies.rs  the year's policies, and a naive reference of them                   process.rs   what can be killed
//!   service.rs   the backup service, which is away at times                          assigned.rs  what it wants of the agent
//! ```
//! `VAULTFERRY_YEAR_SEEDS=n` runs so many seeds, `VAULTFERRY_YEAR_SEED=s` that one alone, and `VAULTFERRY_YEAR_STORY=1` prints what happens.
//! Without them it is [`SEEDS`]. A seed gives the same events again, but not the same bytes: ids and nonces are random, and with them which of
//! two things that happen at one moment comes first.
//!
//! It is not among `src` because it looks into payload, which the coordinator never does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

mod agent;
mod assigned;
mod check;
mod contents;
mod dice;
mod plugins;
mod policies;
mod process;
mod service;
mod shape;
mod store;
mod story;
mod world;

/// Years in an ordinary run, and with `VAULTFERRY_TEST_ALL=1`.
const SEEDS: [u64; 2] = [100, 200];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_year_of_crashes_outages_and_faults_breaks_no_invariant() {
    let seeds = match number("VAULTFERRY_YEAR_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let all = usize::from(std::env::var_os("VAULTFERRY_TEST_ALL").is_some());
            0..number("VAULTFERRY_YEAR_SEEDS").unwrap_or(SEEDS[all])
        }
    };
    let started = std::time::Instant::now();
    let (next, count) = (AtomicU64::new(seeds.start), seeds.end - seeds.start);
    let (failures, totals) = (Mutex::new(Vec::new()), Mutex::new(agent::Totals::default()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match std::panic::catch_unwind(|| agent::year(seed)) {
                        Ok(Ok(one)) => totals.lock().expect("no panic").add(&one),
                        Ok(Err(failure)) => failures.lock().expect("no panic").push(failure),
                        Err(_) => failures.lock().expect("no panic").push(format!("seed {seed} panics, see above")),
                    }
                }
            });
        }
    });
    println!("{count} years in {:.1?}: {:?}", started.elapsed(), totals.lock().expect("no panic"));
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{} of {count} years went wrong:\n{}", failures.len(), failures.join("\n"));
}
