//! Flows as they lie in memory → those that are dead, deleted; and what a round over all of them tells: how full the
//! tables are, by which ports flows come in.
//!
//! The agent only looks. What it has found dead the reaper deletes under the flow's lock, if it still is what was seen. A
//! record that is being changed while it is read may be seen half; whoever decides by more than its age checks it first.

mod ports;
mod pressure;
mod timeouts;
mod usage;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use lb_common::{
    V4, V6,
    abi::{FlowFlags, ServiceKey, proto},
    flow_table::{
        Class, Derived, IndexLine, Meta, REAP_ITEMS, ReapItem, Record, RecordNumber, WAYS,
    },
};

pub(crate) use self::{
    ports::FlowPorts,
    timeouts::{Now, State},
    usage::{ALARM, FlowUse, IndexUse},
};
use self::{
    pressure::{IdleTimes, Pressure},
    timeouts::Limits,
};
use super::store::{FamilyMaps, MapStore, Reap, Reaped, StoreFamily, StoreResult};
use crate::net::IpFamily;

/// Buckets looked at in one go: some 20 microseconds.
const STEP: u32 = 64;
/// Room for what a step may find.
const STEP_ITEMS: usize = (STEP * WAYS) as usize;
const _: () = assert!(STEP_ITEMS < REAP_ITEMS);

/// A datagram that was answered by nobody lets its tuple go after so many seconds.
const RESERVED_SECS: u64 = 180;
/// In this time every index line is swept once.
const SWEEP: Duration = Duration::from_secs(120);

/// What a tick did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct GcReport {
    /// Flows deleted.
    pub(crate) removed: u32,
    /// Index entries swept.
    pub(crate) swept: u32,
    /// Whether all flows have been looked through since the last time this was true.
    pub(crate) is_round_complete: bool,
}

/// Whose a frontend is, as far as flows of UDP must follow it.
pub(crate) struct Owners<'a> {
    /// Grows with every UDP frontend that goes or changes hands; `None`: it is not known yet whose they are.
    pub(crate) moves: Option<u64>,
    /// Service id of a frontend.
    pub(crate) v4: &'a dyn Fn(&ServiceKey<V4>) -> Option<u32>,
    /// The same of IPv6.
    pub(crate) v6: &'a dyn Fn(&ServiceKey<V6>) -> Option<u32>,
}

/// The collector: walks over both families' tables, for as long as it is let.
#[derive(Debug)]
pub(crate) struct FlowGc {
    /// Where it is.
    family: IpFamily,
    bucket: u32,
    round: Round,
    found: Found,
    brooms: [Broom; 2],
    pressure: [Pressure; 2],
    /// [`Owners::moves`] that all flows of UDP have followed.
    followed: Option<u64>,
    /// What is to be deleted, of the family it is at.
    due: Vec<ReapItem>,
}

/// What complete rounds have found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The tables, IPv4 and IPv6.
    pub(crate) tables: [TableFound; 2],
    /// By which ports flows come in.
    pub(crate) ports: FlowPorts,
}

/// What is known of a family's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TableFound {
    /// How full it is.
    pub(crate) usage: FlowUse,
    /// How full its index is.
    pub(crate) index: IndexUse,
    /// Flows deleted since the start.
    pub(crate) removed: u64,
    /// Index entries swept since the start.
    pub(crate) swept: u64,
}

/// The round under way.
#[derive(Debug)]
struct Round {
    usage: FlowUse,
    idle: IdleTimes,
    ports: FlowPorts,
    /// [`Owners::moves`] when it began.
    moves: Option<u64>,
    /// Whether flows of UDP are asked whose they are.
    follows: bool,
    /// Something that was to be deleted had changed meanwhile.
    is_missed: bool,
}

impl Default for FlowGc {
    fn default() -> Self {
        FlowGc {
            family: IpFamily::V4,
            bucket: 0,
            round: Round {
                usage: FlowUse::default(),
                idle: IdleTimes::new(),
                ports: FlowPorts::default(),
                moves: None,
                follows: false,
                is_missed: false,
            },
            found: Found::default(),
            brooms: [Broom::default(); 2],
            pressure: [Pressure::default(); 2],
            followed: None,
            due: Vec::with_capacity(REAP_ITEMS),
        }
    }
}

