//! Numbers of Services and room for flows → the loaded programs with what the agent would have written; and before each
//! row the flows that it is about, as the programs would have made them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow, ensure};
use lb_agent::bpf::features::Features;
use lb_common::{
    V4, V6,
    abi::{
        Backend, BackendFlags, BackendState, Be16, Clock, Config, FlowFlags, FrontendKind,
        Interface, InterfaceFlags, MacAddr, PortFilter, PortRange, SELECTION_BLOCK_ROWS,
        SNAT_PORTS_SLOT, SelectionList, Service, ServiceFlags, ServiceKey, Side, XdpDevice, proto,
    },
    flow_table::{Awaited, Class, Hop, Insert, Record, Tuple},
    names,
};

use super::addresses::{
    BACKEND, Bench, CLUSTER_IP, NEW_NODE_PORT, NEW_PORT, NODE, NODE_PORT, PORT, SAME_PORT,
    TARGET_PORT, client, ip, snat_port,
};
use crate::cases::put_record;
use crate::mapped_table::MappedTable;
use crate::packet::DESTINATION_MAC;
use crate::prog_run::{Programs, TableSize};

/// Backends of the Service whose rows open flows: one backend's source ports would run out.
const NEW_BACKENDS: u16 = 64;
const NEW_ID: u32 = 3;
const FIRST_NEW_BACKEND: u32 = 10;
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x12];

/// Ids of the two backends of the measured Services, one with another port and one with the same.
const SERVICE_ID: u32 = 1;
const SAME_PORT_ID: u32 = 2;

/// What the numbers of the packets are: those that [`crate::packet::PacketBuilder`] gives where nobody says otherwise.
const NUMBERS: (u32, u32) = (0x0102_0304, 0x0506_0708);

/// First port of the backends that no packet goes to.
const OTHERS_PORT: u16 = 20_000;

/// Which flows lie in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// From outside to a NodePort whose backend is remote, carried by XDP.
    NodePort,
    /// The same, to backends that no packet goes to: they leave all source ports to those of new flows.
    Others,
    /// The same, carried by tc with their own ports.
    Halves,
    /// From a pod to a ClusterIP.
    ClusterIp,
    /// The same, where the backend has the frontend's port.
    SamePort,
}

/// How far they have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Confirmed, and seen just now.
    Established,
    /// Confirmed, and quiet for long.
    Due,
    /// The client's ACK is missing.
    Answered,
    /// Not even answered: they give way.
    Opening,
}

/// What a table holds before a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contents {
    pub(super) kind: Kind,
    pub(super) state: State,
    pub(super) flows: u32,
}

impl Contents {
    pub(super) const NONE: Contents = Contents {
        kind: Kind::NodePort,
        state: State::Established,
        flows: 0,
    };
}

/// The loaded programs with their maps filled.
pub(super) struct Filled {
    pub(super) programs: Programs,
    ifindex: u32,
    tables: (MappedTable<V4>, MappedTable<V6>),
    contents: [Option<Contents>; 2],
}

impl Filled {
    /// The table has room for so many flows at 60 % load.
    pub(super) fn new(services: u32, room: u32, ifindex: u32) -> Result<Filled> {
        let mut sizes = vec![(names::maps::SELECTION, 64)];
        for family in 0..2 {
            sizes.push((names::maps::SERVICES[family], services + 1024));
            sizes.push((names::maps::BACKENDS[family], 1024));
        }
        let size = TableSize::of(room);
        let mut programs = Programs::load_with(&sizes, size, &Features::probe())?;
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
        let bits = |ports: &mut dyn Iterator<Item = u16>| {
            let mut filter = PortFilter { words: [0; 2048] };
            for port in ports {
                filter.words[usize::from(port >> 5)] |= 1 << (port & 31);
            }
            filter
        };
        let mut fronts = [NODE_PORT, PORT, SAME_PORT, NEW_NODE_PORT, NEW_PORT].into_iter();
        programs.set(names::maps::PORT_FILTER, 0, bits(&mut fronts))?;
        // The clients' own ports, too, which flows by halves keep.
        let mut taken = 16_384..30_000;
        programs.set(names::maps::PORT_FILTER, SNAT_PORTS_SLOT, bits(&mut taken))?;
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
        fill::<V4>(&mut programs, services)?;
        fill::<V6>(&mut programs, services)?;
        Ok(Filled {
            tables: (programs.table()?, programs.table()?),
            contents: [None; 2],
            programs,
            ifindex,
        })
    }

    /// Puts what a row is about into its family's table, unless it still is there.
    pub(super) fn put(&mut self, v6: bool, contents: Contents, is_spoilt: bool) -> Result<()> {
        let present = self.contents[usize::from(v6)];
        if is_spoilt || present != Some(contents) {
            self.contents[usize::from(v6)] = None;
            let now = self.now()?;
            if v6 {
                put(&self.tables.1, contents, self.ifindex, now)?;
            } else {
                put(&self.tables.0, contents, self.ifindex, now)?;
            }
            self.contents[usize::from(v6)] = Some(contents);
        }
        Ok(())
    }

