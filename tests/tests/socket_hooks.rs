//! The cgroup programs on real sockets: maps filled by hand, hooks attached to a cgroup of the test's own.
//!
//! One namespace is the node: backends are servers on addresses of its loopback interface, the sockets
//! of `host` are in the cgroup. Nothing is routed, so what answers was reached by the hooks alone.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use lb_common::{
    Family, V4, V6,
    abi::{
        Addr4, Addr6, AffinityKey, Backend, BackendFlags, BackendState, Be16, Be32, Config,
        Counter, DropReason, FrontendKind, ModeFlags, PORT_FILTER_WORDS, PacketCount, PortFilter,
        SELECTION_BLOCK_ROWS, SelectionBlock, SelectionList, Service, ServiceFlags, ServiceKey,
        SocketPeer, Transport, port_filter_slot, proto,
    },
    names,
};
use lb_tests::{
    cgroup::Cgroup,
    echo::{Answer, Datagrams, Dial, Failure, Proto, Server, Stream},
    netns::NetNs,
    prog_run::object_path,
    tests,
    topology::{Ip, Place},
    trials,
};
use socket2::{Domain, Socket, Type};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            a_dialled_cluster_ip_reaches_backends_and_is_what_the_process_sees,
            every_connected_socket_sees_what_it_dialled,
            a_socket_whose_record_is_lost_sees_its_backend_and_goes_on,
            an_unconnected_socket_keeps_its_backend_until_that_is_gone,
            one_socket_may_talk_to_several_services,
            an_ipv4_mapped_address_is_ipv4,
            what_nobody_serves_is_refused_and_what_is_not_allowed_is_denied,
            a_node_port_on_loopback_reaches_a_backend_from_the_node_s_address,
            sockets_of_other_namespaces_are_left_alone_unless_all_are_wanted,
            affinity_holds_for_all_sockets_of_the_node,
            a_connection_stays_with_its_backend_when_that_leaves
        ]
    ))
}

const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;
const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x100);

/// Every case runs in both families.
const FAMILIES: [Ip; 2] = [Ip::V4, Ip::V6];

fn node_addr(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => NODE_V4.into(),
        Ip::V6 => NODE_V6.into(),
    }
}

fn backend_addr(ip: Ip, number: u8) -> IpAddr {
    match ip {
        Ip::V4 => Ipv4Addr::new(10, 9, 0, number).into(),
        Ip::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(number)).into(),
    }
}

fn cluster_ip(ip: Ip, number: u8) -> IpAddr {
    match ip {
        Ip::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Ip::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, u16::from(number)).into(),
    }
}

fn addr4(addr: IpAddr) -> Option<Addr4> {
    match addr {
        IpAddr::V4(addr) => Some(addr.into()),
        IpAddr::V6(_) => None,
    }
}

fn addr6(addr: IpAddr) -> Addr6 {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

/// A type of `lb_common::abi` as it lies in a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element<T>(T);

// SAFETY: used with types of `lb_common::abi` and integers only: `repr(C)`, no hidden padding, every bit
// pattern valid.
unsafe impl<T: Copy + 'static> Pod for Element<T> {}

/// What follows the prefix length in a key of `src_ranges_*`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SrcRange<A> {
    service_id: Be32,
    client: A,
}

/// The programs, attached, and their maps.
struct Hooks {
    ebpf: Ebpf,
    port_filter: [PortFilter; 3],
    rows: Box<SelectionBlock>,
    config: Config,
}

