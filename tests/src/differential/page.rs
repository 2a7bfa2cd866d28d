//! Explained differences → the generated part of docs/differences.md.

use std::collections::{BTreeMap, BTreeSet};

use super::{Difference, Entry, explanation, shown};

const BEGIN: &str = "<!-- generated from the differential test: begin -->";
const END: &str = "<!-- generated from the differential test: end -->";

/// The generated part. Unexplained differences have no place in it.
pub fn page(points: usize, differences: &[Difference]) -> String {
    let mut grouped: Vec<(&Entry, Vec<&Difference>)> = super::entries()
        .iter()
        .map(|entry| (entry, Vec::new()))
        .collect();
    for difference in differences {
        let Some(entry) = explanation(difference) else {
            continue;
        };
        if let Some((_, list)) = grouped
            .iter_mut()
            .find(|(known, _)| known.title == entry.title)
        {
            list.push(difference);
        }
    }
    let mut text = format!(
        "{points} dials (who × frontend × policies × endpoints, both families, TCP and UDP) were made through this agent and \
         through kube-proxy v1.37.1 in equal worlds at one API server. Where nothing is listed, both reach the same \
         backends with the same source, or fail in the same way.\n"
    );
    for (entry, list) in grouped.iter().filter(|(_, list)| !list.is_empty()) {
        write_entry(&mut text, entry, list);
    }
    text
}

fn write_entry(text: &mut String, entry: &Entry, list: &[&Difference]) {
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.push_str(&args.to_string());
        text.push('\n');
    };
    line(format_args!(
        "\n### {} (semantics {})\n\n{}\n",
        capitalized(entry.title),
        entry.semantics,
        entry.text
    ));
    line(format_args!(
        "| this agent | kube-proxy | from | to | for example |"
    ));
    line(format_args!("|---|---|---|---|---|"));
    let mut rows: BTreeMap<(&str, &str), Vec<&Difference>> = BTreeMap::new();
    for difference in list {
        rows.entry((difference.ours.name(), difference.theirs.name()))
            .or_default()
            .push(difference);
    }
    for ((ours, theirs), rows) in rows {
        let sources: BTreeSet<_> = rows.iter().map(|row| row.point.source).collect();
        let frontends: BTreeSet<_> = rows.iter().map(|row| row.point.frontend).collect();
        let sources: Vec<&str> = sources.iter().map(|source| source.name()).collect();
        let frontends: Vec<&str> = frontends.iter().map(|frontend| frontend.name()).collect();
        let Some(first) = rows.iter().min_by_key(|row| row.point) else {
            continue;
        };
        line(format_args!(
            "| {ours} | {theirs} | {} | {} | {}: here {}, there {} |",
            sources.join(", "),
            frontends.join(", "),
            first.point,
            shown(&first.our_outcome),
            shown(&first.their_outcome)
        ));
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + chars.as_str())
        .unwrap_or_default()
}

/// A page with its generated part replaced; `None` where it has none.
pub fn replace_generated(whole: &str, generated: &str) -> Option<String> {
    let (before, rest) = whole.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{generated}{END}{after}"))
}
