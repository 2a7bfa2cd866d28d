//! The walk over flows, over tables in memory.

use std::{collections::HashMap, net::Ipv4Addr};

use lb_common::{
    abi::{Addr4, Be16, Side},
    flow_table::{
        Change, Class, Insert, Tuple,
        census::{Census, census},
        change, insert, reserve,
    },
};
use proptest::prelude::*;

use super::*;
use crate::dataplane::fake::{FakeStore, Op};

/// One stamp a second.
const fn now(stamp: u32) -> Now {
    Now { stamp, hz: 256 }
}

fn addr(last: u8) -> Addr4 {
    Ipv4Addr::new(10, 0, 0, last).into()
}

/// A flow of client port `client` to a frontend of `port`.
fn record(client: u16, port: u16, proto: u8, flags: FlowFlags) -> Record<V4> {
    let (ports, side) = ([client, port].map(Be16::from_host), Side::ExternalIn);
    let original = Tuple::new(&addr(1), &addr(2), ports[0], ports[1], proto, side);
    let backend = (&addr(3), Be16::from_host(8080));
    let constant = flags & FlowFlags::CONSTANT;
    let mut record = Record::new(original, backend, (&addr(1), ports[0]), constant);
    record.service = 7;
    record
}

/// Puts a flow into the table as programs would, last used at `stamp`.
fn put(store: &FakeStore, mut record: Record<V4>, flags: FlowFlags, stamp: u32) {
    record.stamp = stamp;
    let table = &*store.v4.flows;
    let record = record.checked();
    assert_eq!(insert(&table, &record, stamp).result, Insert::Done);
    let class = match flags {
        _ if flags.is_over() => Class::Closed,
        _ if flags.contains(FlowFlags::CONFIRMED) => Class::Confirmed,
        _ => Class::Opening,
    };
    let what = Change::flags(flags, FlowFlags::NONE).class(class);
    assert!(change(&table, &record.original, what, stamp));
}

fn flow(store: &FakeStore, client: u16, port: u16, proto: u8, flags: FlowFlags, stamp: u32) {
    put(store, record(client, port, proto, flags), flags, stamp);
}

/// Client ports of the flows in the table.
fn clients(store: &FakeStore) -> Vec<u16> {
    let mut ports = Vec::new();
    store
        .v4
        .each_flow(0..store.v4.flow_buckets(), &mut |_, _, r| {
            ports.push(r.original.sport().to_host());
        });
    ports.sort_unstable();
    ports
}

/// Frontends by port.
type Frontends = HashMap<u16, u32>;

fn tick(
    gc: &mut FlowGc,
    store: &mut FakeStore,
    stamp: u32,
    frontends: Option<(u64, &Frontends)>,
    steps: usize,
) -> GcReport {
    let owner = |key: &ServiceKey<V4>| frontends?.1.get(&key.port.to_host()).copied();
    let owners = Owners {
        moves: frontends.map(|(moves, _)| moves),
        v4: &owner,
        v6: &|_| None,
    };
    store.stamp = stamp;
    let mut left = steps;
    let mut has_time = || {
        left -= 1;
        left > 0
    };
    gc.tick(store, &owners, now(stamp), &mut has_time).unwrap()
}

fn round(store: &mut FakeStore, stamp: u32) -> GcReport {
    let report = tick(&mut FlowGc::default(), store, stamp, None, 100);
    assert!(report.is_round_complete);
    report
}

const ESTABLISHED: FlowFlags = FlowFlags::CONFIRMED;

