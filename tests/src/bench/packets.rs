//! Nanoseconds a packet, of each path, behind the front program.
//!
//! The maps are filled by hand: what the agent would write, and established flows as the programs
//! would have confirmed them. Each row's output packet is checked before it is timed.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::Program,
};
use lb_agent::bpf::features::Features;
use lb_common::{
    Family, V4, V6,
    abi::{
        Addr4, Addr6, Backend, BackendFlags, BackendState, Be16, Config, Flow, FlowFlags, FlowKey,
        FrontendKind, Interface, InterfaceFlags, MacAddr, PortFilter, SELECTION_BLOCK_ROWS,
        SelectionList, Service, ServiceFlags, ServiceKey, Side, Translation, XdpDevice, flow_check,
        proto,
    },
    names,
};

use super::{Effort, Report, Row, median, progress, sys};
use crate::{
    netns::NetNs,
    packet::{DESTINATION_MAC, PacketBuilder, Parsed},
    prog_run::{FlowMapKey, Programs, TC_NEXT, XDP_PASS, XDP_TX},
};

/// Bytes of the packet that the front puts back.
const PAINTED: usize = 80;

/// `Plan` of the front program.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    template: [u8; PAINTED],
    counter: u64,
    mask: u32,
    addr_at: u32,
    addr_base: u32,
    port_at: u32,
}

// SAFETY: `repr(C)` of integers without gaps; every bit pattern is valid.
unsafe impl aya::Pod for Plan {}

const NODE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 11),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11),
);
/// The remote backend; its first addresses are direct neighbours, so that XDP finds its next hop.
const BACKEND: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 12),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x12),
);
const CLUSTER_IP: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 96, 0, 10),
    Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10),
);
/// Client of flow 0: its lower bits vary.
const CLIENT: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(11, 0, 0, 0),
    Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0x0b00, 0),
);
const CLIENT_BASE: u32 = 0x0b00_0000;
const FIRST_PORT: u16 = 16_384;
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 80;
const SAME_PORT: u16 = 8_080;
/// Frontends of the rows that open flows: a Service with many backends, or one backend's source ports
/// would run out.
const NEW_NODE_PORT: u16 = 30_081;
const NEW_PORT: u16 = 81;
const NEW_BACKENDS: u16 = 64;
const NEW_ID: u32 = 3;
const FIRST_NEW_BACKEND: u32 = 10;
/// Their clients are others than those of established flows.
const NEW_CLIENT_BASE: u32 = 0x0b80_0000;
const TARGET_PORT: u16 = 8_080;
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x12];
/// Ids of the two backends of the measured Services, one with another port and one with the same.
const SERVICE_ID: u32 = 1;
const SAME_PORT_ID: u32 = 2;

fn ip<F: Family>(pair: (Ipv4Addr, Ipv6Addr)) -> IpAddr {
    if F::IS_V6 {
        pair.1.into()
    } else {
        pair.0.into()
    }
}

/// What differs between the families here.
trait Bench: Family {
    fn addr(ip: IpAddr) -> Self::Addr;
    /// Where the word of the address that varies lies: source, destination.
    const ADDR_AT: (u32, u32);
    /// Where the transport header lies.
    const L4: u32;
    const TAG: &'static str;
}

impl Bench for V4 {
    fn addr(ip: IpAddr) -> Addr4 {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(_) => Addr4::default(),
        }
    }
    const ADDR_AT: (u32, u32) = (26, 30);
    const L4: u32 = 34;
    const TAG: &'static str = "v4";
}

impl Bench for V6 {
    fn addr(ip: IpAddr) -> Addr6 {
        match ip {
            IpAddr::V6(ip) => ip.into(),
            IpAddr::V4(_) => Addr6::default(),
        }
    }
    const ADDR_AT: (u32, u32) = (14 + 8 + 12, 14 + 24 + 12);
    const L4: u32 = 54;
    const TAG: &'static str = "v6";
}

/// Client of a flow of the front.
fn client(number: u32, v6: bool) -> (IpAddr, u16) {
    (
        client_at(CLIENT_BASE + (number >> 14), v6),
        FIRST_PORT + u16::try_from(number & 16_383).unwrap_or(0),
    )
}

