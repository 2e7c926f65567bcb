//! What is the database's own comes back with it: comment, owner, privileges, settings, connection limit.

use vaultferry_tests::agent::{Agent, Reply, Setup};
use vaultferry_tests::postgres::Server;

const SOURCE: &str = r#"
create table sales (id integer primary key);
insert into sales select generate_series(1, 10);
create role "Besitzer 1"; create role reader login; create role writer;
comment on database shop is 'it''s the "shop"; 가게 \ 1';
alter database shop owner to "Besitzer 1";
revoke all on database shop from public;
grant temporary on database shop to public;
grant connect on database shop to reader;
grant connect, create on database shop to writer with grant option;
alter database shop connection limit 7;
alter database shop set search_path = "$user", public, "a.b";
alter database shop set default_transaction_read_only = on;
alter role reader in database shop set work_mem = '5MB';
alter role reader in database shop set role = 'writer';
"#;

/// Everything of it in one line.
fn itself(server: &Server, database: &str) -> String {
    let query = "
select shobj_description(d.oid, 'pg_database'), pg_get_userbyid(datdba), datconnlimit,
  (select string_agg(one, ', ' order by one) from
    (select coalesce(rolname, 'public') || ' ' || privilege_type || ' ' || is_grantable as one
     from aclexplode(datacl) left join pg_roles on pg_roles.oid = grantee) grants),
  (select string_agg(coalesce(rolname, 'all') || ' ' || (select string_agg(s, ' ' order by s) from unnest(setconfig) s), ', ' order by rolname)
   from pg_db_role_setting left join pg_roles on pg_roles.oid = setrole where setdatabase = d.oid)
from pg_database d where datname = ";
    server.psql("postgres", &format!("{query} '{database}'"))
}

fn restore(agent: &Agent, server: &Server, database: &str, flags: &[&str]) -> Reply {
    let target = server.uri("postgres");
    let passfile = server.passfile().display().to_string();
    let place = ["--target", &target, "--database", database, "--passfile", &passfile, "--wait"];
    agent.cli_json(&[&["restore", "database", "shop"], &place[..], flags].concat())
}

/// Kept where the roles are, left out with `--no-owner`, made with `--globals`; what is not given is a warning that names the role.
#[test]
fn what_is_the_databases_own_comes_back() {
    let (server, other) = (Server::start(), Server::start());
    server.create_database("shop");
    server.psql("shop", SOURCE);
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("PartlyRestored");

    let source = itself(&server, "shop");
    assert!(
        source.contains("it's the \"shop\"; 가게 \\ 1|Besitzer 1|7|") && source.contains("reader CONNECT f"),
        "{source}"
    );
    restore(&agent, &server, "back again", &[]).success().job().completed();
    assert_eq!(itself(&server, "back again"), source);

    // Nothing that names a role.
    restore(&agent, &other, "plain", &["--no-owner"]).success().job().completed();
    let plain = itself(&other, "plain");
    assert!(plain.starts_with("it's the \"shop\"; 가게 \\ 1|postgres|7||all "), "{plain}");
    assert!(plain.contains("default_transaction_read_only=on"), "{plain}");

    // The roles are not there: what they had is told, and everybody may no more than at the source.
    let job = restore(&agent, &other, "without", &[]).success().job();
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    let message = job.0["warnings"][0]["message"].as_str().unwrap_or_default();
    assert!(["\"Besitzer 1\"", "\"reader\"", "\"writer\""].iter().all(|role| message.contains(role)), "{:#}", job.0);
    let grants = other.psql("postgres", "select datacl from pg_database where datname = 'without'");
    assert_eq!(grants, "{postgres=CTc/postgres,=T/postgres}");

    let job = restore(&agent, &other, "made", &["--globals"]).success().job();
    assert_eq!(job.status(), "CompletedWithWarnings", "{:#}", job.0);
    assert_eq!(itself(&other, "made"), source);
    // A part of a database is not the database.
    restore(&agent, &server, "part", &["--table", "public.sales"]).success().job().completed();
    assert_eq!(itself(&server, "part"), "|postgres|-1||");
}

/// Who is no superuser and no member of the owner gets a database of its own, and says so.
#[test]
fn who_is_no_member_of_the_owner_owns_the_database() {
    let server = Server::start();
    server.create_database("shop");
    server.psql(
        "shop",
        "create role keeper; create role app login createdb password 'p'; create table t as select 1 as n; alter table t owner to app;
         alter database shop owner to keeper; comment on database shop is 'the shop'",
    );
    let agent = Setup::new().start();
    agent.protect("shop", &server.uri("shop"), server.passfile());
    agent.backup("shop");
    agent.expect_log("PartlyRestored");
    let passfile = agent.write("passfile-app", "*:*:*:app:p\n").display().to_string();
    let target = format!("postgres://app@127.0.0.1:{}/", server.port());
    let into = |name: &str| {
        let words = ["--target", &target, "--database", name, "--passfile", &passfile, "--wait"];
        agent.cli_json(&[&["restore", "database", "shop"][..], &words].concat()).success().job()
    };
    let owner = |name: &str| {
        let query = format!(
            "select pg_get_userbyid(datdba), shobj_description(oid, 'pg_database') from pg_database where datname = '{name}'"
        );
        server.psql("postgres", &query)
    };
    let job = into("mine");
    let warnings = job.0["warnings"].as_array().map(Vec::len);
    assert!(
        job.0["warnings"][0]["message"].as_str().unwrap_or_default().contains("its owner at the source, \"keeper\""),
        "{:#}",
        job.0
    );
    assert_eq!((warnings, owner("mine").as_str()), (Some(1), "app|the shop"));
    // Since 15 only who owns the database may create in its schema public, and so may be given a table there.
    server.psql("shop", "grant keeper to app; create table kept as select 2 as n; alter table kept owner to keeper");
    agent.backup("shop");
    into("theirs").completed();
    assert_eq!(owner("theirs"), "keeper|the shop");
    assert_eq!(server.psql("theirs", "select tableowner from pg_tables where tablename = 'kept'"), "keeper");
}
