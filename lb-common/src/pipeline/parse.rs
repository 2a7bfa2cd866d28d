//! Packet → [`Parsed`].

use super::head::{FragmentPart, IpHead, Parsed, translated};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf};
use crate::abi::{Be16, Transport};
use crate::wire::{Ports, Tcp, TcpFlags};

/// What the fast path makes of a packet.
pub enum Fast<F: Ip> {
    /// Plain TCP or UDP.
    Plain(Parsed<F>),
    /// Needs the slow path: fragment, options, extension headers, ICMP, headers out of reach.
    Slow,
    /// Neither TCP, UDP nor ICMP.
    Other,
}

/// Reads a packet that needs no care.
#[inline(always)]
pub fn fast<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Fast<F> {
    let Some(ip) = F::plain(packet, l3) else {
        return Fast::Slow;
    };
    let Some(transport) = translated(ip.proto) else {
        let maybe_ours = ip.proto == F::ICMP || (F::IS_V6 && is_extension(ip.proto));
        return if maybe_ours { Fast::Slow } else { Fast::Other };
    };
    match with_ports(packet, l3, ip, transport) {
        Some(parsed) => Fast::Plain(parsed),
        None => Fast::Slow,
    }
}

/// Reads any TCP or UDP packet; `None` for everything else and what is cut short.
#[inline(always)]
pub fn any<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Option<Parsed<F>> {
    let ip = F::any(packet, l3)?;
    let transport = translated(ip.proto)?;
    if ip.fragment == FragmentPart::Later {
        let none = Be16 { be: 0 };
        return Some(Parsed {
            ip,
            l3,
            transport,
            sport: none,
            dport: none,
            tcp_flags: TcpFlags::NONE,
        });
    }
    with_ports(packet, l3, ip, transport)
}

#[inline(always)]
fn with_ports<F: Ip, P: PacketBuf>(
    packet: &P,
    l3: Offset,
    ip: IpHead<F>,
    transport: Transport,
) -> Option<Parsed<F>> {
    if transport == Transport::Tcp {
        let tcp = packet.header::<Tcp>(ip.l4)?;
        return Some(Parsed {
            ip,
            l3,
            transport,
            sport: tcp.ports.sport(),
            dport: tcp.ports.dport(),
            tcp_flags: tcp.flags,
        });
    }
    let ports = packet.header::<Ports>(ip.l4)?;
    Some(Parsed {
        ip,
        l3,
        transport,
        sport: ports.sport(),
        dport: ports.dport(),
        tcp_flags: TcpFlags::NONE,
    })
}

#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    use crate::wire::next_header::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(next_header, DESTINATION | FRAGMENT | HOP_BY_HOP | ROUTING)
}
