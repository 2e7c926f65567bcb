//! The table of contents at the beginning of a dump in pg_dump's custom format: what is in it, and what needs what.
//!
//! ```text
//! "PGDMP" major minor revision  int size  offset size  format 1
//! [since 1.15: compression, a byte | before: compression level, an int]
//! seven ints of the time   name of the database   version of the server   version of pg_dump
//! count  entry*
//! entry: id  has data  class (text)  oid (text)  tag  kind  section  definition  drop  copy  schema  tablespace
//!        [since 1.14: access method]  [since 1.16: relation kind, an int]  owner  with oids (text)
//!        ids of what it needs, each as a text, ended by a missing one   offset: a flag and `offset size` bytes
//! int: a byte for the sign, `int size` bytes, the lowest first     text: an int for its length, below 0 when missing; bytes
//! ```
//! As `ReadHead` and `ReadToc` of PostgreSQL's `pg_backup_archiver.c` and `_ReadExtraToc` of `pg_backup_custom.c` read it, for the
//! formats 1.12 (pg_dump 9.0 to 10) to 1.16 (since 17).
//!
//! Invariants:
//! - Nothing behind the table is read, and definitions are passed over: memory goes with the number of entries and their names.
//! - Bytes that are not as above end the reading with [`io::ErrorKind::InvalidData`]; no length of theirs is trusted beyond its limit.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Formats that are known, as (minor, revision is of no matter); the major one is 1.
const MINORS: std::ops::RangeInclusive<u8> = 12..=16;
/// Longest text that is kept: names of functions carry their arguments.
const KEPT_MAX: u64 = 1 << 20;
/// Longest text that is passed over: PostgreSQL's own limit of a value.
const PASSED_MAX: u64 = 1 << 30;
/// Most entries: a thousand times more than databases of 50,000 tables have, and some GB of memory at the very worst.
const ENTRIES_MAX: i64 = 20_000_000;

/// What a dump holds, in the order in which it is restored.
#[derive(Debug, Default)]
pub(super) struct Toc {
    pub(super) entries: Vec<Entry>,
}

/// One thing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Unique in its dump, above 0.
    pub(super) id: i32,
    /// TABLE, TABLE DATA, INDEX, …
    pub(super) kind: String,
    /// Empty for what lies in none.
    pub(super) schema: String,
    /// The name, for some kinds with the table's before it, or with arguments.
    pub(super) name: String,
    /// Who is to own it; empty for nobody.
    pub(super) owner: String,
    /// The ids of what it needs; some may not be in the dump.
    pub(super) needs: Vec<i32>,
}

impl Entry {
    /// "TABLE public.sales"
    pub(super) fn describe(&self) -> String {
        match self.schema.as_str() {
            "" => format!("{} {}", self.kind, self.name),
            schema => format!("{} {schema}.{}", self.kind, self.name),
        }
    }
}

