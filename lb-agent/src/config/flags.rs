//! The flags of `lb-agent run`, as they are given. Names are kube-proxy's where it has one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::compat::CompatArgs;
use crate::node::XdpMode;

/// Default of `--bpffs`.
pub(crate) const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// `--forwarding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Forwarding {
    /// Source translation where replies would otherwise miss this node.
    Snat,
    /// Direct server return; not in this version.
    Dsr,
}

/// `--socket-lb`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum SocketLb {
    /// Sockets of this node's own network namespace.
    Host,
    /// Sockets of every namespace below the cgroup.
    All,
    /// None.
    Off,
}

/// `--masquerade`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Masquerade {
    /// Only where replies would otherwise miss this node's hooks.
    Needed,
    /// Wherever kube-proxy does.
    KubeProxy,
}

/// `--log-format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `--tc-attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum TcAttach {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX (6.6).
    Tcx,
    /// The qdisc clsact and a direct-action filter.
    Clsact,
}

/// Flags of `lb-agent run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Directory of manifests (Services, EndpointSlices, Endpoints, Nodes) to follow
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "apiserver"])]
    pub manifests: Option<PathBuf>,
    /// How to reach the API server [default: the Pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Real address of the API server, never its ClusterIP; takes the place of the kubeconfig's
    #[arg(long, value_name = "URL", alias = "master")]
    pub apiserver: Option<String>,
    /// KubeProxyConfiguration; goes before flags of the same meaning. When it changes, the agent ends to be started anew
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the configuration that flags and --config come to as a KubeProxyConfiguration, and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Do what `lb-agent cleanup` does, and end
    #[arg(long, conflicts_with = "init_only")]
    pub cleanup: bool,
    /// Set what needs a writable /proc/sys, and end: an agent that runs later needs none
    #[arg(long)]
    pub init_only: bool,
    /// Name of this node [default: the host name, lower-cased]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Interfaces that are external whatever they look like
    #[arg(long, value_name = "GLOB,…", value_delimiter = ',')]
    pub external_interfaces: Vec<String>,
    /// Interfaces with a pod behind them whatever they look like
    #[arg(long, value_name = "GLOB,…", value_delimiter = ',')]
    pub pod_interfaces: Vec<String>,
    /// Addresses of pods as kube-proxy knows them. Families are checked; pods are known by their interface
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Addresses that accept NodePorts: prefixes, primary, localhost
    #[arg(
        long,
        value_name = "CIDR,…|primary|localhost",
        default_value = "primary"
    )]
    pub nodeport_addresses: String,
    /// Where to use XDP
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,
    /// How traffic reaches remote backends
    #[arg(long, value_enum, default_value_t = Forwarding::Snat)]
    pub forwarding: Forwarding,
    /// Whose sockets are translated as they connect
    #[arg(long, value_enum, default_value_t = SocketLb::Host)]
    pub socket_lb: SocketLb,
    /// Cgroup whose processes the socket hooks see [default: the mount of type cgroup2]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// When the source address is translated
    #[arg(long, value_enum, default_value_t = Masquerade::Needed)]
    pub masquerade: Masquerade,
    /// Translate the source address of all Service traffic, but of clients of external frontends under policy Local
    #[arg(long)]
    pub masquerade_all: bool,
    /// How kube-proxy knows a pod's packet: BridgeInterface and InterfaceNamePrefix name pod interfaces beside those that are
    /// found by kind; ClusterCIDR and NodeCIDR have families checked
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// Connections of each family that the table of flows has room for, rounded up to its next size
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub flow_table_size: String,
    /// Most frontends of a family (address, port, protocol)
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub max_frontends: u32,
    /// Most backends of a family
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub max_backends: String,
    /// Rows of all selection tables together
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub selection_rows: String,
    /// Ports for source translation; auto: from 1024 on, less NodePorts (30000-32767), ip_local_port_range and
    /// ip_local_reserved_ports
    #[arg(long, value_name = "FIRST-LAST,…|auto", default_value = "auto")]
    pub snat_ports: String,
    /// Most refusals (RST, ICMP) a second and CPU; 0 no limit
    #[arg(long, value_name = "N", default_value_t = 1000, hide = true)]
    pub refusals_per_sec: u32,
    /// Mount of the bpf filesystem; mounted if nothing is
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Address of /healthz, /livez and /readyz [default: port 10256 of all addresses, of IPv4 unless --bind-address is IPv6]
    #[arg(long, value_name = "ADDR")]
    pub healthz_bind_address: Option<String>,
    /// Address of /metrics [default: port 10249 of loopback, of IPv4 unless --bind-address is IPv6]
    #[arg(long, value_name = "ADDR")]
    pub metrics_bind_address: Option<String>,
    /// Form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// How tc programs are attached
    #[arg(long, value_enum, default_value_t = TcAttach::Auto, env = "LB_TC_ATTACH", hide = true)]
    pub tc_attach: TcAttach,
    /// Flags of kube-proxy.
    #[command(flatten)]
    pub compat: CompatArgs,
}
