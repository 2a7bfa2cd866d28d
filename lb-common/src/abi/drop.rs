//! Why a packet was dropped, and what is counted. Numbers are given once and never reused.

/// A value of `counters`, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PacketCount {
    /// How often.
    pub packets: u64,
}

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident: $repr:ident { $($(#[doc = $doc:literal])+ $variant:ident = $number:literal $label:literal,)+ }) => {
        $(#[$meta])*
        #[repr($repr)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl $name {
            /// Every variant, in order of its number.
            pub const ALL: &[$name] = &[$($name::$variant,)+];
            /// The name in metrics and tables.
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }
            /// What it means, for help texts.
            pub const fn help(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc),+),)+ }
            }
            /// Decodes a number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some($name::$variant),)+ _ => None }
            }
        }
    };
}

counters! {
    /// Why a packet that is ours was dropped. Index of `counters`.
    DropReason: u32 {
        /// Policy Local without a local endpoint (semantics 10.2).
        NoLocalEndpoint = 1 "no_local_endpoint",
        /// Source outside loadBalancerSourceRanges (12.3).
        SourceRange = 2 "source_range",
        /// No free source port for the flow.
        PortsExhausted = 3 "ports_exhausted",
        /// A flow entry could not be written.
        FlowInsert = 4 "flow_insert",
        /// The packet could not be rewritten.
        Rewrite = 5 "rewrite",
        /// Header cut short or malformed.
        Malformed = 6 "malformed",
        /// A later fragment whose first has not been seen.
        FragmentOrphan = 7 "fragment_orphan",
        /// A backend id that names nothing.
        BackendGone = 8 "backend_gone",
        /// No source address of this family for SNAT.
        NoSourceAddress = 9 "no_source_address",
        /// A refusal over the rate limit.
        RefusalLimit = 10 "refusal_limit",
        /// The refusal could not be built.
        RefusalFailed = 11 "refusal_failed",
        /// An ICMP redirect about a translated flow.
        IcmpRedirect = 12 "icmp_redirect",
        /// Nobody serves the frontend, and what came must not be answered: a RST, a later fragment, not unicast.
        NoEndpoint = 13 "no_endpoint",
        /// A tail-called program is missing.
        TailCall = 14 "tail_call",
        /// A flow could not be changed: another CPU held its lock.
        FlowBusy = 15 "flow_busy",
        /// TCP to a virtual address in mid-stream without a flow and without data: it opens none.
        NoFlow = 16 "no_flow",
        /// At an address and port that this node took for the source of a flow, and not of that flow.
        StrayReply = 17 "stray_reply",
    }
}

counters! {
    /// What is counted besides drops. Index of `counters`.
    Counter: u32 {
        /// Packets translated by XDP.
        XdpTranslated = 32 "xdp_translated",
        /// Packets translated at tc ingress of external interfaces.
        TcExternalTranslated = 33 "tc_external_translated",
        /// Packets translated at tc ingress of pod interfaces.
        TcPodTranslated = 34 "tc_pod_translated",
        /// Packets translated at tc egress.
        TcOutTranslated = 35 "tc_out_translated",
        /// Connections translated at connect.
        SocketConnect = 36 "socket_connect",
        /// Datagrams translated at sendmsg.
        SocketSend = 37 "socket_send",
        /// Addresses translated back at recvmsg or getpeername.
        SocketReceive = 38 "socket_receive",
        /// Connects or datagrams refused at the socket.
        SocketRefused = 39 "socket_refused",
        /// Flows made.
        NewFlow = 40 "new_flow",
        /// Flows confirmed.
        FlowConfirmed = 41 "flow_confirmed",
        /// Source ports rewritten because a tuple was taken.
        PortRewritten = 43 "port_rewritten",
        /// Lost races against another CPU for the same flow.
        InsertRace = 44 "insert_race",
        /// Flows that gave way to a new one: their backend is gone, their client opens again from a port of a connection
        /// that ended, or another flow took the tuple of their replies.
        Reselected = 45 "reselected",
        /// Packets refused with a TCP RST or an ICMP error.
        Refused = 46 "refused",
        /// Stale map elements that a check caught.
        StaleElement = 47 "stale_element",
        /// ICMP errors translated.
        IcmpError = 48 "icmp_error",
        /// Later fragments translated.
        Fragment = 49 "fragment",
        /// Packets that XDP left to tc.
        XdpPassed = 50 "xdp_passed",
        /// Next hops that XDP looked up.
        NextHop = 51 "next_hop",
        /// Hairpin packets.
        Hairpin = 52 "hairpin",
        /// Affinity entries that decided a selection.
        AffinityHit = 53 "affinity_hit",
        /// Direct connections that got another source port (their tuple was taken).
        DirectRewritten = 54 "direct_rewritten",
        /// Flows that had ended and gave way to a connection past the frontends with the same client port and backend.
        OverForgotten = 55 "over_forgotten",
        /// Flows that were over or not confirmed and gave way to a new one for want of room.
        FlowEvicted = 56 "flow_evicted",
        /// New flows that had to wait for a lock of the table.
        InsertBusy = 57 "insert_busy",
        /// Packets to a frontend without a flow that answer something, and opened nothing.
        NotOpened = 58 "not_opened",
        /// FIN and RST whose sequence number is not near what its direction has come to: they changed nothing.
        OutOfWindow = 59 "out_of_window",
    }
}

impl DropReason {
    /// Elements of `counters`: room for every number above.
    pub const COUNTERS: u32 = 64;
}
