//! Typed handles of the pinned maps: abi types in and out, bpf(2) or shared memory underneath.
//!
//! [`Maps::open_pinned`] opens them without loading a program, to read only: what every command but `run`
//! does. The agent opens them to write with [`Maps::open_to_write`] after it loaded the object.
//! `super::store` implements the dataplane's `MapStore` over them.

use std::{
    io,
    marker::PhantomData,
    mem::size_of,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use lb_common::{
    ABI_VERSION, Family, V4, V6,
    abi::{
        Affinity, AffinityKey, Backend, Clock, Config, Flow, FlowKey, Interface, NodeAddrFlags,
        NodeAddrKey, PacketCount, PortFilter, SelectionBlock, Service, ServiceKey, ServiceStats,
        SocketOrigin, SocketOriginKey, SrcRangeKey, XdpDevice,
    },
    names::{PIN_ROOT, maps as names, programs},
};

use super::sys;

/// Directory of the pins of this build below a bpffs mount.
pub fn pin_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(PIN_ROOT).join(format!("v{ABI_VERSION}"))
}

/// Why a map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing is pinned there.
    #[error("no pinned map at {}; start the agent with `lb-agent run`, or name its bpffs with --bpffs", path.display())]
    Missing {
        /// Where the pin should be.
        path: PathBuf,
    },
    /// The pin cannot be opened.
    #[error("cannot open the pinned map {}", path.display())]
    Open {
        /// Where the pin is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pinned map is not what this build expects.
    #[error(
        "pinned map {map} has {field} {found}, this build expects {expected}; run `lb-agent cleanup`, then start again"
    )]
    Unfit {
        /// The map's name, which is its pin's.
        map: &'static str,
        /// The property that differs, in words.
        field: &'static str,
        /// In the kernel.
        found: u32,
        /// In this build.
        expected: u32,
    },
    /// An operation failed.
    #[error("cannot {what} map {map}")]
    Io {
        /// The map's name, which is its pin's.
        map: &'static str,
        /// The verb of the operation.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What a map operation returns.
pub type MapResult<T> = Result<T, MapError>;

/// A type whose bytes are what lies in a map.
///
/// # Safety
/// `#[repr(C)]` of integers without hidden padding; every bit pattern is valid.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($name:ty),+) => { $(
        // SAFETY: integers, or a layout of `lb_common::abi`: `repr(C)`, integers only, gaps are named fields.
        unsafe impl Plain for $name {}
    )+ };
}
macro_rules! plain_family {
    ($($name:ident),+) => { $(
        // SAFETY: a layout of `lb_common::abi`: `repr(C)`, integers only, gaps are named fields.
        unsafe impl<F: Family> Plain for $name<F> {}
    )+ };
}
plain!(
    u8,
    u32,
    u64,
    Service,
    Affinity,
    Config,
    Interface,
    PacketCount,
    NodeAddrFlags,
    PortFilter,
    ServiceStats,
    SocketOrigin,
    SocketOriginKey,
    XdpDevice,
    SelectionBlock
);
plain_family!(
    ServiceKey,
    Backend,
    Flow,
    AffinityKey,
    SrcRangeKey,
    NodeAddrKey,
    FlowMapKey
);

/// Key of `flows_*` and `openings_*` as it lies in the map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct FlowMapKey<F: Family>(F::FlowMapKey);

