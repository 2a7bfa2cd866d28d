//! Names of maps and programs. The kernel keeps at most 15 bytes of each.

/// Directory below the bpffs mount that holds every pin of this product.
pub const PIN_ROOT: &str = "lb";

/// Maps, as they appear in `bpftool map` and as pins.
pub mod maps {
    /// Frontends, IPv4 and IPv6.
    pub const SERVICES: [&str; 2] = ["services_v4", "services_v6"];
    /// Backends by id.
    pub const BACKENDS: [&str; 2] = ["backends_v4", "backends_v6"];
    /// Maglev rows of every service port.
    pub const SELECTION: &str = "selection";
    /// Flows: buckets of records.
    pub const FLOWS: [&str; 2] = ["flows_v4", "flows_v6"];
    /// Lines of index entries: a flow by its reply's tuple.
    pub const FLOW_INDEX: [&str; 2] = ["flow_index_v4", "flow_index_v6"];
    /// Keys of both tables' hash.
    pub const FLOW_SEEDS: &str = "flow_seeds";
    /// Flows that the agent wants deleted.
    pub const REAP: &str = "reap";
    /// Session affinity.
    pub const AFFINITY: [&str; 2] = ["affinity_v4", "affinity_v6"];
    /// `loadBalancerSourceRanges`.
    pub const SRC_RANGES: [&str; 2] = ["src_ranges_v4", "src_ranges_v6"];
    /// Ports of first fragments.
    pub const FRAGMENTS: [&str; 2] = ["fragments_v4", "fragments_v6"];
    /// What connected sockets dialled.
    pub const SOCKET_PEERS: &str = "socket_peers";
    /// What unconnected UDP sockets dialled.
    pub const SOCKET_ORIGINS: &str = "socket_origins";
    /// Ports of frontends, and those that source translation may take.
    pub const PORT_FILTER: &str = "port_filter";
    /// Addresses of this node.
    pub const NODE_ADDRS: [&str; 2] = ["node_addrs_v4", "node_addrs_v6"];
    /// Interfaces by ifindex.
    pub const INTERFACES: &str = "interfaces";
    /// Interfaces that XDP transmits by, at ifindex % 256.
    pub const XDP_DEVICES: &str = "xdp_devices";
    /// The one configuration entry.
    pub const CONFIG: &str = "config";
    /// Counters, per CPU.
    pub const COUNTERS: &str = "counters";
    /// Traffic by service id, per CPU.
    pub const SERVICE_STATS: &str = "service_stats";
    /// A flow being built, per CPU.
    pub const SCRATCH: [&str; 2] = ["scratch_v4", "scratch_v6"];
    /// Drops, new flows and other events.
    pub const EVENTS: &str = "events";
    /// Tail-called programs.
    pub const TAILS_XDP: &str = "tails_xdp";
    /// Tail-called programs.
    pub const TAILS_TC: &str = "tails_tc";
    /// Element of an RCU grace period barrier.
    pub const BARRIER: &str = "barrier";
}

/// Programs.
pub mod programs {
    /// External ingress, XDP.
    pub const XDP_EXT_IN: &str = "xdp_ext_in";
    /// Pod interface ingress.
    pub const TC_POD_IN: &str = "tc_pod_in";
    /// External interface ingress.
    pub const TC_EXT_IN: &str = "tc_ext_in";
    /// Egress of pod and external interfaces.
    pub const TC_OUT: &str = "tc_out";
    /// The same three for interfaces without a link-layer header.
    pub const TC_POD_IN_L3: &str = "tc_pod_in_l3";
    /// External ingress without a link-layer header.
    pub const TC_EXT_IN_L3: &str = "tc_ext_in_l3";
    /// Egress without a link-layer header.
    pub const TC_OUT_L3: &str = "tc_out_l3";
    /// Socket hooks, in the order connect4, connect6, sendmsg4, sendmsg6, recvmsg4, recvmsg6,
    /// getpeername4, getpeername6.
    pub const CGROUP: [&str; 8] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
    ];
    /// Programs behind tail calls of the XDP program: slot of `tails_xdp`, name.
    pub const TAILS_XDP_SLOTS: &[(u32, &str)] = &[
        (0, "xdp_slow_v4"),
        (1, "xdp_slow_v6"),
        (2, "xdp_open_v4"),
        (3, "xdp_open_v6"),
        (4, "xdp_write_v4"),
        (5, "xdp_write_v6"),
        (6, "xdp_commit_v4"),
        (7, "xdp_commit_v6"),
    ];
    /// Programs behind tail calls of the tc programs: slot of `tails_tc`, name. Even slots IPv4.
    pub const TAILS_TC_SLOTS: &[(u32, &str)] = &[
        (0, "tc_ext_slow_v4"),
        (1, "tc_ext_slow_v6"),
        (2, "tc_pod_slow_v4"),
        (3, "tc_pod_slow_v6"),
        (4, "tc_out_slow_v4"),
        (5, "tc_out_slow_v6"),
        (6, "tc_refuse_v4"),
        (7, "tc_refuse_v6"),
        (8, "tc_icmp_v4"),
        (9, "tc_icmp_v6"),
        (10, "tc_ext_open_v4"),
        (11, "tc_ext_open_v6"),
        (12, "tc_pod_open_v4"),
        (13, "tc_pod_open_v6"),
        (14, "tc_write_v4"),
        (15, "tc_write_v6"),
        (16, "tc_commit_v4"),
        (17, "tc_commit_v6"),
    ];
    /// Reads the kernel's clocks for the agent; run by `BPF_PROG_TEST_RUN`, never attached.
    pub const CLOCK: &str = "clock";
    /// Deletes flows for the agent; run by `BPF_PROG_TEST_RUN`, never attached.
    pub const REAP: [&str; 2] = ["reap_v4", "reap_v6"];
}

/// Constants of the programs, set before they are loaded.
pub mod constants {
    /// Buckets of the tables of flows less one, IPv4 and IPv6.
    pub const FLOW_BUCKET_MASKS: &str = "FLOW_BUCKET_MASKS";
    /// Index lines less one, IPv4 and IPv6.
    pub const FLOW_LINE_MASKS: &str = "FLOW_LINE_MASKS";
    /// Keys of their hash.
    pub const FLOW_SEEDS: &str = "FLOW_SEEDS";
}