impl Hooks {
    /// Loads and attaches all eight to the cgroup.
    fn attach(cgroup: &Cgroup, home: &NetNs, has_set_retval: bool) -> Result<Hooks> {
        let path = object_path();
        let object = std::fs::read(&path)
            .with_context(|| format!("cannot read {}; run `cargo xtask build`", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader.allow_unsupported_maps();
        let has_set_retval = u8::from(has_set_retval);
        loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
        for names in [
            names::maps::SERVICES,
            names::maps::BACKENDS,
            names::maps::AFFINITY,
        ] {
            for name in names {
                loader.map_max_entries(name, 1024);
            }
        }
        loader.map_max_entries(names::maps::SELECTION, 1);
        let mut ebpf = loader.load(&object)?;
        let dir = File::open(cgroup.path())?;
        for name in names::programs::CGROUP {
            let program: &mut CgroupSockAddr = ebpf
                .program_mut(name)
                .ok_or_else(|| anyhow!("no program `{name}`"))?
                .try_into()?;
            program
                .load()
                .with_context(|| format!("the verifier rejects `{name}`"))?;
            program
                .attach(&dir, CgroupAttachMode::Single)
                .with_context(|| format!("cannot attach `{name}`"))?;
        }
        let config = Config {
            node_v4: NODE_V4.into(),
            node_v6: NODE_V6.into(),
            cluster_net_v4: Ipv4Addr::new(10, 96, 0, 0).into(),
            cluster_mask_v4: Ipv4Addr::new(255, 255, 0, 0).into(),
            cluster_net_v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0).into(),
            cluster_mask_v6: Ipv6Addr::new(0xffff, 0, 0, 0, 0, 0, 0, 0).into(),
            netns_cookie: netns_cookie(home)?,
            ..Config::default()
        };
        let mut hooks = Hooks {
            ebpf,
            port_filter: [PortFilter {
                words: [0; PORT_FILTER_WORDS],
            }; 3],
            rows: Box::new([0; SELECTION_BLOCK_ROWS]),
            config,
        };
        hooks.set(names::maps::CONFIG, 0, config)?;
        Ok(hooks)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .ok_or_else(|| anyhow!("no map `{name}`"))
    }

    fn set<V: Copy + 'static>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        let mut map = Array::<_, Element<V>>::try_from(self.map(name)?)?;
        Ok(map.set(index, Element(value), 0)?)
    }

    fn insert<K, V>(&mut self, name: &str, key: K, value: V) -> Result<()>
    where
        K: Copy + 'static,
        V: Copy + 'static,
    {
        let mut map = HashMap::<_, Element<K>, Element<V>>::try_from(self.map(name)?)?;
        Ok(map.insert(Element(key), Element(value), 0)?)
    }

    /// How often something was counted, over all CPUs.
    fn count(&mut self, number: u32) -> Result<u64> {
        let map =
            PerCpuArray::<_, Element<PacketCount>>::try_from(self.map(names::maps::COUNTERS)?)?;
        let counts = map.get(&number, 0)?;
        Ok(counts.iter().map(|count| count.0.packets).sum())
    }

    fn modes(&mut self, modes: ModeFlags) -> Result<()> {
        self.config.modes = modes;
        self.set(names::maps::CONFIG, 0, self.config)
    }

    /// A backend whose id belongs to service port `service_id`.
    fn backend(
        &mut self,
        id: u32,
        service_id: u32,
        addr: SocketAddr,
        generation: u32,
    ) -> Result<()> {
        let state = BackendState::new(
            generation * BackendState::GENERATION_STEP,
            BackendFlags::USABLE | BackendFlags::IN_CLUSTER,
        );
        let port = Be16::from_host(addr.port());
        match addr4(addr.ip()) {
            Some(ip) => self.set(
                names::maps::BACKENDS[V4::INDEX],
                id,
                Backend::<V4>::new(ip, port, 0, state, service_id),
            ),
            None => self.set(
                names::maps::BACKENDS[V6::INDEX],
                id,
                Backend::<V6>::new(addr6(addr.ip()), port, 0, state, service_id),
            ),
        }
    }

    /// Rows of the selection slab: backend `ids` in turn.
    fn list(&mut self, offset: usize, ids: &[u32]) -> Result<SelectionList> {
        self.rows[offset..offset + ids.len()].copy_from_slice(ids);
        self.set(names::maps::SELECTION, 0, *self.rows)?;
        Ok(SelectionList {
            offset: u32::try_from(offset)?,
            len: u32::try_from(ids.len())?,
        })
    }

