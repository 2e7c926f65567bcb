//! The real `vaultferry` process against a fake agent on a unix socket: exit codes, what goes to which stream, watching over a restart.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};
use vaultferry_proto::control::v1::backup_service_server::{BackupService, BackupServiceServer};
use vaultferry_proto::control::v1::job_service_server::{JobService, JobServiceServer};
use vaultferry_proto::control::v1::*;

/// Knows one job, which each watch finds in the next of `states`; a watch ends with its stream, as when an agent shuts down.
#[derive(Clone)]
struct FakeAgent {
    states: Arc<Vec<job::Status>>,
    watches: Arc<AtomicUsize>,
    backups: Arc<AtomicUsize>,
}

impl FakeAgent {
    fn new(states: &[job::Status]) -> Self {
        Self { states: Arc::new(states.to_vec()), watches: Arc::default(), backups: Arc::default() }
    }

    fn job(&self, status: job::Status) -> Job {
        let problem = Problem { reason: "DumpFailed".into(), message: "pg_dump: no".into(), fix: "mend it".into() };
        let warning = Problem { reason: "RolesMissing".into(), message: "no role".into(), fix: String::new() };
        Job {
            id: "0123".into(),
            status: status.into(),
            operation: job::Operation::Backup.into(),
            problem: (status == job::Status::Failed).then_some(problem),
            warnings: Vec::from_iter((status == job::Status::CompletedWithWarnings).then_some(warning)),
            progress: Some(Progress { phase: "reading".into(), bytes_read: 4096, ..Progress::default() }),
            ..Job::default()
        }
    }

    /// Serves until the answer is dropped.
    fn serve(&self, socket: &Path) -> Served {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(JobServiceServer::new(self.clone()))
            .add_service(BackupServiceServer::new(self.clone()));
        let incoming = {
            let _inside = runtime.enter();
            UnixListenerStream::new(UnixListener::bind(socket).unwrap())
        };
        runtime.spawn(server.serve_with_incoming(incoming));
        Served { runtime: Some(runtime), socket: socket.to_path_buf() }
    }
}

/// A runtime of its own, because tonic's connections are tasks of their own: only with the runtime do all of them end.
struct Served {
    runtime: Option<tokio::runtime::Runtime>,
    socket: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.runtime.take().expect("taken here only").shutdown_background();
    }
}

#[tonic::async_trait]
impl BackupService for FakeAgent {
    async fn start_backup(
        &self,
        request: Request<StartBackupRequest>,
    ) -> Result<Response<StartBackupResponse>, Status> {
        self.backups.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.get_ref().request_id.len(), 36);
        if request.get_ref().instance == "none" {
            let reason = vaultferry_proto::Reason::InstanceNotFound;
            return Err(vaultferry_proto::Problem::new(reason, "no instance \"none\"").into());
        }
        Ok(Response::new(StartBackupResponse { job: Some(self.job(job::Status::InProgress)) }))
    }
}

