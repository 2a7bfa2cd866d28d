//! What every build of the pipeline must do with packets, as cases that know neither build: each puts a
//! state into a [`World`], sends packets through its hooks and compares the results byte by byte.
//!
//! Traffic of both families goes between the [`Hosts`]; a service port's table has one row for each of
//! its backends, so that one with a single backend leaves no choice.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    Backend, BackendState, Be16, Config, Counter, DropReason, Flow, FlowFlags, FlowKey,
    FrontendKind, Interface, InterfaceRole, MacAddr, ModeFlags, SelectionList, Service,
    ServiceFlags, ServiceKey, Side, XdpDevice,
};
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};

use crate::packet::{
    ACK, Checksum, DESTINATION, DESTINATION_MAC, FIN, PacketBuilder, Parsed, RST, SOURCE_MAC, SYN,
    TCP, UDP,
};

/// The external interface.
pub const EXTERNAL: u32 = 2;
/// A pod interface.
pub const POD: u32 = 3;
/// The external interface's own link-layer address.
pub const OWN_MAC: [u8; 6] = DESTINATION_MAC;
/// The next hop's.
pub const NEXT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

/// A hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// XDP at the external interface.
    Xdp,
    /// tc ingress of the external interface.
    External,
    /// tc ingress of the pod interface.
    Pod,
    /// tc egress of any interface.
    Out,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The stack gets it, changed or not.
    Pass,
    /// XDP sends it by this interface.
    Transmit(u32),
    /// It goes back by the interface it came from.
    Reflect,
    /// It is gone; a counter says why.
    Drop,
}

/// The maps of one family.
pub trait Store<F: Ip> {
    /// Writes a frontend.
    fn put_service(&mut self, key: ServiceKey<F>, service: Service);
    /// Removes a frontend.
    fn remove_service(&mut self, key: ServiceKey<F>);
    /// Writes a backend.
    fn put_backend(&mut self, id: u32, backend: Backend<F>);
    /// Puts one address into the source ranges of a service port.
    fn allow_source(&mut self, service_id: u32, client: F::Addr);
    /// Elements of `flows_*`.
    fn flows(&mut self) -> Vec<(FlowKey<F>, Flow<F>)>;
    /// Elements of `openings_*`.
    fn openings(&mut self) -> Vec<(FlowKey<F>, Flow<F>)>;
    /// Writes an element of `openings_*`.
    fn put_opening(&mut self, key: FlowKey<F>, flow: Flow<F>);
    /// Makes the kernel know a next hop.
    fn put_route(&mut self, daddr: F::Addr, hop: NextHop);
}

/// A node's maps and programs, empty at first.
pub trait World: Store<V4> + Store<V6> {
    /// Sends a packet through a hook and all its stages; gives what left it.
    fn run(&mut self, at: At, ifindex: u32, packet: &[u8]) -> (Verdict, Vec<u8>);
    /// A [`Counter`] or [`DropReason`] by number.
    fn counter(&mut self, number: u32) -> u64;
    /// Writes the configuration.
    fn put_config(&mut self, config: Config);
    /// Writes rows of the selection slab.
    fn put_rows(&mut self, offset: u32, rows: &[u32]);
    /// Sets a bit of `port_filter`.
    fn open_port(&mut self, proto: u8, port: u16);
    /// Writes an interface.
    fn put_interface(&mut self, ifindex: u32, interface: Interface);
    /// Lets XDP transmit by an interface.
    fn put_device(&mut self, device: XdpDevice);
}

/// Who talks, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Hosts {
    /// A client outside the cluster.
    pub client: IpAddr,
    /// A router between client and node, or node and backend.
    pub router: IpAddr,
    /// This node.
    pub node: IpAddr,
    /// A ClusterIP.
    pub vip: IpAddr,
    /// Another ClusterIP.
    pub vip2: IpAddr,
    /// A load balancer's address.
    pub external: IpAddr,
    /// A pod of this node.
    pub pod: IpAddr,
    /// Another pod of this node.
    pub pod2: IpAddr,
    /// A pod of another node.
    pub remote: IpAddr,
    /// Another pod of another node.
    pub remote2: IpAddr,
}

/// A family with addresses.
pub trait Net: Ip {
    /// The hosts of this family.
    fn hosts() -> Hosts;
    /// An address as the maps hold it.
    fn addr(addr: IpAddr) -> Self::Addr;
}

fn ip(text: &str) -> IpAddr {
    match text.parse() {
        Ok(addr) => addr,
        Err(error) => panic!("{text}: {error}"),
    }
}

impl Net for V4 {
    fn hosts() -> Hosts {
        Hosts {
            client: ip("198.51.100.7"),
            router: ip("198.51.100.1"),
            node: ip("192.0.2.1"),
            vip: ip("10.96.0.10"),
            vip2: ip("10.96.0.11"),
            external: ip("203.0.113.5"),
            pod: ip("10.244.1.5"),
            pod2: ip("10.244.1.6"),
            remote: ip("10.244.2.7"),
            remote2: ip("10.244.2.8"),
        }
    }
    fn addr(addr: IpAddr) -> Self::Addr {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => panic!("{addr} in an IPv4 case"),
        }
    }
}

impl Net for V6 {
    fn hosts() -> Hosts {
        Hosts {
            client: ip("2001:db8:100::7"),
            router: ip("2001:db8:100::1"),
            node: ip("2001:db8:2::1"),
            vip: ip("fd00:10:96::10"),
            vip2: ip("fd00:10:96::11"),
            external: ip("2001:db8:113::5"),
            pod: ip("fd00:10:244:1::5"),
            pod2: ip("fd00:10:244:1::6"),
            remote: ip("fd00:10:244:2::7"),
            remote2: ip("fd00:10:244:2::8"),
        }
    }
    fn addr(addr: IpAddr) -> Self::Addr {
        match addr {
            IpAddr::V6(addr) => addr.into(),
            IpAddr::V4(addr) => panic!("{addr} in an IPv6 case"),
        }
    }
}

/// A packet of TCP (mid-stream) or UDP.
pub fn packet(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    let builder = if proto == TCP {
        PacketBuilder::tcp(source, destination)
    } else {
        PacketBuilder::udp(source, destination)
    };
    builder.payload(b"some payload")
}

/// The first packet of a connection.
pub fn first(proto: u8, source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    if proto == TCP {
        PacketBuilder::tcp(source, destination)
            .flags(SYN)
            .numbers(1000, 0)
    } else {
        packet(proto, source, destination)
    }
}

/// Address and port.
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// An endpoint as a case puts it.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// [`BackendState`] flags.
    pub state: u32,
}

/// On this node.
pub fn local(ip: IpAddr, port: u16) -> Endpoint {
    Endpoint {
        addr: at(ip, port),
        state: BackendState::LOCAL | BackendState::IN_LOCAL | BackendState::IN_CLUSTER,
    }
}

/// On another node.
pub fn remote(ip: IpAddr, port: u16) -> Endpoint {
    Endpoint {
        addr: at(ip, port),
        state: BackendState::IN_CLUSTER,
    }
}

/// A service port that was put.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its frontend.
    pub service: Service,
    /// Its backends, in the order of the endpoints.
    pub ids: Vec<u32>,
}

/// A world with a configured node in it.
pub struct Scene<'a, F: Net, W: World + Store<F>> {
    /// The world.
    pub world: &'a mut W,
    /// Its hosts.
    pub h: Hosts,
    /// Its configuration.
    pub config: Config,
    /// The interface that packets leave by.
    pub exit: u32,
    next_id: u32,
    next_service: u32,
    next_row: u32,
    family: std::marker::PhantomData<F>,
}

