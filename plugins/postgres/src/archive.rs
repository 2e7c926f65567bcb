//! Reads pg_dump's custom format as it passes: what is in it, how many rows, and whether it is whole. No second scan, nothing held.
//!
//! ```text
//! "PGDMP" major minor revision sizeof(int) sizeof(off_t) format     one byte each
//! compression                                                       a number; since 1.15 one byte
//! second minute hour day month year isdst                           numbers
//! database, version of the server, version of pg_dump               texts
//! count of entries                                                  a number
//! entries: id, has data?                                            numbers
//!          oid of the catalog, oid, tag, kind                       texts
//!          section                                                  a number
//!          definition, drop, copy statement, schema, tablespace     texts
//!          access method                                            a text, since 1.14
//!          relkind                                                  a number, since 1.16
//!          owner, "with oids"                                       texts
//!          ids of what it depends on                                texts, ended by a null
//!          place of its data                                        a flag of one byte (1 to 3), and sizeof(off_t) bytes
//! blocks:  1, id, pieces                                            rows of the entry with this id, as COPY writes them
//!          3, id, (oid, pieces)…, 0                                 large objects
//! pieces:  (length, bytes)…, 0
//!
//! number:  sign (0, 1), sizeof(int) bytes, the lowest first         text: length (-1: null), bytes
//! ```
//!
//! From PostgreSQL's sources, `src/bin/pg_dump`: `WriteHead`, `WriteToc`, `WriteInt`, `WriteStr`, `WriteOffset` and `WriteDataChunks` in
//! `pg_backup_archiver.c`; the versions' numbers and `BLK_DATA`, `BLK_BLOBS` in its header; `_WriteExtraToc`, `_StartData`, `_StartBlobs`,
//! `_StartBlob` and `_CustomWriteFunc` in `pg_backup_custom.c`; `WriteDataToArchiveNone` in `compress_io.c` (`compress_none.c` since 16), which
//! makes a piece of each row of COPY (newer ones gather rows, which changes nothing here); `dumpTableData_copy` in `pg_dump.c`, which writes
//! `\.` and three newlines after the rows, in all of them. Format 1.12 is that of the first pg_dump 10, 1.13 of 10 and 11, 1.14 of 12 to
//! 15, 1.15 of 16, 1.16 of 17 and 18.
//!
//! Invariants:
//! - This is on the way of every byte of a dump: rows are counted by a search for newlines (in COPY's text a newline is nothing but the end
//!   of a row), large objects are skipped by their lengths, and nothing is copied but names. The search is as fast as memory in wide rows;
//!   short ones, each a piece of its own, cost a few steps each.
//! - What is not understood is no error of the backup: counting stops, and says why. So every byte has to be as drawn: a reader that guesses
//!   would call good archives bad.
//! - An archive of which everything was understood is whole if and only if it ends between two blocks, and every entry that has data has had
//!   its block. pg_dump writes a block for each of them, in any case, also for a table without rows.
//! - Memory is for the ids of entries with data and the names of tables, [`ENTRIES_MAX`] of them at most; a text that is not kept may be of any
//!   length. The result does not depend on how the bytes are cut into pieces.

use std::collections::{BTreeMap, HashMap};

use crate::facts::{LargeObjects, TableData};

mod entries;
pub(crate) mod layout;

use entries::Entry;
use layout::{ENTRY, HEAD, HEADER};

/// Entries with data that are kept track of: four times the tables of the largest schemas known, 40 MB.
pub const ENTRIES_MAX: usize = 200_000;

/// A number: its sign and `sizeof(int)` bytes, which are four on all of PostgreSQL's platforms.
const NUMBER: usize = 5;
/// The longest thing that is read as one: a head. A place has 9 bytes at most.
const WORD_MAX: usize = HEAD;

/// `BLK_DATA`, `BLK_BLOBS`
const ROWS: u8 = 1;
const OBJECTS: u8 = 3;

/// What pg_dump writes after the rows of a table, and how many newlines are in it.
const END_OF_ROWS: [u8; 5] = *b"\\.\n\n\n";
const END_NEWLINES: u64 = 3;

/// Why a stream is not understood.
type Why = &'static str;

/// The reader is not where it believes to be. No bytes bring that about.
const OUT_OF_PLACE: Why = "the reader lost its place";

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Tables whose rows are in it, in the archive's order. Names are in the database's own encoding there; what is not UTF-8 of them is
    /// replaced.
    pub tables: Vec<TableData>,
    /// The oid of each of [`Contents::tables`]; 0 where there is none.
    pub oids: Vec<u32>,
    /// Some name was no UTF-8.
    pub foreign_names: bool,
    /// Large objects with their data.
    pub large_objects: LargeObjects,
    /// How many entries of each kind its table of contents has.
    pub objects: BTreeMap<String, u64>,
}