/// Reads the table.
pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Toc> {
    let mut magic = [0; 5];
    input.read_exact(&mut magic).await?;
    if &magic != b"PGDMP" {
        return Err(strange("it is no archive of pg_dump"));
    }
    let mut head = [0; 6];
    input.read_exact(&mut head).await?;
    let [major, minor, _revision, int_size, offset_size, format] = head;
    if major != 1 || !MINORS.contains(&minor) || format != 1 {
        return Err(strange(&format!("its format is {major}.{minor}, kind {format}")));
    }
    if !(1..=8).contains(&int_size) || offset_size > 32 {
        return Err(strange("its numbers have strange sizes"));
    }
    let mut reader = Reader { input, minor, int_size: usize::from(int_size), offset_size: u64::from(offset_size) };
    if minor >= 15 {
        reader.pass(1).await?;
    } else {
        reader.int().await?;
    }
    for _ in 0..7 {
        reader.int().await?;
    }
    for _ in 0..3 {
        reader.pass_text().await?;
    }
    let count = reader.int().await?;
    if !(0..=ENTRIES_MAX).contains(&count) {
        return Err(strange("it says to have a strange number of entries"));
    }
    let mut toc = Toc::default();
    for _ in 0..count {
        toc.entries.push(reader.entry().await?);
    }
    Ok(toc)
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

struct Reader<'a, R> {
    input: &'a mut R,
    minor: u8,
    int_size: usize,
    offset_size: u64,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    async fn entry(&mut self) -> io::Result<Entry> {
        let id = i32::try_from(self.int().await?).ok().filter(|id| *id > 0);
        let id = id.ok_or_else(|| strange("an entry has a strange id"))?;
        // Whether it has data, its class and its oid.
        self.int().await?;
        self.pass_text().await?;
        self.pass_text().await?;
        let name = self.text().await?.unwrap_or_default();
        let kind = self.text().await?.unwrap_or_default();
        // The section; then the statements that make it, drop it and fill it.
        self.int().await?;
        for _ in 0..3 {
            self.pass_text().await?;
        }
        let schema = self.text().await?.unwrap_or_default();
        // The tablespace.
        self.pass_text().await?;
        if self.minor >= 14 {
            self.pass_text().await?;
        }
        if self.minor >= 16 {
            self.int().await?;
        }
        let owner = self.text().await?.unwrap_or_default();
        self.pass_text().await?;
        let mut needs = Vec::new();
        while let Some(text) = self.text().await? {
            needs.push(text.trim().parse::<i32>().map_err(|_| strange("an entry needs something without a number"))?);
        }
        self.pass(1 + self.offset_size).await?;
        Ok(Entry { id, kind, schema, name, owner, needs })
    }

    async fn int(&mut self) -> io::Result<i64> {
        let negative = self.input.read_u8().await? != 0;
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..self.int_size]).await?;
        let value = i64::try_from(u64::from_le_bytes(bytes)).map_err(|_| strange("a number is too large"))?;
        Ok(if negative { -value } else { value })
    }

    /// A text's length; `None` when there is none.
    async fn length(&mut self, max: u64) -> io::Result<Option<u64>> {
        let length = self.int().await?;
        match u64::try_from(length) {
            Err(_) => Ok(None),
            Ok(length) if length <= max => Ok(Some(length)),
            Ok(_) => Err(strange("a text is too long")),
        }
    }

    /// In whatever encoding; what is no UTF-8 is replaced.
    async fn text(&mut self) -> io::Result<Option<String>> {
        let Some(length) = self.length(KEPT_MAX).await? else { return Ok(None) };
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| strange("a text is too long"))?];
        self.input.read_exact(&mut bytes).await?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn pass_text(&mut self) -> io::Result<()> {
        match self.length(PASSED_MAX).await? {
            Some(length) => self.pass(length).await,
            None => Ok(()),
        }
    }

    async fn pass(&mut self, mut length: u64) -> io::Result<()> {
        let mut buffer = [0; 512];
        while length > 0 {
            let piece = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
            self.input.read_exact(&mut buffer[..piece]).await?;
            length -= piece as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An entry as the tests of the choice need it.
    pub(in crate::restore) fn entry(id: i32, kind: &str, schema: &str, name: &str, needs: &[i32]) -> Entry {
        let (kind, schema, name) = (kind.to_owned(), schema.to_owned(), name.to_owned());
        Entry { id, kind, schema, name, owner: "o".to_owned(), needs: needs.to_vec() }
    }

    fn int(out: &mut Vec<u8>, value: i32) {
        out.push(u8::from(value < 0));
        out.extend_from_slice(&value.unsigned_abs().to_le_bytes());
    }

    fn text(out: &mut Vec<u8>, value: Option<&str>) {
        int(out, value.map_or(-1, |value| i32::try_from(value.len()).unwrap()));
        out.extend_from_slice(value.unwrap_or_default().as_bytes());
    }

    /// As pg_dump writes it, in the format 1.`minor`.
    fn archive(minor: u8, entries: &[Entry]) -> Vec<u8> {
        let mut out = b"PGDMP".to_vec();
        out.extend_from_slice(&[1, minor, 0, 4, 8, 1]);
        if minor >= 15 {
            out.push(0);
        } else {
            int(&mut out, 0);
        }
        for value in [59, 58, 23, 21, 10, 126, 0] {
            int(&mut out, value);
        }
        for value in ["d", "15.14", "15.14"] {
            text(&mut out, Some(value));
        }
        int(&mut out, i32::try_from(entries.len()).unwrap());
        for entry in entries {
            int(&mut out, entry.id);
            int(&mut out, 1);
            for value in ["1259", "16384", &entry.name, &entry.kind] {
                text(&mut out, Some(value));
            }
            int(&mut out, 2);
            for value in [Some("create …"), Some("drop …"), None] {
                text(&mut out, value);
            }
            text(&mut out, Some(&entry.schema));
            text(&mut out, Some(""));
            if minor >= 14 {
                text(&mut out, Some("heap"));
            }
            if minor >= 16 {
                int(&mut out, 114);
            }
            text(&mut out, Some(&entry.owner));
            text(&mut out, Some("false"));
            for id in &entry.needs {
                text(&mut out, Some(&id.to_string()));
            }
            text(&mut out, None);
            out.push(1);
            out.extend_from_slice(&[0; 8]);
        }
        out
    }

    #[tokio::test]
    async fn what_pg_dump_writes_is_read_in_all_formats() {
        let entries = [entry(215, "TABLE", "public", "표 1", &[6, 3]), entry(6, "SCHEMA", "", "s", &[])];
        for minor in MINORS {
            let mut bytes = archive(minor, &entries);
            bytes.extend_from_slice(b"data");
            let mut input = bytes.as_slice();
            assert_eq!(read(&mut input).await.unwrap().entries, entries, "1.{minor}");
            assert_eq!(input, b"data", "nothing behind the table is read");
        }
        assert_eq!(entries[0].describe(), "TABLE public.표 1");
        assert_eq!(entries[1].describe(), "SCHEMA s");
    }

    #[tokio::test]
    async fn every_cut_and_every_changed_byte_is_an_error_or_a_table() {
        let bytes = archive(14, &[entry(215, "TABLE", "public", "t", &[6]), entry(6, "SCHEMA", "", "s", &[])]);
        for cut in 0..bytes.len() {
            assert!(read(&mut &bytes[..cut]).await.is_err(), "{cut}");
        }
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 0xff;
            // It must come to an end; whether what it reads makes sense cannot be known.
            let _ = read(&mut changed.as_slice()).await;
        }
        for (place, value) in [(0, b'Q'), (5, 2), (6, 17), (6, 11), (8, 0), (8, 9), (10, 3)] {
            let mut changed = bytes.clone();
            changed[place] = value;
            let error = read(&mut changed.as_slice()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{place}");
        }
    }
}