impl<'a, F: Net, W: World + Store<F>> Scene<'a, F, W> {
    /// Configures the node.
    pub fn new(world: &'a mut W) -> Self {
        let (four, six) = (V4::hosts(), V6::hosts());
        let config = Config {
            node_v4: V4::addr(four.node),
            node_v6: V6::addr(six.node),
            cluster_net_v4: V4::addr(ip("10.96.0.0")),
            cluster_mask_v4: V4::addr(ip("255.255.0.0")),
            cluster_net_v6: V6::addr(ip("fd00:10:96::")),
            cluster_mask_v6: V6::addr(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")),
            snat_port_min: 20_000,
            snat_port_max: 29_999,
            ..Config::default()
        };
        world.put_config(config);
        world.put_interface(
            EXTERNAL,
            Interface {
                mtu: 1500,
                mac: MacAddr::new(OWN_MAC),
                role: InterfaceRole::External as u8,
                ..Interface::default()
            },
        );
        world.put_interface(
            POD,
            Interface {
                mtu: 1500,
                role: InterfaceRole::Pod as u8,
                ..Interface::default()
            },
        );
        world.put_device(XdpDevice::new(EXTERNAL, 1500, MacAddr::new(OWN_MAC)));
        Scene {
            world,
            h: F::hosts(),
            config,
            exit: EXTERNAL,
            next_id: 1,
            next_service: 1,
            next_row: 1,
            family: std::marker::PhantomData,
        }
    }

    /// Changes the modes.
    pub fn modes(&mut self, modes: u32) {
        self.config.modes = modes;
        self.world.put_config(self.config);
    }

    /// Puts a frontend of a new service port; policies and the like are what `change` makes of it.
    pub fn service_with(
        &mut self,
        addr: SocketAddr,
        proto: u8,
        kind: FrontendKind,
        endpoints: &[Endpoint],
        change: impl FnOnce(&mut Service),
    ) -> Placed {
        let id = self.next_service;
        self.next_service += 1;
        let mut ids = Vec::new();
        let mut local = Vec::new();
        for endpoint in endpoints {
            let id_of_backend = self.next_id;
            self.next_id += 1;
            ids.push(id_of_backend);
            if endpoint.state & BackendState::IN_LOCAL != 0 {
                local.push(id_of_backend);
            }
            self.put_backend(id_of_backend, *endpoint, id, 0);
        }
        let mut service = Service::default();
        service.id = id;
        service.cluster = self.rows(&ids);
        service.local = self.rows(&local);
        service.kind = kind as u8;
        if !ids.is_empty() {
            service.flags = ServiceFlags::HAS_ENDPOINTS;
        }
        change(&mut service);
        self.frontend(addr, proto, service);
        Placed { service, ids }
    }

    /// Puts a ClusterIP frontend with default policies.
    pub fn service(&mut self, addr: SocketAddr, proto: u8, endpoints: &[Endpoint]) -> Placed {
        self.service_with(addr, proto, FrontendKind::ClusterIp, endpoints, |_| {})
    }

    /// Makes the address of a frontend a ClusterIP that exists: the agent's address-only entry.
    pub fn cluster_ip_exists(&mut self, addr: SocketAddr) {
        let mut any = Service::default();
        any.flags = ServiceFlags::ADDRESS_ONLY;
        any.kind = FrontendKind::ClusterIp as u8;
        self.frontend(at(addr.ip(), 0), 0, any);
    }

    /// Puts a frontend.
    pub fn frontend(&mut self, addr: SocketAddr, proto: u8, service: Service) {
        let key = ServiceKey::<F>::new(F::addr(addr.ip()), Be16::from_host(addr.port()), proto);
        self.world.put_service(key, service.sealed(&key));
        if addr.port() != 0 {
            self.world.open_port(proto, addr.port());
        }
    }

    /// Writes a backend under an id; `generation` counts its meanings.
    pub fn put_backend(&mut self, id: u32, endpoint: Endpoint, service_id: u32, generation: u32) {
        let state =
            endpoint.state | BackendState::USABLE | (generation * BackendState::GENERATION_STEP);
        let (addr, port) = (endpoint.addr.ip(), endpoint.addr.port());
        self.world.put_backend(
            id,
            Backend::<F>::new(F::addr(addr), Be16::from_host(port), 0, state, service_id),
        );
    }

    /// Writes a table.
    fn rows(&mut self, ids: &[u32]) -> SelectionList {
        let offset = self.next_row;
        let len = u32::try_from(ids.len()).unwrap_or(0);
        self.next_row += len;
        self.world.put_rows(offset, ids);
        SelectionList { offset, len }
    }

    /// Sends a packet and compares all of what comes out.
    #[track_caller]
    pub fn check(
        &mut self,
        hook: At,
        input: &PacketBuilder,
        verdict: Verdict,
        output: &PacketBuilder,
    ) {
        self.check_bytes(hook, &input.build(), verdict, &output.build());
    }

    /// The same with bytes.
    #[track_caller]
    pub fn check_bytes(&mut self, hook: At, input: &[u8], verdict: Verdict, output: &[u8]) {
        let (got, bytes) = self.run(hook, input);
        assert_eq!(
            (got, Parsed::frame(&bytes)),
            (verdict, Parsed::frame(output)),
            "{hook:?}: verdict and packet"
        );
        assert_eq!(bytes, output, "{hook:?}: bytes of the packet");
    }

    /// Sends a packet that is to pass as it is.
    #[track_caller]
    pub fn untouched(&mut self, hook: At, input: &PacketBuilder) {
        self.check(hook, input, Verdict::Pass, input);
    }

    /// Sends a packet that is to be dropped for this reason.
    #[track_caller]
    pub fn dropped(&mut self, hook: At, input: &PacketBuilder, reason: DropReason) {
        let before = self.world.counter(reason as u32);
        let (verdict, _) = self.run(hook, &input.build());
        let counted = self.world.counter(reason as u32) - before;
        assert_eq!((verdict, counted), (Verdict::Drop, 1), "{reason:?}");
    }

    /// Sends a packet.
    pub fn run(&mut self, hook: At, input: &[u8]) -> (Verdict, Vec<u8>) {
        let ifindex = match hook {
            At::Pod => POD,
            At::Out => self.exit,
            At::Xdp | At::External => EXTERNAL,
        };
        self.world.run(hook, ifindex, input)
    }

    /// Sends a packet that is to pass, and reads what comes out.
    #[track_caller]
    pub fn sent(&mut self, hook: At, input: &PacketBuilder) -> Parsed {
        let (verdict, bytes) = self.run(hook, &input.build());
        assert_eq!(verdict, Verdict::Pass, "{hook:?}");
        match Parsed::frame(&bytes) {
            Ok(parsed) => parsed,
            Err(error) => panic!("{hook:?}: {error}"),
        }
    }

    /// Compares a counter.
    #[track_caller]
    pub fn counted(&mut self, counter: Counter, times: u64) {
        assert_eq!(self.world.counter(counter as u32), times, "{counter:?}");
    }

    /// Elements of `flows_*`.
    pub fn flows(&mut self) -> usize {
        Store::<F>::flows(self.world).len()
    }

    /// Elements of `openings_*`.
    pub fn openings(&mut self) -> usize {
        Store::<F>::openings(self.world).len()
    }

    /// Makes XDP able to send to these addresses at once.
    pub fn routes(&mut self, addrs: &[IpAddr]) {
        for addr in addrs {
            let hop = NextHop {
                ifindex: EXTERNAL,
                dmac: MacAddr::new(NEXT_MAC),
                ready: true,
            };
            Store::<F>::put_route(self.world, F::addr(*addr), hop);
        }
    }

    /// An error about a packet, from `source` to `destination`; the quote is cut after `len` bytes.
    pub fn error(
        &self,
        source: IpAddr,
        destination: IpAddr,
        quoted: &PacketBuilder,
        len: usize,
    ) -> PacketBuilder {
        let quoted = quoted.build_ip();
        let len = len.min(quoted.len());
        PacketBuilder::too_big(source, destination, 1280, &quoted[..len])
    }
}

/// The same service port without an endpoint.
pub fn emptied(mut service: Service) -> Service {
    service.cluster = SelectionList::default();
    service.local = SelectionList::default();
    service.flags = 0;
    service
}

/// As forwarded by XDP.
pub fn transmitted(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(NEXT_MAC, OWN_MAC).ttl(63)
}

/// As sent back.
pub fn turned(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(SOURCE_MAC, DESTINATION_MAC)
}

/// Bytes of an IP header and the first eight behind it: the least that an error quotes.
fn least<F: Ip>() -> usize {
    if F::IS_V6 { 48 } else { 28 }
}

/// A case for one kind of world.
pub type Case<W> = (&'static str, fn(&mut W));

macro_rules! cases {
    ($($name:ident)+) => {
        /// Every case, for both families. Each wants a world of its own.
        pub fn all<W: World>() -> Vec<Case<W>> {
            vec![$(
                (concat!(stringify!($name), " (IPv4)"), $name::<V4, W> as fn(&mut W)),
                (concat!(stringify!($name), " (IPv6)"), $name::<V6, W> as fn(&mut W)),
            )+]
        }
    };
}

cases! {
    pod_to_cluster_ip_and_back
    outside_to_local_backend_and_back
    outside_to_remote_backend_by_tc_and_back
    outside_to_remote_backend_by_xdp_is_what_tc_makes_of_it
    xdp_leaves_to_tc_what_it_cannot_do
    traffic_that_is_not_ours_is_untouched
    reply_and_ack_confirm_a_flow
    syn_on_a_closing_flow_selects_anew
    retransmitted_syn_follows_its_flow
    udp_moves_when_its_backend_is_gone
    tcp_stays_when_its_backend_is_gone
    two_vips_to_one_backend_get_two_ports
    hairpin_goes_back_to_the_pod
    local_policies_choose_local_or_drop
    affinity_keeps_the_backend_when_the_list_changes
    source_ranges_drop_everybody_else
    frontend_without_endpoints_refuses
    undefined_port_of_a_cluster_ip_is_refused
    refusals_that_must_not_be_answered
    refusals_have_a_limit
    fragments_follow_their_first
    options_and_extension_headers_are_kept
    udp_without_checksum_stays_without
    errors_about_a_pods_connection
    errors_about_a_local_backend
    errors_about_a_remote_backend_pass_two_hooks
    errors_of_the_stack_between_two_hooks
    errors_about_a_hairpin
    errors_about_others_are_untouched
    redirects_about_translated_packets_are_dropped
    direct_connection_with_a_taken_tuple
    a_port_used_again_past_the_frontends
    stale_elements_are_not_believed
    a_forged_twin_keeps_nobody_out
    masquerade_all_translates_local_backends
    masquerade_all_keeps_clients_under_policy_local
    only_new_flows_are_judged
    affinity_stays_within_the_list_in_force
    late_segments_are_translated
}

const PROTOCOLS: [u8; 2] = [TCP, UDP];

/// Semantics 8.2, first row; 8.14.
fn pod_to_cluster_ip_and_back<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    for proto in PROTOCOLS {
        for (port, endpoint) in [
            (80, remote(s.h.remote, 8080)),
            (81, local(s.h.pod2, 8080)),
            (82, remote(s.h.remote2, 82)),
        ] {
            let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, port), endpoint.addr);
            s.service(vip, proto, &[endpoint]);
            s.check(
                At::Pod,
                &first(proto, pod, vip),
                Verdict::Pass,
                &first(proto, pod, to),
            );
            s.check(
                At::Out,
                &packet(proto, to, pod),
                Verdict::Pass,
                &packet(proto, vip, pod),
            );
            s.check(
                At::Pod,
                &packet(proto, pod, vip),
                Verdict::Pass,
                &packet(proto, pod, to),
            );
            s.check(
                At::Out,
                &packet(proto, to, pod),
                Verdict::Pass,
                &packet(proto, vip, pod),
            );
        }
    }
    s.counted(Counter::NewFlow, 6);
    s.counted(Counter::FlowConfirmed, 6);
    s.counted(Counter::TcPodTranslated, 12);
    s.counted(Counter::TcOutTranslated, 12);
}

