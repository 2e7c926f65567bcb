//! Lists of sources or servers in a file: a URI in each line.

use std::io::Read as _;
use std::path::Path;

use vaultferry_proto::{Problem, Reason};

/// A thousand sources of four KiB at most, the agent's own limits, and as much of comments.
const LONGEST: u64 = 8 << 20;

/// The URIs of the command line and then those of the file, if there is one; `-` is standard input.
pub(super) fn with_file(mut uris: Vec<String>, file: Option<&Path>) -> Result<Vec<String>, Problem> {
    let Some(file) = file else { return Ok(uris) };
    let refuse = |why: String| {
        Problem::new(Reason::InvalidRequest, format!("the list {} {why}", file.display()))
            .with_fix("Name a text file with a URI in each line; # begins a comment.")
    };
    let mut text = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin().lock().take(LONGEST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
    };
    match result {
        Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
        Ok(length) if length as u64 > LONGEST => return Err(refuse("is longer than 8 MiB".to_owned())),
        Ok(_) => {}
    }
    uris.extend(text.lines().map(uri).filter(|uri| !uri.is_empty()).map(str::to_owned));
    if uris.is_empty() {
        return Err(refuse("names nothing".to_owned()));
    }
    Ok(uris)
}

/// A line without its comment. A `#` inside of a word is a part of it.
fn uri(line: &str) -> &str {
    let is_comment = |(at, _): &(usize, &str)| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let end = line.match_indices('#').find(is_comment).map_or(line.len(), |(at, _)| at);
    line[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_uri_in_each_line_and_comments() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        std::fs::write(
            &file,
            "# all of them\n\npostgres://u@h/a # the shop\r\n  postgres://u@h/b#c\n\t#x\npostgres://u@h/d",
        )
        .unwrap();
        let uris = with_file(vec!["postgres://u@h/first".to_owned()], Some(&file)).unwrap();
        assert_eq!(uris, ["postgres://u@h/first", "postgres://u@h/a", "postgres://u@h/b#c", "postgres://u@h/d"]);
        assert_eq!(with_file(vec!["a".to_owned()], None).unwrap(), ["a"]);
    }

    #[test]
    fn a_list_that_names_nothing_is_refused_and_so_is_one_without_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        std::fs::write(&file, "# nothing\n").unwrap();
        assert!(with_file(Vec::new(), Some(&file)).unwrap_err().message.contains("names nothing"));
        std::fs::write(&file, "a\n".repeat(LONGEST as usize / 2 + 1)).unwrap();
        assert!(with_file(Vec::new(), Some(&file)).unwrap_err().message.contains("longer"));
        assert!(with_file(Vec::new(), Some(&dir.path().join("none"))).unwrap_err().message.contains("none"));
    }
}
