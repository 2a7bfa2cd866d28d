//! The packet logic: no `unsafe`, no kernel. Stages over two traits, [`packet::PacketBuf`] and
//! [`tables::Tables`], named in order here.
//!
//! Each packet hook has a fast stage for what an established flow needs, and a slow one, reached by a
//! tail call, for the rest: it reads the packet again and may do anything. Natively the two are called
//! one after the other ([`run_ingress`], [`run_egress`]), so that every case runs through both.

pub mod affinity;
mod commit;
mod egress;
pub mod flow;
mod fragment;
pub mod hash;
pub mod head;
pub mod icmp;
mod ingress;
pub mod ip;
mod leg;
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
pub mod work;
mod write;

pub use commit::commit;
pub use egress::{egress, slow_egress};
pub use ingress::{ingress, slow_ingress};
pub use open::open_ingress;
pub use write::write;

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
    // At most: slow, commit of a flow that is over, open, write, slow, commit.
    for _ in 0..8 {
        outcome = match outcome {
            Ok(Step::Slow) => slow_ingress::<F, P, T>(packet, tables, l3, hook),
            Ok(Step::Open) => open_ingress::<F, P, T>(packet, tables, l3, hook),
            Ok(Step::Write) => write::<F, T>(tables),
            Ok(Step::Commit) => commit::<F, T>(tables),
            Ok(Step::Refuse) => return refuse::refuse::<F, P, T>(packet, tables, l3),
            Ok(Step::Icmp) => icmp::translate::<F, P, T>(packet, tables, l3, hook.side()),
            _ => return outcome,
        }
    }
    outcome
}

/// One packet leaves: every stage that it needs.
#[cfg(not(target_arch = "bpf"))]
pub fn run_egress<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    let mut outcome = egress::<F, P, T>(packet, tables, l3);
    for _ in 0..4 {
        outcome = match outcome {
            Ok(Step::Slow) => slow_egress::<F, P, T>(packet, tables, l3),
            Ok(Step::Commit) => commit::<F, T>(tables),
            Ok(Step::Icmp) => icmp::translate::<F, P, T>(packet, tables, l3, Side::Out),
            _ => return outcome,
        }
    }
    outcome
}
