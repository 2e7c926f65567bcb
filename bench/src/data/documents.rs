//! JSON documents in words of a made-up language: letters and words follow the frequencies of natural ones, so that the text compresses
//! as text does.

use std::fmt::Write as _;
use std::io::Write;

use jiff::Timestamp;

use crate::random::{Random, Weighted};

const VOCABULARY: u16 = 20_000;
/// All texts use one vocabulary.
const VOCABULARY_SEED: u64 = 20_240_601;
const TENANTS: u64 = 500;
/// The documents' first time: 2020-09-13.
const FIRST_TIME: i64 = 1_600_000_000;
const LETTERS: [(char, f64); 26] = [
    ('e', 12.7),
    ('t', 9.1),
    ('a', 8.2),
    ('o', 7.5),
    ('i', 7.0),
    ('n', 6.7),
    ('s', 6.3),
    ('h', 6.1),
    ('r', 6.0),
    ('d', 4.3),
    ('l', 4.0),
    ('c', 2.8),
    ('u', 2.8),
    ('m', 2.4),
    ('w', 2.4),
    ('f', 2.2),
    ('y', 2.0),
    ('p', 2.0),
    ('g', 1.9),
    ('b', 1.5),
    ('v', 1.0),
    ('k', 0.8),
    ('j', 0.15),
    ('x', 0.15),
    ('q', 0.1),
    ('z', 0.07),
];
const STATUS: [&str; 6] = ["open", "open", "closed", "pending", "archived", "in_review"];
const CITIES: [&str; 10] =
    ["Amsterdam", "Berlin", "Chicago", "Dublin", "Espoo", "Firenze", "Geneva", "Hamburg", "Istanbul", "Jakarta"];
const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "CHF"];

/// A source of words.
#[derive(Debug)]
pub(super) struct Words {
    vocabulary: Vec<String>,
    ranks: Weighted,
    random: Random,
}

impl Words {
    pub(super) fn new(seed: u64) -> Self {
        let ranks = Weighted::new(VOCABULARY, |rank| (rank + 2.7).powf(-1.25));
        Self { vocabulary: vocabulary(), ranks, random: Random::new(seed) }
    }

    fn next(&mut self) -> &str {
        let rank = self.ranks.draw(&mut self.random);
        &self.vocabulary[rank]
    }

    /// Appends `count` words with blanks between them.
    pub(super) fn append(&mut self, text: &mut String, count: usize) {
        self.append_with(text, count, ' ');
    }

    fn append_with(&mut self, text: &mut String, count: usize, between: char) {
        for index in 0..count {
            if index > 0 {
                text.push(between);
            }
            text.push_str(self.next());
        }
    }

    /// The same, each word with a capital letter.
    fn append_names(&mut self, text: &mut String, count: usize) {
        for index in 0..count {
            if index > 0 {
                text.push(' ');
            }
            let word = self.next();
            let (first, rest) = word.split_at(1);
            text.push_str(&first.to_ascii_uppercase());
            text.push_str(rest);
        }
    }
}