impl FlowGc {
    /// What complete rounds have found.
    pub(crate) const fn found(&self) -> &Found {
        &self.found
    }

    /// Whether flows of UDP are to follow frontends that went or changed hands.
    pub(crate) fn is_behind(&self, moves: Option<u64>) -> bool {
        moves.is_some() && moves != self.followed
    }

    /// Looks at flows from where the last tick ended, until the round is complete or time is up.
    pub(crate) fn tick<S: MapStore>(
        &mut self,
        store: &mut S,
        owners: &Owners<'_>,
        now: Now,
        has_time: &mut dyn FnMut() -> bool,
    ) -> StoreResult<GcReport> {
        let mut report = GcReport::default();
        loop {
            let result = match self.family {
                IpFamily::V4 => self.step::<V4, _>(store, owners, owners.v4, now, &mut report),
                IpFamily::V6 => self.step::<V6, _>(store, owners, owners.v6, now, &mut report),
            };
            result?;
            if report.is_round_complete {
                break;
            }
            if !has_time() {
                match self.family {
                    IpFamily::V4 => self.reap::<V4, _>(store, 0..0, now, &mut report)?,
                    IpFamily::V6 => self.reap::<V6, _>(store, 0..0, now, &mut report)?,
                }
                break;
            }
        }
        let v4 = self.sweep::<V4, _>(store);
        let v6 = self.sweep::<V6, _>(store);
        self.reap::<V4, _>(store, v4, now, &mut report)?;
        self.reap::<V6, _>(store, v6, now, &mut report)?;
        Ok(report)
    }

    /// Looks at some buckets of a family.
    fn step<F: StoreFamily, S: MapStore>(
        &mut self,
        store: &mut S,
        owners: &Owners<'_>,
        owner: &dyn Fn(&ServiceKey<F>) -> Option<u32>,
        now: Now,
        report: &mut GcReport,
    ) -> StoreResult<()> {
        let buckets = F::maps(store).flow_buckets();
        if self.bucket == 0 {
            self.begin::<F>(buckets, owners, now);
        }
        let to = (self.bucket + STEP).min(buckets);
        let mut look = Look {
            limits: Limits::new(&now),
            now,
            round: &mut self.round,
            pressure: &mut self.pressure[F::INDEX],
            owner,
            due: &mut self.due,
        };
        let mut each =
            |number: RecordNumber, meta: Meta, record: &Record<F>| look.at(number, meta, record);
        F::maps(store).each_flow(self.bucket..to, &mut each);
        self.bucket = to;
        let is_last = to >= buckets;
        if is_last || self.due.len() + STEP_ITEMS > REAP_ITEMS {
            let reaped = self.reap::<F, _>(store, 0..0, now, report);
            if is_last {
                // A table that cannot be written must not keep the other from its turn.
                self.end::<F>(report);
            }
            reaped?;
        }
        Ok(())
    }

    /// A family's table begins.
    fn begin<F: StoreFamily>(&mut self, buckets: u32, owners: &Owners<'_>, now: Now) {
        let round = &mut self.round;
        if F::INDEX == 0 {
            round.ports.clear();
            round.moves = owners.moves;
            round.follows = owners.moves.is_some() && owners.moves != self.followed;
            round.is_missed = false;
        }
        round.usage = FlowUse::of(buckets);
        round.idle.begin(|secs| now.units(u64::from(secs)));
    }

    /// A family's table ends.
    fn end<F: StoreFamily>(&mut self, report: &mut GcReport) {
        let usage = self.round.usage;
        self.found.tables[F::INDEX].usage = usage;
        self.pressure[F::INDEX] = self.round.idle.pressure(usage.places);
        self.bucket = 0;
        self.family = match self.family {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        };
        if self.family == IpFamily::V4 {
            std::mem::swap(&mut self.found.ports, &mut self.round.ports);
            if self.round.follows && !self.round.is_missed {
                self.followed = self.round.moves;
            }
            report.is_round_complete = true;
        }
    }

    /// The index lines of a family that are next.
    fn sweep<F: StoreFamily, S: MapStore>(&mut self, store: &S) -> Range<u32> {
        let index = &mut self.found.tables[F::INDEX].index;
        self.brooms[F::INDEX].turn::<F, _>(store, index)
    }

