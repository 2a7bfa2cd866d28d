//! A `KubeProxyConfiguration` → flags (semantics 24.1, 24.16). It is read once, at start: the agent ends when it changes.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    compat::CompatArgs,
    error::{ConfigError, invalid},
    flags::RunArgs,
};

pub(super) const KIND: &str = "KubeProxyConfiguration";
pub(super) const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// What kube-proxy sets in the kernel's conntrack unless told otherwise (semantics 24.9).
pub(super) const MAX_PER_CORE: u32 = 32_768;
pub(super) const MIN: u32 = 131_072;
const ESTABLISHED: &str = "24h";
const CLOSE_WAIT: &str = "1h";

/// Fields without a meaning here, beside those of [`File`].
const WITHOUT_EFFECT: [&str; 7] = [
    "logging",
    "enableProfiling",
    "showHiddenMetricsForVersion",
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
    "winkernel",
];

/// Every field of the sections; those above are not looked into.
const SECTIONS: [(&str, &[&str]); 6] = [
    (
        "clientConnection",
        &[
            "kubeconfig",
            "acceptContentTypes",
            "contentType",
            "qps",
            "burst",
        ],
    ),
    (
        "iptables",
        &[
            "masqueradeBit",
            "masqueradeAll",
            "localhostNodePorts",
            "syncPeriod",
            "minSyncPeriod",
        ],
    ),
    (
        "ipvs",
        &[
            "syncPeriod",
            "minSyncPeriod",
            "scheduler",
            "excludeCIDRs",
            "strictARP",
            "tcpTimeout",
            "tcpFinTimeout",
            "udpTimeout",
        ],
    ),
    (
        "nftables",
        &[
            "masqueradeBit",
            "masqueradeAll",
            "syncPeriod",
            "minSyncPeriod",
        ],
    ),
    ("detectLocal", &["bridgeInterface", "interfaceNamePrefix"]),
    (
        "conntrack",
        &[
            "maxPerCore",
            "min",
            "tcpEstablishedTimeout",
            "tcpCloseWaitTimeout",
            "tcpBeLiberal",
            "udpTimeout",
            "udpStreamTimeout",
        ],
    ),
];

/// Top-level fields that are read.
const FIELDS: [&str; 13] = [
    "kind",
    "apiVersion",
    "featureGates",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "mode",
    "detectLocalMode",
    "clusterCIDR",
    "nodePortAddresses",
    "oomScoreAdj",
];

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct File {
    feature_gates: Option<BTreeMap<String, bool>>,
    client_connection: Option<ClientConnection>,
    hostname_override: Option<String>,
    bind_address: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    bind_address_hard_fail: Option<bool>,
    mode: Option<String>,
    iptables: Option<Mode>,
    nftables: Option<Mode>,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    oom_score_adj: Option<i32>,
    conntrack: Option<Conntrack>,
}

#[derive(Deserialize, Debug)]
struct ClientConnection {
    kubeconfig: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Mode {
    masquerade_all: Option<bool>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct Conntrack {
    max_per_core: Option<u32>,
    min: Option<u32>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
}

/// Takes a file over into flags and tells what a person should know about it. As with kube-proxy the file goes before
/// flags of the same meaning, but for the node's name and the way to the API server. Gives its text, too.
pub(super) fn read(path: &Path, args: &mut RunArgs) -> Result<(String, Vec<String>), ConfigError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| invalid("config", &name, error))?;
    let warnings = take(&text, args).map_err(|problem| invalid("config", name, problem))?;
    Ok((text, warnings))
}

fn take(text: &str, args: &mut RunArgs) -> Result<Vec<String>, String> {
    let object: Map<String, Value> =
        serde_yaml_ng::from_str(text).map_err(|error| format!("is no YAML object: {error}"))?;
    for (field, wanted) in [("kind", KIND), ("apiVersion", VERSION)] {
        let found = object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if found != wanted {
            return Err(format!("{field} is `{found}`; write {wanted}"));
        }
    }
    let mut warnings = warnings(&object);
    let file: File = serde_path_to_error::deserialize(Value::Object(object))
        .map_err(|error| format!("{}: {}", error.path(), error.inner()))?;
    warnings.extend(file.other_addresses());
    if args.compat.healthz_port.take().is_some() | args.compat.metrics_port.take().is_some() {
        warnings.push(String::from(
            "--healthz-port and --metrics-port are without effect beside --config",
        ));
    }
    file.apply(args);
    Ok(warnings)
}