/// The client's address is kept (semantics 9.9).
fn outside_to_local_backend_and_back<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    for proto in PROTOCOLS {
        let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
        let to = at(s.h.pod, 8080);
        s.service_with(
            front,
            proto,
            FrontendKind::NodePort,
            &[local(s.h.pod, 8080)],
            |_| {},
        );
        // XDP leaves it to tc.
        s.untouched(At::Xdp, &first(proto, client, front));
        s.check(
            At::External,
            &first(proto, client, front),
            Verdict::Pass,
            &first(proto, client, to),
        );
        s.untouched(At::Pod, &packet(proto, to, client));
        s.check(
            At::Out,
            &packet(proto, to, client),
            Verdict::Pass,
            &packet(proto, front, client),
        );
        s.untouched(At::Xdp, &packet(proto, client, front));
        s.check(
            At::External,
            &packet(proto, client, front),
            Verdict::Pass,
            &packet(proto, client, to),
        );
    }
    s.counted(Counter::FlowConfirmed, 2);
}

/// The source port that a packet of client → backend got between the two hooks.
#[track_caller]
fn middle<F: Net, W: World + Store<F>>(
    s: &mut Scene<'_, F, W>,
    input: &PacketBuilder,
) -> SocketAddr {
    let parsed = s.sent(At::External, input);
    assert!(
        (20_000..30_000).contains(&parsed.source.port()),
        "{parsed:?}"
    );
    parsed.source
}

/// Semantics 9.5. Destination at external ingress, source at egress, and the reverse (docs/decisions.md, "Two hooks, one
/// tuple between them"): what lies between sees the client and the backend (semantics 25.8).
fn outside_to_remote_backend_by_tc_and_back<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    for proto in PROTOCOLS {
        let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
        let to = at(s.h.remote, 8080);
        s.service_with(
            front,
            proto,
            FrontendKind::NodePort,
            &[remote(s.h.remote, 8080)],
            |_| {},
        );
        let between = middle(&mut s, &first(proto, client, front));
        let snat = at(s.h.node, between.port());
        assert_eq!(between.ip(), client.ip());
        for round in 0..2 {
            let out = if round == 0 { first } else { packet };
            s.check(
                At::External,
                &out(proto, client, front),
                Verdict::Pass,
                &out(proto, between, to),
            );
            s.check(
                At::Out,
                &out(proto, between, to),
                Verdict::Pass,
                &out(proto, snat, to),
            );
            let reply = packet(proto, to, snat);
            let reply_between = packet(proto, to, between);
            s.check(At::External, &reply, Verdict::Pass, &reply_between);
            s.check(
                At::Out,
                &reply_between,
                Verdict::Pass,
                &packet(proto, front, client),
            );
        }
    }
    s.counted(Counter::NewFlow, 2);
    s.counted(Counter::FlowConfirmed, 2);
    assert_eq!(
        s.flows(),
        8,
        "original and reply, ingress and egress, of two flows"
    );
    assert_eq!(s.openings(), 0);
}

/// XDP makes at once of a packet what tc makes at two hooks, and either may take over at any time.
fn outside_to_remote_backend_by_xdp_is_what_tc_makes_of_it<F: Net, W: World + Store<F>>(
    world: &mut W,
) {
    let mut s = Scene::<F, W>::new(world);
    s.routes(&[s.h.remote, s.h.client]);
    let sent = Verdict::Transmit(EXTERNAL);
    for proto in PROTOCOLS {
        let (client, front) = (at(s.h.client, 40_000), at(s.h.external, 443));
        let to = at(s.h.remote, 8080);
        s.service_with(
            front,
            proto,
            FrontendKind::LoadBalancer,
            &[remote(s.h.remote, 8080)],
            |_| {},
        );
        let (verdict, bytes) = s.run(At::Xdp, &first(proto, client, front).build());
        assert_eq!(verdict, sent);
        let snat = match Parsed::frame(&bytes) {
            Ok(parsed) => parsed.source,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(snat.ip(), s.h.node);
        assert!((20_000..30_000).contains(&snat.port()));
        assert_eq!(bytes, transmitted(first(proto, snat, to)).build());
        let answer = packet(proto, to, snat);
        for _ in 0..2 {
            s.check(
                At::Xdp,
                &answer,
                sent,
                &transmitted(packet(proto, front, client)),
            );
            let next = packet(proto, client, front);
            s.check(At::Xdp, &next, sent, &transmitted(packet(proto, snat, to)));
        }
        // The same packets by tc, whose egress entries are made only now.
        let between = at(s.h.client, snat.port());
        s.check(
            At::External,
            &packet(proto, client, front),
            Verdict::Pass,
            &packet(proto, between, to),
        );
        s.check(
            At::Out,
            &packet(proto, between, to),
            Verdict::Pass,
            &packet(proto, snat, to),
        );
        s.check(
            At::External,
            &answer,
            Verdict::Pass,
            &packet(proto, to, between),
        );
        s.check(
            At::Out,
            &packet(proto, to, between),
            Verdict::Pass,
            &packet(proto, front, client),
        );
    }
    s.counted(Counter::NewFlow, 2);
    s.counted(Counter::XdpTranslated, 10);
}

/// XDP forwards only when it can do everything (docs/decisions.md, "The stack forwards, XDP is a shortcut").
fn xdp_leaves_to_tc_what_it_cannot_do<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, front) = (at(s.h.client, 40_000), at(s.h.external, 443));
    let endpoint = remote(s.h.remote, 8080);
    s.service_with(front, UDP, FrontendKind::LoadBalancer, &[endpoint], |_| {});
    // No next hop.
    s.untouched(At::Xdp, &packet(UDP, client, front));
    s.routes(&[s.h.remote, s.h.client]);
    s.untouched(At::Xdp, &packet(UDP, client, front).ttl(1));
    s.untouched(At::Xdp, &packet(UDP, client, front).payload(&[7; 1473]));
    s.untouched(At::Xdp, &packet(UDP, client, front).fragment(7, 0, true));
    let odd = packet(UDP, client, front);
    s.untouched(
        At::Xdp,
        &if F::IS_V6 {
            odd.extension(DESTINATION, &[])
        } else {
            odd.ip_options(&[1])
        },
    );
    s.untouched(At::Xdp, &of_others(packet(UDP, client, front)));
    s.counted(Counter::NewFlow, 0);
    // The same on an established flow.
    let (verdict, _) = s.run(At::Xdp, &packet(UDP, client, front).build());
    assert_eq!(verdict, Verdict::Transmit(EXTERNAL));
    s.untouched(At::Xdp, &of_others(packet(UDP, client, front)));
    s.untouched(At::Xdp, &packet(UDP, client, front).ttl(1));
    s.untouched(At::Xdp, &packet(UDP, client, front).payload(&[7; 1473]));
    s.counted(Counter::XdpTranslated, 1);
}

/// In a frame to another host, which a mirror port or a flooding bridge shows us.
fn of_others(packet: PacketBuilder) -> PacketBuilder {
    packet.macs(NEXT_MAC, SOURCE_MAC)
}

/// The kernel alone tells tc whose a frame is: not for the native world.
pub fn frames_of_others_are_untouched_at_tc<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
    s.service_with(
        front,
        TCP,
        FrontendKind::NodePort,
        &[local(s.h.pod, 8080)],
        |_| {},
    );
    s.untouched(At::External, &of_others(first(TCP, client, front)));
    s.check(
        At::External,
        &first(TCP, client, front),
        Verdict::Pass,
        &first(TCP, client, at(s.h.pod, 8080)),
    );
    s.untouched(At::External, &of_others(packet(TCP, client, front)));
}