#[test]
fn each_flow_goes_at_its_own_age() {
    let mut store = FakeStore::small();
    flow(&store, 1, 80, proto::TCP, ESTABLISHED, 1_000);
    flow(
        &store,
        2,
        80,
        proto::TCP,
        ESTABLISHED | FlowFlags::FIN,
        1_000,
    );
    flow(
        &store,
        3,
        80,
        proto::TCP,
        ESTABLISHED | FlowFlags::RST,
        1_000,
    );
    flow(&store, 4, 80, proto::TCP, FlowFlags::NONE, 1_000);
    flow(&store, 5, 53, proto::UDP, FlowFlags::NONE, 1_000);
    flow(&store, 6, 53, proto::UDP, FlowFlags::REPLY_SEEN, 1_000);
    for (age, left) in [
        (29, &[1, 2, 3, 4, 5, 6][..]),
        (30, &[1, 2, 3, 4, 6]),
        (59, &[1, 2, 3, 4, 6]),
        (60, &[1, 2, 3, 6]),
        (119, &[1, 2, 3, 6]),
        (120, &[1, 2]),
        (3_599, &[1, 2]),
        (3_600, &[1]),
        (86_399, &[1]),
        (86_400, &[]),
    ] {
        round(&mut store, 1_000 + age);
        assert_eq!(clients(&store), left, "after {age} s");
    }
    let census = census::<V4, _>(&&*store.v4.flows);
    assert_eq!(census, Census::default(), "index entries go, too");
}

#[test]
fn what_changed_after_it_was_seen_stays() {
    let mut store = FakeStore::small();
    flow(&store, 1, 80, proto::TCP, FlowFlags::NONE, 0);
    let mut items = Vec::new();
    store.v4.each_flow(0..16, &mut |number, _, r| {
        items.push(ReapItem::new(number.0, r.check, r.stamp.wrapping_sub(1)));
        items.push(ReapItem::new(number.0, r.check ^ 1, r.stamp));
    });
    let reap = Reap {
        items: &items,
        lines: 0..0,
        reserved_age: 0,
    };
    assert_eq!(store.reap::<V4>(&reap).unwrap(), Reaped::default());
    assert_eq!(clients(&store), [1]);
}

#[test]
fn a_tick_ends_with_its_time_and_the_next_goes_on() {
    let mut store = FakeStore::small();
    for client in 0..20 {
        flow(&store, client, 53, proto::UDP, FlowFlags::NONE, 0);
    }
    let mut gc = FlowGc::default();
    // The table of each family is one step.
    let report = tick(&mut gc, &mut store, 40, None, 1);
    assert_eq!((report.removed, report.is_round_complete), (20, false));
    let report = tick(&mut gc, &mut store, 40, None, 1);
    assert_eq!((report.removed, report.is_round_complete), (0, true));
}

#[test]
fn a_round_tells_how_full_the_tables_are() {
    let mut store = FakeStore::small();
    for client in 0..30 {
        flow(&store, client, 80, proto::TCP, ESTABLISHED, 0);
    }
    flow(&store, 30, 80, proto::TCP, FlowFlags::NONE, 0);
    flow(&store, 31, 80, proto::TCP, ESTABLISHED | FlowFlags::RST, 0);
    let answer = record(99, 5353, proto::UDP, FlowFlags::NONE).original;
    reserve::<V4, _>(&&*store.v4.flows, &answer, 0);
    let mut gc = FlowGc::default();
    tick(&mut gc, &mut store, 1, None, 100);
    let TableFound { usage, index, .. } = gc.found().tables[0];
    assert_eq!((usage.confirmed, usage.opening, usage.closed), (30, 1, 1));
    assert_eq!(
        (usage.places, usage.load(), usage.fill()),
        (16 * 14, 13, 14)
    );
    assert!((3..=14).contains(&usage.fullest), "{usage:?}");
    assert_eq!((index.entries, index.reserved), (33, 1));
    assert_eq!(index.places, 32 * 7);
    assert_eq!(gc.found().tables[1].usage, FlowUse::of(16));
}

#[test]
fn a_reservation_goes_after_three_minutes() {
    let mut store = FakeStore::small();
    let answer = record(99, 5353, proto::UDP, FlowFlags::NONE).original;
    reserve::<V4, _>(&&*store.v4.flows, &answer, 0);
    assert_eq!(round(&mut store, 179).swept, 0);
    assert_eq!(round(&mut store, 180).swept, 1);
}

