//! The packet logic: no `unsafe`, no kernel. Stages over two traits, [`packet::PacketBuf`] and
//! [`tables::Tables`], named in order here.
//!
//! Each packet hook has a fast stage for what an established flow needs, and a slow one, reached by a
//! tail call, for the rest: it reads the packet again and may do anything. Natively the two are called
//! one after the other ([`run_ingress`], [`run_egress`]), so that every case runs through both.

pub mod flow;
pub mod hash;
pub mod icmp;
pub mod ip;
pub mod packet;
pub mod parse;
pub mod refuse;
pub mod rewrite;
pub mod select;
pub mod socket;
pub mod tables;
pub mod verdict;

use crate::abi::{
    Backend, BackendFlags, BackendState, Be16, Config, Counter, DropReason, Flow, FlowFlags,
    FlowKey, Fragment, FragmentKey, InterfaceRole, MacAddr, Scratch, ServiceFlags, ServiceKey,
    Side, flow_check, port_filter_slot, proto,
};
use crate::family::Address;
use crate::wire::Eth;
use flow::{Nat, Source};
use ip::{FragmentPart, Ip};
use packet::{NextHop, Offset, PacketBuf};
use parse::{Fast, Parsed};
use rewrite::Addresses;
use select::{Choice, Dial};
use tables::{FlowEntry, Tables};
use verdict::{Hook, Outcome, Step};

/// Bytes that the slow path wants directly accessible: any header chain that it reads, and the packet
/// that an ICMP error quotes.
pub const SLOW_BYTES: u32 = 256;

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
    if !may_be_ours(tables, hook, &parsed) {
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
        } else if parsed.ip.proto == proto::UDP && !flow.has(FlowFlags::DIRECT) {
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
        if !is_addressed(packet, tables) {
            return Ok(Step::Pass);
        }
        let Some(device) = transmitter(tables, &parsed, flow.ifindex) else {
            return Ok(Step::Pass);
        };
        flow::note(&entry, &flow, parsed.tcp_flags, stamp);
        count_original(tables, service_id, packet.len());
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
    count_original(tables, service_id, packet.len());
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

#[inline(always)]
fn count_original<F: Ip, T: Tables<F>>(tables: &T, service_id: u32, bytes: u32) {
    if service_id != 0 {
        tables.count_service_packet(service_id, bytes);
    }
}

/// One packet leaves, fast stage: translates the source of replies and of SNAT flows.
#[inline(always)]
pub fn egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    let parsed = match parse::fast::<F, P>(packet, l3) {
        Fast::Plain(parsed) => parsed,
        Fast::Slow => return Ok(Step::Slow),
        Fast::Other => return Ok(Step::Pass),
    };
    egress_translate(packet, tables, &parsed, true)
}

/// The same for packets that need care: fragments, options, extension headers.
#[inline(always)]
pub fn slow_egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let Some(mut parsed) = parse::any::<F, P>(packet, l3) else {
        return Ok(icmp_or_pass::<F, P>(packet, l3));
    };
    if !with_ports(tables, &mut parsed, Side::Out) {
        return Ok(Step::Pass);
    }
    let outcome = egress_translate(packet, tables, &parsed, false);
    if parsed.ip.fragment == FragmentPart::First && outcome == Ok(Step::Translated) {
        remember_fragment(tables, &parsed, Side::Out);
    }
    outcome
}

