//! The record table against a plain model, and under threads: the operating system's, and a scheduler's that chooses
//! the order of every access.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests: what is not there fails them"
)]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use lb_common::abi::{Addr4, Addr6, Be16, FlowFlags, MacAddr, Side, proto};
use lb_common::family::Address;
use lb_common::flow_table::census::{Census, Faults, census};
use lb_common::flow_table::native::{Table, Word};
use lb_common::flow_table::{
    Change, Class, Derived, Geometry, Hop, Insert, Record, RecordCells, Seeds, TableFamily, Tuple,
    change, delete, find, find_derived, halve, insert, is_free, is_reserved, reserve, sweep,
};
use lb_common::{V4, V6};
use proptest::prelude::*;

const SEEDS: Seeds = Seeds {
    offset: 0x243f_6a88_85a3_08d3,
    factors: [
        0x9e37_79b9_7f4a_7c15,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0xbf58_476d_1ce4_e5b9,
    ],
};

fn geometry(buckets: u32, lines: u32) -> Geometry {
    Geometry {
        bucket_mask: buckets - 1,
        line_mask: lines - 1,
        seeds: SEEDS,
    }
}

/// An address of a family, by number.
trait Numbered: TableFamily {
    fn addr(number: u32) -> Self::Addr;
}
impl Numbered for V4 {
    fn addr(number: u32) -> Addr4 {
        Addr4::from_words([0x0a00_0000 + number, 0, 0, 0])
    }
}
impl Numbered for V6 {
    fn addr(number: u32) -> Addr6 {
        Addr6::from_words([0xfd00_0000, number, !number, 1])
    }
}

/// Flow `flow`, translated as `salt` says: backend, ids and whether tc carries it by halves depend on it.
fn record<F: Numbered>(flow: u32, salt: u32) -> Record<F> {
    let port = |number: u32| Be16::from_host(u16::try_from(number % 65_536).unwrap());
    let original = Tuple::new(
        &F::addr(flow % 7),
        &F::addr(1_000),
        port(20_000 + flow),
        port(80),
        proto::TCP,
        Side::ExternalIn,
    );
    let (snat, source) = match salt % 3 {
        0 => (FlowFlags::NONE, F::addr(flow % 7)),
        1 => (FlowFlags::SNAT, F::addr(2_000)),
        _ => (FlowFlags::SNAT | FlowFlags::BY_HALVES, F::addr(2_000)),
    };
    // Few backends and ports, so that derived tuples collide.
    let backend = (&F::addr(3_000 + salt % 5), port(8_080));
    let mut record = Record::new(original, backend, (&source, port(30_000 + flow % 50)), snat);
    record.backend = salt;
    record.service = salt ^ flow;
    record.backend_generation = u16::try_from(salt % 65_536).unwrap();
    record.checked()
}

/// What makes a record confirmed, or closed.
fn to_class(class: Class) -> Change {
    let flags = match class {
        Class::Confirmed => FlowFlags::CONFIRMED,
        _ => FlowFlags::RST,
    };
    Change::flags(flags, FlowFlags::NONE).class(class)
}

/// Every tuple that must be a record's own.
fn tuples<F: Numbered>(record: &Record<F>) -> Vec<Tuple<F>> {
    let number = if record.is_by_halves() { 3 } else { 1 };
    [Derived::Reply, Derived::OutOriginal, Derived::OutReply][..number]
        .iter()
        .map(|kind| record.derived(*kind))
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert { flow: u32, salt: u32 },
    Confirm(u32),
    Close(u32),
    Halve(u32),
    Delete(u32),
    Free { flow: u32, salt: u32 },
    Reserve { flow: u32, salt: u32 },
    Sweep,
}

fn step(flows: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..flows, 0..30u32).prop_map(|(flow, salt)| Step::Insert { flow, salt }),
        2 => (0..flows).prop_map(Step::Confirm),
        1 => (0..flows).prop_map(Step::Close),
        2 => (0..flows).prop_map(Step::Halve),
        2 => (0..flows).prop_map(Step::Delete),
        1 => (0..flows, 0..30u32).prop_map(|(flow, salt)| Step::Free { flow, salt }),
        1 => (0..flows, 0..30u32).prop_map(|(flow, salt)| Step::Reserve { flow, salt }),
        1 => Just(Step::Sweep),
    ]
}

