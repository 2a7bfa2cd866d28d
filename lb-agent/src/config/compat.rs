//! kube-proxy's flags that are not the agent's own: those that mean something here take effect, the others are accepted
//! with a warning, so that a command line can be taken over (semantics 24).

use std::{collections::BTreeMap, net::IpAddr};

use clap::Args;

use super::{
    conntrack::Setting,
    error::{ConfigError, invalid},
};
use crate::net::Prefix;

/// Gates that mean something here.
const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// Gates of kube-proxy that do not (semantics 24.14).
const GATES: [&str; 7] = [
    "KubeProxyIPVS",
    "KubeProxyNFTablesLocalhostNodePorts",
    "NFTablesNetlink",
    "ComponentFlagz",
    "ComponentStatusz",
    "PreferSameTrafficDistribution",
    "MultiCIDRServiceAllocator",
];
const MODES: [&str; 4] = ["", "iptables", "ipvs", "nftables"];

/// Flags of kube-proxy.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Flags of kube-proxy")]
pub(crate) struct CompatArgs {
    /// Switches by name; AllowServiceExternalIPs has an effect
    #[arg(long, value_name = "NAME=true|false,…", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    /// Interface for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// Start of names for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "TEXT")]
    pub pod_interface_name_prefix: Option<String>,
    /// How eager the kernel is to kill the agent when memory is short
    #[arg(long, value_name = "-1000…1000", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// This node's primary address; nothing is bound to it [default: the Node's]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// End where an address of health or metrics cannot be bound [default: it is tried again]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,
    /// Port of --healthz-bind-address where that names none; 0: no health address. Not with --config
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Port of --metrics-bind-address where that names none; 0: no metrics. Not with --config
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Entries of the kernel's conntrack table for each CPU; 0 leaves the kernel's
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Least entries of the kernel's conntrack table
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// Of idle TCP connections in conntrack; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// Of half-closed TCP connections in conntrack; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// Of unanswered UDP flows in conntrack; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// Of answered UDP flows in conntrack; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
    /// Let conntrack accept TCP segments outside the window
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,
    #[command(flatten)]
    pub(crate) ignored: IgnoredArgs,
}

/// Declares flags without a meaning here: each takes a value, or stands alone where the second list names it.
macro_rules! ignored {
    (values: $($value:ident)*; switches: $($switch:ident)*;) => {
        /// Flags that are accepted and have no effect.
        #[derive(Args, Clone, Debug, Default)]
        pub(crate) struct IgnoredArgs {
            $(#[arg(long, hide = true, allow_hyphen_values = true)] pub(crate) $value: Option<String>,)*
            $(#[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
            pub(crate) $switch: Option<String>,)*
        }
        impl IgnoredArgs {
            /// The flags that were given.
            pub(crate) fn given(&self) -> Vec<String> {
                let all = [
                    $((stringify!($value), self.$value.is_some()),)*
                    $((stringify!($switch), self.$switch.is_some()),)*
                ];
                let given = all.into_iter().filter(|(_, is_given)| *is_given);
                given.map(|(name, _)| name.replace('_', "-")).collect()
            }
        }
    };
}

ignored! {
    values: proxy_mode kube_api_qps kube_api_burst kube_api_content_type
        iptables_masquerade_bit iptables_sync_period iptables_min_sync_period ipvs_sync_period ipvs_min_sync_period
        config_sync_period ipvs_scheduler ipvs_exclude_cidrs ipvs_tcp_timeout ipvs_tcpfin_timeout ipvs_udp_timeout
        show_hidden_metrics_for_version logging_format log_flush_frequency v vmodule;
    switches: iptables_localhost_nodeports ipvs_strict_arp profiling;
}

/// How a packet is known to come from a pod (semantics 9.3).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum LocalDetector {
    /// It arrives by a pod interface, found by its kind.
    #[default]
    ByInterface,
    /// Its source lies in these.
    ClusterCidr(Vec<Prefix>),
    /// Its source lies in the Node's `podCIDRs`.
    NodeCidr,
    /// It arrives by this bridge.
    BridgeInterface(String),
    /// It arrives by an interface whose name begins so.
    InterfaceNamePrefix(String),
}

