//! The maps of a loaded object's flows → a table of this process: `lb_common`'s own algorithm over the memory that the
//! programs work on.
//!
//! Other than the agent it takes locks: nobody kills a test between two of its lines.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Map, MapData};
use lb_common::abi::FlowFlags;
use lb_common::flow_table::{
    self as table, Bucket, BucketCells, Derived, Geometry, Head, INDEX_WAYS, IndexLine, Insert,
    LineCells, Memory, Record, RecordCells, RecordNumber, Seeds, TableFamily, Tuple, WAYS,
};

/// A table of one family in memory that the kernel shares.
#[derive(Debug)]
pub struct MappedTable<F> {
    geometry: Geometry,
    buckets: Mapping,
    lines: Mapping,
    family: PhantomData<fn() -> F>,
}

impl<F: TableFamily> MappedTable<F> {
    /// Maps both arrays of a table.
    pub fn new(buckets: &Map, lines: &Map, geometry: Geometry) -> Result<Self> {
        Ok(MappedTable {
            geometry,
            buckets: Mapping::new(buckets, geometry.bucket_mask, bucket_bytes::<F>())?,
            lines: Mapping::new(lines, geometry.line_mask, size_of::<IndexLine>())?,
            family: PhantomData,
        })
    }

    /// Makes it an empty table.
    pub fn clear(&self) {
        self.buckets.clear();
        self.lines.clear();
    }
}

/// Keys of the hash as the words of the programs' constant.
pub const fn seed_words(seeds: &Seeds) -> [u64; 6] {
    let [a, b, c, d, e] = seeds.factors;
    [seeds.offset, a, b, c, d, e]
}

fn bucket_bytes<F: TableFamily>() -> usize {
    // Both sizes of the same type.
    if F::IS_V6 {
        size_of::<Bucket<{ <lb_common::V6 as TableFamily>::RECORD }>>()
    } else {
        size_of::<Bucket<{ <lb_common::V4 as TableFamily>::RECORD }>>()
    }
}

/// The memory of an array.
#[derive(Debug)]
struct Mapping {
    base: *mut u8,
    len: usize,
    /// Bytes of an element.
    stride: usize,
}

// SAFETY: the mapping is this value's alone in this process and is accessed by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: &Map, mask: u32, stride: usize) -> Result<Self> {
        let Map::Array(map) = map else {
            return Err(anyhow!("a table lies in arrays"));
        };
        let map: &MapData = map;
        let info = map.info().context("cannot read about an array")?;
        ensure!(
            (info.max_entries(), info.value_size() as usize) == (mask + 1, stride),
            "the array has {} elements of {} bytes, not {} of {stride}",
            info.max_entries(),
            info.value_size(),
            mask + 1
        );
        let len = (stride * (mask as usize + 1)).next_multiple_of(4096);
        // SAFETY: a new mapping of a length that the kernel checks against the map's; no address is asked for.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map the memory of an array");
        }
        Ok(Mapping {
            base: base.cast(),
            len,
            stride,
        })
    }

    fn element(&self, index: u32) -> Option<Place<'_>> {
        let from = index as usize * self.stride;
        (from + self.stride <= self.len).then(|| Place {
            // SAFETY: compared above.
            at: unsafe { self.base.add(from) },
            mapping: PhantomData,
        })
    }

    fn clear(&self) {
        for at in (0..self.len).step_by(8) {
            let place = Place {
                // SAFETY: less than the length.
                at: unsafe { self.base.add(at) },
                mapping: PhantomData,
            };
            place.word64(0).store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no place outlives the mapping it borrows.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Where a bucket, a record or a line begins.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    at: *mut u8,
    mapping: PhantomData<&'a Mapping>,
}

/// Offsets in a bucket: see [`Bucket`].
const SPILL: usize = 4;
const FINGERPRINTS: usize = 8;
const META: usize = 64;
const RECORDS: usize = 128;
/// Offset in an index line.
const ENTRIES: usize = 8;

impl<'a> Place<'a> {
    fn word32(self, at: usize) -> &'a AtomicU32 {
        // SAFETY: callers name cells of the element that the place begins.
        let cell = unsafe { self.at.add(at) };
        // SAFETY: aligned to 4 by the layout; lives as long as the mapping.
        unsafe { AtomicU32::from_ptr(cell.cast()) }
    }
    fn word64(self, at: usize) -> &'a AtomicU64 {
        // SAFETY: as in `word32`.
        let cell = unsafe { self.at.add(at) };
        // SAFETY: aligned to 8 by the layout; lives as long as the mapping.
        unsafe { AtomicU64::from_ptr(cell.cast()) }
    }
}

