//! TCP (RFC 9293), UDP (RFC 768), and the ports that they and SCTP begin with.

use super::field::{W16, W32};
use crate::abi::flags::flags;
use crate::abi::{Be16, Be32, Transport};

/// Source and destination port: the first four bytes of TCP, UDP and SCTP, moved as one word.
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
pub struct Ports {
    both: W32,
}

impl Ports {
    /// Both as one word as loaded from memory.
    #[inline(always)]
    pub fn word(&self) -> u32 {
        self.both.get().be
    }
    /// Writes both.
    #[inline(always)]
    pub fn set_word(&mut self, word: u32) {
        self.both.set(Be32 { be: word });
    }
    /// Source port.
    #[inline(always)]
    pub fn sport(&self) -> Be16 {
        split(self.word()).0
    }
    /// Destination port.
    #[inline(always)]
    pub fn dport(&self) -> Be16 {
        split(self.word()).1
    }
    /// The word of two ports.
    #[inline(always)]
    pub const fn join(sport: Be16, dport: Be16) -> u32 {
        if cfg!(target_endian = "little") {
            (sport.be as u32) | ((dport.be as u32) << 16)
        } else {
            ((sport.be as u32) << 16) | (dport.be as u32)
        }
    }
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn split(word: u32) -> (Be16, Be16) {
    if cfg!(target_endian = "little") {
        (
            Be16 { be: word as u16 },
            Be16 {
                be: (word >> 16) as u16,
            },
        )
    } else {
        (
            Be16 {
                be: (word >> 16) as u16,
            },
            Be16 { be: word as u16 },
        )
    }
}

/// A TCP header without options.
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
pub struct Tcp {
    /// The ports.
    pub ports: Ports,
    /// Sequence number.
    pub seq: W32,
    /// Acknowledgement number.
    pub ack: W32,
    /// Header length in 32-bit words in the upper four bits.
    pub data_offset: u8,
    /// Control bits.
    pub flags: TcpFlags,
    /// Window.
    pub window: W16,
    /// Checksum.
    pub check: W16,
    /// Urgent pointer.
    pub urgent: W16,
}

flags! {
    /// Control bits of TCP.
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
    TcpFlags: u8 {
        /// No more data from the sender.
        FIN = 0x01,
        /// Synchronise sequence numbers.
        SYN = 0x02,
        /// Reset.
        RST = 0x04,
        /// The acknowledgement number counts.
        ACK = 0x10,
    }
}

impl TcpFlags {
    /// Whether the segment opens a connection: SYN alone.
    #[inline(always)]
    pub fn is_pure_syn(self) -> bool {
        self & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST | TcpFlags::FIN) == TcpFlags::SYN
    }
}

impl Tcp {
    /// Offset of the checksum in the header.
    pub const CHECK_AT: u32 = 16;
}

/// A UDP header.
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
pub struct Udp {
    /// The ports.
    pub ports: Ports,
    /// Length in bytes, header included.
    pub len: W16,
    /// Checksum; 0 means none (IPv4 only).
    pub check: W16,
}

impl Udp {
    /// Offset of the checksum in the header.
    pub const CHECK_AT: u32 = 6;
}

/// Offset of the checksum in a transport header (of SCTP: RFC 9260, section 3.1).
#[inline(always)]
pub const fn check_at(transport: Transport) -> u32 {
    match transport {
        Transport::Udp => Udp::CHECK_AT,
        Transport::Tcp => Tcp::CHECK_AT,
        Transport::Sctp => 8,
    }
}
