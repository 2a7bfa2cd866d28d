//! The checks besides tests: format, lints of both worlds, documentation, lines without a test, dependencies.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::setup::Tools;
use crate::{build_ebpf, command, semantics};

/// What a check is called and how it runs.
type Check = (&'static str, fn(&Tools) -> Result<()>);

const CHECKS: [Check; 6] = [
    ("format", |_| run(&["fmt", "--all", "--check"])),
    ("clippy", |_| clippy()),
    ("clippy of the BPF programs", build_ebpf::clippy),
    ("documentation", |_| documentation()),
    ("semantics", |_| semantics::semantics(true)),
    ("dependencies", |_| dependencies()),
];

/// Runs every check and returns the names of those that failed.
pub(crate) fn failed_checks(tools: &Tools) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check(tools) {
            Ok(()) => eprintln!("check {name}: ok ({:.1} s)", start.elapsed().as_secs_f32()),
            Err(error) => {
                eprintln!("check {name}: FAILED: {error:#}");
                failed.push(name);
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

fn run(arguments: &[&str]) -> Result<()> {
    command::run(command::cargo().args(arguments))
}

fn clippy() -> Result<()> {
    let all = ["--workspace", "--exclude", "lb-ebpf", "--all-targets"];
    run(&[&["clippy", "--keep-going"], &all[..], &["--", "-Dwarnings"]].concat())
}

fn documentation() -> Result<()> {
    let mut doc = command::cargo();
    doc.env(
        "RUSTDOCFLAGS",
        "-Dwarnings -Arustdoc::private_intra_doc_links",
    );
    // Nothing here is published: what is private is read by those who change it, and named in comments.
    doc.args(["doc", "--quiet", "--no-deps", "--document-private-items"]);
    command::run(doc.args(["--workspace", "--exclude", "lb-ebpf"]))
}

/// Licences, bans and sources of dependencies: the advisories that cargo-deny also knows change daily and belong to a
/// job of their own.
fn dependencies() -> Result<()> {
    let checks = ["licenses", "bans", "sources"];
    run(&[&["deny", "--workspace", "--offline", "check"], &checks[..]].concat())
}
