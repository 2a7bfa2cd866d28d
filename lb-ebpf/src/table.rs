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

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr4, Addr6, Be16, FlowFlags, Side, proto};
use lb_common::flow_table::{
    self as table, Change, Class, Derived, Insert, Record, RecordCells, TableFamily, Tuple,
};
use lb_common::{V4, V6};

mod arrays;
mod cells;
#[allow(dead_code, reason = "what the stress does not do")]
mod flow_table;
#[path = "ctx/pointer.rs"]
mod pointer;
use flow_table::{FlowFunctions, FlowTable};
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

/// A family whose flows are made of numbers.
trait Numbered: FlowFunctions {
    fn addr(number: u32) -> Self::Addr;
    /// Room for a record that is to be inserted: it has none on the stack.
    fn words() -> Option<&'static mut Self::Words>;
    /// Lays a flow's record there: out of line, so that its parts lie on no stack while it is inserted.
    fn fill(flow: u32, salt: u32, flags: FlowFlags, stamp: u32);
    /// `seek`, out of line as well.
    fn seek(flow: u32, flags: FlowFlags, is_derived: u32) -> u32;
}

macro_rules! numbered {
    ($family:ty, $addr:expr, $name:literal, $scratch:ident, $fill:ident, $seek:ident) => {
        #[btf_map(name = $name)]
        static $scratch: PerCpuArray<[u64; <$family>::RECORD], 1> = PerCpuArray::new();

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $fill(flow: u32, salt: u32, flags: u32, stamp: u32) -> u32 {
            fill::<$family>(flow, salt, flags, stamp)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $seek(flow: u32, flags: u32, is_derived: u32) -> u32 {
            seek::<$family>(flow, flags, is_derived)
        }

        impl Numbered for $family {
            #[inline(always)]
            fn addr(number: u32) -> Self::Addr {
                let addr: fn(u32) -> Self::Addr = $addr;
                addr(number)
            }
            #[inline(always)]
            fn words() -> Option<&'static mut Self::Words> {
                // SAFETY: a map value of this CPU; the programs do not nest on a CPU.
                $scratch.get_ptr_mut(0).map(|words| unsafe { &mut *words })
            }
            #[inline(always)]
            fn fill(flow: u32, salt: u32, flags: FlowFlags, stamp: u32) {
                $fill(flow, salt, flags.bits() as u32, stamp);
            }
            #[inline(always)]
            fn seek(flow: u32, flags: FlowFlags, is_derived: u32) -> u32 {
                $seek(flow, flags.bits() as u32, is_derived)
            }
        }
    };
}

numbered!(
    V4,
    |number| Addr4 { be: number },
    "scratch_v4",
    SCRATCH_V4,
    table_fill_v4,
    table_seek_v4
);
numbered!(
    V6,
    |number| Addr6 {
        be: [0xfd, 0, 1, number],
    },
    "scratch_v6",
    SCRATCH_V6,
    table_fill_v6,
    table_seek_v6
);

