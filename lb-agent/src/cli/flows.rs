//! `flows`: translated connections, one a row.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lb_common::{
    abi::{Backend, FlowFlags, ServiceKey, Side, XdpDevice},
    flow_table::{Class, Hop, Meta, Record, TableFamily},
    names::maps as names,
};
use serde::Serialize;

use super::{
    query::Query,
    table::{NOTHING, Shown, family_name, or_nothing, print, protocol},
};
use crate::{
    bpf::maps::{Access, ClockReader, FamilyPins, MapResult, Plain, TypedMap},
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
    /// Service port: `namespace/name:port`, its id where the name is not known; absent where the id may be another's by
    /// now.
    pub service: Option<String>,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Protocol.
    pub protocol: &'static str,
    /// `opening`, `established`, `closing`; `direct`: no Service's, its tuple was taken.
    pub state: &'static str,
    /// How the table holds it: `opening` and `closed` give way to new connections, `confirmed` does not.
    pub class: &'static str,
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
    /// The backend has answered.
    pub is_answered: bool,
    /// Next hop of XDP towards the backend.
    pub next_hop: Option<NextHop>,
    /// Next hop of XDP towards the client.
    pub reply_next_hop: Option<NextHop>,
}

fn state(flags: FlowFlags) -> &'static str {
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

const fn class(class: Class) -> &'static str {
    match class {
        Class::Free => "free",
        Class::Closed => "closed",
        Class::Opening => "opening",
        Class::Confirmed => "confirmed",
    }
}

/// What the programs and the agent know besides records.
struct Around<'a, F: TableFamily> {
    now: Now,
    pins: &'a FamilyPins<F>,
    names: &'a Names,
    devices: &'a TypedMap<u32, XdpDevice>,
}

/// The row of a record.
fn row<F: TableFamily>(
    meta: Meta,
    record: &Record<F>,
    now: Now,
    service: Option<String>,
    next_hop: impl Fn(&Hop) -> Option<NextHop>,
) -> Row
where
    F::Addr: Shown,
{
    let original = &record.original;
    let confirmed = record.flags.contains(FlowFlags::CONFIRMED);
    let client = SocketAddr::new(original.saddr().ip(), original.sport().to_host());
    let source = SocketAddr::new(record.source_addr().ip(), record.source_port.to_host());
    let idle = now.since(record.stamp);
    let [hop, reply_hop] = &record.hops;
    Row {
        service,
        family: family_name::<F>(),
        protocol: protocol(original.proto()),
        state: state(record.flags),
        class: class(meta.class()),
        client,
        frontend: SocketAddr::new(original.daddr().ip(), original.dport().to_host()),
        backend: SocketAddr::new(record.backend_addr().ip(), record.backend_port.to_host()),
        source: (source != client).then_some(source),
        side: match Side::from_u8(original.side()) {
            Some(Side::PodIn) => "pod",
            Some(Side::ExternalIn) => "external",
            _ => "out",
        },
        idle_secs: (idle.as_secs_f64() * 10.0).round() / 10.0,
        is_answered: confirmed || record.flags.contains(FlowFlags::REPLY_SEEN),
        next_hop: next_hop(hop),
        // What an opening waits for lies where the reply's hop will.
        reply_next_hop: next_hop(reply_hop).filter(|_| confirmed),
    }
}

