//! Socket calls over maps in memory: what is translated, what is remembered, what fails.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, BackendFlags, BackendState, Be16, Config,
    Counter, DropReason, Event, FlowFlags, Fragment, FragmentKey, FrontendKind, Interface,
    ModeFlags, SelectionList, Service, ServiceFlags, ServiceKey, SocketOrigin, SocketOriginKey,
    SocketPeer, Transport, XdpDevice, proto,
};
use lb_common::family::Address;
use lb_common::flow_table::{
    Change, Derived, Found, Insert, RecordCells, Room, TableFamily, Tuple,
};
use lb_common::pipeline::flow::Leg;
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::socket::{
    SocketCall, SocketOutcome, SocketTables, SocketVerdict, connect, connect6, report, report6,
    send,
};
use lb_common::pipeline::tables::Tables;
use lb_common::pipeline::work::Work;
use lb_common::{Family, V4, V6};

const HOME: u64 = 7;
const SERVICE: u32 = 5;
const VIP_PORT: u16 = 80;
const SECOND: u64 = 1_000_000_000;

/// An address of a family, by number.
trait Numbered: Ip {
    fn vip(number: u8) -> Self::Addr;
    fn pod(number: u8) -> Self::Addr;
    fn node() -> Self::Addr;
    fn loopback() -> Self::Addr;
    /// The maps of the family.
    fn maps(world: &World) -> &Maps<Self>;
}

impl Numbered for V4 {
    fn vip(number: u8) -> Addr4 {
        Ipv4Addr::new(10, 96, 0, number).into()
    }
    fn pod(number: u8) -> Addr4 {
        Ipv4Addr::new(10, 1, 0, number).into()
    }
    fn node() -> Addr4 {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }
    fn loopback() -> Addr4 {
        Ipv4Addr::LOCALHOST.into()
    }
    fn maps(world: &World) -> &Maps<V4> {
        &world.v4
    }
}

impl Numbered for V6 {
    fn vip(number: u8) -> Addr6 {
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number.into()).into()
    }
    fn pod(number: u8) -> Addr6 {
        Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number.into()).into()
    }
    fn node() -> Addr6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    }
    fn loopback() -> Addr6 {
        Ipv6Addr::LOCALHOST.into()
    }
    fn maps(world: &World) -> &Maps<V6> {
        &world.v6
    }
}

/// A map by equality: generic keys have no hash on their own.
struct Table<K, V>(RefCell<Vec<(K, V)>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table(RefCell::default())
    }
}

impl<K: Copy + PartialEq, V: Copy> Table<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let entries = self.0.borrow();
        let entry = entries.iter().find(|(other, _)| other == key);
        entry.map(|(_, value)| *value)
    }
    fn insert(&self, key: K, value: V) {
        let mut entries = self.0.borrow_mut();
        entries.retain(|(other, _)| *other != key);
        entries.push((key, value));
    }
}

#[derive(Default)]
struct Maps<F: Family> {
    services: Table<ServiceKey<F>, Service>,
    backends: RefCell<BTreeMap<u32, Backend<F>>>,
    affinity: Table<AffinityKey<F>, Affinity>,
    ranges: RefCell<Vec<(u32, F::Addr)>>,
}

#[derive(Default)]
struct World {
    v4: Maps<V4>,
    v6: Maps<V6>,
    rows: RefCell<Vec<u32>>,
    ports: RefCell<BTreeSet<(u8, u16)>>,
    peers: RefCell<HashMap<u32, SocketPeer>>,
    origins: RefCell<HashMap<SocketOriginKey, SocketOrigin>>,
    counts: RefCell<BTreeMap<u32, u32>>,
    flows: Cell<u32>,
    modes: Cell<ModeFlags>,
    now_ns: Cell<u64>,
}

impl World {
    fn count_of(&self, counter: Counter) -> u32 {
        *self.counts.borrow().get(&(counter as u32)).unwrap_or(&0)
    }

    /// Backend `id` at pod `id`, port 8000 + id.
    fn backend<F: Numbered>(&self, id: u32, generation: u32) {
        let number = u8::try_from(id).expect("fits");
        let state = BackendState::new(
            generation * BackendState::GENERATION_STEP,
            BackendFlags::IN_CLUSTER,
        );
        let port = Be16::from_host(8000 + u16::from(number));
        F::maps(self)
            .backends
            .borrow_mut()
            .insert(id, Backend::new(F::pod(number), port, 0, state, SERVICE));
    }

