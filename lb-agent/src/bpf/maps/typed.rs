//! Maps with keys and values of known types, by bpf(2).

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    pin::{Access, MapError, MapResult, check, open, size_u32},
    plain::{Plain, bytes, bytes_mut, zeroed},
};
use crate::bpf::sys;

/// A map with keys `K` and values `V`: hash, LRU hash, LPM trie or array.
#[derive(Debug)]
pub struct TypedMap<K, V> {
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    pub(super) info: sys::MapInfo,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> TypedMap<K, V> {
    /// Opens a pinned map and checks that its entries are of these types.
    pub fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        let fd = open(dir, name, access)?;
        let info = sys::map_info(fd.as_fd()).map_err(|source| MapError::Io {
            map: name,
            what: "describe",
            source,
        })?;
        check(name, "key size", info.key_size, size_u32::<K>())?;
        check(name, "value size", info.value_size, size_u32::<V>())?;
        Ok(TypedMap {
            name,
            fd,
            info,
            types: PhantomData,
        })
    }

    /// The name of the map, which is its pin's.
    pub const fn name(&self) -> &'static str {
        self.name
    }
    /// The most entries it can have, fixed when it was made.
    pub const fn max_entries(&self) -> u32 {
        self.info.max_entries
    }
    /// The descriptor, for whoever hands the map to the kernel.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn failed(
        &self,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> MapError + use<K, V> {
        let map = self.name;
        move |source| MapError::Io { map, what, source }
    }

    /// Looks one entry up.
    pub fn lookup(&self, key: &K) -> MapResult<Option<V>> {
        let mut value = [zeroed::<V>()];
        let found = sys::map_lookup(self.fd(), bytes(key), bytes_mut(&mut value))
            .map_err(self.failed("read"))?;
        Ok(found.then_some(value[0]))
    }

    /// Writes one entry, new or not.
    pub fn update(&self, key: &K, value: &V) -> MapResult<()> {
        sys::map_update(self.fd(), bytes(key), bytes(value), 0).map_err(self.failed("write"))
    }

    /// Removes one entry; `false`: there was none.
    pub fn delete(&self, key: &K) -> MapResult<bool> {
        sys::map_delete(self.fd(), bytes(key)).map_err(self.failed("remove from"))
    }

    /// The key behind `key`, the first one without.
    pub fn next_key(&self, key: Option<&K>) -> MapResult<Option<K>> {
        let mut next = [zeroed::<K>()];
        let found = sys::map_next_key(self.fd(), key.map(bytes), bytes_mut(&mut next))
            .map_err(self.failed("scan"))?;
        Ok(found.then_some(next[0]))
    }

    /// Appends about `limit` entries to `out` and says where to go on; `None` at the end.
    ///
    /// By `BPF_MAP_LOOKUP_BATCH`, which cannot lose its place when entries go; where the kernel lacks it for
    /// this type of map, key by key.
    pub fn scan(
        &self,
        cursor: Option<[u8; 40]>,
        limit: usize,
        out: &mut Vec<(K, V)>,
    ) -> MapResult<Option<[u8; 40]>> {
        let mut count = limit.clamp(64, 1 << 16);
        loop {
            let mut place = cursor.unwrap_or([0; 40]);
            let mut keys = vec![zeroed::<K>(); count];
            let mut values = vec![zeroed::<V>(); count];
            let room = u32::try_from(count).unwrap_or(u32::MAX);
            let read = sys::map_lookup_batch(
                self.fd(),
                cursor.is_some(),
                &mut place,
                bytes_mut(&mut keys),
                bytes_mut(&mut values),
                room,
            );
            match read {
                Ok(read) => {
                    out.extend(keys.into_iter().zip(values).take(read.count));
                    return Ok((!read.end).then_some(place));
                }
                // A bucket with more entries than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count < 1 << 22 => {
                    count *= 4
                }
                // 524 is ENOTSUPP, which the kernel gives for map types without batches.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => {
                    return self.scan_by_key(cursor, limit, out);
                }
                Err(error) => return Err(self.failed("scan")(error)),
            }
        }
    }

    fn scan_by_key(
        &self,
        cursor: Option<[u8; 40]>,
        limit: usize,
        out: &mut Vec<(K, V)>,
    ) -> MapResult<Option<[u8; 40]>> {
        let mut last = cursor.map(|place| {
            let mut key = [zeroed::<K>()];
            let room = bytes_mut(&mut key);
            let len = room.len().min(place.len());
            room[..len].copy_from_slice(&place[..len]);
            key[0]
        });
        for _ in 0..limit.max(1) {
            let Some(key) = self.next_key(last.as_ref())? else {
                return Ok(None);
            };
            if let Some(value) = self.lookup(&key)? {
                out.push((key, value));
            }
            last = Some(key);
        }
        Ok(last.map(|key| {
            let mut place = [0; 40];
            let from = bytes(&key);
            let len = from.len().min(place.len());
            place[..len].copy_from_slice(&from[..len]);
            place
        }))
    }

    /// Shows every entry.
    pub fn each(&self, mut each: impl FnMut(&K, &V)) -> MapResult<()> {
        let mut cursor = None;
        let mut entries = Vec::new();
        loop {
            cursor = self.scan(cursor, 4096, &mut entries)?;
            for (key, value) in entries.drain(..) {
                each(&key, &value);
            }
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    /// Every entry, all at once: for small maps and for tables.
    pub fn entries(&self) -> MapResult<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.each(|key, value| all.push((*key, *value)))?;
        Ok(all)
    }

    /// Removes many entries; returns how many there were.
    pub fn delete_many(&self, keys: &[K]) -> MapResult<usize> {
        let mut removed = 0;
        let mut rest = keys;
        while !rest.is_empty() {
            let mut head = rest.to_vec();
            let count = u32::try_from(head.len()).unwrap_or(u32::MAX);
            match sys::map_delete_batch(self.fd(), bytes_mut(&mut head), count) {
                Ok(count) if count >= rest.len() => return Ok(removed + rest.len()),
                // Key number `count` was not there: go on behind it.
                Ok(count) => {
                    removed += count;
                    rest = &rest[count + 1..];
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => {
                    for key in rest {
                        removed += usize::from(self.delete(key)?);
                    }
                    return Ok(removed);
                }
                Err(error) => return Err(self.failed("remove from")(error)),
            }
        }
        Ok(removed)
    }
}
