//! The decisions against the semantics, line by line, and the properties of the incremental state.

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;

use super::{
    endpoints, policy,
    state::{Change, FrontendKindOrd, ServicePort},
    testing::node,
    topology::{self, Mode},
    *,
};
use crate::{
    kube::{
        objects::{EndpointSlice, ObjectEvent, Service, ServiceType},
        testing::{port, service, slice},
    },
    net::{IpFamily, Prefix, Protocol},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ports_of(service: &Service, slices: &[Arc<EndpointSlice>], node: NodeView) -> Vec<ServicePort> {
    service::ports(service, slices, &Context::new(node))
}

/// The one IPv4 port of a Service on `node-a`.
fn port4(service: &Service, slices: &[Arc<EndpointSlice>]) -> ServicePort {
    let mut ports = ports_of(service, slices, node());
    ports.retain(|port| port.key.family == IpFamily::V4);
    assert_eq!(ports.len(), 1);
    ports.remove(0)
}

fn frontends(port: &ServicePort) -> Vec<String> {
    let text = |f: &state::Frontend| format!("{}:{} {:?}", f.addr, f.port, f.kind);
    port.frontends.iter().map(text).collect()
}

// semantics 3, 20: which Services count, in which family.

#[test]
fn a_service_without_cluster_ip_of_a_family_has_no_port_in_it() {
    let mut web = service("web");
    web.kind = ServiceType::LoadBalancer;
    web.load_balancer_ips = vec![ip("198.51.100.20"), ip("2001:db8:2::20")];
    web.external_ips = vec![ip("198.51.100.10"), ip("2001:db8:2::10")];
    web.ports[0].node_port = 30080;
    assert_eq!(ports_of(&web, &[], node()).len(), 2);
    // semantics 3.3, 20.4: the other family stays as it is
    let both = ports_of(&web, &[], node());
    web.cluster_ips.remove(1);
    let single = ports_of(&web, &[], node());
    assert_eq!(single, both[..1]);
    assert_eq!(single[0].key.family, IpFamily::V4);
    // semantics 3.1
    web.cluster_ips.clear();
    assert!(ports_of(&web, &[], node()).is_empty());
    // semantics 3.2
    let mut stale = service("web");
    stale.kind = ServiceType::ExternalName;
    assert!(ports_of(&stale, &[], node()).is_empty());
}

#[test]
fn the_order_of_cluster_ips_does_not_matter() {
    // semantics 20.5
    let mut swapped = service("web");
    swapped.cluster_ips.reverse();
    assert_eq!(
        ports_of(&swapped, &[], node()),
        ports_of(&service("web"), &[], node())
    );
}

#[test]
fn the_families_have_their_own_endpoints() {
    // semantics 20.1
    let slices = [slice("s", "web").endpoint("10.244.1.2 rs").arc()];
    let ports = ports_of(&service("web"), &slices, node());
    assert!(ports[0].has_endpoints && ports[0].endpoints.len() == 1);
    assert!(!ports[1].has_endpoints && ports[1].endpoints.is_empty());
}

// semantics 4: service ports.

#[test]
fn every_address_becomes_a_frontend_whatever_the_type() {
    // semantics 3.4, 4.1
    let mut web = service("web");
    web.ports[0].node_port = 30080;
    web.external_ips = vec![ip("198.51.100.10"), ip("2001:db8:2::10")];
    web.load_balancer_ips = vec![ip("198.51.100.20")];
    assert_eq!(
        frontends(&port4(&web, &[])),
        [
            "10.96.0.10:80 ClusterIp",
            "192.0.2.11:30080 NodePort",
            "198.51.100.10:80 ExternalIp",
            "198.51.100.20:80 LoadBalancer",
        ]
    );
    assert_eq!(
        frontends(&ports_of(&web, &[], node())[1]),
        [
            "2001:db8:1::11:30080 NodePort",
            "2001:db8:2::10:80 ExternalIp",
            "fd00:10:96::10:80 ClusterIp",
        ]
    );
}

#[test]
fn external_ips_can_be_switched_off() {
    // semantics 4.3
    let mut web = service("web");
    web.external_local = true;
    web.external_ips = vec![ip("198.51.100.10")];
    let on = port4(&web, &[]);
    assert!(on.external && on.external_local);
    let ports = ports_of(
        &web,
        &[],
        NodeView {
            allow_external_ips: false,
            ..node()
        },
    );
    assert_eq!(frontends(&ports[0]), ["10.96.0.10:80 ClusterIp"]);
    assert!(!ports[0].external && !ports[0].external_local);
}

#[test]
fn one_address_of_two_kinds_is_one_frontend_of_the_lower_kind() {
    // semantics 14.12, 21.7, 28.32
    let mut web = service("web");
    web.external_ips = vec![ip("198.51.100.20"), ip("192.0.2.11"), ip("10.96.0.10")];
    web.load_balancer_ips = vec![ip("198.51.100.20")];
    web.ports[0].node_port = 80;
    assert_eq!(
        frontends(&port4(&web, &[])),
        [
            "10.96.0.10:80 ClusterIp",
            "192.0.2.11:80 ExternalIp",
            "198.51.100.20:80 LoadBalancer"
        ]
    );
}

#[test]
fn source_ranges_restrict_only_where_they_say_something() {
    let vips = [ip("198.51.100.20"), ip("198.51.100.21")];
    for (ranges, primary, wanted) in [
        (&[][..], None, &[][..]),
        (&["10.0.0.0/8"], None, &["10.0.0.0/8"]),
        (&["10.0.0.0/8", "10.0.0.0/8"], None, &["10.0.0.0/8"]),
        (&["10.0.0.0/8", "0.0.0.0/0"], None, &[]), // semantics 4.5: a zero-length prefix
        (&["fd00::/8"], None, &[]),                // semantics 4.5: only the other family
        (&["10.0.0.0/8", "::/0"], None, &["10.0.0.0/8"]),
        (&["10.0.0.0/8"], Some("192.0.2.11"), &["10.0.0.0/8"]),
        // semantics 12.4: the node is in a range, so its VIPs are, too
        (
            &["192.0.2.0/24"],
            Some("192.0.2.11"),
            &["192.0.2.0/24", "198.51.100.20/32", "198.51.100.21/32"],
        ),
    ] {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|text| Prefix::parse(text).unwrap())
            .collect();
        let found = service::source_ranges(&ranges, IpFamily::V4, &vips, primary.map(ip));
        let wanted: Vec<_> = wanted
            .iter()
            .map(|text| Prefix::parse(text).unwrap())
            .collect();
        assert_eq!(found, wanted, "{ranges:?}");
    }
}

