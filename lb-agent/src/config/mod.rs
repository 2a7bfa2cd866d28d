//! Flags and environment → a validated [`Config`]. Names are kube-proxy's where it has one.

pub mod compat;
pub mod conntrack;
mod families;
pub mod file;
mod kube_proxy;
mod written;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use self::{
    compat::{CompatArgs, LocalDetector},
    conntrack::Setting,
    file::ConfigFile,
};
use crate::{
    desired::NodePortAddresses,
    kube::api::Access,
    net::{PortRange, PortRangeError, Prefix},
    node::{Globs, XdpMode},
};

/// Port of health where none is given.
const HEALTHZ_PORT: u16 = 10256;
/// Port of metrics where none is given.
const METRICS_PORT: u16 = 10249;

/// Default of `--bpffs`.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value cannot be read.
    #[error("--{flag} {value}: {problem}")]
    Value {
        /// The flag without its dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what to write.
        problem: String,
    },
    /// Something needed is missing.
    #[error("{0}")]
    Missing(&'static str),
}

fn invalid(flag: &'static str, value: impl Into<String>, problem: impl ToString) -> ConfigError {
    ConfigError::Value {
        flag,
        value: value.into(),
        problem: problem.to_string(),
    }
}

/// `--forwarding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Forwarding {
    /// Source translation where replies would otherwise miss this node.
    Snat,
    /// Direct server return; not in this version.
    Dsr,
}

/// `--socket-lb`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SocketLb {
    /// Sockets of this node's own network namespace.
    Host,
    /// Sockets of every namespace below the cgroup.
    All,
    /// None.
    Off,
}

/// `--masquerade`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Masquerade {
    /// Only where replies would otherwise miss this node's hooks.
    Needed,
    /// Wherever kube-proxy does.
    KubeProxy,
}

/// `--log-format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `--tc-attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TcAttach {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX (6.6).
    Tcx,
    /// The qdisc clsact and a direct-action filter.
    Clsact,
}

/// Flags of `lb-agent run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
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
    /// Entries of each table of flows (two a connection)
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub flow_table_size: String,
    /// Most frontends of a family (address, port, protocol)
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub max_frontends: u32,
    /// Most backends of a family
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub max_backends: u32,
    /// Rows of all selection tables together
    #[arg(long, value_name = "N|auto", default_value = "auto", hide = true)]
    pub selection_rows: String,
    /// First and last port for source translation
    #[arg(long, value_name = "FIRST-LAST", default_value = "20000-29999")]
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

/// Where Services come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server.
    Api(Access),
}

/// What `run` does, all values checked.
#[derive(Clone, Debug)]
pub struct Config {
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
    /// `--flow-table-size`; `None`: by the machine's memory.
    pub flow_table_size: Option<u32>,
    /// `--max-frontends`.
    pub max_frontends: u32,
    /// `--max-backends`.
    pub max_backends: u32,
    /// Rows of the selection slab; `None`: by the machine's memory.
    pub selection_rows: Option<u32>,
    /// First and last port for source translation.
    pub snat_ports: PortRange,
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

impl RunArgs {
    /// Reads the file of `--config`, where it is given, and checks every value.
    pub fn validate(&self) -> Result<Config, ConfigError> {
        let has_ipv6 = families::host_has_ipv6();
        let Some(path) = &self.config else {
            return self.checked(Vec::new(), has_ipv6);
        };
        let mut args = self.clone();
        let (text, warnings) = kube_proxy::read(path, &mut args)?;
        let mut config = args.checked(warnings, has_ipv6)?;
        config.file = Some(ConfigFile::new(path.clone(), text));
        Ok(config)
    }

