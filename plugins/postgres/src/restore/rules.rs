//! What pg_restore says, and what it means: no error is passed over but by a rule that stands here and in docs/postgres.md.
//!
//! | what | rule |
//! |---|---|
//! | any error | the restore fails; pg_restore stops at the first one (`--exit-on-error`) |
//! | "unrecognized configuration parameter transaction_timeout", of a pg_restore since 17 at a server before | does not come up: see [`crate::loader`] |
//! | comments on extensions, which only their owner may write | left out for users who are no superusers, with a warning |
//! | comments on the schema `public` of servers before 15, which belongs to the first superuser | the same |
//! | a warning of pg_restore | a warning |
//! | pg_restore ends before it has read the dump to its end | the restore fails |

use vaultferry_plugin_sdk::{Warning, child};
use vaultferry_proto::{Problem, Reason};

use super::toc::Entry;
use crate::connection::words_reason;

/// What the target's user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// Everything.
    pub(super) superuser: bool,
    /// The schema `public` of a new database is the one's who makes it: since 15.
    pub(super) owns_public: bool,
}

/// True for what this user cannot restore, and what nobody misses for working with the database.
pub(super) fn is_forbidden(entry: &Entry, rights: Rights) -> bool {
    !rights.superuser
        && entry.kind == "COMMENT"
        && (entry.name.starts_with("EXTENSION ") || (!rights.owns_public && entry.name == "SCHEMA public"))
}

/// Whether a pg_restore that has ended did its work, and what is worth a warning.
pub(super) fn judge(ended: &child::Ended) -> Result<Vec<Warning>, Problem> {
    let words = ended.words.as_str();
    if !ended.success() {
        let said = if words.is_empty() { "it said nothing" } else { words };
        return Err(Problem::new(reason(words), format!("pg_restore ended with {}: {said}", ended.how())));
    }
    if words.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![partly(
        format!("pg_restore says: {words}"),
        "See whether what it says matters to you; the rest is restored.",
    )])
}

/// The reason that the last words of pg_restore, or the server's answer, give away.
pub(super) fn reason(words: &str) -> Reason {
    let says = |text: &&str| words.contains(*text);
    if ["No space left on device", "Disk quota exceeded"].iter().any(says) {
        return Reason::TargetFull;
    }
    let unknown_extension = words.contains("extension \"") && words.contains("is not available");
    if unknown_extension || words.contains("could not open extension control file") {
        return Reason::ExtensionMissing;
    }
    words_reason(words, Reason::RestoreFailed)
}

/// The same for a problem that a statement of ours met.
pub(super) fn named(problem: Problem) -> Problem {
    match (problem.reason, reason(&problem.message)) {
        (Reason::RestoreFailed, reason @ (Reason::TargetFull | Reason::ExtensionMissing)) => {
            Problem::new(reason, problem.message)
        }
        _ => problem,
    }
}

/// A warning: the database is restored, but for something.
pub(super) fn partly(message: impl Into<String>, fix: impl Into<String>) -> Warning {
    Warning { reason: Reason::PartlyRestored.as_str().to_owned(), message: message.into(), fix: fix.into() }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::super::toc::tests::entry;
    use super::*;

    fn ended(code: i32, words: &str) -> child::Ended {
        child::Ended { status: std::process::ExitStatus::from_raw(code << 8), words: words.to_owned() }
    }

    #[test]
    fn an_error_fails_the_restore_however_harmless_it_reads() {
        let words = "pg_restore: warning: errors ignored on restore: 1";
        for words in [words, "", "pg_restore: error: x"] {
            assert_eq!(judge(&ended(1, words)).unwrap_err().reason, Reason::RestoreFailed, "{words}");
        }
    }

    #[test]
    fn warnings_are_told_and_silence_is_good() {
        assert_eq!(judge(&ended(0, "")), Ok(Vec::new()));
        let warnings = judge(&ended(0, "pg_restore: warning: x")).unwrap();
        assert!(warnings[0].message.ends_with("warning: x"), "{warnings:?}");
    }

    #[test]
    fn words_have_reasons() {
        let cases = [
            ("ERROR:  could not extend file \"base/1/2\": No space left on device", Reason::TargetFull),
            ("ERROR:  extension \"postgis\" is not available", Reason::ExtensionMissing),
            ("ERROR:  could not open extension control file \"/x/postgis.control\"", Reason::ExtensionMissing),
            ("ERROR:  must be owner of extension hstore", Reason::UserErrorMissingDBPermissions),
            ("pg_restore: error: something", Reason::RestoreFailed),
        ];
        for (words, expected) in cases {
            assert_eq!(reason(words), expected, "{words}");
        }
        let full = named(Problem::new(Reason::RestoreFailed, "h: could not write: No space left on device"));
        assert_eq!(full.reason, Reason::TargetFull);
    }

    #[test]
    fn who_is_no_superuser_leaves_comments_of_others_things_out() {
        let extension = entry(1, "COMMENT", "", "EXTENSION hstore", &[]);
        let public = entry(2, "COMMENT", "", "SCHEMA public", &[]);
        let table = entry(3, "COMMENT", "s", "TABLE t", &[]);
        let superuser = Rights { superuser: true, owns_public: false };
        let user = Rights { superuser: false, owns_public: true };
        let old = Rights { superuser: false, owns_public: false };
        let forbidden = |rights| [&extension, &public, &table].map(|entry| is_forbidden(entry, rights));
        assert_eq!(forbidden(superuser), [false, false, false]);
        assert_eq!(forbidden(user), [true, false, false]);
        assert_eq!(forbidden(old), [true, true, false]);
    }
}
