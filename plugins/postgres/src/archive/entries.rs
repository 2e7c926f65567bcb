//! The head of an archive and its table of contents, read as they pass: see [`super`].

use std::mem;

use super::layout::{ENTRY, Field, HEADER, Head, Meaning, Shape};
use super::{Awaited, Data, ENTRIES_MAX, NUMBER, OUT_OF_PLACE, Part, Reader, Why, number, split};
use crate::facts::TableData;

/// The longest name of a table or schema that is understood. PostgreSQL's have 63 bytes, unless it was built otherwise.
const NAME_MAX: usize = 1024;

/// The longest kind, and how many there may be; pg_dump knows some 60, of up to 25 letters.
const KIND_MAX: usize = 64;
const KINDS_MAX: usize = 256;

/// What is kept of an entry while it is read.
#[derive(Debug, Default)]
pub(super) struct Entry {
    id: i64,
    has_data: bool,
    oid: Vec<u8>,
    /// `None`: longer than any name.
    tag: Option<Vec<u8>>,
    kind: Vec<u8>,
    schema: Option<Vec<u8>>,
}

impl Part {
    /// The field after this one.
    fn following(self) -> Self {
        match self {
            Self::Header(index) => Self::Header(index + 1),
            Self::Entry(index) => Self::Entry(index + 1),
            other => other,
        }
    }
}

impl Reader {
    pub(super) fn head(&mut self, word: &[u8]) -> Result<(), Why> {
        let Head { minor, number_size, place_size } = Head::read(word)?;
        if usize::from(number_size) + 1 != NUMBER {
            return Err("it was written on a strange machine, or in another format");
        }
        self.minor = minor;
        self.place_length = usize::from(place_size) + 1;
        self.begin_field(Part::Header(0))
    }

    /// Awaits the first field from here on that this version has.
    fn begin_field(&mut self, mut part: Part) -> Result<(), Why> {
        loop {
            let (fields, index) = match part {
                Part::Header(index) => (HEADER, index),
                Part::Entry(index) => (ENTRY, index),
                _ => return Err(OUT_OF_PLACE),
            };
            let Some(field) = fields.get(index) else {
                if matches!(part, Part::Entry(_)) {
                    self.entry_ended()?;
                    self.entries_left -= 1;
                }
                if self.entries_left == 0 {
                    self.begin_block();
                    return Ok(());
                }
                part = Part::Entry(0);
                continue;
            };
            if field.is_in(self.minor) {
                self.part = part;
                self.awaited = Awaited::Word(match field.shape {
                    Shape::Byte => 1,
                    Shape::Number | Shape::Text | Shape::Texts => NUMBER,
                    Shape::Place => self.place_length,
                });
                return Ok(());
            }
            part = part.following();
        }
    }

    fn next_field(&mut self) -> Result<(), Why> {
        self.begin_field(self.part.following())
    }

    /// What the field that is being read means; nothing outside of one.
    fn meaning(&self) -> Meaning {
        match self.part {
            Part::Header(index) => HEADER[index].meaning,
            Part::Entry(index) => ENTRY[index].meaning,
            _ => Meaning::Nothing,
        }
    }

    /// A field's word: its value, or the length of its text.
    pub(super) fn field(&mut self, field: &Field, word: &[u8]) -> Result<(), Why> {
        match field.shape {
            Shape::Byte => {
                self.number(field.meaning, i64::from(word[0]))?;
                self.next_field()
            }
            Shape::Number => {
                self.number(field.meaning, number(word)?)?;
                self.next_field()
            }
            Shape::Place if matches!(word[0], 1..=3) => self.next_field(),
            Shape::Place => Err("the place of an entry's data is marked in a strange way"),
            Shape::Text | Shape::Texts => {
                self.kept.clear();
                self.overlong = false;
                match (number(word)?, field.shape) {
                    // A null: the end of a list, or a text that is not there.
                    (-1, _) => self.next_field(),
                    (0, Shape::Text) => self.text_ended(),
                    // The next one's length.
                    (0, _) => Ok(()),
                    (length, _) => {
                        self.awaited = Awaited::Text(u32::try_from(length).map_err(|_| "a text has a strange length")?);
                        Ok(())
                    }
                }
            }
        }
    }