#[test]
fn a_list_of_the_other_family_only_is_reported() {
    // semantics 28.11
    let mut web = service("web");
    web.load_balancer_ips = vec![ip("198.51.100.20")];
    web.source_ranges = vec![Prefix::parse("fd00::/8").unwrap()];
    assert_eq!(service::problems(&web).len(), 1);
    web.source_ranges.push(Prefix::parse("10.0.0.0/8").unwrap());
    assert!(service::problems(&web).is_empty());
}

#[test]
fn external_local_counts_by_type() {
    // semantics 4.7
    for (kind, external_ip, wanted) in [
        (ServiceType::ClusterIp, false, false),
        (ServiceType::ClusterIp, true, true),
        (ServiceType::NodePort, false, true),
        (ServiceType::LoadBalancer, false, true),
    ] {
        let mut web = service("web");
        (web.kind, web.external_local) = (kind, true);
        if external_ip {
            web.external_ips.push(ip("198.51.100.10"));
        }
        assert_eq!(
            port4(&web, &[]).external_local,
            wanted,
            "{kind:?} {external_ip}"
        );
    }
}

#[test]
fn a_port_is_external_by_its_addresses_of_the_family() {
    // semantics 4.8
    let external = |change: &dyn Fn(&mut Service)| {
        let mut web = service("web");
        change(&mut web);
        ports_of(&web, &[], node())
            .iter()
            .map(|port| port.external)
            .collect::<Vec<_>>()
    };
    assert_eq!(external(&|_| {}), [false, false]);
    assert_eq!(
        external(&|web| web.ports[0].node_port = 30080),
        [true, true]
    );
    assert_eq!(
        external(&|web| web.external_ips.push(ip("198.51.100.10"))),
        [true, false]
    );
    assert_eq!(
        external(&|web| web.load_balancer_ips.push(ip("2001:db8::1"))),
        [false, true]
    );
}

#[test]
fn policies_decide_which_lists_are_used() {
    // semantics 4.9, 4.10: (internal Local, external Local, external) → (cluster, local)
    for (given, wanted) in [
        ((false, false, false), (true, false)),
        ((false, false, true), (true, false)),
        ((false, true, false), (true, false)),
        ((false, true, true), (true, true)),
        ((true, false, false), (false, true)),
        ((true, false, true), (true, true)),
        ((true, true, false), (false, true)),
        ((true, true, true), (true, true)),
    ] {
        let uses = policy::uses(given.0, given.1, given.2);
        assert_eq!((uses.cluster, uses.local), wanted, "{given:?}");
    }
}

// semantics 5: endpoints.

fn found(slices: &[Arc<EndpointSlice>], name: &str, protocol: Protocol) -> Vec<String> {
    endpoints::of_port(slices, IpFamily::V4, name, protocol, "node-a")
        .iter()
        .map(|c| {
            format!(
                "{}:{}{}",
                c.addr(),
                c.port,
                if c.local { " local" } else { "" }
            )
        })
        .collect()
}

