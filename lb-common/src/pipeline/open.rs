//! A packet without a flow → a flow: its Service, a backend, its source, both entries.

use super::head::{FragmentPart, Parsed};
use super::ingress::{Arrived, arrived, carry};
use super::ip::Ip;
use super::nat::{self, Nat, Source};
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::select::{self, Choice, Dial};
use super::tables::{FlowEntry, Insert, Tables};
use super::verdict::{Hook, Outcome, Step};
use super::{flow, fragment, hash, service, transmit};
use crate::abi::{
    Addr6, Backend, BackendFlags, BackendState, Be16, Counter, DropReason, Event, EventKind, Flow,
    FlowFlags, FlowKey, MacAddr, Scratch, ServiceFlags, ServiceKey, Side, Translation, flow_check,
};
use crate::family::Address;
use crate::wire::Ports;

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
    open(tables, scratch, &choice, &source)?;
    if parsed.ip.fragment == FragmentPart::First {
        fragment::remember(tables, &parsed, hook.side());
    }
    tables.count_service_packet(choice.backend.service_id, packet.len());
    tables.event(&new_flow_event(
        packet.ifindex(),
        &scratch.key,
        &scratch.flow,
    ));
    if hook.is_xdp() {
        let hop = (scratch.flow.ifindex, scratch.flow.dmac);
        let Some(smac) = transmit::transmitter(tables, &parsed, hop.0) else {
            return Ok(Step::Pass);
        };
        return transmit::transmit(packet, tables, &parsed, &scratch.flow, hop, smac);
    }
    if scratch.flow.has(FlowFlags::SNAT) {
        flow::ensure_egress(tables, scratch, false)?;
    }
    carry(packet, tables, &parsed, scratch, hook)
}

/// What is to be made of a packet without a flow.
enum Plan<F: Ip> {
    /// A flow to this backend, with this source.
    Open(Choice<F>, Source<F>),
    /// None; the packet goes this way.
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
        ports: config.snat_ports,
        ifindex: 0,
        dmac: MacAddr::default(),
        flags: FlowFlags::NONE,
    };
    let key = &scratch.key;
    let service = if direct {
        None
    } else {
        service::find(tables, &ServiceKey::new(key.daddr, key.dport, key.proto))
    };
    let Some(service) = service else {
        if !direct && !hook.is_xdp() && service::is_cluster_ip(tables, &config, &key.daddr) {
            // A port that no Service defines on this ClusterIP (semantics 11.1).
            return Ok(Plan::Step(Step::Refuse));
        }
        if !pod || !parsed.is_syn() || !is_reply_taken(tables, scratch) {
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
        transport: parsed.transport,
        inside: pod,
    };
    let choice = select::backend(tables, &service, &list, &dial).ok_or(DropReason::BackendGone)?;
    source.nat = nat::nat::<F>(config.modes, hook, &service, &key.saddr, &choice.backend);
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
        if hook.is_xdp() && transmit::transmitter(tables, parsed, source.ifindex).is_none() {
            return Ok(Plan::Step(Step::Pass));
        }
    }
    if source.nat != Nat::Keep && source.addr.is_unspecified() {
        return Err(DropReason::NoSourceAddress);
    }
    Ok(Plan::Open(choice, source))
}

/// Whether the reply tuple of the scratch's key, were it not translated, belongs to a flow.
#[inline(always)]
fn is_reply_taken<F: Ip, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F>) -> bool {
    let Scratch { key, other_key, .. } = scratch;
    *other_key = FlowKey::new(
        key.daddr,
        key.saddr,
        key.dport,
        key.sport,
        key.proto,
        Side::Out,
    );
    tables
        .flow(other_key)
        .or_else(|| tables.opening(other_key))
        .is_some()
}

/// Source ports that are tried for one flow.
const PORT_TRIES: u32 = 6;

