//! A real agent on a catalog of a large site: how soon it answers, how long a page of each list takes, and how much memory it has.
//!
//! The catalog is written by hand while no agent runs: years of backups would take years. Its instances have no part in the vault, which
//! nothing asks for, as nothing of them is due.

use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use vaultferry_proto::control::v1 as wire;
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::{heavy, measured, process};

const POLICY: &str = "site";
const POLICIES: u32 = 50;
const POINTS_PER_INSTANCE: u32 = 100;
const DAY_US: i64 = 86_400_000_000;
/// Each is asked so often; the median counts, as other tests share the machine.
const ROUNDS: usize = 9;
const START_LIMIT: Duration = Duration::from_secs(3);
const PAGE_LIMIT: Duration = Duration::from_millis(50);
/// The dashboard counts all points of all instances.
const SUMMARY_LIMIT: Duration = Duration::from_secs(1);
const MEMORY_LIMIT_MIB: u64 = 200;

#[test]
fn a_site_of_500_instances_is_listed_at_once() {
    site(500);
}

#[test]
fn heavy_a_site_of_10000_instances_and_a_million_points_is_listed_at_once() {
    if heavy() {
        site(10_000);
    }
}

fn site(instances: u32) {
    let mut agent = Setup::new().start();
    for number in 0..POLICIES {
        agent.create_policy(&if number == 0 { POLICY.to_owned() } else { format!("{POLICY}-{number}") });
    }
    agent.terminate();
    fill(&agent, instances);
    let begun = Instant::now();
    agent.start();
    let started = begun.elapsed();
    let mut figures = Vec::new();
    run(async {
        let channel = channel(&agent).await;
        let (count, first) = count_instances(&channel).await;
        assert_eq!(count, instances as usize);
        assert_eq!(first.point_count, u64::from(POINTS_PER_INSTANCE));
        figures.push(("instances", page(async || instances_page(&channel, "").await.instances.len()).await));
        let middle = format!("database-{:05}", instances / 2);
        figures.push((
            "instances from the middle",
            page(async || instances_page(&channel, &middle).await.instances.len()).await,
        ));
        figures.push(("points", page(async || points_page(&channel, &first.name).await).await));
        figures.push(("jobs", page(async || jobs_page(&channel, "").await).await));
        figures.push(("failed jobs", page(async || jobs_page(&channel, "Failed").await).await));
        figures.push(("policies", page(async || policies(&channel).await).await));
        figures.push(("summary", page(async || summary(&channel, false).await).await));
        figures.push(("summary of instances", page(async || summary(&channel, true).await).await));
    });
    let memory_mib = process::peak_memory(agent.pid()).expect("the agent runs") >> 20;
    let told: Vec<String> =
        figures.iter().map(|(what, (took, items))| format!("{what} {} ms ({items})", took.as_millis())).collect();
    measured(&format!(
        "{instances} instances, {} points: start {} ms, {}; peak of the agent {memory_mib} MiB",
        instances * POINTS_PER_INSTANCE,
        started.as_millis(),
        told.join(", ")
    ));
    assert!(started < START_LIMIT, "the start took {started:?}");
    for (what, (took, items)) in figures {
        assert!(items > 0, "{what} is empty");
        let limit = if what.starts_with("summary") { SUMMARY_LIMIT } else { PAGE_LIMIT };
        assert!(took < limit, "{what} took {took:?}");
    }
    assert!(memory_mib < MEMORY_LIMIT_MIB, "{memory_mib} MiB");
}

/// The median time of a page, and how many items it has.
async fn page(ask: impl AsyncFn() -> usize) -> (Duration, usize) {
    let mut times = Vec::new();
    let mut items = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        items = ask().await;
        times.push(begun.elapsed());
    }
    times.sort();
    (times[ROUNDS / 2], items)
}

async fn instances_page(channel: &Channel, page_token: &str) -> wire::ListBackupInstancesResponse {
    let mut client = wire::backup_instance_service_client::BackupInstanceServiceClient::new(channel.clone());
    let request =
        wire::ListBackupInstancesRequest { deleted: false, page_size: 100, page_token: page_token.to_owned() };
    client.list_backup_instances(request).await.expect("a page").into_inner()
}

