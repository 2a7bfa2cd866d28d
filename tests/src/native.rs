//! The pipeline without a kernel: a packet in a `Vec`, flows in a table of the process's own, the other maps as hash maps.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use lb_common::abi::{
    Affinity, AffinityKey, Backend, Be16, Config, Counter, DropReason, Event, Fragment,
    FragmentKey, Interface, Service, ServiceKey, Transport, XdpDevice,
};
use lb_common::family::{Address, Family};
use lb_common::flow_table::native::{Cells, Table};
use lb_common::flow_table::{
    self as table, BucketCells, Change, Class, Derived, Found, Geometry, Head as _, Insert, Memory,
    Record, RecordNumber, Room, TableFamily, Tuple,
};
use lb_common::pipeline::flow::{Leg, look_by_derived, look_by_original};
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::packet::{NextHop, Offset, PacketBuf};
use lb_common::pipeline::rewrite::repair_directly;
use lb_common::pipeline::tables::Tables;
use lb_common::pipeline::verdict::{Hook, Outcome, Step};
use lb_common::pipeline::work::Work;
use lb_common::pipeline::{run_egress, run_ingress};
use lb_common::wire::checksum::{Diff, fold};
use lb_common::wire::{Header, W16};
use lb_common::{V4, V6};

use crate::cases::{At, Dataplane, FamilyMaps, SEEDS, Verdict, put_record, records};

/// Bytes of an skb that are accessible before `linear` is called.
const LINEAR: usize = 86;

/// A packet in a hook.
pub struct Packet {
    /// Its bytes, link-layer header first.
    pub bytes: Vec<u8>,
    /// Whether the kernel is still to finish its transport checksum.
    pub partial: bool,
    accessible: usize,
    ifindex: u32,
    routes: Rc<RefCell<HashMap<[u32; 4], NextHop>>>,
}

impl Packet {
    /// A packet as a hook sees it.
    pub fn new(bytes: &[u8], at: At, ifindex: u32, maps: &Native) -> Self {
        let accessible = if at == At::Xdp { bytes.len() } else { LINEAR };
        Packet {
            bytes: bytes.to_vec(),
            partial: maps.partial,
            accessible,
            ifindex,
            routes: maps.routes.clone(),
        }
    }
}

impl PacketBuf for Packet {
    fn header<T: Header>(&self, at: Offset) -> Option<&T> {
        let end = self.accessible.min(self.bytes.len());
        let from = self.bytes[..end].get(at.get() as usize..)?;
        T::ref_from_prefix(from).ok().map(|(header, _)| header)
    }
    fn header_mut<T: Header>(&mut self, at: Offset) -> Option<&mut T> {
        let end = self.accessible.min(self.bytes.len());
        let from = self.bytes[..end].get_mut(at.get() as usize..)?;
        T::mut_from_prefix(from).ok().map(|(header, _)| header)
    }
    fn linear(&mut self, len: u32) {
        self.accessible = self.accessible.max(len as usize);
    }
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }
    fn set_len(&mut self, len: u32) -> bool {
        self.bytes.resize(len as usize, 0);
        // What is added may lie anywhere.
        self.accessible = LINEAR;
        true
    }
    fn is_partial(&mut self, _check_at: Offset) -> bool {
        self.partial
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn repair_checksum<F: Family>(
        &mut self,
        at: Offset,
        addresses: Diff,
        data: Diff,
        udp: bool,
    ) -> bool {
        if !self.partial {
            return repair_directly(self, at, addresses.and(data), udp && !F::IS_V6, udp);
        }
        let Some(field) = self.header_mut::<W16>(at) else {
            return false;
        };
        let sum = u64::from(field.get().be) + u64::from(addresses.to_u32());
        field.set(Be16 { be: fold(sum) });
        true
    }
    fn route<F: Family>(
        &self,
        _saddr: &F::Addr,
        daddr: &F::Addr,
        _proto: u8,
        _ip_len: u32,
    ) -> Option<NextHop> {
        self.routes.borrow().get(&words(daddr)).copied()
    }
}

fn words<A: Address>(addr: &A) -> [u32; 4] {
    [0, 1, 2, 3].map(|i| addr.word(i))
}

/// The maps of one family.
pub struct Half<F: TableFamily> {
    /// `flows_*` and `flow_index_*`.
    pub table: Table,
    services: HashMap<ServiceKey<F>, Service>,
    backends: HashMap<u32, Backend<F>>,
    affinity: RefCell<HashMap<AffinityKey<F>, Affinity>>,
    ranges: HashSet<(u32, F::Addr)>,
    fragments: RefCell<HashMap<FragmentKey<F>, Fragment>>,
    node_addrs: HashSet<F::Addr>,
    work: RefCell<Work<F>>,
    /// Runs once, before the next insertion of a record: what another CPU does meanwhile.
    pub race: RefCell<Option<Race<F>>>,
}