impl<F: TableFamily> Around<'_, F>
where
    F::Addr: Shown,
    Backend<F>: Plain,
{
    /// The service port by its id, as long as the frontend or the backend says that the id still is its own.
    fn service(&self, record: &Record<F>) -> Option<String> {
        if record.service == 0 {
            return None;
        }
        let original = &record.original;
        let frontend = ServiceKey::new(original.daddr(), original.dport(), original.proto());
        let is_shown = || {
            let shown = self.pins.services.lookup(&frontend).ok().flatten();
            shown.is_some_and(|service| service.id & Record::<F>::ID == record.service)
        };
        let is_backed = || {
            let backend = self.pins.backends.read(record.backend);
            backend.is_ok_and(|backend| {
                let place = (backend.addr, backend.port);
                place == (record.backend_addr(), record.backend_port)
                    && backend.service_id & Record::<F>::ID == record.service
            })
        };
        (is_shown() || is_backed()).then(|| self.names.full(record.service))
    }

    fn next_hop(&self, hop: &Hop) -> Option<NextHop> {
        if !hop.is_known() {
            return None;
        }
        let octets = hop.mac.octets().map(|octet| format!("{octet:02x}"));
        let device = self.devices.lookup(&hop.slot.into()).ok().flatten();
        Some(NextHop {
            ifindex: device.map_or(0, |device| device.ifindex),
            mac: octets.join(":"),
        })
    }

    fn rows(&self, rows: &mut Vec<Row>) {
        let mut each = |_, meta: Meta, record: &Record<F>| {
            // One that was read while it changed is left out.
            if record.is_whole() {
                let service = self.service(record);
                let next_hop = |hop: &Hop| self.next_hop(hop);
                rows.push(row(meta, record, self.now, service, next_hop));
            }
        };
        self.pins
            .flows
            .each(0..self.pins.flows.buckets(), &mut each);
    }
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
    let devices = devices(&view.maps.dir)?;
    let mut rows = Vec::new();
    around(now, &view.maps.v4, &view.names, &devices).rows(&mut rows);
    around(now, &view.maps.v6, &view.names, &devices).rows(&mut rows);
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

fn devices(dir: &std::path::Path) -> MapResult<TypedMap<u32, XdpDevice>> {
    TypedMap::open(dir, names::XDP_DEVICES, Access::Read)
}

const fn around<'a, F: TableFamily>(
    now: Now,
    pins: &'a FamilyPins<F>,
    names: &'a Names,
    devices: &'a TypedMap<u32, XdpDevice>,
) -> Around<'a, F> {
    Around {
        now,
        pins,
        names,
        devices,
    }
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
        abi::{Addr4, Be16, MacAddr, proto},
        flow_table::{Awaited, Tuple},
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
    fn snat_flow(flags: FlowFlags) -> Record<V4> {
        let (client, vip, node, backend) = (addr(1), addr(2), addr(3), addr(4));
        let original = Tuple::new(
            &client,
            &vip,
            port(4000),
            port(80),
            proto::TCP,
            Side::ExternalIn,
        );
        let mut record = Record::new(
            original,
            (&backend, port(8080)),
            (&node, port(20_000)),
            FlowFlags::SNAT | flags,
        );
        record.stamp = 98;
        record.hops = [
            Hop {
                mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
                slot: 7,
            },
            Awaited::new(1_000, 900).as_hop(),
        ];
        record.checked()
    }

    fn shown(flags: FlowFlags, class: Class) -> Row {
        let meta = Meta::new(class, false, 0);
        let next_hop = |hop: &Hop| {
            hop.is_known().then(|| NextHop {
                ifindex: hop.slot.into(),
                mac: String::new(),
            })
        };
        row(
            meta,
            &snat_flow(flags),
            NOW,
            Some("shop/web".into()),
            next_hop,
        )
    }

    #[test]
    fn a_flow_is_one_row_with_all_its_ends() {
        let row = shown(FlowFlags::CONFIRMED, Class::Confirmed);
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
            (row.state, row.class, row.side, row.protocol, row.family),
            ("established", "confirmed", "external", "TCP", "IPv4")
        );
        assert!(row.is_answered);
        assert_eq!(row.next_hop.unwrap().ifindex, 7);
        assert!(row.reply_next_hop.is_some());
        assert!((1.0..=2.0).contains(&row.idle_secs), "{}", row.idle_secs);
    }

    #[test]
    fn what_an_opening_waits_for_is_no_next_hop() {
        let row = shown(FlowFlags::NONE, Class::Opening);
        assert_eq!((row.state, row.class), ("opening", "opening"));
        assert!(row.next_hop.is_some() && row.reply_next_hop.is_none());
        assert!(!row.is_answered);
        assert!(shown(FlowFlags::REPLY_SEEN, Class::Opening).is_answered);
    }

    #[test]
    fn a_state_follows_both_directions() {
        for flag in [FlowFlags::FIN, FlowFlags::REPLY_FIN, FlowFlags::REPLY_RST] {
            let row = shown(FlowFlags::CONFIRMED | flag, Class::Closed);
            assert_eq!((row.state, row.class), ("closing", "closed"));
        }
        let direct = shown(FlowFlags::CONFIRMED | FlowFlags::DIRECT, Class::Confirmed);
        assert_eq!(direct.state, "direct");
    }

    #[test]
    fn filters_look_at_every_address() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let row = shown(FlowFlags::CONFIRMED, Class::Confirmed);
        let wants = |flags: &[&str]| {
            Line::try_parse_from([&["flows"], flags].concat())
                .unwrap()
                .args
                .wants(&row)
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
