//! Each response as text for people.

use vaultferry_proto::control::v1::{
    BackupInstance, Capture, Policy, Problem, RecoveryPoint, RetentionRule, Vault, VaultSettings, backup_instance,
    recovery_point,
};

use super::table::{fields, printable, table};
use super::units::{date, size, time};

pub use super::job::{job, jobs, probability, progress};
pub use super::summary::summary;

/// Enough of an id to be unique in an instance, and to type.
const SHORT_ID_DIGITS: usize = 16;

/// The beginning of an id, as lists show it.
pub fn short(id: &str) -> String {
    id.chars().take(SHORT_ID_DIGITS).collect()
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
        ("free", free(vault)),
        ("warnings", warnings(&vault.warnings)),
    ])
}

fn free(vault: &Vault) -> String {
    match vault.total_bytes {
        0 => String::new(),
        total => format!("{} of {}", size(vault.free_bytes), size(total)),
    }
}

/// One a line, with what to do.
pub fn warnings(warnings: &[Problem]) -> String {
    let line = |warning: &Problem| format!("{}: {}\nfix: {}", warning.reason, warning.message, warning.fix);
    warnings.iter().map(line).collect::<Vec<_>>().join("\n")
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
        ("consistency", with_reason(&instance.consistency, &instance.consistency_reason)),
    ])
}

pub fn points(points: &[RecoveryPoint]) -> String {
    // Only machines have it.
    if points.iter().any(|point| point.capture.is_some()) {
        return captured_points(points);
    }
    let rows: Vec<[String; 11]> = points.iter().map(point_row).collect();
    table(POINT_HEADINGS, &rows, "There are no points.")
}

const POINT_HEADINGS: [&str; 11] =
    ["ID", "CREATED", "RULE", "READ", "STORED", "EXPIRES", "STATE", "PROVEN", "HELD", "IMMUTABLE UNTIL", "STORE"];

/// The same with a column more.
fn captured_points(points: &[RecoveryPoint]) -> String {
    let row = |point: &RecoveryPoint| {
        let [id, created, rule, read, stored, expires, state, proven, held, immutable, store] = point_row(point);
        let level = point.capture.as_ref().map_or("-".to_owned(), |capture| capture.consistency.clone());
        [id, created, rule, level, read, stored, expires, state, proven, held, immutable, store]
    };
    let [id, created, rule, read, stored, expires, state, proven, held, immutable, store] = POINT_HEADINGS;
    let headings = [id, created, rule, "CONSISTENCY", read, stored, expires, state, proven, held, immutable, store];
    let rows: Vec<[String; 12]> = points.iter().map(row).collect();
    table(headings, &rows, "There are no points.")
}

fn point_row(point: &RecoveryPoint) -> [String; 11] {
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
}

/// "crash: nobody wrote to it"
fn with_reason(word: &str, reason: &str) -> String {
    if word.is_empty() || reason.is_empty() { word.to_owned() } else { format!("{word}: {}", printable(reason)) }
}

/// What was measured of a source that was caught while it is written to.
fn capture(capture: &Capture) -> String {
    let mut parts = vec![format!("{} read by {}", size(capture.read_bytes), printable(&capture.provider))];
    if capture.frozen_ms > 0 || capture.freezing_ms > 0 {
        let (synced, freezing, frozen) = (capture.synced_ms, capture.freezing_ms, capture.frozen_ms);
        parts.push(format!("frozen for {frozen} ms (after {synced} ms of writing out and {freezing} ms of freezing)"));
    }
    if !capture.base_point_id.is_empty() {
        parts.push(format!("the rest as in {}", short(&capture.base_point_id)));
    }
    if !capture.full_read_reason.is_empty() {
        parts.push(format!("read in full: {}", printable(&capture.full_read_reason)));
    }
    parts.join("\n")
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
        ("consistency", point.capture.as_ref().map_or(String::new(), |it| with_reason(&it.consistency, &it.reason))),
        ("capture", point.capture.as_ref().map_or(String::new(), capture)),
        ("streams", streams.join("\n")),
    ])
}
