//! Flows → those that are dead, removed. Both entries of a flow are judged together, by the newest of their
//! last uses.

mod timeouts;

use lb_common::{
    V4, V6,
    abi::{Flow, FlowFlags, FlowKey},
};

use self::timeouts::LastUse;
pub(crate) use self::timeouts::{Now, Timeouts};
use super::store::{FamilyMaps, FlowTable, MapStore, ScanCursor, StoreFamily, StoreResult};
use crate::net::IpFamily;

/// What a tick did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct GcReport {
    pub(crate) scanned: usize,
    pub(crate) removed: usize,
    /// Whether every table has been looked through since the last time this was true.
    pub(crate) is_round_complete: bool,
}

/// The tables in the order in which they are gone through.
const TABLES: [(IpFamily, FlowTable); 4] = [
    (IpFamily::V4, FlowTable::Flows),
    (IpFamily::V4, FlowTable::Openings),
    (IpFamily::V6, FlowTable::Flows),
    (IpFamily::V6, FlowTable::Openings),
];

/// Entries a batch: a few hundred kB of keys and values.
const BATCH: usize = 4_096;

/// The collector: goes through both tables of both families, a bounded number of entries a tick.
#[derive(Debug, Default)]
pub(crate) struct FlowGc {
    timeouts: Timeouts,
    /// The table it is at, of [`TABLES`], and where in it.
    table: usize,
    cursor: Option<ScanCursor>,
    /// Entries seen in this table so far.
    seen: usize,
    /// Entries seen in each table when it was last gone through.
    entries: [usize; TABLES.len()],
    batch_v4: Batch<V4>,
    batch_v6: Batch<V6>,
}

/// Entries read at once.
type Batch<F> = Vec<(FlowKey<F>, Flow<F>)>;

impl FlowGc {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        FlowGc {
            timeouts,
            ..FlowGc::default()
        }
    }

    /// Entries of `flows_v4`, `openings_v4`, `flows_v6` and `openings_v6` when each was last looked through.
    pub(crate) const fn entries(&self) -> [usize; TABLES.len()] {
        self.entries
    }

    /// Looks at about `limit` entries, goes on where the last tick ended.
    pub(crate) fn tick<S: MapStore>(
        &mut self,
        store: &mut S,
        now: Now,
        limit: usize,
    ) -> StoreResult<GcReport> {
        let mut report = GcReport::default();
        while report.scanned < limit && !report.is_round_complete {
            let scanned = report.scanned;
            let (family, table) = TABLES[self.table];
            let mut step = Step {
                store,
                timeouts: &self.timeouts,
                now,
                report: &mut report,
            };
            let batch = BATCH.min(limit - scanned);
            let next = match family {
                IpFamily::V4 => step.take(table, self.cursor, batch, &mut self.batch_v4),
                IpFamily::V6 => step.take(table, self.cursor, batch, &mut self.batch_v6),
            };
            // A table that cannot be read must not keep the others from their turn.
            self.cursor = match &next {
                Ok(cursor) => *cursor,
                Err(_) => None,
            };
            self.seen += report.scanned - scanned;
            if self.cursor.is_none() {
                self.entries[self.table] = std::mem::take(&mut self.seen);
                self.table = (self.table + 1) % TABLES.len();
                report.is_round_complete = self.table == 0;
            }
            next?;
        }
        Ok(report)
    }
}

/// One batch of one table.
struct Step<'a, S> {
    store: &'a mut S,
    timeouts: &'a Timeouts,
    now: Now,
    report: &'a mut GcReport,
}

