//! Patterns of databases' names: `*` stands for any letters, or none, and `?` for one. Nothing else is special, and case counts.

/// Whether the whole name matches. Time: the product of both lengths at most.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut read) = (0, 0);
    // The last `*`, and where its letters end for now.
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        match (pattern.get(at), star) {
            (Some('*'), _) => {
                star = Some((at, read));
                at += 1;
            }
            (Some(letter), _) if *letter == '?' || *letter == name[read] => {
                at += 1;
                read += 1;
            }
            // The last star takes one letter more.
            (_, Some((place, end))) => {
                star = Some((place, end + 1));
                at = place + 1;
                read = end + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word.
    fn reference(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|taken| reference(rest, &name[taken..])),
            (['?', rest @ ..], [_, more @ ..]) => reference(rest, more),
            ([letter, rest @ ..], [first, more @ ..]) => letter == first && reference(rest, more),
            _ => false,
        }
    }

    /// Every text of up to five of these letters.
    fn texts(letters: &[char]) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut begin = 0;
        for _ in 0..5 {
            let end = all.len();
            for index in begin..end {
                all.extend(letters.iter().map(|letter| format!("{}{letter}", all[index])).collect::<Vec<_>>());
            }
            begin = end;
        }
        all
    }

    #[test]
    fn patterns_match_as_they_are_defined() {
        for pattern in texts(&['a', '*', '?']) {
            let wanted: Vec<char> = pattern.chars().collect();
            for name in texts(&['a', 'b']) {
                let letters: Vec<char> = name.chars().collect();
                assert_eq!(matches(&pattern, &name), reference(&wanted, &letters), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_letter_is_a_letter_and_nothing_else_is_special() {
        for (pattern, name, wanted) in [
            ("백?", "백업", true),
            ("shop_*", "shop_2026", true),
            ("shop_*", "Shop_2026", false),
            ("[ab]", "a", false),
            ("a.b", "axb", false),
            ("*_test", "shop_test", true),
            ("*_test", "shop_tests", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
        // Many stars take no exponential time.
        assert!(!matches(&"*a".repeat(60), &"a".repeat(59)));
    }
}
