//! Backend id → [`Backend`]: where a packet may be sent; and the rows that name ids.

use super::Be16;
use super::flags::flags;
use crate::family::Family;

/// A backend. Value of `backends_v4` and `backends_v6`, indexed by backend id; id 0 is no backend.
///
/// Address, port and service id of an id never change in place: a new meaning takes an id that has
/// rested for a grace period. Only `state` is written in place, as one aligned word.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Backend<F: Family> {
    /// Address of the endpoint.
    pub addr: F::Addr,
    /// Port of the endpoint.
    pub port: Be16,
    /// Number of the endpoint's zone in the agent's table, for display; 0 unknown.
    pub zone: u16,
    /// Generation and flags.
    pub state: BackendState,
    /// Service port that the id belongs to.
    pub service_id: u32,
}
const _: () = assert!(size_of::<Backend<crate::V4>>() == 16);
const _: () = assert!(size_of::<Backend<crate::V6>>() == 28);

flags! {
    /// What is known of an endpoint.
    BackendFlags: u8 {
        /// The endpoint is on this node (`nodeName`).
        LOCAL = 1 << 0,
        /// The endpoint's address is one of this node's own (host network).
        HOST = 1 << 1,
        /// In the Cluster list.
        IN_CLUSTER = 1 << 2,
        /// In the Local list.
        IN_LOCAL = 1 << 3,
        /// The id names a ready or serving endpoint.
        USABLE = 1 << 4,
    }
}

/// Generation in the upper 24 bits, [`BackendFlags`] in the lower 8: one word, so that both change at once.
///
/// The generation grows when the id gets another meaning and when its endpoint is neither ready nor
/// serving any more (semantics 17.3, 17.4).
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BackendState {
    word: u32,
}

impl BackendState {
    const GENERATION: u32 = 0xffff_ff00;
    /// What is added to count one generation up (wraps over 24 bits).
    pub const GENERATION_STEP: u32 = 0x100;

    /// A state of a generation, which lies in the upper 24 bits.
    #[inline(always)]
    pub const fn new(generation: u32, flags: BackendFlags) -> Self {
        BackendState {
            word: (generation & Self::GENERATION) | flags.bits() as u32,
        }
    }
    /// Both as one word.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.word
    }
    /// The generation, in the upper 24 bits.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.word & Self::GENERATION
    }
    /// What is known of the endpoint.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the lower 8 bits")]
    pub const fn flags(self) -> BackendFlags {
        BackendFlags::from_bits(self.word as u8)
    }
}

impl core::fmt::Debug for BackendState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let number = self.word / Self::GENERATION_STEP;
        write!(f, "generation {number}, {:?}", self.flags())
    }
}

impl<F: Family> Backend<F> {
    /// A backend.
    pub const fn new(
        addr: F::Addr,
        port: Be16,
        zone: u16,
        state: BackendState,
        service_id: u32,
    ) -> Self {
        Backend {
            addr,
            port,
            zone,
            state,
            service_id,
        }
    }
    /// The generation, in the upper 24 bits.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.state.generation()
    }
    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: BackendFlags) -> bool {
        self.state.flags().contains(flags)
    }
}

/// Rows in one element of `selection`.
pub const SELECTION_BLOCK_ROWS: usize = 1024;

/// One element of `selection`: rows of Maglev tables, each a backend id. Row `r` of the slab is row
/// `r % 1024` of block `r / 1024`; a table may span blocks.
pub type SelectionBlock = [u32; SELECTION_BLOCK_ROWS];
