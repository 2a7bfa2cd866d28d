//! Who talks in the cases, in each family, and the packets that they send.

use std::net::{IpAddr, SocketAddr};

use lb_common::pipeline::ip::Ip;
use lb_common::{V4, V6};

use crate::packet::{Conversation, DESTINATION_MAC, PacketBuilder, Parsed, SOURCE_MAC, TCP, UDP};

/// Ifindex of the external interface.
pub const EXTERNAL: u32 = 2;
/// Ifindex of a pod interface.
pub const POD: u32 = 3;
/// The external interface's own link-layer address.
pub const OWN_MAC: [u8; 6] = DESTINATION_MAC;
/// The next hop's.
pub const NEXT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

/// Protocols that most cases try, one after the other.
pub const PROTOCOLS: [u8; 2] = [TCP, UDP];

/// The TCP connection of most cases.
pub const CONVERSATION: Conversation = Conversation {
    client: 1_000,
    server: 0x5000_0000,
};

/// Who talks, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Hosts {
    /// A client outside the cluster.
    pub client: IpAddr,
    /// A router between client and node, or node and backend.
    pub router: IpAddr,
    /// This node.
    pub node: IpAddr,
    /// A ClusterIP.
    pub vip: IpAddr,
    /// Another ClusterIP.
    pub vip2: IpAddr,
    /// A load balancer's address.
    pub external: IpAddr,
    /// A pod of this node.
    pub pod: IpAddr,
    /// Another pod of this node.
    pub pod2: IpAddr,
    /// A pod of another node.
    pub remote: IpAddr,
    /// Another pod of another node.
    pub remote2: IpAddr,
}

/// A family with addresses.
pub trait Net: Ip {
    /// The hosts of this family.
    fn hosts() -> Hosts;
    /// An address as the maps hold it.
    fn addr(addr: IpAddr) -> Self::Addr;
}

/// An address of a case.
pub(super) fn ip(text: &str) -> IpAddr {
    match text.parse() {
        Ok(addr) => addr,
        Err(error) => panic!("{text}: {error}"),
    }
}

impl Net for V4 {
    fn hosts() -> Hosts {
        Hosts {
            client: ip("198.51.100.7"),
            router: ip("198.51.100.1"),
            node: ip("192.0.2.1"),
            vip: ip("10.96.0.10"),
            vip2: ip("10.96.0.11"),
            external: ip("203.0.113.5"),
            pod: ip("10.244.1.5"),
            pod2: ip("10.244.1.6"),
            remote: ip("10.244.2.7"),
            remote2: ip("10.244.2.8"),
        }
    }
    fn addr(addr: IpAddr) -> Self::Addr {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => panic!("{addr} in an IPv4 case"),
        }
    }
}

impl Net for V6 {
    fn hosts() -> Hosts {
        Hosts {
            client: ip("2001:db8:100::7"),
            router: ip("2001:db8:100::1"),
            node: ip("2001:db8:2::1"),
            vip: ip("fd00:10:96::10"),
            vip2: ip("fd00:10:96::11"),
            external: ip("2001:db8:113::5"),
            pod: ip("fd00:10:244:1::5"),
            pod2: ip("fd00:10:244:1::6"),
            remote: ip("fd00:10:244:2::7"),
            remote2: ip("fd00:10:244:2::8"),
        }
    }
    fn addr(addr: IpAddr) -> Self::Addr {
        match addr {
            IpAddr::V6(addr) => addr.into(),
            IpAddr::V4(addr) => panic!("{addr} in an IPv6 case"),
        }
    }
}

/// What a client sends of TCP in mid-stream, or of UDP.
pub fn packet(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    if proto == TCP {
        CONVERSATION.data(source, destination)
    } else {
        PacketBuilder::udp(source, destination)
    }
    .payload(b"some payload")
}

/// The same of a server.
pub fn reply(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    if proto == TCP {
        CONVERSATION.reply(source, destination)
    } else {
        PacketBuilder::udp(source, destination)
    }
    .payload(b"some answer")
}

/// The first packet of a connection.
pub fn first(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    if proto == TCP {
        CONVERSATION.syn(source, destination)
    } else {
        packet(proto, source, destination)
    }
}

/// The server's first packet.
pub fn answer(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    if proto == TCP {
        CONVERSATION.syn_ack(source, destination)
    } else {
        reply(proto, source, destination)
    }
}

/// Address and port.
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// As forwarded by XDP.
pub fn transmitted(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(NEXT_MAC, OWN_MAC).ttl(63)
}

/// As sent back.
pub fn turned(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(SOURCE_MAC, DESTINATION_MAC)
}

/// In a frame to another host, which a mirror port or a flooding bridge shows us.
pub fn of_others(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(NEXT_MAC, SOURCE_MAC)
}

/// Bytes of an IP header and the first eight behind it: the least that an error quotes.
pub(super) fn least<F: Ip>() -> usize {
    if F::IS_V6 { 48 } else { 28 }
}

/// How much of a packet errors quote.
pub(super) fn quotes<F: Ip>() -> [usize; 3] {
    [least::<F>(), least::<F>() + 12, 500]
}

/// A frame as an independent reader sees it, its checksums compared.
#[track_caller]
pub fn parsed(frame: &[u8]) -> Parsed {
    match Parsed::frame(frame) {
        Ok(parsed) => parsed,
        Err(error) => panic!("{error}"),
    }
}