    /// Rows of a table.
    fn list(&self, ids: &[u32]) -> SelectionList {
        let mut rows = self.rows.borrow_mut();
        let offset = u32::try_from(rows.len()).expect("fits");
        rows.extend_from_slice(ids);
        SelectionList {
            offset,
            len: u32::try_from(ids.len()).expect("fits"),
        }
    }

    /// A frontend for TCP and UDP, after `change`.
    fn frontend<F: Numbered>(&self, addr: F::Addr, ids: &[u32], change: impl Fn(&mut Service)) {
        let list = self.list(ids);
        let mut service = Service::default();
        service.id = SERVICE;
        service.cluster = list;
        service.local = list;
        service.kind = FrontendKind::ClusterIp as u8;
        service.flags = ServiceFlags::HAS_ENDPOINTS;
        change(&mut service);
        for proto in [proto::TCP, proto::UDP] {
            let key = ServiceKey::<F>::new(addr, Be16::from_host(VIP_PORT), proto);
            let sealed = service.sealed(&key);
            F::maps(self).services.insert(key, sealed);
            self.ports.borrow_mut().insert((proto, VIP_PORT));
        }
    }

    /// A ClusterIP with backends 1 to 4.
    fn with_service<F: Numbered>(change: impl Fn(&mut Service)) -> World {
        let world = World::default();
        for id in 1..=4 {
            world.backend::<F>(id, 1);
        }
        let ids: Vec<u32> = (0..400).map(|row| 1 + row % 4).collect();
        world.frontend::<F>(F::vip(1), &ids, change);
        world
    }
}

#[derive(Clone, Copy)]
struct NoRecord;

impl<F: TableFamily> RecordCells<F> for NoRecord {
    fn load(self, _: usize) -> u64 {
        0
    }
    fn store(self, _: usize, _: u64) {}
    fn add_flags(self, _: FlowFlags) {}
    fn remove_flags(self, _: FlowFlags) {}
    fn set_sequence(self, _: usize, _: u16) {}
    fn set_stamp(self, _: u32) {}
}

impl SocketTables for World {
    fn peer(&self, cookie: u64) -> Option<SocketPeer> {
        self.peers.borrow().get(&SocketPeer::cell(cookie)).copied()
    }
    fn set_peer(&self, cookie: u64, peer: &SocketPeer) {
        self.peers
            .borrow_mut()
            .insert(SocketPeer::cell(cookie), *peer);
    }
    fn origin(&self, key: &SocketOriginKey) -> Option<SocketOrigin> {
        self.origins.borrow().get(key).copied()
    }
    fn set_origin(&self, key: &SocketOriginKey, value: &SocketOrigin) {
        self.origins.borrow_mut().insert(*key, *value);
    }
}

