//! Ports that frontends use → bits of `port_filter`. A bit is set before the first entry that needs it is
//! written and cleared after the last one is gone. The ports for source translation keep theirs.

use lb_common::{
    abi::{
        PORT_FILTER_ENTRIES, PORT_FILTER_WORDS, PortFilter, PortRange, ServiceKey, Transport,
        port_filter_slot,
    },
    family::Family,
};

use super::{
    report::ApplyReport,
    store::{MapStore, StoreResult},
    uses::Uses,
};

const _: () = assert!(PORT_FILTER_WORDS * 32 == 65_536);

/// A bit of `port_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Bit {
    /// The element, which stands for a protocol.
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
    words: [Box<PortFilter>; PORT_FILTER_ENTRIES as usize],
    /// Entries of `services_*` of both families.
    uses: Uses<Bit>,
    /// Ports for source translation.
    snat_ports: PortRange,
    /// Whether these are in `port_filter` and `config`.
    has_snat_ports: bool,
}

impl UsedPorts {
    /// Reads the map. Who needs its bits is told by [`UsedPorts::adopt`].
    pub(crate) fn read<S: MapStore>(store: &S, snat_ports: PortRange) -> StoreResult<Self> {
        let mut words = std::array::from_fn(|_| {
            Box::new(PortFilter {
                words: [0; PORT_FILTER_WORDS],
            })
        });
        for (slot, words) in (0..).zip(&mut words) {
            store.read_ports(slot, words)?;
        }
        Ok(UsedPorts {
            words,
            uses: Uses::default(),
            snat_ports,
            has_snat_ports: false,
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

    /// An entry is lost, and may be written again at once: its use ends, the bit stays for the flows through it.
    /// Where nobody acquires it again, the next [`UsedPorts::repair`] clears it.
    pub(crate) fn forget<F: Family>(&mut self, key: &ServiceKey<F>) {
        if let Some(bit) = Bit::of(key) {
            self.uses.release(&bit);
        }
    }

    /// Clears the bit for an entry that is gone, if no other needs it.
    pub(crate) fn release<F: Family, S: MapStore>(
        &mut self,
        store: &mut S,
        key: &ServiceKey<F>,
    ) -> StoreResult<()> {
        match Bit::of(key) {
            Some(bit) if self.uses.release(&bit) => self.clear(store, bit),
            _ => Ok(()),
        }
    }

    /// Writes the ports for source translation, once.
    pub(crate) fn write_snat_ports<S: MapStore>(&mut self, store: &mut S) -> StoreResult<()> {
        if self.has_snat_ports {
            return Ok(());
        }
        let range = self.snat_ports;
        for slot in 0..PORT_FILTER_ENTRIES {
            for port in range.ports() {
                self.write(store, Bit { slot, port }, true)?;
            }
        }
        store.update_config(&mut |config| {
            config.snat_ports = range;
        })?;
        self.has_snat_ports = true;
        Ok(())
    }

    /// Sets the bits that frontends need and clears those that nothing needs, whoever changed them.
    pub(crate) fn repair<S: MapStore>(&mut self, store: &mut S, report: &mut ApplyReport) {
        let used: Vec<_> = self.uses.things().copied().collect();
        for bit in used {
            if let Err(source) = self.write(store, bit, true) {
                report.errors.push(source.into());
            }
        }
        for slot in 0..PORT_FILTER_ENTRIES {
            for bit in (0..=u16::MAX).map(|port| Bit { slot, port }) {
                if self.is_set(bit)
                    && let Err(source) = self.clear(store, bit)
                {
                    report.errors.push(source.into());
                }
            }
        }
    }

    /// Compares the map with what is held, and repairs; returns how many bits were different.
    pub(crate) fn audit<S: MapStore>(
        &mut self,
        store: &mut S,
        report: &mut ApplyReport,
    ) -> StoreResult<usize> {
        let mut differences = 0;
        let mut present = self.words[0].clone();
        for (slot, held) in (0..).zip(&mut self.words) {
            store.read_ports(slot, &mut present)?;
            for (held, present) in held.words.iter_mut().zip(present.words) {
                differences += (*held ^ present).count_ones() as usize;
                *held = present;
            }
        }
        if differences > 0 {
            self.has_snat_ports = false;
        }
        self.repair(store, report);
        Ok(differences)
    }

    fn is_set(&self, bit: Bit) -> bool {
        self.words[bit.slot as usize].words[usize::from(bit.port) / 32] >> (bit.port % 32) & 1 == 1
    }

    fn write<S: MapStore>(&mut self, store: &mut S, bit: Bit, on: bool) -> StoreResult<()> {
        if self.is_set(bit) != on {
            store.write_port(bit.slot, bit.port, on)?;
            self.words[bit.slot as usize].words[usize::from(bit.port) / 32] ^= 1 << (bit.port % 32);
        }
        Ok(())
    }

    /// Clears a bit that neither a frontend nor source translation needs.
    fn clear<S: MapStore>(&mut self, store: &mut S, bit: Bit) -> StoreResult<()> {
        if self.snat_ports.contains(bit.port) || self.uses.contains(&bit) {
            return Ok(());
        }
        self.write(store, bit, false)
    }
}
