//! Services, EndpointSlices and Nodes as the API server would show them, written into a directory
//! that an agent follows.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    echo::Proto,
    tempdir::TempDir,
    topology::{Ip, Place},
};

/// Namespace of everything built here.
pub const NAMESPACE: &str = "test";

/// A directory of manifests. Files appear and change by rename, in one step.
#[derive(Debug)]
pub struct ManifestDir {
    dir: TempDir,
}

impl ManifestDir {
    /// A new, empty directory.
    pub fn new() -> Result<ManifestDir> {
        Ok(ManifestDir {
            dir: TempDir::new("manifests")?,
        })
    }

    /// A directory with one file that holds all objects.
    pub fn with(objects: &[Value]) -> Result<ManifestDir> {
        let manifests = ManifestDir::new()?;
        manifests.write("all.json", &list(objects))?;
        Ok(manifests)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of text by renaming it into place. Returns its path.
    pub fn write_text(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        let partial = self.path().join(format!(".{name}.partial"));
        fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &path)
            .with_context(|| format!("cannot rename to {}", path.display()))?;
        Ok(path)
    }

    /// Writes an object.
    pub fn write(&self, name: &str, object: &Value) -> Result<PathBuf> {
        self.write_text(name, &object.to_string())
    }

    /// Deletes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Objects as one `List`.
pub fn list(objects: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects })
}

/// A Node.
pub fn node(place: &Place, zone: Option<&str>) -> Value {
    let labels = zone.map_or(
        json!({}),
        |zone| json!({ "topology.kubernetes.io/zone": zone }),
    );
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": place.name, "labels": labels },
        "status": { "addresses": [
            { "type": "InternalIP", "address": place.v4 },
            { "type": "InternalIP", "address": place.v6 },
        ] },
    })
}

/// A Service in the making.
#[derive(Clone, Debug)]
pub struct ServiceManifest {
    name: String,
    kind: &'static str,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Value>,
    spec: Vec<(&'static str, Value)>,
    ingress: Vec<Value>,
}

impl ServiceManifest {
    /// A Service with these cluster IPs.
    pub fn new(name: &str, cluster_ips: &[IpAddr]) -> ServiceManifest {
        ServiceManifest {
            name: name.into(),
            kind: "ClusterIP",
            cluster_ips: cluster_ips.to_vec(),
            ports: Vec::new(),
            spec: Vec::new(),
            ingress: Vec::new(),
        }
    }

    /// One more port, named after protocol and number.
    pub fn port(mut self, proto: Proto, port: u16) -> Self {
        self.ports.push(
            json!({ "name": port_name(proto, port), "protocol": proto.name(), "port": port }),
        );
        self
    }

    /// The same port number for TCP and UDP.
    pub fn both(self, port: u16) -> Self {
        self.port(Proto::Tcp, port).port(Proto::Udp, port)
    }

    /// NodePort of the port added last, and of the one before when both are of one number.
    pub fn node_port(mut self, node_port: u16) -> Self {
        if self.kind == "ClusterIP" {
            self.kind = "NodePort";
        }
        let number = self.ports.last().map(|port| port["port"].clone());
        for port in self
            .ports
            .iter_mut()
            .filter(|port| Some(&port["port"]) == number.as_ref())
        {
            port["nodePort"] = node_port.into();
        }
        self
    }

    /// A field of `spec`.
    pub fn field(mut self, name: &'static str, value: Value) -> Self {
        self.spec.push((name, value));
        self
    }

    /// `externalIPs`.
    pub fn external_ips(self, addrs: &[IpAddr]) -> Self {
        self.field("externalIPs", json!(addrs))
    }