    fn checked(&self, mut warnings: Vec<String>, has_ipv6: bool) -> Result<Config, ConfigError> {
        self.refuse_what_is_not_built()?;
        warnings.extend(self.compat.warnings());
        let cluster_cidrs = prefixes("cluster-cidr", &self.cluster_cidr)?;
        let local_detector = LocalDetector::new(
            self.detect_local_mode.as_deref(),
            &cluster_cidrs,
            &self.compat,
        )?;
        let mut pod_interfaces = self.pod_interfaces.clone();
        pod_interfaces.extend(local_detector.pod_pattern());
        let bind_address = self.compat.bind_address()?;
        families::check(self, &cluster_cidrs, bind_address, has_ipv6, &mut warnings)?;
        let (healthz, metrics) = self.served_addresses(bind_address)?;
        Ok(Config {
            source: self.source()?,
            node_name: node_name(self.hostname_override.as_deref())?,
            external_interfaces: globs("external-interfaces", &self.external_interfaces)?,
            pod_interfaces: globs("pod-interfaces", &pod_interfaces)?,
            cluster_cidrs,
            node_port_addresses: self
                .nodeport_addresses
                .parse()
                .map_err(|error| invalid("nodeport-addresses", &self.nodeport_addresses, error))?,
            node_port_list: self.nodeport_addresses.clone(),
            xdp: self.xdp,
            socket_lb: self.socket_lb,
            cgroup: self.cgroup.clone(),
            masquerade: self.masquerade,
            masquerade_all: self.masquerade_all,
            flow_table_size: auto_or_number(
                "flow-table-size",
                &self.flow_table_size,
                1024..=67_108_864,
            )?,
            max_frontends: self.max_frontends,
            max_backends: self.max_backends,
            selection_rows: auto_or_number("selection-rows", &self.selection_rows, 1024..=1 << 30)?,
            snat_ports: port_range(&self.snat_ports)?,
            refusals_per_sec: self.refusals_per_sec,
            bpffs: self.bpffs.clone(),
            healthz,
            metrics,
            bind_hard_fail: self.compat.bind_address_hard_fail.unwrap_or(false),
            bind_address: bind_address.filter(|addr| !addr.is_unspecified()),
            tc_attach: self.tc_attach,
            local_detector,
            allow_external_ips: compat::allows_external_ips(
                &self.compat.feature_gates,
                &mut warnings,
            )?,
            oom_score_adj: self.compat.oom_score_adj,
            conntrack: self.compat.conntrack()?,
            effective: written::effective(self, healthz, metrics),
            file: None,
            warnings,
        })
    }

    /// Addresses of health and metrics. Port 0 of kube-proxy's old flags switches one off, another goes with an address
    /// that names none (semantics 24.4).
    fn served_addresses(
        &self,
        bind: Option<IpAddr>,
    ) -> Result<(Option<SocketAddr>, Option<SocketAddr>), ConfigError> {
        let is_v6 = bind.is_some_and(|addr| addr.is_ipv6());
        let (all, own) = if is_v6 {
            ("::", "::1")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        let compat = &self.compat;
        fn given(flag: &Option<String>) -> Option<&str> {
            flag.as_deref().filter(|text| !text.is_empty())
        }
        let healthz = served(
            "healthz-bind-address",
            given(&self.healthz_bind_address).unwrap_or(all),
            compat.healthz_port.unwrap_or(HEALTHZ_PORT),
        )?;
        let metrics = served(
            "metrics-bind-address",
            given(&self.metrics_bind_address).unwrap_or(own),
            compat.metrics_port.unwrap_or(METRICS_PORT),
        )?;
        Ok((healthz, metrics))
    }

    fn source(&self) -> Result<ObjectSource, ConfigError> {
        let Some(manifests) = &self.manifests else {
            return Ok(ObjectSource::Api(Access {
                kubeconfig: self.kubeconfig.clone(),
                server: self.apiserver.clone(),
            }));
        };
        if !manifests.is_dir() {
            return Err(invalid(
                "manifests",
                manifests.display().to_string(),
                "is no directory; create it, it may be empty",
            ));
        }
        Ok(ObjectSource::Manifests(manifests.clone()))
    }

    fn refuse_what_is_not_built(&self) -> Result<(), ConfigError> {
        if self.forwarding == Forwarding::Dsr {
            return Err(invalid(
                "forwarding",
                "dsr",
                "this build has no direct server return; use snat",
            ));
        }
        Ok(())
    }
}

fn node_name(given: Option<&str>) -> Result<String, ConfigError> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err(ConfigError::Missing(
            "this node has no name: give it with --hostname-override NAME",
        ));
    }
    Ok(name)
}