#[test]
fn endpoints_are_the_union_over_slices_by_port_name_and_protocol() {
    use Protocol::{Tcp, Udp};
    let slices = [
        slice("a", "web")
            .ports(&[("http", 8080, Tcp), ("dns", 53, Tcp), ("dns", 5353, Udp)])
            .endpoint("10.244.1.2 rs @node-a")
            .arc(),
        // semantics 5.6: another number for the same name
        slice("b", "web")
            .ports(&[("http", 9090, Tcp)])
            .endpoint("10.244.2.2 rs @node-b")
            .arc(),
        // semantics 5.14: ports without endpoints
        slice("c", "web").ports(&[("http", 1, Tcp)]).arc(),
        // semantics 5.2: the other family's slice
        slice("d", "web")
            .ports(&[("http", 8080, Tcp)])
            .endpoint("fd00::2 rs")
            .arc(),
    ];
    // semantics 5.4, 5.11
    assert_eq!(
        found(&slices, "http", Tcp),
        ["10.244.1.2:8080 local", "10.244.2.2:9090"]
    );
    // semantics 21.1
    assert_eq!(found(&slices, "dns", Tcp), ["10.244.1.2:53 local"]);
    assert_eq!(found(&slices, "dns", Udp), ["10.244.1.2:5353 local"]);
    // semantics 5.4, 5.7
    assert!(found(&slices, "", Tcp).is_empty());
    assert!(found(&slices, "http", Udp).is_empty());
    let reversed: Vec<_> = slices.iter().rev().cloned().collect();
    assert_eq!(found(&reversed, "http", Tcp), found(&slices, "http", Tcp));
}

#[test]
fn an_endpoint_is_local_only_by_its_node_name() {
    // semantics 5.11, 28.50
    let of = |text: &str, node: &str| {
        let slices = [slice("a", "web").endpoint(text).arc()];
        endpoints::of_port(&slices, IpFamily::V4, "", Protocol::Tcp, node)[0].local
    };
    assert!(of("10.244.1.2 rs @node-a", "node-a"));
    assert!(!of("10.244.1.2 rs @node-b", "node-a"));
    assert!(!of("10.244.1.2 rs", "node-a"));
    assert!(!of("10.244.1.2 rs", ""));
}

#[test]
fn of_two_endpoints_with_one_address_the_living_one_is_meant() {
    // semantics 5.13, 28.24 [ours]: (kept, given up)
    for (better, worse) in [
        ("10.244.1.2 - @node-b", "10.244.1.2 rst @node-a"), // terminating goes first
        ("10.244.1.2 rst @node-b", "10.244.1.2 st @node-a"), // then ready
        ("10.244.1.2 s @node-b", "10.244.1.2 - @node-a"),   // then serving
        ("10.244.1.2 rs @node-a", "10.244.1.2 rs @node-b"), // then local
    ] {
        let one = |name: &str, text: &str| slice(name, "web").endpoint(text).arc();
        let wanted = one("x", better).endpoints[0].clone();
        for slices in [
            [one("a", better), one("b", worse)],
            [one("a", worse), one("b", better)],
        ] {
            let found = endpoints::of_port(&slices, IpFamily::V4, "", Protocol::Tcp, "node-a");
            assert_eq!(found.len(), 1);
            assert_eq!(*found[0].source, wanted, "{better} | {worse}");
        }
    }
    // then the slice's name
    let slices = ["a", "b"].map(|zone| {
        slice(zone, "web")
            .endpoint(&format!("10.244.1.2 rs zone={zone}"))
            .arc()
    });
    let found = endpoints::of_port(&slices, IpFamily::V4, "", Protocol::Tcp, "node-a");
    assert_eq!(&*found[0].source.placement.for_zones[0], "a");
}

// semantics 6: lists.

struct Case {
    endpoints: &'static [&'static str],
    cluster: &'static [u8],
    local: &'static [u8],
    has_endpoints: bool,
}

/// Endpoints are 10.244.0.N in their order; the lists name N, from 1.
fn check_lists(case: &Case, uses: policy::Uses) {
    let mut builder = slice("s", "web");
    for (i, text) in case.endpoints.iter().enumerate() {
        builder = builder.endpoint(&format!("10.244.0.{} {text}", i + 1));
    }
    let slices = [builder.arc()];
    let candidates = endpoints::of_port(&slices, IpFamily::V4, "", Protocol::Tcp, "node-a");
    let lists = policy::lists(&candidates, uses, "node-a", Some("a"));
    let last = |endpoint: &state::Endpoint| match endpoint.addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(_) => unreachable!(),
    };
    let cluster: Vec<u8> = lists
        .endpoints
        .iter()
        .filter(|e| e.in_cluster)
        .map(last)
        .collect();
    let local: Vec<u8> = lists
        .endpoints
        .iter()
        .filter(|e| e.in_local)
        .map(last)
        .collect();
    assert_eq!(cluster, case.cluster, "cluster of {:?}", case.endpoints);
    assert_eq!(local, case.local, "local of {:?}", case.endpoints);
    assert_eq!(
        lists.has_endpoints, case.has_endpoints,
        "{:?}",
        case.endpoints
    );
    assert!(lists.endpoints.iter().all(|e| e.usable));
}

