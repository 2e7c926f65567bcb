use super::super::toc::tests::entry;
use super::*;

const ALL: rules::Rights = rules::Rights { superuser: true, owns_public: true };

/// Two tables in two schemas: the first has a sequence, an index, a type of its own and a foreign key to the second.
fn toc() -> Toc {
    Toc {
        entries: vec![
            entry(1, "ENCODING", "", "ENCODING", &[]),
            entry(2, "EXTENSION", "", "hstore", &[]),
            entry(3, "SCHEMA", "", "s", &[]),
            entry(4, "SCHEMA", "", "other", &[]),
            entry(5, "TYPE", "other", "kind", &[4]),
            entry(6, "TABLE", "s", "a", &[3, 5, 2]),
            entry(7, "SEQUENCE", "s", "a_id_seq", &[3, 6]),
            entry(8, "SEQUENCE OWNED BY", "s", "a_id_seq", &[7, 6]),
            entry(9, "TABLE", "other", "b", &[4]),
            entry(10, "VIEW", "s", "seen", &[3, 6]),
            entry(11, "SEQUENCE", "s", "alone", &[3]),
            entry(12, "DEFAULT", "s", "a id", &[6, 7]),
            entry(13, "TABLE DATA", "s", "a", &[6]),
            entry(14, "TABLE DATA", "other", "b", &[9]),
            entry(15, "SEQUENCE SET", "s", "a_id_seq", &[7]),
            entry(16, "CONSTRAINT", "s", "a a_pkey", &[6]),
            entry(17, "CONSTRAINT", "other", "b b_pkey", &[9]),
            entry(18, "INDEX", "s", "a_v", &[6]),
            entry(19, "FK CONSTRAINT", "s", "a a_b_fkey", &[6, 17, 9]),
            entry(20, "COMMENT", "s", "TABLE a", &[6]),
            entry(21, "ACL", "s", "TABLE a", &[6]),
            entry(22, "COMMENT", "", "EXTENSION hstore", &[2]),
            entry(23, "BLOBS", "", "BLOBS", &[]),
        ],
    }
}

fn wanted(schemas: &[&str], tables: &[(&str, &str)]) -> Wanted {
    Wanted {
        schemas: schemas.iter().map(|name| (*name).to_owned()).collect(),
        tables: tables.iter().map(|(schema, name)| ((*schema).to_owned(), (*name).to_owned())).collect(),
    }
}

