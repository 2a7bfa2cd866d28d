//! Netlink, and what else the kernel tells about this node: links and their roles, addresses, default routes.

pub(crate) mod globs;
pub(crate) mod netlink;
pub(crate) mod reserved;
pub(crate) mod roles;
pub(crate) mod snapshot;
pub(crate) mod sock_diag;
pub(crate) mod tc;

use std::{
    fs, io,
    os::fd::{AsRawFd, RawFd},
    path::PathBuf,
};

use tokio::io::unix::AsyncFd;

use self::netlink::Socket;
pub(crate) use self::{
    globs::Globs,
    roles::{Interface, Rules, XdpMode, interfaces},
    snapshot::Snapshot,
};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

struct Events(Socket);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.raw_fd()
    }
}

/// Follows the node's network.
pub(crate) struct Watch {
    events: AsyncFd<Events>,
    requests: Socket,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Listens from now on. Inside a tokio runtime.
    pub(crate) fn new() -> io::Result<Watch> {
        let events = Events(Socket::listen(GROUPS)?);
        // SAFETY: `Events` owns its socket and gives the same open descriptor until it is dropped.
        let events = unsafe { AsyncFd::register(events) }?;
        Ok(Watch {
            events,
            requests: Socket::new()?,
        })
    }

    /// The network now.
    pub(crate) fn snapshot(&mut self) -> io::Result<Snapshot> {
        Snapshot::read(&mut self.requests)
    }

    /// Waits until something changed; takes everything that is queued at once.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            let messages = ready.get_inner().0.drain()?;
            ready.clear_ready();
            if messages.iter().any(snapshot::is_relevant) {
                return Ok(());
            }
        }
    }
}

/// Cookie of this process's network namespace (5.14); `None` where the kernel has none.
pub(crate) fn netns_cookie() -> io::Result<Option<u64>> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_no_loopback| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    let mut cookie = 0u64;
    let mut len: libc::socklen_t = size_of::<u64>().try_into().unwrap_or_default();
    // SAFETY: a live u64 and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOPROTOOPT) {
        Ok(None)
    } else {
        Err(error)
    }
}

/// Where the cgroup2 hierarchy is mounted.
pub(crate) fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| {
        line.split_once(" - ")
            .is_some_and(|(_, kind)| kind.starts_with("cgroup2 "))
    })?;
    line.split(' ').nth(4).map(PathBuf::from)
}
