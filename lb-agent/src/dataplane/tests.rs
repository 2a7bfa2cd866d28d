//! The dataplane over the fake maps: what is written, in which order, and what a restart keeps.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use lb_common::{
    V4,
    abi::{
        Affinity, AffinityKey, BackendFlags, BackendState, Be16, Service, ServiceFlags, ServiceKey,
    },
};
use proptest::prelude::*;

use super::{
    ApplyError, Dataplane, DataplaneConfig,
    fake::{Allowed, FakeStore, Op},
    model,
    store::{Capacities, FamilyMaps, MapStore},
};
use crate::{
    desired::state::{
        Change, Endpoint, Frontend, FrontendKindOrd, PortKey, ServicePort, ServicePortName,
    },
    net::{IpFamily, PortRange, Prefix, Protocol},
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

fn port(name: &str, cluster_ip: &str, endpoints: &[&str]) -> ServicePort {
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
            snat_ports: PortRange {
                first: 20_000,
                last: 20_001,
            },
        },
    )
    .unwrap()
}

fn restart(dataplane: &Dataplane<FakeStore>) -> Dataplane<FakeStore> {
    let store = dataplane.store().clone();
    store.take_ops();
    start(store)
}

fn entry(dataplane: &Dataplane<FakeStore>, addr: &str, port: u16) -> Option<Service> {
    let key = ServiceKey::<V4>::new(
        model::to_addr::<V4>(addr.parse().unwrap()).unwrap(),
        Be16::from_host(port),
        6,
    );
    dataplane.store().v4.services.get(&key).copied()
}

fn rows(dataplane: &Dataplane<FakeStore>, table: lb_common::abi::SelectionList) -> Vec<IpAddr> {
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

/// Semantics 22.5.
#[test]
fn new_service_port_is_published_after_its_backends_and_table() {
    let mut dataplane = start(FakeStore::small());
    let report = dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]))]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(
        (
            report.services_written,
            report.backends_written,
            report.tables_written
        ),
        (2, 2, 1)
    );
    let ops = dataplane.store().take_ops();
    let published = position(&ops, |op| matches!(op, Op::WriteService(_, 80)));
    assert!(position(&ops, |op| matches!(op, Op::WriteBackend(_))) < published);
    assert!(position(&ops, |op| matches!(op, Op::WriteRows(..))) < published);
    assert!(position(&ops, |op| matches!(op, Op::WritePort(80, true))) < published);
    assert!(position(&ops, |op| matches!(op, Op::WriteConfig)) < published);
    assert!(position(&ops, |op| matches!(op, Op::WriteService(_, 0))) > published);

    let service = entry(&dataplane, "10.96.0.1", 80).unwrap();
    assert_eq!(
        rows(&dataplane, service.cluster),
        addrs(&["10.0.0.1", "10.0.0.2"])
    );
    assert_eq!((service.cluster.len, service.local.len), (37, 0));
    assert!(service.has(ServiceFlags::HAS_ENDPOINTS));
    let config = dataplane.store().config;
    assert_eq!(
        model::to_ip::<V4>(&config.cluster_net_v4),
        "10.96.0.1".parse::<IpAddr>().unwrap()
    );
    assert_eq!(
        (config.snat_port_min, config.snat_port_max),
        (20_000, 20_001)
    );
}

/// Semantics 22.4: only what changed is written.
#[test]
fn unchanged_service_port_writes_nothing() {
    let mut dataplane = start(FakeStore::small());
    let a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[set(&a)]);
    dataplane.store().take_ops();
    assert!(dataplane.apply(&[set(&a)]).is_unchanged());
    assert_eq!(dataplane.store().take_ops(), []);
}

#[test]
fn changed_flags_write_state_words_only() {
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[set(&a)]);
    dataplane.store().take_ops();
    a.endpoints[0].local = true;
    dataplane.apply(&[set(&a)]);
    let ops = dataplane.store().take_ops();
    assert!(matches!(ops[..], [Op::WriteState(_)]), "{ops:?}");
}

