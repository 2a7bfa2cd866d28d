//! A few numbers → a node's maps with Services, backends, routes and, where asked for, entries that no program would
//! write; and packets between the hosts around it.
//!
//! Everything is chosen from short lists, so that packets meet what is in the maps. Ports that clients use are no ports
//! of Services or endpoints: with those, tuples may mean two things by design.

use std::net::{IpAddr, SocketAddr};

use arbitrary::Arbitrary;
use lb_common::abi::{
    Backend, BackendFlags, BackendState, Be16, Config, FlowFlags, Interface, InterfaceRole,
    MacAddr, ModeFlags, PortRange, SelectionList, Service, ServiceFlags, ServiceKey, Side,
    XdpDevice,
};
use lb_common::flow_table::{Class, Hop, Record, Tuple};
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};
use lb_tests::cases::{CONVERSATION, Dataplane, FamilyMaps, Net};
use lb_tests::native::{Halves, Native};
use lb_tests::packet::{DESTINATION, FIN, PacketBuilder, RST, SYN, TCP, UDP};

/// The external interface.
pub(crate) const EXTERNAL: u32 = 2;
/// The interface of every pod.
pub(crate) const POD: u32 = 3;
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const NEXT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];
const SNAT_PORTS: PortRange = PortRange {
    first: 20_000,
    last: 20_007,
};

/// Where a host is, seen from the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Outside,
    Node,
    Pod,
}

/// Hosts: those that dial and those that are dialled as endpoints.
const HOSTS: [(&str, &str, Place); 6] = [
    ("198.51.100.7", "2001:db8:100::7", Place::Outside),
    ("10.244.2.7", "fd00:10:244:2::7", Place::Outside),
    ("10.244.1.5", "fd00:10:244:1::5", Place::Pod),
    ("10.244.1.6", "fd00:10:244:1::6", Place::Pod),
    ("192.0.2.1", "2001:db8:2::1", Place::Node),
    ("10.244.2.8", "fd00:10:244:2::8", Place::Outside),
];

/// Addresses of frontends: ClusterIPs, a load balancer's, the node's own.
const FRONTENDS: [(&str, &str); 4] = [
    ("10.96.0.10", "fd00:10:96::10"),
    ("10.96.0.11", "fd00:10:96::11"),
    ("203.0.113.5", "2001:db8:113::5"),
    ("192.0.2.1", "2001:db8:2::1"),
];

const SERVICE_PORTS: [u16; 3] = [80, 53, 30_080];
const ENDPOINT_PORTS: [u16; 2] = [8080, 53];
const CLIENT_PORTS: [u16; 4] = [40_000, 40_001, 61_000, 1024];

fn address(pair: (&str, &str), is_v6: bool) -> IpAddr {
    let text = if is_v6 { pair.1 } else { pair.0 };
    match text.parse() {
        Ok(addr) => addr,
        Err(error) => panic!("{text}: {error}"),
    }
}

fn pick<T: Copy>(list: &[T], number: u8) -> T {
    list[usize::from(number) % list.len()]
}

/// A host by number.
pub(crate) fn host(number: u8, is_v6: bool) -> (IpAddr, Place) {
    let (four, six, place) = pick(&HOSTS, number);
    (address((four, six), is_v6), place)
}

/// Where an address is.
pub(crate) fn place(addr: IpAddr) -> Place {
    HOSTS
        .iter()
        .find(|(four, six, _)| address((four, six), addr.is_ipv6()) == addr)
        .map_or(Place::Outside, |(_, _, place)| *place)
}

/// An endpoint of a Service.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Endpoint {
    host: u8,
    port: u8,
    /// Not in the Local list although it is on the node.
    is_left_out: bool,
}

/// A frontend.
#[derive(Arbitrary, Clone, Debug)]
struct Frontend {
    addr: u8,
    port: u8,
    is_udp: bool,
    flags: u8,
    has_affinity: bool,
    endpoints: Vec<Endpoint>,
}

