use vaultferry_vault::Id;

use super::*;
use crate::catalog::Standing;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn point(standing: Standing) -> Point {
    Point {
        id: Id::of(b"p"),
        instance_id: "i".to_owned(),
        job_id: "j".to_owned(),
        time: time(10),
        rule: "Default".to_owned(),
        policy: "nightly".to_owned(),
        policy_version: 1,
        slot: None,
        keep_until: Some(time(99)),
        streams: Vec::new(),
        source_bytes: 0,
        stored_bytes: 0,
        standing,
    }
}

/// A kill may come between a copy's snapshot file and its event: the vault store must not be emptied on the word of a file alone, and the
/// repeated job writes the event.
#[test]
fn a_copy_counts_when_it_is_recorded_or_all_there_is() {
    for (in_vault, in_archive, archived_time, expected) in [
        (true, false, None, None),
        // Recorded, and deleted since.
        (true, false, Some(time(50)), None),
        (true, true, None, None),
        (true, true, Some(time(50)), Some(time(50))),
        (false, true, Some(time(50)), Some(time(50))),
        (false, true, None, Some(time(10))),
    ] {
        let standing = Standing { in_vault, in_archive, archived_time, ..Standing::default() };
        let fact = fact(&point(standing));
        assert_eq!(fact.stores, Stores { vault: in_vault, archived: expected }, "{in_vault} {in_archive} {archived_time:?}");
        assert_eq!(fact.keep_until, Some(time(99)));
    }
}
