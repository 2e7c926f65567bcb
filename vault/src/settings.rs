//! What can be changed of a vault: `settings/<n>.json` in its own store, the highest number counts. `vault.json` is never changed; its
//! values count until the first settings are written.
//!
//! Invariants:
//! - Immutability that is locked stays locked, and its days only grow: [`change`] refuses anything else, whoever asks.
//! - Two changes at once: one is told to look again, none is lost unseen.

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::blocking::with_cancel;
use crate::error::Error;
use crate::immutability;
use crate::records::{self, VaultRecord};
use crate::store::{Put, Store};

/// Where they lie.
pub const SETTINGS: &str = "settings/";
/// The longest immutability, in days: a hundred years.
pub const MAX_IMMUTABILITY_DAYS: u32 = 36_500;
/// The longest soft delete, in days.
pub const MAX_SOFT_DELETE_DAYS: u32 = 180;

/// Whether the store keeps points from being deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Immutability {
    /// It does not.
    #[default]
    Disabled,
    /// New points get a date; an administrator can take it away.
    Enabled,
    /// New points get a date that nobody can take away, and this setting cannot be undone.
    Locked,
}

/// `settings/<n>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// 1.
    pub version: u32,
    /// When they were made.
    pub create_time: jiff::Timestamp,
    /// Of points that are made from then on.
    #[serde(default)]
    pub immutability: Immutability,
    /// From a point's commit; 1 to [`MAX_IMMUTABILITY_DAYS`] unless immutability is disabled.
    #[serde(default)]
    pub immutability_days: u32,
    /// Between deletion and purge: 0 to [`MAX_SOFT_DELETE_DAYS`].
    pub soft_delete_days: u32,
    /// What the storage below is set to, as in `vault.json`.
    pub redundancy: String,
}

