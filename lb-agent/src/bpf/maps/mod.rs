//! Typed handles of the pinned maps: abi types in and out, bpf(2) or shared memory underneath.
//!
//! [`Maps::open_pinned`] opens them without loading a program, to read only: what every command but `run`
//! does. The agent opens them to write with [`Maps::open_to_write`] after it loaded the object.

mod all;
mod clock;
mod flows;
mod mapped;
mod per_cpu;
mod pin;
mod plain;
mod typed;

pub(crate) use self::{
    all::{FamilyPins, Maps, XDP_DEVICES},
    clock::ClockReader,
    flows::Reaper,
    per_cpu::PerCpuMap,
    pin::program_pin,
    plain::bytes,
};
pub use self::{
    mapped::MappedArray,
    pin::{Access, MapError, MapResult, pin_dir},
    plain::Plain,
    typed::TypedMap,
};