    /// A frontend, for TCP and UDP.
    fn frontend(&mut self, addr: SocketAddr, service: Service) -> Result<()> {
        let port = Be16::from_host(addr.port());
        for proto in [proto::TCP, proto::UDP] {
            match addr4(addr.ip()) {
                Some(ip) => {
                    let key = ServiceKey::<V4>::new(ip, port, proto);
                    self.insert(names::maps::SERVICES[V4::INDEX], key, service.sealed(&key))?;
                }
                None => {
                    let key = ServiceKey::<V6>::new(addr6(addr.ip()), port, proto);
                    self.insert(names::maps::SERVICES[V6::INDEX], key, service.sealed(&key))?;
                }
            }
            let transport = Transport::from_proto(proto).context("TCP and UDP have a filter")?;
            let slot = port_filter_slot(transport);
            let filter = &mut self.port_filter[usize::try_from(slot)?];
            filter.words[usize::from(addr.port() / 32)] |= 1 << (addr.port() % 32);
            let filter = *filter;
            self.set(names::maps::PORT_FILTER, slot, filter)?;
        }
        Ok(())
    }

    /// The address-only entry of a ClusterIP.
    fn address_only(&mut self, addr: IpAddr) -> Result<()> {
        let mut service = Service::default();
        service.kind = FrontendKind::ClusterIp as u8;
        service.flags = ServiceFlags::ADDRESS_ONLY;
        let port = Be16 { be: 0 };
        match addr4(addr) {
            Some(ip) => {
                let key = ServiceKey::<V4>::new(ip, port, 0);
                self.insert(names::maps::SERVICES[V4::INDEX], key, service.sealed(&key))
            }
            None => {
                let key = ServiceKey::<V6>::new(addr6(addr), port, 0);
                self.insert(names::maps::SERVICES[V6::INDEX], key, service.sealed(&key))
            }
        }
    }

    /// Allows one source address to a service port.
    fn allow(&mut self, service_id: u32, client: IpAddr) -> Result<()> {
        let service_id = Be32::from_host(service_id);
        match addr4(client) {
            Some(client) => {
                let mut trie = LpmTrie::<_, Element<SrcRange<Addr4>>, u32>::try_from(
                    self.map(names::maps::SRC_RANGES[V4::INDEX])?,
                )?;
                let data = Element(SrcRange { service_id, client });
                Ok(trie.insert(&lpm_trie::Key::new(64, data), 1, 0)?)
            }
            None => {
                let client = addr6(client);
                let mut trie = LpmTrie::<_, Element<SrcRange<Addr6>>, u32>::try_from(
                    self.map(names::maps::SRC_RANGES[V6::INDEX])?,
                )?;
                let data = Element(SrcRange { service_id, client });
                Ok(trie.insert(&lpm_trie::Key::new(160, data), 1, 0)?)
            }
        }
    }

    /// A ClusterIP of two backends; ids and rows follow from `service_id`.
    fn pair(&mut self, ip: Ip, service_id: u32, frontend: SocketAddr) -> Result<Service> {
        let first = service_id * 2;
        for number in [1u8, 2] {
            let addr = (backend_addr(ip, number), PORT).into();
            self.backend(first + u32::from(number) - 1, service_id, addr, 1)?;
        }
        let ids: Vec<u32> = (0..32).map(|row| first + row % 2).collect();
        let list = self.list(usize::try_from(service_id)? * 32, &ids)?;
        let mut service = Service::default();
        service.id = service_id;
        service.cluster = list;
        service.local = list;
        service.kind = FrontendKind::ClusterIp as u8;
        service.flags = ServiceFlags::HAS_ENDPOINTS;
        self.frontend(frontend, service)?;
        Ok(service)
    }
}

/// The namespace's number, as the hooks see it (`SO_NETNS_COOKIE`, since 5.14).
fn netns_cookie(ns: &NetNs) -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = ns.socket(Domain::IPV4, Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>())?;
    // SAFETY: the option writes eight bytes, which `cookie` has.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    ensure!(code == 0, std::io::Error::last_os_error());
    Ok(cookie)
}

/// A node in a namespace, with two servers a family, and sockets in a cgroup.
struct Fixture {
    host: Place,
    cgroup: Arc<Cgroup>,
    hooks: Hooks,
    _servers: Vec<Server>,
}

