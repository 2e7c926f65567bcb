//! A source that is a standby: does it cancel long backups, and is what it has old?
//!
//! A standby that has not replayed all that it has received may be busy for a moment only, with its newest row from yesterday: it is behind when
//! it has not come to the end of that a second later either. One that receives nothing is known to have lost its primary only when it has
//! streamed before.

use std::time::Duration;

use tokio_postgres::Error;
use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::Reason;

use crate::connection::Session;

/// Enough for a standby that replays at all to get through what it had received before.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// It will cancel a long dump.
pub(super) async fn cancels(session: &Session) -> Result<Option<Finding>, Error> {
    let query = "
        select current_setting('hot_standby_feedback')::bool, current_setting('max_standby_streaming_delay'),
               (select setting::int8 from pg_settings where name = 'max_standby_streaming_delay')";
    let row = session.client().query_one(query, &[]).await?;
    let (feedback, text, delay_ms): (bool, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if feedback || delay_ms < 0 {
        return Ok(None);
    }
    let message = format!(
        "the server is a standby that cancels whoever is in the way of replication for {text} (max_standby_streaming_delay), and does not \
         tell the primary what it still reads (hot_standby_feedback = off): a long backup will be cancelled"
    );
    let fix =
        "-- on the standby, as a superuser:\nALTER SYSTEM SET hot_standby_feedback = on;\nSELECT pg_reload_conf();";
    Ok(Some(Finding::warning(Reason::ReplicaConflict, message).with_fix(fix)))
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
