//! Rows of `/metrics` for each service port: its traffic, and what it lacks.

use std::collections::BTreeMap;

use lb_common::abi::ServiceStats;

use crate::{dataplane::LeftOut, desired::state::PortKey, exposition::Text};

/// A service port without room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lacking {
    /// The full map, where that is the reason.
    pub map: Option<&'static str>,
    /// What the log says.
    pub message: String,
    /// What is left out of a port that is served otherwise; `None`: what stood there before is served.
    pub left_out: Option<LeftOut>,
}

/// Appends traffic by service port; ports that never had any are left out.
pub(crate) fn render_services(out: &mut Text, services: &[(PortKey, ServiceStats)]) {
    type Count = fn(&ServiceStats) -> u64;
    let counts: [(&str, &str, Count); 3] = [
        (
            "lb_service_flows_total",
            "New flows of a service port.",
            |stats| stats.flows,
        ),
        (
            "lb_service_packets_total",
            "Packets of a service port, client to backend.",
            |stats| stats.packets,
        ),
        (
            "lb_service_bytes_total",
            "Bytes of a service port, client to backend.",
            |stats| stats.bytes,
        ),
    ];
    for (name, help, count) in counts {
        out.head(name, "counter", help);
        for (port, stats) in services {
            out.row(name, &port_labels(port), count(stats));
        }
    }
}

/// Appends service ports that are not, or not fully, served.
pub(crate) fn render_unserved(out: &mut Text, unserved: &BTreeMap<PortKey, Lacking>) {
    out.head(
        "lb_service_unserved",
        "gauge",
        "A service port that is not in the maps as wanted; map: the full one.",
    );
    for (port, lacking) in unserved {
        let map = [("map", lacking.map.unwrap_or_default())];
        let labels: Vec<_> = port_labels(port).into_iter().chain(map).collect();
        out.row("lb_service_unserved", &labels, 1);
    }
    out.head(
        "lb_service_endpoints_left_out",
        "gauge",
        "Endpoints of a service port that are not served because a map is full.",
    );
    for (port, lacking) in unserved {
        if let Some(left_out) = lacking.left_out {
            out.row(
                "lb_service_endpoints_left_out",
                &port_labels(port),
                left_out.endpoints,
            );
        }
    }
}

fn port_labels(port: &PortKey) -> [(&str, &str); 5] {
    [
        ("namespace", &port.name.namespace),
        ("service", &port.name.service),
        ("port", &port.name.port),
        ("protocol", port.name.protocol.name()),
        ("ip_family", port.family.name()),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::metrics::Metrics, *};
    use crate::{
        desired::state::ServicePortName,
        net::{IpFamily, Protocol},
    };

    fn port() -> PortKey {
        PortKey {
            name: ServicePortName {
                namespace: "shop".into(),
                service: "web".into(),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            family: IpFamily::V4,
        }
    }

    #[test]
    fn a_full_map_and_the_object_that_does_not_fit_are_named() {
        let metrics = Metrics::default();
        metrics.map_entries("services_v4", 4, 4);
        metrics.map_full("services_v4");
        assert!(metrics.ports_short(2) && !metrics.ports_short(2));
        let lacking = Lacking {
            map: Some("services_v4"),
            message: String::new(),
            left_out: Some(LeftOut {
                endpoints: 3,
                listed: 5,
                local: 1,
            }),
        };
        let mut out = Text::default();
        metrics.render(&mut out);
        render_unserved(&mut out, &BTreeMap::from([(port(), lacking)]));
        let out = out.into_string();
        for row in [
            "lb_map_entries{map=\"services_v4\"} 4\n",
            "lb_map_full_total{map=\"services_v4\"} 1\n",
            "lb_service_unserved{namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\",ip_family=\"IPv4\",map=\"services_v4\"} 1\n",
            "lb_service_endpoints_left_out{namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\",ip_family=\"IPv4\"} 3\n",
            "lb_service_ports_short 2\n",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
    }
}
