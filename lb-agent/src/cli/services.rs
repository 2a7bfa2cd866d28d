//! `services`: every frontend in the maps, by name, with backends, policies and traffic of its service port.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    abi::{Backend, BackendFlags, FrontendKind, Service, ServiceFlags, ServiceKey, ServiceStats},
    flow_table::TableFamily,
};
use serde::Serialize;

use super::{
    query::View,
    table::{NOTHING, Output, Shown, family_name, print_json, print_text, protocol, render},
};
use crate::{
    bpf::maps::{FamilyPins, MapResult, MappedArray, Maps, Plain},
    telemetry::{counters::service_stats, state::Names},
};

/// A frontend.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Namespace; absent where the name is not known.
    pub namespace: Option<String>,
    /// Name of the Service.
    pub service: Option<String>,
    /// Name of the port; empty for an unnamed one.
    pub port: Option<String>,
    /// Id of the service port.
    pub service_id: u32,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Protocol.
    pub protocol: &'static str,
    /// Kind of frontend.
    pub kind: &'static str,
    /// Dialled address and port.
    pub frontend: SocketAddr,
    /// Policy in force: `Cluster` or `Local`.
    pub policy: &'static str,
    /// Seconds of client affinity; 0 none.
    pub affinity_secs: u32,
    /// `loadBalancerSourceRanges` restrict it.
    pub has_source_ranges: bool,
    /// Backends in the Cluster list.
    pub cluster_backends: u32,
    /// Backends in the Local list; 0 where no policy is Local.
    pub local_backends: u32,
    /// Backends of either list that are on this node.
    pub node_backends: u32,
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

/// Backends of a service port: in the Cluster list, in the Local list, in either and on this node.
type Members = HashMap<u32, [u32; 3]>;

impl Row {
    fn new<F: TableFamily>(
        key: &ServiceKey<F>,
        value: &Service,
        stats: ServiceStats,
        members: &Members,
        names: &Names,
    ) -> Row
    where
        F::Addr: Shown,
    {
        let name = names.name(value.id);
        let local = value
            .flags
            .intersects(ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL);
        let [cluster_backends, local_backends, node_backends] =
            members.get(&value.id).copied().unwrap_or_default();
        Row {
            namespace: name.map(|name| name.namespace.clone()),
            service: name.map(|name| name.name.clone()),
            port: name.map(|name| name.port.clone()),
            service_id: value.id,
            family: family_name::<F>(),
            protocol: protocol(key.proto),
            kind: kind(value.kind),
            frontend: SocketAddr::new(key.addr.ip(), key.port.to_host()),
            policy: if local { "Local" } else { "Cluster" },
            affinity_secs: value.affinity_secs,
            has_source_ranges: value.has(ServiceFlags::SOURCE_RANGES),
            cluster_backends,
            local_backends,
            node_backends,
            cluster_rows: value.cluster.len,
            local_rows: value.local.len,
            flows: stats.flows,
            packets: stats.packets,
            bytes: stats.bytes,
        }
    }

    /// The frontend with the list in force, and the service port's traffic on its first row.
    fn cells(&self, names: &Names, is_first: bool) -> [String; 13] {
        let (backends, rows) = if self.policy == "Local" {
            (self.local_backends, self.local_rows)
        } else {
            (self.cluster_backends, self.cluster_rows)
        };
        let traffic = |count: u64| {
            if is_first {
                count.to_string()
            } else {
                String::new()
            }
        };
        [
            names.full(self.service_id),
            self.protocol.into(),
            self.family.into(),
            self.kind.into(),
            self.frontend.to_string(),
            if self.has_source_ranges {
                format!("{}, ranges", self.policy)
            } else {
                self.policy.into()
            },
            if self.affinity_secs == 0 {
                NOTHING.into()
            } else {
                format!("{} s", self.affinity_secs)
            },
            backends.to_string(),
            self.node_backends.to_string(),
            rows.to_string(),
            traffic(self.flows),
            traffic(self.packets),
            traffic(self.bytes),
        ]
    }