#[test]
fn an_empty_table_costs_no_run_of_the_reaper() {
    let mut store = FakeStore::small();
    round(&mut store, 100);
    assert_eq!(store.take_ops(), []);
    flow(&store, 1, 53, proto::UDP, FlowFlags::NONE, 0);
    round(&mut store, 100);
    assert!(store.take_ops().contains(&Op::Reap(1)));
}

/// Semantics 17.3, 17.5: flows of UDP follow their frontend, everything else outlives it.
#[test]
fn udp_leaves_a_frontend_that_went_or_changed_hands() {
    let mut store = FakeStore::small();
    for (client, port, proto) in [
        (1, 53, proto::UDP),
        (2, 54, proto::UDP),
        (3, 55, proto::UDP),
        (4, 54, proto::TCP),
        (5, 53, proto::TCP),
    ] {
        flow(&store, client, port, proto, ESTABLISHED, 0);
    }
    let direct = FlowFlags::DIRECT | ESTABLISHED;
    flow(&store, 6, 54, proto::UDP, direct, 0);
    let mut frontends = Frontends::from([(53, 7), (54, 7), (55, 7)]);
    let mut gc = FlowGc::default();
    assert!(!gc.is_behind(None) && gc.is_behind(Some(0)));
    tick(&mut gc, &mut store, 1, Some((0, &frontends)), 100);
    assert!(!gc.is_behind(Some(0)));
    assert_eq!(clients(&store), [1, 2, 3, 4, 5, 6]);

    frontends.remove(&54);
    frontends.insert(55, 8);
    // Nobody is asked as long as nothing moved.
    tick(&mut gc, &mut store, 1, Some((0, &frontends)), 100);
    assert_eq!(clients(&store).len(), 6);
    assert!(gc.is_behind(Some(2)));
    tick(&mut gc, &mut store, 1, Some((2, &frontends)), 100);
    assert_eq!(clients(&store), [1, 4, 5, 6]);
    assert!(!gc.is_behind(Some(2)));
}

#[test]
fn a_change_amid_a_round_is_followed_by_the_next_one() {
    let mut store = FakeStore::small();
    flow(&store, 1, 53, proto::UDP, ESTABLISHED, 0);
    let frontends = Frontends::from([(53, 7)]);
    let mut gc = FlowGc::default();
    tick(&mut gc, &mut store, 1, Some((0, &frontends)), 100);
    // Half a round before the frontend goes: IPv4 has been looked at.
    tick(&mut gc, &mut store, 1, Some((0, &frontends)), 1);
    let gone = Frontends::new();
    let report = tick(&mut gc, &mut store, 1, Some((1, &gone)), 100);
    assert!(report.is_round_complete && gc.is_behind(Some(1)));
    assert_eq!(clients(&store), [1]);
    tick(&mut gc, &mut store, 1, Some((1, &gone)), 100);
    assert!(!gc.is_behind(Some(1)));
    assert!(clients(&store).is_empty());
}

#[test]
fn what_could_not_be_deleted_is_tried_again() {
    let mut store = FakeStore::small();
    flow(&store, 1, 53, proto::UDP, ESTABLISHED, 0);
    let gone = Frontends::new();
    let mut gc = FlowGc::default();
    let owners = Owners {
        moves: Some(0),
        v4: &|key| gone.get(&key.port.to_host()).copied(),
        v6: &|_| None,
    };
    store.fail_in(0);
    assert!(gc.tick(&mut store, &owners, now(1), &mut || true).is_err());
    // The round ends without having followed.
    gc.tick(&mut store, &owners, now(1), &mut || true).unwrap();
    assert!(gc.is_behind(Some(0)));
    gc.tick(&mut store, &owners, now(1), &mut || true).unwrap();
    assert!(!gc.is_behind(Some(0)));
    assert!(clients(&store).is_empty());
}