/// A record that no program wrote.
#[derive(Arbitrary, Clone, Debug)]
struct Forged {
    is_confirmed: bool,
    key: PacketShape,
    side: u8,
    to: (u8, u8, u8, u8),
    flags: u16,
    /// Its check does not hold.
    is_stale: bool,
    backend: u8,
    stamp: u8,
}

/// A node.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct NodeShape {
    modes: u8,
    /// Bits: the node has no address; refusals are limited; no route is known; neighbours are not resolved.
    lacks: u8,
    /// Checksums of packets are left to the device.
    pub(crate) is_partial: bool,
    frontends: Vec<Frontend>,
    forged: Vec<Forged>,
    /// Rows that selection lists are off by: they then name other backends or none.
    skew: u8,
}

impl NodeShape {
    /// Whether everything in the maps is what agent and programs write.
    pub(crate) fn is_honest(&self) -> bool {
        self.forged.is_empty() && self.skew == 0
    }

    /// Fills the maps of a node.
    pub(crate) fn world<F: Net + Halves>(&self) -> Native {
        let mut world = Native::with_table(2, 8);
        world.partial = self.is_partial;
        world.put_config(self.config());
        for (ifindex, role) in [
            (EXTERNAL, InterfaceRole::External),
            (POD, InterfaceRole::Pod),
        ] {
            let interface = Interface {
                mtu: 1500,
                mac: MacAddr::new(OWN_MAC),
                role: role as u8,
                ..Interface::default()
            };
            world.put_interface(ifindex, interface);
        }
        world.put_device(XdpDevice::new(EXTERNAL, 1500, MacAddr::new(OWN_MAC)));
        if self.lacks & 4 == 0 {
            self.put_routes::<F>(&mut world);
        }
        world.put_snat_ports(&SNAT_PORTS.ports().collect::<Vec<_>>());
        let node = address(("192.0.2.1", "2001:db8:2::1"), F::IS_V6);
        FamilyMaps::<F>::put_node_addr(&mut world, F::addr(node));
        let mut next = Next {
            service: 1,
            backend: 1,
            row: 1,
        };
        for frontend in self.frontends.iter().take(4) {
            self.put_frontend::<F>(&mut world, frontend, &mut next);
        }
        for forged in self.forged.iter().take(4) {
            put_forged::<F>(&mut world, forged);
        }
        world
    }

    fn config(&self) -> Config {
        let node = ("192.0.2.1", "2001:db8:2::1");
        let mut config = Config {
            cluster_net_v4: V4::addr(address(("10.96.0.0", "::"), false)),
            cluster_mask_v4: V4::addr(address(("255.255.0.0", "::"), false)),
            cluster_net_v6: V6::addr(address(("0.0.0.0", "fd00:10:96::"), true)),
            cluster_mask_v6: V6::addr(address(("0.0.0.0", "ffff:ffff:ffff::"), true)),
            snat_ports: SNAT_PORTS,
            modes: ModeFlags::from_bits(u32::from(self.modes & 3)),
            refusals_per_sec: u32::from(self.lacks & 2),
            ..Config::default()
        };
        if self.lacks & 1 == 0 {
            config.node_v4 = V4::addr(address(node, false));
            config.node_v6 = V6::addr(address(node, true));
        }
        config
    }

    fn put_routes<F: Net + Halves>(&self, world: &mut Native) {
        for (four, six, place) in HOSTS {
            let hop = NextHop {
                ifindex: if place == Place::Pod { POD } else { EXTERNAL },
                dmac: MacAddr::new(NEXT_MAC),
                ready: self.lacks & 8 == 0,
            };
            FamilyMaps::<F>::put_route(world, F::addr(address((four, six), F::IS_V6)), hop);
        }
    }

