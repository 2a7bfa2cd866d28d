//! A tuple → the record that it belongs to, without a lock and without a write.
//!
//! A record that is being removed or replaced while it is read is not found: its check tells, or its tuple.

use super::geometry::{INDEX_WAYS, WAYS};
use super::layout::{Entry, PENDING, Record, RecordNumber};
use super::memory::{BucketCells, Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, Hashed, TableFamily, Tuple};

/// A record that was read whole, and its place.
#[derive(Clone, Copy, Debug)]
pub struct Found<F: TableFamily, R> {
    /// Its cells. They may be another record's by the time that they are written: of what belongs to one record only
    /// the time of use and bits that are hints go through them, everything else under the bucket's lock.
    pub cells: R,
    /// What was read.
    pub record: Record<F>,
}

/// Finds a record by its original tuple: its home way first, then by fingerprints, then in the second bucket if any
/// record of the first one lies there.
#[inline(always)]
pub fn find<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    hashed: Hashed,
) -> Option<Found<F, M::Record>> {
    let mask = memory.geometry().bucket_mask;
    let (first, fingerprint) = (hashed.first(mask), hashed.fingerprint());
    let bucket = memory.bucket(first)?;
    #[expect(clippy::cast_possible_truncation, reason = "a way")]
    let home = M::opaque(Hashed::home(fingerprint) as u64) as u32;
    if let Some(cells) = bucket.record(home)
        && is_original(cells, tuple)
    {
        return whole(cells, tuple);
    }
    if let Some(cells) = scan::<F, M>(bucket, fingerprint, tuple) {
        return whole(cells, tuple);
    }
    if bucket.spill() == 0 {
        return None;
    }
    let bucket = memory.bucket(Hashed::other(first, fingerprint, mask))?;
    whole(scan::<F, M>(bucket, fingerprint, tuple)?, tuple)
}

/// Finds a record by a tuple that is derived from it, and tells which.
#[inline(always)]
pub fn find_derived<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    hashed: Hashed,
) -> Option<(Found<F, M::Record>, Derived)> {
    let mask = memory.geometry().line_mask;
    let (first, fingerprint) = (hashed.first(mask), hashed.fingerprint());
    let line = memory.line(first)?;
    if let Some(found) = scan_line(memory, line, fingerprint, tuple) {
        return Some(found);
    }
    if line.spill() == 0 {
        return None;
    }
    let line = memory.line(Hashed::other(first, fingerprint, mask))?;
    scan_line(memory, line, fingerprint, tuple)
}

/// What the cells hold, if it still is the record that was sought: another may have taken the place, and be whole.
#[inline(always)]
fn whole<F: TableFamily, R: RecordCells<F>>(cells: R, tuple: &Tuple<F>) -> Option<Found<F, R>> {
    let record = cells.read();
    if record.original == *tuple && record.is_whole() {
        Some(Found { cells, record })
    } else {
        None
    }
}

/// Whether the cells hold a published record with this tuple.
#[inline(always)]
pub(super) fn is_original<F: TableFamily, R: RecordCells<F>>(cells: R, tuple: &Tuple<F>) -> bool {
    // Ports and protocol first: they differ most often.
    if cells.load(F::PAIR) != tuple.rest {
        return false;
    }
    let mut i = 0;
    while i < F::PAIR {
        if cells.load(i) != F::word(&tuple.addrs, i) {
            return false;
        }
        i += 1;
    }
    true
}

#[inline(always)]
fn scan<F: TableFamily, M: Memory<F>>(
    bucket: M::Bucket,
    fingerprint: u32,
    tuple: &Tuple<F>,
) -> Option<M::Record> {
    let mut way = 0;
    while way < WAYS {
        if bucket.fingerprint(way) == fingerprint
            && let Some(cells) = bucket.record(way)
            && is_original(cells, tuple)
        {
            return Some(cells);
        }
        way += 1;
    }
    None
}

/// Candidates that are looked at. Three records of one bucket and one fingerprint do not happen by chance, and nobody
/// can make them who does not know the keys of the hash.
const CANDIDATES: u32 = 2;

/// The way of a record in a bucket whose lock the caller holds; [`WAYS`] if it is not there.
///
/// Which way it is comes out of arithmetic, not of a branch for each: to the verifier it then is one number of a range,
/// and not fourteen cases in each of which it walks through all that follows.
#[inline(always)]
pub fn way_of<F: TableFamily, M: Memory<F>>(memory: &M, bucket: u32, tuple: &Tuple<F>) -> u32 {
    let fingerprint = tuple.hashed(&memory.geometry().seeds).fingerprint();
    let Some(bucket) = memory.bucket(bucket) else {
        return WAYS;
    };
    let mut from = 0;
    let mut tries = 0;
    while tries < CANDIDATES {
        let way = first_way::<F, M>(from, WAYS, |way| {
            (bucket.fingerprint(way) ^ fingerprint) as u64
        });
        let Some(cells) = bucket.record(way) else {
            return WAYS;
        };
        if is_original(cells, tuple) {
            return way;
        }
        from = way + 1;
        tries += 1;
    }
    WAYS
}

