//! What `run` does, all values checked.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    compat::LocalDetector,
    conntrack::Setting,
    file::ConfigFile,
    flags::{Masquerade, SocketLb, TcAttach},
    source::ObjectSource,
};
use crate::{
    desired::NodePortAddresses,
    net::Prefix,
    node::{Globs, XdpMode},
    port_set::PortSet,
};

/// What `run` does, all values checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where Services come from.
    pub source: ObjectSource,
    /// This node's name, lower-cased.
    pub node_name: String,
    /// Interfaces that are external by name.
    pub external_interfaces: Globs,
    /// Pod interfaces by name.
    pub pod_interfaces: Globs,
    /// `--cluster-cidr`.
    pub cluster_cidrs: Vec<Prefix>,
    /// `--nodeport-addresses`.
    pub node_port_addresses: NodePortAddresses,
    /// As it was given.
    pub node_port_list: String,
    /// `--xdp`.
    pub xdp: XdpMode,
    /// `--socket-lb`.
    pub socket_lb: SocketLb,
    /// `--cgroup`; `None`: the mount of type cgroup2.
    pub cgroup: Option<PathBuf>,
    /// `--masquerade`.
    pub masquerade: Masquerade,
    /// `--masquerade-all`.
    pub masquerade_all: bool,
    /// `--flow-table-size`, in connections of a family; `None`: by the machine's memory.
    pub flow_table_size: Option<u32>,
    /// `--max-frontends`.
    pub max_frontends: u32,
    /// `--max-backends`.
    pub max_backends: Option<u32>,
    /// Rows of the selection slab; `None`: by the machine's memory.
    pub selection_rows: Option<u32>,
    /// `--snat-ports`; `None`: what the host leaves.
    pub snat_ports: Option<PortSet>,
    /// Most refusals a second and CPU.
    pub refusals_per_sec: u32,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--healthz-bind-address`; `None`: `--healthz-port 0`.
    pub healthz: Option<SocketAddr>,
    /// `--metrics-bind-address`; `None`: `--metrics-port 0`.
    pub metrics: Option<SocketAddr>,
    /// `--bind-address-hard-fail`.
    pub bind_hard_fail: bool,
    /// `--bind-address`: the node's primary address of its family, where it names one.
    pub bind_address: Option<IpAddr>,
    /// `--tc-attach`.
    pub tc_attach: TcAttach,
    /// `--detect-local-mode`.
    pub local_detector: LocalDetector,
    /// Gate AllowServiceExternalIPs (semantics 4.3).
    pub allow_external_ips: bool,
    /// `--oom-score-adj`.
    pub oom_score_adj: Option<i32>,
    /// Settings of the kernel's conntrack that were given.
    pub conntrack: Vec<Setting>,
    /// All of this as a KubeProxyConfiguration, as far as that has words for it.
    pub effective: serde_json::Value,
    /// `--config` and what was in it.
    pub file: Option<ConfigFile>,
    /// What a person should know about the flags.
    pub warnings: Vec<String>,
}
