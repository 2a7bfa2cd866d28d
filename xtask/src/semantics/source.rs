//! One source file → its citations, each with what carries it: a test, or code that nothing here tests.
//!
//! Relies on the format of `cargo fmt`: a function ends at the first `}` in the column where it began.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context, Result};

use super::citation::{citations, is_open};
use super::list::List;

/// What carries a citation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Carrier {
    /// A function that tests run, or a file of tests as a whole.
    Test(Option<String>),
    Code,
}

/// A function, from its documentation to its end.
struct Function<'a> {
    name: &'a str,
    lines: Range<usize>,
    is_test: bool,
}

/// The citations of a file: places in the list and their carriers.
pub(super) fn cited(path: &str, text: &str, list: &List) -> Result<Vec<(usize, Carrier)>> {
    let lines: Vec<&str> = text.lines().collect();
    let functions = functions(&lines);
    let tests = test_code(path, &lines);
    let run = run(&lines, &functions, &tests);
    let mut found = Vec::new();
    for (at, comment) in comments(&lines) {
        let places = citations(&comment, list).with_context(|| format!("{path}:{}", at + 1))?;
        if places.is_empty() {
            continue;
        }
        let function = functions.iter().position(|it| it.lines.contains(&at));
        let carrier = match function {
            Some(function) if run.contains(&function) => {
                Carrier::Test(Some(functions[function].name.to_owned()))
            }
            None if !run.is_empty() && tests.iter().any(|test| test.contains(&at)) => {
                Carrier::Test(None)
            }
            _ => Carrier::Code,
        };
        found.extend(places.into_iter().map(|place| (place, carrier.clone())));
    }
    Ok(found)
}

/// Comments by line; one that ends in the middle of a list takes the next line with it.
fn comments(lines: &[&str]) -> Vec<(usize, String)> {
    let comment = |line: &str| {
        line.split_once("//")
            .map(|(_, comment)| comment.trim_start_matches(['/', '!']).trim().to_owned())
    };
    let mut comments = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(mut text) = comment(line) else {
            continue;
        };
        if is_open(&text)
            && let Some(next) = lines.get(at + 1).and_then(|next| comment(next))
        {
            text = format!("{text} {next}");
        }
        comments.push((at, text));
    }
    comments
}

/// Outermost functions.
fn functions<'a>(lines: &[&'a str]) -> Vec<Function<'a>> {
    let mut functions: Vec<Function<'a>> = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(name) = name(lines[at]) else {
            at += 1;
            continue;
        };
        let end = end(lines, at);
        let mut start = at;
        while start > 0 && is_header(lines[start - 1]) {
            start -= 1;
        }
        functions.push(Function {
            name,
            is_test: lines[start..at].iter().any(|line| {
                let line = line.trim_start();
                line.starts_with("#[test]") || line.starts_with("#[tokio::test")
            }),
            lines: start..end,
        });
        at = end;
    }
    functions
}

/// The name of the function whose signature begins in this line.
fn name(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    while !words.starts_with("fn ") {
        let (word, rest) = words.split_once(' ')?;
        let is_qualifier = word.starts_with("pub")
            || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word);
        if !is_qualifier {
            return None;
        }
        words = rest;
    }
    let name = words.strip_prefix("fn ")?;
    let end = name.find(|next: char| !is_word(next))?;
    (end > 0).then_some(&name[..end])
}

/// Documentation and attributes.
fn is_header(line: &str) -> bool {
    let line = line.trim_start();
    (line.starts_with("//") && !line.starts_with("//!")) || line.starts_with("#[")
}

/// The line after the function that begins here.
fn end(lines: &[&str], start: usize) -> usize {
    let column = indentation(lines[start]);
    if lines[start].ends_with('}') || lines[start].ends_with(';') {
        return start + 1;
    }
    let is_end = |line: &str| {
        indentation(line) == column && {
            let line = line.trim_start();
            line == "}" || (line.starts_with(')') && line.ends_with(';'))
        }
    };
    lines[start + 1..]
        .iter()
        .position(|line| is_end(line))
        .map_or(lines.len(), |end| start + end + 2)
}

