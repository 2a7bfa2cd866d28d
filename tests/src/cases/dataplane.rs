//! What every build of the pipeline offers to the cases: hooks that take packets, and maps to be written.

use lb_common::abi::{Backend, Config, Interface, Service, ServiceKey, XdpDevice};
use lb_common::flow_table::{
    self as table, BucketCells as _, Change, Class, Insert, Memory, Meta, Record, RecordCells as _,
    Seeds, TableFamily, WAYS,
};
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};

/// A hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// XDP at the external interface.
    Xdp,
    /// tc ingress of the external interface.
    External,
    /// tc ingress of the pod interface.
    Pod,
    /// tc egress of any interface.
    Out,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The stack gets it, changed or not.
    Pass,
    /// XDP sends it by this interface.
    Transmit(u32),
    /// It goes back by the interface it came from.
    Reflect,
    /// It is gone; a counter says why.
    Drop,
}

/// The maps of one family.
pub trait FamilyMaps<F: Ip> {
    /// Writes a frontend.
    fn put_service(&mut self, key: ServiceKey<F>, service: Service);
    /// Removes a frontend.
    fn remove_service(&mut self, key: ServiceKey<F>);
    /// Writes a backend.
    fn put_backend(&mut self, id: u32, backend: Backend<F>);
    /// Puts one address into the source ranges of a service port.
    fn allow_source(&mut self, service_id: u32, client: F::Addr);
    /// Adds an address of this node.
    fn put_node_addr(&mut self, addr: F::Addr);
    /// All flows.
    fn records(&mut self) -> Vec<(Class, Record<F>)>;
    /// Writes a flow as it is, be its check right or not.
    fn put_record(&mut self, record: Record<F>, class: Class) -> Insert;
    /// Makes the kernel know a next hop.
    fn put_route(&mut self, daddr: F::Addr, hop: NextHop);
}

/// A node's maps and programs, empty at first.
pub trait Dataplane: FamilyMaps<V4> + FamilyMaps<V6> {
    /// Sends a packet through a hook and all its stages; gives what left it.
    fn run(&mut self, at: At, ifindex: u32, packet: &[u8]) -> (Verdict, Vec<u8>);
    /// A `Counter` or `DropReason` by number.
    fn counter(&mut self, number: u32) -> u64;
    /// Writes the configuration.
    fn put_config(&mut self, config: Config);
    /// Writes rows of the selection slab.
    fn put_rows(&mut self, offset: u32, rows: &[u32]);
    /// Sets a bit of `port_filter`.
    fn open_port(&mut self, proto: u8, port: u16);
    /// Writes the ports that source translation may take, all of them.
    fn put_snat_ports(&mut self, ports: &[u16]);
    /// Writes an interface.
    fn put_interface(&mut self, ifindex: u32, interface: Interface);
    /// Lets XDP transmit by an interface.
    fn put_device(&mut self, device: XdpDevice);
    /// Returns at the beginning of a second of the clock that limits count by.
    fn begin_second(&mut self);
}

/// A dataplane whose maps of this family can be written.
pub trait DataplaneOf<F: Ip>: Dataplane + FamilyMaps<F> {}

impl<F: Ip, D: Dataplane + FamilyMaps<F>> DataplaneOf<F> for D {}

/// Keys of the tables' hash: every run meets the same buckets.
pub const SEEDS: Seeds = Seeds {
    offset: 0x243f_6a88_85a3_08d3,
    factors: [
        0x9e37_79b9_7f4a_7c15,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0xbf58_476d_1ce4_e5b9,
    ],
};

/// All records of a table that nobody changes meanwhile.
pub fn records<F: TableFamily, M: Memory<F>>(memory: &M) -> Vec<(Class, Record<F>)> {
    let mut records = Vec::new();
    for index in 0..=memory.geometry().bucket_mask {
        let Some(bucket) = memory.bucket(index) else {
            continue;
        };
        for way in 0..WAYS {
            let class = Meta(bucket.meta(way)).class();
            if let (true, Some(cells)) = (class != Class::Free, bucket.record(way)) {
                records.push((class, cells.read()));
            }
        }
    }
    records
}

/// Writes a record and gives it its class.
pub fn put_record<F: TableFamily, M: Memory<F>>(
    memory: &M,
    record: &Record<F>,
    class: Class,
) -> Insert {
    let room = table::insert(memory, record, record.stamp);
    // An insertion computes the check; a test may want a wrong one.
    let hashed = record.original.hashed(&memory.geometry().seeds);
    if record.check != record.sum()
        && let Some(found) = table::find(memory, &record.original, hashed)
    {
        let at = Record::<F>::PORTS;
        found.cells.store(at, record.word(at));
    }
    if room.result == Insert::Done && class != Class::Opening {
        let change = Change::default().class(class);
        table::change(memory, &record.original, change, record.stamp);
    }
    room.result
}
