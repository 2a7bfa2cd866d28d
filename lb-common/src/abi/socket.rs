//! What a socket dialled, so that replies and `getpeername` show it.

use super::{Addr6, Be16};

/// Key of `socket_origins`, two kinds in one map:
/// backend address seen by a socket → the address it dialled; and dialled address of an unconnected
/// UDP socket → the backend it keeps.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SocketOriginKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Backend's or dialled address; IPv4 in the first word, the others 0.
    pub addr: Addr6,
    /// Backend's or dialled port.
    pub port: Be16,
    /// [`OriginKind`] as a number.
    pub kind: u8,
    /// IP version: 4 or 6.
    pub family: u8,
    /// IANA protocol number.
    pub proto: u8,
    _pad: [u8; 3],
}
const _: () = assert!(size_of::<SocketOriginKey>() == 32);

/// What a [`SocketOriginKey`] holds.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OriginKind {
    /// A backend's address; the value holds what was dialled.
    Backend = 1,
    /// What was dialled; the value holds the backend.
    Dialled = 2,
}

impl SocketOriginKey {
    /// A key.
    #[inline(always)]
    pub const fn new(
        cookie: u64,
        addr: Addr6,
        port: Be16,
        kind: OriginKind,
        family: u8,
        proto: u8,
    ) -> Self {
        SocketOriginKey {
            cookie,
            addr,
            port,
            kind: kind as u8,
            family,
            proto,
            _pad: [0; 3],
        }
    }
}

/// Value of `socket_origins`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SocketOrigin {
    /// Dialled or backend's address; IPv4 in the first word.
    pub addr: Addr6,
    /// Dialled or backend's port.
    pub port: Be16,
    _pad: u16,
    /// Backend id.
    pub backend: u32,
    /// Its generation, as in [`super::Backend::generation`].
    pub generation: u32,
    /// [`super::Service::id`].
    pub service_id: u32,
}
const _: () = assert!(size_of::<SocketOrigin>() == 32);

impl SocketOrigin {
    /// A value.
    #[inline(always)]
    pub const fn new(
        addr: Addr6,
        port: Be16,
        backend: u32,
        generation: u32,
        service_id: u32,
    ) -> Self {
        SocketOrigin {
            addr,
            port,
            _pad: 0,
            backend,
            generation,
            service_id,
        }
    }
}
