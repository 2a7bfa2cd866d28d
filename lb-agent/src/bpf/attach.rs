//! Programs → hooks. One function a hook; every attachment is verified by asking the kernel.
//!
//! Links are pinned in `links/` of the pin directory, so they outlive the agent; a restart updates them in
//! place, from one packet to the next. Names: `<ifindex>-tc-ingress`, `<ifindex>-tc-egress`,
//! `<ifindex>-xdp-native`, `<ifindex>-xdp-generic`, `cgroup-<program>`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use lb_common::names::programs;

use super::sys::{self, attach_type};
use crate::node::{
    netlink::Socket,
    tc::{self, ClsactError, Direction},
};

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The device is gone.
    #[error("the interface is gone")]
    Gone,
    /// XDP of somebody else.
    #[error("another XDP program is attached; remove it or pass --xdp off")]
    XdpTaken,
    /// The driver has no XDP, or not for this MTU.
    #[error("the driver refuses native XDP; pass --xdp generic or --xdp off")]
    NoNativeXdp(#[source] io::Error),
    /// The qdisc or its filter, where the kernel has no TCX.
    #[error(transparent)]
    Clsact(#[from] ClsactError),
    /// The cgroup cannot be opened.
    #[error("cannot open the cgroup {}; name another with --cgroup", path.display())]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A query shows something else than what was attached.
    #[error("the kernel does not run the program that was attached at {hook}")]
    NotThere { hook: &'static str },
    /// Another step failed.
    #[error("cannot {what} at {hook}")]
    Io {
        what: &'static str,
        hook: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What an attachment returns.
pub(crate) type AttachResult<T> = Result<T, AttachError>;

/// How tc programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TcMode {
    Tcx,
    /// Filters of the qdisc clsact, where the kernel has no TCX.
    Clsact,
}

impl TcMode {
    /// The word for it in tables of the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            TcMode::Tcx => "tcx",
            TcMode::Clsact => "clsact",
        }
    }
}

/// How an XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum XdpKind {
    /// In the driver.
    Native,
    /// In the stack, for drivers without.
    Generic,
}

impl XdpKind {
    /// The word for it in tables of the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            XdpKind::Native => "native",
            XdpKind::Generic => "generic",
        }
    }

    const fn hook(self) -> &'static Hook {
        match self {
            XdpKind::Native => &XDP_NATIVE,
            XdpKind::Generic => &XDP_GENERIC,
        }
    }

    const fn other(self) -> XdpKind {
        match self {
            XdpKind::Native => XdpKind::Generic,
            XdpKind::Generic => XdpKind::Native,
        }
    }
}

/// A kind of link.
struct Hook {
    name: &'static str,
    attach_type: u32,
    flags: u32,
}

const TCX_INGRESS: Hook = Hook {
    name: "tc-ingress",
    attach_type: attach_type::TCX_INGRESS,
    flags: 0,
};
const TCX_EGRESS: Hook = Hook {
    name: "tc-egress",
    attach_type: attach_type::TCX_EGRESS,
    flags: 0,
};
const XDP_NATIVE: Hook = Hook {
    name: "xdp-native",
    attach_type: attach_type::XDP,
    flags: XDP_FLAGS_DRV_MODE,
};
const XDP_GENERIC: Hook = Hook {
    name: "xdp-generic",
    attach_type: attach_type::XDP,
    flags: XDP_FLAGS_SKB_MODE,
};
const DEVICE_HOOKS: [&Hook; 4] = [&TCX_INGRESS, &TCX_EGRESS, &XDP_NATIVE, &XDP_GENERIC];

/// Attaches programs and keeps their links pinned.
#[derive(Debug)]
pub(crate) struct Attacher {
    links: PathBuf,
    tc: TcMode,
    netlink: Socket,
    /// The socket hooks that are attached.
    sockets: BTreeSet<&'static str>,
}

impl Attacher {
    /// Links below a pin directory.
    pub(crate) fn new(dir: &Path, tc: TcMode) -> io::Result<Attacher> {
        Ok(Attacher {
            links: dir.join("links"),
            tc,
            netlink: Socket::new()?,
            sockets: BTreeSet::new(),
        })
    }

    /// How tc programs are attached.
    pub(crate) const fn tc_mode(&self) -> TcMode {
        self.tc
    }

