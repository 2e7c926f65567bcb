//! What pg_restore says, and what it means: no error is passed over but by a rule that stands here and in docs/postgres.md.
//!
//! | what | rule |
//! |---|---|
//! | any error | the restore fails; pg_restore stops at the first one (`--exit-on-error`) |
//! | "unrecognized configuration parameter transaction_timeout": pg_restore since 17 sets it on every server, and only those since 17 know it | a warning. Only for such a pair pg_restore goes on after errors, and every one that it has counted must be this one |
//! | comments on extensions, which only their owner may write | left out for users who are no superusers, with a warning |
//! | comments on the schema `public` of servers before 15, which belongs to the first superuser | the same |
//! | a warning of pg_restore | a warning |
//! | pg_restore ends before it has read the dump to its end | the restore fails |

use vaultferry_plugin_sdk::{Warning, child};
use vaultferry_proto::{Problem, Reason};

use super::toc::Entry;
use crate::client::Major;
use crate::connection::words_reason;

/// The first version that knows `transaction_timeout`, and whose pg_restore sets it.
const KNOWS_TRANSACTION_TIMEOUT: Major = Major::new(17);

/// Errors that change nothing about what is restored.
const HARMLESS: [&str; 1] = ["unrecognized configuration parameter \"transaction_timeout\""];

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

/// True when this pg_restore meets a harmless error on this server, and has to go on after errors.
pub(super) fn goes_on(program: Major, server: Major) -> bool {
    program >= KNOWS_TRANSACTION_TIMEOUT && server < KNOWS_TRANSACTION_TIMEOUT
}

/// Whether a pg_restore that has ended did its work, and what is worth a warning. `goes_on`: as it was told.
pub(super) fn judge(ended: &child::Ended, goes_on: bool) -> Result<Vec<Warning>, Problem> {
    let words = ended.words.as_str();
    if !ended.success() && !(goes_on && ended.status.code() == Some(1) && has_only_harmless_errors(words)) {
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

/// All that pg_restore has counted are known. What it said first may be lost of very many words: then the numbers differ.
fn has_only_harmless_errors(words: &str) -> bool {
    let harmless = words
        .lines()
        .filter(|line| line.contains("error:") && HARMLESS.iter().any(|harmless| line.contains(harmless)))
        .count();
    let counted = words.lines().find_map(|line| {
        let number = line.split_once("errors ignored on restore: ")?.1;
        number.trim().parse::<usize>().ok()
    });
    harmless > 0 && counted == Some(harmless)
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

    const TIMEOUT: &str = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\n\
                           Command was: SET transaction_timeout = 0;\n";

    fn ended(code: i32, words: &str) -> child::Ended {
        child::Ended { status: std::process::ExitStatus::from_raw(code << 8), words: words.to_owned() }
    }

    #[test]
    fn only_an_error_that_is_known_to_be_harmless_and_alone_is_passed_over() {
        let alone = format!("{TIMEOUT}pg_restore: warning: errors ignored on restore: 1");
        let warnings = judge(&ended(1, &alone), true).unwrap();
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].reason, "PartlyRestored");
        let cases = [
            (alone.clone(), false),
            (TIMEOUT.to_owned(), true),
            (format!("{TIMEOUT}pg_restore: warning: errors ignored on restore: 2"), true),
            (format!("{TIMEOUT}pg_restore: error: x\npg_restore: warning: errors ignored on restore: 2"), true),
            ("pg_restore: warning: errors ignored on restore: 0".to_owned(), true),
            (String::new(), true),
        ];
        for (words, goes_on) in cases {
            assert_eq!(judge(&ended(1, &words), goes_on).unwrap_err().reason, Reason::RestoreFailed, "{words}");
        }
        // A signal, or another exit status, is never passed over.
        assert!(judge(&ended(2, &alone), true).is_err());
    }

    #[test]
    fn warnings_are_told_and_silence_is_good() {
        assert_eq!(judge(&ended(0, ""), false), Ok(Vec::new()));
        let warnings = judge(&ended(0, "pg_restore: warning: x"), false).unwrap();
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
    fn clients_since_17_go_on_at_servers_before() {
        assert!(goes_on(Major::new(17), Major::new(16)));
        assert!(!goes_on(Major::new(16), Major::new(10)) && !goes_on(Major::new(18), Major::new(17)));
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
