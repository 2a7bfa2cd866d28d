//! What a packet does to a flow: found, followed, confirmed, replaced, opened.
//!
//! A new flow starts in `openings_*`, an LRU that a flood may churn; the first packet of the original
//! direction after a reply moves it to `flows_*`, which nothing evicts. The reply entry is always
//! written before the original one, so that no packet leaves whose reply would not be known.

use super::ip::Ip;
use super::parse::Parsed;
use super::select::Choice;
use super::tables::{FlowEntry, Insert, Tables};
use super::{hash, verdict::Hook};
use crate::abi::{
    Affinity, AffinityKey, Backend, BackendState, Be16, Counter, DropReason, Flow, FlowFlags,
    FlowKey, ModeFlags, Scratch, Service, ServiceFlags, ServiceKey, Side, Translation, flow_check,
    proto, service_check,
};
use crate::wire::tcp_flags;

/// A flow that was found.
pub struct Found<F: Ip, E> {
    /// Its place.
    pub entry: E,
    /// What stands there.
    pub flow: Flow<F>,
    /// Whether it is in `flows_*`.
    pub confirmed: bool,
}

/// Source ports that are tried for one flow.
const PORT_TRIES: u32 = 16;

/// Looks a flow up, confirmed ones first. An element that was handed out again meanwhile is looked up
/// once more.
#[inline(always)]
pub fn find<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> Option<Found<F, T::Entry>> {
    let check = flow_check(key);
    let mut tries = 0;
    while tries < 2 {
        let (entry, confirmed) = match tables.flow(key) {
            Some(entry) => (entry, true),
            None => (tables.opening(key)?, false),
        };
        let flow = entry.read();
        if flow.check == check {
            return Some(Found {
                entry,
                flow,
                confirmed,
            });
        }
        tables.count(Counter::StaleElement);
        tries += 1;
    }
    None
}

/// Notes a packet in its entry; writes only what changes.
#[inline(always)]
pub fn note<F: Ip, E: FlowEntry<F>>(entry: &E, flow: &Flow<F>, tcp: u8, stamp: u32) {
    let mut flags = FlowFlags::SEEN;
    if tcp & tcp_flags::FIN != 0 {
        flags |= FlowFlags::FIN;
    }
    if tcp & tcp_flags::RST != 0 {
        flags |= FlowFlags::RST;
    }
    if flow.flags & flags != flags {
        entry.add_flags(flags);
    }
    if flow.stamp != stamp {
        entry.set_stamp(stamp);
    }
}

/// Whether a flow must not be followed any more by this packet: a SYN that meets a closing flow or a
/// backend that is gone (semantics 18.3), or UDP whose backend is gone (17.2).
#[inline(always)]
pub fn is_stale<F: Ip, T: Tables<F>>(
    tables: &T,
    packet: &Parsed<F>,
    key: &FlowKey<F>,
    flow: &Flow<F>,
) -> bool {
    if flow.flags & (FlowFlags::REPLY | FlowFlags::DIRECT) != 0 {
        return false;
    }
    let syn = packet.is_syn();
    if !syn && packet.ip.proto != proto::UDP {
        return false;
    }
    if backend_gone(tables, flow) {
        return true;
    }
    if !syn {
        return false;
    }
    if flow.flags & FlowFlags::CLOSING != 0 {
        return true;
    }
    match find(tables, &flow.partner_key(key)) {
        Some(reply) => reply.flow.flags & FlowFlags::CLOSING != 0,
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

/// Removes a flow that was replaced. UDP keeps its reply entries until they age: answers on their way
/// still reach the client.
#[inline(always)]
pub fn forget<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>, flow: &Flow<F>) {
    remove(tables, key);
    if flow.has(FlowFlags::SNAT) {
        remove(tables, &flow.egress_key(key));
    }
    if key.proto != proto::UDP {
        let reply_key = flow.partner_key(key);
        if flow.has(FlowFlags::SNAT)
            && let Some(reply) = find(tables, &reply_key)
        {
            remove(tables, &reply.flow.egress_key(&reply_key));
        }
        remove(tables, &reply_key);
    }
    tables.count(Counter::Reselected);
}

#[inline(always)]
fn remove<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>) {
    tables.remove_opening(key);
    tables.remove_flow(key);
}