impl<'a, F: TableFamily> Memory<F> for &'a MappedTable<F> {
    type Record = Place<'a>;
    type Bucket = Place<'a>;
    type Line = Place<'a>;

    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn bucket(&self, index: u32) -> Option<Place<'a>> {
        self.buckets.element(index)
    }
    fn line(&self, index: u32) -> Option<Place<'a>> {
        self.lines.element(index)
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
        table::add_entry(self, &record.derived(kind), kind, number)
    }
    fn remove_derived<C: RecordCells<F>>(&self, record: C, kind: Derived, number: RecordNumber) {
        table::remove_entry(self, &record.derived(kind), kind, number);
    }
    fn way_of(&self, bucket: u32, tuple: &Tuple<F>) -> u32 {
        table::way_of(self, bucket, tuple)
    }
    fn make_room(&self, index: u32, keep_reserved: bool) -> u32 {
        table::make_room::<F, _>(self, index, keep_reserved)
    }
    fn delete_seen(&self, number: RecordNumber, check: u32, stamp: u32) -> bool {
        table::delete_seen::<F, _>(self, number, check, stamp)
    }
}

impl Head for Place<'_> {
    fn try_lock(self) -> bool {
        let lock = self.word32(0);
        lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
    fn is_locked(self) -> bool {
        self.word32(0).load(Ordering::Relaxed) != 0
    }
    fn unlock(self) {
        self.word32(0).store(0, Ordering::Release);
    }
    fn spill(self) -> u32 {
        self.word32(SPILL).load(Ordering::Relaxed)
    }
    fn add_spill(self, by: i32) {
        self.word32(SPILL)
            .fetch_add(by.cast_unsigned(), Ordering::Relaxed);
    }
}

impl<'a, F: TableFamily> BucketCells<F> for Place<'a> {
    type Record = Place<'a>;
    fn fingerprint(self, way: u32) -> u32 {
        if way >= WAYS {
            return 0;
        }
        let cell = self.word32(FINGERPRINTS + 4 * way as usize);
        cell.load(Ordering::Relaxed)
    }
    fn set_fingerprint(self, way: u32, fingerprint: u32) {
        if way < WAYS {
            let cell = self.word32(FINGERPRINTS + 4 * way as usize);
            cell.store(fingerprint, Ordering::Relaxed);
        }
    }
    fn meta(self, way: u32) -> u32 {
        if way >= WAYS {
            return 0;
        }
        self.word32(META + 4 * way as usize).load(Ordering::Relaxed)
    }
    fn set_meta(self, way: u32, meta: u32) {
        if way < WAYS {
            let cell = self.word32(META + 4 * way as usize);
            cell.store(meta, Ordering::Relaxed);
        }
    }
    fn record(self, way: u32) -> Option<Place<'a>> {
        (way < WAYS).then(|| Place {
            // SAFETY: compared; the bucket holds that many records of this size.
            at: unsafe { self.at.add(RECORDS + 8 * F::RECORD * way as usize) },
            mapping: PhantomData,
        })
    }
}

impl<F: TableFamily> RecordCells<F> for Place<'_> {
    fn load(self, i: usize) -> u64 {
        self.word64(8 * i).load(Ordering::Relaxed)
    }
    fn store(self, i: usize, word: u64) {
        self.word64(8 * i).store(word, Ordering::Release);
    }
    fn add_flags(self, flags: FlowFlags) {
        let bits = u64::from(flags.bits()) << 32;
        self.word64(8 * Record::<F>::STATE)
            .fetch_or(bits, Ordering::Relaxed);
    }
    fn remove_flags(self, flags: FlowFlags) {
        let bits = u64::from(flags.bits()) << 32;
        self.word64(8 * Record::<F>::STATE)
            .fetch_and(!bits, Ordering::Relaxed);
    }
    fn set_sequence(self, direction: usize, sequence: u16) {
        let word = [Record::<F>::STATE, Record::<F>::IDS][direction & 1];
        let cell = self.word64(8 * word);
        let bits = u64::from(sequence) << 48;
        cell.fetch_and(!(0xffff << 48), Ordering::Relaxed);
        cell.fetch_or(bits, Ordering::Relaxed);
    }
    fn set_stamp(self, stamp: u32) {
        self.word32(8 * Record::<F>::STATE)
            .store(stamp, Ordering::Relaxed);
    }
}

impl LineCells for Place<'_> {
    fn entry(self, way: u32) -> u64 {
        if way >= INDEX_WAYS {
            return 0;
        }
        let cell = self.word64(ENTRIES + 8 * way as usize);
        cell.load(Ordering::Relaxed)
    }
    fn set_entry(self, way: u32, entry: u64) {
        if way < INDEX_WAYS {
            let cell = self.word64(ENTRIES + 8 * way as usize);
            cell.store(entry, Ordering::Relaxed);
        }
    }
}
