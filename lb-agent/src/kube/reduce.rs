//! API objects → our reduced objects. What the server-side selectors would hide gives `None`
//! (semantics 2.1 to 2.5); an object that the API server would not store is an error that names the
//! field.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Endpoints, Node as ApiNode, Service as ApiService, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice as ApiSlice},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    intern::Interner,
    objects::{
        EndpointSlice, Key, Node, Placement, Port, Service, ServiceType, SliceEndpoint, SlicePort,
    },
};
use crate::net::{self, IpFamily, Prefix, Protocol};

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A field that holds what it must not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong, and what to write.
    pub problem: String,
}

pub(super) fn field(field: impl Into<String>, problem: impl Into<String>) -> FieldError {
    FieldError {
        field: field.into(),
        problem: problem.into(),
    }
}

/// Namespace (`default` where none is given) and name.
pub fn key(meta: &ObjectMeta, names: &mut Interner) -> Result<Key, FieldError> {
    let name = meta.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| field("metadata.name", "missing; every object needs a name"))?;
    let namespace = meta
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty());
    Ok(Key {
        namespace: names.name(namespace.unwrap_or("default")),
        name: names.name(name),
    })
}

fn has_label(meta: &ObjectMeta, label: &str) -> bool {
    meta.labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(label))
}

fn port_number(number: i32, path: impl FnOnce() -> String) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(field(
            path(),
            format!("{number} is no port; write one of 1 to 65535"),
        )),
    }
}

fn protocol(text: Option<&str>, path: impl FnOnce() -> String) -> Result<Protocol, FieldError> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(field(
            path(),
            format!("`{other}` is no protocol; write TCP, UDP or SCTP"),
        )),
    }
}

fn policy_is_local(text: Option<&str>, path: &str) -> Result<bool, FieldError> {
    match text {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(field(
            path,
            format!("`{other}` is no policy; write Cluster or Local"),
        )),
    }
}

pub(super) fn service_type(spec: &ServiceSpec) -> Result<ServiceType, FieldError> {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => Err(field(
            "spec.type",
            format!("`{other}` is no type; write ClusterIP, NodePort or LoadBalancer"),
        )),
    }
}

/// `spec.clusterIPs`, or `spec.clusterIP` alone, with the path of each.
pub(super) fn written_cluster_ips(spec: &ServiceSpec) -> Vec<(String, &str)> {
    match spec.cluster_ips.as_deref() {
        Some(list) if !list.is_empty() => list
            .iter()
            .enumerate()
            .map(|(i, text)| (format!("spec.clusterIPs[{i}]"), text.as_str()))
            .collect(),
        _ => spec
            .cluster_ip
            .iter()
            .map(|text| ("spec.clusterIP".to_owned(), text.as_str()))
            .collect(),
    }
}

/// Reduces a Service; `None` where the selectors hide it.
pub fn service(api: &ApiService, names: &mut Interner) -> Result<Option<Service>, FieldError> {
    let key = key(&api.metadata, names)?;
    let default_spec = ServiceSpec::default();
    let spec = api.spec.as_ref().unwrap_or(&default_spec);
    let kind = service_type(spec)?;
    // semantics 2.1: the field selector looks at `spec.clusterIP` alone.
    let headless = spec.cluster_ip.as_deref() == Some("None")
        || spec
            .cluster_ips
            .as_ref()
            .is_some_and(|ips| ips.first().is_some_and(|ip| ip == "None"));
    if headless || has_label(&api.metadata, PROXY_NAME_LABEL) {
        return Ok(None);
    }
    let mut skipped = Vec::new();
    let mut ports = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        ports.push(service_port(port, i, names)?);
    }
    let mut external_ips = Vec::new();
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        // semantics 4.3
        match net::address(text) {
            Some(addr) => external_ips.push(addr),
            None if text.is_empty() => {}
            None => skipped.push(format!("spec.externalIPs[{i}]: `{text}` is no address")),
        }
    }
    let mut source_ranges = Vec::new();
    for (i, text) in spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate()
    {
        // semantics 4.5
        match Prefix::parse(text) {
            Some(prefix) => source_ranges.push(prefix),
            None => skipped.push(format!(
                "spec.loadBalancerSourceRanges[{i}]: `{text}` is no prefix"
            )),
        }
    }
    let client_ip_affinity = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => Some(
            spec.session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref())
                .and_then(|client_ip| client_ip.timeout_seconds),
        ),
        Some(other) => {
            return Err(field(
                "spec.sessionAffinity",
                format!("`{other}` is no affinity; write None or ClientIP"),
            ));
        }
    };
    Ok(Some(Service {
        key,
        created_ns: api
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.as_nanosecond()),
        kind,
        cluster_ips: cluster_ips(spec)?,
        ports,
        external_ips,
        load_balancer_ips: load_balancer_ips(api, &mut skipped),
        source_ranges,
        internal_local: policy_is_local(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
        )?,
        external_local: policy_is_local(
            spec.external_traffic_policy.as_deref(),
            "spec.externalTrafficPolicy",
        )?,
        client_ip_affinity,
        health_check_node_port: spec
            .health_check_node_port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(0),
        skipped,
    }))
}

