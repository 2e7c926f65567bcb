//! What the service tells of a blob, in a store's words.

use azure_core::http::{NoFormat, Response};
use azure_core::time::OffsetDateTime;
use azure_storage_blob::models::{
    AccessTier, ArchiveStatus, BlobClientGetPropertiesResult, BlobClientGetPropertiesResultHeaders as _,
    BlobProperties, CopyStatus, ImmutabilityPolicyMode, SkuName,
};

use crate::store::{Entry, Key, Protection, Redundancy, Tier};

/// The answer of Get Blob Properties.
pub(super) type Answer = Response<BlobClientGetPropertiesResult, NoFormat>;

/// An entry out of Get Blob Properties; `None` when it does not tell the size.
pub(super) fn of_answer(key: Key, blob: &Answer) -> Option<Entry> {
    let size = blob.content_length().ok().flatten()?;
    let tier = blob.access_tier().ok().flatten();
    let copy = blob.copy_status().ok().flatten();
    let (tier, rehydrating) = tier_of(tier.as_deref(), blob.archive_status().ok().flatten().as_ref(), copy.as_ref());
    Some(Entry { key, size, tier, rehydrating, protection: protection_of(blob) })
}

/// What protects the blob, out of Get Blob Properties.
pub(super) fn protection_of(blob: &Answer) -> Protection {
    // A mode that is not known counts as the strictest.
    let mode = blob.immutability_policy_mode().unwrap_or(Some(ImmutabilityPolicyMode::Locked));
    protection(blob.immutability_policy_expires_on().ok().flatten(), mode.as_ref(), blob.legal_hold().ok().flatten())
}

/// An entry out of a listing; `None` when it does not tell the size.
pub(super) fn of_item(key: Key, blob: &BlobProperties) -> Option<Entry> {
    let size = blob.content_length?;
    let tier = blob.access_tier.as_ref().map(AccessTier::to_string);
    let (tier, rehydrating) = tier_of(tier.as_deref(), blob.archive_status.as_ref(), blob.copy_status.as_ref());
    let protection =
        protection(blob.immutability_policy_expires_on, blob.immutability_policy_mode.as_ref(), blob.legal_hold);
    Some(Entry { key, size, tier, rehydrating, protection })
}

/// A blob on its way out of the archive counts as archived, whatever tier is told: it cannot be read yet.
fn tier_of(tier: Option<&str>, archive: Option<&ArchiveStatus>, copy: Option<&CopyStatus>) -> (Tier, bool) {
    if archive.is_some() || matches!(copy, Some(CopyStatus::Pending)) {
        return (Tier::Archive, true);
    }
    match tier {
        Some("Archive") => (Tier::Archive, false),
        Some("Cool" | "Cold") => (Tier::Cool, false),
        _ => (Tier::Hot, false),
    }
}

fn protection(
    until: Option<OffsetDateTime>,
    mode: Option<&ImmutabilityPolicyMode>,
    legal_hold: Option<bool>,
) -> Protection {
    Protection {
        immutable_until: until.and_then(|until| jiff::Timestamp::from_second(until.unix_timestamp()).ok()),
        locked: matches!(mode, Some(ImmutabilityPolicyMode::Locked)),
        legal_hold: legal_hold.unwrap_or(false),
    }
}

/// Dates travel in whole seconds; what was asked for is never cut short.
pub(super) fn whole_second_after(time: jiff::Timestamp) -> Result<OffsetDateTime, String> {
    let second = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    OffsetDateTime::from_unix_timestamp(second).map_err(|error| error.to_string())
}

pub(super) fn redundancy(sku: &SkuName) -> Redundancy {
    match sku {
        SkuName::PremiumLrs | SkuName::StandardLrs => Redundancy::Local,
        SkuName::PremiumZrs | SkuName::StandardZrs => Redundancy::Zone,
        SkuName::StandardGrs | SkuName::StandardGzrs | SkuName::StandardRagrs | SkuName::StandardRagzrs => {
            Redundancy::Geo
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_of_the_archive_is_archived_until_it_is_there() {
        let pending = ArchiveStatus::RehydratePendingToHot;
        for (tier, archive, copy, expected) in [
            (None, None, None, (Tier::Hot, false)),
            (Some("Hot"), None, Some(&CopyStatus::Success), (Tier::Hot, false)),
            (Some("Cold"), None, None, (Tier::Cool, false)),
            (Some("Archive"), None, None, (Tier::Archive, false)),
            (Some("Archive"), Some(&pending), None, (Tier::Archive, true)),
            (Some("Hot"), Some(&pending), Some(&CopyStatus::Pending), (Tier::Archive, true)),
            (Some("Hot"), None, Some(&CopyStatus::Pending), (Tier::Archive, true)),
        ] {
            assert_eq!(tier_of(tier, archive, copy), expected);
        }
    }

    #[test]
    fn dates_are_rounded_away() {
        for (text, second) in [("2030-01-01T00:00:00Z", 1_893_456_000), ("2030-01-01T00:00:00.001Z", 1_893_456_001)] {
            let time: jiff::Timestamp = text.parse().expect("a time");
            assert_eq!(whole_second_after(time).expect("in range").unix_timestamp(), second);
        }
    }
}
