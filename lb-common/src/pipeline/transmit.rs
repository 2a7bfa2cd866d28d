//! Packet of a flow → frame on another interface: what XDP sends by itself.

use super::flow;
use super::head::Parsed;
use super::ip::Ip;
use super::packet::{NextHop, Offset, PacketBuf};
use super::rewrite::{self, Addresses};
use super::tables::{FlowEntry, Tables};
use super::verdict::{Outcome, Step};
use crate::abi::{Counter, Flow, MacAddr};
use crate::wire::Eth;

/// Sends a packet of a flow that XDP found by its next hop, which is asked for again.
#[inline(always)]
pub(super) fn transmit_found<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    flow: &Flow<F>,
    entry: Option<T::Entry>,
    last_use: u32,
) -> Outcome {
    let stamp = tables.stamp();
    // About every 30 s a packet goes by the stack, so that the kernel's neighbour machine confirms the
    // next hop or gives it up; spread by port, or all flows would do so at once.
    let spread = (parsed.sport.be ^ parsed.dport.be) as u32;
    if flow::is_due(last_use, stamp) && stamp.wrapping_add(spread) & 31 < flow::RENEW {
        return Ok(Step::Pass);
    }
    // By the packet's own source, as the stack would and as the flow's first packet did.
    let hop = packet.route::<F>(
        &parsed.ip.saddr,
        &flow.to.daddr,
        parsed.transport.proto(),
        parsed.ip.ip_len,
    );
    tables.count(Counter::NextHop);
    // Not an option of a next hop: partly initialised it would not verify.
    let hop = match hop {
        Some(hop) => hop,
        None => NextHop {
            ifindex: 0,
            dmac: MacAddr::default(),
            ready: false,
        },
    };
    if !hop.ready || !has_device(tables, hop.ifindex) {
        // The fast stage must not go on with a next hop that is no more.
        if let Some(entry) = entry
            && is_still(&entry, flow)
        {
            entry.set_next_hop(0, MacAddr::default());
        }
        return Ok(Step::Pass);
    }
    let Some(smac) = transmitter(tables, parsed, hop.ifindex) else {
        return Ok(Step::Pass);
    };
    if let Some(entry) = entry
        && is_still(&entry, flow)
    {
        if flow.ifindex != hop.ifindex || flow.dmac != hop.dmac {
            entry.set_next_hop(hop.ifindex, hop.dmac);
        }
        if flow::is_due(last_use, stamp) {
            entry.set_stamp(stamp);
        }
    }
    transmit(packet, tables, parsed, flow, (hop.ifindex, hop.dmac), smac)
}

/// Translates a packet whole and addresses it to its next hop.
#[inline(always)]
pub(super) fn transmit<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    flow: &Flow<F>,
    (ifindex, dmac): (u32, MacAddr),
    smac: MacAddr,
) -> Outcome {
    rewrite::translate(
        packet,
        parsed,
        &flow.to,
        (flow.to.sport, flow.to.dport),
        Addresses::Both,
    )?;
    rewrite::forward::<F, P>(packet, parsed.l3, dmac, smac)?;
    tables.count(Counter::XdpTranslated);
    Ok(Step::Transmit(ifindex))
}

/// Own link-layer address of the interface that XDP may transmit this packet by.
#[inline(always)]
pub(super) fn transmitter<F: Ip, T: Tables<F>>(
    tables: &T,
    parsed: &Parsed<F>,
    ifindex: u32,
) -> Option<MacAddr> {
    if ifindex == 0 || parsed.ip.ttl <= 1 {
        return None;
    }
    let device = tables.xdp_device(ifindex)?;
    if device.ifindex != ifindex || parsed.ip.ip_len > device.mtu {
        return None;
    }
    Some(device.mac)
}

/// Whether the frame is addressed to the interface that it arrived at. An interface that also hears frames of others
/// (a mirror port, a bridge that floods) must not forward them a second time; tc tells by the packet's type.
#[inline(always)]
pub(super) fn is_addressed<F: Ip, P: PacketBuf, T: Tables<F>>(packet: &P, tables: &T) -> bool {
    let ifindex = packet.ifindex();
    let Some(eth) = packet.header::<Eth>(Offset::START) else {
        return false;
    };
    let [a, b, c] = eth.dst().be;
    let Some(device) = tables.xdp_device(ifindex) else {
        return false;
    };
    let [d, e, f] = device.mac.be;
    device.ifindex == ifindex && (a ^ d) | (b ^ e) | (c ^ f) == 0
}

/// Whether XDP may transmit by an interface.
#[inline(always)]
fn has_device<F: Ip, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    ifindex != 0
        && tables
            .xdp_device(ifindex)
            .is_some_and(|device| device.ifindex == ifindex)
}

/// Whether a place is still the flow's: another CPU may have confirmed it meanwhile.
#[inline(always)]
fn is_still<F: Ip, E: FlowEntry<F>>(entry: &E, flow: &Flow<F>) -> bool {
    entry.read().check == flow.check
}