#[test]
fn a_table_comes_with_all_that_belongs_to_it_and_nothing_else() {
    let choice = choose(&toc(), &wanted(&[], &[("s", "a")]), ALL).unwrap();
    let ids = [2, 3, 4, 5, 6, 7, 8, 12, 13, 15, 16, 18, 20, 21, 22];
    assert_eq!(choice.ids.as_deref(), Some(&ids[..]));
    assert_eq!(choice.tables.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(choice.left_out[0], "FK CONSTRAINT s.a a_b_fkey");
    assert!(choice.left_out[1].contains("large objects"), "{choice:?}");
    assert_eq!(choice.left_out.len(), 2);
    // What is in its own schema, or a part of it, is no news.
    assert_eq!(choice.along, ["EXTENSION hstore", "SCHEMA other", "TYPE other.kind"]);
    // With the other table the key comes, too.
    let both = choose(&toc(), &wanted(&[], &[("s", "a"), ("other", "b")]), ALL).unwrap();
    assert!(both.ids.unwrap().contains(&19));
    assert_eq!(both.left_out.len(), 1);
}

/// As pg_dump since 14 writes partitions: made by themselves, attached afterwards.
#[test]
fn a_partition_comes_without_its_table() {
    let mut toc = toc();
    toc.entries.extend([
        entry(30, "TABLE", "other", "whole", &[4]),
        entry(31, "TABLE", "s", "part", &[3, 30]),
        entry(32, "TABLE ATTACH", "s", "part", &[31, 30]),
        entry(33, "TABLE DATA", "s", "part", &[31]),
        entry(34, "CONSTRAINT", "other", "whole whole_pkey", &[30]),
        entry(35, "CONSTRAINT", "s", "part part_pkey", &[31, 34]),
        entry(36, "INDEX ATTACH", "s", "part_pkey", &[35, 34]),
        entry(37, "TABLE", "s", "heir", &[3, 30]),
    ]);
    let choice = choose(&toc, &wanted(&[], &[("s", "part")]), ALL).unwrap();
    assert_eq!(choice.ids.as_deref(), Some(&[3, 31, 33, 35][..]));
    assert_eq!(choice.left_out[..2], ["TABLE ATTACH s.part", "INDEX ATTACH s.part_pkey"]);
    let schema = choose(&toc, &wanted(&["s"], &[]), ALL).unwrap();
    assert!([31, 33, 35].iter().all(|id| schema.ids.as_ref().is_some_and(|ids| ids.contains(id))), "{schema:?}");
    let both = choose(&toc, &wanted(&[], &[("s", "part"), ("other", "whole")]), ALL).unwrap();
    assert_eq!(both.ids.as_deref(), Some(&[3, 4, 30, 31, 32, 33, 34, 35, 36][..]));
    // What inherits is no partition: it is nothing without the other.
    let problem = choose(&toc, &wanted(&[], &[("s", "heir")]), ALL).unwrap_err();
    assert!(problem.message.contains("TABLE other.whole"), "{problem}");
}

/// As pg_dump writes the partitions by the hash of an enum: their rows go into the whole table.
#[test]
fn rows_that_are_strewn_come_with_all_partitions_or_not_at_all() {
    let mut toc = toc();
    let through_root = |id, name, table| Entry { through_root: true, ..entry(id, "TABLE DATA", "s", name, &[table]) };
    toc.entries.extend([
        entry(30, "TABLE", "other", "whole", &[4]),
        entry(31, "TABLE", "s", "one", &[3, 30]),
        entry(32, "TABLE", "s", "t.wo", &[3, 30]),
        entry(33, "TABLE", "s", "two_a", &[3, 32]),
        entry(34, "TABLE ATTACH", "s", "one", &[30, 31]),
        entry(35, "TABLE ATTACH", "s", "t.wo", &[30, 32]),
        entry(36, "TABLE ATTACH", "s", "two_a", &[32, 33]),
        through_root(37, "one", 31),
        through_root(38, "two_a", 33),
    ]);
    let problem = choose(&toc, &wanted(&[], &[("s", "two_a")]), ALL).unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidRequest);
    assert!(
        problem.message.contains("rows of s.two_a") && problem.message.contains("without other.whole, "),
        "{problem}"
    );
    assert!(problem.fix.contains("--table 'other.whole' --table 's.one' --table 's.\"t.wo\"'"), "{problem}");
    // With the whole, but without the partition beside it.
    let some = [("other", "whole"), ("s", "t.wo"), ("s", "two_a")];
    let problem = choose(&toc, &wanted(&[], &some), ALL).unwrap_err();
    assert!(problem.message.contains("without s.one:"), "{problem}");
    let problem = choose(&toc, &wanted(&["s"], &[]), ALL).unwrap_err();
    assert!(problem.message.contains("without other.whole:"), "{problem}");
    let all = choose(&toc, &wanted(&["s", "other"], &[]), ALL).unwrap();
    assert!([30, 31, 32, 33, 34, 35, 36, 37, 38].iter().all(|id| all.ids.as_ref().is_some_and(|ids| ids.contains(id))));
    // The whole without them has no rows of its own.
    assert!(choose(&toc, &wanted(&[], &[("other", "whole")]), ALL).is_ok());
    // Without the links nothing can be known.
    toc.entries.retain(|entry| entry.kind != "TABLE ATTACH");
    assert!(choose(&toc, &wanted(&["s", "other"], &[]), ALL).unwrap_err().fix.contains("everything"));
}

#[test]
fn a_foreign_table_comes_with_its_server_and_without_its_passwords() {
    let mut toc = toc();
    toc.entries.extend([
        entry(30, "SERVER", "", "far", &[2]),
        entry(31, "SERVER", "", "so far", &[2]),
        entry(32, "USER MAPPING", "", "USER MAPPING app SERVER far", &[]),
        entry(33, "USER MAPPING", "", "USER MAPPING app SERVER so far", &[]),
        entry(34, "FOREIGN TABLE", "s", "there", &[3, 30]),
    ]);
    let choice = choose(&toc, &wanted(&[], &[("s", "there")]), ALL).unwrap();
    assert_eq!(choice.ids.as_deref(), Some(&[2, 3, 22, 30, 34][..]));
    assert_eq!(choice.along, ["EXTENSION hstore", "SERVER far"]);
    assert_eq!(choice.left_out[0], "USER MAPPING app SERVER far");
    assert_eq!(choice.left_out.len(), 2);
}

#[test]
fn a_domain_comes_with_its_checks() {
    let mut toc = toc();
    toc.entries.extend([
        entry(30, "DOMAIN", "other", "positive", &[4]),
        entry(31, "TABLE", "s", "amounts", &[3, 30]),
        entry(32, "CHECK CONSTRAINT", "other", "positive positive_check", &[30]),
    ]);
    let choice = choose(&toc, &wanted(&[], &[("s", "amounts")]), ALL).unwrap();
    assert_eq!(choice.ids.as_deref(), Some(&[3, 4, 30, 31, 32][..]));
}

