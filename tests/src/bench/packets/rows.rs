//! What is timed: packets of some flows, the program behind the front, and what has to come out of it.

use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::Counter;

use super::super::Effort;
use super::addresses::{
    BACKEND, Bench, CLIENT_BASE, CLUSTER_IP, NEW_CLIENT_BASE, NEW_NODE_PORT, NEW_PORT, NODE,
    NODE_PORT, PORT, SAME_PORT, TARGET_PORT, client, client_at, ip, snat_port,
};
use super::filled::{Contents, Kind, State};
use crate::packet::{ACK, PacketBuilder, RST, SYN};
use crate::prog_run::{TC_NEXT, TableSize, XDP_PASS, XDP_TX};

/// A path of packets through the programs, in the order of the table. Rows of one path stay as they are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Path {
    /// What the front costs by itself.
    EmptyXdp,
    EmptyTc,
    NodePort,
    Due,
    ConfirmAtNodePort,
    CloseAtNodePort,
    NewAtNodePort,
    NotOursAtXdp,
    Original,
    Reply,
    OriginalSamePort,
    ReplySamePort,
    Halves,
    DueAtClusterIp,
    ConfirmAtClusterIp,
    CloseAtClusterIp,
    NewAtClusterIp,
    NotOursAtTc,
}

impl Path {
    pub(super) fn hook(self) -> Hook {
        match self {
            Path::EmptyXdp
            | Path::NodePort
            | Path::Due
            | Path::ConfirmAtNodePort
            | Path::CloseAtNodePort
            | Path::NewAtNodePort
            | Path::NotOursAtXdp => Hook::Xdp,
            _ => Hook::Tc,
        }
    }

    /// Whether its time is what others of its hook are compared with.
    pub(super) fn is_floor(self) -> bool {
        matches!(self, Path::EmptyXdp | Path::EmptyTc)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

/// A program by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// Of the front's own object.
    Empty(&'static str),
    /// Of those whose maps are filled.
    Loaded(&'static str),
}

/// Which flows the packets are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flows {
    /// As many established ones, in turn; a power of two.
    Each(u32),
    /// A new one with each packet.
    New,
}

impl Flows {
    /// Bits of a packet's number that make its flow.
    pub(super) fn mask(self) -> u32 {
        match self {
            Flows::Each(count) => count - 1,
            Flows::New => u32::MAX,
        }
    }
}

/// One row to be measured.
pub(super) struct PacketRow {
    pub(super) id: String,
    /// Number of the filled maps.
    pub(super) filled: usize,
    pub(super) path: Path,
    pub(super) behind: Behind,
    pub(super) packet: Vec<u8>,
    /// Where the address and the port that vary lie.
    pub(super) varies: (u32, u32),
    /// The varying word of the address of the first flow.
    pub(super) base: u32,
    pub(super) flows: Flows,
    pub(super) v6: bool,
    /// What lies in the table.
    pub(super) contents: Contents,
    /// The packets change it: each flow is visited once, and the table is filled anew every time.
    pub(super) is_spoilt: bool,
    /// What each packet is to count.
    pub(super) counted: Option<Counter>,
    /// What the program returns.
    pub(super) verdict: u32,
    /// What the packet of flow 0 has when it leaves.
    pub(super) source: Option<SocketAddr>,
    pub(super) destination: Option<SocketAddr>,
    /// How many are timed together.
    pub(super) packets: u32,
    pub(super) times: Vec<f64>,
}

/// What the rows of some filled maps are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Setting {
    /// Services beside those that are dialled.
    pub(super) services: u32,
    /// Flows that the table has room for.
    pub(super) room: u32,
    /// The rows show what many Services cost.
    pub(super) are_services_many: bool,
}

/// Flows of the rows whose packets change the table.
const CHANGED: u32 = 1 << 16;

/// The rows of a family over some filled maps.
pub(super) fn rows_of<F: Bench>(
    filled: usize,
    setting: Setting,
    effort: &Effort,
) -> Vec<PacketRow> {
    let room = setting.room;
    let suffix = if setting.are_services_many {
        format!(".services={}", setting.services)
    } else {
        String::new()
    };
    let maker = Maker::<F> {
        filled,
        suffix,
        packets: effort.packets,
        family: PhantomData,
    };
    let mut rows = Vec::new();
    if setting.are_services_many {
        maker.established(1, "", &mut rows);
        maker.new_flows("", Contents::NONE, &mut rows);
        maker.not_ours(&mut rows);
        return rows;
    }
    if room == 1 {
        if !F::IS_V6 {
            maker.empty(&mut rows);
        }
        maker.established(1, "", &mut rows);
        maker.same_port(&mut rows);
        maker.halves(1, &mut rows);
        maker.not_ours(&mut rows);
        return rows;
    }
    maker.established(room, "", &mut rows);
    if room == CHANGED {
        maker.changes(CHANGED, &mut rows);
        maker.halves(1 << 14, &mut rows);
    }
    if room == effort.flows {
        if room > CHANGED {
            maker.established(CHANGED, &format!(".room={room}"), &mut rows);
        }
        let places = TableSize::of(room).places();
        let full = |state, flows| Contents {
            kind: Kind::Others,
            state,
            flows,
        };
        maker.new_flows("", Contents::NONE, &mut rows);
        maker.new_flows(".half", full(State::Established, places / 2), &mut rows);
        // Some find no place of their own and take another's.
        maker.new_flows(".full", full(State::Opening, places / 4 * 5), &mut rows);
    }
    rows
}

/// What the rows of one family over some filled maps have in common.
struct Maker<F> {
    filled: usize,
    suffix: String,
    packets: u32,
    family: PhantomData<fn() -> F>,
}

impl<F: Bench> Maker<F> {
    fn tcp(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
        PacketBuilder::tcp(source, destination)
            .flags(flags)
            .payload(&[0x5a; 26])
            .build()
    }

