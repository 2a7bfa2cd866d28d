//! The layout of every map key and value, without logic.
//!
//! Layout rules: `#[repr(C)]`, only integers, arrays and transparent types over them inside, every gap a named
//! private `_pad` that is 0 (the kernel compares keys byte by byte), sizes asserted beside each type.
//! A bare integer is in host byte order; network byte order is a [`Be16`], [`Be32`] or an address.

mod addr;
mod affinity;
mod backend;
mod be;
mod check;
mod drop;
mod event;
pub(crate) mod flags;
mod flow;
mod fragment;
mod node;
mod port_range;
pub mod proto;
mod service;
mod socket;
mod transport;

pub use addr::{Addr4, Addr6, MacAddr};
pub use affinity::{Affinity, AffinityKey, SrcRangeKey};
pub use backend::{Backend, BackendFlags, BackendState, SELECTION_BLOCK_ROWS, SelectionBlock};
pub use be::{Be16, Be32};
pub use drop::{Counter, DropReason, PacketCount};
pub use event::{Event, EventKind};
pub use flow::{FlowFlags, Side, Translation};
pub use fragment::{Fragment, FragmentKey};
pub use node::{
    Clock, Config, Interface, InterfaceFlags, InterfaceRole, ModeFlags, NodeAddrFlags, NodeAddrKey,
    PORT_FILTER_ENTRIES, PORT_FILTER_WORDS, PortFilter, SNAT_PORTS_SLOT, XdpDevice,
    port_filter_slot,
};
pub use port_range::{PortRange, PortRangeError};
pub use service::{
    FrontendKind, SelectionList, Service, ServiceFlags, ServiceKey, ServiceStats, service_check,
};
pub use socket::{OriginKind, SocketOrigin, SocketOriginKey, SocketPeer, socket_check};
pub use transport::Transport;
