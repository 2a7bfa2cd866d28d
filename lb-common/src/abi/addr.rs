//! Addresses as they lie in the packet.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::family::{Address, Family, V4, V6};

/// An IPv4 address in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr4 {
    /// The address as loaded from memory, network byte order.
    pub be: u32,
}

/// An IPv6 address as four words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr6 {
    /// The address as loaded from memory, network byte order.
    pub be: [u32; 4],
}

/// A link-layer address; all 0 means "none known".
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MacAddr {
    /// The six octets in transmission order, as three half-words (Ethernet is aligned to 2 only).
    pub be: [u16; 3],
}

impl From<Ipv4Addr> for Addr4 {
    fn from(addr: Ipv4Addr) -> Self {
        Addr4 {
            be: u32::from_ne_bytes(addr.octets()),
        }
    }
}

impl From<Addr4> for Ipv4Addr {
    fn from(addr: Addr4) -> Self {
        Ipv4Addr::from(addr.be.to_ne_bytes())
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(addr: Ipv6Addr) -> Self {
        let o = addr.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Addr6 {
            be: [word(0), word(4), word(8), word(12)],
        }
    }
}

impl From<Addr6> for Ipv6Addr {
    fn from(addr: Addr6) -> Self {
        let mut octets = [0u8; 16];
        let mut i = 0;
        while i < 4 {
            let b = addr.be[i].to_ne_bytes();
            octets[4 * i] = b[0];
            octets[4 * i + 1] = b[1];
            octets[4 * i + 2] = b[2];
            octets[4 * i + 3] = b[3];
            i += 1;
        }
        Ipv6Addr::from(octets)
    }
}

impl MacAddr {
    /// From the six octets in transmission order.
    pub const fn new(o: [u8; 6]) -> Self {
        MacAddr {
            be: [
                u16::from_ne_bytes([o[0], o[1]]),
                u16::from_ne_bytes([o[2], o[3]]),
                u16::from_ne_bytes([o[4], o[5]]),
            ],
        }
    }
    /// The six octets in transmission order.
    pub const fn octets(self) -> [u8; 6] {
        let (a, b, c) = (
            self.be[0].to_ne_bytes(),
            self.be[1].to_ne_bytes(),
            self.be[2].to_ne_bytes(),
        );
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }
    /// Whether no address is known.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        (self.be[0] | self.be[1] | self.be[2]) == 0
    }
}

impl core::fmt::Debug for Addr4 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&Ipv4Addr::from(*self), f)
    }
}

impl core::fmt::Debug for Addr6 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&Ipv6Addr::from(*self), f)
    }
}

impl Family for V4 {
    type Addr = Addr4;
    const IS_V6: bool = false;
    const INDEX: usize = 0;
    const NAME: &'static str = "IPv4";
}

impl Family for V6 {
    type Addr = Addr6;
    const IS_V6: bool = true;
    const INDEX: usize = 1;
    const NAME: &'static str = "IPv6";
}

impl Address for Addr4 {
    const WORDS: usize = 1;
    #[inline(always)]
    fn word(&self, i: usize) -> u32 {
        if i == 0 { self.be } else { 0 }
    }
    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Addr4 { be: words[0] }
    }
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.be == 0
    }
}

impl Address for Addr6 {
    const WORDS: usize = 4;
    #[inline(always)]
    fn word(&self, i: usize) -> u32 {
        match i {
            0 => self.be[0],
            1 => self.be[1],
            2 => self.be[2],
            3 => self.be[3],
            _ => 0,
        }
    }
    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Addr6 { be: words }
    }
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        (self.be[0] | self.be[1] | self.be[2] | self.be[3]) == 0
    }
}
