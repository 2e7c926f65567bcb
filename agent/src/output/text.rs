//! Each response as text for people.

use vaultferry_proto::control::v1::{
    BackupInstance, CheckReport, Finding, Job, Policy, Progress, PruneReport, RecoveryPoint, RetentionRule, Summary,
    Vault, VaultSettings, backup_instance, job, recovery_point,
};

use super::table::{fields, printable, table};
use super::units::{date, duration, size, time};

/// Enough of an id to be unique in an instance, and to type.
const SHORT_ID_DIGITS: usize = 16;

/// The beginning of an id, as lists show it.
pub fn short(id: &str) -> String {
    id.chars().take(SHORT_ID_DIGITS).collect()
}

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

pub fn vault(vault: Option<&Vault>) -> String {
    let Some(vault) = vault else { return String::new() };
    let owner = vault.owner.as_ref().map_or("nobody yet".to_owned(), |owner| {
        let whose = if owner.this_agent { "this agent" } else { "another agent, so this one starts no job" };
        format!("{} on {} since {} ({whose})", owner.agent_id, owner.hostname, time(owner.create_time.as_ref()))
    });
    let redundancy = match vault.storage_redundancy.as_str() {
        "" => vault.redundancy.clone(),
        same if same == vault.redundancy => format!("{same}, as the storage is"),
        other => format!("{} is what the vault was made for. WARNING: the storage is {other}", vault.redundancy),
    };
    let keys = vault.keys.clone().unwrap_or_default();
    let recovery_keys = match keys.recovery_key_ids.is_empty() {
        true => "none: make one with vaultferry vault key add".to_owned(),
        false => keys.recovery_key_ids.join(", "),
    };
    fields(&[
        ("id", vault.id.clone()),
        ("name", vault.name.clone()),
        ("created", time(vault.create_time.as_ref())),
        ("location", vault.location.clone()),
        ("region", vault.region.clone()),
        ("redundancy", redundancy),
        ("format", vault.format_version.to_string()),
        ("owner", owner),
        ("vault key", format!("{} in {}", keys.id, keys.place)),
        ("recovery keys", recovery_keys),
        ("soft delete", format!("{} days", vault.soft_delete_days)),
        ("immutability", immutability(&vault.immutability, vault.immutability_days)),
    ])
}

pub fn vault_settings(settings: Option<&VaultSettings>) -> String {
    let Some(settings) = settings else { return String::new() };
    let version = match settings.version {
        0 => "none yet: as the vault was made".to_owned(),
        version => version.to_string(),
    };
    fields(&[
        ("immutability", immutability(&settings.immutability, settings.immutability_days)),
        ("soft delete", format!("{} days", settings.soft_delete_days)),
        ("redundancy", settings.redundancy.clone()),
        ("record", version),
        ("since", time(settings.create_time.as_ref())),
    ])
}

fn immutability(state: &str, days: u32) -> String {
    match days {
        0 => state.to_owned(),
        days => format!("{state} ({days} days)"),
    }
}

pub fn policies(policies: &[Policy]) -> String {
    let rows: Vec<[String; 6]> = policies
        .iter()
        .map(|policy| {
            let rules: Vec<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
            let next_run = policy.schedule.as_ref().and_then(|schedule| schedule.next_run_time.as_ref());
            [
                policy.name.clone(),
                policy.version.to_string(),
                policy.source_type.clone(),
                schedule(policy),
                rules.join(", "),
                time(next_run),
            ]
        })
        .collect();
    table(["NAME", "VERSION", "TYPE", "SCHEDULE", "RULES", "NEXT RUN"], &rows, "There are no policies yet.")
}

/// "every week on Sun at 02:00"
pub fn schedule(policy: &Policy) -> String {
    let Some(schedule) = &policy.schedule else { return "on demand".to_owned() };
    let mut text = format!("every {}", schedule.every);
    if !schedule.on.is_empty() {
        text.push_str(" on ");
        text.push_str(&schedule.on.join(", "));
    }
    if !schedule.at.is_empty() {
        text.push_str(" at ");
        text.push_str(&schedule.at.join(", "));
    }
    text
}

