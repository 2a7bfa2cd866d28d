//! Writes that fail and maps that are full: what stood there keeps serving, and is named.

use super::*;

#[test]
fn full_services_map_names_the_frontend_and_keeps_the_others() {
    let sizes = Capacities {
        max_services: 4,
        max_backends: 64,
        selection_rows: 1024,
    };
    let mut dataplane = start(FakeStore::new(sizes));
    let report = dataplane.apply(&[
        set(&service_port("a", "10.96.0.1", &["10.0.0.1"])),
        set(&service_port("b", "10.96.0.2", &["10.0.0.2"])),
        set(&service_port("c", "10.96.0.3", &["10.0.0.3"])),
    ]);
    let full: Vec<_> = report
        .errors
        .iter()
        .filter_map(ApplyError::full_map)
        .collect();
    assert_eq!((full, report.pending), (vec!["services_v4"], 1));
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
    dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
    // The third write of the change is the frontend's, behind a backend and a table.
    dataplane.store().fail_in(2);
    let report = dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.3"],
    ))]);
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
fn frontend_that_could_not_be_written_leaves_no_port_behind() {
    let sizes = Capacities {
        max_services: 2,
        max_backends: 64,
        selection_rows: 1024,
    };
    let mut dataplane = start(FakeStore::new(sizes));
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    a.frontends
        .push(frontend("203.0.113.1", 443, FrontendKindOrd::LoadBalancer));
    let report = dataplane.apply(&[set(&a)]);
    assert_eq!((report.pending, report.services_written), (1, 2));
    look_at_all_flows(&mut dataplane);
    let store = dataplane.store();
    assert!(store.port_bit(0, 80) && !store.port_bit(0, 443));
}
