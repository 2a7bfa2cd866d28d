//! IPv6 (RFC 8200).

use super::field::{W16, W32, W64};
use crate::abi::{Addr6, Be16, Be32};

/// An IPv6 header.
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
pub struct Ipv6 {
    version_class_label: W32,
    payload_len: W16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    saddr: [W64; 2],
    daddr: [W64; 2],
}

/// Numbers of extension headers.
pub mod next_header {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// Start of an extension header that has a length (hop-by-hop, routing, destination options).
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
pub struct Ipv6Ext {
    /// What follows.
    pub next_header: u8,
    /// Length in units of 8 bytes, not counting the first 8.
    pub len: u8,
    rest: [u8; 6],
}

/// Fragment header (RFC 8200, section 4.5).
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
pub struct Ipv6Fragment {
    /// What follows.
    pub next_header: u8,
    reserved: u8,
    offset_more: W16,
    id: W32,
}

impl Ipv6Fragment {
    /// Whether this is the first fragment.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.offset_more.get().to_host() & 0xfff8 == 0
    }
    /// Identification as it lies in the packet.
    #[inline(always)]
    pub fn id(&self) -> Be32 {
        self.id.get()
    }
}

impl Ipv6 {
    /// Length of what follows this header in bytes.
    #[inline(always)]
    pub fn payload_len(&self) -> u32 {
        self.payload_len.get().to_host() as u32
    }
    /// Writes the length of what follows this header in bytes.
    #[inline(always)]
    pub fn set_payload_len(&mut self, len: u16) {
        self.payload_len.set(Be16::from_host(len));
    }
    /// Source address.
    #[inline(always)]
    pub fn saddr(&self) -> Addr6 {
        read(&self.saddr)
    }
    /// Destination address.
    #[inline(always)]
    pub fn daddr(&self) -> Addr6 {
        read(&self.daddr)
    }
    /// Writes the source address.
    #[inline(always)]
    pub fn set_saddr(&mut self, addr: Addr6) {
        write(&mut self.saddr, addr);
    }
    /// Writes the destination address.
    #[inline(always)]
    pub fn set_daddr(&mut self, addr: Addr6) {
        write(&mut self.daddr, addr);
    }
}

#[inline(always)]
fn read(words: &[W64; 2]) -> Addr6 {
    let ([a, b], [c, d]) = (words[0].get(), words[1].get());
    Addr6 { be: [a, b, c, d] }
}

#[inline(always)]
fn write(words: &mut [W64; 2], addr: Addr6) {
    let [a, b, c, d] = addr.be;
    words[0].set([a, b]);
    words[1].set([c, d]);
}
