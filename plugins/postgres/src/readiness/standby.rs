//! A source that is a standby: does it cancel backups as long as this one's, and is what it has old?
//!
//! Whether it will is an estimate: how long a backup of this database takes, against how long the standby lets it stand in the way. A short one,
//! or one of which the primary knows, is not worth a word.
//!
//! A standby that has not replayed all that it has received may be busy for a moment only, with its newest row from yesterday: it is behind when
//! it has not come to the end of that a second later either. One that receives nothing is known to have lost its primary only when it has
//! streamed before.

use std::time::Duration;

use tokio_postgres::Error;
use vaultferry_plugin_sdk::Finding;
use vaultferry_plugin_sdk::workload::FormerBackup;
use vaultferry_proto::Reason;

use super::Asker;
use super::managed::{Counts, Managed, Place};
use crate::connection::Session;

/// Enough for a standby that replays at all to get through what it had received before.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The rate of a dump of which nothing is known, as in `docs/postgres.md`: what one process of pg_dump reads from a common disk.
const ASSUMED_BYTES_PER_S: u64 = 30_000_000;

/// An estimate may be so many times too short: a day with more load, a table that has grown.
const MARGIN: u32 = 2;

/// How long a backup may hold its snapshot, and how that is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    held: Duration,
    /// "the last backup held its snapshot for 2 h 5 min"
    how: String,
}

impl Expected {
    /// Of a database of `size` bytes: as long as the last backup took, else its size at a limit of ours or at a common rate.
    pub(super) fn of(size: u64, former: Option<FormerBackup>, limit_bytes_per_s: Option<u64>) -> Self {
        if let Some(former) = former.filter(|former| !former.snapshot_held.is_zero()) {
            let how = format!("the last backup held its snapshot for {}", words(former.snapshot_held));
            return Self { held: former.snapshot_held, how };
        }
        let rate = limit_bytes_per_s.map_or(ASSUMED_BYTES_PER_S, |limit| limit.clamp(1, ASSUMED_BYTES_PER_S));
        let held = Duration::from_secs(size / rate);
        let (megabytes, rate) = (size / 1_000_000, rate as f64 / 1e6);
        Self { held, how: format!("{megabytes} MB take about {} at {rate:.1} MB/s", words(held)) }
    }
}

/// "45 s", "12 min", "3 h 20 min"
fn words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// What a standby does with queries that are in the way of replication.
#[derive(Debug, Clone, PartialEq)]
struct Patience {
    /// It receives from its primary now, and not from an archive.
    streams: bool,
    /// `hot_standby_feedback`
    feedback: bool,
    /// `wal_receiver_status_interval`; at 0 nothing is told.
    interval_s: i64,
    /// `max_standby_streaming_delay`; negative: for ever.
    streaming_ms: i64,
    /// `max_standby_archive_delay`; negative: for ever.
    archive_ms: i64,
}

/// It will cancel a dump that takes as long as this one is expected to.
pub(super) async fn cancels(session: &Session, asker: &Asker, expected: &Expected) -> Result<Option<Finding>, Error> {
    let query = "
        select exists (select from pg_stat_wal_receiver) as streams, current_setting('hot_standby_feedback')::bool as feedback,
               (select setting::int8 from pg_settings where name = 'wal_receiver_status_interval') as interval_s,
               (select setting::int8 from pg_settings where name = 'max_standby_streaming_delay') as streaming_ms,
               (select setting::int8 from pg_settings where name = 'max_standby_archive_delay') as archive_ms";
    let row = session.client().query_one(query, &[]).await?;
    let patience = Patience {
        streams: row.try_get("streams")?,
        feedback: row.try_get("feedback")?,
        interval_s: row.try_get("interval_s")?,
        streaming_ms: row.try_get("streaming_ms")?,
        archive_ms: row.try_get("archive_ms")?,
    };
    Ok(too_short(&patience, asker.managed, &asker.host, expected))
}

