//! Every metric of kube-proxy: exposed with its type and labels, or a known limit.

use std::time::SystemTime;

use serde_json::Value;

use super::shared::Shared;
use crate::telemetry::pages::Pages;

/// Of kube-proxy's names: type and labels.
const EXPOSED: [(&str, &str, &[&str]); 21] = [
    (
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family", "le"],
    ),
    (
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family", "le"],
    ),
    (
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family", "le"],
    ),
    (
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "gauge",
        &["ip_family"],
    ),
    (
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "gauge",
        &["ip_family"],
    ),
    (
        "kubeproxy_network_programming_duration_seconds",
        "histogram",
        &["ip_family", "le"],
    ),
    (
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "gauge",
        &[],
    ),
    (
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "counter",
        &[],
    ),
    (
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "gauge",
        &[],
    ),
    (
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "counter",
        &[],
    ),
    (
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "gauge",
        &["traffic_policy", "ip_family"],
    ),
    ("kubeproxy_proxy_healthz_total", "counter", &["code"]),
    ("kubeproxy_proxy_livez_total", "counter", &["code"]),
    (
        "rest_client_requests_total",
        "counter",
        &["code", "method", "host"],
    ),
    ("kubernetes_feature_enabled", "gauge", &["name", "stage"]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
];
/// Those that would have nothing to say; docs/limits.md has the reason.
const ABSENT: [&str; 8] = [
    "conntrack_reconciler_",
    "sync_proxy_rules_iptables_",
    "sync_proxy_rules_nftables_",
    "iptables_ct_state_invalid_dropped_packets_total",
    "iptables_localhost_nodeports_accepted_packets_total",
    "nftables_localhost_nodeport_",
    "kubernetes_build_info",
    "go_",
];

// semantics 23, 23.2, 23.3, 23.4
#[test]
fn every_name_of_kube_proxy_is_exposed_or_a_known_limit() {
    let shared = Shared::default();
    shared.api.connect("192.0.2.1:6443");
    shared.api.answered("GET", Some(200));
    let pages = Pages {
        config: Value::Null,
        flags: Vec::new(),
        started: SystemTime::now(),
    };
    shared.pages.set(pages).unwrap();
    let page = shared.page().unwrap();
    for (name, kind, labels) in EXPOSED {
        assert!(
            page.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} in {page}"
        );
        let sample = if kind == "histogram" {
            format!("{name}_bucket")
        } else {
            name.into()
        };
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(sample.as_str());
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let samples: Vec<_> = page.lines().filter(is_sample).collect();
        assert!(!samples.is_empty(), "{name} in {page}");
        for sample in &samples {
            let inside = sample.split_once('{').map_or("", |(_, rest)| rest);
            let names = inside
                .split("\",")
                .filter_map(|label| label.split_once("=\""));
            let names: Vec<_> = names.map(|(name, _)| name).collect();
            assert_eq!(names, labels, "{sample}");
        }
        if labels.contains(&"ip_family") {
            for family in ["IPv4", "IPv6"] {
                let family = format!("ip_family=\"{family}\"");
                assert!(
                    samples.iter().any(|sample| sample.contains(&family)),
                    "{name}"
                );
            }
        }
    }
    let limits = include_str!("../../../docs/limits.md");
    for name in ABSENT {
        let row =
            |line: &str| line.starts_with(name) || line.starts_with(&format!("kubeproxy_{name}"));
        assert!(!page.lines().any(row), "{name}");
        assert!(
            limits.contains(&format!("`{name}")),
            "{name} in docs/limits.md"
        );
    }
}