fn traffic_that_is_not_ours_is_untouched<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    s.service(at(s.h.vip, 80), TCP, &[local(s.h.pod2, 8080)]);
    let (pod, other) = (at(s.h.pod, 40_000), at(s.h.router, 80));
    for hook in [At::Xdp, At::External, At::Pod, At::Out] {
        for proto in PROTOCOLS {
            s.untouched(hook, &first(proto, pod, other));
            s.untouched(hook, &packet(proto, pod, other));
            s.untouched(hook, &packet(proto, pod, other).checksum(Checksum::Wrong));
            s.untouched(hook, &packet(proto, pod, other).fragment(3, 64, false));
        }
        let echo = if F::IS_V6 { 128 } else { 8 };
        // Semantics 8.13: nothing but Service traffic is translated, to a ClusterIP neither.
        s.untouched(
            hook,
            &PacketBuilder::icmp(s.h.pod, s.h.vip, echo, 0, [0, 1, 0, 1]),
        );
        s.untouched(hook, &PacketBuilder::raw(s.h.pod, s.h.vip, 47));
    }
    assert_eq!((s.flows(), s.openings()), (0, 0));
}

/// docs/decisions.md, "Openings apart from flows".
fn reply_and_ack_confirm_a_flow<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    // Without a reply an ACK confirms nothing: a scan must not fill the table.
    s.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!((s.flows(), s.openings()), (0, 2));
    s.sent(At::Out, &packet(TCP, to, pod));
    s.sent(At::Pod, &first(TCP, pod, vip));
    assert_eq!(
        (s.flows(), s.openings()),
        (0, 2),
        "a SYN alone confirms nothing"
    );
    s.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!((s.flows(), s.openings()), (2, 0));
    s.counted(Counter::FlowConfirmed, 1);
    for (key, flow) in Store::<F>::flows(s.world) {
        assert!(flow.has(FlowFlags::CONFIRMED));
        let partner = flow.partner_key(&key);
        assert!(
            Store::<F>::flows(s.world)
                .iter()
                .any(|(other, _)| *other == partner)
        );
    }
}

/// Semantics 18.3: a reused port is not stuck to the old backend.
fn syn_on_a_closing_flow_selects_anew<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    let placed = s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    s.sent(At::Out, &packet(TCP, to, pod));
    s.sent(At::Pod, &packet(TCP, pod, vip));
    // The table has another backend by now.
    let second = remote(s.h.remote2, 8080);
    s.put_backend(100, second, placed.service.id, 0);
    s.world.put_rows(placed.service.cluster.offset, &[100]);
    // Live: the SYN follows the flow.
    s.check(
        At::Pod,
        &first(TCP, pod, vip),
        Verdict::Pass,
        &first(TCP, pod, to),
    );
    s.sent(At::Out, &packet(TCP, to, pod).flags(FIN | ACK));
    s.check(
        At::Pod,
        &packet(TCP, pod, vip),
        Verdict::Pass,
        &packet(TCP, pod, to),
    );
    s.check(
        At::Pod,
        &first(TCP, pod, vip),
        Verdict::Pass,
        &first(TCP, pod, second.addr),
    );
    s.counted(Counter::Reselected, 1);
    s.counted(Counter::NewFlow, 2);
    assert_eq!((s.flows(), s.openings()), (0, 2));
}

/// Semantics 18.3.
fn retransmitted_syn_follows_its_flow<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
    let placed = s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    s.put_backend(100, remote(s.h.remote2, 8080), placed.service.id, 0);
    s.world.put_rows(placed.service.cluster.offset, &[100]);
    let same = first(TCP, pod, at(s.h.remote, 8080));
    s.check(At::Pod, &first(TCP, pod, vip), Verdict::Pass, &same);
    s.counted(Counter::NewFlow, 1);
}

/// Semantics 17.2.a, 17.2.c.
fn udp_moves_when_its_backend_is_gone<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 53));
    let (old, new) = (remote(s.h.remote, 5353), remote(s.h.remote2, 5353));
    let placed = s.service(vip, UDP, &[old]);
    for confirmed in [false, true] {
        s.put_backend(placed.ids[0], old, placed.service.id, 0);
        s.world
            .put_rows(placed.service.cluster.offset, &[placed.ids[0]]);
        let pod = at(pod.ip(), 40_000 + u16::from(confirmed));
        s.check(
            At::Pod,
            &packet(UDP, pod, vip),
            Verdict::Pass,
            &packet(UDP, pod, old.addr),
        );
        if confirmed {
            s.sent(At::Out, &packet(UDP, old.addr, pod));
            s.sent(At::Pod, &packet(UDP, pod, vip));
            s.counted(Counter::FlowConfirmed, 1);
        }
        s.put_backend(placed.ids[0], old, placed.service.id, 1);
        s.put_backend(100, new, placed.service.id, 0);
        s.world.put_rows(placed.service.cluster.offset, &[100]);
        s.check(
            At::Pod,
            &packet(UDP, pod, vip),
            Verdict::Pass,
            &packet(UDP, pod, new.addr),
        );
        s.check(
            At::Out,
            &packet(UDP, new.addr, pod),
            Verdict::Pass,
            &packet(UDP, vip, pod),
        );
    }
    s.counted(Counter::Reselected, 2);
    // None is left: refused at the very next packet.
    s.put_backend(100, new, placed.service.id, 1);
    s.frontend(vip, UDP, emptied(placed.service));
    let (verdict, _) = s.run(At::Pod, &packet(UDP, pod, vip).build());
    assert_eq!(verdict, Verdict::Reflect);
    s.counted(Counter::Refused, 1);
}

/// Semantics 10.5, 18.1.
fn tcp_stays_when_its_backend_is_gone<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, old) = (
        at(s.h.pod, 40_000),
        at(s.h.vip, 80),
        remote(s.h.remote, 8080),
    );
    let placed = s.service(vip, TCP, &[old]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    s.sent(At::Out, &packet(TCP, old.addr, pod));
    s.put_backend(placed.ids[0], old, placed.service.id, 1);
    s.frontend(vip, TCP, emptied(placed.service));
    for _ in 0..2 {
        s.check(
            At::Pod,
            &packet(TCP, pod, vip),
            Verdict::Pass,
            &packet(TCP, pod, old.addr),
        );
        s.check(
            At::Out,
            &packet(TCP, old.addr, pod),
            Verdict::Pass,
            &packet(TCP, vip, pod),
        );
    }
    // A new connection from the same port is a new one.
    let (verdict, _) = s.run(At::Pod, &first(TCP, pod, vip).build());
    assert_eq!(verdict, Verdict::Reflect);
}

/// One client port, two VIPs, one backend: the replies would be the same packet.
fn two_vips_to_one_backend_get_two_ports<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, vip2) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.vip2, 80));
    let placed = s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.frontend(vip2, TCP, placed.service);
    let to = at(s.h.remote, 8080);
    s.check(
        At::Pod,
        &first(TCP, pod, vip),
        Verdict::Pass,
        &first(TCP, pod, to),
    );
    let moved = s.sent(At::Pod, &first(TCP, pod, vip2)).source;
    assert_eq!(moved.ip(), pod.ip());
    assert!((20_000..30_000).contains(&moved.port()));
    s.counted(Counter::PortRewritten, 1);
    s.check(
        At::Out,
        &packet(TCP, to, pod),
        Verdict::Pass,
        &packet(TCP, vip, pod),
    );
    s.check(
        At::Out,
        &packet(TCP, to, moved),
        Verdict::Pass,
        &packet(TCP, vip2, pod),
    );
    s.check(
        At::Pod,
        &packet(TCP, pod, vip2),
        Verdict::Pass,
        &packet(TCP, moved, to),
    );
    s.check(
        At::Pod,
        &packet(TCP, pod, vip),
        Verdict::Pass,
        &packet(TCP, pod, to),
    );
}

/// Semantics 8.3, 9.2.d.
fn hairpin_goes_back_to_the_pod<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    for proto in PROTOCOLS {
        let (pod, vip, own) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.pod, 8080));
        s.service(vip, proto, &[local(s.h.pod, 8080)]);
        let (verdict, bytes) = s.run(At::Pod, &first(proto, pod, vip).build());
        assert_eq!(verdict, Verdict::Reflect);
        let node = match Parsed::frame(&bytes) {
            Ok(parsed) => parsed.source,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(node.ip(), s.h.node);
        assert_eq!(bytes, turned(first(proto, node, own)).build());
        for _ in 0..2 {
            let answer = turned(packet(proto, vip, pod));
            s.check(
                At::Pod,
                &packet(proto, own, node),
                Verdict::Reflect,
                &answer,
            );
            let next = turned(packet(proto, node, own));
            s.check(At::Pod, &packet(proto, pod, vip), Verdict::Reflect, &next);
        }
    }
    s.counted(Counter::FlowConfirmed, 2);
}

