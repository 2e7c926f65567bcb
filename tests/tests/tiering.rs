//! Points go to the archive store when their policy says so, are restored from there, and end there; a kill on the way leaves them whole.
//! Points that were made with an end of their own stay where they are until then.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply, Setup};
use vaultferry_tests::compare::{Contents, assert_equal, contents};
use vaultferry_tests::folder::bytes_below;
use vaultferry_tests::postgres::Server;
use vaultferry_tests::process::{self, Seen};
use vaultferry_tests::{binary, policy, sample, wait_for};

/// How long a process may outlive the one that it works for.
const PATIENCE: Duration = Duration::from_secs(20);
/// A lease of a killed prune ends after a minute.
const LIMIT: Duration = Duration::from_secs(150);
const DAY_US: i64 = 86_400_000_000;

const RULES: &str = "[[rule]]\nname = \"Default\"\nvault = \"P7D\"\narchive = \"P6M\"\ntiering = \"on-expiry\"\n\
                     [[rule]]\nname = \"Both\"\nfirst_of = \"year\"\nvault = \"P7D\"\narchive = \"P1Y\"\ntiering = \"immediate\"\n";

/// A database, protected as `shop` in a folder vault by a policy with an archive.
struct World {
    agent: Agent,
    server: Server,
    instance: String,
}

impl World {
    fn new(megabytes: u32) -> Self {
        let server = Server::start();
        sample::random(&server, "shop", megabytes);
        let agent = Setup::new().start();
        let quiet = policy::quiet("tiered");
        let (schedule, _) = quiet.split_once("[[rule]]").expect("a policy has rules");
        let file = agent.write("tiered.toml", &format!("{schedule}{RULES}")).display().to_string();
        agent.cli(&["policy", "create", "-f", &file]).success();
        let (source, passfile) = (server.uri("shop"), server.passfile().display().to_string());
        let words = ["instance", "create", "--source", &source, "--policy", "tiered", "--passfile", &passfile];
        let json = agent.cli_json(&words).success().json();
        let instance = json["instances"][0]["id"].as_str().expect("an id").to_owned();
        Self { agent, server, instance }
    }

    fn store(&self) -> PathBuf {
        self.agent.state_dir().join("vault/instances").join(&self.instance)
    }

    /// A backup of rows that are all new. What it holds, and its point.
    fn backup(&self, words: &[&str]) -> (Contents, String) {
        self.server.psql("shop", "update bulk set content = gen_random_bytes(1024) || gen_random_bytes(1024)");
        let held = contents(&self.server, "shop");
        let job = self.run(&[&["backup", "shop", "--wait"][..], words].concat()).success().job().completed();
        (held, job.point_id().to_owned())
    }

    fn run(&self, words: &[&str]) -> Reply {
        self.agent.cli_json(words)
    }

    fn point(&self, id: &str) -> Value {
        self.run(&["point", "show", "shop", id]).success().json()["point"].clone()
    }

    /// Whether it is in the vault store, and in the archive store.
    fn stores(&self, id: &str) -> (bool, bool) {
        let point = self.point(id);
        (point["in_vault"] == true, point["in_archive"] == true)
    }

    fn wait_stores(&self, id: &str, stores: (bool, bool)) {
        wait_for(&format!("{id} to be in {stores:?}"), LIMIT, || (self.stores(id) == stores).then_some(()));
    }

    /// Newest first.
    fn jobs(&self, operation: &str) -> Vec<Value> {
        let listed = self.run(&["job", "list", "--operation", operation]).success().json();
        listed["jobs"].as_array().cloned().unwrap_or_default()
    }

    fn wait_completed(&self, operation: &str, count: usize) {
        let all = || self.jobs(operation).iter().filter(|job| job["status"] == "Completed").count() == count;
        wait_for(&format!("{count} jobs {operation}"), LIMIT, || all().then_some(()));
    }

    fn restores_equal(&self, expected: &Contents, point: &str) {
        self.agent.restore("shop", point, &self.server, "back");
        assert_equal(expected, &contents(&self.server, "back"));
        self.server.psql("postgres", "drop database back");
    }

    /// Changes what the catalog says of a point, while no agent runs.
    fn edit(&self, id: &str, change: impl Fn(&mut Value)) {
        let catalog = rusqlite::Connection::open(self.agent.state_dir().join("catalog.sqlite")).expect("opens");
        let row = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let body = catalog.query_row("select body from points where id = ?1", [id], row).expect("the point");
        let mut body: Value = serde_json::from_str(&body).expect("JSON");
        change(&mut body);
        let time = time_of(&body["time"]).as_microsecond();
        let sql = "update points set time = ?2, body = ?3 where id = ?1";
        assert_eq!(catalog.execute(sql, (id, time, body.to_string())).expect("update"), 1);
    }

    /// The last run of retention is an hour ago, so that the next start's counts.
    fn an_hour_passes(&self) {
        let catalog = rusqlite::Connection::open(self.agent.state_dir().join("catalog.sqlite")).expect("opens");
        catalog.execute("update expiry_clocks set time = time - 3600000000", []).expect("update");
    }