/// A socket call touches nothing that belongs to packets.
impl<F: Numbered> Tables<F> for World {
    type Cells = NoRecord;
    type Scratch = Box<Work<F>>;

    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool {
        let ports = self.ports.borrow();
        ports.contains(&(transport.proto(), port.to_host()))
    }
    fn is_direct_port(&self, _: Be16) -> bool {
        unreachable!("packets only")
    }
    fn note_direct_port(&self, _: Be16) {
        unreachable!("packets only")
    }
    fn is_snat_port(&self, _: Be16) -> bool {
        unreachable!("packets only")
    }
    fn flow(&self, _: &Tuple<F>) -> Option<Found<F, NoRecord>> {
        unreachable!("packets only")
    }
    fn flow_by(&self, _: &Tuple<F>) -> Option<(Found<F, NoRecord>, Derived)> {
        unreachable!("packets only")
    }
    fn look(&self, _: &Tuple<F>, _: &mut Work<F>) -> Option<Leg> {
        unreachable!("packets only")
    }
    fn look_by(&self, _: &Tuple<F>, _: &mut Work<F>) -> Option<Leg> {
        unreachable!("packets only")
    }
    fn cells(&self, _: u32) -> Option<NoRecord> {
        unreachable!("packets only")
    }
    fn insert_flow(&self, _: &F::Words, _: u32) -> Room {
        unreachable!("packets only")
    }
    fn change_flow(&self, _: &Tuple<F>, _: Change, _: u32) -> bool {
        unreachable!("packets only")
    }
    fn delete_flow(&self, _: &Tuple<F>) -> bool {
        unreachable!("packets only")
    }
    fn halve_flow(&self, _: &Tuple<F>) -> Insert {
        unreachable!("packets only")
    }
    fn is_free(&self, _: &F::Words, _: u32, _: u32) -> bool {
        unreachable!("packets only")
    }
    fn reserve(&self, _: &Tuple<F>, _: u32) {
        unreachable!("packets only")
    }
    fn is_reserved(&self, _: &Tuple<F>) -> bool {
        unreachable!("packets only")
    }
    fn xdp_device_at(&self, _: u8) -> Option<XdpDevice> {
        unreachable!("packets only")
    }
    fn is_node_addr(&self, _: F::Addr) -> bool {
        unreachable!("packets only")
    }
    fn random(&self) -> u32 {
        unreachable!("packets only")
    }
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        F::maps(self).services.get(key)
    }
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        F::maps(self).backends.borrow().get(&id).copied()
    }
    fn selection_row(&self, row: u32) -> u32 {
        *self.rows.borrow().get(row as usize).unwrap_or(&0)
    }
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        F::maps(self).affinity.get(key)
    }
    fn set_affinity(&self, key: &AffinityKey<F>, value: &Affinity) {
        F::maps(self).affinity.insert(*key, *value);
    }
    fn in_source_range(&self, service_id: u32, client: F::Addr) -> bool {
        F::maps(self)
            .ranges
            .borrow()
            .contains(&(service_id, client))
    }
    fn fragment(&self, _: &FragmentKey<F>) -> Option<Fragment> {
        unreachable!("packets only")
    }
    fn set_fragment(&self, _: &FragmentKey<F>, _: &Fragment) {
        unreachable!("packets only")
    }
    fn interface(&self, _: u32) -> Option<Interface> {
        unreachable!("packets only")
    }
    fn xdp_device(&self, _: u32) -> Option<XdpDevice> {
        unreachable!("packets only")
    }
    fn config(&self) -> Config {
        Config {
            node_v4: V4::node(),
            node_v6: V6::node(),
            cluster_net_v4: V4::vip(0),
            cluster_mask_v4: Ipv4Addr::new(255, 255, 255, 0).into(),
            cluster_net_v6: V6::vip(0),
            cluster_mask_v6: Ipv6Addr::new(0xffff, 0, 0, 0, 0, 0, 0, 0).into(),
            modes: self.modes.get(),
            netns_cookie: HOME,
            ..Config::default()
        }
    }
    fn scratch(&self) -> Option<Box<Work<F>>> {
        unreachable!("packets only")
    }
    fn stamp(&self) -> u32 {
        unreachable!("packets only")
    }
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn count(&self, counter: Counter) {
        *self.counts.borrow_mut().entry(counter as u32).or_default() += 1;
    }
    fn count_service_packet(&self, _: u32, _: u32) {
        unreachable!("packets only")
    }
    fn count_service_flow(&self, service_id: u32) {
        assert_eq!(service_id, SERVICE);
        self.flows.set(self.flows.get() + 1);
    }
    fn event(&self, _: &Event) {}
    fn may_refuse(&self) -> bool {
        unreachable!("packets only")
    }
}

/// A socket and the address in its call.
#[derive(Clone, Copy)]
struct Call<F: Family> {
    proto: u8,
    cookie: u64,
    netns: u64,
    saddr: F::Addr,
    addr: F::Addr,
    port: u16,
}

impl<F: Numbered> Call<F> {
    fn to(addr: F::Addr, proto: u8, cookie: u64) -> Self {
        Call {
            proto,
            cookie,
            netns: HOME,
            saddr: F::Addr::default(),
            addr,
            port: VIP_PORT,
        }
    }
    fn named(&self) -> (F::Addr, u16) {
        (self.addr, self.port)
    }
}

