//! Text → the numbers that it cites: `semantics 8.6`, `Semantics 17.2 a, c and 17.4`, `(semantics 6.1–6.5)`.

use anyhow::{Context, Result, bail};

use super::list::List;

const WORD: &str = "semantics ";

/// A token of a list of numbers.
#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// `8.6`, `14.8a`.
    Number(&'a str),
    /// `17`: a section as a whole.
    Section(u32),
    /// A case of the number before it.
    Case(char),
    Comma,
    To,
    /// What ends the list.
    Other,
}

/// Places in the list that a text cites. A section as a whole is checked and cites none of its lines.
pub(super) fn citations(text: &str, list: &List) -> Result<Vec<usize>> {
    let lower = text.to_ascii_lowercase();
    let mut places = Vec::new();
    let mut rest = lower.as_str();
    while let Some(at) = rest.find(WORD) {
        rest = &rest[at + WORD.len()..];
        if rest.starts_with(|first: char| first.is_ascii_digit()) {
            places.extend(numbers(rest, list)?);
        }
    }
    places.sort_unstable();
    places.dedup();
    Ok(places)
}

/// Whether a text ends in the middle of a list of numbers, which the next line continues.
pub(super) fn is_open(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let Some(at) = lower.rfind(WORD.trim_end()) else {
        return false;
    };
    let tail = lower[at + WORD.len() - 1..].trim();
    tail.is_empty()
        || tail.ends_with([',', ';'])
            && tail
                .trim_end_matches([',', ';'])
                .split_whitespace()
                .all(|word| {
                    word.starts_with(|first: char| first.is_ascii_digit()) || word.len() <= 3
                })
}

fn numbers(text: &str, list: &List) -> Result<Vec<usize>> {
    let mut places: Vec<usize> = Vec::new();
    let mut last: Option<String> = None;
    let mut is_range = false;
    let mut is_first = true;
    let mut rest = text;
    loop {
        let (token, after) = token(rest);
        rest = after;
        match token {
            Token::Number(text) => {
                let place = number(text, list)?;
                if let (true, Some(&from)) = (is_range, places.last()) {
                    if from >= place {
                        bail!("the range that ends at {text} is empty");
                    }
                    places.extend(from + 1..place);
                }
                places.push(place);
                last = Some(list.items()[place].number.clone());
                is_range = false;
            }
            // Later on a bare number is part of the sentence: `8.15, 2000 bytes`.
            Token::Section(section) if is_first || is_range => {
                if !list.has_section(section) {
                    bail!("there is no section {section}");
                }
                is_range = false;
            }
            Token::Case(letter) => {
                let case = last.as_ref().and_then(|number| {
                    let whole = number.trim_end_matches(|end: char| end.is_ascii_lowercase());
                    list.place(&format!("{}.{letter}", whole.trim_end_matches('.')))
                });
                let Some(case) = case else { break };
                // The number alone stood for its case.
                if places
                    .last()
                    .is_some_and(|&place| list.cases(&list.items()[place].number).contains(&case))
                {
                    places.pop();
                }
                places.push(case);
                is_range = false;
            }
            Token::Comma => {}
            Token::To => is_range = true,
            Token::Section(_) | Token::Other => break,
        }
        is_first = false;
    }
    Ok(places)
}

fn number(text: &str, list: &List) -> Result<usize> {
    let end = text.len() - usize::from(text.ends_with(|end: char| end.is_ascii_lowercase()));
    list.place(text)
        .or_else(|| list.place(&format!("{}.{}", &text[..end], &text[end..])))
        .with_context(|| format!("there is no number {text} in tests/semantics.tsv"))
}

