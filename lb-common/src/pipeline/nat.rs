//! Service, client, backend → [`Nat`]: how the source of a new flow is handled.

use super::ip::Ip;
use super::verdict::Hook;
use crate::abi::{Backend, BackendFlags, FlowFlags, ModeFlags, Service, ServiceFlags};
use crate::flow_table::Hop;

/// How the source of a new flow is to be handled.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    /// Kept.
    Keep,
    /// An address of this node takes its place.
    Snat,
    /// A pod through a VIP to itself.
    Hairpin,
}

/// Decides source translation (semantics 9; docs/decisions.md, "Translate the source only where the reply would miss the node").
#[inline(always)]
pub fn nat<F: Ip>(
    modes: ModeFlags,
    hook: Hook,
    service: &Service,
    client: &F::Addr,
    backend: &Backend<F>,
) -> Nat {
    let pod = hook == Hook::Pod;
    if *client == backend.addr && pod {
        return Nat::Hairpin;
    }
    if backend.has(BackendFlags::HOST) {
        // The packet ends on this host: its answer passes our egress hook (9.5).
        return Nat::Keep;
    }
    if !pod && (!backend.has(BackendFlags::LOCAL) || *client == backend.addr) {
        return Nat::Snat;
    }
    let is_kept = !service.is_internal() && service.has(ServiceFlags::EXTERNAL_LOCAL);
    if modes.contains(ModeFlags::MASQUERADE_ALL) && !is_kept {
        return Nat::Snat;
    }
    if modes.contains(ModeFlags::MASQUERADE_KUBE_PROXY) {
        let snat = if service.is_internal() {
            !pod
        } else {
            !service.has(ServiceFlags::EXTERNAL_LOCAL)
        };
        return if snat { Nat::Snat } else { Nat::Keep };
    }
    Nat::Keep
}

/// The source of a new flow.
#[derive(Clone, Copy, Debug)]
pub struct Source<F: Ip> {
    /// How it is handled.
    pub nat: Nat,
    /// The node's address that takes its place, where it does.
    pub addr: F::Addr,
    /// Next hop for XDP, where one is known.
    pub hop: Hop,
    /// Flags to set.
    pub flags: FlowFlags,
}