    fn number(&mut self, meaning: Meaning, number: i64) -> Result<(), Why> {
        match meaning {
            Meaning::Compression if number != 0 => return Err("it is compressed"),
            Meaning::Count if number < 0 => return Err("its table of contents has a strange length"),
            Meaning::Count => self.entries_left = number,
            Meaning::Id if number <= 0 => return Err("an entry has a strange number"),
            Meaning::Id => self.entry.id = number,
            Meaning::HasData if !matches!(number, 0 | 1) => return Err("an entry is marked in a strange way"),
            Meaning::HasData => self.entry.has_data = number == 1,
            _ => {}
        }
        Ok(())
    }

    fn text_ended(&mut self) -> Result<(), Why> {
        let text = (!self.overlong).then_some(self.kept.as_slice());
        match self.meaning() {
            Meaning::Tag => self.entry.tag = text.map(<[u8]>::to_vec),
            Meaning::Schema => self.entry.schema = text.map(<[u8]>::to_vec),
            Meaning::Oid => self.entry.oid = text.unwrap_or_default().to_vec(),
            Meaning::Kind => match text {
                Some(kind @ [_, ..]) if kind.len() <= KIND_MAX => self.entry.kind = kind.to_vec(),
                _ => return Err("an entry is of a strange kind"),
            },
            _ => {}
        }
        let in_a_list = matches!(self.part, Part::Entry(index) if ENTRY[index].shape == Shape::Texts);
        if in_a_list {
            self.awaited = Awaited::Word(NUMBER);
            return Ok(());
        }
        self.next_field()
    }

    fn entry_ended(&mut self) -> Result<(), Why> {
        let Entry { id, has_data, oid, tag, kind, schema } = mem::take(&mut self.entry);
        let kind = String::from_utf8(kind).map_err(|_| "an entry is of a strange kind")?;
        let data = match kind.as_str() {
            "TABLE DATA" if has_data => {
                let name = self.name(tag)?;
                let schema = self.name(schema)?;
                self.contents.tables.push(TableData { schema, name, rows: 0, bytes: 0 });
                let oid = std::str::from_utf8(&oid).ok().and_then(|oid| oid.parse().ok());
                self.contents.oids.push(oid.unwrap_or_default());
                Data::Table(self.contents.tables.len() - 1)
            }
            "BLOBS" => Data::Objects,
            _ => Data::Other,
        };
        *self.contents.objects.entry(kind).or_default() += 1;
        if self.contents.objects.len() > KINDS_MAX {
            return Err("it has entries of too many kinds");
        }
        if has_data {
            if self.awaited_blocks.len() >= ENTRIES_MAX {
                return Err("it has more tables than are counted");
            }
            if self.awaited_blocks.insert(id, data).is_some() {
                return Err("two entries have the same number");
            }
        }
        Ok(())
    }

    fn name(&mut self, name: Option<Vec<u8>>) -> Result<String, Why> {
        let name = name.ok_or("a table has too long a name")?;
        Ok(String::from_utf8(name).unwrap_or_else(|error| {
            self.contents.foreign_names = true;
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }))
    }

    pub(super) fn text<'a>(&mut self, left: u32, bytes: &'a [u8]) -> Result<&'a [u8], Why> {
        let (now, rest, left) = split(bytes, left);
        if matches!(self.meaning(), Meaning::Tag | Meaning::Kind | Meaning::Schema | Meaning::Oid) {
            let room = NAME_MAX - self.kept.len();
            self.kept.extend_from_slice(&now[..now.len().min(room)]);
            self.overlong |= now.len() > room;
        }
        self.awaited = Awaited::Text(left);
        if left == 0 {
            self.text_ended()?;
        }
        Ok(rest)
    }
}
