//! ICMP and ICMPv6 errors that quote a packet of a flow (semantics 8.14): their addresses and what they
//! quote become what the receiver knows, so that path MTU discovery and unreachable ports work.
//!
//! An error travels against the packet that it quotes. So the quoted tuple, reversed, is the key of the
//! flow entry for the error's own direction, and the half of that entry which the hook applies to a
//! packet is applied to the outer header, and mirrored to the quote. Errors about flows with source
//! translation thus pass two hooks, as the packets do.

use super::flow::{self, Look, Met};
use super::head::{FragmentPart, IpHead, translated};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::rewrite::{self, Addresses};
use super::tables::{Tables, is_pod_interface};
use super::verdict::{Outcome, Step};
use super::work::{Wanted, Work};
use crate::abi::{Be16, Counter, DropReason, FlowFlags, Side, Translation, Transport};
use crate::flow_table::Tuple;
use crate::wire::checksum::Diff;
use crate::wire::{Icmp, NdOption, Ports, W16, check_at, icmp4, icmp6};

/// What an error quotes.
struct Quote<F: Ip> {
    ip: IpHead<F>,
    transport: Transport,
    l3: Offset,
    sport: Be16,
    dport: Be16,
}

/// Translates an ICMP error about a flow, at a tc hook of this side. Every other message passes.
#[inline(always)]
pub fn translate<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    side: Side,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let Some(ip) = F::any(packet, l3) else {
        return Ok(Step::Pass);
    };
    if ip.proto != F::ICMP || ip.fragment != FragmentPart::Whole {
        return Ok(Step::Pass);
    }
    let Some(kind) = packet.header::<Icmp>(ip.l4).map(|icmp| icmp.kind) else {
        return Ok(Step::Pass);
    };
    let redirect = kind
        == if F::IS_V6 {
            icmp6::REDIRECT
        } else {
            icmp4::REDIRECT
        };
    let at = if redirect && F::IS_V6 {
        redirected(packet, ip.l4)
    } else if if F::IS_V6 {
        icmp6::is_error(kind)
    } else {
        icmp4::is_error(kind)
    } {
        Some(ip.l4.plus(8))
    } else {
        None
    };
    let Some(quote) = at.and_then(|at| quoted::<F, P>(packet, at)) else {
        return Ok(Step::Pass);
    };
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let Some(met) = find(tables, &quote, side, work) else {
        return Ok(Step::Pass);
    };
    let mut wanted = Wanted::default();
    let flags = met.record().flags;
    if redirect {
        // What this node's stack tells a client about its next hop names a tuple that the client does
        // not know. What a router tells this node is the stack's business.
        return if side == Side::Out {
            Err(DropReason::IcmpRedirect)
        } else {
            Ok(Step::Pass)
        };
    }
    if side == Side::Out
        && flags.contains(FlowFlags::DIRECT)
        && !is_pod_interface(tables, packet.ifindex())
    {
        // See `egress_translate`.
        return Ok(Step::Pass);
    }
    let hairpin = flags.contains(FlowFlags::HAIRPIN);
    let to = met.to();
    let mut ports = (to.sport, to.dport);
    let which = match side {
        Side::Out => Addresses::Source,
        _ if hairpin => Addresses::Both,
        _ => {
            if met.leg.is_reply() {
                // As a packet of that direction: egress writes them.
                ports = (quote.dport, quote.sport);
            }
            flow::want_halves(&met, &mut wanted);
            Addresses::Destination
        }
    };
    rewrite(packet, &ip, l3, &quote, &to, ports, which).ok_or(DropReason::Rewrite)?;
    tables.count(Counter::IcmpError);
    if hairpin {
        rewrite::turn_round(packet, l3)?;
        return Ok(Step::Reflect);
    }
    Ok(flow::after(work, &wanted, Step::Translated))
}

/// Where the packet lies that an ICMPv6 redirect quotes (RFC 4861, section 4.5): in an option behind
/// two addresses, first or second after the target's link-layer address.
#[inline(always)]
fn redirected<P: PacketBuf>(packet: &P, icmp: Offset) -> Option<Offset> {
    let first = icmp.plus(40);
    let option = packet.header::<NdOption>(first)?;
    if option.kind == NdOption::REDIRECTED {
        return Some(first.plus(8));
    }
    let second = first.checked_plus(u32::from(option.len) * 8)?;
    let option = packet.header::<NdOption>(second)?;
    if option.kind == NdOption::REDIRECTED {
        return Some(second.plus(8));
    }
    None
}

