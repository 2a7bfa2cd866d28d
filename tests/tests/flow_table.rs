//! The record table in the kernel: two CPUs at once on few flows leave nothing wrong, double or lost.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lb_common::flow_table::TableFamily;
use lb_common::flow_table::census::{Faults, census};
use lb_common::{V4, V6};
use lb_tests::{
    table_trial::{TableTrial, Work},
    tests, trials,
};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf],
        [
            every_program_is_accepted,
            two_cpus_leave_nothing_wrong_double_or_lost
        ]
    ))
}

/// A part of what the verifier walks: a program of the pipeline does more than the table.
const MOST_INSTRUCTIONS: u32 = 175_000;

fn every_program_is_accepted() -> Result<()> {
    let mut trial = TableTrial::load(4, 4)?;
    for name in trial.names() {
        let info = trial.verify(&name)?.info()?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        eprintln!(
            "{name:16} {verified:>8} {:>8}",
            info.size_translated().unwrap_or(0)
        );
        ensure!(
            verified <= MOST_INSTRUCTIONS,
            "`{name}`: the verifier walks {verified} instructions"
        );
    }
    Ok(())
}

/// Operations of one test run: between them the kernel looks for other work.
const REPEAT: u32 = 100_000;
/// Operations of all cases and both CPUs together, unless `LB_TABLE_OPERATIONS` says otherwise.
const OPERATIONS: u64 = 100_000_000;
const CASES: u64 = 6;

fn two_cpus_leave_nothing_wrong_double_or_lost() -> Result<()> {
    let operations = match std::env::var("LB_TABLE_OPERATIONS") {
        Ok(text) => text.parse().context("LB_TABLE_OPERATIONS is no number")?,
        Err(_) => OPERATIONS,
    };
    let rounds = u32::try_from(operations / (CASES * 2 * u64::from(REPEAT)))?.max(1);
    // Roomy, crowded, and far too small; with and without confirmed records, which never give way.
    stress::<V4>("stress_v4", (64, 256), 256, true, rounds)?;
    stress::<V4>("stress_v4", (4, 8), 64, false, rounds)?;
    stress::<V4>("stress_v4", (2, 2), 512, false, rounds)?;
    stress::<V4>("stress_halves", (16, 64), 128, true, rounds)?;
    stress::<V6>("stress_v6", (16, 64), 128, true, rounds)?;
    stress::<V6>("stress_v6", (2, 4), 256, false, rounds)
}

fn stress<F: TableFamily>(
    program: &str,
    (buckets, lines): (u32, u32),
    flows: u32,
    changes: bool,
    rounds: u32,
) -> Result<()> {
    let mut trial = TableTrial::load(buckets, lines)?;
    let works = [1u64, 2].map(|seed| Work {
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        mask: flows - 1,
        changes: u32::from(changes),
        ..Work::default()
    });
    for work in trial.run_at_once(program, &works, REPEAT, rounds)? {
        ensure!(work.wrong == 0, "a record that was not put in: {work:?}");
        ensure!(
            work.inserted > 0
                && work.found > 0
                && work.deleted > 0
                && (work.changed > 0) == changes,
            "nothing was tried: {work:?}"
        );
    }
    let table = trial.table::<F>()?;
    let census = census::<F, _>(&&table);
    ensure!(
        census.faults == Faults::default() && census.records > 0,
        "{program} with {buckets} buckets and {lines} lines left {census:?}"
    );
    Ok(())
}