impl<F: Family> SocketCall<F> for Call<F> {
    fn proto(&self) -> u8 {
        self.proto
    }
    fn cookie(&self) -> u64 {
        self.cookie
    }
    fn netns_cookie(&self) -> u64 {
        self.netns
    }
    fn saddr(&self) -> F::Addr {
        self.saddr
    }
    fn addr(&self) -> F::Addr {
        self.addr
    }
    fn port(&self) -> Be16 {
        Be16::from_host(self.port)
    }
    fn set(&mut self, addr: F::Addr, port: Be16) {
        self.addr = addr;
        self.port = port.to_host();
    }
}

const TRANSLATED: SocketOutcome = Ok(SocketVerdict::Translated);
const PASS: SocketOutcome = Ok(SocketVerdict::Pass);
const REFUSE: SocketOutcome = Ok(SocketVerdict::Refuse);

fn dial<F: Numbered>(world: &World, call: &mut Call<F>) -> SocketOutcome {
    connect::<F, _, _>(call, world)
}

/// Runs a test of both families.
macro_rules! both_families {
    ($($name:ident => $test:ident;)+) => { $(
        #[test]
        fn $name() {
            $test::<V4>();
            $test::<V6>();
        }
    )+ };
}

both_families! {
    a_connect_to_a_service_reaches_a_backend_and_shows_the_service => connect_and_show;
    a_socket_sees_its_backend_once_a_later_one_took_its_cell => shared_cell;
    of_two_services_of_one_backend_the_last_is_shown => last_dialled;
    sockets_spread_over_all_backends => spread;
    what_is_no_service_is_left_alone => not_ours;
    an_unconnected_socket_keeps_its_backend_until_it_is_gone => keep;
    a_service_without_endpoints_refuses => no_endpoints;
    an_undefined_port_of_a_cluster_ip_refuses => undefined_port;
    a_local_policy_without_local_endpoint_denies_internal_traffic_only => local_policy;
    source_ranges_go_by_the_bound_or_the_node_s_address => source_ranges;
    a_socket_of_another_namespace_is_left_alone => other_namespace;
    a_socket_bound_to_loopback_is_left_alone => bound_to_loopback;
    affinity_is_written_at_connect_and_runs_out => affinity;
}

fn connect_and_show<F: Numbered>() {
    for proto in [proto::TCP, proto::UDP] {
        let world = World::with_service::<F>(|_| ());
        let mut call = Call::<F>::to(F::vip(1), proto, 1);
        assert_eq!(dial(&world, &mut call), TRANSLATED);
        let (addr, port) = call.named();
        assert!((1..=4u8).any(|n| (addr, port) == (F::pod(n), 8000 + u16::from(n))));
        assert_eq!(world.count_of(Counter::SocketConnect), 1);
        assert_eq!(world.flows.get(), 1);

        let backend = call;
        report::<F, _, _>(&mut call, &world);
        assert_eq!(call.named(), (F::vip(1), VIP_PORT));
        assert_eq!(world.count_of(Counter::SocketReceive), 1);
        // Another socket that talks to the same backend sees the backend.
        let mut other = Call {
            cookie: 2,
            ..backend
        };
        report::<F, _, _>(&mut other, &world);
        assert_eq!(other.named(), backend.named());
        assert_eq!(world.count_of(Counter::SocketReceive), 1);
    }
}

fn shared_cell<F: Numbered>() {
    for proto in [proto::TCP, proto::UDP] {
        let world = World::with_service::<F>(|_| ());
        let connected = |cookie| {
            let mut call = Call::<F>::to(F::vip(1), proto, cookie);
            assert_eq!(dial(&world, &mut call), TRANSLATED);
            call
        };
        let shown = |mut call: Call<F>| {
            report::<F, _, _>(&mut call, &world);
            call.named()
        };
        let cells = u64::from(SocketPeer::CELLS);
        let (first, beside, last) = (connected(1), connected(2), connected(1 + cells));
        assert_eq!(shown(first), first.named());
        assert_eq!(shown(beside), (F::vip(1), VIP_PORT));
        assert_eq!(shown(last), (F::vip(1), VIP_PORT));
        // Nor does a socket of that cell which dialled the backend itself see the Service.
        let direct = Call {
            cookie: 1 + 2 * cells,
            ..last
        };
        assert_eq!(shown(direct), last.named());
    }
}

