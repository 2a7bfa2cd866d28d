//! Rows and backend ids are short: what fits is served, what is gone is not, and when room comes back everything is
//! as if it had never been short.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{history::picture, *};
use crate::dataplane::{maglev::rows_for, report::LeftOut};

fn sizes(rows: u32, backends: u32) -> Capacities {
    Capacities {
        max_services: 64,
        max_backends: backends,
        selection_rows: rows,
    }
}

/// The endpoints that the rows of a list name, each with how many.
fn shares(store: &FakeStore, list: SelectionList) -> BTreeMap<IpAddr, usize> {
    let mut shares = BTreeMap::new();
    for id in store.rows(list.offset, list.len) {
        let backend = store.v4.backends[id as usize];
        *shares.entry(model::to_ip::<V4>(&backend.addr)).or_default() += 1;
    }
    shares
}

fn external(name: &str, cluster_ip: &str, endpoints: &[&str]) -> ServicePort {
    let mut port = service_port(name, cluster_ip, endpoints);
    port.external = true;
    port
}

fn cluster(dataplane: &Dataplane<FakeStore>, addr: &str) -> SelectionList {
    entry(dataplane, addr, 80).unwrap().cluster
}

#[test]
fn endpoints_that_find_an_id_are_served_and_the_others_are_named() {
    let mut dataplane = start(FakeStore::new(sizes(1024, 4)));
    let a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    let b = service_port("b", "10.96.0.2", &["10.0.0.3", "10.0.0.4"]);
    let report = dataplane.apply(&[set(&a), set(&b)]);
    assert_eq!((report.pending, dataplane.usage().short), (0, 1));
    let [error @ ApplyError::LeftOut { port, map, .. }] = &report.errors[..] else {
        panic!("{:?}", report.errors)
    };
    assert_eq!((&port.0, *map), (&key("b"), "backends_v4"));
    let text = "1 of 2 endpoints of service port default/b/TCP (IPv4) have no room in map backends_v4; raise its size by --max-backends";
    assert_eq!(error.to_string(), text);
    assert_eq!(
        rows(&dataplane, cluster(&dataplane, "10.96.0.2")),
        addrs(&["10.0.0.3"])
    );
    // It stands in every report until it is over.
    assert_eq!(dataplane.retry().errors.len(), 1);
    // Room appears by itself in the same batch that frees it.
    let report = dataplane.apply(&[Change::Remove(key("a"))]);
    assert_eq!(
        (report.pending, report.errors.len(), dataplane.usage().short),
        (0, 0, 0)
    );
    assert_eq!(
        rows(&dataplane, cluster(&dataplane, "10.96.0.2")),
        addrs(&["10.0.0.3", "10.0.0.4"])
    );
}

#[test]
fn an_endpoint_of_this_node_finds_an_id_first() {
    let mut dataplane = start(FakeStore::new(sizes(1024, 2)));
    let mut a = service_port("a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"]);
    a.endpoints[1].in_local = true;
    let report = dataplane.apply(&[set(&a)]);
    assert!(
        matches!(
            report.errors[..],
            [ApplyError::LeftOut {
                left_out: LeftOut {
                    endpoints: 1,
                    listed: 2,
                    local: 0
                },
                ..
            }]
        ),
        "{:?}",
        report.errors
    );
    assert_eq!(
        rows(&dataplane, cluster(&dataplane, "10.96.0.1")),
        addrs(&["10.0.0.2"])
    );
}

#[test]
fn a_rolled_endpoint_takes_the_id_of_the_one_before_when_no_other_is_free() {
    let mut dataplane = start(FakeStore::new(sizes(1024, 3)));
    dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2"],
    ))]);
    let report = dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.2", "10.0.0.3"],
    ))]);
    assert_eq!((report.pending, report.errors.len()), (0, 0), "{report:?}");
    assert_eq!(
        rows(&dataplane, cluster(&dataplane, "10.96.0.1")),
        addrs(&["10.0.0.2", "10.0.0.3"])
    );
}

