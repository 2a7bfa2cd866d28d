//! What the eBPF programs and the agent share: the layout of every map (`abi`), packet headers and
//! checksums (`wire`) and the packet logic (`pipeline`).
//!
//! The crate is `no_std`, holds no `unsafe` and knows no kernel. `lb-ebpf` instantiates it over real
//! contexts and maps, the tests and the fuzz targets over memory of their own, so the two cannot drift.
#![no_std]
#![expect(
    clippy::cast_lossless,
    reason = "`From` cannot be called in const functions; one form everywhere"
)]

pub mod abi;
pub mod family;
pub mod flow_table;
pub mod names;
pub mod pipeline;
pub mod wire;

pub use family::{Family, V4, V6};

/// Version of every shared layout. Whoever changes a type in [`abi`] raises it: maps are pinned in a
/// directory that carries this number, so that two builds never read each other's entries.
pub const ABI_VERSION: u32 = 4;
