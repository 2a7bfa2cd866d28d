//! Slices → the endpoints of one service port, each address and port once (semantics 5).

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use crate::{
    kube::objects::{EndpointSlice, SliceEndpoint},
    net::{IpFamily, Protocol},
};

/// An endpoint of a service port before the policies decide about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub port: u16,
    /// On this node (5.11).
    pub local: bool,
    /// The endpoint as the slice has it.
    pub source: &'a SliceEndpoint,
    /// Position of its slice in name order.
    slice: usize,
}

impl Candidate<'_> {
    pub(crate) const fn addr(&self) -> IpAddr {
        self.source.addr
    }
    /// May be used when nothing is ready (6.2, 6.3).
    pub(crate) const fn is_fallback(&self) -> bool {
        self.source.serving && self.source.terminating
    }
    /// Of two with one address and port the greater one is meant (5.13).
    fn preference(&self) -> impl Ord + use<> {
        let source = self.source;
        (
            !source.terminating,
            source.ready,
            source.serving,
            self.local,
            Reverse(self.slice),
        )
    }
}

/// The union over all slices (sorted by name) of endpoint × port of this name, protocol and family
/// (5.4), sorted by address and port, none twice.
pub(crate) fn of_port<'a>(
    slices: &'a [Arc<EndpointSlice>],
    family: IpFamily,
    name: &str,
    protocol: Protocol,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for (at, slice) in slices
        .iter()
        .enumerate()
        .filter(|(_, slice)| slice.family == family)
    {
        let ports = slice.ports.iter();
        for port in ports.filter(|port| *port.name == *name && port.protocol == protocol) {
            found.extend(slice.endpoints.iter().map(|source| Candidate {
                port: port.port,
                local: !node.is_empty() && source.placement.node.as_deref() == Some(node),
                source,
                slice: at,
            }));
        }
    }
    found.sort_by(|a, b| {
        (a.addr(), a.port)
            .cmp(&(b.addr(), b.port))
            .then_with(|| b.preference().cmp(&a.preference()))
            .then_with(|| a.source.placement.node.cmp(&b.source.placement.node))
    });
    found.dedup_by_key(|candidate| (candidate.addr(), candidate.port));
    found
}
