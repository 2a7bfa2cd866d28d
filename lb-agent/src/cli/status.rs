//! `status`: one look at a node: the agent, its maps and hooks, what was dropped, and what is wrong.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::Result;
use lb_common::{
    ABI_VERSION,
    abi::{Backend, Counter, DropReason, Service, ServiceFlags},
    flow_table::{FLOW_TABLE_VERSION, INDEX_WAYS, Record, TableFamily, WAYS},
    names::maps as names,
};
use serde::Serialize;

use super::{
    interfaces,
    query::View,
    table::{NOTHING, Output, or_nothing, print_json, print_text, render},
};
use crate::{
    bpf::{
        maps::{FamilyPins, MapResult, MappedArray, Maps, Plain},
        sys::{self, MapInfo},
    },
    dataplane::gc::{ALARM, FlowUse},
    telemetry::{
        counters::CounterValues,
        state::{Conflict, ManifestProblem, Running, Unserved, Warning},
    },
};

/// Everything that `status` tells.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Status {
    /// Version of the map layout.
    pub abi_version: u32,
    /// Version of the layout of the tables of flows.
    pub flow_table_version: u32,
    /// Pin directory.
    pub pins: String,
    /// Whether the agent runs.
    pub agent: Running,
    /// Its version; absent without its state file, as all that follows.
    pub version: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Its process id.
    pub pid: Option<u32>,
    /// When it started.
    pub started_at: Option<String>,
    /// When it was stopped; absent where it runs or was killed.
    pub stopped_at: Option<String>,
    /// Service ports in the maps, over both families.
    pub service_ports: usize,
    /// How full the maps are.
    pub maps: Vec<MapUse>,
    /// Per cent of the places of `flows_v4` and `flows_v6` that confirmed connections hold.
    pub flow_load_percent: [u64; 2],
    /// Interfaces and what is attached.
    pub interfaces: Vec<interfaces::Row>,
    /// Socket hooks that are attached.
    pub socket_hooks: Vec<String>,
    /// Drops by reason, without those that never happened.
    pub drops: Vec<Count>,
    /// What else was counted, without 0.
    pub counters: Vec<Count>,
    /// Broken manifest files.
    pub manifest_problems: Vec<ManifestProblem>,
    /// Service ports that are not, or not fully, in the maps.
    pub unserved: Vec<Unserved>,
    /// Frontends that several service ports claim.
    pub conflicts: Vec<Conflict>,
    /// Services that are served, but not as they say.
    pub warnings: Vec<Warning>,
    /// Socket hooks that are not attached.
    pub socket_problems: Vec<String>,
}

/// How full a map is.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct MapUse {
    /// Its name.
    pub map: String,
    /// Entries in use; absent where that means nothing. Of `selection`: rows; of `flows_*`: connections.
    pub entries: Option<usize>,
    /// Most entries. Of `selection`: rows; of `flows_*`: places for connections.
    pub max_entries: usize,
}

/// A counter.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Count {
    /// Its name in metrics.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// How often.
    pub count: u64,
}

/// Map types whose entries are counted one by one: hash, LRU hash, LPM trie.
const COUNTED: [u32; 3] = [1, 9, 11];

/// Entries of a hash or trie.
fn count(map: BorrowedFd<'_>, info: &MapInfo) -> io::Result<usize> {
    let mut room: u32 = 4096;
    let mut total = 0;
    let (mut place, mut go_on) = ([0; 40], false);
    loop {
        let buffer = |size: u32| vec![0u8; (size * room) as usize];
        let (mut keys, mut values) = (
            buffer(info.key_size),
            buffer(info.value_size.next_multiple_of(8)),
        );
        let mut next = place;
        match sys::map_lookup_batch(map, go_on, &mut next, &mut keys, &mut values, room) {
            Ok(read) => {
                total += read.count;
                if read.end {
                    return Ok(total);
                }
                (place, go_on) = (next, true);
            }
            // A bucket with more entries than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 4,
            // 524 is ENOTSUPP, which the kernel gives for map types without batches.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => {
                return count_by_key(map, info);
            }
            Err(error) => return Err(error),
        }
    }
}

fn count_by_key(map: BorrowedFd<'_>, info: &MapInfo) -> io::Result<usize> {
    let mut key = vec![0; info.key_size as usize];
    let mut next = key.clone();
    let mut total = 0;
    // More steps than entries: the map changed under the scan, which then began anew.
    while total <= info.max_entries as usize
        && sys::map_next_key(map, (total > 0).then_some(key.as_slice()), &mut next)?
    {
        key.copy_from_slice(&next);
        total += 1;
    }
    Ok(total)
}

/// What `services_*` name: service ports and tables.
#[derive(Default)]
struct Named {
    ids: BTreeSet<u32>,
    /// First row and number of rows.
    tables: BTreeSet<(u32, u32)>,
}

