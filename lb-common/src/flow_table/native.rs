//! The table in a process's own memory: what tests, and the agent's commands over a copy, work on.
//!
//! Cells are words of 64 and 32 bits of [`Word`], so that a scheduler of threads can take the processor's place.

extern crate alloc;

use alloc::vec::Vec;

use super::change;
use super::find;
use super::geometry::{Geometry, INDEX_WAYS, WAYS};
use super::index;
use super::layout::{Insert, Record, RecordNumber};
use super::memory::{BucketCells, Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, TableFamily, Tuple};
use crate::abi::FlowFlags;

/// A cell that threads share.
pub trait Word: Default {
    /// Reads.
    fn load(&self) -> u64;
    /// Writes.
    fn store(&self, value: u64);
    /// Writes if it is 0, and acquires; tells whether it was.
    fn take(&self) -> bool;
    /// Writes 0 and releases.
    fn release(&self);
    /// Adds, and wraps.
    fn add(&self, by: u64);
    /// Replaces the bits of `mask`.
    fn replace(&self, mask: u64, bits: u64);
}

impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::Relaxed)
    }
    fn store(&self, value: u64) {
        self.store(value, core::sync::atomic::Ordering::Release);
    }
    fn take(&self) -> bool {
        use core::sync::atomic::Ordering::{Acquire, Relaxed};
        self.compare_exchange(0, 1, Acquire, Relaxed).is_ok()
    }
    fn release(&self) {
        self.store(0, core::sync::atomic::Ordering::Release);
    }
    fn add(&self, by: u64) {
        self.fetch_add(by, core::sync::atomic::Ordering::Relaxed);
    }
    fn replace(&self, mask: u64, bits: u64) {
        use core::sync::atomic::Ordering::Relaxed;
        // The closure never gives `None`.
        let _always = self.fetch_update(Relaxed, Relaxed, |word| Some(word & !mask | bits));
    }
}

/// A table.
#[derive(Debug)]
pub struct Table<W = core::sync::atomic::AtomicU64> {
    geometry: Geometry,
    record_words: usize,
    buckets: Vec<W>,
    lines: Vec<W>,
}

/// Words of a bucket before its records: lock, spill, fingerprints, meta.
const HEAD: usize = 2 + 2 * WAYS as usize;
/// Words of a line.
const LINE: usize = 2 + INDEX_WAYS as usize;

impl<W: Word> Table<W> {
    /// An empty table of a family.
    pub fn new<F: TableFamily>(geometry: Geometry) -> Self {
        let words = |number: usize| (0..number).map(|_| W::default()).collect();
        let bucket = HEAD + WAYS as usize * F::RECORD;
        Table {
            geometry,
            record_words: F::RECORD,
            buckets: words((geometry.bucket_mask as usize + 1) * bucket),
            lines: words((geometry.line_mask as usize + 1) * LINE),
        }
    }
}

/// Some words of a table: a bucket, a line, or a record.
#[derive(Debug)]
pub struct Cells<'a, W>(&'a [W]);

impl<W> Clone for Cells<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W> Copy for Cells<'_, W> {}

impl<W: Word> Cells<'_, W> {
    fn get(self, i: usize) -> u64 {
        self.0.get(i).map_or(0, Word::load)
    }
    fn set(self, i: usize, value: u64) {
        if let Some(word) = self.0.get(i) {
            word.store(value);
        }
    }
    fn replace(self, i: usize, mask: u64, bits: u64) {
        if let Some(word) = self.0.get(i) {
            word.replace(mask, bits);
        }
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "cells of 32 bits in words of 64"
    )]
    fn get32(self, i: usize) -> u32 {
        self.get(i) as u32
    }
}

