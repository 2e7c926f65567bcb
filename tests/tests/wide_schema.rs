//! A schema as wide as PostgreSQL's own regression database comes back equal.
//!
//! Not in it: security labels, which need a module that provides them and that no package has.

use vaultferry_tests::agent::Setup;
use vaultferry_tests::compare::{assert_equal, contents};
use vaultferry_tests::postgres::{Server, versions};

/// Names every catalog of a database that has no row of a user's object.
const UNUSED_CATALOGS: &str = "
select format('select %L where not exists (select from %s where oid >= 16384)', c.relname, c.oid::regclass)
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'oid'
where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r' and not c.relisshared order by c.relname
\\gexec";

/// Every kind that these catalogs tell apart.
const KINDS: &str = "
select string_agg(distinct relkind::text, '') from pg_class where oid >= 16384
union all select string_agg(distinct prokind::text, '') from pg_proc where oid >= 16384
union all select string_agg(distinct typtype::text, '') from pg_type where oid >= 16384
union all select string_agg(distinct contype::text, '') from pg_constraint where oid >= 16384
union all select string_agg(distinct aggkind::text, '') from pg_aggregate where aggfnoid >= 16384
union all select string_agg(distinct partstrat::text, '') from pg_partitioned_table
union all select string_agg(distinct amtype::text, '') from pg_am where oid >= 16384";

/// In the order above: tables, indexes, sequences, views; functions, procedures, aggregates, window functions; types; constraints (a newer server
/// counts NOT NULL among them); aggregates; partitions by range, list, hash; access methods.
const ALL_KINDS: [&str; 7] = ["IScfimprtv", "afpw", "bcdempr", "cfptux", "hno", "hlr", "it"];

/// Loads the schema, and checks that no kind of object is missing in it.
#[track_caller]
fn fill(server: &mut Server) {
    // What it says of publications is not what is tested here.
    server.psql("postgres", "alter system set wal_level = 'logical';\nalter system set max_wal_senders = 5;");
    server.restart();
    server.create_database("wide");
    server.psql("wide", include_str!("../src/sample/wide.sql"));
    assert_eq!(server.psql("wide", UNUSED_CATALOGS), "", "kinds of objects that the sample does not have");
    let kinds = server.psql("wide", KINDS);
    let kinds: Vec<String> = kinds.lines().map(|line| line.replace("cfnptux", "cfptux")).collect();
    assert_eq!(kinds, ALL_KINDS);
}

fn comes_back(mut server: Server, config: &str, with_subscription: bool) {
    fill(&mut server);
    if !with_subscription {
        server.psql("wide", "drop subscription \"to nowhere\"");
    }
    let agent = Setup::new().config(config).start();
    agent.protect("wide", &server.uri("wide"), server.passfile());
    agent.backup("wide");
    // A subscription is restored without connecting to anybody, which the server remarks upon.
    for text in ["pg_restore says", "subscri"] {
        agent.expect_log(text);
    }
    let reply = agent.try_restore("wide", "latest", server.port(), server.passfile(), "back");
    let job = reply.success().job();
    assert!(job.status().starts_with("Completed"), "{:#}", job.0);
    assert_equal(&contents(&server, "wide"), &contents(&server, "back"));
}

#[test]
fn every_kind_of_object_comes_back() {
    comes_back(Server::start(), "", true);
}

/// The same at the newest server with the newest client, and at an older one with it, where all of it goes through psql.
#[test]
fn matrix_every_kind_of_object_comes_back_with_the_newest_client() {
    let Some(client_dir) = versions::client_dir(18) else { return };
    let config = format!("[postgres]\nclient_dirs = [\"{}\"]\n", client_dir.display());
    for major in [18, 15] {
        if let Some(server) = versions::start(major) {
            // pg_dump writes a subscription with all the parameters that its own version has; a server before 16 refuses them.
            comes_back(server, &config, major == 18);
        }
    }
}

/// Rows by the hash of an enum, on two levels, and an ordinary table beside them.
const STREWN: &str = r"
select format('create type colour as enum (%s)', string_agg(quote_literal('c' || i), ', ')) from generate_series(1, 20) as i
\gexec
create table strewn (id integer, colour colour, v text) partition by hash (colour);
create table strewn_0 partition of strewn for values with (modulus 4, remainder 0);
create table strewn_1 partition of strewn for values with (modulus 4, remainder 1);
create table strewn_2 partition of strewn for values with (modulus 4, remainder 2);
create table strewn_3 partition of strewn for values with (modulus 4, remainder 3) partition by hash (id);
create table strewn_3_all partition of strewn_3 for values with (modulus 1, remainder 0);
insert into strewn select i, (enum_range(null::colour))[1 + i % 20], 'row ' || i from generate_series(1, 5000) as i;
create table ordinary as select i from generate_series(1, 7) as i;
";

/// The hash goes by the oids of the enum's values, which are others in every database: the rows come back into other partitions, all of them,
/// and the check does not take that for a difference.
#[test]
fn rows_by_the_hash_of_an_enum_come_back() {
    let server = Server::start();
    server.create_database("strewn");
    server.psql("strewn", STREWN);
    let agent = Setup::new().start();
    agent.protect("strewn", &server.uri("strewn"), server.passfile());
    agent.backup("strewn");
    let job =
        agent.try_restore("strewn", "latest", server.port(), server.passfile(), "back").success().job().completed();
    let checked = job.0["restore_report"]["checked"].as_str().unwrap_or_default();
    assert!(checked.contains("the rows of 1 tables (7 rows); 4 tables could not be compared"), "{checked}");
    let rows = "select count(*), md5(string_agg(t::text, ',' order by id)) from strewn t";
    assert_eq!(server.psql("strewn", rows), server.psql("back", rows));
}
