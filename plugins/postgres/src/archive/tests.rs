use proptest::prelude::*;

use super::*;

/// Writes an archive as pg_dump does, from the drawing in the module.
struct Writer {
    minor: u8,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(minor: u8, entries: i64) -> Self {
        let mut writer = Self { minor, bytes: b"PGDMP".to_vec() };
        writer.bytes.extend([1, minor, 0, 4, 8, 1]);
        if minor >= 15 {
            writer.bytes.push(0);
        } else {
            writer.number(0);
        }
        for part in [7, 33, 22, 21, 10, 126, 0] {
            writer.number(part);
        }
        for text in ["shop", "15.14 (Debian 15.14-0+deb12u1)", "18.1"] {
            writer.text(text.as_bytes());
        }
        writer.number(entries);
        writer
    }

    fn number(&mut self, number: i64) {
        self.bytes.push(u8::from(number < 0));
        self.bytes.extend((number.unsigned_abs() as u32).to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as i64);
        self.bytes.extend(text);
    }

    fn entry(&mut self, id: i64, has_data: bool, kind: &str, schema: Option<&[u8]>, tag: &[u8]) {
        self.number(id);
        self.number(i64::from(has_data));
        self.text(b"0");
        self.text(format!("{}", 16_000 + id).as_bytes());
        self.text(tag);
        self.text(kind.as_bytes());
        self.number(2);
        // A definition longer than any name, with what looks like an end in it.
        self.text("create table x();\\.\n\n\n".repeat(50).as_bytes());
        self.text(b"");
        self.number(-1);
        match schema {
            Some(schema) => self.text(schema),
            None => self.number(-1),
        }
        self.text(b"");
        if self.minor >= 14 {
            self.text(b"heap");
        }
        if self.minor >= 16 {
            self.number(i64::from(b'r'));
        }
        self.text(b"postgres");
        self.text(b"false");
        for dependency in 1..id.min(4) {
            self.text(dependency.to_string().as_bytes());
        }
        self.number(-1);
        self.bytes.push(if has_data { 1 } else { 3 });
        self.bytes.extend([0; 8]);
    }

    fn piece(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "pg_dump writes no empty piece");
        self.number(bytes.len() as i64);
        self.bytes.extend(bytes);
    }

    /// Each row is a piece, as those of pg_dump are today.
    fn rows(&mut self, id: i64, rows: &[&[u8]]) {
        self.bytes.push(ROWS);
        self.number(id);
        for row in rows {
            self.piece(row);
        }
        self.piece(&END_OF_ROWS);
        self.number(0);
    }

    fn objects(&mut self, id: i64, objects: &[(i64, &[u8])]) {
        self.bytes.push(OBJECTS);
        self.number(id);
        for (oid, bytes) in objects {
            self.number(*oid);
            bytes.chunks(16).for_each(|piece| self.piece(piece));
            self.number(0);
        }
        self.number(0);
    }
}

/// An archive with everything that there is, and what is in it.
fn sample(minor: u8) -> (Vec<u8>, Contents) {
    let mut writer = Writer::new(minor, 8);
    writer.entry(3, false, "ENCODING", None, b"ENCODING");
    writer.entry(200, false, "TABLE", Some(b"public"), b"sales");
    writer.entry(201, false, "TABLE", Some("한글".as_bytes()), "긴 \"이름\"".as_bytes());
    writer.entry(3000, true, "TABLE DATA", Some(b"public"), b"sales");
    writer.entry(3001, true, "TABLE DATA", Some("한글".as_bytes()), "긴 \"이름\"".as_bytes());
    writer.entry(3002, true, "BLOBS", None, b"BLOBS");
    writer.entry(3003, true, "TABLE DATA", Some(b"public"), b"caf\xe9");
    writer.entry(3004, false, "SEQUENCE SET", Some(b"public"), b"sales_id_seq");
    let long = [b"7\t".as_slice(), &b"x".repeat(3000), b"\n"].concat();
    writer.rows(3000, &[b"1\tone\\n\n", b"2\t\\\\.\n", &long, b"\n"]);
    writer.rows(3001, &[]);
    writer.objects(3002, &[(4711, &[0, 10, 10, 1]), (4712, b""), (-1_294_967_296, &[b'\n'; 40])]);
    // As newer ones gather them: many rows in a piece, the end with them, or half of it.
    writer.bytes.push(ROWS);
    writer.number(3003);
    writer.piece(b"1\n2\n3");
    writer.piece(b"\n4\n\\.");
    writer.piece(b"\n\n\n");
    writer.number(0);
    let table = |schema: &str, name: &str, rows, bytes| TableData {
        schema: schema.to_owned(),
        name: name.to_owned(),
        rows,
        bytes,
    };
    let kinds = [("BLOBS", 1), ("ENCODING", 1), ("SEQUENCE SET", 1), ("TABLE", 2), ("TABLE DATA", 3)];
    let contents = Contents {
        tables: vec![
            table("public", "sales", 4, 8 + 6 + 3003 + 1),
            table("한글", "긴 \"이름\"", 0, 0),
            table("public", "caf\u{fffd}", 4, 8),
        ],
        oids: vec![19_000, 19_001, 19_003],
        foreign_names: true,
        large_objects: LargeObjects { count: 3, bytes: 44 },
        objects: kinds.map(|(kind, count)| (kind.to_owned(), count)).into(),
    };
    (writer.bytes, contents)
}

