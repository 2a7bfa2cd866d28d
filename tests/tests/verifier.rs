//! Every program of the object passes the verifier of the running kernel.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{prog_run::Programs, require};

/// The verifier gives up after it has walked 1,000,000 instructions. Half of that leaves room for older
/// kernels, which prune less.
const MOST_INSTRUCTIONS: u32 = 500_000;

#[test]
fn every_program_is_accepted() -> Result<()> {
    require!(Root, Bpf);
    let mut programs = Programs::load()?;
    let mut names = programs.names();
    names.sort();
    ensure!(!names.is_empty(), "the object holds no program");
    println!("{:16} {:>10} {:>10}", "program", "verified", "bytes");
    for name in names {
        let info = programs
            .verify(&name)?
            .info()
            .with_context(|| format!("cannot read about `{name}`"))?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        println!(
            "{name:16} {verified:>10} {:>10}",
            info.size_translated().unwrap_or(0)
        );
        ensure!(
            verified <= MOST_INSTRUCTIONS,
            "`{name}`: the verifier walks {verified} instructions"
        );
    }
    Ok(())
}
