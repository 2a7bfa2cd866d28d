//! `flows`: translated connections, the entries of both directions as one row.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lb_common::{
    Family,
    abi::{Backend, Flow, FlowFlags, FlowKey, Side},
};
use serde::Serialize;

use super::{
    query::Query,
    table::{NOTHING, Shown, family_name, or_nothing, print, protocol},
};
use crate::{
    bpf::maps::{ClockReader, FamilyPins, MapResult, Plain},
    dataplane::gc::Now,
    telemetry::state::Names,
};

/// Flags of `lb-agent flows`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    query: Query,
    /// Only this protocol
    #[arg(long, value_enum, ignore_case = true)]
    proto: Option<Proto>,
    /// Only flows with this address as client, frontend, backend or translated source
    #[arg(long, value_name = "IP")]
    addr: Option<IpAddr>,
    /// Only flows that are not confirmed
    #[arg(long)]
    opening: bool,
}

/// `--proto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Where XDP sends packets of a direction.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct NextHop {
    /// Interface.
    pub ifindex: u32,
    /// Link-layer address.
    pub mac: String,
}

/// A translated connection.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub(super) struct Row {
    /// Service port: `namespace/name:port`, its id where the name is not known; absent where the backend's id has
    /// another meaning by now.
    pub service: Option<String>,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Protocol.
    pub protocol: &'static str,
    /// `opening`, `established`, `closing`; `direct`: no Service's, its tuple was taken.
    pub state: &'static str,
    /// Who dialled.
    pub client: SocketAddr,
    /// What was dialled.
    pub frontend: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// The source that the backend sees, where it is not the client.
    pub source: Option<SocketAddr>,
    /// Where the first packet came in: `pod` or `external`.
    pub side: &'static str,
    /// Seconds since the last packet of either direction, to some tenths.
    pub idle_secs: f64,
    /// The reply direction has its entry, too.
    pub has_reply_entry: bool,
    /// Next hop of XDP towards the backend.
    pub next_hop: Option<NextHop>,
    /// Next hop of XDP towards the client.
    pub reply_next_hop: Option<NextHop>,
}

/// Entries of both tables; a confirmed one hides its opening.
type Entries<F> = HashMap<FlowKey<F>, Flow<F>>;

fn entries<F: Family>(pins: &FamilyPins<F>) -> MapResult<Entries<F>> {
    let mut all = Entries::new();
    for table in [&pins.openings, &pins.flows] {
        table.each(|key, flow| {
            all.insert(*key, *flow);
        })?;
    }
    Ok(all)
}

fn next_hop<F: Family>(flow: &Flow<F>) -> Option<NextHop> {
    let octets = flow.dmac.octets().map(|octet| format!("{octet:02x}"));
    (flow.ifindex != 0).then(|| NextHop {
        ifindex: flow.ifindex,
        mac: octets.join(":"),
    })
}

fn state<F: Family>(flow: &Flow<F>, reply: Option<&Flow<F>>) -> &'static str {
    let flags =
        flow.flags | reply.map_or(FlowFlags::NONE, |reply| reply.flags & FlowFlags::CLOSING);
    if flags.contains(FlowFlags::DIRECT) {
        "direct"
    } else if flags.intersects(FlowFlags::CLOSING) {
        "closing"
    } else if flags.contains(FlowFlags::CONFIRMED) {
        "established"
    } else {
        "opening"
    }
}

/// The row of an original entry; `None` for the other entries of a flow.
fn row<F: Family>(
    key: &FlowKey<F>,
    flow: &Flow<F>,
    all: &Entries<F>,
    now: Now,
    service: impl Fn(&Flow<F>) -> Option<String>,
) -> Option<Row>
where
    F::Addr: Shown,
{
    if flow.flags.intersects(FlowFlags::REPLY | FlowFlags::EGRESS) {
        return None;
    }
    let reply = all.get(&flow.partner_key(key));
    let client = SocketAddr::new(key.saddr.ip(), key.sport.to_host());
    let source = SocketAddr::new(flow.to.saddr.ip(), flow.to.sport.to_host());
    let idle = reply
        .map_or(Duration::MAX, |reply| now.since(reply.stamp))
        .min(now.since(flow.stamp));
    Some(Row {
        service: service(flow),
        family: family_name::<F>(),
        protocol: protocol(key.proto),
        state: state(flow, reply),
        client,
        frontend: SocketAddr::new(key.daddr.ip(), key.dport.to_host()),
        backend: SocketAddr::new(flow.to.daddr.ip(), flow.to.dport.to_host()),
        source: (source != client).then_some(source),
        side: match key.side() {
            Some(Side::PodIn) => "pod",
            Some(Side::ExternalIn) => "external",
            _ => "out",
        },
        idle_secs: (idle.as_secs_f64() * 10.0).round() / 10.0,
        has_reply_entry: reply.is_some(),
        next_hop: next_hop(flow),
        reply_next_hop: reply.and_then(next_hop),
    })
}

