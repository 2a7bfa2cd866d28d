//! Writes a translation into a packet: addresses, ports, checksums, link-layer addresses.

use super::head::{FragmentPart, Parsed};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf};
use crate::abi::{Be16, DropReason, MacAddr, Translation};
use crate::wire::checksum::Diff;
use crate::wire::{Eth, Ports, check_at};

/// Which addresses are written. Ports are always written both, as one word.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// The destination: tc ingress.
    Destination,
    /// The source: tc egress.
    Source,
    /// Both: XDP and hairpin.
    Both,
}

/// Translates a packet: the addresses of `to` that `which` names, and the ports given.
#[inline(always)]
pub fn translate<F: Ip, P: PacketBuf>(
    packet: &mut P,
    parsed: &Parsed<F>,
    to: &Translation<F>,
    (sport, dport): (Be16, Be16),
    which: Addresses,
) -> Result<(), DropReason> {
    let mut addresses = Diff::NONE;
    if which != Addresses::Destination {
        addresses = addresses.addr(&parsed.ip.saddr, &to.saddr);
    }
    if which != Addresses::Source {
        addresses = addresses.addr(&parsed.ip.daddr, &to.daddr);
    }
    if parsed.ip.fragment != FragmentPart::Later {
        let old = Ports::join(parsed.sport, parsed.dport);
        let new = Ports::join(sport, dport);
        let ports = if old == new {
            Diff::NONE
        } else {
            Diff::NONE.word(old, new)
        };
        let at = parsed.ip.l4.plus(check_at(parsed.transport));
        if !packet.repair_checksum::<F>(at, addresses, ports, parsed.is_udp()) {
            return Err(DropReason::Rewrite);
        }
        if old != new {
            packet
                .header_mut::<Ports>(parsed.ip.l4)
                .ok_or(DropReason::Rewrite)?
                .set_word(new);
        }
    }
    if which != Addresses::Destination {
        F::write_saddr(packet, parsed.l3, to.saddr).ok_or(DropReason::Rewrite)?;
    }
    if which != Addresses::Source {
        F::write_daddr(packet, parsed.l3, to.daddr).ok_or(DropReason::Rewrite)?;
    }
    Ok(())
}

/// Repairs a transport checksum by direct writes: what XDP and native packets do. The packet must
/// hold a finished checksum.
#[inline(always)]
pub fn repair_directly<P: PacketBuf>(
    packet: &mut P,
    at: Offset,
    diff: Diff,
    v4_udp: bool,
    udp: bool,
) -> bool {
    let Some(field) = packet.header_mut::<crate::wire::W16>(at) else {
        return false;
    };
    let old = field.get();
    if v4_udp && old.be == 0 {
        return true;
    }
    let mut new = diff.apply(old);
    if udp && new.be == 0 {
        new = Be16 { be: 0xffff };
    }
    field.set(new);
    true
}

/// Addresses the frame to the next hop and takes one hop off: what forwarding by XDP needs.
#[inline(always)]
pub fn forward<F: Ip, P: PacketBuf>(
    packet: &mut P,
    l3: Offset,
    dmac: MacAddr,
    smac: MacAddr,
) -> Result<(), DropReason> {
    packet
        .header_mut::<Eth>(Offset::START)
        .ok_or(DropReason::Rewrite)?
        .set(dmac, smac);
    F::decrement_ttl(packet, l3).ok_or(DropReason::Rewrite)
}

/// Sends the frame back to whom it came from. Without a link-layer header there is nothing to do.
#[inline(always)]
pub fn turn_round<P: PacketBuf>(packet: &mut P, l3: Offset) -> Result<(), DropReason> {
    if l3.get() != 0 {
        packet
            .header_mut::<Eth>(Offset::START)
            .ok_or(DropReason::Rewrite)?
            .swap();
    }
    Ok(())
}
