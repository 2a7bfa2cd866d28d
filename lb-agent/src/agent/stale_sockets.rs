//! Connected UDP sockets of host processes → ended when the backend that the socket hook gave them is
//! gone, or the frontend is another's, so that the process sees ECONNABORTED and connects anew (semantics 17.2, 17.3).
//!
//! The kernel asks no hook when a connected socket sends, so nothing else can turn it. Asked for are the
//! connected sockets of this network namespace alone; which of them are ours `socket_peers` tells by
//! the socket's number, so that a socket that dialled a backend itself is left alone (17.5).
//!
//! A socket that is connected to a frontend itself got there before the Service did: it goes on untranslated until it
//! connects anew, so it is ended, too (17.2 b).

use std::path::Path;

use lb_common::{
    abi::{Addr4, Backend, Be16, ServiceKey, SocketOrigin, SocketOriginKey, SocketPeer, proto},
    family::Address as _,
    flow_table::TableFamily,
    names::maps as names,
};

use crate::{
    bpf::maps::{Access, FamilyPins, MapError, MapResult, Maps, TypedMap},
    node::sock_diag::{SockDiag, SockDiagError},
};

/// Why sockets are not ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    /// They cannot be listed or ended.
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
    /// A map cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Whether a backend no longer is what a socket was given.
fn is_gone<F: TableFamily>(backend: &Backend<F>, origin: &SocketOrigin) -> bool {
    backend.service_id != origin.service_id || backend.generation() != origin.generation
}

/// Ends sockets whose backend is gone, after changes.
#[derive(Debug)]
pub(super) struct StaleSockets {
    peers: TypedMap<u32, SocketPeer>,
    netlink: Option<SockDiag>,
    is_due: bool,
    is_unsupported: bool,
    /// Whether a hook would translate a socket that connects anew.
    is_translated: bool,
}

impl StaleSockets {
    /// For the maps pinned in `dir`. Due from the start: endpoints may have gone while no agent ran.
    /// `is_translated`: the socket hooks are in use.
    pub(super) fn open(dir: &Path, is_translated: bool) -> MapResult<StaleSockets> {
        Ok(StaleSockets {
            peers: TypedMap::open(dir, names::SOCKET_PEERS, Access::Read)?,
            netlink: None,
            is_due: true,
            is_unsupported: false,
            is_translated,
        })
    }

    /// Backends may have gone.
    pub(super) const fn changed(&mut self) {
        self.is_due = true;
    }

    /// Ends the sockets whose backend is gone, if anything has changed since the last time; returns how
    /// many. A kernel that cannot is told of once. What failed is tried again.
    pub(super) fn sweep(&mut self, maps: &Maps) -> Result<usize, SweepError> {
        if !self.is_due || self.is_unsupported {
            return Ok(0);
        }
        let result = self.end_stale(maps);
        match &result {
            Ok(_) => self.is_due = false,
            Err(SweepError::Sockets(SockDiagError::Unsupported { .. })) => {
                self.is_unsupported = true
            }
            Err(_) => self.netlink = None,
        }
        result
    }

    fn end_stale(&mut self, maps: &Maps) -> Result<usize, SweepError> {
        let mut netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => SockDiag::open()?,
        };
        let mut ended = 0;
        for socket in netlink.connected_udp()? {
            if self.is_stale(maps, &socket.key())? {
                ended += usize::from(netlink.end(&socket)?);
            }
        }
        self.netlink = Some(netlink);
        Ok(ended)
    }

    fn is_stale(&self, maps: &Maps, key: &SocketOriginKey) -> MapResult<bool> {
        let peer = self.peers.lookup(&SocketPeer::cell(key.cookie))?;
        let Some(origin) = peer.and_then(|peer| peer.of(key)) else {
            let addr = key.addr;
            return Ok(self.is_translated
                && if key.family == 4 {
                    owner(&maps.v4, Addr4 { be: addr.be[0] }, key.port)?.is_some()
                } else {
                    owner(&maps.v6, addr, key.port)?.is_some()
                });
        };
        if key.family == 4 {
            gone(&maps.v4, &origin)
        } else {
            gone(&maps.v6, &origin)
        }
    }
}

/// Whether the backend is gone, or what was dialled is another service port's by now, or nobody's (semantics 17.3).
fn gone<F: TableFamily>(maps: &FamilyPins<F>, origin: &SocketOrigin) -> MapResult<bool> {
    let dialled = F::Addr::from_words(origin.addr.be);
    Ok(is_gone(&maps.backends.read(origin.backend)?, origin)
        || owner(maps, dialled, origin.port)? != Some(origin.service_id))
}

/// Service id of a frontend of UDP.
fn owner<F: TableFamily>(
    maps: &FamilyPins<F>,
    addr: F::Addr,
    port: Be16,
) -> MapResult<Option<u32>> {
    let frontend = maps
        .services
        .lookup(&ServiceKey::new(addr, port, proto::UDP))?;
    Ok(frontend.map(|service| service.id))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr6, BackendFlags, BackendState};

    use super::*;

    #[test]
    fn backend_is_gone_with_its_generation_or_its_service() {
        let backend = |generation, flags, service_id| {
            Backend::<lb_common::V4>::new(
                std::net::Ipv4Addr::new(10, 0, 0, 3).into(),
                Be16::from_host(8080),
                0,
                BackendState::new(generation, flags),
                service_id,
            )
        };
        let none = BackendFlags::NONE;
        let given = backend(0x300, none, 5);
        let origin = SocketOrigin::new(Addr6::default(), Be16::default(), 1, given.generation(), 5);
        // Semantics 17.4: flags are no reason.
        assert!(!is_gone(&backend(0x300, BackendFlags::LOCAL, 5), &origin));
        assert!(is_gone(&backend(0x400, none, 5), &origin));
        assert!(is_gone(&backend(0x300, none, 6), &origin));
    }
}