fn family<F: Family>(
    pins: &FamilyPins<F>,
    names: &Names,
    now: Now,
    rows: &mut Vec<Row>,
) -> MapResult<()>
where
    F::Addr: Shown,
    Backend<F>: Plain,
{
    let all = entries(pins)?;
    let service = |flow: &Flow<F>| {
        let backend = pins.backends.read(flow.backend).ok()?;
        let same = backend.addr == flow.to.daddr && backend.port == flow.to.dport;
        (same && backend.service_id != 0).then(|| names.full(backend.service_id))
    };
    rows.extend(
        all.iter()
            .filter_map(|(key, flow)| row(key, flow, &all, now, service)),
    );
    Ok(())
}

impl Args {
    fn wants(&self, row: &Row) -> bool {
        let proto = self.proto.is_none_or(|proto| {
            row.protocol
                == match proto {
                    Proto::Tcp => "TCP",
                    Proto::Udp => "UDP",
                    Proto::Sctp => "SCTP",
                }
        });
        let ends = [
            Some(row.client),
            Some(row.frontend),
            Some(row.backend),
            row.source,
        ];
        let addr = self
            .addr
            .is_none_or(|addr| ends.into_iter().flatten().any(|end| end.ip() == addr));
        proto && addr && (!self.opening || row.state == "opening")
    }
}

/// Prints the flows of both families.
pub(super) fn flows(args: &Args) -> Result<()> {
    let view = args.query.open()?;
    view.explain_ids();
    // 0 until the agent has measured it.
    let hz = Some(view.maps.config()?.hz)
        .filter(|hz| *hz != 0)
        .unwrap_or(250);
    let clock = ClockReader::open_pinned(&view.maps.dir)?
        .now()
        .context("cannot tell how old flows are")?;
    let now = Now {
        stamp: clock.stamp(),
        hz,
    };
    let mut rows = Vec::new();
    family(&view.maps.v4, &view.names, now, &mut rows)?;
    family(&view.maps.v6, &view.names, now, &mut rows)?;
    rows.retain(|row| args.wants(row));
    rows.sort_by_cached_key(|row| {
        (
            row.service.clone(),
            row.family,
            row.protocol,
            row.frontend,
            row.client,
        )
    });
    let heads = [
        "PROTO", "STATE", "IDLE", "AT", "CLIENT", "FRONTEND", "BACKEND", "SOURCE", "XDP", "SERVICE",
    ];
    let reports = view.state.as_ref().map(|state| state.interfaces.as_slice());
    let interface = |hop: &NextHop| {
        let report = reports
            .unwrap_or_default()
            .iter()
            .find(|report| report.ifindex == hop.ifindex);
        report.map_or_else(|| hop.ifindex.to_string(), |report| report.name.clone())
    };
    print(view.output, heads, &rows, |r| {
        let hops = [&r.next_hop, &r.reply_next_hop]
            .map(|hop| hop.as_ref().map_or_else(|| NOTHING.to_owned(), interface));
        [
            r.protocol.into(),
            r.state.into(),
            idle(r.idle_secs),
            r.side.into(),
            r.client.to_string(),
            r.frontend.to_string(),
            r.backend.to_string(),
            r.source
                .map_or_else(|| NOTHING.into(), |source| source.to_string()),
            if r.next_hop.is_none() && r.reply_next_hop.is_none() {
                NOTHING.into()
            } else {
                format!("→{} ←{}", hops[0], hops[1])
            },
            or_nothing(r.service.as_deref()),
        ]
    })
}

