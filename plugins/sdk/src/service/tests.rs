use std::sync::Mutex;
use std::time::Instant;

use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint, Server};
use vaultferry_proto::Reason;
use vaultferry_proto::plugin::v1::backup_event::Event as Sent;
use vaultferry_proto::plugin::v1::workload_plugin_client::WorkloadPluginClient;
use vaultferry_proto::plugin::v1::workload_plugin_server::WorkloadPluginServer;
use vaultferry_vault::Id;
use vaultferry_vault::writer::{Staged, StreamSummary};

use super::*;
use crate::report::{Reporter, Warning};
use crate::workload::{BackupJob, CleanUpJob, Discovered, DiscoveredSource, RestoreJob, RestoreTarget, Validated};

/// Does what the instance's name says.
#[derive(Default)]
struct Scripted {
    ends: Mutex<Vec<&'static str>>,
}

#[async_trait::async_trait]
impl Workload for Scripted {
    fn source_type(&self) -> &'static str {
        "scripted"
    }

    async fn validate(&self, source: Source, _: &str, _: &CancellationToken) -> Result<Validated, Problem> {
        Err(Problem::new(Reason::UserErrorDBNotFound, source.uri).with_fix("the fix"))
    }

    /// Four sources: one tells, one does not, one has an obstacle, and one hangs.
    async fn discover(&self, server: Source, _: &str, _: &CancellationToken) -> Result<Discovered, Problem> {
        let warning = Warning { reason: "R".into(), message: "m".into(), fix: "f".into() };
        let sources = ["tells", "refuses", "closed", "hangs"].map(|name| DiscoveredSource {
            uri: name.to_owned(),
            source_identity: name.to_owned(),
            name: name.to_owned(),
            size: None,
            encoding: String::new(),
            allows_connections: true,
            obstacle: (name == "closed").then(|| warning.clone()),
        });
        Ok(Discovered {
            server_identity: server.uri.clone(),
            server_name: server.uri,
            server_version: String::new(),
            replica: false,
            sources: sources.to_vec(),
        })
    }

    async fn extensions(&self, source: Source, _: &str, _: &CancellationToken) -> Result<Vec<String>, Problem> {
        match source.uri.as_str() {
            "tells" => Ok(vec!["plpgsql 1.0".to_owned()]),
            "refuses" => Err(Problem::new(Reason::UserErrorDBUserAuthFailed, "no").with_fix("the fix")),
            "hangs" => std::future::pending().await,
            other => panic!("{other} is not to be asked"),
        }
    }

    async fn backup(&self, job: BackupJob, reporter: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        match job.instance_name.as_str() {
            "hang" => {
                reporter.phase("hanging");
                reporter.expect_bytes(7);
                cancel.cancelled().await;
                self.ends.lock().unwrap().push("cancelled");
                Err(crate::workload::cancelled())
            }
            "panic" => panic!("as the test asks"),
            _ => {
                let warning = Warning { reason: "R".into(), message: "m".into(), fix: "f".into() };
                reporter.warn(warning).await;
                Ok(staged(10_000))
            }
        }
    }

    async fn restore(&self, job: RestoreJob, _: &Reporter, _: &CancellationToken) -> Result<u64, Problem> {
        assert!(matches!(job.target, RestoreTarget::Files(_)));
        Ok(42)
    }

    async fn clean_up(&self, _: CleanUpJob, _: &CancellationToken) -> Result<(), Problem> {
        Ok(())
    }
}

fn staged(packs: u64) -> Staged {
    Staged {
        snapshot_id: Id::of(b"snapshot"),
        sealed: "sealed".into(),
        prune_epoch: 3,
        packs: (0..packs).map(|number| (Id::of(&number.to_le_bytes()), number)).collect(),
        streams: vec![StreamSummary { name: "a".into(), size: 5 }],
        source_bytes: 5,
        stored_bytes: 4,
        time: jiff::Timestamp::UNIX_EPOCH,
    }
}

struct Fixture {
    client: WorkloadPluginClient<Channel>,
    workload: Arc<Scripted>,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let workload = Arc::new(Scripted::default());
    let runner = Runner::new(CancellationToken::new(), TaskTracker::new());
    let service = Service { workload: Arc::clone(&workload), runner, own_process: true };
    let server = Server::builder().add_service(WorkloadPluginServer::new(service));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).unwrap();
    Fixture { client: WorkloadPluginClient::new(endpoint.connect().await.unwrap()), workload, _dir: dir }
}

fn vault() -> proto::VaultAccess {
    proto::VaultAccess {
        location: "/nowhere".into(),
        instance_id: "0123456789abcdef0123456789abcdef".into(),
        repository_password: "00".into(),
        ..Default::default()
    }
}

fn backup(instance_name: &str) -> proto::BackupRequest {
    proto::BackupRequest {
        job_id: "job".into(),
        instance_name: instance_name.into(),
        source: Some(proto::Source { uri: "x://y".into(), ..Default::default() }),
        vault: Some(vault()),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_staged_backup_comes_in_pieces_after_its_warnings() {
    let mut fixture = fixture().await;
    let mut events = fixture.client.backup(backup("good")).await.unwrap().into_inner();
    let (mut warnings, mut packs, mut last) = (0, Vec::new(), None);
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            Sent::Progress(_) => assert!(packs.is_empty()),
            Sent::Warning(_) => warnings += 1,
            Sent::StagedPacks(piece) => {
                assert!(piece.packs.len() <= 4096 && last.is_none() && warnings == 1);
                packs.extend(piece.packs);
            }
            Sent::Staged(staged) => last = Some(staged),
        }
    }
    let last = last.unwrap();
    assert_eq!((last.pack_count, packs.len(), last.prune_epoch), (10_000, 10_000, 3));
    assert_eq!(last.snapshot_id, Id::of(b"snapshot").to_string());
    assert_eq!((packs[7].id.as_slice(), packs[7].size), (&Id::of(&7_u64.to_le_bytes()).as_bytes()[..], 7));
}

