//! Integers in network byte order. No arithmetic: `to_host()` first.

/// 16 bits as they lie in the packet.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Be16 {
    /// The bits as loaded from memory, network byte order.
    pub be: u16,
}

/// 32 bits as they lie in the packet.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Be32 {
    /// The bits as loaded from memory, network byte order.
    pub be: u32,
}

impl Be16 {
    /// From host byte order.
    #[inline(always)]
    pub const fn from_host(host: u16) -> Self {
        Be16 { be: host.to_be() }
    }
    /// To host byte order.
    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.be)
    }
}

impl Be32 {
    /// From host byte order.
    #[inline(always)]
    pub const fn from_host(host: u32) -> Self {
        Be32 { be: host.to_be() }
    }
    /// To host byte order.
    #[inline(always)]
    pub const fn to_host(self) -> u32 {
        u32::from_be(self.be)
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.to_host())
    }
}

impl core::fmt::Debug for Be32 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.to_host())
    }
}
