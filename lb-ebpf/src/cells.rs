//! `lb_common::flow_table::Memory` over map memory: buckets and index lines of BPF arrays, cell by cell.
//!
//! Every access is volatile: another CPU changes cells at any time, and what a program reads twice it must read twice.

use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd};

use lb_common::abi::FlowFlags;
use lb_common::flow_table::{
    BucketCells, Head, INDEX_WAYS, LineCells, Record, RecordCells, TableFamily, WAYS,
};

/// Offsets in a bucket: see `lb_common::flow_table::Bucket`.
const SPILL: usize = 4;
const FINGERPRINTS: usize = 8;
const META: usize = 64;
const RECORDS: usize = 128;
/// Offset in an index line.
const ENTRIES: usize = 8;

/// Where a bucket, a record or a line begins in a map value that holds the whole of it.
#[derive(Clone, Copy)]
pub(crate) struct Place(*mut u8);

impl Place {
    /// A bucket or a line, as an array lookup gave it.
    #[inline(always)]
    pub(crate) const fn new<T>(value: *mut T) -> Self {
        Place(value.cast())
    }
    #[inline(always)]
    fn load32(self, at: usize) -> u32 {
        // SAFETY: `at` is an offset of a cell of the value, which the verifier compares with its size.
        let cell = unsafe { self.0.add(at) };
        // SAFETY: aligned to 4 by the layout; any bits are valid.
        unsafe { cell.cast::<u32>().read_volatile() }
    }
    #[inline(always)]
    fn store32(self, at: usize, value: u32) {
        // SAFETY: as in `load32`.
        let cell = unsafe { self.0.add(at) };
        // SAFETY: as in `load32`.
        unsafe { cell.cast::<u32>().write_volatile(value) }
    }
    #[inline(always)]
    fn load64(self, at: usize) -> u64 {
        // SAFETY: as in `load32`.
        let cell = unsafe { self.0.add(at) };
        // SAFETY: aligned to 8 by the layout; any bits are valid.
        unsafe { cell.cast::<u64>().read_volatile() }
    }
    #[inline(always)]
    fn store64(self, at: usize, value: u64) {
        // SAFETY: as in `load32`.
        let cell = unsafe { self.0.add(at) };
        // SAFETY: as in `load64`.
        unsafe { cell.cast::<u64>().write_volatile(value) }
    }
}

/// The value, of which the compiler knows nothing any more: a move of a register to itself. Assembly without any
/// instruction makes an object that the kernel refuses without a word (EINVAL, 0 instructions processed; LLVM 22).
#[inline(always)]
pub(crate) fn opaque(mut value: u64) -> u64 {
    // SAFETY: a register moved to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// The lock's tries, in a function that the verifier walks once: a global one, whose argument is memory of a known size.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_table_lock(lock: *mut u32) -> u32 {
    if lock.is_null() {
        return 0;
    }
    Place::new(lock).lock_by_tries() as u32
}

impl Head for Place {
    #[inline(always)]
    fn try_lock(self) -> bool {
        // SAFETY: the first cell of a bucket or line, aligned to 4.
        let (_, done) = unsafe {
            atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.0.cast(),
                0,
                1,
            )
        };
        done
    }
    #[inline(always)]
    fn lock(self) -> bool {
        flow_table_lock(self.0.cast()) != 0
    }
    #[inline(always)]
    fn is_locked(self) -> bool {
        self.load32(0) != 0
    }
    #[inline(always)]
    fn unlock(self) {
        // x86-64 does not move a store before an earlier access. arm64 does: there this is an exchange.
        if cfg!(bpf_target_arch = "x86_64") {
            self.store32(0, 0);
        } else {
            // SAFETY: as in `try_lock`.
            unsafe {
                core::intrinsics::atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(self.0.cast(), 0);
            }
        }
    }
    #[inline(always)]
    fn spill(self) -> u32 {
        self.load32(SPILL)
    }
    #[inline(always)]
    fn add_spill(self, by: i32) {
        // SAFETY: the second cell of a bucket or line.
        let cell = unsafe { self.0.add(SPILL) };
        // SAFETY: aligned to 4 by the layout.
        unsafe {
            atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(cell.cast(), by as u32);
        }
    }
}

impl<F: TableFamily> BucketCells<F> for Place {
    type Record = Place;
    #[inline(always)]
    fn fingerprint(self, way: u32) -> u32 {
        if way < WAYS {
            self.load32(FINGERPRINTS + 4 * way as usize)
        } else {
            0
        }
    }
    #[inline(always)]
    fn set_fingerprint(self, way: u32, fingerprint: u32) {
        if way < WAYS {
            self.store32(FINGERPRINTS + 4 * way as usize, fingerprint);
        }
    }
    #[inline(always)]
    fn meta(self, way: u32) -> u32 {
        if way < WAYS {
            self.load32(META + 4 * way as usize)
        } else {
            0
        }
    }
    #[inline(always)]
    fn set_meta(self, way: u32, meta: u32) {
        if way < WAYS {
            self.store32(META + 4 * way as usize, meta);
        }
    }
    #[inline(always)]
    fn record(self, way: u32) -> Option<Place> {
        if way >= WAYS {
            return None;
        }
        // SAFETY: compared above; the bucket holds that many records of this size.
        Some(Place(unsafe {
            self.0.add(RECORDS + 8 * F::RECORD * way as usize)
        }))
    }
}

impl<F: TableFamily> RecordCells<F> for Place {
    #[inline(always)]
    fn address(self) -> *const F::Words {
        self.0.cast()
    }
    #[inline(always)]
    fn load(self, i: usize) -> u64 {
        self.load64(8 * i)
    }
    #[inline(always)]
    fn store(self, i: usize, word: u64) {
        self.store64(8 * i, word);
    }
    #[inline(always)]
    fn add_flags(self, flags: FlowFlags) {
        // SAFETY: flags and sequence number, the upper half of the state word.
        let cell = unsafe { self.0.add(8 * Record::<F>::STATE + 4) };
        // SAFETY: aligned to 4 by the layout.
        unsafe {
            atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(cell.cast(), flags.bits() as u32);
        }
    }
    #[inline(always)]
    fn remove_flags(self, flags: FlowFlags) {
        // SAFETY: as in `add_flags`.
        let cell = unsafe { self.0.add(8 * Record::<F>::STATE + 4) };
        // SAFETY: aligned to 4 by the layout.
        unsafe {
            atomic_and::<u32, u32, { AtomicOrdering::SeqCst }>(cell.cast(), !(flags.bits() as u32));
        }
    }
    #[inline(always)]
    fn set_sequence(self, direction: usize, sequence: u16) {
        // The upper 16 bits of two words that follow each other.
        let at = 8 * (Record::<F>::STATE + (direction & 1)) + 6;
        // SAFETY: a cell of the record; an atomic change of the flags beside it does not lose it.
        let cell = unsafe { self.0.add(at) };
        // SAFETY: aligned to 2 by the layout.
        unsafe { cell.cast::<u16>().write_volatile(sequence) }
    }
    #[inline(always)]
    fn set_stamp(self, stamp: u32) {
        self.store32(8 * Record::<F>::STATE, stamp);
    }
}

impl LineCells for Place {
    #[inline(always)]
    fn entry(self, way: u32) -> u64 {
        if way < INDEX_WAYS {
            self.load64(ENTRIES + 8 * way as usize)
        } else {
            0
        }
    }
    #[inline(always)]
    fn set_entry(self, way: u32, entry: u64) {
        if way < INDEX_WAYS {
            self.store64(ENTRIES + 8 * way as usize, entry);
        }
    }
}