/// Over all pages, each of which goes on where the one before has ended; and the first of them.
async fn count_instances(channel: &Channel) -> (usize, wire::BackupInstance) {
    let mut names: Vec<String> = Vec::new();
    let (mut token, mut first) = (String::new(), None);
    loop {
        let page = instances_page(channel, &token).await;
        names.extend(page.instances.iter().map(|instance| instance.name.clone()));
        first = first.or(page.instances.into_iter().next());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(names.is_sorted() && names.windows(2).all(|two| two[0] != two[1]), "no instance twice");
    (names.len(), first.expect("an instance"))
}

async fn points_page(channel: &Channel, instance: &str) -> usize {
    let mut client = wire::recovery_point_service_client::RecoveryPointServiceClient::new(channel.clone());
    let request = wire::ListRecoveryPointsRequest { instance: instance.to_owned(), ..Default::default() };
    client.list_recovery_points(request).await.expect("a page").into_inner().points.len()
}

async fn jobs_page(channel: &Channel, status: &str) -> usize {
    let mut client = wire::job_service_client::JobServiceClient::new(channel.clone());
    let request = wire::ListJobsRequest { status: status.to_owned(), ..Default::default() };
    client.list_jobs(request).await.expect("a page").into_inner().jobs.len()
}

async fn policies(channel: &Channel) -> usize {
    let mut client = wire::policy_service_client::PolicyServiceClient::new(channel.clone());
    client.list_policies(wire::ListPoliciesRequest {}).await.expect("a page").into_inner().policies.len()
}

/// Points in all, or instances on a page.
async fn summary(channel: &Channel, instances: bool) -> usize {
    let mut client = wire::summary_service_client::SummaryServiceClient::new(channel.clone());
    let request = wire::GetSummaryRequest { instances, page_size: 100, ..Default::default() };
    let answer = client.get_summary(request).await.expect("a summary").into_inner();
    match instances {
        true => answer.instances.len(),
        false => answer.summary.is_some().into(),
    }
}

async fn channel(agent: &Agent) -> Channel {
    let socket = agent.dir().join("control.sock");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://agent.invalid");
    endpoint.connect_with_connector(connector).await.expect("the agent's socket answers")
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Instances, their points of the last days, and the job of each newest point.
fn fill(agent: &Agent, instances: u32) {
    let mut catalog = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).expect("the catalog opens");
    let now_us = jiff::Timestamp::now().as_microsecond();
    let text = |us: i64| jiff::Timestamp::from_microsecond(us).expect("a time").to_string();
    let transaction = catalog.transaction().expect("a transaction");
    {
        let prepare = |sql: &str| transaction.prepare(sql).expect("the table is there");
        let mut instance = prepare("insert into instances(id, name, identity, body) values (?1, ?2, ?3, ?4)");
        let mut point = prepare(
            "insert into points(instance_id, id, time, stored_bytes, body, deleted) values (?1, ?2, ?3, ?4, ?5, 0)",
        );
        let mut job = prepare(
            "insert into jobs(id, create_time, instance_id, operation, status, request_id, body)
             values (?1, ?2, ?3, 'backup', ?4, null, ?5)",
        );
        for number in 0..instances {
            let high = u64::from(number) << 32;
            let (id, name) = (format!("{number:032x}"), format!("database-{number:05}"));
            let identity = format!("postgres://db{number}.example.net:5432/shop");
            // Protected just now, so that no slot is owed.
            let body = json!({
                "id": id, "name": name, "create_time": text(now_us), "source_type": "postgres",
                "source_uri": format!("postgres://backup@db{number}.example.net:5432/shop"),
                "source_identity": identity, "region": "", "policy": POLICY,
                "credential": {"password_env": "PGPASSWORD"},
            });
            instance.execute((&id, &name, &identity, body.to_string())).expect("an instance");
            for day in 0..POINTS_PER_INSTANCE {
                // Half a day apart, which three months hold: nothing expires.
                let time_us = now_us - i64::from(day) * DAY_US / 2 - i64::from(number);
                let job_id = format!("{time_us:016x}{:016x}", high + u64::from(day));
                let point_id = format!("{:016x}{number:024x}{day:024x}", mix(high + u64::from(day)));
                let body = json!({
                    "id": point_id, "instance_id": id, "job_id": job_id, "time": text(time_us), "rule": "Default",
                    "policy": POLICY, "policy_version": 1,
                    "streams": [{"name": "database.dump", "size": 1_u64 << 30, "sha256": ""}],
                    "source_bytes": 1_u64 << 30, "stored_bytes": 1 << 20,
                    "standing": {"proven_time": null, "held": null, "purge_time": null, "immutable_until": null,
                                 "in_vault": true, "in_archive": false, "archived_time": null},
                });
                point.execute((&id, &point_id, time_us, 1 << 20, body.to_string())).expect("a point");
                if day < 3 {
                    // One of each instance has failed.
                    let (name_of, status) = match day {
                        1 => (
                            "failed",
                            json!({"status": "failed", "end_time": text(time_us),
                                               "problem": {"reason": "DumpFailed", "message": "m", "fix": "f"}}),
                        ),
                        _ => (
                            "completed",
                            json!({"status": "completed", "end_time": text(time_us), "point_id": point_id,
                                                  "bytes_read": 1_u64 << 30, "bytes_stored": 1 << 20}),
                        ),
                    };
                    let body = json!({
                        "id": job_id, "create_time": text(time_us), "instance_id": id, "instance_name": name,
                        "work": {"operation": "backup", "rule": "Default"},
                        "status": status,
                        "scheduled": true, "request_id": null, "warnings": [],
                    });
                    job.execute((&job_id, time_us, &id, name_of, body.to_string())).expect("a job");
                }
            }
        }
    }
    transaction.commit().expect("committed");
}

/// Scatters the points' ids, as hashes are.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}
