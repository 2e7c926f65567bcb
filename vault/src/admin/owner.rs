//! Which agent works with the vault: `owner/<n>.json`, the highest n counts.
//!
//! - An agent that is not the owner starts no job and commits nothing. It asks before each step ([`check`]): a cheap listing.
//! - The vault changes hands by an explicit takeover only. What the former owner had asked for before may still come to its end: a
//!   point that is being published in that very moment. It is whole, and a rebuilt catalog of the new owner may not list it until it is
//!   rebuilt again.

use super::*;
use crate::records::OwnerRecord;

/// The newest owner's record and its number. `None`: nobody owns the vault yet.
pub async fn current(root: &store::Shared, cancel: &CancellationToken) -> Result<Option<(u64, OwnerRecord)>, Error> {
    let Some(n) = with_cancel(cancel, records::numbers(&**root, records::OWNERS)).await?.last().copied() else {
        return Ok(None);
    };
    let record = with_cancel(cancel, records::get(&**root, &records::numbered(records::OWNERS, n))).await?;
    Ok(Some((n, record)))
}

/// Makes the agent the owner, unless it is. When another one is: [`Error::OwnedByOther`], or with `take_over` the vault changes hands.
/// Asking twice does no harm. Of several agents that claim at once one wins.
pub async fn claim(
    root: &store::Shared,
    agent_id: &str,
    hostname: &str,
    take_over: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let (agent_id, hostname) = (agent_id.to_owned(), hostname.to_owned());
    let record = OwnerRecord { version: records::VERSION, create_time: crate::clock::now(), agent_id, hostname };
    loop {
        let last = match current(root, cancel).await? {
            Some((_, owner)) if owner.agent_id == record.agent_id => return Ok(()),
            Some((_, owner)) if !take_over => return Err(owned_by(root, owner)),
            owner => owner.map_or(0, |(n, _)| n),
        };
        let place = records::numbered(records::OWNERS, last + 1);
        if with_cancel(cancel, records::put(&**root, &place, &record)).await? == Put::Created {
            return Ok(());
        }
    }
}

/// [`Error::OwnedByOther`] when the vault has another owner; an unowned vault is nobody else's.
pub async fn check(root: &store::Shared, agent_id: &str, cancel: &CancellationToken) -> Result<(), Error> {
    match current(root, cancel).await? {
        Some((_, owner)) if owner.agent_id != agent_id => Err(owned_by(root, owner)),
        _ => Ok(()),
    }
}

fn owned_by(root: &store::Shared, owner: OwnerRecord) -> Error {
    Error::OwnedByOther {
        location: root.location().to_owned(),
        agent_id: owner.agent_id,
        hostname: owner.hostname,
        since: owner.create_time,
    }
}
