//! The main job, end to end: backed up twice, restored twice, compared, and read by restic and pg_restore without us.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use vaultferry_tests::agent::{Agent, Setup, number};
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::{Server, quote};
use vaultferry_tests::scratch::Scratch;
use vaultferry_tests::{heavy, measured, process, sample};

const AWKWARD: &str = "Shop \"Ω\" 한글";

#[test]
fn a_database_comes_back_equal_from_both_points() {
    let server = Server::start();
    sample::awkward(&server, AWKWARD, 300);
    let agent = Setup::new().start();
    let id = agent.protect("shop", &server.uri(AWKWARD), server.passfile());

    let first = contents(&server, AWKWARD);
    let first_job = agent.backup("shop");
    server.psql(
        AWKWARD,
        "insert into sales values ('2026-11-20', '새', 1); delete from types where id = 7; create table later (n integer);
         insert into later select generate_series(1, 100000); select lo_unlink(4711); drop table \"quo\"\"te\".\"a.b\";
         refresh materialized view monthly;
         update bulk set content = gen_random_bytes(1000) where id between 5000 and 6000; select nextval('at_start')",
    );
    let second = contents(&server, AWKWARD);
    assert_ne!(first, second);
    let second_job = agent.backup(&id);

    check_points(&agent, &[second_job.point_id(), first_job.point_id()]);
    agent.restore("shop", first_job.point_id(), &server, "back to one");
    assert_equal(&first, &contents(&server, "back to one"));
    agent.restore("shop", "latest", &server, "Zurück \"2\"");
    assert_equal(&second, &contents(&server, "Zurück \"2\""));
    // The source has stayed as it was.
    assert_equal(&second, &contents(&server, AWKWARD));
    read_without_us(&agent, &server, &[first_job.point_id(), second_job.point_id()]);
    let stored = |point: usize| number(&agent.points("shop")[point]["stored_bytes"]);
    let (first_stored, second_stored) = (stored(1), stored(0));
    assert!(second_stored * 4 < first_stored, "little had changed: {second_stored} after {first_stored} bytes");
}

/// The points, newest first, as `point list` and `point show` tell them.
fn check_points(agent: &Agent, ids: &[&str]) {
    let points = agent.points("shop");
    let listed: Vec<&str> = points.iter().filter_map(|point| point["id"].as_str()).collect();
    assert_eq!(listed, ids);
    for point in &points {
        assert_eq!(point["rule"], "Default");
        assert!(number(&point["source_bytes"]) > 300_000_000, "{point:#}");
        assert!(point["create_time"].as_str().is_some_and(|time| time.ends_with('Z')), "{point:#}");
        let names: BTreeSet<&str> =
            point["streams"].as_array().into_iter().flatten().filter_map(|stream| stream["name"].as_str()).collect();
        assert!(names.iter().any(|name| name.trim_start_matches('/') == "database.dump"), "{point:#}");
    }
    let shown = agent.cli_json(&["point", "show", "shop", &ids[1][..12]]).success().json();
    assert_eq!(shown["point"]["id"], ids[1]);
    let instance = agent.cli_json(&["instance", "show", "shop"]).success().json();
    assert_eq!(instance["instance"]["protection_state"], "Protected");
    assert_eq!(instance["instance"]["last_backup_status"], "Completed");
    assert_eq!(number(&instance["instance"]["point_count"]), 2);
}

/// restic checks every byte, and what it dumps is an archive that pg_restore turns into the second state.
fn read_without_us(agent: &Agent, server: &Server, oldest_first: &[&str]) {
    let repository = agent.export("shop");
    repository.check();
    assert_eq!(repository.snapshots(), oldest_first);
    let scratch = Scratch::new("dump");
    let archive = scratch.join("database.dump");
    repository.dump_to("latest", "/database.dump", &archive);
    let list =
        process::run(server.client("pg_restore", "postgres").arg("-l").arg(&archive), b"", Duration::from_secs(60))
            .success();
    assert!(list.text().contains("TABLE DATA public later"), "{}", list.text());
    server.create_database("by restic");
    let mut restore = server.client("pg_restore", "by restic");
    process::run(restore.args(["-d", "by restic", "--exit-on-error"]).arg(&archive), b"", Duration::from_secs(300))
        .success();
    assert_equal(&contents(server, AWKWARD), &contents(server, "by restic"));
}

#[test]
fn an_unchanged_database_is_stored_once() {
    unchanged(120);
}

#[test]
fn heavy_an_unchanged_database_of_500_mb_is_stored_once() {
    if heavy() {
        unchanged(500);
    }
}

