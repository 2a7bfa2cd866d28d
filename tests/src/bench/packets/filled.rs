//! Numbers of Services and flows → the loaded programs with what the agent would have written and the programs
//! would have confirmed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lb_agent::bpf::features::Features;
use lb_common::{
    V4, V6,
    abi::{
        Backend, BackendFlags, BackendState, Be16, Config, Flow, FlowFlags, FlowKey, FlowMapKey,
        FrontendKind, Interface, InterfaceFlags, MacAddr, PortFilter, PortRange,
        SELECTION_BLOCK_ROWS, SelectionList, Service, ServiceFlags, ServiceKey, Side, Translation,
        XdpDevice, flow_check, proto,
    },
    names,
};

use super::addresses::{
    BACKEND, Bench, CLUSTER_IP, NEW_NODE_PORT, NEW_PORT, NODE, NODE_PORT, PORT, SAME_PORT,
    TARGET_PORT, client, ip, snat_port,
};
use crate::{packet::DESTINATION_MAC, prog_run::Programs};

/// Backends of the Service whose rows open flows: one backend's source ports would run out.
const NEW_BACKENDS: u16 = 64;
const NEW_ID: u32 = 3;
const FIRST_NEW_BACKEND: u32 = 10;
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x12];

/// Ids of the two backends of the measured Services, one with another port and one with the same.
const SERVICE_ID: u32 = 1;
const SAME_PORT_ID: u32 = 2;

/// The loaded programs with their maps filled.
pub(super) struct Filled {
    pub(super) programs: Programs,
    pub(super) services: u32,
}

impl Filled {
    pub(super) fn new(services: u32, flows: u32, ifindex: u32) -> Result<Filled> {
        let room = flows.max(1024) * 4;
        let mut sizes = vec![(names::maps::SELECTION, 64)];
        for family in 0..2 {
            sizes.push((names::maps::FLOWS[family], room));
            sizes.push((names::maps::OPENINGS[family], 65_536));
            sizes.push((names::maps::SERVICES[family], services + 1024));
            sizes.push((names::maps::BACKENDS[family], 1024));
        }
        let mut programs = Programs::load_with(&sizes, &Features::probe())?;
        let mac = MacAddr::new(DESTINATION_MAC);
        programs.set(
            names::maps::CONFIG,
            0,
            Config {
                node_v4: NODE.0.into(),
                node_v6: NODE.1.into(),
                cluster_net_v4: Ipv4Addr::new(10, 96, 0, 0).into(),
                cluster_mask_v4: Ipv4Addr::new(255, 255, 0, 0).into(),
                cluster_net_v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).into(),
                cluster_mask_v6: Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0, 0, 0, 0, 0).into(),
                snat_ports: PortRange {
                    first: 20_000,
                    last: 29_999,
                },
                ..Config::default()
            },
        )?;
        programs.set(
            names::maps::XDP_DEVICES,
            XdpDevice::slot(ifindex),
            XdpDevice::new(ifindex, 1500, mac),
        )?;
        programs.insert(
            names::maps::INTERFACES,
            ifindex,
            Interface {
                saddr_v4: NODE.0.into(),
                saddr_v6: NODE.1.into(),
                mtu: 1500,
                mac,
                role: 1,
                flags: InterfaceFlags::XDP_TRANSMIT,
            },
        )?;
        let mut filter = PortFilter { words: [0; 2048] };
        for port in (20_000..30_000).chain([NODE_PORT, PORT, SAME_PORT, NEW_NODE_PORT, NEW_PORT]) {
            filter.words[usize::from(port >> 5)] |= 1 << (port & 31);
        }
        programs.set(names::maps::PORT_FILTER, 0, filter)?;
        // Two tables of one row each, and one of many.
        let mut rows = [0u32; SELECTION_BLOCK_ROWS];
        (rows[0], rows[1]) = (1, 2);
        for (row, id) in rows[2..].iter_mut().zip(0..u32::from(NEW_BACKENDS)) {
            *row = FIRST_NEW_BACKEND + id;
        }
        programs.set(names::maps::SELECTION, 0, rows)?;
        for (slot, name) in names::programs::TAILS_XDP_SLOTS {
            programs.set_tail(names::maps::TAILS_XDP, *slot, name)?;
        }
        for (slot, name) in names::programs::TAILS_TC_SLOTS {
            programs.set_tail(names::maps::TAILS_TC, *slot, name)?;
        }
        fill::<V4>(&mut programs, services, flows, ifindex)?;
        fill::<V6>(&mut programs, services, flows, ifindex)?;
        Ok(Filled { programs, services })
    }
}