#[test]
fn gone_endpoint_grows_its_generation_after_the_table_is_replaced() {
    // semantics 17.3
    let mut dataplane = start(FakeStore::small());
    dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]))]);
    dataplane.store().take_ops();
    let report = dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.2"]))]);
    assert_eq!(
        (report.tables_written, report.rows_written, report.barriers),
        (1, 1, 1)
    );
    let ops = dataplane.store().take_ops();
    let gone = position(&ops, |op| matches!(op, Op::WriteState(_)));
    let Op::WriteState(id) = ops[gone] else {
        unreachable!()
    };
    assert!(position(&ops, |op| matches!(op, Op::WriteService(_, 80))) < gone);
    assert!(gone < position(&ops, |op| *op == Op::Barrier));
    let dead = dataplane.store().v4.backends[id as usize];
    assert_eq!(
        model::to_ip::<V4>(&dead.addr),
        "10.0.0.1".parse::<IpAddr>().unwrap()
    );
    assert_eq!(dead.state.flags(), BackendFlags::NONE);
    // Once at once, once after the grace period.
    assert_eq!(dead.generation(), 3 * BackendState::GENERATION_STEP);

    // It comes back: the id has a new generation.
    dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]))]);
    let again = dataplane.store().v4.backends[id as usize];
    assert_eq!(again.generation(), 4 * BackendState::GENERATION_STEP);
    assert!(again.has(BackendFlags::USABLE));
}

#[test]
fn endpoint_that_leaves_a_list_but_serves_keeps_its_generation() {
    // semantics 17.4
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[set(&a)]);
    a.endpoints[0].in_cluster = false;
    dataplane.apply(&[set(&a)]);
    let store = dataplane.store();
    assert!(
        store
            .v4
            .backends
            .iter()
            .all(|b| b.state == BackendState::default()
                || b.generation() == BackendState::GENERATION_STEP)
    );
    let service = entry(&dataplane, "10.96.0.1", 80).unwrap();
    assert_eq!(rows(&dataplane, service.cluster), addrs(&["10.0.0.2"]));
}

#[test]
fn frontend_moves_to_another_service_port_without_a_gap() {
    // semantics 21.3, 21.4
    for reverse in [false, true] {
        let mut dataplane = start(FakeStore::small());
        dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1"]))]);
        dataplane.store().take_ops();
        let mut changes = vec![
            Change::Remove(key("a")),
            set(&port("b", "10.96.0.1", &["10.0.0.2"])),
        ];
        if reverse {
            changes.reverse();
        }
        dataplane.apply(&changes);
        let ops = dataplane.store().take_ops();
        assert!(
            !ops.iter().any(|op| matches!(op, Op::RemoveService(..))),
            "{ops:?}"
        );
        let service = entry(&dataplane, "10.96.0.1", 80).unwrap();
        assert_eq!(rows(&dataplane, service.cluster), addrs(&["10.0.0.2"]));
    }
}

#[test]
fn removed_service_port_leaves_nothing() {
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    a.frontends
        .push(frontend("203.0.113.1", 80, FrontendKindOrd::LoadBalancer));
    a.source_ranges = vec![Prefix {
        addr: "198.51.100.7".parse().unwrap(),
        len: 24,
    }];
    a.external = true;
    dataplane.apply(&[set(&a)]);
    assert_eq!(entry(&dataplane, "10.96.0.1", 80).unwrap().cluster.len, 211);
    assert!(
        entry(&dataplane, "203.0.113.1", 80)
            .unwrap()
            .has(ServiceFlags::SOURCE_RANGES)
    );
    assert!(
        !entry(&dataplane, "10.96.0.1", 80)
            .unwrap()
            .has(ServiceFlags::SOURCE_RANGES)
    );
    assert_eq!(dataplane.store().v4.ranges[0].prefix_len, 56);
    assert_eq!(
        model::to_ip::<V4>(&dataplane.store().v4.ranges[0].client),
        "198.51.100.0".parse::<IpAddr>().unwrap()
    );
    let report = dataplane.apply(&[Change::Remove(a.key.clone())]);
    assert!(report.errors.is_empty());
    let store = dataplane.store();
    assert!(store.v4.services.is_empty() && store.v4.ranges.is_empty());
    assert!(!store.port_bit(0, 80) && store.port_bit(0, 20_000) && store.port_bit(2, 20_001));
    assert_eq!(dataplane.usage(), super::Usage::default());
    assert_eq!(
        model::to_ip::<V4>(&store.config.cluster_net_v4),
        IpAddr::from([255; 4])
    );
}