    /// Type LoadBalancer with these addresses in its status.
    pub fn load_balancer(mut self, addrs: &[IpAddr]) -> Self {
        self.kind = "LoadBalancer";
        self.ingress
            .extend(addrs.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })));
        self
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(self) -> Self {
        self.field("internalTrafficPolicy", json!("Local"))
    }

    /// `externalTrafficPolicy: Local`.
    pub fn external_local(self) -> Self {
        self.field("externalTrafficPolicy", json!("Local"))
    }

    /// Session affinity by client address.
    pub fn affinity(self, seconds: u32) -> Self {
        self.field("sessionAffinity", json!("ClientIP")).field(
            "sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": seconds } }),
        )
    }

    /// `loadBalancerSourceRanges`.
    pub fn source_ranges(self, ranges: &[&str]) -> Self {
        self.field("loadBalancerSourceRanges", json!(ranges))
    }

    /// The object.
    pub fn build(&self) -> Value {
        let families: Vec<&str> = self
            .cluster_ips
            .iter()
            .map(|ip| Ip::of(*ip).name())
            .collect();
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name, "namespace": NAMESPACE },
            "spec": {
                "type": self.kind,
                "clusterIP": self.cluster_ips.first(),
                "clusterIPs": self.cluster_ips,
                "ipFamilies": families,
                "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                "ports": self.ports,
            },
        });
        for (name, value) in &self.spec {
            object["spec"][*name] = value.clone();
        }
        if !self.ingress.is_empty() {
            object["status"] = json!({ "loadBalancer": { "ingress": self.ingress } });
        }
        object
    }
}

/// Name of a Service's port built here, and of the slice's port that belongs to it.
pub fn port_name(proto: Proto, port: u16) -> String {
    format!("{}-{port}", proto.name().to_lowercase())
}

/// An EndpointSlice in the making.
#[derive(Clone, Debug)]
pub struct Slice {
    service: String,
    ip: Ip,
    suffix: String,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

impl Slice {
    /// A slice of a Service in one family.
    pub fn new(service: &str, ip: Ip) -> Slice {
        Slice {
            service: service.into(),
            ip,
            suffix: ip.name().to_lowercase(),
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Slices of both families with the same endpoints for a Service's port of TCP and UDP.
    pub fn both(service: &str, port: u16, target: u16, endpoints: &[Endpoint<'_>]) -> Vec<Value> {
        Ip::BOTH
            .map(|ip| {
                let slice = Slice::new(service, ip).port(Proto::Tcp, port, target).port(
                    Proto::Udp,
                    port,
                    target,
                );
                endpoints
                    .iter()
                    .fold(slice, |slice, endpoint| slice.endpoint(*endpoint))
                    .build()
            })
            .to_vec()
    }

    /// Another name than that of the family's first slice.
    pub fn suffix(mut self, suffix: &str) -> Self {
        self.suffix = suffix.into();
        self
    }

    /// The Service's port `port` is `target` at these endpoints.
    pub fn port(mut self, proto: Proto, port: u16, target: u16) -> Self {
        self.ports.push(
            json!({ "name": port_name(proto, port), "protocol": proto.name(), "port": target }),
        );
        self
    }

    /// One more endpoint.
    pub fn endpoint(mut self, endpoint: Endpoint<'_>) -> Self {
        let mut object = json!({
            "addresses": [endpoint.place.addr(self.ip)],
            "conditions": { "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating },
        });
        if let Some(node) = endpoint.node {
            object["nodeName"] = node.into();
        }
        self.endpoints.push(object);
        self
    }

    /// The object.
    pub fn build(&self) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.service, self.suffix), "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": self.service },
            },
            "addressType": self.ip.name(),
            "ports": self.ports,
            "endpoints": self.endpoints,
        })
    }
}

/// An endpoint in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    place: &'a Place,
    node: Option<&'a str>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl<'a> Endpoint<'a> {
    /// A ready endpoint. Its node follows from its name: a2 is on node-a, b3 on node-b.
    pub fn ready(place: &'a Place) -> Endpoint<'a> {
        let node = match place.name.as_bytes() {
            [b'a', b'0'..=b'9', ..] => Some("node-a"),
            [b'b', b'0'..=b'9', ..] => Some("node-b"),
            _ => Some(place.name.as_str()),
        };
        Endpoint {
            place,
            node,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// Neither ready nor serving.
    pub fn unready(place: &'a Place) -> Endpoint<'a> {
        Endpoint {
            ready: false,
            serving: false,
            ..Endpoint::ready(place)
        }
    }

    /// Terminating; still serving or not.
    pub fn terminating(place: &'a Place, serving: bool) -> Endpoint<'a> {
        Endpoint {
            ready: false,
            serving,
            terminating: true,
            ..Endpoint::ready(place)
        }
    }

    /// Without `nodeName`.
    pub fn nowhere(mut self) -> Self {
        self.node = None;
        self
    }
}
