//! `cargo xtask semantics`: which tests show each line of `tests/semantics.tsv`, as `docs/semantics.md`.
//!
//! A test cites lines in comments, a page of docs in parentheses. Every line of the sections that are to be complete
//! is tested, or a page says that it is not so here, or it asks for nothing.

mod citation;
mod list;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::citation::citations;
use self::list::List;
use self::source::Carrier;
use crate::paths;

const LIST: &str = "tests/semantics.tsv";
const PAGE: &str = "docs/semantics.md";
/// Where sources are.
const FOLDERS: [&str; 5] = ["lb-agent", "lb-common", "lb-ebpf", "tests", "xtask"];
/// Speaks of citations and makes none.
const ITSELF: &str = "xtask/src/semantics";
/// Sections with no line left open.
const COMPLETE: [RangeInclusive<u32>; 3] = [2..=16, 20..=22, 25..=25];

/// What is known of one line.
#[derive(Default)]
struct Evidence {
    /// File and function.
    tests: BTreeSet<(String, Option<String>)>,
    is_in_code: bool,
    is_limit: bool,
    is_difference: bool,
}

/// Writes the page, or with `check` says what is wrong with it.
pub(crate) fn semantics(check: bool) -> Result<()> {
    let root = paths::workspace();
    let list = List::parse(&read(&root.join(LIST))?).context(LIST)?;
    let evidence = evidence(&root, &list)?;
    let page = page(&list, &evidence);
    let present = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    if !check {
        if page != present {
            fs::write(root.join(PAGE), &page).with_context(|| format!("cannot write {PAGE}"))?;
        }
        eprintln!("{PAGE}: {}", summary(&list, &evidence));
        return Ok(());
    }
    let open = open(&list, &evidence);
    if !open.is_empty() {
        bail!(
            "neither a test nor a page of docs names {}; cite the number at its test or say why not in docs/limits.md",
            open.join(", ")
        );
    }
    if page != present {
        bail!("{PAGE} is not what the tests say; `cargo xtask semantics` writes it");
    }
    Ok(())
}

fn evidence(root: &Path, list: &List) -> Result<Vec<Evidence>> {
    let mut evidence: Vec<Evidence> = list.items().iter().map(|_| Evidence::default()).collect();
    for folder in FOLDERS {
        for path in sources(root, folder)? {
            for (place, carrier) in source::cited(&path, &read(&root.join(&path))?, list)? {
                match carrier {
                    Carrier::Test(name) => {
                        evidence[place].tests.insert((path.clone(), name));
                    }
                    Carrier::Code => evidence[place].is_in_code = true,
                }
            }
        }
    }
    let page = |path: &str| -> Result<Vec<usize>> {
        let text = read(&root.join(path))?.replace(['\n', '\r'], " ");
        citations(&text, list).context(path.to_owned())
    };
    for place in page("docs/limits.md")? {
        evidence[place].is_limit = true;
    }
    for place in page("docs/differences.md")? {
        evidence[place].is_difference = true;
    }
    Ok(evidence)
}

/// Files of a crate that rustc reads, relative to the checkout, in order.
fn sources(root: &Path, folder: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root.join(&folder));
        for entry in entries.with_context(|| format!("cannot list {folder}"))? {
            let entry = entry?;
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if path.starts_with(ITSELF) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Whether something stands for a line: a test, a page, a note, or that for each of its cases.
fn is_settled(list: &List, evidence: &[Evidence], place: usize) -> bool {
    let item = &list.items()[place];
    let one = &evidence[place];
    let cases = list.cases(&item.number);
    !one.tests.is_empty()
        || one.is_limit
        || one.is_difference
        || item.note.is_some()
        || (!cases.is_empty() && cases.iter().all(|&case| is_settled(list, evidence, case)))
}

/// Numbers of the complete sections that nothing stands for.
fn open(list: &List, evidence: &[Evidence]) -> Vec<String> {
    let items = list.items().iter().enumerate();
    items
        .filter(|(place, item)| {
            COMPLETE
                .iter()
                .any(|sections| sections.contains(&item.section()))
                && !is_settled(list, evidence, *place)
        })
        .map(|(_, item)| item.number.clone())
        .collect()
}

fn states(list: &List, evidence: &[Evidence], place: usize) -> Vec<&'static str> {
    let one = &evidence[place];
    let mut states = Vec::new();
    if !one.tests.is_empty() {
        states.push("tested");
    }
    if one.is_limit {
        states.push("[limit](limits.md)");
    }
    if one.is_difference {
        states.push("[difference](differences.md)");
    }
    if states.is_empty() {
        states.push(match list.items()[place].note {
            Some(note) => note.describe(),
            None if is_settled(list, evidence, place) => "case by case",
            None if one.is_in_code => "code only",
            None => "open",
        });
    }
    states
}