/// Semantics 10.4.
#[test]
fn policies_are_flags_of_the_frontends_they_govern() {
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    a.frontends
        .push(frontend("192.0.2.1", 30_080, FrontendKindOrd::NodePort));
    (a.internal_local, a.external_local) = (true, true);
    a.endpoints[0].in_local = true;
    dataplane.apply(&[set(&a)]);
    let (internal, external) = (
        entry(&dataplane, "10.96.0.1", 80).unwrap(),
        entry(&dataplane, "192.0.2.1", 30_080).unwrap(),
    );
    assert!(
        internal.has(ServiceFlags::INTERNAL_LOCAL) && !internal.has(ServiceFlags::EXTERNAL_LOCAL)
    );
    assert!(
        !external.has(ServiceFlags::INTERNAL_LOCAL) && external.has(ServiceFlags::EXTERNAL_LOCAL)
    );
    assert_eq!((internal.local.len, internal.cluster.len), (1, 37));
    // Equal lists share one table.
    a.endpoints[1].in_local = true;
    dataplane.apply(&[set(&a)]);
    let internal = entry(&dataplane, "10.96.0.1", 80).unwrap();
    assert_eq!(internal.local, internal.cluster);
}

#[test]
fn affinity_switched_on_starts_fresh() {
    // semantics 13.7
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1"]);
    dataplane.apply(&[set(&a)]);
    let service_id = dataplane.service_id(&a.key).unwrap();
    for id in [service_id, service_id + 1] {
        let client = AffinityKey {
            service_id: id,
            client: Default::default(),
        };
        dataplane
            .store_mut()
            .v4
            .affinity
            .push((client, Affinity::default()));
    }
    dataplane.store().take_ops();
    a.affinity_secs = 60;
    dataplane.apply(&[set(&a)]);
    assert_eq!(dataplane.store().v4.affinity.len(), 1);
    let ops = dataplane.store().take_ops();
    assert!(
        position(&ops, |op| *op == Op::VoidAffinity)
            < position(&ops, |op| matches!(op, Op::WriteService(..)))
    );
    // Another timeout forgets nobody (semantics 13.8).
    a.affinity_secs = 120;
    dataplane.apply(&[set(&a)]);
    assert!(!dataplane.store().take_ops().contains(&Op::VoidAffinity));
}

/// Semantics 5.16, 9.5: what ends on this host needs no other source.
#[test]
fn endpoint_on_a_local_address_is_of_the_host() {
    let mut dataplane = start(FakeStore::small());
    dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]))]);
    let report = dataplane.set_local_addresses(&addrs(&["10.0.0.2"]));
    assert_eq!(report.states_written, 1);
    let host = |b: &&lb_common::abi::Backend<V4>| b.has(BackendFlags::HOST);
    let hosts: Vec<_> = dataplane
        .store()
        .v4
        .backends
        .iter()
        .filter(host)
        .map(|b| model::to_ip::<V4>(&b.addr))
        .collect();
    assert_eq!(hosts, addrs(&["10.0.0.2"]));
}