impl Named {
    fn add<F: TableFamily>(&mut self, pins: &FamilyPins<F>) -> MapResult<()> {
        pins.services.each(|_, service: &Service| {
            if service.has(ServiceFlags::ADDRESS_ONLY) {
                return;
            }
            self.ids.insert(service.id);
            for list in [service.cluster, service.local] {
                self.tables.insert((list.offset, list.len));
            }
        })
    }
}

fn used<F: TableFamily>(backends: &MappedArray<Backend<F>>) -> MapResult<usize>
where
    Backend<F>: Plain,
{
    let mut used = 0;
    for id in 1..backends.max_entries() {
        used += usize::from(backends.read(id)?.service_id != 0);
    }
    Ok(used)
}

/// How full a family's table of flows is.
fn flow_use<F: TableFamily>(pins: &FamilyPins<F>) -> FlowUse {
    let buckets = pins.flows.buckets();
    let mut usage = FlowUse::of(buckets);
    pins.flows
        .each(0..buckets, &mut |number, meta, _: &Record<F>| {
            usage.add(number, meta);
        });
    usage
}

/// Entries of a family's index of flows.
fn index_entries<F: TableFamily>(pins: &FamilyPins<F>) -> usize {
    let mut entries = 0;
    pins.flows
        .each_entry(0..pins.flows.lines(), &mut |_| entries += 1);
    entries
}

fn maps_in_use(maps: &Maps, named: &Named, flows: &[FlowUse; 2]) -> Result<Vec<MapUse>> {
    let mut pins: Vec<_> = fs::read_dir(&maps.dir)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .collect();
    pins.sort_by_key(fs::DirEntry::file_name);
    let mut all = Vec::new();
    for pin in pins {
        let map = pin.file_name().to_string_lossy().into_owned();
        let Ok(fd) = sys::obj_get(&pin.path(), sys::F_RDONLY) else {
            continue;
        };
        let Ok(info) = sys::map_info(fd.as_fd()) else {
            continue;
        };
        let mut max_entries = info.max_entries as usize;
        let records = |i: usize| usize::try_from(flows[i].records()).ok();
        let entries = match map.as_str() {
            name if name == names::FLOWS[0] => {
                max_entries *= WAYS as usize;
                records(0)
            }
            name if name == names::FLOWS[1] => {
                max_entries *= WAYS as usize;
                records(1)
            }
            name if name == names::FLOW_INDEX[0] => {
                max_entries *= INDEX_WAYS as usize;
                Some(index_entries(&maps.v4))
            }
            name if name == names::FLOW_INDEX[1] => {
                max_entries *= INDEX_WAYS as usize;
                Some(index_entries(&maps.v6))
            }
            name if name == names::BACKENDS[0] => Some(used(&maps.v4.backends)?),
            name if name == names::BACKENDS[1] => Some(used(&maps.v6.backends)?),
            names::SELECTION => {
                max_entries *= lb_common::abi::SELECTION_BLOCK_ROWS;
                Some(named.tables.iter().map(|(_, len)| *len as usize).sum())
            }
            names::SERVICE_STATS => Some(named.ids.len()),
            _ if COUNTED.contains(&info.map_type) => count(fd.as_fd(), &info).ok(),
            _ => None,
        };
        all.push(MapUse {
            map,
            entries,
            max_entries,
        });
    }
    Ok(all)
}

fn counts(maps: &Maps) -> MapResult<[Vec<Count>; 2]> {
    let values = CounterValues::read(&maps.counters)?;
    let drops = DropReason::ALL
        .iter()
        .map(|reason| reason.help())
        .zip(values.drops);
    let others = Counter::ALL
        .iter()
        .map(|counter| counter.help())
        .zip(values.counters);
    let count = |(help, (name, count)): (&'static str, (&'static str, u64))| Count {
        name,
        help: help.trim(),
        count,
    };
    let happened = |count: &Count| count.count > 0;
    Ok([
        drops.map(count).filter(happened).collect(),
        others.map(count).filter(happened).collect(),
    ])
}

