//! The maps in memory, for tests: counts and records writes, fails on demand, and after every write
//! can check that no published frontend refers to anything half made.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    ops::Range,
    rc::Rc,
};

use lb_common::{
    V4, V6,
    abi::{
        Affinity, AffinityKey, Backend, BackendState, Config, PORT_FILTER_ENTRIES,
        PORT_FILTER_WORDS, PortFilter, Service, ServiceKey, SrcRangeKey, Transport,
        port_filter_slot, service_check,
    },
    flow_table::{
        self, Geometry, INDEX_WAYS, LineCells as _, Memory, Meta, Record, RecordNumber, Seeds,
        TableFamily, WAYS, native,
    },
    names::maps,
};

use super::{
    frontend_map::FrontendMap,
    model,
    store::{Capacities, FamilyMaps, MapStore, Reap, Reaped, StoreError, StoreFamily, StoreResult},
};

/// A write, as recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    WriteService(IpAddr, u16),
    RemoveService(IpAddr, u16),
    WriteBackend(u32),
    WriteState(u32),
    WriteRows(u32, u32),
    WriteRange,
    RemoveRange,
    VoidAffinity,
    WritePort(u16, bool),
    WriteConfig,
    ZeroStats(u32),
    Reap(usize),
    Barrier,
}

/// Endpoints that a frontend may lead to, set by a test.
pub(crate) type Allowed = HashMap<(IpAddr, u16, u8), HashSet<(IpAddr, u16)>>;

/// What the maps of a family and the store share: the record, the injected failures.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) ops: Vec<Op>,
    /// Failures to come: `Some(n)` fails the n-th write from now, once.
    pub(crate) fail_in: Vec<u32>,
    /// Where frontends may lead; checked after every write once set.
    pub(crate) allowed: Option<Allowed>,
    pub(crate) rows: Vec<u32>,
    pub(crate) filter: [Box<PortFilter>; PORT_FILTER_ENTRIES as usize],
}

impl Journal {
    fn note(&mut self, map: &'static str, op: Op) -> StoreResult<()> {
        let mut fails = false;
        self.fail_in.retain_mut(|n| {
            if *n == 0 {
                fails = true;
                return false;
            }
            *n -= 1;
            true
        });
        if fails {
            return Err(StoreError::Io {
                map,
                source: io::Error::from_raw_os_error(5),
            });
        }
        self.ops.push(op);
        Ok(())
    }
}

pub(crate) type SharedJournal = std::rc::Rc<std::cell::RefCell<Journal>>;

/// A table of a few flows.
const FLOWS: Geometry = Geometry {
    bucket_mask: 15,
    line_mask: 31,
    seeds: Seeds {
        offset: 0x5bd1_e995_9e37_79b9,
        factors: [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
        ],
    },
};

/// The maps of one family.
#[derive(Debug, Clone)]
pub(crate) struct FakeFamily<F: TableFamily> {
    pub(super) services: FrontendMap<F, Service>,
    pub(crate) backends: Vec<Backend<F>>,
    pub(crate) affinity: Vec<(AffinityKey<F>, Affinity)>,
    pub(crate) ranges: Vec<SrcRangeKey<F>>,
    /// Shared with what a restart finds.
    pub(crate) flows: Rc<native::Table>,
    pub(crate) max_services: usize,
    journal: SharedJournal,
}

/// All maps in memory; a clone is what a restart finds.
#[derive(Debug, Clone)]
pub(crate) struct FakeStore {
    pub(crate) sizes: Capacities,
    pub(crate) v4: FakeFamily<V4>,
    pub(crate) v6: FakeFamily<V6>,
    pub(crate) config: Config,
    /// What programs take for this moment.
    pub(crate) stamp: u32,
    pub(crate) journal: SharedJournal,
}

impl<F: TableFamily> FakeFamily<F> {
    fn new(sizes: &Capacities, journal: &SharedJournal) -> Self {
        FakeFamily {
            services: FrontendMap::default(),
            backends: vec![Backend::default(); sizes.max_backends as usize],
            affinity: Vec::new(),
            ranges: Vec::new(),
            flows: Rc::new(native::Table::new::<F>(FLOWS)),
            max_services: sizes.max_services as usize,
            journal: journal.clone(),
        }
    }

    fn note(&self, map: [&'static str; 2], op: Op) -> StoreResult<()> {
        self.journal.borrow_mut().note(map[F::INDEX], op)
    }
}

impl FakeStore {
    pub(crate) fn new(sizes: Capacities) -> Self {
        let journal = SharedJournal::new(std::cell::RefCell::new(Journal {
            ops: Vec::new(),
            fail_in: Vec::new(),
            allowed: None,
            rows: vec![0; sizes.selection_rows as usize],
            filter: std::array::from_fn(|_| {
                Box::new(PortFilter {
                    words: [0; PORT_FILTER_WORDS],
                })
            }),
        }));
        FakeStore {
            sizes,
            v4: FakeFamily::new(&sizes, &journal),
            v6: FakeFamily::new(&sizes, &journal),
            config: Config::default(),
            stamp: 0,
            journal,
        }
    }

