//! What the dataplane is to hold: service ports with their frontends and endpoints, already decided
//! (semantics 3 to 7). The only types that `dataplane/` takes from `desired/`.

use std::{fmt, net::IpAddr, sync::Arc};

pub use lb_common::abi::FrontendKind;

use crate::net::{IpFamily, Prefix, Protocol};

/// Identity of a service port (semantics 1.6).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Name of the port; empty for an unnamed one.
    pub port: Arc<str>,
    /// Ports of one number and different protocols are different service ports.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        write!(f, "/{}", self.protocol.name())
    }
}

/// A service port in one family: what the dataplane keys everything by.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortKey {
    /// The service port, without a family.
    pub name: ServicePortName,
    /// A dual-stack Service has each of its ports once a family.
    pub family: IpFamily,
}

/// One frontend. NodePorts are expanded to one frontend per accepted node address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// The dialled address.
    pub addr: IpAddr,
    /// The dialled port.
    pub port: u16,
    /// What made it: decides clashes and which policies hold.
    pub kind: FrontendKindOrd,
}

/// [`FrontendKind`] with an order: a lower one wins an exact clash (semantics 14.12, 21.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FrontendKindOrd {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort` on one of this node's addresses.
    NodePort,
}

impl FrontendKindOrd {
    /// The number that maps hold.
    pub const fn abi(self) -> FrontendKind {
        match self {
            FrontendKindOrd::ClusterIp => FrontendKind::ClusterIp,
            FrontendKindOrd::LoadBalancer => FrontendKind::LoadBalancer,
            FrontendKindOrd::ExternalIp => FrontendKind::ExternalIp,
            FrontendKindOrd::NodePort => FrontendKind::NodePort,
        }
    }
}

/// An endpoint of a service port that the data path must know: in a list, or still serving.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// The address that packets are sent to.
    pub addr: IpAddr,
    /// The port there, already resolved from its name.
    pub port: u16,
    /// On this node (5.11).
    pub local: bool,
    /// In the Cluster list (6.2).
    pub in_cluster: bool,
    /// In the Local list (6.3).
    pub in_local: bool,
    /// Ready or serving: UDP flows to it stay (17.3). An endpoint that is none of the three is not
    /// listed here at all.
    pub usable: bool,
    /// Its zone, for display.
    pub zone: Option<Arc<str>>,
}

/// Everything that the dataplane holds of one service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Whose port it is, and of which family.
    pub key: PortKey,
    /// Its frontends that won (21.5), sorted, none twice.
    pub frontends: Vec<Frontend>,
    /// `internalTrafficPolicy: Local`: ClusterIPs use the Local list.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local` that counts (4.7).
    pub external_local: bool,
    /// Seconds of client affinity; 0 none.
    pub affinity_secs: u32,
    /// Restriction of the load-balancer frontends; empty: none.
    pub source_ranges: Vec<Prefix>,
    /// Its endpoints, sorted by address and port, none twice (5.13).
    pub endpoints: Vec<Endpoint>,
    /// Some node has a usable endpoint (6.7): an empty list in force means drop, not reject.
    pub has_endpoints: bool,
    /// Externally accessible (4.8): decides the ladder of table sizes.
    pub external: bool,
}

/// One step from the last desired state to the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The service port is new or differs.
    Set(Arc<ServicePort>),
    /// The service port is gone.
    Remove(PortKey),
}