/// Lines that are compiled for tests only.
fn test_code(path: &str, lines: &[&str]) -> Vec<Range<usize>> {
    let is_test_file = ["tests/", "lb-common/tests/"]
        .iter()
        .any(|folder| path.starts_with(folder))
        || path.ends_with("tests.rs");
    if is_test_file {
        return std::iter::once(0..lines.len()).collect();
    }
    let mut ranges = Vec::new();
    for (at, pair) in lines.windows(2).enumerate() {
        if pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod ") {
            ranges.push(at..end(lines, at + 1));
        }
    }
    ranges
}

/// Functions that tests run: tests, what a table of cases names, and what either of them mentions.
fn run(lines: &[&str], functions: &[Function<'_>], tests: &[Range<usize>]) -> HashSet<usize> {
    let is_test_code = |line: usize| tests.iter().any(|test| test.contains(&line));
    let mentioned = |line: usize| {
        let code = lines[line].split("//").next().unwrap_or_default();
        code.split(|next: char| !is_word(next))
            .filter_map(|word| functions.iter().position(|it| it.name == word))
            .filter(|&function| is_test_code(functions[function].lines.start))
    };
    let mut run: HashSet<usize> = HashSet::new();
    let mut waiting: Vec<usize> = (0..functions.len())
        .filter(|&function| functions[function].is_test)
        .collect();
    for line in (0..lines.len()).filter(|&line| is_test_code(line)) {
        if !functions.iter().any(|it| it.lines.contains(&line)) {
            waiting.extend(mentioned(line));
        }
    }
    while let Some(function) = waiting.pop() {
        if run.insert(function) {
            waiting.extend(functions[function].lines.clone().flat_map(mentioned));
        }
    }
    run
}

fn is_word(next: char) -> bool {
    next.is_ascii_alphanumeric() || next == '_'
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and carriers; `@` stands for the word, so that this file cites nothing.
    fn carriers(path: &str, text: &str) -> Vec<(String, Carrier)> {
        let list = List::parse("8.1\tt\n8.2\tt\n8.3\tt\n8.4\tt\n8.5\tt\n8.6\tt\n8.7\tt").unwrap();
        cited(path, &text.replace('@', "semantics"), &list)
            .unwrap()
            .into_iter()
            .map(|(place, carrier)| (list.items()[place].number.clone(), carrier))
            .collect()
    }

    fn test(number: &str, name: &str) -> (String, Carrier) {
        (number.to_owned(), Carrier::Test(Some(name.to_owned())))
    }

    fn code(number: &str) -> (String, Carrier) {
        (number.to_owned(), Carrier::Code)
    }

    #[test]
    fn production_code_and_its_tests_are_told_apart() {
        let text = "\
//! A file (@ 8.1).

/// Does it (@ 8.2).
pub(crate) fn does(
    it: u8,
) -> u8 {
    it // @ 8.3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Why (@ 8.4,
    /// 8.5).
    #[test]
    fn it_does() {
        // @ 8.6
        helper();
    }

    fn helper() {
        let rows = [
            1, // @ 8.7
        ];
    }

    // @ 8.1
    fn nobody_calls() {}
}
";
        let expected = [
            code("8.1"),
            code("8.2"),
            code("8.3"),
            test("8.4", "it_does"),
            test("8.5", "it_does"),
            test("8.6", "it_does"),
            test("8.7", "helper"),
            code("8.1"),
        ];
        assert_eq!(carriers("lb-agent/src/it.rs", text), expected);
    }

    #[test]
    fn cases_in_a_table_are_tests_and_others_are_not() {
        let text = "\
//! All of it (@ 8.1).

// @ 8.2
fn a_case() -> Result<()> {
    Ok(())
}

// @ 8.3
fn forgotten() -> Result<()> {
    Ok(())
}

scenes!(
    objects,
    [plain],
    [a_case]
);
";
        let expected = [
            ("8.1".to_owned(), Carrier::Test(None)),
            test("8.2", "a_case"),
            code("8.3"),
        ];
        assert_eq!(carriers("tests/tests/it.rs", text), expected);
        // The same without anything that runs.
        let text = text.replace("[a_case]", "[]");
        let expected = ["8.1", "8.2", "8.3"].map(code);
        assert_eq!(carriers("tests/tests/it.rs", &text), expected);
    }
}
