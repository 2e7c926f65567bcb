//! Every version of PostgreSQL: a backup of each comes back equal, to the same server and to the newest; the client programs that are there
//! are enough, or what is missing is named before anything starts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vaultferry_tests::agent::{Agent, Setup};
use vaultferry_tests::compare::{Contents, assert_equal, contents};
use vaultferry_tests::heavy;
use vaultferry_tests::postgres::{BIN_DIR, Server, versions};
use vaultferry_tests::scratch::Scratch;

const NEWEST: u32 = 18;

/// The roles that the sample needs at a server.
const ROLES: &str = "create role \"Bürö 'Admin'\" nologin; create role leser nologin";

/// Servers before 11 have another word in it, which no pg_dump since 11 writes: a dump with an operator does not go back to them.
const OPERATOR: &str = "create operator === (leftarg = text, rightarg = text, function = texteq, commutator = ===)";

/// The `[postgres]` section that names these folders of client programs and no others.
fn clients<P: AsRef<Path>>(dirs: &[P]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| format!("\"{}\"", dir.as_ref().display())).collect();
    format!("[postgres]\nclient_dirs = [{}]\n", dirs.join(", "))
}

/// A server of this version with the database `shop`.
#[track_caller]
fn filled(major: u32) -> Option<Server> {
    let server = versions::start(major)?;
    server.create_database("shop");
    server.psql("shop", include_str!("../src/sample/since_10.sql"));
    if major >= 11 {
        server.psql("shop", OPERATOR);
    }
    Some(server)
}

/// What is equal at servers of all versions, when the same pg_dump looks at them.
fn comparable(contents: Contents) -> Contents {
    let lines = contents.schema.lines();
    // Settings that older servers do not have, and names that newer ones make up.
    let lines = lines.filter(|line| !line.starts_with("SET default_table_access_method"));
    let lines = lines.filter(|line| !line.contains("multirange_type_name"));
    let lines = lines.map(|line| {
        let line = line.trim_end_matches(',').replace("EXECUTE PROCEDURE", "EXECUTE FUNCTION");
        match line.split_once(" CONSTRAINT ") {
            Some((column, rest)) if rest.ends_with("_not_null NOT NULL") => format!("{column} NOT NULL"),
            _ => line,
        }
    });
    Contents { schema: lines.collect::<Vec<_>>().join("\n"), data: contents.data }
}

/// From this version to itself and to the newest.
fn moves(major: u32) {
    let (Some(server), Some(newest)) = (filled(major), versions::start(NEWEST)) else { return };
    let agent = Setup::new().config(&clients(&versions::client_dirs())).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    let original = contents(&server, "shop");
    assert!(original.data.len() > 20, "{:#?}", original.data);
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&original, &contents(&server, "back"));
    newest.psql("postgres", ROLES);
    agent.restore("shop", "latest", &newest, "moved");
    assert_equal(&comparable(original), &comparable(contents(&newest, "moved")));
}

#[test]
fn matrix_10_to_itself_and_to_18() {
    moves(10);
}

#[test]
fn matrix_13_to_itself_and_to_18() {
    moves(13);
}

#[test]
fn matrix_15_to_itself_and_to_18() {
    moves(15);
}

#[test]
fn matrix_18_to_itself_and_to_another_18() {
    moves(18);
}

#[test]
fn heavy_matrix_of_all_versions() {
    if heavy() {
        versions::ALL.into_iter().filter(|major| !versions::BASE.contains(major)).for_each(moves);
    }
}

/// An agent that has backed up `shop` with the newest client programs only.
#[track_caller]
fn with_newest_client(server: &Server) -> Option<Agent> {
    let agent = Setup::new().config(&clients(&[versions::client_dir(NEWEST)?])).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    Some(agent)
}

/// pg_restore 18 begins with a line that a server before 17 does not know. The sample has the same words as data, and in a comment.
#[test]
fn matrix_15_with_the_newest_client_only() {
    let Some(server) = filled(15) else { return };
    let Some(agent) = with_newest_client(&server) else { return };
    agent.restore("shop", "latest", &server, "back");
    assert_equal(&contents(&server, "shop"), &contents(&server, "back"));
}

