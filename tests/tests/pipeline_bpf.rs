//! The cases of `lb_tests::cases` through the loaded programs: the same packets and states as
//! `pipeline_native`, so that the two builds of the pipeline cannot drift.

use std::time::Duration;

use anyhow::Result;
use lb_agent::bpf::features::Features;
use lb_common::{V4, V6};
use lb_tests::{cases, loaded::Loaded, require, wait};

#[test]
fn every_case_holds_in_the_kernel() -> Result<()> {
    require!(Root, Bpf);
    every_case_holds(&Features::probe())
}

/// What newer kernels brought is not used.
#[test]
fn every_case_holds_as_on_an_older_kernel() -> Result<()> {
    require!(Root, Bpf);
    every_case_holds(&Features {
        csum_ipv6: false,
        set_retval: false,
        ..Features::probe()
    })
}

fn every_case_holds(features: &Features) -> Result<()> {
    let ns = Loaded::namespace()?;
    ns.run(|| -> Result<()> {
        lb_tests::bench::sys::pin();
        let mut world = Loaded::new(&ns, features)?;
        let mut failed = Vec::new();
        let cases = cases::all::<Loaded>();
        let count = cases.len();
        for (name, case) in cases {
            world.reset()?;
            if name.contains("limit") {
                // Refusals are counted by the second: a new one, and its beginning.
                for is_young in [false, true] {
                    wait::until("another second", Duration::from_secs(3), || {
                        let part = monotonic_part();
                        anyhow::ensure!((part < 300_000_000) == is_young, "{part} ns into it");
                        Ok(())
                    })?;
                }
            }
            let run = std::panic::AssertUnwindSafe(|| case(&mut world));
            if std::panic::catch_unwind(run).is_err() {
                failed.push(name);
            }
        }
        for family in [
            cases::frames_of_others_are_untouched_at_tc::<V4, Loaded>,
            cases::frames_of_others_are_untouched_at_tc::<V6, Loaded>,
        ] {
            world.reset()?;
            family(&mut world);
        }
        eprintln!("{count} cases through the loaded programs");
        assert!(
            failed.is_empty(),
            "{} of {count} cases failed: {failed:#?}",
            failed.len()
        );
        Ok(())
    })?
}

/// Nanoseconds of the current second of CLOCK_MONOTONIC.
fn monotonic_part() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_nsec
}