fn last_dialled<F: Numbered>() {
    let world = World::with_service::<F>(|_| ());
    for vip in [1, 2] {
        world.frontend::<F>(F::vip(vip), &[1], |_| ());
    }
    let backend = Call {
        port: 8001,
        ..Call::<F>::to(F::pod(1), proto::UDP, 1)
    };
    for (outcome, vip) in [
        (
            connect::<F, _, _> as fn(&mut Call<F>, &World) -> SocketOutcome,
            1,
        ),
        (send::<F, _, _>, 2),
        (connect::<F, _, _>, 1),
    ] {
        let mut call = Call::<F>::to(F::vip(vip), proto::UDP, 1);
        assert_eq!(outcome(&mut call, &world), TRANSLATED);
        assert_eq!(call.named(), backend.named());
        report::<F, _, _>(&mut call, &world);
        assert_eq!(call.named(), (F::vip(vip), VIP_PORT));
    }
}

fn spread<F: Numbered>() {
    let world = World::with_service::<F>(|_| ());
    // So many take Miri minutes, and fewer spread less evenly.
    let (sockets, even) = if cfg!(miri) {
        (200, 25..=75)
    } else {
        (4000, 900..=1100)
    };
    let mut met = BTreeMap::new();
    for cookie in 0..sockets {
        let mut call = Call::<F>::to(F::vip(1), proto::TCP, cookie);
        assert_eq!(dial(&world, &mut call), TRANSLATED);
        *met.entry(call.port).or_insert(0) += 1;
    }
    assert_eq!(met.len(), 4, "{met:?}");
    for (port, times) in met {
        assert!(even.contains(&times), "{port}: {times}");
    }
}

fn not_ours<F: Numbered>() {
    let world = World::with_service::<F>(|_| ());
    let calls = [
        Call::<F>::to(F::pod(200), proto::TCP, 1),
        Call::to(F::vip(1), proto::ICMP, 1),
        Call::to(F::vip(1), proto::SCTP, 1),
        Call::to(F::vip(9), proto::TCP, 1),
        Call {
            port: 443,
            ..Call::to(F::vip(1), proto::UDP, 1)
        },
    ];
    for call in calls {
        for outcome in [connect::<F, _, _>, send::<F, _, _>] {
            let mut after = call;
            assert_eq!(outcome(&mut after, &world), PASS);
            assert_eq!(after.named(), call.named());
        }
    }
    assert!(world.peers.borrow().is_empty());
    assert!(world.origins.borrow().is_empty());
    assert!(world.counts.borrow().is_empty());
}

fn keep<F: Numbered>() {
    // semantics 17.2, 17.4
    let world = World::with_service::<F>(|_| ());
    let again = || {
        let mut call = Call::<F>::to(F::vip(1), proto::UDP, 1);
        let outcome = send::<F, _, _>(&mut call, &world);
        (outcome, call)
    };
    let (outcome, mut first) = again();
    assert_eq!(outcome, TRANSLATED);
    let id = u32::from(first.port - 8000);
    // It leaves the list, and stays the socket's.
    let others: Vec<u32> = (1..=4).filter(|other| *other != id).collect();
    world.frontend::<F>(F::vip(1), &others, |_| ());
    for _ in 0..5 {
        let (outcome, call) = again();
        assert_eq!((outcome, call.named()), (TRANSLATED, first.named()));
    }
    assert_eq!(world.flows.get(), 1, "a datagram is no new flow");
    assert_eq!(world.count_of(Counter::SocketSend), 6);
    // It serves no more.
    world.backend::<F>(id, 2);
    let (outcome, mut second) = again();
    assert_eq!(outcome, TRANSLATED);
    assert_ne!(second.port, first.port);
    assert_eq!(world.flows.get(), 2);
    // Late answers of the first are still shown as the Service's.
    for answer in [&mut first, &mut second] {
        report::<F, _, _>(answer, &world);
        assert_eq!(answer.named(), (F::vip(1), VIP_PORT));
    }
    // Nobody is left.
    for id in others {
        world.backend::<F>(id, 2);
    }
    world.frontend::<F>(F::vip(1), &[], |service| service.flags = ServiceFlags::NONE);
    assert_eq!(again().0, REFUSE);
}

