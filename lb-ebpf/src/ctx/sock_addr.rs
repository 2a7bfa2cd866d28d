//! A socket hook's context as a call, and the maps as a hook sees them that may be preempted.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use lb_common::abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Be16, Config, Counter, DropReason, Event,
    Fragment, FragmentKey, Interface, Service, ServiceKey, SocketOrigin, SocketOriginKey,
    SocketPeer, Transport, XdpDevice,
};
use lb_common::flow_table::{Change, Derived, Found, Insert, Room, Tuple};
use lb_common::pipeline::flow::Leg;
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::socket::{SocketCall, SocketTables};
use lb_common::pipeline::tables::Tables;
use lb_common::pipeline::work::Work;
use lb_common::{V4, V6};

use crate::look::LookFunctions;
use crate::maps::{COUNTERS, FamilyMaps, SERVICE_STATS, SOCKET_ORIGINS, SOCKET_PEERS};
use crate::tables::Kernel;

/// The context of one call. `SENDS`: it is a sendmsg, whose source address is the datagram's own.
///
/// Every access is volatile, so that LLVM neither joins two fields nor narrows one: the kernel rewrites
/// each access by the field's offset and width, and refuses what it does not know.
pub(crate) struct SockAddr<const SENDS: bool> {
    ctx: *mut bpf_sock_addr,
}

/// Reads a field of the context or of the socket it names.
macro_rules! read {
    ($field:expr) => {{
        // SAFETY: the context, and the socket it names, are valid while the program runs.
        let field = unsafe { &raw const $field };
        // SAFETY: as above; an aligned word of the context.
        unsafe { field.read_volatile() }
    }};
}

/// Writes a field of the context.
macro_rules! write {
    ($field:expr, $value:expr) => {{
        // SAFETY: the context is valid while the program runs.
        let field = unsafe { &raw mut $field };
        // SAFETY: as above; an aligned word that this kind of hook may write.
        unsafe { field.write_volatile($value) }
    }};
}

impl<const SENDS: bool> SockAddr<SENDS> {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut bpf_sock_addr) -> Self {
        SockAddr { ctx }
    }
    /// The number as `proto` names it; 0 for one past 255 (MPTCP), whose subflows make calls of their own.
    #[inline(always)]
    fn protocol(&self) -> u8 {
        u8::try_from(read!((*self.ctx).protocol)).unwrap_or(0)
    }
    #[inline(always)]
    fn socket_cookie(&self) -> u64 {
        // SAFETY: the context is this program's.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }
    #[inline(always)]
    fn namespace_cookie(&self) -> u64 {
        // SAFETY: the context is this program's.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }
    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the port is the lower half of its word"
    )]
    fn user_port(&self) -> Be16 {
        Be16 {
            be: read!((*self.ctx).user_port) as u16,
        }
    }
    #[inline(always)]
    fn set_user_port(&mut self, port: Be16) {
        write!((*self.ctx).user_port, u32::from(port.be));
    }
}

impl<const SENDS: bool> SocketCall<V4> for SockAddr<SENDS> {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.protocol()
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.socket_cookie()
    }
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.namespace_cookie()
    }
    #[inline(always)]
    fn saddr(&self) -> Addr4 {
        if SENDS {
            return Addr4 {
                be: read!((*self.ctx).msg_src_ip4),
            };
        }
        let sk = read!((*self.ctx).__bindgen_anon_1.sk);
        Addr4 {
            be: read!((*sk).src_ip4),
        }
    }
    #[inline(always)]
    fn addr(&self) -> Addr4 {
        Addr4 {
            be: read!((*self.ctx).user_ip4),
        }
    }
    #[inline(always)]
    fn port(&self) -> Be16 {
        self.user_port()
    }
    #[inline(always)]
    fn set(&mut self, addr: Addr4, port: Be16) {
        write!((*self.ctx).user_ip4, addr.be);
        self.set_user_port(port);
    }
}

impl<const SENDS: bool> SocketCall<V6> for SockAddr<SENDS> {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.protocol()
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.socket_cookie()
    }
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.namespace_cookie()
    }
    #[inline(always)]
    fn saddr(&self) -> Addr6 {
        if SENDS {
            return Addr6 {
                be: [
                    read!((*self.ctx).msg_src_ip6[0]),
                    read!((*self.ctx).msg_src_ip6[1]),
                    read!((*self.ctx).msg_src_ip6[2]),
                    read!((*self.ctx).msg_src_ip6[3]),
                ],
            };
        }
        let sk = read!((*self.ctx).__bindgen_anon_1.sk);
        Addr6 {
            be: [
                read!((*sk).src_ip6[0]),
                read!((*sk).src_ip6[1]),
                read!((*sk).src_ip6[2]),
                read!((*sk).src_ip6[3]),
            ],
        }
    }
    #[inline(always)]
    fn addr(&self) -> Addr6 {
        Addr6 {
            be: [
                read!((*self.ctx).user_ip6[0]),
                read!((*self.ctx).user_ip6[1]),
                read!((*self.ctx).user_ip6[2]),
                read!((*self.ctx).user_ip6[3]),
            ],
        }
    }
    #[inline(always)]
    fn port(&self) -> Be16 {
        self.user_port()
    }
    #[inline(always)]
    fn set(&mut self, addr: Addr6, port: Be16) {
        write!((*self.ctx).user_ip6[0], addr.be[0]);
        write!((*self.ctx).user_ip6[1], addr.be[1]);
        write!((*self.ctx).user_ip6[2], addr.be[2]);
        write!((*self.ctx).user_ip6[3], addr.be[3]);
        self.set_user_port(port);
    }
}

