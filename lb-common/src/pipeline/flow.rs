//! What a packet does to a flow: found, followed, confirmed, replaced, opened.
//!
//! A new flow starts in `openings_*`, an LRU that a flood may churn; the first packet of the original
//! direction after a reply moves it to `flows_*`, which nothing evicts. The reply entry is always
//! written before the original one, so that no packet leaves whose reply would not be known.
//!
//! The packet's key and entry lie in the per-CPU [`Scratch`]: two keys and two entries of IPv6 do not
//! fit on the stack of a program beside everything else.

use super::affinity;
use super::head::Parsed;
use super::ip::Ip;
use super::tables::{FlowEntry, Insert, Tables};
use crate::abi::{
    Counter, DropReason, Flow, FlowFlags, FlowKey, Scratch, Side, Translation, Transport,
    flow_check,
};
use crate::wire::TcpFlags;

/// Where a flow stands, its entry read into the scratch.
#[derive(Clone, Copy)]
pub struct Place<E> {
    /// Its place.
    pub entry: E,
    /// Whether it is in `flows_*`.
    pub confirmed: bool,
}

/// Units of the stamp after which an entry's time of use is written again (about 2 s at HZ=250): a
/// table of many flows is not dirtied for every packet.
pub const RENEW: u32 = 2;

/// Whether the time of use is to be written again.
#[inline(always)]
pub const fn is_due(last_use: u32, stamp: u32) -> bool {
    stamp.wrapping_sub(last_use) >= RENEW
}

/// Looks the scratch's key up, confirmed flows first, and reads its entry into the scratch. An element
/// that was handed out again meanwhile is looked up once more.
#[inline(always)]
pub fn fetch<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> Option<Place<T::Entry>> {
    let check = flow_check(&scratch.key);
    let mut tries = 0;
    while tries < 2 {
        let (entry, confirmed) = match tables.flow(&scratch.key) {
            Some(entry) => (entry, true),
            None => (tables.opening(&scratch.key)?, false),
        };
        scratch.flow = entry.read();
        if scratch.flow.check == check {
            return Some(Place { entry, confirmed });
        }
        tables.count(Counter::StaleElement);
        tries += 1;
    }
    None
}

/// Notes a packet in its entry; writes only what changes.
#[inline(always)]
pub fn note<F: Ip, E: FlowEntry<F>>(entry: &E, flow: &Flow<F>, tcp: TcpFlags, stamp: u32) {
    let mut flags = FlowFlags::SEEN;
    if tcp.contains(TcpFlags::FIN) {
        flags |= FlowFlags::FIN;
    }
    if tcp.contains(TcpFlags::RST) {
        flags |= FlowFlags::RST;
    }
    if !flow.has(flags) {
        entry.add_flags(flags);
    }
    if is_due(flow.stamp, stamp) {
        entry.set_stamp(stamp);
    }
}

/// Whether a flow must not be followed any more by this packet: a SYN that meets a closing flow or a
/// backend that is gone (semantics 18.3), or UDP whose backend is gone (17.2).
#[inline(always)]
pub fn is_stale<F: Ip, T: Tables<F>>(
    tables: &T,
    packet: &Parsed<F>,
    scratch: &mut Scratch<F>,
) -> bool {
    let Scratch {
        key,
        flow,
        other_key,
        ..
    } = scratch;
    if flow.flags.intersects(FlowFlags::REPLY | FlowFlags::DIRECT) {
        return false;
    }
    let syn = packet.is_syn();
    if !syn && !packet.is_udp() {
        return false;
    }
    if backend_gone(tables, flow) {
        return true;
    }
    if !syn {
        return false;
    }
    if flow.flags.intersects(FlowFlags::CLOSING) {
        return true;
    }
    *other_key = flow.partner_key(key);
    match tables.flow(other_key).or_else(|| tables.opening(other_key)) {
        Some(reply) => reply.flags().intersects(FlowFlags::CLOSING),
        None => true,
    }
}

/// Whether the backend of a flow has got another meaning.
#[inline(always)]
pub fn backend_gone<F: Ip, T: Tables<F>>(tables: &T, flow: &Flow<F>) -> bool {
    match tables.backend(flow.backend) {
        Some(backend) => backend.generation() != flow.generation,
        None => true,
    }
}

