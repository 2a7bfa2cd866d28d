//! A record → its place in a bucket and its index entries, or what is in the way.

use super::geometry::WAYS;
use super::layout::{Class, Insert, Meta, PENDING, Record, RecordNumber};
use super::memory::{BucketCells, Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, Hashed, TableFamily, Tuple};
use crate::abi::FlowFlags;

/// What became of the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// How the insertion ended.
    pub result: Insert,
    /// What gave way to the record: [`Class::Free`] if nothing.
    pub evicted: Class,
}

impl Room {
    const fn of(result: Insert) -> Self {
        Room {
            result,
            evicted: Class::Free,
        }
    }
}

/// From so many used ways on, the less loaded of both buckets is taken.
const SPILL_FROM: u32 = WAYS * 6 / 7;

/// Adds a record as an opening, unless its original tuple or one derived from it is another record's. What gives way,
/// in this order: nothing, a closed record, the oldest opening; confirmed ones never.
///
/// The index entries are there before a reader can find the record.
#[inline(always)]
pub fn insert<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(
    memory: &M,
    record: C,
    now: u32,
) -> Room {
    let geometry = memory.geometry();
    let mask = geometry.bucket_mask;
    let hashed = record.original().hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(mask), hashed.fingerprint());
    let Some(bucket) = memory.bucket(first) else {
        return Room::of(Insert::Full);
    };
    memory.touch(record);
    if !bucket.lock() {
        return Room::of(Insert::Busy);
    }
    let room = with_first::<F, M, C>(memory, record, now, (bucket, first), fingerprint);
    bucket.unlock();
    room
}

/// Asks for all lines that an insertion will need: their misses overlap, instead of following each other under the locks.
#[inline(always)]
pub fn touch<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(memory: &M, record: C) {
    let geometry = memory.geometry();
    let hashed = record.original().hashed(&geometry.seeds);
    let Some(bucket) = memory.bucket(hashed.first(geometry.bucket_mask)) else {
        return;
    };
    #[expect(clippy::cast_possible_truncation, reason = "a way")]
    let home = M::opaque(Hashed::home(hashed.fingerprint()) as u64) as u32;
    let home = bucket.record(home).map_or(0, |cells| cells.load(F::PAIR));
    let reply = record.derived(Derived::Reply).hashed(&geometry.seeds);
    let line = memory
        .line(reply.first(geometry.line_mask))
        .map_or(0, |line| line.entry(0));
    let heads = bucket.spill() as u64 ^ bucket.meta(WAYS - 1) as u64;
    let _touched = M::opaque(home ^ line ^ heads);
}

/// Under the first bucket's lock: what spilled has to be looked through, what is nearly full looks for better.
#[inline(always)]
fn with_first<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(
    memory: &M,
    record: C,
    now: u32,
    (bucket, first): (M::Bucket, u32),
    fingerprint: u32,
) -> Room {
    if memory.way_of_record(first, record) < WAYS {
        return Room::of(Insert::HasRecord);
    }
    let home = Hashed::home(fingerprint);
    let has_spilled = bucket.spill() != 0;
    let used = used::<F, M>(bucket);
    let mut place = Place {
        bucket,
        index: first,
        score: best::<F, M>(bucket, now, home),
        spilled: false,
    };
    if !has_spilled && used < SPILL_FROM {
        return fill(memory, record, now, &place, bucket, fingerprint);
    }
    let second = Hashed::other(first, fingerprint, memory.geometry().bucket_mask);
    let Some(other) = memory.bucket(second) else {
        return Room::of(Insert::Full);
    };
    if !other.lock() {
        // What has spilled may be this very tuple, and a full bucket shall not give away what it need not.
        return Room::of(Insert::Busy);
    }
    let room = if has_spilled && memory.way_of_record(second, record) < WAYS {
        Room::of(Insert::HasRecord)
    } else {
        if used >= SPILL_FROM {
            let score = best::<F, M>(other, now, home);
            if self::used::<F, M>(other) < used || Score::rank(score) > Score::rank(place.score) {
                place = Place {
                    bucket: other,
                    index: second,
                    score,
                    spilled: true,
                };
            }
        }
        fill(memory, record, now, &place, bucket, fingerprint)
    };
    other.unlock();
    room
}

