//! A call on a socket → the backend it is to reach; a name that the kernel reports → what was dialled.
//!
//! Packets of a translated socket carry the backend's address from the start, so nothing is rewritten
//! later. What the process sees is kept right by two maps: a backend's address is reported as the address
//! that was dialled, which a connected socket notes in `socket_peers` and an unconnected UDP socket in
//! `socket_origins`; the latter keeps its backend for each address there, too. Of two addresses that one socket
//! dialled and one backend serves, the last is reported.

use super::head::translated;
use super::ip::Ip;
use super::select::{self, Choice, Dial};
use super::tables::Tables;
use super::{affinity, service};
use crate::abi::{
    Addr4, Addr6, Be16, Counter, DropReason, ModeFlags, OriginKind, Service, ServiceFlags,
    ServiceKey, SocketOrigin, SocketOriginKey, SocketPeer, Transport,
};
use crate::family::{Address, Family, V4, V6};

/// A call that names an address: connect, sendmsg, recvmsg or getpeername.
pub trait SocketCall<F: Family> {
    /// IANA protocol number of the socket; 0 for one that is none.
    fn proto(&self) -> u8;
    /// The socket's number, never given twice while the kernel runs.
    fn cookie(&self) -> u64;
    /// The number of the socket's network namespace.
    fn netns_cookie(&self) -> u64;
    /// The address that the socket is bound to, or that the datagram asks for; all 0 when the route is
    /// to choose.
    fn saddr(&self) -> F::Addr;
    /// The address in the call.
    fn addr(&self) -> F::Addr;
    /// The port in the call.
    fn port(&self) -> Be16;
    /// Replaces address and port in the call.
    fn set(&mut self, addr: F::Addr, port: Be16);
}

/// What sockets remember, beside the maps of [`Tables`].
pub trait SocketTables {
    /// The cell of `socket_peers` that a socket shares with others.
    fn peer(&self, cookie: u64) -> Option<SocketPeer>;
    /// Writes it; whoever had it before is forgotten.
    fn set_peer(&self, cookie: u64, peer: &SocketPeer);
    /// An entry of `socket_origins`.
    fn origin(&self, key: &SocketOriginKey) -> Option<SocketOrigin>;
    /// Writes an entry of `socket_origins`; the least recently used makes room.
    fn set_origin(&self, key: &SocketOriginKey, value: &SocketOrigin);
}

/// What is to become of a call.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketVerdict {
    /// Not ours: the call goes on as it was made.
    Pass,
    /// The call goes on with another address.
    Translated,
    /// Nobody serves what was dialled: ECONNREFUSED (semantics 10.1, 11.1).
    Refuse,
}

/// The end of a call, or why it is to fail with EPERM.
pub type SocketOutcome = Result<SocketVerdict, DropReason>;

/// connect: translates the address that a TCP or UDP socket dials.
#[inline(always)]
pub fn connect<F, C, T>(call: &mut C, tables: &T) -> SocketOutcome
where
    F: Ip,
    C: SocketCall<F>,
    T: Tables<F> + SocketTables,
{
    let Some(transport) = translated(call.proto()) else {
        return Ok(SocketVerdict::Pass);
    };
    let (daddr, dport) = (call.addr(), call.port());
    let found = match find(tables, &daddr, dport, transport) {
        Some(found) => found,
        None => return Ok(SocketVerdict::Pass),
    };
    let cookie = call.cookie();
    let choice = match choose(call, tables, found, transport, cookie)? {
        Chosen::Backend(choice) => choice,
        Chosen::Verdict(verdict) => return Ok(verdict),
    };
    let back = way_back(&choice, cookie, transport);
    let origin = origin(&choice, &daddr, dport);
    tables.set_peer(cookie, &SocketPeer::sealed(&back, origin));
    call.set(choice.backend.addr, choice.backend.port);
    tables.count(Counter::SocketConnect);
    Ok(SocketVerdict::Translated)
}

