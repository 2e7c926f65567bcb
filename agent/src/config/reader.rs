//! Reads the merged tree key by key, and collects faults instead of stopping at the first.

use std::path::Path;

use config::{Environment, File, FileFormat, Map, Value, ValueKind};
use vaultferry_proto::{Problem, Reason};

use super::Surroundings;

/// What is wrong with a configuration; each fault names its key.
#[derive(Debug, Default)]
pub(super) struct Faults {
    faults: Vec<(String, String)>,
}

impl Faults {
    pub(super) fn add(&mut self, key: &str, fault: impl Into<String>) {
        self.faults.push((key.to_owned(), fault.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// All faults, one a line after the first.
    pub(super) fn into_problem(self, file: Option<&Path>) -> Problem {
        let place = match file {
            Some(path) => format!("the configuration ({} and the environment)", path.display()),
            None => "the configuration (the environment; there is no file)".to_owned(),
        };
        let count = match self.faults.len() {
            1 => "a fault".to_owned(),
            count => format!("{count} faults"),
        };
        let mut message = format!("{place} has {count}:");
        for (key, fault) in &self.faults {
            message.push_str("\n  ");
            if !key.is_empty() {
                message.push_str(key);
                message.push_str(": ");
            }
            message.push_str(fault);
        }
        Problem::new(Reason::InvalidConfiguration, message)
    }
}

/// One table of the configuration. Keys that nobody asked for until [`Section::finish`] are unknown keys.
pub(super) struct Section {
    /// "" for the root, else the name with a dot after it.
    prefix: String,
    values: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Section {
    /// The environment over `text`. None, with a fault, when `text` is no TOML.
    pub(super) fn root(text: &str, surroundings: &Surroundings, faults: &mut Faults) -> Option<Self> {
        let environment = Environment::with_prefix("VAULTFERRY")
            .prefix_separator("__")
            .separator("__")
            .source(Some(surroundings.configuration_variables()));
        let merged = config::Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(environment)
            .build()
            .and_then(|merged| merged.cache.into_table());
        match merged {
            Ok(values) => Some(Self { prefix: String::new(), values, known: Vec::new() }),
            Err(error) => {
                faults.add("", describe(&error, text));
                None
            }
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Whether a fault of this key is known already, so that no second one is made of it.
    pub(super) fn is_faulty(&self, key: &str, faults: &Faults) -> bool {
        let path = self.path(key);
        faults.faults.iter().any(|(faulty, _)| *faulty == path)
    }

    /// The key's text (or number, as text) through `parse`.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        faults: &mut Faults,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let text = match &value.kind {
            ValueKind::String(text) => text.trim().to_owned(),
            ValueKind::I64(number) => number.to_string(),
            _ => {
                faults.add(&self.path(key), "must be a text");
                return None;
            }
        };
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(fault) => {
                faults.add(&self.path(key), fault);
                None
            }
        }
    }

    /// As [`Section::list`]; a text alone counts as a list of one.
    pub(super) fn list_or_text(&mut self, key: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
        match self.values.get(key) {
            Some(value) if value.origin().is_none() && matches!(value.kind, ValueKind::String(_)) => {
                self.parsed(key, faults, |text| Ok(vec![text.to_owned()]))
            }
            _ => self.list(key, faults),
        }
    }

    /// The key's list of texts; in the environment, separated by commas.
    pub(super) fn list(&mut self, key: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
        let value = self.take(key)?;
        let from_environment = value.origin().is_some();
        let texts = match value.kind {
            ValueKind::Array(items) => items
                .into_iter()
                .map(|item| match item.kind {
                    ValueKind::String(text) => Some(text),
                    _ => None,
                })
                .collect(),
            ValueKind::String(text) if from_environment => {
                Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
            }
            _ => None,
        };
        if texts.is_none() {
            faults.add(&self.path(key), "must be a list of texts: [\"…\"]");
        }
        texts
    }

    /// The table of that name; an empty one when it is left out.
    pub(super) fn section(&mut self, key: &'static str, faults: &mut Faults) -> Section {
        let values = match self.take(key).map(|value| value.kind) {
            None => Map::new(),
            Some(ValueKind::Table(values)) => values,
            Some(_) => {
                faults.add(&self.path(key), format!("must be a section: [{}]", self.path(key)));
                Map::new()
            }
        };
        Section { prefix: format!("{}.", self.path(key)), values, known: Vec::new() }
    }

    /// A key that a later version may know, or another build.
    pub(super) fn refuse(&mut self, key: &'static str, fault: &str, faults: &mut Faults) {
        if self.values.remove(key).is_some() {
            faults.add(&self.path(key), fault);
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self, faults: &mut Faults) {
        let mut unknown: Vec<&String> = self.values.keys().collect();
        unknown.sort();
        for key in unknown {
            faults.add(&self.path(key), format!("unknown key; known here: {}", self.known.join(", ")));
        }
    }
}

/// The parser's message and the place, without the line itself: nobody knows what stands on it.
fn describe(error: &config::ConfigError, text: &str) -> String {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return "a variable VAULTFERRY__… of the environment does not name a key".to_owned();
    };
    match cause.downcast_ref::<toml::de::Error>() {
        None => "the file is not TOML".to_owned(),
        Some(fault) => {
            let offset = fault.span().map_or(0, |span| span.start);
            let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: {}", fault.message())
        }
    }
}
