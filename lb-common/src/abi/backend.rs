//! Backend id → [`Backend`]: where a packet may be sent; and the rows that name ids.

use super::Be16;
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
    /// Generation and flags, see [`BackendState`].
    pub state: u32,
    /// Service port that the id belongs to.
    pub service_id: u32,
}
const _: () = assert!(size_of::<Backend<crate::V4>>() == 16);
const _: () = assert!(size_of::<Backend<crate::V6>>() == 28);

/// [`Backend::state`]: generation in the upper 24 bits, flags in the lower 8.
///
/// The generation grows when the id gets another meaning and when its endpoint is neither ready nor
/// serving any more (semantics 17.3, 17.4).
#[derive(Clone, Copy, Debug)]
pub struct BackendState;

impl BackendState {
    /// The endpoint is on this node (`nodeName`).
    pub const LOCAL: u32 = 1 << 0;
    /// The endpoint's address is one of this node's own (host network).
    pub const HOST: u32 = 1 << 1;
    /// In the Cluster list.
    pub const IN_CLUSTER: u32 = 1 << 2;
    /// In the Local list.
    pub const IN_LOCAL: u32 = 1 << 3;
    /// The id names a ready or serving endpoint.
    pub const USABLE: u32 = 1 << 4;
    /// Mask of the generation.
    pub const GENERATION: u32 = 0xffff_ff00;
    /// What is added to count one generation up (wraps over 24 bits).
    pub const GENERATION_STEP: u32 = 0x100;
}

impl<F: Family> Backend<F> {
    /// A backend.
    pub const fn new(addr: F::Addr, port: Be16, zone: u16, state: u32, service_id: u32) -> Self {
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
        self.state & BackendState::GENERATION
    }
}

/// Rows in one element of `selection`.
pub const SELECTION_BLOCK_ROWS: usize = 1024;

/// One element of `selection`: rows of Maglev tables, each a backend id. Row `r` of the slab is row
/// `r % 1024` of block `r / 1024`; a table may span blocks.
pub type SelectionBlock = [u32; SELECTION_BLOCK_ROWS];
