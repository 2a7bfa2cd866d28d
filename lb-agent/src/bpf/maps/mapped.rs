//! Arrays in shared memory: what is written is seen at once, word by word.

use std::{
    io,
    marker::PhantomData,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::Path,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{
    pin::{Access, MapError, MapResult, check},
    plain::{Plain, bytes, bytes_mut, zeroed},
    typed::TypedMap,
};
use crate::bpf::sys;

/// Memory that programs share. It is read and written as aligned words, so a program sees every word whole.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to this value alone in this process and is accessed by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of an array's elements.
    pub(super) fn new(map: BorrowedFd<'_>, len: usize, access: Access) -> io::Result<Mapping> {
        let len = len.next_multiple_of(4096);
        let writable = access == Access::Write;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping of a length that the kernel checks against the map's; no address is asked for.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping {
            base: base.cast(),
            len,
            writable,
        })
    }

    /// The word of 32 bits at an offset; `None` past the end, and where there is no word.
    #[inline]
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset + 4 > self.len {
            return None;
        }
        // SAFETY: compared with the mapping's length above.
        let pointer = unsafe { self.base.add(offset) };
        // SAFETY: the mapping lives as long as `self` and begins at a page; the offset is a multiple of 4. Atomics may
        // alias what the kernel's programs write.
        Some(unsafe { &*pointer.cast() })
    }

    /// `len` words of 64 bits from an offset on; `None` past the end, and where there are no words.
    #[inline]
    pub(super) fn words64(&self, offset: usize, len: usize) -> Option<&[AtomicU64]> {
        if !offset.is_multiple_of(8) || offset + len * 8 > self.len {
            return None;
        }
        // SAFETY: compared with the mapping's length above.
        let pointer = unsafe { self.base.add(offset) };
        // SAFETY: as in `word`; the offset is a multiple of 8, and all words lie in the mapping.
        Some(unsafe { std::slice::from_raw_parts(pointer.cast(), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our own mapping, and nothing borrows from it any more.
        let result = unsafe { libc::munmap(self.base.cast(), self.len) };
        debug_assert_eq!(result, 0);
    }
}

/// A memory-mapped array (`BPF_F_MMAPABLE`) whose elements are read and written as words of 32 bits.
#[derive(Debug)]
pub struct MappedArray<V> {
    name: &'static str,
    elements: u32,
    mapping: Mapping,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain> MappedArray<V> {
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    /// Opens a pinned array, checks its type and maps it.
    pub fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        const { assert!(size_of::<V>().is_multiple_of(4)) };
        // The kernel maps memory of a map only by a descriptor that may write; a reader's mapping is protected against
        // its own writes.
        let map = TypedMap::<u32, V>::open(dir, name, Access::Write)?;
        check_mappable(name, &map.info)?;
        let elements = map.max_entries();
        let mapping = Mapping::new(map.fd(), Self::STRIDE * elements as usize, access)
            .map_err(map.failed("map the memory of"))?;
        Ok(MappedArray {
            name,
            elements,
            mapping,
            types: PhantomData,
        })
    }

    /// Number of elements, fixed when it was made.
    pub const fn max_entries(&self) -> u32 {
        self.elements
    }
    /// The name of the map, which is its pin's.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    fn word(&self, index: u32, word: usize) -> MapResult<&AtomicU32> {
        let inside = index < self.elements && word < size_of::<V>() / 4;
        let offset = index as usize * Self::STRIDE + word * 4;
        let word = inside.then(|| self.mapping.word(offset)).flatten();
        word.ok_or_else(|| self.failed("find an element of", libc::E2BIG))
    }

    fn failed(&self, what: &'static str, errno: i32) -> MapError {
        MapError::Io {
            map: self.name,
            what,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    /// Reads an element.
    pub fn read(&self, index: u32) -> MapResult<V> {
        let mut value = [zeroed::<V>()];
        for (i, chunk) in bytes_mut(&mut value).chunks_exact_mut(4).enumerate() {
            let word = self.word(index, i)?;
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Ok(value[0])
    }

    /// Writes an element word by word: for elements that no program reads yet.
    pub fn write(&self, index: u32, value: &V) -> MapResult<()> {
        for (i, chunk) in bytes(value).as_chunks::<4>().0.iter().enumerate() {
            self.write_word(index, i, u32::from_ne_bytes(*chunk))?;
        }
        Ok(())
    }

    /// Reads one word of an element.
    pub fn read_word(&self, index: u32, word: usize) -> MapResult<u32> {
        Ok(self.word(index, word)?.load(Ordering::Relaxed))
    }

    /// Writes one word of an element, at once and whole; visible before anything written after it.
    pub fn write_word(&self, index: u32, word: usize, value: u32) -> MapResult<()> {
        if !self.mapping.writable {
            return Err(self.failed("write the read-only", libc::EPERM));
        }
        self.word(index, word)?.store(value, Ordering::Release);
        Ok(())
    }
}

/// Refuses what is no array in shared memory.
pub(super) fn check_mappable(name: &'static str, info: &sys::MapInfo) -> MapResult<()> {
    check(name, "type", info.map_type, sys::map_type::ARRAY)?;
    check(
        name,
        "flags",
        info.map_flags & sys::F_MMAPABLE,
        sys::F_MMAPABLE,
    )
}
