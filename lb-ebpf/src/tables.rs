//! `Tables` over the maps.

use core::ops::{Deref, DerefMut};

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Be16, Be32, Clock, Config, Counter, DropReason, Event,
    Fragment, FragmentKey, Interface, SELECTION_BLOCK_ROWS, SNAT_PORTS_SLOT, Service, ServiceKey,
    Transport, XdpDevice, port_filter_slot,
};
use lb_common::flow_table::{
    self as table, BucketCells, Change, Derived, Found, Insert, RecordNumber, Room, TableFamily,
    Tuple,
};
use lb_common::pipeline::flow::Leg;
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::tables::Tables;
use lb_common::pipeline::work::Work;

use crate::cells::Place;
use crate::flow_table::FlowTable;
use crate::look::LookFunctions;
use crate::maps::{
    CONFIG, COUNTERS, DIRECT_PORTS, EVENTS, FamilyMaps, INTERFACES, PORT_FILTER, REFUSALS,
    SELECTION, SERVICE_STATS, SrcRange, XDP_DEVICES,
};

/// The maps of the loaded object.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

/// The per-CPU scratch entry.
pub(crate) struct ScratchRef<F: TableFamily>(*mut Work<F>);

impl<F: TableFamily> Deref for ScratchRef<F> {
    type Target = Work<F>;
    #[inline(always)]
    fn deref(&self) -> &Work<F> {
        // SAFETY: a map value of this CPU; packet hooks do not nest on a CPU, so nobody else uses it.
        unsafe { &*self.0 }
    }
}

impl<F: TableFamily> DerefMut for ScratchRef<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Work<F> {
        // SAFETY: as in `deref`; the pipeline holds one at a time.
        unsafe { &mut *self.0 }
    }
}

/// Copies a map value.
#[inline(always)]
fn copy<T: Copy>(value: *const T) -> T {
    // SAFETY: the verifier knows the pointer as a map value of this size; every bit pattern is a valid
    // value of the layouts in `lb_common::abi`.
    unsafe { core::ptr::read(value) }
}

/// Counts in a per-CPU slot. Packet hooks run in softirq or with bottom halves off: a plain add cannot
/// race. Socket hooks count through `ctx::sock_addr`, atomically.
#[inline(always)]
pub(crate) fn count(number: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(number) {
        // SAFETY: a map value of this CPU.
        unsafe { (*slot).packets += 1 }
    }
}

/// Counts a drop.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    count(reason as u32);
}

/// Ports are shifted into words of 32 bits.
#[inline(always)]
fn port_word(words: &[u32], port: u16) -> u32 {
    match words.get(port as usize >> 5) {
        Some(word) => *word,
        None => 0,
    }
}

