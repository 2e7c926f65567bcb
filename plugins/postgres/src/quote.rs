//! Quoting for the few statements that cannot take parameters.

/// An SQL identifier that means exactly `name`, whatever is in it. PostgreSQL itself refuses a NUL and cuts at 63 bytes.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string constant that means exactly `text`, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads back what is between the quotes, as PostgreSQL does; `None` when the quoted text ends before its last character.
    fn unquote(text: &str, quote: char, escapes: bool) -> Option<String> {
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        let mut characters = inner.chars();
        let mut result = String::new();
        while let Some(character) = characters.next() {
            let doubled = character == quote || (escapes && character == '\\');
            if doubled && characters.next()? != character {
                return None;
            }
            result.push(character);
        }
        Some(result)
    }

    /// Every text of up to five characters out of those that could matter.
    fn texts() -> Vec<String> {
        let alphabet = ['a', '"', '\'', '\\', ';', ' ', '가'];
        let mut all = vec![String::new()];
        let mut begin = 0;
        for _ in 0..5 {
            let end = all.len();
            for index in begin..end {
                for character in alphabet {
                    all.push(format!("{}{character}", all[index]));
                }
            }
            begin = end;
        }
        all
    }

    #[test]
    fn whatever_is_quoted_is_one_token_that_means_itself() {
        for text in texts() {
            assert_eq!(unquote(&identifier(&text), '"', false).as_deref(), Some(text.as_str()), "{text:?}");
            let quoted = literal(&text);
            let read = match quoted.strip_prefix(" E") {
                Some(rest) => unquote(rest, '\'', true),
                None => unquote(&quoted, '\'', false),
            };
            assert_eq!(read.as_deref(), Some(text.as_str()), "{text:?}");
        }
    }
}
