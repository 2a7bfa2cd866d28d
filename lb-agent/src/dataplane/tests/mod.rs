//! The dataplane over the fake maps: what is written, in which order, and what a restart keeps.

mod audit;
mod failures;
mod flows;
mod history;
mod restart;
mod scarce;
mod writes;

use std::{net::IpAddr, sync::Arc};

use lb_common::{
    V4,
    abi::{
        Affinity, AffinityKey, BackendFlags, BackendState, Be16, SelectionList, Service,
        ServiceFlags, ServiceKey,
    },
};

use super::{
    Dataplane, DataplaneConfig,
    fake::{FakeStore, Op},
    gc::{FlowGc, Now},
    model,
    report::{ApplyError, Usage},
    store::{Capacities, FamilyMaps, MapStore},
};
use crate::{
    desired::state::{
        Change, Endpoint, Frontend, FrontendKindOrd, PortKey, ServicePort, ServicePortName,
    },
    net::{IpFamily, Prefix, Protocol},
};

fn key(name: &str) -> PortKey {
    PortKey {
        name: ServicePortName {
            namespace: "default".into(),
            service: name.into(),
            port: "".into(),
            protocol: Protocol::Tcp,
        },
        family: IpFamily::V4,
    }
}

fn frontend(addr: &str, port: u16, kind: FrontendKindOrd) -> Frontend {
    Frontend {
        addr: addr.parse().unwrap(),
        port,
        kind,
    }
}

fn endpoint(addr: &str) -> Endpoint {
    Endpoint {
        addr: addr.parse().unwrap(),
        port: 8080,
        local: false,
        in_cluster: true,
        in_local: false,
        usable: true,
        zone: None,
    }
}

fn service_port(name: &str, cluster_ip: &str, endpoints: &[&str]) -> ServicePort {
    let mut port = model::nothing(&key(name));
    port.frontends = vec![frontend(cluster_ip, 80, FrontendKindOrd::ClusterIp)];
    port.endpoints = endpoints.iter().map(|a| endpoint(a)).collect();
    port.endpoints.sort();
    port.has_endpoints = !endpoints.is_empty();
    if let Some(IpFamily::V6) = endpoints.first().map(|a| IpFamily::of(&a.parse().unwrap())) {
        port.key.family = IpFamily::V6;
    }
    port
}

fn set(port: &ServicePort) -> Change {
    Change::Set(Arc::new(port.clone()))
}

fn start(store: FakeStore) -> Dataplane<FakeStore> {
    Dataplane::new(
        store,
        DataplaneConfig {
            snat_ports: "20000-20001".parse().unwrap(),
        },
    )
    .unwrap()
}

fn restart(dataplane: &Dataplane<FakeStore>) -> Dataplane<FakeStore> {
    let store = dataplane.store().clone();
    store.take_ops();
    start(store)
}

/// A round over all flows, at a moment when none is old.
fn look_at_flows(dataplane: &mut Dataplane<FakeStore>, gc: &mut FlowGc) {
    let now = Now { stamp: 1, hz: 256 };
    let report = dataplane.age(gc, now, &mut || true).unwrap();
    assert!(report.is_round_complete);
}

/// As many rounds as it takes to be sure that no flow needs a port.
fn look_at_all_flows(dataplane: &mut Dataplane<FakeStore>) {
    let mut gc = FlowGc::default();
    look_at_flows(dataplane, &mut gc);
    look_at_flows(dataplane, &mut gc);
}

fn entry(dataplane: &Dataplane<FakeStore>, addr: &str, port: u16) -> Option<Service> {
    let key = ServiceKey::<V4>::new(
        model::to_addr::<V4>(addr.parse().unwrap()).unwrap(),
        Be16::from_host(port),
        6,
    );
    dataplane.store().v4.services.get(&key).copied()
}

fn rows(dataplane: &Dataplane<FakeStore>, table: SelectionList) -> Vec<IpAddr> {
    let store = dataplane.store();
    let ids = store.rows(table.offset, table.len);
    let mut addrs: Vec<_> = ids
        .iter()
        .map(|id| model::to_ip::<V4>(&store.v4.backends[*id as usize].addr))
        .collect();
    addrs.sort_unstable();
    addrs.dedup();
    addrs
}

fn addrs(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

fn position(ops: &[Op], what: impl Fn(&Op) -> bool) -> usize {
    ops.iter().position(what).expect("operation is recorded")
}
