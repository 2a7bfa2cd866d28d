//! The loaded programs as a [`Dataplane`] of the packet cases: maps filled by hand, packets through
//! `BPF_PROG_TEST_RUN`, next hops from a network namespace of its own.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_agent::bpf::features::Features;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Config, Counter, DropReason, Interface, NodeAddrKey,
    PORT_FILTER_ENTRIES, PortFilter, SELECTION_BLOCK_ROWS, SNAT_PORTS_SLOT, SelectionBlock,
    Service, ServiceKey, Transport, XdpDevice, port_filter_slot,
};
use lb_common::family::Address as _;
use lb_common::flow_table::{Class, Insert, Record, TableFamily};
use lb_common::names;
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};

use crate::bench::sys;
use crate::cases::{
    At, Case, Dataplane, EXTERNAL, FamilyMaps, NEXT_MAC, OWN_MAC, POD, Verdict, put_record, records,
};
use crate::mapped_table::MappedTable;
use crate::netns::NetNs;
use crate::prog_run::{
    Programs, TC_DROP, TC_NEXT, TC_REDIRECT, TableSize, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX,
};
use crate::wait;

/// The loaded programs and their maps, used for one case after the other, in a namespace of their own.
#[derive(Debug)]
pub struct Loaded {
    programs: Programs,
    tables: (MappedTable<V4>, MappedTable<V6>),
    ns: NetNs,
    ports: HashMap<u32, PortFilter>,
    routes: BTreeSet<String>,
    before: HashMap<u32, u64>,
}

impl Loaded {
    /// Loads all programs as on a kernel with these features.
    pub fn new(features: &Features, flows: TableSize) -> Result<Loaded> {
        let ns = namespace()?;
        let programs = ns.run(|| load(features, flows))??;
        Ok(Loaded {
            tables: (programs.table()?, programs.table()?),
            programs,
            ns,
            ports: HashMap::new(),
            routes: BTreeSet::new(),
            before: HashMap::new(),
        })
    }

    /// Runs a case on empty maps.
    pub fn run_case(&mut self, case: &Case<Loaded>) -> Result<()> {
        let ns = self.ns.clone();
        ns.run(|| {
            // What is counted by processor is counted by one.
            sys::pin();
            self.reset()?;
            (case.run)(self);
            Ok(())
        })?
    }

    /// Empties the maps.
    fn reset(&mut self) -> Result<()> {
        self.clear::<V4>()?;
        self.clear::<V6>()?;
        self.tables.0.clear();
        self.tables.1.clear();
        self.programs
            .clear::<u32, Interface>(names::maps::INTERFACES)?;
        let device = XdpDevice::default();
        for ifindex in [EXTERNAL, POD] {
            let slot = XdpDevice::slot(ifindex);
            self.programs.set(names::maps::XDP_DEVICES, slot, device)?;
        }
        for route in std::mem::take(&mut self.routes) {
            self.ns.ip(&format!("route del {route} dev ext\n"))?;
        }
        self.ports.clear();
        for slot in 0..PORT_FILTER_ENTRIES {
            let filter = PortFilter { words: [0; 2048] };
            self.programs.set(names::maps::PORT_FILTER, slot, filter)?;
        }
        let counters = Counter::ALL.iter().map(|counter| *counter as u32);
        let drops = DropReason::ALL.iter().map(|reason| *reason as u32);
        for number in counters.chain(drops) {
            let count = self.programs.counter(number)?;
            self.before.insert(number, count);
        }
        Ok(())
    }

    fn clear<F: TableFamily>(&mut self) -> Result<()> {
        let i = F::INDEX;
        let programs = &mut self.programs;
        programs.clear::<ServiceKey<F>, Service>(names::maps::SERVICES[i])?;
        programs.clear_sources::<F>()?;
        programs.clear::<NodeAddrKey<F>, u32>(names::maps::NODE_ADDRS[i])?;
        programs.clear::<AffinityKey<F>, Affinity>(names::maps::AFFINITY[i])
    }
}

/// A namespace with the interfaces that the cases name.
fn namespace() -> Result<NetNs> {
    let ns = NetNs::new("pipeline")?;
    let mac = OWN_MAC.map(|octet| format!("{octet:02x}")).join(":");
    ns.ip(&format!(
        "link add ext index {EXTERNAL} address {mac} type veth peer name peer-ext index 12\n\
         link add pod index {POD} type veth peer name peer-pod index 13\n\
         link set lo up\nlink set peer-ext up\nlink set ext up\nlink set peer-pod up\nlink set pod up\n"
    ))?;
    ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    Ok(ns)
}

fn load(features: &Features, flows: TableSize) -> Result<Programs> {
    let mut programs = Programs::load_sized(features, flows)?;
    for (slot, name) in names::programs::TAILS_XDP_SLOTS {
        programs.set_tail(names::maps::TAILS_XDP, *slot, name)?;
    }
    for (slot, name) in names::programs::TAILS_TC_SLOTS {
        programs.set_tail(names::maps::TAILS_TC, *slot, name)?;
    }
    Ok(programs)
}

/// The second of CLOCK_MONOTONIC that it is, as the programs count them.
fn monotonic_second() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec
}

/// Fails the case: the traits of the cases have no errors.
fn must<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

/// A family whose table can be named.
pub trait Tabled: Ip {
    /// This family's.
    fn table(loaded: &Loaded) -> &MappedTable<Self>;
}

impl Tabled for V4 {
    fn table(loaded: &Loaded) -> &MappedTable<V4> {
        &loaded.tables.0
    }
}

impl Tabled for V6 {
    fn table(loaded: &Loaded) -> &MappedTable<V6> {
        &loaded.tables.1
    }
}