fn too_short(patience: &Patience, managed: Managed, host: &str, expected: &Expected) -> Option<Finding> {
    let Patience { streams, feedback, interval_s, .. } = *patience;
    // Aurora's readers receive nothing: they have the storage in common with their writer, and one setting.
    let streams = streams || managed == Managed::Amazon;
    let (setting, delay_ms) = match streams {
        true => ("max_standby_streaming_delay", patience.streaming_ms),
        false => ("max_standby_archive_delay", patience.archive_ms),
    };
    // A negative one waits for ever.
    let delay = Duration::from_millis(u64::try_from(delay_ms).ok()?);
    let is_told = streams && feedback && interval_s > 0;
    let needed = expected.held.saturating_mul(MARGIN);
    // Without any patience even the shortest dump is cancelled.
    if is_told || (needed <= delay && !delay.is_zero()) {
        return None;
    }
    let why = match (streams, feedback) {
        (false, _) => "reads from an archive, so that its primary does not know what is read here",
        (true, false) => "does not tell its primary what is read here (hot_standby_feedback = off)",
        (true, true) => "does not tell its primary what is read here (wal_receiver_status_interval = 0)",
    };
    let message = format!(
        "the server is a standby that cancels whoever is in the way of replication for {} ({setting}), and {why}; a backup that reads for \
         longer will be cancelled: {}",
        words(delay),
        expected.how
    );
    // As long as a backup may take; what is beyond PostgreSQL's own limit is for ever. It lags behind meanwhile.
    let enough = i32::try_from(needed.as_millis()).map_or(-1, |enough| enough.max(60_000));
    let waits = [(setting, enough.to_string())];
    let wait = managed.set(host, &waits, Place::Standby, Counts::AtOnce);
    let fix = match streams {
        false => wait,
        true => {
            let mut tells = Vec::new();
            if !feedback {
                tells.push(("hot_standby_feedback", "on".to_owned()));
            }
            if interval_s <= 0 {
                tells.push(("wal_receiver_status_interval", "10".to_owned()));
            }
            let tell = managed.set(host, &tells, Place::Standby, Counts::AtOnce);
            let mark = if managed == Managed::Nobody { "--" } else { "#" };
            format!("{tell}\n{mark} or, at a standby that may lag behind: {setting} = {enough}")
        }
    };
    Some(Finding::warning(Reason::ReplicaConflict, message).with_fix(fix))
}

/// How a standby follows its primary.
#[derive(Debug, Clone, PartialEq)]
struct Following {
    /// Where that ends which it has received and not replayed; `None`: it has replayed all.
    to_replay: Option<String>,
    /// It has streamed, and does not now.
    lost: bool,
    paused: bool,
    /// The age of the last transaction that it replayed, in seconds; 0 when it has replayed none.
    age_s: f64,
}