#[test]
fn service_port_that_does_not_fit_is_named_and_the_rest_is_served() {
    let sizes = Capacities {
        max_services: 64,
        max_backends: 4,
        selection_rows: 1024,
        max_flows: 1,
    };
    let mut dataplane = start(FakeStore::new(sizes));
    let report = dataplane.apply(&[
        set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"])),
        set(&port("b", "10.96.0.2", &["10.0.0.3", "10.0.0.4"])),
    ]);
    assert_eq!(report.pending, 1);
    let [error @ ApplyError::NoRoom { port: named, map }] = &report.errors[..] else {
        panic!("{:?}", report.errors)
    };
    assert_eq!((&named.0, *map), (&key("b"), "backends_v4"));
    assert!(error.to_string().contains("default/b/TCP"), "{error}");
    assert!(
        entry(&dataplane, "10.96.0.1", 80).is_some()
            && entry(&dataplane, "10.96.0.2", 80).is_none()
    );
    // Room appears by itself in the same batch that frees it.
    let report = dataplane.apply(&[Change::Remove(key("a"))]);
    assert_eq!((report.pending, report.errors.len()), (0, 0));
    assert!(entry(&dataplane, "10.96.0.2", 80).is_some());
}

#[test]
fn full_services_map_names_the_frontend_and_keeps_the_others() {
    let sizes = Capacities {
        max_services: 4,
        max_backends: 64,
        selection_rows: 1024,
        max_flows: 1,
    };
    let mut dataplane = start(FakeStore::new(sizes));
    let report = dataplane.apply(&[
        set(&port("a", "10.96.0.1", &["10.0.0.1"])),
        set(&port("b", "10.96.0.2", &["10.0.0.2"])),
        set(&port("c", "10.96.0.3", &["10.0.0.3"])),
    ]);
    assert_eq!(
        (report.full_maps(), report.pending),
        (vec!["services_v4"], 1)
    );
    let ApplyError::Frontend { addr, number, .. } = &report.errors[0] else {
        panic!("{:?}", report.errors)
    };
    assert_eq!((addr.to_string().as_str(), *number), ("10.96.0.3", 80));
    let report = dataplane.apply(&[Change::Remove(key("a"))]);
    assert_eq!((report.pending, report.errors.len()), (0, 0));
    assert!(entry(&dataplane, "10.96.0.3", 80).is_some());
}

/// Semantics 22.3.
#[test]
fn failed_publication_keeps_the_old_entry_until_the_retry() {
    let mut dataplane = start(FakeStore::small());
    dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]))]);
    // The third write of the change is the frontend's, behind a backend and a table.
    dataplane.store().fail_in(2);
    let report = dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.3"]))]);
    assert!(
        matches!(report.errors[..], [ApplyError::Frontend { .. }]),
        "{:?}",
        report.errors
    );
    assert_eq!((report.pending, report.barriers), (1, 0));
    let list = |d: &Dataplane<FakeStore>| rows(d, entry(d, "10.96.0.1", 80).unwrap().cluster);
    assert_eq!(list(&dataplane), addrs(&["10.0.0.1", "10.0.0.2"]));
    assert!(dataplane.is_pending());
    let report = dataplane.retry();
    assert_eq!(
        (
            report.pending,
            report.tables_written,
            report.services_written
        ),
        (0, 0, 1)
    );
    assert_eq!(list(&dataplane), addrs(&["10.0.0.1", "10.0.0.3"]));
}

#[test]
fn restart_with_the_same_state_writes_nothing() {
    // semantics 25.4
    let mut dataplane = start(FakeStore::small());
    let mut a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    a.frontends
        .push(frontend("203.0.113.1", 443, FrontendKindOrd::LoadBalancer));
    a.source_ranges = vec![Prefix {
        addr: "198.51.100.0".parse().unwrap(),
        len: 24,
    }];
    a.endpoints[1].in_local = true;
    let changes = [
        set(&a),
        set(&port("b", "10.96.0.2", &[])),
        set(&port("c", "10.96.0.3", &["10.0.0.1"])),
        set(&port("d", "fd00:96::1", &["fd00::1", "fd00::2"])),
    ];
    dataplane.apply(&changes);
    let mut dataplane = restart(&dataplane);
    assert_eq!(dataplane.store().take_ops(), []);
    let report = dataplane.apply(&changes);
    assert!(
        report.is_unchanged() && report.errors.is_empty(),
        "{report:?}"
    );
    assert_eq!(dataplane.store().take_ops(), []);
    assert!(!dataplane.is_pending());
}

