//! What is to become of a packet.

use crate::abi::{DropReason, Side};

/// A packet hook. Passed as a constant, so that each program holds only its own branches.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP at an external interface.
    Xdp,
    /// tc ingress of an external interface.
    External,
    /// tc ingress of a pod interface.
    Pod,
}

impl Hook {
    /// The side whose flows the hook looks at.
    #[inline(always)]
    pub const fn side(self) -> Side {
        match self {
            Hook::Xdp | Hook::External => Side::ExternalIn,
            Hook::Pod => Side::PodIn,
        }
    }
    /// Whether this is XDP.
    #[inline(always)]
    pub const fn is_xdp(self) -> bool {
        matches!(self, Hook::Xdp)
    }
}

/// How a stage ends.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Not ours: the kernel handles the packet as if we were not attached.
    Pass,
    /// Translated: the stack goes on with it.
    Translated,
    /// Translated whole and addressed: XDP transmits it by this interface.
    Transmit(u32),
    /// Turned round: back out of the interface it came in by.
    Reflect,
    /// To be looked at again by [`super::slow_ingress`] or [`super::slow_egress`].
    Slow,
    /// Has no flow: to be looked at by [`super::open_ingress`].
    Open,
    /// The flow in work is new: to be written by [`super::write()`].
    Write,
    /// The table is to be changed by [`super::commit()`], which knows how the packet goes on.
    Commit,
    /// To be refused by [`super::refuse::refuse`].
    Refuse,
    /// An ICMP message, for [`super::icmp::translate`].
    Icmp,
}

/// The end of a stage, or why the packet is dropped.
pub type Outcome = Result<Step, DropReason>;
