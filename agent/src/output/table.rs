//! Aligned text: tables, and "key: value" lines.

use std::borrow::Cow;

use unicode_width::UnicodeWidthStr as _;

/// Rows under headings, columns two spaces apart; `nothing` when there are no rows.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]], nothing: &str) -> String {
    if rows.is_empty() {
        return nothing.to_owned();
    }
    let rows: Vec<[Cow<'_, str>; N]> = rows.iter().map(|row| row.each_ref().map(|cell| one_line(cell))).collect();
    let mut widths = headings.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = line(&headings.map(Cow::Borrowed), &widths);
    for row in &rows {
        text.push('\n');
        text.push_str(&line(row, &widths));
    }
    text
}

fn line(cells: &[Cow<'_, str>], widths: &[usize]) -> String {
    let mut text = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        text.push_str(cell);
        text.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 2));
    }
    text.truncate(text.trim_end().len());
    text
}

/// "key: value" lines with the values in one column; lines without a value are left out.
pub fn fields(fields: &[(&str, String)]) -> String {
    let widest = fields.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 2;
    let lines: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| {
            let indented = printable(value).replace('\n', &format!("\n{}", " ".repeat(widest)));
            format!("{:<widest$}{indented}", format!("{key}:"))
        })
        .collect();
    lines.join("\n")
}

/// Text from outside without control characters (but line ends), so that it cannot play tricks with the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_trick = |character: char| character.is_control() && character != '\n';
    if text.contains(is_trick) { text.replace(is_trick, "\u{fffd}").into() } else { text.into() }
}

fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_for_wide_letters_too() {
        let rows = [["금고".to_owned(), "1".to_owned()], ["shop\u{1b}".to_owned(), "22".to_owned()]];
        assert_eq!(table(["NAME", "N"], &rows, "none"), "NAME   N\n금고   1\nshop\u{fffd}  22");
        assert_eq!(table(["NAME"], &[], "none"), "none");
    }

    #[test]
    fn fields_without_a_value_are_left_out() {
        let text = fields(&[("id", "1".into()), ("region", String::new()), ("document", "a\nb".into())]);
        assert_eq!(text, "id:       1\ndocument: a\n          b");
    }
}
