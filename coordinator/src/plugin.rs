//! The host of plugins: starts a plugin's process, speaks to it, watches it, and makes sure that it is gone.
//!
//! Invariants:
//! - One process for one piece of work. It leads its own process group, and the group is killed when the host is done with it.
//! - The process gets a clean environment: what it needs to run, and the variables that its own job names. Never a secret in its arguments.
//! - Its standard input is the control pipe: when this process dies, the pipe closes, and the plugin stops itself.
//! - A plugin that is silent for [`SILENCE`] is taken for dead; one that does not end a call with one answer in that call's own time, too
//!   ([`Plugin::answer`]).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use vaultferry_proto::plugin::v1 as wire;
use vaultferry_proto::plugin::v1::maintenance_plugin_client::MaintenancePluginClient;
use vaultferry_proto::plugin::v1::workload_plugin_client::WorkloadPluginClient;
use vaultferry_proto::{Problem, Reason};

use crate::catalog::PluginProcess;

/// It makes staged backups, as far as its types go: what looks into payload stays outside of `src`.
#[cfg(test)]
#[path = "../tests/hanging/hanging.rs"]
pub(crate) mod hanging;
#[cfg(test)]
pub(crate) mod in_process;
pub mod reap;
#[cfg(unix)]
mod session;

/// The type of the plugin that checks, prunes and moves what lies in the vault; it has a service of its own.
pub const MAINTENANCE: &str = "maintenance";
/// First words of the handshake line: the protocol's name and version.
const HANDSHAKE: &str = "vaultferry-plugin|1|unix://";
/// A process that has not said its line by then will not.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest time between two events of a running plugin. It promises one every 5 s.
pub const SILENCE: Duration = Duration::from_secs(60);
/// How long a plugin may take to clean up after it was told to stop; it gives itself 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// How much of a plugin's standard error is kept for a failure's message.
const LAST_LINES: usize = 5;
/// A list of packs comes in pieces of 4096 x 44 bytes. The longest answer is what was found: 10,000 databases of a server, each with its URI,
/// its identity and what is wrong with it, 1.5 KiB at most, as names may be three times as long there. More is a plugin out of order.
const MAX_MESSAGE: usize = 16 << 20;

/// How a plugin is started.
#[derive(Debug, Clone)]
pub struct Command {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The section of the configuration that is named like the plugin, as JSON.
    pub settings_json: String,
    /// Served here instead of in a process.
    #[cfg(test)]
    pub(crate) in_process: Option<Arc<dyn in_process::Host>>,
}

/// What a plugin process needs to be started.
#[derive(Debug)]
pub struct Start<'a> {
    /// Which program.
    pub command: &'a Command,
    /// `postgres`, …; the plugin must say the same.
    pub source_type: &'a str,
    /// For logs: the job, or what else the plugin is for.
    pub purpose: &'a str,
    /// Where the plugin's private folder is made.
    pub runtime_dir: &'a Path,
    /// Variables of this process's environment that the plugin may see.
    pub pass_env: Vec<String>,
}

/// A running plugin. Dropping it kills its process group.
#[derive(Debug)]
pub struct Plugin {
    host: Host,
    channel: Channel,
}

/// Where a plugin runs.
#[derive(Debug)]
enum Host {
    Process(Box<Process>),
    #[cfg(test)]
    Here(Box<dyn in_process::Guest>),
}

/// A plugin's process. Dropping it kills its group.
#[derive(Debug)]
struct Process {
    child: Child,
    pid: u32,
    control: Option<ChildStdin>,
    last_lines: Arc<Mutex<Vec<String>>>,
    log: AbortOnDropHandle<()>,
    /// Removed with the plugin.
    _dir: tempdir::Dir,
}