    /// Both directions of tc, or neither: a translated packet needs its reply translated back.
    pub(crate) fn tc(
        &mut self,
        ifindex: u32,
        ingress: (BorrowedFd<'_>, &str),
        egress: (BorrowedFd<'_>, &str),
    ) -> AttachResult<()> {
        // Egress first: no reply may pass before it can be translated.
        let result = match self.tc {
            TcMode::Tcx => self
                .device_link(ifindex, &TCX_EGRESS, egress.0)
                .and_then(|()| self.device_link(ifindex, &TCX_INGRESS, ingress.0)),
            TcMode::Clsact => self
                .clsact(ifindex, Direction::Egress, egress)
                .and_then(|()| self.clsact(ifindex, Direction::Ingress, ingress)),
        };
        match (&result, self.tc) {
            // What another mode left behind would translate twice.
            (Ok(()), TcMode::Tcx) => self.remove_clsact(ifindex)?,
            (Ok(()), TcMode::Clsact) => [&TCX_INGRESS, &TCX_EGRESS]
                .into_iter()
                .try_for_each(|hook| self.remove(ifindex, hook))?,
            (Err(_), TcMode::Tcx) => [&TCX_INGRESS, &TCX_EGRESS]
                .into_iter()
                .try_for_each(|hook| self.remove(ifindex, hook))?,
            (Err(_), TcMode::Clsact) => self.remove_clsact(ifindex)?,
        }
        result
    }

    fn clsact(
        &mut self,
        ifindex: u32,
        direction: Direction,
        (program, name): (BorrowedFd<'_>, &str),
    ) -> AttachResult<()> {
        let hook = if direction == Direction::Ingress {
            "clsact ingress"
        } else {
            "clsact egress"
        };
        let failed = |what| move |source| AttachError::Io { what, hook, source };
        tc::attach(&mut self.netlink, ifindex, direction, program, name)?;
        let there = tc::attached(&mut self.netlink, ifindex, direction)
            .map_err(failed("list the filters"))?;
        let id = sys::prog_id(program).map_err(failed("describe the program"))?;
        if there == Some(id) {
            Ok(())
        } else {
            Err(AttachError::NotThere { hook })
        }
    }

    fn remove_clsact(&mut self, ifindex: u32) -> AttachResult<()> {
        for direction in [Direction::Ingress, Direction::Egress] {
            let removed = tc::detach(&mut self.netlink, ifindex, direction);
            match removed {
                Err(source) if source.raw_os_error() != Some(libc::ENODEV) => {
                    return Err(AttachError::Io {
                        what: "remove the filter",
                        hook: "clsact",
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// XDP; what is attached in the other way goes before.
    pub(crate) fn xdp(
        &mut self,
        ifindex: u32,
        kind: XdpKind,
        program: BorrowedFd<'_>,
    ) -> AttachResult<()> {
        self.remove(ifindex, kind.other().hook())?;
        self.device_link(ifindex, kind.hook(), program)
            .map_err(|error| match error {
                AttachError::Io { source, .. }
                    if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) =>
                {
                    AttachError::XdpTaken
                }
                AttachError::Io { source, .. }
                    if kind == XdpKind::Native && source.raw_os_error() != Some(libc::EPERM) =>
                {
                    AttachError::NoNativeXdp(source)
                }
                error => error,
            })
    }

    /// Whether an interface still has what was attached: somebody may detach links or delete filters.
    pub(crate) fn is_attached(&mut self, ifindex: u32, xdp: Option<XdpKind>) -> bool {
        let link = |hook: &Hook| {
            let pin = self.links.join(format!("{ifindex}-{}", hook.name));
            sys::obj_get(&pin, 0)
                .and_then(|link| sys::link_info(link.as_fd()))
                .is_ok_and(|info| info.target == ifindex)
        };
        let xdp = xdp.is_none_or(|kind| link(kind.hook()));
        xdp && match self.tc {
            TcMode::Tcx => link(&TCX_INGRESS) && link(&TCX_EGRESS),
            TcMode::Clsact => [Direction::Ingress, Direction::Egress]
                .into_iter()
                .all(|way| matches!(tc::attached(&mut self.netlink, ifindex, way), Ok(Some(_)))),
        }
    }

    /// Whether the socket hooks that were attached still are.
    pub(crate) fn is_cgroup_attached(&self) -> bool {
        self.sockets.iter().all(|name| {
            let pin = self.links.join(format!("cgroup-{name}"));
            sys::obj_get(&pin, 0)
                .and_then(|link| sys::link_info(link.as_fd()))
                .is_ok_and(|info| info.target != 0 || info.attach != 0)
        })
    }

    /// Removes XDP from an interface.
    pub(crate) fn no_xdp(&mut self, ifindex: u32) -> AttachResult<()> {
        self.remove(ifindex, &XDP_NATIVE)?;
        self.remove(ifindex, &XDP_GENERIC)
    }

    /// Everything of ours goes from an interface.
    pub(crate) fn detach(&mut self, ifindex: u32) -> AttachResult<()> {
        DEVICE_HOOKS
            .into_iter()
            .try_for_each(|hook| self.remove(ifindex, hook))?;
        if self.tc == TcMode::Clsact {
            self.remove_clsact(ifindex)
        } else {
            Ok(())
        }
    }

    fn device_link(
        &self,
        ifindex: u32,
        hook: &'static Hook,
        program: BorrowedFd<'_>,
    ) -> AttachResult<()> {
        let pin = self.links.join(format!("{ifindex}-{}", hook.name));
        self.link(&pin, hook, program, ifindex, |info| info.target == ifindex)
    }

    /// Socket hooks at a cgroup, in the order of `names::programs::CGROUP`.
    pub(crate) fn cgroup(
        &mut self,
        path: &Path,
        index: usize,
        program: BorrowedFd<'_>,
    ) -> AttachResult<()> {
        let cgroup = File::open(path).map_err(|source| AttachError::Cgroup {
            path: path.to_owned(),
            source,
        })?;
        let id = cgroup_id(path).map_err(|source| AttachError::Cgroup {
            path: path.to_owned(),
            source,
        })?;
        let name = programs::CGROUP[index];
        let hook = Hook {
            name,
            attach_type: attach_type::CGROUP[index],
            flags: 0,
        };
        let pin = self.links.join(format!("cgroup-{name}"));
        let same =
            |info: &sys::LinkInfo| u64::from(info.target) | u64::from(info.attach) << 32 == id;
        self.link(
            &pin,
            &hook,
            program,
            cgroup.as_raw_fd().cast_unsigned(),
            same,
        )?;
        self.sockets.insert(name);
        Ok(())
    }

    /// Updates the pinned link if it still is the one wanted, else makes and pins one.
    fn link(
        &self,
        pin: &Path,
        hook: &Hook,
        program: BorrowedFd<'_>,
        target: u32,
        same: impl Fn(&sys::LinkInfo) -> bool,
    ) -> AttachResult<()> {
        let name = hook.name;
        let failed = |what| {
            move |source| AttachError::Io {
                what,
                hook: name,
                source,
            }
        };
        let kept = sys::obj_get(pin, 0)
            .ok()
            .filter(|link| sys::link_info(link.as_fd()).is_ok_and(|info| same(&info)));
        let link = match kept {
            Some(link) => {
                sys::link_update(link.as_fd(), program).map_err(failed("replace the program"))?;
                link
            }
            None => {
                unpin(pin).map_err(failed("remove the old pin"))?;
                let link = sys::link_create(program, target, hook.attach_type, hook.flags)
                    .map_err(|source| match source.raw_os_error() {
                        Some(libc::ENODEV) => AttachError::Gone,
                        _ => failed("attach the program")(source),
                    })?;
                sys::obj_pin(link.as_fd(), pin).map_err(failed("pin the link"))?;
                link
            }
        };
        self.verify(&link, hook, program, target)
    }

    fn verify(
        &self,
        link: &OwnedFd,
        hook: &Hook,
        program: BorrowedFd<'_>,
        target: u32,
    ) -> AttachResult<()> {
        let name = hook.name;
        let failed = |source| AttachError::Io {
            what: "verify the link",
            hook: name,
            source,
        };
        let id = sys::prog_id(program).map_err(failed)?;
        let mut there = sys::link_info(link.as_fd()).map_err(failed)?.prog_id == id;
        // XDP has no query by bpf(2); its link's own information must do.
        if hook.attach_type != attach_type::XDP {
            there &= sys::prog_query(target, hook.attach_type)
                .map_err(failed)?
                .contains(&id);
        }
        if there {
            Ok(())
        } else {
            Err(AttachError::NotThere { hook: name })
        }
    }

    fn remove(&self, ifindex: u32, hook: &'static Hook) -> AttachResult<()> {
        let pin = self.links.join(format!("{ifindex}-{}", hook.name));
        release(&pin).map_err(|source| AttachError::Io {
            what: "detach",
            hook: hook.name,
            source,
        })
    }

    /// Removes links of devices that are gone, and those of interfaces that `wanted` refuses; returns how many.
    pub(crate) fn prune(&mut self, wanted: &dyn Fn(u32) -> bool) -> AttachResult<usize> {
        let failed = |what| {
            move |source| AttachError::Io {
                what,
                hook: "links",
                source,
            }
        };
        let mut removed = 0;
        for entry in fs::read_dir(&self.links)
            .map_err(failed("list the pins"))?
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(ifindex) = name
                .split('-')
                .next()
                .and_then(|number| number.parse::<u32>().ok())
            else {
                continue;
            };
            let alive = sys::obj_get(&entry.path(), 0)
                .and_then(|link| sys::link_info(link.as_fd()))
                .is_ok_and(|info| info.target == ifindex);
            if !alive || !wanted(ifindex) {
                release(&entry.path()).map_err(failed("detach"))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the socket hooks.
    pub(crate) fn no_cgroup(&mut self) -> AttachResult<()> {
        self.sockets.clear();
        for name in programs::CGROUP {
            let pin = self.links.join(format!("cgroup-{name}"));
            release(&pin).map_err(|source| AttachError::Io {
                what: "detach",
                hook: name,
                source,
            })?;
        }
        Ok(())
    }
}

/// Detaches a pinned link at once, whoever else holds it, and removes its pin.
pub(crate) fn release(pin: &Path) -> io::Result<()> {
    match sys::obj_get(pin, 0) {
        // A link that its device left behind cannot be detached any more (ENOLINK); kernels before 5.9 only unpin.
        Ok(link) => drop(sys::link_detach(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    unpin(pin)
}

fn unpin(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The kernel's id of a cgroup: the inode number of its directory.
fn cgroup_id(path: &Path) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&fs::metadata(path)?))
}