/// connect on an IPv6 socket: an IPv4-mapped address is IPv4.
#[inline(always)]
pub fn connect6<C, T>(call: &mut C, tables: &T) -> SocketOutcome
where
    C: SocketCall<V6>,
    T: Tables<V4> + Tables<V6> + SocketTables,
{
    if is_mapped(&call.addr()) {
        connect::<V4, _, T>(&mut Mapped(call), tables)
    } else {
        connect::<V6, _, T>(call, tables)
    }
}

/// sendmsg that names its destination: translates one datagram. The socket keeps its backend for the
/// dialled address until that backend is gone or the address is another's (semantics 17.2, 17.3). IPv4-mapped addresses come to
/// the IPv4 hook: the kernel hands such a datagram over before it asks the IPv6 one.
#[inline(always)]
pub fn send<F, C, T>(call: &mut C, tables: &T) -> SocketOutcome
where
    F: Ip,
    C: SocketCall<F>,
    T: Tables<F> + SocketTables,
{
    if translated(call.proto()) != Some(Transport::Udp) {
        return Ok(SocketVerdict::Pass);
    }
    let (daddr, dport) = (call.addr(), call.port());
    if !may_be_ours(tables, &daddr, dport, Transport::Udp) {
        return Ok(SocketVerdict::Pass);
    }
    let cookie = call.cookie();
    let dialled = key::<F>(cookie, &daddr, dport, OriginKind::Dialled, Transport::Udp);
    let found = match lookup(tables, &daddr, dport, Transport::Udp) {
        Some(found) => found,
        None => return Ok(SocketVerdict::Pass),
    };
    // Whoever has an entry passed the check of its namespace when the entry was made. A frontend that is another
    // service port's by now has other backends (semantics 17.3).
    if let Found::Service(service) = &found
        && let Some(kept) = tables.origin(&dialled)
        && kept.service_id == service.id
        && let Some(backend) = tables.backend(kept.backend)
        && backend.service_id == kept.service_id
        && backend.generation() == kept.generation
    {
        call.set(backend.addr, backend.port);
        tables.count(Counter::SocketSend);
        return Ok(SocketVerdict::Translated);
    }
    let choice = match choose(call, tables, found, Transport::Udp, cookie)? {
        Chosen::Backend(choice) => choice,
        Chosen::Verdict(verdict) => return Ok(verdict),
    };
    // The way back first: no datagram leaves whose answer would show the backend's address.
    let back = way_back(&choice, cookie, Transport::Udp);
    let origin_back = origin(&choice, &daddr, dport);
    tables.set_origin(&back, &origin_back);
    if connected(tables, &back).is_some() {
        // It was connected to this backend before, by whatever frontend: what it dialled last is reported.
        tables.set_peer(cookie, &SocketPeer::sealed(&back, origin_back));
    }
    tables.set_origin(
        &dialled,
        &origin(&choice, &choice.backend.addr, choice.backend.port),
    );
    call.set(choice.backend.addr, choice.backend.port);
    tables.count(Counter::SocketSend);
    Ok(SocketVerdict::Translated)
}

/// recvmsg and getpeername: reports a backend as the address that this socket dialled.
#[inline(always)]
pub fn report<F, C, T>(call: &mut C, tables: &T)
where
    F: Ip,
    C: SocketCall<F>,
    T: Tables<F> + SocketTables,
{
    let Some(transport) = translated(call.proto()) else {
        return;
    };
    let key = key::<F>(
        call.cookie(),
        &call.addr(),
        call.port(),
        OriginKind::Backend,
        transport,
    );
    let found = match connected(tables, &key) {
        None if transport == Transport::Udp => tables.origin(&key),
        found => found,
    };
    if let Some(origin) = found {
        call.set(F::Addr::from_words(origin.addr.be), origin.port);
        tables.count(Counter::SocketReceive);
    }
}

/// recvmsg and getpeername on an IPv6 socket: an IPv4-mapped address is IPv4.
#[inline(always)]
pub fn report6<C, T>(call: &mut C, tables: &T)
where
    C: SocketCall<V6>,
    T: Tables<V4> + Tables<V6> + SocketTables,
{
    if is_mapped(&call.addr()) {
        report::<V4, _, T>(&mut Mapped(call), tables);
    } else {
        report::<V6, _, T>(call, tables);
    }
}

