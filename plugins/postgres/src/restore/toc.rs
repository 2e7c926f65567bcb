//! The table of contents at the beginning of a dump in pg_dump's custom format: what is in it, and what needs what.
//!
//! The format is drawn in [`crate::archive`], and its fields are listed in [`crate::archive::layout`]. That one reads a dump as it passes and
//! counts; this one reads what a vault gives, up to the table's end, and keeps who owns and who needs what.
//!
//! Invariants:
//! - Nothing behind the table is read, and definitions are passed over: memory goes with the number of entries and their names.
//! - Bytes that are not as drawn end the reading with [`io::ErrorKind::InvalidData`]; no length of theirs is trusted beyond its limit.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::archive::layout::{ENTRY, HEAD, HEADER, Head, Meaning, Shape};
use crate::quote::identifier;

/// What pg_dump writes in the place of a definition when it fills a partition through the whole table: `dumpTableData` in `pg_dump.c`.
const THROUGH_ROOT: &[u8; 27] = b"-- load via partition root ";
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// The rows of a partition that come back through the whole table, as in which partition one lies is new in each database.
    pub(super) through_root: bool,
}

impl Entry {
    /// "TABLE public.sales"
    pub(super) fn describe(&self) -> String {
        match self.schema.as_str() {
            "" => format!("{} {}", self.kind, self.name),
            schema => format!("{} {schema}.{}", self.kind, self.name),
        }
    }

    /// A table's name with its schema, as `--table` takes it.
    pub(super) fn qualified(&self) -> String {
        let part = |name: &str| if name.contains(['.', '"']) { identifier(name) } else { name.to_owned() };
        format!("{}.{}", part(&self.schema), part(&self.name))
    }
}

/// Reads the table.
pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Toc> {
    let mut head = [0; HEAD];
    input.read_exact(&mut head).await?;
    let Head { minor, number_size, place_size } = Head::read(&head).map_err(strange)?;
    if !(1..=8).contains(&number_size) {
        return Err(strange("its numbers have a strange size"));
    }
    let mut reader = Reader { input, minor, number_size: usize::from(number_size), place_size: u64::from(place_size) };
    let mut count = 0;
    for field in HEADER {
        if !field.is_in(minor) {
            continue;
        }
        if field.meaning == Meaning::Count {
            count = reader.int().await?;
        } else {
            reader.pass_field(field.shape).await?;
        }
    }
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
    number_size: usize,
    place_size: u64,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    async fn entry(&mut self) -> io::Result<Entry> {
        let mut entry = Entry::default();
        for field in ENTRY {
            if !field.is_in(self.minor) {
                continue;
            }
            match field.meaning {
                Meaning::Id => {
                    let id = i32::try_from(self.int().await?).ok().filter(|id| *id > 0);
                    entry.id = id.ok_or_else(|| strange("an entry has a strange id"))?;
                }
                Meaning::Tag => entry.name = self.text().await?.unwrap_or_default(),
                Meaning::Kind => entry.kind = self.text().await?.unwrap_or_default(),
                Meaning::Definition => entry.through_root = self.is_through_root().await?,
                Meaning::Schema => entry.schema = self.text().await?.unwrap_or_default(),
                Meaning::Owner => entry.owner = self.text().await?.unwrap_or_default(),
                Meaning::Needs => {
                    while let Some(text) = self.text().await? {
                        let id = text.trim().parse::<i32>();
                        entry.needs.push(id.map_err(|_| strange("an entry needs something without a number"))?);
                    }
                }
                Meaning::Nothing | Meaning::Compression | Meaning::Count | Meaning::HasData | Meaning::Oid => {
                    self.pass_field(field.shape).await?;
                }
            }
        }
        Ok(entry)
    }

    async fn pass_field(&mut self, shape: Shape) -> io::Result<()> {
        match shape {
            Shape::Byte => self.pass(1).await,
            Shape::Number => self.int().await.map(drop),
            Shape::Text => self.pass_text().await,
            Shape::Texts => {
                while let Some(length) = self.length(PASSED_MAX).await? {
                    self.pass(length).await?;
                }
                Ok(())
            }
            Shape::Place => self.pass(1 + self.place_size).await,
        }
    }

    /// Reads a definition.
    async fn is_through_root(&mut self) -> io::Result<bool> {
        let Some(length) = self.length(PASSED_MAX).await? else { return Ok(false) };
        let mut bytes = [0; THROUGH_ROOT.len()];
        let begin = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
        self.input.read_exact(&mut bytes[..begin]).await?;
        self.pass(length - begin as u64).await?;
        Ok(&bytes == THROUGH_ROOT)
    }

    async fn int(&mut self) -> io::Result<i64> {
        let negative = self.input.read_u8().await? != 0;
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..self.number_size]).await?;
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
    use crate::archive::layout::MINORS;

    /// An entry as the tests of the choice need it.
    pub(in crate::restore) fn entry(id: i32, kind: &str, schema: &str, name: &str, needs: &[i32]) -> Entry {
        let (kind, schema, name) = (kind.to_owned(), schema.to_owned(), name.to_owned());
        Entry { id, kind, schema, name, owner: "o".to_owned(), needs: needs.to_vec(), through_root: false }
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
            let made = if entry.through_root { "-- load via partition root public.whole" } else { "create …" };
            for value in [Some(made), Some("drop …"), None] {
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
        let rows = Entry { through_root: true, ..entry(300, "TABLE DATA", "public", "표 1", &[215]) };
        let entries = [entry(215, "TABLE", "public", "표 1", &[6, 3]), entry(6, "SCHEMA", "", "s", &[]), rows];
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
