//! How a point's event is read: the fields of all kinds side by side, then those of its own kind.
//!
//! That is what serde's `flatten` and `tag` say together, without keeping each record in memory as a tree of values first. The logs of points
//! are most of what is read in a vault, so it is most of what reading costs.

use serde::Deserialize;

use super::{Capture, PointCreated, PointEvent, PointEventKind, PointStream};

/// The names of [`PointEventKind`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Created,
    Abandoned,
    Proven,
    Held,
    Released,
    SoftDeleted,
    Undeleted,
    Purged,
    Archived,
    RemovedFromVault,
}

/// See the module.
#[derive(Debug, Deserialize)]
pub(super) struct AnyEvent {
    version: u32,
    time: jiff::Timestamp,
    event: Kind,
    job_id: Option<String>,
    rule: Option<String>,
    policy: Option<String>,
    policy_version: Option<u32>,
    slot: Option<jiff::Timestamp>,
    keep_until: Option<jiff::Timestamp>,
    streams: Option<Vec<PointStream>>,
    source_bytes: Option<u64>,
    stored_bytes: Option<u64>,
    sealed_snapshot: Option<String>,
    prune_epoch: Option<u64>,
    capture: Option<Capture>,
    note: Option<String>,
    purge_time: Option<jiff::Timestamp>,
}

impl TryFrom<AnyEvent> for PointEvent {
    type Error = String;

    fn try_from(read: AnyEvent) -> Result<Self, String> {
        let (version, time) = (read.version, read.time);
        let event = match read.event {
            Kind::Created => PointEventKind::Created(PointCreated {
                job_id: there("job_id", read.job_id)?,
                rule: there("rule", read.rule)?,
                policy: there("policy", read.policy)?,
                policy_version: there("policy_version", read.policy_version)?,
                slot: read.slot,
                keep_until: read.keep_until,
                streams: there("streams", read.streams)?,
                source_bytes: there("source_bytes", read.source_bytes)?,
                stored_bytes: there("stored_bytes", read.stored_bytes)?,
                sealed_snapshot: read.sealed_snapshot.unwrap_or_default(),
                prune_epoch: read.prune_epoch.unwrap_or_default(),
                capture: read.capture,
            }),
            Kind::Abandoned => PointEventKind::Abandoned,
            Kind::Proven => PointEventKind::Proven { job_id: there("job_id", read.job_id)? },
            Kind::Held => PointEventKind::Held { note: there("note", read.note)? },
            Kind::Released => PointEventKind::Released,
            Kind::SoftDeleted => PointEventKind::SoftDeleted {
                purge_time: there("purge_time", read.purge_time)?,
                sealed_snapshot: there("sealed_snapshot", read.sealed_snapshot)?,
            },
            Kind::Undeleted => PointEventKind::Undeleted,
            Kind::Purged => PointEventKind::Purged,
            Kind::Archived => PointEventKind::Archived { job_id: there("job_id", read.job_id)? },
            Kind::RemovedFromVault => PointEventKind::RemovedFromVault,
        };
        Ok(Self { version, time, event })
    }
}

fn there<T>(name: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("missing field `{name}`"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As the records are described: by serde's own words.
    #[derive(Deserialize)]
    struct Described {
        version: u32,
        time: jiff::Timestamp,
        #[serde(flatten)]
        event: PointEventKind,
    }

    fn events() -> Vec<PointEventKind> {
        let streams = vec![PointStream { name: "database.dump".to_owned(), size: 7, sha256: "ab".repeat(32) }];
        let time = |second: i64| jiff::Timestamp::from_second(second).expect("a time");
        let created = PointCreated {
            job_id: "job".to_owned(),
            rule: "Default".to_owned(),
            policy: "nightly".to_owned(),
            policy_version: 3,
            slot: Some(time(10)),
            keep_until: Some(time(20)),
            streams,
            source_bytes: 7,
            stored_bytes: 5,
            sealed_snapshot: "c2VhbGVk".to_owned(),
            prune_epoch: 4,
            capture: Some(Capture {
                consistency: crate::records::Consistency::FileSystem,
                reason: "frozen".to_owned(),
                provider: "reflink".to_owned(),
                synced_ms: 1,
                freezing_ms: 2,
                frozen_ms: 3,
                read_bytes: 4,
                base: "cd".repeat(32),
                full_read_reason: String::new(),
            }),
        };
        let early = PointCreated {
            slot: None,
            keep_until: None,
            streams: Vec::new(),
            sealed_snapshot: String::new(),
            prune_epoch: 0,
            capture: None,
            ..created.clone()
        };
        vec![
            PointEventKind::Created(created),
            PointEventKind::Created(early),
            PointEventKind::Abandoned,
            PointEventKind::Proven { job_id: "job".to_owned() },
            PointEventKind::Held { note: "audit \"7\"".to_owned() },
            PointEventKind::Released,
            PointEventKind::SoftDeleted { purge_time: time(30), sealed_snapshot: "c2VhbGVk".to_owned() },
            PointEventKind::Undeleted,
            PointEventKind::Purged,
            PointEventKind::Archived { job_id: "job".to_owned() },
            PointEventKind::RemovedFromVault,
        ]
    }

    fn both(record: &Value) -> [Option<PointEvent>; 2] {
        let described = serde_json::from_value::<Described>(record.clone()).ok();
        let described = described.map(|Described { version, time, event }| PointEvent { version, time, event });
        [serde_json::from_value::<PointEvent>(record.clone()).ok(), described]
    }

    #[test]
    fn every_kind_of_event_is_read_as_it_was_described_with_any_field_missing_or_more() {
        for event in events() {
            let event = PointEvent { version: 1, time: jiff::Timestamp::UNIX_EPOCH, event };
            let record = serde_json::to_value(&event).expect("a record");
            assert_eq!(both(&record), [Some(event.clone()), Some(event)]);
            let names: Vec<String> = record.as_object().expect("an object").keys().cloned().collect();
            for name in &names {
                let mut less = record.clone();
                less.as_object_mut().expect("an object").remove(name);
                let [read, described] = both(&less);
                assert_eq!(read, described, "{less}");
                let mut other = record.clone();
                other[name] = json!([1]);
                let [read, described] = both(&other);
                assert_eq!(read, described, "{other}");
            }
            let mut more = record.clone();
            more["later"] = json!({ "field": [1, 2] });
            let [read, described] = both(&more);
            assert_eq!(read, described, "{more}");
            assert!(read.is_some(), "fields of later versions are passed over");
            more["event"] = json!("of a later version");
            assert_eq!(both(&more), [None, None]);
        }
    }
}
