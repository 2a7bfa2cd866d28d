//! IANA protocol number → [`Transport`]: decoded once, where a packet or a call comes in.

use super::proto;

/// A transport protocol of Services, by its IANA number.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp = proto::TCP,
    /// UDP.
    Udp = proto::UDP,
    /// SCTP: it has frontends, but no packet of it is translated.
    Sctp = proto::SCTP,
}

impl Transport {
    /// Decodes a number.
    #[inline(always)]
    pub const fn from_proto(proto: u8) -> Option<Self> {
        match proto {
            proto::TCP => Some(Transport::Tcp),
            proto::UDP => Some(Transport::Udp),
            proto::SCTP => Some(Transport::Sctp),
            _ => None,
        }
    }
    /// The number, as keys hold it.
    #[inline(always)]
    pub const fn proto(self) -> u8 {
        self as u8
    }
}
