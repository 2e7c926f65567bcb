//! The dashboard as text for people.

use vaultferry_proto::control::v1::{GetSummaryResponse, InstanceSummary};

use super::table::{fields, table};
use super::text::warnings;
use super::units::{age, size, time};

/// `with_instances`: each of them, too.
pub fn summary(response: &GetSummaryResponse, with_instances: bool) -> String {
    let Some(summary) = &response.summary else { return String::new() };
    let head = fields(&[
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
        ("warnings", warnings(&response.warnings)),
    ]);
    match with_instances {
        true => format!("{head}\n\n{}", instances(&response.instances)),
        false => head,
    }
}

fn instances(instances: &[InstanceSummary]) -> String {
    let row = |instance: &InstanceSummary| {
        let since = |point: &Option<prost_types::Timestamp>, age_s| match point {
            Some(_) => age(age_s),
            None => "never".to_owned(),
        };
        [
            instance.name.clone(),
            instance.protection_state_text.clone(),
            since(&instance.last_good_time, instance.last_good_age_s),
            since(&instance.last_proven_time, instance.last_proven_age_s),
            instance.point_count.to_string(),
            size(instance.stored_bytes),
            format!("+{}", size(instance.stored_bytes_30d)),
            time(instance.next_backup_time.as_ref()),
        ]
    };
    let rows: Vec<[String; 8]> = instances.iter().map(row).collect();
    let headings = ["NAME", "PROTECTION", "LAST GOOD", "LAST PROVEN", "POINTS", "STORED", "IN 30 DAYS", "NEXT BACKUP"];
    table(headings, &rows, "Nothing is protected yet.")
}

#[cfg(test)]
mod tests {
    use vaultferry_proto::control::v1::{Problem, Summary};

    use super::*;

    #[test]
    fn instances_are_told_with_their_ages() {
        let shop = InstanceSummary {
            name: "shop".to_owned(),
            protection_state_text: "Protected".to_owned(),
            last_good_time: Some(prost_types::Timestamp::default()),
            last_good_age_s: 7 * 3600 + 59,
            point_count: 3,
            stored_bytes: 5 << 30,
            stored_bytes_30d: 1 << 20,
            ..InstanceSummary::default()
        };
        let warning =
            Problem { reason: "VaultSpaceLow".to_owned(), message: "little".to_owned(), fix: "more".to_owned() };
        let response = GetSummaryResponse {
            summary: Some(Summary::default()),
            instances: vec![shop],
            warnings: vec![warning],
            ..GetSummaryResponse::default()
        };
        let text = summary(&response, true);
        assert!(text.contains("VaultSpaceLow: little\n                 fix: more"), "{text}");
        let row: Vec<&str> =
            text.lines().last().expect("a row").split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(row, ["shop", "Protected", "7 h", "never", "3", "5.0 GiB", "+1.0 MiB", "-"]);
        assert!(!summary(&response, false).contains("shop"));
    }
}
