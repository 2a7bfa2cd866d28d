//! The maps as the dataplane sees them: trait [`MapStore`], real maps or the in-memory fake of the
//! tests behind it. Every operation is one the agent needs, typed by the map layouts.

use std::{io, ops::Range};

use lb_common::{
    V4, V6,
    abi::{
        Affinity, AffinityKey, Backend, BackendState, Config, PortFilter, Service, ServiceKey,
        SrcRangeKey,
    },
    flow_table::{Meta, ReapItem, Record, RecordNumber, TableFamily},
};

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The map has no room for another entry (E2BIG, ENOSPC; ENOMEM of maps that are not preallocated).
    #[error("map {map} is full; raise its size by a flag")]
    Full {
        /// The map's name, see [`lb_common::names::maps`].
        map: &'static str,
    },
    /// The kernel refuses for another reason.
    #[error("cannot access map {map}")]
    Io {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// The map that failed.
    pub(crate) const fn map(&self) -> &'static str {
        match self {
            StoreError::Full { map } | StoreError::Io { map, .. } => map,
        }
    }
    /// Whether the map is full.
    pub(crate) const fn is_full(&self) -> bool {
        matches!(self, StoreError::Full { .. })
    }
}

/// What a map operation returns.
pub(crate) type StoreResult<T> = Result<T, StoreError>;

/// Sizes of the maps, fixed when they are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capacities {
    /// Elements of `service_stats`: service ids of both families together, 0 included.
    pub(crate) max_services: u32,
    /// Elements of each of `backends_*`; id 0 is never used.
    pub(crate) max_backends: u32,
    /// Rows of `selection`: its blocks × 1,024.
    pub(crate) selection_rows: u32,
}

/// What the reaper is to do with a family's flows: at most [`lb_common::flow_table::REAP_ITEMS`] records and lines.
#[derive(Clone, Debug)]
pub(crate) struct Reap<'a> {
    /// Records to delete, if they are still as they were seen.
    pub(crate) items: &'a [ReapItem],
    /// Index lines to sweep.
    pub(crate) lines: Range<u32>,
    /// Reservations that are older than so many units of stamps go.
    pub(crate) reserved_age: u32,
}

/// What it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Reaped {
    /// Records deleted.
    pub(crate) deleted: u32,
    /// Index entries swept.
    pub(crate) swept: u32,
}

/// The maps of one family.
pub(crate) trait FamilyMaps<F: TableFamily> {
    /// Writes an entry of `services_*`, new or not, by one update.
    fn write_service(&mut self, key: &ServiceKey<F>, value: &Service) -> StoreResult<()>;
    /// Removes an entry of `services_*`; `false`: there was none.
    fn remove_service(&mut self, key: &ServiceKey<F>) -> StoreResult<bool>;
    /// Shows every entry of `services_*`.
    fn each_service(&self, each: &mut dyn FnMut(&ServiceKey<F>, &Service)) -> StoreResult<()>;

    /// Writes an element of `backends_*` whole, through the mapping: for an id that nothing refers to.
    fn write_backend(&mut self, id: u32, backend: &Backend<F>) -> StoreResult<()>;
    /// Writes [`Backend::state`] of an element in place, by one aligned 32-bit store.
    fn write_backend_state(&mut self, id: u32, state: BackendState) -> StoreResult<()>;
    /// Reads an element of `backends_*` through the mapping.
    fn backend(&self, id: u32) -> StoreResult<Backend<F>>;

    /// Removes the entries of `affinity_*` that `keep` refuses; returns how many.
    fn retain_affinity(
        &mut self,
        keep: &mut dyn FnMut(&AffinityKey<F>, &Affinity) -> bool,
    ) -> StoreResult<usize>;

    /// Writes an entry of the trie `src_ranges_*`.
    fn write_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<()>;
    /// Removes an entry of `src_ranges_*`; `false`: there was none.
    fn remove_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<bool>;
    /// Shows every entry of `src_ranges_*`.
    fn each_source_range(&self, each: &mut dyn FnMut(&SrcRangeKey<F>)) -> StoreResult<()>;

