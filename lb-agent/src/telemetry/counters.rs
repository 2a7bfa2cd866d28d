//! Counters of the dataplane, summed over CPUs at each look.

use std::path::Path;

use lb_common::{
    abi::{Counter, DropReason, PacketCount, ServiceStats},
    names,
};

use crate::{
    bpf::maps::{Access, MapResult, PerCpuMap},
    exposition::Text,
};

/// The dataplane's counters.
#[derive(Debug)]
pub(crate) struct Counters {
    counters: PerCpuMap<PacketCount>,
    stats: PerCpuMap<ServiceStats>,
}

impl Counters {
    /// Opens them below a pin directory.
    pub(crate) fn open(dir: &Path) -> MapResult<Counters> {
        Ok(Counters {
            counters: PerCpuMap::open(dir, names::maps::COUNTERS, Access::Read)?,
            stats: PerCpuMap::open(dir, names::maps::SERVICE_STATS, Access::Read)?,
        })
    }
    /// Every drop reason and every other counter with its sum.
    pub(crate) fn read(&self) -> MapResult<CounterValues> {
        CounterValues::read(&self.counters)
    }
    /// Traffic of a service port.
    pub(crate) fn service(&self, id: u32) -> MapResult<ServiceStats> {
        service_stats(&self.stats, id)
    }
}

/// Traffic of a service port, summed over CPUs.
pub(crate) fn service_stats(map: &PerCpuMap<ServiceStats>, id: u32) -> MapResult<ServiceStats> {
    Ok(map
        .lookup(id)?
        .iter()
        .fold(ServiceStats::default(), |sum, cpu| ServiceStats {
            flows: sum.flows.wrapping_add(cpu.flows),
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
}

/// Counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CounterValues {
    /// Dropped packets by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Everything else that is counted.
    pub counters: Vec<(&'static str, u64)>,
}

impl CounterValues {
    /// Sums every counter over CPUs.
    pub(crate) fn read(map: &PerCpuMap<PacketCount>) -> MapResult<CounterValues> {
        let sum = |index: u32| -> MapResult<u64> {
            let cpus = map.lookup(index)?;
            Ok(cpus
                .iter()
                .fold(0, |sum, count| sum.wrapping_add(count.packets)))
        };
        let drops = DropReason::ALL
            .iter()
            .map(|reason| Ok((reason.label(), sum(*reason as u32)?)));
        let others = Counter::ALL
            .iter()
            .map(|counter| Ok((counter.label(), sum(*counter as u32)?)));
        Ok(CounterValues {
            drops: drops.collect::<MapResult<_>>()?,
            counters: others.collect::<MapResult<_>>()?,
        })
    }
    /// Appends `lb_drops_total{reason}` and `lb_events_total{event}`.
    pub(crate) fn render(&self, out: &mut Text) {
        out.head(
            "lb_drops_total",
            "counter",
            "Packets of Services that were dropped.",
        );
        for (reason, count) in &self.drops {
            out.row("lb_drops_total", &[("reason", reason)], count);
        }
        out.head("lb_events_total", "counter", "What the dataplane did.");
        for (event, count) in &self.counters {
            out.row("lb_events_total", &[("event", event)], count);
        }
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
        let mut out = Text::default();
        values.render(&mut out);
        let out = out.into_string();
        assert!(out.starts_with("# HELP lb_drops_total "), "{out}");
        assert!(
            out.contains("# TYPE lb_drops_total counter\nlb_drops_total{reason=\"malformed\"} 3\n"),
            "{out}"
        );
    }
}
