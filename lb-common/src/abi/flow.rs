//! Where a flow meets packets, and what is noted of it.

use super::Be16;
use super::flags::flags;
use crate::family::Family;

/// Where in the packet's way a translation happens. Part of the key, so that a packet is translated
/// exactly once a side. XDP and tc ingress of one interface share a side.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Arrived at an external interface.
    ExternalIn = 1,
    /// Arrived at a pod interface.
    PodIn = 2,
    /// Leaves by any interface. One side for both roles: by which interface a translated packet will
    /// leave is not known when its flow is made.
    Out = 3,
}

impl Side {
    /// Decodes the side of a tuple.
    pub const fn from_u8(side: u8) -> Option<Self> {
        match side {
            1 => Some(Side::ExternalIn),
            2 => Some(Side::PodIn),
            3 => Some(Side::Out),
            _ => None,
        }
    }
}

/// Addresses and ports of a packet after its translation.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Translation<F: Family> {
    /// Source address.
    pub saddr: F::Addr,
    /// Destination address.
    pub daddr: F::Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}
const _: () = assert!(size_of::<Translation<crate::V4>>() == 12);

flags! {
    /// What a flow is, and what was seen of it.
    FlowFlags: u16 {
        /// The source is translated, too: the reply comes in by an ingress side.
        SNAT = 1 << 0,
        /// A pod through a VIP to itself: both halves at ingress, sent back to the same interface.
        HAIRPIN = 1 << 1,
        /// The reply of an SNAT or hairpin flow comes in by a pod interface.
        REPLY_AT_POD = 1 << 2,
        /// A connection that is no Service's, made a flow because its tuple was taken (docs/decisions.md, "A direct
        /// connection with a taken tuple is a flow").
        DIRECT = 1 << 3,
        /// TCP that was picked up in mid-stream: no SYN of it was seen.
        MIDSTREAM = 1 << 4,
        /// The tuples between tc's hooks have entries.
        BY_HALVES = 1 << 5,
        /// Both directions were seen, and the client answered what it got.
        CONFIRMED = 1 << 6,
        /// A packet of the reply direction was seen; of an opening of TCP: the SYN-ACK.
        REPLY_SEEN = 1 << 7,
        /// The original direction has sent FIN.
        FIN = 1 << 8,
        /// The original direction has sent RST.
        RST = 1 << 9,
        /// The reply direction has sent FIN.
        REPLY_FIN = 1 << 10,
        /// The reply direction has sent RST.
        REPLY_RST = 1 << 11,
        /// A packet of the original direction was met between tc's hooks as the first of them had left it: nobody else's
        /// NAT has changed it there.
        OUT_SEEN = 1 << 12,
    }
}

impl FlowFlags {
    /// What never changes while a flow lives.
    pub const CONSTANT: FlowFlags = FlowFlags::SNAT
        .union(FlowFlags::HAIRPIN)
        .union(FlowFlags::REPLY_AT_POD)
        .union(FlowFlags::DIRECT)
        .union(FlowFlags::MIDSTREAM);
    /// A FIN or a RST of either direction.
    pub const CLOSING: FlowFlags = FlowFlags::FIN
        .union(FlowFlags::RST)
        .union(FlowFlags::REPLY_FIN)
        .union(FlowFlags::REPLY_RST);

    /// Whether the connection has ended: a reset, or a FIN of both.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.intersects(FlowFlags::RST.union(FlowFlags::REPLY_RST))
            || self.contains(FlowFlags::FIN.union(FlowFlags::REPLY_FIN))
    }
}
