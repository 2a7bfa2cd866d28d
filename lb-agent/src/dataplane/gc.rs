//! Last use of a flow → whether it is dead. Both entries of a flow are judged together, by the newest
//! of their last uses; nothing but age and state decides.

use std::time::Duration;

use lb_common::{
    abi::{Clock, Flow, FlowFlags, FlowKey, proto},
    family::Family,
};

use super::store::{FamilyMaps, FlowTable, MapStore, ScanCursor, StoreFamily, StoreResult};

/// How long a flow may idle, by its state. Defaults are the kernel's and kube-proxy's (semantics 17.9, 18.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP past its handshake.
    pub tcp_established: Duration,
    /// TCP, one side has sent FIN (CLOSE_WAIT).
    pub tcp_close_wait: Duration,
    /// TCP, both sides have sent FIN (TIME_WAIT).
    pub tcp_time_wait: Duration,
    /// TCP, a side has sent RST.
    pub tcp_reset: Duration,
    /// TCP whose handshake is not complete.
    pub tcp_opening: Duration,
    /// UDP without an answer.
    pub udp_unreplied: Duration,
    /// UDP that was answered.
    pub udp_stream: Duration,
    /// SCTP that was answered and confirmed.
    pub sctp_established: Duration,
    /// SCTP before that.
    pub sctp_opening: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp_established: Duration::from_hours(24),
            tcp_close_wait: Duration::from_hours(1),
            tcp_time_wait: Duration::from_secs(120),
            tcp_reset: Duration::from_secs(120),
            tcp_opening: Duration::from_secs(60),
            udp_unreplied: Duration::from_secs(30),
            udp_stream: Duration::from_secs(120),
            sctp_established: Duration::from_hours(24),
            sctp_opening: Duration::from_secs(60),
        }
    }
}

/// This moment in the unit of [`Flow::stamp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// [`Clock::stamp`].
    pub stamp: u32,
    /// Jiffies a second.
    pub hz: u32,
}

impl Now {
    /// Time since a stamp. One from the future, written while we look, is no time at all.
    pub fn since(&self, stamp: u32) -> Duration {
        let idle = self.stamp.wrapping_sub(stamp);
        if idle > u32::MAX / 2 {
            return Duration::ZERO;
        }
        let jiffies = u64::from(idle) << Clock::STAMP_SHIFT;
        Duration::from_millis(jiffies * 1_000 / u64::from(self.hz.max(1)))
    }
}

/// What of an entry decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// [`Flow::stamp`].
    pub stamp: u32,
    /// [`Flow::flags`].
    pub flags: FlowFlags,
}

impl<F: Family> From<&Flow<F>> for Member {
    fn from(flow: &Flow<F>) -> Self {
        Member {
            stamp: flow.stamp,
            flags: flow.flags,
        }
    }
}

/// How long a flow of these entries may idle.
pub fn timeout(proto: u8, members: &[Member], timeouts: &Timeouts) -> Duration {
    let any = |flag| members.iter().any(|m| m.flags.contains(flag));
    let reply_seen = members
        .iter()
        .any(|m| m.flags.contains(FlowFlags::REPLY | FlowFlags::SEEN));
    let has_fin = |reply: bool| {
        members.iter().any(|m| {
            m.flags.contains(FlowFlags::FIN) && m.flags.contains(FlowFlags::REPLY) == reply
        })
    };
    match proto {
        proto::TCP if any(FlowFlags::RST) => timeouts.tcp_reset,
        proto::TCP if !any(FlowFlags::CONFIRMED) => timeouts.tcp_opening,
        proto::TCP => match (has_fin(false), has_fin(true)) {
            (true, true) => timeouts.tcp_time_wait,
            (false, false) => timeouts.tcp_established,
            _ => timeouts.tcp_close_wait,
        },
        proto::SCTP if any(FlowFlags::CONFIRMED) => timeouts.sctp_established,
        proto::SCTP => timeouts.sctp_opening,
        _ if reply_seen || any(FlowFlags::CONFIRMED) => timeouts.udp_stream,
        _ => timeouts.udp_unreplied,
    }
}

/// Whether a flow of these entries is dead.
pub fn expired(proto: u8, members: &[Member], now: Now, timeouts: &Timeouts) -> bool {
    let idle = members.iter().map(|m| now.since(m.stamp)).min();
    idle.is_some_and(|idle| idle >= timeout(proto, members, timeouts))
}

