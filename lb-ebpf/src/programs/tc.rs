//! tc: ingress of external and pod interfaces, egress of both. The stack routes in between.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::abi::{DropReason, Side};
use lb_common::family::Family;
use lb_common::pipeline::icmp::translate;
use lb_common::pipeline::packet::{Offset, PacketBuf};
use lb_common::pipeline::refuse::refuse;
use lb_common::pipeline::verdict::{Hook, Outcome, Step};
use lb_common::pipeline::{
    commit, egress, ingress, open_ingress, slow_egress, slow_ingress, write,
};
use lb_common::wire::{W32, ethertype};
use lb_common::{V4, V6};

use crate::ctx::tc::TcPacket;
use crate::maps::TAILS_TC;
use crate::programs::PacketFamily;
use crate::tables::{Kernel, clock as read_clock, count_drop};

/// Slots of `tails_tc`, IPv4; IPv6 is the next one (`names::programs::TAILS_TC_SLOTS`).
const SLOW_EXTERNAL: u32 = 0;
const SLOW_POD: u32 = 2;
const SLOW_OUT: u32 = 4;
const REFUSE: u32 = 6;
const ICMP: u32 = 8;
const OPEN_EXTERNAL: u32 = 10;
const OPEN_POD: u32 = 12;
const WRITE: u32 = 14;
const COMMIT: u32 = 16;

/// Which fast path an entry point runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    External,
    Pod,
    Out,
}

impl Way {
    #[inline(always)]
    const fn slow_slot(self) -> u32 {
        match self {
            Way::External => SLOW_EXTERNAL,
            Way::Pod => SLOW_POD,
            Way::Out => SLOW_OUT,
        }
    }
    /// Nothing opens at egress.
    #[inline(always)]
    const fn open_slot(self) -> u32 {
        match self {
            Way::Pod => OPEN_POD,
            Way::External | Way::Out => OPEN_EXTERNAL,
        }
    }
    #[inline(always)]
    const fn side(self) -> Side {
        match self {
            Way::External => Side::ExternalIn,
            Way::Pod => Side::PodIn,
            Way::Out => Side::Out,
        }
    }
}

/// Pod interface ingress.
#[classifier]
#[inline(always)]
pub fn tc_pod_in(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::ETH, Way::Pod)
}

/// External interface ingress.
#[classifier]
#[inline(always)]
pub fn tc_ext_in(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::ETH, Way::External)
}

/// Egress of any interface.
#[classifier]
#[inline(always)]
pub fn tc_out(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::ETH, Way::Out)
}

/// Pod interface ingress without a link-layer header.
#[classifier]
#[inline(always)]
pub fn tc_pod_in_l3(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::START, Way::Pod)
}

/// External interface ingress without a link-layer header.
#[classifier]
#[inline(always)]
pub fn tc_ext_in_l3(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::START, Way::External)
}

/// Egress of any interface without a link-layer header.
#[classifier]
#[inline(always)]
pub fn tc_out_l3(ctx: TcContext) -> i32 {
    by_family(&ctx, Offset::START, Way::Out)
}

/// External ingress, the slow path, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_ext_slow_v4(ctx: TcContext) -> i32 {
    slow::<V4>(&ctx, Way::External)
}

/// External ingress, the slow path, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_ext_slow_v6(ctx: TcContext) -> i32 {
    slow::<V6>(&ctx, Way::External)
}

/// Pod ingress, the slow path, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_pod_slow_v4(ctx: TcContext) -> i32 {
    slow::<V4>(&ctx, Way::Pod)
}

/// Pod ingress, the slow path, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_pod_slow_v6(ctx: TcContext) -> i32 {
    slow::<V6>(&ctx, Way::Pod)
}

/// Egress, the slow path, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_out_slow_v4(ctx: TcContext) -> i32 {
    slow::<V4>(&ctx, Way::Out)
}

/// Egress, the slow path, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_out_slow_v6(ctx: TcContext) -> i32 {
    slow::<V6>(&ctx, Way::Out)
}

