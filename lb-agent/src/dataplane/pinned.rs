//! The pinned maps as a [`MapStore`].

use std::{io, mem::offset_of, ops::Range, path::Path};

use lb_common::{
    V4, V6,
    abi::{
        Affinity, AffinityKey, Backend, BackendState, Config, PortFilter, SELECTION_BLOCK_ROWS,
        Service, ServiceKey, SrcRangeKey,
    },
    flow_table::{Meta, Record, RecordNumber, TableFamily},
};

use super::store::{
    Capacities, FamilyMaps, MapStore, Reap, Reaped, StoreError, StoreFamily, StoreResult,
};
use crate::bpf::{
    barrier::Barrier,
    config::ConfigEntry,
    maps::{FamilyPins, MapError, MapResult, Maps, Reaper},
};

impl From<MapError> for StoreError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Io { map, source, .. } if is_full(&source) => StoreError::Full { map },
            MapError::Io { map, source, .. } => StoreError::Io { map, source },
            MapError::Unfit { map, .. } => StoreError::Io {
                map,
                source: io::Error::other(error),
            },
            MapError::Missing { .. } | MapError::Open { .. } => StoreError::Io {
                map: "pinned",
                source: io::Error::other(error),
            },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM)
    )
}

impl<F: TableFamily> FamilyMaps<F> for FamilyPins<F> {
    fn write_service(&mut self, key: &ServiceKey<F>, value: &Service) -> StoreResult<()> {
        Ok(self.services.update(key, value)?)
    }
    fn remove_service(&mut self, key: &ServiceKey<F>) -> StoreResult<bool> {
        Ok(self.services.delete(key)?)
    }
    fn each_service(&self, each: &mut dyn FnMut(&ServiceKey<F>, &Service)) -> StoreResult<()> {
        Ok(self.services.each(each)?)
    }
    fn write_backend(&mut self, id: u32, backend: &Backend<F>) -> StoreResult<()> {
        Ok(self.backends.write(id, backend)?)
    }
    fn write_backend_state(&mut self, id: u32, state: BackendState) -> StoreResult<()> {
        Ok(self
            .backends
            .write_word(id, offset_of!(Backend<F>, state) / 4, state.word())?)
    }
    fn backend(&self, id: u32) -> StoreResult<Backend<F>> {
        Ok(self.backends.read(id)?)
    }
    fn retain_affinity(
        &mut self,
        keep: &mut dyn FnMut(&AffinityKey<F>, &Affinity) -> bool,
    ) -> StoreResult<usize> {
        let mut gone = Vec::new();
        self.affinity.each(|key, value| {
            if !keep(key, value) {
                gone.push(*key);
            }
        })?;
        Ok(self.affinity.delete_many(&gone)?)
    }
    fn write_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<()> {
        Ok(self.src_ranges.update(key, &1)?)
    }
    fn remove_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<bool> {
        Ok(self.src_ranges.delete(key)?)
    }
    fn each_source_range(&self, each: &mut dyn FnMut(&SrcRangeKey<F>)) -> StoreResult<()> {
        Ok(self.src_ranges.each(|key, _| each(key))?)
    }
    fn flow_buckets(&self) -> u32 {
        self.flows.buckets()
    }
    fn flow_lines(&self) -> u32 {
        self.flows.lines()
    }
    fn each_flow(
        &self,
        buckets: Range<u32>,
        each: &mut impl FnMut(RecordNumber, Meta, &Record<F>),
    ) {
        self.flows.each(buckets, each);
    }
    fn each_index_entry(&self, lines: Range<u32>, each: &mut impl FnMut(u64)) {
        self.flows.each_entry(lines, each);
    }
}

/// The pinned maps as the dataplane writes them.
#[derive(Debug)]
pub(crate) struct PinnedMaps {
    maps: Maps,
    config: ConfigEntry,
    barrier: Barrier,
    reaper: Reaper,
}

impl PinnedMaps {
    /// A store over the maps below a pin directory; `config` is shared with whoever writes other fields.
    pub(crate) fn open(dir: &Path, config: ConfigEntry) -> MapResult<PinnedMaps> {
        Ok(PinnedMaps {
            maps: Maps::open_to_write(dir)?,
            config,
            barrier: Barrier::new()?,
            reaper: Reaper::open(dir)?,
        })
    }
    pub(crate) const fn maps(&self) -> &Maps {
        &self.maps
    }
}

/// Rows of a block, as a number to divide by.
#[expect(clippy::cast_possible_truncation, reason = "1,024")]
const BLOCK: u32 = SELECTION_BLOCK_ROWS as u32;

impl MapStore for PinnedMaps {
    type Maps<F: TableFamily> = FamilyPins<F>;

    fn v4(&self) -> &FamilyPins<V4> {
        &self.maps.v4
    }
    fn v4_mut(&mut self) -> &mut FamilyPins<V4> {
        &mut self.maps.v4
    }
    fn v6(&self) -> &FamilyPins<V6> {
        &self.maps.v6
    }
    fn v6_mut(&mut self) -> &mut FamilyPins<V6> {
        &mut self.maps.v6
    }

    fn capacities(&self) -> Capacities {
        Capacities {
            max_services: self.maps.service_stats.max_entries(),
            max_backends: self
                .maps
                .v4
                .backends
                .max_entries()
                .min(self.maps.v6.backends.max_entries()),
            selection_rows: self.maps.selection.max_entries().saturating_mul(BLOCK),
        }
    }

    fn write_rows(&mut self, offset: u32, rows: &[u32]) -> StoreResult<()> {
        for (row, value) in (offset..).zip(rows) {
            self.maps
                .selection
                .write_word(row / BLOCK, (row % BLOCK) as usize, *value)?;
        }
        Ok(())
    }
    fn read_rows(&self, offset: u32, rows: &mut [u32]) -> StoreResult<()> {
        for (row, value) in (offset..).zip(rows) {
            *value = self
                .maps
                .selection
                .read_word(row / BLOCK, (row % BLOCK) as usize)?;
        }
        Ok(())
    }

    fn write_port(&mut self, slot: u32, port: u16, on: bool) -> StoreResult<()> {
        let (word, bit) = (usize::from(port / 32), 1u32 << (port % 32));
        let before = self.maps.port_filter.read_word(slot, word)?;
        let after = if on { before | bit } else { before & !bit };
        Ok(self.maps.port_filter.write_word(slot, word, after)?)
    }
    fn read_ports(&self, slot: u32, ports: &mut PortFilter) -> StoreResult<()> {
        *ports = self.maps.port_filter.read(slot)?;
        Ok(())
    }

    fn update_config(&mut self, change: &mut dyn FnMut(&mut Config)) -> StoreResult<()> {
        Ok(self.config.update(change)?)
    }
    fn zero_service_stats(&mut self, id: u32) -> StoreResult<()> {
        Ok(self.maps.service_stats.zero(id)?)
    }
    fn reap<F: StoreFamily>(&mut self, reap: &Reap<'_>) -> StoreResult<Reaped> {
        let lines = reap.lines.clone();
        let [deleted, swept] = self
            .reaper
            .run(F::INDEX, reap.items, lines, reap.reserved_age)?;
        Ok(Reaped { deleted, swept })
    }
    fn barrier(&mut self) -> StoreResult<()> {
        Ok(self.barrier.wait()?)
    }
}
