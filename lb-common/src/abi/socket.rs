//! What a socket dialled, so that replies and `getpeername` show it.

use super::{Addr6, Be16, check::mix};

/// Key of `socket_origins`, two kinds in one map, both of unconnected UDP sockets:
/// backend address seen by a socket → the address it dialled; dialled address → the backend it keeps.
/// What a connected socket dialled has a key, too, but lies in a [`SocketPeer`].
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

/// Value of `socket_origins` and `socket_peers`.
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

/// What a connected socket dialled. Value of `socket_peers`, at [`SocketPeer::cell`].
///
/// Many sockets share a cell, and two may write it at once: the last one has it. The check goes over the key, which
/// is not stored, and the value, so that it holds for nothing but a whole value of that very key.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SocketPeer {
    /// [`socket_check`] over key and value.
    pub check: u64,
    /// What was dialled.
    pub origin: SocketOrigin,
}
const _: () = assert!(size_of::<SocketPeer>() == 40);

impl SocketPeer {
    /// Cells of `socket_peers`.
    pub const CELLS: u32 = 65_536;

    /// The cell of a socket. The kernel numbers sockets in turn, so cells that are written one after another lie side
    /// by side: scattered over the table each write would wait for a page and a line that no cache holds, which costs
    /// more than all else that connect does.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "less than CELLS")]
    pub const fn cell(cookie: u64) -> u32 {
        (cookie % Self::CELLS as u64) as u32
    }
    /// A value for this key.
    #[inline(always)]
    pub fn sealed(key: &SocketOriginKey, origin: SocketOrigin) -> Self {
        SocketPeer {
            check: socket_check(key, &origin),
            origin,
        }
    }
    /// What this key's socket dialled, unless the cell is another socket's or another address's.
    #[inline(always)]
    pub fn of(&self, key: &SocketOriginKey) -> Option<SocketOrigin> {
        if self.check == socket_check(key, &self.origin) {
            Some(self.origin)
        } else {
            None
        }
    }
}

/// The check of a cell over the key and the value that it is for.
#[inline(always)]
pub fn socket_check(key: &SocketOriginKey, value: &SocketOrigin) -> u64 {
    // The cookie by itself first: cookies and addresses may differ in the same bits.
    let mut s = mix(0x6c62_2d73_6f63_6b01 ^ key.cookie, 0);
    s = mix(s, key.addr.be[0]);
    s = mix(s, value.addr.be[0]);
    if key.family == 6 {
        s = mix(s, key.addr.be[1]);
        s = mix(s, key.addr.be[2]);
        s = mix(s, key.addr.be[3]);
        s = mix(s, value.addr.be[1]);
        s = mix(s, value.addr.be[2]);
        s = mix(s, value.addr.be[3]);
    }
    s = mix(
        s,
        key.port.be as u32 | ((key.kind as u32) << 16) | ((key.family as u32) << 24),
    );
    s = mix(s, value.port.be as u32 | ((key.proto as u32) << 16));
    s = mix(s, value.backend);
    s = mix(s, value.generation);
    mix(s, value.service_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cookie: u64, family: u8) -> SocketOriginKey {
        let addr = Addr6 {
            be: if family == 6 {
                [1, 2, 3, 4]
            } else {
                [1, 0, 0, 0]
            },
        };
        SocketOriginKey::new(cookie, addr, Be16 { be: 5 }, OriginKind::Backend, family, 6)
    }

    fn words(peer: &SocketPeer) -> [u32; 10] {
        let SocketPeer { check, origin } = *peer;
        let [a, b, c, d] = origin.addr.be;
        #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
        let (low, high) = (check as u32, (check >> 32) as u32);
        let port = u32::from(origin.port.be);
        let SocketOrigin {
            backend,
            generation,
            service_id,
            ..
        } = origin;
        [low, high, a, b, c, d, port, backend, generation, service_id]
    }

    fn peer(words: [u32; 10]) -> SocketPeer {
        let [low, high, a, b, c, d, port, backend, generation, service_id] = words;
        let port = Be16 {
            be: u16::try_from(port).unwrap_or_default(),
        };
        let addr = Addr6 { be: [a, b, c, d] };
        SocketPeer {
            check: u64::from(low) | u64::from(high) << 32,
            origin: SocketOrigin::new(addr, port, backend, generation, service_id),
        }
    }

    #[test]
    fn cell_that_two_sockets_wrote_at_once_is_neither_s() {
        for family in [4, 6] {
            let keys = [
                key(7, family),
                key(7 + u64::from(SocketPeer::CELLS), family),
            ];
            let far = if family == 6 {
                [9, 8, 7, 6]
            } else {
                [9, 0, 0, 0]
            };
            let values = [
                SocketOrigin::new(keys[0].addr, Be16 { be: 80 }, 10, 0x100, 20),
                SocketOrigin::new(Addr6 { be: far }, Be16 { be: 81 }, 11, 0x200, 21),
            ];
            let [one, other] = [0, 1].map(|at| SocketPeer::sealed(&keys[at], values[at]));
            assert_eq!(one.of(&keys[0]), Some(values[0]));
            assert_eq!(other.of(&keys[1]), Some(values[1]));
            // Every mixture of their words: bit n of `from` says whose the word n is.
            for from in 0..1u32 << 10 {
                let mut mixed = words(&one);
                for (at, word) in words(&other).into_iter().enumerate() {
                    if from >> at & 1 == 1 {
                        mixed[at] = word;
                    }
                }
                let mixed = peer(mixed);
                for (key, whole) in keys.iter().zip([one, other]) {
                    assert_eq!(mixed.of(key).is_some(), mixed == whole, "{from:b}");
                }
            }
        }
    }

    #[test]
    fn cell_holds_for_its_key_alone() {
        for family in [4, 6] {
            let mine = key(7, family);
            let peer = SocketPeer::sealed(&mine, SocketOrigin::default());
            for bit in 0..64 {
                let other = SocketOriginKey {
                    cookie: mine.cookie ^ 1 << bit,
                    ..mine
                };
                assert_eq!(peer.of(&other), None);
                // Nor if the address differs by the same bits.
                let mut both = other;
                both.addr.be[0] ^= 1 << (bit % 32);
                assert_eq!(peer.of(&both), None);
            }
            for (port, proto) in [(6, 6), (5, 17)] {
                let other = SocketOriginKey {
                    port: Be16 { be: port },
                    proto,
                    ..mine
                };
                assert_eq!(peer.of(&other), None);
            }
            assert_eq!(SocketPeer::default().of(&mine), None);
        }
    }
}
