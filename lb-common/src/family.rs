//! The two IP families. Every shared type and stage is generic over [`Family`]; the maps exist once
//! a family.

use crate::abi::{Addr4, Addr6, FlowKey, PackedFlowKey};

/// An IP family: [`V4`] or [`V6`].
pub trait Family:
    Copy + Clone + Default + PartialEq + Eq + core::hash::Hash + core::fmt::Debug + 'static
{
    /// An address as it lies in the packet.
    type Addr: Address;
    /// Whether this is IPv6.
    const IS_V6: bool;
    /// Index into the pairs of [`crate::names::maps`].
    const INDEX: usize;
    /// Kubernetes' name: `IPv4` or `IPv6`.
    const NAME: &'static str;
    /// Key of this family's `flows_*` and `openings_*`.
    type FlowMapKey: Copy + PartialEq + Eq + core::hash::Hash + core::fmt::Debug + 'static;
    /// A flow's key as the maps hold it.
    fn flow_map_key(key: &FlowKey<Self>) -> Self::FlowMapKey;
    /// The key of an entry with this check; `None` where the entry belongs to another key by now.
    fn flow_key(key: &Self::FlowMapKey, check: u32) -> Option<FlowKey<Self>>;
}

/// An address of a [`Family`], made of 32-bit words in network byte order.
pub trait Address:
    Copy
    + Clone
    + Default
    + PartialEq
    + Eq
    + PartialOrd
    + Ord
    + core::hash::Hash
    + core::fmt::Debug
    + 'static
{
    /// Number of 32-bit words: 1 or 4.
    const WORDS: usize;
    /// Word `i` in network byte order as loaded from memory; 0 where there is none.
    fn word(&self, i: usize) -> u32;
    /// Builds an address from words in network byte order; words past [`Address::WORDS`] are ignored.
    fn from_words(words: [u32; 4]) -> Self;
    /// Whether all bits are 0.
    fn is_unspecified(&self) -> bool;
}

/// IPv4.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    const IS_V6: bool = false;
    const INDEX: usize = 0;
    const NAME: &'static str = "IPv4";
    type FlowMapKey = FlowKey<V4>;
    fn flow_map_key(key: &FlowKey<V4>) -> FlowKey<V4> {
        *key
    }
    fn flow_key(key: &FlowKey<V4>, _: u32) -> Option<FlowKey<V4>> {
        Some(*key)
    }
}

impl Family for V6 {
    type Addr = Addr6;
    const IS_V6: bool = true;
    const INDEX: usize = 1;
    const NAME: &'static str = "IPv6";
    type FlowMapKey = PackedFlowKey;
    fn flow_map_key(key: &FlowKey<V6>) -> PackedFlowKey {
        PackedFlowKey::new(key)
    }
    fn flow_key(key: &PackedFlowKey, check: u32) -> Option<FlowKey<V6>> {
        key.unpack(check)
    }
}

impl Address for Addr4 {
    const WORDS: usize = 1;
    #[inline(always)]
    fn word(&self, i: usize) -> u32 {
        if i == 0 { self.be } else { 0 }
    }
    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Addr4 { be: words[0] }
    }
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.be == 0
    }
}

impl Address for Addr6 {
    const WORDS: usize = 4;
    #[inline(always)]
    fn word(&self, i: usize) -> u32 {
        match i {
            0 => self.be[0],
            1 => self.be[1],
            2 => self.be[2],
            3 => self.be[3],
            _ => 0,
        }
    }
    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        Addr6 { be: words }
    }
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        (self.be[0] | self.be[1] | self.be[2] | self.be[3]) == 0
    }
}