impl Fixture {
    fn new(what: &str, has_set_retval: bool) -> Result<Fixture> {
        let ns = NetNs::new(what)?;
        let mut lines = "link set lo up\n".to_owned();
        for ip in FAMILIES {
            // Without `nodad` an IPv6 address is tentative until a work item of the kernel has run, on lo, too.
            let options = if ip == Ip::V4 {
                "/32 dev lo"
            } else {
                "/128 dev lo nodad"
            };
            for addr in [backend_addr(ip, 1), backend_addr(ip, 2), node_addr(ip)] {
                lines += &format!("addr add {addr}{options}\n");
            }
        }
        ns.ip(&lines)?;
        let outside = Place::new("servers", ns.clone(), NODE_V4, NODE_V6);
        let mut servers = Vec::new();
        for ip in FAMILIES {
            for number in [1, 2] {
                for proto in [Proto::Tcp, Proto::Udp] {
                    let name = format!("backend{number}");
                    let addr = (backend_addr(ip, number), PORT).into();
                    servers.push(Server::start_at(&outside, &name, addr, proto)?);
                }
            }
        }
        let cgroup = Arc::new(Cgroup::new(what)?);
        let host = Place::new("host", ns.clone(), NODE_V4, NODE_V6);
        host.enter_cgroup(Some(Arc::clone(&cgroup)));
        let hooks = Hooks::attach(&cgroup, &ns, has_set_retval)?;
        Ok(Fixture {
            host,
            cgroup,
            hooks,
            _servers: servers,
        })
    }
}

/// Asserts that a backend answered and the dialled address was shown.
fn check(answer: &Answer, ip: Ip, dialled: SocketAddr) -> Result<()> {
    ensure!(answer.peer == dialled, "shown {answer:?}");
    ensure!(
        [backend_addr(ip, 1), backend_addr(ip, 2)].contains(&answer.seen_local.ip()),
        "reached {answer:?}"
    );
    Ok(())
}

fn a_dialled_cluster_ip_reaches_backends_and_is_what_the_process_sees() -> Result<()> {
    let mut fixture = Fixture::new("hooks-dial", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        fixture.hooks.pair(ip, id, vip)?;
        for dial in [
            Dial::tcp(&fixture.host, vip),
            Dial::udp(&fixture.host, vip),
            Dial::udp(&fixture.host, vip).unconnected(),
        ] {
            let mut met = std::collections::BTreeSet::new();
            for _ in 0..32 {
                let answer = dial
                    .timeout(PATIENCE)
                    .ask()
                    .with_context(|| dial.to_string())?;
                check(&answer, ip, vip).with_context(|| dial.to_string())?;
                met.insert(answer.server);
            }
            // One of 32 sockets in a row meets only one of two backends once in 2^31.
            ensure!(met.len() == 2, "{dial}: only {met:?}");
        }
    }
    // In both families 32 TCP and 32 UDP sockets were connected; 32 datagrams sent without.
    assert_eq!(fixture.hooks.count(Counter::SocketConnect as u32)?, 128);
    assert_eq!(fixture.hooks.count(Counter::SocketSend as u32)?, 64);
    assert!(fixture.hooks.count(Counter::SocketReceive as u32)? >= 192);
    Ok(())
}

/// `SO_COOKIE`: the number by which the hooks know a socket.
fn cookie(socket: &Socket) -> Result<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>())?;
    // SAFETY: the option writes eight bytes, which `cookie` has.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    ensure!(code == 0, std::io::Error::last_os_error());
    Ok(cookie)
}

/// Sockets of one moment, their cells side by side: two frontends of the same backends, and the backends themselves.
fn every_connected_socket_sees_what_it_dialled() -> Result<()> {
    let mut fixture = Fixture::new("hooks-peers", true)?;
    for (id, ip) in [1, 3].into_iter().zip(FAMILIES) {
        let vips: [SocketAddr; 2] = [
            (cluster_ip(ip, 1), 80).into(),
            (cluster_ip(ip, 2), 81).into(),
        ];
        for (service_id, vip) in (id..).zip(vips) {
            fixture.hooks.pair(ip, service_id, vip)?;
        }
        let direct: SocketAddr = (backend_addr(ip, 1), PORT).into();
        for kind in [Type::STREAM, Type::DGRAM] {
            let mut sockets = Vec::new();
            for dialled in [vips[0], vips[1], direct].into_iter().cycle().take(300) {
                let domain = Domain::for_address(dialled);
                let socket = fixture.cgroup.socket(&fixture.host.ns, domain, kind)?;
                socket.connect(&dialled.into())?;
                sockets.push((socket, dialled));
            }
            for (socket, dialled) in &sockets {
                ensure!(
                    socket.peer_addr()?.as_socket() == Some(*dialled),
                    "{kind:?} to {dialled}: shown {:?}",
                    socket.peer_addr()?.as_socket()
                );
            }
        }
    }
    Ok(())
}

