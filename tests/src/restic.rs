//! The independent reader: Debian's restic, always without locks and without a cache.

use std::process::Command;
use std::time::Duration;

use crate::process::{self, Output};

/// A repository and its password, as `vaultferry vault key export` prints them.
#[derive(Clone)]
pub struct Repository {
    location: String,
    password: String,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({})", self.location)
    }
}

impl Repository {
    /// Reads the two lines that the export prints.
    #[track_caller]
    pub fn from_export(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("the export has no line {name}=")).trim_matches(['\'', '"']).to_owned()
        };
        assert_eq!(text.lines().count(), 2, "the export has two lines");
        Self { location: value("RESTIC_REPOSITORY"), password: value("RESTIC_PASSWORD") }
    }

    /// Where it is, as restic takes it.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The same repository copied to a folder.
    #[must_use]
    pub fn at(&self, folder: &std::path::Path) -> Self {
        Self { location: folder.display().to_string(), password: self.password.clone() }
    }

    /// Runs restic; its exit code is the caller's business.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("restic");
        command.args(["--no-lock", "--no-cache", "--repo", &self.location]).args(arguments);
        command.env("RESTIC_PASSWORD", &self.password);
        process::run(&mut command, b"", Duration::from_secs(600))
    }

    /// `check --read-data` must find nothing wrong.
    #[track_caller]
    pub fn check(&self) {
        let output = self.run(&["check", "--read-data"]).success();
        assert!(output.text().contains("no errors were found"), "{}", output.text());
    }

    /// The bytes of a stream of a snapshot.
    #[track_caller]
    pub fn dump(&self, snapshot: &str, path: &str) -> Vec<u8> {
        self.run(&["dump", snapshot, path]).success().stdout
    }

    /// Writes a stream of a snapshot to a file.
    #[track_caller]
    pub fn dump_to(&self, snapshot: &str, path: &str, file: &std::path::Path) {
        let file = std::fs::File::create(file).expect("make the file");
        let mut command = Command::new("restic");
        command.args(["--no-lock", "--no-cache", "--repo", &self.location, "dump", snapshot, path]);
        command.env("RESTIC_PASSWORD", &self.password).stdout(file);
        let status = command.status().expect("start restic");
        assert!(status.success(), "restic dump: {status}");
    }

    /// The ids of all snapshots, oldest first.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        let json: serde_json::Value =
            serde_json::from_slice(&self.run(&["snapshots", "--json"]).success().stdout).expect("restic prints JSON");
        let list = json.as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|snapshot| Some(snapshot["id"].as_str()?.to_owned())).collect()
    }
}