fn token(text: &str) -> (Token<'_>, &str) {
    let text = text.trim_start();
    let digits = text
        .find(|next: char| !next.is_ascii_digit())
        .unwrap_or(text.len());
    if digits > 0 {
        let Ok(section) = text[..digits].parse() else {
            return (Token::Other, text);
        };
        let Some(fraction) = text[digits..].strip_prefix('.') else {
            return (Token::Section(section), &text[digits..]);
        };
        let length = fraction
            .find(|next: char| !next.is_ascii_digit())
            .unwrap_or(fraction.len());
        if length == 0 {
            return (Token::Section(section), &text[digits..]);
        }
        let mut end = digits + 1 + length;
        let mut following = text[end..].chars();
        let suffix = following.next().filter(char::is_ascii_lowercase);
        if suffix.is_some()
            && !following
                .next()
                .is_some_and(|next| next.is_ascii_alphanumeric())
        {
            end += 1;
        }
        return (Token::Number(&text[..end]), &text[end..]);
    }
    for (separator, to) in [
        ("–", true),
        ("-", true),
        ("to ", true),
        (",", false),
        (";", false),
        ("and ", false),
    ] {
        if let Some(rest) = text.strip_prefix(separator) {
            return (if to { Token::To } else { Token::Comma }, rest);
        }
    }
    let case = text.strip_prefix('.').unwrap_or(text);
    let mut letters = case.chars();
    match (letters.next(), letters.next()) {
        (Some(letter @ 'a'..='z'), next)
            if !next.is_some_and(|next| next.is_alphanumeric() || next == '\'') =>
        {
            (Token::Case(letter), &case[1..])
        }
        _ => (Token::Other, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cited(text: &str) -> Result<Vec<String>> {
        let list = List::parse(
            "8.2\tt\n8.14\tt\n8.15\tt\n9.2\tt\n9.2.a\tt\n9.2.c\tt\n9.2.d\tt\n14.8\tt\n14.8a\tt\n17.3\tt\n",
        )?;
        let places = citations(text, &list)?;
        Ok(places
            .into_iter()
            .map(|place| list.items()[place].number.clone())
            .collect())
    }

    #[test]
    fn lists_ranges_and_cases_are_read() {
        for (text, numbers) in [
            ("nothing about semantics here", [].as_slice()),
            ("(semantics 8.2)", &["8.2"]),
            ("Semantics 8.2, first row; 8.14", &["8.2"]),
            ("semantics 8.2, 8.14; RFC 9293 3.10.7.1", &["8.2", "8.14"]),
            ("SEMANTICS 8.2–8.15: fast", &["8.2", "8.14", "8.15"]),
            ("semantics 8.2-8.14", &["8.2", "8.14"]),
            ("semantics 8.2 to 8.14", &["8.2", "8.14"]),
            ("semantics 9.2 d: hairpin", &["9.2.d"]),
            ("semantics 9.2.d", &["9.2.d"]),
            ("semantics 9.2d", &["9.2.d"]),
            (
                "semantics 9.2 a, c and d, 17.3.",
                &["9.2.a", "9.2.c", "9.2.d", "17.3"],
            ),
            ("semantics 9.2 to the letter", &["9.2"]),
            ("semantics 8.2 a pod", &["8.2"]),
            (
                "semantics 14.8a, 8.15, and 17.3",
                &["8.15", "14.8a", "17.3"],
            ),
            ("semantics 8.15, 2000 bytes", &["8.15"]),
            ("semantics 8: all; semantics 8–9, semantics 8 to 9", &[]),
        ] {
            assert_eq!(cited(text).unwrap(), numbers, "{text}");
        }
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        for text in [
            "semantics 8.3",
            "semantics 40",
            "semantics 17.3–8.2",
            "semantics 8.2, 8.77",
        ] {
            assert!(cited(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_may_go_on_in_the_next_line() {
        for (text, expected) in [
            ("as in (semantics", true),
            ("(semantics 9.3,", true),
            ("semantics 9.2 a,", true),
            ("(semantics 9.3).", false),
            ("semantics 9.3, and who asks,", false),
            ("nothing,", false),
        ] {
            assert_eq!(is_open(text), expected, "{text}");
        }
    }
}
