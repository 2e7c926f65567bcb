//! The agent's command line, as people and scripts use it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Agent;
use crate::restic::Repository;
use crate::{binary, policy, process, wait_for};

/// What a command answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Reply {
    /// The reply of a command that must have succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The last JSON value on standard output: with `--wait`, the last state.
    #[track_caller]
    pub fn json(&self) -> Value {
        let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&self.stdout).into_iter().collect();
        let values =
            values.unwrap_or_else(|error| panic!("not JSON ({error}): {}\nstderr: {}", self.stdout, self.stderr));
        values.into_iter().next_back().unwrap_or_else(|| panic!("nothing on stdout\nstderr: {}", self.stderr))
    }

    /// The job in the answer.
    #[track_caller]
    pub fn job(&self) -> Job {
        let json = self.json();
        Job(json.get("job").cloned().unwrap_or(json))
    }

    /// A refusal or a failed job: exit code 1, the reason's name, and a fix that says something, in the text and in the JSON format.
    #[track_caller]
    pub fn assert_failed(&self, reason: &str) {
        let both = format!("{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.code, 1, "exit code\n{both}");
        let json = self.stderr.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let (told, fix) = match json {
            Some(json) => {
                let part = |name: &str| json["error"][name].as_str().unwrap_or_default().to_owned();
                (part("reason"), part("fix"))
            }
            None => {
                let part =
                    |name: &str| self.stderr.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                (part("error: ").split(':').next().unwrap_or_default().to_owned(), part("fix: ").to_owned())
            }
        };
        assert_eq!(told, reason, "{both}");
        assert!(fix.len() > 10, "no fix is told:\n{both}");
    }
}

/// A job as the answer shows it.
#[derive(Debug, Clone)]
pub struct Job(pub Value);

impl Job {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// InProgress, Completed, ….
    pub fn status(&self) -> &str {
        self.text("status")
    }

    /// The point that a backup made.
    pub fn point_id(&self) -> &str {
        self.text("point_id")
    }

    /// The reason of its failure, or nothing.
    pub fn reason(&self) -> &str {
        self.0["problem"]["reason"].as_str().unwrap_or_default()
    }

    /// A figure of its progress, for example `bytes_read`.
    pub fn progress(&self, figure: &str) -> u64 {
        number(&self.0["progress"][figure])
    }

    /// True when it will not change any more.
    pub fn ended(&self) -> bool {
        !matches!(self.status(), "InProgress" | "Cancelling")
    }

    /// The job, which must have completed.
    #[track_caller]
    pub fn completed(self) -> Self {
        assert_eq!(self.status(), "Completed", "{:#}", self.0);
        self
    }
}

/// A 64-bit integer of proto3 JSON is a string.
pub fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

impl Agent {
    /// Runs `vaultferry ARGUMENTS` against this agent, for ten minutes at most.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Reply {
        let mut command = Command::new(binary());
        command.args(arguments).env("VAULTFERRY_ENDPOINT", format!("unix://{}/control.sock", self.dir().display()));
        let output = process::run(&mut command, b"", Duration::from_secs(600));
        Reply { code: output.code, stdout: output.text(), stderr: output.stderr }
    }

    /// `vault init` with the agent's configuration and environment; no agent needs to run.
    #[track_caller]
    pub fn init_vault(&self) -> Reply {
        let mut command = Command::new(binary());
        command.args(["vault", "init", "--config"]).arg(self.config_path());
        self.set_environment(&mut command);
        let output = process::run(&mut command, b"", Duration::from_secs(120));
        Reply { code: output.code, stdout: output.text(), stderr: output.stderr }
    }

    /// A command that needs no running agent, with the agent's configuration and environment, as JSON.
    #[track_caller]
    pub fn offline(&self, arguments: &[&str], stdin: &[u8]) -> Reply {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--output", "json", "--config"]).arg(self.config_path());
        self.set_environment(&mut command);
        let output = process::run(&mut command, stdin, Duration::from_secs(300));
        Reply { code: output.code, stdout: output.text(), stderr: output.stderr }
    }

    /// [`Agent::cli`] with `--output json`.
    #[track_caller]
    pub fn cli_json(&self, arguments: &[&str]) -> Reply {
        self.cli(&[arguments, &["--output", "json"]].concat())
    }

    /// Makes a policy that does not fire while the test runs.
    #[track_caller]
    pub fn create_policy(&self, name: &str) {
        let path = self.write(&format!("policy-{name}.toml"), &policy::quiet(name));
        self.cli(&["policy", "create", "-f", &path.display().to_string()]).success();
    }

    /// Protects a source under a name, with the policy `quiet`, which is made if it is not there; the instance's id.
    #[track_caller]
    pub fn protect(&self, name: &str, source: &str, passfile: &Path) -> String {
        self.create_policy("quiet");
        let passfile = passfile.display().to_string();
        let arguments =
            ["instance", "create", "--source", source, "--policy", "quiet", "--name", name, "--passfile", &passfile];
        let json = self.cli_json(&arguments).success().json();
        json["instances"][0]["id"].as_str().expect("an instance has an id").to_owned()
    }

    /// A backup that must complete.
    #[track_caller]
    pub fn backup(&self, instance: &str) -> Job {
        self.cli_json(&["backup", instance, "--wait"]).success().job().completed()
    }

    /// Starts a backup and does not wait for it.
    #[track_caller]
    pub fn start_backup(&self, instance: &str) -> Job {
        self.cli_json(&["backup", instance]).success().job()
    }

    /// The job now.
    #[track_caller]
    pub fn job(&self, id: &str) -> Job {
        self.cli_json(&["job", "show", id]).success().job()
    }

    /// Waits until the job is as wanted.
    #[track_caller]
    pub fn wait_job(&self, id: &str, what: &str, limit: Duration, wanted: impl Fn(&Job) -> bool) -> Job {
        wait_for(what, limit, || Some(self.job(id)).filter(|job| wanted(job)))
    }

    /// Waits for the job's end.
    #[track_caller]
    pub fn wait_job_end(&self, id: &str) -> Job {
        self.wait_job(id, "the job's end", Duration::from_secs(300), Job::ended)
    }

    /// The recovery points, newest first.
    #[track_caller]
    pub fn points(&self, instance: &str) -> Vec<Value> {
        let json = self.cli_json(&["point", "list", instance]).success().json();
        json["points"].as_array().expect("a list of points").clone()
    }

    /// Restores a point as a new database of a server on 127.0.0.1; the reply, whatever it is.
    #[track_caller]
    pub fn try_restore(&self, instance: &str, point: &str, port: u16, passfile: &Path, database: &str) -> Reply {
        let target = format!("postgres://postgres@127.0.0.1:{port}/");
        let passfile = passfile.display().to_string();
        let target = ["--target", &target, "--database", database, "--passfile", &passfile];
        self.cli_json(&[&["restore", "database", instance, "--point", point, "--wait"], &target[..]].concat())
    }

    /// Restores a point as a new database, which must succeed without a warning.
    #[track_caller]
    pub fn restore(&self, instance: &str, point: &str, server: &crate::postgres::Server, database: &str) {
        self.try_restore(instance, point, server.port(), server.passfile(), database).success().job().completed();
    }

    /// The instance's repository, for restic.
    #[track_caller]
    pub fn export(&self, instance: &str) -> Repository {
        Repository::from_export(&self.cli(&["vault", "key", "export", instance]).success().stdout)
    }
}
