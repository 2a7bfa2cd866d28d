//! What the pipeline knows of a packet's headers: [`IpHead`], and with its ports [`Parsed`].

use super::packet::Offset;
use crate::abi::{Be16, Side, Transport};
use crate::flow_table::{TableFamily, Tuple};
use crate::wire::TcpFlags;

/// An IP header as far as the pipeline needs it.
#[derive(Clone, Copy, Debug)]
pub struct IpHead<F: TableFamily> {
    /// Source address.
    pub saddr: F::Addr,
    /// Destination address.
    pub daddr: F::Addr,
    /// Protocol behind all extension headers.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Where the transport header starts.
    pub l4: Offset,
    /// Length of the IP packet in bytes.
    pub ip_len: u32,
    /// Which fragment.
    pub fragment: FragmentPart,
    /// Identification of a fragment as it lies in the packet.
    pub id: u32,
}

/// Which part of a datagram a packet is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FragmentPart {
    /// All of it.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later one: it has none.
    Later,
}

/// A TCP or UDP packet, or a part of one.
#[derive(Clone, Copy, Debug)]
pub struct Parsed<F: TableFamily> {
    /// The IP header.
    pub ip: IpHead<F>,
    /// Where the IP header starts.
    pub l3: Offset,
    /// What follows the IP header, of which later fragments hold no header.
    pub transport: Transport,
    /// Source port; 0 in a later fragment until it is known.
    pub sport: Be16,
    /// Destination port; 0 in a later fragment until it is known.
    pub dport: Be16,
    /// Control bits of a TCP segment, else none.
    pub tcp_flags: TcpFlags,
}

impl<F: TableFamily> Parsed<F> {
    /// The tuple of this packet at a side.
    #[inline(always)]
    pub fn tuple(&self, side: Side) -> Tuple<F> {
        Tuple::new(
            &self.ip.saddr,
            &self.ip.daddr,
            self.sport,
            self.dport,
            self.transport.proto(),
            side,
        )
    }
    /// Whether this is TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
    /// Whether this is UDP.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.transport == Transport::Udp
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

/// Where the transport header of a packet without options and extension headers starts.
#[inline(always)]
pub fn plain_l4<F: TableFamily>(l3: Offset) -> Offset {
    l3.plus(if F::IS_V6 { 40 } else { 20 })
}

/// The transport of a protocol number, where its packets are translated. The one door for another protocol: SCTP stays
/// outside as long as nothing repairs its CRC.
#[inline(always)]
pub const fn translated(proto: u8) -> Option<Transport> {
    match Transport::from_proto(proto) {
        Some(Transport::Sctp) | None => None,
        tcp_or_udp => tcp_or_udp,
    }
}