    /// Varies by client, is passed on, and has no output to be looked at.
    fn row(&self, id: &str, path: Path, behind: Behind, packet: Vec<u8>) -> PacketRow {
        PacketRow {
            id: format!("{}{}", id.replace("{}", F::TAG), self.suffix),
            filled: self.filled,
            path,
            behind,
            packet,
            varies: (F::ADDR_AT.0, F::L4),
            base: CLIENT_BASE,
            flows: Flows::Each(1),
            v6: F::IS_V6,
            contents: Contents::NONE,
            is_spoilt: false,
            counted: None,
            verdict: TC_NEXT,
            source: None,
            destination: None,
            packets: self.packets,
            times: Vec::new(),
        }
    }

    fn empty(&self, rows: &mut Vec<PacketRow>) {
        let packet = self.tcp(self.client(), self.at(NODE, NODE_PORT), ACK);
        rows.push(PacketRow {
            verdict: XDP_TX,
            ..self.row(
                "xdp.empty",
                Path::EmptyXdp,
                Behind::Empty("empty_xdp"),
                packet.clone(),
            )
        });
        rows.push(self.row("tc.empty", Path::EmptyTc, Behind::Empty("empty_tc"), packet));
    }

    fn at(&self, host: (std::net::Ipv4Addr, std::net::Ipv6Addr), port: u16) -> SocketAddr {
        SocketAddr::new(ip::<F>(host), port)
    }

    fn client(&self) -> SocketAddr {
        let (client, port) = client(0, F::IS_V6);
        SocketAddr::new(client, port)
    }

    /// Rows of established flows by XDP and by tc both ways.
    fn established(&self, count: u32, room: &str, rows: &mut Vec<PacketRow>) {
        let flows = Flows::Each(count);
        let contents = |kind| Contents {
            kind,
            state: State::Established,
            flows: count,
        };
        rows.push(PacketRow {
            flows,
            contents: contents(Kind::NodePort),
            verdict: XDP_TX,
            source: Some(self.at(NODE, snat_port(0))),
            destination: Some(self.at(BACKEND, TARGET_PORT)),
            ..self.row(
                &format!("xdp.node_port.established.{{}}.flows={count}{room}"),
                Path::NodePort,
                Behind::Loaded("xdp_ext_in"),
                self.tcp(self.client(), self.at(NODE, NODE_PORT), ACK),
            )
        });
        let id = |way| format!("tc.cluster_ip.{way}.{{}}.flows={count}{room}");
        let paths = [Path::Original, Path::Reply];
        let ids = [id("original"), id("reply")];
        self.cluster_ip(
            paths,
            ids,
            contents(Kind::ClusterIp),
            PORT,
            TARGET_PORT,
            rows,
        );
    }