/// What a tick did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GcReport {
    /// Entries looked at.
    pub scanned: usize,
    /// Entries removed.
    pub removed: usize,
    /// Whether every table has been looked through since the last time this was true.
    pub is_round_complete: bool,
}

/// The collector: goes through both tables of both families, a bounded number of entries a tick.
#[derive(Debug, Default)]
pub struct FlowGc {
    timeouts: Timeouts,
    table: usize,
    /// Entries seen in the table so far, and in each table at the last look.
    seen: usize,
    entries: [usize; 4],
    cursor: Option<ScanCursor>,
    batch_v4: Vec<(FlowKey<lb_common::V4>, Flow<lb_common::V4>)>,
    batch_v6: Vec<(FlowKey<lb_common::V6>, Flow<lb_common::V6>)>,
}

/// Entries a batch: a few hundred kB of keys and values.
const BATCH: usize = 4_096;

impl FlowGc {
    /// A collector with these timeouts.
    pub fn new(timeouts: Timeouts) -> Self {
        FlowGc {
            timeouts,
            ..FlowGc::default()
        }
    }

    /// Entries of `flows_v4`, `openings_v4`, `flows_v6` and `openings_v6` when each was last looked through.
    pub const fn entries(&self) -> [usize; 4] {
        self.entries
    }

    /// Looks at about `limit` entries, goes on where the last tick ended.
    pub fn tick<S: MapStore>(
        &mut self,
        store: &mut S,
        now: Now,
        limit: usize,
    ) -> StoreResult<GcReport> {
        let mut report = GcReport::default();
        while report.scanned < limit && !report.is_round_complete {
            let batch = BATCH.min(limit - report.scanned);
            let table = if self.table.is_multiple_of(2) {
                FlowTable::Flows
            } else {
                FlowTable::Openings
            };
            let scanned = report.scanned;
            let next = if self.table < 2 {
                collect(
                    store,
                    table,
                    self.cursor,
                    batch,
                    &mut self.batch_v4,
                    now,
                    &self.timeouts,
                    &mut report,
                )
            } else {
                collect(
                    store,
                    table,
                    self.cursor,
                    batch,
                    &mut self.batch_v6,
                    now,
                    &self.timeouts,
                    &mut report,
                )
            };
            // A table that cannot be read must not keep the others from their turn.
            self.cursor = match &next {
                Ok(cursor) => *cursor,
                Err(_) => None,
            };
            self.seen += report.scanned - scanned;
            if self.cursor.is_none() {
                self.entries[self.table] = std::mem::take(&mut self.seen);
                self.table = (self.table + 1) % 4;
                report.is_round_complete = self.table == 0;
            }
            next?;
        }
        Ok(report)
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one batch of one table: the parts of the collector and of the tick"
)]
fn collect<F: StoreFamily, S: MapStore>(
    store: &mut S,
    table: FlowTable,
    cursor: Option<ScanCursor>,
    limit: usize,
    batch: &mut Vec<(FlowKey<F>, Flow<F>)>,
    now: Now,
    timeouts: &Timeouts,
    report: &mut GcReport,
) -> StoreResult<Option<ScanCursor>> {
    batch.clear();
    let next = F::maps(store).scan_flows(table, cursor, limit, batch)?;
    report.scanned += batch.len();
    for (key, flow) in batch.iter() {
        if may_be_dead(key, flow, now, timeouts) {
            report.removed += remove_if_dead::<F, S>(store, key, now, timeouts)?;
        }
    }
    Ok(next)
}

/// A first look that needs no other entry: the entry alone, taken for the longest-lived flow it can
/// belong to. An entry that has seen FIN or RST is worth a look at its partner.
fn may_be_dead<F: Family>(key: &FlowKey<F>, flow: &Flow<F>, now: Now, timeouts: &Timeouts) -> bool {
    let idle = now.since(flow.stamp);
    if flow.flags.intersects(FlowFlags::CLOSING) {
        return idle >= timeouts.tcp_reset.min(timeouts.tcp_time_wait);
    }
    let own = Member::from(flow);
    idle >= timeout(key.proto, &[own], timeouts)
}

