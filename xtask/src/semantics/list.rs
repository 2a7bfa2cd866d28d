//! `tests/semantics.tsv`: what a Service proxy has to do, one numbered line each, in order.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

/// Longest title.
const TITLE: usize = 80;

/// Why a line asks for no test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Note {
    /// Words or history: nothing to do.
    Definition,
    /// What kube-proxy's modes do and nobody else has to.
    KubeProxyOnly,
}

impl Note {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Note::Definition => "definition",
            Note::KubeProxyOnly => "kube-proxy only",
        }
    }
}

/// One line.
pub(super) struct Item {
    /// `8.6`, `14.8a`, or `9.2.d` for a case of 9.2.
    pub(super) number: String,
    /// What it is about.
    pub(super) title: String,
    /// Why nothing tests it.
    pub(super) note: Option<Note>,
}

impl Item {
    /// The part of the list that it is in.
    pub(super) fn section(&self) -> u32 {
        section(&self.number)
    }
}

/// All lines, and where each number stands.
pub(super) struct List {
    items: Vec<Item>,
    places: HashMap<String, usize>,
}

impl List {
    pub(super) fn parse(text: &str) -> Result<List> {
        let mut list = List {
            items: Vec::new(),
            places: HashMap::new(),
        };
        for line in text.lines() {
            let item = item(line).with_context(|| format!("line `{line}`"))?;
            let place = list.items.len();
            ensure!(
                list.items
                    .last()
                    .is_none_or(|last| last.section() <= item.section()),
                "line `{line}` is not in the order of sections"
            );
            ensure!(
                list.places.insert(item.number.clone(), place).is_none(),
                "{} is there twice",
                item.number
            );
            list.items.push(item);
        }
        Ok(list)
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(super) fn place(&self, number: &str) -> Option<usize> {
        self.places.get(number).copied()
    }

    pub(super) fn has_section(&self, number: u32) -> bool {
        // Tables without numbered lines.
        const TABLES: [u32; 2] = [26, 27];
        TABLES.contains(&number) || self.items.iter().any(|item| item.section() == number)
    }

    /// Places of the cases of a line: `9.2.a` and so on of `9.2`.
    pub(super) fn cases(&self, number: &str) -> Vec<usize> {
        let of_number = |item: &Item| {
            item.number
                .strip_prefix(number)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        (0..self.items.len())
            .filter(|&place| of_number(&self.items[place]))
            .collect()
    }
}

fn item(line: &str) -> Result<Item> {
    let mut columns = line.split('\t');
    let (number, title) = (columns.next(), columns.next());
    let (number, title) = number
        .zip(title)
        .context("a line is number, title and perhaps a note, with tabs between them")?;
    let note = match columns.next() {
        None => None,
        Some("definition") => Some(Note::Definition),
        Some("kube-proxy only") => Some(Note::KubeProxyOnly),
        Some(other) => anyhow::bail!("there is no note `{other}`"),
    };
    ensure!(columns.next().is_none(), "there are too many tabs");
    ensure!(
        title.chars().count() <= TITLE,
        "the title is longer than {TITLE} characters"
    );
    ensure!(section(number) > 0, "the number begins with no section");
    Ok(Item {
        number: number.to_owned(),
        title: title.to_owned(),
        note,
    })
}

fn section(number: &str) -> u32 {
    number
        .split_once('.')
        .and_then(|(section, _)| section.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_bad_ones_are_named() {
        let list = List::parse("9.2\ttraffic\n9.2.a\tcase\n9.20\tother\tdefinition\n").unwrap();
        assert_eq!(list.cases("9.2"), [1]);
        assert_eq!(list.items()[2].note, Some(Note::Definition));
        assert_eq!(list.place("9.20"), Some(2));
        for bad in [
            "9.2",
            "9\ttitle",
            "9.2\ttitle\tnote",
            "9.2\ta\n9.2\tb",
            "9.2\ta\n8.1\tb",
        ] {
            assert!(List::parse(bad).is_err(), "{bad:?}");
        }
    }
}