/// The client address with this varying word.
fn client_at(word: u32, v6: bool) -> IpAddr {
    if v6 {
        let mut segments = CLIENT.1.segments();
        segments[6] = u16::try_from(word >> 16).unwrap_or(0);
        segments[7] = u16::try_from(word & 0xffff).unwrap_or(0);
        IpAddr::from(segments)
    } else {
        IpAddr::V4(word.into())
    }
}

/// Port that SNAT gave a flow of the front.
fn snat_port(number: u32) -> u16 {
    20_000 + u16::try_from(number % 10_000).unwrap_or(0)
}

/// The loaded programs with their maps filled.
struct World {
    programs: Programs,
    services: u32,
}

/// One row to be measured.
struct Case {
    id: String,
    world: usize,
    hook: Hook,
    program: &'static str,
    packet: Vec<u8>,
    varies: (u32, u32),
    base: u32,
    mask: u32,
    verdict: u32,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    packets: u32,
    times: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    Xdp,
    Tc,
}

/// Measures all packet rows.
pub fn measure(report: &mut Report, effort: &Effort) -> Result<()> {
    let ns = NetNs::new("bench")?;
    ns.ip(&format!(
        "link add out0 address 02:00:00:00:00:02 type veth peer name peer0\nlink set lo up\nlink set peer0 up\nlink set out0 up\n\
         addr add {}/24 dev out0\naddr add {}/64 dev out0 nodad\n\
         neigh add {} lladdr 02:00:00:00:00:12 dev out0\nneigh add {} lladdr 02:00:00:00:00:12 dev out0\n\
         route add 11.0.0.0/8 via {}\nroute add 2001:db8:c::/48 via {}\n",
        NODE.0, NODE.1, BACKEND.0, BACKEND.1, BACKEND.0, BACKEND.1
    ))?;
    ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    ns.run(|| {
        sys::pin();
        measure_here(report, effort)
    })?
}

fn measure_here(report: &mut Report, effort: &Effort) -> Result<()> {
    let ifindex = sys::ifindex("out0")?;
    progress(&format!(
        "packets: filling maps with {} flows and {} Services",
        effort.flows, effort.services
    ));
    let mut worlds = vec![
        World::new(10, effort.flows, ifindex)?,
        World::new(effort.services, 1, ifindex)?,
    ];
    let mut front = Front::load()?;
    let mut cases = Vec::new();
    for (world, this) in worlds.iter().enumerate() {
        cases_of::<V4>(&mut cases, world, this, effort)?;
        cases_of::<V6>(&mut cases, world, this, effort)?;
    }
    for case in &mut cases {
        front.check(&mut worlds, case, ifindex)?;
    }
    for round in 1..=effort.rounds {
        progress(&format!(
            "packets: {} rows of {} packets, round {round} of {}",
            cases.len(),
            effort.packets,
            effort.rounds
        ));
        for case in &mut cases {
            let time = front.time(&mut worlds, case, ifindex)?;
            case.times.push(time);
        }
    }
    let floors: BTreeMap<&str, Vec<f64>> = cases
        .iter()
        .filter(|case| case.id.ends_with(".empty"))
        .map(|case| {
            (
                if case.hook == Hook::Xdp { "xdp" } else { "tc" },
                case.times.clone(),
            )
        })
        .collect();
    cases.sort_by_key(|case| (case.world, rank(&case.id)));
    for case in &cases {
        let floor = floors.get(if case.hook == Hook::Xdp { "xdp" } else { "tc" });
        let is_floor = case.id.ends_with(".empty");
        let floor = floor.filter(|_| !is_floor);
        let own = floor.map(|floor| {
            let own: Vec<f64> = case
                .times
                .iter()
                .zip(floor)
                .map(|(time, floor)| time - floor)
                .collect();
            median(&own)
        });
        report.rows.push(Row {
            id: case.id.clone(),
            value: median(&case.times),
            unit: "ns",
            floor: floor.map(|floor| median(floor)),
            own,
            runs: case.times.len(),
        });
    }
    Ok(())
}

