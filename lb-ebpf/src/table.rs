//! The record table alone, over arrays of its own: programs that a test runs on two CPUs at once, and that a benchmark
//! times. The "packet" of a run is [`Work`]: what to do, and what came of it. A test run keeps what a program wrote
//! into the packet between repeats.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the program macros emit public items of their own"
)]
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    reason = "contexts and helpers speak in C's integer widths"
)]
#![allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "global functions: the verifier checks their callers, and knows pointers only, not `Option<&T>`"
)]
#![allow(
    internal_features,
    reason = "atomic operations and assembly have no stable form on this target"
)]
#![feature(core_intrinsics, asm_experimental_arch)]

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr4, Addr6, Be16, Side, proto};
use lb_common::flow_table::{
    self as table, Bucket, Class, Derived, Geometry, IndexLine, Insert, Memory, Record,
    RecordCells, RecordNumber, Seeds, TableFamily, Tuple, constant_flags,
};
use lb_common::{V4, V6};

#[path = "cells.rs"]
mod cells;
#[path = "ctx/pointer.rs"]
mod pointer;
use cells::{Place, opaque};
use pointer::packet_pointer;

/// The kernel lets programs under this licence call GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Number of buckets and of lines less one: set by the loader with the arrays' sizes, constants to the verifier.
#[unsafe(no_mangle)]
static BUCKET_MASK: u32 = 0;
#[unsafe(no_mangle)]
static LINE_MASK: u32 = 0;

#[btf_map(name = "buckets_v4")]
static BUCKETS_V4: Array<Bucket<{ V4::RECORD }>, 2, MMAPABLE> = Array::new();
#[btf_map(name = "buckets_v6")]
static BUCKETS_V6: Array<Bucket<{ V6::RECORD }>, 2, MMAPABLE> = Array::new();
#[btf_map(name = "lines_v4")]
static LINES_V4: Array<IndexLine, 2, MMAPABLE> = Array::new();
#[btf_map(name = "lines_v6")]
static LINES_V6: Array<IndexLine, 2, MMAPABLE> = Array::new();

/// Orders and results.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Work {
    /// State of a generator of random numbers; not 0.
    pub random: u64,
    /// Operations so far; in timed programs also which flow is next.
    pub counter: u64,
    /// Flows less one, a power of two less one.
    pub mask: u32,
    /// The first flow.
    pub base: u32,
    /// Of a timed program that also deletes: how many flows behind.
    pub lag: u32,
    /// Whether a stress also confirms and closes.
    pub changes: u32,
    /// Insertions that made a record.
    pub inserted: u64,
    /// Insertions that found the tuple's record.
    pub had_record: u64,
    /// Insertions whose derived tuple was taken.
    pub exists: u64,
    /// Insertions without room.
    pub full: u64,
    /// Insertions that did not get a lock.
    pub busy: u64,
    /// Records that gave way.
    pub evicted: u64,
    /// Records found, by either tuple.
    pub found: u64,
    /// Tuples without a record.
    pub missed: u64,
    /// Deleted.
    pub deleted: u64,
    /// Confirmed or closed.
    pub changed: u64,
    /// Records that were found and are not what was put in: must stay 0.
    pub wrong: u64,
    /// Made of everything read, so that nothing is optimised away.
    pub sum: u64,
}

struct Maps;

/// The arrays of a family.
trait Arrays: TableFamily {
    fn bucket(index: u32) -> Option<Place>;
    fn line(index: u32) -> Option<Place>;
    fn addr(number: u32) -> Self::Addr;
    fn add_entry(tuple: &Tuple<Self>, kind: Derived, number: RecordNumber) -> u32;
    fn remove_entry(tuple: &Tuple<Self>, kind: Derived, number: RecordNumber);
    fn make_room(index: u32, keep_reserved: u32) -> u32;
    fn way_of(bucket: u32, tuple: &Tuple<Self>) -> u32;
}