/// Moves both entries of an opening to `flows_*`, once the reply direction was seen and the client has
/// answered it.
#[inline(always)]
pub fn confirm<F: Ip, T: Tables<F>>(
    tables: &T,
    packet: &Parsed<F>,
    key: &FlowKey<F>,
    found: &Found<F, T::Entry>,
) {
    let flow = &found.flow;
    if found.confirmed || flow.has(FlowFlags::REPLY) {
        return;
    }
    if packet.is_tcp() && packet.tcp_flags & tcp_flags::ACK == 0 {
        return;
    }
    let Some(mut scratch) = tables.scratch() else {
        return;
    };
    let Scratch {
        flow: original,
        reply_key,
        reply,
        ..
    } = &mut *scratch;
    *reply_key = flow.partner_key(key);
    let Some(entry) = tables.opening(reply_key) else {
        return;
    };
    *reply = entry.read();
    if reply.check != flow_check(reply_key) || !reply.has(FlowFlags::SEEN) {
        return;
    }
    reply.flags |= FlowFlags::CONFIRMED;
    reply.stamp = tables.stamp();
    *original = *flow;
    original.flags |= FlowFlags::CONFIRMED | FlowFlags::SEEN;
    original.stamp = reply.stamp;
    let done = tables.insert_flow(reply_key, reply);
    if done == Insert::Failed {
        tables.count(Counter::FlowsFull);
        return;
    }
    if tables.insert_flow(key, original) == Insert::Failed {
        if done == Insert::Done {
            tables.remove_flow(reply_key);
        }
        tables.count(Counter::FlowsFull);
        return;
    }
    tables.remove_opening(key);
    tables.remove_opening(reply_key);
    tables.count(Counter::FlowConfirmed);
    remember_affinity(tables, key, flow);
}

/// Writes the affinity entry of a confirmed flow (semantics 13.2).
#[inline(always)]
fn remember_affinity<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>, flow: &Flow<F>) {
    let Some(service) = service(tables, &ServiceKey::new(key.daddr, key.dport, key.proto)) else {
        return;
    };
    if service.affinity_secs == 0 {
        return;
    }
    let affinity_key = AffinityKey {
        service_id: service.id,
        client: key.saddr,
    };
    if tables.affinity(&affinity_key).is_some() {
        return;
    }
    let value = Affinity {
        backend: flow.backend,
        generation: flow.generation,
        last_used_ns: tables.now_ns(),
    };
    tables.set_affinity(&affinity_key, &value);
}

/// A frontend whose check holds. An element that was handed out again meanwhile is looked up once more.
#[inline(always)]
pub fn service<F: Ip, T: Tables<F>>(tables: &T, key: &ServiceKey<F>) -> Option<Service> {
    let service = tables.service(key)?;
    if service.check == service_check(key, &service) {
        return Some(service);
    }
    tables.count(Counter::StaleElement);
    let service = tables.service(key)?;
    if service.check == service_check(key, &service) {
        Some(service)
    } else {
        None
    }
}

/// How the source of a new flow is to be handled.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    /// Kept.
    Keep,
    /// An address of this node takes its place.
    Snat,
    /// A pod through a VIP to itself.
    Hairpin,
}

/// Decides source translation (semantics 9; design section 4, "When to SNAT").
#[inline(always)]
pub fn nat<F: Ip>(
    modes: u32,
    hook: Hook,
    service: &Service,
    client: &F::Addr,
    backend: &Backend<F>,
) -> Nat {
    let pod = hook == Hook::Pod;
    if *client == backend.addr && pod {
        return Nat::Hairpin;
    }
    if backend.state & BackendState::HOST != 0 {
        // The packet ends on this host: its answer passes our egress hook (9.5).
        return Nat::Keep;
    }
    if !pod && (backend.state & BackendState::LOCAL == 0 || *client == backend.addr) {
        return Nat::Snat;
    }
    if modes & ModeFlags::MASQUERADE_ALL != 0 {
        return Nat::Snat;
    }
    if modes & ModeFlags::MASQUERADE_KUBE_PROXY != 0 {
        let snat = if service.is_internal() {
            !pod
        } else {
            !service.has(ServiceFlags::EXTERNAL_LOCAL)
        };
        return if snat { Nat::Snat } else { Nat::Keep };
    }
    Nat::Keep
}

/// The source of a new flow.
#[derive(Clone, Copy, Debug)]
pub struct Source<F: Ip> {
    /// How it is handled.
    pub nat: Nat,
    /// The node's address that takes its place, where it does.
    pub addr: F::Addr,
    /// First and last port for source translation, host byte order.
    pub ports: (u16, u16),
    /// Next hop for XDP: interface and link-layer address; 0 unknown.
    pub ifindex: u32,
    /// See `ifindex`.
    pub dmac: crate::abi::MacAddr,
    /// Flags to set in the original entry.
    pub flags: u16,
}

