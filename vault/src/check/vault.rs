//! The vault's own records, which are few: all of them are read.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;

use super::{Finding, FindingKind as Kind, Report, rules};
use crate::error::Error;
use crate::id::Id;
use crate::manifest;
use crate::records::{self, OwnerRecord, PolicyRecord, RecoveryKeyRecord, ServerRecord, VaultRecord};
use crate::store::{self, Key, Store};

pub(super) async fn check(root: &dyn Store) -> Result<Report, Error> {
    let (mut findings, mut numbers) = (Vec::new(), BTreeMap::<String, BTreeSet<u64>>::new());
    let mut read = BTreeMap::new();
    let (mut vault, mut recovery) = (false, false);
    // Not one listing of everything: in a folder the instances lie below.
    for prefix in ["vault.json", "keys/", "policies/", records::OWNERS, "settings/", records::SERVERS] {
        for key in keys(root, prefix).await? {
            let bytes = match root.get(&key, None).await {
                // Deleted since the listing; a manifest misses it if that was not meant.
                Err(store::Error::NotFound { .. }) => continue,
                bytes => bytes?,
            };
            vault |= prefix == "vault.json";
            recovery |= key.as_str().starts_with(records::RECOVERY_KEYS);
            if let Some(number) = key.name().strip_suffix(".json").and_then(|number| number.parse().ok()) {
                let dir = key.as_str().trim_end_matches(key.name());
                numbers.entry(dir.to_owned()).or_default().insert(number);
            }
            if let Err(error) = parse(prefix, &key, &bytes) {
                findings.push(Finding::new(Kind::Unreadable, key.as_str(), error.to_string()));
            }
            read.insert(key.to_string(), (bytes.len() as u64, Id::of(&bytes)));
        }
    }
    if !vault {
        findings.push(Finding::new(Kind::Missing, "vault.json", "every vault has it"));
    }
    if !recovery {
        findings.push(Finding::new(Kind::Missing, "keys/", "no recovery key opens this vault"));
    }
    rules::check_numbers(&numbers, &mut findings);
    rules::check_listed(&manifest::read(root).await?, |key| read.get(key).copied(), &mut findings);
    Ok(Report { findings, ..Report::default() })
}

async fn keys(root: &dyn Store, prefix: &str) -> Result<Vec<Key>, Error> {
    if !prefix.ends_with('/') {
        let key = Key::new(prefix).map_err(Error::internal)?;
        return Ok(root.head(&key).await?.map(|entry| entry.key).into_iter().collect());
    }
    let mut keys = Vec::new();
    let mut entries = store::list(root, prefix);
    while let Some(entry) = entries.next().await {
        keys.push(entry?.key);
    }
    Ok(keys)
}

fn parse(prefix: &str, key: &Key, bytes: &[u8]) -> Result<(), Error> {
    let name = key.as_str();
    match prefix {
        "vault.json" => records::from_bytes::<VaultRecord>(name, bytes).map(drop),
        "keys/" => {
            let record: RecoveryKeyRecord = records::from_bytes(name, bytes)?;
            // The name is the id of the key that wraps.
            let expected = format!("keys/recovery-{}.json", record.vault_key.key_id);
            if name.starts_with("keys/recovery-") && name != expected {
                return Err(Error::damaged(name, "it is wrapped by another key than its name says"));
            }
            Ok(())
        }
        "policies/" => {
            let record: PolicyRecord = records::from_bytes(name, bytes)?;
            if name != format!("policies/{}/{:010}.json", record.name, record.policy_version) {
                return Err(Error::damaged(name, "it is another policy, or another version, than its name says"));
            }
            Ok(())
        }
        records::SERVERS => {
            let record: ServerRecord = records::from_bytes(name, bytes)?;
            if !name.starts_with(&records::server(&record.id))
                || record.id != records::server_id(&record.server_identity)
            {
                return Err(Error::damaged(name, "it is another server than its name says"));
            }
            Ok(())
        }
        records::OWNERS => records::from_bytes::<OwnerRecord>(name, bytes).map(drop),
        _ => records::from_bytes::<serde_json::Value>(name, bytes).map(drop),
    }
}
