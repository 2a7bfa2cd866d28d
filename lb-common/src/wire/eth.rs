//! Ethernet II.

use super::field::W16;
use crate::abi::{Be16, MacAddr};

/// An Ethernet header.
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
pub struct Eth {
    dst: [W16; 3],
    src: [W16; 3],
    ethertype: W16,
}

/// EtherTypes, as they lie in the packet.
pub mod ethertype {
    use crate::abi::Be16;
    /// IPv4.
    pub const IPV4: Be16 = Be16::from_host(0x0800);
    /// IPv6.
    pub const IPV6: Be16 = Be16::from_host(0x86dd);
}

impl Eth {
    /// What follows.
    #[inline(always)]
    pub fn ethertype(&self) -> Be16 {
        self.ethertype.get()
    }
    /// Destination.
    #[inline(always)]
    pub fn dst(&self) -> MacAddr {
        MacAddr {
            be: [
                self.dst[0].get().be,
                self.dst[1].get().be,
                self.dst[2].get().be,
            ],
        }
    }
    /// Source.
    #[inline(always)]
    pub fn src(&self) -> MacAddr {
        MacAddr {
            be: [
                self.src[0].get().be,
                self.src[1].get().be,
                self.src[2].get().be,
            ],
        }
    }
    /// Writes both.
    #[inline(always)]
    pub fn set(&mut self, dst: MacAddr, src: MacAddr) {
        self.dst[0].set(Be16 { be: dst.be[0] });
        self.dst[1].set(Be16 { be: dst.be[1] });
        self.dst[2].set(Be16 { be: dst.be[2] });
        self.src[0].set(Be16 { be: src.be[0] });
        self.src[1].set(Be16 { be: src.be[1] });
        self.src[2].set(Be16 { be: src.be[2] });
    }
    /// Exchanges both.
    #[inline(always)]
    pub fn swap(&mut self) {
        let (dst, src) = (self.dst(), self.src());
        self.set(src, dst);
    }
}
