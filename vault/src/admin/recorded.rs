//! Policies, instances and servers as the vault records them.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;

use super::*;
use crate::records::{PolicyRecord, ServerRecord};

/// Keeps a version of a policy in the vault. False when the vault holds another document (or a deletion, or no deletion) under that name and
/// version, which another catalog wrote; nothing is changed then. After an error it is not known whether the record was written.
pub async fn put_policy(
    root: &store::Shared,
    record: &PolicyRecord,
    cancel: &CancellationToken,
) -> Result<bool, Error> {
    let key = Key::new(format!("{}{}/{:010}.json", records::POLICIES, record.name, record.policy_version))
        .map_err(Error::internal)?;
    let put = async {
        match records::put(&**root, &key, record).await? {
            Put::Created => Ok(true),
            Put::Existed => {
                let there = records::get::<PolicyRecord>(&**root, &key).await?;
                Ok((there.document, there.deleted) == (record.document.clone(), record.deleted))
            }
        }
    };
    with_cancel::<_, Error>(cancel, put).await
}

/// Every version of every policy, by name and version. What cannot be read is told in the second list.
pub async fn policies(
    root: &store::Shared,
    cancel: &CancellationToken,
) -> Result<(Vec<PolicyRecord>, Vec<Error>), Error> {
    policies_beside(root, None, &BTreeSet::new(), cancel).await
}

/// The versions that are not `known`, of the policy of that name or of all, by name and version; known ones are not read. What cannot be read
/// is told in the second list.
pub async fn policies_beside(
    root: &store::Shared,
    name: Option<&str>,
    known: &BTreeSet<(String, u32)>,
    cancel: &CancellationToken,
) -> Result<(Vec<PolicyRecord>, Vec<Error>), Error> {
    let prefix = name.map_or(records::POLICIES.to_owned(), |name| format!("{}{name}/", records::POLICIES));
    let read = async {
        let (mut policies, mut unreadable) = (Vec::new(), Vec::new());
        let mut entries = store::list(&**root, &prefix);
        while let Some(entry) = entries.next().await {
            let key = entry?.key;
            if version_of(&key).is_some_and(|version| known.contains(&version)) {
                continue;
            }
            match records::get::<PolicyRecord>(&**root, &key).await {
                Ok(policy) => policies.push(policy),
                Err(error @ Error::Unreadable { .. }) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        policies.sort_by(|a, b| (&a.name, a.policy_version).cmp(&(&b.name, b.policy_version)));
        Ok((policies, unreadable))
    };
    with_cancel::<_, Error>(cancel, read).await
}

/// `policies/<name>/<version>.json`
fn version_of(key: &Key) -> Option<(String, u32)> {
    let (name, version) = key.as_str().strip_prefix(records::POLICIES)?.split_once('/')?;
    Some((name.to_owned(), version.strip_suffix(".json")?.parse().ok()?))
}

/// The newest record of an instance, and its number. `None`: its making was interrupted.
pub async fn newest_instance(
    store: &store::Shared,
    cancel: &CancellationToken,
) -> Result<Option<(u64, InstanceRecord)>, Error> {
    let read = async {
        let Some(n) = records::numbers(&**store, records::INSTANCE).await?.last().copied() else { return Ok(None) };
        Ok(Some((n, records::get(&**store, &records::numbered(records::INSTANCE, n)).await?)))
    };
    with_cancel::<_, Error>(cancel, read).await
}

/// The newest record of every instance, by id. What cannot be read is told in the second list.
pub async fn instances(
    stores: &dyn Stores,
    cancel: &CancellationToken,
) -> Result<(Vec<InstanceRecord>, Vec<Error>), Error> {
    let (mut instances, mut unreadable) = (Vec::new(), Vec::new());
    for instance_id in with_cancel(cancel, stores.instance_ids()).await? {
        let store = stores.instance(&instance_id)?;
        match newest_instance(&store, cancel).await {
            Ok(Some((_, record))) if record.id == instance_id => instances.push(record),
            Ok(Some((n, _))) => {
                let what = format!("{} in {}", records::numbered(records::INSTANCE, n), store.location());
                unreadable.push(Error::Unreadable { what, detail: "it is of another instance".to_owned() });
            }
            Ok(None) => {}
            Err(error @ Error::Unreadable { .. }) => unreadable.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok((instances, unreadable))
}

/// Records what an instance is from now on, unless the newest record says so already. True when a record was written.
pub async fn put_instance(
    store: &store::Shared,
    record: &InstanceRecord,
    cancel: &CancellationToken,
) -> Result<bool, Error> {
    loop {
        let n = match newest_instance(store, cancel).await? {
            Some((_, newest)) if newest == *record => return Ok(false),
            newest => newest.map_or(0, |(n, _)| n),
        };
        let place = records::numbered(records::INSTANCE, n + 1);
        if with_cancel(cancel, records::put(&**store, &place, record)).await? == Put::Created {
            return Ok(true);
        }
    }
}

/// The newest record of a server, and its number. `None`: there never was one.
async fn newest_server(root: &store::Shared, id: &str) -> Result<Option<(u64, ServerRecord)>, Error> {
    let prefix = records::server(id);
    let Some(n) = records::numbers(&**root, &prefix).await?.last().copied() else { return Ok(None) };
    Ok(Some((n, records::get(&**root, &records::numbered(&prefix, n)).await?)))
}

/// Records what a server is from now on, unless the newest record says so already. True when a record was written. After an error it is
/// not known whether it was; the same call again makes sure.
pub async fn put_server(
    root: &store::Shared,
    record: &ServerRecord,
    cancel: &CancellationToken,
) -> Result<bool, Error> {
    let put = async {
        loop {
            let n = match newest_server(root, &record.id).await? {
                Some((_, newest)) if newest == *record => return Ok(false),
                newest => newest.map_or(0, |(n, _)| n),
            };
            let place = records::numbered(&records::server(&record.id), n + 1);
            if records::put(&**root, &place, record).await? == Put::Created {
                return Ok(true);
            }
        }
    };
    with_cancel::<_, Error>(cancel, put).await
}

/// The newest record of every server, by id, those of removed ones too. What cannot be read is told in the second list.
pub async fn servers(
    root: &store::Shared,
    cancel: &CancellationToken,
) -> Result<(Vec<ServerRecord>, Vec<Error>), Error> {
    let read = async {
        let mut newest = BTreeMap::new();
        let mut entries = store::list(&**root, records::SERVERS);
        while let Some(entry) = entries.next().await {
            let key = entry?.key;
            // Listings are in order, so the last of a server stays.
            if let Some((id, _)) = key.as_str().strip_prefix(records::SERVERS).and_then(|rest| rest.split_once('/')) {
                newest.insert(id.to_owned(), key);
            }
        }
        let (mut servers, mut unreadable) = (Vec::new(), Vec::new());
        for (id, key) in newest {
            match records::get::<ServerRecord>(&**root, &key).await {
                Ok(record) if record.id == id => servers.push(record),
                Ok(_) => {
                    let (what, detail) = (key.to_string(), "it is of another server".to_owned());
                    unreadable.push(Error::Unreadable { what, detail });
                }
                Err(error @ Error::Unreadable { .. }) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((servers, unreadable))
    };
    with_cancel::<_, Error>(cancel, read).await
}