fn unchanged(megabytes: u32) {
    let server = Server::start();
    sample::random(&server, "same", megabytes);
    let agent = Setup::new().start();
    agent.protect("same", &server.socket_uri("same"), &server.passfile_for_socket());
    let mut figures = Vec::new();
    for _ in 0..2 {
        let started = Instant::now();
        let job = agent.backup("same");
        let point = agent.cli_json(&["point", "show", "same", job.point_id()]).success().json();
        let figure = |name: &str| number(&point["point"][name]);
        figures.push((figure("source_bytes"), figure("stored_bytes"), started.elapsed().as_secs_f64()));
    }
    let [first, second] = [figures[0], figures[1]];
    measured(&format!(
        "{megabytes} MB of random rows: {} bytes read, {} stored in {:.1} s; unchanged: {} stored in {:.1} s ({:.3} %)",
        first.0,
        first.1,
        first.2,
        second.1,
        second.2,
        second.1 as f64 * 100.0 / first.1 as f64
    ));
    assert!(first.1 > u64::from(megabytes) * 1_000_000, "random bytes cannot be stored in {} bytes", first.1);
    assert!(second.1 * 100 < first.1, "the unchanged database stored {} of {} bytes", second.1, first.1);
}

#[test]
fn files_come_back_as_restic_reads_them() {
    let server = Server::start();
    sample::awkward(&server, "shop", 2);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let target = agent.dir().join("files");
    let to = target.display().to_string();
    agent.cli_json(&["restore", "files", "shop", "--to", &to, "--wait"]).success().job().completed();
    let restored = fs::read(target.join("database.dump")).expect("the restored file");
    assert!(restored == agent.export("shop").dump("latest", "/database.dump"), "not the bytes that restic reads");
    // Nothing that exists is overwritten, and nothing is added beside it.
    agent.expect_log("TargetExists");
    agent.cli_json(&["restore", "files", "shop", "--to", &to, "--wait"]).assert_failed("TargetExists");
    let names = fs::read_dir(&target).expect("the target").map(|entry| entry.expect("an entry").file_name());
    let expected = ["database.dump".into(), "database.json".into(), "globals.sql".into()];
    assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(expected));
}

#[test]
fn a_cancelled_backup_is_not_listed_and_the_next_one_works() {
    let server = Server::start();
    sample::random(&server, "shop", 60);
    let proxy = vaultferry_tests::fault_proxy::FaultProxy::start(server.port());
    let agent = Setup::new().start();
    let passfile = server.passfile_for_port(proxy.port());
    agent.protect("shop", &vaultferry_tests::postgres::uri_for(proxy.port(), "shop"), &passfile);
    proxy.set(vaultferry_tests::fault_proxy::Fault::HoldAfter(proxy.bytes_from_server() + 30_000_000));
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "bytes are read", Duration::from_secs(60), |job| job.progress("bytes_read") > 10_000_000);
    // One job of an instance at a time.
    agent.cli_json(&["backup", "shop"]).assert_failed("InstanceBusy");
    agent.expect_log("ancel");
    agent.cli_json(&["job", "cancel", job.id()]).success();
    let ended = agent.wait_job_end(job.id());
    assert_eq!(ended.status(), "Cancelled", "{:#}", ended.0);
    assert!(agent.points("shop").is_empty());
    process::wait_gone(&agent.plugins(), Duration::from_secs(15));
    assert!(agent.clients("pg_dump").is_empty());
    proxy.set(vaultferry_tests::fault_proxy::Fault::None);
    agent.backup("shop");
    assert_eq!(agent.points("shop").len(), 1);
    let cancelled = agent.cli_json(&["job", "list", "--status", "cancelled", "--operation", "backup"]).success().json();
    assert_eq!(cancelled["jobs"].as_array().map(Vec::len), Some(1), "{cancelled:#}");
}

#[test]
fn the_state_survives_restarts_and_lists_begin_empty() {
    let server = Server::start();
    server.create_database("shop");
    let mut agent = Setup::new().start();
    for (command, list) in [("policy", "policies"), ("instance", "instances"), ("job", "jobs")] {
        let json = agent.cli_json(&[command, "list"]).success().json();
        assert_eq!(json[list].as_array().map(Vec::len), Some(0), "{json:#}");
    }
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let waiting = agent.cli_json(&["instance", "show", "shop"]).success().json();
    assert_eq!(waiting["instance"]["protection_state"], "ProtectionPending");
    assert_eq!(waiting["instance"]["protection_state_text"], "Protected - (pending initial backup)");
    assert_eq!(waiting["instance"]["last_backup_status_text"], "Warning (initial backup pending)");
    assert!(agent.points("shop").is_empty());
    agent.cli_json(&["restore", "files", "shop", "--to", "/tmp/never-made"]).assert_failed("NoRecoveryPoint");
    let job = agent.backup("shop");
    agent.restart();
    assert_eq!(agent.points("shop")[0]["id"], job.point_id());
    assert_eq!(agent.job(job.id()).status(), "Completed");
    agent.backup("shop");
    let summary = agent.cli_json(&["summary"]).success().json();
    assert_eq!(number(&summary["summary"]["points"]), 2, "{summary:#}");
    assert_eq!(number(&summary["summary"]["instances_protected"]), 1);
    // An existing vault stays as it is.
    let again = agent.init_vault().success();
    assert!(again.stdout.contains("exists"), "{again:?}");
    server.psql("postgres", &format!("drop database {}", quote("shop")));
}
