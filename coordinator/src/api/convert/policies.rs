//! Simulations and changes of policies as wire messages.

use vaultferry_proto::control::v1 as wire;

use super::time;
use crate::policy::{Effect, Preview, Stay, Store, Timeline, TimelinePoint};

pub(in crate::api) fn simulation(timeline: Timeline) -> wire::Simulation {
    let stay = |stay: Stay| wire::Stay {
        store: match stay.store {
            Store::Vault => "vault".to_owned(),
            Store::Archive => "archive".to_owned(),
        },
        from_time: Some(time(stay.from)),
        until_time: stay.until.map(time),
    };
    let point = |point: TimelinePoint| wire::SimulatedPoint {
        id: point.id.unwrap_or_default(),
        create_time: Some(time(point.time)),
        rule: point.rule,
        stays: point.stays.into_iter().map(stay).collect(),
    };
    wire::Simulation {
        policy: timeline.policy,
        time_zone: timeline.time_zone,
        from_time: Some(time(timeline.from)),
        to_time: Some(time(timeline.to)),
        rules: timeline.rules,
        points: timeline.points.into_iter().map(point).collect(),
    }
}

/// `most`: points that are named; the figures count all.
pub(in crate::api) fn instance_change(id: &str, name: &str, preview: &Preview, most: usize) -> wire::InstanceChange {
    let figures = preview.figures();
    let changed = preview.changes.iter().filter_map(|change| {
        let effect = match change.effect {
            Effect::Same => return None,
            Effect::Longer => "longer",
            Effect::Moved => "moved",
            Effect::Shorter => "shorter",
            Effect::Deleted => "expires",
        };
        Some(wire::PointChange {
            id: change.point.clone(),
            create_time: Some(time(change.time)),
            rule: change.rule.clone(),
            new_rule: change.new_rule.clone(),
            expire_time: Some(time(change.before)),
            new_expire_time: Some(time(change.after)),
            effect: effect.to_owned(),
        })
    });
    wire::InstanceChange {
        instance_id: id.to_owned(),
        instance_name: name.to_owned(),
        points_same: figures.same,
        points_longer: figures.longer,
        points_moved: figures.moved,
        points_shorter: figures.shorter,
        points_expiring: figures.expiring,
        points: changed.take(most).collect(),
    }
}
