//! Packets built byte by byte, and a reader that checks every length and checksum on its own. Uses the
//! standard library alone, so that a fault in `lb-common` cannot hide in both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IPv6 extension header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 extension header: routing.
pub const ROUTING: u8 = 43;
/// IPv6 extension header: fragment.
pub const FRAGMENT: u8 = 44;
/// IPv6 extension header: destination options.
pub const DESTINATION: u8 = 60;

/// TCP flag FIN.
pub const FIN: u8 = 1;
/// TCP flag SYN.
pub const SYN: u8 = 2;
/// TCP flag RST.
pub const RST: u8 = 4;
/// TCP flag PSH.
pub const PSH: u8 = 8;
/// TCP flag ACK.
pub const ACK: u8 = 16;

/// Link-layer address that built frames come from.
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Link-layer address that built frames go to.
pub const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

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

/// Sum of big-endian 16-bit words, an odd last byte padded with 0.
fn sum(bytes: &[u8]) -> u32 {
    let word =
        |pair: &[u8]| (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// Folds carries into 16 bits.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    u16::try_from(twice).unwrap_or(u16::MAX)
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum(&octets(source))
        + sum(&octets(destination))
        + u32::from(protocol)
        + (length >> 16)
        + (length & 0xffff)
}

/// CRC32c (Castagnoli), as SCTP uses it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// A packet as read. Lengths and checksums have been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Destination and source of the frame; `None` without link-layer header.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// 802.1Q tag.
    pub vlan: Option<u16>,
    /// Source; port 0 where the packet has none.
    pub source: SocketAddr,
    /// Destination; port 0 where the packet has none.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// IPv4 options, or the kinds of IPv6 extension headers in order.
    pub options: Vec<u8>,
    /// Transport protocol.
    pub protocol: u8,
    /// Set on a fragment.
    pub fragment: Option<Fragment>,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence and acknowledgement numbers.
    pub numbers: (u32, u32),
    /// Type, code and the four bytes after the checksum of ICMP and ICMPv6.
    pub icmp: Option<(u8, u8, [u8; 4])>,
    /// The packet that an ICMP error quotes.
    pub quoted: Option<Box<Parsed>>,
    /// The transport checksum as it stands.
    pub checksum: u32,
    /// Bytes after the transport header.
    pub payload: Vec<u8>,
}

/// How much of a packet must be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trust {
    Whole,
    PartialChecksum,
    /// Quoted by an ICMP error: cut short, its transport checksum cannot be checked.
    Quoted,
}

impl Parsed {
    /// Reads a frame with link-layer header.
    pub fn frame(bytes: &[u8]) -> Result<Parsed, String> {
        Parsed::link(bytes, Trust::Whole)
    }

    /// Reads a frame whose transport checksum must be the sum of its pseudo header.
    pub fn frame_with_partial_checksum(bytes: &[u8]) -> Result<Parsed, String> {
        Parsed::link(bytes, Trust::PartialChecksum)
    }

    /// Reads an IP packet without link-layer header.
    pub fn ip(bytes: &[u8]) -> Result<Parsed, String> {
        Parsed::network(bytes, Trust::Whole)
    }

    fn link(bytes: &[u8], trust: Trust) -> Result<Parsed, String> {
        let destination = take::<6>(bytes, 0)?;
        let source = take::<6>(bytes, 6)?;
        let mut at = 12;
        let mut vlan = None;
        let mut ethertype = word(bytes, at)?;
        if ethertype == ETHERTYPE_VLAN {
            vlan = Some(word(bytes, at + 2)?);
            at += 4;
            ethertype = word(bytes, at)?;
        }
        let packet = &bytes[at + 2..];
        let version = packet.first().map_or(0, |byte| byte >> 4);
        match (ethertype, version) {
            (ETHERTYPE_IPV4, 4) | (ETHERTYPE_IPV6, 6) => {}
            _ => {
                return Err(format!(
                    "ethertype {ethertype:#06x} with IP version {version}"
                ));
            }
        }
        let mut parsed = Parsed::network(packet, trust)?;
        parsed.macs = Some((destination, source));
        parsed.vlan = vlan;
        Ok(parsed)
    }

