//! What the product has to show, against what was measured.

use super::cell;
use super::compare::{Ratio, Runs, median};
use crate::results::{Phase, Record};
use crate::tools::{BASELINE, FLOOR, KINDS, OURS, OURS_READER, Place};

/// The rest of a plugin's memory: 48 bytes for each known chunk, and a chunk is 1 MiB on average; half of that for safety.
const CHUNK_BYTES: f64 = 524_288.0;
const INDEX_BYTES_A_CHUNK: f64 = 48.0;
const PLUGIN_MIB: f64 = 128.0;
/// A smaller stream does not fill the plugin's buffers, and is no measure of them: its goal stands as not measured.
const FILLING_BYTES: f64 = 200e6;
/// How much more a large database may take than a small one, beside the index: what an allocator keeps differs from run to run.
const SAME_MIB: f64 = 16.0;

/// One line of the list.
#[derive(Debug)]
pub(super) struct Goal {
    text: String,
    limit: f64,
    unit: &'static str,
    /// The figure, and in how many of its rounds both sides were quiet; or why there is none.
    figure: Result<Ratio, String>,
}

impl Goal {
    fn new(text: impl Into<String>, limit: f64, figure: Option<Ratio>) -> Self {
        let figure = figure.ok_or_else(|| "not measured".to_owned());
        Self { text: text.into(), limit, unit: "x", figure }
    }

    /// Not more than a peer has; without a figure, with the reason that the peer, or else ourselves, gave.
    fn against(records: &[Record], peer: &str, text: impl Into<String>, figure: Option<Ratio>) -> Self {
        let mut goal = Self::new(text, 1.0, figure);
        let error =
            |tool: &str| records.iter().filter(|record| record.tool == tool).find_map(|record| record.error.clone());
        if let (Err(why), Some(error)) = (&mut goal.figure, error(peer).or_else(|| error(OURS))) {
            *why = error;
        }
        goal
    }

    /// True when the figure keeps the limit, whatever the machine did meanwhile.
    pub(super) fn met(&self) -> Option<bool> {
        self.figure.as_ref().ok().map(|ratio| ratio.median <= self.limit)
    }

    /// A table's row.
    pub(super) fn row(&self) -> String {
        let (limit, unit) = (self.limit, self.unit);
        match &self.figure {
            Err(why) => {
                format!("| {} | {limit:.2} {unit} | {} | | not measured |\n", cell(&self.text), cell(why))
            }
            Ok(ratio) => {
                let result = match (self.met(), ratio.quiet) {
                    (Some(true), 1..) => "pass",
                    (Some(true), 0) => "pass (loaded)",
                    (_, 1..) => "**fail**",
                    (_, 0) => "**fail** (loaded)",
                };
                let Ratio { median, quiet, rounds } = ratio;
                format!(
                    "| {} | {limit:.2} {unit} | {median:.2} {unit} | {quiet} of {rounds} | {result} |\n",
                    cell(&self.text)
                )
            }
        }
    }
}

/// All goals, in the order in which they were set.
pub(super) fn all(records: &[Record]) -> Vec<Goal> {
    let runs = |phase, place| Runs::of(records, phase, place);
    let (folder, azure) = (runs(Phase::First, Place::Folder), runs(Phase::First, Place::Azure));
    let mut goals = vec![
        Goal::new("First backup to a folder: wall / baseline", 1.2, folder.ratio(OURS, BASELINE, Record::wall)),
        Goal::new("First backup to a folder: CPU / `pg_dump | zstd -1`", 1.25, folder.ratio(OURS, FLOOR, Record::cpu)),
    ];
    goals.extend(faster_than_peers(records, &folder, "First backup to a folder"));
    goals.push(Goal::new("First backup to Azurite: wall / baseline", 1.45, azure.ratio(OURS, BASELINE, Record::wall)));
    goals.extend(faster_than_peers(records, &azure, "First backup to Azurite"));
    let stored: fn(&Record) -> Option<f64> = |record| record.stored_bytes.map(|bytes| bytes as f64);
    goals.push(Goal::new("Bytes stored / `zstd -1` of the stream", 1.05, folder.ratio(OURS, FLOOR, stored)));
    let second = runs(Phase::Second, Place::Folder);
    goals.push(Goal::new("Second backup: wall / baseline", 1.1, second.ratio(OURS, BASELINE, Record::wall)));
    let text = "Second backup: new bytes / restic's";
    goals.push(Goal::against(records, "restic", text, second.ratio(OURS, "restic", stored)));
    for (phase, ours, to) in [(Phase::Read, OURS_READER, "to nowhere"), (Phase::ReadFile, OURS, "into a file")] {
        for (place, name) in [(Place::Folder, "a folder"), (Place::Azure, "Azurite")] {
            let read = runs(phase, place);
            for peer in ["rclone", "restic", "rustic"] {
                let text = format!("Reading back from {name} {to}: wall / {peer}'s");
                goals.push(Goal::against(records, peer, text, read.ratio(ours, peer, Record::wall)));
            }
        }
    }
    goals.extend(memory(records));
    let (near, far) = (runs(Phase::Near, Place::Azure), runs(Phase::Far, Place::Azure));
    // 20 % of the throughput lost is a wall of 1 / 0.8.
    let text = "100 ms more for each request, source of 50 MB/s: wall / without";
    goals.push(Goal::new(text, 1.25, far.ratio_with(OURS, Record::wall, &near, OURS, Record::wall)));
    goals
}