/// Fields that nobody knows, which are skipped, and those without a meaning here.
fn warnings(object: &Map<String, Value>) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut idle = Vec::new();
    for (field, value) in object {
        let field = field.as_str();
        if WITHOUT_EFFECT.contains(&field) {
            if says_something(value) {
                idle.push(field);
            }
        } else if let Some((_, known)) = SECTIONS.iter().find(|(section, _)| *section == field) {
            let given = value.as_object().into_iter().flat_map(Map::keys);
            let new = given.filter(|name| !known.contains(&name.as_str()));
            unknown.extend(new.map(|name| format!("{field}.{name}")));
        } else if !FIELDS.contains(&field) {
            unknown.push(field.to_owned());
        }
    }
    let mut warnings = Vec::new();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        warnings.push(format!(
            "--config: unknown and ignored: {unknown}; is it a typing error?"
        ));
    }
    if !idle.is_empty() {
        warnings.push(format!(
            "--config: without effect here: {}",
            idle.join(", ")
        ));
    }
    warnings
}

/// Whether a value differs from none: kubeadm writes every field.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(values) => values.iter().any(says_something),
        Value::Object(fields) => fields.values().any(says_something),
    }
}

/// Puts a value that the file gives into a flag. An empty text means the default.
fn put(flag: &mut Option<String>, value: Option<String>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        *flag = Some(value);
    }
}

fn put_copy<T>(flag: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *flag = value;
    }
}

impl File {
    /// NodePorts at fewer addresses than kube-proxy has them with the same file (semantics 14.2).
    fn other_addresses(&self) -> Option<String> {
        let mode = self.mode.as_deref().unwrap_or_default();
        let is_unset = self.node_port_addresses.as_ref().is_none_or(Vec::is_empty);
        (is_unset && mode != "nftables").then(|| {
            String::from(
                "--config: nodePortAddresses is not set: NodePorts are served at the node's primary addresses, not at all of them; write [all] for these",
            )
        })
    }

    fn apply(self, args: &mut RunArgs) {
        let mode = self.mode.unwrap_or_default();
        let section = if mode == "nftables" {
            self.nftables
        } else {
            self.iptables
        };
        if let Some(all) = section.and_then(|section| section.masquerade_all) {
            args.masquerade_all = all;
        }
        put(&mut args.compat.ignored.proxy_mode, Some(mode));
        if args.hostname_override.is_none() {
            put(&mut args.hostname_override, self.hostname_override);
        }
        let kubeconfig = self.client_connection.and_then(|client| client.kubeconfig);
        if args.kubeconfig.is_none() && args.manifests.is_none() {
            let named = kubeconfig.filter(|path| !path.is_empty());
            args.kubeconfig = named.map(Into::into);
        }
        put(&mut args.healthz_bind_address, self.healthz_bind_address);
        put(&mut args.metrics_bind_address, self.metrics_bind_address);
        if let Some(cidrs) = self.cluster_cidr.filter(|cidrs| !cidrs.is_empty()) {
            args.cluster_cidr = cidrs.split(',').map(str::to_owned).collect();
        }
        if let Some(addresses) = self.node_port_addresses.filter(|list| !list.is_empty()) {
            args.nodeport_addresses = addresses.join(",");
        }
        put(&mut args.detect_local_mode, self.detect_local_mode);
        let compat = &mut args.compat;
        if let Some(gates) = self.feature_gates {
            let gates = gates.into_iter();
            compat.feature_gates = gates.map(|(name, on)| format!("{name}={on}")).collect();
        }
        put(&mut compat.bind_address, self.bind_address);
        put_copy(
            &mut compat.bind_address_hard_fail,
            self.bind_address_hard_fail,
        );
        put_copy(&mut compat.oom_score_adj, self.oom_score_adj);
        if let Some(detect) = self.detect_local {
            put(&mut compat.pod_bridge_interface, detect.bridge_interface);
            put(
                &mut compat.pod_interface_name_prefix,
                detect.interface_name_prefix,
            );
        }
        self.conntrack.unwrap_or_default().apply(compat);
    }
}