fn fill<F: Bench>(programs: &mut Programs, services: u32, flows: u32, ifindex: u32) -> Result<()>
where
    ServiceKey<F>: crate::prog_run::Layout,
{
    let generation = BackendState::GENERATION_STEP;
    let flags = BackendFlags::IN_CLUSTER | BackendFlags::USABLE;
    let state = BackendState::new(generation, flags);
    let backend = F::addr(ip::<F>(BACKEND));
    let node = F::addr(ip::<F>(NODE));
    let cluster_ip = F::addr(ip::<F>(CLUSTER_IP));
    let port = Be16::from_host(TARGET_PORT);
    programs.set(
        names::maps::BACKENDS[F::INDEX],
        1,
        Backend::<F>::new(backend, port, 0, state, SERVICE_ID),
    )?;
    programs.set(
        names::maps::BACKENDS[F::INDEX],
        2,
        Backend::<F>::new(backend, port, 0, state, SAME_PORT_ID),
    )?;
    for (id, number) in (FIRST_NEW_BACKEND..).zip(0..NEW_BACKENDS) {
        let port = Be16::from_host(TARGET_PORT + number);
        programs.set(
            names::maps::BACKENDS[F::INDEX],
            id,
            Backend::<F>::new(backend, port, 0, state, NEW_ID),
        )?;
    }
    let service = |id: u32, kind: FrontendKind| {
        let mut service = Service::default();
        service.id = id;
        service.cluster = SelectionList {
            offset: id - 1,
            len: if id == NEW_ID { NEW_BACKENDS.into() } else { 1 },
        };
        service.local = service.cluster;
        service.kind = kind as u8;
        service.flags = ServiceFlags::HAS_ENDPOINTS;
        service
    };
    let mut put = |addr: F::Addr, port: u16, id, kind| {
        let key = ServiceKey::<F>::new(addr, Be16::from_host(port), proto::TCP);
        programs.insert(
            names::maps::SERVICES[F::INDEX],
            key,
            service(id, kind).sealed(&key),
        )
    };
    put(cluster_ip, PORT, SERVICE_ID, FrontendKind::ClusterIp)?;
    put(cluster_ip, SAME_PORT, SAME_PORT_ID, FrontendKind::ClusterIp)?;
    put(node, NODE_PORT, SERVICE_ID, FrontendKind::NodePort)?;
    put(node, NEW_NODE_PORT, NEW_ID, FrontendKind::NodePort)?;
    put(cluster_ip, NEW_PORT, NEW_ID, FrontendKind::ClusterIp)?;
    for number in 0..services {
        let (host, low) = (
            u8::try_from(number >> 8 & 0xff)?,
            u8::try_from(number & 0xff)?,
        );
        let high = u8::try_from(number >> 16)?;
        let addr = if F::IS_V6 {
            IpAddr::from(Ipv6Addr::new(
                0xfd00,
                0x10,
                0x96,
                0,
                0,
                1,
                u16::try_from(number >> 16)?,
                u16::try_from(number & 0xffff)?,
            ))
        } else {
            IpAddr::from(Ipv4Addr::new(10, 97 + high, host, low))
        };
        put(F::addr(addr), PORT, SERVICE_ID, FrontendKind::ClusterIp)?;
    }
    for number in 0..flows {
        let (client, client_port) = client(number, F::IS_V6);
        let client = F::addr(client);
        let client_port = Be16::from_host(client_port);
        let xdp = Be16::from_host(snat_port(number));
        let mut entry = |key: FlowKey<F>, to: Translation<F>, id: u32, flags: FlowFlags| {
            let flow = Flow::<F> {
                check: flow_check(&key),
                to,
                stamp: 0,
                backend: id,
                generation,
                ifindex,
                dmac: MacAddr::new(BACKEND_MAC),
                flags: flags | FlowFlags::SEEN | FlowFlags::CONFIRMED,
            };
            programs.insert(
                names::maps::FLOWS[F::INDEX],
                FlowMapKey::<F>::new(&key),
                flow,
            )
        };
        entry(
            FlowKey::new(
                client,
                node,
                client_port,
                Be16::from_host(NODE_PORT),
                proto::TCP,
                Side::ExternalIn,
            ),
            Translation {
                saddr: node,
                daddr: backend,
                sport: xdp,
                dport: port,
            },
            1,
            FlowFlags::SNAT,
        )?;
        for (dialled, replied, id) in [(PORT, TARGET_PORT, 1), (SAME_PORT, SAME_PORT + 1, 2)] {
            if id == 2 && number > 0 {
                continue;
            }
            let dialled = Be16::from_host(dialled);
            let replied = Be16::from_host(replied);
            entry(
                FlowKey::new(
                    client,
                    cluster_ip,
                    client_port,
                    dialled,
                    proto::TCP,
                    Side::PodIn,
                ),
                Translation {
                    saddr: client,
                    daddr: backend,
                    sport: client_port,
                    dport: port,
                },
                id,
                FlowFlags::NONE,
            )?;
            // The reply of the port that is kept comes from a port of its own, or its key would be that
            // of the port that changes.
            let back = if id == 1 { dialled } else { replied };
            entry(
                FlowKey::new(backend, client, replied, client_port, proto::TCP, Side::Out),
                Translation {
                    saddr: cluster_ip,
                    daddr: client,
                    sport: back,
                    dport: client_port,
                },
                id,
                FlowFlags::REPLY,
            )?;
        }
    }
    Ok(())
}
