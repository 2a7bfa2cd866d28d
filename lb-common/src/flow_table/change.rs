//! A record that is there → confirmed, closed, deleted: always under its bucket's lock, so that it is still that record.

use super::find::find_cells;
use super::insert::{add_halves, is_by_halves, remove, with_record};
use super::layout::{Class, Hop, Insert, Meta, Record, RecordNumber, hop_word};
use super::memory::{BucketCells, Head, Memory, RecordCells};
use super::tuple::{TableFamily, Tuple};
use crate::abi::FlowFlags;

/// What is to become of a record, as the two words by which a program hands it to a function of its own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Change {
    /// Flags to set, flags to take away, class, direction of the hop, from the lowest bit.
    pub what: u64,
    /// The hop.
    pub hop: u64,
}

impl Change {
    const CLASS: u64 = 1 << 34;
    const HOP: u64 = 1 << 41;

    /// Sets and takes away flags.
    #[inline(always)]
    pub const fn flags(set: FlowFlags, remove: FlowFlags) -> Self {
        Change {
            what: set.bits() as u64 | ((remove.bits() as u64) << 16),
            hop: 0,
        }
    }
    /// Whether all of these flags are set by it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest part")]
    pub const fn sets(self, flags: FlowFlags) -> bool {
        FlowFlags::from_bits(self.what as u16).contains(flags)
    }
    /// Whether it writes a hop.
    #[inline(always)]
    pub const fn has_hop(self) -> bool {
        self.what & Self::HOP != 0
    }
    /// Also gives it another class.
    #[inline(always)]
    #[must_use]
    pub const fn class(mut self, class: Class) -> Self {
        self.what |= ((class as u64) << 32) | Self::CLASS;
        self
    }
    /// Also writes a next hop: of the original direction 0, of the reply 1.
    #[inline(always)]
    #[must_use]
    pub const fn hop(mut self, direction: usize, hop: &Hop) -> Self {
        self.what |= Self::HOP | ((direction as u64 & 1) << 40);
        self.hop = hop_word(hop, 0);
        self
    }
}

/// Changes a record. False: it is gone, or its lock was not to be had.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
pub fn change<F: TableFamily, M: Memory<F>>(
    memory: &M,
    original: &Tuple<F>,
    change: Change,
    now: u32,
) -> bool {
    with_record::<F, M, _>(memory, original, |bucket, _, way| {
        let what = change.what;
        if what & Change::CLASS != 0 {
            let class = Class::from_bits((what >> 32) as u32);
            let spilled = Meta(bucket.meta(way)).is_spilled();
            bucket.set_meta(way, Meta::new(class, spilled, now).0);
        }
        let Some(cells) = bucket.record(way) else {
            return;
        };
        if what & Change::HOP != 0 {
            let at = Record::<F>::HOPS + (what >> 40 & 1) as usize;
            cells.store(at, cells.load(at) & GENERATION | change.hop);
        }
        let (set, removed) = (what as u16, (what >> 16) as u16);
        if removed != 0 {
            cells.remove_flags(FlowFlags::from_bits(removed));
        }
        if set != 0 {
            cells.add_flags(FlowFlags::from_bits(set));
        }
    })
    .is_some()
}

/// The byte of a hop's word that is half of a generation.
const GENERATION: u64 = 0xff << 56;

/// Adds the entries of the tuples between tc's hooks to a record that has none yet. [`Insert::Exists`]: one is another
/// record's; [`Insert::Busy`]: the record is gone, too.
#[inline(always)]
pub fn halve<F: TableFamily, M: Memory<F>>(memory: &M, original: &Tuple<F>) -> Insert {
    with_record::<F, M, _>(memory, original, |bucket, index, way| {
        let Some(cells) = bucket.record(way) else {
            return Insert::Busy;
        };
        if is_by_halves(cells) {
            return Insert::Done;
        }
        let result = add_halves(memory, cells, RecordNumber::new(index, way));
        if result == Insert::Done {
            cells.add_flags(FlowFlags::BY_HALVES);
        }
        result
    })
    .unwrap_or(Insert::Busy)
}

/// Whether a derived tuple is free, a record that holds it being over having given way. `age`: how long, in units of
/// stamps, such a record has to have been at rest.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
pub fn is_free<F: TableFamily, M: Memory<F>>(
    memory: &M,
    derived: &Tuple<F>,
    now: u32,
    age: u32,
) -> bool {
    let Some((cells, number)) = find_cells(memory, derived) else {
        return true;
    };
    let check = (cells.load(Record::<F>::PORTS) >> 32) as u32;
    let state = cells.load(Record::<F>::STATE);
    let (stamp, flags) = (state as u32, FlowFlags::from_bits((state >> 32) as u16));
    let rest = now.wrapping_sub(stamp);
    let gives_way = if flags.contains(FlowFlags::CONFIRMED) {
        flags.is_over() && rest >= age
    } else {
        rest >= OPENING_AGE
    };
    gives_way && memory.delete_seen(number, check, stamp)
}

/// Units of stamps after which an opening gives its source port away: a SYN is sent again after 1, 3, 7 and 15 seconds.
const OPENING_AGE: u32 = 20;

/// Deletes a record. False: it is gone, or its lock was not to be had.
#[inline(always)]
pub fn delete<F: TableFamily, M: Memory<F>>(memory: &M, original: &Tuple<F>) -> bool {
    with_record::<F, M, _>(memory, original, |bucket, index, way| {
        if let Some(cells) = bucket.record(way) {
            remove(memory, bucket, index, way, cells);
        }
    })
    .is_some()
}

/// Deletes the record of a number if its check and its time of use still are what was seen of it: how the agent's reaper
/// deletes what it has seen in the mapping a while ago, and a new flow what holds its port.
#[inline(always)]
pub fn delete_seen<F: TableFamily, M: Memory<F>>(
    memory: &M,
    number: RecordNumber,
    check: u32,
    stamp: u32,
) -> bool {
    let index = number.bucket() & memory.geometry().bucket_mask;
    let way = number.way();
    let Some(bucket) = memory.bucket(index) else {
        return false;
    };
    if !bucket.lock() {
        return false;
    }
    let mut is_deleted = false;
    if let Some(cells) = bucket.record(way) {
        let record = cells.read();
        if !Meta(bucket.meta(way)).is_free() && record.check == check && record.stamp == stamp {
            remove(memory, bucket, index, way, cells);
            is_deleted = true;
        }
    }
    bucket.unlock();
    is_deleted
}
