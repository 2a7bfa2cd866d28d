//! Words of the network that every room uses: families, protocols, prefixes, and how texts spell them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::proto;
pub(crate) use lb_common::abi::{PortRange, PortRangeError};

/// An IP family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both families.
    pub const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
    /// The family of an address.
    pub const fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => IpFamily::V4,
            IpAddr::V6(_) => IpFamily::V6,
        }
    }
    /// Index into pairs of maps.
    pub const fn index(self) -> usize {
        match self {
            IpFamily::V4 => 0,
            IpFamily::V6 => 1,
        }
    }
    /// Kubernetes' name.
    pub const fn name(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }
}

/// A transport protocol of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        }
    }
    /// Kubernetes' name.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

/// An address as the API's texts write it: IPv4 octets with leading zeros are decimal (semantics 4.3, 28.38), an IPv4
/// address written as IPv6 is IPv4.
pub fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text
            .parse::<Ipv6Addr>()
            .ok()
            .map(|addr| IpAddr::V6(addr).to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts
        .next()
        .is_none()
        .then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

fn decimal(text: &str) -> Option<u8> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// An address prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    /// Network address.
    pub addr: IpAddr,
    /// Length in bits.
    pub len: u8,
}

impl Prefix {
    /// A prefix as the API's texts write it, its host bits cleared. Surrounding spaces are trimmed (semantics 4.5).
    pub fn parse(text: &str) -> Option<Prefix> {
        let (addr, len) = text.trim().split_once('/')?;
        Prefix::masked(address(addr)?, decimal(len)?)
    }

    /// The prefix of this length that holds the address; `None`: the family has fewer bits.
    pub fn masked(addr: IpAddr, len: u8) -> Option<Prefix> {
        let addr = match addr {
            IpAddr::V4(addr) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask))
            }
            IpAddr::V6(addr) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Prefix { addr, len })
    }

    /// The prefix that holds one address only.
    pub const fn host(addr: IpAddr) -> Prefix {
        match addr {
            IpAddr::V4(_) => Prefix { addr, len: 32 },
            IpAddr::V6(_) => Prefix { addr, len: 128 },
        }
    }

    /// Its family.
    pub const fn family(&self) -> IpFamily {
        IpFamily::of(&self.addr)
    }

    /// Whether it holds the address.
    pub fn contains(&self, addr: &IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let diff = net.to_bits() ^ addr.to_bits();
                self.len == 0 || diff >> (32 - u32::from(self.len)) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let diff = net.to_bits() ^ addr.to_bits();
                self.len == 0 || diff >> (128 - u32::from(self.len)) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_api_server_reads_them() {
        for (text, wanted) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.08.0.011", Some("10.8.0.11")), // semantics 4.3, 28.38
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("", None),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("FD00::0001", Some("fd00::1")), // semantics 5.8
            ("fe80::1%eth0", None),
        ] {
            assert_eq!(address(text), wanted.map(|w| w.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn prefixes_are_trimmed_and_masked() {
        // semantics 4.5
        let text = |text: &str| Prefix::parse(text).map(|p| format!("{}/{}", p.addr, p.len));
        assert_eq!(text(" 10.1.2.3/8 ").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(text("0.0.0.0/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(text("fd00::1/64").as_deref(), Some("fd00::/64"));
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/-1",
            "x/8",
            "",
        ] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_prefix_contains_its_addresses_only() {
        for (net, addr, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00::/64", "fd00::1", true),
            ("fd00::/64", "fd00:0:0:1::1", false),
            ("10.0.0.1/32", "10.0.0.1", true),
        ] {
            let net = Prefix::parse(net).unwrap();
            assert_eq!(
                net.contains(&addr.parse().unwrap()),
                inside,
                "{net:?} {addr}"
            );
        }
    }
}