fn a_socket_whose_record_is_lost_sees_its_backend_and_goes_on() -> Result<()> {
    let mut fixture = Fixture::new("hooks-lost", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        fixture.hooks.pair(ip, id, vip)?;
        for kind in [Type::STREAM, Type::DGRAM] {
            let socket = fixture
                .cgroup
                .socket(&fixture.host.ns, Domain::for_address(vip), kind)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(&vip.into())?;
            ensure!(socket.peer_addr()?.as_socket() == Some(vip));
            let cell = SocketPeer::cell(cookie(&socket)?);
            let map = names::maps::SOCKET_PEERS;
            fixture.hooks.set(map, cell, SocketPeer::default())?;
            let shown = socket.peer_addr()?.as_socket().map(|peer| peer.ip());
            ensure!(
                shown == Some(backend_addr(ip, 1)) || shown == Some(backend_addr(ip, 2)),
                "{kind:?}: shown {shown:?}"
            );
            socket.send(b"who 0\n")?;
            let mut bytes = [std::mem::MaybeUninit::uninit(); 64];
            ensure!(socket.recv(&mut bytes)? > 0);
        }
    }
    Ok(())
}

fn an_unconnected_socket_keeps_its_backend_until_that_is_gone() -> Result<()> {
    // semantics 17.2
    let mut fixture = Fixture::new("hooks-keep", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        let mut service = fixture.hooks.pair(ip, id, vip)?;
        let mut socket = Datagrams::open(Dial::udp(&fixture.host, vip).unconnected())?;
        let first = socket.ask(PATIENCE)?;
        check(&first, ip, vip)?;
        let (gone, left) = if first.server == "backend1" {
            (1u8, 2u8)
        } else {
            (2, 1)
        };
        // It leaves the list only: the socket stays with it (17.4).
        let left_id = id * 2 + u32::from(left) - 1;
        service.cluster = fixture.hooks.list(512 + usize::try_from(id)?, &[left_id])?;
        service.local = service.cluster;
        fixture.hooks.frontend(vip, service)?;
        for _ in 0..8 {
            assert_eq!(socket.ask(PATIENCE)?.server, first.server);
        }
        // Its endpoint serves no more.
        let gone_id = id * 2 + u32::from(gone) - 1;
        let addr = (backend_addr(ip, gone), PORT).into();
        fixture.hooks.backend(gone_id, id, addr, 2)?;
        let after = socket.ask(PATIENCE)?;
        check(&after, ip, vip)?;
        assert_eq!(after.server, format!("backend{left}"));
        // No endpoint is left: refused (17.2 c).
        let addr = (backend_addr(ip, left), PORT).into();
        fixture.hooks.backend(left_id, id, addr, 2)?;
        service.cluster = SelectionList::default();
        service.local = SelectionList::default();
        service.flags = ServiceFlags::NONE;
        fixture.hooks.frontend(vip, service)?;
        assert_eq!(socket.ask(PATIENCE), Err(Failure::Refused));
    }
    Ok(())
}

fn one_socket_may_talk_to_several_services() -> Result<()> {
    let mut fixture = Fixture::new("hooks-two", true)?;
    for (id, ip) in [1, 3].into_iter().zip(FAMILIES) {
        let vips: [SocketAddr; 2] = [
            (cluster_ip(ip, 1), 80).into(),
            (cluster_ip(ip, 2), 81).into(),
        ];
        // Each has a backend of its own: two frontends with one backend cannot be told apart.
        for (index, vip) in vips.into_iter().enumerate() {
            let service_id = id + u32::try_from(index)?;
            let mut service = fixture.hooks.pair(ip, service_id, vip)?;
            let backend = service_id * 2 + u32::try_from(index)?;
            service.cluster = fixture
                .hooks
                .list(512 + usize::try_from(service_id)?, &[backend])?;
            fixture.hooks.frontend(vip, service)?;
        }
        let mut socket = Datagrams::open(Dial::udp(&fixture.host, vips[0]).unconnected())?;
        for _ in 0..3 {
            for (vip, server) in vips.into_iter().zip(["backend1", "backend2"]) {
                let answer = socket.ask_to(vip, 0, PATIENCE)?;
                assert_eq!((answer.peer, answer.server.as_str()), (vip, server));
            }
        }
        // A direct datagram is none of ours, and its answer shows whom it reached.
        let direct = (backend_addr(ip, 1), PORT).into();
        let mut socket = Datagrams::open(Dial::udp(&fixture.host, direct).unconnected())?;
        assert_eq!(socket.ask(PATIENCE)?.peer, direct);
    }
    Ok(())
}

