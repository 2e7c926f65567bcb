//! Manifests: who holds the hash of a record. Packs, indexes and snapshots are named by their hash; records are not, so an altered record
//! that still reads, or a removed last one, is found only if something else names it.
//!
//! ```text
//! manifest/<n>-<sha256 of the manifest>.json   version, time, hashes of the manifests before, files: key, size, sha256
//! ```
//! Invariants:
//! - A manifest is named by the hash of its bytes, so no byte of it can be altered unnoticed, and names the newest ones before it, so
//!   none but the last can be removed unnoticed.
//! - What one manifest names is never named with another hash later: a record that was altered after it was listed stays wrong.
//! - Every 64th manifest repeats what the ones before it name, so that reading goes back no further than that.
//! - Additive: a vault without manifests is a good one, whose records are checked by their form alone.
//!
//! Limits: a record is covered from the first [`append`] after its creation on. A removed last manifest takes its cover away, and nothing
//! else. Whoever can delete everything from a point in time on can turn the vault back to it; only a copy kept elsewhere tells.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::blocking::with_cancel;
use crate::error::Error;
use crate::id::Id;
use crate::records;
use crate::store::{self, Entry, Key, Store};

/// Where manifests lie.
pub const MANIFESTS: &str = "manifest/";
/// Manifests 1, 65, 129, … are complete.
const COMPLETE_EVERY: u64 = 64;
/// Files that are read at once: hides the store's latency; a record is some KiB.
const READS: usize = 16;
/// Records in the vault's own store.
const VAULT: [&str; 6] = ["vault.json", "keys/", "policies/", "owner/", "settings/", "servers/"];
/// Records, and the files of a repository that never change, in an instance's store.
const INSTANCE: [&str; 14] = [
    "instance/",
    "keys/",
    "points/",
    "packs/",
    "prune/",
    "damaged/",
    "repo/config",
    "repo/keys/",
    "repo/snapshots/",
    "archive/packs/",
    "archive/prune/",
    "archive/repo/config",
    "archive/repo/keys/",
    "archive/repo/snapshots/",
];

/// Which store a manifest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The vault's own.
    Vault,
    /// An instance's.
    Instance,
}

impl Scope {
    fn places(self) -> &'static [&'static str] {
        match self {
            Self::Vault => &VAULT,
            Self::Instance => &INSTANCE,
        }
    }
}

/// `manifest/<n>-<sha256>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// When it was made.
    pub create_time: jiff::Timestamp,
    /// Hashes of the newest manifests before it; more than one when two were made at once.
    pub previous: Vec<Id>,
    /// It names everything that the ones before it name.
    #[serde(default)]
    pub complete: bool,
    /// Ascending by key.
    pub files: Vec<ListedFile>,
    /// Keys that earlier manifests name and that were deleted on purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// A file in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Where it is.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// Of them.
    pub sha256: Id,
}

/// What is wrong with the manifests themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The manifest's place.
    pub key: String,
    /// False: it is not there.
    pub altered: bool,
}

/// What all manifests together say.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Files by their key.
    pub files: BTreeMap<String, ListedFile>,
    /// Manifests that are altered or missing.
    pub problems: Vec<Problem>,
}

fn parse_name(key: &Key) -> Option<(u64, Id)> {
    let (number, hash) = key.name().strip_suffix(".json")?.split_once('-')?;
    Some((number.parse().ok()?, hash.parse().ok()?))
}

fn place(number: u64, hash: &Id) -> Result<Key, Error> {
    Key::new(format!("{MANIFESTS}{number:010}-{hash}.json")).map_err(Error::internal)
}

/// The manifests from the newest complete one on.
#[derive(Debug, Default)]
struct Found {
    /// Oldest first.
    manifests: Vec<Manifest>,
    problems: Vec<Problem>,
    /// The newest number, 0 when there is none, and the hashes of the manifests that have it.
    newest: (u64, Vec<Id>),
}

impl Found {
    fn gone(&self) -> HashSet<&str> {
        self.manifests.iter().flat_map(|manifest| &manifest.gone).map(String::as_str).collect()
    }

    /// The keys of [`Found::listed`]. Every commit asks for them, and for no more.
    fn keys(&self) -> HashSet<&str> {
        let gone = self.gone();
        let named = self.manifests.iter().flat_map(|manifest| &manifest.files).map(|file| file.key.as_str());
        named.filter(|key| !gone.contains(key)).collect()
    }

    fn listed(self) -> Listed {
        let mut listed = Listed { files: BTreeMap::new(), problems: self.problems };
        let mut gone = BTreeSet::new();
        for manifest in self.manifests {
            gone.extend(manifest.gone);
            for file in manifest.files {
                // The first word counts.
                listed.files.entry(file.key.clone()).or_insert(file);
            }
        }
        listed.files.retain(|key, _| !gone.contains(key));
        listed
    }
}

/// Reads the manifests, from the newest complete one on. Altered and missing ones are told in [`Listed::problems`], not as an error.
pub async fn read(store: &dyn Store) -> Result<Listed, Error> {
    Ok(find(store).await?.listed())
}