#[inline(always)]
fn egress_translate<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    again: bool,
) -> Outcome {
    let key = parsed.key(Side::Out);
    let Some(entry) = tables.flow(&key).or_else(|| tables.opening(&key)) else {
        return Ok(Step::Pass);
    };
    let flow = entry.read();
    if flow.check != flow_check(&key) {
        // Handed out again between lookup and read: the slow stage looks once more.
        tables.count(Counter::StaleElement);
        return if again {
            Ok(Step::Slow)
        } else {
            Err(DropReason::Rewrite)
        };
    }
    if flow.has(FlowFlags::DIRECT) && !is_pod_interface(tables, packet.ifindex()) {
        // A bridge in front of the pod's interface. Restored here, the tuple would meet the flow it was
        // moved out of the way of at the next hook.
        return Ok(Step::Pass);
    }
    if parsed.is_syn_ack() && flow::is_outside_reply(&flow) {
        if again {
            return Ok(Step::Slow);
        }
        if flow::forget_if_over(tables, &key, &flow) {
            return Ok(Step::Pass);
        }
    }
    flow::note(&entry, &flow, parsed.tcp_flags, tables.stamp());
    rewrite::translate(
        packet,
        parsed,
        &flow.to,
        (flow.to.sport, flow.to.dport),
        Addresses::Source,
    )?;
    tables.count(Counter::TcOutTranslated);
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
    if place.is_none() && hook == Hook::Pod && in_snat_range(&tables.config(), parsed.dport) {
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
        remember_fragment(tables, &parsed, hook.side());
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
        let outcome = transmit_found(packet, tables, &parsed, &scratch.flow, entry, last_use);
        if matches!(outcome, Ok(Step::Transmit(_))) {
            count_original(tables, service_id, bytes);
        }
        return outcome;
    }
    count_original(tables, service_id, bytes);
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

/// One packet arrives that has no flow, last stage: finds its Service, chooses a backend, writes the
/// flow.
#[inline(always)]
pub fn open_ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let (parsed, direct) = match arrived(packet, tables, l3, hook)? {
        Arrived::Packet { parsed, direct } => (parsed, direct),
        Arrived::Step(step) => return Ok(step),
    };
    let mut guard = tables.scratch().ok_or(DropReason::FlowInsert)?;
    let scratch = &mut *guard;
    scratch.key = parsed.key(hook.side());
    let (choice, source) = match plan(packet, tables, &parsed, scratch, hook, direct)? {
        Plan::Open(choice, source) => (choice, source),
        Plan::Step(step) => return Ok(step),
    };
    flow::open(tables, scratch, &choice, &source)?;
    if parsed.ip.fragment == FragmentPart::First {
        remember_fragment(tables, &parsed, hook.side());
    }
    tables.count_service_packet(choice.backend.service_id, packet.len());
    tables.event(&new_flow_event(
        packet.ifindex(),
        &scratch.key,
        &scratch.flow,
    ));
    if hook.is_xdp() {
        let hop = (scratch.flow.ifindex, scratch.flow.dmac);
        let Some(smac) = transmitter(tables, &parsed, hop.0) else {
            return Ok(Step::Pass);
        };
        return transmit(packet, tables, &parsed, &scratch.flow, hop, smac);
    }
    if scratch.flow.has(FlowFlags::SNAT) {
        flow::ensure_egress(tables, scratch, false)?;
    }
    carry(packet, tables, &parsed, scratch, hook)
}

/// One packet arrives: every stage that it needs, one after the other. In the kernel each is a program
/// of its own.
#[cfg(not(target_arch = "bpf"))]
pub fn run_ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    let mut outcome = ingress::<F, P, T>(packet, tables, l3, hook);
    if outcome == Ok(Step::Slow) {
        outcome = slow_ingress::<F, P, T>(packet, tables, l3, hook);
    }
    if outcome == Ok(Step::Open) {
        outcome = open_ingress::<F, P, T>(packet, tables, l3, hook);
    }
    match outcome {
        Ok(Step::Refuse) => refuse::refuse::<F, P, T>(packet, tables, l3),
        Ok(Step::Icmp) => icmp::translate::<F, P, T>(packet, tables, l3, hook.side()),
        _ => outcome,
    }
}

/// One packet leaves: every stage that it needs.
#[cfg(not(target_arch = "bpf"))]
pub fn run_egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    let mut outcome = egress::<F, P, T>(packet, tables, l3);
    if outcome == Ok(Step::Slow) {
        outcome = slow_egress::<F, P, T>(packet, tables, l3);
    }
    if outcome == Ok(Step::Icmp) {
        return icmp::translate::<F, P, T>(packet, tables, l3, Side::Out);
    }
    outcome
}

/// A packet of the slow stages.
enum Arrived<F: Ip> {
    /// To be looked up; `direct`: it is no Service's, but its tuple may be taken.
    Packet {
        parsed: Parsed<F>,
        direct: bool,
    },
    Step(Step),
}

/// Reads a packet that needs care.
#[inline(always)]
fn arrived<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Result<Arrived<F>, DropReason> {
    let Some(mut parsed) = parse::any::<F, P>(packet, l3) else {
        return Ok(Arrived::Step(if hook.is_xdp() {
            Step::Pass
        } else {
            icmp_or_pass::<F, P>(packet, l3)
        }));
    };
    if hook.is_xdp()
        && (parsed.ip.fragment != FragmentPart::Whole
            || parsed.ip.l4 != plain_l4::<F>(l3)
            || !is_addressed(packet, tables))
    {
        return Ok(Arrived::Step(Step::Pass));
    }
    if !with_ports(tables, &mut parsed, hook.side()) {
        // Overtook its first fragment: passed on it could be reassembled under the wrong address.
        // The prefix of all ClusterIPs may hold other addresses, so the address itself is asked for.
        let any = ServiceKey::new(parsed.ip.daddr, Be16 { be: 0 }, 0);
        if F::in_cluster_range(&tables.config(), &parsed.ip.daddr)
            && flow::service(tables, &any).is_some()
        {
            return Err(DropReason::FragmentOrphan);
        }
        return Ok(Arrived::Step(Step::Pass));
    }
    let direct = !may_be_ours(tables, hook, &parsed);
    if direct && unless_direct(tables, hook, &parsed) == Step::Pass {
        return Ok(Arrived::Step(Step::Pass));
    }
    Ok(Arrived::Packet { parsed, direct })
}

