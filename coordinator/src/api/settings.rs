//! The vault's settings: what a request makes of them, and which requests are refused.
//!
//! The vault crate keeps the rules of the records (what is locked stays locked, one of two changes at once wins); here are those of the
//! request: words, ranges told one by one, the confirmation of a lock, and what the storage can do at all.

use vaultferry_proto::control::v1::{self as wire, UpdateVaultSettingsRequest};
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::manifest::{self, Scope};
use vaultferry_vault::settings::{
    self, ChangeError, Immutability, MAX_IMMUTABILITY_DAYS, MAX_SOFT_DELETE_DAYS, Settings,
};

use super::{Api, convert};

impl Api {
    /// The settings that count, and the number of their record.
    pub(super) async fn numbered_settings(&self) -> Result<(u64, Settings), Problem> {
        let root = self.shared.vault.open_root()?;
        Ok(settings::current(&*root, &self.vault, &self.stopping).await?)
    }

    pub(super) async fn update_settings(
        &self,
        request: &UpdateVaultSettingsRequest,
    ) -> Result<wire::VaultSettings, Problem> {
        let root = self.shared.vault.open_root()?;
        let (seen, before) = settings::current(&*root, &self.vault, &self.stopping).await?;
        let Some(new) = changed(&before, request)? else { return Ok(convert::settings(seen, &before)) };
        self.check_owner().await?;
        let protects = new.immutability != Immutability::Disabled
            && (new.immutability, new.immutability_days) != (before.immutability, before.immutability_days);
        if protects && !settings::is_immutability_supported(&*root, &self.stopping).await? {
            let message = format!(
                "the storage at {} cannot make files immutable, so immutability stays disabled here",
                self.shared.vault.location
            );
            let fix = "Use a vault on Azure, in an account with version-level immutability. In a folder, take away the right to delete \
                       from whoever must not have it.";
            return Err(Problem::new(Reason::VaultUnsupported, message).with_fix(fix));
        }
        let made = settings::change(&*root, &self.vault, seen, new, &self.stopping).await.map_err(refused)?;
        tracing::info!(
            record = seen + 1,
            immutability = ?made.immutability,
            immutability_days = made.immutability_days,
            soft_delete_days = made.soft_delete_days,
            "the vault's settings were changed"
        );
        if let Err(error) = manifest::append(&*root, Scope::Vault, &[], &self.stopping).await {
            // The settings count without it; the next change of them or of a key names them.
            tracing::warn!("the new settings are not covered by a manifest yet: {error}");
        }
        Ok(convert::settings(seen + 1, &made))
    }
}

/// What the request makes of the settings; `None` when they are so already.
fn changed(before: &Settings, request: &UpdateVaultSettingsRequest) -> Result<Option<Settings>, Problem> {
    let state = request.immutability.as_deref().map(immutability_from).transpose()?.unwrap_or(before.immutability);
    let days = match (request.immutability_days, state) {
        (Some(_), Immutability::Disabled) => {
            return Err(invalid("immutability is disabled, so it has no days")
                .with_fix("Enable it together with its days: --immutability enabled --immutability-days N."));
        }
        (None, Immutability::Disabled) => 0,
        (Some(days), _) => in_range("immutability", days, 1, MAX_IMMUTABILITY_DAYS, "--immutability-days")?,
        (None, _) if before.immutability == Immutability::Disabled => {
            return Err(invalid("it must be said for how many days new points are immutable").with_fix(format!(
                "Name the days: --immutability-days N, 1 to {MAX_IMMUTABILITY_DAYS}. Nothing of a point can be deleted for so long."
            )));
        }
        (None, _) => before.immutability_days,
    };
    let soft_delete_days = match request.soft_delete_days {
        Some(days) => in_range("soft delete", days, 0, MAX_SOFT_DELETE_DAYS, "--soft-delete-days")?,
        None => before.soft_delete_days,
    };
    let was_disabled = before.immutability == Immutability::Disabled;
    let days_before = if was_disabled { 0 } else { before.immutability_days };
    if (state, days, soft_delete_days) == (before.immutability, days_before, before.soft_delete_days) {
        return Ok(None);
    }
    let new = Settings { immutability: state, immutability_days: days, soft_delete_days, ..before.clone() };
    new.check_follows(before).map_err(refused)?;
    let locks = state == Immutability::Locked && (before.immutability, days_before) != (state, days);
    if locks && !request.confirm_lock {
        let message = format!(
            "locking is irreversible: every point that is made from then on cannot be deleted for {days} days, by nobody, and nobody can \
             disable it or shorten the days"
        );
        return Err(invalid(message)
            .with_fix("If that is meant, say so with --yes. To be able to go back: --immutability enabled."));
    }
    Ok(Some(new))
}

fn immutability_from(word: &str) -> Result<Immutability, Problem> {
    match word.to_ascii_lowercase().as_str() {
        "disabled" => Ok(Immutability::Disabled),
        "enabled" => Ok(Immutability::Enabled),
        "locked" => Ok(Immutability::Locked),
        _ => Err(invalid(format!("immutability cannot be {word:?}")).with_fix("Write Disabled, Enabled or Locked.")),
    }
}

fn in_range(what: &str, days: u32, min: u32, max: u32, flag: &str) -> Result<u32, Problem> {
    if (min..=max).contains(&days) {
        return Ok(days);
    }
    Err(invalid(format!("{what} cannot be for {days} days")).with_fix(format!("Choose {min} to {max} days: {flag}.")))
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidRequest, message)
}

