//! A packet leaves: the source of replies and of flows with source translation.

use super::head::{FragmentPart, Parsed};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::parse::{self, Fast};
use super::rewrite::{self, Addresses};
use super::tables::{FlowEntry, Tables, is_pod_interface};
use super::verdict::{Outcome, Step};
use super::{flow, fragment, icmp};
use crate::abi::{Counter, DropReason, FlowFlags, Side, flow_check};

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
        return Ok(icmp::or_pass::<F, P>(packet, l3));
    };
    if !fragment::with_ports(tables, &mut parsed, Side::Out) {
        return Ok(Step::Pass);
    }
    let outcome = egress_translate(packet, tables, &parsed, false);
    if parsed.ip.fragment == FragmentPart::First && outcome == Ok(Step::Translated) {
        fragment::remember(tables, &parsed, Side::Out);
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