pub fn policy(policy: Option<&Policy>) -> String {
    let Some(policy) = policy else { return String::new() };
    let next_run = policy.schedule.as_ref().and_then(|schedule| schedule.next_run_time.as_ref());
    let rule = |rule: &RetentionRule| match rule.archive.as_str() {
        "" => format!("{} (vault {})", rule.name, rule.vault),
        archive => format!("{} (vault {}, archive {archive} {})", rule.name, rule.vault, rule.tiering),
    };
    let rules: Vec<String> = policy.rules.iter().map(rule).collect();
    let head = fields(&[
        ("id", policy.id.clone()),
        ("name", policy.name.clone()),
        ("version", policy.version.to_string()),
        ("created", time(policy.create_time.as_ref())),
        ("source type", policy.source_type.clone()),
        ("time zone", policy.time_zone.clone()),
        ("schedule", schedule(policy)),
        ("next run", time(next_run)),
        ("rules", rules.join(", ")),
    ]);
    format!("{head}\n\n{}", printable(&policy.document))
}

pub fn instances(instances: &[BackupInstance]) -> String {
    let rows: Vec<[String; 7]> = instances
        .iter()
        .map(|instance| {
            [
                instance.name.clone(),
                instance.source_uri.clone(),
                instance.policy.clone(),
                protection(instance),
                last_backup(instance),
                time(instance.last_backup_time.as_ref()),
                instance.point_count.to_string(),
            ]
        })
        .collect();
    let headings = ["NAME", "SOURCE", "POLICY", "PROTECTION", "LAST BACKUP", "AT", "POINTS"];
    table(headings, &rows, "Nothing is protected yet.")
}

pub fn deleted_instances(instances: &[BackupInstance]) -> String {
    let rows: Vec<[String; 4]> = instances
        .iter()
        .map(|instance| {
            [
                instance.name.clone(),
                instance.source_uri.clone(),
                time(instance.protection_state_time.as_ref()),
                time(instance.purge_time.as_ref()),
            ]
        })
        .collect();
    table(["NAME", "SOURCE", "DELETED", "CAN BE BROUGHT BACK UNTIL"], &rows, "No instance is deleted.")
}

fn protection(instance: &BackupInstance) -> String {
    match instance.protection_state() {
        _ if !instance.protection_state_text.is_empty() => instance.protection_state_text.clone(),
        backup_instance::ProtectionState::Unspecified => String::new(),
        state => state.as_str_name().to_owned(),
    }
}

fn last_backup(instance: &BackupInstance) -> String {
    match instance.last_backup_status() {
        _ if !instance.last_backup_status_text.is_empty() => instance.last_backup_status_text.clone(),
        backup_instance::LastBackupStatus::Unspecified => String::new(),
        status => status.as_str_name().to_owned(),
    }
}