    fn network(bytes: &[u8], trust: Trust) -> Result<Parsed, String> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Parsed::v4(bytes, trust),
            Some(6) => Parsed::v6(bytes, trust),
            version => Err(format!("IP version {version:?}")),
        }
    }

    fn v4(bytes: &[u8], trust: Trust) -> Result<Parsed, String> {
        let header = usize::from(bytes[0] & 15) * 4;
        if header < 20 || bytes.len() < header {
            return Err(format!("IPv4 header of {header} bytes in {}", bytes.len()));
        }
        if fold(sum(&bytes[..header])) != 0xffff {
            return Err("wrong IPv4 header checksum".into());
        }
        let total = usize::from(word(bytes, 2)?);
        // Frames may be padded; what an error quotes may be cut.
        let end = match trust {
            Trust::Quoted => total.min(bytes.len()),
            _ if total < header || total > bytes.len() => {
                return Err(format!(
                    "IPv4 total length {total} in {} bytes",
                    bytes.len()
                ));
            }
            _ => total,
        };
        let offset = word(bytes, 6)?;
        let fragment = (offset & 0x3fff != 0).then_some(Fragment {
            id: word(bytes, 4)?.into(),
            offset: (offset & 0x1fff) * 8,
            more: offset & 0x2000 != 0,
        });
        let mut parsed = Parsed::empty(
            Ipv4Addr::from(take::<4>(bytes, 12)?).into(),
            Ipv4Addr::from(take::<4>(bytes, 16)?).into(),
        );
        parsed.ttl = bytes[8];
        parsed.tos = bytes[1];
        parsed.options = bytes[20..header].to_vec();
        parsed.fragment = fragment;
        parsed.transport(bytes[9], &bytes[header..end], trust)?;
        Ok(parsed)
    }

    fn v6(bytes: &[u8], trust: Trust) -> Result<Parsed, String> {
        let source = Ipv6Addr::from(take::<16>(bytes, 8)?);
        let destination = Ipv6Addr::from(take::<16>(bytes, 24)?);
        let total = 40 + usize::from(word(bytes, 4)?);
        let end = match trust {
            Trust::Quoted => total.min(bytes.len()),
            _ if total > bytes.len() => {
                return Err(format!("IPv6 length {total} in {} bytes", bytes.len()));
            }
            _ => total,
        };
        let mut parsed = Parsed::empty(source.into(), destination.into());
        parsed.ttl = bytes[7];
        parsed.tos = (bytes[0] << 4) | (bytes[1] >> 4);
        let mut next = bytes[6];
        let mut at = 40;
        while let HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT = next {
            let header = take::<8>(bytes, at)?;
            parsed.options.push(next);
            if next == FRAGMENT {
                let offset = word(bytes, at + 2)?;
                let id = u32::from_be_bytes(take::<4>(bytes, at + 4)?);
                parsed.fragment = Some(Fragment {
                    id,
                    offset: offset & !7,
                    more: offset & 1 != 0,
                });
                at += 8;
            } else {
                at += 8 + usize::from(header[1]) * 8;
            }
            next = header[0];
        }
        if at > end {
            return Err(format!("extension headers end at {at} of {end}"));
        }
        parsed.transport(next, &bytes[at..end], trust)?;
        Ok(parsed)
    }

    fn empty(source: IpAddr, destination: IpAddr) -> Parsed {
        Parsed {
            macs: None,
            vlan: None,
            source: (source, 0).into(),
            destination: (destination, 0).into(),
            ttl: 0,
            tos: 0,
            options: Vec::new(),
            protocol: 0,
            fragment: None,
            flags: 0,
            numbers: (0, 0),
            icmp: None,
            quoted: None,
            checksum: 0,
            payload: Vec::new(),
        }
    }

    fn transport(&mut self, protocol: u8, bytes: &[u8], trust: Trust) -> Result<(), String> {
        self.protocol = protocol;
        if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
            self.payload = bytes.to_vec();
            return Ok(());
        }
        let header = match protocol {
            TCP | UDP | SCTP => {
                self.source.set_port(word(bytes, 0)?);
                self.destination.set_port(word(bytes, 2)?);
                match protocol {
                    TCP if trust == Trust::Quoted && bytes.len() < 20 => bytes.len(),
                    TCP => {
                        self.numbers = (
                            u32::from_be_bytes(take::<4>(bytes, 4)?),
                            u32::from_be_bytes(take::<4>(bytes, 8)?),
                        );
                        self.flags = take::<2>(bytes, 12)?[1];
                        self.checksum = word(bytes, 16)?.into();
                        usize::from(bytes[12] >> 4) * 4
                    }
                    UDP => {
                        self.checksum = word(bytes, 6)?.into();
                        let length = usize::from(word(bytes, 4)?);
                        if trust != Trust::Quoted
                            && self.fragment.is_none()
                            && length != bytes.len()
                        {
                            return Err(format!("UDP length {length} in {} bytes", bytes.len()));
                        }
                        8
                    }
                    _ if trust == Trust::Quoted && bytes.len() < 12 => bytes.len(),
                    _ => {
                        self.checksum = u32::from_le_bytes(take::<4>(bytes, 8)?);
                        12
                    }
                }
            }
            ICMP | ICMPV6 => {
                let [kind, code, ..] = take::<8>(bytes, 0)?;
                self.icmp = Some((kind, code, take::<4>(bytes, 4)?));
                self.checksum = word(bytes, 2)?.into();
                let error = match protocol {
                    ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
                    _ => kind < 128,
                };
                if error && trust != Trust::Quoted {
                    let quoted = Parsed::network(&bytes[8..], Trust::Quoted);
                    self.quoted = Some(Box::new(
                        quoted.map_err(|error| format!("quoted packet: {error}"))?,
                    ));
                }
                8
            }
            _ => 0,
        };
        let payload = bytes
            .get(header..)
            .ok_or_else(|| format!("header of {header} in {} bytes", bytes.len()))?;
        self.payload = payload.to_vec();
        if trust == Trust::Quoted || self.fragment.is_some() {
            return Ok(());
        }
        self.check(bytes, trust)
    }

    fn check(&self, bytes: &[u8], trust: Trust) -> Result<(), String> {
        let pseudo = match self.protocol {
            ICMP => 0,
            _ => pseudo_sum(
                self.source.ip(),
                self.destination.ip(),
                self.protocol,
                bytes.len(),
            ),
        };
        let right = match self.protocol {
            SCTP => {
                let mut cleared = bytes.to_vec();
                cleared[8..12].fill(0);
                self.checksum == crc32c(&cleared)
                    || (trust == Trust::PartialChecksum && self.checksum == 0)
            }
            UDP if self.checksum == 0 => self.source.is_ipv4(),
            TCP | UDP if trust == Trust::PartialChecksum => {
                self.checksum == u32::from(fold(pseudo))
            }
            TCP | UDP | ICMP | ICMPV6 => fold(pseudo + sum(bytes)) == 0xffff,
            _ => true,
        };
        if right {
            return Ok(());
        }
        Err(format!(
            "wrong checksum {:#06x} of protocol {}: {self:?}",
            self.checksum, self.protocol
        ))
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let slice = bytes.get(at..at + N);
    slice
        .and_then(|slice| slice.try_into().ok())
        .ok_or_else(|| format!("cut at {} of {}", bytes.len(), at + N))
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    Ok(u16::from_be_bytes(take::<2>(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn pairs() -> [(SocketAddr, SocketAddr); 2] {
        [
            (addr("10.0.0.1:1234"), addr("10.96.0.10:80")),
            (addr("[fd00::1]:1234"), addr("[fd00:10:96::10]:80")),
        ]
    }

    #[test]
    fn a_built_packet_reads_back_with_right_checksums() {
        for (source, destination) in pairs() {
            for builder in [PacketBuilder::tcp, PacketBuilder::udp, PacketBuilder::sctp]
                .map(|new| new(source, destination))
            {
                for payload in [&b""[..], b"x", b"hello, world"] {
                    for checksum in [Checksum::Full, Checksum::Partial] {
                        let builder = builder
                            .clone()
                            .payload(payload)
                            .checksum(checksum)
                            .ttl(9)
                            .vlan(7);
                        let frame = builder.build();
                        let parsed = match checksum {
                            Checksum::Full => Parsed::frame(&frame).unwrap(),
                            _ => Parsed::frame_with_partial_checksum(&frame).unwrap(),
                        };
                        assert_eq!((parsed.source, parsed.destination), (source, destination));
                        assert_eq!((parsed.ttl, parsed.vlan), (9, Some(7)));
                        assert_eq!(parsed.payload, payload);
                        assert_eq!(parsed.macs, Some((DESTINATION_MAC, SOURCE_MAC)));
                    }
                    let wrong = builder
                        .clone()
                        .payload(payload)
                        .checksum(Checksum::Wrong)
                        .build();
                    assert!(Parsed::frame(&wrong).is_err());
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_packet_is_noticed() {
        for (source, destination) in pairs() {
            let whole = PacketBuilder::tcp(source, destination)
                .payload(b"abc")
                .without_ethernet()
                .build();
            let expected = Parsed::ip(&whole).unwrap();
            // IPv6 has no header checksum; the fields its pseudo header leaves out show in the result.
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let flow_label = source.is_ipv6() && (12..32).contains(&(bit ^ 7));
                assert!(
                    flow_label || Parsed::ip(&flipped).as_ref() != Ok(&expected),
                    "bit {bit}"
                );
            }
        }
    }

    #[test]
    fn options_extension_headers_and_quoted_packets_are_read() {
        let [(s4, d4), (s6, d6)] = pairs();
        let parsed =
            Parsed::frame(&PacketBuilder::udp(s4, d4).ip_options(&[1, 1, 1]).build()).unwrap();
        assert_eq!(parsed.options, [1, 1, 1, 0]);
        let builder = PacketBuilder::udp(s6, d6)
            .extension(HOP_BY_HOP, &[])
            .extension(DESTINATION, &[1, 3, 0, 0, 0]);
        let parsed = Parsed::frame(&builder.build()).unwrap();
        assert_eq!(
            (parsed.options, parsed.destination),
            (vec![HOP_BY_HOP, DESTINATION], d6)
        );

        for (source, destination) in pairs() {
            let quoted = PacketBuilder::tcp(destination, source)
                .payload(b"x")
                .build_ip();
            let error = PacketBuilder::too_big(
                source.ip(),
                destination.ip(),
                1280,
                &quoted[..quoted.len() - 8],
            );
            let parsed = Parsed::frame(&error.build()).unwrap();
            assert_eq!(parsed.icmp.unwrap().2, [0, 0, 5, 0]);
            let quoted = parsed.quoted.unwrap();
            assert_eq!((quoted.source, quoted.destination), (destination, source));
        }
    }

    #[test]
    fn fragments_put_together_are_the_datagram() {
        for (source, destination) in pairs() {
            let payload: Vec<u8> = (0..=255).cycle().take(2000).collect();
            let builder = PacketBuilder::udp(source, destination).payload(&payload);
            let fragments = builder.build_fragments(77, 1400);
            assert_eq!(fragments.len(), 2);
            let parsed: Vec<Parsed> = fragments
                .iter()
                .map(|frame| Parsed::frame(frame).unwrap())
                .collect();
            assert_eq!(
                parsed[0].fragment,
                Some(Fragment {
                    id: 77,
                    offset: 0,
                    more: true
                })
            );
            assert_eq!(
                parsed[1].fragment,
                Some(Fragment {
                    id: 77,
                    offset: 1400,
                    more: false
                })
            );
            assert_eq!(parsed[0].destination, destination);
            assert_eq!(
                [parsed[0].payload.clone(), parsed[1].payload.clone()].concat(),
                payload
            );
        }
    }

    #[test]
    fn crc32c_is_that_of_the_published_example() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