    /// Restarts the agent, which then believes that these points, and their copies, are so many days older.
    fn age(&mut self, ids: &[&str], days: i64) {
        self.agent.terminate();
        self.make_older(ids, days);
        self.agent.start();
    }

    fn make_older(&self, ids: &[&str], days: i64) {
        self.an_hour_passes();
        for id in ids {
            self.edit(id, |body| {
                body["time"] = older(&body["time"], days);
                let copied = body["standing"]["archived_time"].clone();
                if copied.is_string() {
                    body["standing"]["archived_time"] = older(&copied, days);
                }
            });
        }
    }

    /// What names, sizes and records of the whole vault say, without agent and key.
    fn is_undamaged(&self) {
        let mut command = Command::new(binary());
        command.args(["vault", "check", "--keyless", "--offline", "--location"]);
        command.arg(self.agent.state_dir().join("vault")).env_clear();
        let output = process::run(&mut command, b"", Duration::from_secs(120));
        assert_eq!(output.code, 0, "{}\n{}", output.text(), output.stderr);
    }
}

fn time_of(value: &Value) -> jiff::Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}

fn older(time: &Value, days: i64) -> Value {
    let time = time_of(time).as_microsecond() - days * DAY_US;
    jiff::Timestamp::from_microsecond(time).expect("a time").to_string().into()
}

#[test]
fn points_move_by_their_policy_and_are_restored_and_end_there() {
    let mut world = World::new(4);
    let (held_moved, moved) = world.backup(&[]);
    let (held_both, both) = world.backup(&["--rule", "Both"]);
    let (_, newest) = world.backup(&[]);
    let shown = world.point(&moved);
    // Seven days, and six months from then on: the vault's time, the archive's, and the sum of them.
    assert!(shown["vault_until_time"].is_string(), "{shown:#}");
    assert_eq!(shown["archive_from_time"], shown["vault_until_time"], "{shown:#}");
    assert_eq!(shown["archive_until_time"], shown["expire_time"], "{shown:#}");
    assert!(time_of(&shown["vault_until_time"]) < time_of(&shown["expire_time"]), "{shown:#}");

    // At once, and not with the next hourly run.
    world.wait_stores(&both, (true, true));
    assert_eq!(world.jobs("Tier").len(), 1, "the others are not due");
    let data = world.store().join("repo/data");
    let before = bytes_below(&data);
    world.age(&[&moved, &both], 8);
    world.wait_stores(&moved, (false, true));
    world.wait_stores(&both, (false, true));
    world.wait_completed("Tier", 3);
    assert!(world.jobs("Tier").iter().all(|job| job["scheduled"] == true));
    assert_eq!(world.stores(&newest), (true, false));
    for point in [&moved, &both] {
        assert!(!world.store().join("repo/snapshots").join(point).exists());
        assert!(world.store().join("archive/repo/snapshots").join(point).exists());
        assert_eq!(world.point(point)["state"], "Archived");
    }
    // Text says where and until when, too.
    let text = world.agent.cli(&["point", "show", "shop", &moved]).success().stdout;
    assert!(text.contains("archive since ") && !text.contains("vault until"), "{text}");
    let list = world.agent.cli(&["point", "list", "shop"]).success().stdout;
    assert!(list.lines().any(|line| line.starts_with(&newest[..16]) && line.contains("vault until ")), "{list}");

    // What only they needed goes from the vault store: the agent's prune marks it, the next one deletes it.
    world.wait_completed("Prune", 1);
    world.run(&["vault", "prune", "shop", "--wait"]).success();
    let after = bytes_below(&data);
    assert!(after * 2 < before, "{before} bytes before, {after} after");
    world.run(&["vault", "check", "shop", "--read-data", "--wait"]).success();
    world.restores_equal(&held_moved, &moved);
    world.restores_equal(&held_both, &both);

    // A catalog that was lost knows it again.
    let told = |world: &World| {
        [&moved, &both].map(|id| {
            let point = world.point(id);
            (point["in_vault"].clone(), point["in_archive"].clone(), point["archive_from_time"].clone())
        })
    };
    let known = told(&world);
    assert!(known[0].2.is_string(), "{known:?}");
    world.agent.terminate();
    world.agent.offline(&["vault", "rebuild-catalog"], b"").success();
    world.agent.start();
    assert_eq!(told(&world), known);
    world.agent.restart();
    assert_eq!(told(&world), known);
    assert!(world.jobs("Tier").is_empty(), "nothing is due again");

    // Its time in the archive ends, too; and it comes back to where it was.
    world.age(&[&moved], 4000);
    world.wait_completed("DeletePoint", 1);
    let deleted = world.run(&["point", "list", "shop", "--deleted"]).success().json();
    assert_eq!(deleted["points"][0]["id"], moved, "{deleted:#}");
    world.run(&["point", "undelete", "shop", &moved, "--wait"]).success();
    assert_eq!(world.stores(&moved), (false, true));
    world.restores_equal(&held_moved, &moved);
}

