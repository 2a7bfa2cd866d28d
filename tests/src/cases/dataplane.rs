//! What every build of the pipeline offers to the cases: hooks that take packets, and maps to be written.

use lb_common::abi::{Backend, Config, Flow, FlowKey, Interface, Service, ServiceKey, XdpDevice};
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
    /// Elements of `flows_*`.
    fn flows(&mut self) -> Vec<(FlowKey<F>, Flow<F>)>;
    /// Elements of `openings_*`.
    fn openings(&mut self) -> Vec<(FlowKey<F>, Flow<F>)>;
    /// Writes an element of `openings_*`.
    fn put_opening(&mut self, key: FlowKey<F>, flow: Flow<F>);
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
