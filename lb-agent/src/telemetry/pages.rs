//! What kube-proxy's metrics port tells of the process: `/configz`, `/flagz`, `/statusz` and `/metrics/slis` (semantics
//! 16.11).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::exposition::Text;

/// Where the pages are.
pub(crate) const PATHS: [&str; 7] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/statusz",
];
const FOR_PEOPLE: &str = "For people who debug: the form may change at any time.";

/// What does not change while the agent runs.
#[derive(Debug)]
pub(crate) struct Pages {
    pub config: Value,
    /// Flags with their values.
    pub flags: Vec<(String, String)>,
    /// When the agent started.
    pub started: SystemTime,
}

impl Pages {
    /// The configuration by its API group, as every component of Kubernetes shows it.
    pub(crate) fn configz(&self) -> String {
        json!({ "kubeproxy.config.k8s.io": self.config }).to_string()
    }

    /// Every flag, one a line.
    pub(crate) fn flagz(&self) -> String {
        let flags = self.flags.iter();
        let lines: String = flags
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        format!("\nlb-agent flagz\n{FOR_PEOPLE}\n\n{lines}")
    }

    /// Version, age and pages.
    pub(crate) fn statusz(&self, now: SystemTime) -> String {
        let up = now.duration_since(self.started).unwrap_or(Duration::ZERO);
        let up = up.as_secs();
        format!(
            "\nlb-agent statusz\n{FOR_PEOPLE}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\nPaths: {}\n",
            crate::clock::rfc3339(Some(self.started)),
            up / 3600,
            up / 60 % 60,
            up % 60,
            env!("CARGO_PKG_VERSION"),
            PATHS.join(" "),
        )
    }
}

/// Answers of the metrics port's `/healthz`, its only health check.
#[derive(Debug, Default)]
pub(crate) struct Pings(AtomicU64);

impl Pings {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// `/metrics/slis`.
    pub(crate) fn slis(&self) -> String {
        let mut out = Text::default();
        let check = ("name", "ping");
        let name = "kubernetes_healthcheck";
        out.head(name, "gauge", "Whether a health check succeeds.");
        out.row(name, &[check, ("type", "healthz")], 1);
        let name = "kubernetes_healthchecks_total";
        out.head(name, "counter", "Health checks by result.");
        let labels = [check, ("status", "success"), ("type", "healthz")];
        out.row(name, &labels, self.0.load(Ordering::Relaxed));
        out.into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages {
        Pages {
            config: json!({ "mode": "nftables" }),
            flags: vec![
                ("xdp".into(), "off".into()),
                ("cleanup".into(), "false".into()),
            ],
            started: SystemTime::UNIX_EPOCH,
        }
    }

    // semantics 16.11
    #[test]
    fn the_process_tells_its_configuration_flags_and_age() {
        let pages = pages();
        let config: Value = serde_json::from_str(&pages.configz()).unwrap();
        assert_eq!(config["kubeproxy.config.k8s.io"]["mode"], "nftables");
        assert!(pages.flagz().ends_with("\n\nxdp=off\ncleanup=false\n"));
        let status = pages.statusz(SystemTime::UNIX_EPOCH + Duration::from_secs(3_725));
        for part in [
            "Started: 1970-01-01T00:00:00Z\n",
            "Up: 1 hr 02 min 05 sec\n",
            "/flagz",
        ] {
            assert!(status.contains(part), "{part} in {status}");
        }
    }

    // semantics 16.11, 23
    #[test]
    fn the_health_check_of_the_metrics_port_is_counted() {
        let pings = Pings::default();
        pings.count();
        let out = pings.slis();
        for row in [
            "# TYPE kubernetes_healthcheck gauge\n",
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
    }
}