/// What became of an archive that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is whole, and this is in it.
    Whole(Contents),
    /// All that came was understood, and there would have to be more: where it breaks off, for people.
    Cut(String),
    /// It was not understood, for this reason; that says nothing of the archive.
    Unknown(&'static str),
}

/// The reader. Feed it every byte, then ask it for the [`Outcome`].
#[derive(Debug)]
pub struct Reader {
    awaited: Awaited,
    /// What the awaited word or text is.
    part: Part,
    /// A word that comes in pieces, and how much of it is there.
    word: [u8; WORD_MAX],
    filled: usize,
    minor: u8,
    place_length: usize,
    /// Entries of the table of contents that are still to come, the current one included.
    entries_left: i64,
    entry: Entry,
    /// What is kept of the text that is being read, and that there was more of it.
    kept: Vec<u8>,
    overlong: bool,
    /// Entries whose blocks are still to come.
    awaited_blocks: HashMap<i64, Data>,
    block: Block,
    contents: Contents,
    gave_up: Option<Why>,
}

#[derive(Debug, Clone, Copy)]
enum Awaited {
    /// So many bytes that mean something together.
    Word(usize),
    /// The rest of a text.
    Text(u32),
    /// The rest of a piece of data.
    Piece(u32),
    /// Nothing more is read.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// This one of [`HEADER`].
    Header(usize),
    /// This one of [`ENTRY`].
    Entry(usize),
    BlockKind,
    BlockId,
    ObjectId,
    PieceLength,
}

/// What the block of an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Rows of this one of [`Contents::tables`].
    Table(usize),
    Objects,
    /// Something that pg_dump does not write today.
    Other,
}

/// The block that is being read.
#[derive(Debug)]
enum Block {
    Table(Rows),
    Objects,
    Other,
}

#[derive(Debug)]
struct Rows {
    table: usize,
    newlines: u64,
    bytes: u64,
    /// The last bytes.
    tail: [u8; END_OF_ROWS.len()],
}

impl Rows {
    fn add(&mut self, bytes: &[u8]) {
        self.newlines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        self.bytes += bytes.len() as u64;
        match bytes.last_chunk() {
            Some(last) => self.tail = *last,
            None => {
                self.tail.rotate_left(bytes.len());
                let kept = self.tail.len() - bytes.len();
                self.tail[kept..].copy_from_slice(bytes);
            }
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            awaited: Awaited::Word(HEAD),
            part: Part::Head,
            word: [0; WORD_MAX],
            filled: 0,
            minor: 0,
            place_length: 0,
            entries_left: 0,
            entry: Entry::default(),
            kept: Vec::new(),
            overlong: false,
            awaited_blocks: HashMap::new(),
            block: Block::Other,
            contents: Contents::default(),
            gave_up: None,
        }
    }
}