#[test]
fn who_owns_only_what_is_said_of_a_thing_is_not_needed() {
    let mut toc = toc();
    for (id, owner) in [(6, "app"), (20, "commenter"), (21, "granter")] {
        let entry = toc.entries.iter_mut().find(|entry| entry.id == id).unwrap();
        entry.owner = owner.to_owned();
    }
    let owners = choose(&toc, &wanted(&[], &[("s", "a")]), ALL).unwrap().owners;
    assert!(owners.contains("app") && !owners.contains("commenter") && !owners.contains("granter"), "{owners:?}");
    let guests = choose(&toc, &wanted(&[], &[("s", "a")]), ALL).unwrap().guests;
    let guest = |schema: &str, host: &str, owner: &str| Guest {
        schema: schema.to_owned(),
        host: host.to_owned(),
        owner: owner.to_owned(),
    };
    assert_eq!(guests, BTreeSet::from([guest("s", "o", "app")]));
    toc.entries.push(entry(40, "TABLE", "public", "t", &[]));
    let guests = choose(&toc, &wanted(&[], &[("public", "t")]), ALL).unwrap().guests;
    assert_eq!(guests, BTreeSet::from([guest("public", "", "o")]));
    // Default privileges lie nowhere.
    let defaults = entry(41, "DEFAULT ACL", "s", "DEFAULT PRIVILEGES FOR TABLES", &[]);
    toc.entries.push(Entry { owner: "maker".to_owned(), ..defaults });
    let choice = choose(&toc, &wanted(&[], &[]), ALL).unwrap();
    assert!(choice.owners.contains("maker") && choice.guests.iter().all(|guest| guest.owner != "maker"), "{choice:?}");
}

/// Every archive names its database, which a restore makes as its own.
#[test]
fn who_owns_nothing_but_the_database_is_not_needed() {
    let mut toc = toc();
    toc.entries.push(entry(40, "DATABASE", "", "shop", &[]));
    for (id, owner) in [(6, "app"), (40, "dba")] {
        let entry = toc.entries.iter_mut().find(|entry| entry.id == id).unwrap();
        entry.owner = owner.to_owned();
    }
    let owners = choose(&toc, &wanted(&[], &[]), ALL).unwrap().owners;
    assert!(owners.contains("app") && !owners.contains("dba"), "{owners:?}");
}

#[test]
fn a_table_that_was_read_under_another_name_is_filled_with_everything() {
    let table = TableData { schema: "s".into(), name: "Käufer".into(), rows: 1, bytes: 1 };
    let filled = |wanted: &Wanted| choose(&toc(), wanted, ALL).unwrap().fills(&table);
    assert!(filled(&Wanted::default()) && !filled(&wanted(&["s"], &[])));
}

#[test]
fn a_schema_comes_with_all_that_is_in_it() {
    let choice = choose(&toc(), &wanted(&["s"], &[]), ALL).unwrap();
    let ids = choice.ids.unwrap();
    assert!([6, 7, 10, 11, 13, 18].iter().all(|id| ids.contains(id)), "{ids:?}");
    assert!(![9, 14, 17, 19].iter().any(|id| ids.contains(id)), "{ids:?}");
    assert_eq!(choice.counts["TABLE"], 1);
}

#[test]
fn a_view_without_its_table_is_refused_or_left_out() {
    let problem = choose(&toc(), &wanted(&[], &[("s", "seen")]), ALL).unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidRequest);
    assert!(problem.message.contains("VIEW s.seen") && problem.message.contains("TABLE s.a"), "{problem}");
    let mut toc = toc();
    toc.entries.push(entry(24, "VIEW", "s", "far", &[3, 9]));
    let choice = choose(&toc, &wanted(&["s"], &[]), ALL).unwrap();
    assert!(choice.left_out.contains(&"VIEW s.far".to_owned()), "{choice:?}");
}

#[test]
fn everything_needs_no_list_unless_something_is_forbidden() {
    let choice = choose(&toc(), &Wanted::default(), ALL).unwrap();
    assert_eq!((choice.ids, choice.counts["TABLE"]), (None, 2));
    let nobody = rules::Rights { superuser: false, owns_public: true };
    let choice = choose(&toc(), &Wanted::default(), nobody).unwrap();
    assert_eq!(choice.forbidden, ["COMMENT EXTENSION hstore"]);
    assert_eq!(choice.ids.map(|ids| ids.len()), Some(22));
}

#[test]
fn what_is_not_there_is_named() {
    let problem = choose(&toc(), &wanted(&["S"], &[("s", "A")]), ALL).unwrap_err();
    assert!(problem.message.contains("no schema S, no table s.A"), "{problem}");
}

#[test]
fn names_are_split_as_in_sql() {
    let two = |schema: &str, name: &str| Some((schema.to_owned(), name.to_owned()));
    assert_eq!(split("public.sales"), two("public", "sales"));
    assert_eq!(split("\"quo\"\"te\".\"a.b\""), two("quo\"te", "a.b"));
    assert_eq!(split("한글.표 1"), two("한글", "표 1"));
    for bad in ["", "sales", ".sales", "public.", "a.b.c", "\"a.b", "a.\"b"] {
        assert_eq!(split(bad), None, "{bad}");
    }
}