    /// Has deleted what is due, and swept some lines.
    fn reap<F: StoreFamily, S: MapStore>(
        &mut self,
        store: &mut S,
        lines: Range<u32>,
        now: Now,
        report: &mut GcReport,
    ) -> StoreResult<()> {
        if self.due.is_empty() && lines.is_empty() {
            return Ok(());
        }
        let reap = Reap {
            items: &self.due,
            lines,
            reserved_age: now.units(RESERVED_SECS),
        };
        let reaped = store.reap::<F>(&reap);
        let listed = self.due.len();
        self.due.clear();
        let Reaped { deleted, swept } = match reaped {
            Ok(reaped) => reaped,
            Err(error) => {
                self.round.is_missed = true;
                return Err(error);
            }
        };
        self.round.is_missed |= deleted as usize != listed;
        let table = &mut self.found.tables[F::INDEX];
        table.removed += u64::from(deleted);
        table.swept += u64::from(swept);
        report.removed += deleted;
        report.swept += swept;
        Ok(())
    }
}

/// A look at one flow after the other.
struct Look<'a, F: StoreFamily> {
    limits: Limits,
    now: Now,
    round: &'a mut Round,
    pressure: &'a mut Pressure,
    owner: &'a dyn Fn(&ServiceKey<F>) -> Option<u32>,
    due: &'a mut Vec<ReapItem>,
}

impl<F: StoreFamily> Look<'_, F> {
    fn at(&mut self, number: RecordNumber, meta: Meta, record: &Record<F>) {
        self.round.usage.add(number, meta);
        self.round.ports.add(record);
        let idle = self.now.units_since(record.stamp);
        let state = State::of(record.original.proto(), record.flags);
        let mut is_due = idle >= self.limits.of(state);
        if !is_due && self.round.follows {
            is_due = self.is_left_behind(record);
        }
        if !is_due && meta.class() == Class::Confirmed {
            is_due = self.pressure.takes(idle);
            if !is_due {
                self.round.idle.add(idle);
            }
        }
        if is_due && record.is_whole() {
            self.due
                .push(ReapItem::new(number.0, record.check, record.stamp));
        }
    }

    /// Whether a flow of UDP came in by a frontend that is another's by now, or nobody's (semantics 17.3).
    fn is_left_behind(&self, record: &Record<F>) -> bool {
        let original = &record.original;
        if original.proto() != proto::UDP || record.flags.contains(FlowFlags::DIRECT) {
            return false;
        }
        let frontend = ServiceKey::new(original.daddr(), original.dport(), original.proto());
        let owner = (self.owner)(&frontend).map(|id| id & Record::<F>::ID);
        owner != Some(record.service)
    }
}

/// Sweeps a family's index lines, all of them once in [`SWEEP`], and counts what is there.
#[derive(Clone, Copy, Debug, Default)]
struct Broom {
    line: u32,
    last: Option<Instant>,
    counted: IndexUse,
}

impl Broom {
    /// The lines that are next; `index`: what the last complete turn has counted.
    fn turn<F: StoreFamily, S: MapStore>(&mut self, store: &S, index: &mut IndexUse) -> Range<u32> {
        let maps = F::maps(store);
        let lines = maps.flow_lines();
        let now = Instant::now();
        let most = REAP_ITEMS as u128;
        let due = self.last.map_or(most, |last| {
            (now - last).as_millis() * u128::from(lines) / SWEEP.as_millis()
        });
        let due = u32::try_from(due.min(most)).unwrap_or(0);
        if due == 0 {
            return 0..0;
        }
        self.last = Some(now);
        if self.line == 0 {
            self.counted = IndexUse::of(lines);
            index.places = self.counted.places;
        }
        let range = self.line..(self.line + due).min(lines);
        let before = self.counted.entries;
        let counted = &mut self.counted;
        maps.each_index_entry(range.clone(), &mut |entry| {
            counted.entries += 1;
            counted.reserved += u64::from(IndexLine::kind(entry) == Some(Derived::Reserved));
        });
        self.line = range.end;
        if range.end >= lines {
            self.line = 0;
            *index = self.counted;
        }
        // Of empty lines nothing can be swept.
        if self.counted.entries == before {
            0..0
        } else {
            range
        }
    }
}

#[cfg(test)]
mod tests;