fn no_endpoints<F: Numbered>() {
    // semantics 10.1
    let world = World::default();
    world.frontend::<F>(F::vip(1), &[], |service| service.flags = ServiceFlags::NONE);
    for proto in [proto::TCP, proto::UDP] {
        let mut call = Call::<F>::to(F::vip(1), proto, 1);
        assert_eq!(dial(&world, &mut call), REFUSE);
    }
    let mut call = Call::<F>::to(F::vip(1), proto::UDP, 1);
    assert_eq!(send::<F, _, _>(&mut call, &world), REFUSE);
    assert_eq!(world.count_of(Counter::SocketRefused), 3);
}

fn undefined_port<F: Numbered>() {
    // semantics 11.1, 11.4
    let world = World::with_service::<F>(|_| ());
    for addr in [F::vip(1), F::pod(9)] {
        let key = ServiceKey::<F>::new(addr, Be16 { be: 0 }, 0);
        let mut service = Service::default();
        service.kind = FrontendKind::ClusterIp as u8;
        service.flags = ServiceFlags::ADDRESS_ONLY;
        let sealed = service.sealed(&key);
        F::maps(&world).services.insert(key, sealed);
    }
    let at = |addr, netns| {
        let mut call = Call {
            port: 4000,
            netns,
            ..Call::<F>::to(addr, proto::TCP, 1)
        };
        dial(&world, &mut call)
    };
    assert_eq!(at(F::vip(1), HOME), REFUSE);
    assert_eq!(at(F::vip(1), HOME + 1), PASS);
    // Outside the ClusterIP range no address is looked at.
    assert_eq!(at(F::pod(9), HOME), PASS);
}

fn local_policy<F: Numbered>() {
    // semantics 8.2, 8.6, 10.2, 10.3
    let internal = World::with_service::<F>(|service| {
        service.local = SelectionList::default();
        service.flags |= ServiceFlags::INTERNAL_LOCAL;
    });
    let mut call = Call::<F>::to(F::vip(1), proto::TCP, 1);
    assert_eq!(dial(&internal, &mut call), Err(DropReason::NoLocalEndpoint));
    for kind in [
        FrontendKind::NodePort,
        FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer,
    ] {
        let external = World::with_service::<F>(|service| {
            service.local = SelectionList::default();
            service.kind = kind as u8;
            service.flags |= ServiceFlags::EXTERNAL_LOCAL;
        });
        let mut call = Call::<F>::to(F::vip(1), proto::TCP, 1);
        assert_eq!(dial(&external, &mut call), TRANSLATED);
    }
}

fn source_ranges<F: Numbered>() {
    // semantics 12.3, 12.9
    let world = World::with_service::<F>(|service| {
        service.kind = FrontendKind::LoadBalancer as u8;
        service.flags |= ServiceFlags::SOURCE_RANGES;
    });
    let from = |saddr| {
        let mut call = Call {
            saddr,
            ..Call::<F>::to(F::vip(1), proto::TCP, 1)
        };
        dial(&world, &mut call)
    };
    let unbound = F::Addr::default();
    assert_eq!(from(unbound), Err(DropReason::SourceRange));
    F::maps(&world)
        .ranges
        .borrow_mut()
        .push((SERVICE, F::node()));
    assert_eq!(from(unbound), TRANSLATED);
    assert_eq!(from(F::pod(77)), Err(DropReason::SourceRange));
}

fn other_namespace<F: Numbered>() {
    let world = World::with_service::<F>(|_| ());
    let from = |proto, addr| {
        let mut call = Call {
            netns: HOME + 1,
            ..Call::<F>::to(addr, proto, 1)
        };
        dial(&world, &mut call)
    };
    assert_eq!(from(proto::TCP, F::vip(1)), PASS);
    world.modes.set(ModeFlags::SOCKET_ALL);
    assert_eq!(from(proto::TCP, F::vip(1)), TRANSLATED);
    // The packet hooks follow a change of endpoints for UDP.
    assert_eq!(from(proto::UDP, F::vip(1)), PASS);
    // Its loopback is its own.
    world.frontend::<F>(F::loopback(), &[1], |service| {
        service.kind = FrontendKind::NodePort as u8;
    });
    assert_eq!(from(proto::TCP, F::loopback()), PASS);
    let mut home = Call::<F>::to(F::loopback(), proto::TCP, 1);
    assert_eq!(dial(&world, &mut home), TRANSLATED);
    // Its address is not known before the route is chosen.
    for change in [
        (|service: &mut Service| service.affinity_secs = 60) as fn(&mut Service),
        |service: &mut Service| service.flags |= ServiceFlags::SOURCE_RANGES,
    ] {
        world.frontend::<F>(F::vip(1), &[1], change);
        assert_eq!(from(proto::TCP, F::vip(1)), PASS);
    }
}

