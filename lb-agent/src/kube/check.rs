//! What the API server would have refused or filled in, asked of hand-written Services: nobody
//! allocates a ClusterIP or a NodePort here.

use k8s_openapi::api::core::v1::{Service as ApiService, ServicePort, ServiceSpec};

use super::{
    objects::ServiceType,
    reduce::{FieldError, field, service_type, written_cluster_ips},
};
use crate::net::{self, IpFamily};

/// Finds the first fault of a Service.
pub(super) fn service(api: &ApiService) -> Result<(), FieldError> {
    let default_spec = ServiceSpec::default();
    let spec = api.spec.as_ref().unwrap_or(&default_spec);
    let kind = service_type(spec)?;
    let ips = written_cluster_ips(spec);
    if kind == ServiceType::ExternalName || ips.iter().any(|(_, text)| *text == "None") {
        return Ok(());
    }
    if ips.iter().all(|(_, text)| text.is_empty()) {
        return Err(field(
            "spec.clusterIP",
            "missing; nobody allocates one here, so write an address, or None for a headless \
             Service",
        ));
    }
    for (i, family) in spec.ip_families.iter().flatten().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        let written = ips.get(i).and_then(|(_, text)| net::address(text));
        match written {
            Some(addr) if IpFamily::of(&addr).name() == family => {}
            Some(addr) => {
                return Err(field(
                    path,
                    format!("{family} does not fit the ClusterIP {addr}"),
                ));
            }
            None => {
                return Err(field(
                    format!("spec.clusterIPs[{i}]"),
                    format!("missing; {path} asks for an {family} address"),
                ));
            }
        }
    }
    service_ports(spec, kind)?;
    let timeout = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds);
    if let Some(secs) = timeout.filter(|secs| !(1..=86_400).contains(secs)) {
        return Err(field(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{secs} is out of range; write 1 to 86400"),
        ));
    }
    Ok(())
}

fn service_ports(spec: &ServiceSpec, kind: ServiceType) -> Result<(), FieldError> {
    let ports = spec.ports.as_deref().unwrap_or(&[]);
    if ports.is_empty() {
        return Err(field("spec.ports", "missing; write at least one port"));
    }
    let allocates = match kind {
        ServiceType::NodePort => true,
        ServiceType::LoadBalancer => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    for (i, port) in ports.iter().enumerate() {
        if allocates && port.node_port.unwrap_or(0) == 0 {
            let otherwise = if kind == ServiceType::LoadBalancer {
                ", or set spec.allocateLoadBalancerNodePorts to false"
            } else {
                ""
            };
            return Err(field(
                format!("spec.ports[{i}].nodePort"),
                format!("missing; nobody allocates one here, so write a port{otherwise}"),
            ));
        }
        // semantics 21.2
        let name = port.name.as_deref().unwrap_or("");
        if name.is_empty() && ports.len() > 1 {
            return Err(field(
                format!("spec.ports[{i}].name"),
                "missing; a Service of several ports names each",
            ));
        }
        for (j, earlier) in ports[..i].iter().enumerate() {
            if earlier.name.as_deref() == port.name.as_deref() {
                return Err(field(
                    format!("spec.ports[{i}].name"),
                    format!("`{name}` is the name of spec.ports[{j}], too"),
                ));
            }
            let protocol =
                |port: &ServicePort| port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            if earlier.port == port.port && protocol(earlier) == protocol(port) {
                return Err(field(
                    format!("spec.ports[{i}].port"),
                    format!(
                        "{}/{} is in spec.ports[{j}], too",
                        port.port,
                        protocol(port)
                    ),
                ));
            }
        }
    }
    Ok(())
}
