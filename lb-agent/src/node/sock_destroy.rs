//! Connected UDP sockets of host processes → ended when the backend that the socket hook gave them is
//! gone, so that the process sees ECONNABORTED and connects anew (semantics 17.2, 17.3).
//!
//! The kernel asks no hook when a connected socket sends, so nothing else can turn it. Asked for are the
//! connected sockets of this network namespace alone; which of them are ours `socket_origins` tells by
//! the socket's number, so that a socket that dialled a backend itself is left alone (17.5).
//!
//! A socket that is connected to a frontend itself got there before the Service did: it goes on untranslated until it
//! connects anew, so it is ended, too (17.2 b).

use std::{io, path::Path};

use lb_common::{
    Family,
    abi::{Addr4, Addr6, Backend, Be16, ServiceKey, SocketOrigin, SocketOriginKey, proto},
    names::maps as names,
};

use super::netlink::{Message, Request, Socket};
use crate::bpf::maps::{Access, FamilyPins, MapError, MapResult, Maps, TypedMap};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `1 << TCP_ESTABLISHED`, which for UDP is a connected socket.
const CONNECTED: u32 = 1 << 1;
/// `struct inet_diag_sockid`.
const SOCKID: usize = 48;
/// Where it stands in `struct inet_diag_msg`.
const ID_AT: usize = 4;
/// The upper half of an IPv4-mapped address, in its third word.
const MAPPED: u32 = 0xffff;

/// Why sockets are not ended.
#[derive(Debug, thiserror::Error)]
pub enum SockDestroyError {
    /// The kernel does not list or does not end sockets.
    #[error(
        "the kernel cannot {what} UDP sockets, so connected ones of host processes stay with a backend that is gone; use one with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY"
    )]
    Unsupported {
        /// `list` or `end`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Netlink failed.
    #[error("cannot {what} UDP sockets")]
    Io {
        /// `list` or `end`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl SockDestroyError {
    fn of(what: &'static str, source: io::Error) -> Self {
        // Without the kind of diagnosis that is asked for the kernel says ENOENT to a dump.
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                SockDestroyError::Unsupported { what, source }
            }
            Some(libc::ENOENT) if what == "list" => SockDestroyError::Unsupported { what, source },
            _ => SockDestroyError::Io { what, source },
        }
    }
}

/// A connected UDP socket as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Connected {
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    /// `struct inet_diag_sockid`, to name the socket by.
    id: [u8; SOCKID],
}

impl Connected {
    fn parse(message: &Message) -> Option<Connected> {
        let id = message.body.get(ID_AT..)?.first_chunk()?;
        Some(Connected {
            family: *message.body.first()?,
            id: *id,
        })
    }

    fn word(&self, at: usize) -> u32 {
        let word = self.id.get(at..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// The socket's number, as the hooks know it.
    fn cookie(&self) -> u64 {
        u64::from(self.word(44)) << 32 | u64::from(self.word(40))
    }

    /// The entry that the hook has written if it gave this peer to the socket.
    fn key(&self) -> SocketOriginKey {
        let words = [20, 24, 28, 32].map(|at| self.word(at));
        let is_v4 = i32::from(self.family) == libc::AF_INET;
        let is_mapped = !is_v4 && words[..3] == [0, 0, MAPPED.to_be()];
        let (addr, family) = match (is_v4, is_mapped) {
            (true, _) => ([words[0], 0, 0, 0], 4),
            (_, true) => ([words[3], 0, 0, 0], 4),
            _ => (words, 6),
        };
        let port = Be16 {
            be: u16::from_ne_bytes([self.id[2], self.id[3]]),
        };
        SocketOriginKey::new(
            self.cookie(),
            Addr6 { be: addr },
            port,
            SocketOriginKey::BACKEND,
            family,
            proto::UDP,
        )
    }

    /// The request that names it.
    fn request(&self) -> Request {
        request(self.family, self.id)
    }
}

/// `struct inet_diag_req_v2` for UDP.
fn request(family: u8, id: [u8; SOCKID]) -> Request {
    let mut fixed = vec![family, proto::UDP, 0, 0];
    fixed.extend(CONNECTED.to_ne_bytes());
    fixed.extend(id);
    Request::new(&fixed)
}

/// Whether a backend no longer is what a socket was given.
fn is_gone<F: Family>(backend: &Backend<F>, origin: &SocketOrigin) -> bool {
    backend.service_id != origin.service_id || backend.generation() != origin.generation
}

/// Ends sockets whose backend is gone, after changes.
#[derive(Debug)]
pub struct StaleSockets {
    origins: TypedMap<SocketOriginKey, SocketOrigin>,
    netlink: Option<Socket>,
    is_due: bool,
    is_unsupported: bool,
    /// Whether a hook would translate a socket that connects anew.
    is_translated: bool,
}

impl StaleSockets {
    /// For the maps pinned in `dir`. Due from the start: endpoints may have gone while no agent ran.
    /// `is_translated`: the socket hooks are in use.
    pub fn open(dir: &Path, is_translated: bool) -> MapResult<StaleSockets> {
        Ok(StaleSockets {
            origins: TypedMap::open(dir, names::SOCKET_ORIGINS, Access::Read)?,
            netlink: None,
            is_due: true,
            is_unsupported: false,
            is_translated,
        })
    }

    /// Backends may have gone.
    pub const fn changed(&mut self) {
        self.is_due = true;
    }

    /// Ends the sockets whose backend is gone, if anything has changed since the last time; returns how
    /// many. A kernel that cannot is told of once. What failed is tried again.
    pub fn sweep(&mut self, maps: &Maps) -> Result<usize, SockDestroyError> {
        if !self.is_due || self.is_unsupported {
            return Ok(0);
        }
        let result = self.end_stale(maps);
        match &result {
            Ok(_) => self.is_due = false,
            Err(SockDestroyError::Unsupported { .. }) => self.is_unsupported = true,
            Err(_) => self.netlink = None,
        }
        result
    }

    fn end_stale(&mut self, maps: &Maps) -> Result<usize, SockDestroyError> {
        let mut netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Socket::sock_diag().map_err(|source| SockDestroyError::of("list", source))?,
        };
        let mut ended = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            let sockets = netlink
                .dump(SOCK_DIAG_BY_FAMILY, &request(family, [0; SOCKID]))
                .map_err(|source| SockDestroyError::of("list", source))?;
            for socket in sockets.iter().filter_map(Connected::parse) {
                if !self.is_stale(maps, &socket.key())? {
                    continue;
                }
                match netlink.request(SOCK_DESTROY, 0, &socket.request()) {
                    Ok(()) => ended += 1,
                    // Closed, or connected elsewhere, since it was listed.
                    Err(error) if is_no_more(&error) => {}
                    Err(source) => return Err(SockDestroyError::of("end", source)),
                }
            }
        }
        self.netlink = Some(netlink);
        Ok(ended)
    }

