//! Ports that frontends use → bits of `port_filter`, and those that source translation may take. A bit is set before the
//! first entry that needs it is written. When the last one is gone it stays for the flows that came through it: programs
//! ask the filter before they look for a flow. It is cleared when a whole round over all flows has met none that needs it.

use std::collections::HashSet;

use lb_common::{
    abi::{PORT_FILTER_ENTRIES, SNAT_PORTS_SLOT, ServiceKey, Transport, port_filter_slot},
    family::Family,
};

use super::{
    gc::FlowPorts,
    report::ApplyReport,
    store::{MapStore, StoreResult},
    uses::Uses,
};
use crate::port_set::PortSet;

/// A bit of `port_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Bit {
    /// The element: a protocol's, or [`SNAT_PORTS_SLOT`].
    slot: u32,
    port: u16,
}

impl Bit {
    /// The bit that a frontend needs; the entry of a whole address needs none.
    fn of<F: Family>(key: &ServiceKey<F>) -> Option<Bit> {
        Some(Bit {
            slot: port_filter_slot(Transport::from_proto(key.proto)?),
            port: key.port.to_host(),
        })
    }
}

/// `port_filter` as it is, and who needs each bit.
#[derive(Debug)]
pub(crate) struct UsedPorts {
    /// The map as it is, by slot.
    present: [PortSet; PORT_FILTER_ENTRIES as usize],
    /// Entries of `services_*` of both families.
    uses: Uses<Bit>,
    /// Ports for source translation.
    snat_ports: PortSet,
    /// Whether these are in `port_filter` and `config`.
    has_snat_ports: bool,
    /// Bits that are set and unwanted, since before the present round over all flows began ...
    idle: HashSet<Bit>,
    /// ... and since some moment in it.
    idle_lately: HashSet<Bit>,
}

impl UsedPorts {
    /// Reads the map. Who needs its bits is told by [`UsedPorts::adopt`].
    pub(crate) fn read<S: MapStore>(store: &S, snat_ports: PortSet) -> StoreResult<Self> {
        let mut present = std::array::from_fn(|_| PortSet::default());
        for (slot, ports) in (0..).zip(&mut present) {
            store.read_ports(slot, ports.filter_mut())?;
        }
        Ok(UsedPorts {
            present,
            uses: Uses::default(),
            snat_ports,
            has_snat_ports: false,
            idle: HashSet::new(),
            idle_lately: HashSet::new(),
        })
    }

    /// Counts an entry that was in the map before the start.
    pub(crate) fn adopt<F: Family>(&mut self, key: &ServiceKey<F>) {
        if let Some(bit) = Bit::of(key) {
            self.uses.acquire(bit);
        }
    }

    /// Sets the bit for an entry that is about to be written.
    pub(crate) fn acquire<F: Family, S: MapStore>(
        &mut self,
        store: &mut S,
        key: &ServiceKey<F>,
    ) -> StoreResult<()> {
        if let Some(bit) = Bit::of(key) {
            self.write(store, bit, true)?;
            self.uses.acquire(bit);
        }
        Ok(())
    }

    /// An entry is gone, or lost.
    pub(crate) fn release<F: Family>(&mut self, key: &ServiceKey<F>) {
        if let Some(bit) = Bit::of(key)
            && self.uses.release(&bit)
        {
            self.idle_lately.insert(bit);
        }
    }

    /// Writes the ports for source translation, once.
    pub(crate) fn write_snat_ports<S: MapStore>(&mut self, store: &mut S) -> StoreResult<()> {
        if self.has_snat_ports {
            return Ok(());
        }
        let slot = SNAT_PORTS_SLOT;
        let ports: Vec<u16> = self.snat_ports.ports().collect();
        for port in ports {
            self.write(store, Bit { slot, port }, true)?;
        }
        self.note_unwanted(slot);
        let span = self.snat_ports.span();
        store.update_config(&mut |config| {
            config.snat_ports = span;
        })?;
        self.has_snat_ports = true;
        Ok(())
    }

    /// Sets the bits that frontends need, whoever cleared them, and has an eye on those that nothing needs.
    pub(crate) fn repair<S: MapStore>(&mut self, store: &mut S, report: &mut ApplyReport) {
        let used: Vec<_> = self.uses.things().copied().collect();
        for bit in used {
            if let Err(source) = self.write(store, bit, true) {
                report.errors.push(source.into());
            }
        }
        (0..PORT_FILTER_ENTRIES).for_each(|slot| self.note_unwanted(slot));
    }

    /// Compares the map with what is held, and repairs; returns how many bits were different.
    pub(crate) fn audit<S: MapStore>(
        &mut self,
        store: &mut S,
        report: &mut ApplyReport,
    ) -> StoreResult<usize> {
        let mut differences = 0;
        let mut found = PortSet::default();
        for (slot, held) in (0..).zip(&mut self.present) {
            store.read_ports(slot, found.filter_mut())?;
            let held = &mut held.filter_mut().words;
            for (held, found) in held.iter_mut().zip(found.filter().words) {
                differences += (*held ^ found).count_ones() as usize;
                *held = found;
            }
        }
        if differences > 0 {
            self.has_snat_ports = false;
        }
        self.repair(store, report);
        Ok(differences)
    }

    /// A round over all flows is over, which has met flows through these ports: clears the bits that nobody has wanted or
    /// needed all the while.
    pub(crate) fn round_over<S: MapStore>(
        &mut self,
        store: &mut S,
        met: &FlowPorts,
    ) -> StoreResult<()> {
        let mut result = Ok(());
        for bit in std::mem::take(&mut self.idle) {
            if self.is_wanted(bit) {
                continue;
            }
            let cleared = match met.of_slot(bit.slot).contains(bit.port) {
                true => None,
                false => Some(self.write(store, bit, false)),
            };
            match cleared {
                Some(Ok(())) => {}
                None => {
                    self.idle.insert(bit);
                }
                Some(Err(error)) => {
                    self.idle.insert(bit);
                    result = Err(error);
                }
            }
        }
        self.idle.extend(self.idle_lately.drain());
        result
    }

    fn is_wanted(&self, bit: Bit) -> bool {
        match bit.slot {
            SNAT_PORTS_SLOT => self.snat_ports.contains(bit.port),
            _ => self.uses.contains(&bit),
        }
    }

    /// Notes the bits of an element that are set and that nobody wants.
    fn note_unwanted(&mut self, slot: u32) {
        for port in self.present[slot as usize].ports() {
            let bit = Bit { slot, port };
            if !self.is_wanted(bit) && !self.idle.contains(&bit) {
                self.idle_lately.insert(bit);
            }
        }
    }

    fn write<S: MapStore>(&mut self, store: &mut S, bit: Bit, on: bool) -> StoreResult<()> {
        let present = &mut self.present[bit.slot as usize];
        if present.contains(bit.port) != on {
            store.write_port(bit.slot, bit.port, on)?;
            present.set(bit.port, on);
        }
        Ok(())
    }
}
