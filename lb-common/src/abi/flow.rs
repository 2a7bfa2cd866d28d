//! [`FlowKey`] → [`Flow`]: one direction of a translated connection at one side.
//!
//! Every flow has two entries, original and reply. A flow that is source-translated and carried by tc
//! has two more, for the egress side. Key and value of an entry together name its partner, see
//! [`Flow::partner_key`].

use super::flags::flags;
use super::{Addr6, Be16, MacAddr, proto};
use crate::family::{Address, Family};

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
    /// Decodes [`FlowKey::side`].
    pub const fn from_u8(side: u8) -> Option<Self> {
        match side {
            1 => Some(Side::ExternalIn),
            2 => Some(Side::PodIn),
            3 => Some(Side::Out),
            _ => None,
        }
    }
}

/// A packet's tuple as it is seen at a side, before translation. Key of `flows_v4` and `openings_v4`; those of IPv6
/// have [`PackedFlowKey`].
/// Aligned to 8 so that programs build it on their stack by 64-bit words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey<F: Family> {
    /// Source address.
    pub saddr: F::Addr,
    /// Destination address.
    pub daddr: F::Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IANA protocol number.
    pub proto: u8,
    /// [`Side`] as a number.
    pub side: u8,
    _pad: u16,
}
const _: () = assert!(size_of::<FlowKey<crate::V4>>() == 16);
const _: () = assert!(size_of::<FlowKey<crate::V6>>() == 40);

impl<F: Family> FlowKey<F> {
    /// A key.
    #[inline(always)]
    pub const fn new(
        saddr: F::Addr,
        daddr: F::Addr,
        sport: Be16,
        dport: Be16,
        proto: u8,
        side: Side,
    ) -> Self {
        FlowKey {
            saddr,
            daddr,
            sport,
            dport,
            proto,
            side: side as u8,
            _pad: 0,
        }
    }
    /// Side and protocol in four bits: TCP 0, UDP 1, SCTP 2 above the side.
    #[inline(always)]
    pub const fn code(&self) -> u8 {
        ((self.proto & 1) << 2) | ((self.proto >> 7) << 3) | self.side
    }
    /// Decodes the side.
    pub const fn side(&self) -> Option<Side> {
        Side::from_u8(self.side)
    }
}

/// Key of `flows_v6` and `openings_v6`: a [`FlowKey`] in 36 bytes instead of 40. The kernel hashes a key by rounds of 12
/// bytes, of which the last costs nothing: a round less is a twentieth of a packet.
///
/// Side and protocol, four bits, lie over the first four bits of the source address. Tuples that differ in nothing else
/// share a key, which [`flow_check`] tells apart; no two addresses in use differ in these four bits alone.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct PackedFlowKey {
    /// Source address, its first four bits XORed with [`FlowKey::code`].
    pub saddr: Addr6,
    /// Destination address.
    pub daddr: Addr6,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}
const _: () = assert!(size_of::<PackedFlowKey>() == 36);

impl PackedFlowKey {
    /// What is XORed into the first word of the source address.
    #[inline(always)]
    pub const fn mask(code: u8) -> u32 {
        u32::from_ne_bytes([code << 4, 0, 0, 0])
    }
}

/// A key as the maps of its family hold it: of IPv4 the [`FlowKey`], of IPv6 the [`PackedFlowKey`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowMapKey<F: Family>(F::FlowMapWords);
const _: () = assert!(size_of::<FlowMapKey<crate::V4>>() == size_of::<FlowKey<crate::V4>>());
const _: () = assert!(size_of::<FlowMapKey<crate::V6>>() == size_of::<PackedFlowKey>());

impl<F: Family> FlowMapKey<F> {
    /// As the programs write it.
    pub fn new(key: &FlowKey<F>) -> Self {
        let addr = |addr: F::Addr| (0..F::Addr::WORDS).map(move |i| addr.word(i));
        let ([a, b], [c, d]) = (key.sport.be.to_ne_bytes(), key.dport.be.to_ne_bytes());
        // The last word has no place in a packed key.
        let rest = [[a, b, c, d], [key.proto, key.side, 0, 0]].map(u32::from_ne_bytes);
        let mut words = F::FlowMapWords::default();
        let slots = words.as_mut().iter_mut();
        for (slot, word) in slots.zip(addr(key.saddr).chain(addr(key.daddr)).chain(rest)) {
            *slot = word;
        }
        if let Some(first) = words.as_mut().first_mut().filter(|_| F::IS_V6) {
            *first ^= PackedFlowKey::mask(key.code());
        }
        FlowMapKey(words)
    }

