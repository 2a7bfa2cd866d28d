//! A packet without a flow → the record of one, to be written: its Service, a backend, its source.

use super::head::{FragmentPart, Parsed};
use super::ingress::{Arrived, arrived};
use super::ip::Ip;
use super::nat::{self, Nat, Source};
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::select::{self, Choice, Dial};
use super::tables::Tables;
use super::verdict::{Hook, Outcome, Step};
use super::{flow, fragment, service, transmit};
use crate::abi::{
    Backend, BackendFlags, BackendState, Counter, DropReason, FlowFlags, Service, ServiceFlags,
    ServiceKey, Side,
};
use crate::family::Address;
use crate::flow_table::{Awaited, Hop, Record, Tuple};
use crate::wire::{Tcp, TcpFlags};

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
    let (parsed, concern) = match arrived(packet, tables, l3, hook)? {
        Arrived::Packet { parsed, concern } => (parsed, concern),
        Arrived::Step(step) => return Ok(step),
    };
    let tuple = parsed.tuple(hook.side());
    let (choice, source) = match plan(packet, tables, &parsed, &tuple, hook, concern.direct)? {
        Plan::Open(choice, source) => (choice, source),
        Plan::Step(step) => return Ok(step),
    };
    if parsed.ip.fragment == FragmentPart::First {
        fragment::remember(tables, &parsed, hook.side());
    }
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let mut source = source;
    if source.nat == Nat::Snat && !hook.is_xdp() {
        // What tc carries on has to be found between its hooks, too: a port is chosen with which it is.
        source.flags |= FlowFlags::BY_HALVES;
    }
    let record = record(packet, &parsed, &tuple, &choice, &source, tables.stamp());
    work.set_record(&record);
    work.ifindex = packet.ifindex();
    Ok(Step::Write)
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
    tuple: &Tuple<F>,
    hook: Hook,
    direct: bool,
) -> Result<Plan<F>, DropReason> {
    let config = tables.config();
    let pod = hook == Hook::Pod;
    let (ip, proto) = (&parsed.ip, parsed.transport.proto());
    let mut source = Source {
        nat: Nat::Keep,
        addr: F::node_addr(&config),
        hop: Hop::default(),
        flags: FlowFlags::NONE,
    };
    let service = if direct {
        None
    } else {
        service::find(tables, &ServiceKey::new(ip.daddr, parsed.dport, proto))
    };
    let Some(service) = service else {
        if !direct && !hook.is_xdp() && service::is_cluster_ip(tables, &config, &ip.daddr) {
            // A port that no Service defines on this ClusterIP (semantics 11.1).
            return Ok(Plan::Step(Step::Refuse));
        }
        if !pod || !parsed.is_syn() || !is_reply_taken(tables, parsed) {
            return Ok(Plan::Step(Step::Pass));
        }
        // A connection that is no Service's, but whose reply tuple belongs to a flow: with another source
        // port its replies are not taken for that flow's.
        tables.note_direct_port(parsed.dport);
        tables.count(Counter::DirectRewritten);
        source.flags = FlowFlags::DIRECT;
        let choice = Choice {
            id: 0,
            backend: Backend::new(ip.daddr, parsed.dport, 0, BackendState::default(), 0),
        };
        return Ok(Plan::Open(choice, source));
    };
    if !may_open(packet, tables, parsed, &service, tuple)? {
        tables.count(Counter::NotOpened);
        return Ok(Plan::Step(Step::Pass));
    }
    if service.has(ServiceFlags::SOURCE_RANGES) && !tables.in_source_range(service.id, ip.saddr) {
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
        saddr: ip.saddr,
        daddr: ip.daddr,
        sport: parsed.sport,
        dport: parsed.dport,
        transport: parsed.transport,
        inside: pod,
    };
    let choice = select::backend(tables, &service, &list, &dial).ok_or(DropReason::BackendGone)?;
    source.nat = nat::nat::<F>(config.modes, hook, &service, &ip.saddr, &choice.backend);
    if hook.is_xdp() && (source.nat != Nat::Snat || choice.backend.has(BackendFlags::LOCAL)) {
        return Ok(Plan::Step(Step::Pass));
    }
    if source.nat == Nat::Snat {
        let hop = packet.route::<F>(&ip.saddr, &choice.backend.addr, proto, ip.ip_len);
        let mut transmits = false;
        if let Some(hop) = hop {
            if let Some(interface) = tables.interface(hop.ifindex) {
                let preferred = F::source_of(&interface);
                if !preferred.is_unspecified() {
                    source.addr = preferred;
                }
            }
            if hop.ready
                && let Some(slot) = transmit::slot_of(tables, hop.ifindex)
            {
                source.hop = Hop {
                    mac: hop.dmac,
                    slot,
                };
                transmits = transmit::transmitter(tables, parsed, slot).is_some();
            }
        }
        if hook.is_xdp() && !transmits {
            return Ok(Plan::Step(Step::Pass));
        }
    }
    if source.nat != Nat::Keep && source.addr.is_unspecified() {
        return Err(DropReason::NoSourceAddress);
    }
    Ok(Plan::Open(choice, source))
}