impl Arrays for V4 {
    #[inline(always)]
    fn bucket(index: u32) -> Option<Place> {
        BUCKETS_V4.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn line(index: u32) -> Option<Place> {
        LINES_V4.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn addr(number: u32) -> Addr4 {
        Addr4 { be: number }
    }
    #[inline(always)]
    fn add_entry(tuple: &Tuple<V4>, kind: Derived, number: RecordNumber) -> u32 {
        let (addrs, rest) = tuple.parts();
        add_entry_v4(addrs, rest, kind as u32, number.0)
    }
    #[inline(always)]
    fn remove_entry(tuple: &Tuple<V4>, kind: Derived, number: RecordNumber) {
        let (addrs, rest) = tuple.parts();
        remove_entry_v4(addrs, rest, kind as u32, number.0);
    }
    #[inline(always)]
    fn make_room(index: u32, keep_reserved: u32) -> u32 {
        make_room_v4(index, keep_reserved)
    }
    #[inline(always)]
    fn way_of(bucket: u32, tuple: &Tuple<Self>) -> u32 {
        let (addrs, rest) = tuple.parts();
        way_of_v4(bucket, addrs, rest)
    }
}

impl Arrays for V6 {
    #[inline(always)]
    fn bucket(index: u32) -> Option<Place> {
        BUCKETS_V6.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn line(index: u32) -> Option<Place> {
        LINES_V6.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn addr(number: u32) -> Addr6 {
        Addr6 {
            be: [0xfd, 0, 1, number],
        }
    }
    #[inline(always)]
    fn add_entry(tuple: &Tuple<V6>, kind: Derived, number: RecordNumber) -> u32 {
        let (addrs, rest) = tuple.parts();
        add_entry_v6(&Wide { addrs, rest }, kind as u32, number.0)
    }
    #[inline(always)]
    fn remove_entry(tuple: &Tuple<V6>, kind: Derived, number: RecordNumber) {
        let (addrs, rest) = tuple.parts();
        remove_entry_v6(&Wide { addrs, rest }, kind as u32, number.0);
    }
    #[inline(always)]
    fn make_room(index: u32, keep_reserved: u32) -> u32 {
        make_room_v6(index, keep_reserved)
    }
    #[inline(always)]
    fn way_of(bucket: u32, tuple: &Tuple<Self>) -> u32 {
        let (addrs, rest) = tuple.parts();
        way_of_v6(&Wide { addrs, rest }, bucket)
    }
}

#[inline(always)]
fn constant(of: *const u32) -> u32 {
    // SAFETY: a word of the read-only data; volatile, because the loader may have changed it.
    unsafe { of.read_volatile() }
}

impl<F: Arrays> Memory<F> for Maps {
    type Record = Place;
    type Bucket = Place;
    type Line = Place;

    #[inline(always)]
    fn geometry(&self) -> Geometry {
        Geometry {
            bucket_mask: constant(&raw const BUCKET_MASK),
            line_mask: constant(&raw const LINE_MASK),
            seeds: Seeds {
                offset: 0x243f_6a88_85a3_08d3,
                factors: [
                    0x9e37_79b9_7f4a_7c15,
                    0xd6e8_feb8_6659_fd93,
                    0xa076_1d64_78bd_642f,
                    0xe703_7ed1_a0b4_28db,
                    0xbf58_476d_1ce4_e5b9,
                ],
            },
        }
    }
    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<Place> {
        F::bucket(index)
    }
    #[inline(always)]
    fn line(&self, index: u32) -> Option<Place> {
        F::line(index)
    }
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        opaque(value)
    }
    #[inline(always)]
    fn add_entry(&self, tuple: &Tuple<F>, kind: Derived, number: RecordNumber) -> Insert {
        match F::add_entry(tuple, kind, number) {
            0 => Insert::Done,
            1 => Insert::HasRecord,
            2 => Insert::Exists,
            3 => Insert::Full,
            _ => Insert::Busy,
        }
    }
    #[inline(always)]
    fn remove_entry(&self, tuple: &Tuple<F>, kind: Derived, number: RecordNumber) {
        F::remove_entry(tuple, kind, number);
    }
    #[inline(always)]
    fn make_room(&self, index: u32, keep_reserved: bool) -> u32 {
        // Opaque: the compiler knows the bodies of functions that it does not inline, too.
        opaque(F::make_room(index, keep_reserved as u32) as u64) as u32
    }
    #[inline(always)]
    fn way_of(&self, bucket: u32, tuple: &Tuple<F>) -> u32 {
        opaque(F::way_of(bucket, tuple) as u64) as u32
    }
}

// Functions of their own that the verifier walks once, whoever calls them: global ones, with numbers for arguments, or
// a pointer to memory of a known size.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_entry_v4(addrs: u64, rest: u64, kind: u32, number: u32) -> u32 {
    let tuple = Tuple::<V4>::from_parts(addrs, rest);
    table::add_entry(
        &Maps,
        &tuple,
        Derived::from_bits(kind),
        RecordNumber(number),
    ) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_entry_v4(addrs: u64, rest: u64, kind: u32, number: u32) -> u32 {
    let tuple = Tuple::<V4>::from_parts(addrs, rest);
    table::remove_entry(
        &Maps,
        &tuple,
        Derived::from_bits(kind),
        RecordNumber(number),
    );
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_room_v4(index: u32, keep_reserved: u32) -> u32 {
    table::make_room::<V4, _>(&Maps, index, keep_reserved != 0)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn way_of_v4(bucket: u32, addrs: u64, rest: u64) -> u32 {
    table::way_of(&Maps, bucket, &Tuple::<V4>::from_parts(addrs, rest))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn way_of_v6(tuple: *const Wide, bucket: u32) -> u32 {
    if tuple.is_null() {
        return u32::MAX;
    }
    // SAFETY: not null, and the verifier knows it as memory of this size.
    let wide = unsafe { &*tuple };
    table::way_of(
        &Maps,
        bucket,
        &Tuple::<V6>::from_parts(wide.addrs, wide.rest),
    )
}

/// A tuple of IPv6 as an argument: six numbers would be too many.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Wide {
    addrs: [u64; 4],
    rest: u64,
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_entry_v6(tuple: *const Wide, kind: u32, number: u32) -> u32 {
    if tuple.is_null() {
        return Insert::Full as u32;
    }
    // SAFETY: not null, and the verifier knows it as memory of this size.
    let wide = unsafe { &*tuple };
    let tuple = Tuple::<V6>::from_parts(wide.addrs, wide.rest);
    table::add_entry(
        &Maps,
        &tuple,
        Derived::from_bits(kind),
        RecordNumber(number),
    ) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_entry_v6(tuple: *const Wide, kind: u32, number: u32) -> u32 {
    if tuple.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier knows it as memory of this size.
    let wide = unsafe { &*tuple };
    let tuple = Tuple::<V6>::from_parts(wide.addrs, wide.rest);
    table::remove_entry(
        &Maps,
        &tuple,
        Derived::from_bits(kind),
        RecordNumber(number),
    );
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_room_v6(index: u32, keep_reserved: u32) -> u32 {
    table::make_room::<V6, _>(&Maps, index, keep_reserved != 0)
}

#[inline(always)]
fn tuple<F: Arrays>(flow: u32) -> Tuple<F> {
    let port = Be16 {
        be: 16_384 + (flow & 0x3fff) as u16,
    };
    let client = F::addr(0x0b00_0000 + (flow >> 14));
    Tuple::new(
        &client,
        &F::addr(0x0a60_0000),
        port,
        Be16 { be: 80 },
        proto::TCP,
        Side::ExternalIn,
    )
}

#[inline(always)]
fn record<F: Arrays>(flow: u32, salt: u32, flags: u32) -> Record<F> {
    let backend = F::addr(0x0af4_0000 + (flow.wrapping_mul(2_654_435_761) >> 26));
    let original = tuple::<F>(flow);
    let source = if flags & constant_flags::SNAT == 0 {
        original.saddr()
    } else {
        F::addr(0x0a00_0000 + (flow >> 14))
    };
    let source = (&source, original.sport());
    let mut record = Record::new(original, (&backend, Be16 { be: 8_080 }), source, flags);
    record.backend = salt;
    record.service = salt.wrapping_mul(11).wrapping_add(flow);
    record.checked()
}

#[inline(always)]
fn now() -> u32 {
    // SAFETY: a helper without arguments, inlined by the kernel.
    (unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() } >> 8) as u32
}

#[inline(always)]
fn work(ctx: XdpContext) -> Option<&'static mut Work> {
    let start = packet_pointer!(ctx.ctx, "0");
    if start + size_of::<Work>() > packet_pointer!(ctx.ctx, "4") {
        return None;
    }
    // SAFETY: compared against the end above; any bits are valid.
    Some(unsafe { &mut *(start as *mut Work) })
}

#[inline(always)]
fn put<F: Arrays>(work: &mut Work, record: &Record<F>, now: u32) {
    let room = table::insert::<F, _>(&Maps, record, now);
    match room.result {
        Insert::Done => work.inserted += 1,
        Insert::HasRecord => work.had_record += 1,
        Insert::Exists => work.exists += 1,
        Insert::Full => work.full += 1,
        Insert::Busy => work.busy += 1,
    }
    if room.evicted != Class::Free {
        work.evicted += 1;
    }
}

/// One operation that a die chooses, on one of few flows.
#[inline(always)]
fn stress<F: Arrays>(work: &mut Work, flags: u32) {
    let mut x = work.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    work.random = x;
    work.counter += 1;
    let flow = ((x >> 20) as u32 & work.mask) + work.base;
    let die = x & 15;
    let (now, salt) = (now(), (x >> 40) as u32);
    if die < 4 {
        put::<F>(work, &record::<F>(flow, salt, flags), now);
    } else if die < 6 {
        if table::delete::<F, _>(&Maps, &tuple::<F>(flow)) {
            work.deleted += 1;
        }
    } else if die == 6 {
        let class = if salt & 1 == 0 {
            Class::Confirmed
        } else {
            Class::Closed
        };
        if work.changes != 0
            && table::set_class::<F, _>(&Maps, &tuple::<F>(flow), class, 0x100, now)
        {
            work.changed += 1;
        }
    } else {
        let expected = record::<F>(flow, 0, flags);
        let seeds = Memory::<F>::geometry(&Maps).seeds;
        let found = if die & 1 == 0 {
            let original = expected.original;
            table::find::<F, _>(&Maps, &original, original.hashed(&seeds)).map(|found| found.record)
        } else {
            let reply = expected.derived(Derived::Reply);
            table::find_derived::<F, _>(&Maps, &reply, reply.hashed(&seeds))
                .map(|(found, _)| found.record)
        };
        let Some(found) = found else {
            work.missed += 1;
            return;
        };
        work.found += 1;
        if found.original != expected.original
            || found.service != found.backend.wrapping_mul(11).wrapping_add(flow)
        {
            work.wrong += 1;
        }
    }
}

/// The next flow, in an order that is not the one of their tuples.
#[inline(always)]
fn next(work: &mut Work) -> u32 {
    let flow = (work.counter as u32).wrapping_mul(2_654_435_761) & work.mask;
    work.counter += 1;
    (flow ^ (flow >> 7)) + work.base
}

#[inline(always)]
fn find<F: Arrays>(work: &mut Work, reply: bool) {
    let flow = next(work);
    let seeds = Memory::<F>::geometry(&Maps).seeds;
    let found = if reply {
        let reply = record::<F>(flow, 0, 0).derived(Derived::Reply);
        table::find_derived::<F, _>(&Maps, &reply, reply.hashed(&seeds)).map(|(found, _)| found)
    } else {
        let original = tuple::<F>(flow);
        table::find::<F, _>(&Maps, &original, original.hashed(&seeds))
    };
    let Some(found) = found else {
        work.missed += 1;
        return;
    };
    if now().wrapping_sub(found.record.stamp) >= 1 << 20 {
        RecordCells::<F>::set_stamp(found.cells, now());
    }
    work.found += 1;
    work.sum ^= found.record.backend as u64;
}

#[inline(always)]
fn insert<F: Arrays>(work: &mut Work, flags: u32) -> u32 {
    let (flow, now) = (next(work), now());
    let mut record = record::<F>(flow, flow & 63, flags);
    record.stamp = now;
    put::<F>(work, &record, now);
    flow
}

macro_rules! programs {
    ($($name:ident: $body:expr;)+) => { $(
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            let Some(work) = work(ctx) else {
                return XDP_ABORTED;
            };
            let body: fn(&mut Work) = $body;
            body(work);
            XDP_TX
        }
    )+ };
}

programs! {
    stress_v4: |work| stress::<V4>(work, 0);
    stress_v6: |work| stress::<V6>(work, 0);
    stress_halves: |work| stress::<V4>(work, constant_flags::SNAT | constant_flags::BY_HALVES);
    floor: |work| { let flow = next(work); work.sum ^= flow as u64; };
    find_v4: |work| find::<V4>(work, false);
    find_v6: |work| find::<V6>(work, false);
    find_reply_v4: |work| find::<V4>(work, true);
    find_reply_v6: |work| find::<V6>(work, true);
    insert_v4: |work| { insert::<V4>(work, 0); };
    insert_v6: |work| { insert::<V6>(work, 0); };
    insert_halves: |work| { insert::<V4>(work, constant_flags::SNAT | constant_flags::BY_HALVES); };
    confirm_v4: |work| {
        let flow = next(work);
        if table::confirm::<V4, _>(&Maps, &tuple::<V4>(flow), 0x100, now()) { work.changed += 1; }
    };
    churn_v4: |work| {
        let flow = insert::<V4>(work, 0);
        if table::delete::<V4, _>(&Maps, &tuple::<V4>(flow.wrapping_sub(work.lag))) { work.deleted += 1; }
    };
}
