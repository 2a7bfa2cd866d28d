//! A record that is there → confirmed, closed, deleted: always under its bucket's lock, so that it is still that record.

use super::insert::{remove, with_record};
use super::layout::{Class, Meta, Record, RecordNumber};
use super::memory::{BucketCells, Head, Memory, RecordCells};
use super::tuple::{TableFamily, Tuple};

/// Confirms a record. False: it is gone, or its lock was not to be had; the next packet tries again.
#[inline(always)]
pub fn confirm<F: TableFamily, M: Memory<F>>(
    memory: &M,
    original: &Tuple<F>,
    flags: u32,
    now: u32,
) -> bool {
    set_class(memory, original, Class::Confirmed, flags, now)
}

/// Gives a record another class, and sets bits of its flags.
#[inline(always)]
pub fn set_class<F: TableFamily, M: Memory<F>>(
    memory: &M,
    original: &Tuple<F>,
    class: Class,
    flags: u32,
    now: u32,
) -> bool {
    with_record::<F, M, _>(memory, original, |bucket, _, way| {
        let spilled = Meta(bucket.meta(way)).is_spilled();
        bucket.set_meta(way, Meta::new(class, spilled, now).0);
        if let Some(cells) = bucket.record(way) {
            cells.add_flags(flags);
        }
    })
    .is_some()
}

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

/// Deletes the record of a number if `is_due` still says so under the lock: how the agent's reaper deletes what it has
/// seen in the mapping a while ago.
#[inline(always)]
pub fn delete_number<F: TableFamily, M: Memory<F>>(
    memory: &M,
    number: RecordNumber,
    is_due: impl FnOnce(&Record<F>, Class) -> bool,
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
        let class = Meta(bucket.meta(way)).class();
        if class != Class::Free && is_due(&cells.read(), class) {
            remove(memory, bucket, index, way, cells);
            is_deleted = true;
        }
    }
    bucket.unlock();
    is_deleted
}
