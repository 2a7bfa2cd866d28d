//! The node that the tests of decisions are on.

use super::node::{NodePortAddresses, NodeView};

/// Node `node-a` in zone `a`.
pub(crate) fn node() -> NodeView {
    let parse = |addrs: &[&str]| addrs.iter().map(|addr| addr.parse().unwrap()).collect();
    NodeView {
        name: "node-a".to_owned(),
        zone: Some("a".into()),
        object_addresses: parse(&["192.0.2.11", "2001:db8:1::11", "198.51.100.99"]),
        local_addresses: parse(&[
            "127.0.0.1",
            "127.0.0.2",
            "192.0.2.11",
            "10.0.0.1",
            "::1",
            "2001:db8:1::11",
            "fe80::1",
        ]),
        node_port_addresses: NodePortAddresses::default(),
        allow_external_ips: true,
    }
}
