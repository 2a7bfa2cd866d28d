//! A packet arrives: what belongs to a flow is translated, what may belong to none yet is left to
//! [`open_ingress`](super::open_ingress).

use super::flow::{self, Follow, Leg, Look, Met, Seen};
use super::head::{FragmentPart, Parsed, plain_l4};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::parse::{self, Fast};
use super::rewrite::{self, Addresses};
use super::tables::Tables;
use super::verdict::{Hook, Outcome, Step};
use super::work::{Todo, Wanted};
use super::{fragment, icmp, service, transmit};
use crate::abi::{Be16, Counter, DropReason, FlowFlags, Translation};

/// What a packet's ports say of it before any table of flows is looked at.
#[derive(Clone, Copy)]
pub(super) struct Concern {
    /// Its destination may be a frontend.
    pub(super) frontend: bool,
    /// It may answer a flow whose source this node translated.
    pub(super) reply: bool,
    /// From a pod to no frontend: its tuple may be taken.
    pub(super) direct: bool,
}

impl Concern {
    #[inline(always)]
    pub(super) fn of<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, parsed: &Parsed<F>) -> Self {
        let frontend = service::may_be_ours(tables, hook, parsed);
        Concern {
            frontend,
            // Nothing begins with an answer, and no answer with a SYN.
            reply: !parsed.is_syn() && tables.is_snat_port(parsed.dport),
            direct: !frontend
                && hook == Hook::Pod
                && parsed.is_tcp()
                && (parsed.is_syn() || tables.is_direct_port(parsed.dport)),
        }
    }
    #[inline(always)]
    const fn is_none(self) -> bool {
        !(self.frontend | self.reply | self.direct)
    }
}

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
    let concern = Concern::of(tables, hook, &parsed);
    if concern.is_none() {
        return Ok(Step::Pass);
    }
    if concern.direct {
        return Ok(Step::Slow);
    }
    let tuple = parsed.tuple(hook.side());
    let Some(met) = flow::arrived(tables, &tuple, concern.frontend, concern.reply) else {
        // A reply may have to be looked for at another side, or to be dropped.
        return Ok(if concern.reply {
            Step::Slow
        } else {
            Step::Open
        });
    };
    let record = met.record();
    let flags = record.flags;
    if !flags.contains(FlowFlags::CONFIRMED)
        || flags.contains(FlowFlags::HAIRPIN)
        || !flow::is_ordinary(&parsed)
    {
        return Ok(Step::Slow);
    }
    if parsed.is_udp() && met.leg == Leg::Original && flow::backend_gone(tables, &record) {
        return Ok(Step::Slow);
    }
    if is_left_alone(hook, &met) {
        return Ok(Step::Pass);
    }
    let stamp = tables.stamp();
    if hook.is_xdp() {
        let hop = met.hop();
        if !hop.is_known() || flow::is_due(record.stamp, stamp) {
            // The next hop is looked up again whenever the time of use is written.
            return Ok(Step::Slow);
        }
        if !transmit::is_addressed(packet, tables) {
            return Ok(Step::Pass);
        }
        let Some(device) = transmit::transmitter(tables, &parsed, hop.slot) else {
            return Ok(Step::Pass);
        };
        flow::track(packet, &parsed, &met);
        flow::count_original(tables, &met, packet.len());
        return transmit::transmit(packet, tables, &parsed, &met.to(), hop.mac, &device);
    }
    if flow::lacks_halves(flags) {
        return Ok(Step::Slow);
    }
    flow::touch(met.cells, record.stamp, stamp);
    flow::track(packet, &parsed, &met);
    flow::count_original(tables, &met, packet.len());
    let (to, ports) = halved(&met, &parsed);
    rewrite::translate(packet, &parsed, &to, ports, Addresses::Destination)?;
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
    let (parsed, concern) = match arrived(packet, tables, l3, hook)? {
        Arrived::Packet { parsed, concern } => (parsed, concern),
        Arrived::Step(step) => return Ok(step),
    };
    let mut what = Look::NONE;
    if concern.frontend | concern.direct {
        what |= Look::FRONTEND;
    }
    if concern.reply {
        what |= Look::DERIVED;
        if hook == Hook::Pod {
            // A backend behind a pod interface that no slice says is local (hand-written, semantics 28.50): what is found
            // is a flow to this very sender.
            what |= Look::OUTSIDE;
        }
    }
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let Some(met) = flow::looked_up(tables, &parsed.tuple(hook.side()), what, work) else {
        return Ok(if what.contains(Look::FRONTEND) {
            Step::Open
        } else {
            Step::Pass
        });
    };
    if is_left_alone(hook, &met) {
        return Ok(Step::Pass);
    }
    let mut wanted = Wanted::default();
    match flow::follow(packet, tables, &parsed, &met, &mut wanted)? {
        Follow::Go => {}
        Follow::Leave if wanted.todo.contains(Todo::DELETE) => {
            return Ok(flow::after(work, &wanted, Step::Pass));
        }
        // What comes to a port that this node took for a flow, and is not that flow's, is nobody's.
        Follow::Leave => return Err(DropReason::StrayReply),
        Follow::Over => {
            tables.count(Counter::Reselected);
            wanted.todo |= Todo::DELETE;
            return Ok(flow::after(work, &wanted, Step::Open));
        }
    }
    if parsed.ip.fragment == FragmentPart::First {
        fragment::remember(tables, &parsed, hook.side());
    }
    if flow::is_ordinary(&parsed) {
        flow::track(packet, &parsed, &met);
    }
    let bytes = packet.len();
    let step = if hook.is_xdp() {
        let step = transmit::transmit_found(packet, tables, &parsed, &met, &mut wanted)?;
        if matches!(step, Step::Transmit(_)) {
            flow::count_original(tables, &met, bytes);
        }
        step
    } else {
        flow::count_original(tables, &met, bytes);
        flow::want_halves(&met, &mut wanted);
        flow::touch(met.cells, met.record().stamp, tables.stamp());
        carry(packet, tables, &parsed, &met, hook)?
    };
    Ok(flow::after(work, &wanted, step))
}