impl<S: MapStore> Step<'_, S> {
    /// Reads a batch and removes what is dead of it; returns where to go on.
    fn take<F: StoreFamily>(
        &mut self,
        table: FlowTable,
        cursor: Option<ScanCursor>,
        limit: usize,
        batch: &mut Batch<F>,
    ) -> StoreResult<Option<ScanCursor>> {
        batch.clear();
        let next = F::maps(self.store).scan_flows(table, cursor, limit, batch)?;
        self.report.scanned += batch.len();
        for (key, flow) in batch.iter() {
            if self
                .timeouts
                .may_have_passed(key.proto, flow.into(), self.now)
            {
                self.remove_if_dead(key)?;
            }
        }
        Ok(next)
    }

    /// Reads a flow again and removes all its entries if it is dead.
    fn remove_if_dead<F: StoreFamily>(&mut self, key: &FlowKey<F>) -> StoreResult<()> {
        let mut entries = self.entries_of(key)?;
        let uses: Vec<_> = entries.iter().map(|(_, f)| LastUse::from(f)).collect();
        if !self.timeouts.have_passed(key.proto, &uses, self.now) {
            return Ok(());
        }
        // Original entries first: no packet is sent on whose reply would not be known.
        entries.sort_by_key(|(_, f)| f.has(FlowFlags::REPLY));
        for (key, _) in entries {
            for table in [FlowTable::Flows, FlowTable::Openings] {
                let removed = F::maps_mut(self.store).remove_flow(table, &key)?;
                self.report.removed += usize::from(removed);
            }
        }
        Ok(())
    }

    /// All entries of the flow that an entry belongs to; none: it is gone by now.
    fn entries_of<F: StoreFamily>(&self, key: &FlowKey<F>) -> StoreResult<Batch<F>> {
        let Some(flow) = self.find(key)? else {
            return Ok(Vec::new());
        };
        let mut entries = vec![(*key, flow)];
        let partner_key = flow.partner_key(key);
        if let Some(partner) = self.find(&partner_key)? {
            entries.push((partner_key, partner));
            // The partner of an egress entry is the ingress entry of the other direction; that one's
            // partner completes the pair by whose last use the egress entry lives.
            let third_key = partner.partner_key(&partner_key);
            if third_key != *key
                && let Some(third) = self.find(&third_key)?
            {
                entries.push((third_key, third));
            }
        }
        for (key, flow) in entries.clone() {
            let egress_key = flow.egress_key(&key);
            if flow.has(FlowFlags::SNAT)
                && !entries.iter().any(|(k, _)| *k == egress_key)
                && let Some(egress) = self.find(&egress_key)?
                && egress.has(FlowFlags::EGRESS)
            {
                entries.push((egress_key, egress));
            }
        }
        Ok(entries)
    }

    fn find<F: StoreFamily>(&self, key: &FlowKey<F>) -> StoreResult<Option<Flow<F>>> {
        let maps = F::maps(self.store);
        match maps.flow(FlowTable::Flows, key)? {
            Some(flow) => Ok(Some(flow)),
            None => maps.flow(FlowTable::Openings, key),
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        V4,
        abi::{Addr4, Be16, Side, Translation, proto},
    };

    use super::*;
    use crate::dataplane::fake::FakeStore;

    fn now(stamp: u32) -> Now {
        // One stamp a second.
        Now { stamp, hz: 256 }
    }

    fn addr(last: u8) -> Addr4 {
        std::net::Ipv4Addr::new(10, 0, 0, last).into()
    }

    const CLIENT: u8 = 1;
    const VIP: u8 = 2;
    const BACKEND: u8 = 3;
    const NODE: u8 = 4;

    type Entry = (FlowKey<V4>, Flow<V4>);

    fn entry(
        side: Side,
        from: [u8; 2],
        ports: [u16; 2],
        to: [u8; 2],
        to_ports: [u16; 2],
        flags: FlowFlags,
        proto: u8,
    ) -> Entry {
        let port = Be16::from_host;
        let key = FlowKey::new(
            addr(from[0]),
            addr(from[1]),
            port(ports[0]),
            port(ports[1]),
            proto,
            side,
        );
        let to = Translation {
            saddr: addr(to[0]),
            daddr: addr(to[1]),
            sport: port(to_ports[0]),
            dport: port(to_ports[1]),
        };
        (
            key,
            Flow {
                to,
                flags,
                ..Flow::default()
            },
        )
    }

    /// client:1000 → VIP:80 to backend:8080, through a pod interface.
    fn pair(proto: u8) -> [Entry; 2] {
        let seen = FlowFlags::SEEN | FlowFlags::CONFIRMED;
        let reply = seen | FlowFlags::REPLY | FlowFlags::ORIGINAL_AT_POD;
        [
            entry(
                Side::PodIn,
                [CLIENT, VIP],
                [1000, 80],
                [CLIENT, BACKEND],
                [1000, 8080],
                seen,
                proto,
            ),
            entry(
                Side::Out,
                [BACKEND, CLIENT],
                [8080, 1000],
                [VIP, CLIENT],
                [80, 1000],
                reply,
                proto,
            ),
        ]
    }

    /// The same from outside, with SNAT: two ingress entries and two egress ones.
    fn snat() -> [Entry; 4] {
        let seen = FlowFlags::SEEN | FlowFlags::CONFIRMED;
        let (ports, to) = ([1000, 80], [20_000, 8080]);
        let original = entry(
            Side::ExternalIn,
            [CLIENT, VIP],
            ports,
            [NODE, BACKEND],
            to,
            seen | FlowFlags::SNAT,
            proto::TCP,
        );
        let flags = seen | FlowFlags::REPLY | FlowFlags::SNAT;
        let reply = entry(
            Side::ExternalIn,
            [BACKEND, NODE],
            [8080, 20_000],
            [VIP, CLIENT],
            [80, 1000],
            flags,
            proto::TCP,
        );
        let egress = |e: &Entry| {
            let mut flow = e.1;
            flow.flags = flow.flags.without(FlowFlags::SNAT) | FlowFlags::EGRESS;
            (e.1.egress_key(&e.0), flow)
        };
        [original, reply, egress(&original), egress(&reply)]
    }

    fn store(flows: &[Entry]) -> FakeStore {
        let mut store = FakeStore::small();
        store.v4.flows[0] = flows.to_vec();
        store
    }

    fn round(store: &mut FakeStore, stamp: u32) -> GcReport {
        FlowGc::default().tick(store, now(stamp), 1_000).unwrap()
    }

    #[test]
    fn pair_lives_by_the_newest_use_and_goes_together() {
        let mut flows = pair(proto::UDP);
        flows[1].1.stamp = 100;
        let mut store = store(&flows);
        assert_eq!(round(&mut store, 219).removed, 0);
        let report = round(&mut store, 220);
        assert_eq!((report.removed, report.is_round_complete), (2, true));
        assert!(store.v4.flows[0].is_empty());
    }

    #[test]
    fn both_fins_end_a_connection_that_one_fin_leaves() {
        let mut flows = pair(proto::TCP);
        flows[0].1.flags |= FlowFlags::FIN;
        let mut one = store(&flows);
        assert_eq!(round(&mut one, 130).removed, 0);
        flows[1].1.flags |= FlowFlags::FIN;
        let mut both = store(&flows);
        assert_eq!(round(&mut both, 119).removed, 0);
        assert_eq!(round(&mut both, 130).removed, 2);
    }

    #[test]
    fn snat_flow_goes_with_its_egress_entries_and_not_before_them() {
        let mut flows = snat();
        flows.iter_mut().for_each(|f| f.1.flags |= FlowFlags::RST);
        for used in 0..4 {
            let mut flows = flows;
            flows[used].1.stamp = 50;
            let mut store = store(&flows);
            assert_eq!(round(&mut store, 165).removed, 0, "entry {used} was used");
            assert_eq!(round(&mut store, 170).removed, 4);
        }
    }

    #[test]
    fn orphan_ages_by_its_own_use() {
        let [_, mut reply] = pair(proto::UDP);
        reply.1.stamp = 100;
        let mut store = store(&[reply]);
        assert_eq!(round(&mut store, 219).removed, 0);
        assert_eq!(round(&mut store, 220).removed, 1);
    }

    #[test]
    fn tick_is_bounded_and_goes_on_where_it_ended() {
        let mut store = store(&snat());
        let mut gc = FlowGc::default();
        let report = gc.tick(&mut store, now(0), 3).unwrap();
        assert_eq!((report.scanned, report.is_round_complete), (3, false));
        let report = gc.tick(&mut store, now(0), 3).unwrap();
        assert_eq!((report.scanned, report.is_round_complete), (1, true));
    }
}
