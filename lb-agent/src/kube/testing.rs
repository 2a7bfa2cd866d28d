//! Objects for tests.

use std::sync::Arc;

use super::objects::{
    EndpointSlice, Key, Placement, Port, Service, ServiceType, SliceEndpoint, SlicePort,
};
use crate::net::{IpFamily, Protocol};

/// A dual-stack Service with port 80/TCP.
pub(crate) fn service(name: &str) -> Service {
    Service {
        key: Key::new("default", name),
        created_ns: None,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![
            "10.96.0.10".parse().unwrap(),
            "fd00:10:96::10".parse().unwrap(),
        ],
        ports: vec![port("", 80, Protocol::Tcp)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        internal_local: false,
        external_local: false,
        client_ip_affinity: None,
        health_check_node_port: 0,
        skipped: Vec::new(),
    }
}

pub(crate) fn port(name: &str, port: u16, protocol: Protocol) -> Port {
    Port {
        name: name.into(),
        protocol,
        port,
        node_port: 0,
    }
}

pub(crate) struct SliceBuilder(EndpointSlice);

/// An IPv4 slice with the unnamed port 8080/TCP and no endpoints.
pub(crate) fn slice(name: &str, service: &str) -> SliceBuilder {
    SliceBuilder(EndpointSlice {
        key: Key::new("default", name),
        service: service.into(),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: Vec::new(),
    })
}

impl SliceBuilder {
    pub(crate) fn ports(mut self, ports: &[(&str, u16, Protocol)]) -> Self {
        self.0.ports = ports
            .iter()
            .map(|(name, port, protocol)| SlicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
            })
            .collect();
        self
    }
    /// Adds an endpoint; see [`endpoint`].
    pub(crate) fn endpoint(mut self, text: &str) -> Self {
        self.0.endpoints.push(endpoint(text));
        self.0.family = IpFamily::of(&self.0.endpoints[0].addr);
        self
    }
    pub(crate) fn build(self) -> EndpointSlice {
        self.0
    }
    pub(crate) fn arc(self) -> Arc<EndpointSlice> {
        Arc::new(self.0)
    }
}

/// An endpoint from words: its address, conditions as letters (`r`eady, `s`erving, `t`erminating,
/// `-` none), then `@node`, `zone=a,b` and `node=a,b` hints.
pub(crate) fn endpoint(text: &str) -> SliceEndpoint {
    let mut words = text.split_whitespace();
    let addr = words.next().unwrap().parse().unwrap();
    let conditions = words.next().unwrap();
    let mut placement = Placement::default();
    let names = |list: &str| list.split(',').map(Arc::from).collect();
    for word in words {
        match word.split_once('=') {
            Some(("zone", list)) => placement.for_zones = names(list),
            Some(("node", list)) => placement.for_nodes = names(list),
            _ => placement.node = Some(word.trim_start_matches('@').into()),
        }
    }
    SliceEndpoint {
        placement: Arc::new(placement),
        addr,
        ready: conditions.contains('r'),
        serving: conditions.contains('s'),
        terminating: conditions.contains('t'),
    }
}
