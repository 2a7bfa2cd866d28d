//! The last chapter: what the kernel holds, in the agent's tables and in bpftool's dump.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use lb_common::names::maps;

use super::{
    screen::Screen,
    stage::{Stage, pins},
    story::{PATIENCE, web},
    tally::list,
};
use crate::{
    agent::Agent,
    echo::{Dial, Stream},
    topology::Ip,
};

/// The last chapter.
pub fn show(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("What the kernel holds, for agent and bpftool alike")?;
    let mut open = Vec::new();
    for dial in [
        Dial::tcp(stage.pod(), web(Ip::V4)),
        Dial::tcp(&stage.world.client, (stage.world.a().host.v4, 30080).into()),
    ] {
        let mut stream = Stream::open(dial)?;
        stream.ask(PATIENCE)?;
        open.push(stream);
    }
    table(screen, &stage.a, &SERVICES)?;
    table(screen, &stage.a, &FLOWS)?;
    let path = pins(&stage.a).join(maps::SERVICES[0]);
    screen.doing("bpftool map dump pinned …/services_v4");
    let dump = std::process::Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(&path)
        .output()
        .context("cannot run bpftool; run `cargo xtask setup`")?;
    let text = String::from_utf8_lossy(&dump.stdout);
    let (entries, shown) = entry(&text, &web(Ip::V4));
    screen.excerpt(&shown, 6);
    screen.aside(&format!(
        "one of {entries} entries: {}, numbers in network byte order",
        web(Ip::V4)
    ));
    let fields = ["\"addr\"", "\"port\"", "\"proto\"", "\"affinity_secs\""];
    let missing: Vec<&str> = fields
        .into_iter()
        .filter(|field| !text.contains(field))
        .collect();
    screen.promise(
        "maps with named, typed fields",
        dump.status.success() && missing.is_empty() && !shown.is_empty(),
        &match missing.as_slice() {
            [] => String::new(),
            missing => format!("{} is missing", list(missing, |name| (*name).to_owned())),
        },
    );
    Ok(())
}

/// How many entries bpftool's dump of `services_v4` has, and that of a TCP frontend in a few lines.
fn entry(dump: &str, frontend: &SocketAddr) -> (usize, String) {
    let words = dump.split_whitespace().collect::<Vec<_>>().join(" ");
    let entries: Vec<&str> = words.split("\"key\": ").skip(1).collect();
    let IpAddr::V4(addr) = frontend.ip() else {
        return (entries.len(), String::new());
    };
    let key = format!(
        "{{ \"addr\": {{ \"be\": {} }}, \"port\": {{ \"be\": {} }}, \"proto\": 6",
        u32::from_ne_bytes(addr.octets()),
        frontend.port().to_be()
    );
    let found = entries.iter().find(|entry| entry.starts_with(&key));
    let text = found.map_or_else(String::new, |entry| {
        let entry = entry.trim_end_matches(['[', ']', ',', '{', ' ']);
        let entry = entry.strip_suffix('}').unwrap_or(entry);
        wrapped(&format!("\"key\": {}", entry.trim_end()))
    });
    (entries.len(), text)
}

/// The text in lines that fit the screen; the value begins a line.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 90;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or("", String::as_str);
        if word == "\"value\":" || line.len() + word.len() > WIDTH {
            lines.push(String::from(if word == "\"value\":" { "" } else { "    " }));
        }
        if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// A part of one of the agent's tables.
struct Part {
    /// The command.
    name: &'static str,
    /// Which columns are shown.
    columns: &'static [&'static str],
    /// Columns of which each combination is shown once; none: every row.
    distinct: &'static [&'static str],
    /// What a row must hold to be shown.
    filter: &'static [&'static str],
    /// Most rows.
    rows: usize,
    /// What it promises, and what shows it.
    promise: &'static str,
    wanted: &'static [&'static str],
}

const SERVICES: Part = Part {
    name: "services",
    columns: &[
        "SERVICE", "KIND", "FRONTEND", "POLICY", "BACKENDS", "FLOWS", "PACKETS",
    ],
    distinct: &[],
    filter: &["default/web:http ", "  IPv4  "],
    rows: 4,
    promise: "every frontend, by the name of its Service",
    wanted: &[
        "default/web:http ",
        "  10.96.0.10:80  ",
        "  [2001:db8:1::11]:30080  ",
    ],
};

