//! The API objects reduced to what the semantics need, and the events that every source emits.
//! They still say what the API says: what follows from it is decided in `desired/`.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::net::{IpFamily, Prefix, Protocol};

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// A key of two names.
    pub fn new(namespace: &str, name: &str) -> Self {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    /// `ClusterIP`.
    #[default]
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`: no business of ours (semantics 3.2).
    ExternalName,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its name; empty for an unnamed one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of every frontend but NodePorts.
    pub port: u16,
    /// The NodePort; 0 none.
    pub node_port: u16,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// Creation time in nanoseconds since 1970, where the object tells it.
    pub created_ns: Option<i128>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs` with the family that `spec.ipFamilies` gives each; empty for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<Port>,
    /// `spec.externalIPs` that are addresses.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP` (semantics 4.4).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` that are prefixes.
    pub source_ranges: Vec<Prefix>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `clientIP.timeoutSeconds` as given; `None` where `sessionAffinity` is not `ClientIP`.
    pub client_ip_affinity: Option<Option<i32>>,
    /// `spec.healthCheckNodePort`; 0 none.
    pub health_check_node_port: u16,
    /// Entries of the object that were skipped, each with its field and the reason.
    pub skipped: Vec<String>,
}

/// One entry of a slice's `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Its name; empty for an unnamed one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// Where an endpoint is and who should use it. Few differ, so slices share them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Placement {
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`, for display.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub for_zones: Box<[Arc<str>]>,
    /// `hints.forNodes[].name`.
    pub for_nodes: Box<[Arc<str>]>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Where it is.
    pub placement: Arc<Placement>,
    /// Its first address (semantics 5.8).
    pub addr: IpAddr,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
}

/// An EndpointSlice of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: Key,
    /// The Service that it belongs to, in the same namespace.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: IpFamily,
    /// `ports`.
    pub ports: Vec<SlicePort>,
    /// `endpoints`.
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    /// The Service that it belongs to.
    pub fn service_key(&self) -> Key {
        Key {
            namespace: self.key.namespace.clone(),
            name: self.service.clone(),
        }
    }
}

/// The Node that this agent runs on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, where not empty.
    pub zone: Option<Arc<str>>,
    /// `status.addresses`: InternalIPs before ExternalIPs (semantics 12.5).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Prefix>,
    /// It has a deletion timestamp or the cluster autoscaler's deletion taint.
    pub leaving: bool,
}

/// What a source of objects reports: the new state of one object, `None` where it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectEvent {
    /// A Service.
    Service(Key, Option<Arc<Service>>),
    /// An EndpointSlice.
    Slice(Key, Option<Arc<EndpointSlice>>),
    /// This agent's Node.
    Node(Option<Arc<Node>>),
}
