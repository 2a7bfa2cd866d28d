//! A packet arrives: what belongs to a flow is translated, what may belong to none yet is left to
//! [`open_ingress`](super::open_ingress).

use super::head::{FragmentPart, Parsed, plain_l4};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::parse::{self, Fast};
use super::rewrite::{self, Addresses};
use super::tables::{FlowEntry, Tables};
use super::verdict::{Hook, Outcome, Step};
use super::{flow, fragment, icmp, nat, service, transmit};
use crate::abi::{Counter, DropReason, FlowFlags, Scratch, Side, flow_check};

/// One packet arrives, fast stage: translates what belongs to an established flow.
#[inline(always)]
pub fn ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    let parsed = match parse::fast::<F, P>(packet, l3) {
        Fast::Plain(parsed) => parsed,
        Fast::Slow => return Ok(Step::Slow),
        Fast::Other => return Ok(Step::Pass),
    };
    if !service::may_be_ours(tables, hook, &parsed) {
        return Ok(unless_direct(tables, hook, &parsed));
    }
    let key = parsed.key(hook.side());
    let Some(entry) = tables.flow(&key) else {
        return Ok(Step::Slow);
    };
    let flow = entry.read();
    let stamp = tables.stamp();
    if flow.check != flow_check(&key) || parsed.is_syn() || flow.has(FlowFlags::HAIRPIN) {
        return Ok(Step::Slow);
    }
    // 0 is no service port. Counted where the packet is sent on, or two hooks would count it.
    let mut service_id = 0;
    if !flow.has(FlowFlags::REPLY)
        && let Some(backend) = tables.backend(flow.backend)
    {
        if backend.generation() == flow.generation {
            service_id = backend.service_id;
        } else if parsed.is_udp() && !flow.has(FlowFlags::DIRECT) {
            return Ok(Step::Slow);
        }
    }
    if hook.is_xdp() {
        if !flow.has(FlowFlags::SNAT) {
            return Ok(Step::Pass);
        }
        if flow.ifindex == 0 || flow::is_due(flow.stamp, stamp) {
            // The next hop is looked up again whenever the time of use is written.
            return Ok(Step::Slow);
        }
        if !transmit::is_addressed(packet, tables) {
            return Ok(Step::Pass);
        }
        let Some(device) = transmit::transmitter(tables, &parsed, flow.ifindex) else {
            return Ok(Step::Pass);
        };
        flow::note(&entry, &flow, parsed.tcp_flags, stamp);
        flow::count_original(tables, service_id, packet.len());
        rewrite::translate(
            packet,
            &parsed,
            &flow.to,
            (flow.to.sport, flow.to.dport),
            Addresses::Both,
        )?;
        rewrite::forward::<F, P>(packet, l3, flow.dmac, device)?;
        tables.count(Counter::XdpTranslated);
        return Ok(Step::Transmit(flow.ifindex));
    }
    if flow.flags & (FlowFlags::SNAT | FlowFlags::HAS_EGRESS) == FlowFlags::SNAT {
        return Ok(Step::Slow);
    }
    flow::note(&entry, &flow, parsed.tcp_flags, stamp);
    flow::count_original(tables, service_id, packet.len());
    rewrite::translate(
        packet,
        &parsed,
        &flow.to,
        flow.ingress_ports(&key),
        Addresses::Destination,
    )?;
    tables.count(ingress_counter(hook));
    Ok(Step::Translated)
}

