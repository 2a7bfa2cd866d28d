//! Objects as an API server writes them → reduced objects, the store and the desired state. Every entry of an object is
//! kept, or named as skipped, or of a kind that the semantics ignore; and what follows from a sequence of events is what
//! follows from its last state.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use k8s_openapi::api::core::v1::{Node as ApiNode, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use lb_agent::desired::{Desired, NodePortAddresses, NodeView};
use lb_agent::kube::intern::Interner;
use lb_agent::kube::objects::{EndpointSlice, Key, ObjectEvent, Service, ServiceType};
use lb_agent::kube::reduce::{self, FieldError};
use lb_agent::kube::store::{Dirty, ObjectStore};
use lb_agent::net::IpFamily;
use serde_json::{Value, json};

const ADDRESSES: [&str; 16] = [
    "10.96.0.10",
    "10.96.0.11",
    "fd00:10:96::10",
    "192.0.2.11",
    "2001:db8:1::11",
    "203.0.113.5",
    "10.244.1.5",
    "10.244.1.6",
    "fd00:10:244:1::5",
    "010.244.001.005",
    "::ffff:10.244.1.5",
    "fe80::1%eth0",
    "10.0.0.256",
    "None",
    "",
    "127.0.0.1",
];
const PREFIXES: [&str; 8] = [
    "0.0.0.0/0",
    " 10.0.0.0/8 ",
    "10.244.1.5/32",
    "fd00::/16",
    "::/0",
    "10.0.0.0/33",
    "10.0.0.0",
    "",
];
const NAMES: [&str; 6] = ["web", "dns", "a", "", "node-a", "zone-b"];
const PROTOCOLS: [&str; 6] = ["TCP", "UDP", "SCTP", "", "tcp", "ICMP"];