impl LocalDetector {
    /// From `--detect-local-mode` and what belongs to it.
    pub(crate) fn new(
        mode: Option<&str>,
        cidrs: &[Prefix],
        flags: &CompatArgs,
    ) -> Result<LocalDetector, ConfigError> {
        let named = |name: &Option<String>, flag: &'static str| {
            let name = name.clone().filter(|name| !name.is_empty());
            let mode = mode.unwrap_or_default();
            name.ok_or_else(|| {
                invalid(
                    "detect-local-mode",
                    mode,
                    format!("needs a name; give --{flag}"),
                )
            })
        };
        match mode.unwrap_or_default() {
            "" => Ok(LocalDetector::ByInterface),
            // kube-proxy has no detector then, which would translate every source.
            "ClusterCIDR" if cidrs.is_empty() => Ok(LocalDetector::ByInterface),
            "ClusterCIDR" => Ok(LocalDetector::ClusterCidr(cidrs.to_vec())),
            "NodeCIDR" => Ok(LocalDetector::NodeCidr),
            "BridgeInterface" => named(&flags.pod_bridge_interface, "pod-bridge-interface")
                .map(LocalDetector::BridgeInterface),
            "InterfaceNamePrefix" => named(
                &flags.pod_interface_name_prefix,
                "pod-interface-name-prefix",
            )
            .map(LocalDetector::InterfaceNamePrefix),
            other => Err(invalid(
                "detect-local-mode",
                other,
                "write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
            )),
        }
    }

    /// Pattern of interfaces that are pod interfaces by it.
    pub(crate) fn pod_pattern(&self) -> Option<String> {
        match self {
            LocalDetector::BridgeInterface(name) => Some(name.clone()),
            LocalDetector::InterfaceNamePrefix(prefix) => Some(format!("{prefix}*")),
            _ => None,
        }
    }
}

/// Whether `spec.externalIPs` are served (semantics 4.3). An unknown gate is no reason to leave a node without Services.
pub(super) fn allows_external_ips(
    gates: &[String],
    warnings: &mut Vec<String>,
) -> Result<bool, ConfigError> {
    let mut values = BTreeMap::new();
    for gate in gates
        .iter()
        .map(|gate| gate.trim())
        .filter(|gate| !gate.is_empty())
    {
        let parsed = gate
            .split_once('=')
            .and_then(|(name, value)| Some((name.trim(), switch(value.trim())?)));
        let (name, value) = parsed
            .ok_or_else(|| invalid("feature-gates", gate, "write NAME=true or NAME=false"))?;
        values.insert(name, value);
    }
    for name in values.keys().filter(|name| **name != EXTERNAL_IPS) {
        let why = if GATES.contains(name) {
            "has no effect here"
        } else {
            "is unknown and ignored"
        };
        warnings.push(format!("feature gate {name} {why}"));
    }
    Ok(values.get(EXTERNAL_IPS).copied().unwrap_or(true))
}

pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// Seconds of a duration such as `1h30m`, `90s` or `0`, rounded up.
pub(super) fn seconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| end + at);
        total += number
            * match &rest[end..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no sign was read, and casts to integers saturate"
    )]
    (!text.is_empty()).then(|| total.ceil() as u64)
}

impl CompatArgs {
    /// What is to be written to the kernel: only what was given (semantics 24.9).
    pub(crate) fn conntrack(&self) -> Result<Vec<Setting>, ConfigError> {
        let mut settings = Vec::new();
        let (per_core, min) = (self.conntrack_max_per_core, self.conntrack_min);
        if (per_core.is_some() || min.is_some()) && per_core != Some(0) {
            let (per_core, min) = (per_core.unwrap_or(32_768), min.unwrap_or(131_072));
            settings.push(Setting::Max(per_core, min));
        }
        for (flag, file, text) in [
            (
                "conntrack-tcp-timeout-established",
                "nf_conntrack_tcp_timeout_established",
                &self.conntrack_tcp_timeout_established,
            ),
            (
                "conntrack-tcp-timeout-close-wait",
                "nf_conntrack_tcp_timeout_close_wait",
                &self.conntrack_tcp_timeout_close_wait,
            ),
            (
                "conntrack-udp-timeout",
                "nf_conntrack_udp_timeout",
                &self.conntrack_udp_timeout,
            ),
            (
                "conntrack-udp-timeout-stream",
                "nf_conntrack_udp_timeout_stream",
                &self.conntrack_udp_timeout_stream,
            ),
        ] {
            let Some(text) = text else { continue };
            let seconds = seconds(text)
                .ok_or_else(|| invalid(flag, text, "write a duration such as 24h or 90s"))?;
            if seconds > 0 {
                settings.push(Setting::Value(file, seconds));
            }
        }
        if self.conntrack_tcp_be_liberal == Some(true) {
            settings.push(Setting::Value("nf_conntrack_tcp_be_liberal", 1));
        }
        Ok(settings)
    }

