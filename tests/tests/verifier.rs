//! Every program of the object passes the verifier of the running kernel.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lb_agent::bpf::features::Features;
use lb_tests::{
    prog_run::{Programs, stack_depths},
    tests, trials,
};

fn main() -> ExitCode {
    trials::run(tests!([Root, Bpf], [every_program_is_accepted]))
}

/// The verifier gives up after it has walked 1,000,000 instructions. Half of that leaves room for older
/// kernels, which prune less.
const MOST_INSTRUCTIONS: u32 = 500_000;
/// The kernel's limit (`MAX_BPF_STACK`).
const MOST_STACK: u32 = 512;

fn every_program_is_accepted() -> Result<()> {
    let probed = Features::probe();
    accepted(&probed)?;
    // What newer kernels brought is not used.
    accepted(&Features {
        csum_ipv6: false,
        set_retval: false,
        ..probed
    })
}

fn accepted(features: &Features) -> Result<()> {
    let mut programs = Programs::load_for(features)?;
    let mut names = programs.names();
    names.sort();
    ensure!(!names.is_empty(), "the object holds no program");
    let stack = stack_depths()?;
    eprintln!("{features:?}");
    eprintln!(
        "{:16} {:>10} {:>10} {:>10}",
        "program", "verified", "bytes", "stack"
    );
    for name in names {
        let info = programs
            .verify(&name)?
            .info()
            .with_context(|| format!("cannot read about `{name}`"))?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        let stack = stack
            .get(&name)
            .with_context(|| format!("`{name}` is no function of the object"))?;
        eprintln!(
            "{name:16} {verified:>10} {:>10} {stack:>10}",
            info.size_translated().unwrap_or(0)
        );
        // Its body is in a function of its own: then the stack is not what is shown, and 256 bytes are the limit beside
        // tail calls.
        ensure!(*stack > 0 || name == "clock", "`{name}` is not inlined");
        ensure!(*stack <= MOST_STACK, "`{name}` uses {stack} bytes of stack");
        ensure!(
            verified <= MOST_INSTRUCTIONS,
            "`{name}`: the verifier walks {verified} instructions"
        );
    }
    Ok(())
}
