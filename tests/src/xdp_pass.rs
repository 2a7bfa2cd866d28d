//! An XDP program that passes every packet, for the far end of a veth pair.
//!
//! A veth takes frames that XDP sends back by XDP_TX only if its own end runs an XDP program, too:
//! `veth_xdp_flush` wakes nobody otherwise, and the frames wait for the next packet.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::netns::NetNs;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `mov64 r0, XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 13],
}

/// The first fields of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct Link {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 12],
}

/// The program on one interface, as long as the value lives.
#[derive(Debug)]
pub struct XdpPass {
    _link: OwnedFd,
}

impl XdpPass {
    /// Attaches to an interface of the namespace, in native mode.
    pub fn attach(ns: &NetNs, interface: &str) -> Result<XdpPass> {
        let link = ns.run(|| -> Result<OwnedFd> {
            let load = Load {
                prog_type: BPF_PROG_TYPE_XDP,
                insn_cnt: 2,
                insns: PASS.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
                ..Load::default()
            };
            let program = bpf(BPF_PROG_LOAD, &load).context("cannot load the pass program")?;
            let ifindex = nix::net::if_::if_nametoindex(interface)?;
            let link = Link {
                prog_fd: u32::try_from(program.as_raw_fd())?,
                target_ifindex: ifindex,
                attach_type: BPF_XDP,
                flags: XDP_FLAGS_DRV_MODE,
                ..Link::default()
            };
            Ok(bpf(BPF_LINK_CREATE, &link)?)
        })?;
        let link =
            link.with_context(|| format!("cannot attach XDP to {interface} in {}", ns.name()))?;
        Ok(XdpPass { _link: link })
    }
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are `repr(C)`, as long as the size says, and outlive the call, as does what
    // they point to; the kernel takes missing fields for 0.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