impl Plugin {
    /// Starts the process, reads its handshake, connects, and asks what it is.
    pub async fn start(start: Start<'_>) -> Result<Self, Problem> {
        #[cfg(test)]
        if let Some(host) = &start.command.in_process {
            let (guest, channel) = in_process::start(&**host);
            let mut plugin = Self { host: Host::Here(guest), channel };
            plugin.check(start.source_type).await?;
            return Ok(plugin);
        }
        let cannot = |detail: String| {
            Problem::new(
                Reason::PluginNotFound,
                format!("the plugin for {} cannot be started: {detail}", start.source_type),
            )
        };
        let dir = tempdir::Dir::create(start.runtime_dir).map_err(|error| cannot(format!("its folder: {error}")))?;
        let mut command = tokio::process::Command::new(&start.command.program);
        command.args(&start.command.args).env_clear().env("VAULTFERRY_PLUGIN_DIR", dir.path());
        command.env("VAULTFERRY_LOG_FORMAT", "json");
        // A store behind a private authority is trusted by all processes or by none.
        let trust = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
        let wanted = ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "VAULTFERRY_LOG", "SYSTEMROOT"].into_iter().chain(trust);
        for name in wanted.chain(start.pass_env.iter().map(String::as_str)) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(vaultferry_vault::network::for_plugins());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        session::of_its_own(&mut command);
        let mut child =
            command.spawn().map_err(|error| cannot(format!("{}: {error}", start.command.program.display())))?;
        let pid = child.id().ok_or_else(|| cannot("it ended at once".to_owned()))?;
        let control = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let last_lines = Arc::new(Mutex::new(Vec::new()));
        let log =
            tokio::spawn(copy_log(stderr, start.source_type.to_owned(), start.purpose.to_owned(), last_lines.clone()));
        let mut starting = Starting { child: Some(child), pid };
        let handshake = async {
            let mut line = String::new();
            let stdout = stdout.ok_or_else(|| "it has no standard output".to_owned())?;
            BufReader::new(stdout).read_line(&mut line).await.map_err(|error| error.to_string())?;
            let path = line.trim_end().strip_prefix(HANDSHAKE).map(PathBuf::from);
            path.ok_or_else(|| format!("its first line was {:?}", line.trim_end()))
        };
        let shaken = tokio::time::timeout(START_TIMEOUT, handshake).await;
        let path = match shaken {
            Ok(Ok(path)) => path,
            Ok(Err(detail)) => return Err(cannot(format!("{detail}{}", words(&last_lines)))),
            Err(_) => return Err(cannot(format!("it said nothing for {START_TIMEOUT:?}{}", words(&last_lines)))),
        };
        if !path.starts_with(dir.path()) {
            return Err(cannot(format!("it listens at {}, outside of its folder", path.display())));
        }
        let channel = connect(path).await.map_err(|error| cannot(error.to_string()))?;
        let child = starting.child.take().expect("taken nowhere else");
        let process = Process { child, pid, control, last_lines, log: AbortOnDropHandle::new(log), _dir: dir };
        let mut plugin = Self { host: Host::Process(Box::new(process)), channel };
        plugin.check(start.source_type).await?;
        Ok(plugin)
    }

    async fn check(&mut self, source_type: &str) -> Result<(), Problem> {
        let request = wire::GetInfoRequest {};
        let (mut maintenance, mut client) = (self.maintenance(), self.client());
        let info = match source_type {
            MAINTENANCE => self.begin(maintenance.get_info(request)).await?,
            _ => self.begin(client.get_info(request)).await?,
        };
        if info.source_type != source_type {
            let message = format!("the plugin for {source_type} says that it is for {:?}", info.source_type);
            return Err(Problem::new(Reason::PluginProtocol, message));
        }
        Ok(())
    }

    /// A workload plugin's interface.
    pub fn client(&self) -> WorkloadPluginClient<Channel> {
        WorkloadPluginClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The maintenance plugin's interface.
    pub fn maintenance(&self) -> MaintenancePluginClient<Channel> {
        MaintenancePluginClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Begins a call whose answer comes at once, and the rest of it in events. A plugin that hangs before it answers is silent, too.
    pub async fn begin<T>(
        &mut self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Problem> {
        self.answer(SILENCE, call).await
    }

    /// Waits for a call that is answered once, at its end, and hangs when that takes longer than `limit`.
    pub async fn answer<T>(
        &mut self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Problem> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.problem(&status).await),
            Err(_) => Err(Self::silent_for(limit)),
        }
    }

    /// The problem of a plugin that has said nothing for [`SILENCE`].
    pub fn silent() -> Problem {
        Self::silent_for(SILENCE)
    }

    fn silent_for(time: Duration) -> Problem {
        Problem::new(Reason::PluginTimeout, format!("the plugin gave no sign of life for {time:?}"))
    }

    /// What is to be remembered of the process for the time after a crash of this one.
    pub fn process(&self, job_id: &str) -> PluginProcess {
        let pid = match &self.host {
            Host::Process(process) => process.pid,
            #[cfg(test)]
            Host::Here(_) => 0,
        };
        PluginProcess {
            job_id: job_id.to_owned(),
            pid,
            start_time: vaultferry_vault::process::start_time(pid).unwrap_or(0),
        }
    }

    /// The problem behind a failed call: the plugin's own, or that its process is gone, with its last words.
    pub async fn problem(&mut self, status: &tonic::Status) -> Problem {
        let problem = Problem::from_status(status, Reason::PluginCrashed);
        if problem.reason != Reason::PluginCrashed {
            return problem;
        }
        #[cfg_attr(not(test), expect(clippy::infallible_destructuring_match, reason = "tests have another host"))]
        let process = match &mut self.host {
            Host::Process(process) => process,
            #[cfg(test)]
            Host::Here(_) => return problem,
        };
        // The connection broke. Its process has died, or will be found alive; only a moment tells.
        let exit = tokio::time::timeout(Duration::from_secs(5), process.child.wait()).await;
        let how = match exit {
            Ok(Ok(status)) => format!("the plugin's process ended ({status})"),
            Ok(Err(error)) => format!("the plugin's process cannot be asked: {error}"),
            Err(_) => format!("the connection to the plugin broke: {}", status.message()),
        };
        Problem::new(Reason::PluginCrashed, format!("{how}{}", words(&process.last_lines)))
    }

    /// Tells the plugin to end, waits for it, kills what is left of its group.
    pub async fn stop(self) {
        match self.host {
            Host::Process(process) => process.stop().await,
            #[cfg(test)]
            Host::Here(mut guest) => {
                let _ = tokio::time::timeout(STOP_TIMEOUT, guest.stop()).await;
            }
        }
    }
}