/// Reads a quoted TCP or UDP packet that has its ports.
#[inline(always)]
fn quoted<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Option<Quote<F>> {
    let ip = F::any(packet, l3)?;
    let transport = translated(ip.proto)?;
    if ip.fragment == FragmentPart::Later {
        return None;
    }
    let ports = packet.header::<Ports>(ip.l4)?;
    Some(Quote {
        ip,
        transport,
        l3,
        sport: ports.sport(),
        dport: ports.dport(),
    })
}

/// The flow that an error is about, as a packet that takes the error's way would meet it.
#[inline(always)]
fn find<'a, F: Ip, T: Tables<F>>(
    tables: &T,
    quote: &Quote<F>,
    side: Side,
    work: &'a mut Work<F>,
) -> Option<Met<T::Cells, &'a Work<F>>> {
    let (ip, proto) = (&quote.ip, quote.transport.proto());
    let tuple = Tuple::new(&ip.daddr, &ip.saddr, quote.dport, quote.sport, proto, side);
    let mut what = Look::FRONTEND;
    if side == Side::Out {
        what = Look::DERIVED;
    } else if tables.is_snat_port(quote.sport) {
        what |= Look::DERIVED;
        if side == Side::PodIn {
            // See `slow_ingress`: a backend behind a pod interface that no slice says is local.
            what |= Look::OUTSIDE;
        }
    }
    flow::looked_up(tables, &tuple, what, work)
}

/// Writes the translation into the outer header, the quoted headers and every checksum.
#[inline(always)]
fn rewrite<F: Ip, P: PacketBuf>(
    packet: &mut P,
    outer: &IpHead<F>,
    l3: Offset,
    quote: &Quote<F>,
    to: &Translation<F>,
    (sport, dport): (Be16, Be16),
    which: Addresses,
) -> Option<()> {
    // Outer: only what belongs to an end of the flow; a router keeps its own address.
    let mut pseudo = Diff::NONE;
    if which != Addresses::Destination && outer.saddr == quote.ip.daddr {
        pseudo = pseudo.addr(&outer.saddr, &to.saddr);
        F::write_saddr(packet, l3, to.saddr)?;
    }
    if which != Addresses::Source && outer.daddr == quote.ip.saddr {
        pseudo = pseudo.addr(&outer.daddr, &to.daddr);
        F::write_daddr(packet, l3, to.daddr)?;
    }
    // Quote: mirrored, its source is where the error goes.
    let mut inner = Diff::NONE;
    if which != Addresses::Destination {
        inner = inner.addr(&quote.ip.daddr, &to.saddr);
        F::write_daddr(packet, quote.l3, to.saddr)?;
    }
    if which != Addresses::Source {
        inner = inner.addr(&quote.ip.saddr, &to.daddr);
        F::write_saddr(packet, quote.l3, to.daddr)?;
    }
    // The ICMP checksum covers the quote. In a quoted IPv4 header addresses and header checksum cancel
    // each other; in IPv6 nothing does.
    let mut data = if F::IS_V6 { inner } else { Diff::NONE };
    let (old, new) = (
        Ports::join(quote.sport, quote.dport),
        Ports::join(dport, sport),
    );
    inner = inner.word(old, new);
    data = data.word(old, new);
    packet.header_mut::<Ports>(quote.ip.l4)?.set_word(new);

    let udp = quote.transport == Transport::Udp;
    let at = quote.ip.l4.plus(check_at(quote.transport));
    // A quote may end behind the first eight bytes of TCP, and what follows be padding of the frame.
    if at.get() + 2 <= l3.get() + outer.ip_len
        && let Some(field) = packet.header_mut::<W16>(at)
    {
        let old = field.get();
        if !(udp && old.be == 0) {
            let mut new = inner.apply(old);
            if udp && new.be == 0 {
                new = Be16 { be: 0xffff };
            }
            field.set(new);
            data = data.half(old, new);
        }
    }
    let pseudo = if F::IS_V6 { pseudo } else { Diff::NONE };
    let check = outer.l4.plus(Icmp::CHECK_AT);
    if packet.repair_checksum::<F>(check, pseudo, data, false) {
        Some(())
    } else {
        None
    }
}

/// Neither TCP nor UDP: an ICMP message may be about a flow.
#[inline(always)]
pub fn or_pass<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Step {
    match F::any(packet, l3) {
        Some(ip) if ip.proto == F::ICMP && ip.fragment == FragmentPart::Whole => Step::Icmp,
        _ => Step::Pass,
    }
}