fn faster_than_peers<'a>(records: &'a [Record], runs: &'a Runs<'_>, what: &'a str) -> impl Iterator<Item = Goal> + 'a {
    let peers = KINDS.iter().map(|kind| kind.name).filter(|name| ![BASELINE, FLOOR, OURS].contains(name));
    let peers = peers.filter(|name| runs.tools().contains(name));
    peers.map(move |peer| {
        let text = format!("{what}: wall / {peer}'s");
        Goal::against(records, peer, text, runs.ratio(OURS, peer, Record::wall))
    })
}

/// The largest plugin of all backups, and the same of the large and the small database.
fn memory(records: &[Record]) -> Vec<Goal> {
    let plugin = |record: &Record| record.measured.as_ref()?.peak_mib.get("plugin").copied();
    let of = |phases: &[Phase]| -> Vec<(f64, f64)> {
        let ours = records.iter().filter(|record| record.tool == OURS && phases.contains(&record.phase));
        ours.filter_map(|record| Some((plugin(record)?, record.source_bytes as f64))).collect()
    };
    let index_mib = |bytes: f64| bytes / CHUNK_BYTES * INDEX_BYTES_A_CHUNK / f64::from(1 << 20);
    let goal = |text: &str, limit: f64, mib: Option<f64>, rounds: usize| {
        // Memory does not depend on what else the machine does.
        let mut goal = Goal::new(text, limit, mib.map(|median| Ratio { median, quiet: rounds, rounds }));
        goal.unit = "MiB";
        goal
    };
    let all = of(&[Phase::First, Phase::Second, Phase::ReadFile, Phase::Near, Phase::Far, Phase::Small]);
    let bytes = all.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max);
    let largest = all.iter().map(|(mib, _)| *mib).reduce(f64::max);
    let mut goals = vec![goal("Largest plugin process", PLUGIN_MIB + index_mib(bytes), largest, all.len())];
    // To a folder, like the small one.
    let folder = records.iter().filter(|record| record.phase == Phase::First && record.place == Place::Folder);
    let large: Vec<f64> = folder.filter(|record| record.tool == OURS).filter_map(plugin).collect();
    let small = of(&[Phase::Small]).first().filter(|(_, bytes)| *bytes >= FILLING_BYTES).map(|(mib, _)| *mib);
    let rounds = large.len();
    let more = median(large).zip(small).map(|(large, small)| large - small);
    let limit = SAME_MIB + index_mib(bytes);
    goals.push(goal("Plugin process: more for ten times the database", limit, more, rounds));
    goals
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::record;
    use super::*;

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let mut records = vec![record(1, Phase::First, BASELINE, 10.0, 0.0), record(1, Phase::First, OURS, 12.0, 0.0)];
        let met = |records: &[Record], start: &str| {
            let goals = all(records);
            let goal = goals.iter().find(|goal| goal.text.starts_with(start)).expect("the goal is listed");
            (goal.met(), goal.row())
        };
        let (result, row) = met(&records, "First backup to a folder: wall / baseline");
        assert_eq!(result, Some(true));
        assert!(row.ends_with("| 1.20 x | 1.20 x | 1 of 1 | pass |\n"), "{row}");
        records[1] = record(1, Phase::First, OURS, 12.1, 9.0);
        let (result, row) = met(&records, "First backup to a folder: wall / baseline");
        assert_eq!(result, Some(false));
        assert!(row.ends_with("| 0 of 1 | **fail** (loaded) |\n"), "{row}");
        let (result, row) = met(&records, "100 ms more");
        assert_eq!(result, None);
        assert!(row.ends_with("| not measured |\n"), "{row}");
    }

    #[test]
    fn latency_and_memory_are_compared_across_runs() {
        let mut records = vec![
            record(1, Phase::Near, OURS, 10.0, 0.0),
            record(1, Phase::Far, OURS, 12.6, 0.0),
            record(1, Phase::First, OURS, 10.0, 0.0),
            record(1, Phase::Small, OURS, 1.0, 0.0),
        ];
        for record in &mut records[..2] {
            record.place = Place::Azure;
        }
        let met = |records: &[Record], start: &str| {
            all(records).into_iter().find(|goal| goal.text.starts_with(start)).and_then(|goal| goal.met())
        };
        assert_eq!(met(&records, "100 ms more"), Some(false));
        assert_eq!(met(&records, "Largest plugin"), Some(true));
        assert_eq!(met(&records, "Plugin process: more"), Some(true));
        if let Some(run) = &mut records[2].measured {
            run.peak_mib.insert("plugin".to_owned(), 150.0);
        }
        assert_eq!(met(&records, "Largest plugin"), Some(false));
        assert_eq!(met(&records, "Plugin process: more"), Some(false));
    }
}
