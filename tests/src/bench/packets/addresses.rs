//! Who talks in the packet rows, and where their addresses and ports lie in a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    Family, V4, V6,
    abi::{Addr4, Addr6},
    flow_table::TableFamily,
};

pub(super) const NODE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 11),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11),
);

/// The remote backend; its first addresses are direct neighbours, so that XDP finds its next hop.
pub(super) const BACKEND: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 12),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x12),
);

pub(super) const CLUSTER_IP: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 96, 0, 10),
    Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10),
);

/// Client of flow 0: its lower bits vary.
pub(super) const CLIENT: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(11, 0, 0, 0),
    Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0x0b00, 0),
);

pub(super) const CLIENT_BASE: u32 = 0x0b00_0000;
pub(super) const FIRST_PORT: u16 = 16_384;
pub(super) const NODE_PORT: u16 = 30_080;
pub(super) const PORT: u16 = 80;
pub(super) const SAME_PORT: u16 = 8_080;

/// Frontends of the rows that open flows: a Service with many backends, or one backend's source ports
/// would run out.
pub(super) const NEW_NODE_PORT: u16 = 30_081;
pub(super) const NEW_PORT: u16 = 81;

/// Their clients are others than those of established flows.
pub(super) const NEW_CLIENT_BASE: u32 = 0x0b80_0000;
pub(super) const TARGET_PORT: u16 = 8_080;

pub(super) fn ip<F: Family>(pair: (Ipv4Addr, Ipv6Addr)) -> IpAddr {
    if F::IS_V6 {
        pair.1.into()
    } else {
        pair.0.into()
    }
}

/// What differs between the families here.
pub(super) trait Bench: TableFamily {
    fn addr(ip: IpAddr) -> Self::Addr;
    /// Where the word of the address that varies lies: source, destination.
    const ADDR_AT: (u32, u32);
    /// Where the transport header lies.
    const L4: u32;
    const TAG: &'static str;
}

impl Bench for V4 {
    fn addr(ip: IpAddr) -> Addr4 {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(_) => Addr4::default(),
        }
    }
    const ADDR_AT: (u32, u32) = (26, 30);
    const L4: u32 = 34;
    const TAG: &'static str = "v4";
}

impl Bench for V6 {
    fn addr(ip: IpAddr) -> Addr6 {
        match ip {
            IpAddr::V6(ip) => ip.into(),
            IpAddr::V4(_) => Addr6::default(),
        }
    }
    const ADDR_AT: (u32, u32) = (14 + 8 + 12, 14 + 24 + 12);
    const L4: u32 = 54;
    const TAG: &'static str = "v6";
}

/// Client of a flow of the front.
pub(super) fn client(number: u32, v6: bool) -> (IpAddr, u16) {
    (
        client_at(CLIENT_BASE + (number >> 14), v6),
        FIRST_PORT + u16::try_from(number & 16_383).unwrap_or(0),
    )
}

/// The client address with this varying word.
pub(super) fn client_at(word: u32, v6: bool) -> IpAddr {
    if v6 {
        let mut segments = CLIENT.1.segments();
        segments[6] = u16::try_from(word >> 16).unwrap_or(0);
        segments[7] = u16::try_from(word & 0xffff).unwrap_or(0);
        IpAddr::from(segments)
    } else {
        IpAddr::V4(word.into())
    }
}

/// Port that SNAT gave a flow of the front.
pub(super) fn snat_port(number: u32) -> u16 {
    20_000 + u16::try_from(number % 10_000).unwrap_or(0)
}
