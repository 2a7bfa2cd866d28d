//! Every BPF map, each with its card. Sizes written here are defaults; the agent sets them by its
//! flags before it loads the object.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Be32, Config, DropReason, Flow, FlowKey, Fragment, FragmentKey,
    Interface, NodeAddrFlags, NodeAddrKey, PORT_FILTER_ENTRIES, PackedFlowKey, PacketCount,
    PortFilter, Scratch, SelectionBlock, Service, ServiceKey, ServiceStats, SocketOrigin,
    SocketOriginKey, SocketPeer, XdpDevice,
};
use lb_common::wire::Ports;
use lb_common::{Family, V4, V6};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const PORT_FILTERS: usize = PORT_FILTER_ENTRIES as usize;
const COUNTERS_LEN: usize = DropReason::COUNTERS as usize;
const XDP_DEVICE_SLOTS: usize = XdpDevice::SLOTS as usize;
const SOCKET_PEER_CELLS: usize = SocketPeer::CELLS as usize;

/// Which Service a destination belongs to.
///
/// Type    hash, preallocated
/// Entry   [`ServiceKey`] → [`Service`]
/// Writes  agent      Reads  xdp, tc ingress, cgroup
/// Full    the agent names the frontend that does not fit, raises `lb_map_full_total` and serves the rest
/// Order   written after its backends and tables, removed before them
#[btf_map(name = "services_v4")]
pub(crate) static SERVICES_V4: HashMap<ServiceKey<V4>, Service, 65_536> = HashMap::new();
/// See [`SERVICES_V4`].
#[btf_map(name = "services_v6")]
pub(crate) static SERVICES_V6: HashMap<ServiceKey<V6>, Service, 65_536> = HashMap::new();

/// Where packets may be sent.
///
/// Type    array, memory-mapped by the agent
/// Entry   backend id → [`Backend`]
/// Writes  agent      Reads  xdp, tc ingress, cgroup
/// Full    the agent leaves the endpoints that do not fit out of their lists and names them
/// Order   written before the tables that name it; a new meaning takes an id that has rested
#[btf_map(name = "backends_v4")]
pub(crate) static BACKENDS_V4: Array<Backend<V4>, 262_144, MMAPABLE> = Array::new();
/// See [`BACKENDS_V4`].
#[btf_map(name = "backends_v6")]
pub(crate) static BACKENDS_V6: Array<Backend<V6>, 262_144, MMAPABLE> = Array::new();

/// Maglev rows of all service ports.
///
/// Type    array of blocks of 1,024 rows, memory-mapped by the agent
/// Entry   row / 1,024 → backend ids
/// Writes  agent      Reads  xdp, tc ingress, cgroup
/// Full    tables get smaller, at last the rows of the old one are set one by one; the agent counts or names them
/// Order   written into a free range before the Service that names it; freed ranges rest
#[btf_map(name = "selection")]
pub(crate) static SELECTION: Array<SelectionBlock, 16_384, MMAPABLE> = Array::new();

/// Confirmed flows.
///
/// Type    hash, preallocated
/// Entry   [`FlowKey`], of IPv6 a [`PackedFlowKey`] → [`Flow`], at least two a connection
/// Writes  xdp, tc; the agent ages      Reads  xdp, tc
/// Full    the flow stays in `openings_*`, counted as `flows_full`
/// Order   reply entry before the original one
#[btf_map(name = "flows_v4")]
pub(crate) static FLOWS_V4: HashMap<FlowKey<V4>, Flow<V4>, 131_072> = HashMap::new();
/// See [`FLOWS_V4`].
#[btf_map(name = "flows_v6")]
pub(crate) static FLOWS_V6: HashMap<PackedFlowKey, Flow<V6>, 131_072> = HashMap::new();

/// Flows that are not confirmed: a flood churns these, never `flows_*`.
///
/// Type    LRU hash, common list
/// Entry   as in `flows_*`
/// Writes  xdp, tc; the agent ages      Reads  xdp, tc
/// Full    the least recently used goes
/// Order   reply entry before the original one
#[btf_map(name = "openings_v4")]
pub(crate) static OPENINGS_V4: LruHashMap<FlowKey<V4>, Flow<V4>, 65_536> = LruHashMap::new();
/// See [`OPENINGS_V4`].
#[btf_map(name = "openings_v6")]
pub(crate) static OPENINGS_V6: LruHashMap<PackedFlowKey, Flow<V6>, 65_536> = LruHashMap::new();

