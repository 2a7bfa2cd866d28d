//! The packet as the logic sees it: typed windows, and the few things only its context can do.

use crate::abi::MacAddr;
use crate::family::Family;
use crate::wire::Header;
use crate::wire::checksum::Diff;

/// A distance in bytes from the start of the packet, at most 0x3ff: the bound that the verifier needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offset(u32);

impl Offset {
    /// Behind an Ethernet header.
    pub const ETH: Offset = Offset(14);
    /// The packet's start.
    pub const START: Offset = Offset(0);

    /// An offset; bits above the bound are cut off.
    #[inline(always)]
    pub const fn new(bytes: u32) -> Self {
        Offset(bytes & 0x3ff)
    }
    /// In bytes.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }
    /// Further by so many bytes that the packet names; `None` where a header of 64 bytes might not lie
    /// below the bound any more.
    #[inline(always)]
    #[must_use]
    pub const fn checked_plus(self, bytes: u32) -> Option<Self> {
        let sum = self.0.saturating_add(bytes);
        if sum < 0x3c0 {
            Some(Offset::new(sum))
        } else {
            None
        }
    }
    /// Further by so many bytes.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, bytes: u32) -> Self {
        Offset::new(self.0 + bytes)
    }
}

/// Bytes that the slow path wants directly accessible: any header chain that it reads, and the packet
/// that an ICMP error quotes.
pub const SLOW_BYTES: u32 = 256;

/// Where the kernel would send a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Interface.
    pub ifindex: u32,
    /// Its neighbour's link-layer address; 0 while unresolved or where there is none.
    pub dmac: MacAddr,
    /// Whether a packet of the length asked for may be sent there at once: neighbour known, within
    /// the MTU, forwarding on.
    pub ready: bool,
}

/// A packet in one hook.
#[expect(clippy::len_without_is_empty, reason = "a packet is never empty")]
pub trait PacketBuf {
    /// Shows the header at an offset; `None` where the directly accessible part ends before its end.
    fn header<T: Header>(&self, at: Offset) -> Option<&T>;
    /// The same, to be written.
    fn header_mut<T: Header>(&mut self, at: Offset) -> Option<&mut T>;
    /// Makes up to `len` bytes directly accessible, as far as the packet has them.
    fn linear(&mut self, len: u32);
    /// Length in bytes, link-layer header included.
    fn len(&self) -> u32;
    /// Cuts the packet off, or lengthens it by zeros, to `len` bytes; false where it cannot be done.
    /// On an skb this ends segmentation offload. XDP answers nothing and cannot.
    fn set_len(&mut self, len: u32) -> bool;
    /// Whether the transport checksum at `check_at` is still to be finished by the kernel or a device
    /// (CHECKSUM_PARTIAL): the sum from the transport header to the packet's end is then written there,
    /// whatever stands in the packet by that time.
    fn is_partial(&mut self, check_at: Offset) -> bool;
    /// Interface of the hook.
    fn ifindex(&self) -> u32;
    /// Repairs the transport checksum at `at`: `addresses` changes the pseudo-header, `data` what the
    /// checksum covers besides. `udp`: a checksum of 0 means none and stays (IPv4), a sum of 0 is
    /// written as 0xffff. False where it cannot be done; the packet must then be dropped.
    fn repair_checksum<F: Family>(
        &mut self,
        at: Offset,
        addresses: Diff,
        data: Diff,
        udp: bool,
    ) -> bool;
    /// Asks the routing table: a packet of `ip_len` bytes from `saddr` to `daddr` that came in by this
    /// hook's interface. `None` where there is no route.
    fn route<F: Family>(
        &self,
        saddr: &F::Addr,
        daddr: &F::Addr,
        proto: u8,
        ip_len: u32,
    ) -> Option<NextHop>;
}
