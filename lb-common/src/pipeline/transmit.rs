//! Packet of a flow → frame on another interface: what XDP sends by itself.

use super::flow::{self, Met};
use super::head::Parsed;
use super::ip::Ip;
use super::packet::{NextHop, Offset, PacketBuf};
use super::rewrite::{self, Addresses};
use super::tables::Tables;
use super::verdict::{Outcome, Step};
use super::work::{Wanted, Work};
use crate::abi::{Counter, FlowFlags, MacAddr, Translation, XdpDevice};
use crate::flow_table::Hop;
use crate::wire::Eth;

/// Sends a packet of a flow that XDP found by its next hop, which is asked for again.
#[inline(always)]
pub(super) fn transmit_found<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    met: &Met<T::Cells, &Work<F>>,
    wanted: &mut Wanted,
) -> Outcome {
    let record = met.record();
    let stamp = tables.stamp();
    let known = met.hop::<F>();
    if known.is_known() && !flow::is_due(record.stamp, stamp) {
        let Some(device) = transmitter(tables, parsed, known.slot) else {
            return Ok(Step::Pass);
        };
        return transmit(packet, tables, parsed, &met.to(), known.mac, &device);
    }
    // About every 30 s a packet goes by the stack, so that the kernel's neighbour machine confirms the
    // next hop or gives it up; spread by port, or all flows would do so at once. Only of a flow of which a packet has gone
    // that way before unchanged: somebody else's NAT there would make it another connection's.
    let spread = (parsed.sport.be ^ parsed.dport.be) as u32;
    if record.flags.contains(FlowFlags::OUT_SEEN)
        && flow::is_due(record.stamp, stamp)
        && stamp.wrapping_add(spread) & 31 < flow::RENEW
    {
        return Ok(Step::Pass);
    }
    // By the packet's own source, as the stack would and as the flow's first packet did.
    let hop = packet.route::<F>(
        &parsed.ip.saddr,
        &met.to::<F>().daddr,
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
    // While an opening waits, its numbers lie where the reply's hop will.
    let may_note = !wanted.change.has_hop()
        && (!met.leg.is_reply() || record.flags.contains(FlowFlags::CONFIRMED));
    let device = if hop.ready {
        slot_of(tables, hop.ifindex)
    } else {
        None
    };
    let Some(slot) = device else {
        // The fast stage must not go on with a next hop that is no more.
        if may_note && known.is_known() {
            note(met, &Hop::default(), wanted);
        }
        return Ok(Step::Pass);
    };
    let Some(device) = transmitter(tables, parsed, slot) else {
        return Ok(Step::Pass);
    };
    let noted = Hop {
        mac: hop.dmac,
        slot,
    };
    if may_note && known != noted {
        note(met, &noted, wanted);
    }
    flow::touch(met.cells, record.stamp, stamp);
    transmit(packet, tables, parsed, &met.to(), hop.dmac, &device)
}

/// Wants a next hop written. Where the lock is not to be had the next packet does it.
#[inline(always)]
fn note<C, R>(met: &Met<C, R>, hop: &Hop, wanted: &mut Wanted) {
    wanted.change(wanted.change.hop(met.leg.direction(), hop));
}

/// Translates a packet whole and addresses it to its next hop.
#[inline(always)]
pub(super) fn transmit<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    to: &Translation<F>,
    dmac: MacAddr,
    device: &XdpDevice,
) -> Outcome {
    rewrite::translate(packet, parsed, to, (to.sport, to.dport), Addresses::Both)?;
    rewrite::forward::<F, P>(packet, parsed.l3, dmac, device.mac)?;
    tables.count(Counter::XdpTranslated);
    Ok(Step::Transmit(device.ifindex))
}

/// The interface of a slot, if XDP may transmit this packet by it.
#[inline(always)]
pub(super) fn transmitter<F: Ip, T: Tables<F>>(
    tables: &T,
    parsed: &Parsed<F>,
    slot: u8,
) -> Option<XdpDevice> {
    if parsed.ip.ttl <= 1 {
        return None;
    }
    let device = tables.xdp_device_at(slot)?;
    if device.ifindex == 0 || parsed.ip.ip_len > device.mtu {
        return None;
    }
    Some(device)
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

/// The slot of an interface that XDP may transmit by.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "less than 256")]
pub(super) fn slot_of<F: Ip, T: Tables<F>>(tables: &T, ifindex: u32) -> Option<u8> {
    let device = tables.xdp_device(ifindex)?;
    if ifindex == 0 || device.ifindex != ifindex {
        return None;
    }
    Some(XdpDevice::slot(ifindex) as u8)
}
