//! A Service and its slices → its service ports (semantics 3, 4, 12, 20).

use std::{net::IpAddr, sync::Arc};

use super::{
    affinity, endpoints, health,
    node::NodeView,
    policy,
    state::{Frontend, FrontendKindOrd, PortKey, ServicePort, ServicePortName},
};
use crate::{
    kube::objects::{EndpointSlice, Port, Service, ServiceType},
    net::{IpFamily, Prefix},
};

/// This node with what follows from it for every Service.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub node: NodeView,
    /// Where NodePorts are accepted, by family.
    pub node_ports: [Vec<IpAddr>; 2],
}

impl Context {
    /// Derives what follows from the node.
    pub(crate) fn new(node: NodeView) -> Self {
        let node_ports = IpFamily::BOTH.map(|family| super::node::accepted(&node, family));
        Context { node, node_ports }
    }
}

/// Addresses of a Service in one family.
struct Addresses {
    cluster_ip: IpAddr,
    external_ips: Vec<IpAddr>,
    load_balancer_ips: Vec<IpAddr>,
    source_ranges: Vec<Prefix>,
}

/// The service ports of a Service in every family, sorted by key. Their frontends are those that
/// they claim.
pub(crate) fn ports(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    context: &Context,
) -> Vec<ServicePort> {
    let mut ports = Vec::with_capacity(service.ports.len());
    if service.kind == ServiceType::ExternalName {
        return ports; // semantics 3.2
    }
    for family in IpFamily::BOTH {
        let Some(addresses) = addresses(service, family, &context.node) else {
            continue;
        };
        for port in &service.ports {
            ports.push(service_port(
                service, port, family, &addresses, slices, context,
            ));
        }
    }
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    ports.dedup_by(|a, b| a.key == b.key);
    ports
}

/// `None` where the Service has no ClusterIP of the family (semantics 3.1, 3.3).
fn addresses(service: &Service, family: IpFamily, node: &NodeView) -> Option<Addresses> {
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter()
            .copied()
            .filter(|addr| IpFamily::of(addr) == family)
            .collect()
    };
    let cluster_ip = of_family(&service.cluster_ips).first().copied()?;
    let load_balancer_ips = of_family(&service.load_balancer_ips);
    Some(Addresses {
        cluster_ip,
        external_ips: if node.allow_external_ips {
            of_family(&service.external_ips)
        } else {
            Vec::new()
        },
        source_ranges: source_ranges(
            &service.source_ranges,
            family,
            &load_balancer_ips,
            node.primary(family),
        ),
        load_balancer_ips,
    })
}

/// The prefixes that may use the load-balancer addresses; empty where everybody may.
pub(crate) fn source_ranges(
    ranges: &[Prefix],
    family: IpFamily,
    load_balancer_ips: &[IpAddr],
    primary: Option<IpAddr>,
) -> Vec<Prefix> {
    let mut allowed: Vec<Prefix> = ranges
        .iter()
        .copied()
        .filter(|prefix| IpFamily::of(&prefix.addr) == family)
        .collect();
    // semantics 4.5: a list of the other family only leaves this one unrestricted.
    if load_balancer_ips.is_empty() || allowed.iter().any(|prefix| prefix.len == 0) {
        return Vec::new();
    }
    // semantics 12.4: a node that has the address itself connects from it.
    if primary.is_some_and(|addr| allowed.iter().any(|range| range.contains(&addr))) {
        allowed.extend(load_balancer_ips.iter().copied().map(Prefix::host));
    }
    allowed.sort();
    allowed.dedup();
    allowed
}

fn service_port(
    service: &Service,
    port: &Port,
    family: IpFamily,
    addresses: &Addresses,
    slices: &[Arc<EndpointSlice>],
    context: &Context,
) -> ServicePort {
    let node = &context.node;
    // semantics 4.8
    let external = port.node_port != 0
        || !addresses.load_balancer_ips.is_empty()
        || !addresses.external_ips.is_empty();
    // semantics 4.7
    let external_local = service.external_local
        && (service.kind != ServiceType::ClusterIp
            || (node.allow_external_ips && !service.external_ips.is_empty()));
    let uses = policy::uses(service.internal_local, external_local, external);
    let candidates = endpoints::of_port(slices, family, &port.name, port.protocol, &node.name);
    let lists = policy::lists(&candidates, uses, &node.name, node.zone.as_deref());
    ServicePort {
        key: PortKey {
            name: ServicePortName {
                namespace: service.key.namespace.clone(),
                service: service.key.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            },
            family,
        },
        frontends: frontends(port, addresses, &context.node_ports[family.index()]),
        internal_local: service.internal_local,
        external_local,
        affinity_secs: affinity::secs(service),
        source_ranges: addresses.source_ranges.clone(),
        endpoints: lists.endpoints,
        has_endpoints: lists.has_endpoints,
        external,
    }
}

/// Every frontend that the port claims, sorted, no address and port twice.
fn frontends(port: &Port, addresses: &Addresses, node_ports: &[IpAddr]) -> Vec<Frontend> {
    let frontend = |addr: &IpAddr, port, kind| Frontend {
        addr: *addr,
        port,
        kind,
    };
    let mut found = vec![frontend(
        &addresses.cluster_ip,
        port.port,
        FrontendKindOrd::ClusterIp,
    )];
    let vips = addresses.load_balancer_ips.iter();
    found.extend(vips.map(|addr| frontend(addr, port.port, FrontendKindOrd::LoadBalancer)));
    let ips = addresses.external_ips.iter();
    found.extend(ips.map(|addr| frontend(addr, port.port, FrontendKindOrd::ExternalIp)));
    if port.node_port != 0 {
        let accepted = node_ports.iter();
        found
            .extend(accepted.map(|addr| frontend(addr, port.node_port, FrontendKindOrd::NodePort)));
    }
    // The lower kind comes first and stays.
    found.sort();
    found.dedup_by_key(|frontend| (frontend.addr, frontend.port));
    found
}

/// What a person should know about a Service that is served nevertheless.
pub(crate) fn problems(service: &Service) -> Vec<String> {
    let mut problems = service.skipped.clone();
    if health::is_asked(service) && service.health_check_node_port == 0 {
        // semantics 15.1
        problems.push(
            "spec.healthCheckNodePort: is 0, so a load balancer cannot ask where its endpoints are"
                .to_owned(),
        );
    }
    for family in IpFamily::BOTH {
        let is_of_family = |addr: &IpAddr| IpFamily::of(addr) == family;
        let open = service.load_balancer_ips.iter().any(is_of_family)
            && service.cluster_ips.iter().any(is_of_family)
            && !service.source_ranges.is_empty()
            && !service
                .source_ranges
                .iter()
                .any(|prefix| is_of_family(&prefix.addr));
        if open {
            // semantics 28.11
            problems.push(format!(
                "spec.loadBalancerSourceRanges: has no {} prefix, so {} is not restricted",
                family.name(),
                family.name()
            ));
        }
    }
    problems
}