/// The first way from `from` on whose `difference` is 0; `ways` if there is none. Without branches.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a way")]
pub(super) fn first_way<F: TableFamily, M: Memory<F>>(
    from: u32,
    ways: u32,
    difference: impl Fn(u32) -> u64,
) -> u32 {
    let (mut found, mut way) = (ways as u64, ways);
    while way > 0 {
        way -= 1;
        // The sign bit if this is one: the difference is 0, and the way not before the first. Opaque before the shift:
        // LLVM knows the patterns and makes comparisons of them, which on BPF are branches.
        let differs = difference(way);
        let is_equal = M::opaque(!differs & differs.wrapping_sub(1));
        let is_later = M::opaque((from as u64).wrapping_sub(way as u64 + 1));
        let mask = ((is_equal & is_later) as i64 >> 63) as u64;
        found ^= (found ^ way as u64) & mask;
    }
    found as u32
}

/// The cells of a record number.
#[inline(always)]
pub(super) fn at<F: TableFamily, M: Memory<F>>(
    memory: &M,
    number: RecordNumber,
) -> Option<M::Record> {
    memory
        .bucket(number.bucket() & memory.geometry().bucket_mask)?
        .record(number.way())
}

/// [`find`] for who has little room: copies the record into `words`. Gives its number.
#[inline(always)]
pub fn find_into<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    words: &mut F::Words,
) -> Option<RecordNumber> {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let mut place = hashed.first(geometry.bucket_mask);
    let mut tries = 0;
    while tries < 2 {
        let bucket = memory.bucket(place)?;
        let way = memory.way_of(place, tuple);
        if let Some(cells) = bucket.record(way) {
            let number = RecordNumber::new(place, way);
            return copy(cells, words, |cells| is_original(cells, tuple)).then_some(number);
        }
        if bucket.spill() == 0 {
            return None;
        }
        place = Hashed::other(place, hashed.fingerprint(), geometry.bucket_mask);
        tries += 1;
    }
    None
}

/// [`find_derived`] in the same way: also tells by which tuple.
#[inline(always)]
pub fn find_derived_into<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    words: &mut F::Words,
) -> Option<(RecordNumber, Derived)> {
    let (_, entry) = by_index(memory, tuple, |cells, kind| {
        copy(cells, words, |cells| cells.derived(kind) == *tuple)
    })?;
    Some((entry.number(), entry.kind()))
}

/// The place of a record that has a derived tuple, by a look that may be wrong: who changes it compares its check.
#[inline(always)]
pub(super) fn find_cells<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
) -> Option<(M::Record, RecordNumber)> {
    let (cells, entry) = by_index(memory, tuple, |cells, kind| cells.derived(kind) == *tuple)?;
    Some((cells, entry.number()))
}

/// The first record of a tuple's index lines that is the one sought, and its entry. Which way it is comes out of
/// arithmetic, as in [`way_of`].
#[inline(always)]
fn by_index<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    mut is_sought: impl FnMut(M::Record, Derived) -> bool,
) -> Option<(M::Record, Entry)> {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let fingerprint = hashed.fingerprint();
    let mut place = hashed.first(geometry.line_mask);
    let mut tries = 0;
    while tries < 2 {
        let line = memory.line(place)?;
        let mut from = 0;
        let mut candidates = 0;
        while candidates < CANDIDATES {
            let way = first_way::<F, M>(from, INDEX_WAYS, |way| {
                (Entry(line.entry(way)).fingerprint() ^ fingerprint) as u64
            });
            #[expect(clippy::cast_possible_truncation, reason = "a way")]
            let way = M::opaque(way as u64) as u32;
            if way >= INDEX_WAYS {
                break;
            }
            let entry = Entry(line.entry(way));
            if entry.kind() != Derived::Reserved
                && let Some(cells) = at(memory, entry.number())
                && is_sought(cells, entry.kind())
            {
                return Some((cells, entry));
            }
            from = way + 1;
            candidates += 1;
        }
        if line.spill() == 0 {
            return None;
        }
        place = Hashed::other(place, fingerprint, geometry.line_mask);
        tries += 1;
    }
    None
}

/// Copies a record if it is the one sought; tells whether it was, and was published and read whole.
///
/// The check is read before the comparison and with the copy: if it is the same, so was the record.
#[inline(always)]
fn copy<F: TableFamily, C: RecordCells<F>>(
    cells: C,
    words: &mut F::Words,
    is_sought: impl FnOnce(C) -> bool,
) -> bool {
    let at = Record::<F>::PORTS;
    let check = (cells.load(at) >> 32) as u32;
    if cells.load(F::PAIR) & PENDING != 0 || !is_sought(cells) {
        return false;
    }
    // Summed up as it is copied: kept until later the words would have to lie on a stack.
    let sum = Record::<F>::sum_of(|i| {
        let word = cells.load(i);
        if let Some(place) = words.as_mut().get_mut(i) {
            *place = word;
        }
        word
    });
    sum == check && (cells.load(at) >> 32) as u32 == check
}

#[inline(always)]
fn scan_line<F: TableFamily, M: Memory<F>>(
    memory: &M,
    line: M::Line,
    fingerprint: u32,
    tuple: &Tuple<F>,
) -> Option<(Found<F, M::Record>, Derived)> {
    let mut way = 0;
    while way < INDEX_WAYS {
        let entry = Entry(line.entry(way));
        if entry.fingerprint() == fingerprint
            && entry.kind() != Derived::Reserved
            && let Some(cells) = at(memory, entry.number())
        {
            let record = cells.read();
            if record.is_published() && record.derived(entry.kind()) == *tuple && record.is_whole()
            {
                return Some((Found { cells, record }, entry.kind()));
            }
        }
        way += 1;
    }
    None
}