    /// The key, by the check of its entry; `None` where the entry belongs to another key by now.
    pub fn unpack(&self, check: u32) -> Option<FlowKey<F>> {
        let word = |i| self.0.as_ref().get(i).copied().unwrap_or_default();
        let addr = |at, mask| {
            F::Addr::from_words([word(at) ^ mask, word(at + 1), word(at + 2), word(at + 3)])
        };
        let [a, b, c, d] = word(2 * F::Addr::WORDS).to_ne_bytes();
        let [proto, side, ..] = word(2 * F::Addr::WORDS + 1).to_ne_bytes();
        let plain = FlowKey {
            saddr: addr(0, 0),
            daddr: addr(F::Addr::WORDS, 0),
            sport: Be16 {
                be: u16::from_ne_bytes([a, b]),
            },
            dport: Be16 {
                be: u16::from_ne_bytes([c, d]),
            },
            proto,
            side,
            _pad: 0,
        };
        if !F::IS_V6 {
            return Some(plain);
        }
        for side in [Side::ExternalIn, Side::PodIn, Side::Out] {
            for proto in [proto::TCP, proto::UDP, proto::SCTP] {
                let mut key = FlowKey {
                    proto,
                    side: side as u8,
                    ..plain
                };
                key.saddr = addr(0, PackedFlowKey::mask(key.code()));
                if flow_check(&key) == check {
                    return Some(key);
                }
            }
        }
        None
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

/// One direction of a translated connection.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Flow<F: Family> {
    /// [`flow_check`] over the key. First: the kernel writes an element in ascending order, so a
    /// reader who compares the check after what it read notices every overwritten element.
    pub check: u32,
    /// The tuple after translation. At ingress tc applies only the destination half of an entry with
    /// [`FlowFlags::SNAT`]; the egress entry does the other half.
    pub to: Translation<F>,
    /// Last use, in units of 256 jiffies since boot ([`super::Clock`]); written by programs when it
    /// differs.
    pub stamp: u32,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend id when it was selected, as in [`super::Backend::generation`].
    pub generation: u32,
    /// Interface that XDP transmits by; 0 means that the next hop is not known.
    pub ifindex: u32,
    /// Next hop's link-layer address, for XDP.
    pub dmac: MacAddr,
    /// What it is, and what was seen of it.
    pub flags: FlowFlags,
}
const _: () = assert!(size_of::<Flow<crate::V4>>() == 40);
const _: () = assert!(size_of::<Flow<crate::V6>>() == 64);

flags! {
    /// Bits of [`Flow::flags`].
    FlowFlags: u16 {
        /// Entry of the reply direction.
        REPLY = 1 << 0,
        /// Source is translated, too: an entry at an ingress side that XDP applies whole and tc by halves.
        SNAT = 1 << 1,
        /// The egress entry of such a flow (either direction).
        EGRESS = 1 << 2,
        /// A pod through a VIP to itself: both halves at ingress, sent back to the same interface.
        HAIRPIN = 1 << 3,
        /// A packet of this direction was seen.
        SEEN = 1 << 4,
        /// This direction has sent FIN.
        FIN = 1 << 5,
        /// This direction has sent RST.
        RST = 1 << 6,
        /// The flow is confirmed (entry of `flows_*`).
        CONFIRMED = 1 << 7,
        /// Egress entries exist.
        HAS_EGRESS = 1 << 8,
        /// The reply entry is keyed at [`Side::PodIn`] (original entries of SNAT flows; else the partner's
        /// side follows from the entry's own).
        REPLY_AT_POD = 1 << 9,
        /// The original entry is keyed at [`Side::PodIn`] (reply entries).
        ORIGINAL_AT_POD = 1 << 10,
        /// A connection that is no Service's, made a flow because its tuple was taken (docs/decisions.md, "A direct
        /// connection with a taken tuple is a flow").
        DIRECT = 1 << 11,
    }
}

impl FlowFlags {
    /// This direction has sent FIN or RST.
    pub const CLOSING: FlowFlags = FlowFlags::FIN.union(FlowFlags::RST);
}

impl<F: Family> Flow<F> {
    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: FlowFlags) -> bool {
        self.flags.contains(flags)
    }
    /// Key of the entry of the other direction: original ↔ reply.
    ///
    /// An ingress original entry without SNAT and hairpin has its reply at [`Side::Out`]; one with
    /// SNAT or hairpin at an ingress side. An egress entry of an SNAT flow names the ingress entry of
    /// the other direction (the ingress entries do not name the egress ones this way, see
    /// [`Flow::egress_key`]), so it lives as long as that pair does.
    #[inline(always)]
    pub fn partner_key(&self, key: &FlowKey<F>) -> FlowKey<F> {
        let side = if self.has(FlowFlags::REPLY) {
            if self.has(FlowFlags::ORIGINAL_AT_POD) {
                Side::PodIn
            } else {
                Side::ExternalIn
            }
        } else if self
            .flags
            .intersects(FlowFlags::SNAT | FlowFlags::HAIRPIN | FlowFlags::EGRESS)
        {
            if self.has(FlowFlags::REPLY_AT_POD) {
                Side::PodIn
            } else {
                Side::ExternalIn
            }
        } else {
            Side::Out
        };
        FlowKey::new(
            self.to.daddr,
            self.to.saddr,
            self.to.dport,
            self.to.sport,
            key.proto,
            side,
        )
    }
    /// Key of the egress entry that finishes what tc does at ingress with an SNAT entry.
    ///
    /// tc ingress translates the destination, and in the original direction both ports; the egress
    /// entry translates the source, and in the reply direction both ports. So the tuple between the
    /// two is client:SNAT port ↔ backend:port in both directions, unique because the SNAT port is.
    #[inline(always)]
    pub fn egress_key(&self, key: &FlowKey<F>) -> FlowKey<F> {
        let (sport, dport) = self.ingress_ports(key);
        FlowKey::new(key.saddr, self.to.daddr, sport, dport, key.proto, Side::Out)
    }
    /// Ports of a packet behind tc ingress.
    #[inline(always)]
    pub fn ingress_ports(&self, key: &FlowKey<F>) -> (Be16, Be16) {
        if self.has(FlowFlags::REPLY) {
            (key.sport, key.dport)
        } else {
            (self.to.sport, self.to.dport)
        }
    }
}