/// The vault's own words for a change that it does not take.
fn refused(error: ChangeError) -> Problem {
    match error {
        ChangeError::Invalid(rule) => invalid(rule),
        ChangeError::Locked(rule) => Problem::new(Reason::VaultSettingsLocked, rule),
        ChangeError::Raced => Problem::new(Reason::VaultSettingsRaced, error.to_string()),
        ChangeError::Vault(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(immutability: Immutability, immutability_days: u32) -> Settings {
        Settings {
            version: 1,
            create_time: jiff::Timestamp::UNIX_EPOCH,
            immutability,
            immutability_days,
            soft_delete_days: 14,
            redundancy: "geo-redundant".to_owned(),
        }
    }

    fn request(immutability: Option<&str>, days: Option<u32>, confirm_lock: bool) -> UpdateVaultSettingsRequest {
        UpdateVaultSettingsRequest {
            immutability: immutability.map(str::to_owned),
            immutability_days: days,
            soft_delete_days: None,
            confirm_lock,
        }
    }

    /// The state and days that come of it, `None` for no change, or the reason of the refusal.
    fn outcome(before: &Settings, request: &UpdateVaultSettingsRequest) -> Result<Option<(Immutability, u32)>, Reason> {
        match changed(before, request) {
            Ok(new) => Ok(new.map(|new| (new.immutability, new.immutability_days))),
            Err(problem) => {
                assert!(problem.fix.len() > 10, "no fix: {problem:?}");
                Err(problem.reason)
            }
        }
    }

    #[test]
    fn every_step_between_the_states_is_allowed_or_refused_by_name() {
        use Immutability::{Disabled, Enabled, Locked};
        let (invalid, locked) = (Err(Reason::InvalidRequest), Err(Reason::VaultSettingsLocked));
        for (from, word, days, yes, expected) in [
            ((Disabled, 0), Some("enabled"), Some(30), false, Ok(Some((Enabled, 30)))),
            ((Disabled, 0), Some("Enabled"), None, false, invalid),
            ((Disabled, 0), Some("enabled"), Some(0), false, invalid),
            ((Disabled, 0), Some("enabled"), Some(36_501), false, invalid),
            ((Disabled, 0), None, Some(30), false, invalid),
            ((Disabled, 0), Some("frozen"), Some(30), true, invalid),
            ((Disabled, 0), Some("disabled"), None, false, Ok(None)),
            ((Disabled, 0), Some("locked"), Some(30), false, invalid),
            ((Disabled, 0), Some("locked"), Some(30), true, Ok(Some((Locked, 30)))),
            // What an earlier record says of days while it is disabled does not count.
            ((Disabled, 7), Some("enabled"), None, false, invalid),
            ((Disabled, 7), Some("disabled"), None, false, Ok(None)),
            ((Enabled, 30), Some("disabled"), None, false, Ok(Some((Disabled, 0)))),
            ((Enabled, 30), Some("disabled"), Some(30), false, invalid),
            ((Enabled, 30), None, Some(10), false, Ok(Some((Enabled, 10)))),
            ((Enabled, 30), Some("locked"), None, false, invalid),
            ((Enabled, 30), Some("LOCKED"), None, true, Ok(Some((Locked, 30)))),
            ((Enabled, 30), None, None, true, Ok(None)),
            ((Locked, 30), Some("enabled"), None, true, locked),
            ((Locked, 30), Some("disabled"), None, true, locked),
            ((Locked, 30), None, Some(29), true, locked),
            ((Locked, 30), None, Some(31), false, invalid),
            ((Locked, 30), None, Some(31), true, Ok(Some((Locked, 31)))),
            ((Locked, 30), Some("locked"), Some(30), false, Ok(None)),
        ] {
            let got = outcome(&settings(from.0, from.1), &request(word, days, yes));
            assert_eq!(got, expected, "{from:?} {word:?} {days:?} {yes}");
        }
    }

    #[test]
    fn soft_delete_changes_alone_and_within_its_range() {
        let locked = settings(Immutability::Locked, 30);
        let days = |days| UpdateVaultSettingsRequest { soft_delete_days: Some(days), ..request(None, None, false) };
        let new = changed(&locked, &days(180)).expect("allowed").expect("a change");
        assert_eq!((new.soft_delete_days, new.immutability, new.immutability_days), (180, Immutability::Locked, 30));
        assert_eq!(changed(&locked, &days(14)).expect("allowed"), None);
        let problem = changed(&locked, &days(181)).expect_err("too long");
        assert!(problem.message.contains("181") && problem.fix.contains("0 to 180"), "{problem:?}");
    }

    #[test]
    fn an_unconfirmed_lock_is_told_what_it_is() {
        let problem = changed(&settings(Immutability::Enabled, 9), &request(Some("locked"), None, false));
        let problem = problem.expect_err("unconfirmed");
        assert!(problem.message.contains("irreversible") && problem.message.contains("9 days"), "{problem:?}");
        assert!(problem.fix.contains("--yes"), "{problem:?}");
        let raced = refused(ChangeError::Raced);
        assert_eq!((raced.reason, raced.reason.code()), (Reason::VaultSettingsRaced, tonic::Code::Aborted));
    }
}