#[test]
fn ports_of_flows_are_gathered_by_what_asks_for_them() {
    let mut store = FakeStore::small();
    flow(&store, 1, 80, proto::TCP, ESTABLISHED, 0);
    flow(&store, 2, 53, proto::UDP, ESTABLISHED, 0);
    flow(&store, 3, 81, proto::TCP, FlowFlags::DIRECT, 0);
    let mut snat = record(4, 443, proto::TCP, FlowFlags::SNAT);
    snat.source_port = Be16::from_host(20_000);
    put(&store, snat, FlowFlags::NONE, 0);
    let mut gc = FlowGc::default();
    tick(&mut gc, &mut store, 1, None, 100);
    let ports = [0, 1, 2, 3].map(|slot| gc.found().ports.of_slot(slot).to_string());
    assert_eq!(ports, ["80,443", "53", "", "20000"]);
}

#[test]
fn under_pressure_those_that_idle_longest_go_down_to_nine_tenths() {
    let mut store = FakeStore::small();
    // 224 places, of which 201 are nine tenths.
    let mut clients_by_age = Vec::new();
    for client in 0..2_000u16 {
        let stamp = 20_000 - u32::from(client) * 10;
        let mut r = record(client, 80, proto::TCP, FlowFlags::NONE);
        r.stamp = stamp;
        let table = &*store.v4.flows;
        if insert(&table, &r.checked(), stamp).result == Insert::Done {
            let what = Change::flags(ESTABLISHED, FlowFlags::NONE).class(Class::Confirmed);
            assert!(change(&table, &r.original, what, stamp));
            clients_by_age.push(client);
        }
    }
    let held = clients(&store).len();
    assert!(held > 201, "{held}");
    let mut gc = FlowGc::default();
    let mut removed = 0;
    for _ in 0..3 {
        removed += tick(&mut gc, &mut store, 20_000, None, 100).removed;
    }
    assert_eq!(clients(&store).len(), 201);
    assert_eq!(removed as usize, held - 201);
    // Nobody who was used in the last ten minutes: the first sixty clients.
    let young = |clients: &[u16]| clients.iter().filter(|client| **client < 60).count();
    assert_eq!(young(&clients(&store)), young(&clients_by_age));
}

fn any_flags() -> impl Strategy<Value = FlowFlags> {
    (0u16..1 << 12).prop_map(|bits| {
        let state = FlowFlags::from_bits(bits) & FlowFlags::CLOSING;
        let seen = FlowFlags::from_bits(bits) & (FlowFlags::CONFIRMED | FlowFlags::REPLY_SEEN);
        state | seen
    })
}

/// How long a flow may idle, said once more.
fn patience(proto: u8, flags: FlowFlags) -> u32 {
    let has = |flag| flags.contains(flag);
    let (fins, reset) = (
        [has(FlowFlags::FIN), has(FlowFlags::REPLY_FIN)],
        has(FlowFlags::RST) || has(FlowFlags::REPLY_RST),
    );
    if proto == proto::UDP {
        return if has(FlowFlags::CONFIRMED) || has(FlowFlags::REPLY_SEEN) {
            120
        } else {
            30
        };
    }
    match (reset || fins == [true; 2], has(FlowFlags::CONFIRMED)) {
        (true, _) => 120,
        (false, false) => 60,
        (false, true) if fins == [false; 2] => 86_400,
        (false, true) => 3_600,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn after_a_round_exactly_the_living_are_there(
        flows in prop::collection::vec((any::<bool>(), any_flags(), 0u32..4_000), 0..60),
        later in prop::sample::select(vec![0u32, 30, 60, 120, 3_600, 86_400]),
    ) {
        let mut store = FakeStore::small();
        let stamp = 4_000 + later;
        let mut living = Vec::new();
        for (client, (is_udp, flags, used)) in (1u16..).zip(&flows) {
            let proto = if *is_udp { proto::UDP } else { proto::TCP };
            // UDP has no end.
            let flags = if *is_udp { flags.without(FlowFlags::CLOSING) } else { *flags };
            flow(&store, client, 80, proto, flags, *used);
            if stamp - used < patience(proto, flags) {
                living.push(client);
            }
        }
        // A bucket that was full may have given some of them away already.
        let before = clients(&store);
        living.retain(|client| before.contains(client));
        round(&mut store, stamp);
        prop_assert_eq!(clients(&store), living);
    }
}
