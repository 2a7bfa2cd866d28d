//! The eBPF programs: hooks without decisions. Each wraps its context and calls the pipeline of
//! `lb-common`; what is decided there, and why, is written there.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the program macros emit public items of their own"
)]
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    reason = "contexts and helpers speak in C's integer widths"
)]
#![allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "global functions: the verifier checks their callers, and knows pointers only, not `Option<&T>`"
)]
#![allow(
    internal_features,
    reason = "atomic adds and assembly have no stable form on this target"
)]
#![feature(core_intrinsics, asm_experimental_arch)]

mod arrays;
mod cells;
mod ctx;
mod flow_table;
mod look;
mod maps;
mod programs;
mod tables;

/// The kernel lets programs under this licence call GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: a panic path is a program that does not load. It must not be
/// `unreachable_unchecked`, which would delete the checks themselves.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
