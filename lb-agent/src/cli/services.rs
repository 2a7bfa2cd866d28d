//! `services`: every frontend in the maps. The maps hold ids, not names of Services.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    Family,
    abi::{FrontendKind, Service, ServiceFlags, ServiceKey, ServiceStats, proto},
};
use serde::Serialize;

use super::table::{Output, Shown, print};
use crate::bpf::maps::{FamilyPins, MapResult, Maps};

/// A frontend.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    /// Id of the service port.
    pub service_id: u32,
    /// Dialled address and port.
    pub frontend: SocketAddr,
    /// Protocol.
    pub protocol: &'static str,
    /// Kind of frontend.
    pub kind: &'static str,
    /// Policy in force: `Cluster` or `Local`.
    pub policy: &'static str,
    /// Seconds of client affinity; 0 none.
    pub affinity_secs: u32,
    /// Rows of the Cluster table.
    pub cluster_rows: u32,
    /// Rows of the Local table.
    pub local_rows: u32,
    /// New flows of the service port, over all of its frontends.
    pub flows: u64,
    /// Its packets, client to backend.
    pub packets: u64,
    /// Its bytes, client to backend.
    pub bytes: u64,
}

impl Row {
    fn new<F: Family>(key: &ServiceKey<F>, value: &Service, stats: ServiceStats) -> Row
    where
        F::Addr: Shown,
    {
        Row {
            service_id: value.id,
            frontend: SocketAddr::new(key.addr.ip(), key.port.to_host()),
            protocol: protocol(key.proto),
            kind: kind(value.kind),
            policy: if value.flags & (ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL)
                == 0
            {
                "Cluster"
            } else {
                "Local"
            },
            affinity_secs: value.affinity_secs,
            cluster_rows: value.cluster.len,
            local_rows: value.local.len,
            flows: stats.flows,
            packets: stats.packets,
            bytes: stats.bytes,
        }
    }
}

/// Name of a protocol.
pub fn protocol(number: u8) -> &'static str {
    match number {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "other",
    }
}

fn kind(number: u8) -> &'static str {
    match FrontendKind::from_u8(number) {
        Some(FrontendKind::ClusterIp) => "ClusterIP",
        Some(FrontendKind::NodePort) => "NodePort",
        Some(FrontendKind::ExternalIp) => "ExternalIP",
        Some(FrontendKind::LoadBalancer) => "LoadBalancer",
        None => "unknown",
    }
}

fn stats(maps: &Maps, id: u32) -> MapResult<ServiceStats> {
    Ok(maps
        .service_stats
        .lookup(id)?
        .iter()
        .fold(ServiceStats::default(), |sum, cpu| ServiceStats {
            flows: sum.flows.wrapping_add(cpu.flows),
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
}

fn family<F: Family>(maps: &Maps, pins: &FamilyPins<F>, rows: &mut Vec<Row>) -> MapResult<()>
where
    F::Addr: Shown,
{
    for (key, value) in pins.services.entries()? {
        if !value.has(ServiceFlags::ADDRESS_ONLY) {
            rows.push(Row::new(&key, &value, stats(maps, value.id)?));
        }
    }
    Ok(())
}

/// Prints the frontends of both families.
pub fn services(maps: &Maps, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    family(maps, &maps.v4, &mut rows)?;
    family(maps, &maps.v6, &mut rows)?;
    rows.sort();
    let heads = [
        "SERVICE", "FRONTEND", "PROTO", "KIND", "POLICY", "AFFINITY", "CLUSTER", "LOCAL", "FLOWS",
        "PACKETS", "BYTES",
    ];
    print(output, heads, &rows, |r| {
        [
            r.service_id.to_string(),
            r.frontend.to_string(),
            r.protocol.into(),
            r.kind.into(),
            r.policy.into(),
            format!("{}s", r.affinity_secs),
            r.cluster_rows.to_string(),
            r.local_rows.to_string(),
            r.flows.to_string(),
            r.packets.to_string(),
            r.bytes.to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use lb_common::{V6, abi::Be16};

    use super::*;

    #[test]
    fn a_row_shows_address_port_and_policy() {
        let addr: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        let key = ServiceKey::<V6>::new(addr.into(), Be16::from_host(80), proto::UDP);
        let mut value = Service::default();
        (value.id, value.kind, value.flags) = (
            7,
            FrontendKind::NodePort as u8,
            ServiceFlags::EXTERNAL_LOCAL,
        );
        let row = Row::new(
            &key,
            &value,
            ServiceStats {
                flows: 2,
                ..ServiceStats::default()
            },
        );
        assert_eq!(
            (
                row.frontend.to_string().as_str(),
                row.protocol,
                row.kind,
                row.policy
            ),
            ("[fd00::1]:80", "UDP", "NodePort", "Local")
        );
        assert_eq!((row.service_id, row.flows), (7, 2));
    }
}
