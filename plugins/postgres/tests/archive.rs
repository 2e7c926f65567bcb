//! The reader of archives against those that the installed pg_dump writes.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vaultferry_plugin_postgres::archive::{Contents, Outcome, Reader};
use vaultferry_tests::postgres::Server;
use vaultferry_tests::{process, sample};

/// Every table that holds rows itself, and how many.
const ROWS: &str = r"
select format('select %L, count(*) from only %I.%I', n.nspname || '.' || c.relname, n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
\gexec
";

fn dump(server: &Server, database: &str, compress: &str) -> Vec<u8> {
    let mut command = server.client("pg_dump", database);
    command.args(["--format=custom", &format!("--compress={compress}")]);
    process::run(&mut command, b"", Duration::from_secs(60)).success().stdout
}

fn read(archive: &[u8], sizes: &[usize]) -> Outcome {
    let mut reader = Reader::default();
    let mut rest = archive;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*size).min(rest.len()));
        reader.feed(now);
        rest = later;
    }
    reader.finish()
}

#[track_caller]
fn whole(archive: &[u8]) -> Contents {
    match read(archive, &[131_072]) {
        Outcome::Whole(contents) => contents,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_pg_dump_writes_is_counted_as_the_server_counts_it() {
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    let contents = whole(&dump(&server, "shop", "0"));

    let counted: BTreeMap<String, u64> =
        contents.tables.iter().map(|table| (format!("{}.{}", table.schema, table.name), table.rows)).collect();
    let rows = server.psql("shop", ROWS);
    let expected: BTreeMap<String, u64> = rows
        .lines()
        .map(|line| line.rsplit_once('|').expect("two columns"))
        .map(|(name, rows)| (name.to_owned(), rows.parse().expect("a number")))
        .collect();
    assert!(expected.len() > 15, "{expected:?}");
    assert_eq!(counted, expected);
    assert_eq!(contents.tables.len(), counted.len());
    assert!(!contents.foreign_names);

    // Each row of `bulk` has two digits for each of its 4 KiB, and some more.
    let bulk = contents.tables.iter().find(|table| table.name == "bulk").expect("the table");
    assert!(bulk.bytes > bulk.rows * 8192 && bulk.bytes < bulk.rows * 8220, "{bulk:?}");
    let oid = server.psql("shop", "select 'bulk'::regclass::oid");
    let index = contents.tables.iter().position(|table| table.name == "bulk").expect("the table");
    assert_eq!(contents.oids[index].to_string(), oid);

    let objects = server.psql("shop", "select count(*), sum(length(lo_get(oid))) from pg_largeobject_metadata");
    let large = contents.large_objects;
    assert_eq!(format!("{}|{}", large.count, large.bytes), objects);

    let of_kind = |relkinds: &str| {
        let sql = format!(
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.relkind in ({relkinds}) and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"
        );
        server.psql("shop", &sql).parse::<u64>().expect("a number")
    };
    assert_eq!(contents.objects["TABLE"], of_kind("'r', 'p'"));
    assert_eq!(contents.objects["MATERIALIZED VIEW"], of_kind("'m'"));
    assert_eq!(contents.objects["TABLE DATA"], contents.tables.len() as u64);
}

#[test]
fn other_archives_are_not_counted_and_said_to_be_so() {
    let server = Server::start();
    server.create_database("empty");
    let contents = whole(&dump(&server, "empty", "0"));
    assert!(contents.tables.is_empty() && contents.objects.contains_key("ENCODING"), "{contents:?}");
    assert_eq!(read(&dump(&server, "empty", "6"), &[4096]), Outcome::Unknown("it is compressed"));
}

/// Cut anywhere it is never whole; fed in any pieces it is the same; damaged anyhow it is no panic.
#[test]
fn real_archives_cut_and_damaged() {
    let server = Server::start();
    sample::awkward(&server, "shop", 1);
    let archive = dump(&server, "shop", "0");
    let good = whole(&archive);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let sizes = prop::collection::vec(1_usize..200_000, 1..5);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    runner
        .run(&(sizes, damage, any::<prop::sample::Index>()), |(sizes, damage, cut)| {
            prop_assert_eq!(read(&archive, &sizes), Outcome::Whole(good.clone()));
            let cut = cut.index(archive.len());
            prop_assert!(matches!(read(&archive[..cut], &sizes), Outcome::Cut(_)), "cut at {}", cut);
            let mut damaged = archive.clone();
            for (at, byte) in damage {
                // Half of it near the beginning, where the table of contents is.
                let length = if byte % 2 == 0 { archive.len() } else { archive.len().min(60_000) };
                damaged[at.index(length)] = byte;
            }
            prop_assert_eq!(read(&damaged, &sizes), read(&damaged, &[damaged.len()]));
            Ok(())
        })
        .expect("holds");
}