const BOTH: policy::Uses = policy::Uses {
    cluster: true,
    local: true,
};

#[test]
fn lists_hold_the_ready_and_else_the_serving_terminating() {
    let case = |endpoints, cluster, local, has_endpoints| Case {
        endpoints,
        cluster,
        local,
        has_endpoints,
    };
    for case in [
        case(&[], &[], &[], false),                               // semantics 6.1
        case(&["rs @node-a", "rs @node-b"], &[1, 2], &[1], true), // semantics 6.2, 6.3
        case(&["st @node-a", "st @node-b"], &[1, 2], &[1], true), // semantics 6.2, 6.3
        case(&["st @node-a", "rs @node-b"], &[2], &[1], true),    // semantics 6.4, 6.5
        case(&["rs @node-a", "st @node-a"], &[1], &[1], true),    // semantics 6.5
        case(&["rs @node-b"], &[1], &[], true),                   // semantics 6.3
        case(&["s @node-a", "- @node-a", "t @node-a"], &[], &[], false), // semantics 6.6
        case(&["rst @node-a", "st @node-a"], &[1], &[1], true),   // semantics 6.11
        case(&["r @node-a"], &[1], &[1], true), // semantics 5.10: published though unready
    ] {
        check_lists(&case, BOTH);
    }
}

#[test]
fn lists_that_are_not_used_are_empty() {
    let endpoints = &["rs @node-a", "rs @node-b"];
    let case = Case {
        endpoints,
        cluster: &[1, 2],
        local: &[],
        has_endpoints: true,
    };
    check_lists(
        &case,
        policy::Uses {
            cluster: true,
            local: false,
        },
    ); // semantics 6.3
    let case = Case {
        endpoints,
        cluster: &[],
        local: &[1],
        has_endpoints: true,
    };
    check_lists(
        &case,
        policy::Uses {
            cluster: false,
            local: true,
        },
    ); // semantics 6.2
    // semantics 6.7: somewhere there is one, so the empty Local list drops and does not reject
    for endpoints in [&["rs @node-b"][..], &["st @node-b"]] {
        let case = Case {
            endpoints,
            cluster: &[],
            local: &[],
            has_endpoints: true,
        };
        check_lists(
            &case,
            policy::Uses {
                cluster: false,
                local: true,
            },
        );
    }
    let case = Case {
        endpoints: &["s @node-b"],
        cluster: &[],
        local: &[],
        has_endpoints: false,
    };
    check_lists(
        &case,
        policy::Uses {
            cluster: false,
            local: true,
        },
    );
}

#[test]
fn only_usable_endpoints_are_listed() {
    // semantics 6.8, 17.3
    let slices = [slice("s", "web")
        .endpoint("10.244.0.1 rs")
        .endpoint("10.244.0.2 s")
        .endpoint("10.244.0.3 st")
        .endpoint("10.244.0.4 -")
        .endpoint("10.244.0.5 t")
        .arc()];
    let port = port4(&service("web"), &slices);
    let listed: Vec<String> = port.endpoints.iter().map(|e| e.addr.to_string()).collect();
    assert_eq!(listed, ["10.244.0.1", "10.244.0.2", "10.244.0.3"]);
    let in_cluster: Vec<bool> = port.endpoints.iter().map(|e| e.in_cluster).collect();
    assert_eq!(in_cluster, [true, false, false]);
}

// semantics 7: topology.

#[test]
fn the_topology_mode_follows_the_hints_of_all_ready_endpoints() {
    let mode = |endpoints: &[&str], zone: Option<&str>| {
        let mut builder = slice("s", "web");
        for (i, text) in endpoints.iter().enumerate() {
            builder = builder.endpoint(&format!("10.244.0.{} {text}", i + 1));
        }
        let slices = [builder.arc()];
        let found = endpoints::of_port(&slices, IpFamily::V4, "", Protocol::Tcp, "node-a");
        topology::mode(&found, "node-a", zone)
    };
    let a = Some("a");
    for (endpoints, zone, wanted) in [
        (&["st zone=a", "s node=node-a"][..], a, Mode::All), // semantics 7.2
        (
            &["rs node=node-a zone=a", "rs node=node-b zone=b"],
            a,
            Mode::SameNode,
        ), // semantics 7.3
        (
            &["rs node=node-b zone=a", "rs node=node-b zone=b"],
            a,
            Mode::SameZone,
        ), // semantics 7.3, 7.10
        (&["rs node=node-a zone=a", "rs zone=b"], a, Mode::SameZone), // semantics 7.3
        (&["rs zone=a", "rs zone=b"], a, Mode::SameZone),    // semantics 7.4
        (&["rs zone=a", "rs"], a, Mode::All),                // semantics 7.5, 28.29
        (&["rs zone=a", "s"], a, Mode::SameZone), // semantics 7.5: unready ones do not matter
        (&["rs zone=a"], None, Mode::All),        // semantics 7.6, 28.29
        (&["s zone=a", "rs zone=b"], a, Mode::All), // semantics 7.7, 28.30
        (&["rs zone=b,a"], a, Mode::SameZone),    // semantics 7.9
                                                  // semantics 7.13: nothing has to be switched on for hints that name nodes
    ] {
        assert_eq!(mode(endpoints, zone), wanted, "{endpoints:?} {zone:?}");
    }
}