/// In pieces of these sizes, over and over.
fn read(bytes: &[u8], sizes: &[usize]) -> Outcome {
    let mut reader = Reader::default();
    let mut rest = bytes;
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

#[test]
fn archives_of_every_version_are_counted() {
    for minor in 12..=16 {
        let (bytes, contents) = sample(minor);
        assert_eq!(read(&bytes, &[bytes.len()]), Outcome::Whole(contents.clone()), "1.{minor}");
        assert_eq!(read(&bytes, &[1]), Outcome::Whole(contents), "1.{minor}");
    }
}

#[test]
fn an_empty_database_is_a_whole_archive() {
    assert_eq!(read(&Writer::new(14, 0).bytes, &[7]), Outcome::Whole(Contents::default()));
}

/// However it is cut short, it is known to be, and where.
#[test]
fn no_beginning_of_an_archive_is_whole() {
    let (bytes, _) = sample(16);
    let mut places = std::collections::BTreeSet::new();
    for end in 0..bytes.len() {
        match read(&bytes[..end], &[1000]) {
            Outcome::Cut(place) => places.insert(place),
            other => panic!("the first {end} of {} bytes: {other:?}", bytes.len()),
        };
    }
    let expected = [
        "before the data of 1 of its entries",
        "before the data of 2 of its entries",
        "before the data of 3 of its entries",
        "before the data of 4 of its entries",
        "in a block of data",
        "in its table of contents",
        "in the large objects",
        "in the rows of public.caf\u{fffd}",
        "in the rows of public.sales",
        "in the rows of 한글.긴 \"이름\"",
    ];
    assert_eq!(places.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_not_as_drawn_is_not_understood() {
    let (good, _) = sample(16);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        read(&bytes, &[bytes.len()])
    };
    let unknown = Outcome::Unknown;
    assert_eq!(changed(0, b'p'), unknown("it does not begin as an archive does"));
    assert_eq!(changed(6, 17), unknown("the version of its format is not known here"));
    assert_eq!(changed(6, 11), unknown("the version of its format is not known here"));
    assert_eq!(changed(8, 8), unknown("it was written on a strange machine, or in another format"));
    assert_eq!(changed(10, 3), unknown("it was written on a strange machine, or in another format"));
    assert_eq!(changed(11, 1), unknown("it is compressed"));
    assert_eq!(changed(12, 2), unknown("a number has a strange sign"));

    let with = |build: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new(14, 1);
        build(&mut writer);
        read(&writer.bytes, &[writer.bytes.len()])
    };
    let table = |writer: &mut Writer| writer.entry(7, true, "TABLE DATA", Some(b"public"), b"t");
    let unended = with(&|writer| {
        table(writer);
        writer.bytes.push(ROWS);
        writer.number(7);
        writer.piece(b"1\n");
        writer.number(0);
    });
    assert_eq!(unended, unknown("a table's rows do not end as pg_dump ends them"));
    let twice = with(&|writer| {
        table(writer);
        writer.rows(7, &[]);
        writer.rows(7, &[]);
    });
    assert_eq!(twice, unknown("a block belongs to no entry, or comes twice"));
    let other_kind = with(&|writer| {
        table(writer);
        writer.objects(7, &[]);
    });
    assert_eq!(other_kind, unknown("a block is not of its entry's kind"));
    let long_name = with(&|writer| writer.entry(7, true, "TABLE DATA", Some(b"public"), &b"t".repeat(1025)));
    assert_eq!(long_name, unknown("a table has too long a name"));
    let strange_block = with(&|writer| {
        table(writer);
        writer.bytes.push(2);
    });
    assert_eq!(strange_block, unknown("a block is of a strange kind"));
}

/// The schemas of large installations: memory for names and numbers only, and every table found again.
#[test]
fn fifty_thousand_tables_are_counted() {
    const TABLES: i64 = 50_000;
    const SOME: [&[u8]; 3] = [b"1\n", b"2\n", b"3\n"];
    let mut writer = Writer::new(16, TABLES);
    for id in 1..=TABLES {
        writer.entry(id, true, "TABLE DATA", Some(b"public"), format!("t{id}").as_bytes());
    }
    for id in 1..=TABLES {
        writer.rows(id, &SOME[..id as usize % 4]);
    }
    let Outcome::Whole(contents) = read(&writer.bytes, &[131_072]) else { panic!("not whole") };
    assert_eq!(contents.tables.len() as i64, TABLES);
    let wrong = contents.tables.iter().zip(1..).find(|(table, id): &(&TableData, u64)| table.rows != id % 4);
    assert_eq!(wrong, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The same counts for every way to cut it.
    #[test]
    fn pieces_do_not_matter(minor in 12_u8..=16, sizes in prop::collection::vec(1_usize..5000, 1..8)) {
        let (bytes, contents) = sample(minor);
        prop_assert_eq!(read(&bytes, &sizes), Outcome::Whole(contents));
    }

    /// Damage is no panic, takes no memory, and is the same for every way to cut it.
    #[test]
    fn damage_does_no_harm(
        minor in 12_u8..=16,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(1_usize..5000, 1..8),
    ) {
        let (mut bytes, _) = sample(minor);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        prop_assert_eq!(read(&bytes, &sizes), read(&bytes, &[bytes.len()]));
    }

    /// Neither is anything else that begins like an archive.
    #[test]
    fn noise_does_no_harm(minor in 12_u8..=16, noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut bytes = Writer::new(minor, 1).bytes;
        bytes.extend(noise);
        prop_assert_eq!(read(&bytes, &[13]), read(&bytes, &[bytes.len()]));
    }
}
