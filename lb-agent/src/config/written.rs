//! Flags → the `KubeProxyConfiguration` that says the same (semantics 24.1, 24.16): for `--write-config-to` and
//! `/configz`. Flags that are the agent's own have no field there.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Map, Value, json};

use super::{
    compat::switch,
    error::{ConfigError, invalid},
    flags::RunArgs,
    kube_proxy::{KIND, MAX_PER_CORE, MIN, VERSION},
    values::Config,
};

/// The configuration with the values that are in force. Reading it gives the same again.
pub(super) fn effective(
    args: &RunArgs,
    healthz: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
) -> Value {
    let compat = &args.compat;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let address = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string()).unwrap_or_default();
    let mode = text(&compat.ignored.proxy_mode);
    // kube-proxy reads the section of its mode only.
    let section = if mode == "nftables" {
        "nftables"
    } else {
        "iptables"
    };
    let gates: Map<String, Value> = compat
        .feature_gates
        .iter()
        .filter_map(|gate| gate.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), switch(value.trim()).into()))
        .collect();
    let kubeconfig = args
        .kubeconfig
        .as_ref()
        .map(|path| path.display().to_string());
    let duration = |value: &Option<String>| value.clone().unwrap_or_else(|| "0s".to_owned());
    // What was not given is left as the kernel has it.
    let per_core = match (compat.conntrack_max_per_core, compat.conntrack_min) {
        (None, None) => 0,
        (per_core, _) => per_core.unwrap_or(MAX_PER_CORE),
    };
    let mut config = json!({
        "apiVersion": VERSION,
        "kind": KIND,
        "bindAddress": text(&compat.bind_address),
        "bindAddressHardFail": compat.bind_address_hard_fail.unwrap_or(false),
        "clientConnection": { "kubeconfig": kubeconfig.unwrap_or_default() },
        "clusterCIDR": args.cluster_cidr.join(","),
        "conntrack": {
            "maxPerCore": per_core,
            "min": compat.conntrack_min.unwrap_or(MIN),
            "tcpEstablishedTimeout": duration(&compat.conntrack_tcp_timeout_established),
            "tcpCloseWaitTimeout": duration(&compat.conntrack_tcp_timeout_close_wait),
            "tcpBeLiberal": compat.conntrack_tcp_be_liberal.unwrap_or(false),
            "udpTimeout": duration(&compat.conntrack_udp_timeout),
            "udpStreamTimeout": duration(&compat.conntrack_udp_timeout_stream),
        },
        "detectLocalMode": text(&args.detect_local_mode),
        "detectLocal": {
            "bridgeInterface": text(&compat.pod_bridge_interface),
            "interfaceNamePrefix": text(&compat.pod_interface_name_prefix),
        },
        "featureGates": gates,
        "healthzBindAddress": address(healthz),
        "metricsBindAddress": address(metrics),
        "hostnameOverride": text(&args.hostname_override),
        "mode": mode,
        "nodePortAddresses": args.nodeport_addresses.split(',').map(str::trim).collect::<Vec<_>>(),
    });
    config[section] = json!({ "masqueradeAll": args.masquerade_all });
    if let Some(score) = compat.oom_score_adj {
        config["oomScoreAdj"] = score.into();
    }
    config
}

impl Config {
    /// Writes it as a KubeProxyConfiguration.
    pub(crate) fn write_to(&self, path: &Path) -> Result<(), ConfigError> {
        let failed = |error: &dyn std::fmt::Display| {
            invalid("write-config-to", path.display().to_string(), error)
        };
        let text = serde_yaml_ng::to_string(&self.effective).map_err(|error| failed(&error))?;
        fs::write(path, text).map_err(|error| failed(&error))
    }
}