/// Where a row stands in the table; rows of one rank stay as they are, IPv4 first.
fn rank(id: &str) -> usize {
    const ORDER: [&str; 9] = [
        "xdp.empty",
        "tc.empty",
        "xdp.node_port.established",
        "xdp.node_port.new",
        "xdp.not_ours",
        "tc.cluster_ip.original.v",
        "tc.cluster_ip.reply.v",
        "tc.cluster_ip.original.same_port",
        "tc.cluster_ip.reply.same_port",
    ];
    let found = ORDER.iter().position(|prefix| id.starts_with(prefix));
    found.unwrap_or(ORDER.len() + usize::from(id.starts_with("tc.not_ours")))
}

fn cases_of<F: Bench>(
    cases: &mut Vec<Case>,
    world: usize,
    this: &World,
    effort: &Effort,
) -> Result<()> {
    let many = world > 0;
    let suffix = if many {
        format!(".services={}", this.services)
    } else {
        String::new()
    };
    let tag = F::TAG;
    let node = ip::<F>(NODE);
    let backend = ip::<F>(BACKEND);
    let cluster_ip = ip::<F>(CLUSTER_IP);
    let (client, port) = client(0, F::IS_V6);
    let client = SocketAddr::new(client, port);
    let newcomer = SocketAddr::new(client_at(NEW_CLIENT_BASE, F::IS_V6), port);
    let pod_varies = (F::ADDR_AT.0, F::L4);
    let reply_varies = (F::ADDR_AT.1, F::L4 + 2);
    let flag = |syn: bool| if syn { 0x02 } else { 0x10 };
    let tcp = |source: SocketAddr, destination: SocketAddr, syn: bool| {
        PacketBuilder::tcp(source, destination)
            .flags(flag(syn))
            .payload(&[0x5a; 26])
            .build()
    };
    let at = SocketAddr::new;
    let mut add =
        |id: String, hook, program, packet, varies, mask, verdict, source, destination, packets| {
            cases.push(Case {
                id,
                world,
                hook,
                program,
                packet,
                varies,
                base: if mask == u32::MAX {
                    NEW_CLIENT_BASE
                } else {
                    CLIENT_BASE
                },
                mask,
                verdict,
                source,
                destination,
                packets,
                times: Vec::new(),
            });
        };
    if !many && !F::IS_V6 {
        let packet = tcp(client, at(node, NODE_PORT), false);
        add(
            "xdp.empty".into(),
            Hook::Xdp,
            "empty_xdp",
            packet.clone(),
            pod_varies,
            0,
            XDP_TX,
            None,
            None,
            effort.packets,
        );
        add(
            "tc.empty".into(),
            Hook::Tc,
            "empty_tc",
            packet,
            pod_varies,
            0,
            TC_NEXT,
            None,
            None,
            effort.packets,
        );
    }
    let sizes: Vec<u32> = [1, 1 << 16, 1 << 20]
        .into_iter()
        .filter(|n| *n <= effort.flows && (!many || *n == 1))
        .collect();
    for flows in &sizes {
        let mask = flows - 1;
        add(
            format!("xdp.node_port.established.{tag}.flows={flows}{suffix}"),
            Hook::Xdp,
            "xdp_ext_in",
            tcp(client, at(node, NODE_PORT), false),
            pod_varies,
            mask,
            XDP_TX,
            Some(at(node, snat_port(0))),
            Some(at(backend, TARGET_PORT)),
            effort.packets,
        );
        for (name, dialled) in [("", PORT), (".same_port", SAME_PORT)] {
            if name == ".same_port" && *flows > 1 {
                continue;
            }
            let label = |direction: &str| {
                if name.is_empty() {
                    format!("tc.cluster_ip.{direction}.{tag}.flows={flows}{suffix}")
                } else {
                    format!("tc.cluster_ip.{direction}.same_port.{tag}{suffix}")
                }
            };
            add(
                label("original"),
                Hook::Tc,
                "tc_pod_in",
                tcp(client, at(cluster_ip, dialled), false),
                pod_varies,
                mask,
                TC_NEXT,
                Some(client),
                Some(at(backend, TARGET_PORT)),
                effort.packets,
            );
            let from = if name.is_empty() {
                TARGET_PORT
            } else {
                SAME_PORT + 1
            };
            let to = if name.is_empty() { PORT } else { SAME_PORT + 1 };
            add(
                label("reply"),
                Hook::Tc,
                "tc_out",
                tcp(at(backend, from), client, false),
                reply_varies,
                mask,
                TC_NEXT,
                Some(at(cluster_ip, to)),
                Some(client),
                effort.packets,
            );
        }
    }
    add(
        format!("xdp.node_port.new.{tag}{suffix}"),
        Hook::Xdp,
        "xdp_ext_in",
        tcp(newcomer, at(node, NEW_NODE_PORT), true),
        pod_varies,
        u32::MAX,
        XDP_TX,
        None,
        None,
        effort.packets / 4,
    );
    add(
        format!("tc.cluster_ip.new.{tag}{suffix}"),
        Hook::Tc,
        "tc_pod_in",
        tcp(newcomer, at(cluster_ip, NEW_PORT), true),
        pod_varies,
        u32::MAX,
        TC_NEXT,
        Some(newcomer),
        None,
        effort.packets / 4,
    );
    let foreign = at(node, 9_999);
    let plain = || tcp(client, foreign, false);
    add(
        format!("xdp.not_ours.{tag}{suffix}"),
        Hook::Xdp,
        "xdp_ext_in",
        plain(),
        pod_varies,
        0,
        XDP_PASS,
        Some(client),
        Some(foreign),
        effort.packets,
    );
    add(
        format!("tc.not_ours.{tag}{suffix}"),
        Hook::Tc,
        "tc_out",
        plain(),
        pod_varies,
        0,
        TC_NEXT,
        Some(client),
        Some(foreign),
        effort.packets,
    );
    if !many {
        add(
            format!("tc.not_ours.ingress.{tag}"),
            Hook::Tc,
            "tc_ext_in",
            plain(),
            pod_varies,
            0,
            TC_NEXT,
            Some(client),
            Some(foreign),
            effort.packets,
        );
    }
    Ok(())
}