/// Whether a packet may open a flow to a frontend. What answers something opens nothing, and on an address of the node
/// only what cannot be an answer does.
#[inline(always)]
fn may_open<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F>,
    service: &Service,
    tuple: &Tuple<F>,
) -> Result<bool, DropReason> {
    if parsed.is_udp() {
        // The node itself, or somebody whom it masquerades, asked this sender from the frontend's port.
        let answer = tuple.at(Side::ExternalIn);
        return Ok(service.is_internal() || !tables.is_reserved(&answer));
    }
    let flags = parsed.tcp_flags;
    if !parsed.is_tcp() || flags.is_pure_syn() {
        return Ok(true);
    }
    if flags.intersects(TcpFlags::SYN | TcpFlags::RST)
        || (!service.is_internal() && tables.is_node_addr(parsed.ip.daddr))
    {
        return Ok(false);
    }
    // Data in mid-stream goes on: this node took over from another one, or from another proxy. Nothing else does.
    if flags.contains(TcpFlags::FIN) || !flow::has_data(packet, parsed) {
        return Err(DropReason::NoFlow);
    }
    Ok(true)
}

/// Whether the reply tuple of a packet that is not translated belongs to a flow.
#[inline(always)]
fn is_reply_taken<F: Ip, T: Tables<F>>(tables: &T, parsed: &Parsed<F>) -> bool {
    let ip = &parsed.ip;
    let reply = Tuple::new(
        &ip.daddr,
        &ip.saddr,
        parsed.dport,
        parsed.sport,
        parsed.transport.proto(),
        Side::Out,
    );
    tables.flow_by(&reply).is_some()
}

/// The record of a new flow.
#[inline(always)]
fn record<F: Ip, P: PacketBuf>(
    packet: &P,
    parsed: &Parsed<F>,
    tuple: &Tuple<F>,
    choice: &Choice<F>,
    source: &Source<F>,
    stamp: u32,
) -> Record<F> {
    let mut flags = source.flags;
    match source.nat {
        Nat::Keep => {}
        Nat::Snat => {
            flags |= FlowFlags::SNAT;
            if choice.backend.has(BackendFlags::LOCAL) {
                flags |= FlowFlags::REPLY_AT_POD;
            }
        }
        Nat::Hairpin => flags |= FlowFlags::HAIRPIN | FlowFlags::REPLY_AT_POD,
    }
    let saddr = if source.nat == Nat::Keep {
        parsed.ip.saddr
    } else {
        source.addr
    };
    let mut sequence = 0;
    let mut awaited = Hop::default();
    if parsed.is_tcp()
        && let Some(tcp) = packet.header::<Tcp>(parsed.ip.l4)
    {
        sequence = tcp.seq.get().to_host();
        if parsed.is_syn() {
            awaited = Awaited::new(sequence.wrapping_add(1), sequence).as_hop();
        } else {
            flags |= FlowFlags::MIDSTREAM;
        }
    }
    let backend = (&choice.backend.addr, choice.backend.port);
    let mut record = Record::new(*tuple, backend, (&saddr, parsed.sport), flags);
    record.stamp = stamp;
    record.backend = choice.id;
    record.service = choice.backend.service_id;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half, and the upper"
    )]
    {
        record.backend_generation = choice.backend.generation() as u16;
        record.sequence[0] = (sequence >> 16) as u16;
    }
    record.hops = [source.hop, awaited];
    record
}