/// The check of an entry over its key: a multilinear hash (Carter and Wegman) of its 64-bit words,
/// whose products do not wait for each other.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half")]
pub fn flow_check<F: Family>(key: &FlowKey<F>) -> u32 {
    let (s, d) = (&key.saddr, &key.daddr);
    let pair = |low: u32, high: u32| low as u64 | ((high as u64) << 32);
    let ports = key.sport.be as u32 | ((key.dport.be as u32) << 16);
    let rest = key.proto as u32 | ((key.side as u32) << 8);
    let mut sum = 0x6c62_2d65_6270_6602u64
        .wrapping_add(pair(ports, rest).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    if F::IS_V6 {
        sum = sum
            .wrapping_add(pair(s.word(0), s.word(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(pair(s.word(2), s.word(3)).wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_add(pair(d.word(0), d.word(1)).wrapping_mul(0xa076_1d64_78bd_642f))
            .wrapping_add(pair(d.word(2), d.word(3)).wrapping_mul(0xe703_7ed1_a0b4_28db));
    } else {
        sum = sum.wrapping_add(pair(s.word(0), d.word(0)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    (sum >> 32) as u32
}

/// The flow that a slow stage works on, per CPU: keys and values are put together here, never on the
/// stack.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Scratch<F: Family> {
    /// Key of the packet's entry.
    pub key: FlowKey<F>,
    /// The packet's entry.
    pub flow: Flow<F>,
    /// Key of another entry of the flow.
    pub other_key: FlowKey<F>,
    /// Another entry of the flow.
    pub other: Flow<F>,
}

#[cfg(test)]
mod tests {
    use super::{super::Addr4, *};

    #[test]
    fn a_packed_key_is_the_key_again() {
        let saddr = Addr6 {
            be: [0x0120_01fd, 0x0300_0200, 0x0500_0400, 0x0700_0600],
        };
        let daddr = Addr6 {
            be: [0x0b0d_0120, 1, 2, 3],
        };
        let mut seen = [None; 9];
        let mut count = 0;
        for side in [Side::ExternalIn, Side::PodIn, Side::Out] {
            for proto in [proto::TCP, proto::UDP, proto::SCTP] {
                let (sport, dport) = (Be16::from_host(40_000), Be16::from_host(80));
                let key = FlowKey::<crate::V6>::new(saddr, daddr, sport, dport, proto, side);
                let packed = FlowMapKey::new(&key);
                assert_eq!(packed.unpack(flow_check(&key)), Some(key));
                assert_eq!(packed.unpack(flow_check(&key) ^ 1), None);
                assert!(!seen.contains(&Some(packed)), "{proto} {side:?}");
                seen[count] = Some(packed);
                count += 1;
            }
        }
    }
    #[test]
    fn an_ipv4_key_lies_in_the_map_as_it_is() {
        let (saddr, daddr) = (Addr4 { be: 0x0100_000a }, Addr4 { be: 0x0200_000a });
        let (sport, dport) = (Be16::from_host(40_000), Be16::from_host(80));
        let key = FlowKey::<crate::V4>::new(saddr, daddr, sport, dport, proto::UDP, Side::PodIn);
        let in_map = FlowMapKey::new(&key);
        let ports = u32::from_be_bytes([0x9c, 0x40, 0, 80]).to_be();
        let rest = u32::from_ne_bytes([17, 2, 0, 0]);
        assert_eq!(in_map.0, [saddr.be, daddr.be, ports, rest]);
        assert_eq!(in_map.unpack(0), Some(key));
    }
}