/// Removes a flow that is replaced. UDP keeps its reply entries until they age: answers on their way
/// still reach the client. The egress entries of a TCP flow's replies age, too: nothing leads there.
#[inline(always)]
pub fn forget<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) {
    let Scratch {
        key,
        flow,
        other_key,
        ..
    } = scratch;
    remove(tables, key);
    if flow.has(FlowFlags::SNAT) {
        *other_key = flow.egress_key(key);
        remove(tables, other_key);
    }
    if key.proto != Transport::Udp.proto() {
        *other_key = flow.partner_key(key);
        remove(tables, other_key);
    }
    tables.count(Counter::Reselected);
}

/// Whether this entry translates what a backend answers a client outside, or on another node, that kept its address.
#[inline(always)]
pub fn is_outside_reply<F: Ip>(flow: &Flow<F>) -> bool {
    let others = FlowFlags::EGRESS | FlowFlags::ORIGINAL_AT_POD | FlowFlags::DIRECT;
    flow.flags & (FlowFlags::REPLY | others) == FlowFlags::REPLY
}

/// A backend accepts a connection, and here is the reply entry of one with the same client, port and backend that ended:
/// were the new one a frontend's, its SYN would have replaced the flow ([`is_stale`]). So the client reached the backend
/// past this node's frontends, from a port that it had used at one; the old flow gives way.
///
/// Ended: a reset, or a FIN of both. One FIN is not enough, a SYN-ACK may be sent again behind the client's.
#[inline(always)]
pub fn forget_if_over<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>, reply: &Flow<F>) -> bool {
    let original_key = reply.partner_key(key);
    let (mut flags, mut original_flags, mut is_whole) = (reply.flags, FlowFlags::NONE, false);
    if let Some(entry) = tables
        .flow(&original_key)
        .or_else(|| tables.opening(&original_key))
    {
        let original = entry.read();
        // Else the client's port was used again at the frontend, with another backend: that flow is another one.
        is_whole = original.check == flow_check(&original_key)
            && original.to.daddr == key.saddr
            && original.to.dport == key.sport
            && original.to.sport == key.dport;
        if is_whole {
            original_flags = original.flags;
            flags |= original_flags;
        }
    }
    let both = reply.flags & original_flags;
    if !flags.contains(FlowFlags::RST) && !both.contains(FlowFlags::FIN) {
        return false;
    }
    if is_whole {
        remove(tables, &original_key);
    }
    remove(tables, key);
    tables.count(Counter::OverForgotten);
    true
}

/// Removes an opening whose reply tuple went to another flow, and leaves that tuple alone.
#[inline(always)]
pub fn forget_own<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) {
    let Scratch {
        key,
        flow,
        other_key,
        ..
    } = scratch;
    remove(tables, key);
    if flow.has(FlowFlags::SNAT) {
        *other_key = flow.egress_key(key);
        remove(tables, other_key);
    }
    tables.count(Counter::Reselected);
}

/// Sees to it that the reply entry of an opening exists: the LRU may have evicted it. False where its
/// tuple belongs to another flow by now.
#[inline(always)]
pub fn ensure_reply<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> bool {
    let Scratch {
        key,
        flow,
        other_key,
        other,
    } = scratch;
    if flow.has(FlowFlags::REPLY) {
        return true;
    }
    *other_key = flow.partner_key(key);
    other.to = Translation {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
    };
    if let Some(entry) = tables.flow(other_key).or_else(|| tables.opening(other_key)) {
        return entry.read().to == other.to;
    }
    other.check = flow_check(other_key);
    other.stamp = tables.stamp();
    other.backend = flow.backend;
    other.generation = flow.generation;
    other.ifindex = 0;
    other.dmac = Default::default();
    other.flags = FlowFlags::REPLY
        | (flow.flags & (FlowFlags::SNAT | FlowFlags::HAIRPIN | FlowFlags::DIRECT));
    if key.side == Side::PodIn as u8 {
        other.flags |= FlowFlags::ORIGINAL_AT_POD;
    }
    tables.insert_opening(other_key, other) != Insert::Failed
}