/// What is to be made of a packet without a flow.
enum Plan<F: Ip> {
    /// A flow to this backend, with this source.
    Open(Choice<F>, Source<F>),
    Step(Step),
}

/// A packet without a flow: finds its Service, chooses a backend, decides about its source.
#[inline(always)]
fn plan<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F>,
    scratch: &mut Scratch<F>,
    hook: Hook,
    direct: bool,
) -> Result<Plan<F>, DropReason> {
    let config = tables.config();
    let pod = hook == Hook::Pod;
    let mut source = Source {
        nat: Nat::Keep,
        addr: F::node_addr(&config),
        ports: (config.snat_port_min, config.snat_port_max),
        ifindex: 0,
        dmac: MacAddr::default(),
        flags: FlowFlags::NONE,
    };
    let key = &scratch.key;
    let service = if direct {
        None
    } else {
        flow::service(tables, &ServiceKey::new(key.daddr, key.dport, key.proto))
    };
    let Some(service) = service else {
        if !direct && F::in_cluster_range(&config, &key.daddr) && !hook.is_xdp() {
            let any = ServiceKey::new(key.daddr, Be16 { be: 0 }, 0);
            if flow::service(tables, &any).is_some() {
                // A port that no Service defines on this ClusterIP (semantics 11.1).
                return Ok(Plan::Step(Step::Refuse));
            }
        }
        if !pod || !parsed.is_syn() || !flow::is_reply_taken(tables, scratch) {
            return Ok(Plan::Step(Step::Pass));
        }
        // A connection that is no Service's, but whose reply tuple belongs to a flow: with another source
        // port its replies are not taken for that flow's.
        let key = &scratch.key;
        tables.note_direct_port(key.dport);
        tables.count(Counter::DirectRewritten);
        source.flags = FlowFlags::DIRECT;
        let choice = Choice {
            id: 0,
            backend: Backend::new(key.daddr, key.dport, 0, BackendState::default(), 0),
        };
        return Ok(Plan::Open(choice, source));
    };
    if service.has(ServiceFlags::SOURCE_RANGES) && !tables.in_source_range(service.id, key.saddr) {
        return Err(DropReason::SourceRange);
    }
    let list = select::list(&service, pod);
    if list.rows.len == 0 {
        if hook.is_xdp() {
            return Ok(Plan::Step(Step::Pass));
        }
        if service.has(ServiceFlags::HAS_ENDPOINTS) {
            return Err(DropReason::NoLocalEndpoint);
        }
        return Ok(Plan::Step(Step::Refuse));
    }
    let dial = Dial {
        saddr: key.saddr,
        daddr: key.daddr,
        sport: key.sport,
        dport: key.dport,
        proto: key.proto,
        inside: pod,
    };
    let choice = select::backend(tables, &service, &list, &dial).ok_or(DropReason::BackendGone)?;
    source.nat = flow::nat::<F>(config.modes, hook, &service, &key.saddr, &choice.backend);
    if hook.is_xdp() && (source.nat != Nat::Snat || choice.backend.has(BackendFlags::LOCAL)) {
        return Ok(Plan::Step(Step::Pass));
    }
    if source.nat == Nat::Snat {
        let hop = packet.route::<F>(
            &key.saddr,
            &choice.backend.addr,
            key.proto,
            parsed.ip.ip_len,
        );
        if let Some(hop) = hop {
            if let Some(interface) = tables.interface(hop.ifindex) {
                let preferred = F::source_of(&interface);
                if !preferred.is_unspecified() {
                    source.addr = preferred;
                }
            }
            if hop.ready {
                source.ifindex = hop.ifindex;
                source.dmac = hop.dmac;
            }
        }
        if hook.is_xdp() && transmitter(tables, parsed, source.ifindex).is_none() {
            return Ok(Plan::Step(Step::Pass));
        }
    }
    if source.nat != Nat::Keep && source.addr.is_unspecified() {
        return Err(DropReason::NoSourceAddress);
    }
    Ok(Plan::Open(choice, source))
}