/// What another CPU does between a lookup and the insertion of this record.
pub type Race<F> = Box<dyn FnOnce(&Half<F>, &Record<F>)>;

impl<F: TableFamily> Half<F> {
    fn new(buckets: u32, lines: u32) -> Self {
        let geometry = Geometry {
            bucket_mask: buckets - 1,
            line_mask: lines - 1,
            seeds: SEEDS,
        };
        Half {
            table: Table::new::<F>(geometry),
            services: HashMap::new(),
            backends: HashMap::new(),
            affinity: RefCell::default(),
            ranges: HashSet::new(),
            fragments: RefCell::default(),
            node_addrs: HashSet::new(),
            work: RefCell::default(),
            race: RefCell::default(),
        }
    }

    /// Keeps the bucket of a tuple locked while something is done.
    fn locked<T>(&self, tuple: &Tuple<F>, work: impl FnOnce() -> T) -> T {
        let table = &self.table;
        let geometry = Memory::<F>::geometry(&table);
        let first = tuple.hashed(&geometry.seeds).first(geometry.bucket_mask);
        let bucket = Memory::<F>::bucket(&table, first);
        let is_ours = bucket.is_some_and(|bucket| bucket.try_lock());
        let result = work();
        if let (true, Some(bucket)) = (is_ours, bucket) {
            bucket.unlock();
        }
        result
    }
}

/// All maps, clocks and routes of a node.
pub struct Native {
    /// IPv4.
    pub v4: Half<V4>,
    /// IPv6.
    pub v6: Half<V6>,
    /// Packets arrive with unfinished transport checksums.
    pub partial: bool,
    /// The time in units of stamps.
    pub stamp: Cell<u32>,
    /// The time in nanoseconds.
    pub now_ns: Cell<u64>,
    /// So many changes of the table to come find their bucket locked: another CPU works in it.
    pub busy: Cell<u32>,
    random: Cell<u32>,
    refusals: Cell<u32>,
    config: Config,
    rows: Vec<u32>,
    ports: HashSet<(u8, u16)>,
    snat_ports: HashSet<u16>,
    direct: RefCell<HashSet<u16>>,
    interfaces: HashMap<u32, Interface>,
    devices: HashMap<u32, XdpDevice>,
    routes: Rc<RefCell<HashMap<[u32; 4], NextHop>>>,
    counters: RefCell<HashMap<u32, u64>>,
}

impl Default for Native {
    /// A table that no case fills.
    fn default() -> Self {
        Native::with_table(64, 256)
    }
}

/// A family whose half of the maps can be named.
pub trait Halves: Ip {
    /// This family's half.
    fn half(maps: &Native) -> &Half<Self>;
    /// The same, to be filled.
    fn half_mut(maps: &mut Native) -> &mut Half<Self>;
}

impl Halves for V4 {
    fn half(maps: &Native) -> &Half<V4> {
        &maps.v4
    }
    fn half_mut(maps: &mut Native) -> &mut Half<V4> {
        &mut maps.v4
    }
}

impl Halves for V6 {
    fn half(maps: &Native) -> &Half<V6> {
        &maps.v6
    }
    fn half_mut(maps: &mut Native) -> &mut Half<V6> {
        &mut maps.v6
    }
}

impl Native {
    /// With tables of so many buckets and index lines, powers of two.
    pub fn with_table(buckets: u32, lines: u32) -> Self {
        Native {
            v4: Half::new(buckets, lines),
            v6: Half::new(buckets, lines),
            partial: false,
            stamp: Cell::default(),
            now_ns: Cell::default(),
            busy: Cell::default(),
            random: Cell::new(1),
            refusals: Cell::default(),
            config: Config::default(),
            rows: Vec::new(),
            ports: HashSet::new(),
            snat_ports: HashSet::new(),
            direct: RefCell::default(),
            interfaces: HashMap::new(),
            devices: HashMap::new(),
            routes: Rc::default(),
            counters: RefCell::default(),
        }
    }
    /// A change of the table, by as many tries as another CPU lets fail.
    fn change<F: Halves, T>(&self, tuple: &Tuple<F>, work: impl FnOnce() -> T) -> T {
        match self.busy.get() {
            0 => work(),
            busy => {
                self.busy.set(busy - 1);
                F::half(self).locked(tuple, work)
            }
        }
    }
    fn add(&self, number: u32) {
        *self.counters.borrow_mut().entry(number).or_default() += 1;
    }
    /// Runs every stage of a hook over a packet and leaves the result in it.
    fn stages<F: Halves>(&self, at: At, packet: &mut Packet) -> Outcome {
        let l3 = Offset::ETH;
        match at {
            At::Xdp => run_ingress::<F, _, _>(packet, &self, l3, Hook::Xdp),
            At::External => run_ingress::<F, _, _>(packet, &self, l3, Hook::External),
            At::Pod => run_ingress::<F, _, _>(packet, &self, l3, Hook::Pod),
            At::Out => run_egress::<F, _, _>(packet, &self, l3),
        }
    }
}

