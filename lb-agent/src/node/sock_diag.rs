//! Connected UDP sockets of this network namespace: listed, and ended (`linux/sock_diag.h`, `linux/inet_diag.h`).

use std::io;

use lb_common::abi::{Addr6, Be16, OriginKind, SocketOriginKey, proto};

use super::netlink::{Message, Request, Socket};

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

/// Why sockets are not listed or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SockDiagError {
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
    #[error("cannot {what} UDP sockets")]
    Io {
        /// `list` or `end`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SockDiagError {
    fn of(what: &'static str, source: io::Error) -> Self {
        // Without the kind of diagnosis that is asked for the kernel says ENOENT to a dump.
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                SockDiagError::Unsupported { what, source }
            }
            Some(libc::ENOENT) if what == "list" => SockDiagError::Unsupported { what, source },
            _ => SockDiagError::Io { what, source },
        }
    }
}

/// A connected UDP socket as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Connected {
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
    pub(crate) fn key(&self) -> SocketOriginKey {
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
            OriginKind::Backend,
            family,
            proto::UDP,
        )
    }

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

/// Lists and ends sockets.
#[derive(Debug)]
pub(crate) struct SockDiag(Socket);

impl SockDiag {
    /// Opens a socket for it.
    pub(crate) fn open() -> Result<SockDiag, SockDiagError> {
        Socket::sock_diag()
            .map(SockDiag)
            .map_err(|source| SockDiagError::of("list", source))
    }

    /// The connected sockets of both families.
    pub(crate) fn connected_udp(&mut self) -> Result<Vec<Connected>, SockDiagError> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            let sockets = self
                .0
                .dump(SOCK_DIAG_BY_FAMILY, &request(family, [0; SOCKID]))
                .map_err(|source| SockDiagError::of("list", source))?;
            all.extend(sockets.iter().filter_map(Connected::parse));
        }
        Ok(all)
    }

    /// Ends a socket; `false`: it was closed, or connected elsewhere, since it was listed.
    pub(crate) fn end(&mut self, socket: &Connected) -> Result<bool, SockDiagError> {
        match self.0.request(SOCK_DESTROY, 0, &socket.request()) {
            Ok(()) => Ok(true),
            Err(error) if is_no_more(&error) => Ok(false),
            Err(source) => Err(SockDiagError::of("end", source)),
        }
    }
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
            OriginKind::Backend,
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
    fn kernel_that_cannot_is_told_apart() {
        let of = |what, code| SockDiagError::of(what, io::Error::from_raw_os_error(code));
        let unsupported = |error| matches!(error, SockDiagError::Unsupported { .. });
        assert!(unsupported(of("end", libc::EOPNOTSUPP)));
        assert!(unsupported(of("list", libc::ENOENT)));
        assert!(!unsupported(of("end", libc::EPERM)));
    }
}
