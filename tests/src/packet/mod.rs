//! Packets built byte by byte, and a reader that checks every length and checksum on its own. Uses the
//! standard library alone, so that a fault in `lb-common` cannot hide in both.

mod builder;
mod checksum;
mod conversation;
mod reader;
#[cfg(test)]
mod tests;

pub use self::builder::{Checksum, Fragment, PacketBuilder};
pub use self::checksum::crc32c;
pub use self::conversation::Conversation;
pub use self::reader::Parsed;

/// Protocol number of TCP.
pub const TCP: u8 = 6;

/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;

/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// IPv6 extension header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;

/// IPv6 extension header: routing.
pub const ROUTING: u8 = 43;

/// IPv6 extension header: fragment.
pub const FRAGMENT: u8 = 44;

/// IPv6 extension header: destination options.
pub const DESTINATION: u8 = 60;

/// TCP flag FIN.
pub const FIN: u8 = 1;

/// TCP flag SYN.
pub const SYN: u8 = 2;

/// TCP flag RST.
pub const RST: u8 = 4;

/// TCP flag PSH.
pub const PSH: u8 = 8;

/// TCP flag ACK.
pub const ACK: u8 = 16;

/// Link-layer address that built frames come from.
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Link-layer address that built frames go to.
pub const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const ETHERTYPE_IPV4: u16 = 0x0800;

const ETHERTYPE_IPV6: u16 = 0x86dd;

const ETHERTYPE_VLAN: u16 = 0x8100;