    /// Whatever is there is not what was put.
    pub(super) fn spoil(&mut self, v6: bool) {
        self.contents[usize::from(v6)] = None;
    }

    /// The time as records note it.
    fn now(&mut self) -> Result<u32> {
        let ran = self.programs.run(names::programs::CLOCK, &[0; 64])?;
        let (jiffies, _) = ran
            .packet
            .split_first_chunk::<8>()
            .ok_or_else(|| anyhow!("the clock gave no time"))?;
        let clock = Clock {
            jiffies: u64::from_ne_bytes(*jiffies),
            monotonic_ns: 0,
        };
        Ok(clock.stamp())
    }
}

/// Makes the flows of a table in one random order; packets visit them in another.
fn put<F: Bench>(table: &MappedTable<F>, contents: Contents, ifindex: u32, now: u32) -> Result<()> {
    table.clear();
    let mut numbers: Vec<u32> = (0..contents.flows).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..numbers.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let other = usize::try_from(random % (i as u64 + 1))?;
        numbers.swap(i, other);
    }
    let class = match contents.state {
        State::Established | State::Due => Class::Confirmed,
        State::Answered | State::Opening => Class::Opening,
    };
    let mut failed = 0;
    for number in numbers {
        let record = record::<F>(number, contents, ifindex, now);
        let result = put_record(&table, &record, class);
        failed += u32::from(result != Insert::Done);
    }
    // A bucket may be full by chance of what never gives way.
    ensure!(
        failed <= contents.flows / 1000,
        "{failed} of {contents:?} found no room"
    );
    Ok(())
}

/// A flow by its number.
fn record<F: Bench>(number: u32, contents: Contents, ifindex: u32, now: u32) -> Record<F> {
    let port = Be16::from_host;
    let (client, client_port) = client(number, F::IS_V6);
    let (client, client_port) = (F::addr(client), port(client_port));
    let (node, cluster_ip) = (F::addr(ip::<F>(NODE)), F::addr(ip::<F>(CLUSTER_IP)));
    let backend = F::addr(ip::<F>(BACKEND));
    // One backend's reply tuples would not suffice.
    let many = u16::try_from(number / 10_000).unwrap_or(u16::MAX);
    let (frontend, dialled, side, backend_port, source, source_port, flags, id) =
        match contents.kind {
            Kind::NodePort | Kind::Others => (
                node,
                NODE_PORT,
                Side::ExternalIn,
                if contents.kind == Kind::Others {
                    OTHERS_PORT + many
                } else {
                    TARGET_PORT + many
                },
                node,
                port(snat_port(number)),
                FlowFlags::SNAT,
                SERVICE_ID,
            ),
            Kind::Halves => (
                node,
                NODE_PORT,
                Side::ExternalIn,
                TARGET_PORT,
                node,
                client_port,
                FlowFlags::SNAT | FlowFlags::BY_HALVES,
                SERVICE_ID,
            ),
            Kind::ClusterIp => (
                cluster_ip,
                PORT,
                Side::PodIn,
                TARGET_PORT,
                client,
                client_port,
                FlowFlags::NONE,
                SERVICE_ID,
            ),
            Kind::SamePort => (
                cluster_ip,
                SAME_PORT,
                Side::PodIn,
                SAME_PORT,
                client,
                client_port,
                FlowFlags::NONE,
                SAME_PORT_ID,
            ),
        };
    let original = Tuple::new(
        &client,
        &frontend,
        client_port,
        port(dialled),
        proto::TCP,
        side,
    );
    let state = match contents.state {
        State::Established | State::Due => FlowFlags::CONFIRMED | FlowFlags::REPLY_SEEN,
        State::Answered => FlowFlags::REPLY_SEEN,
        State::Opening => FlowFlags::NONE,
    };
    let translated = (&backend, port(backend_port));
    let mut record = Record::new(original, translated, (&source, source_port), flags | state);
    record.stamp = match contents.state {
        State::Due => now.wrapping_sub(100),
        _ => now,
    };
    record.backend = id;
    record.service = id;
    record.backend_generation = GENERATION_KEPT;
    record.sequence = [u16::try_from(NUMBERS.0 >> 16).unwrap_or(0); 2];
    let hop = Hop {
        mac: MacAddr::new(BACKEND_MAC),
        slot: u8::try_from(XdpDevice::slot(ifindex)).unwrap_or(0),
    };
    let awaited = Awaited::new(NUMBERS.1, NUMBERS.0).as_hop();
    let reply = match contents.state {
        State::Established | State::Due => hop,
        State::Answered | State::Opening => awaited,
    };
    record.hops = [hop, reply];
    record.checked()
}

/// Lower half of the generation of every backend.
const GENERATION_KEPT: u16 = 1;

fn fill<F: Bench>(programs: &mut Programs, services: u32) -> Result<()>
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
    Ok(())
}