    /// Order of the table: by name, then as people think of frontends.
    fn order(&self) -> impl Ord + use<> {
        let kind = ["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"]
            .iter()
            .position(|kind| *kind == self.kind);
        let address: (IpAddr, u16) = (self.frontend.ip(), self.frontend.port());
        let name = (
            self.namespace.clone(),
            self.service.clone(),
            self.port.clone(),
        );
        (
            self.namespace.is_none(),
            name,
            self.protocol,
            self.family,
            self.service_id,
            kind,
            address,
        )
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

/// Counts the members of every list.
fn members<F: TableFamily>(
    backends: &MappedArray<Backend<F>>,
    members: &mut Members,
) -> MapResult<()>
where
    Backend<F>: Plain,
{
    for id in 1..backends.max_entries() {
        let backend = backends.read(id)?;
        if backend.service_id != 0 {
            let [cluster, local, node] = members.entry(backend.service_id).or_default();
            let has = |flags| backend.state.flags().intersects(flags);
            *cluster += u32::from(has(BackendFlags::IN_CLUSTER));
            *local += u32::from(has(BackendFlags::IN_LOCAL));
            *node += u32::from(
                has(BackendFlags::LOCAL) && has(BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL),
            );
        }
    }
    Ok(())
}

fn family<F: TableFamily>(
    maps: &Maps,
    pins: &FamilyPins<F>,
    members: &Members,
    names: &Names,
    rows: &mut Vec<Row>,
) -> MapResult<()>
where
    F::Addr: Shown,
{
    for (key, value) in pins.services.entries()? {
        if !value.has(ServiceFlags::ADDRESS_ONLY) {
            let stats = service_stats(&maps.service_stats, value.id)?;
            rows.push(Row::new(&key, &value, stats, members, names));
        }
    }
    Ok(())
}

/// Prints the frontends of both families, of all namespaces or of one.
pub(super) fn services(view: &View, namespace: Option<&str>) -> Result<()> {
    let maps = &view.maps;
    let mut lists = Members::new();
    members(&maps.v4.backends, &mut lists)?;
    members(&maps.v6.backends, &mut lists)?;
    let mut rows = Vec::new();
    family(maps, &maps.v4, &lists, &view.names, &mut rows)?;
    family(maps, &maps.v6, &lists, &view.names, &mut rows)?;
    rows.retain(|row| {
        namespace.is_none_or(|namespace| row.namespace.as_deref() == Some(namespace))
    });
    rows.sort_by_cached_key(Row::order);
    if view.output == Output::Json {
        return print_json(&rows);
    }
    let heads = [
        "SERVICE", "PROTO", "FAMILY", "KIND", "FRONTEND", "POLICY", "AFFINITY", "BACKENDS", "HERE",
        "ROWS", "FLOWS", "PACKETS", "BYTES",
    ];
    let cells: Vec<_> = rows
        .iter()
        .zip(is_first(&rows))
        .map(|(row, is_first)| row.cells(&view.names, is_first))
        .collect();
    print_text(&render(heads, &cells))
}

/// Which rows are the first of their service port: these show its traffic, which is that of all its frontends.
fn is_first(rows: &[Row]) -> impl Iterator<Item = bool> {
    let before = std::iter::once(None).chain(rows.iter().map(|row| Some(row.service_id)));
    rows.iter()
        .zip(before)
        .map(|(row, before)| before != Some(row.service_id))
}

#[cfg(test)]
mod tests {
    use lb_common::{
        V6,
        abi::{Be16, proto},
    };

    use super::*;
    use crate::telemetry::state::{ServiceName, State};

    #[test]
    fn a_row_shows_name_address_policy_and_backends() {
        let addr: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        let key = ServiceKey::<V6>::new(addr.into(), Be16::from_host(80), proto::UDP);
        let mut value = Service::default();
        (value.id, value.kind, value.flags) = (
            7,
            FrontendKind::NodePort as u8,
            ServiceFlags::EXTERNAL_LOCAL,
        );
        let stats = ServiceStats {
            flows: 2,
            ..ServiceStats::default()
        };
        let names = Names::new(Some(&State {
            services: vec![ServiceName {
                id: 7,
                namespace: "shop".into(),
                name: "web".into(),
                ..ServiceName::default()
            }],
            ..State::default()
        }));
        let row = Row::new(
            &key,
            &value,
            stats,
            &Members::from([(7, [3, 1, 2])]),
            &names,
        );
        assert_eq!(
            (
                row.frontend.to_string().as_str(),
                row.protocol,
                row.kind,
                row.policy,
                row.family
            ),
            ("[fd00::1]:80", "UDP", "NodePort", "Local", "IPv6")
        );
        assert_eq!(
            (row.namespace.as_deref(), row.service.as_deref()),
            (Some("shop"), Some("web"))
        );
        assert_eq!(
            (
                row.service_id,
                row.flows,
                row.cluster_backends,
                row.local_backends
            ),
            (7, 2, 3, 1)
        );
        let cells = row.cells(&names, false);
        assert_eq!(
            (
                cells[0].as_str(),
                cells[7].as_str(),
                cells[8].as_str(),
                cells[10].as_str()
            ),
            ("shop/web", "1", "2", "")
        );
        assert_eq!(row.cells(&names, true)[10], "2");
        let unknown = Row::new(&key, &value, stats, &Members::new(), &Names::default());
        assert_eq!((unknown.namespace, unknown.cluster_backends), (None, 0));
    }
}