fn record<F: TableFamily>(words: &F::Words) -> Record<F> {
    let words = words.as_ref();
    Record::from_words(|i| words.get(i).copied().unwrap_or(0))
}

impl<'a, F: Halves> Tables<F> for &'a Native {
    type Cells = Cells<'a, AtomicU64>;
    type Scratch = RefMut<'a, Work<F>>;

    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool {
        self.ports.contains(&(transport.proto(), port.to_host()))
    }
    fn is_snat_port(&self, port: Be16) -> bool {
        self.snat_ports.contains(&port.to_host())
    }
    fn is_direct_port(&self, port: Be16) -> bool {
        self.direct.borrow().contains(&port.to_host())
    }
    fn note_direct_port(&self, port: Be16) {
        self.direct.borrow_mut().insert(port.to_host());
    }
    fn flow(&self, original: &Tuple<F>) -> Option<Found<F, Self::Cells>> {
        let table = &F::half(self).table;
        table::find(&table, original, original.hashed(&SEEDS))
    }
    fn flow_by(&self, derived: &Tuple<F>) -> Option<(Found<F, Self::Cells>, Derived)> {
        let table = &F::half(self).table;
        table::find_derived(&table, derived, derived.hashed(&SEEDS))
    }
    fn look(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg> {
        look_by_original(&&F::half(self).table, tuple, work)
    }
    fn look_by(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg> {
        look_by_derived(&&F::half(self).table, tuple, work)
    }
    fn cells(&self, number: u32) -> Option<Self::Cells> {
        let (table, number) = (&F::half(self).table, RecordNumber(number));
        let bucket = Memory::<F>::bucket(&table, number.bucket())?;
        BucketCells::<F>::record(bucket, number.way())
    }
    fn insert_flow(&self, words: &F::Words, stamp: u32) -> Room {
        let half = F::half(self);
        let record = record::<F>(words);
        let race = half.race.borrow_mut().take();
        if let Some(race) = race {
            race(half, &record);
        }
        self.change(&record.original, || {
            table::insert(&&half.table, &record, stamp)
        })
    }
    fn change_flow(&self, original: &Tuple<F>, change: Change, stamp: u32) -> bool {
        let table = &F::half(self).table;
        self.change(original, || table::change(&table, original, change, stamp))
    }
    fn delete_flow(&self, original: &Tuple<F>) -> bool {
        let table = &F::half(self).table;
        self.change(original, || table::delete(&table, original))
    }
    fn halve_flow(&self, original: &Tuple<F>) -> Insert {
        let table = &F::half(self).table;
        self.change(original, || table::halve(&table, original))
    }
    fn is_free(&self, words: &F::Words, stamp: u32, age: u32) -> bool {
        let table = &F::half(self).table;
        let reply = record::<F>(words).derived(Derived::Reply);
        table::is_free(&table, &reply, stamp, age)
    }
    fn reserve(&self, tuple: &Tuple<F>, stamp: u32) {
        let table = &F::half(self).table;
        table::reserve(&table, tuple, stamp);
    }
    fn is_reserved(&self, tuple: &Tuple<F>) -> bool {
        table::is_reserved(&&F::half(self).table, tuple)
    }
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        F::half(self).services.get(key).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        Some(F::half(self).backends.get(&id).copied().unwrap_or_default())
    }
    fn selection_row(&self, row: u32) -> u32 {
        self.rows.get(row as usize).copied().unwrap_or(0)
    }
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        F::half(self).affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey<F>, value: &Affinity) {
        F::half(self).affinity.borrow_mut().insert(*key, *value);
    }
    fn in_source_range(&self, service_id: u32, client: F::Addr) -> bool {
        F::half(self).ranges.contains(&(service_id, client))
    }
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Fragment> {
        F::half(self).fragments.borrow().get(key).copied()
    }
    fn set_fragment(&self, key: &FragmentKey<F>, value: &Fragment) {
        F::half(self).fragments.borrow_mut().insert(*key, *value);
    }
    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex).copied()
    }
    fn xdp_device(&self, ifindex: u32) -> Option<XdpDevice> {
        self.devices.get(&XdpDevice::slot(ifindex)).copied()
    }
    fn xdp_device_at(&self, slot: u8) -> Option<XdpDevice> {
        self.devices.get(&slot.into()).copied()
    }
    fn config(&self) -> Config {
        self.config
    }
    fn is_node_addr(&self, addr: F::Addr) -> bool {
        F::half(self).node_addrs.contains(&addr)
    }
    fn random(&self) -> u32 {
        // xorshift: a run repeats.
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        random
    }
    fn scratch(&self) -> Option<RefMut<'a, Work<F>>> {
        Some(F::half(self).work.borrow_mut())
    }
    fn stamp(&self) -> u32 {
        self.stamp.get()
    }
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn count(&self, counter: Counter) {
        self.add(counter as u32);
    }
    fn count_service_packet(&self, _service_id: u32, _bytes: u32) {}
    fn count_service_flow(&self, _service_id: u32) {}
    fn event(&self, _event: &Event) {}
    fn may_refuse(&self) -> bool {
        let sent = self.refusals.get();
        self.refusals.set(sent + 1);
        self.config.refusals_per_sec == 0 || sent < self.config.refusals_per_sec
    }
}

