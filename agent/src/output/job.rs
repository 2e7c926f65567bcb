//! Jobs as text for people.

use vaultferry_proto::control::v1::{BackupReport, CheckReport, Finding, Job, Progress, PruneReport, Step, job};

use super::table::{fields, printable, table};
use super::text::short;
use super::units::{duration, milliseconds, size, time};

/// A state's name; empty for "not set".
fn status_name(job: &Job) -> String {
    match job.status() {
        job::Status::Unspecified => String::new(),
        status => status.as_str_name().to_owned(),
    }
}

fn operation_name(job: &Job) -> String {
    match job.operation() {
        job::Operation::Unspecified => String::new(),
        operation => operation.as_str_name().to_owned(),
    }
}

pub fn jobs(jobs: &[Job]) -> String {
    let rows: Vec<[String; 6]> = jobs
        .iter()
        .map(|job| {
            let reason = job.problem.as_ref().map_or(String::new(), |problem| format!(" ({})", problem.reason));
            [
                job.id.clone(),
                operation_name(job),
                job.instance_name.clone(),
                format!("{}{reason}", status_name(job)),
                time(job.create_time.as_ref()),
                duration(job.create_time.as_ref(), job.end_time.as_ref()),
            ]
        })
        .collect();
    table(["ID", "OPERATION", "INSTANCE", "STATUS", "STARTED", "TOOK"], &rows, "There are no such jobs.")
}