#[tonic::async_trait]
impl JobService for FakeAgent {
    type WatchJobStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        Ok(Response::new(GetJobResponse { job: Some(self.job(job::Status::InProgress)) }))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(ListJobsResponse { jobs: Vec::new() }))
    }

    async fn watch_job(&self, _: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let state = self.states[self.watches.fetch_add(1, Ordering::SeqCst).min(self.states.len() - 1)];
        let first = Ok(WatchJobResponse { job: Some(self.job(state)) });
        // Stays open, as the real one does, until the job ends or the agent goes.
        Ok(Response::new(Box::pin(tokio_stream::once(first).chain(tokio_stream::pending()))))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        Ok(Response::new(CancelJobResponse { job: Some(self.job(job::Status::Cancelling)) }))
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn write(&self, config: &str) -> PathBuf {
        let path = self.dir.path().join("agent.toml");
        std::fs::write(&path, config).unwrap();
        path
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vaultferry"));
        command.args(words.split_whitespace()).env_clear().env("HOME", self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn client(&self, words: &str) -> Command {
        let mut command = self.command(words);
        command.env("VAULTFERRY_ENDPOINT", format!("unix://{}", self.socket().display()));
        command
    }

    async fn run(&self, words: &str) -> Ran {
        Ran::of(self.client(words).output().await.unwrap())
    }
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn at_end(child: Child) -> Self {
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        Self::of(output.expect("it ends").unwrap())
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named() {
    let place = Place::new();
    let ran = place.run("summary").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.starts_with("error: AgentUnreachable: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("control.sock") && ran.stderr.contains("\nfix: "), "{}", ran.stderr);

    let ran = place.run("summary --output json").await;
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "AgentUnreachable");
    assert!(error["error"]["fix"].is_string() && error["error"]["message"].is_string());
}

#[tokio::test]
async fn a_wrong_configuration_is_78_and_wrong_usage_2() {
    let place = Place::new();
    let config = place.write("colour = 1\n[limits]\njobs = 0\n");
    for words in ["agent check-config", "agent run", "vault init", "summary"] {
        let ran = Ran::of(place.command(words).arg("--config").arg(&config).output().await.unwrap());
        assert_eq!(ran.code, Some(78), "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains("  limits.jobs: ") && ran.stderr.contains("  colour: "), "{}", ran.stderr);
    }
    assert_eq!(place.run("backup").await.code, Some(2));

    let ran = Ran::of(place.command("summary").env("VAULTFERRY_LOG_FORMAT", "xml").output().await.unwrap());
    assert_eq!(ran.code, Some(78));
}

#[tokio::test]
async fn where_a_vault_should_be_and_is_not_nobody_is_told_to_make_one() {
    let place = Place::new();
    let dir = place.dir.path();
    let state = format!("state_dir = \"{}\"\n", dir.join("state").display());
    std::fs::create_dir(dir.join("empty")).unwrap();
    for name in ["empty", "not-there"] {
        let vault = dir.join(name).display().to_string();
        let config = place.write(&format!("{state}[vault]\nlocation = \"{vault}\"\n"));
        let config = config.display().to_string();
        for (words, place_option, value) in [
            ("vault check --keyless --offline", "--location", &vault),
            ("vault check --keyless --offline", "--config", &config),
            ("vault attach", "--config", &config),
            ("vault rebuild-catalog", "--config", &config),
            ("vault key list", "--config", &config),
        ] {
            let ran = Ran::of(place.command(words).arg(place_option).arg(value).output().await.unwrap());
            let told = format!("error: VaultNotFound: there is no vault at {vault}\n");
            assert!(ran.code == Some(1) && ran.stderr.starts_with(&told), "{words} {place_option}: {}", ran.stderr);
            assert!(ran.stderr.contains("fix: Check the vault's path or address"), "{words}: {}", ran.stderr);
            assert!(!ran.stderr.contains("vault init"), "{words}: {}", ran.stderr);
        }
    }
}

#[tokio::test]
async fn check_config_prints_what_is_used_and_no_secret() {
    let place = Place::new();
    let text = "[vault]\nlocation = \"azure://account/name\"\n[vault.azure]\ncredential = \"access-key\"\naccess_key_env = \"K\"\n";
    let config = place.write(text);
    for format in ["text", "json"] {
        let mut command = place.command("agent check-config --output");
        let ran =
            Ran::of(command.arg(format).arg("--config").arg(&config).env("K", "aGlkZGVu").output().await.unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stdout.contains("azure://account/name") && ran.stdout.contains("access-key"), "{}", ran.stdout);
        assert!(!ran.stdout.contains("aGlkZGVu") && !ran.stderr.contains("aGlkZGVu"));
    }
}

#[tokio::test]
async fn the_exit_code_of_wait_is_the_jobs_outcome() {
    use job::Status::*;
    for (state, code, said) in [
        (Completed, 0, ""),
        (CompletedWithWarnings, 0, "warning: RolesMissing: no role"),
        (Failed, 1, "error: DumpFailed: pg_dump: no\nfix: mend it"),
        (Cancelled, 1, "error: Cancelled: "),
    ] {
        let place = Place::new();
        let _agent = FakeAgent::new(&[state]).serve(&place.socket());
        let ran = place.run("backup shop --wait").await;
        assert_eq!(ran.code, Some(code), "{state:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{state:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("reading: 4.0 KiB read"), "{state:?}: {}", ran.stderr);
        let ran = place.run("backup shop --wait --output json").await;
        assert_eq!(ran.code, Some(code));
        let answer: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one JSON value");
        assert_eq!(answer["job"]["status"], format!("{state:?}"));
        assert_eq!(place.run("job watch 0123").await.code, Some(code));
    }
}

#[tokio::test]
async fn answers_and_errors_of_the_agent() {
    let place = Place::new();
    let _agent = FakeAgent::new(&[job::Status::Completed]).serve(&place.socket());
    let ran = place.run("backup none").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.starts_with("error: InstanceNotFound: no instance \"none\"\nfix: "), "{}", ran.stderr);
    let ran = place.run("job list --output json").await;
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "{\"jobs\":[]}"));
    let ran = place.run("backup shop --output json").await;
    assert!(ran.stdout.contains("\"status\":\"InProgress\""), "{}", ran.stdout);
    // A service that this agent does not have.
    let ran = place.run("summary").await;
    assert!(ran.code == Some(1) && ran.stderr.starts_with("error: Internal: "), "{}", ran.stderr);
}

#[tokio::test]
async fn wait_lives_through_a_restart_of_the_agent() {
    let place = Place::new();
    let agent = FakeAgent::new(&[job::Status::InProgress, job::Status::Completed]);
    let before = agent.serve(&place.socket());
    let child = place.client("backup shop --wait").spawn().unwrap();
    until("the first watch", || agent.watches.load(Ordering::SeqCst) == 1).await;
    drop(before);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _after = agent.serve(&place.socket());
    let ran = Ran::at_end(child).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("Completed"), "{}", ran.stdout);
    assert_eq!(agent.backups.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn ctrl_c_stops_the_watching_only() {
    let place = Place::new();
    let agent = FakeAgent::new(&[job::Status::InProgress]);
    let _served = agent.serve(&place.socket());
    let child = place.client("backup shop --wait").spawn().unwrap();
    until("the watch", || agent.watches.load(Ordering::SeqCst) == 1).await;
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ran = Ran::at_end(child).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("vaultferry job cancel 0123"), "{}", ran.stderr);
}
