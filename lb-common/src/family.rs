//! The two IP families. Every shared type and stage is generic over [`Family`]; the maps exist once
//! a family.

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
