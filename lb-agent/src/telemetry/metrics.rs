//! `/metrics` in Prometheus' text format: counters of the dataplane summed over CPUs at each scrape.

use std::path::Path;

use lb_common::{
    abi::{Counter, DropReason, PacketCount},
    names,
};

use crate::bpf::maps::{Access, MapResult, PerCpuMap};

/// The dataplane's counters.
#[derive(Debug)]
pub struct Counters {
    map: PerCpuMap<PacketCount>,
}

impl Counters {
    /// Opens them below a pin directory.
    pub fn open(dir: &Path) -> MapResult<Counters> {
        Ok(Counters {
            map: PerCpuMap::open(dir, names::maps::COUNTERS, Access::Read)?,
        })
    }
    /// One counter, summed over CPUs.
    pub fn sum(&self, index: u32) -> MapResult<u64> {
        Ok(self
            .map
            .lookup(index)?
            .iter()
            .fold(0, |sum, count| sum.wrapping_add(count.packets)))
    }
    /// Every drop reason and every other counter with its sum.
    pub fn read(&self) -> MapResult<CounterValues> {
        let drops = DropReason::ALL
            .iter()
            .map(|reason| Ok((reason.label(), self.sum(*reason as u32)?)));
        let others = Counter::ALL
            .iter()
            .map(|counter| Ok((counter.label(), self.sum(*counter as u32)?)));
        Ok(CounterValues {
            drops: drops.collect::<MapResult<_>>()?,
            counters: others.collect::<MapResult<_>>()?,
        })
    }
}

/// Counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CounterValues {
    /// Dropped packets by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Everything else that is counted.
    pub counters: Vec<(&'static str, u64)>,
}

impl CounterValues {
    /// Appends the text format: `lb_drops_total{reason}` and `lb_events_total{event}`.
    pub fn render(&self, out: &mut String) {
        family(
            out,
            "lb_drops_total",
            "Packets of Services that were dropped.",
            "reason",
            &self.drops,
        );
        family(
            out,
            "lb_events_total",
            "What the dataplane did.",
            "event",
            &self.counters,
        );
    }
}

/// Appends a family of counters that differ in one label.
pub fn family(out: &mut String, name: &str, help: &str, label: &str, rows: &[(&str, u64)]) {
    out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} counter\n"));
    for (value, count) in rows {
        out.push_str(&format!("{name}{{{label}=\"{value}\"}} {count}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_help_type_and_a_line_for_each_label() {
        let values = CounterValues {
            drops: vec![("malformed", 3), ("rewrite", 0)],
            counters: Vec::new(),
        };
        let mut out = String::new();
        values.render(&mut out);
        assert!(out.starts_with("# HELP lb_drops_total "), "{out}");
        assert!(
            out.contains("# TYPE lb_drops_total counter\nlb_drops_total{reason=\"malformed\"} 3\n"),
            "{out}"
        );
    }
}
