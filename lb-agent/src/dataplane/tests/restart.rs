//! What a start finds in the maps and keeps.

use super::*;

#[test]
fn restart_with_the_same_state_writes_nothing() {
    // semantics 25.4
    let mut dataplane = start(FakeStore::small());
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    a.frontends
        .push(frontend("203.0.113.1", 443, FrontendKindOrd::LoadBalancer));
    a.source_ranges = vec![Prefix {
        addr: "198.51.100.0".parse().unwrap(),
        len: 24,
    }];
    a.endpoints[1].in_local = true;
    let changes = [
        set(&a),
        set(&service_port("b", "10.96.0.2", &[])),
        set(&service_port("c", "10.96.0.3", &["10.0.0.1"])),
        set(&service_port("d", "fd00:96::1", &["fd00::1", "fd00::2"])),
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
    let b = service_port("b", "10.96.0.2", &["10.0.0.1", "10.0.0.2"]);
    dataplane.apply(&[
        set(&service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"])),
        set(&b),
    ]);
    let mut dataplane = restart(&dataplane);
    let report = dataplane.apply(&[
        set(&service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.3"])),
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
    let b = service_port("b", "10.96.0.2", &["10.0.0.2"]);
    dataplane.apply(&[set(&service_port("a", "10.96.0.1", &["10.0.0.1"])), set(&b)]);
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
        set(&service_port("a", "10.96.0.1", &["10.0.0.1"])),
        set(&service_port("b", "10.96.0.2", &["10.0.0.2"])),
    ]);
    let mut dataplane = restart(&dataplane);
    dataplane.apply(&[
        set(&service_port("a", "10.96.0.2", &["10.0.0.1"])),
        set(&service_port("b", "10.96.0.1", &["10.0.0.2"])),
    ]);
    let list = |addr: &str| rows(&dataplane, entry(&dataplane, addr, 80).unwrap().cluster);
    assert_eq!(
        (list("10.96.0.1"), list("10.96.0.2")),
        (addrs(&["10.0.0.2"]), addrs(&["10.0.0.1"]))
    );
}

#[test]
fn restart_sets_the_bits_that_somebody_cleared_meanwhile() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    dataplane.apply(&[set(&a)]);
    dataplane.store_mut().write_port(0, 80, false).unwrap();
    let mut dataplane = restart(&dataplane);
    dataplane.apply(&[set(&a)]);
    assert!(dataplane.store().port_bit(0, 80));
}
