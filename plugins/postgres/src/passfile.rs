//! Passwords: found where the source's credential says, at the moment they are needed.
//!
//! The file's format is libpq's: lines of `host:port:database:user:password`, `*` for any, `\` before a `:` or `\` that is meant, `#`
//! for comments; the first line that fits counts. It is read by us and not by the children, because a restore logs in to databases
//! (the maintenance one, then the new one) that the file may know by one name only.

use std::path::Path;

use secrecy::SecretString;
use vaultferry_proto::{Problem, Reason};

use crate::uri::{Host, Uri};

/// Folders that libpq, as built upstream and by Debian, takes for its default; a line for such a socket says `localhost`.
const DEFAULT_SOCKET_DIRS: [&str; 2] = ["/tmp", "/var/run/postgresql"];

/// Far above any real file; so that a wrong path (a disk, a dump) is not read into memory.
const FILE_MAX: u64 = 1024 * 1024;

fn problem(message: impl Into<String>) -> Problem {
    Problem::new(Reason::UserErrorDBUserAuthFailed, message)
}

/// The password in a variable of this process's environment.
pub fn of_variable(name: &str) -> Result<SecretString, Problem> {
    match std::env::var(name) {
        Ok(value) => Ok(SecretString::from(value)),
        Err(std::env::VarError::NotPresent) => {
            let fix = format!("Set {name} where the agent is started, and start it again.");
            Err(problem(format!("the agent's environment has no variable {name}")).with_fix(fix))
        }
        Err(std::env::VarError::NotUnicode(_)) => Err(problem(format!("the variable {name} is not UTF-8"))),
    }
}

/// The password for `uri` and `database` in a passfile.
pub fn of_file(path: &Path, uri: &Uri, database: &str) -> Result<SecretString, Problem> {
    let text = read(path)?;
    let found = find(text.trim_start_matches('\u{feff}'), uri, database).map(SecretString::from);
    let wanted = || {
        let shape = "host:port:database:user:password, where * fits anything";
        problem(format!(
            "the passfile {} has no line for {} on {}, user {}",
            path.display(),
            database,
            uri.server(),
            uri.user
        ))
        .with_fix(format!("Add a line {shape}; : and \\ inside a part are written \\: and \\\\."))
    };
    found.ok_or_else(wanted)
}

fn read(path: &Path) -> Result<String, Problem> {
    let unreadable = |error: std::io::Error| problem(format!("cannot read the passfile {}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > FILE_MAX {
        return Err(problem(format!("{} is not a passfile", path.display())));
    }
    refuse_readable_by_others(path, &metadata)?;
    std::fs::read_to_string(path).map_err(unreadable)
}

/// The rule of libpq, which leaves such a file unread.
#[cfg(unix)]
fn refuse_readable_by_others(path: &Path, metadata: &std::fs::Metadata) -> Result<(), Problem> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let message = format!("the passfile {} has mode {mode:04o}: others than its owner may use it", path.display());
    Err(problem(message).with_fix(format!("chmod 600 {}", path.display())))
}

#[cfg(not(unix))]
fn refuse_readable_by_others(_path: &Path, _metadata: &std::fs::Metadata) -> Result<(), Problem> {
    Ok(())
}

/// The password of the first line that fits.
fn find(text: &str, uri: &Uri, database: &str) -> Option<String> {
    let host = match &uri.host {
        Host::Name(name) => name.as_str(),
        Host::Socket(dir) if DEFAULT_SOCKET_DIRS.contains(&dir.as_str()) => "localhost",
        Host::Socket(dir) => dir.as_str(),
    };
    let port = uri.port.to_string();
    let wanted = [host, &port, database, &uri.user];
    // Names of hosts know no case, and the URI's is in lower case already.
    let is_name = matches!(uri.host, Host::Name(_));
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line.strip_suffix('\r').unwrap_or(line);
        for (index, value) in wanted.into_iter().enumerate() {
            let (field, after) = split_field(rest)?;
            let plain = unescape(field);
            let fits = if index == 0 && is_name { plain.to_lowercase() == value } else { plain == value };
            if field != "*" && !fits {
                return None;
            }
            rest = after;
        }
        // What follows a colon after the password is no part of it; libpq does the same.
        let password = split_field(rest).map_or(rest, |(field, _)| field);
        Some(unescape(password)).filter(|password| !password.is_empty())
    })
}

/// The text up to the next colon that is not escaped (still escaped), and what follows the colon.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((&text[..index], &text[index + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => result.push(characters.next().unwrap_or('\\')),
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# db:5432:shop:u:comment\nother:5432:shop:u:a\ndb:*:shop:u:b\n*:*:*:*:c\n";
        assert_eq!(find(text, &uri("postgres://u@db/shop"), "shop").as_deref(), Some("b"));
        assert_eq!(find(text, &uri("postgres://u@db/shop"), "postgres").as_deref(), Some("c"));
        assert_eq!(find("db:5432:shop:u:a", &uri("postgres://u@db:5433/shop"), "shop"), None);
        assert_eq!(find("db:5432:shop", &uri("postgres://u@db/shop"), "shop"), None);
        assert_eq!(find("db:5432:shop:u:", &uri("postgres://u@db/shop"), "shop"), None);
    }

    #[test]
    fn escapes_are_undone() {
        let text = r"fe80\:\:1:5432:a\:b\\c:u:p\:w\\d";
        assert_eq!(find(text, &uri("postgres://u@[fe80::1]/x"), r"a:b\c").as_deref(), Some(r"p:w\d"));
        assert_eq!(find(r"h:5432:\*:u:p", &uri("postgres://u@h/x"), "x"), None, "an escaped star is a star");
        assert_eq!(
            find("h:5432:백업 \"1\":u:암호\r\n", &uri("postgres://u@h/x"), "백업 \"1\"").as_deref(),
            Some("암호")
        );
    }

    #[test]
    fn sockets_go_by_localhost_in_the_default_folder_and_by_folder_elsewhere() {
        let socket = uri("postgres://u@/d?host=/var/run/postgresql");
        assert_eq!(find("localhost:5432:*:u:p", &socket, "d").as_deref(), Some("p"));
        let elsewhere = uri("postgres://u@/d?host=/srv/pg");
        assert_eq!(find("localhost:5432:*:u:p\n/srv/pg:5432:*:u:q", &elsewhere, "d").as_deref(), Some("q"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "h:5432:d:u:secret").unwrap();
        let get = || of_file(file.path(), &uri("postgres://u@h/d"), "d");
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o640)).unwrap();
        let problem = get().unwrap_err();
        assert_eq!(problem.reason, Reason::UserErrorDBUserAuthFailed);
        assert!(problem.message.contains("0640") && problem.fix.starts_with("chmod 600 "), "{problem}");
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(get().unwrap().expose_secret(), "secret");
        let problem = of_file(file.path(), &uri("postgres://u@h/e"), "e").unwrap_err();
        assert!(problem.message.contains("no line") && !problem.message.contains("secret"), "{problem}");
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let problem = of_variable("VAULTFERRY_TEST_NO_SUCH_VARIABLE").unwrap_err();
        assert!(problem.message.contains("VAULTFERRY_TEST_NO_SUCH_VARIABLE"), "{problem}");
    }
}