fn prefixes(flag: &'static str, texts: &[String]) -> Result<Vec<Prefix>, ConfigError> {
    let one = |text: &String| {
        Prefix::parse(text.trim())
            .ok_or_else(|| invalid(flag, text, "is no prefix; write ADDRESS/LENGTH"))
    };
    texts.iter().map(one).collect()
}

fn auto_or_number(
    flag: &'static str,
    text: &str,
    range: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, ConfigError> {
    if text == "auto" {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| {
        invalid(
            flag,
            text,
            format!(
                "write auto or a number from {} to {}",
                range.start(),
                range.end()
            ),
        )
    })
}

fn port_range(text: &str) -> Result<PortRange, ConfigError> {
    let range = text.parse::<PortRange>().ok();
    range
        .filter(|range| range.first > 0)
        .ok_or_else(|| invalid("snat-ports", text, PortRangeError))
}

fn globs(flag: &'static str, patterns: &[String]) -> Result<Globs, ConfigError> {
    Globs::new(patterns).map_err(|error| invalid(flag, patterns.join(","), error))
}

/// An address with or without a port; `None`: it is switched off.
fn served(flag: &'static str, text: &str, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
    let alone = || text.parse().ok().map(|addr| SocketAddr::new(addr, port));
    let addr = text
        .parse()
        .ok()
        .or_else(alone)
        .ok_or_else(|| invalid(flag, text, "write ADDRESS:PORT"))?;
    Ok((port != 0).then_some(addr))
}

impl Config {
    /// What the Node says about families: what a person should know, or why this node cannot be served (semantics 9.3,
    /// 24.12).
    pub fn check_node(
        &self,
        node: &crate::kube::objects::Node,
    ) -> Result<Vec<String>, ConfigError> {
        families::check_node(self, node)
    }

    /// Writes it as a KubeProxyConfiguration.
    pub fn write_to(&self, path: &Path) -> Result<(), ConfigError> {
        let failed = |error: &dyn std::fmt::Display| {
            invalid("write-config-to", path.display().to_string(), error)
        };
        let text = serde_yaml_ng::to_string(&self.effective).map_err(|error| failed(&error))?;
        fs::write(path, text).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let line = ["lb-agent", "--manifests", "/"].iter().chain(flags);
        let parsed = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        parsed.run.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn flags_without_values_take_the_documented_defaults() {
        // semantics 16.1, 16.11
        let config = parse(&[]).unwrap();
        assert_eq!(config.snat_ports.to_string(), "20000-29999");
        assert_eq!(
            (
                config.max_frontends,
                config.max_backends,
                config.flow_table_size
            ),
            (65_536, 262_144, None)
        );
        assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
        assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
        assert_eq!(config.bpffs, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(config.socket_lb, SocketLb::Host);
    }

    // semantics 24.3
    #[test]
    fn node_names_are_lower_cased() {
        assert_eq!(
            parse(&["--hostname-override", "Node-A"]).unwrap().node_name,
            "node-a"
        );
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (flag, value) in [
            ("--snat-ports", "3000"),
            ("--snat-ports", "9-8"),
            ("--nodeport-addresses", "everywhere"),
            ("--cluster-cidr", "10.0.0.0"),
            ("--flow-table-size", "7"),
            ("--healthz-bind-address", "here"),
            ("--external-interfaces", "eth0,,"),
            ("--forwarding", "dsr"),
            ("--detect-local-mode", "Guess"),
            ("--feature-gates", "Nothing"),
            ("--config", "/nonexistent/c"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn flags_of_kube_proxy_are_accepted_and_others_are_not() {
        // semantics 24.5, 24.8, 24.10
        let given = [
            "--proxy-mode=ipvs",
            "--ipvs-strict-arp",
            "--v=4",
            "--iptables-sync-period",
            "30s",
        ];
        let config = parse(&given).unwrap();
        let warning = config.warnings.join(" ");
        for flag in [
            "--proxy-mode",
            "--ipvs-strict-arp",
            "--v",
            "--iptables-sync-period",
        ] {
            assert!(warning.contains(flag), "{flag} in {warning}");
        }
        assert!(parse(&[]).unwrap().warnings.is_empty());
        assert!(parse(&["--no-such-flag"]).is_err());
    }

    // semantics 24.4
    #[test]
    fn port_0_of_the_old_flags_switches_an_address_off() {
        let addresses = |flags: &[&str]| {
            let config = parse(flags).unwrap();
            [config.healthz, config.metrics].map(|addr| addr.map(|addr| addr.to_string()))
        };
        let (healthz, metrics) = ("0.0.0.0:10256".to_owned(), "127.0.0.1:10249".to_owned());
        assert_eq!(addresses(&["--healthz-port=0"]), [None, Some(metrics)]);
        assert_eq!(addresses(&["--metrics-port=0"]), [Some(healthz), None]);
        let given = [
            "--healthz-bind-address=192.0.2.1",
            "--healthz-port=7",
            "--metrics-port=8",
        ];
        let bound = ["192.0.2.1:7", "127.0.0.1:8"].map(|addr| Some(addr.to_owned()));
        assert_eq!(addresses(&given), bound);
        let whole = ["--healthz-bind-address=192.0.2.1:9", "--healthz-port=7"];
        assert_eq!(addresses(&whole)[0].as_deref(), Some("192.0.2.1:9"));
        assert!(addresses(&["--healthz-bind-address="])[0].is_some());
    }

    #[test]
    fn of_a_flag_that_is_given_twice_the_last_counts() {
        let flags = [
            "--conntrack-min=1",
            "--conntrack-min=2",
            "--conntrack-max-per-core=1",
        ];
        let config = parse(&flags).unwrap();
        assert_eq!(config.conntrack, [Setting::Max(1, 2)]);
        let config = parse(&["--masquerade-all", "--masquerade-all"]).unwrap();
        assert!(config.masquerade_all);
        let lists = parse(&["--pod-interfaces=a", "--pod-interfaces=b"]).unwrap();
        assert!(
            lists.pod_interfaces.matches("b"),
            "{:?}",
            lists.pod_interfaces
        );
        assert!(lists.pod_interfaces.matches("a"), "lists grow");
    }

    // semantics 24.2, 24.11
    #[test]
    fn flags_that_end_at_once_exclude_each_other() {
        assert!(parse(&["--cleanup", "--init-only"]).is_err());
        let rates = ["--kube-api-qps=5", "--kube-api-burst=10"];
        let config = parse(&rates).unwrap();
        assert!(config.warnings[0].contains("kube-api-qps, --kube-api-burst"));
    }

    #[test]
    fn interface_detectors_name_pod_interfaces() {
        // semantics 9.3
        let mode = ["--detect-local-mode", "InterfaceNamePrefix"];
        let config =
            parse(&[&mode[..], &["--pod-interface-name-prefix", "cali"]].concat()).unwrap();
        assert!(config.pod_interfaces.matches("cali12"));
        assert!(!config.pod_interfaces.matches("eth0"));
    }

    #[test]
    fn without_manifests_the_api_server_is_asked() {
        // semantics 24.2
        let parsed = |flags: &[&str]| {
            let line = ["lb-agent"].iter().chain(flags);
            Line::try_parse_from(line).map(|line| line.run.validate().unwrap().source)
        };
        let access = Access {
            kubeconfig: Some("/k".into()),
            server: Some("https://192.0.2.1:6443".into()),
        };
        assert_eq!(
            parsed(&["--kubeconfig", "/k", "--master", "https://192.0.2.1:6443"]).unwrap(),
            ObjectSource::Api(access)
        );
        assert_eq!(parsed(&[]).unwrap(), ObjectSource::Api(Access::default()));
        assert!(parsed(&["--manifests", "/", "--kubeconfig", "/k"]).is_err());
    }

    #[test]
    fn a_missing_directory_of_manifests_is_named() {
        let line = Line::try_parse_from(["lb-agent", "--manifests", "/nonexistent/m"]).unwrap();
        assert!(
            line.run
                .validate()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/m")
        );
    }
}