/// Which backend a client keeps (`sessionAffinity: ClientIP`).
///
/// Type    LRU hash
/// Entry   [`AffinityKey`] → [`Affinity`]
/// Writes  xdp, tc ingress, cgroup; the agent removes those of a service port whose affinity changes
/// Reads   the same
/// Full    the least recently used goes
/// Order   any: an entry that names no member of the list in force decides nothing
#[btf_map(name = "affinity_v4")]
pub(crate) static AFFINITY_V4: LruHashMap<AffinityKey<V4>, Affinity, 65_536> = LruHashMap::new();
/// See [`AFFINITY_V4`].
#[btf_map(name = "affinity_v6")]
pub(crate) static AFFINITY_V6: LruHashMap<AffinityKey<V6>, Affinity, 65_536> = LruHashMap::new();

/// What follows the prefix length in a key of `src_ranges_*`; see `lb_common::abi::SrcRangeKey`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SrcRange<F: Family> {
    pub(crate) service_id: Be32,
    pub(crate) client: F::Addr,
}

/// `loadBalancerSourceRanges`.
///
/// Type    LPM trie
/// Entry   service id and prefix → 1
/// Writes  agent      Reads  xdp, tc ingress, cgroup
/// Full    the agent keeps the Service as it was and names it
/// Order   written before the Service gets its flag, removed after it lost it
#[btf_map(name = "src_ranges_v4")]
pub(crate) static SRC_RANGES_V4: LpmTrie<
    SrcRange<V4>,
    u32,
    16_384,
    { BPF_F_NO_PREALLOC as usize },
> = LpmTrie::new();
/// See [`SRC_RANGES_V4`].
#[btf_map(name = "src_ranges_v6")]
pub(crate) static SRC_RANGES_V6: LpmTrie<
    SrcRange<V6>,
    u32,
    16_384,
    { BPF_F_NO_PREALLOC as usize },
> = LpmTrie::new();

/// Ports of first fragments.
///
/// Type    LRU hash
/// Entry   [`FragmentKey`] → [`Fragment`]
/// Writes  tc      Reads  tc
/// Full    the least recently used goes: its later fragments are dropped and counted
/// Order   none
#[btf_map(name = "fragments_v4")]
pub(crate) static FRAGMENTS_V4: LruHashMap<FragmentKey<V4>, Fragment, 8_192> = LruHashMap::new();
/// See [`FRAGMENTS_V4`].
#[btf_map(name = "fragments_v6")]
pub(crate) static FRAGMENTS_V6: LruHashMap<FragmentKey<V6>, Fragment, 8_192> = LruHashMap::new();

/// What connected sockets dialled.
///
/// Type    array
/// Entry   [`SocketPeer::cell`] of the socket's cookie → [`SocketPeer`]
/// Writes  cgroup      Reads  cgroup, agent
/// Full    a later socket of the same cell takes it: the older one sees the backend's address
/// Order   none: the check tells a value that is another socket's or half written
#[btf_map(name = "socket_peers")]
pub(crate) static SOCKET_PEERS: Array<SocketPeer, SOCKET_PEER_CELLS> = Array::new();

/// What unconnected UDP sockets dialled, and which backend they keep for it.
///
/// Type    LRU hash
/// Entry   [`SocketOriginKey`] → [`SocketOrigin`]
/// Writes  cgroup      Reads  cgroup
/// Full    the least recently used goes: that socket sees the backend's address
/// Order   none
#[btf_map(name = "socket_origins")]
pub(crate) static SOCKET_ORIGINS: LruHashMap<SocketOriginKey, SocketOrigin, 65_536> =
    LruHashMap::new();

/// Which destination ports may be ours: most traffic ends here.
///
/// Type    array of 3 (TCP, UDP, SCTP), memory-mapped by the agent
/// Entry   a bit a port
/// Writes  agent      Reads  xdp, tc ingress
/// Full    never
/// Order   set before the frontend is written, cleared after it is removed
#[btf_map(name = "port_filter")]
pub(crate) static PORT_FILTER: Array<PortFilter, PORT_FILTERS, MMAPABLE> = Array::new();

/// Destination ports of direct connections that got a flow of their own: a byte a port, so that two
/// CPUs cannot lose each other's mark.
///
/// Type    array of 1
/// Entry   65,536 bytes
/// Writes  tc ingress of pods      Reads  the same
/// Full    never
/// Order   none
#[btf_map(name = "direct_ports")]
pub(crate) static DIRECT_PORTS: Array<[u8; 65_536], 1> = Array::new();

/// Addresses of this node.
///
/// Type    hash
/// Entry   [`NodeAddrKey`] → [`NodeAddrFlags`]
/// Writes  agent      Reads  whoever inspects
/// Full    logged
/// Order   none
#[btf_map(name = "node_addrs_v4")]
pub(crate) static NODE_ADDRS_V4: HashMap<NodeAddrKey<V4>, NodeAddrFlags, 1_024> = HashMap::new();
/// See [`NODE_ADDRS_V4`].
#[btf_map(name = "node_addrs_v6")]
pub(crate) static NODE_ADDRS_V6: HashMap<NodeAddrKey<V6>, NodeAddrFlags, 1_024> = HashMap::new();

