//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the first eight bytes.

use super::field::{W16, W32};

/// An ICMP or ICMPv6 header; an error quotes the packet right behind it.
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
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum; ICMPv6's covers the pseudo-header.
    pub check: W16,
    /// Unused, MTU, gateway …, by type.
    pub rest: W32,
}

impl Icmp {
    /// Offset of the checksum in the header.
    pub const CHECK_AT: u32 = 2;
}

/// Start of an option of neighbour discovery (RFC 4861, section 4.6).
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
pub struct NdOption {
    /// Type.
    pub kind: u8,
    /// Length in units of 8 bytes, these first ones included.
    pub len: u8,
    rest: [u8; 6],
}

impl NdOption {
    /// Type of the option that holds, behind its first 8 bytes, the packet that a redirect is about.
    pub const REDIRECTED: u8 = 4;
}

/// Types and codes of ICMP.
pub mod icmp4 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code: port unreachable.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Whether a message of this type quotes a packet.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            UNREACHABLE | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
        )
    }
}

/// Types and codes of ICMPv6.
pub mod icmp6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Code: port unreachable.
    pub const PORT_UNREACHABLE: u8 = 4;
    /// Redirect (RFC 4861); it quotes a packet in an option, not behind the header.
    pub const REDIRECT: u8 = 137;

    /// Whether a message of this type quotes a packet.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        kind >= 1 && kind <= 4
    }
}