/// Sends a packet of a flow that XDP found by its next hop, which is asked for again.
#[inline(always)]
fn transmit_found<F: Ip, P: PacketBuf, T: Tables<F>>(
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
        parsed.ip.proto,
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

/// Whether a place is still the flow's: another CPU may have confirmed it meanwhile.
#[inline(always)]
fn is_still<F: Ip, E: FlowEntry<F>>(entry: &E, flow: &Flow<F>) -> bool {
    entry.read().check == flow.check
}

/// Translates a packet whole and addresses it to its next hop.
#[inline(always)]
fn transmit<F: Ip, P: PacketBuf, T: Tables<F>>(
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

/// Translates a packet at tc and lets the stack go on with it.
#[inline(always)]
fn carry<F: Ip, P: PacketBuf, T: Tables<F>>(
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

/// Own link-layer address of the interface that XDP may transmit this packet by.
#[inline(always)]
fn transmitter<F: Ip, T: Tables<F>>(
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
fn is_addressed<F: Ip, P: PacketBuf, T: Tables<F>>(packet: &P, tables: &T) -> bool {
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

/// Whether an arriving packet can concern us at all.
#[inline(always)]
fn may_be_ours<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, parsed: &Parsed<F>) -> bool {
    if port_filter_slot(parsed.ip.proto).is_none() {
        return false;
    }
    if tables.may_be_ours(parsed.ip.proto, parsed.dport) {
        return true;
    }
    // Every port of a ClusterIP concerns us: what no Service defines is refused (semantics 11.1).
    F::in_cluster_range(&tables.config(), &parsed.ip.daddr) && !hook.is_xdp()
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

#[inline(always)]
fn is_pod_interface<F: Ip, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    tables
        .interface(ifindex)
        .is_some_and(|interface| interface.role == InterfaceRole::Pod as u8)
}

#[inline(always)]
fn in_snat_range(config: &Config, port: Be16) -> bool {
    let port = port.to_host();
    port >= config.snat_port_min && port <= config.snat_port_max
}

/// Where the transport header of a packet without options and extension headers starts.
#[inline(always)]
fn plain_l4<F: Ip>(l3: Offset) -> Offset {
    l3.plus(if F::IS_V6 { 40 } else { 20 })
}

#[inline(always)]
const fn ingress_counter(hook: Hook) -> Counter {
    match hook {
        Hook::Xdp => Counter::XdpTranslated,
        Hook::External => Counter::TcExternalTranslated,
        Hook::Pod => Counter::TcPodTranslated,
    }
}

/// Fills in the ports of a later fragment; false where its first has not been seen.
#[inline(always)]
fn with_ports<F: Ip, T: Tables<F>>(tables: &T, parsed: &mut Parsed<F>, side: Side) -> bool {
    if parsed.ip.fragment != FragmentPart::Later {
        return true;
    }
    let Some(ports) = tables.fragment(&fragment_key(parsed, side)) else {
        return false;
    };
    (parsed.sport, parsed.dport) = (ports.sport, ports.dport);
    true
}

#[inline(always)]
fn remember_fragment<F: Ip, T: Tables<F>>(tables: &T, parsed: &Parsed<F>, side: Side) {
    let value = Fragment {
        sport: parsed.sport,
        dport: parsed.dport,
    };
    tables.set_fragment(&fragment_key(parsed, side), &value);
}

#[inline(always)]
fn fragment_key<F: Ip>(parsed: &Parsed<F>, side: Side) -> FragmentKey<F> {
    FragmentKey::new(
        parsed.ip.saddr,
        parsed.ip.daddr,
        parsed.ip.id,
        parsed.ip.proto,
        side,
    )
}

/// Neither TCP nor UDP: an ICMP message may be about a flow.
#[inline(always)]
fn icmp_or_pass<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Step {
    match F::any(packet, l3) {
        Some(ip) if ip.proto == F::ICMP && ip.fragment == FragmentPart::Whole => Step::Icmp,
        _ => Step::Pass,
    }
}

#[inline(always)]
fn new_flow_event<F: Ip>(ifindex: u32, key: &FlowKey<F>, flow: &Flow<F>) -> crate::abi::Event {
    use crate::family::Address;
    let wide = |a: &F::Addr| crate::abi::Addr6 {
        be: [a.word(0), a.word(1), a.word(2), a.word(3)],
    };
    let mut event = crate::abi::Event::new(crate::abi::EventKind::NewFlow);
    event.family = if F::IS_V6 { 6 } else { 4 };
    event.proto = key.proto;
    event.side = key.side;
    event.ifindex = ifindex;
    event.saddr = wide(&key.saddr);
    event.daddr = wide(&key.daddr);
    event.backend_addr = wide(&flow.to.daddr);
    event.sport = key.sport;
    event.dport = key.dport;
    event.backend_port = flow.to.dport;
    event
}
