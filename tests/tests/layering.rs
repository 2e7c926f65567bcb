//! The tree of packages is what ARCHITECTURE.md says: every edge between them, and what must not be among the dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cargo_metadata::{DependencyKind, MetadataCommand};
use vaultferry_tests::{process, workspace};

/// Every package and all that it may, and does, depend on. A new edge is a decision: change ARCHITECTURE.md with it.
const EDGES: &[(&str, &[&str])] = &[
    ("vaultferry-proto", &[]),
    ("vaultferry-vault", &["vaultferry-proto"]),
    ("vaultferry-plugin-sdk", &["vaultferry-proto", "vaultferry-vault"]),
    ("vaultferry-plugin-postgres", &["vaultferry-plugin-sdk", "vaultferry-proto", "vaultferry-vault"]),
    ("vaultferry-plugin-maintenance", &["vaultferry-plugin-sdk", "vaultferry-proto", "vaultferry-vault"]),
    ("vaultferry-plugin-vm", &["vaultferry-plugin-sdk", "vaultferry-proto", "vaultferry-vault"]),
    ("vaultferry-coordinator", &["vaultferry-proto", "vaultferry-vault"]),
    (
        "vaultferry-agent",
        &[
            "vaultferry-coordinator",
            "vaultferry-plugin-maintenance",
            "vaultferry-plugin-postgres",
            "vaultferry-plugin-sdk",
            "vaultferry-plugin-vm",
            "vaultferry-proto",
        ],
    ),
    ("vaultferry-bench", &["vaultferry-tests"]),
];

#[test]
fn packages_depend_on_each_other_as_drawn() {
    let metadata = MetadataCommand::new().current_dir(workspace()).no_deps().exec().expect("cargo metadata");
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        let ours = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        let ours = ours.map(|dependency| dependency.name.as_str()).filter(|name| name.starts_with("vaultferry-"));
        edges.insert(package.name.as_str(), ours.collect());
    }
    // The tests may use everything.
    edges.remove("vaultferry-tests");
    let drawn: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(package, to)| (*package, to.iter().copied().collect())).collect();
    assert_eq!(edges, drawn, "left: Cargo.toml, right: drawn");
}

#[test]
fn the_coordinator_sees_no_payload() {
    let source = workspace().join("coordinator/src");
    for banned in [
        "vaultferry_vault::reader",
        "vaultferry_vault::writer",
        "repository::reader",
        "repository::writer",
        "check::full",
        "check::point",
    ] {
        let found = files_with(&source, banned);
        assert!(found.is_empty(), "{banned} in {found:?}: the coordinator uses the vault's store and commit only");
    }
}

/// Asked of `cargo tree`: the lock file, and `cargo metadata`, also name what features that nobody uses would pull in.
#[test]
fn banned_crates_are_not_among_the_dependencies() {
    let mut tree = Command::new(env!("CARGO"));
    tree.current_dir(workspace()).args([
        "tree",
        "--workspace",
        "--target",
        "all",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let tree = process::run(&mut tree, b"", Duration::from_secs(60)).success().text();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("aws-lc-rs") && names.contains("tonic"), "the dependencies are read rightly");
    for banned in ["ring", "openssl", "openssl-sys", "native-tls", "azure_storage_blobs"] {
        assert!(!names.contains(banned), "{banned} is in the tree: see deny.toml for the reason and the replacement");
    }
}

/// Rust files below a folder that hold a text.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && std::fs::read_to_string(&path).expect("a source file").contains(text)
        {
            found.push(path.display().to_string());
        }
    }
    found
}