impl<F: Halves> FamilyMaps<F> for Native {
    fn put_service(&mut self, key: ServiceKey<F>, service: Service) {
        F::half_mut(self).services.insert(key, service);
    }
    fn remove_service(&mut self, key: ServiceKey<F>) {
        F::half_mut(self).services.remove(&key);
    }
    fn put_backend(&mut self, id: u32, backend: Backend<F>) {
        F::half_mut(self).backends.insert(id, backend);
    }
    fn allow_source(&mut self, service_id: u32, client: F::Addr) {
        F::half_mut(self).ranges.insert((service_id, client));
    }
    fn put_node_addr(&mut self, addr: F::Addr) {
        F::half_mut(self).node_addrs.insert(addr);
    }
    fn records(&mut self) -> Vec<(Class, Record<F>)> {
        records(&&F::half(self).table)
    }
    fn put_record(&mut self, record: Record<F>, class: Class) -> Insert {
        put_record(&&F::half(self).table, &record, class)
    }
    fn put_route(&mut self, daddr: F::Addr, hop: NextHop) {
        self.routes.borrow_mut().insert(words(&daddr), hop);
    }
}

impl Dataplane for Native {
    fn run(&mut self, at: At, ifindex: u32, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mut packet = Packet::new(packet, at, ifindex, self);
        let outcome = match packet.bytes.get(12..14) {
            Some([0x08, 0x00]) => self.stages::<V4>(at, &mut packet),
            Some([0x86, 0xdd]) => self.stages::<V6>(at, &mut packet),
            _ => Ok(Step::Pass),
        };
        let verdict = match outcome {
            Ok(Step::Transmit(ifindex)) => Verdict::Transmit(ifindex),
            Ok(Step::Reflect) => Verdict::Reflect,
            Ok(Step::Pass | Step::Translated) => {
                if at == At::Xdp {
                    self.add(Counter::XdpPassed as u32);
                }
                Verdict::Pass
            }
            Ok(unfinished) => panic!("the stages end with {unfinished:?}"),
            Err(reason) => {
                self.add(reason as u32);
                Verdict::Drop
            }
        };
        (verdict, packet.bytes)
    }
    fn counter(&mut self, number: u32) -> u64 {
        self.counters.borrow().get(&number).copied().unwrap_or(0)
    }
    fn put_config(&mut self, config: Config) {
        self.config = config;
    }
    fn put_rows(&mut self, offset: u32, rows: &[u32]) {
        let end = offset as usize + rows.len();
        if self.rows.len() < end {
            self.rows.resize(end, 0);
        }
        self.rows[offset as usize..end].copy_from_slice(rows);
    }
    fn open_port(&mut self, proto: u8, port: u16) {
        self.ports.insert((proto, port));
    }
    fn put_snat_ports(&mut self, ports: &[u16]) {
        self.snat_ports = ports.iter().copied().collect();
    }
    fn put_interface(&mut self, ifindex: u32, interface: Interface) {
        self.interfaces.insert(ifindex, interface);
    }
    fn put_device(&mut self, device: XdpDevice) {
        self.devices.insert(XdpDevice::slot(device.ifindex), device);
    }
    fn begin_second(&mut self) {
        self.refusals.set(0);
    }
}

/// All drops of any reason.
pub fn drops(world: &mut Native) -> u64 {
    DropReason::ALL
        .iter()
        .map(|reason| world.counter(*reason as u32))
        .sum()
}
