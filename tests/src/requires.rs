//! What a test needs of the machine → why this one lacks it: what is missing, and since which kernel it exists.

use std::{fs, path::Path, sync::OnceLock};

use crate::netns::NetNs;

/// One need of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces, veth pairs and `ip`.
    Root,
    /// Loading BPF programs and mounting bpffs.
    Bpf,
    /// A cgroup2 mount.
    Cgroup2,
    /// TCX attachment.
    Tcx,
    /// `nft`, to evaluate conntrack state.
    Nft,
    /// The programs of the control plane, and kube-proxy.
    ControlPlane,
}

impl Need {
    /// Why this machine lacks it; `None` when it is there.
    pub fn missing(self) -> Option<&'static str> {
        static FOUND: [OnceLock<Option<&'static str>>; 6] = [const { OnceLock::new() }; 6];
        *FOUND[self as usize].get_or_init(|| self.probe())
    }

    fn probe(self) -> Option<&'static str> {
        match self {
            Need::Root => {
                if !nix::unistd::geteuid().is_root() {
                    return Some("needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)");
                }
                let Ok(ns) = NetNs::new("probe") else {
                    return Some("needs network namespaces (CONFIG_NET_NS) and CAP_SYS_ADMIN");
                };
                match ns.ip("link add v0 type veth peer name v1\n") {
                    Ok(()) => None,
                    Err(_) => Some("needs `ip` of iproute2 and veth devices (CONFIG_VETH)"),
                }
            }
            Need::Bpf => {
                if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
                    return Some("needs the bpf() system call (CONFIG_BPF_SYSCALL)");
                }
                match crate::tempdir::Bpffs::mount("probe") {
                    Ok(_) => None,
                    Err(_) => Some("needs CAP_BPF (kernel 5.8) and CAP_SYS_ADMIN to mount bpffs"),
                }
            }
            Need::Cgroup2 => match crate::cgroup::cgroup2_mount() {
                Ok(_) => None,
                Err(_) => {
                    Some("needs a mount of type cgroup2 (kernel 4.5): mount -t cgroup2 none DIR")
                }
            },
            Need::Tcx => match kernel_version() {
                Some(version) if version >= (6, 6) => None,
                _ => Some("needs TCX, since kernel 6.6"),
            },
            Need::Nft => match std::process::Command::new("nft").arg("--version").output() {
                Ok(_) => None,
                Err(_) => Some("needs `nft`; install nftables"),
            },
            Need::ControlPlane => {
                let programs = [
                    "etcd",
                    "kube-apiserver",
                    "kube-controller-manager",
                    "kube-proxy",
                ];
                let lacks = |name: &&str| crate::control_plane::program(name).is_err();
                programs.iter().any(lacks).then_some(
                    "needs etcd, kube-apiserver, kube-controller-manager and kube-proxy; run `cargo xtask setup`",
                )
            }
        }
    }
}

/// Version of the running kernel as (major, minor).
pub fn kernel_version() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(['.', '-']).map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}
