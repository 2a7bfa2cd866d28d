//! Any sequence of changes, restarts and failing writes ends like a fresh start, and no frontend ever leads
//! elsewhere on the way.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::dataplane::fake::Allowed;

/// What the maps say, free of ids and offsets.
pub(super) fn picture(store: &FakeStore) -> BTreeMap<(IpAddr, u16, u8), String> {
    let mut picture = BTreeMap::new();
    for (key, s) in store.v4.services.iter() {
        let list = |table: SelectionList| -> Vec<_> {
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

fn service_port_of(name: u8, wish: &Wish, taken: &mut Vec<Frontend>) -> ServicePort {
    let mut port = service_port(&format!("s{name}"), &format!("10.96.0.{}", name + 1), &[]);
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
        let mut wanted: BTreeMap<u8, ServicePort> = BTreeMap::new();
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
                    let before = wanted.clone();
                    for (name, wish) in &wishes {
                        wanted.remove(name);
                        if let Some(wish) = wish {
                            let mut taken = wanted.values().flat_map(|p| p.frontends.clone()).collect();
                            wanted.insert(*name, service_port_of(*name, wish, &mut taken));
                        }
                    }
                    let mut changes: Vec<_> = wanted
                        .iter()
                        .filter(|(name, port)| !is_started || before.get(name) != Some(port))
                        .map(|(_, port)| set(port))
                        .collect();
                    changes.extend(
                        before.iter().filter(|(n, _)| !wanted.contains_key(n)).map(|(_, p)| Change::Remove(p.key.clone())),
                    );
                    is_started = true;
                    let mut journal = journal.borrow_mut();
                    allow(journal.allowed.get_or_insert_default(), &wanted);
                    drop(journal);
                    dataplane.apply(&changes);
                }
            }
        }
        journal.borrow_mut().fail_in.clear();
        if !is_started {
            dataplane.apply(&wanted.values().map(set).collect::<Vec<_>>());
        }
        let report = dataplane.retry();
        prop_assert!(report.errors.is_empty(), "{:?}", report.errors);
        dataplane.retry();
        prop_assert!(!dataplane.is_pending());
        look_at_all_flows(&mut dataplane);

        let mut fresh = start(FakeStore::small());
        fresh.set_local_addresses(&local);
        fresh.apply(&wanted.values().map(set).collect::<Vec<_>>());
        prop_assert_eq!(picture(dataplane.store()), picture(fresh.store()));
        prop_assert_eq!(dataplane.usage(), fresh.usage());
        prop_assert_eq!(dataplane.store().config, fresh.store().config);
        prop_assert_eq!(dataplane.store().v4.ranges.len(), fresh.store().v4.ranges.len());
        for slot in 0..4 {
            for port in [80, 443, 20_000, 30_080] {
                prop_assert_eq!(dataplane.store().port_bit(slot, port), fresh.store().port_bit(slot, port));
            }
        }
        let fresh: Vec<_> = wanted.values().cloned().map(Arc::new).collect();
        prop_assert_eq!(dataplane.audit(&fresh).unwrap().differences(), 0);
    }
}
