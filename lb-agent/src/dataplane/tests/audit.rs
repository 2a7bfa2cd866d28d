//! What somebody else has changed in the maps.

use super::*;

/// Semantics 22.4, 22.6: what a full pass finds otherwise than wanted is written again.
#[test]
fn audit_repairs_and_counts_what_somebody_changed() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    let b = service_port("b", "10.96.0.2", &["10.0.0.3", "10.0.0.4"]);
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
    look_at_all_flows(&mut dataplane);
    assert!(entry(&dataplane, "10.96.0.2", 80).is_some() && !dataplane.store().port_bit(1, 53));
}

/// Packets of established flows are asked for in the port filter first: it must not forget a port for a moment.
#[test]
fn audit_keeps_the_port_of_a_lost_frontend() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    dataplane.apply(&[set(&a)]);
    let lost = ServiceKey::<V4>::new(
        model::to_addr::<V4>("10.96.0.1".parse().unwrap()).unwrap(),
        Be16::from_host(80),
        6,
    );
    dataplane
        .store_mut()
        .v4_mut()
        .remove_service(&lost)
        .unwrap();
    dataplane.store().take_ops();
    dataplane.audit(&[Arc::new(a)]).unwrap();
    let ops = dataplane.store().take_ops();
    let cleared = |op: &Op| matches!(op, Op::WritePort(80, false));
    assert!(!ops.iter().any(cleared), "{ops:?}");
    assert!(entry(&dataplane, "10.96.0.1", 80).is_some());
}