const FLOWS: Part = Part {
    name: "flows",
    columns: &["STATE", "AT", "CLIENT", "FRONTEND", "BACKEND", "SOURCE"],
    distinct: &["STATE", "AT", "PROTO"],
    filter: &["10.244."],
    rows: 6,
    promise: "every connection, from client to backend",
    wanted: &["  10.96.0.10:80  ", "  192.0.2.11:30080  "],
};

/// Shows a part of a table of the agent's.
fn table(screen: &mut Screen, agent: &Agent, part: &Part) -> Result<()> {
    screen.doing(&format!("lb-agent {}   (some rows and columns)", part.name));
    let output = agent.command(&[part.name])?;
    let text = String::from_utf8_lossy(&output.stdout);
    screen.excerpt(&part.of(&text), part.rows + 1);
    let error = String::from_utf8_lossy(&output.stderr);
    screen.promise(
        part.promise,
        output.status.success() && part.wanted.iter().all(|wanted| text.contains(wanted)),
        error.lines().next().unwrap_or_default(),
    );
    Ok(())
}

impl Part {
    /// The rows and columns of a table that are shown, in line again.
    fn of(&self, table: &str) -> String {
        let mut lines = table.lines();
        let heads = cells(lines.next().unwrap_or_default());
        let at = |names: &[&str]| -> Vec<usize> {
            let place = |name: &&str| heads.iter().position(|head| head == name);
            names.iter().filter_map(place).collect()
        };
        let (columns, distinct) = (at(self.columns), at(self.distinct));
        let pick = |cells: &[&str], columns: &[usize]| -> Vec<String> {
            let cell = |column: &usize| cells.get(*column).copied().unwrap_or_default().to_owned();
            columns.iter().map(cell).collect()
        };
        let mut seen = BTreeSet::new();
        let mut rows = vec![pick(&heads, &columns)];
        for line in lines.filter(|line| self.filter.iter().all(|text| line.contains(text))) {
            let cells = cells(line);
            if rows.len() <= self.rows
                && (distinct.is_empty() || seen.insert(pick(&cells, &distinct)))
            {
                rows.push(pick(&cells, &columns));
            }
        }
        let width = |column: usize| {
            let lengths = rows.iter().filter_map(|row| row.get(column));
            lengths.map(String::len).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let line = |row: &Vec<String>| -> String {
            let padded = row.iter().zip(&widths);
            let padded = padded.map(|(cell, width)| format!("{cell:width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Cells of a row: two spaces and more are between them.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_table_is_in_line_again() {
        let table = "PROTO  STATE        AT        CLIENT          SOURCE\n\
                     TCP    established  pod       10.244.1.4:123  -\n\
                     TCP    established  pod       10.244.1.4:124  -\n\
                     UDP    opening      external  10.244.2.4:1    10.0.0.1:2\n";
        let part = Part {
            columns: &["AT", "CLIENT", "SOURCE"],
            ..FLOWS
        };
        assert_eq!(
            part.of(table),
            "AT        CLIENT          SOURCE\n\
             pod       10.244.1.4:123  -\n\
             external  10.244.2.4:1    10.0.0.1:2"
        );
    }

    #[test]
    fn the_entry_of_a_frontend_is_found_and_wrapped() {
        let dump = "[{\n \"key\": {\n \"addr\": {\n \"be\": 1\n },\n \"port\": {\n \"be\": 0\n },\n \"proto\": 0\n },\n \"value\": {\n \"id\": 0\n }\n },{\n \
                    \"key\": {\n \"addr\": {\n \"be\": BE\n },\n \"port\": {\n \"be\": PORT\n },\n \"proto\": 6\n },\n \"value\": {\n \"id\": 5\n }\n }\n]\n";
        let dump = dump
            .replace("BE", &u32::from_ne_bytes([10, 96, 0, 10]).to_string())
            .replace("PORT", &80u16.to_be().to_string());
        let (entries, text) = entry(&dump, &web(Ip::V4));
        assert_eq!(entries, 2);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("\"value\": { \"id\": 5 }"), "{text}");
    }
}