/// Seconds, minutes or hours, whichever read best.
fn idle(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.0} s"),
        ..3600.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        V4,
        abi::{Addr4, Be16, MacAddr, Translation, proto},
    };

    use super::*;

    const NOW: Now = Now {
        stamp: 100,
        hz: 256,
    };

    fn addr(last: u8) -> Addr4 {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn port(port: u16) -> Be16 {
        Be16::from_host(port)
    }

    /// A client's flow through a frontend to a backend, source-translated, as XDP carries it.
    fn snat_flow(confirmed: bool) -> Entries<V4> {
        let (client, vip, node, backend) = (addr(1), addr(2), addr(3), addr(4));
        let confirmed = if confirmed {
            FlowFlags::CONFIRMED
        } else {
            FlowFlags::NONE
        };
        let original = Flow {
            to: Translation {
                saddr: node,
                daddr: backend,
                sport: port(20_000),
                dport: port(8080),
            },
            stamp: 95,
            ifindex: 7,
            dmac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            flags: FlowFlags::SNAT | confirmed,
            ..Flow::default()
        };
        let reply = Flow {
            to: Translation {
                saddr: vip,
                daddr: client,
                sport: port(80),
                dport: port(4000),
            },
            stamp: 98,
            flags: FlowFlags::SNAT | FlowFlags::REPLY | confirmed,
            ..Flow::default()
        };
        let egress = Flow {
            flags: FlowFlags::EGRESS | confirmed,
            ..original
        };
        HashMap::from([
            (
                FlowKey::new(
                    client,
                    vip,
                    port(4000),
                    port(80),
                    proto::TCP,
                    Side::ExternalIn,
                ),
                original,
            ),
            (
                FlowKey::new(
                    backend,
                    node,
                    port(8080),
                    port(20_000),
                    proto::TCP,
                    Side::ExternalIn,
                ),
                reply,
            ),
            (
                FlowKey::new(
                    client,
                    backend,
                    port(20_000),
                    port(8080),
                    proto::TCP,
                    Side::Out,
                ),
                egress,
            ),
        ])
    }

    fn rows(all: &Entries<V4>) -> Vec<Row> {
        all.iter()
            .filter_map(|(key, flow)| row(key, flow, all, NOW, |_| Some("shop/web".into())))
            .collect()
    }

    #[test]
    fn the_entries_of_a_flow_are_one_row() {
        let rows = rows(&snat_flow(true));
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        let ends =
            [row.client, row.frontend, row.backend, row.source.unwrap()].map(|end| end.to_string());
        assert_eq!(
            ends,
            [
                "10.0.0.1:4000",
                "10.0.0.2:80",
                "10.0.0.4:8080",
                "10.0.0.3:20000"
            ]
        );
        assert_eq!(
            (row.state, row.side, row.protocol, row.family),
            ("established", "external", "TCP", "IPv4")
        );
        assert!(row.has_reply_entry);
        assert_eq!(row.next_hop.as_ref().unwrap().mac, "02:00:00:00:00:01");
        assert_eq!(row.reply_next_hop, None);
        // The newest last use counts: two stamps of 256 jiffies ago.
        assert!((1.0..=2.0).contains(&row.idle_secs), "{}", row.idle_secs);
    }

    #[test]
    fn a_state_follows_both_directions() {
        assert_eq!(rows(&snat_flow(false))[0].state, "opening");
        let mut closing = snat_flow(true);
        for flow in closing
            .values_mut()
            .filter(|flow| flow.has(FlowFlags::REPLY))
        {
            flow.flags |= FlowFlags::FIN;
        }
        assert_eq!(rows(&closing)[0].state, "closing");
    }

    #[test]
    fn filters_look_at_every_address() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let row = &rows(&snat_flow(true))[0];
        let wants = |flags: &[&str]| {
            Line::try_parse_from([&["flows"], flags].concat())
                .unwrap()
                .args
                .wants(row)
        };
        for yes in [
            &[][..],
            &["--proto", "tcp"],
            &["--proto", "TCP"],
            &["--addr", "10.0.0.3"],
            &["--addr", "10.0.0.1"],
        ] {
            assert!(wants(yes), "{yes:?}");
        }
        for no in [
            &["--proto", "udp"][..],
            &["--addr", "10.0.0.9"],
            &["--opening"],
        ] {
            assert!(!wants(no), "{no:?}");
        }
    }

    #[test]
    fn idle_times_read_well() {
        assert_eq!(
            [0.4, 59.0, 90.0, 7200.0].map(idle),
            ["0 s", "59 s", "2 min", "2 h"]
        );
    }
}
