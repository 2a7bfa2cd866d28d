//! Flows → the bits of `port_filter` by which their packets are found.

use lb_common::{
    abi::{FlowFlags, PORT_FILTER_ENTRIES, SNAT_PORTS_SLOT, Transport, port_filter_slot},
    flow_table::{Record, TableFamily},
};

use crate::port_set::PortSet;

/// Ports that flows came in by: dialled ones by protocol, and ports that source translation has taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlowPorts([PortSet; PORT_FILTER_ENTRIES as usize]);

impl FlowPorts {
    /// Takes in what a flow needs. A direct connection needs none: it is asked for in `direct_ports`.
    pub(super) fn add<F: TableFamily>(&mut self, record: &Record<F>) {
        let original = &record.original;
        if record.flags.contains(FlowFlags::DIRECT) {
            return;
        }
        if let Some(transport) = Transport::from_proto(original.proto()) {
            let slot = port_filter_slot(transport) as usize;
            self.0[slot].set(original.dport().to_host(), true);
        }
        if record
            .flags
            .intersects(FlowFlags::SNAT | FlowFlags::HAIRPIN)
        {
            self.0[SNAT_PORTS_SLOT as usize].set(record.source_port.to_host(), true);
        }
    }
    /// Those of an element of `port_filter`.
    pub(crate) fn of_slot(&self, slot: u32) -> &PortSet {
        &self.0[slot as usize]
    }
    pub(super) fn clear(&mut self) {
        self.0.iter_mut().for_each(PortSet::clear);
    }
}
