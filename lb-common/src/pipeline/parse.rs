//! Packet → [`Parsed`].

use super::head::{FragmentPart, IpHead, Parsed};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf};
use crate::abi::{Be16, proto};
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
    if ip.proto != proto::TCP && ip.proto != proto::UDP {
        let maybe_ours = ip.proto == F::ICMP || (F::IS_V6 && is_extension(ip.proto));
        return if maybe_ours { Fast::Slow } else { Fast::Other };
    }
    match transport(packet, l3, ip) {
        Some(parsed) => Fast::Plain(parsed),
        None => Fast::Slow,
    }
}

/// Reads any TCP or UDP packet; `None` for everything else and what is cut short.
#[inline(always)]
pub fn any<F: Ip, P: PacketBuf>(packet: &P, l3: Offset) -> Option<Parsed<F>> {
    let ip = F::any(packet, l3)?;
    if ip.proto != proto::TCP && ip.proto != proto::UDP {
        return None;
    }
    if ip.fragment == FragmentPart::Later {
        let none = Be16 { be: 0 };
        return Some(Parsed {
            ip,
            l3,
            sport: none,
            dport: none,
            tcp_flags: TcpFlags::NONE,
        });
    }
    transport(packet, l3, ip)
}

#[inline(always)]
fn transport<F: Ip, P: PacketBuf>(packet: &P, l3: Offset, ip: IpHead<F>) -> Option<Parsed<F>> {
    if ip.proto == proto::TCP {
        let tcp = packet.header::<Tcp>(ip.l4)?;
        return Some(Parsed {
            ip,
            l3,
            sport: tcp.ports.sport(),
            dport: tcp.ports.dport(),
            tcp_flags: tcp.flags,
        });
    }
    let ports = packet.header::<Ports>(ip.l4)?;
    Some(Parsed {
        ip,
        l3,
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
