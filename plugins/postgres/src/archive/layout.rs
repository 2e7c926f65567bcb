//! What follows what at the beginning of an archive, as drawn in [`super`], for both of its readers: the one that counts a dump as it passes
//! ([`super::Reader`], fed with pieces, and it keeps next to nothing), and the one that a restore chooses from (`restore/toc.rs`, which asks
//! for its input, and keeps every entry).

use std::ops::RangeInclusive;

/// The fixed bytes at the beginning.
pub(crate) const HEAD: usize = 11;

const MAJOR: u8 = 1;
/// Minor versions that are known: pg_dump 10 to 18.
const OLDEST: u8 = 12;
const NEWEST: u8 = 16;
pub(crate) const MINORS: RangeInclusive<u8> = OLDEST..=NEWEST;
/// `archCustom`
const CUSTOM: u8 = 1;

/// What the fixed bytes tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) minor: u8,
    /// Bytes of a number, without its sign.
    pub(crate) number_size: u8,
    /// Bytes of a place, without its flag: 1 to 8.
    pub(crate) place_size: u8,
}

impl Head {
    /// Reads them; the error says for people why they are not understood.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let [b'P', b'G', b'D', b'M', b'P', major, minor, _, number_size, place_size, format] = *bytes else {
            return Err("it does not begin as an archive does");
        };
        if major != MAJOR || !MINORS.contains(&minor) {
            return Err("the version of its format is not known here");
        }
        if !(1..=8).contains(&place_size) || format != CUSTOM {
            return Err("it was written on a strange machine, or in another format");
        }
        Ok(Self { minor, number_size, place_size })
    }
}

/// One of the values that follow each other.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) meaning: Meaning,
    pub(crate) shape: Shape,
    since: u8,
    until: u8,
}

impl Field {
    /// Whether archives of this minor version have it.
    pub(crate) fn is_in(&self, minor: u8) -> bool {
        (self.since..=self.until).contains(&minor)
    }
}

/// What it is; [`Meaning::Nothing`] to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    Nothing,
    Compression,
    Count,
    Id,
    HasData,
    Oid,
    Tag,
    Kind,
    /// The statement that makes it. That of rows is empty, or a comment.
    Definition,
    Schema,
    Owner,
    Needs,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Byte,
    Number,
    Text,
    /// Up to a null.
    Texts,
    Place,
}

const fn field(meaning: Meaning, shape: Shape) -> Field {
    Field { meaning, shape, since: OLDEST, until: NEWEST }
}

const fn since(since: u8, meaning: Meaning, shape: Shape) -> Field {
    Field { meaning, shape, since, until: NEWEST }
}

/// What comes between the fixed bytes and the entries.
pub(crate) const HEADER: &[Field] = &[
    Field { meaning: Meaning::Compression, shape: Shape::Number, since: OLDEST, until: 14 },
    since(15, Meaning::Compression, Shape::Byte),
    // The time, in seven numbers.
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    field(Meaning::Nothing, Shape::Number),
    // The database, the server's version, pg_dump's.
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Count, Shape::Number),
];

/// One entry.
pub(crate) const ENTRY: &[Field] = &[
    field(Meaning::Id, Shape::Number),
    field(Meaning::HasData, Shape::Number),
    // The catalog's oid, and the object's.
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Oid, Shape::Text),
    field(Meaning::Tag, Shape::Text),
    field(Meaning::Kind, Shape::Text),
    // The section.
    field(Meaning::Nothing, Shape::Number),
    // Three statements: to make it, to drop it, to fill it.
    field(Meaning::Definition, Shape::Text),
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Schema, Shape::Text),
    // Tablespace, access method, relkind.
    field(Meaning::Nothing, Shape::Text),
    since(14, Meaning::Nothing, Shape::Text),
    since(16, Meaning::Nothing, Shape::Number),
    field(Meaning::Owner, Shape::Text),
    // "with oids"
    field(Meaning::Nothing, Shape::Text),
    field(Meaning::Needs, Shape::Texts),
    field(Meaning::Nothing, Shape::Place),
];