fn service_port(port: &ServicePort, i: usize, names: &mut Interner) -> Result<Port, FieldError> {
    Ok(Port {
        name: names.name(port.name.as_deref().unwrap_or("")),
        protocol: protocol(port.protocol.as_deref(), || {
            format!("spec.ports[{i}].protocol")
        })?,
        port: port_number(port.port, || format!("spec.ports[{i}].port"))?,
        node_port: match port.node_port {
            None | Some(0) => 0,
            Some(number) => port_number(number, || format!("spec.ports[{i}].nodePort"))?,
        },
    })
}

/// The ClusterIPs whose family is the one that `spec.ipFamilies` gives them (semantics 3.3).
fn cluster_ips(spec: &ServiceSpec) -> Result<Vec<std::net::IpAddr>, FieldError> {
    let families = spec.ip_families.as_deref().unwrap_or(&[]);
    let mut ips = Vec::with_capacity(2);
    for (i, (path, text)) in written_cluster_ips(spec).into_iter().enumerate() {
        if text.is_empty() {
            continue;
        }
        let Some(addr) = net::address(text) else {
            return Err(field(path, format!("`{text}` is no address")));
        };
        let named = families.get(i).map(String::as_str);
        if families.is_empty() || named == Some(IpFamily::of(&addr).name()) {
            ips.push(addr);
        }
    }
    Ok(ips)
}

/// `status.loadBalancer.ingress[]` (semantics 4.4).
fn load_balancer_ips(api: &ApiService, skipped: &mut Vec<String>) -> Vec<std::net::IpAddr> {
    let status = api
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let mut ips = Vec::new();
    for (i, ingress) in status
        .iter()
        .flat_map(|status| status.ingress.iter().flatten())
        .enumerate()
    {
        let is_vip = ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        let Some(text) = ingress.ip.as_deref().filter(|ip| is_vip && !ip.is_empty()) else {
            continue;
        };
        match net::address(text) {
            Some(addr) => ips.push(addr),
            None => skipped.push(format!(
                "status.loadBalancer.ingress[{i}].ip: `{text}` is no address"
            )),
        }
    }
    ips
}

/// Reduces a slice; `None` where the selectors hide it or it concerns nobody.
pub fn slice(api: &ApiSlice, names: &mut Interner) -> Result<Option<EndpointSlice>, FieldError> {
    let key = key(&api.metadata, names)?;
    // semantics 2.4
    if has_label(&api.metadata, HEADLESS_LABEL) {
        return Ok(None);
    }
    let labels = api.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    let Some(service) = service.filter(|name| !name.is_empty()) else {
        // semantics 5.1
        tracing::info!(slice = %key, "ignored: it has no label {SERVICE_NAME_LABEL}");
        return Ok(None);
    };
    let family = match api.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => return Ok(None), // semantics 5.2
        other => {
            return Err(field(
                "addressType",
                format!("`{other}` is no address type; write IPv4 or IPv6"),
            ));
        }
    };
    let mut ports = Vec::new();
    for (i, port) in api.ports.iter().flatten().enumerate() {
        ports.extend(slice_port(&key, port, i, names)?);
    }
    let mut endpoints = Vec::with_capacity(api.endpoints.len());
    for (i, endpoint) in api.endpoints.iter().enumerate() {
        endpoints.extend(slice_endpoint(&key, family, endpoint, i, names)?);
    }
    let service = names.name(service);
    Ok(Some(EndpointSlice {
        key,
        service,
        family,
        ports,
        endpoints,
    }))
}

fn slice_port(
    slice: &Key,
    port: &EndpointPort,
    i: usize,
    names: &mut Interner,
) -> Result<Option<SlicePort>, FieldError> {
    // Semantics 5.4, 5.5. The API server's default of an absent name is the empty one.
    let name = port.name.as_deref().unwrap_or_default();
    let Some(number) = port.port.filter(|port| *port != 0) else {
        tracing::info!(%slice, "ports[{i}] is ignored: it has no number");
        return Ok(None);
    };
    Ok(Some(SlicePort {
        name: names.name(name),
        protocol: protocol(port.protocol.as_deref(), || format!("ports[{i}].protocol"))?,
        port: port_number(number, || format!("ports[{i}].port"))?,
    }))
}

