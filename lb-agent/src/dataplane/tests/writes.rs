//! What a change writes, in which order, and what it leaves alone.

use super::*;

/// Semantics 22.5.
#[test]
fn new_service_port_is_published_after_its_backends_and_table() {
    let mut dataplane = start(FakeStore::small());
    let report = dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
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
        (config.snat_ports.first, config.snat_ports.last),
        (20_000, 20_001)
    );
}

/// Semantics 22.4: only what changed is written.
#[test]
fn unchanged_service_port_writes_nothing() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[set(&a)]);
    dataplane.store().take_ops();
    assert!(dataplane.apply(&[set(&a)]).is_unchanged());
    assert_eq!(dataplane.store().take_ops(), []);
}

#[test]
fn changed_flags_write_state_words_only() {
    let mut dataplane = start(FakeStore::small());
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
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
    dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
    dataplane.store().take_ops();
    let report = dataplane.apply(&[set(&service_port("a", "10.96.0.1", &["10.0.0.2"]))]);
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
    dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
    let again = dataplane.store().v4.backends[id as usize];
    assert_eq!(again.generation(), 4 * BackendState::GENERATION_STEP);
    assert!(again.has(BackendFlags::USABLE));
}

#[test]
fn endpoint_that_leaves_a_list_but_serves_keeps_its_generation() {
    // semantics 17.4
    let mut dataplane = start(FakeStore::small());
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
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
        dataplane.apply(&[set(&service_port("a", "10.96.0.1", &["10.0.0.1"]))]);
        dataplane.store().take_ops();
        let mut changes = vec![
            Change::Remove(key("a")),
            set(&service_port("b", "10.96.0.1", &["10.0.0.2"])),
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
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
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
    look_at_all_flows(&mut dataplane);
    let store = dataplane.store();
    assert!(store.v4.services.is_empty() && store.v4.ranges.is_empty());
    let snat = |port| [0, 1, 2, 3].map(|slot| store.port_bit(slot, port));
    assert!(!store.port_bit(0, 80));
    assert_eq!(snat(20_000), [false, false, false, true]);
    assert_eq!(snat(20_001), snat(20_000));
    assert_eq!(snat(20_002), [false; 4]);
    assert_eq!(dataplane.usage(), Usage::default());
    assert_eq!(
        model::to_ip::<V4>(&store.config.cluster_net_v4),
        IpAddr::from([255; 4])
    );
}

/// Semantics 10.4.
#[test]
fn policies_are_flags_of_the_frontends_they_govern() {
    let mut dataplane = start(FakeStore::small());
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
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
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
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
    dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
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
