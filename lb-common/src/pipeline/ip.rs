//! What differs between IPv4 and IPv6 in reading and writing headers.

use super::head::{FragmentPart, IpHead, Parsed};
use super::packet::{Offset, PacketBuf};
use crate::abi::{Addr4, Addr6, Config, Interface, proto};
use crate::family::{V4, V6};
use crate::flow_table::TableFamily;
use crate::wire::checksum::Diff;
use crate::wire::{Ipv4, Ipv6, Ipv6Ext, Ipv6Fragment, next_header};

/// TTL and hop limit of packets that we make.
const TTL: u8 = 64;

/// Bytes of options or extension headers of a packet whose header without them has `plain` bytes.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "an offset is less than 1024"
)]
fn extra<F: Ip>(packet: &Parsed<F>, plain: u32) -> u16 {
    packet
        .ip
        .l4
        .get()
        .wrapping_sub(packet.l3.get())
        .wrapping_sub(plain) as u16
}

/// A family that packets are made of.
pub trait Ip: TableFamily {
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
    /// Makes the header an answer to this packet: addresses exchanged, nothing but `len` bytes of
    /// `proto` behind it.
    fn answer<P: PacketBuf>(packet: &mut P, to: &Parsed<Self>, proto: u8, len: u16) -> Option<()>;
    /// Copies the header of this packet to `at`, without options and extension headers.
    fn quote<P: PacketBuf>(packet: &mut P, of: &Parsed<Self>, at: Offset) -> Option<()>;
    /// Whether an address can be that of one sender. Multicast, broadcast, loopback and unspecified
    /// ones cannot.
    fn is_unicast(addr: &Self::Addr) -> bool;
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
    fn answer<P: PacketBuf>(packet: &mut P, to: &Parsed<V4>, proto: u8, len: u16) -> Option<()> {
        let ip = packet.header_mut::<Ipv4>(to.l3)?;
        ip.version_ihl = 0x45;
        ip.tos = 0;
        ip.set_total_len(len + 20);
        ip.set_unfragmented();
        ip.ttl = TTL;
        ip.proto = proto;
        ip.set_saddr(to.ip.daddr);
        ip.set_daddr(to.ip.saddr);
        ip.finish_check();
        Some(())
    }

    #[inline(always)]
    fn quote<P: PacketBuf>(packet: &mut P, of: &Parsed<V4>, at: Offset) -> Option<()> {
        let from = *packet.header::<Ipv4>(of.l3)?;
        let ip = packet.header_mut::<Ipv4>(at)?;
        *ip = from;
        let extra = extra(of, 20);
        if extra != 0 {
            #[allow(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
            let len = from.total_len() as u16;
            ip.version_ihl = 0x45;
            ip.set_total_len(len.wrapping_sub(extra));
            ip.finish_check();
        }
        Some(())
    }

    #[inline(always)]
    fn is_unicast(addr: &Addr4) -> bool {
        let first = u32::from_be(addr.be) >> 24;
        first != 0 && first != 127 && first < 224
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
        (addr.be ^ config.cluster_net_v4.be) & config.cluster_mask_v4.be == 0
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
                    // An offset that wrapped would show option bytes as ports.
                    head.l4 = head.l4.checked_plus((ext.len as u32 + 1) * 8)?;
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
    fn answer<P: PacketBuf>(packet: &mut P, to: &Parsed<V6>, proto: u8, len: u16) -> Option<()> {
        let ip = packet.header_mut::<Ipv6>(to.l3)?;
        ip.set_payload_len(len);
        ip.next_header = proto;
        ip.hop_limit = TTL;
        ip.set_saddr(to.ip.daddr);
        ip.set_daddr(to.ip.saddr);
        Some(())
    }

    #[inline(always)]
    fn quote<P: PacketBuf>(packet: &mut P, of: &Parsed<V6>, at: Offset) -> Option<()> {
        let from = *packet.header::<Ipv6>(of.l3)?;
        let ip = packet.header_mut::<Ipv6>(at)?;
        *ip = from;
        #[allow(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
        let len = from.payload_len() as u16;
        ip.set_payload_len(len.wrapping_sub(extra(of, 40)));
        ip.next_header = of.ip.proto;
        Some(())
    }

    #[inline(always)]
    fn is_unicast(addr: &Addr6) -> bool {
        u32::from_be(addr.be[0]) >> 24 != 0xff && (addr.be[0] | addr.be[1] | addr.be[2]) != 0
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
        ((a[0] ^ n[0]) & m[0])
            | ((a[1] ^ n[1]) & m[1])
            | ((a[2] ^ n[2]) & m[2])
            | ((a[3] ^ n[3]) & m[3])
            == 0
    }
}