/// Interfaces that we serve.
///
/// Type    hash
/// Entry   ifindex → [`Interface`]
/// Writes  agent      Reads  xdp, tc ingress (new SNAT flows)
/// Full    that interface's flows take the node's primary address
/// Order   written before the hooks of the interface are attached
#[btf_map(name = "interfaces")]
pub(crate) static INTERFACES: HashMap<u32, Interface, 16_384> = HashMap::new();

/// Interfaces that XDP transmits by.
///
/// Type    array
/// Entry   ifindex % 256 → [`XdpDevice`]
/// Writes  agent      Reads  xdp
/// Full    an interface whose slot is taken is served by tc
/// Order   none: an entry of another interface means "by tc"
#[btf_map(name = "xdp_devices")]
pub(crate) static XDP_DEVICES: Array<XdpDevice, XDP_DEVICE_SLOTS> = Array::new();

/// The configuration.
///
/// Type    array of 1
/// Entry   [`Config`]
/// Writes  agent      Reads  all
/// Full    never
/// Order   written before the first Service
#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

/// Counters by [`DropReason`] and `Counter`.
///
/// Type    per-CPU array
/// Entry   number → [`PacketCount`]
/// Writes  all      Reads  agent
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<PacketCount, COUNTERS_LEN> = PerCpuArray::new();

/// Traffic by service port.
///
/// Type    per-CPU array
/// Entry   service id → [`ServiceStats`]
/// Writes  all      Reads  agent
#[btf_map(name = "service_stats")]
pub(crate) static SERVICE_STATS: PerCpuArray<ServiceStats, 65_536> = PerCpuArray::new();

/// A flow being built. Packet hooks run with bottom halves off and do not nest on a CPU.
///
/// Type    per-CPU array of 1
/// Entry   [`Scratch`]
/// Writes  xdp, tc      Reads  the same
#[btf_map(name = "scratch_v4")]
pub(crate) static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();
/// See [`SCRATCH_V4`].
#[btf_map(name = "scratch_v6")]
pub(crate) static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// Refusals of this second.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Refusals {
    /// Second of CLOCK_MONOTONIC.
    pub(crate) second: u64,
    /// Refusals sent in it.
    pub(crate) sent: u64,
}

/// Rate limit of refusals.
///
/// Type    per-CPU array of 1
/// Entry   [`Refusals`]
/// Writes  tc      Reads  tc
#[btf_map(name = "refusals")]
pub(crate) static REFUSALS: PerCpuArray<Refusals, 1> = PerCpuArray::new();

/// What happens, at debug level.
///
/// Type    ring buffer
/// Entry   `lb_common::abi::Event` (the map itself has no value type: libbpf refuses one)
/// Writes  all      Reads  agent
/// Full    the event is lost
#[btf_map(name = "events")]
pub(crate) static EVENTS: RingBuf<(), 262_144> = RingBuf::new();

/// Slow paths of the XDP program; slots in `names::programs::TAILS_XDP_SLOTS`.
#[btf_map(name = "tails_xdp")]
pub(crate) static TAILS_XDP: ProgramArray<4> = ProgramArray::new();
/// Slow paths of the tc programs; slots in `names::programs::TAILS_TC_SLOTS`.
#[btf_map(name = "tails_tc")]
pub(crate) static TAILS_TC: ProgramArray<16> = ProgramArray::new();