impl Process {
    async fn stop(mut self) {
        drop(self.control.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!(pid = self.pid, "a plugin did not stop within {STOP_TIMEOUT:?}; killing it");
        }
        // Dropping kills the group; the log's last lines are read before.
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.log).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        reap::kill_group(self.pid);
    }
}

/// Kills a plugin that has not got as far as being one.
struct Starting {
    child: Option<Child>,
    pid: u32,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.child.is_some() {
            reap::kill_group(self.pid);
        }
    }
}

async fn connect(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    // The address is never looked up; the connector below knows the socket.
    let endpoint = Endpoint::from_static("http://plugin.invalid");
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { stream_to(&path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

#[cfg(unix)]
async fn stream_to(path: &Path) -> std::io::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(path).await
}

#[cfg(not(unix))]
async fn stream_to(_: &Path) -> std::io::Result<tokio::net::TcpStream> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "plugins are not supported on this system yet"))
}

/// The plugin's standard error becomes our log, line by line.
async fn copy_log(
    stderr: Option<tokio::process::ChildStderr>,
    source_type: String,
    purpose: String,
    last_lines: Arc<Mutex<Vec<String>>>,
) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let (level, text) = read_log(&String::from_utf8_lossy(&line));
        match level {
            tracing::Level::ERROR => tracing::error!(target: "plugin", source_type, purpose, "{text}"),
            tracing::Level::WARN => tracing::warn!(target: "plugin", source_type, purpose, "{text}"),
            tracing::Level::INFO => tracing::info!(target: "plugin", source_type, purpose, "{text}"),
            _ => tracing::debug!(target: "plugin", source_type, purpose, "{text}"),
        }
        let mut last = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_LINES {
            last.remove(0);
        }
        last.push(text);
    }
}

/// A line's level and text: of our own plugins JSON, of others (and of a panic) whatever they write.
fn read_log(line: &str) -> (tracing::Level, String) {
    let short = |text: &str| text.trim_end().chars().take(2000).collect::<String>();
    let Ok(serde_json::Value::Object(event)) = serde_json::from_str(line) else {
        return (tracing::Level::INFO, short(line));
    };
    let text_of = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let level = event.get("level").and_then(|level| level.as_str()?.parse().ok()).unwrap_or(tracing::Level::INFO);
    let mut text = event.get("message").map(text_of).unwrap_or_default();
    for (name, value) in &event {
        if !matches!(name.as_str(), "timestamp" | "level" | "target" | "message") {
            text.push_str(&format!(" {name}={}", text_of(value)));
        }
    }
    (level, short(&text))
}

fn words(last_lines: &Mutex<Vec<String>>) -> String {
    let last = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_empty() { String::new() } else { format!("; its last words: {}", last.join(" / ")) }
}

/// The plugin's private folder.
mod tempdir {
    use std::path::{Path, PathBuf};

    /// Removed with all that is in it when dropped.
    #[derive(Debug)]
    pub(super) struct Dir(PathBuf);

    impl Dir {
        /// Mode 0700. The name is short: a socket's path has 107 bytes at most.
        pub(super) fn create(parent: &Path) -> std::io::Result<Self> {
            let name = uuid::Uuid::new_v4().simple().to_string();
            let path = parent.join(format!("p-{}", &name[..12]));
            #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has modes"))]
            let mut builder = std::fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(&path)?;
            Ok(Self(path))
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Silent;

    #[derive(Debug)]
    struct Pipe {
        _theirs: tokio::io::DuplexStream,
    }

    #[async_trait::async_trait]
    impl in_process::Guest for Pipe {
        async fn stop(&mut self) {}
    }

    impl in_process::Host for Silent {
        fn serve(&self) -> (Box<dyn in_process::Guest>, Box<dyn in_process::Io>) {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            (Box::new(Pipe { _theirs: theirs }), Box::new(ours))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_hangs_before_it_answers_is_taken_for_dead() {
        let in_process: Arc<dyn in_process::Host> = Arc::new(Silent);
        let command = Command {
            program: PathBuf::new(),
            args: Vec::new(),
            settings_json: String::new(),
            in_process: Some(in_process),
        };
        let start = Start {
            command: &command,
            source_type: "postgres",
            purpose: "test",
            runtime_dir: Path::new("/nowhere"),
            pass_env: Vec::new(),
        };
        let begun = tokio::time::Instant::now();
        let problem = Plugin::start(start).await.expect_err("nobody answers");
        assert_eq!((problem.reason, begun.elapsed().as_secs()), (Reason::PluginTimeout, SILENCE.as_secs()));
    }

    #[test]
    fn a_plugins_log_lines_keep_their_level_and_fields() {
        let line = r#"{"timestamp":"t","level":"WARN","message":"slow","bytes":7,"target":"x"}"#;
        assert_eq!(read_log(line), (tracing::Level::WARN, "slow bytes=7".to_owned()));
        assert_eq!(read_log("thread panicked\r"), (tracing::Level::INFO, "thread panicked".to_owned()));
    }
}