impl<F: Tabled> FamilyMaps<F> for Loaded {
    fn put_service(&mut self, key: ServiceKey<F>, service: Service) {
        must(
            self.programs
                .insert(names::maps::SERVICES[F::INDEX], key, service),
        );
    }
    fn remove_service(&mut self, key: ServiceKey<F>) {
        must(
            self.programs
                .remove::<_, Service>(names::maps::SERVICES[F::INDEX], key),
        );
    }
    fn put_backend(&mut self, id: u32, backend: Backend<F>) {
        must(
            self.programs
                .set(names::maps::BACKENDS[F::INDEX], id, backend),
        );
    }
    fn allow_source(&mut self, service_id: u32, client: F::Addr) {
        must(self.programs.allow_source::<F>(service_id, client));
    }
    fn put_node_addr(&mut self, addr: F::Addr) {
        let key = NodeAddrKey::<F> { addr };
        must(
            self.programs
                .insert(names::maps::NODE_ADDRS[F::INDEX], key, 0u32),
        );
    }
    fn records(&mut self) -> Vec<(Class, Record<F>)> {
        records(&F::table(self))
    }
    fn put_record(&mut self, record: Record<F>, class: Class) -> Insert {
        put_record(&F::table(self), &record, class)
    }
    fn put_route(&mut self, daddr: F::Addr, hop: NextHop) {
        assert_eq!(hop.ifindex, EXTERNAL, "the cases route by one interface");
        let words = [daddr.word(0), daddr.word(1), daddr.word(2), daddr.word(3)];
        let addr = if F::IS_V6 {
            std::net::Ipv6Addr::from(lb_common::abi::Addr6 { be: words }).to_string()
        } else {
            std::net::Ipv4Addr::from(lb_common::abi::Addr4 { be: words[0] }).to_string()
        };
        let mac = NEXT_MAC.map(|octet| format!("{octet:02x}")).join(":");
        let bits = if F::IS_V6 { 128 } else { 32 };
        let route = format!("{addr}/{bits}");
        must(self.ns.ip(&format!(
            "route replace {route} dev ext\nneigh replace {addr} lladdr {mac} dev ext nud permanent\n"
        )));
        self.routes.insert(route);
    }
}

impl Dataplane for Loaded {
    fn run(&mut self, at: At, ifindex: u32, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let program = match at {
            At::Xdp => names::programs::XDP_EXT_IN,
            At::External => names::programs::TC_EXT_IN,
            At::Pod => names::programs::TC_POD_IN,
            At::Out => names::programs::TC_OUT,
        };
        let ran = must(self.programs.run_at(program, packet, ifindex));
        let verdict = match (at, ran.verdict) {
            (At::Xdp, XDP_PASS) => Verdict::Pass,
            (At::Xdp, XDP_TX) => Verdict::Transmit(ifindex),
            (At::Xdp, XDP_REDIRECT) => Verdict::Transmit(EXTERNAL),
            (At::Xdp, XDP_DROP) => Verdict::Drop,
            (_, TC_NEXT) => Verdict::Pass,
            (_, TC_REDIRECT) => Verdict::Reflect,
            (_, TC_DROP) => Verdict::Drop,
            (_, other) => panic!("`{program}` returned {other}"),
        };
        (verdict, ran.packet)
    }
    fn counter(&mut self, number: u32) -> u64 {
        let before = self.before.get(&number).copied().unwrap_or(0);
        must(self.programs.counter(number)) - before
    }
    fn put_config(&mut self, config: Config) {
        must(self.programs.set(names::maps::CONFIG, 0, config));
    }
    fn put_snat_ports(&mut self, ports: &[u16]) {
        self.ports.remove(&SNAT_PORTS_SLOT);
        for port in ports {
            self.mark(SNAT_PORTS_SLOT, *port);
        }
        self.write_ports();
    }
    fn put_rows(&mut self, offset: u32, rows: &[u32]) {
        for (row, id) in (offset..).zip(rows) {
            let (block, at) = (
                row as usize / SELECTION_BLOCK_ROWS,
                row as usize % SELECTION_BLOCK_ROWS,
            );
            let block = must(u32::try_from(block).context("a row past the slab"));
            let mut rows: SelectionBlock = must(self.programs.get(names::maps::SELECTION, block));
            rows[at] = *id;
            must(self.programs.set(names::maps::SELECTION, block, rows));
        }
    }
    fn open_port(&mut self, proto: u8, port: u16) {
        let transport = Transport::from_proto(proto);
        let transport = must(transport.ok_or_else(|| anyhow!("protocol {proto} has no filter")));
        self.mark(port_filter_slot(transport), port);
        self.write_ports();
    }
    fn put_interface(&mut self, ifindex: u32, interface: Interface) {
        must(
            self.programs
                .insert(names::maps::INTERFACES, ifindex, interface),
        );
    }
    fn put_device(&mut self, device: XdpDevice) {
        let slot = XdpDevice::slot(device.ifindex);
        must(self.programs.set(names::maps::XDP_DEVICES, slot, device));
    }
    fn begin_second(&mut self) {
        let second = monotonic_second();
        must(wait::until(
            "another second",
            Duration::from_secs(3),
            || {
                ensure!(monotonic_second() != second);
                Ok(())
            },
        ));
    }
}

impl Loaded {
    fn mark(&mut self, slot: u32, port: u16) {
        let filter = self
            .ports
            .entry(slot)
            .or_insert(PortFilter { words: [0; 2048] });
        filter.words[usize::from(port >> 5)] |= 1 << (port & 31);
    }
    fn write_ports(&mut self) {
        for (slot, filter) in self.ports.clone() {
            must(self.programs.set(names::maps::PORT_FILTER, slot, filter));
        }
    }
}