/// Reads a flow again and removes all its entries if it is dead; returns how many.
fn remove_if_dead<F: StoreFamily, S: MapStore>(
    store: &mut S,
    key: &FlowKey<F>,
    now: Now,
    timeouts: &Timeouts,
) -> StoreResult<usize> {
    let Some(flow) = find::<F, S>(store, key)? else {
        return Ok(0);
    };
    let mut entries = vec![(*key, flow)];
    let partner_key = flow.partner_key(key);
    if let Some(partner) = find::<F, S>(store, &partner_key)? {
        entries.push((partner_key, partner));
        // The partner of an egress entry is the ingress entry of the other direction; that one's
        // partner completes the pair by whose last use the egress entry lives.
        let third_key = partner.partner_key(&partner_key);
        if third_key != *key
            && let Some(third) = find::<F, S>(store, &third_key)?
        {
            entries.push((third_key, third));
        }
    }
    for (key, flow) in entries.clone() {
        let egress_key = flow.egress_key(&key);
        if flow.has(FlowFlags::SNAT)
            && !entries.iter().any(|(k, _)| *k == egress_key)
            && let Some(egress) = find::<F, S>(store, &egress_key)?
            && egress.has(FlowFlags::EGRESS)
        {
            entries.push((egress_key, egress));
        }
    }
    let members: Vec<_> = entries.iter().map(|(_, f)| Member::from(f)).collect();
    if !expired(key.proto, &members, now, timeouts) {
        return Ok(0);
    }
    let mut removed = 0;
    // Original entries first: no packet is sent on whose reply would not be known.
    entries.sort_by_key(|(_, f)| f.has(FlowFlags::REPLY));
    for (key, _) in entries {
        for table in [FlowTable::Flows, FlowTable::Openings] {
            removed += usize::from(F::maps_mut(store).remove_flow(table, &key)?);
        }
    }
    Ok(removed)
}

fn find<F: StoreFamily, S: MapStore>(store: &S, key: &FlowKey<F>) -> StoreResult<Option<Flow<F>>> {
    let maps = F::maps(store);
    match maps.flow(FlowTable::Flows, key)? {
        Some(flow) => Ok(Some(flow)),
        None => maps.flow(FlowTable::Openings, key),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        V4,
        abi::{Addr4, Be16, Side, Translation},
    };

    use super::*;
    use crate::dataplane::fake::FakeStore;

    const HZ: u32 = 256; // one stamp a second

    fn now(stamp: u32) -> Now {
        Now { stamp, hz: HZ }
    }

    fn member(stamp: u32, flags: FlowFlags) -> Member {
        Member { stamp, flags }
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

    // semantics 17.9, 18.4
    #[test]
    fn each_state_has_its_timeout() {
        let t = Timeouts::default();
        let confirmed = FlowFlags::SEEN | FlowFlags::CONFIRMED;
        let reply = confirmed | FlowFlags::REPLY;
        let (fin, rst) = (FlowFlags::FIN, FlowFlags::RST);
        let opening_reply = FlowFlags::REPLY | FlowFlags::SEEN;
        for (proto, original, other, secs) in [
            (proto::TCP, confirmed, reply, 86_400),
            (proto::TCP, confirmed | fin, reply, 3_600),
            (proto::TCP, confirmed, reply | fin, 3_600),
            (proto::TCP, confirmed | fin, reply | fin, 120),
            (proto::TCP, confirmed, reply | rst, 120),
            (proto::TCP, FlowFlags::SEEN, FlowFlags::REPLY, 60),
            (proto::TCP, FlowFlags::SEEN, opening_reply, 60),
            (proto::UDP, FlowFlags::SEEN, FlowFlags::REPLY, 30),
            (proto::UDP, FlowFlags::SEEN, opening_reply, 120),
            (proto::UDP, confirmed, reply, 120),
            (proto::SCTP, confirmed, reply, 86_400),
            (proto::SCTP, FlowFlags::SEEN, FlowFlags::REPLY, 60),
        ] {
            // The newest use counts, whichever side it was.
            for stamps in [[1_000, 900], [900, 1_000]] {
                let members = [member(stamps[0], original), member(stamps[1], other)];
                assert!(
                    !expired(proto, &members, now(1_000 + secs - 1), &t),
                    "{proto} {original:?} {other:?}"
                );
                assert!(
                    expired(proto, &members, now(1_000 + secs), &t),
                    "{proto} {original:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn stamps_count_jiffies_and_wrap() {
        assert_eq!(
            Now {
                stamp: 250,
                hz: 1_000
            }
            .since(0),
            Duration::from_secs(64)
        );
        assert_eq!(now(4).since(u32::MAX - 5), Duration::from_secs(10));
        assert_eq!(now(4).since(5), Duration::ZERO);
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
