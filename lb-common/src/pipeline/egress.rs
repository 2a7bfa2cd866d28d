//! A packet leaves: the source of replies and of flows with source translation.

use super::flow::{self, Follow, Leg, Look, Met, Seen};
use super::head::{FragmentPart, Parsed};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::parse::{self, Fast};
use super::rewrite::{self, Addresses};
use super::tables::{Tables, is_pod_interface};
use super::verdict::{Outcome, Step};
use super::work::{Todo, Wanted};
use super::{fragment, icmp, service};
use crate::abi::{Counter, DropReason, FlowFlags, ServiceKey, Side};
use crate::flow_table::{Record, RecordCells, Tuple};

/// One packet leaves, fast stage: translates the source of what belongs to an established flow.
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
    let Some(met) = flow::leaving(tables, &parsed.tuple(Side::Out)) else {
        return Ok(if may_be_asked(tables, &parsed) {
            Step::Slow
        } else {
            Step::Pass
        });
    };
    let record = met.record();
    let flags = record.flags;
    if !flags.contains(FlowFlags::CONFIRMED)
        || flags.contains(FlowFlags::DIRECT)
        || (met.leg == Leg::OutOriginal && !flags.contains(FlowFlags::OUT_SEEN))
        || !flow::is_ordinary(&parsed)
    {
        return Ok(Step::Slow);
    }
    flow::touch(met.cells, record.stamp, tables.stamp());
    flow::track(packet, &parsed, &met);
    write(packet, tables, &parsed, &met)
}

/// The same for what needs care: openings, FIN and RST, fragments, options, extension headers.
#[inline(always)]
pub fn slow_egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let Some(mut parsed) = parse::any::<F, P>(packet, l3) else {
        return Ok(icmp::or_pass::<F, P>(packet, l3));
    };
    if !fragment::with_ports(tables, &mut parsed, Side::Out) {
        return Ok(Step::Pass);
    }
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let mut wanted = Wanted::default();
    let tuple = parsed.tuple(Side::Out);
    let Some(met) = flow::looked_up(tables, &tuple, Look::DERIVED, work) else {
        if may_be_asked(tables, &parsed) && is_frontend(tables, &parsed) {
            let answer = answer(&parsed);
            // Behind a bridge, at whose own hook it was translated, a reply of a flow looks the same.
            let asker = if is_pod_interface(tables, packet.ifindex()) {
                Side::PodIn
            } else {
                Side::ExternalIn
            };
            if tables.look(&answer.at(asker), work).is_none() {
                // Nothing but its tuple counts.
                let nobody = (&parsed.ip.saddr, parsed.sport);
                work.set_record(&Record::new(answer, nobody, nobody, FlowFlags::NONE));
                wanted.todo |= Todo::RESERVE;
            }
        }
        return Ok(flow::after(work, &wanted, Step::Pass));
    };
    if met.record().flags.contains(FlowFlags::DIRECT) && !is_pod_interface(tables, packet.ifindex())
    {
        // A bridge in front of the pod's interface. Restored here, the tuple would meet the flow it was
        // moved out of the way of at the next hook.
        return Ok(Step::Pass);
    }
    if met.leg == Leg::OutOriginal {
        // It was followed at the other half.
        if !met.record().flags.contains(FlowFlags::OUT_SEEN) {
            met.cells.add_flags(FlowFlags::OUT_SEEN);
        }
    } else if flow::follow(packet, tables, &parsed, &met, &mut wanted)? != Follow::Go {
        return Ok(flow::after(work, &wanted, Step::Pass));
    }
    flow::touch(met.cells, met.record().stamp, tables.stamp());
    if flow::is_ordinary(&parsed) {
        flow::track(packet, &parsed, &met);
    }
    let step = write(packet, tables, &parsed, &met)?;
    if parsed.ip.fragment == FragmentPart::First {
        fragment::remember(tables, &parsed, Side::Out);
    }
    Ok(flow::after(work, &wanted, step))
}

#[inline(always)]
fn write<F: Ip, P: PacketBuf, T: Tables<F>, C, R: Seen<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    met: &Met<C, R>,
) -> Outcome {
    let to = met.to();
    rewrite::translate(packet, parsed, &to, (to.sport, to.dport), Addresses::Source)?;
    tables.count(Counter::TcOutTranslated);
    Ok(Step::Translated)
}

/// Whether this may be a datagram of the node's own, or of a pod behind somebody's masquerade, that is sent from a
/// frontend's port: its answer will look like a client's first datagram.
#[inline(always)]
fn may_be_asked<F: Ip, T: Tables<F>>(tables: &T, parsed: &Parsed<F>) -> bool {
    parsed.is_udp() && tables.may_be_ours(parsed.transport, parsed.sport)
}

/// Whether a packet comes from a frontend's address and port.
#[inline(always)]
fn is_frontend<F: Ip, T: Tables<F>>(tables: &T, parsed: &Parsed<F>) -> bool {
    let key = ServiceKey::new(parsed.ip.saddr, parsed.sport, parsed.transport.proto());
    service::find(tables, &key).is_some()
}

/// The tuple of the answer to a packet, as it will come in.
#[inline(always)]
fn answer<F: Ip>(parsed: &Parsed<F>) -> Tuple<F> {
    Tuple::new(
        &parsed.ip.daddr,
        &parsed.ip.saddr,
        parsed.dport,
        parsed.sport,
        parsed.transport.proto(),
        Side::ExternalIn,
    )
}
