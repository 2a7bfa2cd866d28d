//! Paths → pages: of the health port, of the metrics port (semantics 16).

use std::{
    sync::atomic::Ordering,
    time::{Instant, SystemTime},
};

use super::{http::Answer, lock::lock, shared::Shared};
use crate::{
    bpf::maps::MapResult,
    error::chain,
    exposition::Text,
    telemetry::{
        process::{render_build, render_gates, render_process},
        services::{render_services, render_unserved},
    },
};

/// Most service ports that `/readyz` names.
const SHOWN: usize = 20;

impl Shared {
    pub(super) fn answer_health(&self, path: &str) -> Answer {
        let with_node = path == "/healthz";
        match path {
            "/healthz" | "/livez" => {
                let (code, body) = self.health(Instant::now(), SystemTime::now(), with_node);
                let answers = if with_node {
                    &self.healthz
                } else {
                    &self.livez
                };
                answers[usize::from(code != 200)].fetch_add(1, Ordering::Relaxed);
                Answer::json(code, body.to_string())
            }
            "/readyz" if self.ready.load(Ordering::Acquire) => {
                Answer::text(200, &self.ready_text())
            }
            "/readyz" => Answer::text(503, "the first complete state is not in the maps yet"),
            _ => Answer::text(404, "not found"),
        }
    }

    /// A node that has no room for something is ready, and says what it lacks: another start would not find more.
    fn ready_text(&self) -> String {
        let unserved = self.board.unserved();
        if unserved.is_empty() {
            return "ok".to_owned();
        }
        let head = format!(
            "ok, but {} service ports are not, or not wholly, served",
            unserved.len()
        );
        let messages = unserved
            .values()
            .take(SHOWN)
            .map(|lacking| &lacking.message);
        std::iter::once(&head)
            .chain(messages)
            .fold(String::new(), |text, line| text + line + "\n")
    }

    pub(super) fn answer_metrics(&self, path: &str) -> Answer {
        match (path, self.pages.get()) {
            ("/healthz", _) => {
                self.pings.count();
                Answer::text(200, "ok")
            }
            ("/proxyMode", _) => Answer::text(200, "ebpf"),
            ("/metrics", _) => match self.page() {
                Ok(body) => Answer::metrics(body),
                Err(error) => Answer::text(500, &chain(&error)),
            },
            ("/metrics/slis", _) => Answer::metrics(self.pings.slis()),
            ("/configz", Some(pages)) => Answer::json(200, pages.configz()),
            ("/flagz", Some(pages)) => Answer::text(200, &pages.flagz()),
            ("/statusz", Some(pages)) => Answer::text(200, &pages.statusz(SystemTime::now())),
            _ => Answer::text(404, "not found"),
        }
    }