pub fn job(job: Option<&Job>) -> String {
    let Some(job) = job else { return String::new() };
    let problem = job.problem.as_ref().map_or(String::new(), |problem| {
        let fix = if problem.fix.is_empty() { String::new() } else { format!("\nfix: {}", problem.fix) };
        format!("{}: {}{fix}", problem.reason, problem.message.trim_end())
    });
    let warnings: Vec<String> =
        job.warnings.iter().map(|warning| format!("{}: {}", warning.reason, warning.message)).collect();
    let has_ended = job.end_time.is_some();
    let took = duration(job.create_time.as_ref(), job.end_time.as_ref());
    fields(&[
        ("id", job.id.clone()),
        ("name", job.name.clone()),
        ("operation", operation_name(job)),
        ("instance", job.instance_name.clone()),
        ("status", status_name(job)),
        ("started", time(job.create_time.as_ref())),
        ("ended", if has_ended { time(job.end_time.as_ref()) } else { String::new() }),
        ("took", if has_ended { took } else { String::new() }),
        ("started by", if job.scheduled { "schedule" } else { "request" }.to_owned()),
        ("attempt", attempt(job)),
        ("next attempt", job.next_attempt_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("rule", job.rule.clone()),
        ("keep until", job.keep_until_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("point", job.point_id.clone()),
        ("target", job.target.clone()),
        ("progress", job.progress.as_ref().map_or(String::new(), progress)),
        ("steps", steps(&job.steps)),
        ("problem", problem),
        ("warnings", warnings.join("\n")),
        ("report", report(job)),
        ("findings", findings(&job.findings, job.finding_count)),
    ])
}

/// "2 of the backup whose first job is 0193…"; nothing for the only one.
fn attempt(job: &Job) -> String {
    match job.retry_of.as_str() {
        "" => String::new(),
        first => format!("{}, after the job {first}", job.attempt),
    }
}

/// A line for each: "dumping      0:42  1.2 GiB read (29.3 MiB/s), 400.0 MiB stored (9.5 MiB/s)"
fn steps(steps: &[Step]) -> String {
    let widest = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let line = |step: &Step| {
        let took = match step.end_time {
            Some(_) => duration(step.start_time.as_ref(), step.end_time.as_ref()),
            None => format!("since {}", time(step.start_time.as_ref())),
        };
        let milliseconds = milliseconds(step.start_time.as_ref(), step.end_time.as_ref());
        let moved = |bytes: u64, verb: &str| {
            let rate = u128::from(bytes) * 1000 / u128::from(milliseconds.max(1));
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            match (bytes, milliseconds) {
                (0, _) => None,
                // No rate without a time.
                (bytes, 0) => Some(format!("{} {verb}", size(bytes))),
                (bytes, _) => Some(format!("{} {verb} ({}/s)", size(bytes), size(rate))),
            }
        };
        let parts: Vec<String> =
            [moved(step.bytes_read, "read"), moved(step.bytes_stored, "stored")].into_iter().flatten().collect();
        format!("{:<widest$}  {took:>5}  {}", printable(&step.name), parts.join(", ")).trim_end().to_owned()
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Findings that are printed for people; JSON has more of them.
const PRINTED_FINDINGS: usize = 50;

fn findings(findings: &[Finding], count: u64) -> String {
    let line = |finding: &Finding| {
        let kind = if finding.damage { finding.kind.as_str() } else { "note" };
        let mut text = format!("{kind}: {}: {}", finding.file, finding.message);
        for point in &finding.points {
            text.push_str(&format!(
                "\n  concerns the point {} of {}",
                short(&point.id),
                time(point.create_time.as_ref())
            ));
        }
        text
    };
    let mut lines: Vec<String> = findings.iter().take(PRINTED_FINDINGS).map(line).collect();
    let more = count.saturating_sub(lines.len() as u64);
    // A list of jobs tells the number only.
    if more > 0 && !lines.is_empty() {
        lines.push(format!("and {more} more"));
    } else if more > 0 {
        lines.push(count.to_string());
    }
    lines.join("\n")
}

fn report(job: &Job) -> String {
    match &job.report {
        Some(job::Report::CheckReport(report)) => check_report(report),
        Some(job::Report::PruneReport(report)) => prune_report(report),
        Some(job::Report::ArchiveReport(report)) => {
            format!("{} packs with {} were added to the archive store", report.packs, size(report.bytes))
        }
        Some(job::Report::BackupReport(report)) => backup_report(*report),
        // The progress tells it.
        Some(job::Report::RestoreReport(_)) | None => String::new(),
    }
}

/// "a snapshot was held at the source for 12.3 s, in which 3400 transactions began there"
fn backup_report(report: BackupReport) -> String {
    let seconds = format!("{}.{}", report.snapshot_held_ms / 1000, report.snapshot_held_ms % 1000 / 100);
    let transactions = match report.snapshot_transactions {
        0 => String::new(),
        1 => ", in which 1 transaction began there".to_owned(),
        transactions => format!(", in which {transactions} transactions began there"),
    };
    format!("a snapshot was held at the source for {seconds} s{transactions}")
}

fn check_report(report: &CheckReport) -> String {
    let mut lines = vec![format!(
        "{} points, {} packs with {}; {} files with {} read",
        report.points,
        report.packs,
        size(report.pack_bytes),
        report.files_read,
        size(report.bytes_read)
    )];
    if report.files_unreadable > 0 {
        lines.push(not_readable(report.files_unreadable));
    }
    if report.read_data_percent > 0.0 && report.read_data_percent < 100.0 {
        lines.push(format!("{} of {} packs were drawn (seed {})", report.packs_drawn, report.packs, report.seed));
        lines.push(probability(report.detects_one, report.detects_one_percent));
    }
    lines.join("\n")
}

/// What a check could not look at.
pub fn not_readable(files: u64) -> String {
    format!(
        "{files} files lie in the archive tier and cannot be read without rehydration: only their sizes were checked"
    )
}

/// What a check of a part can find.
pub fn probability(detects_one: f64, detects_one_percent: f64) -> String {
    format!(
        "Of one damaged pack this finds out with a probability of {:.1} %, of damage in 1 % of the packs with {:.1} %",
        detects_one * 100.0,
        detects_one_percent * 100.0
    )
}

fn prune_report(report: &PruneReport) -> String {
    let would = |done: &str, would: &str| if report.dry_run { would.to_owned() } else { done.to_owned() };
    let packs = |count: u64, bytes: u64| format!("{count} packs with {}", size(bytes));
    let mut lines = Vec::new();
    if report.points_purged > 0 {
        let verb = would("were", "would be");
        lines.push(format!("{} deleted points {verb} given up: their time has come", report.points_purged));
    }
    lines.push(format!("{} {} deleted", packs(report.packs_deleted, report.bytes_deleted), would("were", "would be")));
    lines.push(format!(
        "{} {} marked: the next prune deletes them, if nothing needs them then",
        packs(report.packs_marked, report.bytes_marked),
        would("are", "would be")
    ));
    if report.packs_noted > 0 {
        let noted = packs(report.packs_noted, report.bytes_noted);
        lines.push(format!("{noted} were never needed: the next prune marks them"));
    }
    if report.packs_protected > 0 {
        let protected = packs(report.packs_protected, report.bytes_protected);
        lines.push(format!("{protected} are not needed, but protected from deletion"));
    }
    lines.push(format!(
        "{} kept for listed points, {} for deleted ones, {} for backups that run; {} of it unused",
        size(report.bytes_kept),
        size(report.bytes_kept_deleted),
        size(report.bytes_kept_uncommitted),
        size(report.bytes_unused)
    ));
    if report.archive_packs_deleted > 0 {
        let deleted = packs(report.archive_packs_deleted, report.archive_bytes_deleted);
        lines.push(format!("in the archive store {deleted} {} deleted", would("were", "would be")));
    }
    lines.push(format!(
        "{} index files, of which {} {} replaced",
        report.index_files,
        report.index_files_replaced,
        would("were", "would be")
    ));
    lines.extend(report.damage.iter().map(|what| format!("damage: {what}")));
    lines.join("\n")
}

/// "reading: 1.2 GiB of about 3.0 GiB read, 400.0 MiB stored, 80.0 MiB/s"; "queued: 4 jobs run, …"
pub fn progress(progress: &Progress) -> String {
    if progress.phase == "queued" {
        return format!("queued: {}", printable(&progress.note));
    }
    let mut text = format!("{}: {}", printable(&progress.phase), size(progress.bytes_read));
    if progress.bytes_total > progress.bytes_read {
        text.push_str(&format!(" of about {}", size(progress.bytes_total)));
    }
    text.push_str(" read");
    if progress.bytes_stored > 0 {
        text.push_str(&format!(", {} stored", size(progress.bytes_stored)));
    }
    if progress.bytes_per_second > 0 {
        text.push_str(&format!(", {}/s", size(progress.bytes_per_second)));
    }
    if !progress.note.is_empty() {
        text.push_str(&format!("; {}", printable(&progress.note)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos })
    }

    #[test]
    fn steps_have_times_and_rates() {
        let step = |name: &str, start_time, end_time, bytes_read, bytes_stored| Step {
            name: name.to_owned(),
            start_time,
            end_time,
            bytes_read,
            bytes_stored,
        };
        let all = [
            step("starting", at(0, 0), at(0, 500_000_000), 0, 0),
            step("dumping", at(0, 500_000_000), at(65, 0), 3 << 30, 129 << 20),
            step("verifying", at(65, 0), at(65, 0), 1 << 20, 0),
        ];
        let expected = "starting    0:00\ndumping     1:04  3.0 GiB read (47.6 MiB/s), 129.0 MiB stored (2.0 MiB/s)\n\
                        verifying   0:00  1.0 MiB read";
        assert_eq!(steps(&all), expected);
        let open = steps(&[step("dumping", at(0, 0), None, 7, 0)]);
        assert!(open.starts_with("dumping  since 19") && open.ends_with("7 B read"), "{open}");
    }

    #[test]
    fn a_backup_says_what_it_cost_its_source() {
        let report = |snapshot_held_ms, snapshot_transactions| {
            backup_report(BackupReport { snapshot_held_ms, snapshot_transactions })
        };
        assert_eq!(report(12_390, 0), "a snapshot was held at the source for 12.3 s");
        let expected = "a snapshot was held at the source for 0.0 s, in which 3400 transactions began there";
        assert_eq!(report(49, 3400), expected);
    }

    #[test]
    fn a_queued_job_says_for_what_it_waits() {
        let queued = Progress { phase: "queued".to_owned(), note: "4 jobs run".to_owned(), ..Progress::default() };
        assert_eq!(progress(&queued), "queued: 4 jobs run");
    }
}