    /// Buckets of the table of flows.
    fn flow_buckets(&self) -> u32;
    /// Lines of its index.
    fn flow_lines(&self) -> u32;
    /// Shows the records of some buckets as they lie in memory: what is written meanwhile may be missed, or seen half.
    fn each_flow(&self, buckets: Range<u32>, each: &mut impl FnMut(RecordNumber, Meta, &Record<F>));
    /// Shows the entries of some index lines in the same way.
    fn each_index_entry(&self, lines: Range<u32>, each: &mut impl FnMut(u64));
}

/// Every map that the dataplane writes.
pub(crate) trait MapStore {
    /// The maps of one family.
    type Maps<F: TableFamily>: FamilyMaps<F>;

    /// IPv4's maps, to read.
    fn v4(&self) -> &Self::Maps<V4>;
    /// IPv4's maps, to write.
    fn v4_mut(&mut self) -> &mut Self::Maps<V4>;
    /// IPv6's maps, to read.
    fn v6(&self) -> &Self::Maps<V6>;
    /// IPv6's maps, to write.
    fn v6_mut(&mut self) -> &mut Self::Maps<V6>;

    /// The sizes of the maps.
    fn capacities(&self) -> Capacities;

    /// Writes rows of the selection slab through the mapping; a range may span blocks. The rows must be
    /// visible to programs before any later update of a service entry.
    fn write_rows(&mut self, offset: u32, rows: &[u32]) -> StoreResult<()>;
    /// Reads rows of the selection slab.
    fn read_rows(&self, offset: u32, rows: &mut [u32]) -> StoreResult<()>;

    /// Sets or clears one bit of `port_filter` through the mapping, by one aligned 32-bit store. `slot`
    /// is the element of a protocol ([`lb_common::abi::port_filter_slot`]).
    fn write_port(&mut self, slot: u32, port: u16, on: bool) -> StoreResult<()>;
    /// Reads one element of `port_filter`.
    fn read_ports(&self, slot: u32, ports: &mut PortFilter) -> StoreResult<()>;

    /// Changes the entry of `config` in place of other writers: reads it, lets `change` alter it, writes
    /// it back if it differs; the store locks, because others own other fields.
    fn update_config(&mut self, change: &mut dyn FnMut(&mut Config)) -> StoreResult<()>;

    /// Zeroes an element of `service_stats` on every CPU.
    fn zero_service_stats(&mut self, id: u32) -> StoreResult<()>;

    /// Deletes flows of a family, by the program that does it under their locks.
    fn reap<F: StoreFamily>(&mut self, reap: &Reap<'_>) -> StoreResult<Reaped>;

    /// Waits until every program that was running has ended: an RCU grace period, by one update of a
    /// map-in-map that nothing reads.
    fn barrier(&mut self) -> StoreResult<()>;
}

/// A family, and how to reach its maps in a store.
pub(crate) trait StoreFamily: TableFamily {
    /// The maps of this family, to read.
    fn maps<S: MapStore>(store: &S) -> &S::Maps<Self>;
    /// The maps of this family, to write.
    fn maps_mut<S: MapStore>(store: &mut S) -> &mut S::Maps<Self>;
    /// Network and mask of this family's ClusterIPs in `config`.
    fn cluster_words(config: &mut Config) -> (&mut Self::Addr, &mut Self::Addr);
}

impl StoreFamily for V4 {
    fn maps<S: MapStore>(store: &S) -> &S::Maps<V4> {
        store.v4()
    }
    fn maps_mut<S: MapStore>(store: &mut S) -> &mut S::Maps<V4> {
        store.v4_mut()
    }
    fn cluster_words(config: &mut Config) -> (&mut Self::Addr, &mut Self::Addr) {
        (&mut config.cluster_net_v4, &mut config.cluster_mask_v4)
    }
}

impl StoreFamily for V6 {
    fn maps<S: MapStore>(store: &S) -> &S::Maps<V6> {
        store.v6()
    }
    fn maps_mut<S: MapStore>(store: &mut S) -> &mut S::Maps<V6> {
        store.v6_mut()
    }
    fn cluster_words(config: &mut Config) -> (&mut Self::Addr, &mut Self::Addr) {
        (&mut config.cluster_net_v6, &mut config.cluster_mask_v6)
    }
}
