//! `make bench`: the product beside other tools, on one generated database, on this machine.
//!
//! Invariants:
//! - Nothing of the host is used but installed programs: servers on free ports, everything in temporary folders that are removed, every
//!   process stopped at the end, also after an interruption.
//! - What is compared runs in the same round; a figure is told with what else the machine did meanwhile.
//! - A tool that cannot be measured is named with the reason, never left out.
//!
//! Results: `results.jsonl` and `report.md` in `BENCH_OUT`; a full run also rewrites the section between the markers of
//! `docs/benchmarks.md`. Settings: [`settings::Settings`].

use std::process::ExitCode;
use std::sync::atomic::Ordering;

mod azurite;
mod data;
mod line;
mod machine;
mod measure;
mod random;
mod report;
mod results;
mod rounds;
mod settings;
mod tools;

use results::Results;
use rounds::World;
use settings::Settings;

/// Errors are told to a person and not told apart.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[allow(clippy::print_stderr)] // a program's last word
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout)] // the table is what it is for
fn run() -> Result<()> {
    let settings = Settings::from_environment()?;
    if std::env::var_os("VAULTFERRY_BIN").is_none() {
        return Err("VAULTFERRY_BIN must name the release program: start scripts/bench".into());
    }
    end_on_signals()?;
    std::fs::create_dir_all(&settings.out)?;
    let mut results = Results::create(&settings.out.join("results.jsonl"))?;
    println!("Generating a database of {} GB ...", settings.gigabytes);
    let world = World::new(&settings)?;
    let facts = machine::facts(&settings, &world)?;
    let outcome = measure_all(&settings, &world, &mut results);
    let report = report::markdown(&facts, &results.records);
    std::fs::write(settings.out.join("report.md"), &report)?;
    println!("\n{report}");
    outcome?;
    if settings.write_docs {
        report::write_docs(&report, &results.records)?;
    }
    Ok(())
}

#[allow(clippy::print_stdout)] // progress, for who waits
fn measure_all(settings: &Settings, world: &World, results: &mut Results) -> Result<()> {
    if settings.wants("memory") {
        world.small(results)?;
    }
    for round in 1..=settings.rounds {
        println!("Round {round} of {}", settings.rounds);
        world.round(round, results)?;
        if settings.wants("latency") {
            world.latency(round, results)?;
        }
    }
    Ok(())
}

/// The first SIGINT or SIGTERM ends the run that is measured, and then the program in order.
fn end_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        measure::INTERRUPTED.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}
