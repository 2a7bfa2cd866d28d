//! Text → the numbers that it cites (`semantics 8.6, 9.2.d`), and a source file → the same with what carries them.
//!
//! A comment belongs to the function that follows it, else to the one around it, which in the format of `cargo fmt` ends
//! at the first `}` in the column where it began. Whether test code is run is not looked at: the compiler knows dead code.

/// Numbers that a text cites: those behind the word, as far as a comma leads to the next.
pub(super) fn numbers(text: &str) -> Vec<String> {
    let lower = text.to_ascii_lowercase();
    let mut numbers = Vec::new();
    for (at, word) in lower.match_indices("semantics") {
        for word in lower[at + word.len()..].split_whitespace() {
            if word == "and" {
                continue;
            }
            let number = word.trim_end_matches(|end: char| !end.is_ascii_alphanumeric());
            if !number.starts_with(|first: char| first.is_ascii_digit()) {
                break;
            }
            numbers.push(number.to_owned());
            if word[number.len()..] != *"," {
                break;
            }
        }
    }
    numbers
}

/// The citations of a source file: the number, and the test (`file::function`) where test code cites it.
pub(super) fn cited(text: &str, path: &str) -> Vec<(String, Option<String>)> {
    let mut is_test = path.ends_with("tests.rs") || path.split('/').any(|part| part == "tests");
    let mut cited = Vec::new();
    let mut comment = String::new();
    // Functions around the line at hand, and the columns where they began.
    let mut around: Vec<(usize, &str)> = Vec::new();
    for line in text.lines().chain([""]) {
        let (code, remark) = line.split_once("//").unwrap_or((line, ""));
        let column = code.len() - code.trim_start().len();
        let code = code.trim();
        is_test |= ["mod tests {", "#[test]"].contains(&code);
        if code.is_empty() && !line.is_empty() || code.starts_with("#[") {
            comment += " ";
            comment += remark.trim_start_matches(['/', '!']);
            continue;
        }
        let function = function(code);
        around.extend(function.map(|name| (column, name)));
        let test = is_test.then(|| match around.first() {
            Some((_, name)) => format!("`{path}::{name}`"),
            None => format!("`{path}`"),
        });
        let numbers = numbers(&comment).into_iter().chain(numbers(remark));
        cited.extend(numbers.map(|number| (number, test.clone())));
        comment.clear();
        if code == "}" || function.is_some() && code.ends_with(['}', ';']) {
            around.retain(|(start, _)| *start < column);
        }
    }
    cited
}

/// The name of the function whose signature begins in this line.
fn function(code: &str) -> Option<&str> {
    let (before, rest) = code.split_once("fn ")?;
    let end = rest.find(|next: char| !next.is_ascii_alphanumeric() && next != '_')?;
    ((before.is_empty() || before.ends_with(' ')) && end > 0).then_some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read() {
        for (text, expected) in [
            ("(semantics 8.6).", vec!["8.6"]),
            ("Semantics 8.2, first row; 8.14.", vec!["8.2"]),
            (
                "semantics 8.6, 9.2.f, and 14.8a for",
                vec!["8.6", "9.2.f", "14.8a"],
            ),
            (
                "(semantics 8.2,\n8.4), 2000 (semantics 9)",
                vec!["8.2", "8.4", "9"],
            ),
            ("the semantics of it; semantics, 8.2", vec![]),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }

    #[test]
    fn a_citation_belongs_to_the_function_behind_or_around_it() {
        // `@` stands for the word, so that this file cites nothing.
        let text = "\
//! A file (@ 8.1).
/// Does it (@ 8.2).
fn does(
    it: u8,
) -> u8 {
    it // @ 8.3
}
mod tests {
    /// Why (@ 8.4,
    /// 8.5).
    #[test]
    fn does_it() {
        let rows = [
            1, // @ 8.6
        ];
    }
    /// @ 8.7
    const ROWS: u8 = 1;
}
";
        let cited = cited(&text.replace('@', "semantics"), "it.rs");
        let cited: Vec<String> = cited
            .into_iter()
            .map(|(number, test)| format!("{number} {}", test.unwrap_or_default()))
            .collect();
        assert_eq!(
            cited.join(", "),
            "8.1 , 8.2 , 8.3 , 8.4 `it.rs::does_it`, 8.5 `it.rs::does_it`, 8.6 `it.rs::does_it`, 8.7 `it.rs`"
        );
    }
}