#[test]
fn topology_narrows_the_cluster_list_only() {
    let case = |endpoints, cluster, local| Case {
        endpoints,
        cluster,
        local,
        has_endpoints: true,
    };
    for case in [
        case(&["rs zone=a @node-b", "rs zone=b @node-a"], &[1], &[2]), // semantics 6.3, 7.8, 7.11
        case(
            &["rs node=node-a @node-b", "rs node=node-b @node-a"],
            &[1],
            &[2],
        ),
        case(&["rs zone=b", "rs zone=b"], &[1, 2], &[]), // semantics 6.11, 7.7
        case(&["st zone=a", "st zone=b"], &[1, 2], &[]), // semantics 6.2: the fallback ignores topology
    ] {
        check_lists(&case, BOTH);
    }
}

// The incremental state.

fn set(service: Service) -> ObjectEvent {
    ObjectEvent::Service(service.key.clone(), Some(Arc::new(service)))
}
fn remove(name: &str) -> ObjectEvent {
    ObjectEvent::Service(Key::new("default", name), None)
}
fn set_slice(slice: EndpointSlice) -> ObjectEvent {
    ObjectEvent::Slice(slice.key.clone(), Some(Arc::new(slice)))
}

struct World {
    store: ObjectStore,
    desired: Desired,
}