/// Up to so many steps, fewer for Miri.
fn steps(flows: u32, most: usize) -> impl Strategy<Value = Vec<Step>> {
    let most = if cfg!(miri) { most / 5 } else { most };
    prop::collection::vec(step(flows), 1..most)
}

/// What the table should hold.
struct Model<F: Numbered> {
    records: BTreeMap<u32, (Record<F>, Class)>,
    reserved: Vec<Tuple<F>>,
}

/// One table, one thread: after every step it holds what the model holds.
struct Trial<F: Numbered> {
    table: Table,
    model: Model<F>,
    now: u32,
}

impl<F: Numbered> Trial<F> {
    fn new(buckets: u32, lines: u32) -> Self {
        Trial {
            table: Table::new::<F>(geometry(buckets, lines)),
            model: Model {
                records: BTreeMap::new(),
                reserved: Vec::new(),
            },
            now: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let table = &self.table;
        self.now += 1;
        match step {
            Step::Insert { flow, salt } => self.insert(flow, &record(flow, salt)),
            Step::Confirm(flow) => {
                self.change_class(flow, Class::Confirmed);
            }
            Step::Close(flow) => {
                self.change_class(flow, Class::Closed);
            }
            Step::Halve(flow) => self.halve(flow),
            Step::Free { flow, salt } => self.free(&record(flow, salt).derived(Derived::Reply)),
            Step::Delete(flow) => {
                let done = delete::<F, _>(&table, &record(flow, 0).original);
                assert_eq!(done, self.model.records.remove(&flow).is_some());
            }
            Step::Reserve { flow, salt } => {
                let tuple = record::<F>(flow, salt).derived(Derived::OutReply);
                let taken = self.is_taken(&tuple);
                let result = reserve::<F, _>(&table, &tuple, self.now);
                assert_eq!(
                    is_reserved::<F, _>(&table, &tuple),
                    !taken && result == Insert::Done
                );
                if taken {
                    assert_eq!(result, Insert::Exists);
                } else if result == Insert::Done && !self.model.reserved.contains(&tuple) {
                    self.model.reserved.push(tuple);
                }
            }
            Step::Sweep => {
                for line in 0..=table_lines(&self.table) {
                    sweep::<F, _>(&table, line, self.now, 0);
                }
                self.model.reserved.clear();
            }
        }
    }

    fn is_taken(&self, tuple: &Tuple<F>) -> bool {
        let mut records = self.model.records.values();
        records.any(|(record, _)| tuples(record).contains(tuple))
    }

    fn insert(&mut self, flow: u32, record: &Record<F>) {
        let tuples = tuples(record);
        let is_there = self.model.records.contains_key(&flow);
        let is_taken = tuples.iter().any(|tuple| self.is_taken(tuple));
        let is_reserved = tuples
            .iter()
            .any(|tuple| self.model.reserved.contains(tuple));
        let room = insert::<F, _, _>(&&self.table, record, self.now);
        // Whoever gave way is gone; the place is given also where the record then finds a tuple taken.
        let gone: Vec<u32> = self.absent();
        assert_eq!(
            gone.len(),
            usize::from(room.evicted != Class::Free),
            "{room:?}"
        );
        for gone in &gone {
            let (_, class) = self.model.records.remove(gone).unwrap();
            assert_eq!(class, room.evicted);
            assert_ne!(class, Class::Confirmed);
        }
        match room.result {
            Insert::HasRecord => assert!(is_there),
            Insert::Exists => assert!(!is_there && (is_taken || is_reserved)),
            Insert::Full => assert!(!is_there),
            Insert::Busy => panic!("nobody else is there"),
            Insert::Done => {
                assert!(!is_there);
                // One that gave way may have had the tuple.
                assert!(!tuples.iter().any(|tuple| self.is_taken(tuple)));
                // A full line takes a reservation's place, never another record's.
                self.model
                    .reserved
                    .retain(|reserved| !tuples.contains(reserved));
                self.model.records.insert(flow, (*record, Class::Opening));
            }
        }
    }

    fn change_class(&mut self, flow: u32, class: Class) {
        let original = record(flow, 0).original;
        let done = change::<F, _>(&&self.table, &original, to_class(class), self.now);
        let present = self.model.records.get_mut(&flow);
        assert_eq!(done, present.is_some());
        if let Some((record, present)) = present {
            record.flags |= match class {
                Class::Confirmed => FlowFlags::CONFIRMED,
                _ => FlowFlags::RST,
            };
            *present = class;
        }
    }

    /// Entries of the tuples between tc's hooks come both or not at all.
    fn halve(&mut self, flow: u32) {
        let result = halve::<F, _>(&&self.table, &record(flow, 0).original);
        let Some((present, class)) = self.model.records.get(&flow).copied() else {
            assert_eq!(result, Insert::Busy);
            return;
        };
        let mut halved = present;
        halved.flags |= FlowFlags::BY_HALVES;
        let kinds = [Derived::OutOriginal, Derived::OutReply];
        let is_new = !present.is_by_halves();
        let is_taken = kinds.iter().any(|kind| {
            let tuple = halved.derived(*kind);
            self.is_taken(&tuple) || self.model.reserved.contains(&tuple)
        });
        match result {
            Insert::Done => {
                self.model
                    .reserved
                    .retain(|reserved| !tuples(&halved).contains(reserved));
                self.model.records.insert(flow, (halved, class));
            }
            Insert::Exists => assert!(is_new && is_taken),
            other => assert_eq!((other, is_new), (Insert::Full, true)),
        }
    }

    /// A tuple is free where nobody has it, or who has it is over.
    fn free(&mut self, tuple: &Tuple<F>) {
        let records = self.model.records.iter();
        let holder = records
            .filter(|(_, (record, _))| tuples(record).contains(tuple))
            .map(|(flow, (record, _))| (*flow, record.flags))
            .next();
        let done = is_free::<F, _>(&&self.table, tuple, self.now, 0);
        let over = FlowFlags::CONFIRMED | FlowFlags::RST;
        match holder {
            None => assert!(done),
            Some((_, flags)) if !flags.contains(FlowFlags::CONFIRMED) => {
                // An opening of any age: stamps of the trial are 0.
                assert_eq!(done, self.now >= 20);
            }
            Some((_, flags)) => assert_eq!(done, flags.contains(over)),
        }
        if let (true, Some((flow, _))) = (done, holder) {
            self.model.records.remove(&flow);
        }
    }

    /// Records of the model that the table does not find.
    fn absent(&self) -> Vec<u32> {
        let records = self.model.records.iter();
        let absent = records.filter(|(_, (record, _))| {
            let hashed = record.original.hashed(&SEEDS);
            find::<F, _>(&&self.table, &record.original, hashed).is_none()
        });
        absent.map(|(flow, _)| *flow).collect()
    }

    fn check(&self) {
        let found = census::<F, _>(&&self.table);
        assert_eq!(found.faults, Faults::default());
        assert_eq!(found.records as usize, self.model.records.len());
        let entries: usize = self
            .model
            .records
            .values()
            .map(|(record, _)| tuples(record).len())
            .sum();
        assert_eq!(found.entries as usize, entries);
        assert_eq!(found.dead, 0, "alone every removal gets its lock");
        for (record, _) in self.model.records.values() {
            let hashed = record.original.hashed(&SEEDS);
            let found = find::<F, _>(&&self.table, &record.original, hashed).unwrap();
            assert_eq!(
                (found.record.check, found.record.original),
                (record.check, record.original)
            );
            for tuple in tuples(record) {
                let (found, _) =
                    find_derived::<F, _>(&&self.table, &tuple, tuple.hashed(&SEEDS)).unwrap();
                assert_eq!(found.record.original, record.original);
            }
        }
    }
}

fn table_lines(_: &Table) -> u32 {
    SMALL_LINES - 1
}

const SMALL_LINES: u32 = 16;

fn run<F: Numbered>(buckets: u32, steps: &[Step]) {
    let mut trial = Trial::<F>::new(buckets, SMALL_LINES);
    for step in steps {
        trial.take(*step);
        // Miri judges each access; to compare all of the table after each step takes it minutes.
        if !cfg!(miri) {
            trial.check();
        }
    }
    trial.check();
}

/// For Miri few cases, and no file of those that failed: it lets no program at the machine's files.
fn config() -> ProptestConfig {
    if cfg!(miri) {
        return ProptestConfig {
            cases: 4,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
    }
    ProptestConfig::default()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn table_holds_what_a_plain_map_would_hold(steps in steps(60, 200)) {
        run::<V4>(8, &steps);
        run::<V6>(8, &steps);
    }

    /// Two buckets of 14 and 90 flows: most insertions find no free way.
    #[test]
    fn full_table_gives_away_what_may_go_and_nothing_else(steps in steps(90, 300)) {
        run::<V4>(2, &steps);
    }
}

#[test]
fn oldest_opening_gives_way_and_confirmed_records_never() {
    let table: Table = Table::new::<V4>(geometry(2, 128));
    let mut confirmed = 0;
    let mut flow = 0;
    // Fills every way with a confirmed record but two openings.
    while confirmed < 26 {
        let record = record::<V4>(flow, 0);
        flow += 1;
        if insert::<V4, _, _>(&&table, &record, flow).result == Insert::Done {
            let change = to_class(Class::Confirmed);
            confirmed += u32::from(self::change::<V4, _>(
                &&table,
                &record.original,
                change,
                flow,
            ));
        }
    }
    let openings: Vec<Record<V4>> = (flow..flow + 2).map(|flow| record(flow, 0)).collect();
    for (record, now) in openings.iter().zip(100..) {
        let room = insert::<V4, _, _>(&&table, record, now);
        assert_eq!((room.result, room.evicted), (Insert::Done, Class::Free));
    }
    let is_there = |record: &Record<V4>| {
        find::<V4, _>(&&table, &record.original, record.original.hashed(&SEEDS)).is_some()
    };
    // Whichever bucket the next one may use: an opening goes, and all 26 stay.
    let mut evicted = 0;
    for next in flow + 2..flow + 12 {
        let room = insert::<V4, _, _>(&&table, &record(next, 0), 200 + next);
        match room.result {
            Insert::Done => {
                assert_eq!(room.evicted, Class::Opening);
                evicted += 1;
            }
            other => assert_eq!(other, Insert::Exists, "flow {next}"),
        }
    }
    assert!(evicted > 0 && !openings.iter().all(is_there));
    let found = census::<V4, _>(&&table);
    assert_eq!((found.records, found.faults), (28, Faults::default()));
    assert_eq!(
        (0..flow).filter(|flow| is_there(&record(*flow, 0))).count(),
        26
    );
}

#[test]
fn table_of_confirmed_records_refuses_new_ones_and_keeps_all() {
    let table: Table = Table::new::<V6>(geometry(2, 256));
    let (mut kept, mut refused) = (Vec::new(), 0);
    for flow in 0..200 {
        let record = record::<V6>(flow, 0);
        match insert::<V6, _, _>(&&table, &record, flow).result {
            Insert::Done => {
                let change = to_class(Class::Confirmed);
                assert!(self::change::<V6, _>(
                    &&table,
                    &record.original,
                    change,
                    flow
                ));
                kept.push(record);
            }
            Insert::Full => refused += 1,
            Insert::Exists => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kept.len(), 28);
    assert!(refused > 0);
    for record in kept {
        assert!(find::<V6, _>(&&table, &record.original, record.original.hashed(&SEEDS)).is_some());
    }
}

#[test]
fn reserved_tuple_is_refused_until_its_time_is_over() {
    let table: Table = Table::new::<V4>(geometry(8, 8));
    let record = record::<V4>(1, 0);
    let reply = record.derived(Derived::Reply);
    assert_eq!(reserve::<V4, _>(&&table, &reply, 1_000), Insert::Done);
    assert_eq!(
        insert::<V4, _, _>(&&table, &record, 1_001).result,
        Insert::Exists
    );
    assert_eq!(
        reserve::<V4, _>(&&table, &reply, 1_010),
        Insert::Done,
        "renewed"
    );
    let swept: u32 = (0..8)
        .map(|line| sweep::<V4, _>(&&table, line, 1_019, 10))
        .sum();
    assert_eq!(swept, 0);
    let swept: u32 = (0..8)
        .map(|line| sweep::<V4, _>(&&table, line, 1_020, 10))
        .sum();
    assert_eq!(swept, 1);
    assert_eq!(
        insert::<V4, _, _>(&&table, &record, 1_021).result,
        Insert::Done
    );
    assert_eq!(reserve::<V4, _>(&&table, &reply, 1_022), Insert::Exists);
}

#[test]
fn time_and_state_change_in_place_and_leave_the_check_alone() {
    let table: Table = Table::new::<V4>(geometry(8, 8));
    let record = record::<V4>(1, 1);
    assert_eq!(insert::<V4, _, _>(&&table, &record, 7).result, Insert::Done);
    let hashed = record.original.hashed(&SEEDS);
    let found = find::<V4, _>(&&table, &record.original, hashed).unwrap();
    RecordCells::<V4>::set_stamp(found.cells, 99);
    RecordCells::<V4>::add_flags(found.cells, FlowFlags::FIN);
    RecordCells::<V4>::set_sequence(found.cells, 0, 0x1234);
    RecordCells::<V4>::set_sequence(found.cells, 1, 0xffff);
    let hop = Hop {
        mac: MacAddr::new([2, 3, 4, 5, 6, 7]),
        slot: 200,
    };
    let reply = Change::flags(FlowFlags::REPLY_SEEN, FlowFlags::FIN).hop(1, &hop);
    assert!(change::<V4, _>(&&table, &record.original, reply, 8));
    let found = find::<V4, _>(&&table, &record.original, hashed).unwrap();
    let mut expected = record;
    expected.stamp = 99;
    expected.flags |= FlowFlags::REPLY_SEEN;
    expected.sequence = [0x1234, 0xffff];
    expected.hops = [Hop::default(), hop];
    assert_eq!(found.record, expected);
}

/// Load at which insertion starts to find no free way: what the alarm is set by.
#[test]
fn every_record_finds_a_free_way_at_two_thirds_of_the_ways() {
    if cfg!(miri) {
        return;
    }
    let (buckets, lines) = (1 << 10, 1 << 12);
    let table: Table = Table::new::<V4>(geometry(buckets, lines));
    let mut refused = 0;
    for flow in 0..buckets * 14 * 2 / 3 {
        let original = Tuple::<V4>::new(
            &V4::addr(flow / 50_000),
            &V4::addr(1_000_000),
            Be16::from_host(u16::try_from(flow % 50_000).unwrap()),
            Be16::from_host(80),
            proto::TCP,
            Side::ExternalIn,
        );
        let source = (&original.saddr(), original.sport());
        let record = Record::new(
            original,
            (&V4::addr(2_000_000 + flow % 64), Be16::from_host(80)),
            source,
            FlowFlags::NONE,
        );
        let record = record.checked();
        match insert::<V4, _, _>(&&table, &record, 1).result {
            Insert::Done => {
                assert!(change::<V4, _>(
                    &&table,
                    &original,
                    to_class(Class::Confirmed),
                    1
                ))
            }
            _ => refused += 1,
        }
    }
    assert_eq!(refused, 0);
    assert_eq!(census::<V4, _>(&&table).faults, Faults::default());
}

/// A thread's share of a stress: random operations on few flows. What is found must be one whole record of that flow.
struct Share<F> {
    /// Upper bits of what makes a record this thread's, and no other of its own.
    thread: u32,
    random: u64,
    flows: u32,
    counts: [u32; 3],
    family: PhantomData<F>,
}

impl<F: Numbered> Share<F> {
    fn new(seed: u64, flows: u32) -> Self {
        let thread = u32::try_from(seed % 2).unwrap() << 31;
        Share {
            thread,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            flows,
            counts: [0; 3],
            family: PhantomData,
        }
    }

    fn work<W: Word>(&mut self, table: &Table<W>, operations: u32) {
        for now in 0..operations {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let bits =
                |from: u32, number: u64| u32::try_from((self.random >> from) % number).unwrap();
            let (die, flow, salt) = (bits(0, 16), bits(8, u64::from(self.flows)), bits(32, 30));
            let mut record = record::<F>(flow, salt);
            record.stamp = self.thread | now;
            match die {
                0..4 => {
                    self.counts[0] +=
                        u32::from(insert::<F, _, _>(&table, &record, now).result == Insert::Done)
                }
                4..6 => self.counts[1] += u32::from(delete::<F, _>(&table, &record.original)),
                6 | 7 => {
                    let class = if salt % 2 == 0 {
                        Class::Confirmed
                    } else {
                        Class::Closed
                    };
                    change::<F, _>(&table, &record.original, to_class(class), now);
                    if die == 7 {
                        halve::<F, _>(&table, &record.original);
                    }
                }
                8 => {
                    reserve::<F, _>(&table, &record.derived(Derived::OutReply), now);
                }
                9 => {
                    sweep::<F, _>(&table, salt % SMALL_LINES, now, 4);
                }
                10..13 => {
                    let found =
                        find::<F, _>(&table, &record.original, record.original.hashed(&SEEDS));
                    if let Some(found) = found {
                        self.counts[2] += 1;
                        assert_eq!(found.record.original, record.original);
                        assert_eq!(found.record.service, found.record.backend ^ flow);
                        assert_eq!(
                            found.record.check,
                            self::record::<F>(flow, found.record.backend).check
                        );
                        let absent = tuples(&found.record).into_iter().find(|tuple| {
                            find_derived::<F, _>(&table, tuple, tuple.hashed(&SEEDS)).is_none()
                        });
                        let again =
                            find::<F, _>(&table, &record.original, record.original.hashed(&SEEDS));
                        // A record that was there all the time was found by its derived tuples, too.
                        let stayed =
                            again.is_some_and(|again| again.record.stamp == found.record.stamp);
                        assert!(
                            absent.is_none() || !stayed,
                            "{:?} is not found by {absent:?}",
                            found.record
                        );
                    }
                }
                _ => {
                    let tuple = record.derived(Derived::Reply);
                    if let Some((found, kind)) =
                        find_derived::<F, _>(&table, &tuple, tuple.hashed(&SEEDS))
                    {
                        self.counts[2] += 1;
                        assert_eq!(found.record.derived(kind), tuple);
                        assert!(found.record.is_whole());
                    }
                }
            }
        }
    }
}

/// What threads may leave: dead entries, where a removal did not get its lock; nothing else.
fn assert_sound(census: &Census) {
    assert_eq!(census.faults, Faults::default(), "{census:?}");
}

fn stress<F: Numbered>(buckets: u32, flows: u32, operations: u32) {
    let table = Arc::new(Table::<std::sync::atomic::AtomicU64>::new::<F>(geometry(
        buckets,
        SMALL_LINES,
    )));
    let threads: Vec<_> = (1..=2)
        .map(|seed| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || {
                let mut share = Share::<F>::new(seed, flows);
                share.work(&table, operations);
                share.counts
            })
        })
        .collect();
    for thread in threads {
        let counts = thread.join().unwrap();
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
    assert_sound(&census::<F, _>(&&*table));
}

#[test]
fn two_threads_leave_nothing_wrong_double_or_lost() {
    let operations = if cfg!(miri) { 200 } else { 300_000 };
    stress::<V4>(4, 40, operations);
    stress::<V4>(2, 90, operations);
    stress::<V6>(4, 40, operations);
}

#[cfg(not(miri))]
mod scheduled {
    //! The same under a scheduler that switches threads at any access, in orders that it repeats on failure.

    use super::*;
    use shuttle::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Cell(AtomicU64);

    impl Word for Cell {
        fn load(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
        fn store(&self, value: u64) {
            self.0.store(value, Ordering::SeqCst);
        }
        fn take(&self) -> bool {
            self.0
                .compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        }
        fn release(&self) {
            self.0.store(0, Ordering::SeqCst);
        }
        fn add(&self, by: u64) {
            self.0.fetch_add(by, Ordering::SeqCst);
        }
        fn replace(&self, mask: u64, bits: u64) {
            let _always = self
                .0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                    Some(word & !mask | bits)
                });
        }
    }

    fn two_shares(flows: u32, operations: u32) {
        // Constructed outside of the choices: the run is about what happens to the table.
        let table = Arc::new(Table::<Cell>::new::<V4>(geometry(2, 2)));
        let seed = shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 1..u64::MAX / 2);
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let table = Arc::clone(&table);
                shuttle::thread::spawn(move || {
                    Share::<V4>::new(seed + thread, flows).work(&table, operations)
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_sound(&census::<V4, _>(&&*table));
    }

    #[test]
    fn any_order_of_accesses_leaves_nothing_wrong_double_or_lost() {
        use shuttle::scheduler::{PctScheduler, RandomScheduler};
        let mut config = shuttle::Config::new();
        // A failed assertion formats a record, for which the default is too small.
        config.stack_size = 1 << 18;
        shuttle::Runner::new(RandomScheduler::new(400), config.clone()).run(|| two_shares(3, 12));
        shuttle::Runner::new(PctScheduler::new(3, 400), config).run(|| two_shares(3, 12));
    }
}
