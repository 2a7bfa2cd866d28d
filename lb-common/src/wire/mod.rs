//! Headers as they lie in the packet, and checksums. No `unsafe`: a header is read and written
//! through a typed window ([`crate::pipeline::packet::PacketBuf`]).
//!
//! On the BPF target the fields are plain integers (alignment 2 is true behind Ethernet, the kernel
//! does not need 4 on x86-64); natively they are byte arrays, so that `zerocopy` can lend a window of
//! any byte slice.

pub mod checksum;
mod eth;
mod icmp;
mod ipv4;
mod ipv6;
mod transport;

pub use eth::{Eth, ethertype};
pub use icmp::{Icmp, NdOption, icmp4, icmp6};
pub use ipv4::Ipv4;
pub use ipv6::{Ipv6, Ipv6Ext, Ipv6Fragment, next_header};
pub use transport::{Ports, Tcp, TcpFlags, Udp};

use crate::abi::{Be16, Be32};

/// 16 bits of a header.
#[cfg(target_arch = "bpf")]
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct W16(u16);

/// 32 bits of a header.
#[cfg(target_arch = "bpf")]
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct W32(u32);

/// 64 bits of a header.
#[cfg(target_arch = "bpf")]
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct W64(u64);

#[cfg(not(target_arch = "bpf"))]
mod native {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

    /// 16 bits of a header.
    #[repr(transparent)]
    #[derive(
        Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
    )]
    pub struct W16(pub(super) [u8; 2]);

    /// 32 bits of a header.
    #[repr(transparent)]
    #[derive(
        Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
    )]
    pub struct W32(pub(super) [u8; 4]);

    /// 64 bits of a header.
    #[repr(transparent)]
    #[derive(
        Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
    )]
    pub struct W64(pub(super) [[u8; 4]; 2]);
}
#[cfg(not(target_arch = "bpf"))]
pub use native::{W16, W32, W64};

#[cfg(target_arch = "bpf")]
impl W16 {
    /// Reads it.
    #[inline(always)]
    pub fn get(self) -> Be16 {
        Be16 { be: self.0 }
    }
    /// Writes it.
    #[inline(always)]
    pub fn set(&mut self, value: Be16) {
        self.0 = value.be;
    }
}

#[cfg(target_arch = "bpf")]
impl W32 {
    /// Reads it.
    #[inline(always)]
    pub fn get(self) -> Be32 {
        Be32 { be: self.0 }
    }
    /// Writes it.
    #[inline(always)]
    pub fn set(&mut self, value: Be32) {
        self.0 = value.be;
    }
}

#[cfg(target_arch = "bpf")]
impl W64 {
    /// Reads its two words.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
    pub fn get(self) -> [u32; 2] {
        let word = self.0;
        [word as u32, (word >> 32) as u32]
    }
    /// Writes its two words.
    #[inline(always)]
    pub fn set(&mut self, [low, high]: [u32; 2]) {
        self.0 = low as u64 | ((high as u64) << 32);
    }
}

#[cfg(not(target_arch = "bpf"))]
impl W16 {
    /// Reads it.
    pub fn get(self) -> Be16 {
        Be16 {
            be: u16::from_ne_bytes(self.0),
        }
    }
    /// Writes it.
    pub fn set(&mut self, value: Be16) {
        self.0 = value.be.to_ne_bytes();
    }
}

#[cfg(not(target_arch = "bpf"))]
impl W32 {
    /// Reads it.
    pub fn get(self) -> Be32 {
        Be32 {
            be: u32::from_ne_bytes(self.0),
        }
    }
    /// Writes it.
    pub fn set(&mut self, value: Be32) {
        self.0 = value.be.to_ne_bytes();
    }
}

#[cfg(not(target_arch = "bpf"))]
impl W64 {
    /// Reads its two words.
    pub fn get(self) -> [u32; 2] {
        self.0.map(u32::from_ne_bytes)
    }
    /// Writes its two words.
    pub fn set(&mut self, words: [u32; 2]) {
        self.0 = words.map(u32::to_ne_bytes);
    }
}

/// A header that a window may show: only integers inside, every bit pattern valid.
#[cfg(not(target_arch = "bpf"))]
pub trait Header:
    Copy
    + zerocopy::FromBytes
    + zerocopy::IntoBytes
    + zerocopy::KnownLayout
    + zerocopy::Immutable
    + zerocopy::Unaligned
    + 'static
{
}

/// A header that a window may show: only integers inside, every bit pattern valid.
#[cfg(target_arch = "bpf")]
pub trait Header: Copy + 'static + sealed::Sealed {}

#[cfg(target_arch = "bpf")]
mod sealed {
    /// Only this module's headers are headers: the window in `lb-ebpf` relies on it.
    pub trait Sealed {}
}

macro_rules! header {
    ($($name:ty = $size:literal),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        impl Header for $name {}
        #[cfg(target_arch = "bpf")]
        impl sealed::Sealed for $name {}
    )+};
}

header!(
    Eth = 14,
    Ipv4 = 20,
    Ipv6 = 40,
    Ipv6Ext = 8,
    Ipv6Fragment = 8,
    Ports = 4,
    Tcp = 20,
    Udp = 8,
    Icmp = 8,
    NdOption = 8,
    W16 = 2,
    W32 = 4
);