    /// `--bind-address`.
    pub(crate) fn bind_address(&self) -> Result<Option<IpAddr>, ConfigError> {
        let Some(text) = self.bind_address.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let addr = text.parse();
        addr.map(Some).map_err(|_no_address| {
            invalid(
                "bind-address",
                text,
                "is no address; write one of this node's",
            )
        })
    }

    /// What a person should know about flags without an effect.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(mode) = &self.ignored.proxy_mode
            && !MODES.contains(&mode.as_str())
        {
            warnings.push(format!("--proxy-mode {mode} is unknown"));
        }
        let given = self.ignored.given();
        if !given.is_empty() {
            warnings.push(format!("without effect here: --{}", given.join(", --")));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        // semantics 24.9
        for (text, expected) in [
            ("24h", Some(86_400)),
            ("1h30m", Some(5_400)),
            ("1.5s", Some(2)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("12", None),
            ("s", None),
            ("3d", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn only_conntrack_settings_that_were_given_are_written() {
        // semantics 24.9
        assert!(CompatArgs::default().conntrack().unwrap().is_empty());
        let flags = CompatArgs {
            conntrack_max_per_core: Some(0),
            conntrack_udp_timeout: Some("0s".into()),
            conntrack_tcp_timeout_established: Some("2h".into()),
            conntrack_tcp_be_liberal: Some(false),
            ..CompatArgs::default()
        };
        let established = "nf_conntrack_tcp_timeout_established";
        assert_eq!(
            flags.conntrack().unwrap(),
            [Setting::Value(established, 7200)]
        );
    }

    #[test]
    fn an_unknown_gate_is_a_warning() {
        // semantics 4.3, 24.14
        let mut warnings = Vec::new();
        let gates = [
            "Nonsense=true",
            "NFTablesNetlink=false",
            "AllowServiceExternalIPs=false",
        ];
        let gates = gates.map(String::from);
        assert!(!allows_external_ips(&gates, &mut warnings).unwrap());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(allows_external_ips(&[], &mut warnings).unwrap());
        assert!(allows_external_ips(&["AllowServiceExternalIPs".into()], &mut warnings).is_err());
    }

    #[test]
    fn a_detector_needs_what_it_detects_by() {
        // semantics 9.3, 24.6
        let cidr = Prefix {
            addr: "10.244.0.0".parse().unwrap(),
            len: 16,
        };
        let of =
            |mode, cidrs: &[Prefix], flags: &CompatArgs| LocalDetector::new(mode, cidrs, flags);
        let none = CompatArgs::default();
        assert_eq!(
            of(None, &[cidr], &none).unwrap(),
            LocalDetector::ByInterface
        );
        assert_eq!(
            of(Some("ClusterCIDR"), &[cidr], &none).unwrap(),
            LocalDetector::ClusterCidr(vec![cidr])
        );
        assert_eq!(
            of(Some("NodeCIDR"), &[], &none).unwrap(),
            LocalDetector::NodeCidr
        );
        assert!(of(Some("BridgeInterface"), &[], &none).is_err());
        assert!(of(Some("Guess"), &[], &none).is_err());
        let flags = CompatArgs {
            pod_bridge_interface: Some("cni0".into()),
            pod_interface_name_prefix: Some("cali".into()),
            ..none
        };
        let pattern = |mode| of(Some(mode), &[], &flags).unwrap().pod_pattern();
        assert_eq!(pattern("BridgeInterface").as_deref(), Some("cni0"));
        assert_eq!(pattern("InterfaceNamePrefix").as_deref(), Some("cali*"));
    }
}
