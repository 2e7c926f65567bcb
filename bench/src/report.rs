//! The results as Markdown: what has to be shown, then every figure.

use std::fmt::Write as _;
use std::fs;

use vaultferry_tests::workspace;

use crate::Result;
use crate::machine::Facts;
use crate::results::{Phase, Record};
use crate::tools::{BASELINE, KINDS, Place};

mod compare;
mod goals;

use compare::{Runs, median};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// The whole section.
pub fn markdown(facts: &Facts, records: &[Record]) -> String {
    let mut text = String::new();
    for (name, value) in facts {
        text.push_str(&format!("- {name}: {value}\n"));
    }
    text.push_str("\n### Goals\n\n");
    text.push_str("| goal | limit | figure | quiet rounds | result |\n|---|---|---|---|---|\n");
    for goal in goals::all(records) {
        text.push_str(&goal.row());
    }
    let tables = [
        (Phase::First, Place::Folder, "First backup, to a folder"),
        (Phase::First, Place::Azure, "First backup, to Azurite over TLS"),
        (Phase::Second, Place::Folder, "Second backup after a change of 1 %, to a folder"),
        (Phase::Second, Place::Azure, "Second backup after a change of 1 %, to Azurite over TLS"),
        (Phase::Read, Place::Folder, "Reading the stream back to nowhere, from a folder"),
        (Phase::Read, Place::Azure, "Reading the stream back to nowhere, from Azurite over TLS"),
        (Phase::ReadFile, Place::Folder, "Reading the stream back into a file, from a folder"),
        (Phase::ReadFile, Place::Azure, "Reading the stream back into a file, from Azurite over TLS"),
        (Phase::Near, Place::Azure, "Source of 50 MB/s, through a proxy before Azurite"),
        (Phase::Far, Place::Azure, "The same with 100 ms more for each request"),
        (Phase::Small, Place::Folder, "First backup of a tenth of the database"),
    ];
    for (phase, place, title) in tables {
        let _ = table(&mut text, &Runs::of(records, phase, place), title);
    }
    text.push_str("\n### Commands\n\n| name | commands |\n|---|---|\n");
    for kind in KINDS {
        text.push_str(&format!("| {} | `{}` |\n", cell(kind.name), cell(kind.command)));
    }
    text
}

/// A table of all tools of one phase and place; nothing when nothing was run.
fn table(text: &mut String, runs: &Runs<'_>, title: &str) -> std::fmt::Result {
    let tools = runs.tools();
    if tools.is_empty() {
        return Ok(());
    }
    write!(text, "\n### {title}\n\n")?;
    text.push_str("| tool | wall s | x baseline | client CPU s | server CPU s | Azurite CPU s | CPU s/GB | peak MiB | stored MB | others' CPU s | quiet |\n");
    text.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    for tool in tools {
        let (chosen, quiet) = runs.chosen(tool);
        if chosen.is_empty() {
            writeln!(text, "| {} | not measured: {} |", cell(tool), cell(&runs.why_not(tool)))?;
            continue;
        }
        let of =
            |figure: fn(&Record) -> Option<f64>| median(chosen.iter().filter_map(|record| figure(record)).collect());
        let show =
            |value: Option<f64>, digits: usize| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
        let per_gb = |record: &Record| Some(record.cpu()? / (record.source_bytes as f64 / 1e9));
        let ratio = runs.ratio(tool, BASELINE, Record::wall).map(|ratio| ratio.median);
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {quiet} of {} |",
            cell(tool),
            show(of(Record::wall), 1),
            show(ratio, 2),
            show(of(|record| Some(record.measured.as_ref()?.client_cpu_s)), 1),
            show(of(|record| Some(record.measured.as_ref()?.server_cpu_s)), 1),
            show(of(|record| Some(record.measured.as_ref()?.azurite_cpu_s)), 1),
            show(of(per_gb), 1),
            show(of(Record::peak_mib), 0),
            show(of(|record| Some(record.stored_bytes? as f64 / 1e6)), 1),
            show(of(|record| Some(record.measured.as_ref()?.other_cpu_s)), 1),
            runs.measured(tool).len(),
        )?;
    }
    Ok(())
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Replaces the section between the markers in `docs/benchmarks.md`, and keeps the single runs beside it.
///
/// Errors: the page or a marker is missing; nothing is changed then.
pub fn write_docs(report: &str, records: &[Record]) -> Result<()> {
    let path = workspace().join("docs/benchmarks.md");
    let page = replace_section(&fs::read_to_string(&path)?, report)?;
    let lines: std::result::Result<Vec<String>, _> = records.iter().map(serde_json::to_string).collect();
    fs::write(workspace().join("docs/benchmarks.jsonl"), format!("{}\n", lines?.join("\n")))?;
    Ok(fs::write(path, page)?)
}

fn replace_section(page: &str, section: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).ok_or(format!("docs/benchmarks.md has no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).ok_or(format!("docs/benchmarks.md has no line {END}"))?;
    Ok(format!("{head}{BEGIN}\n{section}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::compare::tests::record;
    use super::*;

    #[test]
    fn only_the_section_is_replaced() {
        let page = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = replace_section(&page, "new\n").expect("both markers are there");
        assert_eq!(new, format!("head\n{BEGIN}\nnew\n{END}\ntail\n"));
        assert!(replace_section("head", "new").is_err());
        assert!(replace_section(&format!("{BEGIN} only"), "new").is_err());
    }

    #[test]
    fn a_tool_that_was_not_measured_is_in_the_table() {
        let mut missing = record(1, Phase::First, "borg", 0.0, 0.0);
        missing.measured = None;
        missing.error = Some("borg is not installed".to_owned());
        let text = markdown(&Vec::new(), &[record(1, Phase::First, BASELINE, 10.0, 0.0), missing]);
        assert!(text.contains("| borg | not measured: borg is not installed |"), "{text}");
        assert!(text.contains("| pg_dump \\| cat | 10.0 | 1.00 |"), "{text}");
    }

    /// The page that a full run would change has its markers.
    #[test]
    fn the_page_has_the_markers() {
        let page = fs::read_to_string(workspace().join("docs/benchmarks.md")).expect("docs/benchmarks.md");
        replace_section(&page, "").expect("markers");
    }
}
