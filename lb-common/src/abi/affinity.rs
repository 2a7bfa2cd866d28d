//! Session affinity by client address, and source ranges of load-balancer frontends.

use crate::family::Family;

/// A client of a service port. Key of `affinity_*`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey<F: Family> {
    /// [`super::Service::id`].
    pub service_id: u32,
    /// The client's address before any source translation.
    pub client: F::Addr,
}
const _: () = assert!(size_of::<AffinityKey<crate::V6>>() == 20);

/// The backend that a client keeps. Value of `affinity_*`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// Its generation, as in [`super::Backend::generation`].
    pub generation: u32,
    /// Time of the last new connection, nanoseconds of CLOCK_MONOTONIC.
    pub last_used_ns: u64,
}
const _: () = assert!(size_of::<Affinity>() == 16);

/// Key of the LPM tries `src_ranges_*`: a prefix of 32 bits of service id and the client's prefix.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SrcRangeKey<F: Family> {
    /// Prefix length in bits over `service_id` and `client` together: 32 + the range's own length.
    pub prefix_len: u32,
    /// [`super::Service::id`] in network byte order, so that the trie compares it first.
    pub service_id: super::Be32,
    /// The range's address, or the client's for a lookup.
    pub client: F::Addr,
}
const _: () = assert!(size_of::<SrcRangeKey<crate::V4>>() == 12);
const _: () = assert!(size_of::<SrcRangeKey<crate::V6>>() == 24);
