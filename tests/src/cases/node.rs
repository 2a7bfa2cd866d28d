//! A dataplane → a configured node that a case fills with Services, sends packets through and looks into.

use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use lb_common::abi::{
    Backend, BackendFlags, BackendState, Be16, Config, Counter, DropReason, FrontendKind,
    Interface, InterfaceRole, MacAddr, ModeFlags, PortRange, SelectionList, Service, ServiceFlags,
    ServiceKey, XdpDevice,
};
use lb_common::flow_table::{Class, Record};
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};

use super::dataplane::{At, DataplaneOf, FamilyMaps, Verdict};
use super::hosts::{CONVERSATION, EXTERNAL, Hosts, NEXT_MAC, Net, OWN_MAC, POD, at, ip, parsed};
use crate::packet::{PacketBuilder, Parsed};

/// An backend as a case puts it.
#[derive(Clone, Copy, Debug)]
pub struct BackendAt {
    /// Address and port.
    pub addr: SocketAddr,
    /// What is known of it.
    pub flags: BackendFlags,
}

/// On this node.
pub fn local(ip: IpAddr, port: u16) -> BackendAt {
    BackendAt {
        addr: at(ip, port),
        flags: BackendFlags::LOCAL | BackendFlags::IN_LOCAL | BackendFlags::IN_CLUSTER,
    }
}

/// On another node.
pub fn remote(ip: IpAddr, port: u16) -> BackendAt {
    BackendAt {
        addr: at(ip, port),
        flags: BackendFlags::IN_CLUSTER,
    }
}

/// A service port that was put.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its frontend.
    pub service: Service,
    /// Its backends, in the order of the backends.
    pub ids: Vec<u32>,
}

/// A dataplane with a configured node in it, which a case writes Services to and sends packets through.
pub struct CaseNode<'a, F: Net, D: DataplaneOf<F>> {
    /// The dataplane.
    pub dataplane: &'a mut D,
    /// Its hosts.
    pub h: Hosts,
    /// Its configuration.
    pub config: Config,
    /// The interface that packets leave by.
    pub exit: u32,
    next_id: u32,
    next_service: u32,
    next_row: u32,
    family: PhantomData<F>,
}

