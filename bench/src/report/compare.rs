//! Medians and ratios. Quiet runs count; only where there is none, all runs do, and the table says "0 of n".

use crate::results::{Phase, Record};
use crate::tools::Place;

/// The longest wall of a tool in one round, divided by the shortest, at most.
const STEADY: f64 = 1.08;

/// The runs of one phase and place.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    records: Vec<&'a Record>,
}

/// A ratio over the rounds in which both sides were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) median: f64,
    /// Rounds in which both sides were quiet; with 0, the median is over all of them.
    pub(super) quiet: usize,
    pub(super) rounds: usize,
}

impl<'a> Runs<'a> {
    pub(super) fn of(records: &'a [Record], phase: Phase, place: Place) -> Self {
        let records = records.iter().filter(|record| record.phase == phase && record.place == place);
        Self { records: records.collect() }
    }

    /// All names, in the order of the first round.
    pub(super) fn tools(&self) -> Vec<&'a str> {
        let mut names = Vec::new();
        for record in &self.records {
            if !names.contains(&record.tool.as_str()) {
                names.push(record.tool.as_str());
            }
        }
        names
    }

    pub(super) fn measured(&self, tool: &str) -> Vec<&'a Record> {
        let records = self.records.iter().filter(|record| record.tool == tool && record.measured.is_some());
        records.copied().collect()
    }

    /// The runs that count, and how many of them were quiet.
    pub(super) fn chosen(&self, tool: &str) -> (Vec<&'a Record>, usize) {
        let all = self.measured(tool);
        let quiet: Vec<&Record> = all.iter().copied().filter(|record| record.quiet()).collect();
        let count = quiet.len();
        (if quiet.is_empty() { all } else { quiet }, count)
    }

    /// Why a tool has no figures.
    pub(super) fn why_not(&self, tool: &str) -> String {
        let mut errors =
            self.records.iter().filter(|record| record.tool == tool).filter_map(|record| record.error.clone());
        errors.next_back().unwrap_or_else(|| "it did not run".to_owned())
    }

    /// A figure of one tool divided by that of another in the same round; nothing when no round has both.
    pub(super) fn ratio(&self, tool: &str, to: &str, figure: fn(&Record) -> Option<f64>) -> Option<Ratio> {
        self.ratio_with(tool, figure, self, to, figure)
    }

    fn rounds(&self) -> std::collections::BTreeSet<u32> {
        self.records.iter().map(|record| record.round).collect()
    }

    /// The same, the other side in another phase or place, or another figure.
    pub(super) fn ratio_with(
        &self,
        tool: &str,
        figure: fn(&Record) -> Option<f64>,
        other: &Runs<'a>,
        to: &str,
        other_figure: fn(&Record) -> Option<f64>,
    ) -> Option<Ratio> {
        let mut all = Vec::new();
        let mut quiet = Vec::new();
        for round in self.rounds() {
            let of = |runs: &Runs<'a>, tool: &str| -> Vec<&'a Record> {
                runs.measured(tool).into_iter().filter(|record| record.round == round).collect()
            };
            let (ours, theirs) = (of(self, tool), of(other, to));
            let (Some(ours_value), Some(theirs_value)) = (mean(&ours, figure), mean(&theirs, other_figure)) else {
                continue;
            };
            if theirs_value <= 0.0 {
                continue;
            }
            all.push(ours_value / theirs_value);
            let undisturbed = ours.iter().chain(&theirs).all(|record| record.quiet());
            if undisturbed && is_steady(&ours) && is_steady(&theirs) {
                quiet.push(ours_value / theirs_value);
            }
        }
        let (quiet_rounds, rounds) = (quiet.len(), all.len());
        let median = median(if quiet.is_empty() { all } else { quiet })?;
        Some(Ratio { median, quiet: quiet_rounds, rounds })
    }
}

/// Of a tool that ran several times in a round; nothing when it did not run, or has no such figure.
fn mean(runs: &[&Record], figure: fn(&Record) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = runs.iter().map(|record| figure(record)).collect();
    let values = values.filter(|values| !values.is_empty())?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

/// Whether a tool's runs of one round took the same time, up to [`STEADY`]. What ran between them was on the same machine then.
fn is_steady(runs: &[&Record]) -> bool {
    let walls = || runs.iter().filter_map(|record| record.wall());
    walls().fold(0.0, f64::max) <= STEADY * walls().fold(f64::INFINITY, f64::min)
}

/// The middle value; of an even number the mean of the two.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::measure::Measured;

    /// A run of `wall` seconds, half a second of CPU for each.
    pub(in crate::report) fn record(round: u32, phase: Phase, tool: &str, wall: f64, others: f64) -> Record {
        let measured = Measured {
            wall_s: wall,
            client_cpu_s: wall / 4.0,
            server_cpu_s: wall / 4.0,
            azurite_cpu_s: 0.0,
            other_cpu_s: others,
            steal_s: 0.0,
            peak_mib: BTreeMap::from([("pg_dump".to_owned(), 500.0), ("plugin".to_owned(), 100.0)]),
        };
        Record {
            round,
            phase,
            place: Place::Folder,
            tool: tool.to_owned(),
            source_bytes: 1_000_000_000,
            stored_bytes: Some(100_000_000),
            measured: Some(measured),
            error: None,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round_and_quiet_ones_count() {
        let records = [
            record(1, Phase::First, "a", 12.0, 0.1),
            record(1, Phase::First, "b", 10.0, 0.1),
            // A loaded round: it would say 3.
            record(2, Phase::First, "a", 60.0, 30.0),
            record(2, Phase::First, "b", 20.0, 0.1),
            record(3, Phase::First, "a", 22.0, 0.1),
            record(3, Phase::First, "b", 20.0, 0.1),
            record(4, Phase::First, "a", 1000.0, 0.1),
            record(1, Phase::Second, "b", 1.0, 0.1),
        ];
        let runs = Runs::of(&records, Phase::First, Place::Folder);
        assert_eq!(runs.tools(), ["a", "b"]);
        let ratio = runs.ratio("a", "b", Record::wall).expect("both were measured");
        assert!((ratio.median - 1.15).abs() < 1e-9, "{ratio:?}");
        assert_eq!((ratio.quiet, ratio.rounds), (2, 3));
        assert_eq!(runs.chosen("a").1, 3);
        let loaded = Runs::of(&records[2..4], Phase::First, Place::Folder);
        let ratio = Runs::ratio(&loaded, "a", "b", Record::wall).expect("both were measured");
        assert_eq!((ratio.median, ratio.quiet, ratio.rounds), (3.0, 0, 1));
        // A tool that ran twice counts with its mean, and not at all as quiet when the two differ.
        let mut twice = vec![
            record(1, Phase::First, "a", 12.0, 0.1),
            record(1, Phase::First, "b", 10.0, 0.1),
            record(1, Phase::First, "b", 10.4, 0.1),
        ];
        let ratio = Runs::of(&twice, Phase::First, Place::Folder).ratio("a", "b", Record::wall).expect("measured");
        assert!((ratio.median - 12.0 / 10.2).abs() < 1e-9 && ratio.quiet == 1, "{ratio:?}");
        twice.push(record(1, Phase::First, "b", 14.0, 0.1));
        let ratio = Runs::of(&twice, Phase::First, Place::Folder).ratio("a", "b", Record::wall).expect("measured");
        assert_eq!((ratio.quiet, ratio.rounds), (0, 1));
        assert!(runs.ratio("a", "c", Record::wall).is_none());
        assert_eq!(runs.measured("a")[0].peak_mib(), Some(100.0));
    }
}
