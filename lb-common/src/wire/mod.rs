//! Headers as they lie in the packet, and checksums. No `unsafe`: a header is read and written
//! through a typed window ([`crate::pipeline::packet::PacketBuf`]).
//!
//! On the BPF target the fields are plain integers (alignment 2 is true behind Ethernet, the kernel
//! does not need 4 on x86-64); natively they are byte arrays, so that `zerocopy` can lend a window of
//! any byte slice.

pub mod checksum;
mod eth;
mod field;
mod icmp;
mod ipv4;
mod ipv6;
mod transport;

pub use eth::{Eth, ethertype};
pub use field::{W16, W32, W64};
pub use icmp::{Icmp, NdOption, icmp4, icmp6};
pub use ipv4::Ipv4;
pub use ipv6::{Ipv6, Ipv6Ext, Ipv6Fragment, next_header};
pub use transport::{Ports, Tcp, TcpFlags, Udp, check_at};

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
