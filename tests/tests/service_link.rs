//! The link to a backup service: what it assigns is done once, what the agent has done is told, and every job goes on without it. The
//! service is a real gRPC server that loses, delays, doubles and mixes up messages, and is killed and started again.
//!
//! `VAULTFERRY_LINK_SEEDS=n` runs more seeds of the faults, `VAULTFERRY_LINK_SEED=s` one of them again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use vaultferry_proto::control::v1 as control;
use vaultferry_proto::control::v1::credential_reference::From;
use vaultferry_proto::service::v1 as wire;
use vaultferry_proto::service::v1::assignment_result::Item;
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::fake_service::{Dice, FakeService, Pki, TOKEN, View};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{measured, policy, sample, wait_for};

/// The link comes back within a minute; then everything is told at once.
const PATIENCE: Duration = Duration::from_secs(150);

fn agent_of(service: &FakeService) -> Setup {
    Setup::new().config(&service.config()).env("SERVICE_TOKEN", TOKEN)
}

/// A service that is away, and assignments that fail, are worth a warning.
fn expect_faults(agent: &Agent) {
    for text in ["the backup service is away", "what the backup service assigns was not done"] {
        agent.expect_log(text);
    }
}

fn assigned_policy(name: &str) -> wire::PolicyAssignment {
    wire::PolicyAssignment { name: name.to_owned(), document: policy::quiet(name), confirm_shorter: false }
}

fn assigned_instance(name: &str, server: &Server, policy: &str) -> wire::InstanceAssignment {
    wire::InstanceAssignment {
        name: name.to_owned(),
        source_uri: server.uri(name),
        policy: policy.to_owned(),
        region: String::new(),
        credential: Some(control::CredentialReference {
            from: Some(From::Passfile(server.passfile().display().to_string())),
        }),
        confirm_shorter: false,
    }
}

/// A request for a backup, by a number that makes its id.
fn assigned_backup(instance: &str, number: u64) -> wire::BackupAssignment {
    wire::BackupAssignment {
        request_id: format!("00000000-0000-4000-8000-{number:012x}"),
        instance: instance.to_owned(),
        rule: String::new(),
        keep_until: String::new(),
    }
}

/// The results of a version, once the agent is done with it.
fn outcome(service: &FakeService, version: u64) -> Vec<wire::AssignmentResult> {
    wait_for(&format!("the end of version {version}"), PATIENCE, || {
        service.view().outcome.filter(|outcome| outcome.version == version && outcome.complete)
    })
    .results
}

/// The item's id, or its problem's reason.
fn result_of(results: &[wire::AssignmentResult], item: &Item) -> Result<String, String> {
    let result = results.iter().find(|result| result.item.as_ref() == Some(item));
    let result = result.unwrap_or_else(|| panic!("{item:?} is not among {results:#?}"));
    match &result.problem {
        None => Ok(result.id.clone()),
        Some(problem) => {
            assert!(!problem.message.is_empty() && problem.fix.len() > 10, "{problem:?}");
            Err(problem.reason.clone())
        }
    }
}

fn list(agent: &Agent, words: &[&str], what: &str) -> Vec<Value> {
    let json = agent.cli_json(words).success().json();
    json[what].as_array().unwrap_or_else(|| panic!("{json:#}")).clone()
}

fn instances(agent: &Agent) -> Vec<String> {
    let all = list(agent, &["instance", "list"], "instances");
    all.iter().map(|instance| instance["name"].as_str().expect("a name").to_owned()).collect()
}

/// Every point and every job of the agent as the service should know them: job of each point, status of each job.
fn of_agent(agent: &Agent) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let mut points = BTreeMap::new();
    for name in instances(agent) {
        points.extend(agent.points(&name).iter().map(|point| (text(point, "job_id"), text(point, "id"))));
    }
    let jobs = list(agent, &["job", "list", "--from", "2020-01-01"], "jobs");
    (points, jobs.iter().map(|job| (text(job, "id"), text(job, "status"))).collect())
}