/// Different words, the frequent ones short.
fn vocabulary() -> Vec<String> {
    let mut random = Random::new(VOCABULARY_SEED);
    let letters = Weighted::new(LETTERS.len() as u16, |rank| LETTERS[rank as usize].1);
    let mut seen = std::collections::HashSet::new();
    let mut words = Vec::new();
    while words.len() < usize::from(VOCABULARY) {
        let mean = 1.0 + (words.len() as f64 + 1.0).log10() * 1.4;
        let length = (2 + random.poisson(mean)).min(13);
        let word: String = (0..length).map(|_| LETTERS[letters.draw(&mut random)].0).collect();
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

/// Writes rows of the table `docs` in COPY's text format until they have `bytes` bytes.
pub(super) fn write(to: &mut dyn Write, first_id: u64, seed: u64, bytes: f64) -> std::io::Result<()> {
    let mut words = Words::new(seed);
    let mut random = Random::new(seed + 1);
    // A few tenants have most of the documents.
    let tenants = Weighted::new(10_000, |rank| (rank + 1.0).powf(-1.3));
    let mut total = 0.0;
    let mut row = String::new();
    let mut id = first_id;
    while total < bytes {
        row.clear();
        let tenant = (tenants.draw(&mut random) as u64 + 1) % TENANTS;
        // A String takes everything.
        let _ = append_row(&mut row, id, tenant, &mut words, &mut random);
        to.write_all(row.as_bytes())?;
        total += row.len() as f64;
        id += 1;
    }
    Ok(())
}

fn append_row(
    row: &mut String,
    id: u64,
    tenant: u64,
    words: &mut Words,
    random: &mut Random,
) -> std::result::Result<(), std::fmt::Error> {
    let size = random.log_normal(4.6, 0.9, 12, 3500) as usize;
    let status = STATUS[random.below(6) as usize];
    let created = FIRST_TIME + id as i64 * 37 + random.below(37) as i64;
    let updated = created + random.below(8_000_000) as i64;
    let mut reference = Vec::new();
    random.fill(&mut reference, 16);
    write!(row, "{id}\t{tenant}\t{}\t", hex::encode(reference))?;
    words.append(row, 6);
    write!(row, "\t{status}\t{{")?;
    words.append_with(row, 3, ',');
    row.push_str("}\t");
    append_body(row, size, words, random)?;
    row.push('\t');
    match random.below(3) {
        0 => row.push_str("\\N"),
        _ => words.append(row, size / 6),
    }
    let time = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    writeln!(row, "\t{}\t{}", time(created), time(updated))
}

/// Words hold nothing that JSON or COPY would have to escape.
fn append_body(
    row: &mut String,
    size: usize,
    words: &mut Words,
    random: &mut Random,
) -> std::result::Result<(), std::fmt::Error> {
    let city = CITIES[random.below(10) as usize];
    let currency = CURRENCIES[random.below(4) as usize];
    write!(row, "{{\"schema\": \"urn:document:v3\", \"author\": {{\"id\": {}, \"name\": \"", random.below(20_000))?;
    words.append_names(row, 2);
    row.push_str("\", \"email\": \"");
    words.append(row, 1);
    row.push('@');
    words.append(row, 1);
    write!(row, ".example\"}}, \"address\": {{\"city\": \"{city}\", \"zip\": \"{:05}\", ", random.below(99_999))?;
    row.push_str("\"street\": \"");
    words.append_names(row, 2);
    row.push_str("\", \"country\": \"NL\"}, \"summary\": \"");
    words.append(row, size / 4 + 4);
    row.push_str("\", \"text\": \"");
    words.append(row, size);
    row.push_str("\", \"lines\": [");
    for line in 0..random.below(6) {
        let between = if line > 0 { ", " } else { "" };
        let (sku, quantity, price) = (random.below(50_000), random.below(17) + 1, random.below(99_999));
        write!(row, "{between}{{\"sku\": \"SKU-{sku:06}\", \"quantity\": {quantity}, ")?;
        write!(
            row,
            "\"price\": {}.{:02}, \"currency\": \"{currency}\", \"description\": \"",
            price / 100,
            price % 100
        )?;
        words.append(row, 5);
        row.push_str("\"}");
    }
    let mut flag = || random.below(2) == 1;
    write!(row, "], \"flags\": {{\"urgent\": {}, \"billable\": {}, \"reviewed\": {}}}, ", flag(), flag(), flag())?;
    write!(row, "\"revision\": {}}}", random.below(12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_each_time_and_whole() {
        let rows = |seed| {
            let mut bytes = Vec::new();
            write(&mut bytes, 1, seed, 100_000.0).expect("a vector takes everything");
            String::from_utf8(bytes).expect("text")
        };
        let text = rows(1);
        assert_eq!(text, rows(1));
        assert_ne!(text, rows(2));
        for row in text.lines() {
            let columns: Vec<&str> = row.split('\t').collect();
            assert_eq!(columns.len(), 10, "{row}");
            let body: serde_json::Value = serde_json::from_str(columns[6]).expect("JSON");
            assert!(body["text"].as_str().is_some_and(|text| text.contains(' ')), "{row}");
        }
    }
}