/// Writes both entries of a new flow of the scratch's key. The scratch then holds the original entry:
/// ours, or that of the CPU that was first.
#[inline(always)]
fn open<F: Ip, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F>,
    choice: &Choice<F>,
    source: &Source<F>,
) -> Result<(), DropReason> {
    let Scratch {
        key,
        flow,
        other_key: reply_key,
        other: reply,
    } = scratch;
    let stamp = tables.stamp();

    flow.check = flow_check(key);
    flow.stamp = stamp;
    flow.backend = choice.id;
    flow.generation = choice.backend.generation();
    flow.ifindex = source.ifindex;
    flow.dmac = source.dmac;
    flow.flags = FlowFlags::SEEN | source.flags;
    flow.to = Translation {
        saddr: if source.nat == Nat::Keep {
            key.saddr
        } else {
            source.addr
        },
        daddr: choice.backend.addr,
        sport: key.sport,
        dport: choice.backend.port,
    };
    reply.stamp = stamp;
    reply.backend = flow.backend;
    reply.generation = flow.generation;
    reply.ifindex = 0;
    reply.dmac = Default::default();
    reply.flags = FlowFlags::REPLY | (source.flags & FlowFlags::DIRECT);
    reply.to = Translation {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
    };
    if key.side == Side::PodIn as u8 {
        reply.flags |= FlowFlags::ORIGINAL_AT_POD;
    }
    match source.nat {
        Nat::Keep => {}
        Nat::Snat => {
            flow.flags |= FlowFlags::SNAT;
            reply.flags |= FlowFlags::SNAT;
            if choice.backend.has(BackendFlags::LOCAL) {
                flow.flags |= FlowFlags::REPLY_AT_POD;
            }
        }
        Nat::Hairpin => {
            flow.flags |= FlowFlags::HAIRPIN | FlowFlags::REPLY_AT_POD;
            reply.flags |= FlowFlags::HAIRPIN;
        }
    }
    write_reply(tables, key, flow, reply_key, reply, source)?;
    let mut tries = 0;
    while tries < 2 {
        match tables.insert_opening(key, flow) {
            Insert::Done => {
                tables.count(Counter::NewFlow);
                tables.count_service_flow(choice.backend.service_id);
                return Ok(());
            }
            Insert::Failed => break,
            Insert::Exists => {}
        }
        tables.count(Counter::InsertRace);
        let Some(winner) = tables.opening(key).or_else(|| tables.flow(key)) else {
            break;
        };
        *reply = winner.read();
        if reply.check == flow.check {
            if reply.to != flow.to {
                tables.remove_opening(reply_key);
            }
            *flow = *reply;
            return Ok(());
        }
        // Not this key's: a stale element, or a tuple that IPv6 packs alike, which only a forged source has. It must
        // not keep this one out.
        tables.remove_opening(key);
        tries += 1;
    }
    tables.remove_opening(reply_key);
    Err(DropReason::FlowInsert)
}

/// Writes the reply entry of a new flow under a tuple that is free, with another source port where need
/// be.
#[inline(always)]
fn write_reply<F: Ip, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    flow: &mut Flow<F>,
    reply_key: &mut FlowKey<F>,
    reply: &mut Flow<F>,
    source: &Source<F>,
) -> Result<(), DropReason> {
    let (first, last) = (source.ports.first as u32, source.ports.last as u32);
    let span = last.wrapping_sub(first).wrapping_add(1) & 0xffff;
    let keep = source.nat == Nat::Keep && !source.flags.contains(FlowFlags::DIRECT);
    let mut hash = hash::connection::<F>(
        &key.saddr,
        &key.daddr,
        Ports::join(key.sport, key.dport),
        key.proto,
    );
    let mut written = false;
    let mut tries = 0;
    while tries < PORT_TRIES {
        // A kept source keeps its port where it can; a translated one gets a port of the range, which
        // the port filter lets in.
        if tries > 0 || !keep {
            let port = first.wrapping_add(hash::scale(hash, span));
            #[allow(clippy::cast_possible_truncation, reason = "between two ports")]
            let port = port as u16;
            flow.to.sport = Be16::from_host(port);
            hash = hash.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
        }
        if tries == 1 {
            tables.count(Counter::PortRewritten);
        }
        tries += 1;
        *reply_key = flow.partner_key(key);
        reply.check = flow_check(reply_key);
        if let Some(entry) = tables.flow(reply_key) {
            if entry.read().to == reply.to {
                // UDP that is selected anew to the same address: its reply entry stands.
                return Ok(());
            }
            continue;
        }
        match tables.insert_opening(reply_key, reply) {
            Insert::Done => {
                written = true;
                break;
            }
            Insert::Failed => return Err(DropReason::FlowInsert),
            Insert::Exists => {
                if tables
                    .opening(reply_key)
                    .is_some_and(|entry| entry.read().to == reply.to)
                {
                    // Another CPU makes the same flow: its entry is what ours would be.
                    tables.count(Counter::InsertRace);
                    return Ok(());
                }
            }
        }
    }
    if written {
        return Ok(());
    }
    // A flood that confirms nothing must not keep the ports: an idle opening gives way. Its flow notices
    // at its next packet (`ensure_reply`).
    if tables
        .opening(reply_key)
        .is_some_and(|entry| flow::is_due(entry.stamp(), reply.stamp))
    {
        tables.remove_opening(reply_key);
        if tables.insert_opening(reply_key, reply) == Insert::Done {
            return Ok(());
        }
    }
    Err(DropReason::PortsExhausted)
}

#[inline(always)]
fn new_flow_event<F: Ip>(ifindex: u32, key: &FlowKey<F>, flow: &Flow<F>) -> Event {
    let wide = |a: &F::Addr| Addr6 {
        be: [a.word(0), a.word(1), a.word(2), a.word(3)],
    };
    let mut event = Event::new(EventKind::NewFlow);
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