/// Where a record is to lie.
struct Place<B> {
    bucket: B,
    index: u32,
    /// [`Score`] of its best way.
    score: u32,
    /// In its second bucket.
    spilled: bool,
}

/// Under the place's lock: writes the record, then its entries, then publishes it.
#[inline(always)]
fn fill<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(
    memory: &M,
    record: C,
    now: u32,
    place: &Place<M::Bucket>,
    first: M::Bucket,
    fingerprint: u32,
) -> Room {
    #[expect(clippy::cast_possible_truncation, reason = "a way has four bits")]
    let way = M::opaque((place.score & 15) as u64) as u32;
    let Some(cells) = place.bucket.record(way) else {
        return Room::of(Insert::Full);
    };
    if place.score < Score::ANY {
        return Room::of(Insert::Full);
    }
    let old = Meta(place.bucket.meta(way));
    let number = RecordNumber::new(place.index, way);
    if !old.is_free() {
        remove(memory, place.bucket, place.index, way, cells);
    }
    let rest = record.load(F::PAIR);
    cells.store(F::PAIR, PENDING);
    // Summed up as it is copied: kept until later the words would have to lie on a stack.
    let check = Record::<F>::sum_of(|i| {
        let word = record.load(i);
        if i != F::PAIR {
            cells.store(i, word);
        }
        word
    });
    let ports = Record::<F>::PORTS;
    cells.store(
        ports,
        record.load(ports) & 0xffff_ffff | ((check as u64) << 32),
    );
    cells.store(F::PAIR, rest | PENDING);
    let result = add_entries(memory, record, number);
    if result != Insert::Done {
        cells.store(F::PAIR, 0);
        place.bucket.set_fingerprint(way, 0);
        place.bucket.set_meta(way, 0);
        return Room {
            result,
            evicted: old.class(),
        };
    }
    if place.spilled {
        first.add_spill(1);
    }
    place
        .bucket
        .set_meta(way, Meta::new(Class::Opening, place.spilled, now).0);
    place.bucket.set_fingerprint(way, fingerprint);
    cells.store(F::PAIR, rest);
    Room {
        result: Insert::Done,
        evicted: old.class(),
    }
}

/// Adds all entries of a record, or none.
#[inline(always)]
fn add_entries<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(
    memory: &M,
    record: C,
    number: RecordNumber,
) -> Insert {
    let result = memory.add_derived(record, Derived::Reply, number);
    if result != Insert::Done || !is_by_halves(record) {
        return result;
    }
    let result = add_halves(memory, record, number);
    if result != Insert::Done {
        memory.remove_derived(record, Derived::Reply, number);
    }
    result
}

/// Adds the entries of both tuples between tc's hooks, or none.
#[inline(always)]
pub(super) fn add_halves<F: TableFamily, M: Memory<F>, C: RecordCells<F>>(
    memory: &M,
    record: C,
    number: RecordNumber,
) -> Insert {
    let mut result = memory.add_derived(record, Derived::OutOriginal, number);
    if result == Insert::Done {
        result = memory.add_derived(record, Derived::OutReply, number);
        if result != Insert::Done {
            memory.remove_derived(record, Derived::OutOriginal, number);
        }
    }
    result
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "part of a word")]
pub(super) fn is_by_halves<F: TableFamily, C: RecordCells<F>>(record: C) -> bool {
    FlowFlags::from_bits((record.load(Record::<F>::STATE) >> 32) as u16)
        .contains(FlowFlags::BY_HALVES)
}