fn pick(list: &[&'static str], number: u8) -> &'static str {
    list[usize::from(number) % list.len()]
}

/// A text of an address, or any text.
#[derive(Arbitrary, Clone, Debug)]
enum Text {
    Known(u8),
    Any(String),
}

impl Text {
    fn of(&self, list: &[&'static str]) -> String {
        match self {
            Text::Known(number) => pick(list, *number).to_owned(),
            Text::Any(text) => text.clone(),
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Port {
    name: Option<u8>,
    protocol: Option<u8>,
    port: i32,
    node_port: Option<i32>,
}

impl Port {
    fn json(&self) -> Value {
        let mut port = json!({"port": self.port & 0x3_ffff});
        if let Some(name) = self.name {
            port["name"] = pick(&NAMES, name).into();
        }
        if let Some(protocol) = self.protocol {
            port["protocol"] = pick(&PROTOCOLS, protocol).into();
        }
        if let Some(node_port) = self.node_port {
            port["nodePort"] = node_port.into();
        }
        port
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct ServiceShape {
    name: u8,
    kind: Option<u8>,
    cluster_ip: Option<Text>,
    cluster_ips: Option<Vec<Text>>,
    families: Option<Vec<bool>>,
    ports: Vec<Port>,
    external_ips: Vec<Text>,
    /// Address and `ipMode`.
    ingress: Vec<(Option<Text>, Option<bool>)>,
    ranges: Vec<Text>,
    policies: (Option<u8>, Option<u8>),
    affinity: Option<(u8, Option<i32>)>,
    health_check_node_port: Option<i32>,
    labels: u8,
    created: Option<u8>,
}

#[derive(Arbitrary, Clone, Debug)]
struct EndpointShape {
    addresses: Vec<Text>,
    conditions: (Option<bool>, Option<bool>, Option<bool>),
    node: Option<u8>,
    zone: Option<u8>,
    hints: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Arbitrary, Clone, Debug)]
struct SliceShape {
    name: u8,
    service: Option<u8>,
    family: u8,
    ports: Vec<Port>,
    endpoints: Vec<EndpointShape>,
    is_headless: bool,
}

#[derive(Arbitrary, Clone, Debug)]
struct NodeShape {
    name: u8,
    zone: Option<u8>,
    addresses: Vec<(u8, Text)>,
    pod_cidrs: Vec<Text>,
    is_tainted: bool,
}

#[derive(Arbitrary, Clone, Debug)]
enum Event {
    Service(ServiceShape),
    NoService(u8),
    Slice(SliceShape),
    NoSlice(u8),
    Node(NodeShape),
    /// Other texts of `--nodeport-addresses` and another zone.
    View(u8),
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Ok(events) = Vec::<Event>::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let mut names = Interner::default();
    let mut store = ObjectStore::new();
    store.initial([]);
    let mut view = node();
    let mut state = desired(view.clone());
    for event in events.iter().take(12) {
        let event = match event {
            Event::Service(shape) => service(shape, &mut names),
            Event::Slice(shape) => slice(shape, &mut names),
            Event::Node(shape) => api_node(shape),
            Event::NoService(name) => {
                let key = Key::new("default", pick(&NAMES, *name));
                Some(ObjectEvent::Service(key, None))
            }
            Event::NoSlice(name) => {
                let key = Key::new("default", pick(&NAMES, *name));
                Some(ObjectEvent::Slice(key, None))
            }
            Event::View(number) => {
                view.zone = (number & 1 != 0).then(|| "zone-b".into());
                view.allow_external_ips = number & 2 != 0;
                view.node_port_addresses = node_ports(number >> 2);
                state.set_node(&store, view.clone());
                None
            }
        };
        if let Some(event) = event {
            let dirty = store.apply([event]);
            state.apply(&store, &dirty);
        }
    }
    from_the_start(&store, &state, view);
    ports_are_there(&store, &state);
    // Nothing stays of Services that are gone.
    let all: Vec<Key> = store
        .services()
        .map(|service| service.key.clone())
        .collect();
    let gone = all.into_iter().map(|key| ObjectEvent::Service(key, None));
    let dirty = store.apply(gone);
    state.apply(&store, &dirty);
    assert_eq!(state.current().count(), 0);
    assert_eq!(state.conflicts().count(), 0);
    assert_eq!(state.problems().count(), 0);
    assert!(state.health_checks().is_empty());
}

/// This node, as the targets have it.
pub(crate) fn node() -> NodeView {
    let parse = |addrs: &[&str]| addrs.iter().flat_map(|addr| addr.parse()).collect();
    NodeView {
        name: "node-a".to_owned(),
        zone: Some("zone-b".into()),
        object_addresses: parse(&["192.0.2.11", "2001:db8:1::11"]),
        local_addresses: parse(&[
            "127.0.0.1",
            "192.0.2.11",
            "::1",
            "2001:db8:1::11",
            "fe80::1",
        ]),
        node_port_addresses: NodePortAddresses::default(),
        allow_external_ips: true,
    }
}

/// A desired state without Services.
pub(crate) fn desired(node: NodeView) -> Desired {
    Desired::new(node)
}

fn node_ports(number: u8) -> NodePortAddresses {
    let texts = ["primary", "all", "localhost", "192.0.2.0/24,fd00::/8"];
    pick(&texts, number).parse().unwrap_or_default()
}

/// An object that cannot be used is an error that names a field.
fn refused(error: &FieldError) {
    assert!(
        !error.field.is_empty() && !error.problem.is_empty(),
        "{error}"
    );
}

fn from_json<T: serde::de::DeserializeOwned>(object: &Value) -> T {
    match serde_json::from_str(&object.to_string()) {
        Ok(typed) => typed,
        Err(error) => panic!("{object} is not as the API server writes it: {error}"),
    }
}

fn labels(pairs: &[(&str, &str, bool)]) -> Value {
    pairs
        .iter()
        .filter(|(_, _, is_there)| *is_there)
        .map(|(name, value, _)| ((*name).to_owned(), Value::from(*value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn texts(list: &[Text], of: &[&'static str]) -> Vec<String> {
    list.iter().map(|text| text.of(of)).collect()
}

fn service(shape: &ServiceShape, names: &mut Interner) -> Option<ObjectEvent> {
    let policies = ["Cluster", "Local", "", "Nowhere"];
    let mut spec = json!({
        "ports": shape.ports.iter().map(Port::json).collect::<Vec<_>>(),
        "externalIPs": texts(&shape.external_ips, &ADDRESSES),
        "loadBalancerSourceRanges": texts(&shape.ranges, &PREFIXES),
    });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec[name] = value;
        }
    };
    let kinds = [
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "",
        "Other",
    ];
    set("type", shape.kind.map(|kind| pick(&kinds, kind).into()));
    let ip = shape.cluster_ip.as_ref();
    set("clusterIP", ip.map(|ip| ip.of(&ADDRESSES).into()));
    let ips = shape.cluster_ips.as_ref();
    set("clusterIPs", ips.map(|ips| texts(ips, &ADDRESSES).into()));
    let family = |is_v6: &bool| if *is_v6 { "IPv6" } else { "IPv4" };
    let families = shape.families.as_ref();
    set(
        "ipFamilies",
        families.map(|list| list.iter().map(family).collect()),
    );
    let policy = |number: Option<u8>| number.map(|number| pick(&policies, number).into());
    set("internalTrafficPolicy", policy(shape.policies.0));
    set("externalTrafficPolicy", policy(shape.policies.1));
    if let Some((kind, secs)) = shape.affinity {
        let kinds = ["ClientIP", "None", "", "Other"];
        set("sessionAffinity", Some(pick(&kinds, kind).into()));
        set(
            "sessionAffinityConfig",
            Some(json!({"clientIP": {"timeoutSeconds": secs}})),
        );
    }
    set(
        "healthCheckNodePort",
        shape.health_check_node_port.map(Value::from),
    );
    let mut ingress = Vec::new();
    for (ip, is_vip) in &shape.ingress {
        let mut entry = json!({});
        if let Some(ip) = ip {
            entry["ip"] = ip.of(&ADDRESSES).into();
        }
        if let Some(is_vip) = is_vip {
            entry["ipMode"] = if *is_vip { "VIP" } else { "Proxy" }.into();
        }
        ingress.push(entry);
    }
    let proxy_name = "service.kubernetes.io/service-proxy-name";
    let mut metadata = json!({
        "name": pick(&NAMES, shape.name),
        "namespace": "default",
        "labels": labels(&[(proxy_name, "other", shape.labels & 15 == 1)]),
    });
    if let Some(day) = shape.created {
        metadata["creationTimestamp"] = format!("2026-01-{:02}T00:00:00Z", day % 28 + 1).into();
    }
    let api: ApiService = from_json(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }));
    let service = match reduce::service(&api, names) {
        Ok(service) => service,
        Err(error) => {
            refused(&error);
            return None;
        }
    };
    if let Some(service) = &service {
        nothing_of_a_service_is_lost(shape, service);
    }
    let key = Key::new("default", pick(&NAMES, shape.name));
    Some(ObjectEvent::Service(key, service.map(Into::into)))
}

fn nothing_of_a_service_is_lost(shape: &ServiceShape, service: &Service) {
    assert_eq!(service.ports.len(), shape.ports.len());
    let skipped = |field: &str| {
        let start = format!("{field}[");
        let named = service.skipped.iter();
        named.filter(|text| text.starts_with(&start)).count()
    };
    let empty = |list: &[Text]| {
        let texts = list.iter().map(|text| text.of(&ADDRESSES));
        texts.filter(String::is_empty).count()
    };
    assert_eq!(
        service.external_ips.len() + skipped("spec.externalIPs") + empty(&shape.external_ips),
        shape.external_ips.len(),
        "{service:?}"
    );
    assert_eq!(
        service.source_ranges.len() + skipped("spec.loadBalancerSourceRanges"),
        shape.ranges.len(),
        "{service:?}"
    );
    let meant = |(ip, is_vip): &&(Option<Text>, Option<bool>)| {
        let is_given = ip.as_ref().is_some_and(|ip| !ip.of(&ADDRESSES).is_empty());
        is_given && *is_vip != Some(false)
    };
    assert_eq!(
        service.load_balancer_ips.len() + skipped("status.loadBalancer.ingress"),
        shape.ingress.iter().filter(meant).count(),
        "{service:?}"
    );
}

fn slice(shape: &SliceShape, names: &mut Interner) -> Option<ObjectEvent> {
    let mut endpoints = Vec::new();
    for endpoint in &shape.endpoints {
        let (ready, serving, terminating) = endpoint.conditions;
        let mut object = json!({
            "addresses": texts(&endpoint.addresses, &ADDRESSES),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if let Some(node) = endpoint.node {
            object["nodeName"] = pick(&NAMES, node).into();
        }
        if let Some(zone) = endpoint.zone {
            object["zone"] = pick(&NAMES, zone).into();
        }
        if let Some((zones, nodes)) = &endpoint.hints {
            let named = |list: &[u8]| -> Vec<Value> {
                list.iter()
                    .map(|number| json!({"name": pick(&NAMES, *number)}))
                    .collect()
            };
            object["hints"] = json!({"forZones": named(zones), "forNodes": named(nodes)});
        }
        endpoints.push(object);
    }
    let families = ["IPv4", "IPv6", "FQDN", "Other"];
    let service = shape.service.map(|number| pick(&NAMES, number));
    let ports: Vec<Value> = shape.ports.iter().map(Port::json).collect();
    let api: ApiSlice = from_json(&json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": pick(&NAMES, shape.name),
            "namespace": "default",
            "labels": labels(&[
                ("kubernetes.io/service-name", service.unwrap_or_default(), service.is_some()),
                ("service.kubernetes.io/headless", "", shape.is_headless),
            ]),
        },
        "addressType": pick(&families, shape.family),
        "ports": ports,
        "endpoints": endpoints,
    }));
    let slice = match reduce::slice(&api, names) {
        Ok(slice) => slice,
        Err(error) => {
            refused(&error);
            return None;
        }
    };
    if let Some(slice) = &slice {
        nothing_of_a_slice_is_lost(shape, slice);
    }
    let key = Key::new("default", pick(&NAMES, shape.name));
    Some(ObjectEvent::Slice(key, slice.map(Into::into)))
}

fn nothing_of_a_slice_is_lost(shape: &SliceShape, slice: &EndpointSlice) {
    let numbered = shape.ports.iter().filter(|port| port.port & 0x3_ffff != 0);
    assert_eq!(slice.ports.len(), numbered.count(), "{slice:?}");
    let with_address = shape
        .endpoints
        .iter()
        .filter(|endpoint| !endpoint.addresses.is_empty());
    assert_eq!(slice.endpoints.len(), with_address.count(), "{slice:?}");
    for endpoint in &slice.endpoints {
        assert_eq!(IpFamily::of(&endpoint.addr), slice.family);
    }
}

fn api_node(shape: &NodeShape) -> Option<ObjectEvent> {
    let kinds = ["InternalIP", "ExternalIP", "Hostname"];
    let mut addresses = Vec::new();
    for (kind, text) in &shape.addresses {
        addresses.push(json!({"type": pick(&kinds, *kind), "address": text.of(&ADDRESSES)}));
    }
    let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    let zone = shape.zone.map(|zone| pick(&NAMES, zone));
    let zone_label = "topology.kubernetes.io/zone";
    let api: ApiNode = from_json(&json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": pick(&NAMES, shape.name),
            "labels": labels(&[(zone_label, zone.unwrap_or_default(), zone.is_some())]),
        },
        "spec": {
            "podCIDRs": texts(&shape.pod_cidrs, &PREFIXES),
            "taints": if shape.is_tainted { vec![taint] } else { Vec::new() },
        },
        "status": {"addresses": addresses},
    }));
    let node = match reduce::node(&api) {
        Ok(node) => node,
        Err(error) => {
            refused(&error);
            return None;
        }
    };
    assert_eq!(node.pod_cidrs.len(), shape.pod_cidrs.len());
    let of_kind = shape
        .addresses
        .iter()
        .filter(|(kind, _)| pick(&kinds, *kind) != "Hostname");
    assert_eq!(node.addresses.len(), of_kind.count());
    assert_eq!(node.leaving, shape.is_tainted);
    Some(ObjectEvent::Node(Some(node.into())))
}

/// A state that was never anything else holds the same.
fn from_the_start(store: &ObjectStore, state: &Desired, view: NodeView) {
    let mut fresh = desired(view);
    let services = store
        .services()
        .map(|service| service.key.clone())
        .collect();
    fresh.apply(
        store,
        &Dirty {
            services,
            node: false,
        },
    );
    let ports = |state: &Desired| -> BTreeMap<_, _> {
        let ports = state.current();
        ports.map(|port| (port.key.clone(), port.clone())).collect()
    };
    assert_eq!(ports(state), ports(&fresh), "service ports");
    let conflicts = |state: &Desired| {
        let mut all: Vec<String> = state.conflicts().map(|c| format!("{c:?}")).collect();
        all.sort();
        all
    };
    assert_eq!(conflicts(state), conflicts(&fresh), "conflicts");
    assert_eq!(
        state.health_checks(),
        fresh.health_checks(),
        "health checks"
    );
    let problems = |state: &Desired| -> BTreeMap<Key, Vec<String>> {
        let all = state.problems();
        all.map(|(key, texts)| (key.clone(), texts.to_vec()))
            .collect()
    };
    assert_eq!(problems(state), problems(&fresh), "problems");
    for service in store.services() {
        let told = problems(state).remove(&service.key).unwrap_or_default();
        for skipped in &service.skipped {
            assert!(told.contains(skipped), "nobody is told of {skipped}");
        }
    }
}

/// Every port of every Service is served in every family of its ClusterIPs.
fn ports_are_there(store: &ObjectStore, state: &Desired) {
    for service in store.services() {
        let is_served = service.kind != ServiceType::ExternalName;
        for family in IpFamily::BOTH {
            let has_ip = service
                .cluster_ips
                .iter()
                .any(|ip| IpFamily::of(ip) == family);
            for port in &service.ports {
                let found = state.current().any(|held| {
                    let name = &held.key.name;
                    held.key.family == family
                        && name.service == service.key.name
                        && name.namespace == service.key.namespace
                        && name.port == port.name
                        && name.protocol == port.protocol
                });
                assert_eq!(
                    found,
                    is_served && has_ip,
                    "{port:?} of {service:?}, {family:?}"
                );
            }
        }
    }
}