impl Reader {
    /// The next bytes of the archive, as many as there are.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let rest = match self.awaited {
                Awaited::Piece(left) => Ok(self.piece(left, bytes)),
                Awaited::Word(length) => self.word(length, bytes),
                Awaited::Text(left) => self.text(left, bytes),
                Awaited::Nothing => return,
            };
            match rest {
                Ok(rest) => bytes = rest,
                Err(why) => {
                    self.gave_up = Some(why);
                    self.awaited = Awaited::Nothing;
                    // Nobody asks for them any more.
                    self.awaited_blocks = HashMap::new();
                    self.contents = Contents::default();
                }
            }
        }
    }

    /// What the archive was, now that it has ended.
    pub fn finish(self) -> Outcome {
        if let Some(why) = self.gave_up {
            return Outcome::Unknown(why);
        }
        let between_blocks = self.part == Part::BlockKind && self.filled == 0;
        if between_blocks && self.awaited_blocks.is_empty() {
            return Outcome::Whole(self.contents);
        }
        Outcome::Cut(match self.part {
            Part::Head | Part::Header(_) | Part::Entry(_) => "in its table of contents".to_owned(),
            Part::BlockKind => format!("before the data of {} of its entries", self.awaited_blocks.len()),
            Part::BlockId | Part::ObjectId | Part::PieceLength => match &self.block {
                Block::Table(Rows { table, .. }) => match self.contents.tables.get(*table) {
                    Some(TableData { schema, name, .. }) => format!("in the rows of {schema}.{name}"),
                    None => "in the rows of a table".to_owned(),
                },
                Block::Objects => "in the large objects".to_owned(),
                Block::Other => "in a block of data".to_owned(),
            },
        })
    }

    /// The way of nearly all bytes.
    fn piece<'a>(&mut self, left: u32, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest, left) = split(bytes, left);
        match &mut self.block {
            Block::Table(rows) => rows.add(now),
            Block::Objects => self.contents.large_objects.bytes += now.len() as u64,
            Block::Other => {}
        }
        self.awaited = if left == 0 { Awaited::Word(NUMBER) } else { Awaited::Piece(left) };
        rest
    }

    fn word<'a>(&mut self, length: usize, bytes: &'a [u8]) -> Result<&'a [u8], Why> {
        if self.filled == 0
            && let Some((word, rest)) = bytes.split_at_checked(length)
        {
            self.value(word)?;
            return Ok(rest);
        }
        let (now, rest) = bytes.split_at((length - self.filled).min(bytes.len()));
        self.word[self.filled..self.filled + now.len()].copy_from_slice(now);
        self.filled += now.len();
        if self.filled == length {
            self.filled = 0;
            let word = self.word;
            self.value(&word[..length])?;
        }
        Ok(rest)
    }

    /// A word is there.
    fn value(&mut self, word: &[u8]) -> Result<(), Why> {
        match self.part {
            Part::PieceLength => self.piece_length(number(word)?),
            Part::Head => self.head(word),
            Part::Header(index) => self.field(&HEADER[index], word),
            Part::Entry(index) => self.field(&ENTRY[index], word),
            Part::BlockKind => self.block_kind(word),
            Part::BlockId => self.block_id(number(word)?),
            Part::ObjectId => self.object_id(number(word)?),
        }
    }

    fn begin_block(&mut self) {
        self.part = Part::BlockKind;
        self.awaited = Awaited::Word(1);
        self.block = Block::Other;
    }

    fn block_kind(&mut self, word: &[u8]) -> Result<(), Why> {
        self.block = match word[0] {
            ROWS => Block::Other,
            OBJECTS => Block::Objects,
            _ => return Err("a block is of a strange kind"),
        };
        self.part = Part::BlockId;
        self.awaited = Awaited::Word(NUMBER);
        Ok(())
    }

    fn block_id(&mut self, id: i64) -> Result<(), Why> {
        let data = self.awaited_blocks.remove(&id).ok_or("a block belongs to no entry, or comes twice")?;
        self.part = match (&self.block, data) {
            (Block::Objects, Data::Objects) => Part::ObjectId,
            (Block::Other, Data::Table(table)) => {
                self.block = Block::Table(Rows { table, newlines: 0, bytes: 0, tail: [0; END_OF_ROWS.len()] });
                Part::PieceLength
            }
            (Block::Other, Data::Other) => Part::PieceLength,
            _ => return Err("a block is not of its entry's kind"),
        };
        self.awaited = Awaited::Word(NUMBER);
        Ok(())
    }

    /// An oid of 2³¹ or more looks negative.
    fn object_id(&mut self, oid: i64) -> Result<(), Why> {
        if oid == 0 {
            self.begin_block();
            return Ok(());
        }
        self.contents.large_objects.count += 1;
        self.part = Part::PieceLength;
        self.awaited = Awaited::Word(NUMBER);
        Ok(())
    }

    fn piece_length(&mut self, length: i64) -> Result<(), Why> {
        if length != 0 {
            let length = u32::try_from(length).map_err(|_| "a piece of data has a strange length")?;
            self.awaited = Awaited::Piece(length);
            return Ok(());
        }
        match &self.block {
            Block::Objects => {
                self.part = Part::ObjectId;
                self.awaited = Awaited::Word(NUMBER);
                return Ok(());
            }
            Block::Table(rows) => {
                if rows.tail != END_OF_ROWS {
                    return Err("a table's rows do not end as pg_dump ends them");
                }
                let table = self.contents.tables.get_mut(rows.table).ok_or(OUT_OF_PLACE)?;
                table.rows = rows.newlines - END_NEWLINES;
                table.bytes = rows.bytes - END_OF_ROWS.len() as u64;
            }
            Block::Other => {}
        }
        self.begin_block();
        Ok(())
    }
}

/// What there is of the next `left` bytes, what follows them, and how many of them are still to come.
fn split(bytes: &[u8], left: u32) -> (&[u8], &[u8], u32) {
    match usize::try_from(left).ok().and_then(|left| bytes.split_at_checked(left)) {
        Some((now, rest)) => (now, rest, 0),
        None => (bytes, &[], left - bytes.len() as u32),
    }
}

fn number(word: &[u8]) -> Result<i64, Why> {
    match *word {
        [0, a, b, c, d] => Ok(i64::from(u32::from_le_bytes([a, b, c, d]))),
        [1, a, b, c, d] => Ok(-i64::from(u32::from_le_bytes([a, b, c, d]))),
        _ => Err("a number has a strange sign"),
    }
}

#[cfg(test)]
mod tests;
