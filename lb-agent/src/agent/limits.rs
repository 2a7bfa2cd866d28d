//! Memory of a machine → how many Services fit into the maps that it gets by default: the table of docs/limits.md.

use crate::{bpf::load::MemoryShare, dataplane::tables_within};

/// Default of `--max-frontends`.
const FRONTENDS: u32 = 65_536;
/// Entries of a Service with one port and a NodePort on one address: ClusterIP, its address, NodePort.
const ENTRIES: u32 = 3;

/// Services of so many endpoints, one port and a NodePort each, that have all that they ask for.
fn services(memory_bytes: u64, endpoints: u32) -> u32 {
    let share = MemoryShare::of(memory_bytes);
    // Id 0 names no backend.
    let by_ids = (share.backends - 1) / endpoints;
    let by_rows = tables_within(share.rows, endpoints as usize, true);
    by_ids.min(by_rows).min(FRONTENDS / ENTRIES)
}

fn with_commas(number: u32) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[test]
fn the_table_of_limits_is_what_the_sizes_come_to() {
    let page = include_str!("../../../docs/limits.md");
    for gib in [4, 8, 16, 64] {
        let memory = gib << 30;
        let share = MemoryShare::of(memory);
        let mut line = format!(
            "| {gib} GiB | {} | {} |",
            with_commas(share.backends),
            with_commas(share.rows)
        );
        for endpoints in [10, 100, 1_000, 5_000] {
            line += &format!(" {} |", with_commas(services(memory, endpoints)));
        }
        assert!(
            page.contains(&line),
            "docs/limits.md lacks the line\n{line}"
        );
    }
}

/// With a NodePort, and where firmware and kernel keep a sixteenth of the memory for themselves.
#[test]
fn ten_thousand_services_fit_where_they_are_to() {
    let less = |gib: u64| (gib << 30) / 16 * 15;
    assert!(services(less(8), 10) >= 10_000);
    assert!(services(less(16), 100) >= 10_000);
}