/// External ingress, a packet without a flow, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_ext_open_v4(ctx: TcContext) -> i32 {
    open::<V4>(&ctx, Hook::External)
}

/// External ingress, a packet without a flow, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_ext_open_v6(ctx: TcContext) -> i32 {
    open::<V6>(&ctx, Hook::External)
}

/// Pod ingress, a packet without a flow, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_pod_open_v4(ctx: TcContext) -> i32 {
    open::<V4>(&ctx, Hook::Pod)
}

/// Pod ingress, a packet without a flow, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_pod_open_v6(ctx: TcContext) -> i32 {
    open::<V6>(&ctx, Hook::Pod)
}

/// A packet that nobody serves, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_refuse_v4(ctx: TcContext) -> i32 {
    anywhere::<V4>(&ctx, |packet, l3, _| {
        refuse::<V4, _, _>(packet, &Kernel, l3)
    })
}

/// A packet that nobody serves, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_refuse_v6(ctx: TcContext) -> i32 {
    anywhere::<V6>(&ctx, |packet, l3, _| {
        refuse::<V6, _, _>(packet, &Kernel, l3)
    })
}

/// An ICMP message at any side.
#[classifier]
#[inline(always)]
pub fn tc_icmp_v4(ctx: TcContext) -> i32 {
    anywhere::<V4>(&ctx, |packet, l3, side| {
        translate::<V4, _, _>(packet, &Kernel, l3, side)
    })
}

/// An ICMPv6 message at any side.
#[classifier]
#[inline(always)]
pub fn tc_icmp_v6(ctx: TcContext) -> i32 {
    anywhere::<V6>(&ctx, |packet, l3, side| {
        translate::<V6, _, _>(packet, &Kernel, l3, side)
    })
}

/// A new flow is written, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_write_v4(ctx: TcContext) -> i32 {
    anywhere::<V4>(&ctx, |_, _, _| write::<V4, _>(&Kernel))
}

/// A new flow is written, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_write_v6(ctx: TcContext) -> i32 {
    anywhere::<V6>(&ctx, |_, _, _| write::<V6, _>(&Kernel))
}

/// The table is changed behind a packet, IPv4.
#[classifier]
#[inline(always)]
pub fn tc_commit_v4(ctx: TcContext) -> i32 {
    anywhere::<V4>(&ctx, |_, _, _| commit::<V4, _>(&Kernel))
}

/// The table is changed behind a packet, IPv6.
#[classifier]
#[inline(always)]
pub fn tc_commit_v6(ctx: TcContext) -> i32 {
    anywhere::<V6>(&ctx, |_, _, _| commit::<V6, _>(&Kernel))
}