fn of_service(view: &View) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let point = |commit: &wire::Commit| commit.point.as_ref().map(|point| point.id.clone()).unwrap_or_default();
    let points = view.commits.iter().map(|(job, commit)| (job.clone(), point(commit))).collect();
    let status = |report: &wire::JobReport| {
        report.job.as_ref().map(|job| job.status().as_str_name().to_owned()).unwrap_or_default()
    };
    (points, view.jobs.iter().map(|(job, report)| (job.clone(), status(report))).collect())
}

/// Waits until the service knows what the agent knows, and nothing else.
fn wait_until_equal(agent: &Agent, service: &FakeService) -> View {
    let started = Instant::now();
    loop {
        let (mine, view) = (of_agent(agent), service.view());
        let theirs = of_service(&view);
        let has_ended = mine.1.values().all(|status| !matches!(status.as_str(), "InProgress" | "Cancelling"));
        if has_ended && mine == theirs {
            assert!(view.violations.is_empty(), "{:#?}", view.violations);
            return view;
        }
        assert!(started.elapsed() < PATIENCE, "the agent knows {mine:#?}, the service {theirs:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn what_a_service_assigns_is_done_and_what_is_done_is_told() {
    let server = Server::start();
    for name in ["shop", "own", "store"] {
        sample::random(&server, name, 1);
    }
    let service = FakeService::start();
    let agent = agent_of(&service).start();
    expect_faults(&agent);
    // The user's own.
    agent.protect("own", &server.uri("own"), server.passfile());

    let version = service.assign(|set| {
        set.policies.push(assigned_policy("fleet"));
        set.policies.push(wire::PolicyAssignment { document: "name = 5".to_owned(), ..assigned_policy("broken") });
        set.instances.push(assigned_instance("shop", &server, "fleet"));
        set.instances.push(assigned_instance("missing", &server, "fleet"));
        set.instances
            .push(wire::InstanceAssignment { name: "own".to_owned(), ..assigned_instance("store", &server, "fleet") });
        set.backups.push(assigned_backup("shop", 1));
        set.backups.push(assigned_backup("own", 2));
        set.backups.push(assigned_backup("nobody", 3));
        set.backups.push(wire::BackupAssignment { request_id: String::new(), ..assigned_backup("shop", 0) });
    });
    let results = outcome(&service, version);
    let request = |number| Item::RequestId(assigned_backup("", number).request_id);
    assert_eq!(results.len(), 9, "{results:#?}");
    assert!(result_of(&results, &Item::Policy("fleet".to_owned())).is_ok());
    assert_eq!(result_of(&results, &Item::Policy("broken".to_owned())), Err("InvalidPolicy".to_owned()));
    let shop = result_of(&results, &Item::Instance("shop".to_owned())).expect("protected");
    assert_eq!(result_of(&results, &Item::Instance("missing".to_owned())), Err("UserErrorDBNotFound".to_owned()));
    assert_eq!(result_of(&results, &Item::Instance("own".to_owned())), Err("NameTaken".to_owned()));
    let job = result_of(&results, &request(1)).expect("started");
    assert!(result_of(&results, &request(2)).is_ok(), "an instance of the user's, too");
    assert_eq!(result_of(&results, &request(3)), Err("InstanceNotFound".to_owned()));
    assert_eq!(result_of(&results, &Item::RequestId(String::new())), Err("InvalidRequest".to_owned()));

    let ended = agent.wait_job_end(&job).completed();
    let view = wait_until_equal(&agent, &service);
    let commit = view.commits[&job].point.as_ref().expect("a point");
    assert_eq!((commit.id.as_str(), commit.instance_id.as_str()), (ended.point_id(), shop.as_str()));
    assert!(commit.source_bytes > 1_000_000 && commit.policy == "fleet", "{commit:?}");
    let told = view.jobs[&job].job.as_ref().expect("a job");
    assert!(told.end_time.is_some() && told.progress.as_ref().is_some_and(|done| done.bytes_read > 0), "{told:?}");
    let register = view.agents.values().next().expect("registered");
    let owner = agent.cli_json(&["vault", "show"]).success().json();
    assert_eq!((view.agents.len(), register.vault_id.as_str()), (1, owner["vault"]["id"].as_str().expect("an id")));
    assert!(!register.hostname.is_empty() && !register.version.is_empty(), "{register:?}");

    // The next version mends one item, changes others, and leaves some out. What was done stays done, what was left out stays.
    server.create_database("missing");
    let version = service.assign(|set| {
        set.policies = vec![assigned_policy("fleet"), assigned_policy("fleet-2")];
        set.policies[0].document.push_str("# again\n");
        set.instances.retain(|instance| instance.name != "own");
        set.instances[0].policy = "fleet-2".to_owned();
        set.backups.retain(|backup| backup.instance == "shop" && !backup.request_id.is_empty());
    });
    let results = outcome(&service, version);
    assert_eq!(results.len(), 5, "{results:#?}");
    for result in &results {
        assert_eq!(result.problem, None, "{results:#?}");
    }
    assert_eq!(result_of(&results, &Item::Instance("shop".to_owned())), Ok(shop));
    assert_eq!(result_of(&results, &request(1)), Ok(job.clone()), "one backup for a request");
    assert_eq!(instances(&agent), ["missing", "own", "shop"]);
    let policies = list(&agent, &["policy", "list"], "policies");
    let versions: BTreeMap<&str, u64> = policies
        .iter()
        .map(|policy| (policy["name"].as_str().expect("a name"), policy["version"].as_u64().expect("a version")))
        .collect();
    assert_eq!(versions, BTreeMap::from([("fleet", 2), ("fleet-2", 1), ("quiet", 1)]));
    let shop = agent.cli_json(&["instance", "show", "shop"]).success().json();
    assert_eq!(shop["instance"]["policy"], "fleet-2", "{shop:#}");
    wait_until_equal(&agent, &service);

    // A request that has its job has it for ever, whatever becomes of the instance.
    agent.cli(&["instance", "stop", "shop", "--retain-data"]).success();
    let version = service.assign(|set| set.backups.push(assigned_backup("shop", 4)));
    let results = outcome(&service, version);
    assert_eq!(result_of(&results, &request(1)), Ok(job));
    assert_eq!(result_of(&results, &request(4)), Err("ProtectionStopped".to_owned()));
    assert_eq!(agent.points("shop").len(), 1);
    wait_until_equal(&agent, &service);
}

#[test]
fn backups_go_on_without_the_service_and_it_catches_up() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let mut service = FakeService::prepare(None);
    let mut agent = agent_of(&service).start();
    expect_faults(&agent);
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let version = service.assign(|set| set.backups.push(assigned_backup("shop", 1)));
    for _ in 0..2 {
        agent.backup("shop");
        agent.restart();
    }
    agent.backup("shop");
    agent.kill9();
    agent.start();
    assert_eq!(service.view().commits.len(), 0);
    service.resume();
    let results = outcome(&service, version);
    assert_eq!(results.len(), 1);
    let view = wait_until_equal(&agent, &service);
    assert_eq!(view.commits.len(), 4);
    // Away again, and back: nothing is told twice that was acknowledged.
    let repeated = view.repeated;
    service.stop();
    agent.backup("shop");
    service.resume();
    let view = wait_until_equal(&agent, &service);
    assert_eq!((view.commits.len(), view.repeated), (5, repeated));
    // Without the section the agent's own catalog takes everything, and the service hears no more.
    agent.terminate();
    let config = std::fs::read_to_string(agent.config_path()).expect("the configuration");
    std::fs::write(agent.config_path(), config.replace(&service.config(), "")).expect("written");
    agent.start();
    agent.backup("shop");
    assert_eq!(service.view().commits.len(), 5);
}

#[test]
fn whoever_is_not_believed_tells_nothing_and_goes_on() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let pki = Pki::make();
    let service = FakeService::start_with_tls(&pki);
    let (cert, key) = pki.agent();
    let (cert, key) = (cert.display(), key.display());
    let trusting = format!("{}ca = \"{}\"\n", service.config(), pki.ca().display());
    let complete = format!("{trusting}cert = \"{cert}\"\nkey = \"{key}\"\n");
    // The system's authorities do not know this one; the service wants a certificate; and the token.
    for (config, token, refused) in
        [(service.config(), TOKEN, false), (trusting, TOKEN, false), (complete.clone(), "not-the-token-51c9", true)]
    {
        let agent = Setup::new().config(&config).env("SERVICE_TOKEN", token).start();
        expect_faults(&agent);
        agent.protect("shop", &server.uri("shop"), server.passfile());
        agent.backup("shop");
        wait_for("the refusal in the log", Duration::from_secs(30), || {
            agent.log().contains("the backup service is away").then_some(())
        });
        assert!(!agent.log().contains(token), "{}", agent.log());
        let view = service.view();
        assert!(view.agents.is_empty() && view.commits.is_empty(), "{view:#?}");
        assert_eq!(view.refused > 0, refused, "{}", agent.log());
    }
    let agent = Setup::new().config(&complete).env("SERVICE_TOKEN", TOKEN).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    assert_eq!(wait_until_equal(&agent, &service).commits.len(), 1);
}