/// What a destination is.
enum Found {
    /// A frontend.
    Service(Service),
    /// A ClusterIP, at a port that no Service defines (semantics 11.1).
    Undefined,
}

/// The backend of a call, or how the call ends without one.
enum Chosen<F: Family> {
    Backend(Choice<F>),
    Verdict(SocketVerdict),
}

#[inline(always)]
fn may_be_ours<F: Ip, T: Tables<F>>(
    tables: &T,
    daddr: &F::Addr,
    dport: Be16,
    transport: Transport,
) -> bool {
    tables.may_be_ours(transport, dport) || F::in_cluster_range(&tables.config(), daddr)
}

#[inline(always)]
fn find<F: Ip, T: Tables<F>>(
    tables: &T,
    daddr: &F::Addr,
    dport: Be16,
    transport: Transport,
) -> Option<Found> {
    if !may_be_ours(tables, daddr, dport, transport) {
        return None;
    }
    lookup(tables, daddr, dport, transport)
}

#[inline(always)]
fn lookup<F: Ip, T: Tables<F>>(
    tables: &T,
    daddr: &F::Addr,
    dport: Be16,
    transport: Transport,
) -> Option<Found> {
    if let Some(service) = service::find(tables, &ServiceKey::new(*daddr, dport, transport.proto()))
    {
        return Some(Found::Service(service));
    }
    if !F::in_cluster_range(&tables.config(), daddr) {
        return None;
    }
    service::find(tables, &ServiceKey::new(*daddr, Be16 { be: 0 }, 0)).map(|_| Found::Undefined)
}

/// Decides whether the call is this node's to translate, and chooses a backend.
#[inline(always)]
fn choose<F, C, T>(
    call: &C,
    tables: &T,
    found: Found,
    transport: Transport,
    cookie: u64,
) -> Result<Chosen<F>, DropReason>
where
    F: Ip,
    C: SocketCall<F>,
    T: Tables<F>,
{
    let config = tables.config();
    let home = call.netns_cookie() == config.netns_cookie;
    let daddr = call.addr();
    if !home {
        // A pod's loopback is its own, and its UDP stays with the packet hooks, which follow a change
        // of endpoints.
        let ours = config.modes.contains(ModeFlags::SOCKET_ALL) && transport == Transport::Tcp;
        if !ours || is_loopback::<F>(&daddr) {
            return Ok(Chosen::Verdict(SocketVerdict::Pass));
        }
    }
    let bound = call.saddr();
    if is_loopback::<F>(&bound) {
        // From a loopback address no backend can be reached.
        return Ok(Chosen::Verdict(SocketVerdict::Pass));
    }
    let service = match found {
        Found::Service(service) => service,
        Found::Undefined => return Ok(Chosen::Verdict(refuse(tables))),
    };
    let restricted = service.has(ServiceFlags::SOURCE_RANGES);
    let mut saddr = bound;
    if bound.is_unspecified() {
        if !home && (restricted || service.affinity_secs != 0) {
            // Needs the pod's address, which only the packet hooks see.
            return Ok(Chosen::Verdict(SocketVerdict::Pass));
        }
        saddr = F::node_addr(&config);
    }
    if restricted && !tables.in_source_range(service.id, saddr) {
        return Err(DropReason::SourceRange);
    }
    let list = select::list(&service, true);
    if list.rows.len == 0 {
        if service.has(ServiceFlags::HAS_ENDPOINTS) {
            return Err(DropReason::NoLocalEndpoint);
        }
        return Ok(Chosen::Verdict(refuse(tables)));
    }
    let dial = Dial {
        saddr,
        daddr,
        sport: stand_in_port(cookie),
        dport: call.port(),
        transport,
        inside: true,
    };
    let choice = select::backend(tables, &service, &list, &dial).ok_or(DropReason::BackendGone)?;
    if service.affinity_secs != 0 {
        // A call is a connection at once (semantics 13.2); an entry that was there has been refreshed by the selection.
        affinity::remember(
            tables,
            &service,
            saddr,
            choice.id,
            choice.backend.generation(),
        );
    }
    tables.count_service_flow(service.id);
    Ok(Chosen::Backend(choice))
}

