//! What an offline check found, for people and as JSON (with the names of the messages of job.proto).

use serde_json::{Value, json};
use vaultferry_plugin_maintenance::{Checked, Finding};

use super::table::printable;
use super::units::size;

/// Findings that are printed for people; JSON has all of them.
const PRINTED: usize = 50;

pub fn to_json(checked: &[Checked]) -> Value {
    let finding = |finding: &Finding| {
        let point = |point: &vaultferry_plugin_maintenance::Affected| json!({ "id": point.id.to_string(), "create_time": point.time.map(|time| time.to_string()) });
        json!({
            "kind": finding.kind,
            "damage": finding.damage,
            "file": finding.file,
            "message": finding.message,
            "points": finding.points.iter().map(point).collect::<Vec<_>>(),
        })
    };
    let one = |checked: &Checked| {
        let report = &checked.report;
        json!({
            "id": checked.instance_id,
            "findings": checked.findings.iter().map(finding).collect::<Vec<_>>(),
            "check_report": {
                "keyless": true,
                "points": report.points.to_string(),
                "packs": report.packs.to_string(),
                "pack_bytes": report.pack_bytes.to_string(),
                "files_read": report.files_read.to_string(),
                "bytes_read": report.bytes_read.to_string(),
                "files_unreadable": report.files_unreadable.to_string(),
                "seed": report.seed.to_string(),
                "packs_drawn": report.packs_drawn.to_string(),
                "detects_one": report.detects_one,
                "detects_one_percent": report.detects_one_percent,
            },
        })
    };
    json!({ "checks": checked.iter().map(one).collect::<Vec<_>>() })
}

pub fn to_text(checked: &[Checked], read_data_percent: f64) -> String {
    if checked.is_empty() {
        return "The vault holds no instance yet.".to_owned();
    }
    let one = |checked: &Checked| {
        let report = &checked.report;
        let head = match checked.instance_id.as_str() {
            "" => "The vault's own records".to_owned(),
            id => format!(
                "Instance {id}: {} points, {} packs with {}, {} read",
                report.points,
                report.packs,
                size(report.pack_bytes),
                size(report.bytes_read)
            ),
        };
        let mut lines = vec![head];
        if checked.findings.is_empty() {
            lines.push("  nothing is wrong".to_owned());
        }
        if report.files_unreadable > 0 {
            lines.push(format!("  {}", super::job::not_readable(report.files_unreadable)));
        }
        lines.extend(checked.findings.iter().take(PRINTED).map(|finding| format!("  {}", line(finding))));
        if checked.findings.len() > PRINTED {
            lines.push(format!("  and {} more", checked.findings.len() - PRINTED));
        }
        if read_data_percent > 0.0 && read_data_percent < 100.0 && !checked.instance_id.is_empty() {
            lines.push(format!("  {}", super::text::probability(report.detects_one, report.detects_one_percent)));
        }
        lines.join("\n")
    };
    checked.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn line(finding: &Finding) -> String {
    let kind = if finding.damage { finding.kind.as_str() } else { "note" };
    let mut text = format!("{kind}: {}: {}", printable(&finding.file), printable(&finding.message));
    for point in &finding.points {
        let time = point.time.map_or("unknown time".to_owned(), |time| time.to_string());
        text.push_str(&format!("\n    concerns the point {} of {time}", point.id));
    }
    text
}