    pub(crate) fn small() -> Self {
        FakeStore::new(Capacities {
            max_services: 64,
            max_backends: 128,
            selection_rows: 16_384,
        })
    }

    /// The record since the last call.
    pub(crate) fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.journal.borrow_mut().ops)
    }

    pub(crate) fn fail_in(&self, writes: u32) {
        self.journal.borrow_mut().fail_in.push(writes);
    }

    pub(crate) fn port_bit(&self, slot: usize, port: u16) -> bool {
        self.journal.borrow().port_bit(slot, port)
    }

    pub(crate) fn rows(&self, offset: u32, len: u32) -> Vec<u32> {
        self.journal.borrow().rows[offset as usize..(offset + len) as usize].to_vec()
    }

    fn check(&self) {
        self.v4.check();
        self.v6.check();
    }
}

impl Journal {
    fn port_bit(&self, slot: usize, port: u16) -> bool {
        self.filter[slot].words[usize::from(port) / 32] >> (port % 32) & 1 == 1
    }
}

impl<F: TableFamily> FakeFamily<F> {
    /// Panics unless every published frontend refers to whole tables of its own backends.
    fn check(&self) {
        let journal = self.journal.borrow();
        let Some(allowed) = &journal.allowed else {
            return;
        };
        for (key, service) in self.services.iter() {
            assert_eq!(service.check, service_check(&key, service));
            if key.proto == 0 {
                continue;
            }
            let slot = port_filter_slot(Transport::from_proto(key.proto).unwrap()) as usize;
            assert!(
                journal.port_bit(slot, key.port.to_host()),
                "port filter hides a frontend"
            );
            let place = (model::to_ip::<F>(&key.addr), key.port.to_host(), key.proto);
            for table in [service.cluster, service.local] {
                for row in table.offset..table.offset + table.len {
                    let backend = self.backends[journal.rows[row as usize] as usize];
                    assert_eq!(
                        backend.service_id, service.id,
                        "row {row} of {place:?} names another's backend"
                    );
                    let target = (model::to_ip::<F>(&backend.addr), backend.port.to_host());
                    assert!(
                        allowed.get(&place).is_some_and(|a| a.contains(&target)),
                        "{place:?} leads to {target:?}"
                    );
                }
            }
        }
    }
}

