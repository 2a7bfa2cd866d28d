//! Where a client dials from, to and how → the answer, or the way in which it failed.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use socket2::{Socket, Type};

use super::{Datagrams, Failure, Outcome, PATIENCE, Proto, Stream};
use crate::topology::{Ip, Place};

/// One request to a server, to be described and then made.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    from: &'a Place,
    pub(super) to: SocketAddr,
    proto: Proto,
    source: Option<SocketAddr>,
    pub(super) timeout: Duration,
    size: usize,
    pub(super) connected: bool,
    pub(super) reset: bool,
}

impl<'a> Dial<'a> {
    /// From a place to an address.
    pub fn new(from: &'a Place, proto: Proto, to: SocketAddr) -> Dial<'a> {
        Dial {
            from,
            to,
            proto,
            source: None,
            timeout: PATIENCE,
            size: 0,
            connected: true,
            reset: false,
        }
    }
    /// With TCP.
    pub fn tcp(from: &'a Place, to: SocketAddr) -> Dial<'a> {
        Dial::new(from, Proto::Tcp, to)
    }
    /// With UDP, from a connected socket.
    pub fn udp(from: &'a Place, to: SocketAddr) -> Dial<'a> {
        Dial::new(from, Proto::Udp, to)
    }
    /// From this port of any address.
    pub fn source_port(mut self, port: u16) -> Self {
        let any: IpAddr = match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.source = Some((any, port).into());
        self
    }
    /// From this address and port.
    pub fn source(mut self, addr: SocketAddr) -> Self {
        self.source = Some(addr);
        self
    }
    /// Waits this long.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    /// Sends this many bytes (UDP: in one datagram, answered by one as long).
    pub fn size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }
    /// UDP by `sendto` and `recvfrom`, which tells who really answered.
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }
    /// Ends a TCP connection by RST, so that the port is free at once.
    pub fn reset(mut self) -> Self {
        self.reset = true;
        self
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.to
    }
    /// Where it comes from.
    pub fn origin(&self) -> &'a Place {
        self.from
    }

    /// Makes the request.
    pub fn ask(self) -> Outcome {
        match self.proto {
            Proto::Tcp => Stream::open(self)?.ask_with(self.size, self.timeout),
            Proto::Udp => Datagrams::open(self)?.ask_with(self.size, self.timeout),
        }
    }

    pub(super) fn socket(&self, kind: Type) -> Result<Socket, Failure> {
        let socket = self
            .from
            .socket(Ip::of(self.to.ip()), kind)
            .map_err(|error| Failure::Other(format!("{error:#}")))?;
        let ready = || -> io::Result<()> {
            socket.set_reuse_address(true)?;
            match self.source {
                Some(source) => socket.bind(&source.into()),
                None => choose_port(&socket),
            }
        };
        ready().map_err(|error| Failure::Other(format!("bind to {:?}: {error}", self.source)))?;
        Ok(socket)
    }
}

/// Has the kernel choose a port that no socket of this process chose before, at the usual time (connect or the
/// first datagram). Left to itself it takes one at random, and of 120 dials two share a port in every fourth run;
/// what the older flow left behind then changes what becomes of the newer one.
///
/// By `IP_LOCAL_PORT_RANGE` (Linux 6.3); older kernels choose at random.
fn choose_port(socket: &Socket) -> io::Result<()> {
    /// `net.ipv4.ip_local_port_range` as Linux starts with: outside it the option has no effect.
    const EPHEMERAL: std::ops::Range<u32> = 32768..60999;
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = EPHEMERAL.start + NEXT.fetch_add(1, Ordering::Relaxed);
    if !EPHEMERAL.contains(&port) {
        return Ok(()); // all were had once
    }
    let range: u32 = port << 16 | port;
    const LEN: libc::socklen_t = 4;
    const _: () = assert!(size_of::<u32>() == LEN as usize);
    // SAFETY: the option's value is the four bytes of `range`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            LEN,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        error => Err(error),
    }
}

impl fmt::Display for Dial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} → {} by {}",
            self.from.name,
            self.to,
            self.proto.name()
        )
    }
}
