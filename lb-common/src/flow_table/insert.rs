//! A record → its place in a bucket and its index entries, or what is in the way.

use super::geometry::WAYS;
use super::layout::{Class, Insert, Meta, PENDING, Record, RecordNumber};
use super::memory::{BucketCells, Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, Hashed, TableFamily, Tuple};

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
pub fn insert<F: TableFamily, M: Memory<F>>(memory: &M, record: &Record<F>, now: u32) -> Room {
    let geometry = memory.geometry();
    let mask = geometry.bucket_mask;
    let hashed = record.original.hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(mask), hashed.fingerprint());
    let Some(bucket) = memory.bucket(first) else {
        return Room::of(Insert::Full);
    };
    touch(memory, record, bucket, fingerprint);
    if !bucket.lock() {
        return Room::of(Insert::Busy);
    }
    let room = with_first::<F, M>(memory, record, now, (bucket, first), fingerprint);
    bucket.unlock();
    room
}

/// Asks for all lines that will be needed: their misses overlap, instead of following each other under the locks.
#[inline(always)]
fn touch<F: TableFamily, M: Memory<F>>(
    memory: &M,
    record: &Record<F>,
    bucket: M::Bucket,
    fingerprint: u32,
) {
    let geometry = memory.geometry();
    #[expect(clippy::cast_possible_truncation, reason = "a way")]
    let home = M::opaque(Hashed::home(fingerprint) as u64) as u32;
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
fn with_first<F: TableFamily, M: Memory<F>>(
    memory: &M,
    record: &Record<F>,
    now: u32,
    (bucket, first): (M::Bucket, u32),
    fingerprint: u32,
) -> Room {
    if memory.way_of(first, &record.original) < WAYS {
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
    let room = if has_spilled && memory.way_of(second, &record.original) < WAYS {
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
fn fill<F: TableFamily, M: Memory<F>>(
    memory: &M,
    record: &Record<F>,
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
    let rest = record.original.rest;
    cells.store(F::PAIR, PENDING);
    let mut i = 0;
    while i < F::RECORD {
        if i != F::PAIR {
            cells.store(i, record.word(i));
        }
        i += 1;
    }
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
fn add_entries<F: TableFamily, M: Memory<F>>(
    memory: &M,
    record: &Record<F>,
    number: RecordNumber,
) -> Insert {
    let reply = record.derived(Derived::Reply);
    let result = memory.add_entry(&reply, Derived::Reply, number);
    if result != Insert::Done || !record.is_by_halves() {
        return result;
    }
    let original = record.derived(Derived::OutOriginal);
    let mut result = memory.add_entry(&original, Derived::OutOriginal, number);
    if result == Insert::Done {
        result = memory.add_entry(
            &record.derived(Derived::OutReply),
            Derived::OutReply,
            number,
        );
        if result == Insert::Done {
            return result;
        }
        memory.remove_entry(&original, Derived::OutOriginal, number);
    }
    memory.remove_entry(&reply, Derived::Reply, number);
    result
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
    let record = cells.read();
    let number = RecordNumber::new(index, way);
    cells.store(F::PAIR, 0);
    memory.remove_entry(&record.derived(Derived::Reply), Derived::Reply, number);
    if record.is_by_halves() {
        for kind in [Derived::OutOriginal, Derived::OutReply] {
            memory.remove_entry(&record.derived(kind), kind, number);
        }
    }
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