fn summary(list: &List, evidence: &[Evidence]) -> String {
    let count = |has: &dyn Fn(usize) -> bool| (0..evidence.len()).filter(|&at| has(at)).count();
    let has = |state: &'static str| count(&|place| states(list, evidence, place).contains(&state));
    format!(
        "{} lines: {} tested, {} a limit, {} a difference, {} ask for nothing, {} in code only, {} open",
        evidence.len(),
        count(&|place| !evidence[place].tests.is_empty()) + has("case by case"),
        count(&|place| evidence[place].is_limit),
        count(&|place| evidence[place].is_difference),
        has("definition") + has("kube-proxy only"),
        has("code only"),
        has("open"),
    )
}

fn page(list: &List, evidence: &[Evidence]) -> String {
    let mut page = format!(
        "# Which test shows what

Written by `cargo xtask semantics` from tests/semantics.tsv, the citations at tests and the other pages here; `cargo
xtask lint` compares. The numbers are those that comments cite as `semantics 8.6`. *limit*: docs/limits.md says that it is not so
here, or not wholly. *difference*: docs/differences.md says what is done instead. *code only*: a comment names the line, no test does.

{}.

| number | what | tests | state |
|---|---|---|---|
",
        summary(list, evidence)
    );
    for (place, item) in list.items().iter().enumerate() {
        let tests: Vec<String> = evidence[place]
            .tests
            .iter()
            .map(|(path, name)| {
                let file = ["lb-agent/src/", "tests/tests/", "tests/src/"]
                    .iter()
                    .find_map(|folder| path.strip_prefix(folder))
                    .unwrap_or(path);
                match name {
                    Some(name) => format!("[{file}::{name}](../{path})"),
                    None => format!("[{file}](../{path})"),
                }
            })
            .collect();
        page.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            item.number,
            item.title,
            tests.join(", "),
            states(list, evidence, place).join(", ")
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> List {
        List::parse(
            "8.1\tone\n9.2\ttwo\n9.2.a\tfirst\n9.2.b\tsecond\n10.1\tten\tdefinition\n17.1\tlate",
        )
        .unwrap()
    }

    #[test]
    fn lines_of_complete_sections_without_evidence_are_open() {
        let list = list();
        let mut evidence: Vec<Evidence> = (0..6).map(|_| Evidence::default()).collect();
        assert_eq!(open(&list, &evidence), ["8.1", "9.2", "9.2.a", "9.2.b"]);
        evidence[0].is_in_code = true;
        evidence[2].is_limit = true;
        evidence[3]
            .tests
            .insert(("tests/tests/it.rs".into(), Some("case".into())));
        assert_eq!(open(&list, &evidence), ["8.1"]);
        evidence[0].is_difference = true;
        assert!(open(&list, &evidence).is_empty());
        let page = page(&list, &evidence);
        for line in [
            "| 9.2 | two |  | case by case |",
            "| 9.2.b | second | [it.rs::case](../tests/tests/it.rs) | tested |",
            "| 10.1 | ten |  | definition |",
            "| 17.1 | late |  | open |",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }
}