impl Status {
    fn read(view: &View) -> Result<Status> {
        let maps = &view.maps;
        let mut named = Named::default();
        named.add(&maps.v4)?;
        named.add(&maps.v6)?;
        let [drops, counters] = counts(maps)?;
        let flows = [flow_use(&maps.v4), flow_use(&maps.v6)];
        let state = view.state.as_ref();
        let known = state.cloned().unwrap_or_default();
        Ok(Status {
            abi_version: ABI_VERSION,
            flow_table_version: FLOW_TABLE_VERSION,
            pins: maps.dir.display().to_string(),
            agent: view.running,
            version: state.map(|state| state.version.clone()),
            node: state.map(|state| state.node.clone()),
            pid: state
                .filter(|_| view.running == Running::Running)
                .map(|state| state.pid),
            started_at: state.map(|state| state.started_at.clone()),
            stopped_at: state
                .filter(|_| view.running == Running::Stopped)
                .and_then(|state| state.stopped_at.clone()),
            service_ports: named.ids.len(),
            maps: maps_in_use(maps, &named, &flows)?,
            flow_load_percent: flows.map(|usage| usage.load()),
            interfaces: interfaces::rows(maps, state)?,
            socket_hooks: interfaces::links(&maps.dir).remove(&0).unwrap_or_default(),
            drops,
            counters,
            manifest_problems: known.manifest_problems,
            unserved: known.unserved,
            conflicts: known.conflicts,
            warnings: known.warnings,
            socket_problems: known.socket_problems,
        })
    }

    /// Everything that is wrong, a sentence each.
    fn problems(&self) -> Vec<String> {
        let interfaces = self
            .interfaces
            .iter()
            .filter(|row| !["tcx", "clsact"].contains(&row.tc().as_str()));
        let interfaces = interfaces.map(|row| {
            let name = row.name.clone().unwrap_or_else(|| row.ifindex.to_string());
            format!("interface {name}: tc {}", row.tc())
        });
        let full = self
            .maps
            .iter()
            .filter(|map| map.is_full())
            .map(|map| format!("map {} is full", map.map));
        let filling = names::FLOWS
            .iter()
            .zip(self.flow_load_percent)
            .filter(|(_, load)| *load >= ALARM)
            .map(|(map, load)| {
                format!("map {map} is filling up: {load} % are confirmed connections; raise --flow-table-size")
            });
        let files = self
            .manifest_problems
            .iter()
            .map(|problem| format!("{}: {}", problem.file, problem.message));
        let conflicts = self.conflicts.iter().map(|conflict| {
            format!(
                "{} {} is claimed by several Services: {} serves it, not {}",
                conflict.frontend,
                conflict.protocol,
                conflict.winner,
                conflict.losers.join(", ")
            )
        });
        self.unserved
            .iter()
            .map(|unserved| unserved.message.clone())
            .chain(full)
            .chain(filling)
            .chain(files)
            .chain(interfaces)
            .chain(self.socket_problems.iter().cloned())
            .chain(conflicts)
            .chain(
                self.warnings
                    .iter()
                    .map(|warning| format!("{}: {}", warning.service, warning.message)),
            )
            .collect()
    }

    fn head(&self) -> String {
        let agent = match (self.agent, &self.started_at, &self.stopped_at) {
            (Running::Running, Some(since), _) => {
                format!("runs since {since}, process {}", self.pid.unwrap_or(0))
            }
            (Running::Running, None, _) => "runs, and has written no state file yet".to_owned(),
            (Running::Stopped, _, Some(at)) => format!("stopped at {at}; the dataplane goes on"),
            (Running::Stopped, Some(_), None) => {
                "does not run and was not stopped in order; the dataplane goes on".to_owned()
            }
            (Running::Stopped, None, None) => {
                "does not run and left no state file; the dataplane goes on".to_owned()
            }
        };
        let of = self
            .node
            .as_ref()
            .map(|node| format!(" of {node}"))
            .unwrap_or_default();
        let version = self
            .version
            .as_deref()
            .map(|version| format!(" {version}"))
            .unwrap_or_default();
        format!(
            "Agent{version}{of}: {agent}\nMaps: {} (ABI {}), {} service ports\n",
            self.pins, self.abi_version, self.service_ports
        )
    }

    fn render(&self) -> String {
        let problems = self.problems();
        let mut out = self.head();
        if problems.is_empty() {
            out.push_str("Problems: none\n");
        } else {
            out.push_str(&format!("Problems: {}\n", problems.len()));
            problems
                .iter()
                .for_each(|problem| out.push_str(&format!("  {problem}\n")));
        }
        let interfaces: Vec<_> = self
            .interfaces
            .iter()
            .map(|row| {
                [
                    or_nothing(row.name.as_deref()),
                    row.role.to_owned(),
                    row.tc(),
                    row.xdp(),
                ]
            })
            .collect();
        section(
            &mut out,
            &render(["INTERFACE", "ROLE", "TC", "XDP"], &interfaces),
        );
        let sockets = if self.socket_hooks.is_empty() {
            "none".to_owned()
        } else {
            self.socket_hooks.join(" ")
        };
        section(&mut out, &format!("Socket hooks: {sockets}\n"));
        let maps: Vec<_> = self
            .maps
            .iter()
            .filter(|map| map.entries.is_some())
            .map(MapUse::cells)
            .collect();
        section(&mut out, &render(["MAP", "ENTRIES", "MAX", "USED"], &maps));
        for (head, counts) in [("DROPPED", &self.drops), ("COUNTED", &self.counters)] {
            let cells: Vec<_> = counts
                .iter()
                .map(|count| {
                    [
                        count.name.to_owned(),
                        count.count.to_string(),
                        count.help.to_owned(),
                    ]
                })
                .collect();
            if cells.is_empty() {
                section(&mut out, &format!("{head}  nothing\n"));
            } else {
                section(&mut out, &render([head, "PACKETS", "MEANING"], &cells));
            }
        }
        out
    }
}

