//! Every BPF map, each with its card. Sizes written here are defaults; the agent sets them by its
//! flags before it loads the object.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Be32, Config, DropReason, Fragment, FragmentKey, Interface,
    NodeAddrFlags, NodeAddrKey, PORT_FILTER_ENTRIES, PacketCount, PortFilter, SelectionBlock,
    Service, ServiceKey, ServiceStats, SocketOrigin, SocketOriginKey, SocketPeer, XdpDevice,
};
use lb_common::pipeline::work::Work;
use lb_common::{Family, V4, V6};

use crate::flow_table::FlowFunctions;

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
/// Type    array of 4 (frontends' ports of TCP, UDP, SCTP; ports that source translation may take), memory-mapped by the agent
/// Entry   a bit a port
/// Writes  agent      Reads  xdp, tc
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
/// Writes  agent      Reads  xdp, tc ingress (packets without a flow)
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

/// The flow in work: what one stage leaves to the next. Packet hooks run with bottom halves off and do not nest on a CPU.
///
/// Type    per-CPU array of 1
/// Entry   [`Work`]
/// Writes  xdp, tc      Reads  the same
#[btf_map(name = "scratch_v4")]
pub(crate) static SCRATCH_V4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();
/// See [`SCRATCH_V4`].
#[btf_map(name = "scratch_v6")]
pub(crate) static SCRATCH_V6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();

/// What is asked of the routing table: 64 bytes for which a stack beside a parsed packet has no room.
///
/// Type    per-CPU array of 1
/// Entry   `struct bpf_fib_lookup` (linux/bpf.h)
/// Writes  xdp, tc      Reads  the same
#[btf_map(name = "fib")]
pub(crate) static FIB: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();

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
pub(crate) static TAILS_XDP: ProgramArray<8> = ProgramArray::new();
/// Slow paths of the tc programs; slots in `names::programs::TAILS_TC_SLOTS`.
#[btf_map(name = "tails_tc")]
pub(crate) static TAILS_TC: ProgramArray<32> = ProgramArray::new();

/// The maps of one family.
pub(crate) trait FamilyMaps: FlowFunctions {
    fn service(key: &ServiceKey<Self>) -> Option<*const Service>;
    fn backend(id: u32) -> Option<*const Backend<Self>>;
    fn affinity(key: &AffinityKey<Self>) -> Option<*const Affinity>;
    fn set_affinity(key: &AffinityKey<Self>, value: &Affinity);
    fn in_source_range(key: &Key<SrcRange<Self>>) -> bool;
    fn fragment(key: &FragmentKey<Self>) -> Option<*const Fragment>;
    fn set_fragment(key: &FragmentKey<Self>, value: &Fragment);
    fn is_node_addr(addr: Self::Addr) -> bool;
    fn scratch() -> Option<*mut Work<Self>>;
}

macro_rules! family_maps {
    ($family:ty, $services:ident, $backends:ident, $affinity:ident, $ranges:ident, $fragments:ident, $scratch:ident, $node_addrs:ident) => {
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
            fn is_node_addr(addr: Self::Addr) -> bool {
                $node_addrs.get_ptr(NodeAddrKey { addr }).is_some()
            }
            #[inline(always)]
            fn scratch() -> Option<*mut Work<Self>> {
                $scratch.get_ptr_mut(0)
            }
        }
    };
}

family_maps!(
    V4,
    SERVICES_V4,
    BACKENDS_V4,
    AFFINITY_V4,
    SRC_RANGES_V4,
    FRAGMENTS_V4,
    SCRATCH_V4,
    NODE_ADDRS_V4
);
family_maps!(
    V6,
    SERVICES_V6,
    BACKENDS_V6,
    AFFINITY_V6,
    SRC_RANGES_V6,
    FRAGMENTS_V6,
    SCRATCH_V6,
    NODE_ADDRS_V6
);