#[test]
fn restart_with_one_changed_endpoint_writes_only_that() {
    let mut dataplane = start(FakeStore::small());
    let b = port("b", "10.96.0.2", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[
        set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"])),
        set(&b),
    ]);
    let mut dataplane = restart(&dataplane);
    let report = dataplane.apply(&[
        set(&port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.3"])),
        set(&b),
    ]);
    assert_eq!((report.services_written, report.services_removed), (1, 0));
    assert_eq!(
        (
            report.backends_written,
            report.states_written,
            report.tables_written
        ),
        (1, 2, 1)
    );
    let service = entry(&dataplane, "10.96.0.1", 80).unwrap();
    assert_eq!(
        rows(&dataplane, service.cluster),
        addrs(&["10.0.0.1", "10.0.0.3"])
    );
}

#[test]
fn restart_removes_stale_entries_with_the_first_complete_state_only() {
    // semantics 2.10, 28.48
    let mut dataplane = start(FakeStore::small());
    let b = port("b", "10.96.0.2", &["10.0.0.2"]);
    dataplane.apply(&[set(&port("a", "10.96.0.1", &["10.0.0.1"])), set(&b)]);
    let mut dataplane = restart(&dataplane);
    dataplane.retry();
    assert!(entry(&dataplane, "10.96.0.1", 80).is_some());
    let report = dataplane.apply(&[set(&b)]);
    assert!(entry(&dataplane, "10.96.0.1", 80).is_none());
    assert_eq!((report.services_removed, report.services_written), (2, 0));
    assert_eq!(dataplane.usage().backends, [1, 0]);
    assert_eq!(dataplane.usage().service_ports, 1);
}

#[test]
fn restart_follows_frontends_that_were_swapped() {
    let mut dataplane = start(FakeStore::small());
    dataplane.apply(&[
        set(&port("a", "10.96.0.1", &["10.0.0.1"])),
        set(&port("b", "10.96.0.2", &["10.0.0.2"])),
    ]);
    let mut dataplane = restart(&dataplane);
    dataplane.apply(&[
        set(&port("a", "10.96.0.2", &["10.0.0.1"])),
        set(&port("b", "10.96.0.1", &["10.0.0.2"])),
    ]);
    let list = |addr: &str| rows(&dataplane, entry(&dataplane, addr, 80).unwrap().cluster);
    assert_eq!(
        (list("10.96.0.1"), list("10.96.0.2")),
        (addrs(&["10.0.0.2"]), addrs(&["10.0.0.1"]))
    );
}

/// Semantics 22.4, 22.6: what a full pass finds otherwise than wanted is written again.
#[test]
fn audit_repairs_and_counts_what_somebody_changed() {
    let mut dataplane = start(FakeStore::small());
    let a = port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    let b = port("b", "10.96.0.2", &["10.0.0.3", "10.0.0.4"]);
    dataplane.apply(&[set(&a), set(&b)]);
    let fresh = [Arc::new(a), Arc::new(b)];
    assert_eq!(dataplane.audit(&fresh).unwrap().differences(), 0);
    let service = entry(&dataplane, "10.96.0.1", 80).unwrap();
    let lost = ServiceKey::<V4>::new(
        model::to_addr::<V4>("10.96.0.2".parse().unwrap()).unwrap(),
        Be16::from_host(80),
        6,
    );
    let store = dataplane.store_mut();
    store.v4_mut().remove_service(&lost).unwrap();
    store.write_rows(service.cluster.offset, &[0]).unwrap();
    store.write_port(0, 80, false).unwrap();
    store.write_port(1, 53, true).unwrap();
    let mut bent = store.v4.backends[1];
    bent.port = Be16::from_host(1);
    store.v4_mut().write_backend(1, &bent).unwrap();
    let report = dataplane.audit(&fresh).unwrap();
    assert_eq!(
        (
            report.services,
            report.backends,
            report.tables,
            report.ports
        ),
        (1, 1, 1, 2)
    );
    let report = dataplane.audit(&fresh).unwrap();
    assert_eq!(report.differences(), 0);
    assert!(entry(&dataplane, "10.96.0.2", 80).is_some() && !dataplane.store().port_bit(1, 53));
}

/// What the maps say, free of ids and offsets.
fn picture(store: &FakeStore) -> BTreeMap<(IpAddr, u16, u8), String> {
    let mut picture = BTreeMap::new();
    for (key, s) in store.v4.services.iter() {
        let list = |table: lb_common::abi::SelectionList| -> Vec<_> {
            let ids = store.rows(table.offset, table.len);
            ids.iter()
                .map(|id| {
                    let b = store.v4.backends[*id as usize];
                    (b.addr, b.port, b.state.flags())
                })
                .collect()
        };
        let mut ranges: Vec<_> = store
            .v4
            .ranges
            .iter()
            .filter(|r| s.id != 0 && r.service_id.to_host() == s.id)
            .map(|r| (r.client, r.prefix_len))
            .collect();
        ranges.sort_unstable();
        let text = format!(
            "{} {:?} {} {:?} {:?} {ranges:?}",
            s.kind,
            s.flags,
            s.affinity_secs,
            list(s.cluster),
            list(s.local)
        );
        picture.insert(
            (model::to_ip::<V4>(&key.addr), key.port.to_host(), key.proto),
            text,
        );
    }
    picture
}

/// A step of the random history.
#[derive(Clone, Debug)]
enum Step {
    Change(Vec<(u8, Option<Wish>)>),
    Restart,
    Fail(u32),
    Local(u8),
}

#[derive(Clone, Debug)]
struct Wish {
    endpoints: Vec<(u8, u8)>,
    vips: Vec<u8>,
    external: bool,
    ranges: Vec<u8>,
    affinity: u32,
    locals: (bool, bool),
}

fn wish() -> impl Strategy<Value = Wish> {
    (
        prop::collection::btree_map(0u8..6, 1u8..8, 0..5),
        prop::collection::btree_set(0u8..5, 0..3),
        any::<bool>(),
        prop::collection::vec(0u8..3, 0..3),
        prop::sample::select(vec![0u32, 0, 60]),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(endpoints, vips, external, ranges, affinity, locals)| Wish {
                endpoints: endpoints.into_iter().collect(),
                vips: vips.into_iter().collect(),
                external,
                ranges,
                affinity,
                locals,
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((0u8..4, prop::option::weighted(0.8, wish())), 1..4).prop_map(Step::Change),
        1 => Just(Step::Restart),
        2 => (0u32..12).prop_map(Step::Fail),
        1 => (0u8..6).prop_map(Step::Local),
    ]
}

fn wanted(name: u8, wish: &Wish, taken: &mut Vec<Frontend>) -> ServicePort {
    let mut port = port(&format!("s{name}"), &format!("10.96.0.{}", name + 1), &[]);
    for vip in &wish.vips {
        let kind = if vip % 2 == 0 {
            FrontendKindOrd::LoadBalancer
        } else {
            FrontendKindOrd::ExternalIp
        };
        let vip = frontend(&format!("203.0.113.{vip}"), 80, kind);
        if !taken.contains(&vip) {
            taken.push(vip);
            port.frontends.push(vip);
        }
    }
    port.frontends.sort();
    port.endpoints = wish
        .endpoints
        .iter()
        .map(|(addr, bits)| Endpoint {
            in_cluster: bits & 1 != 0,
            in_local: bits & 2 != 0,
            usable: bits & 4 != 0,
            local: bits & 2 != 0,
            ..endpoint(&format!("10.0.0.{addr}"))
        })
        .collect();
    port.has_endpoints = !port.endpoints.is_empty();
    port.external = wish.external;
    port.affinity_secs = wish.affinity;
    (port.internal_local, port.external_local) = wish.locals;
    port.source_ranges = wish
        .ranges
        .iter()
        .map(|r| Prefix {
            addr: IpAddr::from([198, 51, 100 + r, 9]),
            len: 24,
        })
        .collect();
    port
}

fn allow(allowed: &mut Allowed, ports: &BTreeMap<u8, ServicePort>) {
    for port in ports.values() {
        for frontend in &port.frontends {
            let targets = allowed
                .entry((frontend.addr, frontend.port, 6))
                .or_default();
            targets.extend(port.endpoints.iter().map(|e| (e.addr, e.port)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn random_history_ends_like_a_fresh_start(steps in prop::collection::vec(step(), 1..25)) {
        let mut dataplane = start(FakeStore::small());
        let mut model: BTreeMap<u8, ServicePort> = BTreeMap::new();
        let mut local = Vec::new();
        let mut is_started = false;
        let journal = dataplane.store().journal.clone();
        journal.borrow_mut().allowed = Some(Allowed::new());
        for step in steps {
            match step {
                Step::Fail(n) => journal.borrow_mut().fail_in.push(n),
                Step::Local(last) => {
                    local = vec![IpAddr::from([10, 0, 0, last])];
                    dataplane.set_local_addresses(&local);
                }
                Step::Restart => {
                    dataplane = start(dataplane.store().clone());
                    dataplane.set_local_addresses(&local);
                    is_started = false;
                }
                Step::Change(wishes) => {
                    let before = model.clone();
                    for (name, wish) in &wishes {
                        model.remove(name);
                        if let Some(wish) = wish {
                            let mut taken = model.values().flat_map(|p| p.frontends.clone()).collect();
                            model.insert(*name, wanted(*name, wish, &mut taken));
                        }
                    }
                    let mut changes: Vec<_> = model
                        .iter()
                        .filter(|(name, port)| !is_started || before.get(name) != Some(port))
                        .map(|(_, port)| set(port))
                        .collect();
                    changes.extend(
                        before.iter().filter(|(n, _)| !model.contains_key(n)).map(|(_, p)| Change::Remove(p.key.clone())),
                    );
                    is_started = true;
                    let mut journal = journal.borrow_mut();
                    allow(journal.allowed.get_or_insert_default(), &model);
                    drop(journal);
                    dataplane.apply(&changes);
                }
            }
        }
        journal.borrow_mut().fail_in.clear();
        if !is_started {
            dataplane.apply(&model.values().map(set).collect::<Vec<_>>());
        }
        let report = dataplane.retry();
        prop_assert!(report.errors.is_empty(), "{:?}", report.errors);
        dataplane.retry();
        prop_assert!(!dataplane.is_pending());

        let mut fresh = start(FakeStore::small());
        fresh.set_local_addresses(&local);
        fresh.apply(&model.values().map(set).collect::<Vec<_>>());
        prop_assert_eq!(picture(dataplane.store()), picture(fresh.store()));
        prop_assert_eq!(dataplane.usage(), fresh.usage());
        prop_assert_eq!(dataplane.store().config, fresh.store().config);
        prop_assert_eq!(dataplane.store().v4.ranges.len(), fresh.store().v4.ranges.len());
        for slot in 0..3 {
            for port in [80, 443, 20_000, 30_080] {
                prop_assert_eq!(dataplane.store().port_bit(slot, port), fresh.store().port_bit(slot, port));
            }
        }
        let fresh: Vec<_> = model.values().cloned().map(Arc::new).collect();
        prop_assert_eq!(dataplane.audit(&fresh).unwrap().differences(), 0);
    }
}