/// What it has is older than `lag`.
pub(super) async fn is_behind(session: &Session, lag: Duration) -> Result<Option<Finding>, Error> {
    let query = "
        select case when pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() then pg_last_wal_receive_lsn()::text end as to_replay,
               pg_last_wal_receive_lsn() is not null and not exists (select from pg_stat_wal_receiver) as lost,
               pg_is_wal_replay_paused() as paused,
               coalesce(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::float8 as age";
    let row = session.client().query_one(query, &[]).await?;
    let following = Following {
        to_replay: row.try_get("to_replay")?,
        lost: row.try_get("lost")?,
        paused: row.try_get("paused")?,
        age_s: row.try_get("age")?,
    };
    if following.age_s <= lag.as_secs_f64() {
        return Ok(None);
    }
    if let (Some(to_replay), false) = (&following.to_replay, following.lost) {
        tokio::time::sleep(SECOND_LOOK).await;
        let query = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        if session.client().query_one(query, &[to_replay]).await?.try_get(0)? {
            return Ok(None);
        }
    }
    Ok(finding(&following))
}

fn finding(following: &Following) -> Option<Finding> {
    let Following { to_replay, lost, paused, age_s } = following;
    let (why, fix) = match (lost, paused, to_replay) {
        (true, _, _) => (
            "receives nothing from its primary",
            "-- on the primary, as a superuser (the standby's log says why it is not connected):\n\
             SELECT application_name, state, sent_lsn, replay_lsn FROM pg_stat_replication;",
        ),
        (false, true, Some(_)) => {
            ("has paused its replay", "-- on the standby, as a superuser:\nSELECT pg_wal_replay_resume();")
        }
        (false, false, Some(_)) => (
            "has not replayed all that it has received",
            "-- on the primary, as a superuser:\n\
             SELECT application_name, state, sent_lsn, replay_lsn, replay_lag FROM pg_stat_replication;",
        ),
        (false, _, None) => return None,
    };
    let message = format!(
        "the server is a standby that {why}; the last transaction that it has is {age_s:.0} s old, and a backup is as old as that"
    );
    Some(Finding::warning(Reason::ReplicaBehind, message).with_fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience { streams: true, feedback: false, interval_s: 10, streaming_ms: 30_000, archive_ms: 30_000 }
    }

    #[test]
    fn a_standby_is_told_of_only_when_a_backup_will_not_come_to_its_end() {
        let told = |patience: &Patience, held_s| {
            let expected = Expected { held: Duration::from_secs(held_s), how: "so".to_owned() };
            too_short(patience, Managed::Nobody, "h", &expected)
        };
        // 30 s are enough for 15 s, with the margin; more is not.
        assert_eq!(told(&patience(), 15), None);
        let found = told(&patience(), 16).unwrap();
        assert!(!found.blocking && found.message.contains("for 30 s (max_standby_streaming_delay)"), "{found:?}");
        assert_eq!(
            found.fix,
            "-- on the standby, as a superuser:\nALTER SYSTEM SET hot_standby_feedback = on;\nSELECT pg_reload_conf();\n\
             -- or, at a standby that may lag behind: max_standby_streaming_delay = 60000"
        );
        // Without patience every backup is cancelled, and with any of these none is.
        assert!(told(&Patience { streaming_ms: 0, ..patience() }, 0).is_some());
        for good in [
            Patience { feedback: true, ..patience() },
            Patience { streaming_ms: -1, ..patience() },
            Patience { streams: false, archive_ms: -1, ..patience() },
        ] {
            assert_eq!(told(&good, 36_000), None, "{good:?}");
        }
        // Aurora has no receiver, and one setting.
        let expected = Expected { held: Duration::from_secs(36_000), how: "so".to_owned() };
        let reader = Patience { streams: false, streaming_ms: 14_000, ..patience() };
        let reader = too_short(&reader, Managed::Amazon, "h", &expected).unwrap();
        assert!(reader.message.contains("for 14 s (max_standby_streaming_delay)"), "{reader:?}");
        assert!(
            reader.fix.contains("aws rds") && reader.fix.contains("max_standby_streaming_delay = 72000000"),
            "{reader:?}"
        );
        // Feedback that nobody sends, or that nobody receives, is none.
        let silent = told(&Patience { feedback: true, interval_s: 0, ..patience() }, 36_000).unwrap();
        assert!(silent.fix.contains("SET wal_receiver_status_interval = 10;"), "{silent:?}");
        assert!(!silent.fix.contains("hot_standby_feedback"), "{silent:?}");
        let archive = told(&Patience { feedback: true, streams: false, ..patience() }, 36_000).unwrap();
        assert!(archive.fix.contains("SET max_standby_archive_delay = 72000000;"), "{archive:?}");
        // PostgreSQL counts these up to 24 days.
        let long = told(&Patience { streams: false, ..patience() }, 20 * 86_400).unwrap();
        assert!(long.fix.contains("SET max_standby_archive_delay = -1;"), "{long:?}");
    }

    #[test]
    fn a_backup_takes_as_long_as_the_last_one_or_as_its_size_says() {
        let size = 432_000_000_000;
        let assumed = Expected::of(size, None, None);
        assert_eq!(assumed.held, Duration::from_secs(14_400));
        assert!(assumed.how.contains("about 4 h 0 min at 30.0 MB/s"), "{assumed:?}");
        assert_eq!(Expected::of(size, None, Some(15_000_000)).held, Duration::from_secs(28_800));
        assert_eq!(Expected::of(size, None, Some(900_000_000)).held, assumed.held, "a limit makes nothing faster");
        let former = FormerBackup { source_bytes: 1, snapshot_held: Duration::from_secs(600) };
        let measured = Expected::of(size, Some(former), None);
        assert_eq!(measured.held, Duration::from_secs(600));
        assert!(measured.how.contains("10 min"), "{measured:?}");
        let untold = FormerBackup { snapshot_held: Duration::ZERO, ..former };
        assert_eq!(Expected::of(size, Some(untold), None), assumed);
    }

    #[test]
    fn an_idle_primary_is_not_behind() {
        let idle = Following { to_replay: None, lost: false, paused: false, age_s: 86_400.0 };
        assert_eq!(finding(&idle), None);
        assert_eq!(finding(&Following { paused: true, ..idle.clone() }), None, "there is nothing to replay");
        let lost = finding(&Following { lost: true, ..idle.clone() }).unwrap();
        assert!(lost.message.contains("receives nothing") && lost.message.contains("86400 s old"), "{lost:?}");
        assert!(!lost.blocking);
        let late = Following { to_replay: Some("0/3000000".to_owned()), ..idle };
        assert!(finding(&late).unwrap().message.contains("has not replayed all"));
        let paused = finding(&Following { paused: true, ..late }).unwrap();
        assert!(paused.fix.ends_with("SELECT pg_wal_replay_resume();"), "{paused:?}");
    }
}