fn slice_endpoint(
    slice: &Key,
    family: IpFamily,
    endpoint: &Endpoint,
    i: usize,
    names: &mut Interner,
) -> Result<Option<SliceEndpoint>, FieldError> {
    // semantics 5.8
    let Some(text) = endpoint.addresses.first() else {
        tracing::info!(%slice, "endpoints[{i}] is ignored: it has no address");
        return Ok(None);
    };
    let addr = net::address(text).filter(|addr| IpFamily::of(addr) == family);
    let addr = addr.ok_or_else(|| {
        let path = format!("endpoints[{i}].addresses[0]");
        field(path, format!("`{text}` is no {} address", family.name()))
    })?;
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let mut interned = |name: Option<&String>| {
        name.filter(|name| !name.is_empty())
            .map(|name| names.name(name))
    };
    let placement = Placement {
        node: interned(endpoint.node_name.as_ref()),
        zone: interned(endpoint.zone.as_ref()),
        for_zones: hints
            .and_then(|hints| hints.for_zones.as_ref())
            .map(|zones| zones.iter().map(|zone| names.name(&zone.name)).collect())
            .unwrap_or_default(),
        for_nodes: hints
            .and_then(|hints| hints.for_nodes.as_ref())
            .map(|nodes| nodes.iter().map(|node| names.name(&node.name)).collect())
            .unwrap_or_default(),
    };
    Ok(Some(SliceEndpoint {
        placement: names.placement(placement),
        addr,
        // semantics 5.9
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    }))
}

/// The slices into which the mirroring controller would turn an Endpoints object: one a subset and
/// family. Their names hold a colon, which no slice of the API can.
pub fn endpoints(api: &Endpoints, names: &mut Interner) -> Result<Vec<EndpointSlice>, FieldError> {
    let key = key(&api.metadata, names)?;
    let labels = api.metadata.labels.as_ref();
    let skip = labels.and_then(|labels| labels.get(SKIP_MIRROR_LABEL));
    if skip.is_some_and(|value| value == "true") || has_label(&api.metadata, HEADLESS_LABEL) {
        return Ok(Vec::new());
    }
    let mut slices = Vec::new();
    for (i, subset) in api.subsets.iter().flatten().enumerate() {
        let mut ports = Vec::new();
        for (j, port) in subset.ports.iter().flatten().enumerate() {
            let path = |name: &str| format!("subsets[{i}].ports[{j}].{name}");
            ports.push(SlicePort {
                name: names.name(port.name.as_deref().unwrap_or("")),
                protocol: protocol(port.protocol.as_deref(), || path("protocol"))?,
                port: port_number(port.port, || path("port"))?,
            });
        }
        let mut found: [Vec<SliceEndpoint>; 2] = Default::default();
        let lists = [
            ("addresses", &subset.addresses, true),
            ("notReadyAddresses", &subset.not_ready_addresses, false),
        ];
        for (list, addresses, ready) in lists {
            for (j, address) in addresses.iter().flatten().enumerate() {
                let addr = net::address(&address.ip).ok_or_else(|| {
                    let path = format!("subsets[{i}].{list}[{j}].ip");
                    field(path, format!("`{}` is no address", address.ip))
                })?;
                let node = address.node_name.as_deref().filter(|node| !node.is_empty());
                let node = node.map(|node| names.name(node));
                found[IpFamily::of(&addr).index()].push(SliceEndpoint {
                    placement: names.placement(Placement {
                        node,
                        ..Placement::default()
                    }),
                    addr,
                    ready,
                    serving: true,
                    terminating: false,
                });
            }
        }
        for (family, endpoints) in IpFamily::BOTH.into_iter().zip(found) {
            if !endpoints.is_empty() {
                let name = format!("{}:{i}-{}", key.name, family.name());
                slices.push(EndpointSlice {
                    key: Key {
                        namespace: key.namespace.clone(),
                        name: name.into(),
                    },
                    service: key.name.clone(),
                    family,
                    ports: ports.clone(),
                    endpoints,
                });
            }
        }
    }
    Ok(slices)
}

/// Reduces a Node.
pub fn node(api: &ApiNode) -> Result<Node, FieldError> {
    let name = api.metadata.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| field("metadata.name", "missing; every object needs a name"))?;
    let listed = api
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or(&[]);
    let mut addresses = Vec::new();
    // semantics 12.5
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, address) in listed.iter().enumerate().filter(|(_, a)| a.type_ == kind) {
            let addr = net::address(&address.address).ok_or_else(|| {
                let path = format!("status.addresses[{i}].address");
                field(path, format!("`{}` is no address", address.address))
            })?;
            addresses.push(addr);
        }
    }
    let spec = api.spec.as_ref();
    let mut pod_cidrs = Vec::new();
    let listed = spec
        .and_then(|spec| spec.pod_cidrs.as_deref())
        .unwrap_or(&[]);
    for (i, text) in listed.iter().enumerate() {
        pod_cidrs.push(Prefix::parse(text).ok_or_else(|| {
            field(
                format!("spec.podCIDRs[{i}]"),
                format!("`{text}` is no prefix"),
            )
        })?);
    }
    let tainted = spec
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT));
    let zone = api
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(ZONE_LABEL));
    Ok(Node {
        name: name.into(),
        zone: zone
            .filter(|zone| !zone.is_empty())
            .map(|zone| Arc::from(zone.as_str())),
        addresses,
        pod_cidrs,
        leaving: tainted || api.metadata.deletion_timestamp.is_some(),
    })
}