#[inline(always)]
fn tuple<F: Numbered>(flow: u32) -> Tuple<F> {
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
fn record<F: Numbered>(flow: u32, salt: u32, flags: FlowFlags) -> Record<F> {
    let backend = F::addr(0x0af4_0000 + (flow.wrapping_mul(2_654_435_761) >> 26));
    let original = tuple::<F>(flow);
    let source = if flags.contains(FlowFlags::SNAT) {
        F::addr(0x0a00_0000 + (flow >> 14))
    } else {
        original.saddr()
    };
    let source = (&source, original.sport());
    let mut record = Record::new(original, (&backend, Be16 { be: 8_080 }), source, flags);
    record.backend = salt & ID;
    record.service = expected_service(record.backend, flow);
    record.checked()
}

/// Bits of an id.
const ID: u32 = Record::<V4>::ID;
/// Of a flow that tc carries by halves.
const HALVES: FlowFlags = FlowFlags::SNAT.union(FlowFlags::BY_HALVES);

#[inline(always)]
fn expected_service(backend: u32, flow: u32) -> u32 {
    backend.wrapping_mul(11).wrapping_add(flow) & ID
}

#[inline(always)]
fn changed(class: Class) -> Change {
    Change::flags(FlowFlags::CONFIRMED, FlowFlags::NONE).class(class)
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
fn fill<F: Numbered>(flow: u32, salt: u32, flags: u32, stamp: u32) -> u32 {
    let Some(words) = F::words() else {
        return 0;
    };
    let mut record = record::<F>(flow, salt, FlowFlags::from_bits(flags as u16));
    record.stamp = stamp;
    let mut i = 0;
    while i < F::RECORD {
        if let Some(word) = words.as_mut().get_mut(i) {
            *word = record.word(i);
        }
        i += 1;
    }
    0
}

#[inline(always)]
fn put<F: Numbered>(work: &mut Work, (flow, salt): (u32, u32), flags: FlowFlags, now: u32) {
    F::fill(flow, salt, flags, now);
    let Some(words) = F::words() else {
        return;
    };
    let room = F::insert(words, now);
    // Sums without branches: of branches the compiler makes an index, whose bound the verifier does not see.
    let is = |result: Insert| (room.result == result) as u64;
    work.inserted += is(Insert::Done);
    work.had_record += is(Insert::HasRecord);
    work.exists += is(Insert::Exists);
    work.full += is(Insert::Full);
    work.busy += is(Insert::Busy);
    if room.evicted != Class::Free {
        work.evicted += 1;
    }
}

/// One operation that a die chooses, on one of few flows.
#[inline(always)]
fn stress<F: Numbered>(work: &mut Work, flags: FlowFlags) {
    let mut x = work.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    work.random = x;
    work.counter += 1;
    let flow = ((x >> 20) as u32 & work.mask) + work.base;
    let die = x & 15;
    let (now, salt) = (now(), (x >> 40) as u32);
    let sought = tuple::<F>(flow);
    if die < 4 {
        put::<F>(work, (flow, salt), flags, now);
    } else if die < 6 {
        if F::delete(&sought) {
            work.deleted += 1;
        }
    } else if die == 6 {
        let class = if salt & 1 == 0 {
            Class::Confirmed
        } else {
            Class::Closed
        };
        if work.changes != 0 && F::change(&sought, changed(class), now) {
            work.changed += 1;
        }
    } else {
        match F::seek(flow, flags, (die & 1) as u32) {
            MISSED => work.missed += 1,
            found => {
                work.found += 1;
                work.wrong += (found == WRONG) as u64;
            }
        }
    }
}

/// What [`Numbered::seek`] gives besides 1, found and right.
const MISSED: u32 = 0;
const WRONG: u32 = 2;

/// Looks a flow up and compares it with what was put in.
#[inline(always)]
fn seek<F: Numbered>(flow: u32, flags: u32, is_derived: u32) -> u32 {
    let Some(words) = F::words() else {
        return MISSED;
    };
    let is_found = if is_derived == 0 {
        table::find_into::<F, _>(&FlowTable, &tuple::<F>(flow), words).is_some()
    } else {
        let reply =
            record::<F>(flow, 0, FlowFlags::from_bits(flags as u16)).derived(Derived::Reply);
        table::find_derived_into::<F, _>(&FlowTable, &reply, words).is_some()
    };
    if !is_found {
        return MISSED;
    }
    let found = Record::<F>::from_words(|i| match words.as_ref().get(i) {
        Some(word) => *word,
        None => 0,
    });
    let is_right = found.original == tuple::<F>(flow)
        && found.service == expected_service(found.backend, flow);
    if is_right { 1 } else { WRONG }
}

/// The next flow, in an order that is not the one of their tuples.
#[inline(always)]
fn next(work: &mut Work) -> u32 {
    let flow = (work.counter as u32).wrapping_mul(2_654_435_761) & work.mask;
    work.counter += 1;
    (flow ^ (flow >> 7)) + work.base
}

#[inline(always)]
fn find<F: Numbered>(work: &mut Work, reply: bool) {
    let flow = next(work);
    let seeds = F::geometry().seeds;
    let found = if reply {
        let reply = record::<F>(flow, 0, FlowFlags::NONE).derived(Derived::Reply);
        table::find_derived::<F, _>(&FlowTable, &reply, reply.hashed(&seeds))
            .map(|(found, _)| found)
    } else {
        let original = tuple::<F>(flow);
        table::find::<F, _>(&FlowTable, &original, original.hashed(&seeds))
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
fn insert<F: Numbered>(work: &mut Work, flags: FlowFlags) -> u32 {
    let (flow, now) = (next(work), now());
    put::<F>(work, (flow, flow & 63), flags, now);
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
    stress_v4: |work| stress::<V4>(work, FlowFlags::NONE);
    stress_v6: |work| stress::<V6>(work, FlowFlags::NONE);
    stress_halves: |work| stress::<V4>(work, HALVES);
    floor: |work| { let flow = next(work); work.sum ^= flow as u64; };
    find_v4: |work| find::<V4>(work, false);
    find_v6: |work| find::<V6>(work, false);
    find_reply_v4: |work| find::<V4>(work, true);
    find_reply_v6: |work| find::<V6>(work, true);
    insert_v4: |work| { insert::<V4>(work, FlowFlags::NONE); };
    insert_v6: |work| { insert::<V6>(work, FlowFlags::NONE); };
    insert_halves: |work| { insert::<V4>(work, HALVES); };
    confirm_v4: |work| {
        let flow = next(work);
        if V4::change(&tuple::<V4>(flow), changed(Class::Confirmed), now()) { work.changed += 1; }
    };
    churn_v4: |work| {
        let flow = insert::<V4>(work, FlowFlags::NONE);
        if V4::delete(&tuple::<V4>(flow.wrapping_sub(work.lag))) { work.deleted += 1; }
    };
}
