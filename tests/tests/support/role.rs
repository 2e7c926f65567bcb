//! A role with some rights, what the readiness check says to it, and what mends that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use vaultferry_tests::agent::{Agent, Reply};
use vaultferry_tests::postgres::{Server, quote};
use vaultferry_tests::{process, workspace};

/// A role whose name has to be quoted wherever it stands.
pub const ROLE: &str = "Sicherung \"1\" it's";
pub const ROLE_IN_URI: &str = "Sicherung%20%221%22%20it%27s";
pub const PASSWORD: &str = "a-password";
/// Longest run of a script.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);

/// Makes [`ROLE`], which may log in and nothing else.
#[track_caller]
pub fn create_role(server: &Server) {
    server.psql("postgres", &format!("create role {} login password '{PASSWORD}'", quote(ROLE)));
}

/// The database as [`ROLE`] sees it.
pub fn uri(port: u16, database: &str) -> String {
    format!("postgres://{ROLE_IN_URI}@127.0.0.1:{port}/{database}")
}

pub fn passfile(agent: &Agent) -> PathBuf {
    agent.write("passfile-role", &format!("*:*:*:*:{PASSWORD}\n"))
}

pub fn create(agent: &Agent, source: &str, passfile: &Path) -> Reply {
    let passfile = passfile.display().to_string();
    agent.cli_json(&["instance", "create", "--source", source, "--policy", "quiet", "--passfile", &passfile])
}

#[track_caller]
pub fn findings(agent: &Agent, instance: &str) -> (i32, Vec<Value>) {
    let reply = agent.cli_json(&["instance", "validate", instance]);
    (reply.code, reply.json()["findings"].as_array().expect("a list of findings").clone())
}

pub fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_default()
}

pub fn objects(finding: &Value) -> Vec<&str> {
    finding["objects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Runs what a finding says must be run.
#[track_caller]
pub fn apply(server: &Server, database: &str, fix: &str) {
    assert!(fix.lines().any(|line| !line.starts_with("--")), "nothing to run: {fix}");
    server.psql(database, fix);
}

/// `deploy/grant-backup-role.sql`, as one runs it.
#[track_caller]
pub fn run_script(server: &Server, database: &str, per_database: bool) {
    let script = workspace().join("deploy/grant-backup-role.sql");
    let mut psql = server.client("psql", database);
    psql.args(["-X", "-q", "-v", &format!("role={ROLE}")]);
    if per_database {
        psql.args(["-v", "per_database=1"]);
    }
    process::run(psql.arg("-f").arg(script), b"", SCRIPT_LIMIT).success();
}