/// Adds 1 to a word of a per-CPU value. The hook may be preempted, and another one, or a packet hook,
/// count in between on the same CPU.
#[inline(always)]
fn add_one(word: *mut u64) {
    // SAFETY: the caller's word is an aligned part of a map value, which stays while the program runs.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            word, 1,
        );
    }
}

#[inline(always)]
fn count(number: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(number) {
        // SAFETY: a map value of this CPU.
        add_one(unsafe { &raw mut (*slot).packets });
    }
}

/// Counts a call that fails with EPERM.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    count(reason as u32);
}

/// The maps of the loaded object, for hooks that run preemptible: counts are atomic, and there is no
/// scratch, which would be shared with a packet hook of the same CPU.
#[derive(Clone, Copy)]
pub(crate) struct PreemptibleKernel;

impl SocketTables for PreemptibleKernel {
    #[inline(always)]
    fn peer(&self, cookie: u64) -> Option<SocketPeer> {
        SOCKET_PEERS.get_ptr(SocketPeer::cell(cookie)).map(|peer| {
            // SAFETY: the verifier knows the pointer as a map value of this size, and every bit pattern
            // is a valid `SocketPeer`. Another socket may write it meanwhile: the caller compares the check.
            unsafe { core::ptr::read(peer) }
        })
    }
    #[inline(always)]
    fn set_peer(&self, cookie: u64, peer: &SocketPeer) {
        if let Some(cell) = SOCKET_PEERS.get_ptr_mut(SocketPeer::cell(cookie)) {
            // SAFETY: a map value of this size; who reads it half written sees a check that does not hold.
            unsafe { core::ptr::write(cell, *peer) }
        }
    }
    #[inline(always)]
    fn origin(&self, key: &SocketOriginKey) -> Option<SocketOrigin> {
        SOCKET_ORIGINS.get_ptr(key).map(|origin| {
            // SAFETY: the verifier knows the pointer as a map value of this size, and every bit pattern
            // is a valid `SocketOrigin`.
            unsafe { core::ptr::read(origin) }
        })
    }
    #[inline(always)]
    fn set_origin(&self, key: &SocketOriginKey, value: &SocketOrigin) {
        // Without memory the socket sees the backend's address, or keeps no backend.
        let _full = SOCKET_ORIGINS.insert(key, value, 0);
    }
}

/// Hands methods over to [`Kernel`].
macro_rules! as_kernel {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) $(-> $result:ty)?;)+) => {
        $(
            #[inline(always)]
            fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                <Kernel as Tables<F>>::$name(&Kernel $(, $arg)*)
            }
        )+
    };
}

impl<F: Ip + FamilyMaps + LookFunctions> Tables<F> for PreemptibleKernel {
    type Cells = <Kernel as Tables<F>>::Cells;
    type Scratch = <Kernel as Tables<F>>::Scratch;

    as_kernel! {
        fn may_be_ours(&self, transport: Transport, port: Be16) -> bool;
        fn is_snat_port(&self, port: Be16) -> bool;
        fn is_direct_port(&self, port: Be16) -> bool;
        fn note_direct_port(&self, port: Be16);
        fn flow(&self, original: &Tuple<F>) -> Option<Found<F, Self::Cells>>;
        fn flow_by(&self, derived: &Tuple<F>) -> Option<(Found<F, Self::Cells>, Derived)>;
        fn look(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg>;
        fn look_by(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg>;
        fn cells(&self, number: u32) -> Option<Self::Cells>;
        fn insert_flow(&self, words: &F::Words, stamp: u32) -> Room;
        fn change_flow(&self, original: &Tuple<F>, change: Change, stamp: u32) -> bool;
        fn delete_flow(&self, original: &Tuple<F>) -> bool;
        fn halve_flow(&self, original: &Tuple<F>) -> Insert;
        fn is_free(&self, words: &F::Words, stamp: u32, age: u32) -> bool;
        fn reserve(&self, tuple: &Tuple<F>, stamp: u32);
        fn is_reserved(&self, tuple: &Tuple<F>) -> bool;
        fn service(&self, key: &ServiceKey<F>) -> Option<Service>;
        fn backend(&self, id: u32) -> Option<Backend<F>>;
        fn selection_row(&self, row: u32) -> u32;
        fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity>;
        fn set_affinity(&self, key: &AffinityKey<F>, value: &Affinity);
        fn in_source_range(&self, service_id: u32, client: F::Addr) -> bool;
        fn fragment(&self, key: &FragmentKey<F>) -> Option<Fragment>;
        fn set_fragment(&self, key: &FragmentKey<F>, value: &Fragment);
        fn interface(&self, ifindex: u32) -> Option<Interface>;
        fn xdp_device(&self, ifindex: u32) -> Option<XdpDevice>;
        fn xdp_device_at(&self, slot: u8) -> Option<XdpDevice>;
        fn is_node_addr(&self, addr: F::Addr) -> bool;
        fn random(&self) -> u32;
        fn config(&self) -> Config;
        fn stamp(&self) -> u32;
        fn now_ns(&self) -> u64;
        fn event(&self, event: &Event);
    }
    #[inline(always)]
    fn scratch(&self) -> Option<Self::Scratch> {
        None
    }
    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter as u32);
    }
    /// A call is no packet.
    #[inline(always)]
    fn count_service_packet(&self, _service_id: u32, _bytes: u32) {}
    #[inline(always)]
    fn count_service_flow(&self, service_id: u32) {
        if let Some(slot) = SERVICE_STATS.get_ptr_mut(service_id) {
            // SAFETY: a map value of this CPU.
            add_one(unsafe { &raw mut (*slot).flows });
        }
    }
    /// A refused call costs nobody else anything.
    #[inline(always)]
    fn may_refuse(&self) -> bool {
        true
    }
}
