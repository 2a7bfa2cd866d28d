//! Fields of headers, in network byte order.

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
