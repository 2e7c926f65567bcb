//! The life of a real process: this test program starts itself again, as a plugin.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use async_trait::async_trait;
use tonic::transport::Endpoint;
use vaultferry_proto::plugin::v1 as proto;
use vaultferry_proto::plugin::v1::workload_plugin_client::WorkloadPluginClient;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::writer::Staged;

use super::*;
use crate::workload::{BackupJob, CleanUpJob, RestoreJob, Source, Validated, cancelled};
use crate::{Reporter, child};

/// Its backup starts a child that sleeps, and writes its number into the file that the instance is named after.
struct Sleeper;

#[async_trait]
impl Workload for Sleeper {
    fn source_type(&self) -> &'static str {
        "sleeper"
    }

    async fn validate(&self, _: Source, _: &str, _: &CancellationToken) -> Result<Validated, Problem> {
        Err(Problem::new(Reason::InvalidSource, "not used"))
    }

    async fn backup(&self, job: BackupJob, _: &Reporter, cancel: &CancellationToken) -> Result<Staged, Problem> {
        let child = child::Command::new("/bin/sleep").arg("1000").spawn().await.map_err(|_| cancelled())?;
        std::fs::write(&job.instance_name, child.id().unwrap_or_default().to_string()).map_err(|_| cancelled())?;
        child.finish(cancel).await.map_err(|_| cancelled())?;
        Err(cancelled())
    }

    async fn restore(&self, _: RestoreJob, _: &Reporter, _: &CancellationToken) -> Result<u64, Problem> {
        Ok(0)
    }

    async fn clean_up(&self, _: CleanUpJob, _: &CancellationToken) -> Result<(), Problem> {
        Ok(())
    }
}

/// Not a test by itself: the process that the test below starts.
#[test]
fn plugin_process() {
    if std::env::var_os(DIR_VARIABLE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(serve(Sleeper)).unwrap();
        // Nobody reads what the test harness would say now.
        std::process::exit(0);
    }
}

fn start(dir: &std::path::Path) -> (Child, String) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["serve::tests::plugin_process", "--exact", "--nocapture"])
        .env(DIR_VARIABLE, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let handshake = lines.map_while(Result::ok).find_map(|line| {
        let at = line.find("vaultferry-plugin|")?;
        Some(line[at..].to_owned())
    });
    (process, handshake.expect("a handshake"))
}

fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

/// Starts a plugin with a job that has a child, does `end` to it, and waits until both are gone.
async fn ends_with_its_children(end: impl FnOnce(&mut Child)) -> std::process::ExitStatus {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, handshake) = start(dir.path());
    let endpoint = handshake.strip_prefix("vaultferry-plugin|1|").expect("version 1").to_owned();
    assert!(endpoint.starts_with("unix:///"), "{endpoint}");
    let channel = Endpoint::try_from(endpoint).unwrap().connect().await.unwrap();
    let mut client = WorkloadPluginClient::new(channel);
    let info = client.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.source_type, "sleeper");
    let pid_path = dir.path().join("pid");
    let request = proto::BackupRequest {
        job_id: "job".into(),
        instance_name: pid_path.display().to_string(),
        source: Some(proto::Source { uri: "x".into(), ..Default::default() }),
        vault: Some(proto::VaultAccess {
            location: "/nowhere".into(),
            instance_id: "0".into(),
            repository_password: "0".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let _events = client.backup(request).await.unwrap().into_inner();
    let begin = Instant::now();
    let patience = Duration::from_secs(15);
    let pid = loop {
        match std::fs::read_to_string(&pid_path) {
            Ok(pid) if !pid.is_empty() => break pid,
            _ => assert!(begin.elapsed() < patience, "the job does not begin"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!is_gone(&pid));
    end(&mut process);
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        assert!(begin.elapsed() < patience, "the plugin does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    while !is_gone(&pid) {
        assert!(begin.elapsed() < patience, "the plugin's child is left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    status
}

#[tokio::test]
async fn the_end_of_standard_input_ends_everything() {
    assert!(ends_with_its_children(|process| drop(process.stdin.take())).await.success());
}

#[tokio::test]
async fn sigterm_ends_everything() {
    let terminate = |process: &mut Child| {
        let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    };
    assert!(ends_with_its_children(terminate).await.success());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn sigkill_takes_the_children_along() {
    assert!(!ends_with_its_children(|process| process.kill().unwrap()).await.success());
}
