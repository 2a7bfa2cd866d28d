//! IPv4 (RFC 791).

use super::checksum::fold;
use super::field::{W16, W32};
use crate::abi::{Addr4, Be16, Be32};

/// An IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::KnownLayout,
        zerocopy::Immutable,
        zerocopy::Unaligned
    )
)]
pub struct Ipv4 {
    /// Version in the upper, header length in 32-bit words in the lower four bits.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    total_len: W16,
    id: W16,
    fragment: W16,
    /// Time to live.
    pub ttl: u8,
    /// IANA protocol number.
    pub proto: u8,
    check: W16,
    saddr: W32,
    daddr: W32,
}

impl Ipv4 {
    /// Header length in bytes.
    #[inline(always)]
    pub fn header_len(&self) -> u32 {
        // IHL counts 32-bit words, 60 bytes at most; the mask repeats that bound for the verifier.
        ((self.version_ihl & 0x0f) as u32 * 4) & 0x3c
    }
    /// Length of the datagram in bytes, header included.
    #[inline(always)]
    pub fn total_len(&self) -> u32 {
        self.total_len.get().to_host() as u32
    }
    /// Writes the length of the datagram in bytes.
    #[inline(always)]
    pub fn set_total_len(&mut self, len: u16) {
        self.total_len.set(Be16::from_host(len));
    }
    /// Identification as it lies in the packet.
    #[inline(always)]
    pub fn id(&self) -> Be16 {
        self.id.get()
    }
    /// Writes identification, flags and fragment offset of an unfragmented datagram (DF set).
    #[inline(always)]
    pub fn set_unfragmented(&mut self) {
        self.id.set(Be16::from_host(0));
        self.fragment.set(Be16::from_host(0x4000));
    }
    /// Fragment offset in units of 8 bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment.get().to_host() & 0x1fff
    }
    /// Whether more fragments follow.
    #[inline(always)]
    pub fn more_fragments(&self) -> bool {
        self.fragment.get().to_host() & 0x2000 != 0
    }
    /// Whether this is a fragment, first or later.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get().be & Be16::from_host(0x3fff).be != 0
    }
    /// Header checksum.
    #[inline(always)]
    pub fn check(&self) -> Be16 {
        self.check.get()
    }
    /// Writes the header checksum.
    #[inline(always)]
    pub fn set_check(&mut self, check: Be16) {
        self.check.set(check);
    }
    /// Computes and writes the checksum of a header without options.
    #[inline(always)]
    pub fn finish_check(&mut self) {
        let half = |high: u8, low: u8| u64::from(u16::from_ne_bytes([high, low]));
        let sum = half(self.version_ihl, self.tos)
            + u64::from(self.total_len.get().be)
            + u64::from(self.id.get().be)
            + u64::from(self.fragment.get().be)
            + half(self.ttl, self.proto)
            + u64::from(self.saddr.get().be)
            + u64::from(self.daddr.get().be);
        self.check.set(Be16 { be: !fold(sum) });
    }
    /// Source address.
    #[inline(always)]
    pub fn saddr(&self) -> Addr4 {
        Addr4 {
            be: self.saddr.get().be,
        }
    }
    /// Destination address.
    #[inline(always)]
    pub fn daddr(&self) -> Addr4 {
        Addr4 {
            be: self.daddr.get().be,
        }
    }
    /// Writes the source address.
    #[inline(always)]
    pub fn set_saddr(&mut self, addr: Addr4) {
        self.saddr.set(Be32 { be: addr.be });
    }
    /// Writes the destination address.
    #[inline(always)]
    pub fn set_daddr(&mut self, addr: Addr4) {
        self.daddr.set(Be32 { be: addr.be });
    }
    /// Decrements the time to live and repairs the checksum (RFC 1624).
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        self.ttl = self.ttl.wrapping_sub(1);
        // The TTL is the upper octet of its word: one less there is 0x0100 more in the checksum.
        let sum = self.check().to_host() as u32 + 0x0100;
        let folded = (sum & 0xffff) + (sum >> 16);
        #[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
        self.set_check(Be16::from_host(folded as u16));
    }
}