    fn same_port(&self, rows: &mut Vec<PacketRow>) {
        let contents = Contents {
            kind: Kind::SamePort,
            state: State::Established,
            flows: 1,
        };
        let paths = [Path::OriginalSamePort, Path::ReplySamePort];
        let ids = ["original", "reply"].map(|way| format!("tc.cluster_ip.{way}.same_port.{{}}"));
        self.cluster_ip(paths, ids, contents, SAME_PORT, SAME_PORT, rows);
    }

    fn cluster_ip(
        &self,
        paths: [Path; 2],
        ids: [String; 2],
        contents: Contents,
        dialled: u16,
        target: u16,
        rows: &mut Vec<PacketRow>,
    ) {
        let (client, backend) = (self.client(), self.at(BACKEND, target));
        let frontend = self.at(CLUSTER_IP, dialled);
        let flows = Flows::Each(contents.flows);
        rows.push(PacketRow {
            flows,
            contents,
            source: Some(client),
            destination: Some(self.at(BACKEND, target)),
            ..self.row(
                &ids[0],
                paths[0],
                Behind::Loaded("tc_pod_in"),
                self.tcp(client, frontend, ACK),
            )
        });
        rows.push(PacketRow {
            flows,
            contents,
            varies: (F::ADDR_AT.1, F::L4 + 2),
            source: Some(frontend),
            destination: Some(client),
            ..self.row(
                &ids[1],
                paths[1],
                Behind::Loaded("tc_out"),
                self.tcp(backend, client, ACK),
            )
        });
    }

    /// Outside → remote backend by tc, at each of its four hooks. The flows have their own ports, one address dials.
    fn halves(&self, count: u32, rows: &mut Vec<PacketRow>) {
        let (client, backend) = (self.client(), self.at(BACKEND, TARGET_PORT));
        let snat = self.at(NODE, client.port());
        let front = self.at(NODE, NODE_PORT);
        let contents = Contents {
            kind: Kind::Halves,
            state: State::Established,
            flows: count,
        };
        let back = (F::ADDR_AT.1, F::L4 + 2);
        let node = word_of(ip::<F>(NODE));
        for (way, behind, (from, to), (source, destination), varies, base) in [
            (
                "original.in",
                "tc_ext_in",
                (client, front),
                (client, backend),
                (F::ADDR_AT.0, F::L4),
                CLIENT_BASE,
            ),
            (
                "original.out",
                "tc_out",
                (client, backend),
                (snat, backend),
                (F::ADDR_AT.0, F::L4),
                CLIENT_BASE,
            ),
            (
                "reply.in",
                "tc_ext_in",
                (backend, snat),
                (backend, client),
                back,
                node,
            ),
            (
                "reply.out",
                "tc_out",
                (backend, client),
                (front, client),
                back,
                CLIENT_BASE,
            ),
        ] {
            rows.push(PacketRow {
                flows: Flows::Each(count),
                contents,
                varies,
                base,
                source: Some(source),
                destination: Some(destination),
                ..self.row(
                    &format!("tc.node_port.{way}.{{}}.flows={count}"),
                    Path::Halves,
                    Behind::Loaded(behind),
                    self.tcp(from, to, ACK),
                )
            });
        }
    }

