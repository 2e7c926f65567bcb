//! The interface as programs meet it: health, reflection, repeated requests, failures with their details.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use vaultferry_proto::control::v1 as wire;
use vaultferry_proto::{Problem, Reason};
use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::sample;

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

#[test]
fn every_service_is_healthy_and_reflected() {
    let agent = Setup::new().start();
    run(async {
        let channel = channel(&agent).await;
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers =
            client.server_reflection_info(tokio_stream::iter([question])).await.expect("reflection").into_inner();
        let answer = answers.message().await.expect("an answer").expect("one").message_response;
        let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
        let services: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
        let ours = services.iter().filter(|name| name.starts_with("vaultferry.control.v1."));
        assert_eq!(ours.clone().count(), 12, "{services:?}");
        let mut health = HealthClient::new(channel);
        for service in ours.cloned().chain([String::new()]) {
            let status = health.check(HealthCheckRequest { service }).await.expect("health").into_inner().status;
            assert_eq!(status, 1, "SERVING");
        }
    });
}

#[test]
fn a_repeated_request_starts_one_job_and_failures_carry_reason_and_fix() {
    let server = Server::start();
    sample::random(&server, "shop", 1);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    run(async {
        let channel = channel(&agent).await;
        let mut backups = wire::backup_service_client::BackupServiceClient::new(channel.clone());
        let request = wire::StartBackupRequest {
            instance: "shop".to_owned(),
            rule: String::new(),
            request_id: "6f1e0c6e-2b70-4f0c-9d36-0a4c5d1d5b11".to_owned(),
            keep_until: String::new(),
            read_bytes_per_s: 0,
        };
        let mut ids = Vec::new();
        for _ in 0..3 {
            let answer = backups.start_backup(request.clone()).await.expect("started").into_inner();
            ids.push(answer.job.expect("a job").id);
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let status = backups
            .start_backup(wire::StartBackupRequest { instance: "none".to_owned(), ..request })
            .await
            .expect_err("no such instance");
        assert_eq!(status.code(), tonic::Code::NotFound);
        let problem = Problem::from_status(&status, Reason::Internal);
        assert_eq!(problem.reason, Reason::InstanceNotFound);
        assert!(!problem.fix.is_empty());
        let mut jobs = wire::job_service_client::JobServiceClient::new(channel);
        let mut watch =
            jobs.watch_job(wire::WatchJobRequest { job: ids[0].clone() }).await.expect("watch").into_inner();
        let mut last = None;
        while let Some(change) = watch.message().await.expect("no error") {
            last = change.job;
        }
        assert_eq!(last.expect("a last state").status(), wire::job::Status::Completed);
    });
}