/// Takes a record out of its place, whose bucket is locked: readers first, then its entries, then its place.
#[inline(always)]
pub(super) fn remove<F: TableFamily, M: Memory<F>>(
    memory: &M,
    bucket: M::Bucket,
    index: u32,
    way: u32,
    cells: M::Record,
) {
    let number = RecordNumber::new(index, way);
    let rest = cells.load(F::PAIR);
    // Pending: no reader believes it, and what is derived from it can be told still.
    cells.store(F::PAIR, rest | PENDING);
    memory.remove_derived(cells, Derived::Reply, number);
    if is_by_halves(cells) {
        for kind in [Derived::OutOriginal, Derived::OutReply] {
            memory.remove_derived(cells, kind, number);
        }
    }
    cells.store(F::PAIR, 0);
    let meta = Meta(bucket.meta(way));
    if meta.is_spilled() {
        let mask = memory.geometry().bucket_mask;
        if let Some(first) = memory.bucket(Hashed::other(index, bucket.fingerprint(way), mask)) {
            first.add_spill(-1);
        }
    }
    bucket.set_fingerprint(way, 0);
    bucket.set_meta(way, 0);
}

/// How willingly a way is given to a new record, and the way itself in the lowest bits. One number, compared without
/// branches: fourteen decisions after each other cost the verifier a million instructions.
struct Score;

impl Score {
    /// From here on there is one to give.
    const ANY: u32 = 1 << 28;

    /// Free 3, closed 2, opening 1, confirmed 0; then by age; then home.
    #[inline(always)]
    const fn of(meta: u32, now: u32, way: u32, home: u32) -> u32 {
        let age = now.wrapping_sub(meta) & 0x007f_ffff;
        let is_home = (way ^ home).wrapping_sub(1) >> 31;
        ((!meta >> 30) << 28) | (age << 5) | (is_home << 4) | way
    }
    /// Without home and way.
    #[inline(always)]
    const fn rank(score: u32) -> u32 {
        score >> 5
    }
}

/// The larger one.
#[inline(always)]
fn max<F: TableFamily, M: Memory<F>>(a: u32, b: u32) -> u32 {
    let difference = (a as u64).wrapping_sub(b as u64);
    let mask = (M::opaque(difference) as i64 >> 63) as u64;
    a.wrapping_sub((difference & mask) as u32)
}

/// Score of the way that a new record gets.
#[inline(always)]
fn best<F: TableFamily, M: Memory<F>>(bucket: M::Bucket, now: u32, home: u32) -> u32 {
    let (mut best, mut way) = (0, 0);
    while way < WAYS {
        best = max::<F, M>(best, Score::of(bucket.meta(way), now, way, home));
        way += 1;
    }
    best
}

/// Number of records.
#[inline(always)]
fn used<F: TableFamily, M: Memory<F>>(bucket: M::Bucket) -> u32 {
    let (mut used, mut way) = (0, 0);
    while way < WAYS {
        // Classes 1 to 3 give 1.
        used += ((bucket.meta(way) >> 30) + 3) >> 2;
        way += 1;
    }
    used
}

/// Locks the bucket in which a record lies and gives its way to `change`; `None` if there is no such record, or a lock
/// was not to be had.
#[inline(always)]
pub(super) fn with_record<F: TableFamily, M: Memory<F>, T>(
    memory: &M,
    tuple: &Tuple<F>,
    change: impl FnOnce(M::Bucket, u32, u32) -> T,
) -> Option<T> {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(geometry.bucket_mask), hashed.fingerprint());
    let bucket = memory.bucket(first)?;
    if !bucket.lock() {
        return None;
    }
    let (mut holder, mut index) = (bucket, first);
    let mut way = memory.way_of(first, tuple);
    let mut second = None;
    if way >= WAYS && bucket.spill() != 0 {
        index = Hashed::other(first, fingerprint, geometry.bucket_mask);
        if let Some(other) = memory.bucket(index)
            && other.lock()
        {
            second = Some(other);
            holder = other;
            way = memory.way_of(index, tuple);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "a way")]
    let way = M::opaque(way as u64) as u32;
    let result = if way < WAYS {
        Some(change(holder, index, way))
    } else {
        None
    };
    if let Some(second) = second {
        second.unlock();
    }
    bucket.unlock();
    result
}
