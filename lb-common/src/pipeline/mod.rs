//! The packet logic: no `unsafe`, no kernel. Stages over two traits, [`packet::PacketBuf`] and
//! [`tables::Tables`], named in order here.
//!
//! Each packet hook has a fast stage for what an established flow needs, and a slow one, reached by a
//! tail call, for the rest: it reads the packet again and may do anything. Natively the two are called
//! one after the other ([`run_ingress`], [`run_egress`]), so that every case runs through both.

pub mod flow;
pub mod hash;
pub mod ip;
pub mod packet;
pub mod parse;
pub mod rewrite;
pub mod select;
pub mod tables;
pub mod verdict;

use crate::abi::{
    Be16, Config, Counter, DropReason, Flow, FlowFlags, FlowKey, Fragment, FragmentKey, MacAddr,
    ServiceFlags, ServiceKey, Side, flow_check, port_filter_slot, proto,
};
use flow::{Found, Nat, Source};
use ip::{FragmentPart, Ip};
use packet::{Offset, PacketBuf};
use parse::{Fast, Parsed};
use rewrite::Addresses;
use select::Dial;
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
    if !flow.has(FlowFlags::REPLY)
        && let Some(backend) = tables.backend(flow.backend)
    {
        if backend.generation() == flow.generation {
            tables.count_service_packet(backend.service_id, packet.len());
        } else if parsed.ip.proto == proto::UDP && !flow.has(FlowFlags::DIRECT) {
            return Ok(Step::Slow);
        }
    }
    if hook.is_xdp() {
        if !flow.has(FlowFlags::SNAT) {
            return Ok(Step::Pass);
        }
        if flow.ifindex == 0 || flow.stamp != stamp {
            // The next hop is looked up again, at most once in a unit of the stamp.
            return Ok(Step::Slow);
        }
        let Some(device) = transmitter(tables, &parsed, flow.ifindex) else {
            return Ok(Step::Pass);
        };
        flow::note(&entry, &flow, parsed.tcp_flags, stamp);
        rewrite::translate(packet, &parsed, &flow.to, Addresses::Both)?;
        rewrite::forward::<F, P>(packet, l3, flow.dmac, device)?;
        tables.count(Counter::XdpTranslated);
        return Ok(Step::Transmit(flow.ifindex));
    }
    if flow.flags & (FlowFlags::SNAT | FlowFlags::HAS_EGRESS) == FlowFlags::SNAT {
        return Ok(Step::Slow);
    }
    flow::note(&entry, &flow, parsed.tcp_flags, stamp);
    let mut to = flow.to;
    (to.sport, to.dport) = flow.ingress_ports(&key);
    rewrite::translate(packet, &parsed, &to, Addresses::Destination)?;
    tables.count(ingress_counter(hook));
    Ok(Step::Translated)
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
    egress_translate(packet, tables, &parsed)
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
    let outcome = egress_translate(packet, tables, &parsed);
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
) -> Outcome {
    let key = parsed.key(Side::Out);
    let Some(entry) = tables.flow(&key).or_else(|| tables.opening(&key)) else {
        return Ok(Step::Pass);
    };
    let flow = entry.read();
    if flow.check != flow_check(&key) {
        tables.count(Counter::StaleElement);
        return Err(DropReason::Rewrite);
    }
    flow::note(&entry, &flow, parsed.tcp_flags, tables.stamp());
    rewrite::translate(packet, parsed, &flow.to, Addresses::Source)?;
    tables.count(Counter::TcOutTranslated);
    Ok(Step::Translated)
}

