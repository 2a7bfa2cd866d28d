//! Bytes of a packet → what they say, or which length or checksum is wrong.

use super::checksum::{crc32c, fold, pseudo_sum, sum};
use super::{
    DESTINATION, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, FRAGMENT, Fragment, HOP_BY_HOP,
    ICMP, ICMPV6, ROUTING, SCTP, TCP, UDP,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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
