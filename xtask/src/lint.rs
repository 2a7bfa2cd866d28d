//! The checks besides tests: format, lints of both worlds, documentation, lines without a test, dependencies.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::setup::Tools;
use crate::{build_ebpf, command, semantics};

/// One check: what it is called and how it runs.
struct Check {
    name: &'static str,
    run: fn(&Tools) -> Result<()>,
}

const CHECKS: [Check; 6] = [
    Check {
        name: "format",
        run: |_| command::run(command::cargo().args(["fmt", "--all", "--check"])),
    },
    Check {
        name: "clippy",
        run: |_| clippy(),
    },
    Check {
        name: "clippy of the BPF programs",
        run: build_ebpf::clippy,
    },
    Check {
        name: "documentation",
        run: |_| documentation(),
    },
    Check {
        name: "semantics",
        run: |_| semantics::semantics(true),
    },
    Check {
        name: "dependencies",
        run: |_| dependencies(),
    },
];

/// Runs every check and returns the names of those that failed.
pub(crate) fn failed_checks(tools: &Tools) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for check in CHECKS {
        if check.name == "dependencies" && !command::exists("cargo-deny") {
            eprintln!("check dependencies: SKIPPED: cargo-deny is not installed");
            continue;
        }
        let start = Instant::now();
        match (check.run)(tools) {
            Ok(()) => eprintln!(
                "check {}: ok ({:.1} s)",
                check.name,
                start.elapsed().as_secs_f32()
            ),
            Err(error) => {
                eprintln!("check {}: FAILED: {error:#}", check.name);
                failed.push(check.name);
            }
        }
    }
    failed
}

/// `cargo xtask lint`.
pub(crate) fn lint(tools: &Tools) -> Result<()> {
    let failed = failed_checks(tools);
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "failed checks: {}; `cargo fmt --all` repairs the format",
        failed.join(", ")
    )
}

fn clippy() -> Result<()> {
    let mut clippy = command::cargo();
    clippy.args([
        "clippy",
        "--keep-going",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]);
    command::run(&mut clippy)
}

fn documentation() -> Result<()> {
    let mut doc = command::cargo();
    doc.env("RUSTDOCFLAGS", "-Dwarnings");
    doc.args([
        "doc",
        "--quiet",
        "--no-deps",
        "--workspace",
        "--exclude",
        "lb-ebpf",
    ]);
    command::run(&mut doc)
}

/// Licences, bans and sources of dependencies: the advisories that cargo-deny also knows change daily and belong to a
/// job of their own.
fn dependencies() -> Result<()> {
    let mut deny = command::cargo();
    deny.args([
        "deny",
        "--workspace",
        "--offline",
        "check",
        "licenses",
        "bans",
        "sources",
    ]);
    command::run(&mut deny)
}
