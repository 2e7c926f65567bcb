//! A database to log in to, and the three commands that do.

use vaultferry_tests::agent::{Agent, Reply};
use vaultferry_tests::postgres::Server;

/// Asks a server with these flags of the login.
pub fn discover(agent: &Agent, uri: &str, login: &[&str]) -> Reply {
    agent.cli_json(&[&["discover", "postgres", uri][..], login].concat())
}

pub fn protect(agent: &Agent, source: &str, login: &[&str]) -> Reply {
    let create = ["instance", "create", "--source", source, "--policy", "quiet", "--name", "shop"];
    agent.cli_json(&[&create[..], login].concat())
}

pub fn backup(agent: &Agent) -> Reply {
    agent.cli_json(&["backup", "shop", "--wait"])
}

/// The database `shop`, of one table.
#[track_caller]
pub fn shop(server: &Server) {
    server.create_database("shop");
    server.psql("shop", "create table sales (n integer); insert into sales select generate_series(1, 1000)");
}
