//! What is recommended (P16), as data: nothing here refuses anything (D20). Which servers a client can dump is for the client to know
//! ([`crate::client`], D13).

use vaultferry_plugin_sdk::Finding;
use vaultferry_proto::Reason;

/// The size up to which the service recommends this kind of backup (P16).
const RECOMMENDED_BYTES_MAX: u64 = 400_000_000_000;

/// The warning for a database that is larger than recommended.
pub(crate) fn large(size: u64) -> Option<Finding> {
    let message = || {
        format!(
            "the database has {} GB; up to {} GB are recommended for this kind of backup",
            size / 1_000_000_000,
            RECOMMENDED_BYTES_MAX / 1_000_000_000
        )
    };
    (size > RECOMMENDED_BYTES_MAX).then(|| {
        Finding::warning(Reason::SizeAboveRecommended, message())
            .with_fix("Nothing must be done; expect backups and restores to take long.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_the_recommended_size_is_worth_a_warning() {
        assert_eq!(large(RECOMMENDED_BYTES_MAX), None);
        let warning = large(512_000_000_000).unwrap();
        assert!(warning.message.contains("512 GB") && warning.message.contains("400 GB"), "{warning:?}");
        assert!(!warning.blocking);
    }
}