/// The bytes of a value.
pub(crate) fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no hidden padding, so all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` has no hidden padding and takes any bit pattern.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

fn zeroed<T: Plain>() -> T {
    // SAFETY: any bit pattern is a valid `Plain`.
    unsafe { std::mem::zeroed() }
}

/// How a map is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Look-ups only: commands beside a running agent.
    Read,
    /// Look-ups and updates: the agent.
    Write,
}

fn open(dir: &Path, map: &'static str, access: Access) -> MapResult<OwnedFd> {
    let path = dir.join(map);
    let flags = if access == Access::Read {
        sys::F_RDONLY
    } else {
        0
    };
    sys::obj_get(&path, flags).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            MapError::Missing { path }
        } else {
            MapError::Open { path, source }
        }
    })
}

fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

fn check(map: &'static str, field: &'static str, found: u32, expected: u32) -> MapResult<()> {
    if found == expected {
        Ok(())
    } else {
        Err(MapError::Unfit {
            map,
            field,
            found,
            expected,
        })
    }
}

/// A map with keys `K` and values `V`: hash, LRU hash, LPM trie or array.
#[derive(Debug)]
pub struct TypedMap<K, V> {
    name: &'static str,
    fd: OwnedFd,
    info: sys::MapInfo,
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

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> MapError + use<K, V> {
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

/// A per-CPU array.
#[derive(Debug)]
pub struct PerCpuMap<V> {
    map: TypedMap<u32, V>,
    cpus: usize,
}

impl<V: Plain> PerCpuMap<V> {
    /// Opens a pinned map and checks that its elements are of this type.
    pub fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
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
    pub const fn max_entries(&self) -> u32 {
        self.map.max_entries()
    }
    /// The values of one element, a possible CPU each.
    pub fn lookup(&self, index: u32) -> MapResult<Vec<V>> {
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
    pub fn zero(&self, index: u32) -> MapResult<()> {
        let raw = vec![0u8; size_of::<V>().next_multiple_of(8) * self.cpus];
        sys::map_update(self.map.fd(), bytes(&index), &raw, 0).map_err(self.map.failed("write"))
    }
}

/// Number of possible CPUs: the width of per-CPU values.
pub fn possible_cpus() -> io::Result<usize> {
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

/// `flows_*` or `openings_*`.
#[derive(Debug)]
pub struct FlowMap<F: Family>(TypedMap<FlowMapKey<F>, Flow<F>>);

impl<F: Family> FlowMap<F> {
    /// See [`TypedMap::open`].
    pub fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        TypedMap::open(dir, name, access).map(FlowMap)
    }
    /// The most entries it can have, fixed when it was made.
    pub const fn max_entries(&self) -> u32 {
        self.0.max_entries()
    }
    fn key(key: &FlowKey<F>) -> FlowMapKey<F> {
        FlowMapKey(F::flow_map_key(key))
    }
    /// Looks one entry up.
    pub fn lookup(&self, key: &FlowKey<F>) -> MapResult<Option<Flow<F>>> {
        self.0.lookup(&Self::key(key))
    }
    /// Removes one entry; `false`: there was none.
    pub fn delete(&self, key: &FlowKey<F>) -> MapResult<bool> {
        self.0.delete(&Self::key(key))
    }
    /// As [`TypedMap::scan`], without entries that were handed to another key while they were read.
    pub fn scan(
        &self,
        cursor: Option<[u8; 40]>,
        limit: usize,
        out: &mut Vec<(FlowKey<F>, Flow<F>)>,
    ) -> MapResult<Option<[u8; 40]>> {
        let mut entries = Vec::new();
        let cursor = self.0.scan(cursor, limit, &mut entries)?;
        out.extend(
            entries
                .into_iter()
                .filter_map(|(key, flow)| F::flow_key(&key.0, flow.check).map(|key| (key, flow))),
        );
        Ok(cursor)
    }
    /// Shows every entry.
    pub fn each(&self, mut each: impl FnMut(&FlowKey<F>, &Flow<F>)) -> MapResult<()> {
        self.0.each(|key, flow| {
            if let Some(key) = F::flow_key(&key.0, flow.check) {
                each(&key, flow);
            }
        })
    }
}

/// The maps of one family.
#[derive(Debug)]
pub struct FamilyPins<F: Family> {
    /// `services_*`: frontend → service port.
    pub services: TypedMap<ServiceKey<F>, Service>,
    /// `backends_*`: backend id → address, port, state.
    pub backends: MappedArray<Backend<F>>,
    /// `flows_*`: confirmed flows.
    pub flows: FlowMap<F>,
    /// `openings_*`: flows that are not confirmed.
    pub openings: FlowMap<F>,
    /// `affinity_*`: client → backend.
    pub affinity: TypedMap<AffinityKey<F>, Affinity>,
    /// `src_ranges_*`: clients that a load-balancer frontend lets in.
    pub src_ranges: TypedMap<SrcRangeKey<F>, u32>,
    /// `node_addrs_*`: this node's own addresses.
    pub node_addrs: TypedMap<NodeAddrKey<F>, NodeAddrFlags>,
}

impl<F: Family> FamilyPins<F> {
    fn open(dir: &Path, access: Access) -> MapResult<Self> {
        let i = F::INDEX;
        Ok(FamilyPins {
            services: TypedMap::open(dir, names::SERVICES[i], access)?,
            backends: MappedArray::open(dir, names::BACKENDS[i], access)?,
            flows: FlowMap::open(dir, names::FLOWS[i], access)?,
            openings: FlowMap::open(dir, names::OPENINGS[i], access)?,
            affinity: TypedMap::open(dir, names::AFFINITY[i], access)?,
            src_ranges: TypedMap::open(dir, names::SRC_RANGES[i], access)?,
            node_addrs: TypedMap::open(dir, names::NODE_ADDRS[i], access)?,
        })
    }
}

/// Name of the map `xdp_devices`.
pub const XDP_DEVICES: &str = "xdp_devices";

/// Every pinned map that user space reads or writes.
#[derive(Debug)]
pub struct Maps {
    /// The maps that each family has: IPv4's.
    pub v4: FamilyPins<V4>,
    /// The same of IPv6.
    pub v6: FamilyPins<V6>,
    /// `selection`: blocks of rows.
    pub selection: MappedArray<SelectionBlock>,
    /// `port_filter`: destination ports that may be ours.
    pub port_filter: MappedArray<PortFilter>,
    /// `interfaces`, by ifindex.
    pub interfaces: TypedMap<u32, Interface>,
    /// `xdp_devices`, by ifindex % 256.
    pub xdp_devices: TypedMap<u32, XdpDevice>,
    /// `config`, index 0.
    pub config: TypedMap<u32, Config>,
    /// `counters`, by number of `DropReason` or `Counter`.
    pub counters: PerCpuMap<PacketCount>,
    /// `service_stats`, by service id.
    pub service_stats: PerCpuMap<ServiceStats>,
    /// The directory of the pins.
    pub dir: PathBuf,
}

impl Maps {
    /// Opens what an agent pinned below `dir` (see [`pin_dir`]), to read only; no program is loaded and no agent
    /// needs to run.
    pub fn open_pinned(dir: &Path) -> MapResult<Maps> {
        Maps::open(dir, Access::Read)
    }

    /// Opens the same to write.
    pub fn open_to_write(dir: &Path) -> MapResult<Maps> {
        Maps::open(dir, Access::Write)
    }

    fn open(dir: &Path, access: Access) -> MapResult<Maps> {
        Ok(Maps {
            v4: FamilyPins::open(dir, access)?,
            v6: FamilyPins::open(dir, access)?,
            selection: MappedArray::open(dir, names::SELECTION, access)?,
            port_filter: MappedArray::open(dir, names::PORT_FILTER, access)?,
            interfaces: TypedMap::open(dir, names::INTERFACES, access)?,
            xdp_devices: TypedMap::open(dir, XDP_DEVICES, access)?,
            config: TypedMap::open(dir, names::CONFIG, access)?,
            counters: PerCpuMap::open(dir, names::COUNTERS, access)?,
            service_stats: PerCpuMap::open(dir, names::SERVICE_STATS, access)?,
            dir: dir.to_owned(),
        })
    }

    /// The one entry of `config`.
    pub fn config(&self) -> MapResult<Config> {
        Ok(self.config.lookup(&0)?.unwrap_or_default())
    }
}

/// Reads the kernel's clocks through the pinned program `clock`, so that stamps of flows can be compared.
#[derive(Debug)]
pub struct ClockReader {
    program: OwnedFd,
}

impl ClockReader {
    /// Opens the pinned program below a pin directory.
    pub fn open_pinned(dir: &Path) -> MapResult<ClockReader> {
        let path = program_pin(dir, programs::CLOCK);
        let program = sys::obj_get(&path, 0).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                MapError::Missing { path }
            } else {
                MapError::Open { path, source }
            }
        })?;
        Ok(ClockReader { program })
    }

    /// The clocks now.
    pub fn now(&self) -> MapResult<Clock> {
        let mut packet = [0u8; 64];
        sys::prog_test_run(self.program.as_fd(), &mut packet).map_err(|source| MapError::Io {
            map: programs::CLOCK,
            what: "run the program in place of",
            source,
        })?;
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| packet[at + i]));
        Ok(Clock {
            jiffies: word(0),
            monotonic_ns: word(8),
        })
    }
}

/// Where a program is pinned.
pub fn program_pin(dir: &Path, program: &str) -> PathBuf {
    dir.join("programs").join(program)
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

    #[test]
    fn a_directory_without_pins_names_the_pin_and_what_to_do() {
        let error = Maps::open_pinned(Path::new("/nonexistent/lb/v1")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/lb/v1/services_v4"),
            "{error}"
        );
    }
}
