//! What is timed: packets of some flows, the program behind the front, and what has to come out of it.

use std::net::SocketAddr;

use super::super::Effort;
use super::addresses::{
    BACKEND, Bench, CLIENT_BASE, CLUSTER_IP, NEW_CLIENT_BASE, NEW_NODE_PORT, NEW_PORT, NODE,
    NODE_PORT, PORT, SAME_PORT, TARGET_PORT, client, client_at, ip, snat_port,
};
use crate::packet::{ACK, PacketBuilder, SYN};
use crate::prog_run::{TC_NEXT, XDP_PASS, XDP_TX};

/// A path of packets through the programs, in the order of the table. Rows of one path stay as they are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Path {
    /// What the front costs by itself.
    EmptyXdp,
    EmptyTc,
    NodePort,
    NewAtNodePort,
    NotOursAtXdp,
    Original,
    Reply,
    OriginalSamePort,
    ReplySamePort,
    NewAtClusterIp,
    NotOursAtTc,
}

impl Path {
    pub(super) fn hook(self) -> Hook {
        match self {
            Path::EmptyXdp | Path::NodePort | Path::NewAtNodePort | Path::NotOursAtXdp => Hook::Xdp,
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

    pub(super) fn count(self) -> u32 {
        self.mask().saturating_add(1)
    }

    /// The varying word of the first client's address.
    pub(super) fn client_base(self) -> u32 {
        match self {
            Flows::Each(_) => CLIENT_BASE,
            Flows::New => NEW_CLIENT_BASE,
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
    pub(super) flows: Flows,
    /// What the program returns.
    pub(super) verdict: u32,
    /// What the packet of flow 0 has when it leaves.
    pub(super) source: Option<SocketAddr>,
    pub(super) destination: Option<SocketAddr>,
    /// How many are timed together.
    pub(super) packets: u32,
    pub(super) times: Vec<f64>,
}

/// The rows of a family; with `services`, those that show what so many of them cost.
pub(super) fn rows_of<F: Bench>(
    filled: usize,
    services: Option<u32>,
    effort: &Effort,
) -> Vec<PacketRow> {
    let suffix = services.map_or(String::new(), |services| format!(".services={services}"));
    let tag = F::TAG;
    let at = SocketAddr::new;
    let (node, backend) = (ip::<F>(NODE), ip::<F>(BACKEND));
    let cluster_ip = ip::<F>(CLUSTER_IP);
    let (client, port) = client(0, F::IS_V6);
    let client = at(client, port);
    let newcomer = at(client_at(NEW_CLIENT_BASE, F::IS_V6), port);
    let tcp = |source: SocketAddr, destination: SocketAddr, flags: u8| {
        PacketBuilder::tcp(source, destination)
            .flags(flags)
            .payload(&[0x5a; 26])
            .build()
    };
    // Varies by client, is passed on, and has no output to be looked at.
    let row = |id: String, path: Path, behind: Behind, packet: Vec<u8>| PacketRow {
        id,
        filled,
        path,
        behind,
        packet,
        varies: (F::ADDR_AT.0, F::L4),
        flows: Flows::Each(1),
        verdict: TC_NEXT,
        source: None,
        destination: None,
        packets: effort.packets,
        times: Vec::new(),
    };
    let mut rows = Vec::new();
    if services.is_none() && !F::IS_V6 {
        let packet = tcp(client, at(node, NODE_PORT), ACK);
        let empty =
            |id: &str, path, name| row(id.into(), path, Behind::Empty(name), packet.clone());
        rows.push(PacketRow {
            verdict: XDP_TX,
            ..empty("xdp.empty", Path::EmptyXdp, "empty_xdp")
        });
        rows.push(empty("tc.empty", Path::EmptyTc, "empty_tc"));
    }
    let counts = [1, 1 << 16, 1 << 20].into_iter();
    for count in counts.filter(|n| *n <= effort.flows && (services.is_none() || *n == 1)) {
        let flows = Flows::Each(count);
        rows.push(PacketRow {
            flows,
            verdict: XDP_TX,
            source: Some(at(node, snat_port(0))),
            destination: Some(at(backend, TARGET_PORT)),
            ..row(
                format!("xdp.node_port.established.{tag}.flows={count}{suffix}"),
                Path::NodePort,
                Behind::Loaded("xdp_ext_in"),
                tcp(client, at(node, NODE_PORT), ACK),
            )
        });
        let mut cluster_ip_rows = |paths: [Path; 2], ids: [String; 2], dialled, from, to| {
            let [original, reply] = ids;
            rows.push(PacketRow {
                flows,
                source: Some(client),
                destination: Some(at(backend, TARGET_PORT)),
                ..row(
                    original,
                    paths[0],
                    Behind::Loaded("tc_pod_in"),
                    tcp(client, at(cluster_ip, dialled), ACK),
                )
            });
            rows.push(PacketRow {
                flows,
                varies: (F::ADDR_AT.1, F::L4 + 2),
                source: Some(at(cluster_ip, to)),
                destination: Some(client),
                ..row(
                    reply,
                    paths[1],
                    Behind::Loaded("tc_out"),
                    tcp(at(backend, from), client, ACK),
                )
            });
        };
        let ids = ["original", "reply"];
        cluster_ip_rows(
            [Path::Original, Path::Reply],
            ids.map(|way| format!("tc.cluster_ip.{way}.{tag}.flows={count}{suffix}")),
            PORT,
            TARGET_PORT,
            PORT,
        );
        if count == 1 {
            cluster_ip_rows(
                [Path::OriginalSamePort, Path::ReplySamePort],
                ids.map(|way| format!("tc.cluster_ip.{way}.same_port.{tag}{suffix}")),
                SAME_PORT,
                SAME_PORT + 1,
                SAME_PORT + 1,
            );
        }
    }
    rows.push(PacketRow {
        flows: Flows::New,
        verdict: XDP_TX,
        packets: effort.packets / 4,
        ..row(
            format!("xdp.node_port.new.{tag}{suffix}"),
            Path::NewAtNodePort,
            Behind::Loaded("xdp_ext_in"),
            tcp(newcomer, at(node, NEW_NODE_PORT), SYN),
        )
    });
    rows.push(PacketRow {
        flows: Flows::New,
        source: Some(newcomer),
        packets: effort.packets / 4,
        ..row(
            format!("tc.cluster_ip.new.{tag}{suffix}"),
            Path::NewAtClusterIp,
            Behind::Loaded("tc_pod_in"),
            tcp(newcomer, at(cluster_ip, NEW_PORT), SYN),
        )
    });
    let foreign = at(node, 9_999);
    let not_ours = |id: String, path, program, verdict| PacketRow {
        verdict,
        source: Some(client),
        destination: Some(foreign),
        ..row(id, path, Behind::Loaded(program), tcp(client, foreign, ACK))
    };
    rows.push(not_ours(
        format!("xdp.not_ours.{tag}{suffix}"),
        Path::NotOursAtXdp,
        "xdp_ext_in",
        XDP_PASS,
    ));
    rows.push(not_ours(
        format!("tc.not_ours.{tag}{suffix}"),
        Path::NotOursAtTc,
        "tc_out",
        TC_NEXT,
    ));
    if services.is_none() {
        rows.push(not_ours(
            format!("tc.not_ours.ingress.{tag}"),
            Path::NotOursAtTc,
            "tc_ext_in",
            TC_NEXT,
        ));
    }
    rows
}