impl World {
    fn new(services: u32, flows: u32, ifindex: u32) -> Result<World> {
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
                snat_port_min: 20_000,
                snat_port_max: 29_999,
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
        Ok(World { programs, services })
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

/// The front program.
struct Front {
    ebpf: Ebpf,
    behind: Option<(usize, String)>,
}

impl Front {
    fn load() -> Result<Front> {
        let path = crate::agent::target_dir().join("bpf/front.o");
        let object = fs::read(&path)
            .with_context(|| format!("cannot read {}; run `cargo xtask build`", path.display()))?;
        let mut ebpf = EbpfLoader::new()
            .load(&object)
            .context("cannot load the front program")?;
        for name in ["front_xdp", "empty_xdp"] {
            match ebpf.program_mut(name) {
                Some(Program::Xdp(program)) => program.load()?,
                _ => bail!("no XDP program `{name}` in the front object"),
            }
        }
        for name in ["front_tc", "empty_tc"] {
            match ebpf.program_mut(name) {
                Some(Program::SchedClassifier(program)) => program.load()?,
                _ => bail!("no tc program `{name}` in the front object"),
            }
        }
        Ok(Front { ebpf, behind: None })
    }

    /// Puts the case's program behind the front and its packet into it.
    fn prepare(&mut self, worlds: &mut [World], case: &Case) -> Result<()> {
        let wanted = (case.world, case.program.to_owned());
        if self.behind.as_ref() != Some(&wanted) {
            let fd = if case.program.starts_with("empty") {
                let program = self
                    .ebpf
                    .program(case.program)
                    .ok_or_else(|| anyhow!("no `{}`", case.program))?;
                program.fd()?.try_clone()?
            } else {
                worlds[case.world]
                    .programs
                    .verify(case.program)?
                    .fd()?
                    .try_clone()?
            };
            let map = if case.hook == Hook::Xdp {
                "front_xdp_jmp"
            } else {
                "front_tc_jmp"
            };
            let map = self
                .ebpf
                .map_mut(map)
                .ok_or_else(|| anyhow!("no map `{map}` in the front object"))?;
            ProgramArray::try_from(map)?.set(0, &fd, 0)?;
            self.behind = Some(wanted);
        }
        Ok(())
    }

    fn plan(&mut self, case: &Case, counter: u64) -> Result<()> {
        let mut template = [0u8; PAINTED];
        template.copy_from_slice(&case.packet[..PAINTED]);
        let map = self
            .ebpf
            .map_mut("front_plan")
            .ok_or_else(|| anyhow!("no map `front_plan`"))?;
        let plan = Plan {
            template,
            counter,
            mask: case.mask,
            addr_at: case.varies.0,
            addr_base: case.base,
            port_at: case.varies.1,
        };
        Ok(Array::<_, Plan>::try_from(map)?.set(0, plan, 0)?)
    }

    fn program(&self, hook: Hook) -> Result<BorrowedFd<'_>> {
        let name = if hook == Hook::Xdp {
            "front_xdp"
        } else {
            "front_tc"
        };
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| anyhow!("no `{name}`"))?;
        Ok(program.fd()?.as_fd())
    }