async fn find(store: &dyn Store) -> Result<Found, Error> {
    let mut by_number: BTreeMap<u64, Vec<Id>> = BTreeMap::new();
    let mut entries = store::list(store, MANIFESTS);
    while let Some(entry) = entries.next().await {
        if let Some((number, hash)) = parse_name(&entry?.key) {
            by_number.entry(number).or_default().push(hash);
        }
    }
    let mut found = Found::default();
    let Some((newest, hashes)) = by_number.last_key_value() else { return Ok(found) };
    found.newest = (*newest, hashes.clone());
    for number in (1..*newest).filter(|number| !by_number.contains_key(number)) {
        found.problems.push(Problem { key: format!("{MANIFESTS}{number:010}"), altered: false });
    }
    let known: BTreeSet<Id> = by_number.values().flatten().copied().collect();
    for (number, hashes) in by_number.iter().rev() {
        let mut complete = false;
        for hash in hashes {
            let key = place(*number, hash)?;
            let bytes = store.get(&key, None).await?;
            let manifest = (Id::of(&bytes) == *hash).then(|| records::from_bytes::<Manifest>(key.as_str(), &bytes));
            let Some(Ok(manifest)) = manifest else {
                found.problems.push(Problem { key: key.to_string(), altered: true });
                continue;
            };
            for lost in manifest.previous.iter().filter(|hash| !known.contains(*hash)) {
                let key = format!("{MANIFESTS}{:010}-{lost}.json", number.saturating_sub(1));
                found.problems.push(Problem { key, altered: false });
            }
            complete |= manifest.complete;
            found.manifests.push(manifest);
        }
        if complete {
            break;
        }
    }
    found.manifests.reverse();
    Ok(found)
}

/// Lists the files that no manifest names yet, and takes off the list what was deleted, or is about to be, on purpose. Returns how many
/// files are new; none and nothing gone: no manifest is written. May run beside others, and may be repeated after a kill. To be called
/// after a commit and at the end of every maintenance job.
pub async fn append(store: &dyn Store, scope: Scope, gone: &[Key], cancel: &CancellationToken) -> Result<usize, Error> {
    with_cancel(cancel, append_now(store, scope, gone)).await
}

async fn append_now(store: &dyn Store, scope: Scope, gone: &[Key]) -> Result<usize, Error> {
    let found = find(store).await?;
    let gone: Vec<String> = gone.iter().map(Key::to_string).collect();
    let mut new: Vec<Key> = covered(store, scope).await?.into_iter().map(|entry| entry.key).collect();
    {
        let named = found.keys();
        new.retain(|key| !named.contains(key.as_str()) && !gone.iter().any(|gone| gone == key.as_str()));
    }
    if new.is_empty() && gone.is_empty() {
        return Ok(0);
    }
    let mut files: Vec<ListedFile> = stream::iter(new)
        .map(|key| async move {
            let bytes = store.get(&key, None).await?;
            Ok::<_, Error>(ListedFile { key: key.to_string(), size: bytes.len() as u64, sha256: Id::of(&bytes) })
        })
        .buffered(READS)
        .try_collect()
        .await?;
    let count = files.len();
    let (newest, previous) = found.newest.clone();
    let number = newest + 1;
    let complete = number % COMPLETE_EVERY == 1;
    if complete {
        files.extend(found.listed().files.into_values().filter(|file| !gone.contains(&file.key)));
    }
    files.sort_by(|a, b| a.key.cmp(&b.key));
    let version = records::VERSION;
    let manifest = Manifest { version, create_time: crate::clock::now(), previous, complete, files, gone };
    let bytes = records::to_bytes(&manifest)?;
    records::put_bytes(store, &place(number, &Id::of(&bytes))?, bytes).await?;
    Ok(count)
}

/// Every file that is there and that manifests name.
async fn covered(store: &dyn Store, scope: Scope) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for place in scope.places() {
        if place.ends_with('/') {
            let mut entries = store::list(store, place);
            while let Some(entry) = entries.next().await {
                found.push(entry?);
            }
        } else {
            found.extend(store.head(&Key::new(*place).map_err(Error::internal)?).await?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    async fn put(store: &Memory, key: &str) {
        store.put_if_absent(&Key::new(key).expect("key"), key.to_owned().into()).await.expect("put");
    }

    #[tokio::test]
    async fn everything_is_named_once_and_repeated_in_complete_ones() {
        let (store, cancel) = (Memory::new("m"), CancellationToken::new());
        put(&store, "repo/config").await;
        assert_eq!(append(&store, Scope::Instance, &[], &cancel).await.expect("append"), 1);
        assert_eq!(append(&store, Scope::Instance, &[], &cancel).await.expect("nothing new"), 0);
        for n in 1..=COMPLETE_EVERY {
            put(&store, records::numbered("prune/", n).as_str()).await;
            assert_eq!(append(&store, Scope::Instance, &[], &cancel).await.expect("append"), 1);
        }
        let listed = read(&store).await.expect("read");
        assert_eq!((listed.files.len() as u64, listed.problems.len()), (COMPLETE_EVERY + 1, 0));
        let gone = records::numbered("prune/", 1);
        append(&store, Scope::Instance, std::slice::from_ref(&gone), &cancel).await.expect("append");
        assert!(!read(&store).await.expect("read").files.contains_key(gone.as_str()));
        let manifests: Vec<Entry> = store::list(&store, MANIFESTS).try_collect().await.expect("list");
        assert!(store.damage(&manifests[3].key, |bytes| bytes[40] ^= 1));
        store.delete(&manifests[2].key).await.expect("delete");
        let problems = read(&store).await.expect("read").problems;
        assert_eq!(problems.iter().filter(|problem| !problem.altered).count(), 1, "the removed one: {problems:?}");
        store.damage(&manifests[65].key, |bytes| bytes[40] ^= 1);
        let problems = read(&store).await.expect("read").problems;
        assert!(problems.iter().any(|problem| problem.altered && problem.key == manifests[65].key.as_str()));
    }
}