/// Down, as far as PostgreSQL allows: 15 knows all that is in the sample; 13 has no multiranges, which is told, and nothing is left there.
#[test]
fn matrix_18_down_to_15_and_not_to_13() {
    let (Some(server), Some(older), Some(oldest)) = (filled(18), versions::start(15), versions::start(13)) else {
        return;
    };
    let Some(agent) = with_newest_client(&server) else { return };
    older.psql("postgres", ROLES);
    agent.restore("shop", "latest", &older, "moved");
    assert_equal(&comparable(contents(&server, "shop")), &comparable(contents(&older, "moved")));
    oldest.psql("postgres", ROLES);
    agent.expect_log("RestoreFailed");
    let reply = agent.try_restore("shop", "latest", oldest.port(), oldest.passfile(), "moved");
    reply.assert_failed("RestoreFailed");
    assert!(reply.stderr.contains("multirange_type_name"), "psql's words are not told: {}", reply.stderr);
    assert!(oldest.databases().is_empty(), "{:?}", oldest.databases());
}

/// A server before 12 has no table access methods, of which every dump of a newer one speaks.
#[test]
fn matrix_13_down_to_10() {
    let (Some(server), Some(older)) = (versions::start(13), versions::start(10)) else { return };
    server.create_database("shop");
    server
        .psql("shop", "create table goods (id serial primary key, v text); insert into goods (v) values ('a'), ('b')");
    let agent = Setup::new().config(&clients(&versions::client_dirs())).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.restore("shop", "latest", &older, "moved");
    assert_equal(&comparable(contents(&server, "shop")), &comparable(contents(&older, "moved")));
}

/// Without psql there is no way from pg_restore 18 to a server before 17: told before a database is made.
#[test]
fn matrix_15_without_psql() {
    let Some(server) = filled(15) else { return };
    let Some(newest) = versions::client_dir(NEWEST) else { return };
    let only = Scratch::new("no-psql");
    for program in ["pg_dump", "pg_dumpall", "pg_restore"] {
        symlink(newest.join(program), only.join(program)).expect("link a program");
    }
    let agent = Setup::new().config(&clients(&[only.path()])).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("ClientNotFound");
    let reply = agent.try_restore("shop", "latest", server.port(), server.passfile(), "back");
    reply.assert_failed("ClientNotFound");
    assert!(reply.stderr.contains("psql") && reply.stderr.contains("15"), "{}", reply.stderr);
    assert_eq!(server.databases(), ["shop"]);
}

/// Neither a server nor an archive that is newer than every client program gets as far as being touched.
#[test]
fn matrix_18_with_an_older_client() {
    let Some(server) = filled(18) else { return };
    let Some(newest) = versions::client_dir(NEWEST) else { return };
    let mut agent = Setup::new().config(&clients(&[&newest])).start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    use_clients(&mut agent, &newest, Path::new(BIN_DIR));
    agent.expect_log("ClientTooOld");
    let reply = agent.try_restore("shop", "latest", server.port(), server.passfile(), "back");
    reply.assert_failed("ClientTooOld");
    assert_eq!(server.databases(), ["shop"]);
    let reply = agent.cli_json(&["backup", "shop", "--wait"]);
    reply.assert_failed("ClientTooOld");
    assert!(reply.stderr.contains("version 18") && reply.stderr.contains("version 15"), "{}", reply.stderr);
    assert_eq!(agent.points("shop").len(), 1);
    use_clients(&mut agent, Path::new(BIN_DIR), &newest);
    agent.backup("shop");
}

/// Restarts the agent with another folder of client programs.
#[track_caller]
fn use_clients(agent: &mut Agent, before: &Path, now: &Path) {
    let config = fs::read_to_string(agent.config_path()).expect("read the configuration");
    let (before, now) = (before.display().to_string(), now.display().to_string());
    assert!(config.contains(&before), "{config}");
    fs::write(agent.config_path(), config.replace(&before, &now)).expect("write the configuration");
    agent.restart();
}
