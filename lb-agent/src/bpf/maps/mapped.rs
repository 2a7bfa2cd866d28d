//! Arrays in shared memory: what is written is seen at once, word by word.

use std::{
    io,
    mem::size_of,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    pin::{Access, MapError, MapResult, check},
    plain::{Plain, bytes, bytes_mut, zeroed},
    typed::TypedMap,
};
use crate::bpf::sys;

/// A memory-mapped array (`BPF_F_MMAPABLE`). Elements are read and written as aligned 32-bit words, so a
/// program sees every word whole.
#[derive(Debug)]
pub struct MappedArray<V> {
    map: TypedMap<u32, V>,
    base: *mut AtomicU32,
    len_bytes: usize,
    stride: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to this value alone in this process and is accessed by atomics only.
unsafe impl<V> Send for MappedArray<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for MappedArray<V> {}

impl<V: Plain> MappedArray<V> {
    /// Opens a pinned array, checks its type and maps it.
    pub fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        const { assert!(size_of::<V>().is_multiple_of(4)) };
        // The kernel maps memory of a map only by a descriptor that may write; a reader's mapping is
        // protected against its own writes below.
        let map = TypedMap::<u32, V>::open(dir, name, Access::Write)?;
        check(name, "type", map.info.map_type, sys::map_type::ARRAY)?;
        check(
            name,
            "flags",
            map.info.map_flags & sys::F_MMAPABLE,
            sys::F_MMAPABLE,
        )?;
        let stride = size_of::<V>().next_multiple_of(8);
        let len_bytes = (stride * map.max_entries() as usize).next_multiple_of(4096);
        let writable = access == Access::Write;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&map.fd);
        // SAFETY: a new mapping of a length that the kernel checks against the map's; no address is asked for.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(map.failed("map the memory of")(io::Error::last_os_error()));
        }
        Ok(MappedArray {
            map,
            base: base.cast(),
            len_bytes,
            stride,
            writable,
        })
    }

    /// Number of elements, fixed when it was made.
    pub const fn max_entries(&self) -> u32 {
        self.map.max_entries()
    }
    /// The name of the map, which is its pin's.
    pub const fn name(&self) -> &'static str {
        self.map.name()
    }

    /// Word `word` of element `index`; `None` past the end.
    fn word(&self, index: u32, word: usize) -> Option<&AtomicU32> {
        if index >= self.max_entries() || word >= size_of::<V>() / 4 {
            return None;
        }
        let offset = index as usize * self.stride + word * 4;
        // SAFETY: the offset lies in the mapping: index and word were compared with the map's size above.
        let pointer = unsafe { self.base.byte_add(offset) };
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, offsets to 4; atomics may alias
        // what the kernel's programs read.
        Some(unsafe { &*pointer })
    }

    fn outside(&self) -> MapError {
        self.map.failed("find an element of")(io::Error::from_raw_os_error(libc::E2BIG))
    }

    /// Reads an element.
    pub fn read(&self, index: u32) -> MapResult<V> {
        let mut value = [zeroed::<V>()];
        for (i, chunk) in bytes_mut(&mut value).chunks_exact_mut(4).enumerate() {
            let word = self.word(index, i).ok_or_else(|| self.outside())?;
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
        Ok(self
            .word(index, word)
            .ok_or_else(|| self.outside())?
            .load(Ordering::Relaxed))
    }

    /// Writes one word of an element, at once and whole; visible before anything written after it.
    pub fn write_word(&self, index: u32, word: usize, value: u32) -> MapResult<()> {
        if !self.writable {
            return Err(self.map.failed("write the read-only")(
                io::Error::from_raw_os_error(libc::EPERM),
            ));
        }
        self.word(index, word)
            .ok_or_else(|| self.outside())?
            .store(value, Ordering::Release);
        Ok(())
    }
}

impl<V> Drop for MappedArray<V> {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our own mapping, and nothing borrows from it any more.
        let result = unsafe { libc::munmap(self.base.cast(), self.len_bytes) };
        debug_assert_eq!(result, 0);
    }
}