/// The settings were not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// A value is out of its range: the sentence says which.
    #[error("{0}")]
    Invalid(&'static str),
    /// What is locked would be loosened: the sentence says how.
    #[error("{0}")]
    Locked(&'static str),
    /// Somebody else has changed them meanwhile.
    #[error("the vault's settings were changed by somebody else meanwhile")]
    Raced,
    /// The vault's side.
    #[error(transparent)]
    Vault(#[from] Error),
}

impl Settings {
    /// What counts before the first settings are written.
    pub fn of_vault(vault: &VaultRecord) -> Self {
        let immutability = if vault.immutability_days > 0 { Immutability::Enabled } else { Immutability::Disabled };
        Self {
            version: records::VERSION,
            create_time: vault.create_time,
            immutability,
            immutability_days: vault.immutability_days,
            soft_delete_days: vault.soft_delete_days,
            redundancy: vault.redundancy.clone(),
        }
    }

    /// Until when a point that is committed at `now` is immutable, and whether that is locked; `None` when immutability is disabled.
    pub fn immutable_until(&self, now: jiff::Timestamp) -> Option<(jiff::Timestamp, bool)> {
        if self.immutability == Immutability::Disabled {
            return None;
        }
        let days = jiff::SignedDuration::from_hours(24 * i64::from(self.immutability_days));
        let until = now.checked_add(days).unwrap_or(jiff::Timestamp::MAX);
        Some((until, self.immutability == Immutability::Locked))
    }

    fn check(&self) -> Result<(), ChangeError> {
        if self.immutability != Immutability::Disabled && !(1..=MAX_IMMUTABILITY_DAYS).contains(&self.immutability_days)
        {
            return Err(ChangeError::Invalid("immutability is for 1 to 36500 days"));
        }
        if self.soft_delete_days > MAX_SOFT_DELETE_DAYS {
            return Err(ChangeError::Invalid("deleted points are kept for 180 days at most"));
        }
        Ok(())
    }

    /// [`ChangeError::Locked`] when `before` is locked and these settings would loosen it.
    pub fn check_follows(&self, before: &Self) -> Result<(), ChangeError> {
        if before.immutability != Immutability::Locked {
            return Ok(());
        }
        if self.immutability != Immutability::Locked {
            return Err(ChangeError::Locked("immutability is locked, which cannot be undone"));
        }
        if self.immutability_days < before.immutability_days {
            return Err(ChangeError::Locked("immutability is locked: its days can only grow"));
        }
        Ok(())
    }
}

/// The settings that count, and their number (0: those of `vault.json`).
pub async fn current(
    root: &dyn Store,
    vault: &VaultRecord,
    cancel: &CancellationToken,
) -> Result<(u64, Settings), Error> {
    let read = async {
        match records::numbers(root, SETTINGS).await?.last() {
            Some(n) => Ok((*n, records::get(root, &records::numbered(SETTINGS, *n)).await?)),
            None => Ok((0, Settings::of_vault(vault))),
        }
    };
    with_cancel::<_, Error>(cancel, read).await
}

/// True when the vault's storage can make files immutable at all. Changes nothing; needs the same right as making them so.
pub async fn is_immutability_supported(root: &dyn Store, cancel: &CancellationToken) -> Result<bool, Error> {
    immutability::is_supported(root, &admin::vault_key(), cancel).await
}

/// Makes `new` the settings that count, after those that are numbered `seen`. `version` and `create_time` of `new` are set here.
/// An error leaves the settings as they were, but for a lost answer: then ask [`current`].
pub async fn change(
    root: &dyn Store,
    vault: &VaultRecord,
    seen: u64,
    mut new: Settings,
    cancel: &CancellationToken,
) -> Result<Settings, ChangeError> {
    let (n, before) = current(root, vault, cancel).await?;
    if n != seen {
        return Err(ChangeError::Raced);
    }
    (new.version, new.create_time) = (records::VERSION, crate::clock::now());
    new.check()?;
    new.check_follows(&before)?;
    match with_cancel(cancel, records::put(root, &records::numbered(SETTINGS, n + 1), &new)).await? {
        Put::Created => Ok(new),
        Put::Existed => Err(ChangeError::Raced),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    fn vault() -> VaultRecord {
        VaultRecord {
            version: 1,
            id: "0".repeat(32),
            create_time: jiff::Timestamp::UNIX_EPOCH,
            region: String::new(),
            redundancy: "geo-redundant".to_owned(),
            format_version: 1,
            immutability_days: 0,
            soft_delete_days: 14,
        }
    }

    #[tokio::test]
    async fn what_is_locked_stays_locked() {
        let (root, cancel, vault) = (Memory::new("root"), CancellationToken::new(), vault());
        let (n, settings) = current(&root, &vault, &cancel).await.expect("current");
        assert_eq!((n, settings.immutability, settings.soft_delete_days), (0, Immutability::Disabled, 14));
        assert_eq!(settings.immutable_until(jiff::Timestamp::UNIX_EPOCH), None);
        let with = |immutability, immutability_days| Settings { immutability, immutability_days, ..settings.clone() };
        let change = async |seen, new| super::change(&root, &vault, seen, new, &cancel).await;
        for wrong in [
            with(Immutability::Enabled, 0),
            with(Immutability::Locked, MAX_IMMUTABILITY_DAYS + 1),
            Settings { soft_delete_days: 181, ..settings.clone() },
        ] {
            assert!(matches!(change(0, wrong).await, Err(ChangeError::Invalid(_))));
        }
        change(0, with(Immutability::Enabled, 30)).await.expect("enable");
        assert!(matches!(change(0, with(Immutability::Disabled, 0)).await, Err(ChangeError::Raced)));
        change(1, with(Immutability::Disabled, 0)).await.expect("disable");
        let locked = change(2, with(Immutability::Locked, 30)).await.expect("lock");
        let until = "1970-01-31T00:00:00Z".parse().expect("time");
        assert_eq!(locked.immutable_until(jiff::Timestamp::UNIX_EPOCH), Some((until, true)));
        for weaker in
            [with(Immutability::Locked, 29), with(Immutability::Enabled, 30), with(Immutability::Disabled, 30)]
        {
            assert!(matches!(change(3, weaker).await, Err(ChangeError::Locked(_))));
        }
        change(3, with(Immutability::Locked, 31)).await.expect("longer");
        let (n, settings) = current(&root, &vault, &cancel).await.expect("current");
        assert_eq!((n, settings.immutability_days), (4, 31));
    }

    #[test]
    fn their_form_is_kept() {
        let text = "{\"version\":1,\"create_time\":\"2026-01-01T00:00:00Z\",\"immutability\":\"locked\",\
                    \"immutability_days\":30,\"soft_delete_days\":14,\"redundancy\":\"geo-redundant\"}";
        let settings: Settings = serde_json::from_str(text).expect("parses");
        assert_eq!(serde_json::to_string(&settings).expect("json"), text);
    }
}