/// Reads the kernel's clocks into the first 16 bytes of the packet; run by the agent, never attached.
#[classifier]
#[inline(always)]
pub fn clock(ctx: TcContext) -> i32 {
    let mut packet = TcPacket::new(ctx.skb.skb);
    let now = read_clock();
    #[allow(clippy::cast_possible_truncation, reason = "the halves of a word")]
    let words = [
        now.jiffies as u32,
        (now.jiffies >> 32) as u32,
        now.monotonic_ns as u32,
        (now.monotonic_ns >> 32) as u32,
    ];
    let mut i = 0;
    while i < 4 {
        let Some(word) = packet.header_mut::<W32>(Offset::new(4 * i)) else {
            return TC_ACT_SHOT;
        };
        word.set(lb_common::abi::Be32 {
            be: words[i as usize],
        });
        i += 1;
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn by_family(ctx: &TcContext, l3: Offset, way: Way) -> i32 {
    let mut packet = TcPacket::new(ctx.skb.skb);
    let protocol = packet.protocol();
    if packet.is_vlan() || (way == Way::External && packet.is_others()) {
        return TC_ACT_UNSPEC;
    }
    if protocol == ethertype::IPV4.be as u32 {
        fast::<V4>(ctx, &mut packet, l3, way)
    } else if protocol == ethertype::IPV6.be as u32 {
        fast::<V6>(ctx, &mut packet, l3, way)
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn fast<F: PacketFamily>(ctx: &TcContext, packet: &mut TcPacket, l3: Offset, way: Way) -> i32 {
    let outcome = match way {
        Way::External => ingress::<F, _, _>(packet, &Kernel, l3, Hook::External),
        Way::Pod => ingress::<F, _, _>(packet, &Kernel, l3, Hook::Pod),
        Way::Out => egress::<F, _, _>(packet, &Kernel, l3),
    };
    if matches!(outcome, Ok(Step::Slow | Step::Open)) {
        packet.leave_note(l3, way.side() as u32);
    }
    finish::<F>(ctx, packet, way, outcome)
}

#[inline(always)]
fn slow<F: PacketFamily>(ctx: &TcContext, way: Way) -> i32 {
    let mut packet = TcPacket::new(ctx.skb.skb);
    let (l3, _) = packet.note();
    let outcome = match way {
        Way::External => slow_ingress::<F, _, _>(&mut packet, &Kernel, l3, Hook::External),
        Way::Pod => slow_ingress::<F, _, _>(&mut packet, &Kernel, l3, Hook::Pod),
        Way::Out => slow_egress::<F, _, _>(&mut packet, &Kernel, l3),
    };
    finish::<F>(ctx, &packet, way, outcome)
}

#[inline(always)]
fn open<F: PacketFamily>(ctx: &TcContext, hook: Hook) -> i32 {
    let mut packet = TcPacket::new(ctx.skb.skb);
    let (l3, _) = packet.note();
    let outcome = open_ingress::<F, _, _>(&mut packet, &Kernel, l3, hook);
    let way = if hook == Hook::Pod {
        Way::Pod
    } else {
        Way::External
    };
    finish::<F>(ctx, &packet, way, outcome)
}

/// A stage of any hook: which one is in the note.
#[inline(always)]
fn anywhere<F: PacketFamily>(
    ctx: &TcContext,
    stage: impl FnOnce(&mut TcPacket, Offset, Side) -> Outcome,
) -> i32 {
    let mut packet = TcPacket::new(ctx.skb.skb);
    let (l3, side) = packet.note();
    let Some(side) = Side::from_u8(side as u8) else {
        return TC_ACT_UNSPEC;
    };
    let outcome = stage(&mut packet, l3, side);
    let way = match side {
        Side::ExternalIn => Way::External,
        Side::PodIn => Way::Pod,
        Side::Out => Way::Out,
    };
    finish::<F>(ctx, &packet, way, outcome)
}

#[inline(always)]
fn finish<F: PacketFamily>(ctx: &TcContext, packet: &TcPacket, way: Way, outcome: Outcome) -> i32 {
    let slot = match outcome {
        Ok(Step::Slow) => way.slow_slot(),
        Ok(Step::Open) => way.open_slot(),
        Ok(Step::Write) => WRITE,
        Ok(Step::Commit) => COMMIT,
        Ok(Step::Refuse) => REFUSE,
        Ok(Step::Icmp) => ICMP,
        Ok(Step::Reflect) => {
            // SAFETY: a helper that takes numbers.
            return (unsafe { bpf_redirect(packet.ifindex(), 0) }) as i32;
        }
        Ok(_) => return TC_ACT_UNSPEC,
        Err(reason) => {
            count_drop(reason);
            return TC_ACT_SHOT;
        }
    };
    tail::<F>(ctx, slot)
}

/// Goes on in another program. Where it is missing the packet is left alone and counted.
#[inline(always)]
fn tail<F: Family>(ctx: &TcContext, slot: u32) -> i32 {
    // SAFETY: the context is this program's; nothing here needs to be dropped.
    unsafe { TAILS_TC.tail_call(ctx, slot + F::INDEX as u32) }
    count_drop(DropReason::TailCall);
    TC_ACT_UNSPEC
}
