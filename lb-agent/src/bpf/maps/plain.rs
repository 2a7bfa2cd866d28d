//! Which types are what lies in a map, and their bytes.

use std::mem::size_of;

use lb_common::{
    Family,
    abi::{
        Affinity, AffinityKey, Backend, Config, Interface, NodeAddrFlags, NodeAddrKey, PacketCount,
        PortFilter, SelectionBlock, Service, ServiceKey, ServiceStats, SocketOrigin,
        SocketOriginKey, SocketPeer, SrcRangeKey, XdpDevice,
    },
    flow_table::{ReapList, Seeds},
};

/// A type whose bytes are what lies in a map.
///
/// # Safety
/// `#[repr(C)]` of integers without hidden padding; every bit pattern is valid.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($name:ty),+) => { $(
        // SAFETY: integers, or a layout of `lb_common`: `repr(C)`, integers only, gaps are named fields.
        unsafe impl Plain for $name {}
    )+ };
}
macro_rules! plain_family {
    ($($name:ident),+) => { $(
        // SAFETY: a layout of `lb_common::abi`: `repr(C)`, integers only, gaps are named fields.
        unsafe impl<F: Family> Plain for $name<F> {}
    )+ };
}
plain!(
    u8,
    u32,
    u64,
    Service,
    Affinity,
    Config,
    Interface,
    PacketCount,
    NodeAddrFlags,
    PortFilter,
    ServiceStats,
    SocketOrigin,
    SocketOriginKey,
    SocketPeer,
    XdpDevice,
    SelectionBlock,
    Seeds,
    ReapList
);
plain_family!(ServiceKey, Backend, AffinityKey, SrcRangeKey, NodeAddrKey);

/// The bytes of a value.
pub(crate) fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no hidden padding, so all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

pub(super) fn bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` has no hidden padding and takes any bit pattern.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

pub(super) fn zeroed<T: Plain>() -> T {
    // SAFETY: any bit pattern is a valid `Plain`.
    unsafe { std::mem::zeroed() }
}