/// One packet arrives, slow stage: everything that the fast one leaves.
#[inline(always)]
pub fn slow_ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let Some(mut parsed) = parse::any::<F, P>(packet, l3) else {
        return Ok(if hook.is_xdp() {
            Step::Pass
        } else {
            icmp_or_pass::<F, P>(packet, l3)
        });
    };
    let part = parsed.ip.fragment;
    if hook.is_xdp() && (part != FragmentPart::Whole || parsed.ip.l4 != plain_l4::<F>(l3)) {
        return Ok(Step::Pass);
    }
    let config = tables.config();
    if !with_ports(tables, &mut parsed, hook.side()) {
        // Overtook its first fragment: passed on it could be reassembled under the wrong address.
        let ours = F::in_cluster_range(&config, &parsed.ip.daddr);
        return if ours {
            Err(DropReason::FragmentOrphan)
        } else {
            Ok(Step::Pass)
        };
    }
    let direct = !may_be_ours(tables, hook, &parsed);
    if direct && unless_direct(tables, hook, &parsed) == Step::Pass {
        return Ok(Step::Pass);
    }
    let mut key = parsed.key(hook.side());
    let mut found = flow::find(tables, &key);
    if found.is_none() && hook == Hook::Pod && in_snat_range(&config, parsed.dport) {
        // A backend behind a pod interface that no slice says is local (hand-written, 28.50).
        let external = parsed.key(Side::ExternalIn);
        found = flow::find(tables, &external);
        if found.is_some() {
            key = external;
        }
    }
    let found = match found {
        Some(found) if flow::is_stale(tables, &parsed, &key, &found.flow) => {
            if hook.is_xdp() && !found.flow.has(FlowFlags::SNAT) {
                return Ok(Step::Pass);
            }
            flow::forget(tables, &key, &found.flow);
            None
        }
        other => other,
    };
    let (flow, confirmed) = match found {
        Some(found) => {
            if hook.is_xdp() && !found.flow.has(FlowFlags::SNAT) {
                return Ok(Step::Pass);
            }
            (
                follow(packet, tables, &parsed, &key, &found),
                found.confirmed,
            )
        }
        None => match open(packet, tables, &parsed, &key, &config, hook, direct)? {
            Opened::Flow(flow) => (flow, false),
            Opened::Step(step) => return Ok(step),
        },
    };
    if part == FragmentPart::First {
        remember_fragment(tables, &parsed, hook.side());
    }
    carry(packet, tables, &parsed, &key, flow, confirmed, hook)
}

/// Follows a flow that was found: state, statistics, confirmation.
#[inline(always)]
fn follow<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F>,
    key: &FlowKey<F>,
    found: &Found<F, T::Entry>,
) -> Flow<F> {
    flow::note(
        &found.entry,
        &found.flow,
        parsed.tcp_flags,
        found.flow.stamp,
    );
    if !found.flow.has(FlowFlags::REPLY) {
        if let Some(backend) = tables.backend(found.flow.backend)
            && backend.generation() == found.flow.generation
        {
            tables.count_service_packet(backend.service_id, packet.len());
        }
        flow::confirm(tables, parsed, key, found);
    }
    found.flow
}

/// How opening ended where no flow came of it.
enum Opened<F: Ip> {
    Flow(Flow<F>),
    Step(Step),
}

