//! Ports of a datagram's first fragment, for the later ones.

use super::Be16;
use crate::family::Family;

/// A fragmented datagram (RFC 791, RFC 8200 section 4.5). Key of `fragments_*`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey<F: Family> {
    /// Source address as seen at the side.
    pub saddr: F::Addr,
    /// Destination address as seen at the side.
    pub daddr: F::Addr,
    /// Identification as it lies in the packet; IPv4 uses the lower 16 bits.
    pub id: u32,
    /// IANA protocol number.
    pub proto: u8,
    /// [`super::Side`] as a number.
    pub side: u8,
    _pad: u16,
}
const _: () = assert!(size_of::<FragmentKey<crate::V4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<crate::V6>>() == 40);

impl<F: Family> FragmentKey<F> {
    /// A key.
    #[inline(always)]
    pub const fn new(
        saddr: F::Addr,
        daddr: F::Addr,
        id: u32,
        proto: u8,
        side: super::Side,
    ) -> Self {
        FragmentKey {
            saddr,
            daddr,
            id,
            proto,
            side: side as u8,
            _pad: 0,
        }
    }
}

/// The ports of a first fragment.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}