fn section(out: &mut String, text: &str) {
    out.push('\n');
    out.push_str(text);
}

impl MapUse {
    /// Whether nothing more fits. Maps that evict are made to be full.
    fn is_full(&self) -> bool {
        let evicts = ["flow", "affinity", "fragments", "socket_origins"];
        !evicts.iter().any(|name| self.map.starts_with(name))
            && self.max_entries > 1
            && self
                .entries
                .is_some_and(|entries| entries >= self.max_entries)
    }

    fn cells(&self) -> [String; 4] {
        let percent = self
            .entries
            .map(|entries| entries * 100 / self.max_entries.max(1));
        [
            self.map.clone(),
            self.entries
                .map_or_else(|| NOTHING.to_owned(), |entries| entries.to_string()),
            self.max_entries.to_string(),
            percent.map_or_else(|| NOTHING.to_owned(), |percent| format!("{percent} %")),
        ]
    }
}

/// Prints the status.
pub(super) fn status(view: &View) -> Result<()> {
    let status = Status::read(view)?;
    match view.output {
        Output::Json => print_json(&status),
        Output::Table => print_text(&status.render()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Status {
        Status {
            abi_version: 1,
            flow_table_version: 1,
            flow_load_percent: [64, 0],
            pins: "/sys/fs/bpf/lb/v4".into(),
            agent: Running::Running,
            version: Some("1.2.3".into()),
            node: Some("a".into()),
            pid: Some(7),
            started_at: Some("2026-01-01T00:00:00Z".into()),
            stopped_at: None,
            service_ports: 2,
            maps: vec![MapUse {
                map: "services_v4".into(),
                entries: Some(2),
                max_entries: 4,
            }],
            interfaces: Vec::new(),
            socket_hooks: vec!["connect4".into()],
            drops: vec![Count {
                name: "malformed",
                help: "Header cut short or malformed.",
                count: 3,
            }],
            counters: Vec::new(),
            manifest_problems: Vec::new(),
            unserved: Vec::new(),
            conflicts: Vec::new(),
            warnings: Vec::new(),
            socket_problems: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_node_has_no_problems() {
        let text = healthy().render();
        assert!(
            text.starts_with("Agent 1.2.3 of a: runs since 2026-01-01T00:00:00Z, process 7\n"),
            "{text}"
        );
        assert!(text.contains("\nProblems: none\n"), "{text}");
        assert!(
            text.contains("\nservices_v4        2    4  50 %\n"),
            "{text}"
        );
        assert!(
            text.contains("\nmalformed        3  Header cut short or malformed.\n"),
            "{text}"
        );
    }

    #[test]
    fn every_problem_is_a_sentence() {
        let mut status = healthy();
        status.maps[0].entries = Some(4);
        status.flow_load_percent[1] = 65;
        status.manifest_problems = vec![ManifestProblem {
            file: "bad.yaml".into(),
            message: "document 1: no kind".into(),
        }];
        status.conflicts = vec![Conflict {
            frontend: "10.0.0.1:80".into(),
            protocol: "TCP".into(),
            winner: "x/a/TCP".into(),
            losers: vec!["x/b/TCP".into()],
        }];
        assert_eq!(
            status.problems(),
            [
                "map services_v4 is full",
                "map flows_v6 is filling up: 65 % are confirmed connections; raise --flow-table-size",
                "bad.yaml: document 1: no kind",
                "10.0.0.1:80 TCP is claimed by several Services: x/a/TCP serves it, not x/b/TCP",
            ]
        );
        assert!(
            status
                .render()
                .contains("\nProblems: 4\n  map services_v4 is full\n")
        );
    }

    #[test]
    fn an_agent_that_does_not_run_is_told_from_one_that_was_stopped() {
        let mut status = healthy();
        status.agent = Running::Stopped;
        assert!(status.head().contains("was not stopped in order"));
        status.stopped_at = Some("2026-01-02T00:00:00Z".into());
        assert!(
            status
                .head()
                .contains("stopped at 2026-01-02T00:00:00Z; the dataplane goes on")
        );
        (status.started_at, status.stopped_at) = (None, None);
        assert!(status.head().contains("left no state file"));
    }
}