/// A packet without a flow: finds its Service, chooses a backend, writes the flow.
#[inline(always)]
fn open<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F>,
    key: &FlowKey<F>,
    config: &Config,
    hook: Hook,
    direct: bool,
) -> Result<Opened<F>, DropReason> {
    let service = if direct {
        None
    } else {
        flow::service(tables, &ServiceKey::new(key.daddr, key.dport, key.proto))
    };
    let Some(service) = service else {
        if !direct && F::in_cluster_range(config, &key.daddr) && !hook.is_xdp() {
            let any = ServiceKey::new(key.daddr, Be16 { be: 0 }, 0);
            if flow::service(tables, &any).is_some() {
                // A port that no Service defines on this ClusterIP (semantics 11.1).
                return Ok(Opened::Step(Step::Refuse));
            }
        }
        return open_direct(tables, parsed, key, config, hook);
    };
    let pod = hook == Hook::Pod;
    if service.has(ServiceFlags::SOURCE_RANGES) && !tables.in_source_range(service.id, key.saddr) {
        return Err(DropReason::SourceRange);
    }
    let list = select::list(&service, pod);
    if list.rows.len == 0 {
        if hook.is_xdp() {
            return Ok(Opened::Step(Step::Pass));
        }
        if service.has(ServiceFlags::HAS_ENDPOINTS) {
            return Err(DropReason::NoLocalEndpoint);
        }
        return Ok(Opened::Step(Step::Refuse));
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
    let nat = flow::nat::<F>(config.modes, hook, &service, &key.saddr, &choice.backend);
    let mut source = Source {
        nat,
        addr: F::node_addr(config),
        ports: (config.snat_port_min, config.snat_port_max),
        ifindex: 0,
        dmac: MacAddr::default(),
        flags: 0,
    };
    if hook.is_xdp()
        && (nat != Nat::Snat || choice.backend.state & crate::abi::BackendState::LOCAL != 0)
    {
        return Ok(Opened::Step(Step::Pass));
    }
    if nat == Nat::Snat {
        let hop = packet.route::<F>(
            &key.saddr,
            &choice.backend.addr,
            key.proto,
            parsed.ip.ip_len,
        );
        if let Some(hop) = hop {
            if let Some(interface) = tables.interface(hop.ifindex) {
                let preferred = F::source_of(&interface);
                if !crate::family::Address::is_unspecified(&preferred) {
                    source.addr = preferred;
                }
            }
            if hop.ready {
                source.ifindex = hop.ifindex;
                source.dmac = hop.dmac;
            }
        }
        if hook.is_xdp() && transmitter(tables, parsed, source.ifindex).is_none() {
            return Ok(Opened::Step(Step::Pass));
        }
    }
    if nat != Nat::Keep && crate::family::Address::is_unspecified(&source.addr) {
        return Err(DropReason::NoSourceAddress);
    }
    let flow = flow::open(tables, key, &choice, &source)?;
    tables.count_service_packet(service.id, packet.len());
    tables.event(&new_flow_event(packet.ifindex(), key, &flow));
    Ok(Opened::Flow(flow))
}

/// A connection that is no Service's, opened from a pod: where its reply tuple belongs to a flow, it
/// gets a flow of its own with another source port, else the reply would be taken for that flow's.
#[inline(always)]
fn open_direct<F: Ip, T: Tables<F>>(
    tables: &T,
    parsed: &Parsed<F>,
    key: &FlowKey<F>,
    config: &Config,
    hook: Hook,
) -> Result<Opened<F>, DropReason> {
    if hook != Hook::Pod || !parsed.is_syn() {
        return Ok(Opened::Step(Step::Pass));
    }
    let reply = FlowKey::new(
        key.daddr,
        key.saddr,
        key.dport,
        key.sport,
        key.proto,
        Side::Out,
    );
    if flow::find(tables, &reply).is_none() {
        return Ok(Opened::Step(Step::Pass));
    }
    let choice = select::Choice {
        id: 0,
        backend: crate::abi::Backend::new(key.daddr, key.dport, 0, 0, 0),
    };
    let source = Source {
        nat: Nat::Keep,
        addr: key.saddr,
        ports: (config.snat_port_min, config.snat_port_max),
        ifindex: 0,
        dmac: MacAddr::default(),
        flags: FlowFlags::DIRECT,
    };
    let flow = flow::open(tables, key, &choice, &source)?;
    tables.note_direct_port(key.dport);
    tables.count(Counter::DirectRewritten);
    Ok(Opened::Flow(flow))
}

/// Sends the packet on its way by its flow.
#[inline(always)]
fn carry<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    key: &FlowKey<F>,
    flow: Flow<F>,
    confirmed: bool,
    hook: Hook,
) -> Outcome {
    let stamp = tables.stamp();
    if hook.is_xdp() {
        // About every 30 s a packet goes by the stack, so that the kernel's neighbour machine confirms
        // the next hop or gives it up; spread by port, or all flows would do so at once.
        let turn = stamp.wrapping_add(parsed.sport.be as u32) & 31;
        if flow.stamp != stamp && turn == 0 {
            return Ok(Step::Pass);
        }
        let hop = packet.route::<F>(&flow.to.saddr, &flow.to.daddr, key.proto, parsed.ip.ip_len);
        let Some(hop) = hop else {
            return Ok(Step::Pass);
        };
        tables.count(Counter::NextHop);
        let Some(smac) = transmitter(tables, parsed, if hop.ready { hop.ifindex } else { 0 })
        else {
            return Ok(Step::Pass);
        };
        if let Some(found) = flow::find(tables, key) {
            if found.flow.ifindex != hop.ifindex || found.flow.dmac != hop.dmac {
                found.entry.set_next_hop(hop.ifindex, hop.dmac);
            }
            found.entry.set_stamp(stamp);
        }
        rewrite::translate(packet, parsed, &flow.to, Addresses::Both)?;
        rewrite::forward::<F, P>(packet, parsed.l3, hop.dmac, smac)?;
        tables.count(Counter::XdpTranslated);
        return Ok(Step::Transmit(hop.ifindex));
    }
    if flow.has(FlowFlags::SNAT) {
        flow::ensure_egress(tables, key, &flow, confirmed)?;
    }
    if let Some(found) = flow::find(tables, key) {
        if found.confirmed && flow.has(FlowFlags::SNAT) {
            if !confirmed {
                // Confirmed by this packet: its egress entry belongs there, too.
                flow::ensure_egress(tables, key, &flow, true)?;
            }
            found.entry.add_flags(FlowFlags::HAS_EGRESS);
        }
        if found.flow.stamp != stamp {
            found.entry.set_stamp(stamp);
        }
    }
    if flow.has(FlowFlags::HAIRPIN) {
        rewrite::translate(packet, parsed, &flow.to, Addresses::Both)?;
        rewrite::turn_round(packet, parsed.l3)?;
        tables.count(Counter::Hairpin);
        return Ok(Step::Reflect);
    }
    let mut to = flow.to;
    (to.sport, to.dport) = flow.ingress_ports(key);
    rewrite::translate(packet, parsed, &to, Addresses::Destination)?;
    if parsed.ip.fragment == FragmentPart::Later {
        tables.count(Counter::Fragment);
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