/// Semantics 8.2, 8.6, 10.2, 10.3.
fn local_policies_choose_local_or_drop<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, client) = (at(s.h.pod, 40_000), at(s.h.client, 40_000));
    let (here, there) = (local(s.h.pod2, 8080), remote(s.h.remote, 8080));
    let external = ServiceFlags::EXTERNAL_LOCAL;
    let internal = ServiceFlags::INTERNAL_LOCAL;
    let lb = FrontendKind::LoadBalancer;
    // Both lists have something.
    let both = at(s.h.external, 80);
    s.service_with(both, TCP, lb, &[there, here], |service| {
        service.flags |= external
    });
    for port in 0..8 {
        let client = at(s.h.client, 41_000 + port);
        let output = first(TCP, client, here.addr);
        s.check(
            At::External,
            &first(TCP, client, both),
            Verdict::Pass,
            &output,
        );
    }
    // Only remote endpoints: outsiders are dropped, pods get what the load balancer would give them.
    let far = at(s.h.external, 81);
    s.service_with(far, TCP, lb, &[there], |service| service.flags |= external);
    s.untouched(At::Xdp, &first(TCP, client, far));
    s.dropped(
        At::External,
        &first(TCP, client, far),
        DropReason::NoLocalEndpoint,
    );
    s.check(
        At::Pod,
        &first(TCP, pod, far),
        Verdict::Pass,
        &first(TCP, pod, there.addr),
    );
    // Internal policy: the same for the ClusterIP.
    let vip = at(s.h.vip, 80);
    s.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[there, here],
        |service| {
            service.flags |= internal;
        },
    );
    for port in 0..8 {
        let pod = at(s.h.pod, 41_000 + port);
        s.check(
            At::Pod,
            &first(TCP, pod, vip),
            Verdict::Pass,
            &first(TCP, pod, here.addr),
        );
    }
    let vip = at(s.h.vip, 81);
    s.service_with(vip, TCP, FrontendKind::ClusterIp, &[there], |service| {
        service.flags |= internal
    });
    s.dropped(At::Pod, &first(TCP, pod, vip), DropReason::NoLocalEndpoint);
}

/// Semantics 13.2, 13.5.
fn affinity_keeps_the_backend_when_the_list_changes<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (vip, to) = (at(s.h.vip, 80), at(s.h.remote, 8080));
    let placed = s.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[remote(s.h.remote, 8080)],
        |service| service.affinity_secs = 10_800,
    );
    let pod = at(s.h.pod, 40_000);
    s.sent(At::Pod, &first(TCP, pod, vip));
    s.sent(At::Out, &packet(TCP, to, pod));
    s.sent(At::Pod, &packet(TCP, pod, vip));
    let other = remote(s.h.remote2, 8080);
    s.put_backend(100, other, placed.service.id, 0);
    s.world.put_rows(placed.service.cluster.offset, &[100]);
    let again = at(s.h.pod, 40_001);
    s.check(
        At::Pod,
        &first(TCP, again, vip),
        Verdict::Pass,
        &first(TCP, again, to),
    );
    s.counted(Counter::AffinityHit, 1);
    // Another client has nothing to keep.
    let stranger = at(s.h.pod2, 40_001);
    s.check(
        At::Pod,
        &first(TCP, stranger, vip),
        Verdict::Pass,
        &first(TCP, stranger, other.addr),
    );
    // The kept backend is gone: what the list says.
    s.put_backend(
        placed.ids[0],
        remote(s.h.remote, 8080),
        placed.service.id,
        1,
    );
    let later = at(s.h.pod, 40_002);
    s.check(
        At::Pod,
        &first(TCP, later, vip),
        Verdict::Pass,
        &first(TCP, later, other.addr),
    );
    s.counted(Counter::AffinityHit, 1);
}

/// Semantics 12.1, 12.3, 12.9: pods are not exempt.
fn source_ranges_drop_everybody_else<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let front = at(s.h.external, 80);
    let here = local(s.h.pod2, 8080);
    let placed = s.service_with(front, TCP, FrontendKind::LoadBalancer, &[here], |service| {
        service.flags |= ServiceFlags::SOURCE_RANGES;
    });
    Store::<F>::allow_source(s.world, placed.service.id, F::addr(s.h.client));
    let client = at(s.h.client, 40_000);
    s.check(
        At::External,
        &first(TCP, client, front),
        Verdict::Pass,
        &first(TCP, client, here.addr),
    );
    s.dropped(
        At::External,
        &first(TCP, at(s.h.router, 1), front),
        DropReason::SourceRange,
    );
    s.dropped(
        At::Pod,
        &first(TCP, at(s.h.pod, 1), front),
        DropReason::SourceRange,
    );
}

/// What a refusal of TCP looks like: a segment without data, options and window.
#[track_caller]
pub fn is_reset(bytes: &[u8], from: SocketAddr, to: SocketAddr, flags: u8, numbers: (u32, u32)) {
    let parsed = match Parsed::frame(bytes) {
        Ok(parsed) => parsed,
        Err(error) => panic!("{error}"),
    };
    assert_eq!((parsed.source, parsed.destination), (from, to));
    assert_eq!((parsed.flags, parsed.numbers), (flags, numbers));
    assert_eq!(
        (parsed.ttl, parsed.macs),
        (64, Some((SOURCE_MAC, DESTINATION_MAC)))
    );
    assert!(parsed.payload.is_empty() && parsed.options.is_empty());
    assert_eq!(bytes[bytes.len() - 6..bytes.len() - 4], [0, 0], "window");
}

/// Port unreachable from the dialled address, quoting the header and eight bytes.
pub fn unreachable<F: Ip>(about: &PacketBuilder, from: IpAddr, to: IpAddr) -> PacketBuilder {
    let quoted = about.build_ip();
    turned(PacketBuilder::port_unreachable(from, to, &quoted[..least::<F>()]).ip_id(0, true))
}

/// Semantics 10.1, 10.7; RFC 9293 3.10.7.1.
fn frontend_without_endpoints_refuses<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    for (hook, from, front) in [
        (At::Pod, s.h.pod, s.h.vip),
        (At::External, s.h.client, s.h.node),
        (At::External, s.h.client, s.h.external),
    ] {
        let kind = if front == s.h.vip {
            FrontendKind::ClusterIp
        } else {
            FrontendKind::NodePort
        };
        let (from, front) = (at(from, 40_000), at(front, 80));
        s.service_with(front, TCP, kind, &[], |_| {});
        s.service_with(front, UDP, kind, &[], |_| {});
        if hook == At::External {
            s.untouched(At::Xdp, &first(TCP, from, front));
        }
        let syn = first(TCP, from, front).tcp_options(&[2, 4, 5, 180]);
        let (verdict, bytes) = s.run(hook, &syn.build());
        assert_eq!(verdict, Verdict::Reflect);
        is_reset(&bytes, front, from, RST | ACK, (0, 1001));
        // Data without ACK: all of it is acknowledged, SYN and FIN count one each.
        let odd = PacketBuilder::tcp(from, front)
            .flags(SYN | FIN)
            .numbers(7, 0)
            .payload(b"12345");
        let (_, bytes) = s.run(hook, &odd.build());
        is_reset(&bytes, front, from, RST | ACK, (0, 14));
        // With ACK the RST takes its place, and is no acknowledgement itself.
        let long = packet(TCP, from, front).payload(&[1; 1000]);
        let (_, bytes) = s.run(hook, &long.build());
        is_reset(&bytes, front, from, RST, (0x0506_0708, 0));
        for payload in [&b""[..], b"x", &[7; 700]] {
            let datagram = packet(UDP, from, front).payload(payload);
            let answer = unreachable::<F>(&datagram, front.ip(), from.ip());
            s.check(hook, &datagram, Verdict::Reflect, &answer);
            // On its way out it is nobody's business.
            s.untouched(At::Out, &answer);
        }
    }
    s.counted(Counter::Refused, 18);
    assert_eq!((s.flows(), s.openings()), (0, 0));
}

/// Semantics 11.1, 11.4.
fn undefined_port_of_a_cluster_ip_is_refused<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
    let placed = s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.cluster_ip_exists(vip);
    let (verdict, bytes) = s.run(At::Pod, &first(TCP, pod, at(s.h.vip, 81)).build());
    assert_eq!(verdict, Verdict::Reflect);
    is_reset(&bytes, at(s.h.vip, 81), pod, RST | ACK, (0, 1001));
    // TCP port 80 says nothing about UDP port 80.
    let datagram = packet(UDP, pod, vip);
    s.check(
        At::Pod,
        &datagram,
        Verdict::Reflect,
        &unreachable::<F>(&datagram, vip.ip(), pod.ip()),
    );
    // An address that no Service has is not ours (semantics 11.2), nor is a port of any other address.
    s.untouched(At::Pod, &first(TCP, pod, at(s.h.vip2, 81)));
    s.frontend(at(s.h.external, 80), TCP, placed.service);
    s.untouched(
        At::External,
        &first(TCP, at(s.h.client, 1), at(s.h.external, 81)),
    );
}

/// RFC 1122 3.2.2, RFC 9293 3.5.2.
fn refusals_that_must_not_be_answered<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
    s.service(vip, TCP, &[]);
    s.service(vip, UDP, &[]);
    s.dropped(
        At::Pod,
        &packet(TCP, pod, vip).flags(RST),
        DropReason::NoEndpoint,
    );
    s.dropped(
        At::Pod,
        &packet(TCP, pod, vip).flags(RST | ACK),
        DropReason::NoEndpoint,
    );
    let many = if F::IS_V6 {
        ip("ff02::1")
    } else {
        ip("224.0.0.1")
    };
    s.dropped(
        At::Pod,
        &packet(UDP, at(many, 1), vip),
        DropReason::NoEndpoint,
    );
    let nobody = if F::IS_V6 { ip("::") } else { ip("0.0.0.0") };
    s.dropped(
        At::Pod,
        &packet(UDP, at(nobody, 1), vip),
        DropReason::NoEndpoint,
    );
    let group = packet(UDP, pod, vip).macs([0xff; 6], SOURCE_MAC);
    s.dropped(At::Pod, &group, DropReason::NoEndpoint);
    s.counted(Counter::Refused, 0);
}