#[test]
fn a_table_that_does_not_fit_beside_the_old_one_takes_a_smaller_step_and_grows_again() {
    // 499 rows for five endpoints, 401 for four; 768 less what is kept back.
    let mut dataplane = start(FakeStore::new(sizes(768, 64)));
    let five = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    dataplane.apply(&[set(&external("a", "10.96.0.1", &five))]);
    assert_eq!(cluster(&dataplane, "10.96.0.1").len, rows_for(5, true));
    dataplane.store().take_ops();
    let report = dataplane.apply(&[set(&external("a", "10.96.0.1", &five[1..]))]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    // First beside the old table, then in its place.
    let lens: Vec<_> = dataplane
        .store()
        .take_ops()
        .into_iter()
        .filter_map(|op| match op {
            Op::WriteRows(_, len) => Some(len),
            _ => None,
        })
        .collect();
    assert_eq!(lens, [211, 401]);
    assert_eq!(cluster(&dataplane, "10.96.0.1").len, 401);
    assert_eq!(dataplane.usage().short, 0);
    dataplane.retry();
    assert!(!dataplane.is_pending());
}

#[test]
fn what_is_gone_leaves_the_rows_word_by_word_where_no_row_is_free() {
    let mut dataplane = start(FakeStore::new(sizes(5, 64)));
    let five = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    dataplane.apply(&[set(&service_port("a", "10.96.0.1", &five))]);
    assert_eq!(dataplane.usage().short, 1);
    dataplane.store().take_ops();
    let report = dataplane.apply(&[set(&service_port("a", "10.96.0.1", &five[1..]))]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    let ops = dataplane.store().take_ops();
    let mended = position(&ops, |op| matches!(op, Op::WriteRows(_, 1)));
    assert!(
        !ops.iter().any(|op| matches!(op, Op::WriteRows(_, 2..))),
        "{ops:?}"
    );
    // The generation of the one that is gone grows when no row names it any more.
    assert!(mended < position(&ops, |op| matches!(op, Op::WriteState(_))));
    let list = cluster(&dataplane, "10.96.0.1");
    let shares = shares(dataplane.store(), list);
    assert_eq!(
        shares.keys().copied().collect::<Vec<_>>(),
        addrs(&five[1..])
    );
    assert_eq!(shares.values().max(), Some(&2));
    // An audit finds nothing, and mends what somebody sets.
    let fresh = [Arc::new(service_port("a", "10.96.0.1", &five[1..]))];
    assert_eq!(dataplane.audit(&fresh).unwrap().differences(), 0);
    dataplane.store_mut().write_rows(list.offset, &[0]).unwrap();
    assert_eq!(dataplane.audit(&fresh).unwrap().tables, 1);
    assert_eq!(dataplane.audit(&fresh).unwrap().differences(), 0);
}

#[test]
fn a_table_without_a_row_for_all_names_how_many_are_left_out() {
    let mut dataplane = start(FakeStore::new(sizes(2, 64)));
    let report = dataplane.apply(&[set(&service_port(
        "a",
        "10.96.0.1",
        &["10.0.0.1", "10.0.0.2", "10.0.0.3"],
    ))]);
    assert!(
        matches!(
            report.errors[..],
            [ApplyError::LeftOut {
                map: "selection",
                left_out: LeftOut {
                    endpoints: 1,
                    listed: 3,
                    local: 0
                },
                ..
            }]
        ),
        "{:?}",
        report.errors
    );
    assert_eq!(
        rows(&dataplane, cluster(&dataplane, "10.96.0.1")),
        addrs(&["10.0.0.1", "10.0.0.2"])
    );
}

#[test]
fn a_restart_keeps_a_coarse_table_and_a_mended_one() {
    let five = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    for slab in [5, 300] {
        let mut dataplane = start(FakeStore::new(sizes(slab, 64)));
        dataplane.apply(&[set(&external("a", "10.96.0.1", &five))]);
        let changed = [set(&external("a", "10.96.0.1", &five[1..]))];
        dataplane.apply(&changed);
        dataplane.retry();
        let before = picture(dataplane.store());
        let mut dataplane = restart(&dataplane);
        let report = dataplane.apply(&changed);
        assert!(report.is_unchanged(), "{report:?}");
        assert_eq!(picture(dataplane.store()), before);
    }
}

/// A service port of the random history: endpoints with the lists that they are in, and its kind.
type Wish = (BTreeMap<u8, u8>, bool);

fn wished(name: u8, (endpoints, is_external): &Wish) -> ServicePort {
    let mut port = service_port(&format!("s{name}"), &format!("10.96.0.{}", name + 1), &[]);
    port.endpoints = endpoints
        .iter()
        .map(|(last, lists)| Endpoint {
            in_cluster: lists & 1 != 0,
            in_local: lists & 2 != 0,
            ..endpoint(&format!("10.0.{name}.{last}"))
        })
        .collect();
    port.has_endpoints = !port.endpoints.is_empty();
    port.external = *is_external;
    port
}

/// Whether an endpoint is in a list.
type IsIn = fn(&Endpoint) -> bool;

/// Every row names a living endpoint of the list in the newest state; shares differ by one row at most; and who is not
/// served is told.
fn check(
    dataplane: &Dataplane<FakeStore>,
    wanted: &BTreeMap<u8, ServicePort>,
    errors: &[ApplyError],
) -> Result<(), TestCaseError> {
    let store = dataplane.store();
    for (name, port) in wanted {
        let service = entry(dataplane, &format!("10.96.0.{}", name + 1), 80).unwrap();
        let mut left_out = 0;
        let lists: [(SelectionList, IsIn); 2] = [
            (service.cluster, |e| e.in_cluster),
            (service.local, |e| e.in_local),
        ];
        for (list, is_in) in lists {
            let living: BTreeSet<_> = port
                .endpoints
                .iter()
                .filter(|e| is_in(e))
                .map(|e| e.addr)
                .collect();
            let shares = shares(store, list);
            for (addr, rows) in &shares {
                prop_assert!(
                    living.contains(addr),
                    "{name}: {addr} is gone and has {rows} rows"
                );
            }
            let (least, most) = (shares.values().min(), shares.values().max());
            prop_assert!(
                most.zip(least)
                    .is_none_or(|(most, least)| most - least <= 1),
                "{shares:?}"
            );
            left_out = left_out.max(living.len() - shares.len());
        }
        for id in store.rows(service.cluster.offset, service.cluster.len) {
            prop_assert_eq!(store.v4.backends[id as usize].service_id, service.id);
        }
        let told = errors.iter().find_map(|error| match error {
            ApplyError::LeftOut {
                port: named,
                left_out,
                ..
            } if named.0 == port.key => Some(left_out.endpoints),
            _ => None,
        });
        prop_assert_eq!(told.unwrap_or(0) as usize, left_out, "{:?}", errors);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_row_ever_names_what_is_gone_and_tables_grow_again(
        slab in prop::sample::select(vec![2u32, 8, 24, 60, 200, 1_400]),
        backends in prop::sample::select(vec![2u32, 5, 12, 64]),
        steps in prop::collection::vec(
            prop::option::weighted(0.85, prop::collection::vec(
                (0u8..8, prop::option::weighted(0.85, (prop::collection::btree_map(0u8..6, 1u8..4, 0..5), any::<bool>()))),
                1..5,
            )),
            1..20,
        ),
        survivor in any::<prop::sample::Index>(),
    ) {
        let mut dataplane = start(FakeStore::new(sizes(slab, backends)));
        let mut wanted: BTreeMap<u8, ServicePort> = BTreeMap::new();
        dataplane.apply(&[]);
        for step in steps {
            let changes: Vec<_> = match step {
                // A restart.
                None => {
                    dataplane = start(dataplane.store().clone());
                    wanted.values().map(set).collect()
                }
                Some(wishes) => {
                    let mut changes = BTreeMap::new();
                    for (name, wish) in wishes {
                        let change = match &wish {
                            Some(wish) => {
                                let port = wished(name, wish);
                                let change = set(&port);
                                wanted.insert(name, port);
                                change
                            }
                            None => match wanted.remove(&name) {
                                Some(port) => Change::Remove(port.key),
                                None => continue,
                            },
                        };
                        changes.insert(name, change);
                    }
                    changes.into_values().collect()
                }
            };
            let report = dataplane.apply(&changes);
            check(&dataplane, &wanted, &report.errors)?;
            let report = dataplane.retry();
            check(&dataplane, &wanted, &report.errors)?;
            let fresh: Vec<_> = wanted.values().cloned().map(Arc::new).collect();
            let audit = dataplane.audit(&fresh).unwrap();
            prop_assert_eq!(audit.differences(), 0, "{:?}", audit);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        // Room comes back without a change of the one that stays.
        let names: Vec<_> = wanted.keys().copied().collect();
        let stays = names[survivor.index(names.len())];
        let gone: Vec<_> = wanted
            .iter()
            .filter(|(name, _)| **name != stays)
            .map(|(_, port)| Change::Remove(port.key.clone()))
            .collect();
        dataplane.apply(&gone);
        for _ in 0..4 {
            dataplane.retry();
        }
        prop_assert!(!dataplane.is_pending());
        if slab == 1_400 && backends > 5 {
            let mut fresh = start(FakeStore::new(sizes(slab, backends)));
            fresh.apply(&[set(&wanted[&stays])]);
            prop_assert_eq!(fresh.usage().short, 0);
            prop_assert_eq!(picture(dataplane.store()), picture(fresh.store()));
            prop_assert_eq!(dataplane.usage(), fresh.usage());
        }
    }
}