pub fn instance(instance: Option<&BackupInstance>) -> String {
    let Some(instance) = instance else { return String::new() };
    fields(&[
        ("id", instance.id.clone()),
        ("name", instance.name.clone()),
        ("created", time(instance.create_time.as_ref())),
        ("source", instance.source_uri.clone()),
        ("source type", instance.source_type.clone()),
        ("policy", instance.policy.clone()),
        ("region", instance.region.clone()),
        ("protection", protection(instance)),
        ("since", instance.protection_state_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("undelete until", instance.purge_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("last backup", last_backup(instance)),
        ("last backup at", time(instance.last_backup_time.as_ref())),
        ("next backup at", time(instance.next_backup_time.as_ref())),
        ("points", instance.point_count.to_string()),
    ])
}

pub fn points(points: &[RecoveryPoint]) -> String {
    let rows: Vec<[String; 11]> = points
        .iter()
        .map(|point| {
            [
                short(&point.id),
                time(point.create_time.as_ref()),
                if point.rule.is_empty() { "-".to_owned() } else { point.rule.clone() },
                size(point.source_bytes),
                size(point.stored_bytes),
                time(point.expire_time.as_ref()),
                point_state(point),
                time(point.proven_time.as_ref()),
                if point.held { "yes" } else { "-" }.to_owned(),
                time(point.immutable_until_time.as_ref()),
                stores(point),
            ]
        })
        .collect();
    let headings =
        ["ID", "CREATED", "RULE", "READ", "STORED", "EXPIRES", "STATE", "PROVEN", "HELD", "IMMUTABLE UNTIL", "STORE"];
    table(headings, &rows, "There are no points.")
}

fn point_state(point: &RecoveryPoint) -> String {
    match point.state() {
        recovery_point::State::Unspecified => String::new(),
        state => state.as_str_name().to_owned(),
    }
}

/// "vault"; where a store lets the point go before it expires, "vault until 2027-02-21, archive".
fn stores(point: &RecoveryPoint) -> String {
    let store = |name: &str, until: &Option<prost_types::Timestamp>| match until {
        Some(_) if *until != point.expire_time => format!("{name} until {}", date(until.as_ref())),
        _ => name.to_owned(),
    };
    let vault = point.in_vault.then(|| store("vault", &point.vault_until_time));
    let archive = point.in_archive.then(|| store("archive", &point.archive_until_time));
    let stores: Vec<String> = vault.into_iter().chain(archive).collect();
    if stores.is_empty() { "-".to_owned() } else { stores.join(", ") }
}

/// Each store in a line: where the point is, where it will be, and until when.
fn stays(point: &RecoveryPoint) -> String {
    let word = |word: &str, at: &Option<prost_types::Timestamp>| {
        at.as_ref().map_or(String::new(), |at| format!(" {word} {}", time(Some(at))))
    };
    let mut lines = Vec::new();
    if point.in_vault {
        lines.push(format!("vault{}", word("until", &point.vault_until_time)));
    }
    if point.in_archive || point.archive_from_time.is_some() {
        let since = word(if point.in_archive { "since" } else { "from" }, &point.archive_from_time);
        lines.push(format!("archive{since}{}", word("until", &point.archive_until_time)));
    }
    lines.join("\n")
}

pub fn point(point: Option<&RecoveryPoint>) -> String {
    let Some(point) = point else { return String::new() };
    let streams: Vec<String> = point
        .streams
        .iter()
        .map(|stream| match stream.sha256.as_str() {
            "" => format!("{} ({})", stream.name, size(stream.size)),
            sha256 => format!("{} ({}, sha256 {sha256})", stream.name, size(stream.size)),
        })
        .collect();
    let policy = format!("{} (version {})", point.policy, point.policy_version);
    fields(&[
        ("id", point.id.clone()),
        ("name", point.name.clone()),
        ("created", time(point.create_time.as_ref())),
        ("expires", time(point.expire_time.as_ref())),
        ("rule", point.rule.clone()),
        ("keep until", point.keep_until_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("policy", if point.policy.is_empty() { String::new() } else { policy }),
        ("job", point.job_id.clone()),
        ("read", size(point.source_bytes)),
        ("stored", size(point.stored_bytes)),
        ("state", point_state(point)),
        ("can be brought back until", point.purge_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("proven", point.proven_time.as_ref().map_or("never".to_owned(), |at| time(Some(at)))),
        ("held", if point.held { format!("yes: {}", point.hold_note) } else { String::new() }),
        ("immutable until", point.immutable_until_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("store", stays(point)),
        ("streams", streams.join("\n")),
    ])
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
        ("rule", job.rule.clone()),
        ("keep until", job.keep_until_time.as_ref().map_or(String::new(), |at| time(Some(at)))),
        ("point", job.point_id.clone()),
        ("target", job.target.clone()),
        ("progress", job.progress.as_ref().map_or(String::new(), progress)),
        ("problem", problem),
        ("warnings", warnings.join("\n")),
        ("report", report(job)),
        ("findings", findings(&job.findings, job.finding_count)),
    ])
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
        // The progress tells it.
        Some(job::Report::BackupReport(_)) => String::new(),
        None => String::new(),
    }
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
        lines.push(format!("{} archived files: only their sizes were checked", report.files_unreadable));
    }
    if report.read_data_percent > 0.0 && report.read_data_percent < 100.0 {
        lines.push(format!("{} of {} packs were drawn (seed {})", report.packs_drawn, report.packs, report.seed));
        lines.push(probability(report.detects_one, report.detects_one_percent));
    }
    lines.join("\n")
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

/// "reading: 1.2 GiB of about 3.0 GiB read, 400.0 MiB stored, 80.0 MiB/s"
pub fn progress(progress: &Progress) -> String {
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

pub fn summary(summary: Option<&Summary>) -> String {
    let Some(summary) = summary else { return String::new() };
    fields(&[
        ("protected", summary.instances_protected.to_string()),
        ("pending", summary.instances_pending.to_string()),
        ("paused", summary.instances_paused.to_string()),
        ("stopped", summary.instances_stopped.to_string()),
        ("points", summary.points.to_string()),
        ("stored", size(summary.stored_bytes)),
        ("oldest point", time(summary.oldest_point_time.as_ref())),
        ("newest point", time(summary.newest_point_time.as_ref())),
        ("completed, 24 h", summary.jobs_completed.to_string()),
        ("failed, 24 h", summary.jobs_failed.to_string()),
        ("in progress", summary.jobs_in_progress.to_string()),
    ])
}
