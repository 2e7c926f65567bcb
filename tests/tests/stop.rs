//! SIGTERM: a running job may end, one that takes longer is interrupted, and nothing is left running.

use std::time::Duration;

use vaultferry_tests::agent::Setup;
use vaultferry_tests::fault_proxy::{Fault, FaultProxy};
use vaultferry_tests::postgres::{Server, uri_for};
use vaultferry_tests::{heavy, sample};

#[test]
fn a_running_backup_ends_before_the_agent_does() {
    let server = Server::start();
    sample::random(&server, "shop", 60);
    let mut agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "it reads", Duration::from_secs(30), |job| job.progress("bytes_read") > 0);
    assert_eq!(agent.terminate(), 0);
    agent.start();
    let ended = agent.wait_job_end(job.id()).completed();
    assert_eq!(agent.points("shop")[0]["id"], ended.point_id());
}

#[test]
fn heavy_a_backup_that_hangs_is_interrupted_by_a_stop() {
    if !heavy() {
        return;
    }
    let server = Server::start();
    sample::random(&server, "shop", 20);
    let proxy = FaultProxy::start(server.port());
    let mut agent = Setup::new().start();
    agent.protect("shop", &uri_for(proxy.port(), "shop"), &server.passfile_for_port(proxy.port()));
    agent.expect_log("nterrupted");
    proxy.set(Fault::HoldAfter(proxy.bytes_from_server() + 20_000_000));
    let job = agent.start_backup("shop");
    agent.wait_job(job.id(), "it reads", Duration::from_secs(30), |job| job.progress("bytes_read") > 1_000_000);
    assert_eq!(agent.terminate(), 0);
    agent.wait_until_nothing_is_left(Duration::from_secs(5));
    proxy.set(Fault::None);
    agent.start();
    let ended = agent.wait_job_end(job.id());
    assert_eq!((ended.status(), ended.reason()), ("Failed", "Interrupted"), "{:#}", ended.0);
    assert!(agent.points("shop").is_empty());
    agent.backup("shop");
}