impl World {
    fn new() -> Self {
        let mut store = ObjectStore::new();
        store.initial([]);
        World {
            store,
            desired: Desired::new(node()),
        }
    }
    fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Vec<Change> {
        let dirty = self.store.apply(events);
        self.desired.apply(&self.store, &dirty)
    }
    fn sorted(&self) -> Vec<Arc<ServicePort>> {
        let mut all: Vec<_> = self.desired.current().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
    /// Which Service serves an address.
    fn server(&self, addr: &str) -> Option<String> {
        let addr = ip(addr);
        let serves = |port: &&Arc<ServicePort>| port.frontends.iter().any(|f| f.addr == addr);
        let mut servers = self.desired.current().filter(serves);
        let server = servers.next().map(|port| port.key.name.service.to_string());
        assert!(servers.next().is_none(), "{addr} is served twice");
        server
    }
}

fn names(changes: &[Change]) -> Vec<String> {
    let name = |change: &Change| match change {
        Change::Set(port) => format!("+{} {}", port.key.name, port.key.family.name()),
        Change::Remove(key) => format!("-{} {}", key.name, key.family.name()),
    };
    changes.iter().map(name).collect()
}

#[test]
fn only_what_differs_is_a_change() {
    let mut world = World::new();
    let mut web = service("web");
    web.cluster_ips.truncate(1);
    assert_eq!(
        names(&world.apply([set(web.clone())])),
        ["+default/web/TCP IPv4"]
    );
    // semantics 4.12
    web.skipped = vec!["x".to_owned()];
    assert!(world.apply([set(web.clone())]).is_empty());
    assert_eq!(world.desired.problems().count(), 1);
    let ready = slice("s", "web").endpoint("10.244.1.2 rs").build();
    assert_eq!(world.apply([set_slice(ready)]).len(), 1);
    // semantics 5.7, 5.17: an unused port makes no difference
    let more = slice("s", "web")
        .ports(&[("", 8080, Protocol::Tcp), ("unused", 1, Protocol::Tcp)])
        .endpoint("10.244.1.2 rs")
        .build();
    assert!(world.apply([set_slice(more)]).is_empty());
    web.ports.push(port("unused", 81, Protocol::Tcp));
    let changes = world.apply([set(web)]);
    assert_eq!(names(&changes), ["+default/web:unused/TCP IPv4"]);
    let Change::Set(added) = &changes[0] else {
        panic!()
    };
    assert_eq!(added.endpoints.len(), 1);
    assert_eq!(world.apply([remove("web")]).len(), 2);
    assert_eq!(world.desired.problems().count(), 0);
}

/// Semantics 8.12: an address whose `ipMode` becomes `Proxy` is no VIP any more; ClusterIP and NodePort stay.
#[test]
fn an_address_that_is_no_vip_any_more_is_given_up_and_taken_back() {
    let mut world = World::new();
    let mut web = service("web");
    web.cluster_ips.truncate(1);
    web.ports[0].node_port = 30080;
    let proxied = web.clone();
    web.load_balancer_ips = vec![ip("198.51.100.20")];
    world.apply([set(web.clone())]);
    for (now, served) in [(&proxied, None), (&web, Some("web")), (&proxied, None)] {
        let changes = world.apply([set(now.clone())]);
        assert_eq!(names(&changes), ["+default/web/TCP IPv4"]);
        assert_eq!(world.server("198.51.100.20").as_deref(), served);
        assert_eq!(world.server("10.96.0.10").as_deref(), Some("web"));
        assert_eq!(world.server("192.0.2.11").as_deref(), Some("web"));
    }
}

/// Semantics 5.15, 28.28: endpoints of slices made by hand may be anywhere; several slices and ports add up.
#[test]
fn endpoints_made_by_hand_are_used_wherever_they_are() {
    use Protocol::Tcp;
    let slices = [
        slice("a", "web")
            .ports(&[("http", 80, Tcp)])
            .endpoint("203.0.113.7 rs")
            .endpoint("192.0.2.11 rs")
            .arc(),
        slice("b", "web")
            .ports(&[("http", 8080, Tcp), ("admin", 9000, Tcp)])
            .endpoint("224.0.1.1 rs")
            .arc(),
    ];
    assert_eq!(
        found(&slices, "http", Tcp),
        ["192.0.2.11:80", "203.0.113.7:80", "224.0.1.1:8080"]
    );
    assert_eq!(found(&slices, "admin", Tcp), ["224.0.1.1:9000"]);
}

#[test]
fn a_slice_change_touches_its_service_only() {
    // semantics 5.1, 5.3
    let mut world = World::new();
    let mut other = service("other");
    other.cluster_ips = vec![ip("10.96.0.11")];
    world.apply([set(service("web")), set(other)]);
    let changes = world.apply([set_slice(
        slice("s", "other").endpoint("10.244.1.2 rs").build(),
    )]);
    assert_eq!(names(&changes), ["+default/other/TCP IPv4"]);
    assert!(
        world
            .apply([set_slice(slice("t", "unknown").build())])
            .is_empty()
    );
}

#[test]
fn an_endpoint_that_moves_between_slices_is_one_endpoint() {
    // semantics 5.3, 28.26
    let mut world = World::new();
    let at = |name: &str| set_slice(slice(name, "web").endpoint("10.244.1.2 rs").build());
    world.apply([set(service("web")), at("a")]);
    let gone = || ObjectEvent::Slice(Key::new("default", "a"), None);
    assert!(world.apply([at("b")]).is_empty());
    assert!(world.apply([gone()]).is_empty());
    assert!(world.apply([gone(), at("b")]).is_empty());
    assert_eq!(world.sorted()[0].endpoints.len(), 1);
}

#[test]
fn a_contested_frontend_goes_to_the_lower_kind_then_the_oldest_then_the_first_name() {
    let vip = "198.51.100.20";
    let make = |name: &str, created_ns, kind: FrontendKindOrd| {
        let mut made = service(name);
        made.created_ns = created_ns;
        made.cluster_ips = vec![ip(&format!("10.96.1.{}", name.as_bytes()[0]))];
        match kind {
            FrontendKindOrd::ClusterIp => made.cluster_ips = vec![ip(vip)],
            FrontendKindOrd::LoadBalancer => made.load_balancer_ips = vec![ip(vip)],
            _ => made.external_ips = vec![ip(vip)],
        }
        set(made)
    };
    use FrontendKindOrd::{ClusterIp, ExternalIp, LoadBalancer};
    for (winner, loser) in [
        (make("b", None, ClusterIp), make("a", Some(1), ExternalIp)), // semantics 21.7
        (
            make("b", None, LoadBalancer),
            make("a", Some(1), ExternalIp),
        ),
        (
            make("b", Some(1), ExternalIp),
            make("a", Some(2), ExternalIp),
        ), // semantics 21.5
        (make("b", Some(1), ExternalIp), make("a", None, ExternalIp)),
    ] {
        for events in [[&winner, &loser], [&loser, &winner]] {
            let mut world = World::new();
            for event in events {
                world.apply([event.clone()]);
            }
            assert_eq!(world.server(vip).as_deref(), Some("b"));
            assert_eq!(world.desired.conflicts().count(), 1);
            let conflict = world.desired.conflicts().next().unwrap();
            assert_eq!(&*conflict.winner.name.service, "b");
            assert_eq!(&*conflict.losers[0].name.service, "a");
            // The loser is restored when the winner goes.
            let changes = world.apply([remove("b")]);
            assert_eq!(
                names(&changes),
                ["+default/a/TCP IPv4", "-default/b/TCP IPv4"]
            );
            assert_eq!(world.server(vip).as_deref(), Some("a"));
            assert_eq!(world.desired.conflicts().count(), 0);
        }
    }
    let mut world = World::new();
    world.apply([make("b", None, ExternalIp)]);
    let changes = world.apply([make("a", None, ExternalIp)]);
    assert_eq!(
        names(&changes),
        ["+default/a/TCP IPv4", "+default/b/TCP IPv4"]
    );
    assert_eq!(world.server(vip).as_deref(), Some("a"));
}

#[test]
fn an_external_ip_beats_a_node_port_of_the_same_address_and_port() {
    // semantics 14.12
    let mut world = World::new();
    let mut web = service("web");
    web.created_ns = Some(1);
    web.ports[0].node_port = 30080;
    let mut other = service("other");
    other.cluster_ips = vec![ip("10.96.0.11")];
    other.ports[0].port = 30080;
    other.external_ips = vec![ip("192.0.2.11")];
    world.apply([set(web), set(other)]);
    assert_eq!(world.server("192.0.2.11").as_deref(), Some("other"));
}

#[test]
fn services_share_an_address_on_different_ports_and_protocols() {
    // semantics 21.1, 21.6
    let mut world = World::new();
    let vip = ip("198.51.100.20");
    for (i, (number, protocol)) in [
        (80, Protocol::Tcp),
        (80, Protocol::Udp),
        (81, Protocol::Tcp),
    ]
    .into_iter()
    .enumerate()
    {
        let mut made = service(&format!("s{i}"));
        made.cluster_ips = vec![ip(&format!("10.96.1.{i}"))];
        made.load_balancer_ips = vec![vip];
        made.ports = vec![port("", number, protocol)];
        world.apply([set(made)]);
    }
    assert_eq!(world.desired.conflicts().count(), 0);
    assert_eq!(
        names(&world.apply([remove("s0")])),
        ["-default/s0/TCP IPv4"]
    );
}

#[test]
fn a_frontend_moves_to_a_renamed_port_or_a_new_service_in_one_step() {
    // semantics 1.6, 21.3
    let mut world = World::new();
    let mut web = service("web");
    web.cluster_ips.truncate(1);
    world.apply([set(web.clone())]);
    web.ports[0].name = "http".into();
    let changes = world.apply([set(web.clone())]);
    assert_eq!(
        names(&changes),
        ["+default/web:http/TCP IPv4", "-default/web/TCP IPv4"]
    );
    assert_eq!(world.server("10.96.0.10").as_deref(), Some("web"));
    // semantics 21.4, in both orders
    let mut next = web.clone();
    next.key = Key::new("default", "next");
    world.apply([remove("web"), set(next)]);
    assert_eq!(world.server("10.96.0.10").as_deref(), Some("next"));
    world.apply([set(web), remove("next")]);
    assert_eq!(world.server("10.96.0.10").as_deref(), Some("web"));
}

#[test]
fn a_changed_node_changes_what_depends_on_it() {
    let mut world = World::new();
    let mut web = service("web");
    web.cluster_ips.truncate(1);
    web.ports[0].node_port = 30080;
    let slices = slice("s", "web")
        .endpoint("10.244.1.2 rs zone=a")
        .endpoint("10.244.2.2 rs zone=b");
    world.apply([set(web), set_slice(slices.build())]);
    let cluster = |world: &World| {
        world.sorted()[0]
            .endpoints
            .iter()
            .map(|e| e.in_cluster)
            .collect::<Vec<_>>()
    };
    assert_eq!(cluster(&world), [true, false]);
    // semantics 7.12
    let moved = NodeView {
        zone: Some("b".into()),
        ..node()
    };
    assert_eq!(world.desired.set_node(&world.store, moved.clone()).len(), 1);
    assert_eq!(cluster(&world), [false, true]);
    assert!(
        world
            .desired
            .set_node(&world.store, moved.clone())
            .is_empty()
    );
    // An address that no frontend depends on is no work.
    let mut more = moved.clone();
    more.local_addresses.push(ip("10.244.1.1"));
    assert!(
        world
            .desired
            .set_node(&world.store, more.clone())
            .is_empty()
    );
    // semantics 14.4: addresses are followed
    more.node_port_addresses = "10.0.0.0/8".parse().unwrap();
    assert_eq!(world.desired.set_node(&world.store, more).len(), 1);
    assert_eq!(
        frontends(&world.sorted()[0]),
        [
            "10.0.0.1:30080 NodePort",
            "10.96.0.10:80 ClusterIp",
            "10.244.1.1:30080 NodePort"
        ]
    );
}

// Properties: few names and addresses, so that Services clash.

fn any_service() -> impl Strategy<Value = Service> {
    let created = prop_oneof![Just(None), (0i128..3).prop_map(Some)];
    let ports = proptest::collection::btree_map(0u16..3, (0u16..2, any::<bool>()), 1..3);
    let vips = proptest::collection::vec(0u8..6, 0..3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (0u8..4, 0u8..6, created, ports, vips.clone(), vips, flags).prop_map(
        |(name, cluster_ip, created_ns, ports, external, vips, flags)| {
            let pool = |n: u8| ip(&format!("10.96.0.{n}"));
            let mut made = service(&format!("s{name}"));
            made.created_ns = created_ns;
            made.cluster_ips = vec![pool(cluster_ip)];
            made.external_ips = external.into_iter().map(pool).collect();
            made.load_balancer_ips = vips.into_iter().map(pool).collect();
            (made.internal_local, made.external_local) = (flags.0, flags.1);
            made.ports = ports
                .into_iter()
                .map(|(n, (node_port, udp))| {
                    let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                    let mut port = port(&format!("p{n}"), 80 + n, protocol);
                    port.node_port = node_port * 30_000;
                    port
                })
                .collect();
            if flags.2 {
                made.source_ranges = vec![Prefix::parse("192.0.2.0/24").unwrap()];
            }
            made
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let words = ["rs", "st", "s", "-", "rst"];
    let hints = [
        "",
        "zone=a",
        "zone=b",
        "zone=a node=node-a",
        "zone=b node=node-b",
    ];
    let nodes = ["", "@node-a", "@node-b"];
    let endpoint = (0u8..5, 0..words.len(), 0..hints.len(), 0..nodes.len()).prop_map(
        move |(addr, word, hint, node)| {
            format!(
                "10.244.0.{addr} {} {} {}",
                words[word], nodes[node], hints[hint]
            )
        },
    );
    (0u8..4, 0u8..4, proptest::collection::vec(endpoint, 0..4)).prop_map(
        |(name, service, endpoints)| {
            let mut made = slice(&format!("e{name}"), &format!("s{service}"))
                .ports(&[("p0", 8080, Protocol::Tcp), ("p1", 8081, Protocol::Udp)]);
            for text in endpoints {
                made = made.endpoint(&text);
            }
            made.build()
        },
    )
}

fn any_event() -> impl Strategy<Value = ObjectEvent> {
    prop_oneof![
        4 => any_service().prop_map(set),
        4 => any_slice().prop_map(set_slice),
        1 => (0u8..4).prop_map(|n| remove(&format!("s{n}"))),
        1 => (0u8..4)
            .prop_map(|n| ObjectEvent::Slice(Key::new("default", &format!("e{n}")), None)),
    ]
}

/// The state that the store's content gives at once.
fn from_scratch(store: &ObjectStore) -> Vec<Arc<ServicePort>> {
    let mut desired = Desired::new(node());
    let services = store
        .services()
        .map(|service| service.key.clone())
        .collect();
    desired.apply(
        store,
        &Dirty {
            services,
            node: false,
        },
    );
    let mut all: Vec<_> = desired.current().cloned().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

proptest! {
    #[test]
    fn the_incremental_state_equals_the_one_from_scratch(
        batches in proptest::collection::vec(proptest::collection::vec(any_event(), 1..4), 1..12)
    ) {
        let mut world = World::new();
        let mut replayed: BTreeMap<PortKey, Arc<ServicePort>> = BTreeMap::new();
        for batch in batches {
            for change in world.apply(batch) {
                match change {
                    Change::Set(port) => {
                        let before = replayed.insert(port.key.clone(), port.clone());
                        prop_assert_ne!(before, Some(port), "a change that changes nothing");
                    }
                    Change::Remove(key) => prop_assert!(replayed.remove(&key).is_some()),
                }
            }
            let now = world.sorted();
            prop_assert_eq!(&now, &from_scratch(&world.store));
            prop_assert_eq!(&now, &replayed.values().cloned().collect::<Vec<_>>());
            let mut served: Vec<_> = now
                .iter()
                .flat_map(|port| port.frontends.iter().map(|f| (f.addr, f.port, port.key.name.protocol)))
                .collect();
            let count = served.len();
            served.sort();
            served.dedup();
            prop_assert_eq!(served.len(), count, "a frontend is served twice");
        }
    }

    #[test]
    fn the_order_of_events_about_different_objects_does_not_matter(
        services in proptest::collection::vec(any_service(), 0..5),
        slices in proptest::collection::vec(any_slice(), 0..5),
        order in any::<u64>(),
    ) {
        let mut events: Vec<ObjectEvent> =
            services.into_iter().map(set).chain(slices.into_iter().map(set_slice)).collect();
        // One event an object: of the same object only the last would count.
        let mut seen = std::collections::BTreeSet::new();
        events.retain(|event| match event {
            ObjectEvent::Service(key, _) => seen.insert((0, key.clone())),
            ObjectEvent::Slice(key, _) => seen.insert((1, key.clone())),
            ObjectEvent::Node(_) => true,
        });
        let mut world = World::new();
        world.apply(events.clone());
        let mut other = World::new();
        let mut order = order;
        while !events.is_empty() {
            let at = usize::try_from(order % events.len() as u64).unwrap();
            order = order.rotate_right(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            other.apply([events.swap_remove(at)]);
        }
        prop_assert_eq!(world.sorted(), other.sorted());
    }
}