/// Writes both entries of a new flow and returns the original one, ours or that of the CPU that was
/// first.
#[inline(always)]
pub fn open<F: Ip, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    choice: &Choice<F>,
    source: &Source<F>,
) -> Result<Flow<F>, DropReason> {
    let mut scratch = tables.scratch().ok_or(DropReason::FlowInsert)?;
    let Scratch {
        key: original_key,
        flow,
        reply_key,
        reply,
    } = &mut *scratch;
    *original_key = *key;
    let stamp = tables.stamp();
    let at_pod = key.side == Side::PodIn as u8;
    let state = choice.backend.state;

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
    if at_pod {
        reply.flags |= FlowFlags::ORIGINAL_AT_POD;
    }
    match source.nat {
        Nat::Keep => {}
        Nat::Snat => {
            flow.flags |= FlowFlags::SNAT;
            reply.flags |= FlowFlags::SNAT;
            if state & BackendState::LOCAL != 0 {
                flow.flags |= FlowFlags::REPLY_AT_POD;
            }
        }
        Nat::Hairpin => {
            flow.flags |= FlowFlags::HAIRPIN | FlowFlags::REPLY_AT_POD;
            reply.flags |= FlowFlags::HAIRPIN;
        }
    }

    let (first, last) = source.ports;
    let span = (last as u32).wrapping_sub(first as u32) & 0xffff;
    let mut hash = hash::connection::<F>(
        &key.saddr,
        &key.daddr,
        crate::wire::Ports::join(key.sport, key.dport),
        stamp as u8,
    );
    let mut written = false;
    let mut try_ = 0;
    while try_ < PORT_TRIES {
        // A kept source keeps its port where it can; a translated one gets a port of the range, which
        // the port filter lets in.
        if try_ > 0 || source.nat != Nat::Keep || source.flags & FlowFlags::DIRECT != 0 {
            let port = (first as u32).wrapping_add(hash::scale(hash, span.wrapping_add(1)));
            #[allow(clippy::cast_possible_truncation, reason = "between two ports")]
            {
                flow.to.sport = Be16::from_host(port as u16);
            }
            hash = hash.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
            if try_ == 1 {
                tables.count(Counter::PortRewritten);
            }
        }
        try_ += 1;
        *reply_key = flow.partner_key(key);
        reply.check = flow_check(reply_key);
        if tables.flow(reply_key).is_some() {
            continue;
        }
        match tables.insert_opening(reply_key, reply) {
            Insert::Done => {
                written = true;
                break;
            }
            Insert::Failed => return Err(DropReason::FlowInsert),
            Insert::Exists => {
                let Some(entry) = tables.opening(reply_key) else {
                    continue;
                };
                if entry.read().to == reply.to {
                    // Another CPU makes the same flow: its entry is what ours would be.
                    tables.count(Counter::InsertRace);
                    written = true;
                    break;
                }
            }
        }
    }
    if !written {
        return Err(DropReason::PortsExhausted);
    }
    match tables.insert_opening(original_key, flow) {
        Insert::Done => {
            tables.count(Counter::NewFlow);
            tables.count_service_flow(choice.backend.service_id);
            Ok(*flow)
        }
        Insert::Exists => {
            tables.count(Counter::InsertRace);
            let winner = find(tables, key).ok_or(DropReason::FlowInsert)?.flow;
            if winner.to != flow.to {
                tables.remove_opening(reply_key);
            }
            Ok(winner)
        }
        Insert::Failed => {
            tables.remove_opening(reply_key);
            Err(DropReason::FlowInsert)
        }
    }
}

/// Sees to it that the egress entries of an SNAT flow exist, before tc lets its packet go on to the
/// stack. For openings this is done for every packet: the LRU may have evicted one of them.
#[inline(always)]
pub fn ensure_egress<F: Ip, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    flow: &Flow<F>,
    confirmed: bool,
) -> Result<(), DropReason> {
    let mut scratch = tables.scratch().ok_or(DropReason::FlowInsert)?;
    let Scratch {
        key: egress_key,
        flow: egress,
        ..
    } = &mut *scratch;
    *egress_key = flow.egress_key(key);
    *egress = *flow;
    egress.check = flow_check(egress_key);
    egress.stamp = tables.stamp();
    egress.flags = (flow.flags & !(FlowFlags::SNAT | FlowFlags::HAS_EGRESS | FlowFlags::CLOSING))
        | FlowFlags::EGRESS;
    egress.ifindex = 0;
    let inserted = if confirmed {
        tables.insert_flow(egress_key, egress)
    } else if tables.flow(egress_key).is_some() {
        Insert::Exists
    } else {
        tables.insert_opening(egress_key, egress)
    };
    if confirmed && inserted != Insert::Failed {
        tables.remove_opening(egress_key);
    }
    match inserted {
        Insert::Done => Ok(()),
        Insert::Failed => Err(DropReason::FlowInsert),
        Insert::Exists => {
            let Some(present) = find(tables, egress_key) else {
                return Err(DropReason::FlowInsert);
            };
            if present.flow.to == egress.to {
                return Ok(());
            }
            // Left over from an earlier flow with the same tuple between the hooks.
            remove(tables, egress_key);
            let again = if confirmed {
                tables.insert_flow(egress_key, egress)
            } else {
                tables.insert_opening(egress_key, egress)
            };
            if again == Insert::Failed {
                Err(DropReason::FlowInsert)
            } else {
                Ok(())
            }
        }
    }
}
