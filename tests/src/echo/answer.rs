//! What a server says → what became of a dial.

use std::{fmt, io, net::SocketAddr};

use anyhow::{Result, bail};

use super::is_timeout;

/// What a server said, and what the client saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// The client as the server saw it.
    pub seen_peer: SocketAddr,
    /// Where the server was reached.
    pub seen_local: SocketAddr,
    /// Bytes that the server took.
    pub length: usize,
    /// The server as the client sees it: `getpeername`, or the source of the datagram.
    pub peer: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
}

impl Answer {
    pub(super) fn parse(text: &str, peer: SocketAddr, local: SocketAddr) -> Result<Answer> {
        let line = text.lines().next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let [server, seen_peer, seen_local, length] = words[..] else {
            bail!("not an answer: `{line}`")
        };
        Ok(Answer {
            server: server.to_owned(),
            seen_peer: seen_peer.parse()?,
            seen_local: seen_local.parse()?,
            length: length.parse()?,
            peer,
            local,
        })
    }
}

/// What became of a dial.
pub type Outcome = Result<Answer, Failure>;

/// Why nobody answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// ECONNREFUSED: RST or ICMP port unreachable.
    Refused,
    /// Nothing within the time given.
    TimedOut,
    /// EHOSTUNREACH or ENETUNREACH.
    Unreachable,
    /// EPERM: a socket hook denied it.
    NotPermitted,
    /// The connection was closed or reset after it had been made.
    Broken,
    /// Something else.
    Other(String),
}

impl Failure {
    pub(super) fn of(error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Failure::Refused,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Failure::Unreachable,
            Some(libc::EPERM) => Failure::NotPermitted,
            Some(libc::ECONNRESET | libc::EPIPE) => Failure::Broken,
            Some(libc::ETIMEDOUT | libc::EAGAIN | libc::EINPROGRESS) => Failure::TimedOut,
            _ if is_timeout(error) => Failure::TimedOut,
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Failure::Broken,
            _ => Failure::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer: {self:?}")
    }
}

impl std::error::Error for Failure {}