fn refusals_have_a_limit<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
    s.service(vip, TCP, &[]);
    s.config.refusals_per_sec = 2;
    s.world.put_config(s.config);
    for _ in 0..2 {
        assert_eq!(
            s.run(At::Pod, &first(TCP, pod, vip).build()).0,
            Verdict::Reflect
        );
    }
    s.dropped(At::Pod, &first(TCP, pod, vip), DropReason::RefusalLimit);
}

/// Semantics 8.15.
fn fragments_follow_their_first<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, UDP, &[remote(s.h.remote, 8080)]);
    s.cluster_ip_exists(vip);
    let big = |from, to| packet(UDP, from, to).payload(&[0x5a; 3000]);
    let input = big(pod, vip).build_fragments(77, 1400);
    let output = big(pod, to).build_fragments(77, 1400);
    assert_eq!(input.len(), 3);
    // One that overtakes its first could be put together under the wrong address.
    let before = s.world.counter(DropReason::FragmentOrphan as u32);
    assert_eq!(s.run(At::Pod, &input[1]).0, Verdict::Drop);
    assert_eq!(
        s.world.counter(DropReason::FragmentOrphan as u32),
        before + 1
    );
    for order in [[0, 1, 2], [0, 2, 1]] {
        for i in order {
            s.check_bytes(At::Pod, &input[i], Verdict::Pass, &output[i]);
        }
    }
    s.counted(Counter::Fragment, 4);
    // Two datagrams interleaved.
    let other = at(s.h.pod2, 40_000);
    let input2 = big(other, vip).build_fragments(78, 1400);
    let output2 = big(other, to).build_fragments(78, 1400);
    for i in 0..3 {
        s.check_bytes(At::Pod, &input2[i], Verdict::Pass, &output2[i]);
        s.check_bytes(At::Pod, &input[i], Verdict::Pass, &output[i]);
    }
    // Replies.
    let input = big(to, pod).build_fragments(79, 1400);
    let output = big(vip, pod).build_fragments(79, 1400);
    for i in 0..3 {
        s.check_bytes(At::Out, &input[i], Verdict::Pass, &output[i]);
    }
}

/// Semantics 18.7.
fn options_and_extension_headers_are_kept<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let odd = |builder: PacketBuilder| {
        if F::IS_V6 {
            builder.extension(0, &[]).extension(DESTINATION, &[1, 10])
        } else {
            builder.ip_options(&[7, 7, 4, 0, 0, 0, 0])
        }
    };
    for proto in PROTOCOLS {
        let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
        s.service(vip, proto, &[remote(s.h.remote, 8080)]);
        s.check(
            At::Pod,
            &odd(first(proto, pod, vip)),
            Verdict::Pass,
            &odd(first(proto, pod, to)),
        );
        for _ in 0..2 {
            s.check(
                At::Out,
                &odd(packet(proto, to, pod)),
                Verdict::Pass,
                &odd(packet(proto, vip, pod)),
            );
            s.check(
                At::Pod,
                &odd(packet(proto, pod, vip)),
                Verdict::Pass,
                &odd(packet(proto, pod, to)),
            );
        }
        // A refusal leaves them out, of its quote, too.
        let none = at(s.h.vip, 81);
        s.service(none, proto, &[]);
        let (verdict, bytes) = s.run(At::Pod, &odd(packet(proto, pod, none)).build());
        assert_eq!(verdict, Verdict::Reflect);
        if proto == TCP {
            is_reset(&bytes, none, pod, RST, (0x0506_0708, 0));
        } else {
            let answer = unreachable::<F>(&packet(proto, pod, none), none.ip(), pod.ip());
            assert_eq!(bytes, answer.build());
        }
    }
}

/// UDP over IPv4 may have no checksum, and keeps having none.
fn udp_without_checksum_stays_without<F: Net, W: World + Store<F>>(world: &mut W) {
    if F::IS_V6 {
        return;
    }
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, UDP, &[remote(s.h.remote, 8080)]);
    let bare = |from, to| packet(UDP, from, to).checksum(Checksum::Zero);
    s.check(At::Pod, &bare(pod, vip), Verdict::Pass, &bare(pod, to));
    s.check(At::Out, &bare(to, pod), Verdict::Pass, &bare(vip, pod));
    let error = s.error(s.h.remote, s.h.pod, &bare(pod, to), 28);
    let translated = s.error(s.h.vip, s.h.pod, &bare(pod, vip), 28);
    s.check(At::Out, &error, Verdict::Pass, &translated);
}

/// How much of a packet errors quote.
fn quotes<F: Ip>() -> [usize; 3] {
    [least::<F>(), least::<F>() + 12, 500]
}

/// Semantics 8.14: what pods learn about a ClusterIP's backend.
fn errors_about_a_pods_connection<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    for proto in PROTOCOLS {
        s.service(vip, proto, &[remote(s.h.remote, 8080)]);
        s.sent(At::Pod, &first(proto, pod, vip));
        for len in quotes::<F>() {
            // From a router: its own address stays. From the backend itself: it is the VIP.
            for (from, seen) in [(s.h.router, s.h.router), (s.h.remote, s.h.vip)] {
                let error = s.error(from, s.h.pod, &packet(proto, pod, to), len);
                let translated = s.error(seen, s.h.pod, &packet(proto, pod, vip), len);
                s.untouched(At::External, &error);
                s.check(At::Out, &error, Verdict::Pass, &translated);
            }
            // The pod about a reply.
            let error = s.error(s.h.pod, s.h.vip, &packet(proto, vip, pod), len);
            let translated = s.error(s.h.pod, s.h.remote, &packet(proto, to, pod), len);
            s.check(At::Pod, &error, Verdict::Pass, &translated);
            s.untouched(At::Out, &translated);
        }
    }
    s.counted(Counter::IcmpError, 18);
}

fn errors_about_a_local_backend<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
    let to = at(s.h.pod, 8080);
    for proto in PROTOCOLS {
        s.service_with(
            front,
            proto,
            FrontendKind::NodePort,
            &[local(s.h.pod, 8080)],
            |_| {},
        );
        s.sent(At::External, &first(proto, client, front));
        for len in quotes::<F>() {
            let error = s.error(s.h.pod, s.h.client, &packet(proto, client, to), len);
            let translated = s.error(s.h.node, s.h.client, &packet(proto, client, front), len);
            s.untouched(At::Pod, &error);
            s.check(At::Out, &error, Verdict::Pass, &translated);
            let error = s.error(s.h.router, s.h.node, &packet(proto, front, client), len);
            let translated = s.error(s.h.router, s.h.pod, &packet(proto, to, client), len);
            s.untouched(At::Xdp, &error);
            s.check(At::External, &error, Verdict::Pass, &translated);
        }
    }
}

fn errors_about_a_remote_backend_pass_two_hooks<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    s.routes(&[s.h.remote, s.h.client]);
    for (hook, port) in [(At::External, 30_080), (At::Xdp, 30_081)] {
        for proto in PROTOCOLS {
            let (client, front) = (at(s.h.client, 40_000), at(s.h.node, port));
            let to = at(s.h.remote, 8080);
            let here = [remote(s.h.remote, 8080)];
            s.service_with(front, proto, FrontendKind::NodePort, &here, |_| {});
            let (_, bytes) = s.run(hook, &first(proto, client, front).build());
            let snat = match Parsed::frame(&bytes) {
                Ok(parsed) => at(s.h.node, parsed.source.port()),
                Err(error) => panic!("{error}"),
            };
            let between = at(s.h.client, snat.port());
            for len in quotes::<F>() {
                // About the original direction, from a router and from the backend.
                for (from, seen) in [(s.h.router, s.h.router), (s.h.remote, s.h.node)] {
                    let error = s.error(from, s.h.node, &packet(proto, snat, to), len);
                    let half = s.error(from, s.h.client, &packet(proto, between, to), len);
                    let whole = s.error(seen, s.h.client, &packet(proto, client, front), len);
                    s.check(At::External, &error, Verdict::Pass, &half);
                    s.check(At::Out, &half, Verdict::Pass, &whole);
                }
                // About a reply, from a router and from the client.
                for (from, seen) in [(s.h.router, s.h.router), (s.h.client, s.h.node)] {
                    let error = s.error(from, s.h.node, &packet(proto, front, client), len);
                    let half = s.error(from, s.h.remote, &packet(proto, to, between), len);
                    let whole = s.error(seen, s.h.remote, &packet(proto, to, snat), len);
                    s.check(At::External, &error, Verdict::Pass, &half);
                    s.check(At::Out, &half, Verdict::Pass, &whole);
                }
            }
        }
    }
}

