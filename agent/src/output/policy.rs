//! Simulations and changes of policies as text for people.

use jiff::Timestamp;
use vaultferry_coordinator::policy::{Stay, Store, Timeline, TimelinePoint};
use vaultferry_proto::control::v1::{
    self as wire, ChangePolicyResponse, InstanceChange, PointChange, UpdatePolicyResponse,
};

use super::table::{fields, printable, table};
use super::text::{schedule, short};
use super::units::{instant, time};

/// Points that are printed for people; JSON has more of them.
const PRINTED_POINTS: usize = 50;

/// Tables and a timeline. The agent tells the points; what they look like is the coordinator's own text.
pub fn simulation(simulation: Option<&wire::Simulation>) -> String {
    simulation.and_then(timeline).map(|timeline| printable(&timeline.text()).into_owned()).unwrap_or_default()
}

/// `None` when a time is missing or out of range, which no agent sends.
fn timeline(simulation: &wire::Simulation) -> Option<Timeline> {
    Some(Timeline {
        policy: simulation.policy.clone(),
        time_zone: simulation.time_zone.clone(),
        from: at(simulation.from_time.as_ref())?,
        to: at(simulation.to_time.as_ref())?,
        rules: simulation.rules.clone(),
        points: simulation.points.iter().map(point).collect::<Option<_>>()?,
    })
}

fn point(point: &wire::SimulatedPoint) -> Option<TimelinePoint> {
    let id = Some(point.id.clone()).filter(|id| !id.is_empty());
    let stays = point.stays.iter().filter_map(stay).collect();
    Some(TimelinePoint { id, time: at(point.create_time.as_ref())?, rule: point.rule.clone(), stays })
}

/// `None` for a store that this program does not know.
fn stay(stay: &wire::Stay) -> Option<Stay> {
    let store = match stay.store.as_str() {
        "vault" => Store::Vault,
        "archive" => Store::Archive,
        _ => return None,
    };
    Some(Stay { store, from: at(stay.from_time.as_ref())?, until: at(stay.until_time.as_ref()) })
}

fn at(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(instant)
}

/// What a change of a policy does, or has done, to the instances that follow it.
pub fn change(response: &UpdatePolicyResponse) -> String {
    let (Some(policy), Some(previous)) = (&response.policy, &response.previous) else { return String::new() };
    if policy.version == previous.version {
        return format!("The policy {} is the same already: version {}.", policy.name, policy.version);
    }
    let head = match response.preview {
        true => "This is a preview: nothing was changed.",
        false => "The policy is changed.",
    };
    let versions = format!("{} -> {}", previous.version, policy.version);
    let next_run = policy.schedule.as_ref().and_then(|schedule| schedule.next_run_time.as_ref());
    let schedules = match (schedule(previous), schedule(policy)) {
        (before, after) if before == after => after,
        (before, after) => format!("{before} -> {after}"),
    };
    let lines = fields(&[
        ("name", policy.name.clone()),
        ("version", versions),
        ("schedule", schedules),
        ("next run", time(next_run)),
    ]);
    let mut text = format!("{head}\n\n{lines}\n\n{}", instances(&response.instances));
    let points = points(&response.instances);
    if !points.is_empty() {
        text.push_str("\n\n");
        text.push_str(&points);
    }
    if response.needs_confirmation && response.preview {
        text.push_str("\n\nPoints are kept shorter: without a terminal to ask at, the change needs --yes.");
    }
    text
}

/// What linking another policy to an instance does, or did, to its points.
pub fn link(response: &ChangePolicyResponse) -> String {
    let instance = response.instance.clone().unwrap_or_default();
    let head = match response.preview {
        true => format!("A preview: nothing was changed, {} still follows {}.", instance.name, instance.policy),
        false => format!("{} follows the policy {}.", instance.name, instance.policy),
    };
    let changes: Vec<InstanceChange> = response.change.iter().cloned().collect();
    let mut text = format!("{head}\n\n{}", instances(&changes));
    let points = points(&changes);
    if !points.is_empty() {
        text.push_str("\n\n");
        text.push_str(&points);
    }
    if response.needs_confirmation && response.preview {
        text.push_str("\n\nPoints are kept shorter: without a terminal to ask at, the change needs --yes.");
    }
    text
}

