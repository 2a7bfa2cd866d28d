//! What a packet is to say → its bytes.

use super::checksum::{crc32c, fold, pseudo_sum, sum};
use super::{
    ACK, DESTINATION, DESTINATION_MAC, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, FRAGMENT,
    HOP_BY_HOP, ICMP, ICMPV6, SCTP, SOURCE_MAC, TCP, UDP,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What stands in the transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// The right one.
    Full,
    /// The sum over the pseudo header alone, as a sender with transmit offload leaves it.
    Partial,
    /// 0: none (UDP over IPv4), or SCTP left to the device.
    Zero,
    /// A wrong one.
    Wrong,
}

/// Which fragment of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Offset of the payload in bytes, a multiple of 8.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        options: Vec<u8>,
    },
    Udp,
    Sctp,
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Raw(u8),
}

/// A packet in the making. Methods say what differs from an ordinary one.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    source: SocketAddr,
    destination: SocketAddr,
    ethernet: bool,
    macs: ([u8; 6], [u8; 6]),
    vlan: Option<u16>,
    ttl: u8,
    tos: u8,
    ip_id: u16,
    dont_fragment: bool,
    ip_options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<Fragment>,
    transport: Transport,
    payload: Vec<u8>,
    checksum: Checksum,
}

impl PacketBuilder {
    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        assert_eq!(
            source.is_ipv4(),
            destination.is_ipv4(),
            "both addresses are of one family"
        );
        PacketBuilder {
            source,
            destination,
            ethernet: true,
            macs: (DESTINATION_MAC, SOURCE_MAC),
            vlan: None,
            ttl: 64,
            tos: 0,
            ip_id: 0x1234,
            dont_fragment: true,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            transport,
            payload: Vec::new(),
            checksum: Checksum::Full,
        }
    }

    /// A TCP segment with ACK set.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = Transport::Tcp {
            flags: ACK,
            seq: 0x0102_0304,
            ack: 0x0506_0708,
            options: Vec::new(),
        };
        Self::new(source, destination, transport)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Udp)
    }

    /// An SCTP packet: common header, then the payload as chunks.
    pub fn sctp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Sctp)
    }

    /// An ICMP or ICMPv6 message; the family decides. The payload follows its 8-byte header.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new(
            (source, 0).into(),
            (destination, 0).into(),
            Transport::Icmp { kind, code, rest },
        )
    }

    /// Port unreachable about an IP packet (without link-layer header).
    pub fn port_unreachable(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Self {
        let (kind, code) = if source.is_ipv4() { (3, 3) } else { (1, 4) };
        Self::icmp(source, destination, kind, code, [0; 4]).payload(quoted)
    }

    /// Fragmentation needed, or packet too big, about an IP packet.
    pub fn too_big(source: IpAddr, destination: IpAddr, mtu: u16, quoted: &[u8]) -> Self {
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = if source.is_ipv4() { (3, 4) } else { (2, 0) };
        Self::icmp(source, destination, kind, code, [0, 0, high, low]).payload(quoted)
    }

    /// A packet of another protocol.
    pub fn raw(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new(
            (source, 0).into(),
            (destination, 0).into(),
            Transport::Raw(protocol),
        )
    }

    /// TCP flags.
    pub fn flags(mut self, set: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = set;
        }
        self
    }
    /// TCP sequence and acknowledgement numbers.
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        if let Transport::Tcp { seq, ack, .. } = &mut self.transport {
            (*seq, *ack) = (sequence, acknowledgement);
        }
        self
    }
    /// TCP options, padded to 4 bytes with 0.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = padded(bytes, 4);
        }
        self
    }
    /// Bytes after the transport header.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }
    /// Without a link-layer header.
    pub fn without_ethernet(mut self) -> Self {
        self.ethernet = false;
        self
    }
    /// Link-layer addresses.
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.macs = (destination, source);
        self
    }
    /// With an 802.1Q tag in the frame.
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }
    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }
    /// TOS or traffic class.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }
    /// IPv4: identification and the don't-fragment bit.
    pub fn ip_id(mut self, id: u16, dont_fragment: bool) -> Self {
        (self.ip_id, self.dont_fragment) = (id, dont_fragment);
        self
    }
    /// IPv4 options, padded to 4 bytes with 0.
    pub fn ip_options(mut self, bytes: &[u8]) -> Self {
        self.ip_options = padded(bytes, 4);
        self
    }
    /// One more IPv6 extension header of this kind; its body gets padding up to a multiple of 8 bytes
    /// together with its first two.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        self.extensions.push((kind, body.to_vec()));
        self
    }
    /// As a fragment. The transport header is there only at offset 0; elsewhere the payload is all.
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { id, offset, more });
        self
    }
    /// What stands in the transport checksum.
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// The IP packet, without link-layer header.
    pub fn build_ip(&self) -> Vec<u8> {
        let transport = self.build_transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.build_v4(source, destination, &transport)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.build_v6(source, destination, &transport)
            }
            _ => Vec::new(),
        }
    }

    /// The whole packet.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.ethernet {
            bytes.extend(self.macs.0);
            bytes.extend(self.macs.1);
            if let Some(vlan) = self.vlan {
                bytes.extend(ETHERTYPE_VLAN.to_be_bytes());
                bytes.extend(vlan.to_be_bytes());
            }
            let ethertype = if self.source.is_ipv4() {
                ETHERTYPE_IPV4
            } else {
                ETHERTYPE_IPV6
            };
            bytes.extend(ethertype.to_be_bytes());
        }
        bytes.extend(self.build_ip());
        bytes
    }

    /// The whole packet, in fragments that carry at most `size` bytes (rounded down to 8) of the
    /// datagram each.
    pub fn build_fragments(&self, id: u32, size: usize) -> Vec<Vec<u8>> {
        let datagram = self.build_transport();
        let step = (size & !7).max(8);
        let count = datagram.len().div_ceil(step);
        let piece = |i: usize| {
            let at = i * step;
            let mut builder = self.clone();
            builder.transport = Transport::Raw(self.protocol());
            builder.dont_fragment = false;
            builder.ip_id = (id & 0xffff).try_into().unwrap_or(0);
            builder.fragment = Some(Fragment {
                id,
                offset: u16::try_from(at).unwrap_or(u16::MAX),
                more: i + 1 < count,
            });
            builder.payload = datagram[at..datagram.len().min(at + step)].to_vec();
            builder.build()
        };
        (0..count).map(piece).collect()
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp => UDP,
            Transport::Sctp => SCTP,
            Transport::Icmp { .. } if self.source.is_ipv4() => ICMP,
            Transport::Icmp { .. } => ICMPV6,
            Transport::Raw(protocol) => protocol,
        }
    }

    fn build_transport(&self) -> Vec<u8> {
        if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.payload.clone();
        }
        let mut bytes = Vec::new();
        let ports = [
            self.source.port().to_be_bytes(),
            self.destination.port().to_be_bytes(),
        ]
        .concat();
        let checksum_at = match &self.transport {
            Transport::Tcp {
                flags,
                seq,
                ack,
                options,
            } => {
                bytes.extend(ports);
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.push(length8(5 + options.len() / 4) << 4);
                bytes.push(*flags);
                bytes.extend(0xfaf0u16.to_be_bytes()); // window
                bytes.extend([0, 0, 0, 0]); // checksum, urgent pointer
                bytes.extend(options);
                16
            }
            Transport::Udp => {
                bytes.extend(ports);
                bytes.extend(length16(8 + self.payload.len()).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            Transport::Sctp => {
                bytes.extend(ports);
                bytes.extend(0x1020_3040u32.to_be_bytes()); // verification tag
                bytes.extend([0; 4]);
                bytes.extend(&self.payload);
                let crc = crc32c(&bytes).to_le_bytes();
                bytes[8..12].copy_from_slice(&match self.checksum {
                    Checksum::Full => crc,
                    Checksum::Partial | Checksum::Zero => [0; 4],
                    Checksum::Wrong => crc.map(|byte| !byte),
                });
                return bytes;
            }
            Transport::Icmp { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                2
            }
            Transport::Raw(_) => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        let pseudo = match self.transport {
            Transport::Icmp { .. } if self.source.is_ipv4() => 0,
            _ => pseudo_sum(
                self.source.ip(),
                self.destination.ip(),
                self.protocol(),
                bytes.len(),
            ),
        };
        let full = match !fold(pseudo + sum(&bytes)) {
            0 if matches!(self.transport, Transport::Udp) => 0xffff,
            full => full,
        };
        let checksum = match self.checksum {
            Checksum::Full => full,
            Checksum::Partial => fold(pseudo),
            Checksum::Zero => 0,
            Checksum::Wrong => full ^ 0x5555,
        };
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn build_v4(&self, source: Ipv4Addr, destination: Ipv4Addr, transport: &[u8]) -> Vec<u8> {
        let header = 20 + self.ip_options.len();
        let mut bytes = vec![0x40 | length8(header / 4), self.tos];
        bytes.extend(length16(header + transport.len()).to_be_bytes());
        let (id, offset) = match self.fragment {
            Some(fragment) => {
                let more = if fragment.more { 0x2000 } else { 0 };
                (
                    (fragment.id & 0xffff).try_into().unwrap_or(0),
                    more | (fragment.offset / 8),
                )
            }
            None => (self.ip_id, if self.dont_fragment { 0x4000 } else { 0 }),
        };
        bytes.extend(id.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend([self.ttl, self.protocol(), 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(&self.ip_options);
        let checksum = !fold(sum(&bytes));
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(transport);
        bytes
    }

    fn build_v6(&self, source: Ipv6Addr, destination: Ipv6Addr, transport: &[u8]) -> Vec<u8> {
        let mut headers: Vec<(u8, Vec<u8>)> = self
            .extensions
            .iter()
            .map(|(kind, body)| (*kind, extension(*kind, body)))
            .collect();
        if let Some(fragment) = self.fragment {
            let [offset_high, offset_low] =
                (fragment.offset | u16::from(fragment.more)).to_be_bytes();
            let mut body = vec![0, 0, offset_high, offset_low];
            body.extend(fragment.id.to_be_bytes());
            headers.push((FRAGMENT, body));
        }
        let mut next = self.protocol();
        let mut rest: Vec<u8> = transport.to_vec();
        for (kind, mut header) in headers.into_iter().rev() {
            header[0] = next;
            header.extend(&rest);
            (next, rest) = (kind, header);
        }
        let mut bytes = vec![0x60 | (self.tos >> 4), self.tos << 4, 0, 0];
        bytes.extend(length16(rest.len()).to_be_bytes());
        bytes.extend([next, self.ttl]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(rest);
        bytes
    }
}

/// An extension header without its next-header byte: options are filled up with PadN.
fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(body);
    let missing = (8 - bytes.len() % 8) % 8;
    match (kind, missing) {
        (_, 0) => {}
        (HOP_BY_HOP | DESTINATION, 1) => bytes.push(0), // Pad1
        (HOP_BY_HOP | DESTINATION, n) => {
            bytes.extend([1, length8(n - 2)]); // PadN
            bytes.resize(bytes.len() + n - 2, 0);
        }
        (_, n) => bytes.resize(bytes.len() + n, 0),
    }
    bytes[1] = length8(bytes.len() / 8 - 1);
    bytes
}

fn padded(bytes: &[u8], to: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(to), 0);
    padded
}

fn length8(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn length16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
