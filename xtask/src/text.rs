//! What people read: every page of docs/ is in the book, and lines of text have one width.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;

/// Columns of Markdown, comments and configuration. rustfmt keeps code narrower.
const WIDTH: usize = 130;

fn extension(file: &Path) -> &str {
    let extension = file.extension().unwrap_or_default();
    extension.to_str().unwrap_or_default()
}

#[test]
fn every_page_of_docs_is_in_the_book() {
    let docs = paths::workspace().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let named = summary.split("](").skip(1).filter_map(|rest| {
        let (page, _) = rest.split_once(')')?;
        Some(docs.join(page))
    });
    let pages = paths::files(&docs).unwrap().into_iter();
    let pages: BTreeSet<PathBuf> = pages
        .filter(|file| extension(file) == "md" && !file.ends_with("SUMMARY.md"))
        .collect();
    assert_eq!(pages, named.collect(), "pages, and those in SUMMARY.md");
}

#[test]
fn lines_of_text_have_one_width() {
    let mut long = Vec::new();
    for file in paths::files(&paths::workspace()).unwrap() {
        // Its tables come from the comparison with kube-proxy.
        if file.ends_with("docs/differences.md") {
            continue;
        }
        // A row of a table is one line, and a string in code may be.
        let is_text: fn(&str) -> bool = match extension(&file) {
            "md" => |line| !line.starts_with('|'),
            "rs" => |line| line.starts_with("//") && !line.starts_with("//! |"),
            "sh" | "yaml" | "yml" | "toml" => |_| true,
            _ => continue,
        };
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > WIDTH && is_text(line.trim_start()) {
                long.push(format!("{}:{number}", file.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "longer than {WIDTH} columns:\n{}",
        long.join("\n")
    );
}