#[inline(always)]
fn remove<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>) {
    tables.remove_opening(key);
    tables.remove_flow(key);
}

/// Moves both entries of an opening to `flows_*`, once the reply direction was seen and the client has
/// answered it. Tells whether it did: then the place that was found is no longer the flow's.
#[inline(always)]
pub fn confirm<F: Ip, T: Tables<F>>(
    tables: &T,
    packet: &Parsed<F>,
    scratch: &mut Scratch<F>,
    confirmed: bool,
) -> bool {
    let Scratch {
        key,
        flow,
        other_key,
        other,
    } = scratch;
    if confirmed || flow.has(FlowFlags::REPLY) {
        return false;
    }
    if packet.is_tcp() && !packet.tcp_flags.contains(TcpFlags::ACK) {
        return false;
    }
    *other_key = flow.partner_key(key);
    let Some(entry) = tables.opening(other_key).or_else(|| tables.flow(other_key)) else {
        return false;
    };
    *other = entry.read();
    let ours = other.to.saddr == key.daddr
        && other.to.daddr == key.saddr
        && other.to.sport == key.dport
        && other.to.dport == key.sport;
    if other.check != flow_check(other_key) || !ours || !other.has(FlowFlags::SEEN) {
        return false;
    }
    let stamp = tables.stamp();
    other.flags |= FlowFlags::CONFIRMED;
    other.stamp = stamp;
    flow.flags |= FlowFlags::CONFIRMED | FlowFlags::SEEN;
    flow.stamp = stamp;
    let reply = tables.insert_flow(other_key, other);
    let original = if reply == Insert::Failed {
        reply
    } else {
        tables.insert_flow(key, flow)
    };
    if original == Insert::Failed {
        if reply == Insert::Done {
            tables.remove_flow(other_key);
        }
        flow.flags = flow.flags.without(FlowFlags::CONFIRMED);
        tables.count(Counter::FlowsFull);
        return false;
    }
    tables.remove_opening(key);
    tables.remove_opening(other_key);
    tables.count(Counter::FlowConfirmed);
    affinity::remember_flow(tables, key, flow);
    true
}

/// Sees to it that the egress entry of an SNAT flow's direction exists, before tc lets the packet go on
/// to the stack. For openings this is done for every packet: the LRU may have evicted it.
#[inline(always)]
pub fn ensure_egress<F: Ip, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F>,
    confirmed: bool,
) -> Result<(), DropReason> {
    let Scratch {
        key,
        flow,
        other_key: egress_key,
        other: egress,
    } = scratch;
    *egress_key = flow.egress_key(key);
    *egress = *flow;
    egress.check = flow_check(egress_key);
    egress.stamp = tables.stamp();
    egress.flags = flow
        .flags
        .without(FlowFlags::SNAT | FlowFlags::HAS_EGRESS | FlowFlags::CLOSING)
        | FlowFlags::EGRESS;
    egress.ifindex = 0;
    let mut tries = 0;
    while tries < 2 {
        let inserted = if confirmed {
            tables.remove_opening(egress_key);
            tables.insert_flow(egress_key, egress)
        } else {
            tables.insert_opening(egress_key, egress)
        };
        match inserted {
            Insert::Done => return Ok(()),
            Insert::Failed => return Err(DropReason::FlowInsert),
            Insert::Exists => {}
        }
        let present = tables
            .flow(egress_key)
            .or_else(|| tables.opening(egress_key));
        if present.is_some_and(|entry| entry.read().to == egress.to) {
            return Ok(());
        }
        // Left over from an earlier flow with the same tuple between the hooks.
        remove(tables, egress_key);
        tries += 1;
    }
    Err(DropReason::FlowInsert)
}

/// Counts a packet of the original direction; service id 0 is no service port.
#[inline(always)]
pub fn count_original<F: Ip, T: Tables<F>>(tables: &T, service_id: u32, bytes: u32) {
    if service_id != 0 {
        tables.count_service_packet(service_id, bytes);
    }
}
