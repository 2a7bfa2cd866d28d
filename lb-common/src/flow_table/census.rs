//! A table at rest → what is in it, and whether it is what operations may leave.

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use super::find::{at, find, find_derived};
use super::geometry::{INDEX_WAYS, WAYS};
use super::layout::{Class, Entry, Meta, RecordNumber};
use super::memory::{BucketCells, Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, Hashed, TableFamily};

/// What a walk over a whole table finds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Census {
    /// Records.
    pub records: u32,
    /// Index entries of records.
    pub entries: u32,
    /// Reserved tuples.
    pub reserved: u32,
    /// Entries that name no record any more: what removals that did not get their lock left.
    pub dead: u32,
    /// What nothing may leave.
    pub faults: Faults,
}

/// Faults by kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Faults {
    /// Locks that nobody will release.
    pub locks: u32,
    /// Ways whose fingerprint, state and record do not agree, or that are not the record's.
    pub places: u32,
    /// Buckets and lines whose count of spilled entries is off.
    pub spills: u32,
    /// Records that their own tuples do not find.
    pub lost: u32,
}

/// Walks a table that nobody changes.
pub fn census<F: TableFamily, M: Memory<F>>(memory: &M) -> Census {
    let mut census = Census::default();
    let geometry = memory.geometry();
    let mut spilled = Spilled::new(geometry.bucket_mask);
    for index in 0..=geometry.bucket_mask {
        if let Some(bucket) = memory.bucket(index) {
            look_at_bucket(memory, index, bucket, &mut census, &mut spilled);
        }
    }
    census.faults.spills += spilled.faults(|i| memory.bucket(i).map_or(0, Head::spill));
    let mut spilled = Spilled::new(geometry.line_mask);
    for index in 0..=geometry.line_mask {
        if let Some(line) = memory.line(index) {
            look_at_line(memory, index, line, &mut census, &mut spilled);
        }
    }
    census.faults.spills += spilled.faults(|i| memory.line(i).map_or(0, Head::spill));
    census
}

/// How many entries each place has in its second one, by what is there.
struct Spilled {
    mask: u32,
    counts: Vec<u32>,
}

impl Spilled {
    fn new(mask: u32) -> Self {
        Spilled {
            mask,
            counts: vec![0; mask as usize + 1],
        }
    }
    fn note(&mut self, place: u32, fingerprint: u32) {
        if let Some(count) = self
            .counts
            .get_mut(Hashed::other(place, fingerprint, self.mask) as usize)
        {
            *count += 1;
        }
    }
    /// Places that count otherwise.
    fn faults(&self, told: impl Fn(u32) -> u32) -> u32 {
        let mut faults = 0;
        for (place, count) in (0..=self.mask).zip(&self.counts) {
            faults += u32::from(told(place) != *count);
        }
        faults
    }
}

fn look_at_bucket<F: TableFamily, M: Memory<F>>(
    memory: &M,
    index: u32,
    bucket: M::Bucket,
    census: &mut Census,
    spilled: &mut Spilled,
) {
    let geometry = memory.geometry();
    census.faults.locks += u32::from(bucket.is_locked());
    for way in 0..WAYS {
        let (meta, fingerprint) = (Meta(bucket.meta(way)), bucket.fingerprint(way));
        let Some(cells) = bucket.record(way) else {
            continue;
        };
        let record = cells.read();
        if meta.class() == Class::Free {
            census.faults.places += u32::from(fingerprint != 0 || !record.is_gone());
            continue;
        }
        census.records += 1;
        let hashed = record.original.hashed(&geometry.seeds);
        let first = hashed.first(geometry.bucket_mask);
        let home = if meta.is_spilled() {
            spilled.note(index, fingerprint);
            Hashed::other(first, hashed.fingerprint(), geometry.bucket_mask)
        } else {
            first
        };
        let is_right = hashed.fingerprint() == fingerprint && home == index && record.is_whole();
        census.faults.places += u32::from(!is_right);
        // Of two records with one tuple one would find the other.
        let number = RecordNumber::new(index, way);
        let finds = |found: Option<M::Record>| {
            found.is_some_and(|found| found.load(F::PAIR) == cells.load(F::PAIR))
        };
        let mut is_found = finds(find(memory, &record.original, hashed).map(|found| found.cells));
        let kinds = [Derived::Reply, Derived::OutOriginal, Derived::OutReply];
        for kind in kinds
            .into_iter()
            .take(if record.is_by_halves() { 3 } else { 1 })
        {
            let tuple = record.derived(kind);
            let found = find_derived(memory, &tuple, tuple.hashed(&geometry.seeds));
            is_found &= found.is_some_and(|(found, _)| found.record == record);
        }
        is_found &= at(memory, number).is_some();
        census.faults.lost += u32::from(!is_found);
    }
}

fn look_at_line<F: TableFamily, M: Memory<F>>(
    memory: &M,
    index: u32,
    line: M::Line,
    census: &mut Census,
    spilled: &mut Spilled,
) {
    let geometry = memory.geometry();
    census.faults.locks += u32::from(line.is_locked());
    for way in 0..INDEX_WAYS {
        let entry = Entry(line.entry(way));
        if entry.0 == 0 {
            continue;
        }
        if entry.is_spilled() {
            spilled.note(index, entry.fingerprint());
        }
        if entry.kind() == Derived::Reserved {
            census.reserved += 1;
            continue;
        }
        let record = at(memory, entry.number()).map(RecordCells::read);
        let tuple = record
            .filter(|record| !record.is_gone())
            .map(|record| record.derived(entry.kind()));
        match tuple.map(|tuple| tuple.hashed(&geometry.seeds)) {
            Some(hashed) if hashed.fingerprint() == entry.fingerprint() => census.entries += 1,
            _ => census.dead += 1,
        }
    }
}