    pub(super) fn page(&self) -> MapResult<String> {
        let mut out = Text::default();
        self.metrics.render(&mut out);
        self.api.render(&mut out);
        for (name, answers) in [
            ("kubeproxy_proxy_healthz_total", &self.healthz),
            ("kubeproxy_proxy_livez_total", &self.livez),
        ] {
            out.head(name, "counter", "Answers by status code.");
            for (code, count) in ["200", "503"].into_iter().zip(answers) {
                out.row(name, &[("code", code)], count.load(Ordering::Relaxed));
            }
        }
        out.head(
            "lb_manifest_errors",
            "gauge",
            "Manifest files that cannot be used.",
        );
        out.row(
            "lb_manifest_errors",
            &[],
            self.board.manifest_problems().len(),
        );
        let interfaces = self.board.interfaces();
        out.head(
            "lb_interfaces",
            "gauge",
            "Interfaces by how they are served: by tc and XDP, by tc alone, or not.",
        );
        for state in ["tc+xdp", "tc", "failed"] {
            let count = interfaces
                .iter()
                .filter(|interface| interface.state() == state)
                .count();
            out.row("lb_interfaces", &[("state", state)], count);
        }
        render_unserved(&mut out, &self.board.unserved());
        if let Some(counters) = &*lock(&self.counters) {
            counters.read()?.render(&mut out);
            let mut services = Vec::new();
            for (port, id) in self.board.names() {
                let stats = counters.service(id)?;
                if stats.packets + stats.flows > 0 {
                    services.push((port, stats));
                }
            }
            render_services(&mut out, &services);
        }
        render_process(&mut out);
        render_build(&mut out);
        if let Some(pages) = self.pages.get() {
            render_gates(&mut out, &pages.config["featureGates"]);
        }
        Ok(out.into_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        desired::state::{PortKey, ServicePortName},
        net::{IpFamily, Protocol},
        telemetry::{
            pages::{PATHS, Pages},
            services::Lacking,
        },
    };

    // semantics 16.1, 16.4
    #[test]
    fn before_the_first_state_it_is_alive_but_gets_no_traffic() {
        let shared = Shared::default();
        let answers = || {
            ["/livez", "/healthz", "/readyz"].map(|path| {
                let answer = shared.answer_health(path);
                let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
                (answer.code, body["healthy"].as_bool())
            })
        };
        let live = (200, Some(true));
        assert_eq!(answers(), [live, (503, Some(false)), (503, None)]);
        // What an earlier agent left.
        shared.set_serving();
        assert_eq!(answers(), [live, live, (503, None)]);
        shared.set_ready();
        assert_eq!(answers(), [live, live, (200, None)]);
    }

    #[test]
    fn a_ready_node_says_what_it_has_no_room_for() {
        let shared = Shared::default();
        shared.set_ready();
        assert_eq!(shared.answer_health("/readyz").body, "ok");
        let port = PortKey {
            name: ServicePortName {
                namespace: "shop".into(),
                service: "web".into(),
                port: "".into(),
                protocol: Protocol::Tcp,
            },
            family: IpFamily::V4,
        };
        let lacking = Lacking {
            map: Some("backends_v4"),
            message: "1 of 2 endpoints of service port shop/web/TCP".to_owned(),
            left_out: None,
        };
        shared
            .board
            .set_unserved(&BTreeMap::from([(port, lacking)]));
        let answer = shared.answer_health("/readyz");
        assert_eq!(answer.code, 200);
        assert!(
            answer.body.starts_with("ok, but 1 service ports"),
            "{}",
            answer.body
        );
        assert!(answer.body.contains("shop/web/TCP\n"), "{}", answer.body);
    }

    // semantics 16.8
    #[test]
    fn health_answers_are_json_that_is_not_guessed_at() {
        let answer = Shared::default().answer_health("/livez").bytes(false);
        let text = String::from_utf8(answer).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        for line in [
            "HTTP/1.1 200 OK",
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
        ] {
            assert!(head.lines().any(|has| has == line), "{line} in {head}");
        }
        assert!(!head.contains("Weight"), "{head}");
    }

    // semantics 16.11
    #[test]
    fn the_metrics_port_has_the_pages_of_kube_proxy() {
        let shared = Shared::default();
        let page = |path: &str| shared.answer_metrics(path);
        assert_eq!(page("/configz").code, 404, "nothing is known yet");
        let pages = Pages {
            config: json!({ "featureGates": { "AllowServiceExternalIPs": false } }),
            flags: Vec::new(),
            started: SystemTime::now(),
        };
        shared.pages.set(pages).unwrap();
        for path in PATHS {
            assert_eq!(page(path).code, 200, "{path}");
        }
        assert_eq!(page("/configz").kind, "application/json");
        assert_eq!(page("/proxyMode").body, "ebpf");
        assert!(page("/metrics/slis").body.contains("} 1\n"));
        for path in ["/", "/livez", "/readyz", "/debug/pprof/"] {
            assert_eq!(page(path).code, 404, "{path}");
        }
    }

    // semantics 23
    #[test]
    fn answers_are_counted_by_code() {
        let shared = Shared::default();
        shared.set_serving();
        shared.answer_health("/healthz");
        shared.answer_health("/livez");
        shared.set_eligible(false);
        shared.answer_health("/healthz");
        let page = shared.page().unwrap();
        for row in [
            "# TYPE kubeproxy_proxy_healthz_total counter\n",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1\n",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1\n",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1\n",
            "kubeproxy_proxy_livez_total{code=\"503\"} 0\n",
        ] {
            assert!(page.contains(row), "{row} in {page}");
        }
    }
}
