//! Per-CPU arrays, a value for each CPU.

use std::{io, mem::size_of, path::Path};

use super::{
    pin::{Access, MapError, MapResult, check},
    plain::{Plain, bytes, bytes_mut, zeroed},
    typed::TypedMap,
};
use crate::bpf::sys;

/// A per-CPU array.
#[derive(Debug)]
pub(crate) struct PerCpuMap<V> {
    map: TypedMap<u32, V>,
    cpus: usize,
}

impl<V: Plain> PerCpuMap<V> {
    /// Opens a pinned map and checks that its elements are of this type.
    pub(crate) fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        let map = TypedMap::<u32, V>::open(dir, name, access)?;
        check(name, "type", map.info.map_type, sys::map_type::PERCPU_ARRAY)?;
        let cpus = possible_cpus().map_err(|source| MapError::Io {
            map: name,
            what: "count the CPUs of",
            source,
        })?;
        Ok(PerCpuMap { map, cpus })
    }
    /// Number of elements, fixed when it was made.
    pub(crate) const fn max_entries(&self) -> u32 {
        self.map.max_entries()
    }
    /// The values of one element, a possible CPU each.
    pub(crate) fn lookup(&self, index: u32) -> MapResult<Vec<V>> {
        let stride = size_of::<V>().next_multiple_of(8);
        let mut raw = vec![0u8; stride * self.cpus];
        sys::map_lookup(self.map.fd(), bytes(&index), &mut raw).map_err(self.map.failed("read"))?;
        let read = |chunk: &[u8]| {
            let mut value = [zeroed::<V>()];
            bytes_mut(&mut value).copy_from_slice(&chunk[..size_of::<V>()]);
            value[0]
        };
        Ok(raw.chunks_exact(stride).map(read).collect())
    }
    /// Sets the element to 0 on every CPU.
    pub(crate) fn zero(&self, index: u32) -> MapResult<()> {
        let raw = vec![0u8; size_of::<V>().next_multiple_of(8) * self.cpus];
        sys::map_update(self.map.fd(), bytes(&index), &raw, 0).map_err(self.map.failed("write"))
    }
}

/// Number of possible CPUs: the width of per-CPU values.
pub(super) fn possible_cpus() -> io::Result<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    parse_cpu_list(&list)
        .ok_or_else(|| io::Error::other("/sys/devices/system/cpu/possible is no list of CPUs"))
}

/// `0-3,8` → 5.
fn parse_cpu_list(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(parse_cpu_list("0-3\n"), Some(4));
        assert_eq!(parse_cpu_list("0"), Some(1));
        assert_eq!(parse_cpu_list("0-1,4-7"), Some(6));
        assert_eq!(parse_cpu_list(""), None);
        assert_eq!(parse_cpu_list("3-0"), None);
    }
}