    fn put_frontend<F: Net + Halves>(
        &self,
        world: &mut Native,
        frontend: &Frontend,
        next: &mut Next,
    ) {
        let id = next.service;
        next.service += 1;
        let mut lists = [Vec::new(), Vec::new()];
        for endpoint in frontend.endpoints.iter().take(3) {
            let (addr, place) = host(endpoint.host, F::IS_V6);
            let port = Be16::from_host(pick(&ENDPOINT_PORTS, endpoint.port));
            let mut state = BackendFlags::USABLE | BackendFlags::IN_CLUSTER;
            lists[0].push(next.backend);
            if place != Place::Outside {
                state |= BackendFlags::LOCAL;
                if !endpoint.is_left_out {
                    state |= BackendFlags::IN_LOCAL;
                    lists[1].push(next.backend);
                }
            }
            if place == Place::Node {
                state |= BackendFlags::HOST;
            }
            let backend = Backend::new(F::addr(addr), port, 0, BackendState::new(0, state), id);
            FamilyMaps::<F>::put_backend(world, next.backend, backend);
            next.backend += 1;
        }
        let [cluster, local] = lists.map(|ids| {
            let list = SelectionList {
                offset: next.row + u32::from(self.skew),
                len: u32::try_from(ids.len()).unwrap_or(0),
            };
            world.put_rows(next.row, &ids);
            next.row += list.len;
            list
        });
        let is_internal = usize::from(frontend.addr) % FRONTENDS.len() < 2;
        let mut flags = ServiceFlags::NONE;
        if frontend.flags & 1 != 0 {
            flags |= if is_internal {
                ServiceFlags::INTERNAL_LOCAL
            } else {
                ServiceFlags::EXTERNAL_LOCAL
            };
        }
        if cluster.len != 0 {
            flags |= ServiceFlags::HAS_ENDPOINTS;
        }
        let addr = F::addr(address(pick(&FRONTENDS, frontend.addr), F::IS_V6));
        if frontend.flags & 2 != 0 && !is_internal {
            flags |= ServiceFlags::SOURCE_RANGES;
            let allowed = host(frontend.flags >> 2, F::IS_V6).0;
            FamilyMaps::<F>::allow_source(world, id, F::addr(allowed));
        }
        let proto = if frontend.is_udp { UDP } else { TCP };
        let port = pick(&SERVICE_PORTS, frontend.port);
        let mut service = Service::default();
        service.id = id;
        service.cluster = cluster;
        service.local = local;
        service.affinity_secs = if frontend.has_affinity { 10 } else { 0 };
        service.kind = if is_internal { 1 } else { 2 };
        service.flags = flags;

        let key = ServiceKey::<F>::new(addr, Be16::from_host(port), proto);
        world.put_service(key, service.sealed(&key));
        world.open_port(proto, port);
        if is_internal {
            let key = ServiceKey::<F>::new(addr, Be16::from_host(0), 0);
            let mut any = Service::default();
            any.kind = 1;
            any.flags = ServiceFlags::ADDRESS_ONLY;

            world.put_service(key, any.sealed(&key));
        }
    }
}

struct Next {
    service: u32,
    backend: u32,
    row: u32,
}

fn put_forged<F: Net + Halves>(world: &mut Native, forged: &Forged) {
    let (source, destination) = forged.key.ends(F::IS_V6);
    let side = pick(&[Side::ExternalIn, Side::PodIn, Side::Out], forged.side);
    let original = Tuple::<F>::new(
        &F::addr(source.ip()),
        &F::addr(destination.ip()),
        Be16::from_host(source.port()),
        Be16::from_host(destination.port()),
        forged.key.protocol(),
        side,
    );
    let to = PacketShape {
        source: forged.to.0,
        destination: forged.to.1,
        source_port: forged.to.2,
        destination_port: forged.to.3,
        ..forged.key.clone()
    };
    let (source, destination) = to.ends(F::IS_V6);
    let mut record = Record::new(
        original,
        (
            &F::addr(destination.ip()),
            Be16::from_host(destination.port()),
        ),
        (&F::addr(source.ip()), Be16::from_host(source.port())),
        FlowFlags::from_bits(forged.flags),
    );
    record.stamp = forged.stamp.into();
    record.backend = u32::from(forged.backend & 7);
    record.hops[0] = Hop {
        mac: MacAddr::new(NEXT_MAC),
        slot: forged.backend >> 6,
    };
    record = record.checked();
    record.check ^= u32::from(forged.is_stale);
    world.open_port(forged.key.protocol(), forged.key.ends(F::IS_V6).1.port());
    let class = match (forged.is_confirmed, forged.backend >> 5 & 1) {
        (true, _) => Class::Confirmed,
        (false, 0) => Class::Opening,
        (false, _) => Class::Closed,
    };
    FamilyMaps::<F>::put_record(world, record, class);
}

