//! The benchmark's front program: puts the packet back to its template, picks a flow and tail-calls the
//! program under test. A test run does not undo what a program did to the packet between repeats; this
//! does, at a cost that the same front measures with an empty program behind it.
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
#![feature(asm_experimental_arch)]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};

#[path = "ctx/pointer.rs"]
mod pointer;
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

/// Bytes of the packet that are put back.
const PAINTED: usize = 80;

/// What the front does; written by the benchmark.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plan {
    /// The packet's first bytes.
    pub template: [u64; PAINTED / 8],
    /// Packets so far.
    pub counter: u64,
    /// Flows less one, a power of two less one; all 1: every packet is a new flow.
    pub mask: u32,
    /// Where a 32-bit word of the address that varies lies (its lower 18 bits vary).
    pub addr_at: u32,
    /// Its value for flow 0, host byte order.
    pub addr_base: u32,
    /// Where the port that varies lies.
    pub port_at: u32,
}

/// Type    array of 1
/// Entry   [`Plan`]
#[btf_map(name = "front_plan")]
static FRONT_PLAN: Array<Plan, 1> = Array::new();

/// The program under test: slot 0.
#[btf_map(name = "front_xdp_jmp")]
static FRONT_XDP: ProgramArray<1> = ProgramArray::new();

/// The program under test: slot 0.
#[btf_map(name = "front_tc_jmp")]
static FRONT_TC: ProgramArray<1> = ProgramArray::new();

/// Paints the packet; false where it is too short.
#[inline(always)]
fn paint(data: usize, end: usize) -> bool {
    if data + PAINTED > end {
        return false;
    }
    let Some(plan) = FRONT_PLAN.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a map value; the benchmark runs one front at a time.
    let plan = unsafe { &mut *plan };
    let packet = data as *mut u64;
    let mut i = 0;
    while i < PAINTED / 8 {
        // SAFETY: `i` is less than the words compared against `end` above.
        let word = unsafe { packet.add(i) };
        // SAFETY: as above.
        unsafe { word.write(plan.template[i]) }
        i += 1;
    }
    let count = plan.counter;
    plan.counter = count + 1;
    // A multiplicative walk visits the flows out of order (Knuth's constant).
    let flow = if plan.mask == u32::MAX {
        count as u32
    } else {
        (count as u32).wrapping_mul(2_654_435_761) & plan.mask
    };
    let addr = data + (plan.addr_at & 0x3f) as usize;
    let port = data + (plan.port_at & 0x3f) as usize;
    // A variable offset is a pointer of its own to the verifier, which wants its own comparison.
    if addr + 4 > end || port + 2 > end {
        return false;
    }
    // SAFETY: compared against `end` above; this machine stores to any alignment.
    unsafe { (addr as *mut u32).write((plan.addr_base + (flow >> 14)).to_be()) }
    // SAFETY: as above.
    unsafe { (port as *mut u16).write((16_384 + (flow & 16_383) as u16).to_be()) }
    true
}

/// XDP front.
#[xdp]
pub fn front_xdp(ctx: XdpContext) -> u32 {
    if paint(packet_pointer!(ctx.ctx, "0"), packet_pointer!(ctx.ctx, "4")) {
        // SAFETY: the context is this program's; nothing here needs to be dropped.
        unsafe { FRONT_XDP.tail_call(&ctx, 0) }
    }
    XDP_ABORTED
}

/// tc front.
#[classifier]
pub fn front_tc(ctx: TcContext) -> i32 {
    if paint(
        packet_pointer!(ctx.skb.skb, "76"),
        packet_pointer!(ctx.skb.skb, "80"),
    ) {
        // SAFETY: the context is this program's; nothing here needs to be dropped.
        unsafe { FRONT_TC.tail_call(&ctx, 0) }
    }
    TC_ACT_SHOT
}

/// Floor of XDP.
#[xdp]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// Floor of tc.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Floor of connect().
#[cgroup_sock_addr(connect4)]
pub fn empty_connect4(_ctx: SockAddrContext) -> i32 {
    1
}
