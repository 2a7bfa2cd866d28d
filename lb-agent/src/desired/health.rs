//! A Service and its slices → what its `healthCheckNodePort` answers (semantics 15).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    endpoints,
    node::{self, NodeView},
};
use crate::{
    kube::objects::{EndpointSlice, Service, ServiceType},
    net::IpFamily,
};

/// What a load balancer is to hear about a Service on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// Where it asks.
    pub port: u16,
    /// Distinct addresses of local, ready endpoints by family; `None` where the Service has no ClusterIP of the family.
    pub local: [Option<usize>; 2],
}

/// Whether the Service is one whose port load balancers ask (semantics 15.1).
pub(crate) fn is_asked(service: &Service) -> bool {
    service.kind == ServiceType::LoadBalancer && service.external_local
}

/// What its port answers; `None`: it has none.
pub(crate) fn check(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &NodeView,
) -> Option<HealthCheck> {
    if !is_asked(service) || service.health_check_node_port == 0 {
        return None;
    }
    let local = IpFamily::BOTH.map(|family| {
        service
            .cluster_ips
            .iter()
            .any(|addr| IpFamily::of(addr) == family)
            .then(|| local_ready(slices, family, &node.name))
    });
    Some(HealthCheck {
        port: service.health_check_node_port,
        local,
    })
}

/// Ports of slices count whether or not the Service has them (semantics 15.4).
fn local_ready(slices: &[Arc<EndpointSlice>], family: IpFamily, node: &str) -> usize {
    let ports: BTreeSet<_> = slices
        .iter()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| &slice.ports)
        .map(|port| (port.name.as_ref(), port.protocol))
        .collect();
    let addrs: BTreeSet<IpAddr> = ports
        .into_iter()
        .flat_map(|(name, protocol)| endpoints::of_port(slices, family, name, protocol, node))
        .filter(|candidate| candidate.local && candidate.source.ready)
        .map(|candidate| candidate.addr())
        .collect();
    addrs.len()
}

/// Where the ports are served in a family: on the addresses of NodePorts, and on any where those are all
/// (semantics 14.13, 15.2). Addresses of one link cannot be bound without naming it.
pub(crate) fn addresses(view: &NodeView, family: IpFamily) -> Vec<IpAddr> {
    if view.node_port_addresses.is_open(family) {
        return vec![node::unspecified(family)];
    }
    node::accepted(view, family)
        .into_iter()
        .filter(|addr| !node::is_link_local(addr))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::testing::node,
        kube::testing::{service, slice},
        net::Protocol,
    };

    fn asked() -> Service {
        Service {
            kind: ServiceType::LoadBalancer,
            external_local: true,
            health_check_node_port: 31_000,
            ..service("web")
        }
    }

    fn count(slices: &[Arc<EndpointSlice>]) -> [Option<usize>; 2] {
        check(&asked(), slices, &node()).unwrap().local
    }

    #[test]
    fn only_a_load_balancer_with_policy_local_and_a_port_is_asked() {
        // semantics 15.1
        assert!(check(&asked(), &[], &node()).is_some());
        for other in [
            Service {
                kind: ServiceType::NodePort,
                ..asked()
            },
            Service {
                external_local: false,
                ..asked()
            },
            Service {
                health_check_node_port: 0,
                ..asked()
            },
        ] {
            assert_eq!(check(&other, &[], &node()), None);
        }
    }

    #[test]
    fn distinct_addresses_of_local_ready_endpoints_count() {
        // semantics 15.4
        let two_ports = [("", 8080, Protocol::Tcp), ("unused", 9, Protocol::Udp)];
        let many = slice("web-1", "web")
            .ports(&two_ports)
            .endpoint("10.0.0.1 rs @node-a")
            .endpoint("10.0.0.2 rs @node-a")
            .endpoint("10.0.0.3 rs @node-b")
            .endpoint("10.0.0.4 st @node-a")
            .endpoint("10.0.0.5 - @node-a")
            .endpoint("10.0.0.6 rs")
            .arc();
        assert_eq!(count(&[many]), [Some(2), Some(0)]);
        // A port that the Service does not have.
        let unused = slice("web-2", "web")
            .ports(&two_ports[1..])
            .endpoint("10.0.0.7 rst @node-a")
            .arc();
        assert_eq!(count(&[unused]), [Some(1), Some(0)]);
    }

    #[test]
    fn serving_ones_that_terminate_carry_traffic_but_do_not_count() {
        // semantics 6.9, 15.4
        let leaving = slice("web-1", "web").endpoint("10.0.0.1 st @node-a").arc();
        assert_eq!(count(&[leaving])[0], Some(0));
    }

    #[test]
    fn a_family_without_a_cluster_ip_is_not_served() {
        // semantics 3.3, 15.2
        let mut single = asked();
        single.cluster_ips.truncate(1);
        let local = check(&single, &[], &node()).unwrap().local;
        assert_eq!(local, [Some(0), None]);
    }

    #[test]
    fn ports_are_served_where_node_ports_are() {
        // semantics 14.13, 15.2
        let served = |flag: &str, family| -> Vec<String> {
            let node = NodeView {
                node_port_addresses: flag.parse().unwrap(),
                ..node()
            };
            addresses(&node, family)
                .iter()
                .map(IpAddr::to_string)
                .collect()
        };
        assert_eq!(served("primary", IpFamily::V4), ["192.0.2.11"]);
        assert_eq!(served("all", IpFamily::V4), ["0.0.0.0"]);
        assert_eq!(served("192.0.2.0/24", IpFamily::V6), ["::"]);
        assert_eq!(
            served("127.0.0.0/8,192.0.2.0/24", IpFamily::V4),
            ["127.0.0.1", "127.0.0.2", "192.0.2.11"]
        );
        assert!(served("10.9.0.0/16", IpFamily::V4).is_empty());
        assert!(served("fe80::/10", IpFamily::V6).is_empty());
    }
}
