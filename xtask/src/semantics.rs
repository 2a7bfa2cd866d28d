//! `cargo xtask semantics`: docs/reference/semantics.md → the same with what shows each of its lines below it.
//!
//! A line is a paragraph with a number and an anchor. Tests cite numbers in comments, pages of docs in parentheses. A
//! line that no test and no page cites has to say that it asks for nothing.

mod citation;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use self::citation::{cited, numbers};
use crate::paths;

const DEFINITION: &str = "docs/reference/semantics.md";
/// Pages that say why a line is not so here, and the links that stand for them.
const PAGES: [(&str, &str); 2] = [
    ("docs/limits.md", "[limit](../limits.md)"),
    ("docs/differences.md", "[difference](../differences.md)"),
];
/// Marks of lines that ask for nothing.
const NOTES: [&str; 2] = ["**[definition]**", "**[kube-proxy only]**"];
/// The state of a line that nothing shows.
const OPEN: &str = "**open**";
/// What is known of a line, by its number.
type Lines = BTreeMap<String, Line>;

struct Line {
    /// Tests and links to pages, as they are written.
    shown_by: BTreeSet<String>,
    asks_for_nothing: bool,
}

/// Writes what shows the lines, or with `check` says what is wrong with it.
pub(crate) fn semantics(check: bool) -> Result<()> {
    let root = paths::workspace();
    let present = read(&root.join(DEFINITION))?;
    let mut lines = lines(&present).context(DEFINITION)?;
    collect(&root, &present, &mut lines)?;
    let written = written(&present, &lines);
    if !check {
        fs::write(root.join(DEFINITION), &written)
            .with_context(|| format!("cannot write {DEFINITION}"))?;
        eprintln!("{DEFINITION}: {}", summary(&lines));
        return Ok(());
    }
    let mut open: Vec<&str> = lines.keys().map(String::as_str).collect();
    open.retain(|number| state(&lines, number) == OPEN);
    ensure!(
        open.is_empty(),
        "neither a test nor a page of docs cites semantics {}; cite the number at its test or say why not in docs/limits.md",
        open.join(", ")
    );
    ensure!(
        written == present,
        "{DEFINITION} is not what the tests cite; `cargo xtask semantics` writes it"
    );
    Ok(())
}

/// Paragraphs of the definition without what this task has written.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.trim_end()
        .split("\n\n")
        .filter(|paragraph| !paragraph.starts_with("> "))
}

/// Number and text of a paragraph that is a line.
fn line(paragraph: &str) -> Option<(&str, &str)> {
    let (number, rest) = paragraph
        .strip_prefix("<a id=\"")?
        .split_once("\"></a>**")?;
    let text = rest.strip_prefix(number)?.strip_prefix("**")?;
    Some((number, text.trim_start()))
}

fn lines(definition: &str) -> Result<Lines> {
    let mut lines = Lines::new();
    for paragraph in paragraphs(definition) {
        let Some((number, text)) = line(paragraph) else {
            ensure!(
                !paragraph.contains("<a id="),
                "an anchor belongs at the start of a line, with its number: {paragraph}"
            );
            continue;
        };
        let line = Line {
            shown_by: BTreeSet::new(),
            asks_for_nothing: NOTES.iter().any(|note| text.starts_with(note)),
        };
        ensure!(
            lines.insert(number.to_owned(), line).is_none(),
            "{number} is there twice"
        );
    }
    Ok(lines)
}

/// Reads all citations. One of a section as a whole counts for none of its lines.
fn collect(root: &Path, definition: &str, lines: &mut Lines) -> Result<()> {
    let mut citations = Vec::new();
    for path in paths::files(root)? {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path)?;
            let path = path.strip_prefix(root)?.to_string_lossy();
            for (number, test) in cited(&text, &path) {
                citations.push((path.to_string(), number, test));
            }
        }
    }
    for (path, link) in PAGES {
        for number in numbers(&read(&root.join(path))?) {
            citations.push((path.to_owned(), number, Some(link.to_owned())));
        }
    }
    for (path, number, shown_by) in citations {
        match lines.get_mut(&number) {
            Some(line) => line.shown_by.extend(shown_by),
            None if definition.contains(&format!("\n## {number}. ")) => {}
            None => bail!("{path}: there is no semantics {number}"),
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What shows a line, be it case by case: `9.2.a` and so on of `9.2`.
fn state(lines: &Lines, number: &str) -> String {
    let line = &lines[number];
    let shown_by: Vec<&str> = line.shown_by.iter().map(String::as_str).collect();
    let prefix = format!("{number}.");
    let mut cases = lines.keys().filter(|case| case.starts_with(&prefix));
    if !shown_by.is_empty() {
        shown_by.join(",\n> ")
    } else if line.asks_for_nothing {
        "asks for nothing".to_owned()
    } else if cases.clone().count() > 0 && cases.all(|case| state(lines, case) != OPEN) {
        "case by case".to_owned()
    } else {
        OPEN.to_owned()
    }
}

fn summary(lines: &Lines) -> String {
    let states: Vec<String> = lines.keys().map(|number| state(lines, number)).collect();
    let count = |part: &str| states.iter().filter(|state| state.contains(part)).count();
    format!(
        "{} lines: {} tested, {} on a page of docs, {} ask for nothing, {} open",
        lines.len(),
        count("`") + count("case by case"),
        count("]("),
        count("asks for nothing"),
        count(OPEN),
    )
}

/// The definition with what shows each line below it, and the sum before its first section.
fn written(definition: &str, lines: &Lines) -> String {
    let mut all = Vec::new();
    let mut has_summary = false;
    for paragraph in paragraphs(definition) {
        if paragraph.starts_with("## ") && !has_summary {
            all.push(format!("> {}", summary(lines)));
            has_summary = true;
        }
        all.push(paragraph.to_owned());
        if let Some((number, _)) = line(paragraph) {
            all.push(format!("> {}", state(lines, number)));
        }
    }
    all.join("\n\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# Title

## 8. Section

<a id="8.1"></a>**8.1** one

> old

<a id="8.2"></a>**8.2** two:

<a id="8.2.a"></a>**8.2.a** first

<a id="8.2.b"></a>**8.2.b** second

<a id="8.3"></a>**8.3** **[definition]** word
"#;

    #[test]
    fn each_line_gets_its_state() {
        let mut lines = lines(TEXT).unwrap();
        assert_eq!(state(&lines, "8.2"), OPEN);
        for (number, by) in [("8.2.a", "[limit]()"), ("8.2.b", "`b`"), ("8.2.b", "`a`")] {
            let line = lines.get_mut(number).unwrap();
            line.shown_by.insert(by.to_owned());
        }
        let text = written(TEXT, &lines);
        for part in [
            "> 5 lines: 2 tested, 1 on a page of docs, 1 ask for nothing, 1 open\n\n## 8.",
            "one\n\n> **open**\n\n",
            "two:\n\n> case by case\n\n",
            "first\n\n> [limit]()\n\n",
            "second\n\n> `a`,\n> `b`\n\n",
            "word\n\n> asks for nothing\n",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(written(&text, &lines), text);
    }

    #[test]
    fn a_number_that_is_there_twice_or_differs_from_its_anchor_is_an_error() {
        let again = format!("{TEXT}\n<a id=\"8.1\"></a>**8.1** one");
        assert!(lines(&again).is_err() && lines(&TEXT.replace("**8.1**", "**8.4**")).is_err());
    }
}
