//! The least rights for backups (P6), as a script for psql.
//!
//! The script is `deploy/grant-backup-role.sql`, which people can also run by themselves; here it is put together for several databases.
//! It asks the server's version by itself, and changes only what is missing, so that it may be run again.

/// For one database: the one that psql is connected to, and the role that its variable `role` names.
pub const SCRIPT: &str = include_str!("../../../deploy/grant-backup-role.sql");

/// The script for these databases of one server, to be run as a superuser: `… | psql -X -h SERVER -d postgres`. Without a database it is for
/// the one that psql is connected to. `per_database`: table by table also where the role pg_read_all_data would do.
pub fn grants(role: &str, databases: &[String], per_database: bool) -> String {
    let mut text = "\\set ON_ERROR_STOP on\n".to_owned();
    text.push_str(&format!("\\set role {}\n\\set per_database {}\n", psql_quoted(role), u8::from(per_database)));
    if databases.is_empty() {
        text.push_str(SCRIPT);
    }
    for database in databases {
        // As a parameter of a connection string: a bare name with = or :// in it would be taken for one.
        let name = database.replace('\\', "\\\\").replace('\'', "\\'");
        let connection = psql_quoted(&format!("dbname='{name}'"));
        text.push_str(&format!("\\connect -reuse-previous=on {connection}\n{SCRIPT}"));
    }
    text
}

/// One argument of a psql command that means exactly `text`.
fn psql_quoted(text: &str) -> String {
    let mut quoted = String::from("'");
    for character in text.chars() {
        match character {
            '\'' => quoted.push_str("\\'"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_psql_and_for_its_connection_strings() {
        let text = grants("it's", &["a=b".to_owned(), "it's \\ here".to_owned()], true);
        let commands: Vec<&str> =
            text.lines().filter(|line| line.starts_with("\\connect") || line.starts_with("\\set role")).collect();
        let expected = [
            r"\set role 'it\'s'",
            r"\connect -reuse-previous=on 'dbname=\'a=b\''",
            r"\connect -reuse-previous=on 'dbname=\'it\\\'s \\\\ here\''",
        ];
        assert_eq!(commands, expected);
        assert_eq!(text.matches("GRANT CONNECT ON DATABASE").count(), 2);
        assert!(
            grants("backup", &[], false).ends_with(&format!("\\set role 'backup'\n\\set per_database 0\n{SCRIPT}"))
        );
    }
}
