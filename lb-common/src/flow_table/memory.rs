//! What the algorithm asks of memory: cells that several CPUs read and write at once.
//!
//! Every access is one load or store of a whole cell. `lock` acquires and `unlock` releases; other loads and stores may
//! be seen in any order, which is what the records' checks are for.

use super::geometry::Geometry;
use super::layout::{Insert, Record, RecordNumber};
use super::tuple::{Derived, TableFamily, Tuple};
use crate::abi::FlowFlags;

/// A table's memory.
pub trait Memory<F: TableFamily>: Sized {
    /// A record in place.
    type Record: RecordCells<F>;
    /// A bucket in place.
    type Bucket: BucketCells<F, Record = Self::Record>;
    /// An index line in place.
    type Line: LineCells;

    /// Size and keys.
    fn geometry(&self) -> Geometry;
    /// A bucket; `None` past the end, which no index under the mask is.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// An index line.
    fn line(&self, index: u32) -> Option<Self::Line>;
    /// The same value, of which the compiler knows nothing any more. It would else prove a bound and drop the very
    /// comparison that the verifier needs, or make branches of what is arithmetic for the verifier's sake.
    fn opaque(value: u64) -> u64;
    /// [`super::add_entry`] of a tuple that follows from a record. Programs call it, and those below, out of line, so that
    /// the verifier walks each once, and hand over where the record lies: a tuple would have to lie on their stack.
    fn add_derived<C: RecordCells<F>>(
        &self,
        record: C,
        kind: Derived,
        number: RecordNumber,
    ) -> Insert;
    /// [`super::remove_entry`] in the same way.
    fn remove_derived<C: RecordCells<F>>(&self, record: C, kind: Derived, number: RecordNumber);
    /// [`super::way_of`].
    fn way_of(&self, bucket: u32, tuple: &Tuple<F>) -> u32;
    /// [`Memory::way_of`] of a record's original tuple, in the same way.
    #[inline(always)]
    fn way_of_record<C: RecordCells<F>>(&self, bucket: u32, record: C) -> u32 {
        self.way_of(bucket, &record.original())
    }
    /// `touch` of an insertion: programs call it, out of line; elsewhere nothing waits.
    #[inline(always)]
    fn touch<C: RecordCells<F>>(&self, _: C) {}
    /// [`super::make_room`].
    fn make_room(&self, index: u32, keep_reserved: bool) -> u32;
    /// [`super::delete_seen`].
    fn delete_seen(&self, number: RecordNumber, check: u32, stamp: u32) -> bool;
}

/// Tries of a lock. A holder works for a few hundred nanoseconds, unless it was preempted.
const LOCK_TRIES: u32 = 64;

/// Lock and count of second places, which buckets and lines have alike.
pub trait Head: Copy {
    /// One try.
    fn try_lock(self) -> bool;
    /// Looks without writing.
    fn is_locked(self) -> bool;
    /// Locks, or gives up. A program calls [`Head::lock_by_tries`] out of line: the verifier would walk every try.
    #[inline(always)]
    fn lock(self) -> bool {
        self.lock_by_tries()
    }
    /// A bounded number of tries.
    #[inline(always)]
    fn lock_by_tries(self) -> bool {
        let mut tries = 0;
        while tries < LOCK_TRIES {
            // Waits by reading: a failed exchange would take the line from the holder.
            if (tries == 0 || !self.is_locked()) && self.try_lock() {
                return true;
            }
            tries += 1;
        }
        false
    }
    /// Releases.
    fn unlock(self);
    /// Entries whose first place this is and that lie in their second.
    fn spill(self) -> u32;
    /// Adds to it, under the other place's lock or none.
    fn add_spill(self, by: i32);
}

/// A bucket's cells. Ways past [`super::WAYS`] do not exist: reads give 0, writes do nothing.
pub trait BucketCells<F: TableFamily>: Head {
    /// A record's cells.
    type Record: RecordCells<F>;
    /// Fingerprint of the record in a way; 0: free.
    fn fingerprint(self, way: u32) -> u32;
    /// Writes it.
    fn set_fingerprint(self, way: u32, fingerprint: u32);
    /// [`super::Meta`] of a way.
    fn meta(self, way: u32) -> u32;
    /// Writes it.
    fn set_meta(self, way: u32, meta: u32);
    /// The record in a way.
    fn record(self, way: u32) -> Option<Self::Record>;
}

/// A record's cells, as [`TableFamily::RECORD`] words.
pub trait RecordCells<F: TableFamily>: Copy {
    /// Word `i`.
    fn load(self, i: usize) -> u64;
    /// Writes word `i`.
    fn store(self, i: usize, word: u64);
    /// Sets flags.
    fn add_flags(self, flags: FlowFlags);
    /// Takes flags away.
    fn remove_flags(self, flags: FlowFlags);
    /// Writes [`Record::sequence`] of a direction: 0 original, 1 reply.
    fn set_sequence(self, direction: usize, sequence: u16);
    /// Writes [`Record::stamp`] alone.
    fn set_stamp(self, stamp: u32);
    /// Where it lies, for programs; null where nothing is gained by it.
    #[inline(always)]
    fn address(self) -> *const F::Words {
        core::ptr::null()
    }
    /// [`Record::derived`] of what lies there.
    #[inline(always)]
    fn derived(self, kind: Derived) -> Tuple<F> {
        Record::derived_of(|i| self.load(i), kind)
    }
    /// [`Record::original`].
    #[inline(always)]
    fn original(self) -> Tuple<F> {
        Tuple {
            addrs: F::from_words(|i| self.load(i)),
            rest: self.load(F::PAIR),
        }
    }
    /// All words, to be believed only if the check holds.
    #[inline(always)]
    fn read(self) -> Record<F> {
        Record::from_words(|i| self.load(i))
    }
}

/// An index line's cells. Ways past [`super::INDEX_WAYS`] do not exist.
pub trait LineCells: Head {
    /// The entry in a way; 0: free.
    fn entry(self, way: u32) -> u64;
    /// Writes it.
    fn set_entry(self, way: u32, entry: u64);
}

/// A record that is not in a table: to be read.
impl<F: TableFamily> RecordCells<F> for &Record<F> {
    #[inline(always)]
    fn load(self, i: usize) -> u64 {
        self.word(i)
    }
    fn store(self, _: usize, _: u64) {}
    fn add_flags(self, _: FlowFlags) {}
    fn remove_flags(self, _: FlowFlags) {}
    fn set_sequence(self, _: usize, _: u16) {}
    fn set_stamp(self, _: u32) {}
}
