//! The maps as the logic sees them. Values come by copy: what is read before a check is a snapshot.

use core::ops::DerefMut;

use crate::abi::{
    Affinity, AffinityKey, Backend, Be16, Config, Counter, Event, Flow, FlowFlags, FlowKey,
    Fragment, FragmentKey, Interface, InterfaceRole, MacAddr, Scratch, Service, ServiceKey,
    Transport, XdpDevice,
};
use crate::family::Family;

/// How an insertion of a new key ended.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// The entry is there.
    Done,
    /// The key was taken.
    Exists,
    /// No room or no memory.
    Failed,
}

/// An entry of `flows_*` or `openings_*` in its place. State is changed through it, and only when it
/// changes; another CPU may do the same.
pub trait FlowEntry<F: Family> {
    /// A copy of the entry. Compare [`Flow::check`] before believing it.
    fn read(&self) -> Flow<F>;
    /// Its flags alone.
    fn flags(&self) -> FlowFlags;
    /// Its time of use alone.
    fn stamp(&self) -> u32;
    /// Sets flags, none is taken away.
    fn add_flags(&self, flags: FlowFlags);
    /// Notes the time of use.
    fn set_stamp(&self, stamp: u32);
    /// Notes the next hop for XDP.
    fn set_next_hop(&self, ifindex: u32, dmac: MacAddr);
}

/// The maps of one family, and the clocks.
pub trait Tables<F: Family> {
    /// An entry in place.
    type Entry: FlowEntry<F>;
    /// Room to put a new flow together.
    type Scratch: DerefMut<Target = Scratch<F>>;

    /// Whether a destination port may be ours (`port_filter`).
    fn may_be_ours(&self, transport: Transport, port: Be16) -> bool;
    /// Whether a direct connection to this port got a flow of its own.
    fn is_direct_port(&self, port: Be16) -> bool;
    /// Notes that one did.
    fn note_direct_port(&self, port: Be16);
    /// A confirmed flow.
    fn flow(&self, key: &FlowKey<F>) -> Option<Self::Entry>;
    /// A flow that is not confirmed.
    fn opening(&self, key: &FlowKey<F>) -> Option<Self::Entry>;
    /// Adds to `flows_*` unless the key is there.
    fn insert_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insert;
    /// Adds to `openings_*` unless the key is there.
    fn insert_opening(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insert;
    /// Removes from `flows_*`.
    fn remove_flow(&self, key: &FlowKey<F>);
    /// Removes from `openings_*`.
    fn remove_opening(&self, key: &FlowKey<F>);
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
    /// A per-CPU place to put a new flow together; packet hooks do not nest on a CPU.
    fn scratch(&self) -> Option<Self::Scratch>;
    /// This moment in the unit of [`Flow::stamp`].
    fn stamp(&self) -> u32;
    /// CLOCK_MONOTONIC in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Counts.
    fn count(&self, counter: Counter);
    /// Counts a packet of the original direction.
    fn count_service_packet(&self, service_id: u32, bytes: u32);
    /// Counts a new flow.
    fn count_service_flow(&self, service_id: u32);
    /// Reports at debug level.
    fn event(&self, event: &Event);
    /// Takes a token of the refusal limit; false when there is none.
    fn may_refuse(&self) -> bool;
}

/// Whether a pod is behind an interface.
#[inline(always)]
pub fn is_pod_interface<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    tables
        .interface(ifindex)
        .is_some_and(|interface| interface.role == InterfaceRole::Pod as u8)
}
