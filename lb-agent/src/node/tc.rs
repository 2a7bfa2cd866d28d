//! The qdisc clsact and direct-action filters: how tc programs are attached before TCX (6.6).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::netlink::{CREATE, EXCL, REPLACE, Request, Socket, attrs, text, u32_at};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// `struct tcmsg`.
const TCMSG: usize = 20;
const QDISC_HANDLE: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
/// Our filter's place: a fixed handle and priority, so that a restart replaces it.
const PRIORITY: u32 = 50;
const HANDLE: u32 = 1;
/// Begins the names of our filters.
const NAME_PREFIX: &str = "lb_";

/// A direction of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Ingress,
    /// Packets to send.
    Egress,
}

impl Direction {
    const fn parent(self) -> u32 {
        match self {
            Direction::Ingress => 0xffff_fff2,
            Direction::Egress => 0xffff_fff3,
        }
    }
}

/// Why clsact cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClsactError {
    /// Somebody's `ingress` qdisc is there.
    #[error(
        "somebody else's ingress qdisc excludes clsact, and without egress replies could not be restored; remove it, or use a kernel with TCX (6.6)"
    )]
    IngressQdisc,
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Request {
    let mut fixed = [0u8; TCMSG];
    for (at, value) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        fixed[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    Request::new(&fixed)
}

/// Priority in the upper half, protocol `ETH_P_ALL` in network byte order in the lower.
const fn filter_info(priority: u32) -> u32 {
    priority << 16 | 0x0003u16.to_be() as u32
}

/// Attaches a program, replacing ours if it is there. Makes the qdisc if there is none.
pub(crate) fn attach(
    socket: &mut Socket,
    ifindex: u32,
    direction: Direction,
    program: BorrowedFd<'_>,
    name: &str,
) -> Result<(), ClsactError> {
    ensure_clsact(socket, ifindex)?;
    let options = Request::nested()
        .attr(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .attr(TCA_BPF_NAME, format!("{NAME_PREFIX}{name}\0").as_bytes())
        .attr(TCA_BPF_FLAGS, &1u32.to_ne_bytes());
    let request = tcmsg(ifindex, HANDLE, direction.parent(), filter_info(PRIORITY))
        .attr(TCA_KIND, b"bpf\0")
        .attr(TCA_OPTIONS, options.as_bytes());
    socket
        .request(RTM_NEWTFILTER, CREATE | REPLACE, &request)
        .map_err(|source| ClsactError::Io {
            what: "attach the filter",
            source,
        })
}

fn ensure_clsact(socket: &mut Socket, ifindex: u32) -> Result<(), ClsactError> {
    match qdisc_at_ingress(socket, ifindex)
        .map_err(|source| ClsactError::Io {
            what: "list the qdiscs",
            source,
        })?
        .as_deref()
    {
        Some("clsact") => Ok(()),
        Some(_) => Err(ClsactError::IngressQdisc),
        None => {
            let request = tcmsg(ifindex, QDISC_HANDLE, CLSACT, 0).attr(TCA_KIND, b"clsact\0");
            let made = socket.request(RTM_NEWQDISC, CREATE | EXCL, &request);
            made.map_err(|source| ClsactError::Io {
                what: "make the qdisc clsact",
                source,
            })
        }
    }
}

/// Kind of the qdisc in the place of `ingress` and `clsact`.
fn qdisc_at_ingress(socket: &mut Socket, ifindex: u32) -> io::Result<Option<String>> {
    let all = socket.dump(RTM_GETQDISC, &tcmsg(ifindex, 0, 0, 0))?;
    let here = all.iter().filter(|qdisc| {
        u32_at(&qdisc.body, 4) == Some(ifindex) && u32_at(&qdisc.body, 8) == Some(QDISC_HANDLE)
    });
    Ok(here
        .filter_map(|qdisc| attrs(&qdisc.body, TCMSG).find(|(kind, _)| *kind == TCA_KIND))
        .map(|(_, value)| text(value))
        .next())
}

/// Id of the program of our filter, if it is there.
pub(crate) fn attached(
    socket: &mut Socket,
    ifindex: u32,
    direction: Direction,
) -> io::Result<Option<u32>> {
    let filters = match socket.dump(RTM_GETTFILTER, &tcmsg(ifindex, 0, direction.parent(), 0)) {
        Ok(filters) => filters,
        // No such parent: no clsact.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    for filter in filters
        .iter()
        .filter(|filter| u32_at(&filter.body, 16).is_some_and(|info| info >> 16 == PRIORITY))
    {
        let Some((_, options)) = attrs(&filter.body, TCMSG).find(|(kind, _)| *kind == TCA_OPTIONS)
        else {
            continue;
        };
        let ours = attrs(options, 0)
            .any(|(kind, value)| kind == TCA_BPF_NAME && text(value).starts_with(NAME_PREFIX));
        if ours {
            return Ok(attrs(options, 0)
                .find(|(kind, _)| *kind == TCA_BPF_ID)
                .and_then(|(_, value)| u32_at(value, 0)));
        }
    }
    Ok(None)
}

/// Removes our filter; `false`: there was none.
pub(crate) fn detach(socket: &mut Socket, ifindex: u32, direction: Direction) -> io::Result<bool> {
    if attached(socket, ifindex, direction)?.is_none() {
        return Ok(false);
    }
    let request =
        tcmsg(ifindex, HANDLE, direction.parent(), filter_info(PRIORITY)).attr(TCA_KIND, b"bpf\0");
    socket.request(RTM_DELTFILTER, 0, &request).map(|()| true)
}
