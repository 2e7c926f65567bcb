//! How a source was caught that is written to while it is backed up.

use serde::{Deserialize, Serialize};

/// What can be relied on in a point of a machine's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Applications were told, and their file systems were still: as after a proper shutdown of each.
    Application,
    /// File systems were written out and still: nothing that was written is missing, applications recover by themselves.
    FileSystem,
    /// As after a power cut: the machine was off, or its file systems could not be frozen and that was allowed.
    Crash,
}

impl Consistency {
    /// `application`, `file-system` or `crash`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::FileSystem => "file-system",
            Self::Crash => "crash",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Application, Self::FileSystem, Self::Crash].into_iter().find(|level| level.as_str() == name)
    }
}

/// How a point came about. The numbers are measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// What can be relied on.
    pub consistency: Consistency,
    /// Why it is no more than that, or what made it so; for people.
    pub reason: String,
    /// What took the snapshot.
    pub provider: String,
    /// How long file systems were written out before they were frozen, in milliseconds.
    #[serde(default)]
    pub synced_ms: u64,
    /// How long it took to freeze them, in milliseconds.
    #[serde(default)]
    pub freezing_ms: u64,
    /// How long they were frozen, in milliseconds; 0: none was.
    #[serde(default)]
    pub frozen_ms: u64,
    /// Bytes that were read of the disks, holes and what is as it was left out.
    #[serde(default)]
    pub read_bytes: u64,
    /// The point whose unchanged chunks were taken over; empty: everything was read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// Why everything was read though there was an earlier point; for people. Empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub full_read_reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_one_name_everywhere_and_old_records_are_read() {
        for level in [Consistency::Application, Consistency::FileSystem, Consistency::Crash] {
            assert_eq!(serde_json::to_string(&level).expect("JSON"), format!("\"{}\"", level.as_str()));
            assert_eq!(Consistency::from_name(level.as_str()), Some(level));
        }
        assert_eq!(Consistency::from_name("perfect"), None);
        let least = r#"{"consistency":"crash","reason":"off","provider":"offline","from_the_future":1}"#;
        let capture: Capture = serde_json::from_str(least).expect("read");
        assert_eq!((capture.consistency, capture.frozen_ms), (Consistency::Crash, 0));
        let again: Capture = serde_json::from_str(&serde_json::to_string(&capture).expect("JSON")).expect("read");
        assert_eq!(again, capture);
    }
}