/// No route, no neighbour, too big: the stack reports what tc ingress has made of a packet, before any
/// reply, to whom its source says.
fn errors_of_the_stack_between_two_hooks<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
    let to = at(s.h.remote, 8080);
    s.service_with(
        front,
        TCP,
        FrontendKind::NodePort,
        &[remote(s.h.remote, 8080)],
        |_| {},
    );
    let between = middle(&mut s, &first(TCP, client, front));
    for len in quotes::<F>() {
        let error = s.error(s.h.node, s.h.client, &packet(TCP, between, to), len);
        let whole = s.error(s.h.node, s.h.client, &packet(TCP, client, front), len);
        s.check(At::Out, &error, Verdict::Pass, &whole);
        let error = s.error(s.h.node, s.h.remote, &packet(TCP, to, between), len);
        let whole = s.error(
            s.h.node,
            s.h.remote,
            &packet(TCP, to, at(s.h.node, between.port())),
            len,
        );
        s.check(At::Out, &error, Verdict::Pass, &whole);
    }
}

fn errors_about_a_hairpin<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, own) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.pod, 8080));
    s.service(vip, UDP, &[local(s.h.pod, 8080)]);
    let (_, bytes) = s.run(At::Pod, &packet(UDP, pod, vip).build());
    let node = match Parsed::frame(&bytes) {
        Ok(parsed) => parsed.source,
        Err(error) => panic!("{error}"),
    };
    // The pod has no such port, and tells itself through the VIP.
    for len in quotes::<F>() {
        let error = s.error(s.h.pod, s.h.node, &packet(UDP, node, own), len);
        let translated = s.error(s.h.vip, s.h.pod, &packet(UDP, pod, vip), len);
        s.check(At::Pod, &error, Verdict::Reflect, &turned(translated));
    }
}

fn errors_about_others_are_untouched<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    for hook in [At::Xdp, At::External, At::Pod, At::Out] {
        for quoted in [
            packet(TCP, at(s.h.pod, 40_001), to),
            packet(UDP, pod, to),
            packet(TCP, to, pod),
            packet(TCP, pod, to).fragment(5, 64, false),
            PacketBuilder::raw(pod.ip(), to.ip(), 47).payload(&[0; 20]),
        ] {
            for len in [10, least::<F>() - 6, least::<F>(), 100] {
                let quoted = &quoted.build_ip();
                let quoted = &quoted[..len.min(quoted.len())];
                let (kind, code) = if F::IS_V6 { (1, 0) } else { (3, 0) };
                let error =
                    PacketBuilder::icmp(s.h.router, s.h.pod, kind, code, [0; 4]).payload(quoted);
                let bytes = error.build();
                assert_eq!(s.run(hook, &bytes), (Verdict::Pass, bytes), "{hook:?}");
            }
        }
    }
    s.counted(Counter::IcmpError, 0);
}

/// A redirect quotes a tuple that the client does not know.
fn redirects_about_translated_packets_are_dropped<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, front) = (at(s.h.client, 40_000), at(s.h.node, 30_080));
    let to = at(s.h.remote, 8080);
    s.service_with(
        front,
        TCP,
        FrontendKind::NodePort,
        &[remote(s.h.remote, 8080)],
        |_| {},
    );
    let between = middle(&mut s, &first(TCP, client, front));
    let redirect = |quoted: &PacketBuilder, lladdr: bool| {
        let quoted = quoted.build_ip();
        let h = F::hosts();
        let (IpAddr::V6(router), IpAddr::V6(target)) = (h.router, h.remote) else {
            return PacketBuilder::icmp(h.node, h.client, 5, 1, [198, 51, 100, 1])
                .payload(&quoted[..28]);
        };
        let mut body = [router.octets(), target.octets()].concat();
        if lladdr {
            body.extend([2, 1, 2, 0, 0, 0, 0, 1]);
        }
        body.extend([4, 8, 0, 0, 0, 0, 0, 0]);
        body.extend(&quoted[..56]);
        PacketBuilder::icmp(h.node, h.client, 137, 0, [0; 4]).payload(&body)
    };
    for lladdr in [false, true] {
        let ours = redirect(&packet(TCP, between, to), lladdr);
        s.dropped(At::Out, &ours, DropReason::IcmpRedirect);
        let other = redirect(&packet(TCP, at(s.h.client, 1), to), lladdr).build();
        assert_eq!(s.run(At::Out, &other), (Verdict::Pass, other.clone()));
        // What a router tells this node about its own packets is the stack's business.
        let theirs = redirect(&packet(TCP, at(s.h.node, between.port()), to), lladdr).build();
        assert_eq!(
            s.run(At::External, &theirs),
            (Verdict::Pass, theirs.clone())
        );
    }
}

/// A pod dials a backend itself from the port of its flow through a VIP.
fn direct_connection_with_a_taken_tuple<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.untouched(At::Pod, &first(TCP, pod, to));
    s.sent(At::Pod, &first(TCP, pod, vip));
    let moved = s.sent(At::Pod, &first(TCP, pod, to)).source;
    assert_ne!(moved, pod);
    s.counted(Counter::DirectRewritten, 1);
    let (answer, restored) = (packet(TCP, to, moved), packet(TCP, to, pod));
    for _ in 0..2 {
        // A bridge in front of the pod's interface leaves it to the latter.
        s.exit = EXTERNAL;
        s.untouched(At::Out, &answer);
        s.exit = POD;
        s.check(At::Out, &answer, Verdict::Pass, &restored);
        let next = packet(TCP, pod, to);
        s.check(At::Pod, &next, Verdict::Pass, &packet(TCP, moved, to));
        s.check(At::Out, &restored, Verdict::Pass, &packet(TCP, vip, pod));
    }
    for len in quotes::<F>() {
        let error = s.error(s.h.router, s.h.pod, &packet(TCP, moved, to), len);
        let restored = s.error(s.h.router, s.h.pod, &packet(TCP, pod, to), len);
        s.exit = EXTERNAL;
        s.untouched(At::Out, &error);
        s.exit = POD;
        s.check(At::Out, &error, Verdict::Pass, &restored);
    }
}

/// A client outside reaches a backend past the frontends, from a port that it used at one of them before.
fn a_port_used_again_past_the_frontends<F: Net, W: World + Store<F>>(world: &mut W) {
    // How the connection through the frontend ends: flags of a packet of the client, of the backend, whether it is over.
    let endings = [
        (ACK, ACK, false),
        (FIN | ACK, ACK, false),
        (ACK, FIN | ACK, false),
        (FIN | ACK, FIN | ACK, true),
        (RST, ACK, true),
        (ACK, RST, true),
    ];
    let mut s = Scene::<F, W>::new(world);
    let (front, to) = (at(s.h.node, 30_080), at(s.h.pod, 8080));
    s.service_with(
        front,
        TCP,
        FrontendKind::NodePort,
        &[local(s.h.pod, 8080)],
        |service| service.flags |= ServiceFlags::EXTERNAL_LOCAL,
    );
    s.exit = EXTERNAL;
    let mut over = 0;
    for (port, (client_flags, backend_flags, is_over)) in (40_000..).zip(endings) {
        let client = at(s.h.client, port);
        let sent = |flags| packet(TCP, client, front).flags(flags);
        let arrived = |flags| packet(TCP, client, to).flags(flags);
        let answer = |flags| packet(TCP, to, client).flags(flags);
        let restored = |flags| packet(TCP, front, client).flags(flags);
        for (theirs, ours) in [(SYN, SYN | ACK), (ACK, ACK), (client_flags, backend_flags)] {
            s.check(At::External, &sent(theirs), Verdict::Pass, &arrived(theirs));
            s.check(At::Out, &answer(ours), Verdict::Pass, &restored(ours));
        }
        s.untouched(At::External, &arrived(SYN));
        if is_over {
            over += 1;
            for flags in [SYN | ACK, ACK, FIN | ACK] {
                s.untouched(At::Out, &answer(flags));
            }
        } else {
            // The connection lives, and may have its SYN-ACK sent again.
            s.check(
                At::Out,
                &answer(SYN | ACK),
                Verdict::Pass,
                &restored(SYN | ACK),
            );
        }
        s.counted(Counter::OverForgotten, over);
        // The frontend is used again.
        s.check(At::External, &sent(SYN), Verdict::Pass, &arrived(SYN));
        s.check(
            At::Out,
            &answer(SYN | ACK),
            Verdict::Pass,
            &restored(SYN | ACK),
        );
    }
}

/// docs/decisions.md, "Stale and torn elements".
fn stale_elements_are_not_believed<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
    let placed = s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    // A frontend whose element belongs to another key by now.
    let key = ServiceKey::<F>::new(F::addr(s.h.vip), Be16::from_host(81), TCP);
    let other = ServiceKey::<F>::new(F::addr(s.h.vip), Be16::from_host(80), TCP);
    s.world.put_service(key, placed.service.sealed(&other));
    s.untouched(At::Pod, &first(TCP, pod, at(s.h.vip, 81)));
    s.counted(Counter::StaleElement, 1);
    // A flow whose element belongs to another key: it is not followed, and gives way.
    let (source, front) = (F::addr(s.h.pod), F::addr(s.h.vip));
    let (sport, dport) = (Be16::from_host(40_000), Be16::from_host(80));
    let key = FlowKey::new(source, front, sport, dport, TCP, Side::PodIn);
    let mut flow = Flow {
        check: 1,
        ..Flow::default()
    };
    flow.to.daddr = F::addr(s.h.client);
    Store::<F>::put_opening(s.world, key, flow);
    let to = at(s.h.remote, 8080);
    for packet in [first(TCP, pod, vip), packet(TCP, pod, vip)] {
        let arrived = s.sent(At::Pod, &packet);
        assert_eq!((arrived.source, arrived.destination), (pod, to));
    }
}