    fn run(&self, case: &Case, ifindex: u32, repeat: u32) -> Result<sys::Ran> {
        let context = context(case.hook, case.packet.len(), ifindex);
        sys::test_run(self.program(case.hook)?, &case.packet, &context, repeat)
    }

    /// Runs flow 0 twice (a flow's first packet takes the slow stage) and looks at the output.
    fn check(&mut self, worlds: &mut [World], case: &mut Case, ifindex: u32) -> Result<()> {
        self.prepare(worlds, case)?;
        for _ in 0..2 {
            self.plan(case, 0)?;
            let ran = self.run(case, ifindex, 1)?;
            ensure!(
                ran.verdict == case.verdict,
                "{}: the program returned {}, wanted {}",
                case.id,
                ran.verdict.cast_signed(),
                case.verdict.cast_signed()
            );
            let parsed =
                Parsed::frame(&ran.packet).map_err(|error| anyhow!("{}: {error}", case.id))?;
            for (what, seen, wanted) in [
                ("source", parsed.source, case.source),
                ("destination", parsed.destination, case.destination),
            ] {
                if let Some(wanted) = wanted {
                    ensure!(
                        seen == wanted,
                        "{}: {what} is {seen}, wanted {wanted}",
                        case.id
                    );
                }
            }
        }
        // Not-ours and new rows go on from here; established ones visit all their flows once.
        if case.mask != u32::MAX {
            self.plan(case, 0)?;
            self.run(case, ifindex, case.mask.saturating_add(1).max(1000))?;
        }
        Ok(())
    }

    fn time(&mut self, worlds: &mut [World], case: &Case, ifindex: u32) -> Result<f64> {
        self.prepare(worlds, case)?;
        let round = u64::try_from(case.times.len())?;
        self.plan(case, (round + 1) * u64::from(case.packets))?;
        // Once around unmeasured: caches, branch predictors, and the renewal of times of use.
        self.run(
            case,
            ifindex,
            (case.mask.saturating_add(1))
                .clamp(1000, 1 << 20)
                .min(case.packets),
        )?;
        let ran = self.run(case, ifindex, case.packets)?;
        Ok(ran.time.as_secs_f64() * 1e9 / f64::from(case.packets))
    }
}

fn context(hook: Hook, length: usize, ifindex: u32) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(0);
    match hook {
        Hook::Xdp => {
            let mut context = vec![0u8; 24];
            context[4..8].copy_from_slice(&length.to_ne_bytes()); // data_end
            context[12..16].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
            context
        }
        Hook::Tc => {
            let mut context = vec![0u8; 192];
            context[36..40].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
            context[40..44].copy_from_slice(&ifindex.to_ne_bytes()); // ifindex
            context
        }
    }
}