/// A bit of `port_filter`.
#[inline(always)]
fn has_port(slot: u32, port: Be16) -> bool {
    let Some(filter) = PORT_FILTER.get(slot) else {
        return false;
    };
    let port = port.to_host();
    port_word(&filter.words, port) >> (port & 31) & 1 != 0
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Both of the kernel's clocks.
#[inline(always)]
pub(crate) fn clock() -> Clock {
    // SAFETY: a helper without arguments, inlined by the kernel.
    let jiffies = unsafe { bpf_jiffies64() };
    Clock {
        jiffies,
        monotonic_ns: now_ns(),
    }
}

#[inline(always)]
fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

impl<F: Ip + FamilyMaps + LookFunctions> Tables<F> for Kernel {
    type Cells = Place;
    type Scratch = ScratchRef<F>;

    #[inline(always)]
    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool {
        has_port(port_filter_slot(transport), port)
    }
    #[inline(always)]
    fn is_snat_port(&self, port: Be16) -> bool {
        has_port(SNAT_PORTS_SLOT, port)
    }
    #[inline(always)]
    fn is_direct_port(&self, port: Be16) -> bool {
        DIRECT_PORTS.get(0).is_some_and(|ports| {
            ports
                .get(port.to_host() as usize)
                .is_some_and(|mark| *mark != 0)
        })
    }
    #[inline(always)]
    fn note_direct_port(&self, port: Be16) {
        if let Some(ports) = DIRECT_PORTS.get_ptr_mut(0) {
            // SAFETY: a map value; the index is a u16 and the array has a byte for each.
            let mark = unsafe { ports.cast::<u8>().add(usize::from(port.to_host())) };
            // SAFETY: as above.
            unsafe { *mark = 1 }
        }
    }
    #[inline(always)]
    fn flow(&self, original: &Tuple<F>) -> Option<Found<F, Place>> {
        table::find(&FlowTable, original, original.hashed(&F::geometry().seeds))
    }
    #[inline(always)]
    fn flow_by(&self, derived: &Tuple<F>) -> Option<(Found<F, Place>, Derived)> {
        table::find_derived(&FlowTable, derived, derived.hashed(&F::geometry().seeds))
    }
    #[inline(always)]
    fn look(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg> {
        Leg::from_number(F::look_by_original(tuple, work))
    }
    #[inline(always)]
    fn look_by(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg> {
        Leg::from_number(F::look_by_derived(tuple, work))
    }
    #[inline(always)]
    fn cells(&self, number: u32) -> Option<Place> {
        let number = RecordNumber(number);
        BucketCells::<F>::record(F::bucket(number.bucket())?, number.way())
    }
    #[inline(always)]
    fn insert_flow(&self, words: &F::Words, stamp: u32) -> Room {
        F::insert(words, stamp)
    }
    #[inline(always)]
    fn change_flow(&self, original: &Tuple<F>, change: Change, stamp: u32) -> bool {
        F::change(original, change, stamp)
    }
    #[inline(always)]
    fn delete_flow(&self, original: &Tuple<F>) -> bool {
        F::delete(original)
    }
    #[inline(always)]
    fn halve_flow(&self, original: &Tuple<F>) -> Insert {
        F::halve(original)
    }
    #[inline(always)]
    fn is_free(&self, words: &F::Words, stamp: u32, age: u32) -> bool {
        F::is_free(words, stamp, age)
    }
    #[inline(always)]
    fn reserve(&self, tuple: &Tuple<F>, stamp: u32) {
        F::reserve(tuple, stamp);
    }
    #[inline(always)]
    fn is_reserved(&self, tuple: &Tuple<F>) -> bool {
        table::is_reserved(&FlowTable, tuple)
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        F::service(key).map(copy)
    }
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        F::backend(id).map(copy)
    }
    #[inline(always)]
    fn selection_row(&self, row: u32) -> u32 {
        let Some(block) = SELECTION.get(row / SELECTION_BLOCK_ROWS as u32) else {
            return 0;
        };
        block[row as usize % SELECTION_BLOCK_ROWS]
    }
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        F::affinity(key).map(copy)
    }
    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey<F>, value: &Affinity) {
        F::set_affinity(key, value);
    }
    #[inline(always)]
    fn in_source_range(&self, service_id: u32, client: F::Addr) -> bool {
        let bits = 32 + if F::IS_V6 { 128 } else { 32 };
        F::in_source_range(&Key::new(
            bits,
            SrcRange {
                service_id: Be32::from_host(service_id),
                client,
            },
        ))
    }
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Fragment> {
        F::fragment(key).map(copy)
    }
    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey<F>, value: &Fragment) {
        F::set_fragment(key, value);
    }
    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<Interface> {
        INTERFACES.get_ptr(ifindex).map(copy)
    }
    #[inline(always)]
    fn xdp_device(&self, ifindex: u32) -> Option<XdpDevice> {
        XDP_DEVICES.get_ptr(XdpDevice::slot(ifindex)).map(copy)
    }
    #[inline(always)]
    fn xdp_device_at(&self, slot: u8) -> Option<XdpDevice> {
        XDP_DEVICES.get_ptr(slot as u32).map(copy)
    }
    #[inline(always)]
    fn is_node_addr(&self, addr: F::Addr) -> bool {
        F::is_node_addr(addr)
    }
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }
    #[inline(always)]
    fn config(&self) -> Config {
        match config() {
            Some(config) => *config,
            None => Config::default(),
        }
    }
    #[inline(always)]
    fn scratch(&self) -> Option<ScratchRef<F>> {
        F::scratch().map(ScratchRef)
    }
    #[inline(always)]
    fn stamp(&self) -> u32 {
        // SAFETY: a helper without arguments, inlined by the kernel.
        let jiffies = unsafe { bpf_jiffies64() };
        Clock {
            jiffies,
            monotonic_ns: 0,
        }
        .stamp()
    }
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }
    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter as u32);
    }
    #[inline(always)]
    fn count_service_packet(&self, service_id: u32, bytes: u32) {
        if let Some(slot) = SERVICE_STATS.get_ptr_mut(service_id) {
            // SAFETY: a map value of this CPU; see `count`.
            unsafe { (*slot).packets += 1 }
            // SAFETY: as above.
            unsafe { (*slot).bytes += bytes as u64 }
        }
    }
    #[inline(always)]
    fn count_service_flow(&self, service_id: u32) {
        if let Some(slot) = SERVICE_STATS.get_ptr_mut(service_id) {
            // SAFETY: a map value of this CPU; see `count`.
            unsafe { (*slot).flows += 1 }
        }
    }
    #[inline(always)]
    fn event(&self, event: &Event) {
        // A full ring loses the event; nobody waits for a reader.
        let _lost = EVENTS.output_untyped::<Event>(event, 0);
    }
    #[inline(always)]
    fn may_refuse(&self) -> bool {
        let limit = config().map_or(0, |config| config.refusals_per_sec);
        if limit == 0 {
            return true;
        }
        let Some(slot) = REFUSALS.get_ptr_mut(0) else {
            return true;
        };
        let second = now_ns() / 1_000_000_000;
        // SAFETY: a map value of this CPU; see `count`.
        let refusals = unsafe { &mut *slot };
        if refusals.second != second {
            refusals.second = second;
            refusals.sent = 0;
        }
        refusals.sent += 1;
        refusals.sent <= limit as u64
    }
}
