//! XDP at external interfaces: transmits what it can forward whole, passes everything else to tc.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Counter, DropReason};
use lb_common::family::Family;
use lb_common::pipeline::packet::{Offset, PacketBuf};
use lb_common::pipeline::verdict::{Hook, Outcome, Step};
use lb_common::pipeline::{commit, ingress, open_ingress, slow_ingress, write};
use lb_common::wire::{Eth, ethertype};
use lb_common::{V4, V6};

use crate::ctx::xdp::XdpPacket;
use crate::maps::TAILS_XDP;
use crate::programs::PacketFamily;
use crate::tables::{Kernel, count, count_drop};

/// Slots of `tails_xdp`, IPv4; IPv6 is the next one (`names::programs::TAILS_XDP_SLOTS`).
const SLOW: u32 = 0;
const OPEN: u32 = 2;
const WRITE: u32 = 4;
const COMMIT: u32 = 6;

/// External ingress.
#[xdp]
#[inline(always)]
pub fn xdp_ext_in(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let Some(eth) = packet.header::<Eth>(Offset::START) else {
        return XDP_PASS;
    };
    let ethertype = eth.ethertype();
    if ethertype == ethertype::IPV4 {
        fast::<V4>(&ctx, &mut packet)
    } else if ethertype == ethertype::IPV6 {
        fast::<V6>(&ctx, &mut packet)
    } else {
        XDP_PASS
    }
}

/// The slow path, IPv4.
#[xdp]
#[inline(always)]
pub fn xdp_slow_v4(ctx: XdpContext) -> u32 {
    slow::<V4>(&ctx)
}

/// The slow path, IPv6.
#[xdp]
#[inline(always)]
pub fn xdp_slow_v6(ctx: XdpContext) -> u32 {
    slow::<V6>(&ctx)
}

/// A packet without a flow, IPv4.
#[xdp]
#[inline(always)]
pub fn xdp_open_v4(ctx: XdpContext) -> u32 {
    open::<V4>(&ctx)
}

/// A packet without a flow, IPv6.
#[xdp]
#[inline(always)]
pub fn xdp_open_v6(ctx: XdpContext) -> u32 {
    open::<V6>(&ctx)
}

/// A new flow is written, IPv4.
#[xdp]
#[inline(always)]
pub fn xdp_write_v4(ctx: XdpContext) -> u32 {
    end::<V4>(&ctx, write::<V4, _>(&Kernel))
}

/// A new flow is written, IPv6.
#[xdp]
#[inline(always)]
pub fn xdp_write_v6(ctx: XdpContext) -> u32 {
    end::<V6>(&ctx, write::<V6, _>(&Kernel))
}

/// The table is changed behind a packet, IPv4.
#[xdp]
#[inline(always)]
pub fn xdp_commit_v4(ctx: XdpContext) -> u32 {
    end::<V4>(&ctx, commit::<V4, _>(&Kernel))
}

/// The table is changed behind a packet, IPv6.
#[xdp]
#[inline(always)]
pub fn xdp_commit_v6(ctx: XdpContext) -> u32 {
    end::<V6>(&ctx, commit::<V6, _>(&Kernel))
}

#[inline(always)]
fn fast<F: PacketFamily>(ctx: &XdpContext, packet: &mut XdpPacket) -> u32 {
    end::<F>(
        ctx,
        ingress::<F, _, _>(packet, &Kernel, Offset::ETH, Hook::Xdp),
    )
}

#[inline(always)]
fn slow<F: PacketFamily>(ctx: &XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    end::<F>(
        ctx,
        slow_ingress::<F, _, _>(&mut packet, &Kernel, Offset::ETH, Hook::Xdp),
    )
}

#[inline(always)]
fn open<F: PacketFamily>(ctx: &XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    end::<F>(
        ctx,
        open_ingress::<F, _, _>(&mut packet, &Kernel, Offset::ETH, Hook::Xdp),
    )
}

/// The end of a stage: the next one, or the packet's way.
#[inline(always)]
fn end<F: PacketFamily>(ctx: &XdpContext, outcome: Outcome) -> u32 {
    let slot = match outcome {
        Ok(Step::Slow) => SLOW,
        Ok(Step::Open) => OPEN,
        Ok(Step::Write) => WRITE,
        Ok(Step::Commit) => COMMIT,
        _ => return finish(&XdpPacket::new(ctx.ctx), outcome),
    };
    tail::<F>(ctx, slot)
}

/// Goes on in another program. Where it is missing tc does the work.
#[inline(always)]
fn tail<F: Family>(ctx: &XdpContext, slot: u32) -> u32 {
    // SAFETY: the context is this program's; nothing here needs to be dropped.
    unsafe { TAILS_XDP.tail_call(ctx, slot + F::INDEX as u32) }
    count_drop(DropReason::TailCall);
    XDP_PASS
}

#[inline(always)]
fn finish(packet: &XdpPacket, outcome: Outcome) -> u32 {
    match outcome {
        Ok(Step::Transmit(ifindex)) if ifindex == packet.ifindex() => XDP_TX,
        Ok(Step::Transmit(ifindex)) => {
            // SAFETY: a helper that takes numbers.
            let action = unsafe { bpf_redirect(ifindex, 0) };
            if action == XDP_REDIRECT as i64 {
                XDP_REDIRECT
            } else {
                XDP_DROP
            }
        }
        Ok(_) => {
            count(Counter::XdpPassed as u32);
            XDP_PASS
        }
        Err(reason) => {
            count_drop(reason);
            XDP_DROP
        }
    }
}
