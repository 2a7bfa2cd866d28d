//! Links between pages, and pages and sections that comments name: each leads somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;

#[test]
fn links_and_pages_that_are_named_exist() {
    let root = paths::workspace();
    let mut broken = Vec::new();
    for path in paths::files(&root).unwrap() {
        let Ok(text) = fs::read_to_string(&path) else {
            continue; // No text: a picture, a fuzzer's input.
        };
        let is_page = path.extension().is_some_and(|extension| extension == "md");
        let mut targets = named(&text, &root);
        if is_page {
            targets.extend(linked(&text, &path));
        }
        for (file, section) in targets {
            let text = fs::read_to_string(&file);
            let leads = match (&text, &section) {
                (_, None) => file.exists(),
                (Ok(text), Some(section)) => has_section(text, section),
                (Err(_), Some(_)) => false,
            };
            if !leads {
                broken.push(format!(
                    "{}: {}, {section:?}",
                    path.display(),
                    file.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "lead nowhere:\n{}", broken.join("\n"));
}

/// A file and a section of it.
type Target = (PathBuf, Option<String>);

/// `[text](file#section)` of a page, if not on another host.
fn linked(text: &str, page: &Path) -> Vec<Target> {
    let links = text.split("](").skip(1);
    let links = links.filter_map(|rest| rest.split([')', ' ', '\n']).next());
    links
        .filter(|link| !link.contains(':'))
        .map(|link| {
            let (file, section) = match link.split_once('#') {
                Some((file, section)) => (file, Some(section.to_owned())),
                None => (link, None),
            };
            let file = match file {
                "" => page.to_owned(),
                file => page.with_file_name("").join(file),
            };
            (file, section)
        })
        .collect()
}

/// Pages that a text names from the root of the checkout, as in `docs/decisions.md, "Checksums"`.
fn named(text: &str, root: &Path) -> Vec<Target> {
    let lines = text
        .lines()
        .map(|line| line.trim().trim_start_matches(['/', '!', '#']).trim());
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut named = Vec::new();
    for (at, _) in text.match_indices("docs/") {
        let is_name = |next: char| next.is_ascii_alphanumeric() || "/-_.".contains(next);
        let rest = &text[at..];
        let name = rest.split(|next| !is_name(next)).next().unwrap_or_default();
        let name = name.trim_end_matches('.');
        if text[..at].ends_with(is_name) || !name.ends_with(".md") {
            continue;
        }
        let section = rest[name.len()..].strip_prefix(", \"");
        let section = section.and_then(|rest| rest.split('"').next());
        named.push((root.join(name), section.map(slug)));
    }
    named
}

/// Whether a page has a heading or an anchor of this name.
fn has_section(text: &str, section: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| slug(line.trim_start_matches('#')))
        .any(|heading| heading == section)
        || text.contains(&format!("<a id=\"{section}\"></a>"))
}

/// What a heading is called in links.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|next| next.is_alphanumeric() || " -_".contains(*next));
    kept.collect::<String>().replace(' ', "-")
}
