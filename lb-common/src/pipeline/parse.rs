//! Packet → [`Parsed`]: the tuple and where its headers are.

use super::ip::{FragmentPart, Ip, IpHead};
use super::packet::{Offset, PacketBuf};
use crate::abi::{Be16, FlowKey, Side, proto};
use crate::wire::{Ports, Tcp, TcpFlags};

/// A TCP or UDP packet, or a part of one.
#[derive(Clone, Copy, Debug)]
pub struct Parsed<F: Ip> {
    /// The IP header.
    pub ip: IpHead<F>,
    /// Where the IP header starts.
    pub l3: Offset,
    /// Source port; 0 in a later fragment until it is known.
    pub sport: Be16,
    /// Destination port; 0 in a later fragment until it is known.
    pub dport: Be16,
    /// Control bits of a TCP segment, else none.
    pub tcp_flags: TcpFlags,
}

/// What the fast path makes of a packet.
pub enum Fast<F: Ip> {
    /// Plain TCP or UDP.
    Plain(Parsed<F>),
    /// Needs the slow path: fragment, options, extension headers, ICMP, headers out of reach.
    Slow,
    /// Neither TCP, UDP nor ICMP.
    Other,
}

impl<F: Ip> Parsed<F> {
    /// The key of this packet at a side.
    #[inline(always)]
    pub fn key(&self, side: Side) -> FlowKey<F> {
        FlowKey::new(
            self.ip.saddr,
            self.ip.daddr,
            self.sport,
            self.dport,
            self.ip.proto,
            side,
        )
    }
    /// Whether this is TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.ip.proto == proto::TCP
    }
    /// Whether this opens a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.is_tcp() && self.tcp_flags.is_pure_syn()
    }
    /// Whether this accepts a TCP connection.
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        self.is_tcp() && self.tcp_flags.contains(TcpFlags::SYN | TcpFlags::ACK)
    }
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