impl Conntrack {
    /// Fields that are not set mean kube-proxy's defaults, where no flag says otherwise.
    fn apply(self, compat: &mut CompatArgs) {
        let (max, min) = (
            &mut compat.conntrack_max_per_core,
            &mut compat.conntrack_min,
        );
        *max = self.max_per_core.or(*max).or(Some(MAX_PER_CORE));
        *min = self.min.or(*min).or(Some(MIN));
        put_copy(&mut compat.conntrack_tcp_be_liberal, self.tcp_be_liberal);
        for (flag, value, default) in [
            (
                &mut compat.conntrack_tcp_timeout_established,
                self.tcp_established_timeout,
                Some(ESTABLISHED),
            ),
            (
                &mut compat.conntrack_tcp_timeout_close_wait,
                self.tcp_close_wait_timeout,
                Some(CLOSE_WAIT),
            ),
            (&mut compat.conntrack_udp_timeout, self.udp_timeout, None),
            (
                &mut compat.conntrack_udp_timeout_stream,
                self.udp_stream_timeout,
                None,
            ),
        ] {
            put(flag, value);
            if flag.is_none() {
                *flag = default.map(str::to_owned);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{config::conntrack::Setting, temp_dir::TempDir};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn args(flags: &[&str]) -> RunArgs {
        let line = ["lb-agent", "--manifests", "/"].iter().chain(flags);
        Line::try_parse_from(line).unwrap().run
    }

    fn file(rest: &str) -> String {
        format!("kind: {KIND}\napiVersion: {VERSION}\n{rest}")
    }

    #[test]
    fn fields_take_the_place_of_flags() {
        // semantics 24.1, 24.16
        let mut args = args(&[
            "--hostname-override",
            "by-flag",
            "--nodeport-addresses",
            "all",
        ]);
        let text = file(
            "hostnameOverride: by-file\nclusterCIDR: 10.244.0.0/16,fd00::/48\nnodePortAddresses: [192.0.2.0/24, localhost]\n\
             mode: nftables\niptables: {masqueradeAll: false}\nnftables: {masqueradeAll: true}\nhealthzBindAddress: ''\n\
             metricsBindAddress: 0.0.0.0:1\nfeatureGates: {AllowServiceExternalIPs: false}\noomScoreAdj: -5\n\
             conntrack: {maxPerCore: null, tcpEstablishedTimeout: 24h0m0s}\n",
        );
        assert_eq!(take(&text, &mut args).unwrap(), Vec::<String>::new());
        let config = args.validate().unwrap();
        assert_eq!(config.node_name, "by-flag");
        assert_eq!(config.cluster_cidrs.len(), 2);
        assert_eq!(
            config.node_port_addresses,
            "192.0.2.0/24,localhost".parse().unwrap()
        );
        assert!(config.masquerade_all && !config.allow_external_ips);
        let ports = [config.healthz, config.metrics].map(|addr| addr.unwrap().port());
        assert_eq!(ports, [10256, 1]);
        assert_eq!(config.oom_score_adj, Some(-5));
        assert_eq!(config.conntrack.len(), 3);
    }

    // semantics 24.9, 24.16
    #[test]
    fn conntrack_is_set_as_kube_proxy_does_unless_the_file_says_otherwise() {
        let settings = |flags: &[&str], text: &str| {
            let mut args = args(flags);
            take(&file(text), &mut args).unwrap();
            args.compat.conntrack().unwrap()
        };
        let [established, close_wait] = [
            "nf_conntrack_tcp_timeout_established",
            "nf_conntrack_tcp_timeout_close_wait",
        ];
        assert_eq!(
            settings(&[], ""),
            [
                Setting::Max(32_768, 131_072),
                Setting::Value(established, 86_400),
                Setting::Value(close_wait, 3_600),
            ]
        );
        let text =
            "conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: null}";
        let flag = ["--conntrack-tcp-timeout-established=2h"];
        assert_eq!(settings(&flag, text), [Setting::Value(established, 7_200)]);
    }

    // semantics 24.1, 24.16
    #[test]
    fn a_written_configuration_reads_as_what_it_was_written_from() {
        let flags = [
            "--bind-address=192.0.2.1",
            "--nodeport-addresses=192.0.2.0/24,primary",
            "--feature-gates=AllowServiceExternalIPs=false",
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface=cni0",
            "--conntrack-tcp-timeout-close-wait=1h",
            "--proxy-mode=nftables",
            "--masquerade-all",
            "--oom-score-adj=-5",
            "--metrics-bind-address=0.0.0.0",
        ];
        for flags in [&flags[..], &[]] {
            let given = args(flags).validate().unwrap();
            let dir = TempDir::new();
            let path = dir.path().join("config.yaml");
            given.write_to(&path).unwrap();
            let config = path.display().to_string();
            let read = args(&["--config", &config]).validate().unwrap();
            assert_eq!(read.effective, given.effective);
            assert_eq!(read.conntrack, given.conntrack);
            assert!(read.file.is_some());
        }
        let missing = Path::new("/nonexistent/c");
        let error = args(&[]).validate().unwrap().write_to(missing);
        assert!(error.unwrap_err().to_string().contains("/nonexistent/c"));
    }

    // semantics 24.13, 24.16
    #[test]
    fn a_file_as_kubeadm_writes_it_says_nothing_unusual() {
        let text = file(
            "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclusterCIDR: 10.244.0.0/16\nconfigSyncPeriod: 0s\n\
             clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', kubeconfig: /k/kubeconfig.conf, qps: 0}\n\
             conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null,\n  \
             tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}\n\
             detectLocal: {bridgeInterface: '', interfaceNamePrefix: ''}\ndetectLocalMode: ''\nenableProfiling: false\n\
             healthzBindAddress: ''\nhostnameOverride: ''\nmetricsBindAddress: ''\nmode: iptables\nnodePortAddresses: null\n\
             iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}\n\
             ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: '', strictARP: false, syncPeriod: 0s, tcpTimeout: 0s}\n\
             nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}\n\
             logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}, verbosity: 0}\n\
             oomScoreAdj: null\nportRange: ''\nshowHiddenMetricsForVersion: ''\n\
             winkernel: {enableDSR: false, networkName: '', sourceVip: ''}\n",
        );
        let mut args = args(&["--metrics-bind-address=0.0.0.0:10249"]);
        args.manifests = None;
        let said = take(&text, &mut args).unwrap();
        // Only that NodePorts are served at fewer addresses.
        assert!(
            said.len() == 1 && said[0].contains("nodePortAddresses"),
            "{said:?}"
        );
        let config = args.validate().unwrap();
        assert_eq!(config.metrics.unwrap().to_string(), "0.0.0.0:10249");
        assert_eq!((config.conntrack.len(), config.bind_address), (3, None));
        assert_eq!(args.kubeconfig, Some("/k/kubeconfig.conf".into()));
        let mode = "without effect here: --proxy-mode";
        assert_eq!(config.warnings, [mode]);
    }

    // semantics 24.4
    #[test]
    fn old_port_flags_are_not_heard_beside_a_file() {
        let mut args = args(&["--healthz-port=0", "--metrics-port=0"]);
        let said = take(&file("mode: nftables\n"), &mut args).unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        let config = args.validate().unwrap();
        assert!(config.healthz.is_some() && config.metrics.is_some());
    }

    // semantics 14.2, 24.12
    #[test]
    fn a_file_without_node_port_addresses_is_a_warning() {
        for (text, warns) in [
            ("mode: iptables\n", true),
            ("nodePortAddresses: []\n", true),
            ("mode: nftables\n", false),
            ("nodePortAddresses: [primary]\n", false),
        ] {
            let said = take(&file(text), &mut args(&[])).unwrap();
            assert_eq!(said.len(), usize::from(warns), "{text}: {said:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_a_warning_and_a_wrong_value_is_named() {
        // semantics 24.1
        let text = file("colour: blue\nconntrack: {mix: 1, min: 2}\nportRange: 1-2\n");
        let text = text + "mode: nftables\n";
        let warnings = take(&text, &mut args(&[])).unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("colour") && warnings[0].contains("conntrack.mix"));
        assert!(warnings[1].contains("portRange"));
        let error = take(&file("conntrack: {min: many}\n"), &mut args(&[])).unwrap_err();
        assert!(error.contains("conntrack.min"), "{error}");
    }

    #[test]
    fn another_kind_or_version_is_refused() {
        // semantics 24.1
        for (from, to) in [(KIND, "KubeletConfiguration"), ("v1alpha1", "v1")] {
            let text = file("").replace(from, to);
            assert!(take(&text, &mut args(&[])).unwrap_err().contains(to));
        }
        assert!(take("- 1", &mut args(&[])).is_err());
    }
}