fn an_ipv4_mapped_address_is_ipv4() -> Result<()> {
    let mut fixture = Fixture::new("hooks-mapped", true)?;
    let vip = (cluster_ip(Ip::V4, 1), 80).into();
    fixture.hooks.pair(Ip::V4, 1, vip)?;
    let mapped: SocketAddr = (Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped(), 80).into();

    let socket = fixture
        .cgroup
        .socket(&fixture.host.ns, Domain::IPV6, Type::STREAM)?;
    socket.set_only_v6(false)?;
    socket.connect(&mapped.into())?;
    assert_eq!(socket.peer_addr()?.as_socket(), Some(mapped));
    let mut stream: std::net::TcpStream = socket.into();
    stream.write_all(b"who 0\n")?;
    let mut byte = [0u8; 7];
    stream.read_exact(&mut byte)?;
    assert_eq!(&byte, b"backend");

    let socket = |fixture: &Fixture| -> Result<Socket> {
        let socket = fixture
            .cgroup
            .socket(&fixture.host.ns, Domain::IPV6, Type::DGRAM)?;
        socket.set_only_v6(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let connected = socket(&fixture)?;
    connected.connect(&mapped.into())?;
    assert_eq!(connected.peer_addr()?.as_socket(), Some(mapped));
    let connected: std::net::UdpSocket = connected.into();
    connected.send(b"who 1\n")?;
    let mut buffer = [0u8; 256];
    assert_eq!(connected.recv_from(&mut buffer)?.1, mapped);

    let unconnected: std::net::UdpSocket = socket(&fixture)?.into();
    for _ in 0..3 {
        unconnected.send_to(b"who 1\n", mapped)?;
        assert_eq!(unconnected.recv_from(&mut buffer)?.1, mapped);
    }
    // The kernel hands a mapped datagram to the IPv4 hook.
    assert_eq!(fixture.hooks.count(Counter::SocketSend as u32)?, 3);
    assert_eq!(fixture.hooks.count(Counter::SocketConnect as u32)?, 2);
    Ok(())
}

fn what_nobody_serves_is_refused_and_what_is_not_allowed_is_denied() -> Result<()> {
    // The second round runs the programs as a kernel before 5.18 gets them.
    for (has_set_retval, refused) in [(true, Failure::Refused), (false, Failure::NotPermitted)] {
        let mut fixture = Fixture::new("hooks-refuse", has_set_retval)?;
        for (id, ip) in [1, 11].into_iter().zip(FAMILIES) {
            let vip = |number| SocketAddr::from((cluster_ip(ip, number), 80));
            // semantics 10.1: no endpoint anywhere.
            let mut empty = fixture.hooks.pair(ip, id, vip(1))?;
            empty.cluster = SelectionList::default();
            empty.local = SelectionList::default();
            empty.flags = ServiceFlags::NONE;
            fixture.hooks.frontend(vip(1), empty)?;
            // semantics 10.2: policy Local, the endpoints are elsewhere.
            let mut local = fixture.hooks.pair(ip, id + 1, vip(2))?;
            local.local = SelectionList::default();
            local.flags |= ServiceFlags::INTERNAL_LOCAL;
            fixture.hooks.frontend(vip(2), local)?;
            // semantics 12.3: the node is in no range.
            let mut ranges = fixture.hooks.pair(ip, id + 2, vip(3))?;
            ranges.kind = FrontendKind::LoadBalancer as u8;
            ranges.flags |= ServiceFlags::SOURCE_RANGES;
            fixture.hooks.frontend(vip(3), ranges)?;
            fixture.hooks.allow(id + 2, backend_addr(ip, 1))?;
            // semantics 11.1: a port that the Service does not define.
            fixture.hooks.address_only(cluster_ip(ip, 2))?;
            let undefined = (cluster_ip(ip, 2), 4000).into();

            for proto in [Proto::Tcp, Proto::Udp] {
                let host = &fixture.host;
                let ask = |to| Dial::new(host, proto, to).timeout(PATIENCE).ask();
                assert_eq!(ask(vip(1)), Err(refused.clone()));
                assert_eq!(ask(undefined), Err(refused.clone()));
                assert_eq!(ask(vip(2)), Err(Failure::NotPermitted));
                assert_eq!(ask(vip(3)), Err(Failure::NotPermitted));
                // Bound to the address that is allowed, the same socket may.
                let allowed = Dial::new(host, proto, vip(3))
                    .source((backend_addr(ip, 1), 0).into())
                    .timeout(PATIENCE)
                    .ask()?;
                check(&allowed, ip, vip(3))?;
            }
            let host = &fixture.host;
            let send = |to| Dial::udp(host, to).unconnected().timeout(PATIENCE).ask();
            assert_eq!(send(vip(1)), Err(refused.clone()));
            assert_eq!(send(undefined), Err(refused.clone()));
            assert_eq!(send(vip(2)), Err(Failure::NotPermitted));
            assert_eq!(send(vip(3)), Err(Failure::NotPermitted));
            let allowed = Dial::udp(host, vip(3))
                .unconnected()
                .source((backend_addr(ip, 1), 0).into())
                .timeout(PATIENCE)
                .ask()?;
            check(&allowed, ip, vip(3))?;
        }
        let hooks = &mut fixture.hooks;
        // Three ways of asking, two families.
        assert_eq!(hooks.count(Counter::SocketRefused as u32)?, 12);
        assert_eq!(hooks.count(DropReason::NoLocalEndpoint as u32)?, 6);
        assert_eq!(hooks.count(DropReason::SourceRange as u32)?, 6);
    }
    Ok(())
}

fn a_node_port_on_loopback_reaches_a_backend_from_the_node_s_address() -> Result<()> {
    // semantics 14.8a, 14.9
    let mut fixture = Fixture::new("hooks-loopback", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let loopback: IpAddr = match ip {
            Ip::V4 => Ipv4Addr::LOCALHOST.into(),
            Ip::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let node_port = (loopback, 30080).into();
        let mut service = fixture.hooks.pair(ip, id, node_port)?;
        service.kind = FrontendKind::NodePort as u8;
        // The short-circuit of 8.6: a process of the node meets the Cluster list.
        service.flags |= ServiceFlags::EXTERNAL_LOCAL;
        service.local = SelectionList::default();
        fixture.hooks.frontend(node_port, service)?;
        for dial in [
            Dial::tcp(&fixture.host, node_port),
            Dial::udp(&fixture.host, node_port),
            Dial::udp(&fixture.host, node_port).unconnected(),
        ] {
            let answer = dial.timeout(PATIENCE).ask()?;
            check(&answer, ip, node_port).with_context(|| dial.to_string())?;
            ensure!(!answer.seen_peer.ip().is_loopback(), "{answer:?}");
        }
        // Bound to loopback no backend can be reached: the call is left alone, and the kernel finds nobody
        // at that port.
        for dial in [
            Dial::tcp(&fixture.host, node_port),
            Dial::udp(&fixture.host, node_port),
        ] {
            let bound = dial.source((loopback, 0).into()).timeout(PATIENCE).ask();
            assert_eq!(bound, Err(Failure::Refused), "{dial}");
        }
    }
    Ok(())
}

fn sockets_of_other_namespaces_are_left_alone_unless_all_are_wanted() -> Result<()> {
    let mut fixture = Fixture::new("hooks-home", true)?;
    let other = NetNs::new("hooks-other")?;
    other.ip("link set lo up\n")?;
    let pod = Place::new("pod", other, NODE_V4, NODE_V6);
    pod.enter_cgroup(Some(Arc::clone(&fixture.cgroup)));
    for (id, ip) in [1, 11].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        fixture.hooks.pair(ip, id, vip)?;
        let sticky = (cluster_ip(ip, 2), 80).into();
        let mut service = fixture.hooks.pair(ip, id + 1, sticky)?;
        service.affinity_secs = 60;
        fixture.hooks.frontend(sticky, service)?;
        let connects = Counter::SocketConnect as u32;
        let before = fixture.hooks.count(connects)?;
        for proto in [Proto::Tcp, Proto::Udp] {
            assert_eq!(Dial::new(&pod, proto, vip).ask(), Err(Failure::Unreachable));
        }
        assert_eq!(fixture.hooks.count(connects)?, before);
        fixture.hooks.modes(ModeFlags::SOCKET_ALL)?;
        for (proto, vip) in [(Proto::Tcp, vip), (Proto::Udp, vip), (Proto::Tcp, sticky)] {
            // Nothing is routed there, so the translation shows in the counter.
            assert_eq!(Dial::new(&pod, proto, vip).ask(), Err(Failure::Unreachable));
        }
        // TCP alone; not where the pod's address would be needed.
        assert_eq!(fixture.hooks.count(connects)?, before + 1);
        fixture.hooks.modes(ModeFlags::NONE)?;
    }
    Ok(())
}

fn affinity_holds_for_all_sockets_of_the_node() -> Result<()> {
    // semantics 13.1, 13.2, 13.5
    let mut fixture = Fixture::new("hooks-affinity", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        let mut service = fixture.hooks.pair(ip, id, vip)?;
        service.affinity_secs = 10_800;
        fixture.hooks.frontend(vip, service)?;
        let first = Dial::tcp(&fixture.host, vip).timeout(PATIENCE).ask()?;
        let key_exists = match ip {
            Ip::V4 => affinity_of::<V4>(&mut fixture.hooks, id, NODE_V4.into())?,
            Ip::V6 => affinity_of::<V6>(&mut fixture.hooks, id, NODE_V6.into())?,
        };
        ensure!(key_exists, "no entry for the node's primary address");
        // The other backend alone is what the hash would choose now.
        let other = id * 2 + u32::from(first.server == "backend1");
        service.cluster = fixture
            .hooks
            .list(512 + usize::try_from(id)? * 2, &[other, other])?;
        service.local = service.cluster;
        fixture.hooks.frontend(vip, service)?;
        for dial in [
            Dial::tcp(&fixture.host, vip),
            Dial::udp(&fixture.host, vip),
            Dial::udp(&fixture.host, vip).unconnected(),
        ] {
            let answer = dial.timeout(PATIENCE).ask()?;
            assert_eq!(answer.server, first.server, "{dial}");
        }
    }
    assert_eq!(fixture.hooks.count(Counter::AffinityHit as u32)?, 6);
    Ok(())
}

fn affinity_of<F: Family>(hooks: &mut Hooks, service_id: u32, client: F::Addr) -> Result<bool> {
    let map = HashMap::<_, Element<AffinityKey<F>>, Element<lb_common::abi::Affinity>>::try_from(
        hooks.map(names::maps::AFFINITY[F::INDEX])?,
    )?;
    Ok(map
        .get(&Element(AffinityKey { service_id, client }), 0)
        .is_ok())
}

fn a_connection_stays_with_its_backend_when_that_leaves() -> Result<()> {
    // semantics 18.1: a TCP connection stays with its backend whatever becomes of the endpoint.
    let mut fixture = Fixture::new("hooks-stay", true)?;
    for (id, ip) in [1, 2].into_iter().zip(FAMILIES) {
        let vip = (cluster_ip(ip, 1), 80).into();
        fixture.hooks.pair(ip, id, vip)?;
        let mut stream = Stream::open(Dial::tcp(&fixture.host, vip))?;
        let server = stream.ask(PATIENCE)?.server;
        for number in [1u8, 2] {
            let addr = (backend_addr(ip, number), PORT).into();
            fixture
                .hooks
                .backend(id * 2 + u32::from(number) - 1, id, addr, 2)?;
        }
        let again = stream.ask(PATIENCE)?;
        assert_eq!((again.server, again.peer), (server, vip));
    }
    Ok(())
}