/// Whether a hook leaves a packet of a flow to those behind it: XDP what it cannot send on whole, and each what somebody
/// else's NAT waits for.
#[inline(always)]
fn is_left_alone<F: Ip, C, R: Seen<F>>(hook: Hook, met: &Met<C, R>) -> bool {
    let record = met.record();
    (hook.is_xdp() && !record.flags.contains(FlowFlags::SNAT))
        || ((hook.is_xdp() || met.leg.is_reply()) && flow::is_others(&record))
}

/// A packet of the slow stages.
pub(super) enum Arrived<F: Ip> {
    /// To be looked up.
    Packet { parsed: Parsed<F>, concern: Concern },
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
    let concern = Concern::of(tables, hook, &parsed);
    if concern.is_none() {
        return Ok(Arrived::Step(Step::Pass));
    }
    Ok(Arrived::Packet { parsed, concern })
}

/// What tc writes at ingress: the destination address, and of the original direction both ports. The other half is
/// egress'.
#[inline(always)]
fn halved<F: Ip, C, R: Seen<F>>(
    met: &Met<C, R>,
    parsed: &Parsed<F>,
) -> (Translation<F>, (Be16, Be16)) {
    let to = met.to();
    let ports = if met.leg.is_reply() {
        (parsed.sport, parsed.dport)
    } else {
        (to.sport, to.dport)
    };
    (to, ports)
}

/// Translates a packet at tc and lets the stack go on with it.
#[inline(always)]
fn carry<F: Ip, P: PacketBuf, T: Tables<F>, C, R: Seen<F>>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed<F>,
    met: &Met<C, R>,
    hook: Hook,
) -> Outcome {
    let hairpin = met.record().flags.contains(FlowFlags::HAIRPIN);
    let (to, mut ports) = halved(met, parsed);
    let mut which = Addresses::Destination;
    if hairpin {
        ports = (to.sport, to.dport);
        which = Addresses::Both;
    }
    rewrite::translate(packet, parsed, &to, ports, which)?;
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