impl<'a, F: Net, D: DataplaneOf<F>> CaseNode<'a, F, D> {
    /// Configures the node.
    pub fn new(dataplane: &'a mut D) -> Self {
        let (four, six) = (V4::hosts(), V6::hosts());
        let config = Config {
            node_v4: V4::addr(four.node),
            node_v6: V6::addr(six.node),
            cluster_net_v4: V4::addr(ip("10.96.0.0")),
            cluster_mask_v4: V4::addr(ip("255.255.0.0")),
            cluster_net_v6: V6::addr(ip("fd00:10:96::")),
            cluster_mask_v6: V6::addr(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")),
            snat_ports: PortRange {
                first: 20_000,
                last: 29_999,
            },
            ..Config::default()
        };
        dataplane.put_config(config);
        dataplane.put_snat_ports(&config.snat_ports.ports().collect::<Vec<_>>());
        FamilyMaps::<V4>::put_node_addr(dataplane, config.node_v4);
        FamilyMaps::<V6>::put_node_addr(dataplane, config.node_v6);
        dataplane.put_interface(
            EXTERNAL,
            Interface {
                mtu: 1500,
                mac: MacAddr::new(OWN_MAC),
                role: InterfaceRole::External as u8,
                ..Interface::default()
            },
        );
        dataplane.put_interface(
            POD,
            Interface {
                mtu: 1500,
                role: InterfaceRole::Pod as u8,
                ..Interface::default()
            },
        );
        dataplane.put_device(XdpDevice::new(EXTERNAL, 1500, MacAddr::new(OWN_MAC)));
        CaseNode {
            dataplane,
            h: F::hosts(),
            config,
            exit: EXTERNAL,
            next_id: 1,
            next_service: 1,
            next_row: 1,
            family: PhantomData,
        }
    }

    /// Changes the modes.
    pub fn modes(&mut self, modes: ModeFlags) {
        self.config.modes = modes;
        self.dataplane.put_config(self.config);
    }

    /// Lets source translation take these ports of a range, and no others.
    pub fn snat_ports(&mut self, ports: &[u16], range: RangeInclusive<u16>) {
        self.config.snat_ports = PortRange {
            first: *range.start(),
            last: *range.end(),
        };
        self.dataplane.put_config(self.config);
        self.dataplane.put_snat_ports(ports);
    }

    /// Puts a frontend of a new service port; policies and the like are what `change` makes of it.
    pub fn service_with(
        &mut self,
        addr: SocketAddr,
        proto: u8,
        kind: FrontendKind,
        backends: &[BackendAt],
        change: impl FnOnce(&mut Service),
    ) -> Placed {
        let id = self.next_service;
        self.next_service += 1;
        let mut ids = Vec::new();
        let mut local = Vec::new();
        for backend in backends {
            let id_of_backend = self.next_id;
            self.next_id += 1;
            ids.push(id_of_backend);
            if backend.flags.contains(BackendFlags::IN_LOCAL) {
                local.push(id_of_backend);
            }
            self.put_backend(id_of_backend, *backend, id, 0);
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
    pub fn service(&mut self, addr: SocketAddr, proto: u8, backends: &[BackendAt]) -> Placed {
        self.service_with(addr, proto, FrontendKind::ClusterIp, backends, |_| {})
    }

    /// Puts a ClusterIP whose one backend is on another node; gives a pod that dials it, the ClusterIP and the backend.
    pub fn pod_to_cluster_ip(&mut self, proto: u8) -> (SocketAddr, SocketAddr, SocketAddr) {
        let backend = remote(self.h.remote, 8080);
        let vip = at(self.h.vip, 80);
        self.service(vip, proto, &[backend]);
        (at(self.h.pod, 40_000), vip, backend.addr)
    }

    /// Puts a NodePort with one backend; gives a client that dials it, the NodePort and the backend.
    pub fn client_to_node_port(
        &mut self,
        proto: u8,
        backend: BackendAt,
    ) -> (SocketAddr, SocketAddr, SocketAddr) {
        let front = at(self.h.node, 30_080);
        self.service_with(front, proto, FrontendKind::NodePort, &[backend], |_| {});
        (at(self.h.client, 40_000), front, backend.addr)
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
        self.dataplane.put_service(key, service.sealed(&key));
        if addr.port() != 0 {
            self.dataplane.open_port(proto, addr.port());
        }
    }

    /// Writes a backend under an id; `generation` counts its meanings.
    pub fn put_backend(&mut self, id: u32, backend: BackendAt, service_id: u32, generation: u32) {
        let state = BackendState::new(
            generation * BackendState::GENERATION_STEP,
            backend.flags | BackendFlags::USABLE,
        );
        let (addr, port) = (backend.addr.ip(), backend.addr.port());
        self.dataplane.put_backend(
            id,
            Backend::<F>::new(F::addr(addr), Be16::from_host(port), 0, state, service_id),
        );
    }

    /// Writes a table.
    fn rows(&mut self, ids: &[u32]) -> SelectionList {
        let offset = self.next_row;
        let len = u32::try_from(ids.len()).unwrap_or(0);
        self.next_row += len;
        self.dataplane.put_rows(offset, ids);
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

    /// Sends a packet that is to pass as this one.
    #[track_caller]
    pub fn translated(&mut self, hook: At, input: &PacketBuilder, output: &PacketBuilder) {
        self.check(hook, input, Verdict::Pass, output);
    }

    /// Sends a packet that is to pass as it is.
    #[track_caller]
    pub fn untouched(&mut self, hook: At, input: &PacketBuilder) {
        self.check(hook, input, Verdict::Pass, input);
    }

    /// Sends a packet that is to be dropped for this reason.
    #[track_caller]
    pub fn dropped(&mut self, hook: At, input: &PacketBuilder, reason: DropReason) {
        let before = self.dataplane.counter(reason as u32);
        let (verdict, _) = self.run(hook, &input.build());
        let counted = self.dataplane.counter(reason as u32) - before;
        assert_eq!((verdict, counted), (Verdict::Drop, 1), "{reason:?}");
    }

    /// Sends a packet.
    pub fn run(&mut self, hook: At, input: &[u8]) -> (Verdict, Vec<u8>) {
        let ifindex = match hook {
            At::Pod => POD,
            At::Out => self.exit,
            At::Xdp | At::External => EXTERNAL,
        };
        self.dataplane.run(hook, ifindex, input)
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

    /// Sends a packet of client → backend through tc ingress, and what comes out through tc egress; gives the source that
    /// it has between the two, whose port the egress hook goes by.
    #[track_caller]
    pub fn middle(&mut self, input: &PacketBuilder) -> SocketAddr {
        let (verdict, bytes) = self.run(At::External, &input.build());
        assert_eq!(verdict, Verdict::Pass);
        let between = parsed(&bytes);
        let range = self.config.snat_ports;
        assert!(range.contains(between.source.port()), "{between:?}");
        let (verdict, _) = self.run(At::Out, &bytes);
        assert_eq!(verdict, Verdict::Pass);
        between.source
    }

    /// Opens a TCP connection through a frontend at an ingress hook, to a backend that answers at egress.
    #[track_caller]
    pub fn connected(&mut self, hook: At, client: SocketAddr, front: SocketAddr, to: SocketAddr) {
        self.sent(hook, &CONVERSATION.syn(client, front));
        self.sent(At::Out, &CONVERSATION.syn_ack(to, client));
        self.sent(hook, &CONVERSATION.data(client, front));
    }

    /// Compares a counter.
    #[track_caller]
    pub fn counted(&mut self, counter: Counter, times: u64) {
        assert_eq!(self.dataplane.counter(counter as u32), times, "{counter:?}");
    }

    /// How many flows there are of a class.
    pub fn flows(&mut self, class: Class) -> usize {
        let records = FamilyMaps::<F>::records(self.dataplane);
        records.iter().filter(|(of, _)| *of == class).count()
    }

    /// The only flow.
    #[track_caller]
    pub fn flow(&mut self) -> (Class, Record<F>) {
        let records = FamilyMaps::<F>::records(self.dataplane);
        assert_eq!(records.len(), 1, "{records:?}");
        records[0]
    }

    /// Whether the only flow of a client is found between tc's hooks.
    pub fn is_by_halves(&mut self, client: SocketAddr) -> bool {
        let records = FamilyMaps::<F>::records(self.dataplane);
        let ours = |record: &Record<F>| {
            let dial = &record.original;
            (dial.saddr(), dial.sport()) == (F::addr(client.ip()), Be16::from_host(client.port()))
        };
        let only = records.iter().find(|(_, record)| ours(record));
        only.is_some_and(|(_, record)| record.is_by_halves())
    }

    /// Makes XDP able to send to these addresses at once.
    pub fn routes(&mut self, addrs: &[IpAddr]) {
        for addr in addrs {
            let hop = NextHop {
                ifindex: EXTERNAL,
                dmac: MacAddr::new(NEXT_MAC),
                ready: true,
            };
            FamilyMaps::<F>::put_route(self.dataplane, F::addr(*addr), hop);
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
    service.flags = ServiceFlags::NONE;
    service
}