/// One packet arrives, slow stage: follows a flow that the fast stage could not, [`Step::Open`] where
/// there is none.
#[inline(always)]
pub fn slow_ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let parsed = match arrived(packet, tables, l3, hook)? {
        Arrived::Packet { parsed, .. } => parsed,
        Arrived::Step(step) => return Ok(step),
    };
    let mut guard = tables.scratch().ok_or(DropReason::FlowInsert)?;
    let scratch = &mut *guard;
    scratch.key = parsed.key(hook.side());
    let mut place = flow::fetch(tables, scratch);
    if place.is_none() && hook == Hook::Pod && nat::in_snat_range(&tables.config(), parsed.dport) {
        // A backend behind a pod interface that no slice says is local (hand-written, semantics 28.50).
        scratch.key.side = Side::ExternalIn as u8;
        place = flow::fetch(tables, scratch);
    }
    let Some(place) = place else {
        return Ok(Step::Open);
    };
    if hook.is_xdp() && !scratch.flow.has(FlowFlags::SNAT) {
        return Ok(Step::Pass);
    }
    if flow::is_stale(tables, &parsed, scratch) {
        flow::forget(tables, scratch);
        return Ok(Step::Open);
    }
    if !place.confirmed && !flow::ensure_reply(tables, scratch) {
        flow::forget_own(tables, scratch);
        return Ok(Step::Open);
    }
    if parsed.ip.fragment == FragmentPart::First {
        fragment::remember(tables, &parsed, hook.side());
    }
    let last_use = scratch.flow.stamp;
    flow::note(&place.entry, &scratch.flow, parsed.tcp_flags, last_use);
    let moved = flow::confirm(tables, &parsed, scratch, place.confirmed);
    // The place of a flow that was moved may belong to another flow by now.
    let entry = if moved { None } else { Some(place.entry) };
    let mut service_id = 0;
    if !scratch.flow.has(FlowFlags::REPLY)
        && let Some(backend) = tables.backend(scratch.flow.backend)
        && backend.generation() == scratch.flow.generation
    {
        service_id = backend.service_id;
    }
    let bytes = packet.len();
    if hook.is_xdp() {
        let outcome =
            transmit::transmit_found(packet, tables, &parsed, &scratch.flow, entry, last_use);
        if matches!(outcome, Ok(Step::Transmit(_))) {
            flow::count_original(tables, service_id, bytes);
        }
        return outcome;
    }
    flow::count_original(tables, service_id, bytes);
    if scratch.flow.has(FlowFlags::SNAT) {
        flow::ensure_egress(tables, scratch, place.confirmed || moved)?;
    }
    if let Some(entry) = entry {
        if place.confirmed && scratch.flow.has(FlowFlags::SNAT) {
            entry.add_flags(FlowFlags::HAS_EGRESS);
        }
        let stamp = tables.stamp();
        if flow::is_due(last_use, stamp) {
            entry.set_stamp(stamp);
        }
    }
    carry(packet, tables, &parsed, scratch, hook)
}

/// A packet of the slow stages.
pub(super) enum Arrived<F: Ip> {
    /// To be looked up; `direct`: it is no Service's, but its tuple may be taken.
    Packet { parsed: Parsed<F>, direct: bool },
    /// Decided without a look at the tables.
    Step(Step),
}

/// Reads a packet that needs care.
#[inline(always)]
pub(super) fn arrived<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Result<Arrived<F>, DropReason> {
    let Some(mut parsed) = parse::any::<F, P>(packet, l3) else {
        return Ok(Arrived::Step(if hook.is_xdp() {
            Step::Pass
        } else {
            icmp::or_pass::<F, P>(packet, l3)
        }));
    };
    if hook.is_xdp()
        && (parsed.ip.fragment != FragmentPart::Whole
            || parsed.ip.l4 != plain_l4::<F>(l3)
            || !transmit::is_addressed(packet, tables))
    {
        return Ok(Arrived::Step(Step::Pass));
    }
    if !fragment::with_ports(tables, &mut parsed, hook.side()) {
        // Overtook its first fragment: passed on it could be reassembled under the wrong address.
        if service::is_cluster_ip(tables, &tables.config(), &parsed.ip.daddr) {
            return Err(DropReason::FragmentOrphan);
        }
        return Ok(Arrived::Step(Step::Pass));
    }
    let direct = !service::may_be_ours(tables, hook, &parsed);
    if direct && unless_direct(tables, hook, &parsed) == Step::Pass {
        return Ok(Arrived::Step(Step::Pass));
    }
    Ok(Arrived::Packet { parsed, direct })
}

/// What is to be done with a packet that is no Service's: from a pod, its tuple may be taken.
#[inline(always)]
fn unless_direct<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, parsed: &Parsed<F>) -> Step {
    if hook == Hook::Pod
        && parsed.is_tcp()
        && (parsed.is_syn() || tables.is_direct_port(parsed.dport))
    {
        return Step::Slow;
    }
    Step::Pass
}

/// Translates a packet at tc and lets the stack go on with it.
#[inline(always)]
pub(super) fn carry<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    scratch: &Scratch<F>,
    hook: Hook,
) -> Outcome {
    let flow = &scratch.flow;
    let hairpin = flow.has(FlowFlags::HAIRPIN);
    let (ports, which) = if hairpin {
        ((flow.to.sport, flow.to.dport), Addresses::Both)
    } else {
        (flow.ingress_ports(&scratch.key), Addresses::Destination)
    };
    rewrite::translate(packet, parsed, &flow.to, ports, which)?;
    if parsed.ip.fragment == FragmentPart::Later {
        tables.count(Counter::Fragment);
    }
    if hairpin {
        rewrite::turn_round(packet, parsed.l3)?;
        tables.count(Counter::Hairpin);
        return Ok(Step::Reflect);
    }
    tables.count(ingress_counter(hook));
    Ok(Step::Translated)
}

#[inline(always)]
const fn ingress_counter(hook: Hook) -> Counter {
    match hook {
        Hook::Xdp => Counter::XdpTranslated,
        Hook::External => Counter::TcExternalTranslated,
        Hook::Pod => Counter::TcPodTranslated,
    }
}