/// The maps of one family.
pub(crate) trait FamilyMaps: Family {
    fn service(key: &ServiceKey<Self>) -> Option<*const Service>;
    fn backend(id: u32) -> Option<*const Backend<Self>>;
    fn flow(key: &FlowKey<Self>) -> Option<*mut Flow<Self>>;
    fn opening(key: &FlowKey<Self>) -> Option<*mut Flow<Self>>;
    fn insert_flow(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32>;
    fn insert_opening(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32>;
    fn remove_flow(key: &FlowKey<Self>);
    fn remove_opening(key: &FlowKey<Self>);
    fn affinity(key: &AffinityKey<Self>) -> Option<*const Affinity>;
    fn set_affinity(key: &AffinityKey<Self>, value: &Affinity);
    fn in_source_range(key: &Key<SrcRange<Self>>) -> bool;
    fn fragment(key: &FragmentKey<Self>) -> Option<*const Fragment>;
    fn set_fragment(key: &FragmentKey<Self>, value: &Fragment);
    fn scratch() -> Option<*mut Scratch<Self>>;
}

/// The bytes of a key as words, of which the kernel hashes the key's size: written field by field, the ports and the
/// last four bytes would be narrow stores that the hash's word loads wait for.
#[inline(always)]
fn key_words_v4(key: &FlowKey<V4>) -> [u32; 4] {
    const { assert!(size_of::<FlowKey<V4>>() == 16) };
    let rest = u32::from_le_bytes([key.proto, key.side, 0, 0]).to_le();
    [
        key.saddr.be,
        key.daddr.be,
        Ports::join(key.sport, key.dport),
        rest,
    ]
}

/// The same; the upper half of the last word is not part of the key.
#[inline(always)]
fn key_words_v6(key: &FlowKey<V6>) -> [u64; 5] {
    const { assert!(size_of::<PackedFlowKey>() == 36) };
    let pair = |low: u32, high: u32| low as u64 | ((high as u64) << 32);
    let (s, d) = (&key.saddr.be, &key.daddr.be);
    [
        pair(s[0], s[1]) ^ PackedFlowKey::mask(key.code()) as u64,
        pair(s[2], s[3]),
        pair(d[0], d[1]),
        pair(d[2], d[3]),
        Ports::join(key.sport, key.dport) as u64,
    ]
}

macro_rules! family_maps {
    ($family:ty, $words:ident, $map_key:ty, $services:ident, $backends:ident, $flows:ident, $openings:ident, $affinity:ident, $ranges:ident, $fragments:ident, $scratch:ident) => {
        impl FamilyMaps for $family {
            #[inline(always)]
            fn service(key: &ServiceKey<Self>) -> Option<*const Service> {
                $services.get_ptr(key)
            }
            #[inline(always)]
            fn backend(id: u32) -> Option<*const Backend<Self>> {
                $backends.get_ptr(id)
            }
            #[inline(always)]
            fn flow(key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
                let words = $words(key);
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                $flows.get_ptr_mut(unsafe { &*words.as_ptr().cast::<$map_key>() })
            }
            #[inline(always)]
            fn opening(key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
                let words = $words(key);
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                $openings.get_ptr_mut(unsafe { &*words.as_ptr().cast::<$map_key>() })
            }
            #[inline(always)]
            fn insert_flow(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32> {
                let words = $words(key);
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                $flows.insert(unsafe { &*words.as_ptr().cast::<$map_key>() }, flow, flags)
            }
            #[inline(always)]
            fn insert_opening(
                key: &FlowKey<Self>,
                flow: &Flow<Self>,
                flags: u64,
            ) -> Result<(), i32> {
                let words = $words(key);
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                $openings.insert(unsafe { &*words.as_ptr().cast::<$map_key>() }, flow, flags)
            }
            #[inline(always)]
            fn remove_flow(key: &FlowKey<Self>) {
                let words = $words(key);
                // An entry that is not there is as good as removed.
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                let _gone = $flows.remove(unsafe { &*words.as_ptr().cast::<$map_key>() });
            }
            #[inline(always)]
            fn remove_opening(key: &FlowKey<Self>) {
                let words = $words(key);
                // An entry that is not there is as good as removed.
                // SAFETY: the words begin with the key's bytes, aligned as it is or better.
                let _gone = $openings.remove(unsafe { &*words.as_ptr().cast::<$map_key>() });
            }
            #[inline(always)]
            fn affinity(key: &AffinityKey<Self>) -> Option<*const Affinity> {
                $affinity.get_ptr(key)
            }
            #[inline(always)]
            fn set_affinity(key: &AffinityKey<Self>, value: &Affinity) {
                // Without room the client is balanced as if it had no entry.
                let _full = $affinity.insert(key, value, 0);
            }
            #[inline(always)]
            fn in_source_range(key: &Key<SrcRange<Self>>) -> bool {
                $ranges.get(key).is_some()
            }
            #[inline(always)]
            fn fragment(key: &FragmentKey<Self>) -> Option<*const Fragment> {
                $fragments.get_ptr(key)
            }
            #[inline(always)]
            fn set_fragment(key: &FragmentKey<Self>, value: &Fragment) {
                // Without room the later fragments are dropped and counted.
                let _full = $fragments.insert(key, value, 0);
            }
            #[inline(always)]
            fn scratch() -> Option<*mut Scratch<Self>> {
                $scratch.get_ptr_mut(0)
            }
        }
    };
}

family_maps!(
    V4,
    key_words_v4,
    FlowKey<V4>,
    SERVICES_V4,
    BACKENDS_V4,
    FLOWS_V4,
    OPENINGS_V4,
    AFFINITY_V4,
    SRC_RANGES_V4,
    FRAGMENTS_V4,
    SCRATCH_V4
);
family_maps!(
    V6,
    key_words_v6,
    PackedFlowKey,
    SERVICES_V6,
    BACKENDS_V6,
    FLOWS_V6,
    OPENINGS_V6,
    AFFINITY_V6,
    SRC_RANGES_V6,
    FRAGMENTS_V6,
    SCRATCH_V6
);
