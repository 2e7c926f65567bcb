use super::database::create_statement;
use super::*;
use crate::client::Major;
use crate::facts::LocaleProvider;

fn facts(provider: LocaleProvider, locale: Option<&str>) -> Facts {
    let json = serde_json::json!({
        "format_version": 1, "database": "d", "owner": "o", "server_version_num": 150_000, "pg_dump_version": "15.1",
        "encoding": "UTF8", "collate": "it's", "ctype": "C", "locale_provider": provider, "locale": locale,
        "icu_rules": null, "size_bytes": 1, "roles": [], "extensions": [],
    });
    Facts::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn the_unfinished_database_is_named_after_the_job() {
    let name = temporary_name("0190a7e4-1111-7222-8333-123456789ABC").unwrap();
    assert_eq!(name, "vaultferry_restore_0190a7e4111172228333123456789abc");
    for id in ["", "-", "a\"b", "a b", "가", &"a".repeat(45)] {
        assert_eq!(temporary_name(id).unwrap_err().reason, Reason::InvalidRequest, "{id}");
    }
}

#[test]
fn names_that_the_server_would_cut_are_refused() {
    assert!(check_name(&"가".repeat(21)).is_ok());
    for name in [String::new(), "a\0b".to_owned(), "가".repeat(22)] {
        assert_eq!(check_name(&name).unwrap_err().reason, Reason::InvalidRequest);
    }
}

#[test]
fn the_new_database_gets_the_locale_of_the_source() {
    let libc = facts(LocaleProvider::Libc, None);
    let old = create_statement("n", &libc, Major::new(14)).unwrap();
    assert_eq!(old, "create database \"n\" template template0 encoding 'UTF8' lc_collate 'it''s' lc_ctype 'C'");
    let new = create_statement("n", &libc, Major::new(15)).unwrap();
    assert_eq!(new, format!("{old} locale_provider libc"));
    let icu = facts(LocaleProvider::Icu, Some("ko-KR"));
    let statement = create_statement("n", &icu, Major::new(17)).unwrap();
    assert_eq!(statement, format!("{old} locale_provider icu icu_locale 'ko-KR'"));
    assert_eq!(create_statement("n", &icu, Major::new(14)).unwrap_err().reason, Reason::LocaleMissing);
    // What an older version would leave out, or not know.
    let rules = Facts { icu_rules: Some("&a < g".to_owned()), ..icu };
    assert_eq!(create_statement("n", &rules, Major::new(15)).unwrap_err().reason, Reason::LocaleMissing);
    assert!(create_statement("n", &rules, Major::new(16)).unwrap().ends_with(" icu_rules '&a < g'"));
    let fast = facts(LocaleProvider::Builtin, Some("PG_UNICODE_FAST"));
    assert_eq!(create_statement("n", &fast, Major::new(17)).unwrap_err().reason, Reason::LocaleMissing);
    assert!(create_statement("n", &fast, Major::new(18)).is_ok());
    let builtin = facts(LocaleProvider::Builtin, Some("C.UTF-8"));
    assert_eq!(create_statement("n", &builtin, Major::new(16)).unwrap_err().reason, Reason::LocaleMissing);
}

#[cfg(unix)]
#[test]
fn a_broken_pipe_is_never_the_story() {
    use std::os::unix::process::ExitStatusExt as _;
    let ended = |status: i32, words: &str| child::Ended {
        status: std::process::ExitStatus::from_raw(status),
        words: words.to_owned(),
    };
    assert_eq!(all_of(Ok(7)), Ok(7));
    let broken = Err(CopyError::Output(std::io::ErrorKind::BrokenPipe.into()));
    assert!(all_of(broken).unwrap_err().message.contains("before it had read the whole dump"));
    let problem = rules::judge(&ended(1 << 8, "pg_restore: error: relation exists")).unwrap_err();
    assert_eq!(problem.message, "pg_restore ended with exit status 1: pg_restore: error: relation exists");
    assert!(rules::judge(&ended(15, "")).unwrap_err().message.contains("SIGTERM"));
}