fn full<T>(map: [&'static str; 2], index: usize) -> StoreResult<T> {
    Err(StoreError::Full { map: map[index] })
}

impl<F: TableFamily> FamilyMaps<F> for FakeFamily<F> {
    fn write_service(&mut self, key: &ServiceKey<F>, value: &Service) -> StoreResult<()> {
        self.note(
            maps::SERVICES,
            Op::WriteService(model::to_ip::<F>(&key.addr), key.port.to_host()),
        )?;
        if !self.services.contains_key(key) && self.services.len() >= self.max_services {
            return full(maps::SERVICES, F::INDEX);
        }
        self.services.insert(key, *value);
        self.check();
        Ok(())
    }
    fn remove_service(&mut self, key: &ServiceKey<F>) -> StoreResult<bool> {
        self.note(
            maps::SERVICES,
            Op::RemoveService(model::to_ip::<F>(&key.addr), key.port.to_host()),
        )?;
        let was = self.services.remove(key).is_some();
        self.check();
        Ok(was)
    }
    fn each_service(&self, each: &mut dyn FnMut(&ServiceKey<F>, &Service)) -> StoreResult<()> {
        self.services.iter().for_each(|(k, v)| each(&k, v));
        Ok(())
    }
    fn write_backend(&mut self, id: u32, backend: &Backend<F>) -> StoreResult<()> {
        self.note(maps::BACKENDS, Op::WriteBackend(id))?;
        self.backends[id as usize] = *backend;
        self.check();
        Ok(())
    }
    fn write_backend_state(&mut self, id: u32, state: BackendState) -> StoreResult<()> {
        self.note(maps::BACKENDS, Op::WriteState(id))?;
        self.backends[id as usize].state = state;
        Ok(())
    }
    fn backend(&self, id: u32) -> StoreResult<Backend<F>> {
        Ok(self.backends[id as usize])
    }
    fn retain_affinity(
        &mut self,
        keep: &mut dyn FnMut(&AffinityKey<F>, &Affinity) -> bool,
    ) -> StoreResult<usize> {
        self.note(maps::AFFINITY, Op::VoidAffinity)?;
        let before = self.affinity.len();
        self.affinity.retain(|(k, v)| keep(k, v));
        Ok(before - self.affinity.len())
    }
    fn write_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<()> {
        self.note(maps::SRC_RANGES, Op::WriteRange)?;
        if !self.ranges.contains(key) {
            self.ranges.push(*key);
        }
        Ok(())
    }
    fn remove_source_range(&mut self, key: &SrcRangeKey<F>) -> StoreResult<bool> {
        self.note(maps::SRC_RANGES, Op::RemoveRange)?;
        let before = self.ranges.len();
        self.ranges.retain(|k| k != key);
        Ok(before != self.ranges.len())
    }
    fn each_source_range(&self, each: &mut dyn FnMut(&SrcRangeKey<F>)) -> StoreResult<()> {
        self.ranges.iter().for_each(each);
        Ok(())
    }
    fn flow_buckets(&self) -> u32 {
        FLOWS.bucket_mask + 1
    }
    fn flow_lines(&self) -> u32 {
        FLOWS.line_mask + 1
    }
    fn each_flow(
        &self,
        buckets: Range<u32>,
        each: &mut impl FnMut(RecordNumber, Meta, &Record<F>),
    ) {
        let table = &*self.flows;
        for index in buckets {
            let bucket = Memory::<F>::bucket(&table, index).unwrap();
            for way in 0..WAYS {
                let meta = Meta(flow_table::BucketCells::<F>::meta(bucket, way));
                if !meta.is_free() {
                    let cells = flow_table::BucketCells::<F>::record(bucket, way).unwrap();
                    let record = flow_table::RecordCells::<F>::read(cells);
                    each(RecordNumber::new(index, way), meta, &record);
                }
            }
        }
    }
    fn each_index_entry(&self, lines: Range<u32>, each: &mut impl FnMut(u64)) {
        for index in lines {
            let line = Memory::<F>::line(&&*self.flows, index).unwrap();
            (0..INDEX_WAYS)
                .map(|way| line.entry(way))
                .filter(|entry| *entry != 0)
                .for_each(&mut *each);
        }
    }
}

impl MapStore for FakeStore {
    type Maps<F: TableFamily> = FakeFamily<F>;
    fn v4(&self) -> &FakeFamily<V4> {
        &self.v4
    }
    fn v4_mut(&mut self) -> &mut FakeFamily<V4> {
        &mut self.v4
    }
    fn v6(&self) -> &FakeFamily<V6> {
        &self.v6
    }
    fn v6_mut(&mut self) -> &mut FakeFamily<V6> {
        &mut self.v6
    }
    fn capacities(&self) -> Capacities {
        self.sizes
    }
    fn write_rows(&mut self, offset: u32, rows: &[u32]) -> StoreResult<()> {
        self.journal.borrow_mut().note(
            maps::SELECTION,
            Op::WriteRows(offset, u32::try_from(rows.len()).unwrap()),
        )?;
        self.journal.borrow_mut().rows[offset as usize..offset as usize + rows.len()]
            .copy_from_slice(rows);
        self.check();
        Ok(())
    }
    fn read_rows(&self, offset: u32, rows: &mut [u32]) -> StoreResult<()> {
        rows.copy_from_slice(
            &self.journal.borrow().rows[offset as usize..offset as usize + rows.len()],
        );
        Ok(())
    }
    fn write_port(&mut self, slot: u32, port: u16, on: bool) -> StoreResult<()> {
        let mut journal = self.journal.borrow_mut();
        journal.note(maps::PORT_FILTER, Op::WritePort(port, on))?;
        let word = &mut journal.filter[slot as usize].words[usize::from(port) / 32];
        *word = *word & !(1 << (port % 32)) | u32::from(on) << (port % 32);
        Ok(())
    }
    fn read_ports(&self, slot: u32, ports: &mut PortFilter) -> StoreResult<()> {
        *ports = *self.journal.borrow().filter[slot as usize];
        Ok(())
    }
    fn update_config(&mut self, change: &mut dyn FnMut(&mut Config)) -> StoreResult<()> {
        let mut config = self.config;
        change(&mut config);
        if config != self.config {
            self.journal
                .borrow_mut()
                .note(maps::CONFIG, Op::WriteConfig)?;
            self.config = config;
        }
        Ok(())
    }
    fn zero_service_stats(&mut self, id: u32) -> StoreResult<()> {
        self.journal
            .borrow_mut()
            .note(maps::SERVICE_STATS, Op::ZeroStats(id))
    }
    fn reap<F: StoreFamily>(&mut self, reap: &Reap<'_>) -> StoreResult<Reaped> {
        self.journal
            .borrow_mut()
            .note(maps::REAP, Op::Reap(reap.items.len()))?;
        let table = &*F::maps(self).flows;
        let mut reaped = Reaped::default();
        for item in reap.items {
            let number = RecordNumber(item.number);
            let deleted = flow_table::delete_seen::<F, _>(&table, number, item.check, item.stamp);
            reaped.deleted += u32::from(deleted);
        }
        for line in reap.lines.clone() {
            reaped.swept += flow_table::sweep::<F, _>(&table, line, self.stamp, reap.reserved_age);
        }
        Ok(reaped)
    }
    fn barrier(&mut self) -> StoreResult<()> {
        self.journal.borrow_mut().note(maps::BARRIER, Op::Barrier)
    }
}
