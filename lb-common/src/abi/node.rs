//! This node: interfaces, addresses, configuration, clock. Written by the agent, read by programs.

use super::flags::flags;
use super::{Addr4, Addr6, MacAddr, PortRange, Transport};
use crate::family::Family;

/// An interface that we serve. Value of `interfaces`, a hash by ifindex (`u32`).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Preferred IPv4 source address for SNAT; all 0: none.
    pub saddr_v4: Addr4,
    /// Preferred global IPv6 source address for SNAT; all 0: none.
    pub saddr_v6: Addr6,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Own link-layer address; 0 on interfaces without.
    pub mac: MacAddr,
    /// [`InterfaceRole`] as a number.
    pub role: u8,
    /// What may be done by it.
    pub flags: InterfaceFlags,
}
const _: () = assert!(size_of::<Interface>() == 32);

/// What is behind an interface.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterfaceRole {
    /// Everything that is no pod.
    External = 1,
    /// One pod, or a bridge port with a pod behind it.
    Pod = 2,
}

flags! {
    /// Bits of [`Interface::flags`].
    InterfaceFlags: u8 {
        /// XDP may transmit by this interface.
        XDP_TRANSMIT = 1 << 0,
        /// No link-layer header: the packet starts with IP.
        L3 = 1 << 1,
    }
}

/// An interface that XDP transmits by. Element of `xdp_devices` (array), at `ifindex % 256`.
///
/// An array, because its lookup is inlined and XDP needs it for every packet; two interfaces that
/// share a slot cannot both transmit: the agent keeps the first and leaves the other to tc.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct XdpDevice {
    /// Whose entry this is; 0 nobody's.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Own link-layer address.
    pub mac: MacAddr,
    _pad: u16,
}
const _: () = assert!(size_of::<XdpDevice>() == 16);

impl XdpDevice {
    /// Elements of `xdp_devices`.
    pub const SLOTS: u32 = 256;
    /// An entry.
    pub const fn new(ifindex: u32, mtu: u32, mac: MacAddr) -> Self {
        XdpDevice {
            ifindex,
            mtu,
            mac,
            _pad: 0,
        }
    }
    /// Slot of an interface.
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex % Self::SLOTS
    }
}

/// The one entry of `config` (array, index 0).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Config {
    /// This node's primary IPv4 address: SNAT source where the interface has none, hairpin source,
    /// client address of host sockets.
    pub node_v4: Addr4,
    /// The same for IPv6.
    pub node_v6: Addr6,
    /// Smallest prefix that holds every IPv4 ClusterIP: network. An address is in it when
    /// `(addr ^ net) & mask` is 0.
    pub cluster_net_v4: Addr4,
    /// Its mask in network byte order; with no ClusterIP both are all 1.
    pub cluster_mask_v4: Addr4,
    /// Smallest prefix that holds every IPv6 ClusterIP: network.
    pub cluster_net_v6: Addr6,
    /// Its mask in network byte order.
    pub cluster_mask_v6: Addr6,
    /// Ports for source translation; 0-0 before the agent wrote any.
    pub snat_ports: PortRange,
    /// What the agent's flags ask for.
    pub modes: ModeFlags,
    /// The agent's network namespace cookie; socket hooks act only on sockets in it unless
    /// [`ModeFlags::SOCKET_ALL`].
    pub netns_cookie: u64,
    /// Jiffies a second (CONFIG_HZ), for whoever reads stamps; 0 until measured.
    pub hz: u32,
    /// Most refusals (RST, ICMP) a second and CPU; 0 means no limit.
    pub refusals_per_sec: u32,
}
const _: () = assert!(size_of::<Config>() == 88);

flags! {
    /// Bits of [`Config::modes`].
    ModeFlags: u32 {
        /// `--masquerade kube-proxy`: semantics 9.2 to the letter.
        MASQUERADE_KUBE_PROXY = 1 << 0,
        /// `--masquerade-all`: every flow to a Service is source-translated, but for external frontends under policy Local.
        MASQUERADE_ALL = 1 << 1,
        /// `--socket-lb all`: sockets of every namespace are translated.
        SOCKET_ALL = 1 << 2,
        /// Debug events (new flows) go to the ring buffer.
        DEBUG_EVENTS = 1 << 3,
    }
}

/// An address of this node. Key of `node_addrs_*` (hash; value: [`NodeAddrFlags`]).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct NodeAddrKey<F: Family> {
    /// The address.
    pub addr: F::Addr,
}

flags! {
    /// Bits of the value of `node_addrs_*`.
    NodeAddrFlags: u32 {
        /// NodePorts are accepted on it.
        NODE_PORT = 1 << 0,
        /// The node's primary address of its family.
        PRIMARY = 1 << 1,
    }
}

/// Elements of `port_filter`: TCP, UDP, SCTP, source translation.
pub const PORT_FILTER_ENTRIES: u32 = 4;
/// Element of `port_filter` that holds the ports which source translation may take, whatever the protocol.
pub const SNAT_PORTS_SLOT: u32 = 3;
/// 32-bit words of one element: a bit for each of 65,536 ports.
pub const PORT_FILTER_WORDS: usize = 2048;

/// One element of `port_filter`: bit `p % 32` of word `p / 32` is set when destination port `p` (host
/// byte order) is some frontend's, or, in [`SNAT_PORTS_SLOT`], when source translation may take it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortFilter {
    /// The bits.
    pub words: [u32; PORT_FILTER_WORDS],
}

/// Element of `port_filter` for a protocol.
#[inline(always)]
pub const fn port_filter_slot(transport: Transport) -> u32 {
    match transport {
        Transport::Tcp => 0,
        Transport::Udp => 1,
        Transport::Sctp => 2,
    }
}

/// The kernel's clocks, read together by the `clock` program into the packet it is run on.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Clock {
    /// `jiffies_64`.
    pub jiffies: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic_ns: u64,
}

/// Jiffies in one unit of [`crate::flow_table::Record::stamp`], as a shift.
impl Clock {
    /// `stamp = jiffies >> STAMP_SHIFT`.
    pub const STAMP_SHIFT: u32 = 8;
    /// The stamp of this moment.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "stamps wrap after 34 years at HZ=1000"
    )]
    pub const fn stamp(&self) -> u32 {
        (self.jiffies >> Self::STAMP_SHIFT) as u32
    }
}