/// After all faults have ended, the service knows what the agent knows, and every request has one backup.
fn faults_of(seed: u64) {
    let mut dice = Dice::new(seed);
    let server = Server::start();
    for name in ["own", "a", "b"] {
        sample::random(&server, name, 1);
    }
    let mut service = FakeService::start();
    let mut agent = agent_of(&service).start();
    expect_faults(&agent);
    for text in ["nterrupted", "PluginCrashed", "plugin", "DumpFailed", "pg_dump", "reap", "ecover"] {
        agent.expect_log(text);
    }
    agent.protect("own", &server.uri("own"), server.passfile());
    service.go_mad(seed);
    service.assign(|set| {
        set.policies.push(assigned_policy("fleet"));
        set.instances.extend(["a", "b"].map(|name| assigned_instance(name, &server, "fleet")));
    });
    let mut requests = 0;
    for _ in 0..12 {
        match dice.below(8) {
            0..=2 => {
                requests += 1;
                let name = ["a", "b", "own"][dice.below(3) as usize];
                service.assign(|set| set.backups.push(assigned_backup(name, requests)));
            }
            // An assigned backup may be at it.
            3 => drop(agent.cli(&["backup", "own"])),
            4 => {
                service.stop();
                std::thread::sleep(Duration::from_millis(dice.below(3000)));
                service.resume();
            }
            5 => {
                agent.kill9_all();
                agent.start();
            }
            6 => agent.restart(),
            _ => std::thread::sleep(Duration::from_millis(dice.below(2000))),
        }
        std::thread::sleep(Duration::from_millis(dice.below(1500)));
    }
    service.calm_down();
    // One version that is not lost, so that the end can be waited for.
    let version = service.assign(|_| {});
    let results = outcome(&service, version);
    let mut jobs = BTreeSet::new();
    for result in &results {
        assert_eq!(result.problem, None, "{results:#?}");
        if let Some(Item::RequestId(_)) = result.item {
            assert!(jobs.insert(result.id.clone()), "two requests have one job: {results:#?}");
        }
    }
    assert_eq!(jobs.len() as u64, requests);
    let view = wait_until_equal(&agent, &service);
    // A backup that no person and no schedule started was asked for by the service. Those that kills have interrupted are not run again.
    let own = |job: &control::Job| job.instance_name == "own";
    let asked = view.jobs.values().filter_map(|report| report.job.as_ref());
    let asked: BTreeSet<String> = asked
        .filter(|job| job.operation() == control::job::Operation::Backup && !own(job))
        .map(|job| job.id.clone())
        .collect();
    assert!(asked.is_subset(&jobs), "a request has started more than one backup: {asked:?} {jobs:?}");
    measured(&format!(
        "seed {seed}: {requests} requests, {} commits, {} jobs, {} messages that told nothing new",
        view.commits.len(),
        view.jobs.len(),
        view.repeated
    ));
}

#[test]
fn after_all_faults_the_service_knows_what_the_agent_knows() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("VAULTFERRY_LINK_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = rand::random::<u64>() >> 32;
            first..first + number("VAULTFERRY_LINK_SEEDS").unwrap_or(1)
        }
    };
    for seed in seeds {
        measured(&format!("seed {seed} begins; again with VAULTFERRY_LINK_SEED={seed}"));
        faults_of(seed);
    }
}