/// The plugin, the agent, or both are killed at some moment of a move, and right behind it.
#[test]
fn a_killed_move_leaves_the_point_whole_and_is_ended_by_the_next_life() {
    let mut world = World::new(6);
    for text in ["nterrupted", "PluginCrashed", "maintenance lease", "waiting for the", "job failed"] {
        world.agent.expect_log(text);
    }
    for round in 0..6_u64 {
        let (held, point) = world.backup(&[]);
        world.agent.terminate();
        world.make_older(&[&point], 8);
        let behind = round == 0;
        if behind {
            world.agent.set_env("VAULTFERRY_TEST_PAUSE_AT", "maintained");
        }
        world.agent.start();
        let job = wait_for("the move", LIMIT, || {
            world.jobs("Tier").into_iter().find(|job| job["point_id"] == point.as_str())
        });
        if behind {
            world.agent.wait_paused("maintained");
            // It has happened in the vault, and the catalog does not know.
            assert_eq!(world.stores(&point), (true, false));
        } else {
            std::thread::sleep(Duration::from_millis(round * 70));
        }
        let before = world.agent.tree();
        match round % 3 {
            0 => world.agent.kill9_all(),
            1 => world.agent.kill9(),
            _ => world.agent.plugins().iter().for_each(Seen::kill9),
        }
        if round % 3 == 2 {
            // The agent lives: its next life is the one that tries again.
            world.agent.wait_job_end(job["id"].as_str().expect("an id"));
            world.agent.terminate();
        } else {
            process::wait_gone(&before, PATIENCE);
        }
        let places = ["repo/snapshots", "archive/repo/snapshots"].map(|place| world.store().join(place).join(&point));
        assert!(places.iter().any(|place| place.exists()), "round {round}: it is in no store");
        world.is_undamaged();
        if behind {
            assert!(!places[0].exists() && places[1].exists());
            world.agent.clear_pause("maintained");
            world.agent.unset_env("VAULTFERRY_TEST_PAUSE_AT");
        }
        world.agent.start();
        world.wait_stores(&point, (false, true));
        world.restores_equal(&held, &point);
    }
    world.run(&["vault", "check", "shop", "--read-data", "--wait"]).success();
}

#[test]
fn a_point_with_an_end_of_its_own_follows_no_rule() {
    let mut world = World::new(2);
    let day = |days: i64| {
        let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::get("Asia/Seoul").expect("a zone")).date();
        today.checked_add(jiff::Span::new().days(days)).expect("a date").to_string()
    };
    for (date, part) in
        [(day(6), "7 days"), (day(3660), "10 years"), ("someday".to_owned(), "neither a date nor a time")]
    {
        let reply = world.run(&["backup", "shop", "--keep-until", &date]);
        reply.assert_failed("InvalidRequest");
        assert!(reply.stderr.contains(part), "{}", reply.stderr);
    }
    let date = day(30);
    assert_eq!(world.run(&["backup", "shop", "--rule", "Both", "--keep-until", &date]).code, 2);
    assert!(world.jobs("Backup").is_empty(), "what is refused starts nothing");

    let (held, kept) = world.backup(&["--keep-until", &date]);
    let (_, other) = world.backup(&[]);
    let (_, newest) = world.backup(&[]);
    let shown = world.point(&kept);
    let until = format!("{date}T15:00:00Z");
    assert_eq!(time_of(&shown["keep_until_time"]), until.parse().expect("a time"), "its last day in Seoul is whole");
    for same in ["expire_time", "vault_until_time"] {
        assert_eq!(shown[same], shown["keep_until_time"], "{shown:#}");
    }
    assert_eq!((&shown["rule"], &shown["archive_until_time"]), (&Value::from(""), &Value::Null), "{shown:#}");
    let job = world.agent.job(shown["job_id"].as_str().expect("an id"));
    assert_eq!(job.0["keep_until_time"], shown["keep_until_time"]);
    world.agent.terminate();
    world.agent.offline(&["vault", "rebuild-catalog"], b"").success();
    world.agent.start();
    assert_eq!(world.point(&kept), shown);

    // Default's time in the vault is over for both: one moves, the other stays.
    world.age(&[&kept, &other], 8);
    world.wait_stores(&other, (false, true));
    assert_eq!(world.stores(&kept), (true, false));
    world.wait_completed("Tier", 1);
    world.restores_equal(&held, &kept);
    // And when its own time is over it goes, whatever the rules say.
    world.agent.terminate();
    world.edit(&kept, |body| body["keep_until"] = older(&body["keep_until"], 31));
    world.an_hour_passes();
    world.agent.start();
    world.wait_completed("DeletePoint", 1);
    let left: Vec<Value> = world.agent.points("shop").into_iter().map(|point| point["id"].clone()).collect();
    assert_eq!(left, [newest, other]);
}
