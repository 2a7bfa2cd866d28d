//! `Tables` over the maps.

use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Be16, Be32, Clock, Config, Counter, DropReason, Event, Flow,
    FlowFlags, FlowKey, Fragment, FragmentKey, Interface, MacAddr, ModeFlags, SELECTION_BLOCK_ROWS,
    Scratch, Service, ServiceKey, Transport, XdpDevice, port_filter_slot,
};
use lb_common::family::{Address, Family};
use lb_common::pipeline::tables::{FlowEntry, Insert, Tables};

use crate::maps::{
    CONFIG, COUNTERS, DIRECT_PORTS, EVENTS, FamilyMaps, INTERFACES, PORT_FILTER, REFUSALS,
    SELECTION, SERVICE_STATS, SrcRange, XDP_DEVICES,
};

/// The maps of the loaded object.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

/// An entry of `flows_*` or `openings_*` in map memory.
#[derive(Clone, Copy)]
pub(crate) struct FlowRef<F: Family>(*mut Flow<F>);

impl<F: Family> FlowEntry<F> for FlowRef<F> {
    #[inline(always)]
    fn read(&self) -> Flow<F> {
        // SAFETY: the verifier knows the pointer as a map value of this size, it stays readable for the
        // program's run, and every bit pattern is a valid `Flow`. It may change meanwhile: the caller
        // compares the check, which is read with the rest.
        let mut flow = unsafe { core::ptr::read(self.0) };
        if F::IS_V6 {
            // The addresses again, by 64-bit words: the compiler must think that map values are aligned to 4.
            // SAFETY: a map value of this size; the kernel does not need the alignment there.
            let to = unsafe { &(*self.0).to };
            flow.to.saddr = wide(&to.saddr);
            flow.to.daddr = wide(&to.daddr);
        }
        flow
    }
    #[inline(always)]
    fn flags(&self) -> FlowFlags {
        // SAFETY: as in `read`; one aligned half-word.
        unsafe { (*self.0).flags }
    }
    #[inline(always)]
    fn stamp(&self) -> u32 {
        // SAFETY: as in `read`; one aligned word.
        unsafe { (*self.0).stamp }
    }
    #[inline(always)]
    fn add_flags(&self, flags: FlowFlags) {
        // SAFETY: as in `read`; a race with another CPU may lose a flag, which its next packet sets again.
        unsafe { (*self.0).flags |= flags }
    }
    #[inline(always)]
    fn set_stamp(&self, stamp: u32) {
        // SAFETY: as in `read`; one aligned word.
        unsafe { (*self.0).stamp = stamp }
    }
    #[inline(always)]
    fn set_next_hop(&self, ifindex: u32, dmac: MacAddr) {
        // SAFETY: as in `read`; one aligned word.
        unsafe { (*self.0).ifindex = ifindex }
        // SAFETY: as in `read`; a reader between the two writes sends one packet to the old address.
        unsafe { (*self.0).dmac = dmac }
    }
}

/// Reads an IPv6 address of a map value as two 64-bit words.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the two halves")]
fn wide<A: Address>(addr: &A) -> A {
    // SAFETY: an IPv6 address has the size of the words; x86-64 and arm64 load from any alignment.
    let [low, high] = unsafe { core::ptr::read((&raw const *addr).cast::<[u64; 2]>()) };
    A::from_words([
        low as u32,
        (low >> 32) as u32,
        high as u32,
        (high >> 32) as u32,
    ])
}

/// The per-CPU scratch entry.
pub(crate) struct ScratchRef<F: Family>(*mut Scratch<F>);

impl<F: Family> Deref for ScratchRef<F> {
    type Target = Scratch<F>;
    #[inline(always)]
    fn deref(&self) -> &Scratch<F> {
        // SAFETY: a map value of this CPU; packet hooks do not nest on a CPU, so nobody else uses it.
        unsafe { &*self.0 }
    }
}

impl<F: Family> DerefMut for ScratchRef<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Scratch<F> {
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

impl<F: FamilyMaps> Tables<F> for Kernel {
    type Entry = FlowRef<F>;
    type Scratch = ScratchRef<F>;

    #[inline(always)]
    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool {
        let Some(filter) = PORT_FILTER.get(port_filter_slot(transport)) else {
            return false;
        };
        let port = port.to_host();
        port_word(&filter.words, port) >> (port & 31) & 1 != 0
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
    fn flow(&self, key: &FlowKey<F>) -> Option<FlowRef<F>> {
        F::flow(key).map(FlowRef)
    }
    #[inline(always)]
    fn opening(&self, key: &FlowKey<F>) -> Option<FlowRef<F>> {
        F::opening(key).map(FlowRef)
    }
    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insert {
        inserted(F::insert_flow(key, flow, BPF_NOEXIST.into()))
    }
    #[inline(always)]
    fn insert_opening(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insert {
        inserted(F::insert_opening(key, flow, BPF_NOEXIST.into()))
    }
    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<F>) {
        F::remove_flow(key);
    }
    #[inline(always)]
    fn remove_opening(&self, key: &FlowKey<F>) {
        F::remove_opening(key);
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
        if config().is_some_and(|config| config.modes.contains(ModeFlags::DEBUG_EVENTS)) {
            let mut event = *event;
            event.time_ns = now_ns();
            // A full ring loses the event; nobody waits for a reader.
            let _lost = EVENTS.output_untyped::<Event>(&event, 0);
        }
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

/// EEXIST of Linux.
const EEXIST: i32 = 17;

#[inline(always)]
fn inserted(result: Result<(), i32>) -> Insert {
    match result {
        Ok(()) => Insert::Done,
        Err(code) if code == -EEXIST => Insert::Exists,
        Err(_) => Insert::Failed,
    }
}
