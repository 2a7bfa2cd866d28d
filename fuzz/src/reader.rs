//! A frame → what etherparse, which shares no code with us, reads in it; an error where a length or checksum is wrong.

use std::net::{IpAddr, SocketAddr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice, ip_number};

/// A frame as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Source; port 0 where the packet has none.
    pub source: SocketAddr,
    /// Destination; port 0 where the packet has none.
    pub destination: SocketAddr,
    /// Protocol behind all extension headers.
    pub protocol: u8,
    /// A fragment: its checksum could not be looked at.
    pub is_fragment: bool,
}

/// Reads a frame and recomputes every checksum in it.
pub fn read(frame: &[u8]) -> Result<Frame, String> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let (source, destination, payload, pseudo) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            if Sum16BitWords::new()
                .add_slice(header.slice())
                .ones_complement()
                != 0
            {
                return Err("wrong checksum of the IPv4 header".to_owned());
            }
            let pseudo = Sum16BitWords::new()
                .add_4bytes(header.source())
                .add_4bytes(header.destination());
            let ends = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (ends.0, ends.1, ip.payload(), pseudo)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let pseudo = Sum16BitWords::new()
                .add_16bytes(header.source())
                .add_16bytes(header.destination());
            let (source, destination) = (header.source_addr(), header.destination_addr());
            (
                IpAddr::V6(source),
                IpAddr::V6(destination),
                ip.payload(),
                pseudo,
            )
        }
        _ => return Err("no IP".to_owned()),
    };
    let protocol = payload.ip_number;
    let mut ports = (0, 0);
    if !payload.fragmented {
        let (covered, with_pseudo) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                ports = (tcp.source_port(), tcp.destination_port());
                (tcp.slice(), true)
            }
            Some(TransportSlice::Udp(udp)) => {
                ports = (udp.source_port(), udp.destination_port());
                if udp.checksum() == 0 {
                    if source.is_ipv6() {
                        return Err("UDP over IPv6 without a checksum".to_owned());
                    }
                    (&[][..], false)
                } else {
                    (udp.slice(), true)
                }
            }
            Some(TransportSlice::Icmpv4(icmp)) => (icmp.slice(), false),
            Some(TransportSlice::Icmpv6(icmp)) => (icmp.slice(), true),
            _ => return Err(format!("protocol {}", protocol.0)),
        };
        let sum = if with_pseudo {
            let len = u32::try_from(covered.len()).map_err(|error| error.to_string())?;
            pseudo
                .add_2bytes([0, protocol.0])
                .add_4bytes(len.to_be_bytes())
        } else {
            Sum16BitWords::new()
        };
        if !covered.is_empty() && sum.add_slice(covered).ones_complement() != 0 {
            return Err(format!("wrong checksum of protocol {}", protocol.0));
        }
    }
    Ok(Frame {
        source: (source, ports.0).into(),
        destination: (destination, ports.1).into(),
        protocol: protocol.0,
        is_fragment: payload.fragmented,
    })
}

/// Whether the frame carries TCP or UDP, whole.
pub fn is_flow(frame: &Frame) -> bool {
    !frame.is_fragment && (frame.protocol == ip_number::TCP.0 || frame.protocol == ip_number::UDP.0)
}
