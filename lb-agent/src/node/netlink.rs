//! rtnetlink: requests and dumps over a socket, messages and attributes in the kernel's own layout
//! (`linux/netlink.h`). Everything is host byte order unless an attribute says otherwise.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(crate) const EXCL: u16 = 0x200;

/// A message without its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    /// `RTM_…`.
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A request under construction: fixed part, then attributes.
#[derive(Clone, Debug)]
pub(crate) struct Request(Vec<u8>);

impl Request {
    /// A request with its fixed part (`struct ifinfomsg`, `struct tcmsg`, …).
    pub(crate) fn new(fixed: &[u8]) -> Request {
        Request(fixed.to_vec())
    }
    /// Appends an attribute.
    #[must_use]
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Request {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
    /// Attributes alone, to nest.
    pub(crate) fn nested() -> Request {
        Request(Vec::new())
    }
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes of a message behind its fixed part, as (type, value).
pub(crate) fn attrs(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(fixed..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        // The upper two bits tell nesting and byte order.
        Some((kind & 0x3fff, value))
    })
}

/// A u16 in host byte order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
/// A u32 in host byte order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
/// A string without its terminator.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A netlink socket of the current network namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for requests.
    pub(crate) fn new() -> io::Result<Socket> {
        Socket::open(libc::NETLINK_ROUTE, 0, 0)
    }

    /// A socket for requests about sockets (`linux/sock_diag.h`).
    pub(crate) fn sock_diag() -> io::Result<Socket> {
        Socket::open(libc::NETLINK_SOCK_DIAG, 0, 0)
    }

    /// A socket that hears the multicast groups of this mask and never blocks.
    pub(crate) fn listen(groups: u32) -> io::Result<Socket> {
        Socket::open(libc::NETLINK_ROUTE, libc::SOCK_NONBLOCK, groups)
    }

    fn open(protocol: i32, flags: i32, groups: u32) -> io::Result<Socket> {
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags,
                protocol,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given this descriptor to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all integers; any bit pattern is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK.try_into().unwrap_or_default();
        address.nl_groups = groups;
        let len = size_of::<libc::sockaddr_nl>()
            .try_into()
            .unwrap_or_default();
        // SAFETY: a live address of the length that is passed.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Socket { fd, sequence: 0 })
        }
    }

    /// Its descriptor, to wait for.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn send(&mut self, kind: u16, flags: u16, request: &Request) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = u32::try_from(HEADER + request.0.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(len as usize);
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(&request.0);
        // SAFETY: the buffer lives through the call, with its own length.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(self.sequence)
        }
    }

    /// One datagram: its messages with type and sequence number.
    fn receive(&self) -> io::Result<Vec<(u32, Message)>> {
        let mut buffer = vec![0u8; 1 << 16];
        // SAFETY: the buffer lives through the call, with its own length.
        let read = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let read = usize::try_from(read).map_err(|_negative| io::Error::last_os_error())?;
        let mut rest = buffer.get(..read).unwrap_or_default();
        let mut messages = Vec::new();
        while let (Some(len), Some(kind), Some(sequence)) =
            (u32_at(rest, 0), u16_at(rest, 4), u32_at(rest, 8))
        {
            let len = len as usize;
            let Some(body) = rest.get(HEADER..len) else {
                break;
            };
            messages.push((
                sequence,
                Message {
                    kind,
                    body: body.to_vec(),
                },
            ));
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    /// What arrived at a listening socket; empty when nothing did. ENOBUFS (the kernel dropped some) counts as an
    /// unknown change.
    pub(crate) fn drain(&self) -> io::Result<Vec<Message>> {
        let mut all = Vec::new();
        loop {
            match self.receive() {
                Ok(messages) => all.extend(messages.into_iter().map(|(_, message)| message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => all.push(Message {
                    kind: 0,
                    body: Vec::new(),
                }),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for a dump.
    pub(crate) fn dump(&mut self, kind: u16, request: &Request) -> io::Result<Vec<Message>> {
        let sequence = self.send(kind, NLM_F_DUMP, request)?;
        let mut all = Vec::new();
        loop {
            for (number, message) in self.receive()? {
                match message.kind {
                    _ if number != sequence => {}
                    NLMSG_DONE => return Ok(all),
                    NLMSG_ERROR => return error_of(&message.body).map(|()| all),
                    _ => all.push(message),
                }
            }
        }
    }

    /// Asks for a change and waits for the answer.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, request: &Request) -> io::Result<()> {
        let sequence = self.send(kind, NLM_F_ACK | flags, request)?;
        loop {
            for (number, message) in self.receive()? {
                if number == sequence && message.kind == NLMSG_ERROR {
                    return error_of(&message.body);
                }
            }
        }
    }
}

fn error_of(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let request = Request::new(&[9; 8])
            .attr(3, b"eth0\0")
            .attr(4, &1500u32.to_ne_bytes());
        assert_eq!(request.as_bytes().len(), 8 + 12 + 8);
        let read: Vec<_> = attrs(request.as_bytes(), 8).collect();
        assert_eq!(
            read,
            [(3, b"eth0\0".as_slice()), (4, &1500u32.to_ne_bytes())]
        );
        assert_eq!(text(read[0].1), "eth0");
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_list() {
        assert_eq!(attrs(&[200, 0, 1, 0, 0], 0).count(), 0);
        assert_eq!(attrs(&[2, 0, 1, 0], 0).count(), 0);
        assert_eq!(attrs(&[], 4).count(), 0);
    }

    #[test]
    fn loopback_is_dumped() {
        let mut socket = Socket::new().unwrap();
        let links = socket.dump(18, &Request::new(&[0; 16])).unwrap();
        assert!(links.iter().any(|link| {
            attrs(&link.body, 16).any(|(kind, value)| kind == 3 && text(value) == "lo")
        }));
    }
}