    fn is_stale(&self, maps: &Maps, key: &SocketOriginKey) -> MapResult<bool> {
        let Some(origin) = self.origins.lookup(key)? else {
            let addr = key.addr;
            return Ok(self.is_translated
                && if key.family == 4 {
                    is_frontend(&maps.v4, Addr4 { be: addr.be[0] }, key.port)?
                } else {
                    is_frontend(&maps.v6, addr, key.port)?
                });
        };
        if key.family == 4 {
            gone(&maps.v4, &origin)
        } else {
            gone(&maps.v6, &origin)
        }
    }
}

fn gone<F: Family>(maps: &FamilyPins<F>, origin: &SocketOrigin) -> MapResult<bool> {
    Ok(is_gone(&maps.backends.read(origin.backend)?, origin))
}

fn is_frontend<F: Family>(maps: &FamilyPins<F>, addr: F::Addr, port: Be16) -> MapResult<bool> {
    let frontend = maps
        .services
        .lookup(&ServiceKey::new(addr, port, proto::UDP))?;
    Ok(frontend.is_some())
}

fn is_no_more(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(family: i32, dst: [u8; 16]) -> Connected {
        let mut body = vec![0; 72];
        body[0] = u8::try_from(family).unwrap();
        body[6..8].copy_from_slice(&8080u16.to_be_bytes());
        body[24..40].copy_from_slice(&dst);
        body[44..48].copy_from_slice(&7u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1u32.to_ne_bytes());
        Connected::parse(&Message { kind: 20, body }).unwrap()
    }

    fn key(words: [[u8; 4]; 4], family: u8) -> SocketOriginKey {
        SocketOriginKey::new(
            7 | 1 << 32,
            Addr6 {
                be: words.map(u32::from_ne_bytes),
            },
            Be16::from_host(8080),
            SocketOriginKey::BACKEND,
            family,
            proto::UDP,
        )
    }

    #[test]
    fn listed_socket_has_the_key_that_the_hook_writes() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 0, 0, 3]);
        let mapped = "::ffff:10.0.0.3".parse::<std::net::Ipv6Addr>().unwrap();
        let v6 = "fd00::3".parse::<std::net::Ipv6Addr>().unwrap();
        let v4_key = key([[10, 0, 0, 3], [0; 4], [0; 4], [0; 4]], 4);
        assert_eq!(listed(libc::AF_INET, v4).key(), v4_key);
        assert_eq!(listed(libc::AF_INET6, mapped.octets()).key(), v4_key);
        let v6_key = key([[0xfd, 0, 0, 0], [0; 4], [0; 4], [0, 0, 0, 3]], 6);
        assert_eq!(listed(libc::AF_INET6, v6.octets()).key(), v6_key);
    }

    #[test]
    fn cut_message_is_no_socket() {
        let message = Message {
            kind: 20,
            body: vec![0; 51],
        };
        assert_eq!(Connected::parse(&message), None);
    }

    #[test]
    fn backend_is_gone_with_its_generation_or_its_service() {
        let backend = |generation, service_id| {
            Backend::<lb_common::V4>::new(
                std::net::Ipv4Addr::new(10, 0, 0, 3).into(),
                Be16::from_host(8080),
                0,
                generation,
                service_id,
            )
        };
        let given = backend(0x300, 5);
        let origin = SocketOrigin::new(Addr6::default(), Be16::default(), 1, given.generation(), 5);
        // Semantics 17.4: flags are no reason.
        assert!(!is_gone(&backend(0x301, 5), &origin));
        assert!(is_gone(&backend(0x400, 5), &origin));
        assert!(is_gone(&backend(0x300, 6), &origin));
    }

    #[test]
    fn kernel_that_cannot_is_told_apart() {
        let of = |what, code| SockDestroyError::of(what, io::Error::from_raw_os_error(code));
        let unsupported = |error| matches!(error, SockDestroyError::Unsupported { .. });
        assert!(unsupported(of("end", libc::EOPNOTSUPP)));
        assert!(unsupported(of("list", libc::ENOENT)));
        assert!(!unsupported(of("end", libc::EPERM)));
    }
}
