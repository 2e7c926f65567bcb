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
const SEEDS: [u64; 2] = [4, 40];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The years of one of four tests, so that they run beside each other and beside other tests, as many at once as there are threads for tests.
fn years(quarter: u64) {
    let seeds = match number("VAULTFERRY_YEAR_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let all = usize::from(std::env::var_os("VAULTFERRY_TEST_ALL").is_some());
            0..number("VAULTFERRY_YEAR_SEEDS").unwrap_or(SEEDS[all])
        }
    };
    let started = std::time::Instant::now();
    let (mut count, mut failures, mut totals) = (0, Vec::new(), agent::Totals::default());
    for seed in seeds.filter(|seed| seed % 4 == quarter) {
        count += 1;
        match std::panic::catch_unwind(|| agent::year(seed)) {
            Ok(Ok(one)) => totals.add(&one),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(format!("seed {seed} panics, see above")),
        }
    }
    println!("{count} years in {:.1?}: {totals:?}", started.elapsed());
    assert!(failures.is_empty(), "{} of {count} years went wrong:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_year_of_crashes_outages_and_faults_breaks_no_invariant() {
    years(0);
}

#[test]
fn another_year_of_crashes_outages_and_faults_breaks_no_invariant() {
    years(1);
}

#[test]
fn a_third_year_of_crashes_outages_and_faults_breaks_no_invariant() {
    years(2);
}

#[test]
fn a_fourth_year_of_crashes_outages_and_faults_breaks_no_invariant() {
    years(3);
}
