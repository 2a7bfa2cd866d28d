//! The maps as the logic sees them. Values come by copy: what is read before a check is a snapshot.

use core::ops::DerefMut;

use super::ip::Ip;
use super::leg::Leg;
use super::work::Work;
use crate::abi::{
    Affinity, AffinityKey, Backend, Be16, Config, Counter, Event, Fragment, FragmentKey, Interface,
    InterfaceRole, Service, ServiceKey, Transport, XdpDevice,
};
use crate::flow_table::{Change, Derived, Found, Insert, RecordCells, Room, TableFamily, Tuple};

/// The maps of one family, and the clocks.
pub trait Tables<F: TableFamily> {
    /// A record's place.
    type Cells: RecordCells<F>;
    /// The flow in work.
    type Scratch: DerefMut<Target = Work<F>>;

    /// Whether a destination port may be a frontend's (`port_filter`).
    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool;
    /// Whether source translation may take a port.
    fn is_snat_port(&self, port: Be16) -> bool;
    /// Whether a direct connection to this port got a flow of its own.
    fn is_direct_port(&self, port: Be16) -> bool;
    /// Notes that one did.
    fn note_direct_port(&self, port: Be16);
    /// A flow by its original tuple.
    fn flow(&self, original: &Tuple<F>) -> Option<Found<F, Self::Cells>>;
    /// A flow by a tuple that is derived from it.
    fn flow_by(&self, derived: &Tuple<F>) -> Option<(Found<F, Self::Cells>, Derived)>;
    /// [`look_by_original`](super::flow::look_by_original): slow stages call it out of line.
    fn look(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg>;
    /// [`look_by_derived`](super::flow::look_by_derived), in the same way.
    fn look_by(&self, tuple: &Tuple<F>, work: &mut Work<F>) -> Option<Leg>;
    /// The place of a record that [`Tables::look`] found.
    fn cells(&self, number: u32) -> Option<Self::Cells>;
    /// Makes a flow of the words of a record, as an opening.
    fn insert_flow(&self, words: &F::Words, stamp: u32) -> Room;
    /// Changes a flow. False: it is gone, or busy.
    fn change_flow(&self, original: &Tuple<F>, change: Change, stamp: u32) -> bool;
    /// Deletes a flow. False: it is gone, or busy.
    fn delete_flow(&self, original: &Tuple<F>) -> bool;
    /// Lets a flow be found between tc's hooks, too.
    fn halve_flow(&self, original: &Tuple<F>) -> Insert;
    /// Whether the tuple of a record's replies is free, or was some flow's that is over and gave way.
    fn is_free(&self, words: &F::Words, stamp: u32, age: u32) -> bool;
    /// Keeps a tuple from every flow for a while.
    fn reserve(&self, tuple: &Tuple<F>, stamp: u32);
    /// Whether it is kept.
    fn is_reserved(&self, tuple: &Tuple<F>) -> bool;
    /// A frontend as it stands in the map; compare [`Service::check`] before believing it.
    fn service(&self, key: &ServiceKey<F>) -> Option<Service>;
    /// A backend; `None` past the end of the table.
    fn backend(&self, id: u32) -> Option<Backend<F>>;
    /// A row of the selection slab; 0 where there is none.
    fn selection_row(&self, row: u32) -> u32;
    /// The backend that a client keeps.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity>;
    /// Writes the backend that a client keeps.
    fn set_affinity(&self, key: &AffinityKey<F>, value: &Affinity);
    /// Whether a source range of the service port holds the client.
    fn in_source_range(&self, service_id: u32, client: F::Addr) -> bool;
    /// Ports of a fragmented datagram.
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Fragment>;
    /// Notes the ports of a first fragment.
    fn set_fragment(&self, key: &FragmentKey<F>, value: &Fragment);
    /// An interface of ours.
    fn interface(&self, ifindex: u32) -> Option<Interface>;
    /// An interface that XDP transmits by.
    fn xdp_device(&self, ifindex: u32) -> Option<XdpDevice>;
    /// The configuration.
    fn config(&self) -> Config;
    /// An interface that XDP transmits by, by its slot.
    fn xdp_device_at(&self, slot: u8) -> Option<XdpDevice>;
    /// Whether an address is this node's own (`node_addrs_*`).
    fn is_node_addr(&self, addr: F::Addr) -> bool;
    /// A number that nobody can foresee.
    fn random(&self) -> u32;
    /// The flow in work, per CPU; packet hooks do not nest on a CPU.
    fn scratch(&self) -> Option<Self::Scratch>;
    /// This moment in the unit of [`Record::stamp`](crate::flow_table::Record::stamp).
    fn stamp(&self) -> u32;
    /// CLOCK_MONOTONIC in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Counts.
    fn count(&self, counter: Counter);
    /// Counts a packet of the original direction.
    fn count_service_packet(&self, service_id: u32, bytes: u32);
    /// Counts a new flow.
    fn count_service_flow(&self, service_id: u32);
    /// Reports an event; who calls asks whether anybody wants it.
    fn event(&self, event: &Event);
    /// Takes a token of the refusal limit; false when there is none.
    fn may_refuse(&self) -> bool;
}

/// Whether a pod is behind an interface.
#[inline(always)]
pub fn is_pod_interface<F: Ip, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    tables
        .interface(ifindex)
        .is_some_and(|interface| interface.role == InterfaceRole::Pod as u8)
}
