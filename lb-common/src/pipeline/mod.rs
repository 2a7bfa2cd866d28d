//! The packet logic: no `unsafe`, no kernel. Stages over two traits, [`packet::PacketBuf`] and
//! [`tables::Tables`], named in order here.
//!
//! Each packet hook has a fast stage for what an established flow needs, and a slow one, reached by a
//! tail call, for the rest: it reads the packet again and may do anything. Natively the two are called
//! one after the other ([`run_ingress`], [`run_egress`]), so that every case runs through both.

pub mod affinity;
mod egress;
pub mod flow;
mod fragment;
pub mod hash;
pub mod head;
pub mod icmp;
mod ingress;
pub mod ip;
pub mod nat;
mod open;
pub mod packet;
pub mod parse;
pub mod refuse;
pub mod rewrite;
pub mod select;
pub mod service;
pub mod socket;
pub mod tables;
mod transmit;
pub mod verdict;

pub use egress::{egress, slow_egress};
pub use ingress::{ingress, slow_ingress};
pub use open::open_ingress;

#[cfg(not(target_arch = "bpf"))]
use {
    crate::abi::Side,
    ip::Ip,
    packet::{Offset, PacketBuf},
    tables::Tables,
    verdict::{Hook, Outcome, Step},
};

/// One packet arrives: every stage that it needs, one after the other. In the kernel each is a program
/// of its own.
#[cfg(not(target_arch = "bpf"))]
pub fn run_ingress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
    hook: Hook,
) -> Outcome {
    let mut outcome = ingress::<F, P, T>(packet, tables, l3, hook);
    if outcome == Ok(Step::Slow) {
        outcome = slow_ingress::<F, P, T>(packet, tables, l3, hook);
    }
    if outcome == Ok(Step::Open) {
        outcome = open_ingress::<F, P, T>(packet, tables, l3, hook);
    }
    match outcome {
        Ok(Step::Refuse) => refuse::refuse::<F, P, T>(packet, tables, l3),
        Ok(Step::Icmp) => icmp::translate::<F, P, T>(packet, tables, l3, hook.side()),
        _ => outcome,
    }
}

/// One packet leaves: every stage that it needs.
#[cfg(not(target_arch = "bpf"))]
pub fn run_egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    let mut outcome = egress::<F, P, T>(packet, tables, l3);
    if outcome == Ok(Step::Slow) {
        outcome = slow_egress::<F, P, T>(packet, tables, l3);
    }
    if outcome == Ok(Step::Icmp) {
        return icmp::translate::<F, P, T>(packet, tables, l3, Side::Out);
    }
    outcome
}