/// A TCP or UDP packet between two of the addresses.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct PacketShape {
    pub(crate) source: u8,
    pub(crate) destination: u8,
    pub(crate) source_port: u8,
    pub(crate) destination_port: u8,
    is_udp: bool,
    /// FIN, SYN, RST and ACK as in the header.
    flags: u8,
    len: u8,
    /// Bits: IP options or an extension header; a fragment, the first one, a later one; no UDP checksum.
    care: u8,
    ttl: u8,
}

impl PacketShape {
    pub(crate) fn protocol(&self) -> u8 {
        if self.is_udp { UDP } else { TCP }
    }

    /// Who sends it where.
    pub(crate) fn ends(&self, is_v6: bool) -> (SocketAddr, SocketAddr) {
        let source = host(self.source, is_v6).0;
        let number = self.destination;
        let destination = if number & 1 == 0 {
            let addr = address(pick(&FRONTENDS, number >> 1), is_v6);
            (addr, pick(&SERVICE_PORTS, self.destination_port))
        } else {
            let addr = host(number >> 1, is_v6).0;
            // An endpoint, or a translated source.
            let port = match self.destination_port & 3 {
                3 => SNAT_PORTS.first + u16::from(self.destination_port >> 5),
                _ => pick(&ENDPOINT_PORTS, self.destination_port),
            };
            (addr, port)
        };
        let port = pick(&CLIENT_PORTS, self.source_port);
        ((source, port).into(), destination.into())
    }

    /// The packet, ready to be built.
    pub(crate) fn builder(&self, is_v6: bool, is_partial: bool) -> PacketBuilder {
        use lb_tests::packet::Checksum;
        let (source, destination) = self.ends(is_v6);
        let mut builder = if self.is_udp {
            PacketBuilder::udp(source, destination)
        } else {
            let flags = self.flags & (FIN | SYN | RST | 16);
            let segment = if flags == SYN {
                CONVERSATION.syn(source, destination)
            } else {
                CONVERSATION.data(source, destination)
            };
            segment.flags(flags)
        };
        builder = builder
            .payload(&vec![self.len; usize::from(self.len)])
            .ttl(self.ttl.max(1));
        if self.care & 1 != 0 {
            builder = if is_v6 {
                builder.extension(DESTINATION, &[1, 4, 0, 0, 0, 0])
            } else {
                builder.ip_options(&[1, 1, 1, 0])
            };
        }
        if self.care & 2 != 0 {
            let offset = if self.care & 4 != 0 { 64 } else { 0 };
            return builder.fragment(7, offset, self.care & 8 != 0 || offset == 0);
        }
        if self.care & 16 != 0 && self.is_udp && !is_v6 {
            return builder.checksum(Checksum::Zero);
        }
        if is_partial {
            return builder.checksum(Checksum::Partial);
        }
        builder
    }

    /// Whether it dials.
    pub(crate) fn is_syn(&self) -> bool {
        !self.is_udp && self.flags & (FIN | SYN | RST | 16) == SYN
    }

    /// Whether it is whole and has a checksum: only then the device may be left to finish it.
    pub(crate) fn is_plain(&self) -> bool {
        self.care & (2 | 16) == 0
    }
}

/// A frame of a family with these bytes behind its link-layer header.
pub(crate) fn frame(is_v6: bool, ip: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + ip.len());
    frame.extend(OWN_MAC);
    frame.extend(NEXT_MAC);
    frame.extend(if is_v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(ip);
    frame
}
