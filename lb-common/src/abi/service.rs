//! [`ServiceKey`] → [`Service`]: a frontend and what it promises.

use super::flags::flags;
use super::{Be16, check::mix};
use crate::family::{Address, Family};

/// A frontend: what a client dials. Key of `services_v4` and `services_v6`.
///
/// NodePorts are expanded: one entry per accepted node address. Besides, every ClusterIP has one
/// entry with port 0 and protocol 0 ([`ServiceFlags::ADDRESS_ONLY`]): ports that no Service defines
/// on it are refused.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey<F: Family> {
    /// The dialled address.
    pub addr: F::Addr,
    /// The dialled port; 0 only in the address-only entry.
    pub port: Be16,
    /// IANA protocol number: 6 TCP, 17 UDP, 132 SCTP; 0 only in the address-only entry.
    pub proto: u8,
    _pad: u8,
}
const _: () = assert!(size_of::<ServiceKey<crate::V4>>() == 8);
const _: () = assert!(size_of::<ServiceKey<crate::V6>>() == 20);

impl<F: Family> ServiceKey<F> {
    /// A key.
    #[inline(always)]
    pub const fn new(addr: F::Addr, port: Be16, proto: u8) -> Self {
        ServiceKey {
            addr,
            port,
            proto,
            _pad: 0,
        }
    }
}

/// A Maglev table in the selection slab.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SelectionList {
    /// First row.
    pub offset: u32,
    /// Number of rows; 0 means that the list has no backend.
    pub len: u32,
}

/// A frontend of one service port.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Service {
    /// [`service_check`] over key and value. First, so that a reader who compares it last sees every
    /// overwritten element (docs/decisions.md, "Stale and torn elements").
    pub check: u32,
    /// Id of the service port (index of `service_stats`, part of the affinity key). All frontends of
    /// one service port share it; ids are unique over both families. 0 is no service port.
    pub id: u32,
    /// Table of the Cluster list.
    pub cluster: SelectionList,
    /// Table of the Local list; equal to `cluster` when both lists are.
    pub local: SelectionList,
    /// Seconds a client keeps its backend (`clientIP.timeoutSeconds`); 0 means no affinity.
    pub affinity_secs: u32,
    /// [`FrontendKind`] as a number.
    pub kind: u8,
    _pad: u8,
    /// Its policies.
    pub flags: ServiceFlags,
}
const _: () = assert!(size_of::<Service>() == 32);

flags! {
    /// Bits of [`Service::flags`].
    ServiceFlags: u16 {
        /// `internalTrafficPolicy: Local` is in force; set on ClusterIP frontends only.
        INTERNAL_LOCAL = 1 << 0,
        /// `externalTrafficPolicy: Local` is in force; set on external frontends only.
        EXTERNAL_LOCAL = 1 << 1,
        /// Some node has a usable endpoint (semantics 6.7): an empty list in force then means drop, else
        /// reject.
        HAS_ENDPOINTS = 1 << 2,
        /// `loadBalancerSourceRanges` restrict this frontend: look into `src_ranges_*`.
        SOURCE_RANGES = 1 << 3,
        /// No service port: the ClusterIP exists, everything not defined on it is refused (11.1).
        ADDRESS_ONLY = 1 << 4,
    }
}

/// Which kind of frontend an entry is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendKind {
    /// `clusterIP`.
    ClusterIp = 1,
    /// A node address and `nodePort`.
    NodePort = 2,
    /// `externalIPs`.
    ExternalIp = 3,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer = 4,
}

impl FrontendKind {
    /// Decodes [`Service::kind`].
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(FrontendKind::ClusterIp),
            2 => Some(FrontendKind::NodePort),
            3 => Some(FrontendKind::ExternalIp),
            4 => Some(FrontendKind::LoadBalancer),
            _ => None,
        }
    }
}

impl Service {
    /// Whether this is a ClusterIP frontend: its traffic is internal (semantics 1.3).
    #[inline(always)]
    pub const fn is_internal(&self) -> bool {
        self.kind == FrontendKind::ClusterIp as u8
    }
    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: ServiceFlags) -> bool {
        self.flags.contains(flags)
    }
    /// Fills in [`Service::check`] for this key.
    #[must_use]
    pub fn sealed<F: Family>(mut self, key: &ServiceKey<F>) -> Self {
        self.check = service_check(key, &self);
        self
    }
}

/// The check of an entry over its key and its value but for the check itself.
#[inline(always)]
pub fn service_check<F: Family>(key: &ServiceKey<F>, value: &Service) -> u32 {
    let mut s = 0x6c62_2d65_6270_6601u64;
    s = mix(s, key.addr.word(0));
    if F::IS_V6 {
        s = mix(s, key.addr.word(1));
        s = mix(s, key.addr.word(2));
        s = mix(s, key.addr.word(3));
    }
    s = mix(s, (key.port.be as u32) | ((key.proto as u32) << 16));
    s = mix(s, value.id);
    s = mix(s, value.cluster.offset);
    s = mix(s, value.cluster.len);
    s = mix(s, value.local.offset);
    s = mix(s, value.local.len);
    s = mix(s, value.affinity_secs);
    s = mix(s, (value.kind as u32) | ((value.flags.bits() as u32) << 16));
    (s >> 32) as u32
}

/// Traffic of one service port, per CPU. Value of `service_stats`, indexed by service id.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ServiceStats {
    /// New flows.
    pub flows: u64,
    /// Packets of the original direction.
    pub packets: u64,
    /// Bytes of the original direction, link-layer header included.
    pub bytes: u64,
}
const _: () = assert!(size_of::<ServiceStats>() == 24);