#[inline(always)]
fn refuse<F: Ip, T: Tables<F>>(tables: &T) -> SocketVerdict {
    tables.count(Counter::SocketRefused);
    SocketVerdict::Refuse
}

/// The source port is chosen after the hook. Without it all connections of this node to a frontend
/// would meet one backend, so bits of the socket's number stand in for it.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
fn stand_in_port(cookie: u64) -> Be16 {
    Be16 {
        be: (cookie ^ (cookie >> 16) ^ (cookie >> 32)) as u16,
    }
}

/// What a socket dialled when it was connected to the backend of this key.
#[inline(always)]
fn connected<T: SocketTables>(tables: &T, key: &SocketOriginKey) -> Option<SocketOrigin> {
    tables.peer(key.cookie)?.of(key)
}

/// The key of what the socket dialled: the backend's address, by which the kernel will name it.
#[inline(always)]
fn way_back<F: Family>(choice: &Choice<F>, cookie: u64, transport: Transport) -> SocketOriginKey {
    let backend = &choice.backend;
    key::<F>(
        cookie,
        &backend.addr,
        backend.port,
        OriginKind::Backend,
        transport,
    )
}

#[inline(always)]
fn key<F: Family>(
    cookie: u64,
    addr: &F::Addr,
    port: Be16,
    kind: OriginKind,
    transport: Transport,
) -> SocketOriginKey {
    let family = if F::IS_V6 { 6 } else { 4 };
    SocketOriginKey::new(cookie, wide(addr), port, kind, family, transport.proto())
}

#[inline(always)]
fn origin<F: Family>(choice: &Choice<F>, addr: &F::Addr, port: Be16) -> SocketOrigin {
    let backend = &choice.backend;
    SocketOrigin::new(
        wide(addr),
        port,
        choice.id,
        backend.generation(),
        backend.service_id,
    )
}

/// An address of either family; IPv4 in the first word.
#[inline(always)]
fn wide<A: Address>(addr: &A) -> Addr6 {
    Addr6 {
        be: [addr.word(0), addr.word(1), addr.word(2), addr.word(3)],
    }
}

#[inline(always)]
fn is_loopback<F: Family>(addr: &F::Addr) -> bool {
    if F::IS_V6 {
        (addr.word(0) | addr.word(1) | addr.word(2)) == 0 && addr.word(3) == 1u32.to_be()
    } else {
        u32::from_be(addr.word(0)) >> 24 == 127
    }
}

/// Third word of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
const MAPPED: u32 = 0xffffu32.to_be();

#[inline(always)]
fn is_mapped(addr: &Addr6) -> bool {
    (addr.be[0] | addr.be[1]) == 0 && addr.be[2] == MAPPED
}

/// A call on an IPv6 socket that names an IPv4-mapped address.
struct Mapped<'a, C>(&'a mut C);

impl<C: SocketCall<V6>> SocketCall<V4> for Mapped<'_, C> {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.0.proto()
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.0.cookie()
    }
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.0.netns_cookie()
    }
    #[inline(always)]
    fn saddr(&self) -> Addr4 {
        let saddr = self.0.saddr();
        if is_mapped(&saddr) {
            Addr4 { be: saddr.be[3] }
        } else {
            Addr4 { be: 0 }
        }
    }
    #[inline(always)]
    fn addr(&self) -> Addr4 {
        Addr4 {
            be: self.0.addr().be[3],
        }
    }
    #[inline(always)]
    fn port(&self) -> Be16 {
        self.0.port()
    }
    #[inline(always)]
    fn set(&mut self, addr: Addr4, port: Be16) {
        let mapped = Addr6 {
            be: [0, 0, MAPPED, addr.be],
        };
        self.0.set(mapped, port);
    }
}