fn bound_to_loopback<F: Numbered>() {
    let world = World::with_service::<F>(|_| ());
    let call = Call {
        saddr: F::loopback(),
        ..Call::<F>::to(F::vip(1), proto::UDP, 1)
    };
    for outcome in [connect::<F, _, _>, send::<F, _, _>] {
        assert_eq!(outcome(&mut call.clone(), &world), PASS);
    }
}

fn affinity<F: Numbered>() {
    // semantics 13.1, 13.2, 13.5, 13.8
    let world = World::with_service::<F>(|service| service.affinity_secs = 10);
    let ask = |cookie| {
        let mut call = Call::<F>::to(F::vip(1), proto::TCP, cookie);
        assert_eq!(dial(&world, &mut call), TRANSLATED);
        call.port
    };
    let first = ask(1);
    for cookie in 2..50 {
        world.now_ns.set(world.now_ns.get() + 9 * SECOND);
        assert_eq!(ask(cookie), first);
    }
    assert_eq!(world.count_of(Counter::AffinityHit), 48);
    // Others join: the client stays. Nobody dials for longer than the time: it is spread again.
    world.frontend::<F>(F::vip(1), &[1, 2, 3, 4, 4], |service| {
        service.affinity_secs = 10;
    });
    assert_eq!(ask(50), first);
    let mut met = BTreeSet::new();
    for cookie in 51..100 {
        world.now_ns.set(world.now_ns.get() + 11 * SECOND);
        met.insert(ask(cookie));
    }
    assert!(met.len() > 1, "{met:?}");
}

#[test]
fn an_ipv4_mapped_address_is_ipv4() {
    let world = World::with_service::<V4>(|_| ());
    let mapped = |addr: Addr4| Addr6 {
        be: [0, 0, 0xffffu32.to_be(), addr.word(0)],
    };
    let mut call = Call::<V6>::to(mapped(V4::vip(1)), proto::TCP, 1);
    assert_eq!(connect6(&mut call, &world), TRANSLATED);
    let number = u8::try_from(call.port - 8000).expect("fits");
    assert_eq!(call.addr, mapped(V4::pod(number)));
    report6(&mut call, &world);
    assert_eq!(call.named(), (mapped(V4::vip(1)), VIP_PORT));
    // Bound to a mapped loopback address.
    let mut bound = Call {
        saddr: mapped(V4::loopback()),
        ..Call::<V6>::to(mapped(V4::vip(1)), proto::TCP, 1)
    };
    assert_eq!(connect6(&mut bound, &world), PASS);
    // An answer to a datagram that the IPv4 hook translated comes to the IPv6 one.
    let mut datagram = Call::<V4>::to(V4::vip(1), proto::UDP, 3);
    assert_eq!(send::<V4, _, _>(&mut datagram, &world), TRANSLATED);
    let mut answer = Call::<V6>::to(mapped(datagram.addr), proto::UDP, 3);
    answer.port = datagram.port;
    report6(&mut answer, &world);
    assert_eq!(answer.named(), (mapped(V4::vip(1)), VIP_PORT));
}

#[test]
fn a_stale_service_element_is_not_believed() {
    let world = World::with_service::<V4>(|_| ());
    for (_, service) in world.v4.services.0.borrow_mut().iter_mut() {
        service.check ^= 1;
    }
    let mut call = Call::<V4>::to(V4::vip(1), proto::TCP, 1);
    assert_eq!(dial(&world, &mut call), PASS);
    assert_eq!(world.count_of(Counter::StaleElement), 1);
}
