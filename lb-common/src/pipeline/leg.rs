//! Where a packet of a flow is met.

use crate::abi::FlowFlags;
use crate::flow_table::Derived;

/// Where on its way a packet of a flow is met.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// From the client, at an ingress hook.
    Original = 1,
    /// From the backend: at egress, or, where the source is translated, at an ingress hook.
    Reply,
    /// From the client, its destination translated, at egress.
    OutOriginal,
    /// From the backend, its destination translated, at egress.
    OutReply,
}

impl Leg {
    /// From a number: of another function 0 is none.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Leg::Original),
            2 => Some(Leg::Reply),
            3 => Some(Leg::OutOriginal),
            4 => Some(Leg::OutReply),
            _ => None,
        }
    }
    /// Of an index entry.
    #[inline(always)]
    pub const fn of(derived: Derived) -> Self {
        match derived {
            Derived::OutOriginal => Leg::OutOriginal,
            Derived::OutReply => Leg::OutReply,
            Derived::Reply | Derived::Reserved => Leg::Reply,
        }
    }
    /// Whether the packet goes from the backend to the client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        matches!(self, Leg::Reply | Leg::OutReply)
    }
    /// 0 original, 1 reply: index of hops and sequence numbers.
    #[inline(always)]
    pub const fn direction(self) -> usize {
        self.is_reply() as usize
    }
    /// FIN and RST of this direction.
    #[inline(always)]
    pub(super) const fn closing(self) -> (FlowFlags, FlowFlags) {
        if self.is_reply() {
            (FlowFlags::REPLY_FIN, FlowFlags::REPLY_RST)
        } else {
            (FlowFlags::FIN, FlowFlags::RST)
        }
    }
}
