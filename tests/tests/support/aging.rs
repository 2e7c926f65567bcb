//! Time that has passed, as far as an agent's catalog knows. The agent must not run meanwhile.

use serde_json::Value;

use vaultferry_tests::agent::Agent;

const DAY_US: i64 = 86_400_000_000;

fn catalog(agent: &Agent) -> rusqlite::Connection {
    rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).expect("the catalog opens")
}

/// Makes the catalog believe that all points of all instances are older than they are.
#[track_caller]
pub fn points(agent: &Agent, days: i64) {
    let catalog = catalog(agent);
    let mut points = catalog.prepare("select id, time, body from points").expect("the table");
    let rows =
        points.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)));
    let rows: Vec<_> = rows.expect("rows").collect::<Result<_, _>>().expect("rows");
    assert!(!rows.is_empty());
    for (id, time, body) in rows {
        let time = time - days * DAY_US;
        let mut body: Value = serde_json::from_str(&body).expect("JSON");
        let text = jiff::Timestamp::from_microsecond(time).expect("a time").to_string();
        body["time"] = text.into();
        let sql = "update points set time = ?2, body = ?3 where id = ?1";
        assert_eq!(catalog.execute(sql, (&id, time, body.to_string())).expect("update"), 1);
    }
}

/// Makes the catalog believe that the last runs of retention are an hour older: an agent that is started now counts its first run.
#[track_caller]
pub fn runs(agent: &Agent) {
    catalog(agent).execute("update expiry_clocks set time = time - 3600000000", []).expect("update");
}

/// Makes the catalog believe that retention has not run for so many days, and deletes by the clock of then.
#[track_caller]
#[allow(dead_code)] // each test takes what it needs
pub fn expiry_clocks(agent: &Agent, days: i64) {
    let sql = "update expiry_clocks set time = time - ?1, clock = clock - ?1";
    assert!(catalog(agent).execute(sql, [days * DAY_US]).expect("update") > 0);
}

/// Makes the catalog believe that no slot of any instance was dealt with for so many days.
#[track_caller]
pub fn slots(agent: &Agent, days: i64) {
    let then = jiff::Timestamp::now().as_microsecond() - days * DAY_US;
    let sql = "insert or replace into slots(instance_id, slot) select id, ?1 from instances";
    let catalog = catalog(agent);
    assert!(catalog.execute(sql, [then]).expect("update") > 0);
    // What was started for slots before was for other slots.
    catalog.execute("update jobs set request_id = null where request_id like 'slot:%'", []).expect("update");
}

/// Makes the catalog believe that a job is older than it is.
#[track_caller]
#[allow(dead_code)] // each test takes what it needs
pub fn job(agent: &Agent, id: &str, days: i64) {
    let sql = "update jobs set create_time = create_time - ?2 where id = ?1";
    assert_eq!(catalog(agent).execute(sql, (id, days * DAY_US)).expect("update"), 1);
}
