//! Records of the ring buffer `events`.

use super::{Addr6, Be16};

/// One event. IPv4 addresses lie in the first word of an [`Addr6`].
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Event {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time_ns: u64,
    /// [`EventKind`] as a number.
    pub kind: u8,
    /// [`super::DropReason`] as a number where the kind is a drop, else 0.
    pub reason: u8,
    /// IP version: 4 or 6.
    pub family: u8,
    /// IANA protocol number.
    pub proto: u8,
    /// Interface of the hook; 0 for socket hooks.
    pub ifindex: u32,
    /// Source address of the packet.
    pub saddr: Addr6,
    /// Destination address of the packet.
    pub daddr: Addr6,
    /// Chosen backend's address, where there is one.
    pub backend_addr: Addr6,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// Backend's port.
    pub backend_port: Be16,
    /// [`super::Side`] as a number; 0 for socket hooks.
    pub side: u8,
    _pad: u8,
}
const _: () = assert!(size_of::<Event>() == 72);

/// What an [`Event`] reports.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A packet was dropped.
    Drop = 1,
    /// A flow was made.
    NewFlow = 2,
    /// A packet was refused (RST or ICMP).
    Refused = 3,
}

impl Event {
    /// An event of a kind, everything else 0.
    #[inline(always)]
    pub const fn new(kind: EventKind) -> Self {
        Event {
            time_ns: 0,
            kind: kind as u8,
            reason: 0,
            family: 0,
            proto: 0,
            ifindex: 0,
            saddr: Addr6 { be: [0; 4] },
            daddr: Addr6 { be: [0; 4] },
            backend_addr: Addr6 { be: [0; 4] },
            sport: Be16 { be: 0 },
            dport: Be16 { be: 0 },
            backend_port: Be16 { be: 0 },
            side: 0,
            _pad: 0,
        }
    }
}