fn instances(instances: &[InstanceChange]) -> String {
    let row = |instance: &InstanceChange| {
        [
            instance.instance_name.clone(),
            instance.points_same.to_string(),
            instance.points_longer.to_string(),
            instance.points_moved.to_string(),
            instance.points_shorter.to_string(),
            instance.points_expiring.to_string(),
        ]
    };
    let rows: Vec<[String; 6]> = instances.iter().map(row).collect();
    let headings = ["INSTANCE", "AS BEFORE", "LONGER", "TO ARCHIVE", "SHORTER", "OVER AT ONCE"];
    table(headings, &rows, "No instance is linked to it.")
}

/// Point by point; empty when every point is kept as before.
fn points(instances: &[InstanceChange]) -> String {
    let all = || instances.iter().flat_map(|instance| instance.points.iter().map(move |point| (instance, point)));
    let row = |(instance, point): (&InstanceChange, &PointChange)| {
        let rule = match point.rule == point.new_rule {
            true => point.rule.clone(),
            false => format!("{} -> {}", point.rule, point.new_rule),
        };
        [
            instance.instance_name.clone(),
            short(&point.id),
            time(point.create_time.as_ref()),
            rule,
            time(point.expire_time.as_ref()),
            time(point.new_expire_time.as_ref()),
            point.effect.clone(),
        ]
    };
    let rows: Vec<[String; 7]> = all().take(PRINTED_POINTS).map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let changed = |instance: &InstanceChange| {
        instance.points_longer + instance.points_moved + instance.points_shorter + instance.points_expiring
    };
    let more = instances.iter().map(changed).sum::<u64>().saturating_sub(rows.len() as u64);
    let headings = ["INSTANCE", "POINT", "CREATED", "RULE", "KEPT UNTIL", "THEN UNTIL", "EFFECT"];
    let table = table(headings, &rows, "");
    if more == 0 { table } else { format!("{table}\nand {more} more; --output json names up to 10,000") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn policy(version: u32, at: &str) -> wire::Policy {
        let schedule = wire::Schedule { every: "day".to_owned(), at: vec![at.to_owned()], ..wire::Schedule::default() };
        wire::Policy { name: "nightly".to_owned(), version, schedule: Some(schedule), ..wire::Policy::default() }
    }

    #[test]
    fn a_change_is_told_by_instance_and_by_point() {
        let point = |number: u64| PointChange {
            id: format!("{number:064x}"),
            rule: "Weekly".to_owned(),
            new_rule: "Default".to_owned(),
            effect: "shorter".to_owned(),
            ..PointChange::default()
        };
        let shop = InstanceChange {
            instance_name: "shop".to_owned(),
            points_same: 7,
            points_shorter: 60,
            points: (0..60).map(point).collect(),
            ..InstanceChange::default()
        };
        let response = UpdatePolicyResponse {
            policy: Some(policy(3, "03:00")),
            previous: Some(policy(2, "02:00")),
            instances: vec![shop],
            needs_confirmation: true,
            preview: true,
        };
        let text = change(&response);
        for part in [
            "nothing was changed",
            "2 -> 3",
            "every day at 02:00 -> every day at 03:00",
            "OVER AT ONCE",
            "Weekly -> Default",
            "and 10 more",
            "--yes",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let same = UpdatePolicyResponse { previous: response.policy.clone(), ..response.clone() };
        assert_eq!(change(&same), "The policy nightly is the same already: version 3.");
        let done = UpdatePolicyResponse { preview: false, instances: Vec::new(), ..response };
        assert!(change(&done).contains("is changed") && change(&done).contains("No instance is linked"));
    }

    #[test]
    fn a_simulation_is_the_coordinators_text() {
        let stay = |store: &str, until: Option<prost_types::Timestamp>| wire::Stay {
            store: store.to_owned(),
            from_time: second(0),
            until_time: until,
        };
        let points = vec![wire::SimulatedPoint {
            id: "ab".repeat(32),
            create_time: second(0),
            rule: "Default".to_owned(),
            stays: vec![stay("vault", None), stay("cellar", None)],
        }];
        let told = wire::Simulation {
            policy: "nightly".to_owned(),
            time_zone: "UTC".to_owned(),
            from_time: second(0),
            to_time: second(86_400 * 30),
            rules: vec!["Default".to_owned()],
            points,
        };
        let text = simulation(Some(&told));
        for part in ["Policy nightly, from 1970-01-01 to 1970-01-31 (UTC)", "abababababababab  1970-01-01", "open"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(simulation(Some(&wire::Simulation { from_time: None, ..told })), "");
    }
}