    /// Rows whose packets change their flow: its first ACK, a RST, the first packet after a while.
    fn changes(&self, count: u32, rows: &mut Vec<PacketRow>) {
        for (what, state, flags, paths, counted) in [
            (
                "due",
                State::Due,
                ACK,
                [Path::Due, Path::DueAtClusterIp],
                None,
            ),
            (
                "confirm",
                State::Answered,
                ACK,
                [Path::ConfirmAtNodePort, Path::ConfirmAtClusterIp],
                Some(Counter::FlowConfirmed),
            ),
            (
                "close",
                State::Established,
                RST,
                [Path::CloseAtNodePort, Path::CloseAtClusterIp],
                None,
            ),
        ] {
            for (kind, id, path, behind, verdict, front) in [
                (
                    Kind::NodePort,
                    "xdp.node_port",
                    paths[0],
                    "xdp_ext_in",
                    XDP_TX,
                    self.at(NODE, NODE_PORT),
                ),
                (
                    Kind::ClusterIp,
                    "tc.cluster_ip",
                    paths[1],
                    "tc_pod_in",
                    TC_NEXT,
                    self.at(CLUSTER_IP, PORT),
                ),
            ] {
                rows.push(PacketRow {
                    flows: Flows::Each(count),
                    contents: Contents {
                        kind,
                        state,
                        flows: count,
                    },
                    is_spoilt: true,
                    counted,
                    verdict,
                    packets: self.packets.min(count),
                    ..self.row(
                        &format!("{id}.{what}.{{}}"),
                        path,
                        Behind::Loaded(behind),
                        self.tcp(self.client(), front, flags),
                    )
                });
            }
        }
    }

    /// Rows that open a flow with each packet.
    fn new_flows(&self, how_full: &str, contents: Contents, rows: &mut Vec<PacketRow>) {
        let newcomer = SocketAddr::new(client_at(NEW_CLIENT_BASE, F::IS_V6), self.client().port());
        let row = |id, path, behind, front| PacketRow {
            base: NEW_CLIENT_BASE,
            flows: Flows::New,
            contents,
            is_spoilt: true,
            counted: Some(Counter::NewFlow),
            packets: self.packets / 4,
            ..self.row(
                &format!("{id}.new{how_full}.{{}}"),
                path,
                Behind::Loaded(behind),
                self.tcp(newcomer, front, SYN),
            )
        };
        rows.push(PacketRow {
            verdict: XDP_TX,
            ..row(
                "xdp.node_port",
                Path::NewAtNodePort,
                "xdp_ext_in",
                self.at(NODE, NEW_NODE_PORT),
            )
        });
        rows.push(PacketRow {
            source: Some(newcomer),
            ..row(
                "tc.cluster_ip",
                Path::NewAtClusterIp,
                "tc_pod_in",
                self.at(CLUSTER_IP, NEW_PORT),
            )
        });
    }

    /// Rows of packets that are no Service's; of some the port is one's.
    fn not_ours(&self, rows: &mut Vec<PacketRow>) {
        for (id, path, behind, verdict, port) in [
            (
                "xdp.not_ours",
                Path::NotOursAtXdp,
                "xdp_ext_in",
                XDP_PASS,
                9_999,
            ),
            (
                "xdp.not_ours.port_matches",
                Path::NotOursAtXdp,
                "xdp_ext_in",
                XDP_PASS,
                PORT,
            ),
            (
                "tc.not_ours.ingress",
                Path::NotOursAtTc,
                "tc_ext_in",
                TC_NEXT,
                9_999,
            ),
            (
                "tc.not_ours.port_matches",
                Path::NotOursAtTc,
                "tc_ext_in",
                TC_NEXT,
                PORT,
            ),
            (
                "tc.not_ours.pod.port_matches",
                Path::NotOursAtTc,
                "tc_pod_in",
                TC_NEXT,
                PORT,
            ),
            (
                "tc.egress.not_ours",
                Path::NotOursAtTc,
                "tc_out",
                TC_NEXT,
                9_999,
            ),
        ] {
            let foreign = self.at(NODE, port);
            rows.push(PacketRow {
                verdict,
                source: Some(self.client()),
                destination: Some(foreign),
                ..self.row(
                    &format!("{id}.{{}}"),
                    path,
                    Behind::Loaded(behind),
                    self.tcp(self.client(), foreign, ACK),
                )
            });
        }
    }
}

/// The word of an address that varies.
fn word_of(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(addr) => {
            let [.., a, b] = addr.segments();
            (u32::from(a) << 16) | u32::from(b)
        }
    }
}