impl<'a, F: TableFamily, W: Word> Memory<F> for &'a Table<W> {
    type Record = Cells<'a, W>;
    type Bucket = Cells<'a, W>;
    type Line = Cells<'a, W>;

    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn bucket(&self, index: u32) -> Option<Cells<'a, W>> {
        let words = HEAD + WAYS as usize * self.record_words;
        let from = index as usize * words;
        self.buckets.get(from..from + words).map(Cells)
    }
    fn line(&self, index: u32) -> Option<Cells<'a, W>> {
        let from = index as usize * LINE;
        self.lines.get(from..from + LINE).map(Cells)
    }
    fn opaque(value: u64) -> u64 {
        value
    }
    fn add_derived<C: RecordCells<F>>(
        &self,
        record: C,
        kind: Derived,
        number: RecordNumber,
    ) -> Insert {
        index::add_entry(self, &record.derived(kind), kind, number)
    }
    fn remove_derived<C: RecordCells<F>>(&self, record: C, kind: Derived, number: RecordNumber) {
        index::remove_entry(self, &record.derived(kind), kind, number);
    }
    fn way_of(&self, bucket: u32, tuple: &Tuple<F>) -> u32 {
        find::way_of(self, bucket, tuple)
    }
    fn make_room(&self, index: u32, keep_reserved: bool) -> u32 {
        index::make_room::<F, _>(self, index, keep_reserved)
    }
    fn delete_seen(&self, number: RecordNumber, check: u32, stamp: u32) -> bool {
        change::delete_seen::<F, _>(self, number, check, stamp)
    }
}

impl<W: Word> Head for Cells<'_, W> {
    fn try_lock(self) -> bool {
        self.0.first().is_some_and(Word::take)
    }
    fn is_locked(self) -> bool {
        self.get(0) != 0
    }
    fn unlock(self) {
        if let Some(lock) = self.0.first() {
            lock.release();
        }
    }
    fn spill(self) -> u32 {
        self.get32(1)
    }
    #[expect(clippy::cast_sign_loss, reason = "adding wraps")]
    fn add_spill(self, by: i32) {
        if let Some(spill) = self.0.get(1) {
            spill.add(by as i64 as u64);
        }
    }
}

impl<'a, F: TableFamily, W: Word> BucketCells<F> for Cells<'a, W> {
    type Record = Cells<'a, W>;
    fn fingerprint(self, way: u32) -> u32 {
        self.get32(2 + way as usize)
    }
    fn set_fingerprint(self, way: u32, fingerprint: u32) {
        self.set(2 + way as usize, fingerprint as u64);
    }
    fn meta(self, way: u32) -> u32 {
        self.get32(2 + (WAYS + way) as usize)
    }
    fn set_meta(self, way: u32, meta: u32) {
        self.set(2 + (WAYS + way) as usize, meta as u64);
    }
    fn record(self, way: u32) -> Option<Cells<'a, W>> {
        let from = HEAD + way as usize * F::RECORD;
        self.0.get(from..from + F::RECORD).map(Cells)
    }
}

impl<F: TableFamily, W: Word> RecordCells<F> for Cells<'_, W> {
    fn load(self, i: usize) -> u64 {
        self.get(i)
    }
    fn store(self, i: usize, word: u64) {
        self.set(i, word);
    }
    fn add_flags(self, flags: FlowFlags) {
        let bits = u64::from(flags.bits()) << 32;
        self.replace(Record::<F>::STATE, bits, bits);
    }
    fn remove_flags(self, flags: FlowFlags) {
        let bits = u64::from(flags.bits()) << 32;
        self.replace(Record::<F>::STATE, bits, 0);
    }
    fn set_sequence(self, direction: usize, sequence: u16) {
        let word = [Record::<F>::STATE, Record::<F>::IDS][direction & 1];
        self.replace(word, 0xffff << 48, u64::from(sequence) << 48);
    }
    fn set_stamp(self, stamp: u32) {
        self.replace(Record::<F>::STATE, 0xffff_ffff, u64::from(stamp));
    }
}

impl<W: Word> LineCells for Cells<'_, W> {
    fn entry(self, way: u32) -> u64 {
        self.get(2 + way as usize)
    }
    fn set_entry(self, way: u32, entry: u64) {
        self.set(2 + way as usize, entry);
    }
}
