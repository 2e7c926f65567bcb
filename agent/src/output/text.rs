//! Each response as text for people.

use vaultferry_proto::control::v1::{
    BackupInstance, Job, Policy, Progress, RecoveryPoint, Summary, Vault, backup_instance, job,
};

use super::table::{fields, printable, table};
use super::units::{duration, size, time};

/// Enough of an id to be unique in an instance, and to type.
const SHORT_ID_DIGITS: usize = 16;

fn short(id: &str) -> String {
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
    ])
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

fn schedule(policy: &Policy) -> String {
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
    let rules: Vec<String> = policy.rules.iter().map(|rule| format!("{} (vault {})", rule.name, rule.vault)).collect();
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
        ("last backup", last_backup(instance)),
        ("last backup at", time(instance.last_backup_time.as_ref())),
        ("next backup at", time(instance.next_backup_time.as_ref())),
        ("points", instance.point_count.to_string()),
    ])
}

pub fn points(points: &[RecoveryPoint]) -> String {
    let rows: Vec<[String; 6]> = points
        .iter()
        .map(|point| {
            [
                short(&point.id),
                time(point.create_time.as_ref()),
                point.rule.clone(),
                size(point.source_bytes),
                size(point.stored_bytes),
                time(point.expire_time.as_ref()),
            ]
        })
        .collect();
    table(["ID", "CREATED", "RULE", "READ", "STORED", "EXPIRES"], &rows, "There are no points yet.")
}

pub fn point(point: Option<&RecoveryPoint>) -> String {
    let Some(point) = point else { return String::new() };
    let streams: Vec<String> = point
        .streams
        .iter()
        .map(|stream| format!("{} ({}, sha256 {})", stream.name, size(stream.size), stream.sha256))
        .collect();
    let policy = format!("{} (version {})", point.policy, point.policy_version);
    fields(&[
        ("id", point.id.clone()),
        ("name", point.name.clone()),
        ("created", time(point.create_time.as_ref())),
        ("expires", time(point.expire_time.as_ref())),
        ("rule", point.rule.clone()),
        ("policy", if point.policy.is_empty() { String::new() } else { policy }),
        ("job", point.job_id.clone()),
        ("read", size(point.source_bytes)),
        ("stored", size(point.stored_bytes)),
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
        ("point", job.point_id.clone()),
        ("target", job.target.clone()),
        ("progress", job.progress.as_ref().map_or(String::new(), progress)),
        ("problem", problem),
        ("warnings", warnings.join("\n")),
    ])
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
    text
}

pub fn summary(summary: Option<&Summary>) -> String {
    let Some(summary) = summary else { return String::new() };
    fields(&[
        ("protected", summary.instances_protected.to_string()),
        ("pending", summary.instances_pending.to_string()),
        ("points", summary.points.to_string()),
        ("stored", size(summary.stored_bytes)),
        ("oldest point", time(summary.oldest_point_time.as_ref())),
        ("newest point", time(summary.newest_point_time.as_ref())),
        ("completed, 24 h", summary.jobs_completed.to_string()),
        ("failed, 24 h", summary.jobs_failed.to_string()),
        ("in progress", summary.jobs_in_progress.to_string()),
    ])
}