/// IPv6 packs the tuples of two protocols alike where the first source nibbles differ in one way. A forged source must
/// not keep a client out.
fn a_forged_twin_keeps_nobody_out<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let front = at(s.h.external, 53);
    let to = at(s.h.pod, 8080);
    for proto in PROTOCOLS {
        s.service_with(
            front,
            proto,
            FrontendKind::LoadBalancer,
            &[local(s.h.pod, 8080)],
            |service| service.flags |= ServiceFlags::EXTERNAL_LOCAL,
        );
    }
    let twin = match s.h.client {
        IpAddr::V4(addr) => IpAddr::from((u32::from(addr) ^ (4 << 28)).to_be_bytes()),
        IpAddr::V6(addr) => IpAddr::from((u128::from(addr) ^ (4 << 124)).to_be_bytes()),
    };
    for (port, theirs, ours) in [(40_000, UDP, TCP), (40_001, TCP, UDP)] {
        let (forged, client) = (at(twin, port), at(s.h.client, port));
        s.sent(At::External, &first(theirs, forged, front));
        for packet in [first(ours, client, front), packet(ours, client, front)] {
            let arrived = s.sent(At::External, &packet);
            assert_eq!((arrived.source, arrived.destination), (client, to));
        }
        s.exit = EXTERNAL;
        let answer = packet(ours, to, client);
        s.check(
            At::Out,
            &answer,
            Verdict::Pass,
            &packet(ours, front, client),
        );
    }
}

/// Semantics 8.2, 9.2.b, 9.4: `--masquerade-all` hides no client of a frontend with the external policy Local.
fn masquerade_all_keeps_clients_under_policy_local<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    s.modes(ModeFlags::MASQUERADE_ALL);
    for (port, flags, is_kept) in [(80, ServiceFlags::EXTERNAL_LOCAL, true), (81, 0, false)] {
        let (client, front) = (at(s.h.client, 40_000 + port), at(s.h.external, port));
        s.service_with(
            front,
            TCP,
            FrontendKind::LoadBalancer,
            &[local(s.h.pod, 8080)],
            |service| service.flags |= flags,
        );
        let source = s.sent(At::External, &first(TCP, client, front)).source;
        assert_eq!(source == client, is_kept, "{front}: {source}");
    }
}

/// Semantics 9.2.b. `--masquerade-all`: the reply of a local backend comes in at its pod interface.
fn masquerade_all_translates_local_backends<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    s.modes(ModeFlags::MASQUERADE_ALL);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.pod2, 8080));
    s.service(vip, TCP, &[local(s.h.pod2, 8080)]);
    let between = s.sent(At::Pod, &first(TCP, pod, vip)).source;
    let node = at(s.h.node, between.port());
    assert_eq!(between.ip(), pod.ip());
    for _ in 0..2 {
        s.check(
            At::Out,
            &packet(TCP, between, to),
            Verdict::Pass,
            &packet(TCP, node, to),
        );
        s.check(
            At::Pod,
            &packet(TCP, to, node),
            Verdict::Pass,
            &packet(TCP, to, between),
        );
        s.check(
            At::Out,
            &packet(TCP, to, between),
            Verdict::Pass,
            &packet(TCP, vip, pod),
        );
        s.check(
            At::Pod,
            &packet(TCP, pod, vip),
            Verdict::Pass,
            &packet(TCP, between, to),
        );
    }
}

/// Semantics 10.5, 11.3, 12.7: source ranges that come later, an endpoint that goes and a port that a Service drops are
/// for new flows.
fn only_new_flows_are_judged<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (client, pod) = (at(s.h.client, 40_000), at(s.h.pod, 40_000));
    let (front, vip) = (at(s.h.external, 80), at(s.h.vip, 80));
    let (here, there) = (local(s.h.pod2, 8080), remote(s.h.remote, 8080));
    let outside = s.service_with(front, TCP, FrontendKind::LoadBalancer, &[here], |_| {});
    s.service(vip, TCP, &[there]);
    s.cluster_ip_exists(vip);
    for (hook, from, to, backend) in [
        (At::External, client, front, here.addr),
        (At::Pod, pod, vip, there.addr),
    ] {
        s.sent(hook, &first(TCP, from, to));
        s.sent(At::Out, &packet(TCP, backend, from));
        s.sent(hook, &packet(TCP, from, to));
    }
    s.counted(Counter::FlowConfirmed, 2);
    let mut restricted = outside.service;
    restricted.flags |= ServiceFlags::SOURCE_RANGES;
    s.frontend(front, TCP, restricted);
    s.world.remove_service(ServiceKey::<F>::new(
        F::addr(vip.ip()),
        Be16::from_host(vip.port()),
        TCP,
    ));
    for (hook, from, to, backend) in [
        (At::External, client, front, here.addr),
        (At::Pod, pod, vip, there.addr),
    ] {
        s.check(
            hook,
            &packet(TCP, from, to),
            Verdict::Pass,
            &packet(TCP, from, backend),
        );
        s.check(
            At::Out,
            &packet(TCP, backend, from),
            Verdict::Pass,
            &packet(TCP, to, from),
        );
    }
    let other = at(s.h.router, 40_001);
    s.dropped(
        At::External,
        &first(TCP, other, front),
        DropReason::SourceRange,
    );
    let (verdict, _) = s.run(At::Pod, &first(TCP, at(pod.ip(), 40_001), vip).build());
    assert_eq!(
        verdict,
        Verdict::Reflect,
        "the port is not defined any more"
    );
}

/// Semantics 13.3, 13.6, 28.21: what a client keeps counts where it is in the list in force, and is replaced where it is not.
fn affinity_stays_within_the_list_in_force<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (vip, front) = (at(s.h.vip, 80), at(s.h.node, 30_080));
    let (here, there) = (local(s.h.pod2, 8080), remote(s.h.remote, 8080));
    let placed = s.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[there, here],
        |service| {
            service.affinity_secs = 10_800;
            service.flags |= ServiceFlags::INTERNAL_LOCAL;
        },
    );
    let mut external = placed.service;
    external.kind = FrontendKind::NodePort as u8;
    external.flags = ServiceFlags::HAS_ENDPOINTS;
    s.frontend(front, TCP, external);
    // The Cluster list has just the remote one for now.
    s.world
        .put_rows(placed.service.cluster.offset, &[placed.ids[0]; 2]);
    let mut port = 40_000;
    let mut connected = |s: &mut Scene<'_, F, W>, to: SocketAddr| {
        port += 1;
        let pod = at(s.h.pod, port);
        let backend = s.sent(At::Pod, &first(TCP, pod, to)).destination;
        s.sent(At::Out, &packet(TCP, backend, pod));
        s.sent(At::Pod, &packet(TCP, pod, to));
        backend
    };
    assert_eq!(connected(&mut s, front), there.addr);
    // The ClusterIP stays on the node; the client is remembered there from now on.
    assert_eq!(connected(&mut s, vip), here.addr);
    // The local one is in the Cluster list, too, and kept for that.
    assert_eq!(connected(&mut s, front), here.addr);
    s.counted(Counter::AffinityHit, 1);
    // Semantics 13.6: a terminating one that was used for want of others leaves the list, and serves on.
    let leaving = Endpoint {
        state: BackendState::LOCAL | BackendState::IN_LOCAL,
        ..here
    };
    s.put_backend(placed.ids[1], leaving, placed.service.id, 0);
    assert_eq!(connected(&mut s, front), there.addr);
    s.counted(Counter::AffinityHit, 1);
}

/// Semantics 19.3, 28.18: segments far outside the window, and those that come when the connection is over, never pass as
/// they are.
fn late_segments_are_translated<F: Net, W: World + Store<F>>(world: &mut W) {
    let mut s = Scene::<F, W>::new(world);
    let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
    s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
    s.sent(At::Pod, &first(TCP, pod, vip));
    s.sent(At::Out, &packet(TCP, to, pod).flags(SYN | ACK));
    s.sent(At::Pod, &packet(TCP, pod, vip));
    // How each end closes: nothing, by FIN, by RST.
    for (theirs, ours) in [(ACK, ACK), (FIN | ACK, FIN | ACK), (RST, ACK)] {
        for numbers in [(1, 1), (0x7fff_ffff, 0xffff_0000), (0xffff_ffff, 0)] {
            for (sent, answered) in [(theirs, ours), (ACK, ACK), (RST | ACK, RST | ACK)] {
                let shaped = |packet: PacketBuilder, flags| {
                    packet.flags(flags).numbers(numbers.0, numbers.1)
                };
                s.check(
                    At::Pod,
                    &shaped(packet(TCP, pod, vip), sent),
                    Verdict::Pass,
                    &shaped(packet(TCP, pod, to), sent),
                );
                s.check(
                    At::Out,
                    &shaped(packet(TCP, to, pod), answered),
                    Verdict::Pass,
                    &shaped(packet(TCP, vip, pod), answered),
                );
            }
        }
    }
}