#[tokio::test]
async fn progress_flows_while_nothing_moves_and_dropping_the_call_cancels() {
    let mut fixture = fixture().await;
    let mut events = fixture.client.backup(backup("hang")).await.unwrap().into_inner();
    let begin = Instant::now();
    for _ in 0..3 {
        let event = events.message().await.unwrap().unwrap();
        assert!(matches!(event.event, Some(Sent::Progress(_))));
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let Some(Sent::Progress(progress)) = events.message().await.unwrap().unwrap().event else { panic!("progress") };
    assert_eq!((progress.phase.as_str(), progress.bytes_total), ("hanging", 7));
    drop(events);
    let begin = Instant::now();
    while fixture.workload.ends.lock().unwrap().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(5), "the job was not cancelled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A source that does not tell its extensions says why, and none is waited for for ever.
#[tokio::test(start_paused = true)]
async fn extensions_that_are_not_known_have_a_reason() {
    let runner = Runner::new(CancellationToken::new(), TaskTracker::new());
    let service = Service { workload: Arc::new(Scripted::default()), runner, own_process: false };
    let server = proto::Source { uri: "x://y".into(), ..Default::default() };
    let request = proto::DiscoverRequest { server: Some(server), settings_json: String::new(), extensions: true };
    let answer = service.discover(Request::new(request)).await.unwrap().into_inner();
    let told: Vec<(usize, String)> = answer
        .sources
        .into_iter()
        .map(|source| (source.extensions.len(), source.extensions_problem.unwrap_or_default().reason))
        .collect();
    let reason = |count, reason: &str| (count, reason.to_owned());
    assert_eq!(
        told,
        [reason(1, ""), reason(0, "UserErrorDBUserAuthFailed"), reason(0, ""), reason(0, "PluginTimeout")]
    );
}

#[tokio::test]
async fn failures_have_reasons_even_a_panic() {
    let mut fixture = fixture().await;
    let request = proto::ValidateRequest { source: backup("").source, settings_json: String::new(), former: None };
    let problem = Problem::from_status(&fixture.client.validate(request).await.unwrap_err(), Reason::PluginCrashed);
    assert_eq!(problem, Problem::new(Reason::UserErrorDBNotFound, "x://y").with_fix("the fix"));
    let mut events = fixture.client.backup(backup("panic")).await.unwrap().into_inner();
    let status = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends without an outcome"),
            Err(status) => break status,
        }
    };
    assert_eq!(Problem::from_status(&status, Reason::PluginCrashed).reason, Reason::Internal);
}

#[tokio::test]
async fn requests_that_lack_something_are_refused() {
    let mut client = fixture().await.client;
    let mut cases = vec![proto::BackupRequest { job_id: String::new(), ..backup("good") }];
    cases.push(proto::BackupRequest { source: None, ..backup("good") });
    cases.push(proto::BackupRequest { vault: None, ..backup("good") });
    cases.push(proto::BackupRequest { compression_level: 20, ..backup("good") });
    let relative = proto::VaultAccess { location: "not/absolute".into(), ..vault() };
    cases.push(proto::BackupRequest { vault: Some(relative), ..backup("good") });
    let credential = proto::StoreCredential { sas: "a".into(), account_key: "b".into(), ..Default::default() };
    let two = proto::VaultAccess { credential: Some(credential), ..vault() };
    cases.push(proto::BackupRequest { vault: Some(two), ..backup("good") });
    let source = || proto::Source { uri: "x://y".into(), ..Default::default() };
    for source in [
        proto::Source { passfile: "/pgpass".into(), identity: "managed".into(), ..source() },
        proto::Source { identity: "somebody".into(), ..source() },
        proto::Source { identity: "key-vault:https://elsewhere.example/secrets/x".into(), ..source() },
    ] {
        cases.push(proto::BackupRequest { source: Some(source), ..backup("good") });
    }
    for case in cases {
        let status = client.backup(case).await.unwrap_err();
        assert_eq!(Problem::from_status(&status, Reason::PluginCrashed).reason, Reason::InvalidRequest);
    }
}

#[tokio::test]
async fn a_restore_ends_with_done() {
    let mut client = fixture().await.client;
    let target = proto::FilesTarget { to: "/nowhere".into(), credential: None };
    let request = proto::RestoreRequest {
        job_id: "job".into(),
        snapshot_id: Id::of(b"snapshot").to_string(),
        vault: Some(vault()),
        settings_json: String::new(),
        from_archive: false,
        target: Some(proto::restore_request::Target::Files(target)),
    };
    let mut events = client.restore(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    let done = proto::RestoreDone { bytes_restored: 42, checked: String::new() };
    assert_eq!(last, Some(proto::restore_event::Event::Done(done)));
}
