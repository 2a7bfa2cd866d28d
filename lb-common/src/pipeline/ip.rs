//! What differs between IPv4 and IPv6 in reading and writing headers.

use super::packet::{Offset, PacketBuf};
use crate::abi::{Addr4, Addr6, Config, Interface, proto};
use crate::family::{Family, V4, V6};
use crate::wire::checksum::Diff;
use crate::wire::{Ipv4, Ipv6, Ipv6Ext, Ipv6Fragment, next_header};

/// An IP header as far as the pipeline needs it.
#[derive(Clone, Copy, Debug)]
pub struct IpHead<F: Family> {
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

/// A family that packets are made of.
pub trait Ip: Family {
    /// ICMP or ICMPv6.
    const ICMP: u8;
    /// Reads a header without options, extension headers and fragmentation; `None` for any other.
    fn plain<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<Self>>;
    /// Reads any header that translation can handle.
    fn any<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<Self>>;
    /// Writes the source address and repairs the header checksum.
    fn write_saddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Self::Addr) -> Option<()>;
    /// Writes the destination address and repairs the header checksum.
    fn write_daddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Self::Addr) -> Option<()>;
    /// One hop less.
    fn decrement_ttl<P: PacketBuf>(packet: &mut P, l3: Offset) -> Option<()>;
    /// This node's primary address.
    fn node_addr(config: &Config) -> Self::Addr;
    /// Preferred source address of an interface.
    fn source_of(interface: &Interface) -> Self::Addr;
    /// Whether an address lies in the smallest prefix of all ClusterIPs.
    fn in_cluster_range(config: &Config, addr: &Self::Addr) -> bool;
}

impl Ip for V4 {
    const ICMP: u8 = proto::ICMP;

    #[inline(always)]
    fn plain<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<V4>> {
        let ip = packet.header::<Ipv4>(l3)?;
        if ip.version_ihl != 0x45 || ip.is_fragment() {
            return None;
        }
        Some(IpHead {
            saddr: ip.saddr(),
            daddr: ip.daddr(),
            proto: ip.proto,
            ttl: ip.ttl,
            l4: l3.plus(20),
            ip_len: ip.total_len(),
            fragment: FragmentPart::Whole,
            id: 0,
        })
    }

    #[inline(always)]
    fn any<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<V4>> {
        let ip = packet.header::<Ipv4>(l3)?;
        if ip.version_ihl >> 4 != 4 || ip.header_len() < 20 {
            return None;
        }
        let fragment = if ip.fragment_offset() != 0 {
            FragmentPart::Later
        } else if ip.more_fragments() {
            FragmentPart::First
        } else {
            FragmentPart::Whole
        };
        Some(IpHead {
            saddr: ip.saddr(),
            daddr: ip.daddr(),
            proto: ip.proto,
            ttl: ip.ttl,
            l4: l3.plus(ip.header_len()),
            ip_len: ip.total_len(),
            fragment,
            id: ip.id().be as u32,
        })
    }

    #[inline(always)]
    fn write_saddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Addr4) -> Option<()> {
        let ip = packet.header_mut::<Ipv4>(l3)?;
        let check = Diff::NONE.addr(&ip.saddr(), &new).apply(ip.check());
        ip.set_saddr(new);
        ip.set_check(check);
        Some(())
    }

    #[inline(always)]
    fn write_daddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Addr4) -> Option<()> {
        let ip = packet.header_mut::<Ipv4>(l3)?;
        let check = Diff::NONE.addr(&ip.daddr(), &new).apply(ip.check());
        ip.set_daddr(new);
        ip.set_check(check);
        Some(())
    }

    #[inline(always)]
    fn decrement_ttl<P: PacketBuf>(packet: &mut P, l3: Offset) -> Option<()> {
        packet.header_mut::<Ipv4>(l3)?.decrement_ttl();
        Some(())
    }

    #[inline(always)]
    fn node_addr(config: &Config) -> Addr4 {
        config.node_v4
    }

    #[inline(always)]
    fn source_of(interface: &Interface) -> Addr4 {
        interface.saddr_v4
    }

    #[inline(always)]
    fn in_cluster_range(config: &Config, addr: &Addr4) -> bool {
        addr.be & config.cluster_mask_v4.be == config.cluster_net_v4.be
    }
}

/// Extension headers that are walked; a packet with more is passed on untouched.
const EXTENSION_HEADERS: usize = 4;

impl Ip for V6 {
    const ICMP: u8 = proto::ICMPV6;

    #[inline(always)]
    fn plain<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<V6>> {
        let ip = packet.header::<Ipv6>(l3)?;
        Some(IpHead {
            saddr: ip.saddr(),
            daddr: ip.daddr(),
            proto: ip.next_header,
            ttl: ip.hop_limit,
            l4: l3.plus(40),
            ip_len: ip.payload_len() + 40,
            fragment: FragmentPart::Whole,
            id: 0,
        })
    }

    #[inline(always)]
    fn any<P: PacketBuf>(packet: &P, l3: Offset) -> Option<IpHead<V6>> {
        let mut head = Self::plain(packet, l3)?;
        let mut i = 0;
        while i < EXTENSION_HEADERS {
            match head.proto {
                next_header::HOP_BY_HOP | next_header::ROUTING | next_header::DESTINATION => {
                    let ext = packet.header::<Ipv6Ext>(head.l4)?;
                    head.proto = ext.next_header;
                    head.l4 = head.l4.plus((ext.len as u32 + 1) * 8);
                }
                next_header::FRAGMENT => {
                    let ext = packet.header::<Ipv6Fragment>(head.l4)?;
                    head.proto = ext.next_header;
                    head.id = ext.id().be;
                    head.l4 = head.l4.plus(8);
                    if !ext.is_first() {
                        head.fragment = FragmentPart::Later;
                        // What follows is payload.
                        return Some(head);
                    }
                    head.fragment = FragmentPart::First;
                }
                _ => return Some(head),
            }
            i += 1;
        }
        Some(head)
    }

    #[inline(always)]
    fn write_saddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Addr6) -> Option<()> {
        packet.header_mut::<Ipv6>(l3)?.set_saddr(new);
        Some(())
    }

    #[inline(always)]
    fn write_daddr<P: PacketBuf>(packet: &mut P, l3: Offset, new: Addr6) -> Option<()> {
        packet.header_mut::<Ipv6>(l3)?.set_daddr(new);
        Some(())
    }

    #[inline(always)]
    fn decrement_ttl<P: PacketBuf>(packet: &mut P, l3: Offset) -> Option<()> {
        let ip = packet.header_mut::<Ipv6>(l3)?;
        ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        Some(())
    }

    #[inline(always)]
    fn node_addr(config: &Config) -> Addr6 {
        config.node_v6
    }

    #[inline(always)]
    fn source_of(interface: &Interface) -> Addr6 {
        interface.saddr_v6
    }

    #[inline(always)]
    fn in_cluster_range(config: &Config, addr: &Addr6) -> bool {
        let (m, n, a) = (config.cluster_mask_v6.be, config.cluster_net_v6.be, addr.be);
        ((a[0] & m[0]) ^ n[0])
            | ((a[1] & m[1]) ^ n[1])
            | ((a[2] & m[2]) ^ n[2])
            | ((a[3] & m[3]) ^ n[3])
            == 0
    }
}
